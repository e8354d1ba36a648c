/* The eBPF programs, run by the kernel on frames of ours (BPF_PROG_TEST_RUN), held to the oracle.
 *
 * A program takes a packet or leaves it to user space. What it takes must be what the oracle says, to
 * the byte; what it leaves must be as it was; and what is ordinary (docs/ebpf.md) it must take.
 *
 *   fuzz_programs SEED INPUTS OVERLAY_OUT UNDERLAY_IN IFINDEX BASE MAC PORT OPTIONS [MISTAKE]
 *
 * OVERLAY_OUT and UNDERLAY_IN are descriptors of loaded programs; BASE is hexadecimal, MAC twelve
 * digits; OPTIONS is 1 for accept_any plus 2 for any_port. Prints what was done as JSON; ends 1 at the
 * first disagreement. Must run where the devices are: see test_rules.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "oracle.h"

enum { SHOT = 2, REDIRECT = 7, LEFT = -1 /* TC_ACT_* */ };
/* No shorter frame reaches a program's end (net/bpf/test_run.c). */
enum { LEAST = ETHERNET + 20 };

static struct place place;
static struct input in;
static struct told told;
static uint8_t left[LARGEST_FRAME + 256];
static size_t left_length;
static unsigned long long number;

static void disagree(const char *what)
{
    fprintf(stderr, "input %llu: %s; accept_any %d, any_port %d, told %s\n", number, what,
            place.accept_any, place.any_port, outcome_names[told.outcome]);
    if (in.out)
        oracle_show("from the TUN", in.data, in.length);
    else
        oracle_show("from the wire", in.frame, in.frame_length);
    oracle_show("left", left, left_length);
    if (told.passes)
        oracle_show("should be", told.data, told.length);
    exit(1);
}

static int run(int program, uint32_t ifindex, const uint8_t *data, size_t length)
{
    static struct __sk_buff context;
    union bpf_attr attr = {0};

    memset(&context, 0, sizeof context);
    context.ifindex = ifindex;
    attr.test.prog_fd = (uint32_t)program;
    attr.test.data_in = (uintptr_t)data;
    attr.test.data_size_in = (uint32_t)length;
    attr.test.data_out = (uintptr_t)left;
    attr.test.data_size_out = sizeof left;
    attr.test.ctx_in = (uintptr_t)&context;
    attr.test.ctx_size_in = sizeof context;
    attr.test.repeat = 1;
    if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof attr)) {
        fprintf(stderr, "input %llu: run a program: %s\n", number, strerror(errno));
        exit(2);
    }
    left_length = attr.test.data_size_out;
    return (int)attr.test.retval;
}

/* Whether the headers around a packet that goes out are as they are to be. */
static bool wrapped(void)
{
    const uint8_t *ip = left + ETHERNET, *udp = ip + 20;
    size_t size = left_length - ETHERNET;

    return left_length >= ETHERNET + OUTER && read16(left + 12) == 0x0800 && ip[0] == 0x45 &&
           ip[8] == 64 && ip[9] == 17 && read16(ip + 2) == size && read16(ip + 6) == 0x4000 &&
           !oracle_sum(ip, 20) && read32(ip + 12) == place.base + OURS &&
           read32(ip + 16) == place.base + told.to && read16(udp) == place.port &&
           read16(udp + 2) == place.port && read16(udp + 4) == size - 20 && !read16(udp + 6);
}

/* What the programs promise to carry themselves, of what passes. */
static bool ordinary(void)
{
    const uint8_t *ip = in.frame + ETHERNET;

    if (in.out) /* a test run takes the packet's first bytes for an Ethernet header */
        return in.data[0] == 0x45 && read16(in.data + 12) == 0x0800;
    return ip[0] == 0x45 && read16(ip + 2) == read16(ip + 24) + 20u && read16(ip + 24) >= OUTER;
}

static void check(int verdict)
{
    const uint8_t *data = in.out ? in.data : in.frame;
    size_t length = in.out ? in.length : in.frame_length, carried;

    if (verdict == LEFT) {
        if (left_length != length || memcmp(left, data, length))
            disagree("left, but changed");
        if (told.passes && ordinary())
            disagree("left, though it is ordinary");
        return;
    }
    if (verdict != REDIRECT)
        disagree("neither left nor taken");
    if (!told.passes)
        disagree("taken, though it must not pass");
    if (in.out && !wrapped())
        disagree("the headers around it are wrong");
    data = left + ETHERNET + (in.out ? OUTER : 0);
    carried = left_length - (size_t)(data - left);
    /* Behind a packet that came in there may be what padded the frame: the stack cuts it off. */
    if (carried < told.length || (in.out && carried != told.length) ||
        memcmp(data, told.data, told.length))
        disagree("another packet is made of it");
}

int main(int argc, char **argv)
{
    unsigned long long inputs, taken[2] = {0}, done[OUTCOMES_COUNT] = {0}, runs = 0;
    int programs[2], options;
    uint32_t ifindex;

    if (argc < 10)
        return 2;
    oracle_seed(strtoull(argv[1], NULL, 0));
    inputs = strtoull(argv[2], NULL, 0);
    programs[1] = atoi(argv[3]);
    programs[0] = atoi(argv[4]);
    ifindex = (uint32_t)atoi(argv[5]);
    oracle_read_place(&place, argv + 6);
    options = atoi(argv[9]);
    place.accept_any = options & 1;
    place.any_port = options & 2;
    if (argc > 10)
        oracle_err(argv[10]);
    for (number = 0; number < inputs; number++) {
        int verdict;

        oracle_input(&in, &place);
        oracle_judge(&told, &in, &place);
        done[told.outcome]++;
        if ((in.out ? in.length : in.frame_length) < LEAST)
            continue;
        verdict = in.out ? run(programs[1], ifindex, in.data, in.length)
                         : run(programs[0], ifindex, in.frame, in.frame_length);
        runs++;
        check(verdict);
        taken[in.out] += verdict == REDIRECT;
    }
    printf("{\"inputs\": %llu, \"runs\": %llu, \"overlay_out taken\": %llu, \"underlay_in taken\": %llu",
           inputs, runs, taken[1], taken[0]);
    for (int i = 0; i < OUTCOMES_COUNT; i++)
        printf(", \"%s\": %llu", outcome_names[i], done[i]);
    printf("}\n");
    return 0;
}
