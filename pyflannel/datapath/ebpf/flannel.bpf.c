// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The udp backend's encapsulation inside the kernel: the same bytes on the wire.
 *
 * Theory of operation. Small programs, attached with tcx or as filters of tc, move ordinary
 * packets. All other packets go on unchanged (NOT_OURS): through the programs and filters of others
 * at the same hook, to the reader of the TUN or of the UDP socket. That is the user-space data path
 * with the exact rules: ICMP errors, fragments, counters of drops. So nothing is decided twice, and
 * a packet that is missed here is only slower.
 *
 *   overlay_out   egress of flannel0       look the destination up, TTL - 1, wrap, send to the peer
 *   underlay_in   ingress of the underlay  check the sender as user space does, unwrap, TTL - 1
 *   underlay_at_card  in its place where segments are joined at the card, see there
 *   pair_in       ingress of flannelgro0   send on what has been cut or finished; drop what is not ours
 *   gro_in        ingress of flannelgro1   hand joined packets on to flannel0
 *   strip_out     egress of flannelgro1    the same for packets that have lost the tunnel's mark
 *
 * The way in, for a decapsulated packet, is one of three:
 *
 * 1. Straight into flannel0. The shortest, for single packets.
 * 2. Through the veth pair, whose receiving end joins TCP segments (NAPI GRO): the kernel has no
 *    GRO for a UDP port without a registered tunnel, so a stream would pass the stack a segment at a
 *    time. For segments of a peer that is sending many (BURST).
 * 3. The SRv6 way, through seg6local, for super packets that crossed a virtual underlay whole. They carry the
 *    tunnel's mark (skb->encapsulation), because of which the next bridge would cut them. No BPF
 *    helper removes it, but the kernel's own decapsulation does (iptunnel_pull_offloads). So the
 *    packet is encapsulated as SRv6 and received on flannelgro0. The route to the target there
 *    decapsulates it (End.DX2, RFC 8986 §4.9) and sends it out of flannelgro1, where strip_out
 *    takes it. This passes PREROUTING of IPv6 and no other chain. Twelve random bytes in place of
 *    the MAC addresses tell our packets from others that use the route. A VLAN tag is added because
 *    removing it corrects the header offsets, which End.DX2 leaves wrong. Where this is not
 *    available the packets go the second way, and are cut and joined again.
 *
 * The way out, for an encapsulated packet, is one of two:
 *
 * 1. Straight out of the underlay, for peers whose kernel takes it. Its checksum may be unfinished
 *    (CHECKSUM_PARTIAL) and it may be a super packet: a network card finishes both, a virtual
 *    underlay passes both on as they are, and the peer's programs keep them so.
 * 2. Out of flannelgro1, which has no offload, so that the kernel cuts the packet and finishes the
 *    checksums; pair_in takes the datagrams from its other end and sends them on. For peers in user
 *    space, which read bytes: with an unfinished checksum TCP would never arrive there. Without a
 *    pair such packets take the slow path. A super packet that cannot be wrapped (it is a tunnel's own)
 *    goes there before, to be cut, and its pieces come back into flannel0.
 *
 * A peer's datagrams show what it is: programs send them without an outer checksum, sockets with
 * one. A peer that has sent nothing for a while counts as user space.
 *
 * On the way in, the checksum of a socket's datagram may be unfinished (csum_start at the outer UDP
 * header). That mark must go with the header. Pulling a few bytes more than the header makes the
 * kernel drop it (skb_postpull_rcsum); the bytes are then put back.
 *
 * A flow that takes two ways at a time is reordered. The way depends on what the peer has been
 * sending; the longer way is kept until no packet can be left on it.
 *
 * Checks of underlay_in, the same as in user space: the inner source lies in a subnet of exactly
 * the peer whose address the datagram came from; the inner destination lies in the network; TTL;
 * the lengths agree. A datagram that fails one is passed on, and user space counts and drops it.
 *
 * What is bypassed: netfilter's OUTPUT, INPUT and conntrack for the *outer* packet, and IPsec: peers
 * that a policy is for are not in the table. The inner packet passes FORWARD and POSTROUTING as ever.
 * The outer UDP checksum is 0 (RFC 768); one that a received datagram has is verified. The inner
 * checksums are verified by their receivers.
 *
 * License: only programs under the GPL may call bpf_fib_lookup(), so this file (and no other) may
 * be used under the GPL as well.
 *
 * Sources: include/uapi/linux/bpf.h (helpers and their flags); net/core/filter.c;
 * net/ipv6/seg6_local.c; net/core/skbuff.c (__skb_vlan_pop). */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

/* Passes the packet to the next program at this hook, and then to the filters of tc (TCX_NEXT; with
 * cls_bpf: to the next filter). TC_ACT_OK would end the chain for all packets. */
#define NOT_OURS TC_ACT_UNSPEC
#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK_IFINDEX 1 /* in every network namespace (include/net/flow.h) */
#define OUTER_BYTES 28   /* IPv4 and UDP header */
#define OUTER_TTL 64     /* a socket's default (net.ipv4.ip_default_ttl) */
#define DF 0x4000        /* upstream's datagrams carry it */
#define OFFSET_AND_MF 0x3fff
#define OFFSET_ONLY 0x1fff
#define BELIEVED_BYTES 1280 /* see datapath/base.py: smaller path MTUs are not believed */
#define TAG_BYTES 4      /* IEEE 802.1Q */
#define VLAN_ID_BITS 0xfff
#define BARE 0xff        /* XORed into a token's last byte before a packet is wrapped */
/* The least that reaches beyond the eight bytes of a UDP header, by whole words. */
#define BEYOND_BYTES 8
/* Bytes of an IPv4 packet that bpf_skb_adjust_room() must leave when it removes some. */
#define LEAST_LEFT_BYTES sizeof(struct iphdr)
/* Bytes per call of bpf_csum_diff() (MAX_BPF_STACK), and calls: 10 KB, more than any MTU of
 * Ethernet. */
#define SUM_BYTES 512
#define SUM_PIECES 20
/* Mask of a number of bytes that can be summed. It is applied at each use: otherwise the verifier
 * of Linux 5.10 takes such a number, read from the stack, as 16 bits wide. Added to a pointer that
 * exceeds the greatest packet length (MAX_PACKET_OFF), and no bounds check helps. */
#define SUM_BITS 0x3fff
/* The helpers refuse to make a single packet longer than four pages less the kernel's own data at their
 * end (net/core/filter.c, BPF_SKB_MAX_LEN): 16064 bytes with pages of 4 KB, 15616 where the kernel is built
 * for the most fragments (CONFIG_MAX_SKB_FRAGS). This is 15 KB. Packets that would become longer are left to user
 * space. In Python: LONGEST_IN_KERNEL of datapath/base.py. */
#define LONGEST_BYTES 15360
/* A tick is the kernel's timer interrupt (CONFIG_HZ), 1 to 10 ms. A TCP sender with data pauses for
 * a round trip at most, or starts slowly again. So this is 1 to 10 s. */
#define SUPER_TICKS 1000
/* For this long after a datagram without a checksum, its sender accepts unfinished ones. A TCP
 * receiver answers sooner. When a peer changes its data path, its first datagram shows it. */
#define KERNEL_TICKS 1000
/* This many long segments within a tick are a burst. For this many ticks after it segments are
 * joined. */
#define BURST_SEGMENTS 4
#define BURST_TICKS 64

/* The loader reads these five numbers from section "maps"; no BTF, no libbpf. */
struct map_definition {
	__u32 type, key_bytes, value_bytes, entries, flags;
};

struct settings {
	__u32 local;        /* network byte order, as all addresses here */
	__u32 network, mask;
	__u32 overlay_if;   /* ifindex of flannel0 */
	__u32 underlay_if;  /* ifindex of the external interface */
	__u32 gro_if;       /* ifindex of flannelgro0; 0 = there is no pair */
	__u32 finish_if;    /* ifindex of flannelgro1; likewise */
	__u32 strip_from[4], strip_to[4]; /* addresses of the SRv6 way */
	__u16 port;         /* network byte order */
	__u16 mtu;          /* of flannel0, host byte order */
	__u8 accept_any;    /* upstream's behaviour: from any sender */
	__u8 strips;        /* whether the SRv6 way is open */
	__u8 gro_mac[6];    /* of flannelgro1 */
	__u8 strip_mac[6];  /* of flannelgro0 */
	__u8 token[12];     /* marks our frames on the pair; not a group address */
	__u8 any_port;      /* accept any source port: a NAT between the nodes may change it */
	__u8 at_card;       /* a FOU port joins what comes in: our port's datagrams are handed over here */
};

struct prefix {
	__u32 bits, address;
};

/* Lengths of the prefixes in `peers`, longest first, then zeros. */
struct lengths {
	__u8 bits[32];
};

/* A peer. The daemon writes the address, the number under which the peer is counted (0: it is not),
 * and 0 for the rest. The programs keep the rest: when the last super packet came from it, of TCP and
 * of UDP; when the last datagram of its programs came (0 after one of a socket); when the last burst
 * was; the long segments of the current tick. There is no lock: a wrong count only makes joining start or stop a
 * little early or late. */
struct hop {
	__u32 address, number;
	__u32 tcp_super_at, udp_super_at, kernel_at, burst_at;
	__u32 tick, segments;
};

/* Counters of a peer: sent to it, and accepted from it. Per CPU. */
struct traffic {
	__u64 packets_in, bytes_in, packets_out, bytes_out;
};

enum counter {
	TUN_PACKETS,
	TUN_BYTES,
	UDP_PACKETS,
	UDP_BYTES,
	TUN_ERRORS,
	UDP_ERRORS,
	STRIP_TESTS,
	NO_WAY, /* left to user space: the peer's route does not leave by the external interface */
	COUNTERS
};

struct map_definition peers SEC("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct prefix), sizeof(struct hop), 65536, BPF_F_NO_PREALLOC};
struct map_definition lengths SEC("maps") = {
	BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct lengths), 1, 0};
struct map_definition config SEC("maps") = {
	BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct settings), 1, 0};
struct map_definition counters SEC("maps") = {
	BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(__u64), COUNTERS, 0};
/* By number; MOST_COUNTED of datapath/base.py, and number 0. */
struct map_definition traffic SEC("maps") = {
	BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(struct traffic), 1024 + 1, 0};

/* The socket of user space, for underlay_at_card alone. */
struct map_definition slow SEC("maps") = {
	BPF_MAP_TYPE_SOCKMAP, sizeof(__u32), sizeof(__u32), 1, 0};

static __always_inline void add(enum counter which, __u64 n)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		*value += n;
}

/* A super packet counts as the packets it stands for, each with its headers. Their number is
 * computed, because bpf_skb_adjust_room() sets gso_segs to 0, here and at a peer that sends super
 * packets. `longest` as datagram_bytes() gave it; `peer` may be NULL. */
static __always_inline void count(enum counter packets, const struct hop *peer, __u32 bytes,
				  __u32 segment, __u32 longest)
{
	__u32 headers = longest - OUTER_BYTES - segment, segments = 1, number = peer ? peer->number : 0;
	struct traffic *mine;

	if (segment && bytes > headers)
		segments = (bytes - headers + segment - 1) / segment;
	bytes += (segments - 1) * headers;
	add(packets, segments);
	add(packets + 1, bytes);
	mine = number ? bpf_map_lookup_elem(&traffic, &number) : NULL;
	if (!mine)
		return;
	if (packets == TUN_PACKETS) {
		mine->packets_out += segments;
		mine->bytes_out += bytes;
	} else {
		mine->packets_in += segments;
		mine->bytes_in += bytes;
	}
}

static __always_inline const struct settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

/* The peer with the longest prefix of an address.
 *
 * The subnets of a network have one length, so this is one look-up in a hash table; its cost does not
 * grow with the number of peers. A trie (BPF_MAP_TYPE_LPM_TRIE) visits a node for each bit in which
 * they differ: with 10,000 peers it took up to 270 ns more of each packet, and up to 740 with
 * destinations at random (bench/datapath/table_scale.py). */
static __always_inline struct hop *find_peer(__be32 address)
{
	const struct lengths *here;
	struct prefix key;
	struct hop *peer;
	__u32 zero = 0;

	here = bpf_map_lookup_elem(&lengths, &zero);
	if (!here)
		return NULL;
	for (__u32 i = 0; i < sizeof(here->bits); i++) {
		key.bits = here->bits[i];
		if (!key.bits)
			return NULL;
		key.address = address & bpf_htonl(~0u << (-key.bits & 31));
		peer = bpf_map_lookup_elem(&peers, &key);
		if (peer)
			return peer;
	}
	return NULL;
}

/* RFC 1624, with upstream's 0xFFFF normalised to 0: TTL is the high byte of its 16-bit word. */
static __always_inline void decrement_ttl(struct iphdr *ip)
{
	__u32 sum = bpf_ntohs(ip->check) + 0x100;

	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = sum == 0xffff ? 0 : bpf_htons(sum);
	ip->ttl--;
}

/* The 16 bits that a sum of 16-bit words comes to (RFC 1071). */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Of a header with its checksum 0: that checksum. Of a whole one: 0 if it is right. */
static __always_inline __u16 header_checksum(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += word[i];
	return ~fold(sum);
}

/* Bytes of the longest datagram that this packet leaves in; 0 if that is unknown. */
static __always_inline __u32 datagram_bytes(struct __sk_buff *skb, const struct iphdr *inner,
					    __u32 offset)
{
	__u32 payload = skb->gso_size;
	__u8 data_offset;

	if (!payload)
		return bpf_ntohs(inner->tot_len) + OUTER_BYTES;
	if (inner->protocol == IPPROTO_UDP)
		return payload + sizeof(struct iphdr) + sizeof(struct udphdr) + OUTER_BYTES;
	if (inner->protocol != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, offset + sizeof(*inner) + 12, &data_offset, 1))
		return 0;
	return payload + sizeof(struct iphdr) + (data_offset >> 4) * 4 + OUTER_BYTES;
}

/* The time in ticks; never 0. It is one load, far cheaper than the clock. */
static __always_inline __u32 now_ticks(void)
{
	return (__u32)bpf_jiffies64() | 1;
}

/* Signed: another CPU's clock may have been read a moment later. */
static __always_inline int is_recent(__u32 then, __u32 now, __s32 limit)
{
	return then && (__s32)(now - then) < limit;
}

/* Whether a packet's checksum is unfinished, or it is a super packet. No field shows the first, but
 * this helper does: without BPF_F_PSEUDO_HDR it does not change the sum of such a packet. Any two
 * bytes do for the test; these are the IP header's checksum (net/core/utils.c,
 * inet_proto_csum_replace4). */
static __always_inline int is_unfinished(struct __sk_buff *skb, const struct iphdr *ip, __u32 at)
{
	__u16 sum;

	at += offsetof(struct iphdr, check);
	if (skb->gso_size)
		return 1;
	if (bpf_l4_csum_replace(skb, at, 0, 1, sizeof(sum)) ||
	    bpf_skb_load_bytes(skb, at, &sum, sizeof(sum)) || sum == ip->check)
		return 1;
	bpf_skb_store_bytes(skb, at, &ip->check, sizeof(sum), 0);
	return 0;
}

/* Looks up the route of a datagram to a peer, as a socket's is: by address, protocol and ports, from `lo`
 * and out of any device. (BPF_FIB_LOOKUP_OUTPUT looks for one out of the given device: it passes by the
 * route into a VPN that a peer has, and finds the default route.) `lo` must forward, as all devices do
 * with net.ipv4.ip_forward. */
static __always_inline long find_way(struct __sk_buff *skb, const struct settings *conf,
				     __be32 address, struct bpf_fib_lookup *way)
{
	way->family = AF_INET;
	way->l4_protocol = IPPROTO_UDP;
	way->sport = conf->port;
	way->dport = conf->port;
	way->ipv4_src = conf->local;
	way->ipv4_dst = address;
	way->ifindex = LOOPBACK_IFINDEX;
	return bpf_fib_lookup(skb, way, sizeof(*way), 0);
}

/* Sends a datagram where `find_way` has found.
 *
 * A packet that waits for its neighbour entry is sent by its route once that is resolved. So it
 * needs the outer packet's route, not the one that led here: without a next hop the helper looks
 * up the route and attaches it. */
static __always_inline int send_out(const struct settings *conf, long found,
				    const struct bpf_fib_lookup *way)
{
	struct bpf_redir_neigh next = {.nh_family = way->family}; /* IPv6, for a route `via inet6` */

	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return bpf_redirect_neigh(conf->underlay_if, NULL, 0, 0);
	__builtin_memcpy(next.ipv6_nh, way->ipv6_dst, sizeof(next.ipv6_nh));
	return bpf_redirect_neigh(way->ifindex, &next, sizeof(next), 0);
}

/* Whether a packet is so long that a helper may refuse to add so many bytes. Super packets have no
 * such limit. */
static __always_inline int is_too_long(const struct __sk_buff *skb, __u32 added)
{
	return !skb->gso_size && skb->len + added > LONGEST_BYTES;
}

/* Has the kernel cut a super packet that cannot be wrapped whole; its pieces come back here one by
 * one. */
static __always_inline int cut_first(struct __sk_buff *skb, const struct settings *conf)
{
	struct ethhdr ethernet = {};

	if (!skb->gso_size || !conf->finish_if || bpf_skb_change_head(skb, ETH_HLEN, 0))
		return NOT_OURS;
	__builtin_memcpy(&ethernet, conf->token, sizeof(conf->token));
	ethernet.h_source[ETH_ALEN - 1] ^= BARE;
	ethernet.h_proto = bpf_htons(ETH_P_IP);
	bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0);
	return bpf_redirect(conf->finish_if, 0);
}

SEC("tcx/overlay_out")
int overlay_out(struct __sk_buff *skb)
{
	const struct settings *conf = get_settings();
	struct bpf_fib_lookup way = {};
	const struct hop *peer;
	struct iphdr inner;
	__u32 bytes = skb->len, longest;
	int finish;
	long found;

	if (!conf || skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, 0, &inner, sizeof(inner)))
		return NOT_OURS;
	if (inner.version != 4 || inner.ihl != 5 || bpf_ntohs(inner.tot_len) != bytes ||
	    inner.ttl <= 1 || is_too_long(skb, ETH_HLEN + OUTER_BYTES))
		return NOT_OURS;
	peer = find_peer(inner.daddr);
	if (!peer)
		return NOT_OURS;
	longest = datagram_bytes(skb, &inner, 0);
	/* A joined packet close to 64 KB has no room for the outer header's 16-bit length. */
	if (!longest || bytes + OUTER_BYTES > 0xffff)
		return cut_first(skb, conf);
	if (longest > (__u32)conf->mtu + OUTER_BYTES)
		return NOT_OURS;
	/* One look-up gives interface and next hop, and checks the path MTU. A packet that does not fit
	 * goes to user space, which sends the ICMP error. */
	way.tot_len = longest > BELIEVED_BYTES ? longest : 0;
	found = find_way(skb, conf, peer->address, &way);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return NOT_OURS;
	if ((found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    way.ifindex != conf->underlay_if) {
		add(NO_WAY, 1);
		return NOT_OURS;
	}
	finish = !is_recent(peer->kernel_at, now_ticks(), KERNEL_TICKS);
	if (finish && !conf->finish_if && is_unfinished(skb, &inner, 0))
		return NOT_OURS;
	if (bpf_skb_adjust_room(skb, OUTER_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
					BPF_F_ADJ_ROOM_ENCAP_L4_UDP)) {
		/* Refused, and nothing has changed. The packet is in a tunnel already: its marks tell a network
		 * card where the inner headers are (EALREADY), and it can have only one set. A single packet
		 * needs none once its checksum is finished. */
		if (skb->gso_size)
			return cut_first(skb, conf);
		if (!conf->finish_if || bpf_skb_adjust_room(skb, OUTER_BYTES, BPF_ADJ_ROOM_MAC, 0))
			return NOT_OURS;
		finish = 1;
	}
	/* What is sent is a packet of user space: the pod's has nothing to say about its route or queue. */
	skb->mark = 0;
	skb->priority = 0;
	decrement_ttl(&inner);
	if (bpf_skb_store_bytes(skb, OUTER_BYTES, &inner, sizeof(inner), 0) ||
	    bpf_skb_change_head(skb, ETH_HLEN, 0)) {
		add(TUN_ERRORS, 1);
		return TC_ACT_SHOT;
	}
	struct ethhdr ethernet = {};
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} outer = {};

	finish = finish && conf->finish_if;
	if (finish)
		__builtin_memcpy(&ethernet, conf->token, sizeof(conf->token));
	ethernet.h_proto = bpf_htons(ETH_P_IP);
	outer.ip.version = 4;
	outer.ip.ihl = 5;
	outer.ip.ttl = OUTER_TTL;
	outer.ip.protocol = IPPROTO_UDP;
	outer.ip.tot_len = bpf_htons(bytes + OUTER_BYTES);
	outer.ip.frag_off = bpf_htons(DF);
	outer.ip.saddr = conf->local;
	outer.ip.daddr = peer->address;
	outer.ip.check = header_checksum(&outer.ip);
	outer.udp.source = conf->port;
	outer.udp.dest = conf->port;
	outer.udp.len = bpf_htons(bytes + sizeof(outer.udp));
	bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0);
	bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0);
	count(TUN_PACKETS, peer, bytes, skb->gso_size, longest);
	if (finish)
		return bpf_redirect(conf->finish_if, 0);
	return send_out(conf, found, &way);
}

/* Whether the packet is a super packet, or may belong to a flow of some: then it takes their way. So
 * a peer's stream of TCP sends none of its other packets the longest way. The time is written once a
 * tick, because the other CPUs read it for every packet. */
static __always_inline int is_with_supers(struct hop *sender, __u8 protocol, int is_super, __u32 now)
{
	__u32 *at;

	if (!sender || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
		return is_super;
	at = protocol == IPPROTO_TCP ? &sender->tcp_super_at : &sender->udp_super_at;
	if (!is_super)
		return is_recent(*at, now, SUPER_TICKS);
	if (*at != now)
		*at = now;
	return 1;
}

/* Written once a tick, and when the peer changes between programs and socket. */
static __always_inline void saw_datagram(struct hop *sender, int of_program, __u32 now)
{
	__u32 seen = of_program ? now : 0;

	if (sender && sender->kernel_at != seen)
		sender->kernel_at = seen;
}

/* Whether the segment's peer sends, or has just sent, many long segments. */
static __always_inline int in_burst(struct hop *sender, __u32 now, int is_long)
{
	if (!sender)
		return 1;
	if (is_long) {
		if (sender->tick != now) {
			sender->tick = now;
			sender->segments = 0;
		}
		if (sender->segments < BURST_SEGMENTS)
			sender->segments++;
		else if (sender->burst_at != now)
			sender->burst_at = now;
	}
	return is_recent(sender->burst_at, now, BURST_TICKS);
}

/* Whether the SRv6 way is open, that is, a look-up finds its route of seg6local. */
static __always_inline int can_strip(struct __sk_buff *skb, const struct settings *conf)
{
	struct bpf_fib_lookup way = {};

	if (!conf->strips)
		return 0;
	way.family = AF_INET6;
	way.ifindex = conf->gro_if;
	__builtin_memcpy(way.ipv6_src, conf->strip_from, sizeof(way.ipv6_src));
	__builtin_memcpy(way.ipv6_dst, conf->strip_to, sizeof(way.ipv6_dst));
	return bpf_fib_lookup(skb, &way, sizeof(way), 0) == BPF_FIB_LKUP_RET_UNSUPP_LWT;
}

/* What is put before a packet on the SRv6 way. */
struct dress {
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	__u8 token[12];
	__be16 tag[2];
	__be16 protocol;
} __attribute__((packed));
#define STRIP_BYTES (sizeof(struct dress) - ETH_HLEN)

/* Sends a packet of so many bytes, in its Ethernet frame, the SRv6 way. */
static __always_inline int strip(struct __sk_buff *skb, const struct settings *conf, __u32 bytes)
{
	struct dress dress = {};

	if (bpf_skb_adjust_room(skb, STRIP_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO)) {
		add(UDP_ERRORS, 1);
		return TC_ACT_SHOT;
	}
	__builtin_memcpy(dress.ethernet.h_dest, conf->strip_mac, ETH_ALEN);
	dress.ethernet.h_proto = bpf_htons(ETH_P_IPV6);
	dress.ip.version = 6;
	dress.ip.payload_len = bpf_htons(bytes + ETH_HLEN + TAG_BYTES);
	dress.ip.nexthdr = IPPROTO_ETHERNET;
	dress.ip.hop_limit = OUTER_TTL;
	__builtin_memcpy(&dress.ip.saddr, conf->strip_from, sizeof(dress.ip.saddr));
	__builtin_memcpy(&dress.ip.daddr, conf->strip_to, sizeof(dress.ip.daddr));
	__builtin_memcpy(dress.token, conf->token, sizeof(dress.token));
	dress.tag[0] = bpf_htons(ETH_P_8021Q);
	dress.protocol = bpf_htons(ETH_P_IP);
	bpf_skb_store_bytes(skb, 0, &dress, sizeof(dress), 0);
	return bpf_redirect(conf->gro_if, BPF_F_INGRESS);
}

/* Whether GRO may find something to join: a TCP segment that carries data. */
static __always_inline int is_joinable(struct __sk_buff *skb, const struct iphdr *inner)
{
	__u8 data_offset;

	if (inner->protocol != IPPROTO_TCP || inner->ihl != 5 ||
	    inner->frag_off & bpf_htons(OFFSET_AND_MF))
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + OUTER_BYTES + sizeof(*inner) + 12, &data_offset, 1))
		return 0;
	return bpf_ntohs(inner->tot_len) > sizeof(*inner) + (data_offset >> 4) * 4;
}

/* The sum of `bytes` bytes from `at` on, added to `sum`; negative if they cannot be read.
 *
 * Each piece's position is computed from `bytes`, not from the piece before. So the verifier has
 * one state after each piece; otherwise it has one for every combination: 330,000 steps, 0.35 s. */
static __always_inline __s64 sum_bytes(struct __sk_buff *skb, __u32 at, __u32 bytes, __s64 sum)
{
	__u32 whole = bytes / SUM_BYTES, last = 0;
	__u8 *start, *end, *p;

	if (whole > SUM_PIECES || bpf_skb_pull_data(skb, at + bytes))
		return -1;
	start = (__u8 *)(long)skb->data + at;
	end = (__u8 *)(long)skb->data_end;
	for (__u32 i = 0; i < SUM_PIECES && i < whole; i++) {
		p = start + i * SUM_BYTES;
		if (p + SUM_BYTES > end)
			return -1;
		sum = bpf_csum_diff(NULL, 0, (void *)p, SUM_BYTES, sum);
	}
#pragma unroll
	for (__u32 size = SUM_BYTES / 2; size >= 4; size /= 2) {
		if (!(bytes & size))
			continue;
		p = start + (bytes & SUM_BITS & ~(2 * size - 1));
		if (p + size > end)
			return -1;
		sum = bpf_csum_diff(NULL, 0, (void *)p, size, sum);
	}
	if (bytes & 2) {
		p = start + (bytes & SUM_BITS & ~3);
		if (p + 2 > end)
			return -1;
		last = p[0] | p[1] << 8;
	}
	if (bytes & 1) {
		p = start + (bytes & SUM_BITS & ~1);
		if (p + 1 > end)
			return -1;
		last |= (__u32)p[0] << (bytes & 2 ? 16 : 0);
	}
	return bpf_csum_diff(NULL, 0, &last, sizeof(last), sum);
}

/* Whether the checksum of a socket's datagram is right, or was never finished. Either the card has
 * verified it (CHECKSUM_UNNECESSARY), or it has summed the packet from the IP header on
 * (CHECKSUM_COMPLETE; a correct header adds 0), or the datagram crossed a virtual underlay
 * unfinished, or we sum it. */
static __always_inline int sums_up(struct __sk_buff *skb, const struct iphdr *ip,
				   const struct udphdr *udp)
{
	__u64 pseudo = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_UDP) + udp->len;
	__s64 sum;

	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 1;
	sum = bpf_csum_update(skb, 0);
	if (sum < 0) {
		if (is_unfinished(skb, ip, ETH_HLEN))
			return 1;
		sum = sum_bytes(skb, ETH_HLEN + sizeof(*ip), bpf_ntohs(udp->len), 0);
		if (sum < 0)
			return 0;
	}
	return fold(pseudo + (__u32)sum) == 0xffff;
}

/* Whether an address cannot be a sender's (net/ipv4/route.c, ip_route_input_slow). */
static __always_inline int is_no_source(__be32 address, const struct settings *conf)
{
	__u8 first = bpf_ntohl(address) >> 24;

	return first == 0 || first == 127 || first >= 224 || address == conf->local;
}

/* Whether a frame is for a VLAN. One with a priority alone, in a tag of VLAN 0, is not (IEEE 802.1Q). */
static __always_inline int is_of_vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & VLAN_ID_BITS;
}

/* The body of underlay_in; `at_card`: of underlay_at_card. */
static __always_inline int take(struct __sk_buff *skb, const struct settings *conf, int at_card)
{
	struct hop *sender;
	struct {
		struct iphdr ip;
		struct udphdr udp;
		struct iphdr inner;
	} packet;
	__u32 bytes, now, beyond, longest;
	int joins, strips, lent;

	/* Not ours: frames for another station, frames with a tag for a device above this one, and frames
	 * that the stack would drop. */
	if (!conf || skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST ||
	    is_of_vlan(skb) || bpf_skb_load_bytes(skb, ETH_HLEN, &packet, sizeof(packet)))
		return NOT_OURS;
	if (packet.ip.protocol != IPPROTO_UDP || packet.ip.version != 4 || packet.ip.ihl != 5 ||
	    packet.udp.dest != conf->port || packet.ip.daddr != conf->local ||
	    packet.ip.frag_off & bpf_htons(OFFSET_AND_MF) || header_checksum(&packet.ip))
		return NOT_OURS;
	/* The stack uses the smaller of the two lengths, and drops packets with these sources. All other
	 * sources are looked up below. */
	if (bpf_ntohs(packet.ip.tot_len) != sizeof(packet.ip) + bpf_ntohs(packet.udp.len) ||
	    (conf->accept_any && is_no_source(packet.ip.saddr, conf)))
		return NOT_OURS;
	bytes = bpf_ntohs(packet.inner.tot_len);
	/* A train of datagrams that crosses a virtual underlay as one packet (UDP_SEGMENT) fails the
	 * second. */
	if (packet.inner.version != 4 || bytes + sizeof(packet.udp) != bpf_ntohs(packet.udp.len) ||
	    bytes + ETH_HLEN + OUTER_BYTES > skb->len || packet.inner.ihl < 5 ||
	    packet.inner.ihl * 4 > bytes || packet.inner.ttl <= 1)
		return NOT_OURS;
	/* A super packet that is neither TCP nor UDP would be dropped when it is cut. */
	longest = datagram_bytes(skb, &packet.inner, ETH_HLEN + OUTER_BYTES);
	if (!longest || longest > (__u32)conf->mtu + OUTER_BYTES)
		return NOT_OURS;
	/* A socket's datagram: see above for BEYOND_BYTES. Of those that GRO has joined it has verified
	 * the checksum, and what is unfinished since is the inner one (tcp_gro_complete). */
	beyond = packet.udp.check && !(at_card && skb->gso_size) ? BEYOND_BYTES : 0;
	if (beyond && (skb->gso_size || is_too_long(skb, 0)))
		return NOT_OURS;
	sender = find_peer(packet.inner.saddr);
	if (!conf->accept_any &&
	    (!sender || sender->address != packet.ip.saddr ||
	     (packet.udp.source != conf->port && !conf->any_port) ||
	     (packet.inner.daddr & conf->mask) != conf->network))
		return NOT_OURS;
	if (beyond && !sums_up(skb, &packet.ip, &packet.udp))
		return NOT_OURS;
	now = now_ticks();
	saw_datagram(sender, !packet.udp.check, now);
	strips = is_with_supers(sender, packet.inner.protocol, !!skb->gso_size, now) &&
		 !is_too_long(skb, STRIP_BYTES) && can_strip(skb, conf);
	joins = !strips && conf->gro_if && is_joinable(skb, &packet.inner) &&
		(skb->gso_size || in_burst(sender, now, 2 * bytes > conf->mtu));
	/* A very short one gets extra bytes at the end, so that enough of it is left. */
	lent = beyond && bytes < beyond + LEAST_LEFT_BYTES;
	if (lent && bpf_skb_change_tail(skb, skb->len + beyond, 0))
		return NOT_OURS;
	/* This also clears the mark that a device has verified the outer checksum, which says nothing
	 * about the inner one. */
	if (bpf_skb_adjust_room(skb, -(__s32)(OUTER_BYTES + beyond), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO))
		return NOT_OURS;
	skb->mark = 0; /* the datagram's, not the packet's; as the priority in a tag */
	if (skb->vlan_present)
		bpf_skb_vlan_pop(skb);
	decrement_ttl(&packet.inner);
	if ((beyond && bpf_skb_adjust_room(skb, beyond, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &packet.inner, sizeof(packet.inner),
				BPF_F_RECOMPUTE_CSUM) ||
	    (lent && bpf_skb_change_tail(skb, ETH_HLEN + bytes, 0))) {
		add(UDP_ERRORS, 1);
		return TC_ACT_SHOT;
	}
	count(UDP_PACKETS, sender, bytes, skb->gso_size, longest);
	if (strips)
		return strip(skb, conf, bytes);
	if (joins) {
		bpf_skb_store_bytes(skb, 0, conf->gro_mac, sizeof(conf->gro_mac), 0);
		return bpf_redirect(conf->gro_if, 0);
	}
	return bpf_redirect(conf->overlay_if, BPF_F_INGRESS);
}

SEC("tcx/underlay_in")
int underlay_in(struct __sk_buff *skb)
{
	return take(skb, get_settings(), 0);
}

/* Hands a datagram for our port to the socket of user space. The kernel's own look-up would find the FOU
 * port, which is bound to the device as well. */
static __always_inline int to_user(struct __sk_buff *skb, const struct settings *conf)
{
	__u32 zero = 0;
	struct bpf_sock *sk;
	struct iphdr ip;
	__be16 ports[2];
	long failed;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_of_vlan(skb) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 ||
	    ip.protocol != IPPROTO_UDP || ip.daddr != conf->local ||
	    ip.frag_off & bpf_htons(OFFSET_ONLY) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + ip.ihl * 4, ports, sizeof(ports)) ||
	    ports[1] != conf->port)
		return NOT_OURS;
	/* Put together again it would be past this program: the FOU port would have it. Likewise without
	 * a socket: the daemon has died. */
	sk = ip.frag_off & bpf_htons(OFFSET_AND_MF) ? NULL : bpf_map_lookup_elem(&slow, &zero);
	if (!sk) {
		add(UDP_ERRORS, 1);
		return TC_ACT_SHOT;
	}
	failed = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (!failed)
		return NOT_OURS;
	add(UDP_ERRORS, 1);
	return TC_ACT_SHOT;
}

/* In the place of underlay_in where a FOU port at our address and port has GRO join what comes in. */
SEC("tcx/underlay_at_card")
int underlay_at_card(struct __sk_buff *skb)
{
	const struct settings *conf = get_settings();
	int at_card = conf && conf->at_card;
	int verdict = take(skb, conf, at_card);

	return at_card && verdict == NOT_OURS ? to_user(skb, conf) : verdict;
}

/* Whether the twelve bytes there are the token. */
static __always_inline int has_token(struct __sk_buff *skb, const struct settings *conf, __u32 at,
				     __u8 on_top)
{
	__u32 found[3], token[3];

	__builtin_memcpy(token, conf->token, sizeof(token));
	if (bpf_skb_load_bytes(skb, at, found, sizeof(found)))
		return 0;
	((__u8 *)found)[sizeof(found) - 1] ^= on_top;
	return found[0] == token[0] && found[1] == token[1] && found[2] == token[2];
}

/* Packets that overlay_out had cut or finished carry the token as their addresses. Of the others
 * only packets on the SRv6 way may pass. The route behind flannelgro0 decapsulates every packet
 * that reaches it, past the firewall of the external interface; a stranger's packet would enter
 * here. */
SEC("tcx/pair_in")
int pair_in(struct __sk_buff *skb)
{
	const struct settings *conf = get_settings();
	struct bpf_fib_lookup way = {};
	struct ipv6hdr ip;
	__be32 to;

	/* Without a pair in the settings there is no token. */
	if (!conf || !conf->gro_if)
		return TC_ACT_SHOT;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (has_token(skb, conf, 0, 0)) {
			if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &to,
					       sizeof(to)))
				return TC_ACT_SHOT;
			return send_out(conf, find_way(skb, conf, to, &way), &way);
		}
		return has_token(skb, conf, 0, BARE) ? bpf_redirect(conf->overlay_if, 0) : TC_ACT_SHOT;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6) &&
	    !bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) &&
	    ip.nexthdr == IPPROTO_ETHERNET && has_token(skb, conf, ETH_HLEN + sizeof(ip), 0))
		return NOT_OURS;
	return TC_ACT_SHOT;
}

SEC("tcx/gro_in")
int gro_in(struct __sk_buff *skb)
{
	const struct settings *conf = get_settings();

	/* The kernel sends packets of its own into a device that is up. */
	if (!conf || skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT;
	return bpf_redirect(conf->overlay_if, BPF_F_INGRESS);
}

SEC("tcx/strip_out")
int strip_out(struct __sk_buff *skb)
{
	const struct settings *conf = get_settings();
	__be16 types[3]; /* of the frame, the tag, and what is tagged */

	if (!conf || bpf_skb_load_bytes(skb, 2 * ETH_ALEN, types, sizeof(types)))
		return TC_ACT_SHOT;
	/* Packets that overlay_out sends here also have the token, but no tag. */
	if (types[0] != bpf_htons(ETH_P_8021Q) || !has_token(skb, conf, 0, 0))
		return NOT_OURS;
	if (types[2] != bpf_htons(ETH_P_IP)) {
		add(STRIP_TESTS, 1);
		return TC_ACT_SHOT;
	}
	skb->mark = 0; /* a rule of IPv6 may have set it */
	if (bpf_skb_vlan_pop(skb)) {
		add(UDP_ERRORS, 1);
		return TC_ACT_SHOT;
	}
	return bpf_redirect(conf->overlay_if, BPF_F_INGRESS);
}

char program_license[] SEC("license") = "GPL";
