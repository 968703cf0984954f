# Run after lay.sh: lb has one link, a trunk to a switch, with the client in VLAN 100 and the servers in VLAN 200.
#
# client 10.1.0.2 -- (100) switch -- eth0 of lb: eth0.100 10.1.0.1, eth0.200 10.2.0.1
# s1, s2, s3      -- (200)
ip netns add switch

# access NAMESPACE VLAN ADDRESS4 ADDRESS6 GATEWAY4 GATEWAY6
access() {
    ip link add eth0 netns "$1" type veth peer name "$1" netns switch
    ip -n switch link set "$1" master "vlan$2" up
    ip -n "$1" link set eth0 up
    ip -n "$1" addr add "$3" dev eth0
    ip -n "$1" addr add "$4" dev eth0 nodad
    ip -n "$1" route add default via "$5"
    ip -n "$1" -6 route add default via "$6"
}

# trunk VLAN ADDRESS4 ADDRESS6
trunk() {
    ip -n switch link add "vlan$1" type bridge mcast_snooping 0
    ip -n switch link add link trunk name "trunk.$1" type vlan id "$1"
    ip -n switch link set "trunk.$1" master "vlan$1" up
    ip -n switch link set "vlan$1" up
    ip -n lb link add link eth0 name "eth0.$1" type vlan id "$1"
    ip -n lb link set "eth0.$1" up
    ip -n lb addr add "$2" dev "eth0.$1"
    ip -n lb addr add "$3" dev "eth0.$1" nodad
}

for name in client s1 s2 s3; do ip -n lb link del "$name"; done
ip link add eth0 netns lb type veth peer name trunk netns switch
# The tag is in the frame, as on a wire, and not beside it, as between two ends of a veth.
nsenter --net=/run/netns/switch ethtool -K trunk txvlan off >/dev/null
ip -n switch link set trunk up
ip -n lb link set eth0 up
trunk 100 10.1.0.1/24 fd00:1::1/64
trunk 200 10.2.0.1/24 fd00:2::1/64
access client 100 10.1.0.2/24 fd00:1::2/64 10.1.0.1 fd00:1::1
for number in 1 2 3; do access "s$number" 200 "10.2.0.1$number/24" "fd00:2::1$number/64" 10.2.0.1 fd00:2::1; done
