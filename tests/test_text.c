/*
 * test_text.c: text.c by itself: what is joined, what has no room, numbers, and a line of news.
 */
#include "text.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- Joined strings -------------------------------------------------------------------------- */

/* At each size: the beginning that fits, its NUL, and not a byte more. */
static void test_join_at_every_size(void **state) {
    static const char whole[] = "ab cde";
    char out[16];
    (void)state;
    for (size_t size = 1; size <= sizeof out; size++) {
        size_t length = size <= strlen(whole) ? size - 1 : strlen(whole);
        memset(out, '#', sizeof out);
        assert_int_equal(text_join(out, size, "ab", "", " ", "cde"), length);
        assert_memory_equal(out, whole, length);
        assert_int_equal(out[length], '\0');
        for (size_t i = length + 1; i < sizeof out; i++) assert_int_equal(out[i], '#');
    }
}

static void test_join_few(void **state) {
    char out[8] = "before";
    (void)state;
    assert_int_equal(text_join(out, sizeof out, ""), 0);
    assert_string_equal(out, "");
    assert_int_equal(text_join(out, sizeof out, "", "", ""), 0);
    assert_string_equal(out, "");
    assert_int_equal(text_join(out, sizeof out, "a"), 1);
    assert_string_equal(out, "a");
    assert_int_equal(text_join(out, sizeof out, "1234567"), 7);
    assert_string_equal(out, "1234567");
    assert_int_equal(text_join(out, sizeof out, "12345678"), 7);
    assert_string_equal(out, "1234567");
    assert_int_equal(text_join(out, 1, "12345678", "9"), 0);
    assert_string_equal(out, "");
}

static void test_fail(void **state) {
    char out[8] = "before";
    struct text_why why = {out, sizeof out};
    (void)state;
    assert_int_equal(text_fail(why, "line ", DECIMAL(7)), -1);
    assert_string_equal(out, "line 7");
    assert_int_equal(text_fail(why, "line ", DECIMAL(70000)), -1);
    assert_string_equal(out, "line 70");
    assert_int_equal(text_fail(why, ""), -1);
    assert_string_equal(out, "");
}

static void test_print(void **state) {
    char *text = NULL;
    size_t size = 0;
    (void)state;
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    text_print(file, "a");
    text_print(file, "", "b\n", "%s", DECIMAL(12));
    assert_int_equal(ferror(file), 0);
    assert_int_equal(fclose(file), 0);
    assert_string_equal(text, "ab\n%s12");
    free(text);
}

static void test_print_where_there_is_no_room(void **state) {
    FILE *full = fopen("/dev/full", "w");
    (void)state;
    assert_non_null(full);
    text_print(full, "a");
    assert_int_not_equal(fflush(full), 0);
    assert_int_not_equal(ferror(full), 0);
    fclose(full);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

static void test_decimal(void **state) {
    char printed[32];
    (void)state;
    assert_string_equal(DECIMAL(0), "0");
    assert_string_equal(DECIMAL(9), "9");
    assert_string_equal(DECIMAL(10), "10");
    assert_string_equal(DECIMAL(UINT32_MAX), "4294967295");
    assert_string_equal(DECIMAL(10000000000000000000u), "10000000000000000000");
    assert_string_equal(DECIMAL(UINT64_MAX), "18446744073709551615");
    for (uint64_t power = 1; power <= UINT64_MAX / 10; power *= 10)
        for (uint64_t number = power - 1; number <= power + 1; number++) {
            snprintf(printed, sizeof printed, "%llu", (unsigned long long)number);
            assert_string_equal(DECIMAL(number), printed);
        }
}

static void test_padded(void **state) {
    (void)state;
    assert_string_equal(PADDED(0, 1), "0");
    assert_string_equal(PADDED(0, 2), "00");
    assert_string_equal(PADDED(7, 1), "7");
    assert_string_equal(PADDED(7, 2), "07");
    assert_string_equal(PADDED(42, 2), "42");
    assert_string_equal(PADDED(123, 2), "123");
    assert_string_equal(PADDED(64, 6), "000064");
    assert_string_equal(PADDED(0, 20), "00000000000000000000");
    assert_string_equal(PADDED(UINT64_MAX, 1), "18446744073709551615");
    assert_string_equal(PADDED(UINT64_MAX, 20), "18446744073709551615");
}

/* Each number of a text has digits of its own. */
static void test_several_numbers(void **state) {
    char out[16];
    (void)state;
    text_join(out, sizeof out, DECIMAL(1970), "-", PADDED(1, 2), "-", PADDED(12, 2));
    assert_string_equal(out, "1970-01-12");
}

/* ---- A line of news -------------------------------------------------------------------------- */

/* Standard error is a datagram socket here, so that every write is seen by itself. */
struct news {
    int saved, sockets[2];
};

static int set_up(void **state) {
    struct news *news = *state = malloc(sizeof *news);
    if (!news || socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, news->sockets) < 0) return -1;
    news->saved = dup(STDERR_FILENO);
    return dup2(news->sockets[1], STDERR_FILENO) < 0 ? -1 : 0;
}

/* Gives standard error back, where cmocka tells what failed. */
static int tear_down(void **state) {
    struct news *news = *state;
    dup2(news->saved, STDERR_FILENO);
    close(news->saved);
    close(news->sockets[0]);
    close(news->sockets[1]);
    free(news);
    return 0;
}

/* The next write, as a string. */
static const char *next_write(const struct news *news, char *line, size_t size) {
    ssize_t n = recv(news->sockets[0], line, size - 1, 0);
    line[n > 0 ? n : 0] = '\0';
    return line;
}

static void test_tell(void **state) {
    char line[256];
    assert_int_equal(tell("one"), -1);
    assert_string_equal(next_write(*state, line, sizeof line), "roomkeyd: one\n");
    assert_int_equal(tell("%s: ", "", "number ", DECIMAL(UINT64_MAX)), -1);
    assert_string_equal(next_write(*state, line, sizeof line),
                        "roomkeyd: %s: number 18446744073709551615\n");
    assert_int_equal(tell(""), -1);
    assert_string_equal(next_write(*state, line, sizeof line), "roomkeyd: \n");
    assert_string_equal(next_write(*state, line, sizeof line), "");
}

/* A path has room in a line; what has none is cut off, but never the line's end. */
static void test_tell_at_length(void **state) {
    static const char begin[] = "roomkeyd: more: ";
    char text[2 * PATH_MAX], line[sizeof text];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    text[PATH_MAX - 1] = '\0';
    assert_int_equal(tell("more: ", text, ": is a path"), -1);
    next_write(*state, line, sizeof line);
    assert_memory_equal(line, begin, strlen(begin));
    assert_string_equal(line + strlen(begin) + PATH_MAX - 1, ": is a path\n");

    text[PATH_MAX - 1] = 'x'; /* now it is twice as long */
    assert_int_equal(tell("more: ", text, "behind"), -1);
    next_write(*state, line, sizeof line);
    size_t kept = strspn(line + strlen(begin), "x");
    assert_memory_equal(line, begin, strlen(begin));
    assert_in_range(kept, PATH_MAX, sizeof text - 2);
    assert_string_equal(line + strlen(begin) + kept, "\n");
    assert_string_equal(next_write(*state, line, sizeof line), "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join_at_every_size),
        cmocka_unit_test(test_join_few),
        cmocka_unit_test(test_fail),
        cmocka_unit_test(test_print),
        cmocka_unit_test(test_print_where_there_is_no_room),
        cmocka_unit_test(test_decimal),
        cmocka_unit_test(test_padded),
        cmocka_unit_test(test_several_numbers),
        cmocka_unit_test_setup_teardown(test_tell, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_tell_at_length, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
