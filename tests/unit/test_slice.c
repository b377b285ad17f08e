/*
 * test_slice.c: runs of bytes: what is taken eight at a time against one at a time.
 */
#include "slice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define LENGTH 27 /* three words and a rest */

/* Bytes in memory of exactly their size, so that the sanitizer sees a look beyond them. */
static struct slice exactly(const char *bytes, size_t n) {
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, n);
    return (struct slice){copy, n};
}

static bool is_plain(char c, char but, char nor) {
    return c >= ' ' && c <= '~' && c != but && c != nor;
}

/* Every byte, in every place, between others of every kind that does no harm. */
static void plain_bytes_end_before_the_first_other(void **state) {
    (void)state;
    static const char pairs[][2] = {{0, 0}, {'"', '\\'}, {' ', ' '}, {' ', '#'}, {'\\', '\\'}};
    static const char fillers[] = {'!', '~', 'a', '\x5d'};
    for (size_t pair = 0; pair < sizeof pairs / sizeof *pairs; pair++)
        for (size_t filler = 0; filler < sizeof fillers; filler++)
            for (int byte = 0; byte < 256; byte++)
                for (size_t place = 0; place < LENGTH; place++) {
                    char but = pairs[pair][0], nor = pairs[pair][1], bytes[LENGTH];
                    memset(bytes, fillers[filler], sizeof bytes);
                    bytes[place] = (char)byte;
                    struct slice s = exactly(bytes, sizeof bytes);
                    size_t end = is_plain((char)byte, but, nor) ? LENGTH : place;
                    assert_int_equal(slice_plain(s, but, nor), end / 8 * 8);
                    free((void *)(uintptr_t)s.p);
                }
}

static void plain_bytes_need_not_fill_a_word(void **state) {
    (void)state;
    for (size_t n = 0; n <= LENGTH; n++) {
        struct slice s = exactly("abcdefghijklmnopqrstuvwxyz.", n);
        assert_int_equal(slice_plain(s, 0, 0), n / 8 * 8);
        assert_true(slice_is_id(s) == (n > 0));
        free((void *)(uintptr_t)s.p);
    }
}

/* A NUL or a broken sequence is found wherever it stands. */
static void an_id_is_utf8_without_nul(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        bool is_good;
    } rows[] = {{"\0", 1, false},
                {"\xc3\xa9", 2, true},
                {"\xc3", 1, false},
                {"\xed\xa0\x80", 3, false},
                {"\x7f", 1, true},
                {"\xf4\x90\x80\x80", 4, false},
                {"\xf0\x9f\x94\x91", 4, true},
                {"\x01", 1, true},
                {"\xc0\x80", 2, false}};
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
        for (size_t place = 0; place < LENGTH; place++)
            for (size_t after = 0; after < LENGTH; after++) {
                char bytes[2 * LENGTH + 4];
                memset(bytes, 'x', sizeof bytes);
                memcpy(bytes + place, rows[row].bytes, rows[row].n);
                struct slice s = exactly(bytes, place + rows[row].n + after);
                assert_true(slice_is_id(s) == rows[row].is_good);
                free((void *)(uintptr_t)s.p);
            }
}

static void a_number_is_digits_up_to_a_limit(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t max, number;
        bool is_good;
    } rows[] = {
        {"0", 0, 0, true},
        {"007", 9, 7, true},
        {"1", 0, 0, false},
        {"65535", 65535, 65535, true},
        {"65536", 65535, 0, false},
        {"655350", 65535, 0, false},
        {"18446744073709551615", UINT64_MAX, UINT64_MAX, true},
        {"18446744073709551616", UINT64_MAX, 0, false},
        {"99999999999999999999", UINT64_MAX, 0, false},
        {"", 9, 0, false},
        {"-1", 9, 0, false},
        {"+1", 9, 0, false},
        {" 1", 9, 0, false},
        {"1 ", 9, 0, false},
        {"0x1", 99, 0, false},
        {"\xb2", 9, 0, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t number;
        print_message("%s\n", rows[i].text);
        assert_true(slice_number(slice_of(rows[i].text), rows[i].max, &number) == rows[i].is_good);
        if (rows[i].is_good) assert_true(number == rows[i].number);
    }
}

static void a_number_is_written_as_printf_does(void **state) {
    char printed[32], written[SLICE_NUMBER_BYTES + 1];
    (void)state;
    for (uint64_t power = 1;; power *= 10) {
        const uint64_t numbers[] = {power - 1, power, power + 1, UINT64_MAX - power, UINT64_MAX};
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            int n = snprintf(printed, sizeof printed, "%llu", (unsigned long long)numbers[i]);
            memset(written, '#', sizeof written);
            assert_ptr_equal(slice_put_number(written, numbers[i]), written + n);
            assert_memory_equal(written, printed, (size_t)n);
            assert_int_equal(written[n], '#');
        }
        if (power > UINT64_MAX / 10) break;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_bytes_end_before_the_first_other),
        cmocka_unit_test(plain_bytes_need_not_fill_a_word),
        cmocka_unit_test(an_id_is_utf8_without_nul),
        cmocka_unit_test(a_number_is_digits_up_to_a_limit),
        cmocka_unit_test(a_number_is_written_as_printf_does),
    };
    return cmocka_run_group_tests_name("slice", tests, NULL, NULL);
}
