/* See table.h. */
#include "table.h"

#include <stdlib.h>

static uint32_t prefix_mask(uint32_t length)
{
    return length ? 0xffffffffu << (32 - length) : 0;
}

/* Bits of the smallest table that holds `count` rows at a load of one half, at least one cell free. */
static uint32_t table_bits(size_t count)
{
    uint32_t bits = 1;

    while (((size_t)1 << bits) < 2 * count)
        bits++;
    return bits;
}

static void insert(struct table_level *level, uint32_t key, struct table_cell cell)
{
    uint32_t end = (uint32_t)(1ull << (32 - level->shift)) - 1, slot = table_slot(level, key);

    while (level->cells[slot].address != 0)
        slot = (slot + 1) & end;
    level->cells[slot] = cell;
}

/* Longest prefix first; of one prefix, the row that counts first: it is inserted and so found first. */
static int by_length_then_claim(const void *a, const void *b)
{
    const struct table_row *x = a, *y = b;

    if (x->prefix_length != y->prefix_length)
        return x->prefix_length < y->prefix_length ? 1 : -1;
    if (x->network != y->network)
        return x->network < y->network ? -1 : 1;
    return (x->address < y->address) - (x->address > y->address);
}

struct table *table_new(const struct table_row *rows, size_t count)
{
    size_t per_length[33] = {0}, cells = 0, used = 0;
    struct table_row *sorted;
    struct table *t;

    /* 2^26 rows is four times the number of all /24s. With more, sizes below could overflow. */
    if (count > (size_t)1 << 26)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        if (rows[i].prefix_length > 32 || rows[i].address == 0 ||
            (rows[i].network & ~prefix_mask(rows[i].prefix_length)))
            return NULL;
        per_length[rows[i].prefix_length]++;
    }
    for (size_t length = 0; length <= 32; length++) {
        if (per_length[length])
            cells += (size_t)1 << table_bits(per_length[length]);
    }
    cells += (size_t)1 << table_bits(count);
    t = calloc(1, sizeof *t + cells * sizeof *t->cells);
    sorted = malloc((count ? count : 1) * sizeof *sorted);
    if (!t || !sorted) {
        free(t);
        free(sorted);
        return NULL;
    }
    for (size_t i = 0; i < count; i++)
        sorted[i] = rows[i];
    qsort(sorted, count, sizeof *sorted, by_length_then_claim);

    t->rows = count;
    for (size_t i = 0; i < count; i++) {
        uint32_t length = sorted[i].prefix_length;

        if (i == 0 || length != sorted[i - 1].prefix_length) {
            uint32_t bits = table_bits(per_length[length]);

            t->level[t->levels++] = (struct table_level){
                .mask = prefix_mask(length), .shift = 32 - bits, .cells = t->cells + used};
            used += (size_t)1 << bits;
        }
        insert(&t->level[t->levels - 1], sorted[i].network,
               (struct table_cell){sorted[i].network, sorted[i].address});
    }
    t->senders = (struct table_level){.shift = 32 - table_bits(count), .cells = t->cells + used};
    for (size_t i = 0; i < count; i++) {
        if (!table_knows(t, sorted[i].address))
            insert(&t->senders, sorted[i].address, (struct table_cell){0, sorted[i].address});
    }
    free(sorted);
    return t;
}
