/* The transmit half: packets from the TUN, judged, cut, and sent to their peers.
 *
 * Theory of operation. A batch is read packet by packet into one arena until the TUN is dry, the
 * batch has its TX_BATCH_BYTES (few enough that what was read is still in the cache when it is
 * summed and sent), or `limit` packets are reached. `limit` follows the load: it doubles when it is
 * reached by a worker that had not slept before, and falls to what was there when the TUN ran dry. So
 * a lone packet is sent at once, without a second read that finds nothing, and a stream is read in
 * long batches.
 *
 * Many small packets are a special case. We read faster than they are produced, so each would be
 * sent alone or with few others, and each send costs as much as a long run. While more than
 * TX_GATHER_RATE small packets a second come in, the TUN is left alone for `gather_us` after each
 * batch, as network cards moderate their interrupts. Below that rate nothing waits. Requests with
 * responses, and streams in super packets, stay far below it.
 *
 * A packet to send is one or two slices of memory: a super packet's segment is a header in `headers`
 * and payload in the arena, any other packet lies in the arena whole; neighbouring slices are one.
 * Equal-sized packets to one peer make a *run*, which is one sendmsg() with UDP_SEGMENT: the kernel
 * takes it through its stack once and cuts it at the end, one datagram a packet. A shorter packet
 * ends its run. Runs to different peers may be open side by side; the order to one peer is kept,
 * since a packet only ever joins the latest run to its peer. All runs go out in one sendmmsg().
 *
 * A refused run is sent again packet by packet. So nothing is lost when UDP_SEGMENT is withdrawn,
 * and each packet that is too big for its path gets its own answer.
 *
 * Everything is allocated in `tx_new`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "segment.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum {
    TX_BATCH_BYTES = 256 * 1024,
    TX_ARENA = TX_BATCH_BYTES + IP4_MAX_PACKET + 1,
    TX_LIMIT_MAX = 256,
    TX_GATHER_RATE = 40000,
    TX_GATHER_BYTES = 1000, /* a packet, on average; what is longer comes in super packets anyway */
    TX_WINDOW_NS = 500000,  /* over which the rate is taken */
    /* After this much data, one more system call that finds nothing costs little. And a run that
     * continues across super packets saves the short run at the end of each. */
    TX_BULK_BYTES = 8 * 1024,
    TX_RUNS = 64,
    TX_SLICES = 512,
    TX_HEADERS = 256,
    TX_OPEN_RUNS = 8, /* how far back a run to the same peer is looked for */
    /* UDP_MAX_SEGMENTS: 64 since 4.18, 128 since 6.9. Tried, and lowered when refused. */
    TX_SEGMENTS = 128,
    TX_SEGMENTS_OLD = 64,
    TX_RUN_BYTES = IP4_MAX_PACKET - IP4_MIN_HEADER - UDP_HEADER, /* of one sendmsg() */
    TX_PACKET_SLICES = 4, /* a packet is two slices at most; runs are cut at packets */
    OUTER_HEADERS = IP4_MIN_HEADER + UDP_HEADER,
    BELIEVED_BYTES = BELIEVED_MTU - OUTER_HEADERS,
    TX_PATHS = 256, /* whose MTU is remembered; two peers in one slot ask each time */
};

struct slice {
    struct iovec memory;
    size_t next; /* in the same run */
};

struct run {
    uint32_t peer;     /* host byte order */
    size_t size;       /* of each packet but the last */
    size_t total, count;
    size_t first, last; /* slices */
    size_t vectors, vector_count; /* in tx->vectors, once gathered */
    bool open;
};

/* Most bytes of a packet to a peer, and until when that is used. */
struct path {
    uint64_t until;
    uint32_t peer;
    uint32_t room;
};

struct tx {
    struct worker *worker;
    const struct table *table; /* of the batch under way */
    int tun_fd;
    int mtu_fd; /* a connected socket is the only way to ask for the path MTU */
    size_t limit;
    size_t segments; /* most packets in a run */
    size_t used, runs, slices, headers_used;
    uint64_t window_start, window_packets, window_bytes; /* for the rate */
    bool gathers;
    struct run run[TX_RUNS];
    struct slice slice[TX_SLICES];
    struct iovec vectors[TX_SLICES];
    struct mmsghdr messages[TX_RUNS];
    struct sockaddr_in names[TX_RUNS];
    union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control[TX_RUNS];
    struct segmenter segmenter;
    struct path path[TX_PATHS];
    uint8_t headers[TX_HEADERS][SEGMENT_HEADER_MAX];
    uint8_t arena[TX_ARENA];
};

struct tx *tx_new(struct worker *w, int tun_fd)
{
    struct tx *tx = calloc(1, sizeof *tx);
    struct sockaddr_in local = {0};
    socklen_t size = sizeof local;

    if (!tx)
        return NULL;
    tx->worker = w;
    tx->tun_fd = tun_fd;
    tx->limit = 1;
    tx->segments = TX_SEGMENTS;
    tx->mtu_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    /* From the same address as our datagrams, for routes that depend on it. Without the socket "frag
     * needed" says nothing about the size, and the sender guesses (RFC 1191, section 5). */
    if (tx->mtu_fd >= 0 && !getsockname(w->engine->config.udp_fd, (void *)&local, &size)) {
        local.sin_port = 0;
        if (bind(tx->mtu_fd, (void *)&local, sizeof local)) {
            close(tx->mtu_fd);
            tx->mtu_fd = -1;
        }
    }
    return tx;
}

void tx_free(struct tx *tx)
{
    if (tx && tx->mtu_fd >= 0)
        close(tx->mtu_fd);
    free(tx);
}

int tx_descriptor(const struct tx *tx)
{
    return tx->tun_fd;
}

/* Writes an ICMP error about `p` into the TUN, if one is due. `quoted` is the total length to quote. */
static void answer(struct tx *tx, const uint8_t *p, size_t length, size_t quoted, int type, int code,
                   uint16_t rest, enum counter count)
{
    uint8_t error[ICMP_ERROR_MAX];
    struct worker *w = tx->worker;
    size_t size;

    if (!icmp_wanted(p, length, type, code) || !icmp_allowed(w, p))
        return;
    count_add(w, count, 1);
    size = icmp_error(error, p, quoted, w->engine->config.tun_address, type, code, rest);
    if (tun_write_packet(w, error, size))
        count_add(w, COUNT_udp_write_error, 1);
}

static struct sockaddr_in peer_endpoint(const struct tx *tx, uint32_t peer)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(tx->worker->engine->config.port),
                                .sin_addr = {htonl(peer)}};
}

/* The path MTU to a peer less the outer headers; 0 if the kernel does not say. */
static uint16_t path_mtu(struct tx *tx, uint32_t peer)
{
    struct sockaddr_in name = peer_endpoint(tx, peer);
    int mtu;
    socklen_t size = sizeof mtu;

    if (tx->mtu_fd < 0 || connect(tx->mtu_fd, (void *)&name, sizeof name) ||
        getsockopt(tx->mtu_fd, IPPROTO_IP, IP_MTU, &mtu, &size) || mtu <= OUTER_HEADERS ||
        mtu > IP4_MAX_PACKET)
        return 0;
    return (uint16_t)(mtu - OUTER_HEADERS < IP4_MIN_MTU ? IP4_MIN_MTU : mtu - OUTER_HEADERS);
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Most bytes of a packet to a peer, by the path MTU that we believe. The socket does not check it
 * (IP_PMTUDISC_PROBE), so this asks the kernel. */
static size_t room_to(struct tx *tx, uint32_t peer)
{
    struct path *path = &tx->path[(peer * 2654435761u) >> 24]; /* Knuth's multiplicative hash */
    uint64_t now = now_ms();

    if (path->peer != peer || now >= path->until) {
        size_t room = path_mtu(tx, peer);

        if (room == 0)
            room = IP4_MAX_PACKET;
        if (room < BELIEVED_BYTES)
            room = BELIEVED_BYTES;
        *path = (struct path){now + PATH_MTU_AGE_MS, peer, (uint32_t)room};
    }
    return path->room;
}

/* Whether packets of this length are longer than the path to a peer is believed to take. */
static bool is_wide(struct tx *tx, uint32_t peer, size_t length)
{
    return length > BELIEVED_BYTES && length > room_to(tx, peer);
}

/* Counts packets that were sent to a peer. */
static void count_sent(struct tx *tx, uint32_t peer, size_t packets, size_t bytes)
{
    struct worker *w = tx->worker;
    uint32_t number = table_number(tx->table, peer);

    count_add(w, COUNT_tun_packets, packets);
    count_add(w, COUNT_tun_bytes, bytes);
    peer_add(w, number, PEER_packets_out, packets);
    peer_add(w, number, PEER_bytes_out, bytes);
}

static void count_refused(struct tx *tx, uint32_t peer, size_t packets)
{
    count_add(tx->worker, COUNT_tun_send_error, packets);
    peer_add(tx->worker, table_number(tx->table, peer), PEER_tun_send_error, packets);
}

/* sendmsg() of one packet or one run; 0 or errno. Waits for room once. */
static int send_message(struct tx *tx, const struct msghdr *message)
{
    struct engine *e = tx->worker->engine;

    for (bool waited = false;; waited = true) {
        if (sendmsg(e->config.udp_fd, message, 0) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || waited || !wait_writable(e, e->config.udp_fd))
            return errno;
    }
}

/* A packet that does not fit its path: answered by an ICMP error if it has DF, else fragmented. */
static void too_big(struct tx *tx, uint32_t peer, const struct msghdr *message, size_t length)
{
    struct worker *w = tx->worker;
    uint8_t start[IP4_MAX_HEADER + 8];
    size_t have = 0, room = room_to(tx, peer);

    if (room >= length) /* the interface's MTU is below BELIEVED_MTU */
        room = path_mtu(tx, peer);

    for (size_t i = 0; i < message->msg_iovlen && have < sizeof start; i++) {
        size_t part = message->msg_iov[i].iov_len;

        if (part > sizeof start - have)
            part = sizeof start - have;
        memcpy(start + have, message->msg_iov[i].iov_base, part);
        have += part;
    }
    if (get16(start + IP4_FRAGMENT) & IP4_DF) {
        count_add(w, COUNT_tun_too_big, 1);
        peer_add(w, table_number(tx->table, peer), PEER_tun_too_big, 1);
        answer(tx, start, have, length, ICMP_UNREACHABLE, ICMP_CODE_FRAG_NEEDED,
               (uint16_t)room, COUNT_icmp_frag_needed);
    } else {
        int fd = w->engine->config.udp_fd, without = IP_PMTUDISC_DONT, with = IP_PMTUDISC_PROBE, error;

        /* There is no way to say so per message. Meanwhile another worker's datagram may lose its
         * DF, which does no harm. */
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &without, sizeof without);
        error = send_message(tx, message);
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &with, sizeof with);
        if (error)
            count_refused(tx, peer, 1);
        else
            count_sent(tx, peer, 1, length);
    }
}

/* The slices of `length` bytes at `offset` of a run. */
static size_t cut_vectors(const struct tx *tx, const struct run *run, size_t offset, size_t length,
                          struct iovec out[TX_PACKET_SLICES])
{
    const struct iovec *from = &tx->vectors[run->vectors];
    size_t count = 0;

    for (; length && count < TX_PACKET_SLICES; from++) {
        size_t part;

        if (offset >= from->iov_len) {
            offset -= from->iov_len;
            continue;
        }
        part = from->iov_len - offset < length ? from->iov_len - offset : length;
        out[count++] = (struct iovec){(uint8_t *)from->iov_base + offset, part};
        length -= part;
        offset = 0;
    }
    return count;
}

/* Sends the packets of a run one by one. True if the kernel refused none of them for its size. */
static bool send_single(struct tx *tx, const struct run *run)
{
    struct sockaddr_in name = peer_endpoint(tx, run->peer);
    bool fit = true;

    for (size_t offset = 0; offset < run->total; offset += run->size) {
        size_t left = run->total - offset, length = left < run->size ? left : run->size;
        struct iovec pieces[TX_PACKET_SLICES];
        struct msghdr message = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = pieces};
        int error;

        message.msg_iovlen = cut_vectors(tx, run, offset, length, pieces);
        error = is_wide(tx, run->peer, length) ? EMSGSIZE : send_message(tx, &message);
        if (error == EMSGSIZE) {
            fit = false;
            too_big(tx, run->peer, &message, length);
        } else if (error) {
            count_refused(tx, run->peer, 1);
        } else {
            count_sent(tx, run->peer, 1, length);
        }
    }
    return fit;
}

/* Deals with a run that the kernel did not take. */
static void refused(struct tx *tx, const struct run *run, struct msghdr *message, int error)
{
    struct engine *e = tx->worker->engine;

    /* Try once more. EAGAIN passes soon, and any other error may belong to an earlier datagram: the
     * next call on the socket returns a pending ICMP error. */
    if (error != EAGAIN || wait_writable(e, e->config.udp_fd))
        error = send_message(tx, message);
    if (error == 0) {
        count_sent(tx, run->peer, run->count, run->total);
        return;
    }
    switch (error) {
    case EIO: /* a device without checksums before 6.11, or IPsec on the way */
    case EOPNOTSUPP:
    case ENOPROTOOPT:
        if (run->count > 1) {
            offload_withdraw(e, OFFLOAD_gso, error);
            send_single(tx, run);
            return;
        }
        break;
    case EINVAL: /* too many segments for this kernel; or, before 6.1, too big for the path */
        if (run->count > TX_SEGMENTS_OLD) {
            tx->segments = TX_SEGMENTS_OLD;
            send_single(tx, run);
            return;
        }
        if (run->count > 1) {
            if (send_single(tx, run))
                offload_withdraw(e, OFFLOAD_gso, error);
            return;
        }
        break;
    case EMSGSIZE:
        send_single(tx, run);
        return;
    }
    count_refused(tx, run->peer, run->count);
}

/* Sends all runs. The arena and the headers may be used anew afterwards. */
static void tx_flush(struct tx *tx)
{
    struct worker *w = tx->worker;
    size_t vectors = 0, sent = 0, messages = 0;
    const struct run *order[TX_RUNS]; /* of the messages */

    for (size_t i = 0; i < tx->runs; i++) {
        struct run *run = &tx->run[i];
        struct msghdr *message = &tx->messages[messages].msg_hdr;

        run->vectors = vectors;
        for (size_t s = run->first;; s = tx->slice[s].next) {
            tx->vectors[vectors++] = tx->slice[s].memory;
            if (s == run->last)
                break;
        }
        run->vector_count = vectors - run->vectors;
        if (is_wide(tx, run->peer, run->size)) {
            send_single(tx, run);
            continue;
        }
        tx->names[messages] = peer_endpoint(tx, run->peer);
        *message = (struct msghdr){.msg_name = &tx->names[messages],
                                   .msg_namelen = sizeof tx->names[messages],
                                   .msg_iov = &tx->vectors[run->vectors],
                                   .msg_iovlen = run->vector_count};
        if (run->count > 1) {
            struct cmsghdr *c;
            uint16_t size = (uint16_t)run->size;

            message->msg_control = tx->control[messages].bytes;
            message->msg_controllen = sizeof tx->control[messages].bytes;
            c = CMSG_FIRSTHDR(message);
            c->cmsg_level = IPPROTO_UDP;
            c->cmsg_type = UDP_SEGMENT;
            c->cmsg_len = CMSG_LEN(sizeof size);
            memcpy(CMSG_DATA(c), &size, sizeof size);
        }
        order[messages++] = run;
    }
    while (sent < messages) {
        int done = sendmmsg(w->engine->config.udp_fd, tx->messages + sent,
                            (unsigned)(messages - sent), 0);

        if (done < 0) {
            if (errno == EINTR)
                continue;
            refused(tx, order[sent], &tx->messages[sent].msg_hdr, errno);
            sent++;
            continue;
        }
        for (; done > 0; done--, sent++)
            count_sent(tx, order[sent]->peer, order[sent]->count, order[sent]->total);
    }
    tx->runs = tx->slices = tx->headers_used = 0;
}

static void run_slice(struct tx *tx, struct run *run, uint8_t *memory, size_t length)
{
    struct iovec *last = run->total ? &tx->slice[run->last].memory : NULL;

    run->total += length;
    if (last && (uint8_t *)last->iov_base + last->iov_len == memory) {
        last->iov_len += length;
        return;
    }
    tx->slice[tx->slices] = (struct slice){{memory, length}, 0};
    if (last)
        tx->slice[run->last].next = tx->slices;
    else
        run->first = tx->slices;
    run->last = tx->slices++;
}

/* The run that a packet continues, or NULL. */
static struct run *open_run(struct tx *tx, uint32_t peer, size_t length)
{
    size_t oldest = tx->runs > TX_OPEN_RUNS ? tx->runs - TX_OPEN_RUNS : 0;

    for (size_t i = tx->runs; i-- > oldest;) {
        struct run *run = &tx->run[i];

        if (run->peer != peer)
            continue;
        return run->open && length <= run->size && run->count < tx->segments &&
                       run->total + length <= TX_RUN_BYTES
                   ? run
                   : NULL;
    }
    return NULL;
}

/* Whether there is room for one packet more; if not, all goes out first. */
static void make_room(struct tx *tx)
{
    if (tx->runs == TX_RUNS || tx->slices + 2 > TX_SLICES || tx->headers_used == TX_HEADERS)
        tx_flush(tx);
}

/* Puts a packet, header and body (either may be empty), into a run; `make_room` came before. */
static void tx_add(struct tx *tx, uint32_t peer, uint8_t *head, size_t head_length, uint8_t *body,
                   size_t body_length)
{
    size_t length = head_length + body_length;
    struct run *run = offload_on(tx->worker->engine, OFFLOAD_gso) ? open_run(tx, peer, length) : NULL;

    if (!run) {
        run = &tx->run[tx->runs++];
        *run = (struct run){.peer = peer, .size = length, .open = true};
    }
    if (head_length)
        run_slice(tx, run, head, head_length);
    run_slice(tx, run, body, body_length);
    run->count++;
    if (length < run->size)
        run->open = false;
}

/* One packet as it was read; `vnet` is all zero without virtio headers. */
static void tx_packet(struct tx *tx, const struct table *t, uint8_t *p, size_t length,
                      const struct vnet_header *vnet)
{
    struct worker *w = tx->worker;
    const struct engine_config *config = &w->engine->config;
    struct segmenter *s = &tx->segmenter;
    size_t packets = 1, quoted = length;
    bool whole = vnet->gso_type == VNET_GSO_NONE;
    uint32_t peer;

    if (packet_check(p, length, IP4_MAX_PACKET) != PACKET_OK ||
        (!whole && !segment_begin(s, p, length, vnet)) ||
        (whole && (vnet->flags & VNET_NEEDS_CSUM) &&
         (!checksum_complete(p, length, vnet) ||
          packet_check(p, length, IP4_MAX_PACKET) != PACKET_OK))) {
        count_add(w, COUNT_tun_malformed, 1);
        return;
    }
    if (!whole) {
        packets = s->count;
        quoted = segment_length(s, 0);
    }
    if (quoted > config->mtu) {
        count_add(w, COUNT_tun_oversize, packets);
        return;
    }
    peer = table_lookup(t, get32(p + IP4_DESTINATION));
    if (peer == 0) {
        count_add(w, COUNT_tun_no_route, packets);
        answer(tx, p, length, quoted, ICMP_UNREACHABLE, ICMP_CODE_NETWORK, 0, COUNT_icmp_unreachable);
        return;
    }
    if (p[IP4_TTL] <= 1) {
        count_add(w, COUNT_tun_ttl, packets);
        peer_add(w, table_number(t, peer), PEER_tun_ttl, packets);
        answer(tx, p, length, quoted, ICMP_TIME_EXCEEDED, 0, 0, COUNT_icmp_time_exceeded);
        return;
    }
    if (whole) {
        ttl_decrement(p);
        make_room(tx);
        tx_add(tx, peer, NULL, 0, p, length);
        return;
    }
    s->headers[IP4_TTL]--;
    s->ip_sum = checksum_add(s->headers, s->ip_header);
    for (size_t i = 0; i < packets; i++) {
        uint8_t *header, *payload;

        make_room(tx);
        header = tx->headers[tx->headers_used++];
        payload = p + (segment_write(s, i, header) - p);
        tx_add(tx, peer, header, s->header, payload, segment_length(s, i) - s->header);
    }
}

bool tx_gathers(struct tx *tx, uint64_t now)
{
    uint64_t passed = now - tx->window_start;

    if (passed >= TX_WINDOW_NS) {
        uint64_t packets = tx->window_packets, most = TX_WINDOW_NS * 4;

        tx->gathers = passed < most && packets * 1000000000u > passed * TX_GATHER_RATE &&
                      tx->window_bytes < packets * TX_GATHER_BYTES;
        tx->window_start = now;
        tx->window_packets = tx->window_bytes = 0;
    }
    return tx->gathers;
}

bool tx_batch(struct tx *tx, const struct table *t, bool busy)
{
    struct engine *e = tx->worker->engine;
    size_t header = e->config.vnet_header ? sizeof(struct vnet_header) : 0, packets = 0;
    bool dry = false;

    tx->table = t;
    tx->used = 0;
    while ((packets < tx->limit || tx->used > TX_BULK_BYTES) && tx->used < TX_BATCH_BYTES) {
        struct vnet_header vnet = {0};
        uint8_t *p = tx->arena + tx->used;
        /* The header goes elsewhere, so that small packets lie side by side and are one slice. */
        struct iovec pieces[2] = {{&vnet, sizeof vnet}, {p, IP4_MAX_PACKET}};
        ssize_t got = readv(tx->tun_fd, header ? pieces : pieces + 1, header ? 2 : 1);

        if (got < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                engine_fail(e, errno); /* EBADFD: the device was deleted */
            dry = true;
            break;
        }
        if (got == 0) {
            engine_fail(e, EPIPE); /* never from a TUN: the other end of a stand-in is closed */
            dry = true;
            break;
        }
        packets++;
        if ((size_t)got < header) {
            count_add(tx->worker, COUNT_tun_malformed, 1);
            continue;
        }
        tx_packet(tx, t, p, (size_t)got - header, &vnet);
        tx->used += (size_t)got - header;
    }
    if (tx->runs)
        tx_flush(tx);
    tx->window_packets += packets;
    tx->window_bytes += tx->used;
    if (dry)
        tx->limit = packets ? packets : 1;
    else if (busy && packets >= tx->limit && tx->limit < TX_LIMIT_MAX)
        tx->limit *= 2;
    return !dry && packets > 1;
}
