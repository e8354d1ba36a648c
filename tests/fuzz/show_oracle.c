/* What the oracle says, a line for each input, so that another model can be held to it.
 *
 *   show_oracle SEED INPUTS BASE MAC PORT OPTIONS
 *
 * Arguments as for fuzz_programs. A line: "out" or "in", the packet or frame, the outcome, whom a
 * packet goes on to (a number, 0: it does not) and the packet, the same of an ICMP error.
 */
#include <stdio.h>
#include <stdlib.h>

#include "oracle.h"

static void show(int to, const uint8_t *bytes, size_t length)
{
    printf(" %d ", length ? to : 0);
    for (size_t i = 0; i < length; i++)
        printf("%02x", bytes[i]);
    if (!length)
        putchar('-');
}

int main(int argc, char **argv)
{
    static struct place place;
    static struct input in;
    static struct told told;
    unsigned long long inputs;

    if (argc < 7)
        return 2;
    oracle_seed(strtoull(argv[1], NULL, 0));
    inputs = strtoull(argv[2], NULL, 0);
    oracle_read_place(&place, argv + 3);
    place.accept_any = atoi(argv[6]) & 1;
    place.any_port = atoi(argv[6]) & 2;
    while (inputs--) {
        oracle_input(&in, &place);
        oracle_judge(&told, &in, &place);
        fputs(in.out ? "out" : "in", stdout);
        show(OURS, in.out ? in.data : in.frame, in.out ? in.length : in.frame_length);
        printf(" %s", outcome_names[told.outcome]);
        show(told.to, told.data, told.passes ? told.length : 0);
        show(told.error_to, told.error, told.error_length);
        putchar('\n');
    }
    return 0;
}
