/* Joining the packets of a flow into one super packet: the reverse of segment.h.
 *
 * Theory of operation. One receive brings a batch of packets. A packet is offered to the joiner,
 * which keeps up to JOIN_FLOWS open flows for the length of the batch; the caller writes what comes
 * back through `emit`, and ends the batch with `join_flush`, so joining adds no delay. Two packets
 * are joined only if cutting the result gives exactly them again:
 *
 *   - same addresses, ports, TOS (ECN included), TTL, DF; no fragment, no IP option
 *   - IP ids that count up by one, unless DF is set: the id of a datagram that cannot be fragmented
 *     means nothing, and may be rewritten (RFC 6864, 4.1)
 *   - TCP: the next sequence number, same acknowledgement, window and options, no flag but ACK and
 *     PSH; PSH ends a super packet.   UDP: a checksum is present
 *   - same payload length; a shorter one ends the super packet
 *   - the IP and the TCP or UDP checksum are right: the receiver will not look at them again, since
 *     the super packet goes out as VNET_NEEDS_CSUM, so joining must not hide a damaged packet
 *
 * Order within a flow is kept: a packet of an open flow that cannot join it makes the flow go out
 * first. A packet whose ports are not visible (a fragment, one with options) does so for all flows
 * between its two addresses.
 *
 * The packets stay where they are; a flow is a list of slices of them, with a header of its own.
 */
#ifndef PYFLANNEL_COALESCE_H
#define PYFLANNEL_COALESCE_H

#include <sys/uio.h>

#include "packet.h"

enum {
    JOIN_FLOWS = 16,
    /* 64 KB of 512-byte segments; and UDP's limit in kernels before 6.9 (UDP_MAX_SEGMENTS). */
    JOIN_PARTS = 128,
    JOIN_PARTS_UDP = 64,
    JOIN_HEADER_MAX = IP4_MIN_HEADER + L4_MAX_HEADER,
};

struct join_flow {
    uint8_t *head; /* first packet, unchanged */
    size_t count;  /* packets; 0 = free */
    size_t header, size, total; /* header length, payload length of the first, length of the whole */
    uint32_t next_sequence;
    bool udp, verified, closed, push;
    struct vnet_header vnet;
    uint8_t merged[JOIN_HEADER_MAX];
    struct iovec parts[2 + JOIN_PARTS]; /* virtio header, merged header, payloads */
};

typedef void join_emit(void *context, struct join_flow *flow);

struct joiner {
    join_emit *emit; /* writes a flow: flow->parts after `join_finish`, or its packets one by one */
    void *context;
    bool tcp, udp;         /* which protocols may be joined now */
    size_t used, last, victim;
    struct join_flow flows[JOIN_FLOWS];
};

/* Offers a packet that passed `packet_check` and has its final TTL. True: it is kept until emitted
 * and must stay in place; false: the caller writes it now. */
bool join_offer(struct joiner *j, uint8_t *p, size_t length);

/* Emits all that is open. */
void join_flush(struct joiner *j);

/* Makes the headers of a flow of two or more packets; `parts[0 .. count + 1]` is what to write. */
void join_finish(struct join_flow *flow);

/* The packet number `i` of a flow as it came in. */
static inline struct iovec join_packet(const struct join_flow *flow, size_t i)
{
    struct iovec slice = flow->parts[2 + i];

    return (struct iovec){(uint8_t *)slice.iov_base - flow->header, slice.iov_len + flow->header};
}

#endif
