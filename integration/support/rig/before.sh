# Run after lay.sh: the client is behind a router, over a link that takes 1300 bytes, while it says that it takes 1500.
#
# client 10.5.0.2 --(1300)-- 10.5.0.1 street 10.1.0.254 --(1500)-- 10.1.0.1 lb
ip netns add street
ip -n lb link del client
ip link add eth0 netns street type veth peer name client netns lb
ip link add eth0 netns client type veth peer name client netns street
in_ns street sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1

for end in lb/client street/eth0 street/client client/eth0; do ip -n "${end%/*}" link set "${end#*/}" up; done
ip -n street link set client mtu 1300
ip -n client link set eth0 mtu 1300

# on NAMESPACE DEVICE ADDRESS...
on() {
    space=$1 device=$2
    shift 2
    for address in "$@"; do ip -n "$space" addr add "$address" dev "$device" nodad; done
}
on lb client 10.1.0.1/24 fd00:1::1/64
on street eth0 10.1.0.254/24 fd00:1::fe/64
on street client 10.5.0.1/24 fd00:5::1/64
on client eth0 10.5.0.2/24 fd00:5::2/64
ip -n lb route add 10.5.0.0/24 via 10.1.0.254
ip -n lb -6 route add fd00:5::/64 via fd00:1::fe
ip -n street route add default via 10.1.0.1
ip -n street -6 route add default via fd00:1::1
ip -n client route add default via 10.5.0.1 advmss 1460
ip -n client -6 route add default via fd00:5::1 advmss 1440
