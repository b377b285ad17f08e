/*
 * test_table.c: the index against a plain array of what was put in.
 *
 * Linked with -Wl,--wrap=calloc,--wrap=free, by which the tests count what the table holds, refuse
 * it memory, and notice that a part has grown. SEED=... repeats a run of the random tests.
 */
#include "table.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct {
    bool refuses;    /* calloc fails from now on */
    unsigned calls;  /* of calloc */
    size_t bytes;    /* allocated and not freed */
    uint64_t random; /* the state of the generator */
} fake;

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void __real_free(void *memory);
void __wrap_free(void *memory);

void *__wrap_calloc(size_t count, size_t size) {
    fake.calls++;
    if (fake.refuses) return NULL;
    void *memory = __real_calloc(count, size);
    fake.bytes += memory != NULL ? malloc_usable_size(memory) : 0;
    return memory;
}

void __wrap_free(void *memory) {
    fake.bytes -= memory != NULL ? malloc_usable_size(memory) : 0;
    __real_free(memory);
}

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t x = fake.random += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static int seed_generator(void **state) {
    const char *text = getenv("SEED");
    (void)state;
    fake.random = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)(uintptr_t)&state ^ 20210401;
    print_message("SEED=%llu\n", (unsigned long long)fake.random);
    fake.refuses = false;
    return 0;
}

/* ---- the model ---- */

#define MODEL_ENTRIES 8192

struct model {
    struct table table;
    size_t count;
    uint64_t hashes[MODEL_ENTRIES], values[MODEL_ENTRIES];
};

static struct model *model_new(bool is_small) {
    struct model *model = malloc(sizeof *model);
    assert_non_null(model);
    model->count = 0;
    model->table = (struct table){.is_small = is_small};
    return model;
}

static void model_free(struct model *model) {
    table_free(&model->table);
    assert_int_equal(fake.bytes, 0);
    __real_free(model);
}

/* Puts in an entry that has been reserved. Must not allocate. */
static void model_insert(struct model *model, uint64_t hash, uint64_t value) {
    unsigned calls = fake.calls;
    table_insert(&model->table, hash, value);
    assert_int_equal(fake.calls, calls);
    assert_true(model->count < MODEL_ENTRIES);
    model->hashes[model->count] = hash;
    model->values[model->count++] = value;
    assert_int_equal(model->table.count, model->count);
}

static void model_add(struct model *model, uint64_t hash, uint64_t value) {
    assert_int_equal(table_reserve(&model->table, hash), 0);
    model_insert(model, hash, value);
}

static bool finds(const struct table *table, uint64_t hash, uint64_t value) {
    struct table_search search = table_find(table, hash);
    uint64_t candidate;
    while (table_next(&search, &candidate))
        if (candidate == value) return true;
    return false;
}

static size_t count_candidates(const struct table *table, uint64_t hash) {
    struct table_search search = table_find(table, hash);
    uint64_t candidate;
    size_t count = 0;
    while (table_next(&search, &candidate)) count++;
    assert_false(table_next(&search, &candidate)); /* and stays at its end */
    return count;
}

static void assert_all_found(const struct model *model) {
    for (size_t i = 0; i < model->count; i++)
        if (!finds(&model->table, model->hashes[i], model->values[i]))
            fail_msg("entry %zu of %zu is lost: hash %016llx", i, model->count,
                     (unsigned long long)model->hashes[i]);
}

/* A search gives all the entries of the hash's part and tag, and no other ones. */
static void assert_search_is_exact(const struct model *model, uint64_t hash) {
    uint64_t mask = model->table.is_small ? 0xffffffff : 0xff000000ffffffff;
    size_t expected = 0;
    for (size_t i = 0; i < model->count; i++) {
        if ((model->hashes[i] ^ hash) & mask) continue;
        expected++;
        assert_true(finds(&model->table, hash, model->values[i]));
    }
    assert_int_equal(count_candidates(&model->table, hash), expected);
}

/* ---- the hash ---- */

/* SipHash-1-3 of 00 01 02 ... with the key 00 01 ... 0f. Computed by a Python transcript of the
 * paper's definition, which with a zero key agrees with CPython 3.11's own hash() of bytes. */
static const uint64_t SIPHASHES[64] = {
    0xabac0158050fc4dc, 0xc9f49bf37d57ca93, 0x82cb9b024dc7d44d, 0x8bf80ab8e7ddf7fb,
    0xcf75576088d38328, 0xdef9d52f49533b67, 0xc50d2b50c59f22a7, 0xd3927d989bb11140,
    0x369095118d299a8e, 0x25a48eb36c063de4, 0x79de85ee92ff097f, 0x70c118c1f94dc352,
    0x78a384b157b4d9a2, 0x306f760c1229ffa7, 0x605aa111c0f95d34, 0xd320d86d2a519956,
    0xcc4fdd1a7d908b66, 0x9cf2689063dbd80c, 0x8ffc389cb473e63e, 0xf21f9de58d297d1c,
    0xc0dc2f46a6cce040, 0xb992abfe2b45f844, 0x7ffe7b9ba320872e, 0x525a0e7fdae6c123,
    0xf464aeb267349c8c, 0x45cd5928705b0979, 0x3a3e35e3ca9913a5, 0xa91dc74e4ade3b35,
    0xfb0bed02ef6cd00d, 0x88d93cb44ab1e1f4, 0x540f11d643c5e663, 0x2370dd1f8c21d1bc,
    0x81157b6c16a7b60d, 0x4d54b9e57a8ff9bf, 0x759f12781f2a753e, 0xcea1a3bebf186b91,
    0x2cf508d3ada26206, 0xb6101c2da3c33057, 0xb3f47496ae3a36a1, 0x626b57547b108392,
    0xc1d2363299e41531, 0x667cc1923f1ad944, 0x65704ffec8138825, 0x24f280d1c28949a6,
    0xc2ca1cedfaf8876b, 0xc2164bfc9f042196, 0xa16e9c9368b1d623, 0x49fb169c8b5114fd,
    0x9f3143f8df074c46, 0xc6fdaf2412cc86b3, 0x7eaf49d10a52098f, 0x1cf313559d292f9a,
    0xc44a30dda2f41f12, 0x36fae98943a71ed0, 0x318fb34c73f0bce6, 0xa27abf3670a7e980,
    0xb4bcc0db243c6d75, 0x23f8d852fdb71513, 0x8f035f4da67d8a08, 0xd89cd0e5b7e8f148,
    0xf6f4e6bcf7a644ee, 0xaec59ad80f1837f2, 0xc3b2f6154b6694e0, 0x9d199062b7bbb3a8,
};

static void hashes_as_the_paper_says(void **state) {
    struct table_key key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    char bytes[64 + 1];
    (void)state;
    for (size_t at = 0; at < 2; at++) { /* aligned or not */
        for (size_t i = 0; i < 64; i++) bytes[at + i] = (char)i;
        for (size_t n = 0; n < 64; n++)
            assert_true(table_hash(key, (struct slice){bytes + at, n}) == SIPHASHES[n]);
    }
    assert_true(table_hash(key, (struct slice){NULL, 0}) == SIPHASHES[0]);
}

static void reads_nothing_behind_the_bytes(void **state) {
    struct table_key key = {1, 2};
    (void)state;
    for (size_t n = 1; n < 32; n++) {
        char *exact = calloc(n, 1); /* a sanitizer watches the byte behind it */
        char zeros[32 + 1] = {0};
        assert_non_null(exact);
        assert_true(table_hash(key, (struct slice){exact, n}) ==
                    table_hash(key, (struct slice){zeros + 1, n}));
        assert_true(table_hash(key, (struct slice){exact, n}) !=
                    table_hash((struct table_key){1, 3}, (struct slice){exact, n}));
        free(exact);
    }
}

/* ---- entries ---- */

static void finds_nothing_in_an_empty_table(void **state) {
    (void)state;
    for (int is_small = 0; is_small < 2; is_small++) {
        struct table table = {.is_small = is_small == 1};
        assert_int_equal(count_candidates(&table, 0), 0);
        assert_int_equal(count_candidates(&table, UINT64_MAX), 0);
        table_clear(&table);
        table_free(&table);
        table_free(&table); /* a zeroed struct by now */
        assert_int_equal(fake.bytes, 0);
    }
}

static void keeps_values_whole(void **state) {
    static const uint64_t values[] = {0,
                                      1,
                                      UINT32_MAX - 1,
                                      UINT32_MAX,
                                      (uint64_t)UINT32_MAX + 1,
                                      0x123456789abcdef0,
                                      UINT64_MAX - 1};
    struct model *model = model_new(false);
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) model_add(model, 42, values[i]);
    assert_search_is_exact(model, 42);
    model_free(model);
}

/* Where tags might run out of the array: the last home, the first one, and next to both. */
static void holds_adversarial_tags(void **state) {
    static const uint64_t rows[][2] = {
        /* {first tag, how many different ones} */
        {0, 1},          {0xffffffff, 1}, {0x80000000, 1},    {0xfffffff0, 16},
        {0, 16},         {0xf0000000, 2}, {0xfffffffe, 2},    {0x7fffffff, 2},
        {0xff000000, 7}, {0, 4096},       {0xfffff000, 4096},
    };
    (void)state;
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        struct model *model = model_new(true);
        unsigned calls = fake.calls;
        for (uint64_t i = 0; i < 1500; i++) {
            uint64_t tag = rows[row][0] + draw() % rows[row][1];
            model_add(model, (draw() << 32) | (uint32_t)tag, i);
            if (fake.calls != calls || i % 512 == 0) assert_search_is_exact(model, tag);
            calls = fake.calls;
        }
        for (uint64_t i = 0; i < rows[row][1]; i += 1 + rows[row][1] / 16)
            assert_search_is_exact(model, (uint32_t)(rows[row][0] + i));
        assert_search_is_exact(model, (uint32_t)(rows[row][0] - 1));
        model_free(model);
    }
}

/* Every growth of a part moves every entry: look for all of them after each. */
/* A table that is well filled by others, so that it does not grow for these. */
static void stops_before_the_array_ends(void **state) {
    (void)state;
    struct model *model = model_new(true);
    for (uint32_t i = 0; i < 800; i++) model_add(model, i * (UINT32_MAX / 800), i);
    for (uint32_t i = 0; i < 90; i++) {
        model_add(model, UINT32_MAX, 1000 + i);
        assert_int_equal(count_candidates(&model->table, UINT32_MAX), i + 1);
    }
    model_free(model);
}

static void loses_nothing_by_growing(void **state) {
    struct model *model = model_new(true);
    unsigned growths = 0;
    (void)state;
    for (uint64_t i = 0; i < MODEL_ENTRIES; i++) {
        unsigned calls = fake.calls;
        uint64_t hash = draw();
        assert_int_equal(table_reserve(&model->table, hash), 0);
        if (fake.calls != calls) {
            assert_all_found(model);
            growths++;
        }
        model_insert(model, hash, i);
    }
    assert_all_found(model);
    assert_true(growths >= 16); /* 8 to 1024 homes by doubling, and by quarters from there */
    model_free(model);
}

static void separates_parts(void **state) {
    struct model *model = model_new(false);
    (void)state;
    for (uint64_t part = 0; part < 256; part++)
        for (uint64_t i = 0; i < 3; i++)
            model_add(model, part << 56 | draw() >> 40 << 32 | 7, 3 * part + i);
    for (uint64_t part = 0; part < 256; part++) {
        assert_search_is_exact(model, part << 56 | 7);
        assert_int_equal(count_candidates(&model->table, part << 56 | 7), 3);
        assert_int_equal(count_candidates(&model->table, part << 56 | 8), 0);
    }
    model_free(model);
}

static void fills_one_part_of_many(void **state) {
    struct model *model = model_new(false);
    (void)state;
    for (uint64_t i = 0; i < 5000; i++) model_add(model, (uint64_t)0xab << 56 | draw() >> 8, i);
    assert_all_found(model);
    assert_int_equal(count_candidates(&model->table, (uint64_t)0xac << 56 | (uint32_t)draw()), 0);
    model_free(model);
}

/* ---- reservations ---- */

/* However many reservations are open, and wherever their entries go, no insert needs memory. The
 * worst place is the last home: everything spills into the tail. */
static void inserts_what_is_reserved(void **state) {
    static const uint64_t tags[] = {0xffffffff, 0, 0x80000000};
    (void)state;
    for (size_t row = 0; row <= sizeof tags / sizeof *tags; row++) {
        struct model *model = model_new(true);
        for (uint64_t round = 1, value = 0; round <= 1024; round *= 2) {
            uint64_t hashes[1024];
            for (uint64_t i = 0; i < round; i++) {
                hashes[i] = row < 3 ? tags[row] : draw();
                assert_int_equal(table_reserve(&model->table, hashes[i]), 0);
            }
            fake.refuses = true;
            for (uint64_t i = round; i > 0; i--) model_insert(model, hashes[i - 1], value++);
            fake.refuses = false;
            assert_all_found(model);
        }
        model_free(model);
    }
}

/* A reservation given back is free for another one: memory does not grow. */
static void takes_reservations_back(void **state) {
    struct model *model = model_new(true);
    (void)state;
    for (uint64_t i = 0; i < 100; i++) assert_int_equal(table_reserve(&model->table, i), 0);
    unsigned calls = fake.calls;
    for (unsigned round = 0; round < 1000; round++) {
        table_release(&model->table, round);
        assert_int_equal(table_reserve(&model->table, draw()), 0);
    }
    assert_int_equal(fake.calls, calls);
    for (uint64_t i = 0; i < 100; i++) table_release(&model->table, i);
    for (uint64_t i = 0; i < 100; i++) model_add(model, draw(), i);
    assert_int_equal(fake.calls, calls);
    assert_all_found(model);
    model_free(model);
}

static void survives_a_lack_of_memory(void **state) {
    struct model *model = model_new(true);
    unsigned refusals = 0;
    (void)state;
    for (uint64_t i = 0; i < 4000; i++) {
        uint64_t hash = draw();
        fake.refuses = true;
        int result = table_reserve(&model->table, hash);
        fake.refuses = false;
        if (result < 0) {
            refusals++;
            assert_all_found(model);
            assert_int_equal(table_reserve(&model->table, hash), 0);
        }
        model_insert(model, hash, i);
    }
    assert_true(refusals >= 12);
    assert_all_found(model);
    model_free(model);
}

/* ---- the whole ---- */

static void gives_memory_back_when_cleared(void **state) {
    struct model *model = model_new(true);
    size_t empty = fake.bytes;
    (void)state;
    for (uint64_t i = 0; i < 400; i++) model_add(model, draw(), i);
    for (uint64_t i = 0; i < 48; i++) /* 448 in all, which fill 7/8 of 512 homes */
        assert_int_equal(table_reserve(&model->table, draw()), 0);
    size_t small = fake.bytes;
    unsigned calls = fake.calls;
    table_clear(&model->table);
    assert_int_equal(fake.bytes, small); /* kept, and used again */
    assert_int_equal(model->table.count, 0);
    for (size_t i = 0; i < model->count; i++)
        assert_int_equal(count_candidates(&model->table, model->hashes[i]), 0);
    model->count = 0;
    for (uint64_t i = 0; i < 448; i++) model_add(model, draw(), i);
    assert_int_equal(fake.calls, calls);
    for (uint64_t i = 448; i < 3000; i++) model_add(model, draw(), i);
    assert_all_found(model);

    table_clear(&model->table);
    assert_int_equal(fake.bytes, empty);
    model->count = 0;
    model_add(model, 1, 2);
    assert_search_is_exact(model, 1);
    model_free(model);
}

static void stays_within_its_size(void **state) {
    struct table table = {0};
    uint64_t random = fake.random;
    (void)state;
    for (uint64_t n = 1; n <= 600000; n++) {
        uint64_t hash = draw();
        assert_int_equal(table_reserve(&table, hash), 0);
        table_insert(&table, hash, n);
        /* All parts are of about one size, so their average is never far from one part's worst. */
        if (n > 300000 && n % 8192 == 0)
            assert_true(fake.bytes < n * 12 * 10 / 7 + n / 2 + 256 * 200);
    }
    fake.random = random;
    for (uint64_t n = 1; n <= 600000; n++)
        if (!finds(&table, draw(), n)) fail_msg("entry %llu is lost", (unsigned long long)n);
    table_free(&table);
    assert_int_equal(fake.bytes, 0);
}

/* A hash that is likely to have been seen, to share a tag, or to be close to either end. */
static uint64_t draw_hash(const struct model *model) {
    switch (draw() % 5) {
    case 0: return model->count > 0 ? model->hashes[draw() % model->count] : draw();
    case 1: return draw() | 0xfffffff0;
    case 2: return draw() & ~(uint64_t)0xfffffff0;
    case 3: return draw() % 8 << 56 | draw() % 64;
    default: return draw();
    }
}

struct open_reservations {
    uint64_t hashes[256];
    size_t count;
};

static void reserve_or_use(struct model *model, struct open_reservations *open) {
    if (open->count == 0 || (open->count < 256 && draw() % 2 == 0)) {
        uint64_t hash = draw_hash(model);
        fake.refuses = draw() % 8 == 0;
        if (table_reserve(&model->table, hash) == 0) open->hashes[open->count++] = hash;
        fake.refuses = false;
        return;
    }
    size_t i = (size_t)(draw() % open->count);
    if (draw() % 8 == 0 || model->count == MODEL_ENTRIES)
        table_release(&model->table, open->hashes[i]);
    else
        model_insert(model, open->hashes[i], draw() % UINT64_MAX);
    open->hashes[i] = open->hashes[--open->count];
}

static void agrees_with_a_plain_array(void **state) {
    (void)state;
    for (unsigned run = 0; run < 6; run++) {
        struct model *model = model_new(run % 2 == 1);
        struct open_reservations open = {.count = 0};
        for (unsigned step = 0; step < 12000; step++) {
            reserve_or_use(model, &open);
            if (step % 16 == 0) assert_search_is_exact(model, draw_hash(model));
            if (step % 2048 == 0) assert_all_found(model);
            if (draw() % 8192 == 0) {
                table_clear(&model->table);
                model->count = open.count = 0;
            }
        }
        assert_all_found(model);
        model_free(model);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_as_the_paper_says),
        cmocka_unit_test(reads_nothing_behind_the_bytes),
        cmocka_unit_test(finds_nothing_in_an_empty_table),
        cmocka_unit_test(keeps_values_whole),
        cmocka_unit_test(holds_adversarial_tags),
        cmocka_unit_test(stops_before_the_array_ends),
        cmocka_unit_test(loses_nothing_by_growing),
        cmocka_unit_test(separates_parts),
        cmocka_unit_test(fills_one_part_of_many),
        cmocka_unit_test(inserts_what_is_reserved),
        cmocka_unit_test(takes_reservations_back),
        cmocka_unit_test(survives_a_lack_of_memory),
        cmocka_unit_test(gives_memory_back_when_cleared),
        cmocka_unit_test(stays_within_its_size),
        cmocka_unit_test(agrees_with_a_plain_array),
    };
    return cmocka_run_group_tests_name("table", tests, seed_generator, NULL);
}
