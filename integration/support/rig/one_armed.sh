# Run after lay.sh: everybody is on one segment, a bridge in a namespace of its own, and lb has the one interface eth0.
#
# client 10.2.0.2 --+-- 10.2.0.1 lb
#                   +-- 10.2.0.11 s1, 10.2.0.12 s2, 10.2.0.13 s3
ip netns add wire
ip -n wire link add segment type bridge mcast_snooping 0
ip -n wire link set segment up

# on_segment NAMESPACE ADDRESS4 ADDRESS6
on_segment() {
    ip link add eth0 netns "$1" type veth peer name "$1" netns wire
    ip -n wire link set "$1" master segment up
    ip -n "$1" link set eth0 up
    ip -n "$1" addr add "$2" dev eth0
    ip -n "$1" addr add "$3" dev eth0 nodad
}

for name in client s1 s2 s3; do ip -n lb link del "$name"; done
on_segment client 10.2.0.2/24 fd00:2::2/64
on_segment lb 10.2.0.1/24 fd00:2::1/64
for number in 1 2 3; do on_segment "s$number" "10.2.0.1$number/24" "fd00:2::1$number/64"; done
ip -n client route add 10.96.0.0/16 via 10.2.0.1
ip -n client -6 route add fd00:96::/64 via fd00:2::1
