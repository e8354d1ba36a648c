/* Two whole engines facing each other, under load, with failing system calls; for the sanitizers.
 *
 *   writer -> socket pair -> engine a -> UDP on loopback -> engine b -> socket pair -> reader
 *
 * Both socket pairs stand for TUNs with every offload. The writer sends super packets of several TCP
 * and UDP flows, plain packets and garbage; another thread throws garbage datagrams at b from a's
 * address; the main thread replaces tables and reads counters all the while. Every now and then a
 * system call of the engines fails (the linker puts the `__wrap_` functions below in front of them).
 *
 * Each byte of a flow is a function of its position, and each packet says where it belongs. The
 * reader requires that what arrives is well-formed, within the MTU, undamaged, and in order; a packet
 * may be missing only because a call was made to fail. At the end both engines stop in time and every
 * packet must be accounted for.
 *
 *   soak SECONDS THREADS SEED FAULTS_PER_MILLION
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "segment.h"

enum { FLOWS = 12, MTU = 1472, TUN_MAX = 10 + IP4_MAX_PACKET, WINDOW = 800 };

static uint32_t fault_rate;
static _Atomic bool finished;
static _Atomic uint64_t delivered, faults;
static int writer_tun, reader_tun, receiving = -1;
static struct engine *engine_a, *engine_b;
static struct sockaddr_in address_a, address_b;

#define REQUIRE(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static _Thread_local uint64_t random_state;

static uint32_t random32(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ull) >> 32);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Whether this call is to fail, and how. Only the engines' threads call the wrapped functions through
 * the linker's names; ours use the real ones. */
static bool fault(const int *errors, size_t count)
{
    if (!random_state)
        random_state = (uint64_t)(uintptr_t)&random_state | 1;
    if (!fault_rate || random32() % 1000000 >= fault_rate)
        return false;
    errno = errors[random32() % count];
    atomic_fetch_add(&faults, 1);
    return true;
}

ssize_t __real_readv(int fd, const struct iovec *pieces, int count);
ssize_t __real_writev(int fd, const struct iovec *pieces, int count);
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
int __real_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int __real_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *t);
ssize_t __wrap_readv(int fd, const struct iovec *pieces, int count);
ssize_t __wrap_writev(int fd, const struct iovec *pieces, int count);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int __wrap_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *t);

ssize_t __wrap_readv(int fd, const struct iovec *pieces, int count)
{
    static const int errors[] = {EINTR, EAGAIN};

    return fault(errors, 2) ? -1 : __real_readv(fd, pieces, count);
}

ssize_t __wrap_writev(int fd, const struct iovec *pieces, int count)
{
    static const int errors[] = {EINTR, EAGAIN, EIO, EINVAL, ENOBUFS, EMSGSIZE};

    return fault(errors, 6) ? -1 : __real_writev(fd, pieces, count);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    static const int errors[] = {EINTR, EAGAIN, EIO, EPERM, EMSGSIZE, ENOBUFS};

    return fault(errors, 6) ? -1 : __real_sendmsg(fd, message, flags);
}

int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    static const int errors[] = {EINTR, EAGAIN, EIO, EINVAL, EPERM, EMSGSIZE, ENOBUFS};

    if (fault(errors, 7))
        return -1;
    /* Sometimes only a part of them is taken. */
    return __real_sendmmsg(fd, messages, fault_rate && count > 1 ? 1 + random32() % count : count,
                           flags);
}

int __wrap_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *t)
{
    static const int errors[] = {EINTR, EAGAIN, ECONNREFUSED};

    return fault(errors, 3) ? -1 : __real_recvmmsg(fd, messages, count, flags, t);
}

static uint8_t pattern(unsigned flow, uint32_t position)
{
    return (uint8_t)(position * 31 + (position >> 8) + flow * 17);
}

/* A UDP payload begins with its position, since UDP has none. */
static size_t build(uint8_t *out, unsigned flow, uint32_t position, size_t size, uint16_t id)
{
    struct vnet_header vnet = {.flags = VNET_NEEDS_CSUM, .csum_start = 20};
    uint8_t *p = out + sizeof vnet, *t = p + 20;
    bool udp = flow & 1;
    size_t l4 = udp ? 8 : 32, length = 20 + l4 + size, segment = 100 + random32() % (MTU - 152);

    memset(p, 0, 20 + l4);
    p[0] = 0x45;
    put16(p + IP4_LENGTH, length);
    put16(p + IP4_ID, id);
    put16(p + IP4_FRAGMENT, flow & 2 ? IP4_DF : 0);
    p[IP4_TTL] = 64;
    p[IP4_PROTOCOL] = udp ? PROTO_UDP : PROTO_TCP;
    put32(p + IP4_SOURCE, 0x0a050100 | flow);
    put32(p + IP4_DESTINATION, 0x0a050200 | flow);
    store16(p + IP4_CHECKSUM, (uint16_t)~checksum_fold(checksum_add(p, 20)));
    put16(t, 1000 + flow);
    put16(t + 2, 2000);
    if (udp) {
        segment = size;
        put16(t + UDP_LENGTH, 8 + size);
        vnet.csum_offset = UDP_CHECKSUM;
    } else {
        put32(t + TCP_SEQUENCE, position);
        t[TCP_OFFSET] = 0x80;
        t[TCP_FLAGS] = (uint8_t)(TCP_ACK | (random32() % 4 ? 0 : TCP_PSH));
        put16(t + 14, 512);
        vnet.csum_offset = TCP_CHECKSUM;
    }
    for (size_t i = 0; i < size; i++)
        t[l4 + i] = pattern(flow, position + (uint32_t)i);
    if (udp)
        put32(t + l4, position);
    store16(t + vnet.csum_offset, checksum_fold(pseudo_sum(p, l4 + size)));
    if (size > segment) {
        vnet.gso_type = VNET_GSO_TCPV4;
        vnet.gso_size = (uint16_t)segment;
    }
    memcpy(out, &vnet, sizeof vnet);
    return sizeof vnet + length;
}

/* A train of equal UDP datagrams as USO gives it; each begins with its position. */
static size_t build_train(uint8_t *out, unsigned flow, uint32_t *position, uint16_t id)
{
    size_t each = 40 + random32() % 400, count = 2 + random32() % 50;
    struct vnet_header vnet = {.flags = VNET_NEEDS_CSUM,
                               .gso_type = VNET_GSO_UDP_L4,
                               .gso_size = (uint16_t)each,
                               .csum_start = 20,
                               .csum_offset = UDP_CHECKSUM};
    size_t length = build(out, flow, *position, each * count, id);
    uint8_t *payload = out + sizeof vnet + 28;

    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < each; k++)
            payload[i * each + k] = pattern(flow, *position + (uint32_t)(i * each + k));
        put32(payload + i * each, *position + (uint32_t)(i * each));
    }
    *position += (uint32_t)(each * count);
    memcpy(out, &vnet, sizeof vnet);
    return length;
}

static uint64_t counted(struct engine *e, enum counter which)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < ENGINE_WORKERS; i++)
        sum += atomic_load(&e->worker[i].counters[which]);
    return sum;
}

/* Packets between the engines and the reader: kept below what the socket's buffer holds, since UDP
 * drops the rest in silence. */
static bool window_full(void)
{
    return counted(engine_a, COUNT_tun_packets) >
           atomic_load(&delivered) + counted(engine_b, COUNT_udp_write_error) + WINDOW;
}

static void *writer(void *seed)
{
    static uint8_t out[TUN_MAX];
    uint32_t position[FLOWS] = {0};
    uint16_t id[FLOWS] = {0};

    random_state = *(uint64_t *)seed;
    while (!atomic_load(&finished)) {
        unsigned flow = random32() % FLOWS, kind = random32() % 16;
        size_t length;

        if (window_full()) {
            poll(NULL, 0, 1);
            continue;
        }
        if (kind == 0) {
            length = 1 + random32() % 2000;
            for (size_t i = 0; i < length; i++)
                out[i] = (uint8_t)random32();
        } else if (flow & 1) {
            if (kind < 8) {
                length = build_train(out, flow, &position[flow], id[flow]);
                id[flow] = (uint16_t)(id[flow] + 64);
            } else {
                size_t size = 40 + random32() % (MTU - 68);

                length = build(out, flow, position[flow], size, id[flow]++);
                position[flow] += (uint32_t)size;
            }
        } else {
            size_t size = 1 + random32() % (kind < 8 ? 60000 : 1400);

            length = build(out, flow, position[flow], size, id[flow]);
            id[flow] = (uint16_t)(id[flow] + 700);
            position[flow] += (uint32_t)size;
        }
        while (send(writer_tun, out, length, 0) < 0 && errno == EAGAIN && !atomic_load(&finished))
            poll(&(struct pollfd){writer_tun, POLLOUT, 0}, 1, 10);
    }
    return NULL;
}

static bool dropped_by_kernel(void)
{
    uint32_t memory[SK_MEMINFO_VARS];
    socklen_t size = sizeof memory;

    REQUIRE(!getsockopt(receiving, SOL_SOCKET, SO_MEMINFO, memory, &size));
    return memory[SK_MEMINFO_DROPS] > 0;
}

/* Checks one packet on the wire's terms; `next` is the least position that may still come. */
static void arrived(const uint8_t *p, size_t length, uint32_t next[FLOWS])
{
    unsigned flow = p[IP4_SOURCE + 3];
    bool udp = p[IP4_PROTOCOL] == PROTO_UDP;
    const uint8_t *t = p + 20;
    size_t l4 = udp ? 8 : 32;
    uint32_t position;

    REQUIRE(packet_check(p, length, MTU) == PACKET_OK && p[IP4_TTL] == 62 && flow < FLOWS);
    REQUIRE(checksum_fold(checksum_add(p, 20)) == 0xffff);
    REQUIRE(checksum_fold(pseudo_sum(p, length - 20) + checksum_add(t, length - 20)) == 0xffff);
    position = udp ? get32(t + l4) : get32(t + TCP_SEQUENCE);
    REQUIRE((int32_t)(position - next[flow]) >= 0);
    /* A starved receiver's socket runs over; that is the machine's doing, and counted. */
    REQUIRE(fault_rate || position == next[flow] || dropped_by_kernel());
    for (size_t i = udp ? 4 : 0; i < length - 20 - l4; i++)
        REQUIRE(t[l4 + i] == pattern(flow, position + (uint32_t)i));
    next[flow] = position + (uint32_t)(length - 20 - l4);
    atomic_fetch_add(&delivered, 1);
}

static void *reader(void *unused)
{
    static uint8_t in[TUN_MAX], segment[IP4_MAX_PACKET];
    uint32_t next[FLOWS] = {0};

    (void)unused;
    for (;;) {
        ssize_t got = recv(reader_tun, in, sizeof in, 0);
        struct vnet_header vnet;
        struct segmenter s;
        uint8_t *p = in + sizeof vnet;
        size_t length = (size_t)got - sizeof vnet;

        if (got < 0) {
            if (atomic_load(&finished))
                return NULL;
            poll(&(struct pollfd){reader_tun, POLLIN, 0}, 1, 10);
            continue;
        }
        REQUIRE((size_t)got > sizeof vnet + 20);
        memcpy(&vnet, in, sizeof vnet);
        if (vnet.gso_type == VNET_GSO_NONE) {
            arrived(p, length, next);
            continue;
        }
        REQUIRE(packet_check(p, length, IP4_MAX_PACKET) == PACKET_OK);
        REQUIRE(segment_begin(&s, p, length, &vnet));
        for (size_t i = 0; i < s.count; i++) {
            const uint8_t *payload = segment_write(&s, i, segment);

            memcpy(segment + s.header, payload, segment_length(&s, i) - s.header);
            arrived(segment, segment_length(&s, i), next);
        }
    }
}

/* Garbage from the known sender's address (another port) and from a stranger's. */
static void *garbage(void *seed)
{
    struct sockaddr_in known = address_a, stranger = address_a;
    int s[2] = {socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET, SOCK_DGRAM, 0)};
    uint8_t data[3000];

    random_state = *(uint64_t *)seed + 77;
    known.sin_port = stranger.sin_port = 0;
    stranger.sin_addr.s_addr = htonl(0x7f000009);
    REQUIRE(!bind(s[0], (void *)&known, sizeof known));
    REQUIRE(!bind(s[1], (void *)&stranger, sizeof stranger));
    while (!atomic_load(&finished)) {
        size_t length = random32() % sizeof data;

        for (size_t i = 0; i < length; i++)
            data[i] = (uint8_t)random32();
        if (length >= 20 && random32() % 2) { /* well-formed, but no flow of ours: TTL 1 */
            data[0] = 0x45;
            put16(data + IP4_LENGTH, length);
            put32(data + IP4_SOURCE, 0x0a0501c8);
            put32(data + IP4_DESTINATION, 0x0a050201);
            data[IP4_TTL] = 1;
        }
        sendto(s[random32() % 2], data, length, 0, (void *)&address_b, sizeof address_b);
        poll(NULL, 0, 1);
    }
    close(s[0]);
    close(s[1]);
    return NULL;
}

static struct engine *make_engine(int tun, int udp, uint32_t address, unsigned threads)
{
    struct engine_config config = {
        .tun_fds = {tun}, .queues = 1, .udp_fd = udp, .tun_address = address,
        .network = 0x0a050000, .netmask = 0xffff0000, .mtu = MTU,
        .port = ntohs(address_a.sin_port),
        .any_port = true, /* so that the known sender's garbage is looked into */
        .vnet_header = true, .assume_offloads = true,
        .threads = threads, .gather_us = 100,
    };
    struct engine *e = engine_new(&config);

    REQUIRE(e);
    return e;
}

/* With the room that the backend's sockets have (kernel/udp.py): the engines leave it as it is. */
static int bound(struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), room = 8 << 20;
    socklen_t size = sizeof *name;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    if (fd < 0 || bind(fd, (void *)name, size) || getsockname(fd, (void *)name, &size)) {
        close(fd);
        return -1;
    }
    return fd;
}

int main(int argc, char **argv)
{
    int pair_a[2], pair_b[2], udp_a, udp_b = -1, size = 8 << 20;
    struct engine *a, *b;
    pthread_t threads[3];
    uint64_t seed, swaps = 0, count_a[COUNTERS], count_b[COUNTERS];
    double end;

    REQUIRE(argc == 5);
    seed = strtoull(argv[3], NULL, 0) | 1;
    fault_rate = (uint32_t)atoi(argv[4]);
    random_state = seed;
    for (int attempt = 0; udp_b < 0; attempt++) { /* one port that is free on both addresses */
        REQUIRE(attempt < 20);
        address_a = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(0x7f000001)}};
        udp_a = bound(&address_a);
        REQUIRE(udp_a >= 0);
        address_b = address_a;
        address_b.sin_addr.s_addr = htonl(0x7f000002);
        udp_b = bound(&address_b);
        if (udp_b < 0)
            close(udp_a);
    }
    REQUIRE(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair_a));
    REQUIRE(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair_b));
    for (int i = 0; i < 2; i++) {
        setsockopt(pair_a[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
        setsockopt(pair_b[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    }
    writer_tun = pair_a[1];
    reader_tun = pair_b[1];
    a = make_engine(pair_a[0], udp_a, 0x0a050100, (unsigned)atoi(argv[2]));
    b = make_engine(pair_b[0], udp_b, 0x0a050200, (unsigned)atoi(argv[2]));
    receiving = udp_b;
    engine_a = a;
    engine_b = b;
    {
        struct table_row rows[2] = {{0x0a050100, 24, 0x7f000001}, {0x0a050200, 24, 0x7f000002}};

        REQUIRE(!engine_replace_table(a, rows + 1, 1) && !engine_replace_table(b, rows, 1));
    }
    REQUIRE(!engine_start(a) && !engine_start(b));
    REQUIRE(!pthread_create(&threads[0], NULL, reader, NULL));
    REQUIRE(!pthread_create(&threads[1], NULL, writer, &seed));
    REQUIRE(!pthread_create(&threads[2], NULL, garbage, &seed));

    for (end = now() + atof(argv[1]); now() < end; swaps++) {
        struct table_row rows[64] = {{0x0a050200, 24, 0x7f000002}, {0x0a050100, 24, 0x7f000001}};
        size_t more = 2 + random32() % 62;

        /* The two that matter stay; what surrounds them comes and goes. */
        for (size_t i = 2; i < more; i++)
            rows[i] = (struct table_row){(random32() % 200 + 16) << 8 | 0x0a060000, 24,
                                         0x7f000003 + random32() % 8};
        REQUIRE(!engine_replace_table(a, rows, more) && !engine_replace_table(b, rows, more));
        engine_counters(a, count_a);
        engine_counters(b, count_b);
        REQUIRE(!atomic_load(&a->failure) && !atomic_load(&b->failure));
    }
    atomic_store(&finished, true);
    pthread_join(threads[1], NULL);
    pthread_join(threads[2], NULL);
    end = now();
    engine_stop(a);
    engine_stop(b);
    REQUIRE(now() - end < 1.0); /* a sanitizer build on a loaded machine; 100 ms is tested elsewhere */
    pthread_join(threads[0], NULL);
    engine_counters(a, count_a);
    engine_counters(b, count_b);
    printf("sent %llu delivered %llu faults %llu swaps %llu\n",
           (unsigned long long)count_a[COUNT_tun_packets], (unsigned long long)atomic_load(&delivered),
           (unsigned long long)atomic_load(&faults), (unsigned long long)swaps);
    REQUIRE(engine_retired(a) == 0 && engine_retired(b) == 0);
    REQUIRE(count_a[COUNT_tun_packets] > 1000 && atomic_load(&delivered) > 1000);
    REQUIRE(count_a[COUNT_tun_malformed] > 0 && count_b[COUNT_udp_malformed] > 0);
    REQUIRE(count_b[COUNT_udp_ttl] > 0 && count_b[COUNT_udp_unknown_sender] > 0);
    engine_free(a);
    engine_free(b);
    close(pair_a[0]);
    close(pair_a[1]);
    close(pair_b[0]);
    close(pair_b[1]);
    close(udp_a);
    close(udp_b);
    return 0;
}
