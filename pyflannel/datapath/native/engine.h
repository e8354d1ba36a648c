/* The engine: threads that move packets between a TUN and a UDP socket, and what they share.
 *
 * Theory of operation. A worker is a thread with a transmit half (tx.c: TUN -> UDP), a receive half
 * (rx.c: UDP -> TUN), or both; it sleeps in poll() and works in batches. Which workers there are
 * follows from `threads` and the number of TUN queues: with one thread, worker 0 does both; with two,
 * receiving has a thread of its own; every further TUN queue has a thread that transmits. There is
 * never more than one receiver, since two readers of one socket would reorder a flow.
 *
 * Workers share nothing that they write but the rate limiter of ICMP errors (one atomic word), the
 * state of the offloads and the failure. Each has its own counters, which only it writes; a reader
 * adds them up.
 *
 * The table is replaced under the workers without a lock (read-copy-update by epochs). A worker
 * publishes, before a batch, the epoch in which it begins, then loads the table pointer, and
 * publishes 0 after the batch. Replacing swaps the pointer and raises the epoch; an old table may be
 * freed as soon as every worker is at 0 or in an epoch that began after the swap. All four steps are
 * sequentially consistent: a worker that got the old pointer loaded it before the swap, so it had
 * published an older epoch before that, and a check after the swap sees that epoch. No thread ever
 * waits: old tables are checked again at the next replacement, when counters are read, and at stop.
 *
 * The descriptors are duplicates, so the owner may close its own at any time. Nothing is global.
 */
#ifndef PYFLANNEL_ENGINE_H
#define PYFLANNEL_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "table.h"

/* In the order of `COUNTERS` in datapath/base.py; a test compares the two. */
#define ENGINE_COUNTERS(X) \
    X(tun_packets) X(tun_bytes) X(tun_malformed) X(tun_oversize) X(tun_no_route) X(tun_ttl) \
    X(tun_too_big) X(tun_send_error) X(udp_packets) X(udp_bytes) X(udp_malformed) X(udp_oversize) \
    X(udp_unknown_sender) X(udp_wrong_source) X(udp_wrong_destination) X(udp_ttl) \
    X(udp_write_error) X(icmp_unreachable) X(icmp_time_exceeded) X(icmp_frag_needed) \
    X(icmp_suppressed)

enum counter {
#define X(name) COUNT_##name,
    ENGINE_COUNTERS(X)
#undef X
        COUNTERS
};

/* Of one peer, in the order of `PEER_COUNTERS` in datapath/base.py. */
#define ENGINE_PEER_COUNTERS(X) \
    X(packets_in) X(bytes_in) X(packets_out) X(bytes_out) X(tun_ttl) X(tun_too_big) \
    X(tun_send_error) X(udp_malformed) X(udp_oversize) X(udp_wrong_source) \
    X(udp_wrong_destination) X(udp_ttl)

enum peer_counter {
#define X(name) PEER_##name,
    ENGINE_PEER_COUNTERS(X)
#undef X
        PEER_COUNTERS
};

/* csum, tso4, tso6, tso_ecn, uso: TUN_F_* granted by the TUN, for what we read from it. gso, gro:
 * UDP_SEGMENT and UDP_GRO of the socket. join_tcp, join_udp: super packets that we write. */
#define ENGINE_OFFLOADS(X) \
    X(csum) X(tso4) X(tso6) X(tso_ecn) X(uso) X(gso) X(gro) X(join_tcp) X(join_udp)

enum offload {
#define X(name) OFFLOAD_##name,
    ENGINE_OFFLOADS(X)
#undef X
        OFFLOADS
};

enum offload_state { OFFLOAD_OFF_FORCED, OFFLOAD_OFF_UNSUPPORTED, OFFLOAD_ON, OFFLOAD_WITHDRAWN };

enum {
    ENGINE_QUEUES = 16,
    ENGINE_WORKERS = ENGINE_QUEUES + 1,
    /* How long to wait for room in a full socket or TUN before dropping the packets. Short, because
     * a worker that does both directions stands still meanwhile, and stop() may take at most 100
     * ms. */
    ENGINE_PATIENCE_MS = 10,
    CACHE_LINE = 64,
    /* `MOST_COUNTED` of datapath/base.py, and number 0 for all peers without a number. */
    PEER_NUMBERS = 1024 + 1,
    /* As in datapath/base.py, where the reasons are. */
    BELIEVED_MTU = 1280,
    PATH_MTU_AGE_MS = 1000,
};

struct engine_config {
    int tun_fds[ENGINE_QUEUES]; /* borrowed */
    size_t queues;
    int udp_fd;           /* borrowed */
    uint32_t tun_address; /* host byte order, as the next two */
    uint32_t network, netmask;
    uint32_t mtu;
    uint16_t port;
    bool any_port, accept_any, vnet_header;
    uint32_t forced_off;  /* bit per enum offload */
    bool assume_offloads; /* take the TUN's offloads as granted: a stand-in that is not a TUN */
    unsigned threads;     /* 1 or 2, see above */
    unsigned spin_us;     /* how long to look for more before sleeping, 0 = not at all */
    unsigned gather_us;   /* how long small packets may gather under load, 0 = not at all */
};

struct tx;
struct rx;

struct peer_counts {
    _Atomic uint64_t counters[PEER_COUNTERS];
};

struct worker {
    struct engine *engine;
    struct peer_counts *peers; /* by number */
    struct tx *tx; /* or NULL */
    struct rx *rx; /* or NULL */
    pthread_t thread;
    bool started;
    uint64_t gather_until; /* CLOCK_MONOTONIC, ns; 0 = not gathering */
    _Alignas(CACHE_LINE) _Atomic uint64_t epoch;
    _Atomic uint64_t counters[COUNTERS];
};

/* Sources that have a budget of ICMP errors each; see core/budget.py. */
enum { ICMP_SOURCE_BITS = 8, ICMP_SOURCES = 1 << ICMP_SOURCE_BITS };

struct engine {
    struct engine_config config; /* descriptors replaced by our duplicates while running */
    size_t workers;
    int wake_fd; /* eventfd, once set always readable: stop, or failure */
    bool running;
    struct table *retired; /* under the caller's lock (the GIL): replacing is never concurrent */
    /* Under the same lock. For each number: the peer that has it (0 if free), and the counts at the
     * time when that peer got it. */
    uint32_t numbered[PEER_NUMBERS];
    uint64_t before[PEER_NUMBERS][PEER_COUNTERS];
    _Alignas(CACHE_LINE) _Atomic(struct table *) table;
    _Atomic uint64_t now_epoch;
    _Atomic uint32_t offloads[OFFLOADS]; /* enum offload_state << 16 | errno */
    _Alignas(CACHE_LINE) _Atomic uint64_t icmp_next_ns;
    _Atomic uint64_t icmp_source_next_ns[ICMP_SOURCES];
    _Atomic int failure; /* errno, 0 = none */
    _Atomic bool stopping;
    struct worker worker[ENGINE_WORKERS];
};

/* Life of an engine. The caller serialises these among themselves (Python's GIL does). */
struct engine *engine_new(const struct engine_config *config);
int engine_start(struct engine *e); /* 0 or errno; nothing is left running on error */
void engine_stop(struct engine *e); /* blocks until the threads are gone; may be called twice */
void engine_free(struct engine *e);
/* 0, ENOMEM or EINVAL (a row is no row). Never blocks. */
int engine_replace_table(struct engine *e, const struct table_row *rows, size_t count);
void engine_counters(struct engine *e, uint64_t out[COUNTERS]);
/* The counts of a peer since it got its number; false if it has none. */
bool engine_peer(const struct engine *e, uint32_t address, uint64_t out[PEER_COUNTERS]);
/* Tables that wait for their last reader; for tests. */
size_t engine_retired(const struct engine *e);

/* For the workers. */

static inline void count_add(struct worker *w, enum counter which, uint64_t n)
{
    /* There is one writer, so no locked instruction is needed, only untorn stores. */
    uint64_t value = atomic_load_explicit(&w->counters[which], memory_order_relaxed);

    atomic_store_explicit(&w->counters[which], value + n, memory_order_relaxed);
}

/* The same for a peer. Number 0 stands for all peers that are not counted. */
static inline void peer_add(struct worker *w, uint32_t number, enum peer_counter which, uint64_t n)
{
    _Atomic uint64_t *counter = &w->peers[number].counters[which];

    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static inline bool offload_on(struct engine *e, enum offload which)
{
    return atomic_load_explicit(&e->offloads[which], memory_order_relaxed) >> 16 == OFFLOAD_ON;
}

void offload_withdraw(struct engine *e, enum offload which, int error);
/* Ends all workers, and is what `failure()` reports from now on. */
void engine_fail(struct engine *e, int error);
/* Whether one more ICMP error about packet `p` may be sent now. Counts `icmp_suppressed` if not. */
bool icmp_allowed(struct worker *w, const uint8_t *p);
/* Waits for room, ENGINE_PATIENCE_MS at most; false if there is none or we are to stop. */
bool wait_writable(struct engine *e, int fd);
/* Writes one packet to the TUN queue of its flow, with an empty virtio header if there is one; 0 or
 * errno, after waiting for room once. */
int tun_write_packet(struct worker *w, const uint8_t *p, size_t length);
/* The same for a packet in pieces that begin with the virtio header. */
int tun_write_pieces(struct worker *w, const uint8_t *p, const struct iovec *pieces, size_t count);

struct tx *tx_new(struct worker *w, int tun_fd);
void tx_free(struct tx *tx);
int tx_descriptor(const struct tx *tx);
/* Moves one batch; `busy` says that the worker has not slept since the last one. True if there is
 * likely more to read at once. */
bool tx_batch(struct tx *tx, const struct table *t, bool busy);

/* Whether to let packets gather before the next batch; `now` is CLOCK_MONOTONIC in ns. */
bool tx_gathers(struct tx *tx, uint64_t now);

struct rx *rx_new(struct worker *w);
void rx_free(struct rx *rx);
bool rx_batch(struct rx *rx, const struct table *t);
/* Empties the socket's error queue, which is in use if IP_RECVERR was set. */
void rx_errors(struct rx *rx);

#endif
