/*
 * metrics.h: what the server has done so far, as numbers and as text for Prometheus.
 *
 * One struct of plain counters, for one thread, the loop's, so nothing here is atomic (32-bit
 * machines have no 64-bit atomics): what the committer measures comes with its batch. Nothing here
 * blocks, fails, or allocates.
 */
#ifndef METRICS_H
#define METRICS_H

#include "slice.h"
#include <stdint.h>

/* AT_OTHER: an unknown path, or what is no request. */
enum metrics_endpoint { AT_OTHER, AT_SET, AT_CALL, AT_INFO, AT_HEALTH, AT_METRICS, ENDPOINTS };
/* A request that has its reply. */
struct metrics_request {
    uint8_t endpoint; /* enum metrics_endpoint */
    bool exists;      /* a set whose room has a key ID */
    uint16_t status;  /* 100 to 599 */
    uint32_t body_bytes;
    int64_t begun_us; /* when the loop met it, on clock_us */
};

#define METRICS_BUCKETS    18
#define METRICS_TEXT_BYTES 20480 /* more than all series take, with the largest numbers */

struct histogram {
    uint64_t counts[METRICS_BUCKETS], sum; /* of microseconds, or of what is counted */
};

/* Of users or rooms: whether the last reading has succeeded, and when the last one that has. */
struct metrics_reload {
    bool is_good;
    uint64_t good_s; /* Unix time */
};

/* Begins zeroed. */
struct metrics {
    uint64_t requests[ENDPOINTS][600], existing; /* existing: sets that came too late */
    struct histogram durations, commits, batches;
    /* The owner's to set before metrics_text. */
    uint64_t connections, accepted, lines_dropped, key_ids, log_bytes, failed, lost, start_s;
    struct metrics_reload users_reload, rooms_reload;
    size_t text_size;
    char text[METRICS_TEXT_BYTES];
};

/* Counts a request whose reply is certain. */
void metrics_count(struct metrics *metrics, const struct metrics_request *request);

/* Counts a batch of so many sets that the committer is done with, and the time it took. */
void metrics_count_commit(struct metrics *metrics, uint64_t sets, int64_t us);

/* Everything in Prometheus' text format 0.0.4. The text lives in metrics until the next call. */
struct slice metrics_text(struct metrics *m);

#endif
