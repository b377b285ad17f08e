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

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define FIRST_BOUND_US 64 /* of durations; the last one before infinity is 4.2 s */
#define US_PER_S       1000000

static const char *const endpoints[] = {
    "other",      "e2e.setRoomKeyID", "method.call/e2e.setRoomKeyID",
    "rooms.info", "healthz",          "metrics"};

static void observe(struct histogram *histogram, uint64_t first_bound, uint64_t value) {
    size_t i = 0;
    while (i < METRICS_BUCKETS - 1 && value > first_bound << i) i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

void metrics_count(struct metrics *metrics, const struct metrics_request *request) {
    uint64_t us = (uint64_t)(clock_us() - request->begun_us);
    metrics->requests[request->endpoint][request->status]++;
    metrics->existing += request->exists && request->status == 400;
    observe(&metrics->durations, FIRST_BOUND_US, us);
}

void metrics_count_commit(struct metrics *metrics, uint64_t sets, int64_t us) {
    observe(&metrics->commits, FIRST_BOUND_US, (uint64_t)us);
    observe(&metrics->batches, 1, sets);
}

/* ------------------------------------------------------------------------ text */

#define NUMBER  "%" PRIu64
#define DECIMAL NUMBER ".%06" PRIu64

__attribute__((format(printf, 2, 3))) static void put(struct metrics *metrics, const char *format,
                                                      ...) {
    size_t space = sizeof metrics->text - metrics->text_size;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(metrics->text + metrics->text_size, space, format, args);
    va_end(args);
    if ((size_t)n < space) metrics->text_size += (size_t)n;
}

static void put_family(struct metrics *metrics, const char *name, const char *type,
                       const char *help) {
    put(metrics, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(struct metrics *metrics, const char *name, const char *help, uint64_t value) {
    bool is_total = strcmp(name + strlen(name) - strlen("_total"), "_total") == 0;
    put_family(metrics, name, is_total ? "counter" : "gauge", help);
    put(metrics, "%s " NUMBER "\n", name, value);
}

static void put_histogram(struct metrics *metrics, const char *name, const char *help,
                          const struct histogram *histogram) {
    bool is_time = histogram != &metrics->batches;
    uint64_t bound = is_time ? FIRST_BOUND_US : 1, unit = is_time ? US_PER_S : 1, count = 0;
    put_family(metrics, name, "histogram", help);
    for (size_t i = 0; i < METRICS_BUCKETS - 1; i++, bound *= 2)
        put(metrics, "%s_bucket{le=\"" DECIMAL "\"} " NUMBER "\n", name, bound / unit, bound % unit,
            count += histogram->counts[i]);
    count += histogram->counts[METRICS_BUCKETS - 1];
    put(metrics, "%s_bucket{le=\"+Inf\"} " NUMBER "\n%s_count " NUMBER "\n%s_sum " DECIMAL "\n",
        name, count, name, count, name, histogram->sum / unit, histogram->sum % unit);
}

static void put_requests(struct metrics *metrics) {
    const char *name = "roomkeyd_http_requests_total";
    put_family(metrics, name, "counter", "Requests; code 499: the client had gone.");
    for (int at = 0; at < ENDPOINTS; at++)
        for (int status = 100; status < 600; status++)
            if (metrics->requests[at][status] > 0)
                put(metrics, "%s{endpoint=\"%s\",code=\"%d\"} " NUMBER "\n", name, endpoints[at],
                    status, metrics->requests[at][status]);
}

/* Their statuses say what came of sets, but for one that two outcomes share. */
static void put_sets(struct metrics *metrics) {
    static const char *const outcomes[] = {"success",      "already_exists",      "invalid",
                                           "unauthorized", "storage_unavailable", "client_gone"};
    const char *name = "roomkeyd_sets_total";
    static const unsigned statuses[] = {200, 400, 415, 401, 503, 499};
    const uint64_t *set = metrics->requests[AT_SET], *call = metrics->requests[AT_CALL];
    uint64_t by[6];
    for (size_t i = 0; i < 6; i++) by[i] = set[statuses[i]] + call[statuses[i]];
    by[2] += by[1] - metrics->existing;
    by[1] = metrics->existing;
    put_family(metrics, name, "counter", "Sets of a key ID, by what came of them.");
    for (size_t i = 0; i < 6; i++)
        put(metrics, "%s{outcome=\"%s\"} " NUMBER "\n", name, outcomes[i], by[i]);
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
    put_value(m, "roomkeyd_access_log_dropped_total", "Access log lines dropped.",
              m->lines_dropped);
    put_requests(m);
    put_sets(m);
    put_histogram(m, "roomkeyd_http_request_duration_seconds", "Request to reply.", &m->durations);
    put_histogram(m, "roomkeyd_commit_duration_seconds", "Write and sync.", &m->commits);
    put_histogram(m, "roomkeyd_commit_batch_size", "Sets in a batch.", &m->batches);
    return (struct slice){m->text, m->text_size};
}
