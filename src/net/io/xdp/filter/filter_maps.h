// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The maps of the XDP program. tables.rs and counters.rs mirror them; what they mean is in interest.rs.
//
// An address is always 16 bytes; IPv4 is ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which never is on the wire.
#include <linux/bpf.h>
#include <linux/if_ether.h>

#define SEC(name) __attribute__((section(name), used))
#define uint(name, value) int(*name)[value]
#define type(name, value) value *name

// Why a frame was taken or passed; the index of its counter (counters.rs).
enum kind {
	PASSED,
	ROUTE,
	LOCAL_PORT,
	COVER,
	REPLY,
	ERROR,
	FRAGMENT,
	NEIGHBOUR,
	PASSED_FLOW,
	REINJECTED,
	FOREIGN,
	NO_SOCKET,
	KINDS,
};

struct address {
	__u32 words[4];
};

struct endpoint {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct flow {
	struct endpoint source;
	struct endpoint destination;
};

// The key of a longest-prefix match: `length` counts the bits from `protocol` on.
struct prefix {
	__u32 length;
	__u8 protocol;
	__u8 family;
	__u16 zero;
	struct address address;
};

struct ports {
	__u16 first;
	__u16 last;
};

struct interface {
	__u32 index;
	__u32 base;
	__u32 queues;
	__u16 address[ETH_ALEN / 2];
	__u16 zero;
};

// Which tables have entries, so that a lookup in an empty one costs nothing.
enum tables {
	HOSTS = 1 << 0,
	NETWORKS = 1 << 1,
	LOCAL_PORTS = 1 << 2,
	LOCAL_HOSTS = 1 << 3,
	REPLIES = 1 << 4,
	REPLY_HOSTS = 1 << 5,
	COVERS = 1 << 6,
	ANNOUNCED = 1 << 7,
};

struct settings {
	// Flows passed until this time or earlier were passed under an older configuration.
	__u64 forgotten;
	__u32 tables;
	__u32 zero;
};

struct {
	uint(type, BPF_MAP_TYPE_XSKMAP);
	uint(max_entries, 4096);
	type(key, __u32);
	type(value, __u32);
} sockets SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(max_entries, 1024);
	type(key, __u32);
	type(value, struct interface);
} interfaces SEC(".maps");

// The same, each at its index modulo the size, where another one may be instead: saves most frames the hash.
#define NEAR_INTERFACES 1024

struct {
	uint(type, BPF_MAP_TYPE_ARRAY);
	uint(max_entries, NEAR_INTERFACES);
	type(key, __u32);
	type(value, struct interface);
} near_interfaces SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_ARRAY);
	uint(max_entries, 1);
	type(key, __u32);
	type(value, struct settings);
} settings SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	uint(max_entries, KINDS);
	type(key, __u32);
	type(value, __u64);
} counters SEC(".maps");

// Routed addresses of full length: the usual ones, and a hash finds them faster than a trie.
struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 262144);
	type(key, struct address);
	type(value, __u32);
} hosts SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_LPM_TRIE);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 65536);
	type(key, struct prefix);
	type(value, __u32);
} networks SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 1000000);
	type(key, struct endpoint);
	type(value, __u32);
} local_ports SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 1000000);
	type(key, struct endpoint);
	type(value, __u32);
} replies SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_LPM_TRIE);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 262144);
	type(key, struct prefix);
	type(value, struct ports);
} covers SEC(".maps");

struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 262144);
	type(key, struct address);
	type(value, __u32);
} announced SEC(".maps");

// Flows that turned out not to be lbd's: until when (nanoseconds() then) they are passed.
struct {
	uint(type, BPF_MAP_TYPE_LRU_HASH);
	uint(max_entries, 65536);
	type(key, struct flow);
	type(value, __u64);
} passed SEC(".maps");

// The latest time in `passed`: as long as no flow was passed under this configuration, nothing is looked up there.
struct {
	uint(type, BPF_MAP_TYPE_ARRAY);
	uint(max_entries, 1);
	type(key, __u32);
	type(value, __u64);
} latest_passed SEC(".maps");

// Hosts of backends, with port 0: their fragments may be answers.
struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 1000000);
	type(key, struct endpoint);
	type(value, __u32);
} fragment_sources SEC(".maps");

// Hosts of `local_ports`, with port 0.
struct {
	uint(type, BPF_MAP_TYPE_HASH);
	uint(map_flags, BPF_F_NO_PREALLOC);
	uint(max_entries, 262144);
	type(key, struct endpoint);
	type(value, __u32);
} fragment_destinations SEC(".maps");
