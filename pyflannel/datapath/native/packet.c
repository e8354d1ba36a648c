/* See packet.h. */
#include "packet.h"

/* A second copy of the summing loop for AVX2, chosen at load time: it runs over every byte carried,
 * twice (segmenting, and checking before joining). Needs ifunc: gcc on glibc; and the sanitizers'
 * runtime is not up yet when ifuncs are resolved. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VECTORISED __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define VECTORISED
#endif

VECTORISED uint64_t checksum_add(const uint8_t *p, size_t length)
{
    uint64_t even = 0, odd = 0, sum;
    size_t words = length / 8;

    /* Halves of 64-bit words into two sums: no carry to look after below 2^32 words, and a shape
     * that compilers turn into vector code. */
    for (size_t i = 0; i < words; i++) {
        uint64_t word;

        memcpy(&word, p + 8 * i, sizeof word);
        even += word & 0xffffffff;
        odd += word >> 32;
    }
    sum = even + odd;
    p += 8 * words;
    for (length &= 7; length >= 2; length -= 2, p += 2)
        sum += load16(p);
    if (length) {
        uint8_t last[2] = {*p, 0}; /* padded with zero on the right, whatever the byte order */

        sum += load16(last);
    }
    return sum;
}

enum verdict packet_check(const uint8_t *p, size_t length, size_t limit)
{
    if (!fits(0, IP4_MIN_HEADER, length) || p[0] >> 4 != 4)
        return PACKET_MALFORMED;
    if (header_length(p) < IP4_MIN_HEADER || !fits(0, header_length(p), length))
        return PACKET_MALFORMED;
    if (get16(p + IP4_LENGTH) != length)
        return PACKET_MALFORMED;
    return length > limit ? PACKET_OVERSIZE : PACKET_OK;
}

bool checksum_complete(uint8_t *p, size_t length, const struct vnet_header *vnet)
{
    size_t start = vnet->csum_start, field = start + vnet->csum_offset;
    uint16_t sum;

    if (start < header_length(p) || !fits(start, 0, length) || !fits(field, 2, length) ||
        (vnet->csum_offset != TCP_CHECKSUM && vnet->csum_offset != UDP_CHECKSUM))
        return false;
    sum = (uint16_t)~checksum_fold(checksum_add(p + start, length - start));
    /* In UDP, 0 means "no checksum", so a sum of 0 is sent as 0xFFFF (RFC 768). */
    store16(p + field, sum == 0 && p[IP4_PROTOCOL] == PROTO_UDP ? 0xffff : sum);
    return true;
}

/* Destination unreachable, source quench, redirect, time exceeded, parameter problem: RFC 792's
 * errors. A packet too short to hold a type is treated as one. */
static bool is_icmp_error(const uint8_t *p, size_t length)
{
    size_t header = header_length(p);
    uint8_t type;

    if (!fits(header, 1, length))
        return true;
    type = p[header];
    return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* Whether an address can be that of one host: not 0.0.0.0/8, loopback, multicast, reserved. */
static bool is_unicast(const uint8_t *address)
{
    return address[0] != 0 && address[0] != 127 && address[0] < 224;
}

bool icmp_wanted(const uint8_t *p, size_t length, int type, int code)
{
    if (header_length(p) >= IP4_MAX_HEADER || (get16(p + IP4_FRAGMENT) & IP4_OFFSET_MASK) != 0 ||
        !is_unicast(p + IP4_SOURCE) || p[IP4_DESTINATION] >= 224)
        return false;
    if (p[IP4_PROTOCOL] != PROTO_ICMP)
        return true;
    if (type == ICMP_UNREACHABLE && code == ICMP_CODE_NETWORK)
        return false;
    return !is_icmp_error(p, length);
}

size_t icmp_error(uint8_t *out, const uint8_t *p, size_t quoted_length, uint32_t source, int type,
                  int code, uint16_t rest)
{
    size_t header = header_length(p);
    size_t body = quoted_length - header < 8 ? quoted_length - header : 8;
    size_t total = IP4_MIN_HEADER + 8 + header + body;
    uint8_t *icmp = out + IP4_MIN_HEADER, *quote = icmp + 8;

    memset(out, 0, IP4_MIN_HEADER + 8);
    out[0] = 0x45;
    put16(out + IP4_LENGTH, total);
    out[IP4_TTL] = 8; /* upstream's value */
    out[IP4_PROTOCOL] = PROTO_ICMP;
    put32(out + IP4_SOURCE, source);
    memcpy(out + IP4_DESTINATION, p + IP4_SOURCE, 4);
    store16(out + IP4_CHECKSUM, (uint16_t)~checksum_fold(checksum_add(out, IP4_MIN_HEADER)));

    memcpy(quote, p, header + body);
    if (get16(quote + IP4_LENGTH) != quoted_length) {
        put16(quote + IP4_LENGTH, quoted_length);
        store16(quote + IP4_CHECKSUM, 0);
        store16(quote + IP4_CHECKSUM, (uint16_t)~checksum_fold(checksum_add(quote, header)));
    }
    icmp[0] = (uint8_t)type;
    icmp[1] = (uint8_t)code;
    put16(icmp + 6, rest);
    store16(icmp + 2, (uint16_t)~checksum_fold(checksum_add(icmp, total - IP4_MIN_HEADER)));
    return total;
}
