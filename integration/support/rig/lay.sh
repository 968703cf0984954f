# Lays the network of a rig in the current network and mount namespaces; see mod.rs for its picture. Run by `sh -eu`.
# scripts/lib.sh uses it too.
mount -t tmpfs tmpfs /run
mount -t proc proc /proc 2>/dev/null || true # not permitted in some containers; the old one serves
mkdir -p /run/netns /run/rig

in_ns() {
    netns=$1
    shift
    nsenter --net="/run/netns/$netns" "$@"
}

for name in client lb s1 s2 s3; do
    ip netns add "$name"
    # Addresses are usable at once, without duplicate address detection.
    in_ns "$name" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    # Timestamps without an offset for each pair of addresses: a server in TIME_WAIT takes a SYN with a newer one (RFC 6191).
    # A client that comes to two service addresses from one port is one connection to the server; with the offsets its
    # SYN may look old, is answered by an ACK that the client resets, and counts as one connection more.
    in_ns "$name" sysctl -qw net.ipv4.tcp_timestamps=2
    ip -n "$name" link set lo up
done

# link NAMESPACE ADDRESS4 ADDRESS6 GATEWAY4 GATEWAY6: eth0 there, a device called like the namespace in lb
link() {
    ip link add eth0 netns "$1" type veth peer name "$1" netns lb
    ip -n "$1" link set eth0 up
    ip -n lb link set "$1" up
    ip -n "$1" addr add "$2" dev eth0
    ip -n "$1" addr add "$3" dev eth0 nodad
    ip -n lb addr add "$4" dev "$1"
    ip -n lb addr add "$5" dev "$1" nodad
}

link client 10.1.0.2/24 fd00:1::2/64 10.1.0.1/24 fd00:1::1/64
ip -n client route add default via 10.1.0.1
ip -n client -6 route add default via fd00:1::1

for number in 1 2 3; do
    link "s$number" "10.2.0.1$number/32" "fd00:2::1$number/128" 10.2.0.1/32 fd00:2::1/128
    ip -n lb route add "10.2.0.1$number" dev "s$number"
    ip -n lb -6 route add "fd00:2::1$number" dev "s$number"
    ip -n "s$number" route add 10.2.0.1 dev eth0
    ip -n "s$number" -6 route add fd00:2::1 dev eth0
    ip -n "s$number" route add default via 10.2.0.1
    ip -n "s$number" -6 route add default via fd00:2::1
done
