/* Batches of packets, joined and cut again: the same packets must come out. For libFuzzer.
 *
 * The input is a program of six bytes a packet: which flow, what is odd about it, how long it is. So
 * flows collide, continue, break off and are damaged far more often than in random bytes. What the
 * joiner gives back is cut by the segmenter; the result must be, flow by flow and in order, the
 * packets that went in, to the byte. Only the IP id of a packet with DF may differ (RFC 6864, 4.1).
 */
#include <stdlib.h>

#include "coalesce.h"
#include "segment.h"

#define REQUIRE(condition) \
    do { \
        if (!(condition)) \
            __builtin_trap(); \
    } while (0)

enum { FLOWS = 24, PACKETS = 256, STEP = 6, PACKET_MAX = 1500 };

struct given {
    uint8_t *p;
    uint8_t *copy; /* as it went in */
    size_t length;
    unsigned flow;
};

static struct given packets[PACKETS];
static size_t given, next_out[FLOWS], came_out;
static struct joiner joiner;

static void came(const uint8_t *p, size_t length)
{
    /* The oldest packet of the same flow that has not come out yet must be this one. */
    unsigned flow = p[IP4_SOURCE + 3];
    size_t i = next_out[flow];
    struct given *g;

    while (i < given && packets[i].flow != flow)
        i++;
    REQUIRE(i < given);
    g = &packets[i];
    next_out[flow] = i + 1;
    came_out++;
    REQUIRE(g->length == length);
    if (get16(g->copy + IP4_FRAGMENT) & IP4_DF) {
        static uint8_t expected[PACKET_MAX];

        memcpy(expected, g->copy, length);
        if (load16(p + IP4_ID) != load16(expected + IP4_ID)) {
            store16(expected + IP4_ID, load16(p + IP4_ID));
            store16(expected + IP4_CHECKSUM, 0);
            store16(expected + IP4_CHECKSUM,
                    (uint16_t)~checksum_fold(checksum_add(expected, header_length(expected))));
        }
        REQUIRE(memcmp(expected, p, length) == 0);
    } else {
        REQUIRE(memcmp(g->copy, p, length) == 0);
    }
}

static void emit(void *context, struct join_flow *flow)
{
    static uint8_t whole[IP4_MAX_PACKET + 1], segment[IP4_MAX_PACKET + 1];
    struct segmenter s;
    size_t length = 0;

    (void)context;
    if (flow->count == 1) {
        struct iovec one = join_packet(flow, 0);

        came(one.iov_base, one.iov_len);
        return;
    }
    join_finish(flow);
    for (size_t i = 1; i < flow->count + 2; i++) {
        REQUIRE(fits(length, flow->parts[i].iov_len, IP4_MAX_PACKET));
        memcpy(whole + length, flow->parts[i].iov_base, flow->parts[i].iov_len);
        length += flow->parts[i].iov_len;
    }
    REQUIRE(packet_check(whole, length, IP4_MAX_PACKET) == PACKET_OK);
    REQUIRE(segment_begin(&s, whole, length, &flow->vnet) && s.count == flow->count);
    for (size_t i = 0; i < s.count; i++) {
        const uint8_t *payload = segment_write(&s, i, segment);

        memcpy(segment + s.header, payload, segment_length(&s, i) - s.header);
        came(segment, segment_length(&s, i));
    }
}

static void add(const uint8_t *op, uint32_t sequence[FLOWS], uint16_t id[FLOWS])
{
    struct given *g = &packets[given++];
    unsigned flow = op[0] % FLOWS, odd = op[1];
    int udp = flow & 1;
    size_t size = (size_t)(op[2] | (op[3] & 3) << 8), ip = odd == 1 ? 24 : 20;
    size_t l4 = udp ? 8 : odd == 2 ? 32 : 20;
    uint8_t *p, *t;

    if (ip + l4 + size > PACKET_MAX)
        size = PACKET_MAX - ip - l4;
    g->flow = flow;
    g->length = ip + l4 + size;
    p = g->p = calloc(1, g->length);
    g->copy = malloc(g->length);
    REQUIRE(p && g->copy);
    t = p + ip;
    p[0] = (uint8_t)(0x40 | ip / 4);
    put16(p + IP4_LENGTH, g->length);
    put16(p + IP4_ID, id[flow]++);
    put16(p + IP4_FRAGMENT, op[4] & 1 ? IP4_DF : 0);
    p[IP4_TTL] = 63;
    p[IP4_PROTOCOL] = udp ? PROTO_UDP : PROTO_TCP;
    p[IP4_SOURCE] = p[IP4_DESTINATION] = 10;
    p[IP4_SOURCE + 3] = (uint8_t)flow;
    put16(t, 1000 + flow);
    put16(t + 2, 80);
    for (size_t i = 0; i < size; i++)
        t[l4 + i] = (uint8_t)(op[5] + i * 7);
    if (udp) {
        put16(t + UDP_LENGTH, l4 + size);
    } else {
        put32(t + TCP_SEQUENCE, sequence[flow]);
        t[TCP_OFFSET] = (uint8_t)(l4 / 4 << 4);
        t[TCP_FLAGS] = (uint8_t)(op[4] & 0x20 ? TCP_ACK | TCP_PSH : TCP_ACK);
        put16(t + 14, 500);
        if (odd == 3)
            t[TCP_FLAGS] |= op[5];
        sequence[flow] += (uint32_t)size;
    }
    switch (odd) {
    case 4: id[flow] = (uint16_t)(op[5] * 257); break;
    case 5: sequence[flow] += op[5]; break;
    case 6: put16(p + IP4_FRAGMENT, op[5] & 1 ? IP4_MF : 185); break;
    case 7: p[IP4_TOS] = op[5]; break;
    case 8: p[IP4_TTL] = op[5] | 1; break;
    case 9: if (!udp) t[TCP_OFFSET] = op[5]; break;
    case 10: if (udp) put16(t + UDP_LENGTH, op[5]); break;
    case 11: if (!udp) t[18] = op[5]; break;
    case 12: if (!udp) put16(t + 14, op[5]); break;
    case 13: if (!udp) t[8] = op[5]; break;
    }
    {
        size_t field = udp ? UDP_CHECKSUM : TCP_CHECKSUM;
        uint16_t sum = (uint16_t)~checksum_fold(pseudo_sum(p, l4 + size) +
                                                checksum_add(t, l4 + size));

        store16(t + field, sum || !udp ? sum : 0xffff);
        if (odd == 14)
            store16(t + field, 0);
        if (odd == 15)
            p[g->length - 1] ^= 0x40; /* damaged on the way */
    }
    store16(p + IP4_CHECKSUM, (uint16_t)~checksum_fold(checksum_add(p, ip)));
    if (odd == 16)
        p[IP4_CHECKSUM] ^= 1;
    memcpy(g->copy, p, g->length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t sequence[FLOWS] = {0};
    uint16_t id[FLOWS] = {0};

    given = came_out = 0;
    memset(next_out, 0, sizeof next_out);
    memset(&joiner, 0, sizeof joiner);
    joiner.emit = emit;
    joiner.tcp = joiner.udp = true;
    for (; size >= STEP && given < PACKETS; data += STEP, size -= STEP)
        add(data, sequence, id);
    for (size_t i = 0; i < given; i++) {
        struct given *g = &packets[i];

        REQUIRE(packet_check(g->p, g->length, IP4_MAX_PACKET) == PACKET_OK);
        if (!join_offer(&joiner, g->p, g->length))
            came(g->p, g->length);
    }
    join_flush(&joiner);
    REQUIRE(came_out == given);
    for (size_t i = 0; i < given; i++) {
        free(packets[i].p);
        free(packets[i].copy);
    }
    return 0;
}
