/*
 * test_text.c: text.c by itself: a reason, what of it has no room, and a line of news.
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

/* ---- A reason -------------------------------------------------------------------------------- */

/* At each size: the beginning that fits, its NUL, and not a byte more. */
static void test_fail_at_every_size(void **state) {
    static const char whole[] = "line 70000: ab";
    char out[20];
    (void)state;
    for (size_t size = 1; size <= sizeof out; size++) {
        size_t length = size <= strlen(whole) ? size - 1 : strlen(whole);
        memset(out, '#', sizeof out);
        assert_int_equal(text_fail((struct text_why){out, size}, "line %d: %s", 70000, "ab"), -1);
        assert_memory_equal(out, whole, length);
        assert_int_equal(out[length], '\0');
        for (size_t k = length + 1; k < sizeof out; k++) assert_int_equal(out[k], '#');
    }
    assert_int_equal(text_fail((struct text_why){out, sizeof out}, "%s", ""), -1);
    assert_string_equal(out, "");
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
    assert_int_equal(tell("%s: number %" PRIu64, "100 %s", UINT64_MAX), -1);
    assert_string_equal(next_write(*state, line, sizeof line),
                        "roomkeyd: 100 %s: number 18446744073709551615\n");
    assert_int_equal(tell("%s", ""), -1);
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
    assert_int_equal(tell("more: %s: is a path", text), -1);
    next_write(*state, line, sizeof line);
    assert_memory_equal(line, begin, strlen(begin));
    assert_string_equal(line + strlen(begin) + PATH_MAX - 1, ": is a path\n");

    text[PATH_MAX - 1] = 'x'; /* now it is twice as long */
    assert_int_equal(tell("more: %sbehind", text), -1);
    next_write(*state, line, sizeof line);
    size_t kept = strspn(line + strlen(begin), "x");
    assert_memory_equal(line, begin, strlen(begin));
    assert_in_range(kept, PATH_MAX, sizeof text - 2);
    assert_string_equal(line + strlen(begin) + kept, "\n");
    assert_string_equal(next_write(*state, line, sizeof line), "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail_at_every_size),
        cmocka_unit_test_setup_teardown(test_tell, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_tell_at_length, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
