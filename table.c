/*
 * table.c: ordered linear probing.
 *
 * The hash's top byte chooses a part, its low half is the tag that a slot keeps: 40 of 64 bits
 * discriminate. In its part a tag has a home, its share of the way through: tag / 2^32 of the
 * homes, so the number of homes may be any number. Here with 13 homes, and tags in hundredths:
 *
 *     tag       3   5   9   -   -   -  51  52   -   -   -  87  88  91  92   -
 *     home      0   0   1               6   6              11  11  11  11
 *     slot      0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
 *              '--------------------- homes --------------------' '-- tail --'
 *
 *  (1) tags ascend, equal ones side by side;
 *  (2) an entry stands at its home or after it, and no slot from its home to it is empty;
 *  (3) the tail has more empty slots than the part has reservations.
 *
 * A search walks from the home to the first empty slot or larger tag, and by (1) and (2) has then
 * seen every entry with its tag. An insert shifts the rest of the run, up to the first empty slot,
 * by one. Growing is one forward pass over both arrays: in the order in which the entries stand,
 * each goes to its new home or right behind its predecessor. No key is hashed again.
 *
 * Why an insert after table_reserve cannot fail: it fills exactly one empty slot, the first one at
 * or after a home, so at most one of the tail's, and uses up one reservation; so (3) stays true,
 * and by (3) there is such a slot. There is even one left over, at which every search ends: nothing
 * wraps around, nothing compares with the array's end.
 *
 * Why growing cannot overflow the new tail: the last entry stands beyond the homes by the largest
 * of (entries from the j-th one on) - (homes from the j-th one's home on), over all j. More homes
 * only make that smaller, so the new array spills no more entries than the old one did.
 *
 * Space and time. At a load of a, hits and misses both look at (1 + 1/(1-a))/2 slots on average
 * (Amble and Knuth, "Ordered hash tables", 1974); that is 4.5 slots, 54 bytes, at the highest load,
 * 7/8, and 2.2 just after growing by a quarter. Without the order a miss would take 32 at 7/8,
 * which is what an insert takes to find its run's end: sequential reads, all but the first one
 * cheap. An entry costs 12/(7/8) = 13.7 to 1.25 * 13.7 = 17.1 bytes; doubling would make it 27.
 * That is why the order is worth its shifts and its tail: without it misses are as short only at a
 * load of 0.65, where an entry costs 18.5 to 23 bytes, a third more.
 *
 * It refuses nothing but memory it cannot get, and parts of more than MAX_HOMES.
 */
#include "table.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>

/* 12 bytes, not 16: the value's halves need no alignment of 8. */
struct table_slot {
    uint32_t tag;
    uint32_t low, high; /* value + 1, so that zeroed memory is empty slots */
};
_Static_assert(sizeof(struct table_slot) == 12, "a slot has no padding");

#define FIRST_HOMES    8u         /* of a part with its first entry */
#define DOUBLING_HOMES 1024u      /* up to here a part doubles: it is small, and copying adds up */
#define MAX_HOMES      (1u << 30) /* so that no 32-bit sum below overflows */
#define TAIL_SLOTS     8u    /* a tail's empty slots when it is made, besides twice the needed */
#define KEPT_SLOTS     1024u /* a larger part's memory is given back by table_clear */

static uint64_t rotate_left(uint64_t x, unsigned bits) { return x << bits | x >> (64 - bits); }

/* Four words in a struct, passed by value: an array would be kept in memory by some compilers. */
struct sip {
    uint64_t a, b, c, d;
};

/* The second half of a round is the first one with a and c in each other's place. So they change
 * places here, and twice that is a round. */
static inline struct sip sip_half_round(struct sip v, unsigned b_bits, unsigned d_bits) {
    uint64_t a = v.a + v.b, c = v.c + v.d;
    return (struct sip){c, rotate_left(v.b, b_bits) ^ a, rotate_left(a, 32),
                        rotate_left(v.d, d_bits) ^ c};
}

static inline struct sip sip_round(struct sip v) {
    return sip_half_round(sip_half_round(v, 13, 16), 17, 21);
}

static inline struct sip sip_absorb(struct sip v, uint64_t word) {
    v.d ^= word;
    v = sip_round(v);
    v.a ^= word;
    return v;
}

/* SipHash-1-3: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. Its authors
 * recommend 2-4 rounds for a MAC; nobody sees these hashes, and for a table 1-3 is enough. */
uint64_t table_hash(struct table_key key, struct slice bytes) {
    struct sip v = {key.k0 ^ 0x736f6d6570736575, key.k1 ^ 0x646f72616e646f6d,
                    key.k0 ^ 0x6c7967656e657261, key.k1 ^ 0x7465646279746573};
    uint64_t last = (uint64_t)bytes.n << 56, word;

    for (; bytes.n >= sizeof word; bytes.p += sizeof word, bytes.n -= sizeof word) {
        memcpy(&word, bytes.p, sizeof word);
        v = sip_absorb(v, le64toh(word));
    }
    for (size_t i = 0; i < bytes.n; i++) last |= (uint64_t)(unsigned char)bytes.p[i] << 8 * i;
    v = sip_absorb(v, last);

    v.c ^= 0xff;
    v = sip_round(sip_round(sip_round(v)));
    return v.a ^ v.b ^ v.c ^ v.d;
}

void table_free(struct table *table) {
    for (unsigned i = 0; i < TABLE_PARTS; i++) free(table->parts[i].slots);
    *table = (struct table){0};
}

static unsigned part_of(const struct table *table, uint64_t hash) {
    return table->is_small ? 0 : (unsigned)(hash >> 56);
}

static bool is_empty(const struct table_slot *slot) { return (slot->low | slot->high) == 0; }

static uint64_t home_of(uint64_t tag, uint32_t homes) { return tag * homes >> 32; }

/* Moves part into a new array with this many homes, no fewer than it has, and a new tail. */
static int rebuild(struct table_part *part, uint32_t homes) {
    uint32_t tail = TAIL_SLOTS + 2 * (part->spilled + part->reserved);
    struct table_slot *slots = calloc((size_t)homes + tail, sizeof *slots);
    if (slots == NULL) return -1;

    uint32_t next = 0; /* the slot behind the last entry */
    for (uint32_t i = 0; i < part->homes + part->spilled; i++) {
        const struct table_slot *slot = &part->slots[i];
        if (is_empty(slot)) continue;
        uint32_t home = (uint32_t)home_of(slot->tag, homes);
        next = home > next ? home : next;
        slots[next++] = *slot;
    }
    free(part->slots);
    part->slots = slots;
    part->homes = homes;
    part->tail = tail;
    part->spilled = next > homes ? next - homes : 0;
    return 0;
}

int table_reserve(struct table *table, uint64_t hash) {
    struct table_part *part = &table->parts[part_of(table, hash)];
    uint32_t homes = part->homes;

    if (part->used + part->reserved >= homes - homes / 8)
        homes += homes == 0 ? FIRST_HOMES : homes < DOUBLING_HOMES ? homes : homes / 4;
    if (homes > MAX_HOMES) return -1;
    bool tail_is_short = part->tail - part->spilled <= part->reserved + 1;
    if ((homes > part->homes || tail_is_short) && rebuild(part, homes) < 0) return -1;
    part->reserved++;
    return 0;
}

void table_release(struct table *table, uint64_t hash) {
    struct table_part *part = &table->parts[part_of(table, hash)];
    assert(part->reserved > 0);
    part->reserved--;
}

void table_insert(struct table *table, uint64_t hash, uint64_t value) {
    struct table_part *part = &table->parts[part_of(table, hash)];
    uint32_t tag = (uint32_t)hash;
    struct table_slot *slot = &part->slots[home_of(tag, part->homes)];
    assert(part->reserved > 0 && value < UINT64_MAX);
    assert(part->tail - part->spilled > part->reserved); /* (3) */

    while (!is_empty(slot) && slot->tag <= tag) slot++;
    struct table_slot *end = slot;
    while (!is_empty(end)) end++;
    memmove(slot + 1, slot, (size_t)(end - slot) * sizeof *slot);
    *slot = (struct table_slot){tag, (uint32_t)(value + 1), (uint32_t)((value + 1) >> 32)};

    assert(end + 1 < part->slots + part->homes + part->tail); /* a search has where to end */
    assert(slot == part->slots || is_empty(slot - 1) || slot[-1].tag <= tag); /* (1) */
    assert(is_empty(slot + 1) || slot[1].tag > tag);
    part->spilled += end >= part->slots + part->homes;
    part->used++;
    part->reserved--;
    table->count++;
}

bool table_confuses(const struct table *table, uint64_t a, uint64_t b) {
    return part_of(table, a) == part_of(table, b) && (uint32_t)a == (uint32_t)b;
}

struct table_search table_find(const struct table *table, uint64_t hash) {
    static const struct table_slot nothing;
    const struct table_part *part = &table->parts[part_of(table, hash)];
    uint32_t tag = (uint32_t)hash;
    uint64_t home = home_of(tag, part->homes);

    return (struct table_search){part->slots ? &part->slots[home] : &nothing, tag};
}

void table_prefetch(const struct table *table, uint64_t hash) {
    __builtin_prefetch(table_find(table, hash).slot);
}

bool table_next(struct table_search *search, uint64_t *value) {
    const struct table_slot *slot = search->slot;

    while (!is_empty(slot) && slot->tag < search->tag) slot++;
    if (is_empty(slot) || slot->tag != search->tag) return false;
    *value = ((uint64_t)slot->high << 32 | slot->low) - 1;
    search->slot = slot + 1;
    return true;
}

void table_clear(struct table *table) {
    for (unsigned i = 0; i <= part_of(table, UINT64_MAX); i++) { /* to the last one */
        struct table_part *part = &table->parts[i];
        size_t slots = (size_t)part->homes + part->tail;
        if (slots > KEPT_SLOTS) {
            free(part->slots);
            *part = (struct table_part){0};
        } else if (slots > 0) {
            memset(part->slots, 0, slots * sizeof *part->slots);
            part->used = part->spilled = part->reserved = 0;
        }
    }
    table->count = 0;
}
