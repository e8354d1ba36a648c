/* Whole native engines, held to the oracle: the inputs of fuzz_programs.c, what a kernel would make of
 * them sent through a socket pair (for the TUN) and over loopback, every output and counter compared.
 *
 *   fuzz_engine SEED INPUTS BASE MAC PORT [MISTAKE]
 *
 * BASE, MAC and PORT are those of the wire in the frames, as for fuzz_programs; on loopback the
 * stations are 127.0.0.1 to 127.0.0.4. A new engine every SESSION inputs, with other options. Prints
 * what was done as JSON; ends 1 at the first disagreement.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "oracle.h"

enum {
    BATCH = 48, /* fits into every socket's buffer */
    SESSION = 200000,
    VNET_BYTES = 10,
    LOOPBACK = 0x7f000000,
    PATIENCE_S = 20,
    STATIONS = STRANGER + 1,
};

static struct place place;
static struct input inputs[BATCH];
static struct told told[BATCH];
static unsigned long long first; /* number of the batch's first input */
static size_t batch;

/* show_oracle prints the inputs of a seed. */
static void disagree(const char *what)
{
    fprintf(stderr, "%zu inputs from %llu on: %s; accept_any %d, any_port %d\n", batch, first, what,
            place.accept_any, place.any_port);
    for (size_t i = 0; i < batch; i++)
        fprintf(stderr, "%s ", outcome_names[told[i].outcome]);
    fputc('\n', stderr);
    exit(1);
}

static void need(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

/* The engine and what is around it. */
static struct engine *engine;
static int tun[2], ours, station[STATIONS], elsewhere[STATIONS];
static struct sockaddr_in our_name;
static size_t header; /* of virtio, before each packet of the TUN */
static uint64_t before[COUNTERS];

static int bound(uint32_t number, uint16_t port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), size = 8 << 20;

    name.sin_addr.s_addr = htonl(LOOPBACK + number);
    need(fd >= 0, "socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    if (bind(fd, (void *)&name, sizeof name)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* One port that is free on four addresses. */
static void open_sockets(void)
{
    for (int attempt = 0; attempt < 50; attempt++) {
        socklen_t size = sizeof our_name;
        bool all = true;

        ours = bound(OURS, 0);
        need(ours >= 0 && !getsockname(ours, (void *)&our_name, &size), "bind");
        for (uint32_t i = PEER_A; i <= STRANGER; i++) {
            station[i] = bound(i, ntohs(our_name.sin_port));
            all &= station[i] >= 0;
        }
        if (all)
            break;
        for (uint32_t i = PEER_A; i <= STRANGER; i++)
            close(station[i]);
        close(ours);
        need(attempt < 49, "no port is free on four loopback addresses");
    }
    for (uint32_t i = PEER_A; i <= STRANGER; i++)
        elsewhere[i] = bound(i, 0);
}

static void begin(unsigned session)
{
    struct table_row rows[] = {{0x08000200, 24, LOOPBACK + PEER_A},
                               {0x08000300, 24, LOOPBACK + PEER_B}};
    int size = 4 << 20;

    place.accept_any = session & 1;
    place.any_port = session & 2;
    header = session & 4 ? VNET_BYTES : 0;
    need(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, tun), "socketpair");
    for (int i = 0; i < 2; i++)
        setsockopt(tun[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    struct engine_config config = {
        .tun_fds = {tun[0]}, .queues = 1, .udp_fd = ours, .tun_address = 0x08000100,
        .network = 0x08000000, .netmask = 0xffff0000, .mtu = MTU,
        .port = ntohs(our_name.sin_port), .any_port = place.any_port,
        .accept_any = place.accept_any, .vnet_header = header,
        .threads = session & 8 ? 1 : 2, .gather_us = 100,
    };
    engine = engine_new(&config);
    need(engine, "engine_new");
    need(!engine_replace_table(engine, rows, 2) && !engine_start(engine), "engine_start");
    memset(before, 0, sizeof before);
}

static void end(void)
{
    engine_stop(engine);
    engine_free(engine);
    close(tun[0]);
    close(tun[1]);
}

static void put(const struct input *in)
{
    struct datagram got;

    if (in->out) {
        uint8_t data[VNET_BYTES + LARGEST_PACKET] = {0};

        memcpy(data + header, in->data, in->length);
        need(send(tun[1], data, header + in->length, 0) >= 0, "send into the TUN");
        return;
    }
    got = oracle_stack(in, &place);
    if (!got.any)
        return;
    /* There is no further address on loopback; for the rules any other is a stranger. */
    if (got.sender < PEER_A)
        got.sender = STRANGER;
    need(sendto((got.right_port ? station : elsewhere)[got.sender], got.payload, got.length, 0,
                (void *)&our_name, sizeof our_name) >= 0, "send to the engine");
}

/* One output, to whom: the next that goes on to there, or one of the errors. */
static void came(enum station to, const uint8_t *p, size_t length, size_t next[STATIONS],
                 bool taken[BATCH])
{
    size_t i = next[to];

    while (i < batch && !(told[i].passes && told[i].to == to))
        i++;
    if (i < batch && told[i].length == length && !memcmp(told[i].data, p, length)) {
        next[to] = i + 1;
        return;
    }
    for (i = 0; i < batch; i++)
        if (!taken[i] && told[i].error_length == length && told[i].error_to == to &&
            !memcmp(told[i].error, p, length)) {
            taken[i] = true;
            return;
        }
    fprintf(stderr, "to station %d\n", to);
    oracle_show("came", p, length);
    disagree("something else comes out, or in another order");
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void one_batch(unsigned long long done[OUTCOMES_COUNT])
{
    static const enum counter counter_of[OUTCOMES_COUNT] = {
        [TOLD_tun_packets] = COUNT_tun_packets, [TOLD_tun_malformed] = COUNT_tun_malformed,
        [TOLD_tun_oversize] = COUNT_tun_oversize, [TOLD_tun_no_route] = COUNT_tun_no_route,
        [TOLD_tun_ttl] = COUNT_tun_ttl, [TOLD_udp_packets] = COUNT_udp_packets,
        [TOLD_udp_malformed] = COUNT_udp_malformed, [TOLD_udp_oversize] = COUNT_udp_oversize,
        [TOLD_udp_unknown_sender] = COUNT_udp_unknown_sender,
        [TOLD_udp_wrong_source] = COUNT_udp_wrong_source,
        [TOLD_udp_wrong_destination] = COUNT_udp_wrong_destination,
        [TOLD_udp_ttl] = COUNT_udp_ttl};
    uint64_t expected[COUNTERS] = {0}, count[COUNTERS];
    uint64_t wanted = 0, all, errors = 0, made, got = 0; /* packets and ICMP errors */
    size_t next[STATIONS] = {0};
    bool taken[BATCH] = {false};
    uint8_t data[65536];
    double limit = now() + PATIENCE_S;

    for (size_t i = 0; i < batch; i++) {
        oracle_input(&inputs[i], &place);
        oracle_judge(&told[i], &inputs[i], &place);
        done[told[i].outcome]++;
        errors += told[i].error_length > 0;
        if (told[i].outcome == TOLD_udp_nothing)
            continue;
        wanted++;
        expected[counter_of[told[i].outcome]]++;
        if (told[i].passes)
            expected[inputs[i].out ? COUNT_tun_bytes : COUNT_udp_bytes] += told[i].length;
    }
    for (size_t i = 0; i < batch; i++)
        put(&inputs[i]);
    for (;;) {
        bool nothing = true;

        for (enum station to = OURS; to <= STRANGER; to++) {
            ssize_t n = recv(to == OURS ? tun[1] : station[to], data, sizeof data, 0);
            size_t skip = to == OURS ? header : 0;

            if (n < 0)
                continue;
            nothing = false;
            for (size_t i = 0; i < skip; i++)
                if (data[i])
                    disagree("the virtio header says something");
            came(to, data + skip, (size_t)n - skip, next, taken);
            got++;
        }
        if (!nothing)
            continue;
        engine_counters(engine, count);
        all = 0;
        for (int i = 0; i < COUNTERS; i++) {
            count[i] -= before[i];
            if (i != COUNT_tun_bytes && i != COUNT_udp_bytes && i < COUNT_icmp_unreachable)
                all += count[i];
        }
        made = count[COUNT_icmp_unreachable] + count[COUNT_icmp_time_exceeded] +
               count[COUNT_icmp_frag_needed];
        /* Bytes are counted a moment after their packet. */
        if (count[COUNT_tun_bytes] < expected[COUNT_tun_bytes] ||
            count[COUNT_udp_bytes] < expected[COUNT_udp_bytes])
            all = 0;
        /* How many errors are made depends on the time. */
        if (all >= wanted && made + count[COUNT_icmp_suppressed] >= errors &&
            got >= count[COUNT_tun_packets] + count[COUNT_udp_packets] + made)
            break;
        if (now() > limit)
            disagree("not all packets are accounted for");
        sched_yield();
    }
    for (int i = 0; i < COUNT_icmp_unreachable; i++)
        if (count[i] != expected[i]) {
            fprintf(stderr, "counter %d: %llu and not %llu\n", i, (unsigned long long)count[i],
                    (unsigned long long)expected[i]);
            disagree("a counter is wrong");
        }
    if (made + count[COUNT_icmp_suppressed] != errors)
        disagree("ICMP errors that nothing calls for");
    for (int i = 0; i < COUNTERS; i++)
        before[i] += count[i];
}

int main(int argc, char **argv)
{
    unsigned long long total, done[OUTCOMES_COUNT] = {0}, sessions = 0;

    if (argc < 6)
        return 2;
    oracle_seed(strtoull(argv[1], NULL, 0));
    total = strtoull(argv[2], NULL, 0);
    oracle_read_place(&place, argv + 3);
    if (argc > 6)
        oracle_err(argv[6]);
    open_sockets();
    for (first = 0; first < total; first += batch) {
        if (first / SESSION >= sessions) {
            if (sessions)
                end();
            begin((unsigned)sessions++);
        }
        batch = total - first < BATCH ? (size_t)(total - first) : BATCH;
        one_batch(done);
    }
    end();
    printf("{\"inputs\": %llu, \"engines\": %llu", total, sessions);
    for (int i = 0; i < OUTCOMES_COUNT; i++)
        printf(", \"%s\": %llu", outcome_names[i], done[i]);
    printf("}\n");
    return 0;
}
