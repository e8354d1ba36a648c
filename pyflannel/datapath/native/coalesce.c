/* See coalesce.h. */
#include "coalesce.h"

static void flow_emit(struct joiner *j, struct join_flow *flow)
{
    if (flow->count == 0)
        return;
    j->emit(j->context, flow);
    flow->count = 0;
}

void join_flush(struct joiner *j)
{
    for (size_t i = 0; i < j->used; i++)
        flow_emit(j, &j->flows[i]);
    j->used = j->last = 0;
}

/* Emits every flow between the packet's addresses, with any ports. */
static void flush_addresses(struct joiner *j, const uint8_t *p)
{
    for (size_t i = 0; i < j->used; i++) {
        struct join_flow *flow = &j->flows[i];

        if (flow->count && flow->head[IP4_PROTOCOL] == p[IP4_PROTOCOL] &&
            memcmp(flow->head + IP4_SOURCE, p + IP4_SOURCE, 8) == 0)
            flow_emit(j, flow);
    }
}

/* Both addresses and both ports lie side by side in a packet without options. */
static bool same_flow(const struct join_flow *flow, const uint8_t *p)
{
    return flow->count && memcmp(flow->head + IP4_SOURCE, p + IP4_SOURCE, 12) == 0 &&
           flow->head[IP4_PROTOCOL] == p[IP4_PROTOCOL];
}

static struct join_flow *find_flow(struct joiner *j, const uint8_t *p)
{
    if (j->last < j->used && same_flow(&j->flows[j->last], p))
        return &j->flows[j->last];
    for (size_t i = 0; i < j->used; i++) {
        if (same_flow(&j->flows[i], p)) {
            j->last = i;
            return &j->flows[i];
        }
    }
    return NULL;
}

static struct join_flow *free_flow(struct joiner *j)
{
    size_t i;

    for (i = 0; i < j->used; i++) {
        if (j->flows[i].count == 0)
            break;
    }
    if (i == JOIN_FLOWS) {
        i = j->victim++ % JOIN_FLOWS;
        flow_emit(j, &j->flows[i]);
    } else if (i == j->used) {
        j->used++;
    }
    j->last = i;
    return &j->flows[i];
}

/* Whether the header checksum and the one over the payload are right. */
static bool intact(const uint8_t *p, size_t length)
{
    size_t l4_length = length - IP4_MIN_HEADER;

    return checksum_fold(checksum_add(p, IP4_MIN_HEADER)) == 0xffff &&
           checksum_fold(pseudo_sum(p, l4_length) + checksum_add(p + IP4_MIN_HEADER, l4_length)) ==
               0xffff;
}

static void add_part(struct join_flow *flow, uint8_t *p, size_t length)
{
    size_t size = length - flow->header;

    flow->parts[2 + flow->count++] = (struct iovec){p + flow->header, size};
    flow->total += size;
    flow->next_sequence += (uint32_t)size;
    if (!flow->udp && (p[IP4_MIN_HEADER + TCP_FLAGS] & TCP_PSH))
        flow->push = true;
    if (flow->push || size < flow->size)
        flow->closed = true;
}

/* Whether the packet continues the flow; all but the checksums. */
static bool continues(const struct join_flow *flow, const uint8_t *p, size_t length, size_t header)
{
    const uint8_t *head = flow->head, *t = p + IP4_MIN_HEADER;
    size_t size = length - header, most = flow->udp ? JOIN_PARTS_UDP : JOIN_PARTS;

    if (flow->closed || flow->header != header || size > flow->size || flow->count >= most ||
        !fits(flow->total, size, IP4_MAX_PACKET))
        return false;
    if (head[IP4_TOS] != p[IP4_TOS] || head[IP4_TTL] != p[IP4_TTL] ||
        load16(head + IP4_FRAGMENT) != load16(p + IP4_FRAGMENT))
        return false;
    if (!(get16(p + IP4_FRAGMENT) & IP4_DF) &&
        get16(p + IP4_ID) != (uint16_t)(get16(head + IP4_ID) + flow->count))
        return false;
    if (flow->udp)
        return true;
    /* Acknowledgement and offset at 8..12, window at 14, options from 20 on; reserved bits are part
     * of the offset byte. Without URG the urgent pointer means nothing, but it must be kept. */
    head += IP4_MIN_HEADER;
    return get32(t + TCP_SEQUENCE) == flow->next_sequence && memcmp(head + 8, t + 8, 5) == 0 &&
           load16(head + 14) == load16(t + 14) && load16(head + 18) == load16(t + 18) &&
           memcmp(head + TCP_MIN_HEADER, t + TCP_MIN_HEADER,
                  header - IP4_MIN_HEADER - TCP_MIN_HEADER) == 0;
}

bool join_offer(struct joiner *j, uint8_t *p, size_t length)
{
    bool udp = p[IP4_PROTOCOL] == PROTO_UDP, joinable;
    uint8_t *t = p + IP4_MIN_HEADER;
    size_t l4_minimum = udp ? UDP_HEADER : TCP_MIN_HEADER, header = 0;
    struct join_flow *flow;

    if (!(udp ? j->udp : j->tcp && p[IP4_PROTOCOL] == PROTO_TCP))
        return false;
    if (header_length(p) == IP4_MIN_HEADER && !is_fragment(p) &&
        fits(IP4_MIN_HEADER, l4_minimum, length)) {
        size_t l4 = udp ? UDP_HEADER : (size_t)(t[TCP_OFFSET] >> 4) * 4;

        if (l4 >= l4_minimum && fits(IP4_MIN_HEADER, l4, length))
            header = IP4_MIN_HEADER + l4;
    }
    if (header == 0) {
        flush_addresses(j, p);
        return false;
    }
    joinable = length > header &&
               (udp ? get16(t + UDP_LENGTH) == length - IP4_MIN_HEADER && load16(t + UDP_CHECKSUM)
                    : (t[TCP_FLAGS] & ~TCP_PSH) == TCP_ACK);
    flow = find_flow(j, p);
    if (flow && joinable && continues(flow, p, length, header) && intact(p, length)) {
        /* The first packet is checked only now: most often it stays alone, and then the receiver
         * checks it. */
        if (flow->verified || intact(flow->head, flow->header + flow->size)) {
            flow->verified = true;
            add_part(flow, p, length);
            return true;
        }
    }
    if (flow)
        flow_emit(j, flow);
    if (!joinable)
        return false;
    if (!flow)
        flow = free_flow(j);
    flow->head = p;
    flow->count = 0;
    flow->header = header;
    flow->size = length - header;
    flow->total = header;
    flow->next_sequence = udp ? 0 : get32(t + TCP_SEQUENCE);
    flow->udp = udp;
    flow->verified = flow->closed = flow->push = false;
    add_part(flow, p, length);
    return true;
}

void join_finish(struct join_flow *flow)
{
    uint8_t *p = flow->merged, *t = p + IP4_MIN_HEADER;
    size_t l4_length = flow->total - IP4_MIN_HEADER;

    memcpy(p, flow->head, flow->header);
    put16(p + IP4_LENGTH, flow->total);
    store16(p + IP4_CHECKSUM, 0);
    store16(p + IP4_CHECKSUM, (uint16_t)~checksum_fold(checksum_add(p, IP4_MIN_HEADER)));
    if (flow->udp)
        put16(t + UDP_LENGTH, l4_length);
    else if (flow->push)
        t[TCP_FLAGS] |= TCP_PSH;
    flow->vnet = (struct vnet_header){
        .flags = VNET_NEEDS_CSUM,
        .gso_type = flow->udp ? VNET_GSO_UDP_L4 : VNET_GSO_TCPV4,
        .header_length = (uint16_t)flow->header,
        .gso_size = (uint16_t)flow->size,
        .csum_start = IP4_MIN_HEADER,
        .csum_offset = flow->udp ? UDP_CHECKSUM : TCP_CHECKSUM,
    };
    /* What VNET_NEEDS_CSUM wants in the field: the pseudo header's sum, not complemented. */
    store16(t + flow->vnet.csum_offset, checksum_fold(pseudo_sum(p, l4_length)));
    flow->parts[0] = (struct iovec){&flow->vnet, sizeof flow->vnet};
    flow->parts[1] = (struct iovec){p, flow->header};
}
