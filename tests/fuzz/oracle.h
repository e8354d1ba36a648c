/* Random packets and frames, and what a data path must do with them: for the harnesses of C and eBPF.
 *
 * A third reading of the prose in `pyflannel.datapath.base`, after `Model` in the contract suite and
 * the implementations. It shares no code with them, uses slow and obvious means, and is held to
 * `Model` by a test (test_rules.py). What a kernel makes of a frame: RFC 791, RFC 768.
 *
 * The corpus follows from the seed alone, so that both harnesses see the same one.
 */
#ifndef PYFLANNEL_ORACLE_H
#define PYFLANNEL_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MTU = 1472,
    ETHERNET = 14,
    OUTER = 28,            /* IPv4 and UDP header */
    LARGEST_PACKET = 2048, /* of what is made here */
    LARGEST_FRAME = LARGEST_PACKET + ETHERNET + OUTER + 32,
    LARGEST_ERROR = 20 + 8 + 60 + 8,
};

/* Who is on the wire; addresses are BASE + the number. `NONE`: none of them. */
enum station { NONE, OURS, PEER_A, PEER_B, STRANGER };

struct place {
    uint32_t base; /* host byte order, as all addresses here */
    uint8_t mac[6];
    uint16_t port;
    bool accept_any, any_port;
};

/* A packet that the kernel routed into the TUN, or a frame from the wire with one in it. */
struct input {
    bool out;
    size_t length, frame_length;
    uint8_t data[LARGEST_PACKET], frame[LARGEST_FRAME];
};

/* What a socket gets from a frame. */
struct datagram {
    bool any; /* it gets one */
    enum station sender;
    bool right_port;
    const uint8_t *payload;
    size_t length;
};

#define OUTCOMES(X) \
    X(tun_packets) X(tun_malformed) X(tun_oversize) X(tun_no_route) X(tun_ttl) X(udp_nothing) \
    X(udp_packets) X(udp_malformed) X(udp_oversize) X(udp_unknown_sender) X(udp_wrong_source) \
    X(udp_wrong_destination) X(udp_ttl)

enum outcome {
#define X(name) TOLD_##name,
    OUTCOMES(X)
#undef X
        OUTCOMES_COUNT
};

extern const char *const outcome_names[OUTCOMES_COUNT];

/* What must become of an input. `passes`: the packet goes on as `data`, to `to` (a peer), or into the
 * TUN (`OURS`). `error`: an ICMP error of so many bytes, unless too many were made of late. */
struct told {
    enum outcome outcome;
    bool passes;
    enum station to;
    size_t length;
    uint8_t data[LARGEST_PACKET];
    size_t error_length;
    enum station error_to;
    uint8_t error[LARGEST_ERROR];
};

/* Ways to be wrong, for the tests of the harnesses: each must be found out. */
enum mistake { RIGHT, HOP, SOURCE, DESTINATION, SENDER, LENGTH, TTL, MISTAKES };

/* From three words of a command line: BASE (hexadecimal), MAC (twelve digits), PORT. */
void oracle_read_place(struct place *place, char *const words[3]);
/* Makes the mistake of that name, if it is one. */
void oracle_err(const char *name);
/* To standard error: what it is, and its bytes. */
void oracle_show(const char *what, const uint8_t *bytes, size_t length);

void oracle_seed(uint64_t seed);
uint32_t oracle_random(void);
void oracle_input(struct input *in, const struct place *place);
struct datagram oracle_stack(const struct input *in, const struct place *place);
void oracle_judge(struct told *told, const struct input *in, const struct place *place);

/* The Internet checksum of some bytes: what a header with that field 0 is to carry. */
uint16_t oracle_sum(const uint8_t *bytes, size_t length);

static inline uint32_t read16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static inline uint32_t read32(const uint8_t *p) { return read16(p) << 16 | read16(p + 2); }

#endif
