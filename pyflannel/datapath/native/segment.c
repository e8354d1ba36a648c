/* See segment.h. */
#include "segment.h"

bool segment_begin(struct segmenter *s, const uint8_t *p, size_t length,
                   const struct vnet_header *vnet)
{
    uint8_t type = vnet->gso_type & (uint8_t)~VNET_GSO_ECN;
    size_t ip = header_length(p), l4;
    uint8_t *t = s->headers + ip;

    s->udp = type == VNET_GSO_UDP_L4;
    if (type != VNET_GSO_TCPV4 && !s->udp)
        return false;
    if (p[IP4_PROTOCOL] != (s->udp ? PROTO_UDP : PROTO_TCP) || is_fragment(p))
        return false;
    if (!fits(ip, s->udp ? UDP_HEADER : TCP_MIN_HEADER, length))
        return false;
    l4 = s->udp ? UDP_HEADER : (size_t)(p[ip + TCP_OFFSET] >> 4) * 4;
    if (l4 < (s->udp ? UDP_HEADER : TCP_MIN_HEADER) || !fits(ip, l4 + 1, length))
        return false;
    if (vnet->gso_size == 0)
        return false;

    s->ip_header = ip;
    s->header = ip + l4;
    s->payload = p + s->header;
    s->payload_length = length - s->header;
    s->size = vnet->gso_size;
    s->count = (s->payload_length + s->size - 1) / s->size;
    s->id = get16(p + IP4_ID);
    memcpy(s->headers, p, s->header);
    store16(s->headers + IP4_LENGTH, 0);
    store16(s->headers + IP4_ID, 0);
    store16(s->headers + IP4_CHECKSUM, 0);
    if (s->udp) {
        s->sequence = 0;
        s->flags = 0;
        store16(t + UDP_LENGTH, 0);
        store16(t + UDP_CHECKSUM, 0);
    } else {
        s->sequence = get32(t + TCP_SEQUENCE);
        s->flags = t[TCP_FLAGS];
        put32(t + TCP_SEQUENCE, 0);
        t[TCP_FLAGS] = 0;
        store16(t + TCP_CHECKSUM, 0);
    }
    s->ip_sum = checksum_add(s->headers, ip);
    s->l4_sum = pseudo_sum(s->headers, 0) + checksum_add(t, l4);
    return true;
}

const uint8_t *segment_write(const struct segmenter *s, size_t i, uint8_t *out)
{
    const uint8_t *payload = s->payload + i * s->size;
    size_t length = segment_length(s, i), l4_length = length - s->ip_header;
    uint8_t *t = out + s->ip_header;
    uint64_t sum = s->l4_sum + htons((uint16_t)l4_length);
    uint16_t checksum;

    memcpy(out, s->headers, s->header);
    put16(out + IP4_LENGTH, length);
    put16(out + IP4_ID, (uint16_t)(s->id + i));
    store16(out + IP4_CHECKSUM,
            (uint16_t)~checksum_fold(s->ip_sum + load16(out + IP4_LENGTH) + load16(out + IP4_ID)));
    sum += checksum_add(payload, length - s->header);
    if (s->udp) {
        put16(t + UDP_LENGTH, l4_length);
        sum += load16(t + UDP_LENGTH);
        checksum = (uint16_t)~checksum_fold(sum);
        store16(t + UDP_CHECKSUM, checksum ? checksum : 0xffff);
    } else {
        uint8_t flags = s->flags;

        if (i + 1 < s->count)
            flags &= (uint8_t)~(TCP_FIN | TCP_PSH);
        if (i > 0)
            flags &= (uint8_t)~TCP_CWR;
        put32(t + TCP_SEQUENCE, s->sequence + (uint32_t)(i * s->size));
        t[TCP_FLAGS] = flags;
        /* The offset byte beside the flags is in l4_sum already. */
        sum += (uint64_t)load16(t + TCP_SEQUENCE) + load16(t + TCP_SEQUENCE + 2) + htons(flags);
        store16(t + TCP_CHECKSUM, (uint16_t)~checksum_fold(sum));
    }
    return payload;
}
