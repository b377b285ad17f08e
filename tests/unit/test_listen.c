/*
 * test_listen.c: what the environment says of passed sockets, and how long an address may be. All
 * else of listen.c is in test_process.py and test_service.py, over real sockets.
 */
#include "listen.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MINE "mine" /* stands for this process's ID */

static void set(const char *name, const char *value) {
    char pid[32];
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    if (value)
        setenv(name, strcmp(value, MINE) == 0 ? pid : value, 1);
    else
        unsetenv(name);
}

static void test_count_passed(void **state) {
    static const struct {
        const char *pid, *fds;
        int count;
    } rows[] = {
        {NULL, NULL, 0},
        {MINE, NULL, 0},
        {NULL, "1", 0},
        {"", "1", 0},
        {"1", "1", 0},
        {"x", "1", 0},
        {"-1", "1", 0},
        {MINE, "1", 1},
        {MINE, "16", 16},
        {MINE, "0", 0},
        {MINE, "", 0},
        {MINE, "-1", -1},
        {MINE, "x", -1},
        {MINE, "1x", -1},
        {MINE, "32767", 32767},
        {MINE, "32768", -1},
        {MINE, "4294967297", -1},
        {MINE, "99999999999999999999", -1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        set("LISTEN_PID", rows[i].pid);
        set("LISTEN_FDS", rows[i].fds);
        set("LISTEN_FDNAMES", "roomkeyd.socket");
        print_message("%s %s\n", rows[i].pid ? rows[i].pid : "-", rows[i].fds ? rows[i].fds : "-");
        assert_int_equal(listen_count_passed(), rows[i].count);
        assert_null(getenv("LISTEN_PID"));
        assert_null(getenv("LISTEN_FDS"));
        assert_null(getenv("LISTEN_FDNAMES"));
        assert_int_equal(listen_count_passed(), 0);
    }
}

/* A path is told to the kernel with its NUL, and an address has to fit the longest there is. */
static void test_longest_addresses(void **state) {
    char text[256] = "unix:";
    (void)state;
    for (size_t size = 1; size < 200; size++) {
        memset(text + 5, 'x', size);
        text[5 + size] = '\0';
        assert_int_equal(!listen_fault(text), size < sizeof((struct sockaddr_un *)0)->sun_path);
    }
    assert_null(listen_fault("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535"));
    for (size_t size = 1; size < 200; size++) {
        memset(text, '1', size);
        strcpy(text + size, ":80");
        assert_non_null(listen_fault(text));
    }
}

/* IP addresses are written as the C library does it, whatever their zeros. */
static void test_ip_text(void **state) {
    (void)state;
    struct sockaddr_storage any = {.ss_family = AF_UNIX};
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&any;
    char text[LISTEN_IP_BYTES], expected[INET6_ADDRSTRLEN];
    assert_false(listen_ip_text(&any, text));
    any.ss_family = AF_INET;
    ((struct sockaddr_in *)&any)->sin_addr.s_addr = htonl(0xc0000207);
    assert_true(listen_ip_text(&any, text));
    assert_string_equal(text, "192.0.2.7");
    any.ss_family = AF_INET6;
    for (unsigned zeros = 0; zeros < 256; zeros++) /* which of the words are zero */
        for (unsigned size = 0; size < 4; size++) {
            static const uint8_t words[][2] = {{0, 1}, {0, 0xc0}, {0xa, 0xbc}, {0xff, 0xff}};
            for (unsigned i = 0; i < 8; i++)
                memcpy(&in6->sin6_addr.s6_addr[2 * i], zeros >> i & 1 ? "\0" : (void *)words[size],
                       2);
            if ((zeros & 0x7f) == 0x3f) continue; /* obsolete ::192.0.2.7, which glibc knows */
            assert_true(listen_ip_text(&any, text));
            inet_ntop(AF_INET6, &in6->sin6_addr, expected, sizeof expected);
            assert_string_equal(text, expected);
        }
    inet_pton(AF_INET6, "::ffff:192.0.2.255", &in6->sin6_addr);
    assert_true(listen_ip_text(&any, text));
    assert_string_equal(text, "::ffff:192.0.2.255");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count_passed),
        cmocka_unit_test(test_longest_addresses),
        cmocka_unit_test(test_ip_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
