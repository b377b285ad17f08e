/*
 * metrics.c: counters, histograms, and how Prometheus reads them (text format 0.0.4).
 *
 *     # HELP roomkeyd_sets_total Sets of a key ID, by what came of them.
 *     # TYPE roomkeyd_sets_total counter
 *     roomkeyd_sets_total{outcome="success"} 12
 *     |            |      |                   `- since the start
 *     |            |      `- labels: a few fixed values, never anything that a client sent
 *     |            `- base units, seconds and bytes; a counter ends in _total
 *     `- a prefix of its own
 *
 * A histogram's first bucket counts what is at most its first bound, and each next one what is at
 * most twice as much and in no bucket before, so counting is one addition; in the text every bucket
 * holds all smaller ones. Times are kept as whole microseconds: there is no floating point in this
 * server. A request's time runs from the pass of the loop that met its last byte until its reply
 * is certain: the wait for the disk and for one's turn is in it, the client's network is not.
 */
#include "metrics.h"
#include "clock.h"
#include "text.h"

#include <assert.h>
#include <stdarg.h>

#define FIRST_BOUND_US 64 /* of durations; the last one before infinity is 4.2 s */
#define US_PER_S       1000000

static const char *const endpoints[] = {
    [AT_OTHER] = "other",
    [AT_SET] = "e2e.setRoomKeyID",
    [AT_CALL] = "method.call/e2e.setRoomKeyID",
    [AT_INFO] = "rooms.info",
    [AT_HEALTH] = "healthz",
    [AT_METRICS] = "metrics",
};
_Static_assert(sizeof endpoints / sizeof *endpoints == ENDPOINTS, "each endpoint has a name");

static void observe(struct histogram *histogram, uint64_t first_bound, uint64_t value) {
    size_t i = 0;
    while (i < METRICS_BUCKETS - 1 && value > first_bound << i) i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

void metrics_count(struct metrics *metrics, const struct metrics_request *request) {
    assert(request->endpoint < ENDPOINTS && request->status >= 100 && request->status < 600);
    metrics->requests[request->endpoint][request->status]++;
    metrics->existing += request->exists && request->status == 400;
    observe(&metrics->durations, FIRST_BOUND_US, (uint64_t)(clock_us() - request->begun_us));
}

void metrics_count_commit(struct metrics *metrics, uint64_t sets, int64_t us) {
    observe(&metrics->commits, FIRST_BOUND_US, (uint64_t)us);
    observe(&metrics->batches, 1, sets);
}

/* ------------------------------------------------------------------------ text */

/* Adds text, formatted as by printf. All that there can be has room: see METRICS_TEXT_BYTES. */
__attribute__((format(printf, 2, 3))) static void put(struct metrics *m, const char *format, ...) {
    size_t room = sizeof m->text - m->text_size;
    va_list values;
    va_start(values, format);
    int n = vsnprintf(m->text + m->text_size, room, format, values);
    va_end(values);
    assert(n >= 0 && (size_t)n < room);
    m->text_size += (size_t)n;
}

static void put_family(struct metrics *m, const char *name, const char *type, const char *help) {
    put(m, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(struct metrics *m, const char *name, const char *help, uint64_t value) {
    bool is_total = strcmp(name + strlen(name) - strlen("_total"), "_total") == 0;
    put_family(m, name, is_total ? "counter" : "gauge", help);
    put(m, "%s %" PRIu64 "\n", name, value);
}

static void put_files(struct metrics *m, const char *name, const char *help, uint64_t users,
                      uint64_t rooms) {
    put_family(m, name, "gauge", help);
    put(m, "%s{file=\"users\"} %" PRIu64 "\n", name, users);
    put(m, "%s{file=\"rooms\"} %" PRIu64 "\n", name, rooms);
}

static void put_histogram(struct metrics *m, const char *name, const char *help,
                          const struct histogram *histogram) {
    bool is_time = histogram != &m->batches;
    uint64_t bound = is_time ? FIRST_BOUND_US : 1, unit = is_time ? US_PER_S : 1;
    uint64_t count = 0, sum = histogram->sum;
    put_family(m, name, "histogram", help);
    for (size_t i = 0; i < METRICS_BUCKETS - 1; i++, bound *= 2) {
        count += histogram->counts[i];
        put(m, "%s_bucket{le=\"%" PRIu64 ".%06" PRIu64 "\"} %" PRIu64 "\n", name, bound / unit,
            bound % unit, count);
    }
    count += histogram->counts[METRICS_BUCKETS - 1];
    put(m, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, count);
    put(m, "%s_count %" PRIu64 "\n", name, count);
    put(m, "%s_sum %" PRIu64 ".%06" PRIu64 "\n", name, sum / unit, sum % unit);
}

static void put_requests(struct metrics *m) {
    const char *name = "roomkeyd_http_requests_total";
    put_family(m, name, "counter", "Requests; code 499: the client had gone.");
    for (size_t at = 0; at < ENDPOINTS; at++)
        for (unsigned status = 100; status < 600; status++)
            if (m->requests[at][status] > 0)
                put(m, "%s{endpoint=\"%s\",code=\"%u\"} %" PRIu64 "\n", name, endpoints[at], status,
                    m->requests[at][status]);
}

/* Both endpoints' requests with a status: it says what came of a set, but for one that two outcomes
 * share. */
static uint64_t sets(const struct metrics *m, unsigned status) {
    return m->requests[AT_SET][status] + m->requests[AT_CALL][status];
}

static void put_outcome(struct metrics *m, const char *outcome, uint64_t count) {
    put(m, "roomkeyd_sets_total{outcome=\"%s\"} %" PRIu64 "\n", outcome, count);
}

struct slice metrics_text(struct metrics *m) {
    m->text_size = 0;
    put_family(m, "roomkeyd_build_info", "gauge", "Always 1.");
    put(m, "roomkeyd_build_info{version=\"" ROOMKEYD_VERSION "\"} 1\n");
    put_value(m, "process_start_time_seconds", "Start of the process, in Unix time.", m->start_s);
    put_value(m, "roomkeyd_connections", "Open connections.", m->connections);
    put_value(m, "roomkeyd_connections_accepted_total", "Connections accepted.", m->accepted);
    put_value(m, "roomkeyd_key_ids", "Rooms whose key ID is on disk.", m->key_ids);
    put_value(m, "roomkeyd_log_size_bytes", "Size of keys.log.", m->log_bytes);
    put_value(m, "roomkeyd_storage_failed", "1: sets are refused until restart.", m->failed);
    put_value(m, "roomkeyd_log_lost", "1: that is because somebody has changed keys.log.", m->lost);
    put_value(m, "roomkeyd_access_log_dropped_total", "Access log lines dropped.",
              m->lines_dropped);
    put_files(m, "roomkeyd_reload_successful", "1: the last reading found the file good.",
              m->users_reload.is_good, m->rooms_reload.is_good);
    put_files(m, "roomkeyd_reload_timestamp_seconds", "The last good reading, in Unix time.",
              m->users_reload.good_s, m->rooms_reload.good_s);
    put_requests(m);
    put_family(m, "roomkeyd_sets_total", "counter", "Sets of a key ID, by what came of them.");
    put_outcome(m, "success", sets(m, 200));
    put_outcome(m, "already_exists", m->existing);
    put_outcome(m, "invalid", sets(m, 400) + sets(m, 415) - m->existing);
    put_outcome(m, "unauthorized", sets(m, 401));
    put_outcome(m, "storage_unavailable", sets(m, 503));
    put_outcome(m, "client_gone", sets(m, 499));
    put_histogram(m, "roomkeyd_http_request_duration_seconds", "Request to reply.", &m->durations);
    put_histogram(m, "roomkeyd_commit_duration_seconds", "Write and sync.", &m->commits);
    put_histogram(m, "roomkeyd_commit_batch_size", "Sets in a batch.", &m->batches);
    return (struct slice){m->text, m->text_size};
}
