/*
 * test_metrics.c: what metrics.c counts, and that its text holds everything, however much that is.
 */
#include "clock.h"
#include "metrics.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define REQUEST "roomkeyd_http_request_duration_seconds"
#define COMMIT  "roomkeyd_commit_duration_seconds"
#define BATCH   "roomkeyd_commit_batch_size"

/* Every status that the server has, and a client that has gone. */
static const uint16_t STATUSES[] = {200, 204, 400, 401, 404, 405, 408, 413,
                                    414, 415, 417, 431, 499, 501, 503, 505};

static int set_up(void **state) {
    *state = calloc(1, sizeof(struct metrics));
    return *state == NULL;
}

static int tear_down(void **state) {
    free(*state);
    return 0;
}

/* The value of a series, which is there once. */
static double value_of(struct metrics *metrics, const char *series) {
    struct slice text = metrics_text(metrics);
    char *copy = malloc(text.n + 2), wanted[256];
    assert_non_null(copy);
    copy[0] = '\n';
    memcpy(copy + 1, text.p, text.n);
    copy[text.n + 1] = '\0';
    snprintf(wanted, sizeof wanted, "\n%s ", series);
    const char *at = strstr(copy, wanted);
    if (!at) fail_msg("no %s in%s", series, copy);
    assert_null(strstr(at + 1, wanted));
    double value = strtod(at + strlen(wanted), NULL);
    free(copy);
    return value;
}

static void count(struct metrics *metrics, enum metrics_endpoint endpoint, uint16_t status,
                  bool exists) {
    struct metrics_request request = {
        .endpoint = (uint8_t)endpoint, .exists = exists, .status = status, .begun_us = clock_us()};
    metrics_count(metrics, &request);
}

static void test_requests(void **state) {
    struct metrics *metrics = *state;
    for (int at = 0; at < ENDPOINTS; at++)
        for (int i = 0; i <= at; i++) count(metrics, (enum metrics_endpoint)at, 200, false);
    count(metrics, AT_INFO, 503, false);
#define OF(endpoint, code)                                                                         \
    value_of(metrics, "roomkeyd_http_requests_total{endpoint=\"" endpoint "\",code=\"" code "\"}")
    assert_true(OF("other", "200") == AT_OTHER + 1);
    assert_true(OF("e2e.setRoomKeyID", "200") == AT_SET + 1);
    assert_true(OF("method.call/e2e.setRoomKeyID", "200") == AT_CALL + 1);
    assert_true(OF("rooms.info", "200") == AT_INFO + 1);
    assert_true(OF("healthz", "200") == AT_HEALTH + 1);
    assert_true(OF("metrics", "200") == AT_METRICS + 1);
    assert_true(OF("rooms.info", "503") == 1);
    assert_true(value_of(metrics, REQUEST "_count") == 1 + 2 + 3 + 4 + 5 + 6 + 1);
}

static void test_sets_by_outcome(void **state) {
    static const struct {
        uint16_t status;
        bool exists;
        const char *outcome;
    } rows[] = {
        {200, false, "success"},      {400, true, "already_exists"},
        {400, false, "invalid"},      {415, false, "invalid"},
        {401, false, "unauthorized"}, {503, false, "storage_unavailable"},
        {499, false, "client_gone"},  {499, true, "client_gone"},
    };
    struct metrics *metrics = *state;
    char series[128];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(series, sizeof series, "roomkeyd_sets_total{outcome=\"%s\"}", rows[i].outcome);
        double before = value_of(metrics, series);
        count(metrics, AT_SET, rows[i].status, rows[i].exists);
        assert_true(value_of(metrics, series) == before + 1);
    }
    count(metrics, AT_SET, 204, false); /* OPTIONS */
    count(metrics, AT_INFO, 200, false);
    assert_true(value_of(metrics, "roomkeyd_sets_total{outcome=\"success\"}") == 1);
    assert_true(value_of(metrics, "roomkeyd_sets_total{outcome=\"already_exists\"}") == 1);
    assert_true(value_of(metrics, "roomkeyd_sets_total{outcome=\"invalid\"}") == 2);
}

/* A bound counts what is at most as much; the sum is in seconds. */
static void test_buckets(void **state) {
    struct metrics *metrics = *state;
    metrics_count_commit(metrics, 1, 0);
    metrics_count_commit(metrics, 2, 64);
    metrics_count_commit(metrics, 3, 65);
    metrics_count_commit(metrics, 65536, 4194304);
    metrics_count_commit(metrics, 65537, 4194305);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"0.000064\"}") == 2);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"0.000128\"}") == 3);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"2.097152\"}") == 3);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"4.194304\"}") == 4);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"+Inf\"}") == 5);
    assert_true(value_of(metrics, COMMIT "_count") == 5);
    double sum = value_of(metrics, COMMIT "_sum") - 8.388738;
    assert_true(sum < 1e-9 && sum > -1e-9);
    assert_true(value_of(metrics, BATCH "_bucket{le=\"1.000000\"}") == 1);
    assert_true(value_of(metrics, BATCH "_bucket{le=\"2.000000\"}") == 2);
    assert_true(value_of(metrics, BATCH "_bucket{le=\"4.000000\"}") == 3);
    assert_true(value_of(metrics, BATCH "_bucket{le=\"65536.000000\"}") == 4);
    assert_true(value_of(metrics, BATCH "_count") == 5);
    assert_true(value_of(metrics, BATCH "_sum") == 1 + 2 + 3 + 65536 + 65537);
}

static void test_past_every_bound(void **state) {
    struct metrics *metrics = *state;
    metrics_count_commit(metrics, UINT64_MAX, INT64_MAX);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"4.194304\"}") == 0);
    assert_true(value_of(metrics, COMMIT "_bucket{le=\"+Inf\"}") == 1);
    assert_true(value_of(metrics, BATCH "_bucket{le=\"+Inf\"}") == 1);
}

/* Each file has its own: one is good while the other is not. */
static void test_reloads(void **state) {
    struct metrics *metrics = *state;
    metrics->users_reload = (struct metrics_reload){true, 1732354800};
    metrics->rooms_reload = (struct metrics_reload){false, 1732354799};
    assert_true(value_of(metrics, "roomkeyd_reload_successful{file=\"users\"}") == 1);
    assert_true(value_of(metrics, "roomkeyd_reload_successful{file=\"rooms\"}") == 0);
    assert_true(value_of(metrics, "roomkeyd_reload_timestamp_seconds{file=\"users\"}") ==
                1732354800);
    assert_true(value_of(metrics, "roomkeyd_reload_timestamp_seconds{file=\"rooms\"}") ==
                1732354799);
}

/* Every series there can be, with the longest numbers, ends with the last line whole. */
static void test_the_longest_text(void **state) {
    struct metrics *metrics = *state;
    for (int at = 0; at < ENDPOINTS; at++)
        for (size_t i = 0; i < sizeof STATUSES / sizeof *STATUSES; i++)
            metrics->requests[at][STATUSES[i]] = UINT64_MAX;
    struct histogram *const histograms[] = {&metrics->durations, &metrics->commits,
                                            &metrics->batches};
    for (size_t i = 0; i < 3; i++) {
        histograms[i]->counts[0] = histograms[i]->sum = UINT64_MAX;
    }
    metrics->connections = metrics->accepted = metrics->lines_dropped = UINT64_MAX;
    metrics->key_ids = metrics->log_bytes = metrics->failed = metrics->lost =
        metrics->start_s = UINT64_MAX;
    metrics->users_reload = metrics->rooms_reload = (struct metrics_reload){true, UINT64_MAX};
    struct slice text = metrics_text(metrics);
    static const char end[] = "\n" BATCH "_sum 18446744073709551615.000000\n";
    assert_true(text.n < METRICS_TEXT_BYTES - 1024);
    assert_memory_equal(text.p + text.n - strlen(end), end, strlen(end));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_requests, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sets_by_outcome, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_buckets, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_past_every_bound, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reloads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_longest_text, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
