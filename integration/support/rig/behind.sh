# Run after lay.sh: s1 is behind a router, over a link that takes 1300 bytes, while it says that it takes 1500.
#
# lb 10.3.0.1 --(1500)-- 10.3.0.2 lane 10.4.0.1 --(1300)-- 10.4.0.2 s1, with its address 10.2.0.11
ip netns add lane
ip -n lb link del s1
ip link add eth0 netns lane type veth peer name s1 netns lb
ip link add eth0 netns s1 type veth peer name s1 netns lane
in_ns lane sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1

for end in lb/s1 lane/eth0 lane/s1 s1/eth0; do ip -n "${end%/*}" link set "${end#*/}" up; done
ip -n lane link set s1 mtu 1300
ip -n s1 link set eth0 mtu 1300

# on NAMESPACE DEVICE ADDRESS...
on() {
    space=$1 device=$2
    shift 2
    for address in "$@"; do ip -n "$space" addr add "$address" dev "$device" nodad; done
}
on lb s1 10.3.0.1/24 fd00:3::1/64
on lane eth0 10.3.0.2/24 fd00:3::2/64
on lane s1 10.4.0.1/24 fd00:4::1/64
on s1 eth0 10.4.0.2/24 10.2.0.11/32 fd00:4::2/64 fd00:2::11/128
ip -n lb route add 10.2.0.11 via 10.3.0.2
ip -n lb -6 route add fd00:2::11 via fd00:3::2
ip -n lane route add 10.2.0.11 via 10.4.0.2
ip -n lane -6 route add fd00:2::11 via fd00:4::2
ip -n lane route add default via 10.3.0.1
ip -n lane -6 route add default via fd00:3::1
ip -n s1 route add default via 10.4.0.1 src 10.2.0.11 advmss 1460
ip -n s1 -6 route add default via fd00:4::1 src fd00:2::11 advmss 1440
