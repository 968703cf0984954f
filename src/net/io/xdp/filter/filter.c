// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The XDP program: what is lbd's goes to the AF_XDP socket of its queue, all else to the kernel as if nothing were here.
//
// One instance serves all interfaces. Only uapi headers, and only what Linux 5.15 knows, except that `xdp.frags` needs
// 5.18: before that, program.rs takes plain_filter.
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "filter_maps.h"

#define inline static inline __attribute__((always_inline))
#define swap16(value) __builtin_bswap16(value)
#define swap32(value) __builtin_bswap32(value)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(value) swap16(value)
#define be32(value) swap32(value)
#else
#define be16(value) (value)
#define be32(value) (value)
#endif

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static __u64 (*nanoseconds)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*redirect_map)(void *map, __u32 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

// The source of frames that were given back to the kernel on an interface where it runs this program again (generic
// mode). Random, chosen when the program is loaded.
const volatile __u16 reinjected[ETH_ALEN / 2] = {};

enum shape {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT,
};

// What is known of an IP packet. The protocol is in both endpoints, the ports are 0 where there are none.
struct packet {
	struct flow flow;
	__u8 shape;
	__u8 has_ports;
	__u16 zero;
};

// Farther than any header that parsing reaches, and small enough for the verifier (MAX_PACKET_OFF).
#define OFFSET_MASK 0x3fff

// `size` bytes at `offset` of the frame, or 0.
inline void *at(struct xdp_md *context, __u32 offset, __u32 size)
{
	void *start = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	void *here = start + (offset & OFFSET_MASK);

	return here + size > end ? 0 : here;
}

inline int is_transport(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

inline void set_protocol(struct packet *packet, __u8 protocol)
{
	packet->flow.source.protocol = protocol;
	packet->flow.destination.protocol = protocol;
}

// TCP, UDP and SCTP all begin with the two ports. Returns 0 if they are cut off.
inline int read_ports(struct xdp_md *context, __u32 offset, struct packet *packet)
{
	__be16 *ports;

	if (packet->shape == LATER_FRAGMENT || !is_transport(packet->flow.source.protocol))
		return 1;
	ports = at(context, offset, 4);
	if (!ports)
		return 0;
	packet->flow.source.port = ports[0];
	packet->flow.destination.port = ports[1];
	packet->has_ports = 1;
	return 1;
}

inline void map_v4(struct address *address, __be32 v4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = be32(0xffff);
	address->words[3] = v4;
}

// The parsers are global functions so that the verifier looks at each of them once, whatever was before. They return
// where the transport header is, or -1.
__attribute__((noinline)) int parse_v4(struct xdp_md *context, __u32 offset, struct packet *packet)
{
	struct iphdr *header = at(context, offset, sizeof(*header));
	__u16 fragment;

	if (!packet || !header || header->version != 4 || header->ihl < 5)
		return -1;
	map_v4(&packet->flow.source.address, header->saddr);
	map_v4(&packet->flow.destination.address, header->daddr);
	set_protocol(packet, header->protocol);
	// RFC 791 section 3.1: three flags, of which the last is "more fragments", and 13 bits of offset.
	fragment = be16(header->frag_off);
	packet->shape = fragment & 0x1fff ? LATER_FRAGMENT : fragment & 0x2000 ? FIRST_FRAGMENT : WHOLE;
	offset += header->ihl * 4;
	return read_ports(context, offset, packet) ? (int)offset : -1;
}

// RFC 8200 section 4.5
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
};

#define EXTENSION_HEADERS 6

// One IPv6 extension header: 1 = there was one, 0 = what comes now is none, -1 = it is cut off.
inline int skip_extension(struct xdp_md *context, __u32 *offset, __u8 *next, struct packet *packet)
{
	struct fragment_header *header;
	__u8 kind = *next;

	if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING && kind != IPPROTO_DSTOPTS && kind != IPPROTO_AH &&
	    kind != IPPROTO_FRAGMENT)
		return 0;
	header = at(context, *offset, sizeof(*header));
	if (!header)
		return -1;
	*next = header->next;
	if (kind == IPPROTO_FRAGMENT) {
		__u16 fragment = be16(header->offset);

		packet->shape = fragment & 0xfff8 ? LATER_FRAGMENT : fragment & 1 ? FIRST_FRAGMENT : WHOLE;
		*offset += 8;
	} else if (kind == IPPROTO_AH) {
		// RFC 4302 section 2.2: in words of four bytes, minus two.
		*offset += (header->reserved + 2) * 4;
	} else {
		// RFC 8200 section 4.2: in words of eight bytes, the first one not counted.
		*offset += (header->reserved + 1) * 8;
	}
	return 1;
}

__attribute__((noinline)) int parse_v6(struct xdp_md *context, __u32 offset, struct packet *packet)
{
	struct ipv6hdr *header = at(context, offset, sizeof(*header));
	__u8 next;

	if (!packet || !header || header->version != 6)
		return -1;
	__builtin_memcpy(&packet->flow.source.address, &header->saddr, sizeof(struct address));
	__builtin_memcpy(&packet->flow.destination.address, &header->daddr, sizeof(struct address));
	next = header->nexthdr;
	offset += sizeof(*header);
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		int found;

		// What follows the first fragment's headers is data in the later ones.
		if (packet->shape == LATER_FRAGMENT)
			break;
		found = skip_extension(context, &offset, &next, packet);
		if (found < 0)
			return -1;
		if (!found)
			break;
	}
	set_protocol(packet, next);
	return read_ports(context, offset, packet) ? (int)offset : -1;
}

inline int is_v4(const struct address *address)
{
	return !address->words[0] && !address->words[1] && address->words[2] == be32(0xffff);
}

inline void *match(void *trie, __u8 protocol, const struct address *address)
{
	struct prefix prefix = {
		.length = 32 + 128,
		.protocol = protocol,
		.family = is_v4(address) ? 4 : 6,
		.address = *address,
	};

	return map_lookup(trie, &prefix);
}

inline int is_routed(const struct settings *now, struct address *address)
{
	return (now->tables & HOSTS && map_lookup(&hosts, address)) ||
	       (now->tables & NETWORKS && match(&networks, 0, address));
}

// The endpoint itself, or port 0, which stands for all of them, in `map`.
inline int has_endpoint(void *map, int exact, int whole, struct endpoint *endpoint)
{
	__be16 port = endpoint->port;
	int found;

	if (exact && map_lookup(map, endpoint))
		return 1;
	if (!whole)
		return 0;
	endpoint->port = 0;
	found = map_lookup(map, endpoint) != 0;
	endpoint->port = port;
	return found;
}

inline int is_local_port(const struct settings *now, struct endpoint *endpoint)
{
	return has_endpoint(&local_ports, now->tables & LOCAL_PORTS, now->tables & LOCAL_HOSTS, endpoint);
}

inline int is_backend(const struct settings *now, struct endpoint *endpoint)
{
	return has_endpoint(&replies, now->tables & REPLIES, now->tables & REPLY_HOSTS, endpoint);
}

inline int is_covered(const struct settings *now, const struct endpoint *endpoint)
{
	struct ports *ports;
	__u16 port = be16(endpoint->port);

	if (!(now->tables & COVERS))
		return 0;
	ports = match(&covers, endpoint->protocol, &endpoint->address);
	return ports && ports->first <= port && port <= ports->last;
}

inline int was_passed(const struct settings *now, const struct flow *flow)
{
	__u32 zero = 0;
	__u64 *until = map_lookup(&latest_passed, &zero);

	if (!until || *until <= now->forgotten)
		return 0;
	until = map_lookup(&passed, flow);
	return until && *until > now->forgotten && *until > nanoseconds();
}

// Other than by its address.
inline enum kind judge_ports(const struct settings *now, struct packet *packet)
{
	enum kind kind;

	if (is_local_port(now, &packet->flow.destination))
		return LOCAL_PORT;
	if (is_covered(now, &packet->flow.destination))
		kind = COVER;
	else if (is_backend(now, &packet->flow.source))
		kind = REPLY;
	else
		return PASSED;
	return was_passed(now, &packet->flow) ? PASSED_FLOW : kind;
}

// Whether the packet that an ICMP error quotes is lbd's.
inline int quotes_ours(const struct settings *now, struct packet *quoted)
{
	if (is_routed(now, &quoted->flow.source.address))
		return 1;
	if (!quoted->has_ports)
		return 0;
	return is_local_port(now, &quoted->flow.source) || is_covered(now, &quoted->flow.source) ||
	       is_backend(now, &quoted->flow.destination);
}

// RFC 792: destination unreachable, source quench, time exceeded, parameter problem.
inline int is_error_v4(__u8 type)
{
	return type == 3 || type == 4 || type == 11 || type == 12;
}

// RFC 4443 section 2.1: destination unreachable, packet too big, time exceeded, parameter problem.
inline int is_error_v6(__u8 type)
{
	return type >= 1 && type <= 4;
}

// RFC 4861 section 4.3: the target follows four bytes of ICMP header and four reserved ones.
#define SOLICITATION 135
#define SOLICITATION_SIZE 24

inline int solicits_announced(struct xdp_md *context, const struct settings *now, __u32 offset)
{
	__u8 *message = at(context, offset, SOLICITATION_SIZE);
	struct address target;

	if (!message || !(now->tables & ANNOUNCED))
		return 0;
	__builtin_memcpy(&target, message + 8, sizeof(target));
	return map_lookup(&announced, &target) != 0;
}

// What is quoted begins behind eight bytes (RFC 792, RFC 4443 section 3).
#define QUOTE 8

inline enum kind judge_icmp(struct xdp_md *context, const struct settings *now, __u8 protocol, __u32 offset,
			    int to_group)
{
	__u8 *type = at(context, offset, QUOTE);
	struct packet quoted = {};
	int parsed;

	if (!type)
		return PASSED;
	if (protocol == IPPROTO_ICMPV6 && *type == SOLICITATION)
		return solicits_announced(context, now, offset) ? NEIGHBOUR : PASSED;
	if (to_group)
		return PASSED;
	if (protocol == IPPROTO_ICMP && is_error_v4(*type))
		parsed = parse_v4(context, offset + QUOTE, &quoted);
	else if (protocol == IPPROTO_ICMPV6 && is_error_v6(*type))
		parsed = parse_v6(context, offset + QUOTE, &quoted);
	else
		return PASSED;
	return parsed >= 0 && quotes_ours(now, &quoted) ? ERROR : PASSED;
}

inline int has_host(void *hosts, const struct endpoint *endpoint)
{
	struct endpoint host = {
		.address = endpoint->address,
		.protocol = endpoint->protocol,
	};

	return map_lookup(hosts, &host) != 0;
}

// Only the first fragment of a datagram has ports, and it may come last. So whatever their ports would be, all fragments go
// to lbd that come from a host of backends, or go to where lbd listens; lbd gives back what is not its own.
inline enum kind judge_fragment(const struct settings *now, const struct packet *packet)
{
	const struct endpoint *source = &packet->flow.source, *destination = &packet->flow.destination;
	__u8 protocol = source->protocol;
	int ours;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return PASSED;
	ours = (now->tables & (REPLIES | REPLY_HOSTS) && has_host(&fragment_sources, source)) ||
	       (now->tables & (LOCAL_PORTS | LOCAL_HOSTS) && has_host(&fragment_destinations, destination)) ||
	       (now->tables & COVERS && match(&covers, protocol, &destination->address));
	return ours ? FRAGMENT : PASSED;
}

// `to_group`: the frame was sent to many, so that only what was sent to an address of lbd's can be meant for it.
inline enum kind judge(struct xdp_md *context, const struct settings *now, struct packet *packet, __u32 offset,
		       int to_group)
{
	__u8 protocol = packet->flow.source.protocol;

	if (is_routed(now, &packet->flow.destination.address))
		return ROUTE;
	if (packet->shape != WHOLE)
		return to_group ? PASSED : judge_fragment(now, packet);
	if (!packet->has_ports)
		return judge_icmp(context, now, protocol, offset, to_group);
	return to_group ? PASSED : judge_ports(now, packet);
}

// RFC 826, for IPv4 over Ethernet.
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender[ETH_ALEN];
	__u8 sender_address[4];
	__u8 target[ETH_ALEN];
	__u8 target_address[4];
};

inline enum kind judge_arp(struct xdp_md *context, const struct settings *now, __u32 offset)
{
	struct arp *arp = at(context, offset, sizeof(*arp));
	struct address target;
	__be32 v4;

	if (!arp || !(now->tables & ANNOUNCED))
		return PASSED;
	if (arp->hardware != be16(1) || arp->protocol != be16(ETH_P_IP) || arp->operation != be16(1))
		return PASSED;
	if (arp->hardware_length != ETH_ALEN || arp->protocol_length != 4)
		return PASSED;
	__builtin_memcpy(&v4, arp->target_address, sizeof(v4));
	map_v4(&target, v4);
	return map_lookup(&announced, &target) ? NEIGHBOUR : PASSED;
}

struct vlan {
	__be16 tag;
	__be16 type;
};

// The type of what the frame carries, behind at most two VLAN tags; moves `offset` there.
inline __u16 skip_tags(struct xdp_md *context, __u16 type, __u32 *offset)
{
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan *vlan;

		if (type != ETH_P_8021Q && type != ETH_P_8021AD)
			break;
		vlan = at(context, *offset, sizeof(*vlan));
		if (!vlan)
			return 0;
		type = be16(vlan->type);
		*offset += sizeof(*vlan);
	}
	return type;
}

// MAC addresses begin at even offsets everywhere.
inline int equal(const volatile __u16 *left, const volatile __u16 *right)
{
	return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]));
}

// IEEE 802-2014 section 8.2.2: the first bit on the wire.
inline int is_group(const __u16 *address)
{
	return address[0] & be16(0x0100);
}

// Fills `to` with the address that the frame was sent to.
inline enum kind judge_frame(struct xdp_md *context, __u16 *to)
{
	struct ethhdr *ethernet = at(context, 0, sizeof(*ethernet));
	__u32 zero = 0, offset = sizeof(*ethernet);
	struct settings *now = map_lookup(&settings, &zero);
	struct packet packet = {};
	__u16 type;
	int transport, to_group;

	if (!ethernet || !now)
		return PASSED;
	if (equal((__u16 *)ethernet->h_source, reinjected))
		return REINJECTED;
	if (!now->tables)
		return PASSED;
	__builtin_memcpy(to, ethernet->h_dest, ETH_ALEN);
	to_group = is_group(to);
	type = skip_tags(context, be16(ethernet->h_proto), &offset);
	if (type == ETH_P_IP)
		transport = parse_v4(context, offset, &packet);
	else if (type == ETH_P_IPV6)
		transport = parse_v6(context, offset, &packet);
	else
		return type == ETH_P_ARP ? judge_arp(context, now, offset) : PASSED;
	return transport < 0 ? PASSED : judge(context, now, &packet, transport, to_group);
}

inline int is_taken(enum kind kind)
{
	return kind >= ROUTE && kind <= NEIGHBOUR;
}

inline struct interface *find_interface(__u32 index)
{
	__u32 near = index % NEAR_INTERFACES;
	struct interface *interface = map_lookup(&near_interfaces, &near);

	return interface && interface->index == index ? interface : map_lookup(&interfaces, &index);
}

// To the socket of the queue that the frame came by; says so if there is none.
inline int redirect(struct xdp_md *context, const __u16 *to, enum kind *kind)
{
	__u32 queue = context->rx_queue_index;
	struct interface *interface = find_interface(context->ingress_ifindex);
	int action = XDP_PASS;

	// A frame to somebody else, seen because of promiscuous mode: PACKET_OTHERHOST in eth_type_trans, net/ethernet/eth.c.
	if (interface && !is_group(to) && !equal(to, interface->address)) {
		*kind = FOREIGN;
		return XDP_PASS;
	}
	if (interface && queue < interface->queues)
		action = redirect_map(&sockets, interface->base + queue, XDP_PASS);
	if (action == XDP_PASS)
		*kind = NO_SOCKET;
	return action;
}

// Global like the parsers, so that it is in the object once.
__attribute__((noinline)) int filter(struct xdp_md *context)
{
	__u16 to[ETH_ALEN / 2] = {};
	enum kind kind = judge_frame(context, to);
	int action = is_taken(kind) ? redirect(context, to, &kind) : XDP_PASS;
	__u32 index = kind;
	__u64 *counter = map_lookup(&counters, &index);

	if (counter)
		*counter += 1;
	return action;
}

SEC("xdp.frags") int filter_frames(struct xdp_md *context)
{
	return filter(context);
}

// Before Linux 5.18.
SEC("xdp") int plain_filter(struct xdp_md *context)
{
	return filter(context);
}

// Run on a frame by BPF_PROG_TEST_RUN, these give it to the kernel as if it had just arrived.
SEC("xdp") int pass_on(struct xdp_md *context)
{
	return XDP_PASS;
}

// The same where the kernel runs the filter on it once more.
SEC("xdp") int pass_on_marked(struct xdp_md *context)
{
	struct ethhdr *ethernet = at(context, 0, sizeof(*ethernet));

	if (ethernet) {
		__u16 *source = (__u16 *)ethernet->h_source;

		source[0] = reinjected[0];
		source[1] = reinjected[1];
		source[2] = reinjected[2];
	}
	return XDP_PASS;
}

char dual_license[] SEC("license") = "Dual MIT/GPL";
