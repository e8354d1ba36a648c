/* Traffic for measuring a data path: small UDP packets in a closed loop, and TCP request/response.
 *
 * udp: the sender keeps at most WINDOW packets on the way and the receiver acknowledges every
 * ACK_EVERY-th, so an overload slows the sender down instead of turning into loss; what is printed is
 * what was delivered. A flood would measure the sender: the kernel drops in front of the data path.
 *
 * tcp: one byte to and fro with TCP_NODELAY, each round trip timed; percentiles are printed.
 *
 *   native_traffic udp-server PORT            native_traffic udp IP PORT SECONDS BYTES -> packets/s
 *   native_traffic flood IP PORT SECONDS BYTES RATE (to udp-server) -> packets/s delivered, lost share
 *   native_traffic tcp-server PORT            native_traffic tcp IP PORT SECONDS -> p50 p99 count (us)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { ACK_EVERY = 32, WINDOW = 512, BURST = 64, MAX_BYTES = 2048, MAX_SAMPLES = 1 << 20 };

struct ack {
    uint64_t next;      /* sequence number after the last one seen */
    uint64_t delivered; /* packets that arrived since the sender began */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

static struct sockaddr_in endpoint(const char *ip, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

    if (ip)
        inet_pton(AF_INET, ip, &a.sin_addr);
    return a;
}

static char payload[BURST][MAX_BYTES];
static struct mmsghdr messages[BURST];
static struct iovec vectors[BURST];

static void udp_server(const char *port)
{
    struct sockaddr_in local = endpoint(NULL, port), from[BURST];
    int s = socket(AF_INET, SOCK_DGRAM, 0), big = 4 << 20;
    uint64_t delivered = 0;

    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    check(bind(s, (void *)&local, sizeof local), "bind");
    for (;;) {
        for (int i = 0; i < BURST; i++) {
            vectors[i] = (struct iovec){payload[i], MAX_BYTES};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i],
                                                  .msg_iovlen = 1,
                                                  .msg_name = &from[i],
                                                  .msg_namelen = sizeof from[i]};
        }
        int got = recvmmsg(s, messages, BURST, MSG_WAITFORONE, NULL);
        for (int i = 0; i < got; i++) {
            uint64_t sequence;

            memcpy(&sequence, payload[i], sizeof sequence);
            if (sequence == 0)
                delivered = 0;
            delivered++;
            if (sequence % ACK_EVERY == ACK_EVERY - 1) {
                struct ack ack = {sequence + 1, delivered};
                sendto(s, &ack, sizeof ack, 0, (void *)&from[i], sizeof from[i]);
            }
        }
    }
}

static void udp_client(const char *ip, const char *port, double seconds, size_t bytes)
{
    struct sockaddr_in peer = endpoint(ip, port);
    struct timeval patience = {0, 20000}; /* a lost acknowledgement costs 20 ms */
    int s = socket(AF_INET, SOCK_DGRAM, 0), big = 4 << 20;
    uint64_t sequence = 0, acked = 0, delivered = 0;
    double start = now();

    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    check(connect(s, (void *)&peer, sizeof peer), "connect");
    while (now() < start + seconds) {
        while (sequence - acked + ACK_EVERY <= WINDOW) {
            for (int i = 0; i < ACK_EVERY; i++, sequence++) {
                memcpy(payload[i], &sequence, sizeof sequence);
                vectors[i] = (struct iovec){payload[i], bytes};
                messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
            }
            sendmmsg(s, messages, ACK_EVERY, 0);
        }
        for (int flags = 0;; flags = MSG_DONTWAIT) {
            struct ack ack;

            if (recv(s, &ack, sizeof ack, flags) != sizeof ack) {
                if (!flags)
                    acked = sequence;
                break;
            }
            if (ack.next > acked)
                acked = ack.next;
            delivered = ack.delivered;
        }
    }
    printf("%.0f\n", (double)delivered / (now() - start));
}

/* Sends at a rate, whatever arrives; tells what was sent and what share of it was lost. */
static void udp_flood(const char *ip, const char *port, double seconds, size_t bytes, double rate)
{
    struct sockaddr_in peer = endpoint(ip, port);
    int s = socket(AF_INET, SOCK_DGRAM, 0), big = 4 << 20;
    uint64_t sequence = 0, delivered = 0;
    double start = now(), end = start + seconds, sent_until;
    struct ack ack;

    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    check(connect(s, (void *)&peer, sizeof peer), "connect");
    while (now() < end) {
        if ((double)sequence > (now() - start) * rate)
            continue;
        for (int i = 0; i < ACK_EVERY; i++, sequence++) {
            memcpy(payload[i], &sequence, sizeof sequence);
            vectors[i] = (struct iovec){payload[i], bytes};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
        }
        sendmmsg(s, messages, ACK_EVERY, 0);
    }
    sent_until = now();
    usleep(300000); /* what is on the way arrives */
    while (recv(s, &ack, sizeof ack, MSG_DONTWAIT) == sizeof ack)
        delivered = ack.delivered;
    printf("%.0f %.4f\n", (double)delivered / (sent_until - start),
           1 - (double)delivered / (double)sequence);
}

static void tcp_server(const char *port)
{
    struct sockaddr_in local = endpoint(NULL, port);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    check(bind(listener, (void *)&local, sizeof local), "bind");
    check(listen(listener, 8), "listen");
    for (;;) {
        int s = accept(listener, NULL, NULL);
        char byte;

        check(s < 0, "accept");
        setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        while (recv(s, &byte, 1, 0) == 1 && send(s, &byte, 1, MSG_NOSIGNAL) == 1)
            ;
        close(s);
    }
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static void tcp_client(const char *ip, const char *port, double seconds)
{
    static float samples[MAX_SAMPLES];
    struct sockaddr_in peer = endpoint(ip, port);
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    size_t count = 0;
    double start, end;

    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    check(connect(s, (void *)&peer, sizeof peer), "connect");
    end = now() + seconds;
    do {
        char byte = 'x';

        start = now();
        check(send(s, &byte, 1, 0) != 1, "send");
        check(recv(s, &byte, 1, 0) != 1, "recv");
        samples[count++] = (float)((now() - start) * 1e6);
    } while (start < end && count < MAX_SAMPLES);
    qsort(samples, count, sizeof *samples, by_value);
    printf("%.1f %.1f %zu\n", samples[count / 2], samples[count * 99 / 100], count);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "udp-server"))
        udp_server(argv[2]);
    else if (argc == 3 && !strcmp(argv[1], "tcp-server"))
        tcp_server(argv[2]);
    else if (argc == 6 && !strcmp(argv[1], "udp") && atoi(argv[5]) >= 8 && atoi(argv[5]) <= MAX_BYTES)
        udp_client(argv[2], argv[3], atof(argv[4]), (size_t)atoi(argv[5]));
    else if (argc == 7 && !strcmp(argv[1], "flood") && atoi(argv[5]) >= 8 && atoi(argv[5]) <= MAX_BYTES)
        udp_flood(argv[2], argv[3], atof(argv[4]), (size_t)atoi(argv[5]), atof(argv[6]));
    else if (argc == 5 && !strcmp(argv[1], "tcp"))
        tcp_client(argv[2], argv[3], atof(argv[4]));
    else {
        fprintf(stderr, "usage: see the comment on top of native_traffic.c\n");
        return 2;
    }
    return 0;
}
