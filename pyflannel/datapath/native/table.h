/* The peer table: overlay prefix -> underlay address, and whose addresses these are.
 *
 * Theory of operation. One hash table for each prefix length in use, asked from the longest to the
 * shortest; flannel gives every node the same length, so a look-up is one mask, one multiplication
 * and, at a load of at most one half, one or two cells of eight bytes side by side, however many
 * peers there are. If two peers claim a prefix, the one with the greater address has it, as in
 * PeerTable. The same look-up of a received packet's inner source gives the peer that may have
 * sent it. A further table holds the addresses of all peers, to tell an unknown sender from a wrong
 * source, and the number under which each is counted (engine.h).
 *
 * A table is built once, in one piece of memory, and never changed: readers need no lock. How it is
 * replaced is in engine.h.
 */
#ifndef PYFLANNEL_TABLE_H
#define PYFLANNEL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One row as Python hands it over; all in host byte order. */
struct table_row {
    uint32_t network;
    uint32_t prefix_length;
    uint32_t address;
};

/* Address 0.0.0.0 marks a free cell: it is no peer's address. */
struct table_cell {
    uint32_t network; /* of a sender: its number */
    uint32_t address;
};

struct table_level {
    uint32_t mask;
    uint32_t shift; /* 32 - log2(cells): the upper bits of the product are the well-mixed ones */
    struct table_cell *cells;
};

struct table {
    size_t rows;
    size_t levels;
    struct table_level level[33];
    struct table_level senders; /* keyed by the address itself */
    struct table *retired_next; /* engine.c's list of tables that wait for their last reader */
    uint64_t retired_epoch;
    struct table_cell cells[];
};

/* Builds a table; NULL if there is no memory or a row is no row (length above 32, address 0, bits
 * beyond the prefix). Freed with free(). */
struct table *table_new(const struct table_row *rows, size_t count);

static inline uint32_t table_slot(const struct table_level *level, uint32_t key)
{
    /* Fibonacci hashing: 2^32 / golden ratio. Neighbouring subnets land far apart. The low bits of a
     * network are zero, so the product's upper bits depend on all that differs. */
    return (uint32_t)(((uint64_t)(key * 2654435769u)) >> level->shift);
}

/* The peer that owns a destination, 0 if there is none. Host byte order. */
static inline uint32_t table_lookup(const struct table *t, uint32_t destination)
{
    for (size_t i = 0; i < t->levels; i++) {
        const struct table_level *level = &t->level[i];
        uint32_t network = destination & level->mask, end = (uint32_t)(1ull << (32 - level->shift)) - 1;

        for (uint32_t slot = table_slot(level, network);; slot = (slot + 1) & end) {
            const struct table_cell *cell = &level->cells[slot];

            if (cell->address == 0)
                break;
            if (cell->network == network)
                return cell->address;
        }
    }
    return 0;
}

/* The cell of a peer's address; NULL if no peer has it. */
static inline struct table_cell *table_sender(const struct table *t, uint32_t address)
{
    uint32_t end = (uint32_t)(1ull << (32 - t->senders.shift)) - 1;

    for (uint32_t slot = table_slot(&t->senders, address);; slot = (slot + 1) & end) {
        struct table_cell *cell = &t->senders.cells[slot];

        if (cell->address == 0)
            return NULL;
        if (cell->address == address)
            return cell;
    }
}

/* Whether an address is that of any peer. */
static inline bool table_knows(const struct table *t, uint32_t address)
{
    return table_sender(t, address) != NULL;
}

/* The number under which a peer is counted; 0 if it is not counted. */
static inline uint32_t table_number(const struct table *t, uint32_t address)
{
    const struct table_cell *cell = table_sender(t, address);

    return cell ? cell->network : 0;
}

#endif
