/*
 * table.h: an open-addressing hash index from keys to 64-bit values.
 *
 * The table holds no keys, only 32 bits of each key's hash and a value that tells its owner where
 * the key's bytes stand: an offset into the log (store.c) or into a file read whole (access.c). So
 * a search yields candidates, and the owner confirms each against the real bytes. Nothing is ever
 * removed singly; a table only grows or is emptied whole.
 *
 * Not thread-safe: one thread owns a table. Nothing here blocks or touches a file.
 */
#ifndef TABLE_H
#define TABLE_H

#include "slice.h"
#include <stdint.h>

/* A secret drawn at random for each process, so that nobody can choose keys that collide. */
struct table_key {
    uint64_t k0, k1;
};

/* The keyed hash of a key's bytes: SipHash-1-3. All bits are equally good. */
uint64_t table_hash(struct table_key key, struct slice bytes);

/* A zeroed part is an empty one. */
struct table_part {
    struct table_slot *slots; /* homes + tail of them, or NULL while homes is 0 */
    uint32_t homes, tail;
    uint32_t used;     /* entries */
    uint32_t spilled;  /* those of them that stand in the tail */
    uint32_t reserved; /* inserts to come that have been promised to succeed */
};

/* A zeroed table is an empty one. It has 256 parts, chosen by the hash's top byte, each growing
 * alone: no insert pays for the whole table. One that stays small (a batch's) makes do with the
 * first part: its owner sets is_small before the first use. */
#define TABLE_PARTS 256
struct table {
    uint64_t count; /* entries */
    bool is_small;
    struct table_part parts[TABLE_PARTS];
};

/* Frees all memory and forgets all entries. */
void table_free(struct table *table);

/* Makes sure that one more table_insert with this hash cannot fail. Reservations add up until they
 * are used by table_insert or given back by table_release. May grow one part: work linear in that
 * part's size. Returns 0, or -1 when memory is short (then nothing has changed). */
int table_reserve(struct table *table, uint64_t hash);
void table_release(struct table *table, uint64_t hash);

/* Adds an entry, using up one reservation for this hash. Entries with equal hashes stand side by
 * side; the owner has already made sure that the key itself is new. value < UINT64_MAX. */
void table_insert(struct table *table, uint64_t hash, uint64_t value);

/* Whether the table cannot tell two hashes apart: a search for one may find the other's value. */
bool table_confuses(const struct table *table, uint64_t a, uint64_t b);

/* A search: the values whose keys may be the one that was hashed, in no particular order.
 *
 *     struct table_search search = table_find(table, hash);
 *     while (table_next(&search, &value))
 *         if (the key at value is the key that was hashed) ...
 *
 * A search ends with the first table_reserve, table_insert or table_clear after it. */
struct table_search {
    const struct table_slot *slot;
    uint32_t tag;
};
struct table_search table_find(const struct table *table, uint64_t hash);
bool table_next(struct table_search *search, uint64_t *value);

/* Says that this hash will soon be looked for or inserted, so that the memory for that is fetched
 * meanwhile. */
void table_prefetch(const struct table *table, uint64_t hash);

/* Forgets all entries and reservations, and gives memory back if there is much of it. */
void table_clear(struct table *table);

#endif
