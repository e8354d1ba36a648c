/* The receive half: datagrams from the socket, judged, joined, and written to the TUN.
 *
 * Theory of operation. One recvmmsg() brings up to RX_MESSAGES datagrams, each of which may be, with
 * UDP_GRO, a train of equal datagrams of one sender that the kernel has joined; the control message
 * says where to cut. Each packet is judged by itself. TCP and UDP packets are offered to the joiner
 * (coalesce.h), the rest is written at once; the joiner is emptied at the end of the batch.
 *
 * The number of messages asked for follows their size: trains are taken few at a time, so that what
 * has been copied out of the kernel is still in the cache when it is summed and copied back in.
 *
 * A super packet that the TUN refuses is written again packet by packet; if that works, joining is
 * withdrawn for that protocol.
 *
 * Everything is allocated in `rx_new`. The buffers have room for any datagram, so none is truncated.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "coalesce.h"
#include "engine.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
    RX_MESSAGES = 64,
    /* Any datagram; and a stride that does not put the beginnings of all buffers, the only part of a
     * short datagram that is touched, into the same sets of the caches. */
    RX_BUFFER = 65536 + 5 * CACHE_LINE,
    /* Long messages: no more than this many bytes a batch, in messages of the size seen last. */
    RX_BATCH_BYTES = 512 * 1024,
};

struct rx {
    struct worker *worker;
    size_t ask;   /* messages to ask for */
    size_t packets, bytes; /* that the message under way has brought and that were let in */
    size_t dirty; /* messages whose lengths the last receive has changed */
    struct joiner joiner;
    struct mmsghdr messages[RX_MESSAGES];
    struct iovec vectors[RX_MESSAGES];
    struct sockaddr_in names[RX_MESSAGES];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control[RX_MESSAGES];
    uint8_t buffers[RX_MESSAGES][RX_BUFFER];
};

static void rx_emit(void *context, struct join_flow *flow);

struct rx *rx_new(struct worker *w)
{
    /* 4 MB, of which only the pages that datagrams reach are ever backed by memory. */
    struct rx *rx = calloc(1, sizeof *rx);

    if (!rx)
        return NULL;
    rx->worker = w;
    rx->ask = rx->dirty = RX_MESSAGES;
    rx->joiner.emit = rx_emit;
    rx->joiner.context = rx;
    return rx;
}

void rx_free(struct rx *rx)
{
    free(rx);
}

/* Writes a packet as it is. */
static void rx_write(struct rx *rx, const uint8_t *p, size_t length)
{
    struct worker *w = rx->worker;

    if (tun_write_packet(w, p, length)) {
        count_add(w, COUNT_udp_write_error, 1);
    } else {
        count_add(w, COUNT_udp_packets, 1);
        count_add(w, COUNT_udp_bytes, length);
    }
}

/* Writes an open flow: a lone packet as it came, more as one super packet. */
static void rx_emit(void *context, struct join_flow *flow)
{
    struct rx *rx = context;
    struct worker *w = rx->worker;
    enum offload which = flow->udp ? OFFLOAD_join_udp : OFFLOAD_join_tcp;
    uint64_t before;
    int error;

    if (flow->count == 1) {
        rx_write(rx, flow->head, flow->header + flow->size);
        return;
    }
    join_finish(flow);
    error = tun_write_pieces(w, flow->head, flow->parts, 2 + flow->count);
    if (error == 0) {
        count_add(w, COUNT_udp_packets, flow->count);
        count_add(w, COUNT_udp_bytes, flow->total + (flow->count - 1) * flow->header);
        return;
    }
    if (error != EINVAL && error != EOPNOTSUPP && error != EMSGSIZE) {
        count_add(w, COUNT_udp_write_error, flow->count); /* the device is down, or full */
        return;
    }
    before = atomic_load_explicit(&w->counters[COUNT_udp_write_error], memory_order_relaxed);
    for (size_t i = 0; i < flow->count; i++) {
        struct iovec packet = join_packet(flow, i);

        rx_write(rx, packet.iov_base, packet.iov_len);
    }
    if (atomic_load_explicit(&w->counters[COUNT_udp_write_error], memory_order_relaxed) == before)
        offload_withdraw(w->engine, which, error);
}

/* Sends "time exceeded" back through the overlay, as the router that let the packet die. */
static void rx_time_exceeded(struct rx *rx, const struct table *t, const uint8_t *p, size_t length)
{
    struct worker *w = rx->worker;
    const struct engine_config *config = &w->engine->config;
    uint8_t error[ICMP_ERROR_MAX];
    uint32_t peer = table_lookup(t, get32(p + IP4_SOURCE));
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons(config->port),
                               .sin_addr = {htonl(peer)}};
    size_t size;

    if (peer == 0 || !icmp_wanted(p, length, ICMP_TIME_EXCEEDED, 0) || !icmp_allowed(w, p))
        return;
    count_add(w, COUNT_icmp_time_exceeded, 1);
    size = icmp_error(error, p, length, config->tun_address, ICMP_TIME_EXCEEDED, 0, 0);
    if (sendto(config->udp_fd, error, size, MSG_DONTWAIT, (void *)&name, sizeof name) < 0) {
        count_add(w, COUNT_tun_send_error, 1);
        peer_add(w, table_number(t, peer), PEER_tun_send_error, 1);
    }
}

/* Whether a packet may come from this address and port; counts the reason if not. */
static bool rx_allowed(struct rx *rx, const struct table *t, const uint8_t *p, uint32_t sender,
                       uint16_t port)
{
    struct worker *w = rx->worker;
    const struct engine_config *config = &w->engine->config;

    if (port != config->port && !config->any_port) {
        count_add(w, COUNT_udp_unknown_sender, 1);
        return false;
    }
    if (table_lookup(t, get32(p + IP4_SOURCE)) != sender) {
        count_add(w, table_knows(t, sender) ? COUNT_udp_wrong_source : COUNT_udp_unknown_sender, 1);
        peer_add(w, table_number(t, sender), PEER_udp_wrong_source, 1);
        return false;
    }
    if ((get32(p + IP4_DESTINATION) & config->netmask) != config->network) {
        count_add(w, COUNT_udp_wrong_destination, 1);
        peer_add(w, table_number(t, sender), PEER_udp_wrong_destination, 1);
        return false;
    }
    return true;
}

/* One packet, of which only the length is known. */
static void rx_packet(struct rx *rx, const struct table *t, uint8_t *p, size_t length,
                      uint32_t sender, uint16_t port)
{
    struct worker *w = rx->worker;
    const struct engine_config *config = &w->engine->config;

    switch (packet_check(p, length, config->mtu)) {
    case PACKET_MALFORMED:
        count_add(w, COUNT_udp_malformed, 1);
        peer_add(w, table_number(t, sender), PEER_udp_malformed, 1);
        return;
    case PACKET_OVERSIZE:
        count_add(w, COUNT_udp_oversize, 1);
        peer_add(w, table_number(t, sender), PEER_udp_oversize, 1);
        return;
    case PACKET_OK:
        break;
    }
    if (!config->accept_any && !rx_allowed(rx, t, p, sender, port))
        return;
    if (p[IP4_TTL] <= 1) {
        count_add(w, COUNT_udp_ttl, 1);
        peer_add(w, table_number(t, sender), PEER_udp_ttl, 1);
        rx_time_exceeded(rx, t, p, length);
        return;
    }
    ttl_decrement(p);
    rx->packets++;
    rx->bytes += length;
    if (!join_offer(&rx->joiner, p, length))
        rx_write(rx, p, length);
}

/* Length of the datagrams in a message: what UDP_GRO says, or all of it. */
static size_t segment_size(struct msghdr *message, size_t length)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO &&
            c->cmsg_len >= CMSG_LEN(sizeof(int))) {
            int size;

            memcpy(&size, CMSG_DATA(c), sizeof size);
            if (size > 0)
                return (size_t)size;
        }
    }
    return length;
}

static void rx_message(struct rx *rx, const struct table *t, size_t i)
{
    size_t left = rx->messages[i].msg_len;
    size_t size = segment_size(&rx->messages[i].msg_hdr, left);
    uint32_t sender = ntohl(rx->names[i].sin_addr.s_addr);
    uint16_t port = ntohs(rx->names[i].sin_port);
    uint8_t *p = rx->buffers[i];

    rx->packets = rx->bytes = 0;
    do {
        size_t length = left < size ? left : size;

        rx_packet(rx, t, p, length, sender, port); /* an empty datagram is malformed as well */
        p += length;
        left -= length;
    } while (left);
    if (rx->packets) {
        uint32_t number = table_number(t, sender);

        peer_add(rx->worker, number, PEER_packets_in, rx->packets);
        peer_add(rx->worker, number, PEER_bytes_in, rx->bytes);
    }
}

void rx_errors(struct rx *rx)
{
    for (size_t i = 0; i < RX_MESSAGES; i++) {
        struct msghdr nothing = {0};

        if (recvmsg(rx->worker->engine->config.udp_fd, &nothing, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return;
    }
}

bool rx_batch(struct rx *rx, const struct table *t)
{
    struct engine *e = rx->worker->engine;
    size_t bytes = 0, average, asked = rx->ask;
    int got;

    for (size_t i = 0; i < rx->dirty; i++) {
        rx->vectors[i] = (struct iovec){rx->buffers[i], IP4_MAX_PACKET};
        rx->messages[i].msg_hdr = (struct msghdr){.msg_name = &rx->names[i],
                                                  .msg_namelen = sizeof rx->names[i],
                                                  .msg_iov = &rx->vectors[i],
                                                  .msg_iovlen = 1,
                                                  .msg_control = rx->control[i].bytes,
                                                  .msg_controllen = sizeof rx->control[i].bytes};
    }
    rx->dirty = 0;
    /* Other errors than "nothing there" are old ones, reported once (ICMP answers to our
     * datagrams). The worker handles a socket that stays broken. */
    got = recvmmsg(e->config.udp_fd, rx->messages, (unsigned)asked, MSG_DONTWAIT, NULL);
    if (got <= 0)
        return false;
    rx->dirty = (size_t)got;
    rx->joiner.tcp = offload_on(e, OFFLOAD_join_tcp);
    rx->joiner.udp = offload_on(e, OFFLOAD_join_udp);
    for (size_t i = 0; i < (size_t)got; i++) {
        bytes += rx->messages[i].msg_len;
        rx_message(rx, t, i);
    }
    join_flush(&rx->joiner);
    average = bytes / (size_t)got + 1;
    rx->ask = RX_BATCH_BYTES / average;
    if (rx->ask > RX_MESSAGES)
        rx->ask = RX_MESSAGES;
    if (rx->ask == 0)
        rx->ask = 1;
    return (size_t)got == asked;
}
