/* Any bytes as one packet with a virtio header: judged, answered, completed, cut. For libFuzzer.
 *
 * The input is a virtio header and a packet. The packet lies in a block of exactly its size, so that
 * reading one byte beyond it ends the run. Whatever is cut must come out as packets that are right by
 * themselves and carry the same bytes in the same order.
 */
#include <stdlib.h>

#include "packet.h"
#include "segment.h"

#define REQUIRE(condition) \
    do { \
        if (!(condition)) \
            __builtin_trap(); \
    } while (0)

static int right_checksums(const uint8_t *p, size_t length)
{
    size_t header = header_length(p), l4 = length - header;

    return checksum_fold(checksum_add(p, header)) == 0xffff &&
           checksum_fold(pseudo_sum(p, l4) + checksum_add(p + header, l4)) == 0xffff;
}

static void cut(const uint8_t *p, size_t length, const struct vnet_header *vnet)
{
    static uint8_t whole[IP4_MAX_PACKET + SEGMENT_HEADER_MAX];
    struct segmenter s;
    size_t carried = 0;

    if (!segment_begin(&s, p, length, vnet))
        return;
    REQUIRE(s.count >= 1 && s.header <= SEGMENT_HEADER_MAX);
    for (size_t i = 0; i < s.count; i++) {
        size_t n = segment_length(&s, i);
        const uint8_t *payload;

        REQUIRE(n > s.header && n - s.header <= s.size);
        payload = segment_write(&s, i, whole);
        REQUIRE(payload == s.payload + carried);
        memcpy(whole + s.header, payload, n - s.header);
        carried += n - s.header;
        REQUIRE(packet_check(whole, n, IP4_MAX_PACKET) == PACKET_OK);
        REQUIRE(right_checksums(whole, n));
        if (!s.udp) {
            uint8_t flags = whole[s.ip_header + TCP_FLAGS];

            REQUIRE(!(flags & (TCP_FIN | TCP_PSH)) || i + 1 == s.count);
            REQUIRE(!(flags & TCP_CWR) || i == 0);
        }
    }
    REQUIRE(carried == s.payload_length);
}

static void answer(const uint8_t *p, size_t length)
{
    static const int kinds[][2] = {{ICMP_UNREACHABLE, ICMP_CODE_NETWORK},
                                   {ICMP_UNREACHABLE, ICMP_CODE_FRAG_NEEDED},
                                   {ICMP_TIME_EXCEEDED, 0}};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        uint8_t error[ICMP_ERROR_MAX];
        size_t n;

        if (!icmp_wanted(p, length, kinds[i][0], kinds[i][1]))
            continue;
        n = icmp_error(error, p, length, 0x0a050100, kinds[i][0], kinds[i][1], 1400);
        REQUIRE(n <= sizeof error && packet_check(error, n, sizeof error) == PACKET_OK);
        REQUIRE(checksum_fold(checksum_add(error + 20, n - 20)) == 0xffff);
        /* An error about an error would go on without end. */
        REQUIRE(!icmp_wanted(error, n, ICMP_TIME_EXCEEDED, 0));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vnet_header vnet;
    size_t length;
    uint8_t *p;

    if (size < sizeof vnet + 1)
        return 0;
    memcpy(&vnet, data, sizeof vnet);
    length = size - sizeof vnet;
    p = malloc(length);
    REQUIRE(p);
    memcpy(p, data + sizeof vnet, length);
    /* Random total lengths would almost never be right; the check itself is not what is sought. */
    if (length >= 4 && (vnet.flags & 0x80))
        put16(p + IP4_LENGTH, length);
    if (packet_check(p, length, IP4_MAX_PACKET) == PACKET_OK) {
        answer(p, length);
        cut(p, length, &vnet);
        checksum_complete(p, length, &vnet);
        REQUIRE(packet_check(p, length, IP4_MAX_PACKET) == PACKET_OK);
        answer(p, length); /* as the data path may, once the checksum is finished */
        if (p[IP4_TTL])
            ttl_decrement(p);
    }
    free(p);
    return 0;
}
