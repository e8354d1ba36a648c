/* See oracle.h. */
#include "oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NETWORK 0x08000000u /* 8.0.0.0/16; why it is this one: differential.py */
#define TUN_ADDRESS 0x08000100u
#define AT_US 0x08000102u
#define AT_A 0x08000202u
#define AT_B 0x08000302u

#define PICK(list) ((list)[oracle_random() % (sizeof(list) / sizeof *(list))])

enum { DF = 0x4000, MF = 0x2000, OFFSET = 0x1fff, UDP = 17, ICMP = 1 };

const char *const outcome_names[] = {
#define X(name) #name,
    OUTCOMES(X)
#undef X
};
static const char *const mistake_names[] = {"right", "hop",    "source", "destination",
                                     "sender", "length", "ttl"};
static enum mistake mistake = RIGHT;

void oracle_read_place(struct place *place, char *const words[3])
{
    place->base = (uint32_t)strtoul(words[0], NULL, 16);
    for (int i = 0; i < 6; i++) {
        char digits[] = {words[1][2 * i], words[1][2 * i + 1], 0};

        place->mac[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    place->port = (uint16_t)atoi(words[2]);
}

void oracle_err(const char *name)
{
    for (int i = 0; i < MISTAKES; i++)
        if (!strcmp(name, mistake_names[i]))
            mistake = (enum mistake)i;
}

void oracle_show(const char *what, const uint8_t *bytes, size_t length)
{
    fprintf(stderr, "%s: ", what);
    for (size_t i = 0; i < length; i++)
        fprintf(stderr, "%02x", bytes[i]);
    fputc('\n', stderr);
}

static uint64_t state;

void oracle_seed(uint64_t seed)
{
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    for (int i = 0; i < 8; i++)
        oracle_random();
}

uint32_t oracle_random(void) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}

/* True once in so many times. */
static bool once_in(uint32_t many) { return oracle_random() % many == 0; }

static void write16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void write32(uint8_t *p, uint32_t value)
{
    write16(p, value >> 16);
    write16(p + 2, value);
}

static void random_bytes(uint8_t *p, size_t length)
{
    for (; length >= 4; length -= 4, p += 4)
        write32(p, oracle_random());
    for (; length; length--, p++)
        *p = (uint8_t)oracle_random();
}

static uint32_t words(const uint8_t *bytes, size_t length)
{
    uint32_t total = 0;

    for (size_t i = 0; i + 1 < length; i += 2)
        total += read16(bytes + i);
    if (length % 2)
        total += (uint32_t)bytes[length - 1] << 8;
    return total;
}

static uint16_t complement(uint32_t total)
{
    while (total > 0xffff)
        total = total % 0x10000 + total / 0x10000;
    return (uint16_t)(0xffff - total);
}

uint16_t oracle_sum(const uint8_t *bytes, size_t length) { return complement(words(bytes, length)); }

/* Input */

/* A packet around the edges of the rules; one of five is damaged. */
static size_t inner_packet(uint8_t *p, bool out)
{
    static const uint32_t others[] = {0x08000100, 0x08006309, 0x0800ffff, 0x08000200, 0x080003ff,
                                      0x08010001, 0xc000024d, 0,          0x7f000001, 0xe00000fb,
                                      0xffffffff};
    static const uint32_t overlay[] = {AT_US, AT_A, AT_B, TUN_ADDRESS, 0x08006309};
    static const uint16_t lengths[] = {0,  1,   7,   8,   12,  20,   21,   33,
                                       64, 100, 511, 512, 513, 1251, 1252, 1253};
    static const uint16_t edges[] = {MTU - 22, MTU - 21, MTU - 20, MTU - 19, MTU + 40};
    static const uint8_t protocols[] = {ICMP, 6, 6, UDP, UDP, 253}, types[] = {0, 3, 8, 11};
    static const uint8_t hops[] = {0, 1, 2, 63, 64, 64, 64, 255};
    static const uint8_t options[] = {0, 0, 0, 0, 0, 0, 1, 9, 10};
    static const uint16_t fragments[] = {0, DF, DF, DF, MF, MF | 1, 1, 0x8000};
    static const uint16_t sums[] = {0, 0xfeff, 0xffff, 0xff12, 0xfe00};
    size_t header = 20 + 4 * (size_t)PICK(options), payload = PICK(lengths), length;
    uint32_t source = out ? AT_US : AT_A, destination = out ? AT_A : AT_US;

    if (once_in(5))
        source = once_in(2) ? PICK(overlay) : PICK(others);
    if (once_in(4))
        destination = out ? AT_B : PICK(others);
    if (once_in(10))
        destination = once_in(2) ? PICK(overlay) : PICK(others);
    if (once_in(20))
        payload = PICK(edges);
    length = header + payload;
    memset(p, 0, header);
    p[0] = (uint8_t)(0x40 | header / 4);
    p[1] = (uint8_t)oracle_random();
    write16(p + 2, (uint32_t)length);
    write16(p + 4, oracle_random());
    write16(p + 6, PICK(fragments));
    p[8] = PICK(hops);
    p[9] = PICK(protocols);
    write32(p + 12, source);
    write32(p + 16, destination);
    write16(p + 10, once_in(2) ? oracle_sum(p, header) : PICK(sums));
    random_bytes(p + header, payload);
    if (p[9] == ICMP && payload)
        p[header] = PICK(types);
    if (!once_in(5))
        return length;
    switch (oracle_random() % 5) {
    case 0:
        return 1 + oracle_random() % (length - 1);
    case 1: {
        size_t more = 1 + oracle_random() % 8;

        random_bytes(p + length, more);
        return length + more;
    }
    case 2:
        p[0] = (uint8_t)(0x40 | oracle_random() % 16);
        return length;
    case 3:
        p[0] = (uint8_t)oracle_random();
        return length;
    default:
        p[oracle_random() % length] = (uint8_t)oracle_random();
        return length;
    }
}

/* What is done to the frame around a datagram. */
enum spoilt {
    NOT, NO_CHECKSUM, WRONG_CHECKSUM, HEADER_CHECKSUM, TOTAL_SHORT, TOTAL_LONG, UDP_SHORT, UDP_LONG,
    PADDED, CUT, OTHER_STATION, FRAGMENT, LATER_FRAGMENT, OPTIONS, PROTOCOL, PORT, ADDRESS, VERSION,
    BYTE, SENDERS_ADDRESS
};

/* A frame with the datagram in it, mostly as a peer sends it. */
static size_t outer_frame(uint8_t *f, const uint8_t *data, size_t size, const struct place *place)
{
    static const enum spoilt kinds[] = {
        NO_CHECKSUM, NO_CHECKSUM, NO_CHECKSUM, NO_CHECKSUM, NOT, NOT, NOT, NOT, WRONG_CHECKSUM,
        HEADER_CHECKSUM, TOTAL_SHORT, TOTAL_LONG, UDP_SHORT, UDP_LONG, PADDED, CUT, OTHER_STATION,
        FRAGMENT, LATER_FRAGMENT, OPTIONS, PROTOCOL, PORT, ADDRESS, VERSION, BYTE, SENDERS_ADDRESS};
    static const enum station senders[] = {PEER_A, PEER_A, PEER_A, PEER_B, PEER_B, STRANGER};
    static const uint32_t odd[] = {0x08000100, 0x08006309, 0xc000024d, 0,
                                   0x7f0000fe, 0xe00000fb, 0xffffffff};
    static const uint8_t source_mac[] = {2, 0, 0, 0, 0, 0x0a}, other_mac[] = {2, 0, 0, 0, 0, 0x77};
    enum spoilt spoilt = PICK(kinds);
    size_t header = spoilt == OPTIONS ? 24 + 4 * (oracle_random() % 3) : 20;
    size_t total = header + 8 + size, length = ETHERNET + total;
    uint8_t *ip = f + ETHERNET, *udp = ip + header;
    uint32_t sum;

    memcpy(f, spoilt == OTHER_STATION ? other_mac : place->mac, 6);
    memcpy(f + 6, source_mac, 6);
    write16(f + 12, 0x0800);
    memset(ip, 0, header + 8);
    ip[0] = (uint8_t)(0x40 | header / 4);
    if (spoilt == VERSION)
        ip[0] = (uint8_t)oracle_random();
    write16(ip + 2, (uint32_t)total - (spoilt == TOTAL_SHORT ? 1 + oracle_random() % 8 : 0) +
                        (spoilt == TOTAL_LONG ? 1 + oracle_random() % 8 : 0));
    write16(ip + 4, 7);
    write16(ip + 6, spoilt == FRAGMENT ? MF : spoilt == LATER_FRAGMENT ? 1 : DF);
    ip[8] = 64;
    ip[9] = spoilt == PROTOCOL ? 132 : UDP;
    write32(ip + 12, spoilt == SENDERS_ADDRESS ? PICK(odd) : place->base + PICK(senders));
    write32(ip + 16, place->base + (spoilt == ADDRESS ? STRANGER : OURS));
    write16(udp, once_in(4) ? 4711 : place->port);
    write16(udp + 2, place->port + (spoilt == PORT));
    write16(udp + 4, (uint32_t)(8 + size) - (spoilt == UDP_SHORT) + (spoilt == UDP_LONG));
    memcpy(udp + 8, data, size);
    sum = words(ip + 12, 8) + UDP + read16(udp + 4) + words(udp, 8 + size);
    sum = complement(sum) ? complement(sum) : 0xffff;
    if (spoilt == WRONG_CHECKSUM) {
        sum ^= 1u << oracle_random() % 16;
        sum = sum ? sum : 1; /* 0 would say that there is none */
    }
    write16(udp + 6, spoilt == NO_CHECKSUM ? 0 : sum);
    sum = oracle_sum(ip, header);
    write16(ip + 10, spoilt == HEADER_CHECKSUM ? sum ^ 1u << oracle_random() % 16 : sum);
    if (spoilt == PADDED || length < 60) {
        size_t least = length < 60 ? 60 - length : 0, more = oracle_random() % 20;

        more = more < least ? least : more;
        random_bytes(f + length, more);
        length += more;
    }
    if (spoilt == CUT)
        length = ETHERNET + oracle_random() % (length - ETHERNET);
    if (spoilt == BYTE)
        f[ETHERNET + oracle_random() % (length - ETHERNET)] = (uint8_t)oracle_random();
    return length;
}

void oracle_input(struct input *in, const struct place *place)
{
    in->out = oracle_random() % 5 < 2;
    in->length = inner_packet(in->data, in->out);
    in->frame_length = in->out ? 0 : outer_frame(in->frame, in->data, in->length, place);
}

/* What the kernel hands a socket */

struct datagram oracle_stack(const struct input *in, const struct place *place)
{
    const uint8_t *ip = in->frame + ETHERNET, *udp;
    struct datagram got = {.sender = NONE};
    size_t there = in->frame_length - ETHERNET, header, total, length;
    uint32_t source, destination;

    if (memcmp(in->frame, place->mac, 6) || read16(in->frame + 12) != 0x0800)
        return got;
    if (there < 20 || ip[0] >> 4 != 4)
        return got;
    header = (size_t)(ip[0] & 15) * 4;
    total = read16(ip + 2);
    if (header < 20 || total < header || total > there || oracle_sum(ip, header))
        return got;
    source = read32(ip + 12);
    destination = read32(ip + 16);
    /* net/ipv4/route.c, ip_route_input_slow: this network, loopback, groups, reserved; ourselves. */
    if (destination != place->base + OURS || source == destination)
        return got;
    if (source >> 24 == 0 || source >> 24 == 127 || source >> 28 >= 0xe)
        return got;
    if (read16(ip + 6) & (MF | OFFSET) || ip[9] != UDP)
        return got;
    udp = ip + header;
    if (total - header < 8 || read16(udp + 2) != place->port)
        return got;
    length = read16(udp + 4);
    if (length < 8 || length > total - header)
        return got;
    if (read16(udp + 6) &&
        complement(words(ip + 12, 8) + UDP + (uint32_t)length + words(udp, length)))
        return got;
    got.any = true;
    if (source - place->base >= PEER_A && source - place->base <= STRANGER)
        got.sender = (enum station)(source - place->base);
    got.right_port = read16(udp) == place->port;
    got.payload = udp + 8;
    got.length = length - 8;
    return got;
}

/* The rules */

static enum station owner(uint32_t address)
{
    if (address >> 8 == AT_A >> 8)
        return PEER_A;
    return address >> 8 == AT_B >> 8 ? PEER_B : NONE;
}

static bool malformed(const uint8_t *p, size_t length)
{
    size_t header;

    if (length < 20 || p[0] >> 4 != 4)
        return true;
    header = (size_t)(p[0] & 15) * 4;
    if (header < 20 || header > length)
        return true;
    return mistake == LENGTH ? read16(p + 2) > length : read16(p + 2) != length;
}

static void one_hop_later(struct told *told, const uint8_t *p, size_t length)
{
    uint32_t value = read16(p + 10) + 0x100;

    if (value > 0xffff)
        value = value - 0x10000 + 1;
    if (value == 0xffff)
        value = 0;
    memcpy(told->data, p, length);
    told->length = length;
    told->passes = true;
    if (mistake == HOP)
        return;
    told->data[8]--;
    write16(told->data + 10, value);
}

/* RFC 1122, 3.2.2: about what no ICMP error is sent. */
static bool answerable(const uint8_t *p, size_t length, bool about_icmp)
{
    size_t header = (size_t)(p[0] & 15) * 4;
    uint32_t source = read32(p + 12), destination = read32(p + 16);

    if (source >> 24 == 0 || source >> 24 == 127 || source >= 0xe0000000 ||
        destination >= 0xe0000000)
        return false;
    if (read16(p + 6) & OFFSET || header >= 60)
        return false;
    if (p[9] != ICMP)
        return true;
    return about_icmp && length > header && p[header] != 3 && p[header] != 4 && p[header] != 5 &&
           p[header] != 11 && p[header] != 12;
}

static void tell_error(struct told *told, enum station to, const uint8_t *p, size_t length, int type)
{
    size_t header = (size_t)(p[0] & 15) * 4;
    size_t quote = header + 8 < length ? header + 8 : length, total = 28 + quote;
    uint8_t *ip = told->error, *icmp = ip + 20;

    memset(told->error, 0, 28);
    ip[0] = 0x45;
    write16(ip + 2, (uint32_t)total);
    ip[8] = 8; /* upstream's */
    ip[9] = ICMP;
    write32(ip + 12, TUN_ADDRESS);
    memcpy(ip + 16, p + 12, 4);
    write16(ip + 10, oracle_sum(ip, 20));
    icmp[0] = (uint8_t)type;
    memcpy(icmp + 8, p, quote);
    write16(icmp + 2, oracle_sum(icmp, total - 20));
    told->error_length = total;
    told->error_to = to;
}

static void from_tun(struct told *told, const uint8_t *p, size_t length)
{
    enum station peer;

    if (malformed(p, length)) {
        told->outcome = TOLD_tun_malformed;
    } else if (length > MTU) {
        told->outcome = TOLD_tun_oversize;
    } else if (!(peer = owner(read32(p + 16)))) {
        told->outcome = TOLD_tun_no_route;
        if (answerable(p, length, false))
            tell_error(told, OURS, p, length, 3);
    } else if (p[8] <= (mistake == TTL ? 0 : 1)) {
        told->outcome = TOLD_tun_ttl;
        if (answerable(p, length, true))
            tell_error(told, OURS, p, length, 11);
    } else {
        told->outcome = TOLD_tun_packets;
        told->to = peer;
        one_hop_later(told, p, length);
    }
}

static void from_udp(struct told *told, enum station sender, const uint8_t *p, size_t length,
                     bool accept_any)
{
    enum station peer;

    if (malformed(p, length)) {
        told->outcome = TOLD_udp_malformed;
        return;
    }
    if (length > MTU) {
        told->outcome = TOLD_udp_oversize;
        return;
    }
    peer = owner(read32(p + 12));
    if (!accept_any) {
        if (sender != PEER_A && sender != PEER_B && mistake != SENDER) {
            told->outcome = TOLD_udp_unknown_sender;
            return;
        }
        if (peer != sender && mistake != SOURCE && mistake != SENDER) {
            told->outcome = TOLD_udp_wrong_source;
            return;
        }
        if (read32(p + 16) >> 16 != NETWORK >> 16 && mistake != DESTINATION) {
            told->outcome = TOLD_udp_wrong_destination;
            return;
        }
    }
    if (p[8] <= (mistake == TTL ? 0 : 1)) {
        told->outcome = TOLD_udp_ttl;
        if (peer && answerable(p, length, true))
            tell_error(told, peer, p, length, 11);
        return;
    }
    told->outcome = TOLD_udp_packets;
    told->to = OURS;
    one_hop_later(told, p, length);
}

void oracle_judge(struct told *told, const struct input *in, const struct place *place)
{
    struct datagram got;

    told->passes = false;
    told->to = NONE;
    told->length = told->error_length = 0;
    if (in->out) {
        from_tun(told, in->data, in->length);
        return;
    }
    got = oracle_stack(in, place);
    if (!got.any) {
        told->outcome = TOLD_udp_nothing;
        return;
    }
    from_udp(told, got.right_port || place->any_port ? got.sender : NONE, got.payload, got.length,
             place->accept_any);
}
