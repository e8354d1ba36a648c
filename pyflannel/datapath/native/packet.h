/* Reading and rewriting one IPv4 packet: bounds, byte order, checksums, verdicts, ICMP errors.
 *
 * Theory of operation. Everything here is a pure function of the bytes it is given: no system call,
 * no memory of its own, no state. Data from the UDP socket is untrusted, so every length in a
 * packet is compared with the length that the kernel reported before it is used. There is one
 * helper for that, `fits`, and a packet that `packet_check` has passed has these properties, on
 * which the rest of the code relies:
 *
 *     length >= 20, version 4, 20 <= header_length(p) <= length, total length field == length
 *
 * Checksums are sums of 16-bit words in the machine's own byte order (RFC 1071 section 2(B): the sum
 * does not care), so fields that hold a checksum are read and written with `load16`/`store16`, all
 * other fields with the big-endian `get16`/`put16`.
 */
#ifndef PYFLANNEL_PACKET_H
#define PYFLANNEL_PACKET_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    IP4_MIN_HEADER = 20,
    IP4_MAX_HEADER = 60,
    IP4_MAX_PACKET = 65535,
    IP4_MIN_MTU = 68, /* RFC 791, 3.2 */
    TCP_MIN_HEADER = 20,
    UDP_HEADER = 8,
    L4_MAX_HEADER = 60,
    PROTO_ICMP = 1,
    PROTO_TCP = 6,
    PROTO_UDP = 17,

    /* Offsets in the headers, RFC 791, RFC 9293, RFC 768. */
    IP4_TOS = 1,
    IP4_LENGTH = 2,
    IP4_ID = 4,
    IP4_FRAGMENT = 6,
    IP4_TTL = 8,
    IP4_PROTOCOL = 9,
    IP4_CHECKSUM = 10,
    IP4_SOURCE = 12,
    IP4_DESTINATION = 16,
    TCP_SEQUENCE = 4,
    TCP_OFFSET = 12,
    TCP_FLAGS = 13,
    TCP_CHECKSUM = 16,
    UDP_LENGTH = 4,
    UDP_CHECKSUM = 6,

    IP4_DF = 0x4000,
    IP4_MF = 0x2000,
    IP4_OFFSET_MASK = 0x1fff,
    TCP_FIN = 0x01,
    TCP_PSH = 0x08,
    TCP_ACK = 0x10,
    TCP_CWR = 0x80,

    /* Largest ICMP error: outer header, ICMP header, quoted header below 60 bytes, 8 bytes more. */
    ICMP_ERROR_MAX = 20 + 8 + 56 + 8,
    ICMP_UNREACHABLE = 3,
    ICMP_CODE_NETWORK = 0,
    ICMP_CODE_FRAG_NEEDED = 4,
    ICMP_TIME_EXCEEDED = 11,
};

/* The header that IFF_VNET_HDR puts before each packet: struct virtio_net_hdr of linux/virtio_net.h
 * in native byte order (we never ask for TUNSETVNETLE). */
struct vnet_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length; /* a hint that may be the linear length: never used, see segment.h */
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
};
_Static_assert(sizeof(struct vnet_header) == 10, "struct virtio_net_hdr has 10 bytes");

enum {
    VNET_NEEDS_CSUM = 1,
    VNET_GSO_NONE = 0,
    VNET_GSO_TCPV4 = 1,
    VNET_GSO_UDP_L4 = 5,
    VNET_GSO_ECN = 0x80,
};

enum verdict { PACKET_OK, PACKET_MALFORMED, PACKET_OVERSIZE };

/* Whether `need` bytes at `offset` lie within `length` bytes. The one bounds check. */
static inline bool fits(size_t offset, size_t need, size_t length)
{
    return offset <= length && need <= length - offset;
}

static inline uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline void put16(uint8_t *p, size_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static inline void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value);
}

static inline uint16_t load16(const uint8_t *p)
{
    uint16_t value;

    memcpy(&value, p, sizeof value);
    return value;
}

static inline void store16(uint8_t *p, uint16_t value)
{
    memcpy(p, &value, sizeof value);
}

/* Length of the IPv4 header in bytes; 0 to 60, meaningful after `packet_check`. */
static inline size_t header_length(const uint8_t *p)
{
    return (size_t)(p[0] & 15) * 4;
}

/* Whether the packet is a fragment, the first one included. */
static inline bool is_fragment(const uint8_t *p)
{
    return (get16(p + IP4_FRAGMENT) & (IP4_MF | IP4_OFFSET_MASK)) != 0;
}

/* One's-complement sum of `length` bytes, not folded: sums of parts may be added, each part but the
 * last of even length. At most 64 KB each. */
uint64_t checksum_add(const uint8_t *p, size_t length);

/* Folds a sum to the 16 bits that are complemented to give a checksum. */
static inline uint16_t checksum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Sum of the pseudo header of TCP and UDP: both addresses, protocol, length (RFC 9293, 3.1). */
static inline uint64_t pseudo_sum(const uint8_t *p, size_t l4_length)
{
    return checksum_add(p + IP4_SOURCE, 8) + htons(p[IP4_PROTOCOL]) + htons((uint16_t)l4_length);
}

/* Checks everything about a packet that later code relies on (top of this file). */
enum verdict packet_check(const uint8_t *p, size_t length, size_t limit);

/* TTL - 1 with the checksum patched as upstream does (RFC 1624): + 0x0100 in one's complement, and
 * 0xFFFF written as 0. The TTL must be at least 1. */
static inline void ttl_decrement(uint8_t *p)
{
    uint32_t sum = (uint32_t)get16(p + IP4_CHECKSUM) + 0x100;

    p[IP4_TTL]--;
    sum = (sum & 0xffff) + (sum >> 16);
    put16(p + IP4_CHECKSUM, sum == 0xffff ? 0 : sum);
}

/* Finishes the checksum that VNET_NEEDS_CSUM left open (the field holds the pseudo header's sum), of
 * a packet that passed `packet_check`. False, and nothing is changed, if the header does not point
 * behind the IP header and to a checksum of TCP or UDP: a process with raw sockets can choose these
 * numbers, and kernels before September 2024 pass them on (virtio_net_hdr_to_skb()). The packet may
 * be a tunnel's, so the position is not checked further. */
bool checksum_complete(uint8_t *p, size_t length, const struct vnet_header *vnet);

/* Whether an ICMP error of this type may be sent about a packet that passed `packet_check`: first
 * fragment, unicast source, not sent to many, header below 60 bytes, no ICMP error itself; and no
 * ICMP at all for "unreachable, network", as upstream. `length` is how much of it can be read. */
bool icmp_wanted(const uint8_t *p, size_t length, int type, int code);

/* Builds the error into `out` (ICMP_ERROR_MAX bytes) and gives its length.
 *
 * The quote is the header and 8 bytes. `quoted_length` replaces the total length in it (and its
 * header checksum follows): a super packet is quoted as the segment that would have been sent.
 * `rest` is the last 16 bits of the ICMP header: the next-hop MTU of "frag needed", else 0. */
size_t icmp_error(uint8_t *out, const uint8_t *p, size_t quoted_length, uint32_t source, int type,
                  int code, uint16_t rest);

#endif
