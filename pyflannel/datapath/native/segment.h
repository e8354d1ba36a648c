/* Cutting a super packet into the packets that stand for it.
 *
 * Theory of operation. With TSO and USO granted, one read of the TUN gives up to 64 KB of one TCP
 * stream, or a train of equal UDP datagrams, under one header. What goes on the wire is what the
 * kernel's own tcp_gso_segment() and __udp_gso_segment() would have made of it: each segment has the
 * headers of the whole with
 *
 *     IP total length, IP id + i, IP checksum         TCP sequence + i * size, checksum, and flags:
 *     UDP length and checksum                         FIN and PSH on the last only, CWR on the first
 *
 * The payload is not moved. A segment is a header written elsewhere plus a slice of the original,
 * and the sums over the unchanging parts are taken once. Lengths come from the IP and TCP headers
 * themselves, never from the virtio header's hdr_len (which may be the length of the linear part).
 */
#ifndef PYFLANNEL_SEGMENT_H
#define PYFLANNEL_SEGMENT_H

#include "packet.h"

enum { SEGMENT_HEADER_MAX = IP4_MAX_HEADER + L4_MAX_HEADER };

struct segmenter {
    const uint8_t *payload; /* in the super packet */
    size_t payload_length;
    size_t size;  /* payload bytes of each segment but the last */
    size_t count; /* segments, at least 1 */
    size_t ip_header, header; /* length of the IP header, and of both */
    uint64_t ip_sum, l4_sum;  /* over what does not change */
    uint32_t sequence;
    uint16_t id;
    uint8_t flags;
    bool udp;
    uint8_t headers[SEGMENT_HEADER_MAX]; /* the template, changing fields zeroed */
};

/* Takes a packet that passed `packet_check` and the virtio header that came with it.
 *
 * False if the two do not describe a super packet that can be cut. The packet must stay in place as
 * long as the segments' payloads are used; it is not changed. */
bool segment_begin(struct segmenter *s, const uint8_t *p, size_t length,
                   const struct vnet_header *vnet);

/* Length of segment `i`, headers included. */
static inline size_t segment_length(const struct segmenter *s, size_t i)
{
    size_t left = s->payload_length - i * s->size;

    return s->header + (left < s->size ? left : s->size);
}

/* Writes the headers of segment `i` (`s->header` bytes) and gives where its payload begins. */
const uint8_t *segment_write(const struct segmenter *s, size_t i, uint8_t *out);

#endif
