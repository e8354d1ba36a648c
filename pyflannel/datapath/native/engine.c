/* See engine.h. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "packet.h"

/* Values of linux/udp.h and linux/if_tun.h that older headers lack. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum {
    /* At most 1000 ICMP errors a second, in bursts of 50 (datapath/base.py). */
    ICMP_INTERVAL_NS = 1000000,
    ICMP_BURST = 250,
    ICMP_EACH_INTERVAL_NS = 5000000,
    ICMP_EACH_BURST = 50,
    /* How long to sleep when poll() keeps reporting a condition that reading does not clear. */
    TROUBLE_MS = 10,
    TROUBLE_ROUNDS = 16,
    /* A poll() that sleeps takes longer than this, one that does not takes far less. */
    BUSY_NS = 4000,
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void offload_set(struct engine *e, enum offload which, enum offload_state state, int error)
{
    atomic_store(&e->offloads[which], (uint32_t)state << 16 | (uint32_t)error);
}

void offload_withdraw(struct engine *e, enum offload which, int error)
{
    offload_set(e, which, OFFLOAD_WITHDRAWN, error);
}

static bool offload_wanted(const struct engine *e, enum offload which)
{
    return !(e->config.forced_off & 1u << which);
}

static void wake_all(struct engine *e)
{
    uint64_t one = 1;

    /* It is never read, so it stays readable and wakes every worker. It cannot fill up. */
    while (write(e->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

void engine_fail(struct engine *e, int error)
{
    int none = 0;

    atomic_compare_exchange_strong(&e->failure, &none, error);
    atomic_store(&e->stopping, true);
    wake_all(e);
}

/* A token bucket in one word (GCRA): the time at which the bucket will be full again, moved on by one
 * interval for each error, never further than a burst into the future. */
static bool bucket_take(_Atomic uint64_t *bucket, uint64_t now, uint64_t interval, uint64_t burst)
{
    uint64_t next = atomic_load(bucket), moved;

    do {
        moved = (next > now ? next : now) + interval;
        if (moved > now + burst * interval)
            return false;
    } while (!atomic_compare_exchange_weak(bucket, &next, moved));
    return true;
}

bool icmp_allowed(struct worker *w, const uint8_t *p)
{
    struct engine *e = w->engine;
    uint64_t now = now_ns();
    uint32_t source = get32(p + IP4_SOURCE) * 2654435769u >> (32 - ICMP_SOURCE_BITS);

    if (bucket_take(&e->icmp_source_next_ns[source], now, ICMP_EACH_INTERVAL_NS, ICMP_EACH_BURST) &&
        bucket_take(&e->icmp_next_ns, now, ICMP_INTERVAL_NS, ICMP_BURST))
        return true;
    count_add(w, COUNT_icmp_suppressed, 1);
    return false;
}

bool wait_writable(struct engine *e, int fd)
{
    struct pollfd fds[2] = {{e->wake_fd, POLLIN, 0}, {fd, POLLOUT, 0}};

    return poll(fds, 2, ENGINE_PATIENCE_MS) > 0 && !fds[0].revents && (fds[1].revents & POLLOUT);
}

/* The queue of a packet's flow. By addresses only, so that fragments go where the rest goes; the
 * kernel then transmits the flow through the queue it came by, which spreads both directions. */
static int flow_queue(const struct engine *e, const uint8_t *p)
{
    uint32_t hash;

    if (e->config.queues == 1)
        return e->config.tun_fds[0];
    hash = (get32(p + IP4_SOURCE) ^ get32(p + IP4_DESTINATION)) * 2654435769u;
    return e->config.tun_fds[((uint64_t)hash * e->config.queues) >> 32];
}

int tun_write_pieces(struct worker *w, const uint8_t *p, const struct iovec *pieces, size_t count)
{
    struct engine *e = w->engine;
    int fd = flow_queue(e, p);

    for (bool waited = false;; waited = true) {
        if (writev(fd, pieces, (int)count) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno == EBADFD) {
            engine_fail(e, EBADFD);
            return EBADFD;
        }
        if (errno != EAGAIN || waited || !wait_writable(e, fd))
            return errno;
    }
}

int tun_write_packet(struct worker *w, const uint8_t *p, size_t length)
{
    static const struct vnet_header none;
    struct iovec pieces[2] = {{(void *)(uintptr_t)&none, sizeof none},
                              {(void *)(uintptr_t)p, length}};
    bool vnet = w->engine->config.vnet_header;

    return tun_write_pieces(w, p, vnet ? pieces : pieces + 1, vnet ? 2 : 1);
}

/* Frees the old tables that no worker can still hold. */
static void table_reclaim(struct engine *e)
{
    uint64_t oldest = UINT64_MAX;

    for (size_t i = 0; i < e->workers; i++) {
        uint64_t epoch = atomic_load(&e->worker[i].epoch);

        if (epoch != 0 && epoch < oldest)
            oldest = epoch;
    }
    for (struct table **link = &e->retired; *link;) {
        struct table *t = *link;

        if (t->retired_epoch <= oldest) {
            *link = t->retired_next;
            free(t);
        } else {
            link = &t->retired_next;
        }
    }
}

static void peer_sum(const struct engine *e, uint32_t number, uint64_t out[PEER_COUNTERS])
{
    memset(out, 0, PEER_COUNTERS * sizeof *out);
    for (size_t i = 0; i < ENGINE_WORKERS && e->worker[i].peers; i++) {
        for (size_t c = 0; c < PEER_COUNTERS; c++)
            out[c] += atomic_load_explicit(&e->worker[i].peers[number].counters[c],
                                           memory_order_relaxed);
    }
}

/* Numbers the peers of a table before it is in force. A peer that had a number keeps it; the number
 * of a removed peer is free again. What a worker counts in the current batch may go to the number's
 * next peer. */
static void number_peers(struct engine *e, struct table *t, const struct table_row *rows,
                         size_t count)
{
    uint32_t next = 1;

    for (uint32_t n = 1; n < PEER_NUMBERS; n++) {
        struct table_cell *cell = e->numbered[n] ? table_sender(t, e->numbered[n]) : NULL;

        if (cell)
            cell->network = n;
        else
            e->numbered[n] = 0;
    }
    for (size_t i = 0; i < count; i++) {
        struct table_cell *cell = table_sender(t, rows[i].address);

        if (cell->network)
            continue;
        while (next < PEER_NUMBERS && e->numbered[next])
            next++;
        if (next == PEER_NUMBERS)
            return;
        cell->network = next;
        e->numbered[next] = rows[i].address;
        peer_sum(e, next, e->before[next]);
    }
}

bool engine_peer(const struct engine *e, uint32_t address, uint64_t out[PEER_COUNTERS])
{
    uint32_t number = table_number(atomic_load(&e->table), address);

    if (!number)
        return false;
    peer_sum(e, number, out);
    for (size_t c = 0; c < PEER_COUNTERS; c++)
        out[c] -= e->before[number][c];
    return true;
}

int engine_replace_table(struct engine *e, const struct table_row *rows, size_t count)
{
    struct table *fresh, *old;

    errno = 0;
    fresh = table_new(rows, count);
    if (!fresh)
        return errno ? errno : EINVAL;
    number_peers(e, fresh, rows, count);
    old = atomic_exchange(&e->table, fresh);
    old->retired_epoch = atomic_fetch_add(&e->now_epoch, 1) + 1;
    old->retired_next = e->retired;
    e->retired = old;
    table_reclaim(e);
    return 0;
}

size_t engine_retired(const struct engine *e)
{
    size_t count = 0;

    for (const struct table *t = e->retired; t; t = t->retired_next)
        count++;
    return count;
}

void engine_counters(struct engine *e, uint64_t out[COUNTERS])
{
    memset(out, 0, COUNTERS * sizeof *out);
    for (size_t i = 0; i < ENGINE_WORKERS; i++) {
        for (size_t c = 0; c < COUNTERS; c++)
            out[c] += atomic_load_explicit(&e->worker[i].counters[c], memory_order_relaxed);
    }
    table_reclaim(e);
}

/* Does not read the TUN for the rest of the gathering time (see tx.c), but does read the socket. */
static void worker_gather(struct worker *w, struct pollfd fds[3], uint64_t start)
{
    uint64_t left = w->gather_until - start;
    struct timespec timeout = {.tv_nsec = (long)left}; /* below a second */
    int tun = fds[1].fd;

    fds[1].fd = -1;
    if (ppoll(fds, 3, &timeout, NULL) < 0)
        fds[0].revents = fds[2].revents = 0;
    fds[1].fd = tun;
    fds[1].revents = 0;
    if (now_ns() >= w->gather_until) {
        w->gather_until = 0;
        fds[1].revents = POLLIN;
    }
}

/* Waits until a half has something to do. Returns false if the worker must end. `busy` says whether
 * there was something to do without sleeping. */
static bool worker_wait(struct worker *w, struct pollfd fds[3], bool *busy)
{
    struct engine *e = w->engine;
    uint64_t start = now_ns();
    int ready = 0;

    if (w->tx && w->gather_until == 0 && e->config.gather_us && tx_gathers(w->tx, start))
        w->gather_until = start + e->config.gather_us * 1000ull;
    if (w->gather_until > start) {
        worker_gather(w, fds, start);
        *busy = true;
        return !atomic_load_explicit(&e->stopping, memory_order_relaxed);
    }
    w->gather_until = 0;
    if (e->config.spin_us) {
        do
            ready = poll(fds, 3, 0);
        while (ready == 0 && now_ns() - start < e->config.spin_us * 1000ull);
    }
    if (ready <= 0 && poll(fds, 3, -1) < 0)
        fds[0].revents = fds[1].revents = fds[2].revents = 0; /* EINTR: a debugger */
    *busy = now_ns() - start < BUSY_NS;
    return !atomic_load_explicit(&e->stopping, memory_order_relaxed);
}

/* For `top -H` and the like. */
static void worker_name(const struct worker *w)
{
    char name[16];

    snprintf(name, sizeof name, "flannel-%s%zu", w->tx && w->rx ? "io" : w->tx ? "tx" : "rx",
             (size_t)(w - w->engine->worker));
    pthread_setname_np(w->thread, name);
}

static void *worker_main(void *argument)
{
    struct worker *w = argument;
    struct engine *e = w->engine;
    struct pollfd fds[3] = {{e->wake_fd, POLLIN, 0},
                            {w->tx ? tx_descriptor(w->tx) : -1, POLLIN, 0},
                            {w->rx ? e->config.udp_fd : -1, POLLIN, 0}};
    bool more = false, busy = false;
    unsigned trouble = 0;

    /* Timeouts may be late by this much. The default, 50 us, is half of the gathering time. */
    prctl(PR_SET_TIMERSLACK, 1000ul);
    while (more ? !atomic_load_explicit(&e->stopping, memory_order_relaxed)
                : worker_wait(w, fds, &busy)) {
        const struct table *t;
        short tun = fds[1].revents, udp = fds[2].revents;

        /* With an error condition and nothing to read, poll() would return at once, again and
         * again. */
        if (!more && ((tun | udp) & (POLLERR | POLLHUP)) && !((tun | udp) & POLLIN)) {
            struct pollfd wake = fds[0];

            if (tun & POLLHUP)
                engine_fail(e, EPIPE);
            else if (++trouble > TROUBLE_ROUNDS)
                poll(&wake, 1, TROUBLE_MS);
            if (w->rx && (udp & POLLERR))
                rx_errors(w->rx);
        } else {
            trouble = 0;
        }

        atomic_store(&w->epoch, atomic_load(&e->now_epoch));
        t = atomic_load(&e->table);
        {
            bool tx_more = w->tx && (more || tun) && tx_batch(w->tx, t, more || busy);
            bool rx_more = w->rx && (more || udp) && rx_batch(w->rx, t);

            more = tx_more || rx_more;
        }
        atomic_store(&w->epoch, 0);
    }
    return NULL;
}

/* Whether all queues of the TUN take these offloads; 0 or errno. */
static int tun_ask(const struct engine *e, unsigned flags)
{
    if (!e->config.vnet_header)
        return ENOPROTOOPT;
    if (e->config.assume_offloads)
        return 0;
    for (size_t q = 0; q < e->config.queues; q++) {
        if (ioctl(e->config.tun_fds[q], TUNSETOFFLOAD, (unsigned long)flags))
            return errno;
    }
    return 0;
}

/* Asks for each of the TUN's offloads on its own, on top of those it has granted already. */
static void tun_offloads(struct engine *e)
{
    static const struct {
        enum offload which;
        unsigned flags, needs; /* one of `needs` must be there before the kernel listens */
    } steps[] = {
        {OFFLOAD_csum, TUN_F_CSUM, 0},
        {OFFLOAD_tso4, TUN_F_TSO4, TUN_F_CSUM},
        {OFFLOAD_tso6, TUN_F_TSO6, TUN_F_CSUM},
        {OFFLOAD_tso_ecn, TUN_F_TSO_ECN, TUN_F_TSO4 | TUN_F_TSO6},
        {OFFLOAD_uso, TUN_F_USO4 | TUN_F_USO6, TUN_F_CSUM}, /* only together; 6.2 */
    };
    bool is_tun = !tun_ask(e, TUN_F_CSUM);
    bool uso_known = !tun_ask(e, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6);
    unsigned granted = 0;

    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        enum offload which = steps[i].which;
        unsigned needs = steps[i].needs;
        int error;

        if (!offload_wanted(e, which) || (is_tun && needs && !(granted & needs))) {
            offload_set(e, which, OFFLOAD_OFF_FORCED, 0);
            continue;
        }
        error = tun_ask(e, granted | steps[i].flags);
        offload_set(e, which, error ? OFFLOAD_OFF_UNSUPPORTED : OFFLOAD_ON, error);
        if (!error)
            granted |= steps[i].flags;
    }
    tun_ask(e, granted);
    /* What may be written does not depend on what we asked for: TCP super packets wherever there
     * are virtio headers, VIRTIO_NET_HDR_GSO_UDP_L4 on kernels that know TUN_F_USO4. */
    for (enum offload which = OFFLOAD_join_tcp; which <= OFFLOAD_join_udp; which++) {
        bool able = is_tun && (which == OFFLOAD_join_tcp || uso_known);

        offload_set(e, which,
                    !able                        ? OFFLOAD_OFF_UNSUPPORTED
                    : !offload_wanted(e, which) ? OFFLOAD_OFF_FORCED
                                                 : OFFLOAD_ON,
                    able ? 0 : e->config.vnet_header ? EINVAL : ENOPROTOOPT);
    }
}

/* Probes the socket's offloads and sets the options that the data path depends on. */
static void udp_offloads(struct engine *e)
{
    int fd = e->config.udp_fd, zero = 0, one = 1, discover = IP_PMTUDISC_PROBE;

    /* Upstream's datagrams carry DF. This sets it, with UDP_SEGMENT too, and ignores path MTUs that
     * the kernel has learned: only a datagram longer than the interface's MTU gives EMSGSIZE.
     * Without IP_RECVERR, an ICMP answer to one datagram is not returned as the error of another
     * call. */
    setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover);
    setsockopt(fd, IPPROTO_IP, IP_RECVERR, &zero, sizeof zero);

    if (!offload_wanted(e, OFFLOAD_gso))
        offload_set(e, OFFLOAD_gso, OFFLOAD_OFF_FORCED, 0);
    else if (setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &zero, sizeof zero)) /* 0: per message only */
        offload_set(e, OFFLOAD_gso, OFFLOAD_OFF_UNSUPPORTED, errno);
    else
        offload_set(e, OFFLOAD_gso, OFFLOAD_ON, 0);

    if (!offload_wanted(e, OFFLOAD_gro))
        offload_set(e, OFFLOAD_gro, OFFLOAD_OFF_FORCED, 0);
    else if (setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof one))
        offload_set(e, OFFLOAD_gro, OFFLOAD_OFF_UNSUPPORTED, errno);
    else
        offload_set(e, OFFLOAD_gro, OFFLOAD_ON, 0);
}

/* Resets the options that would confuse the next reader of the same descriptors. */
static void offloads_undo(struct engine *e)
{
    int zero = 0;

    setsockopt(e->config.udp_fd, IPPROTO_UDP, UDP_GRO, &zero, sizeof zero);
    tun_ask(e, 0);
}

struct engine *engine_new(const struct engine_config *config)
{
    /* Over-aligned (cache lines), so not calloc. The size is a multiple of the alignment. */
    struct engine *e = aligned_alloc(CACHE_LINE, sizeof *e);
    struct table *empty = table_new(NULL, 0);

    if (!e || !empty) {
        free(e);
        free(empty);
        return NULL;
    }
    memset(e, 0, sizeof *e);
    e->config = *config;
    e->wake_fd = -1;
    atomic_init(&e->table, empty);
    atomic_init(&e->now_epoch, 1); /* 0 means "in no batch" */
    for (size_t i = 0; i < ENGINE_WORKERS; i++)
        e->worker[i].engine = e;
    return e;
}

static int duplicate_descriptors(struct engine *e, const struct engine_config *from)
{
    for (size_t q = 0; q < from->queues; q++) {
        e->config.tun_fds[q] = fcntl(from->tun_fds[q], F_DUPFD_CLOEXEC, 0);
        if (e->config.tun_fds[q] < 0)
            return errno;
    }
    e->config.udp_fd = fcntl(from->udp_fd, F_DUPFD_CLOEXEC, 0);
    return e->config.udp_fd < 0 ? errno : 0;
}

static int start_workers(struct engine *e)
{
    sigset_t all, before;
    int error = 0;

    e->workers = e->config.queues + (e->config.threads > 1);
    for (size_t i = 0; i < e->workers; i++) {
        struct worker *w = &e->worker[i];

        if (!(w->peers = calloc(PEER_NUMBERS, sizeof *w->peers)))
            return ENOMEM;
        if (i < e->config.queues && !(w->tx = tx_new(w, e->config.tun_fds[i])))
            return ENOMEM;
        if ((e->config.threads > 1 ? i == e->config.queues : i == 0) && !(w->rx = rx_new(w)))
            return ENOMEM;
    }
    /* Signals belong to the process's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (size_t i = 0; i < e->workers && !error; i++) {
        error = pthread_create(&e->worker[i].thread, NULL, worker_main, &e->worker[i]);
        e->worker[i].started = !error;
        if (!error)
            worker_name(&e->worker[i]);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int engine_start(struct engine *e)
{
    struct engine_config given = e->config;
    int error;

    if (e->running)
        return EALREADY;
    for (size_t q = 0; q < ENGINE_QUEUES; q++)
        e->config.tun_fds[q] = -1;
    e->config.udp_fd = -1;
    e->running = true;
    e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = e->wake_fd < 0 ? errno : duplicate_descriptors(e, &given);
    if (!error) {
        tun_offloads(e);
        udp_offloads(e);
        error = start_workers(e);
    }
    if (error)
        engine_stop(e);
    return error;
}

void engine_stop(struct engine *e)
{
    if (!e->running)
        return;
    e->running = false;
    atomic_store(&e->stopping, true);
    if (e->wake_fd >= 0)
        wake_all(e);
    for (size_t i = 0; i < ENGINE_WORKERS; i++) {
        struct worker *w = &e->worker[i];

        if (w->started)
            pthread_join(w->thread, NULL);
        w->started = false;
        tx_free(w->tx);
        rx_free(w->rx);
        w->tx = NULL;
        w->rx = NULL;
    }
    if (e->config.udp_fd >= 0) {
        offloads_undo(e);
        close(e->config.udp_fd);
    }
    for (size_t q = 0; q < e->config.queues; q++) {
        if (e->config.tun_fds[q] >= 0)
            close(e->config.tun_fds[q]);
    }
    if (e->wake_fd >= 0)
        close(e->wake_fd);
    e->wake_fd = -1;
}

void engine_free(struct engine *e)
{
    engine_stop(e);
    table_reclaim(e);
    free(atomic_load(&e->table));
    for (size_t i = 0; i < ENGINE_WORKERS; i++)
        free(e->worker[i].peers);
    free(e);
}
