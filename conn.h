/*
 * conn.h: the connections: their buffers, their states, their deadlines.
 *
 * The loop (main.c) calls one function a phase; conn.c draws the states.
 */
#ifndef CONN_H
#define CONN_H

#include "access_log.h"
#include "api.h"

#include <sys/epoll.h>
#include <time.h>

/* Everything that epoll reports on begins with one of these. */
enum source_kind { SOURCE_LISTENER, SOURCE_CONN, SOURCE_STORE, SOURCE_SIGNAL };
struct source {
    enum source_kind kind;
    int fd;
};

enum conn_state {
    CONN_NEW,    /* about to become idle; nobody stays in it */
    CONN_IDLE,   /* no byte of a request has arrived */
    CONN_HEAD,   /* some of a request's head */
    CONN_BODY,   /* its head and some of its body */
    CONN_COMMIT, /* its last reply waits for a ticket */
    CONN_WRITE,  /* replies wait for the client to read */
    CONN_LATE,   /* its client has gone; what that has left waits for its turn */
    CONN_LINGER, /* our end is shut, the client's not yet */
    CONN_CLOSED, /* to be freed at the end of the pass */
    CONN_STATES,
};

#define CONN_SPARE_OUTBOXES 64

struct conn_list {
    struct conn *first, *last;
};

/* All connections and what they share. The owner begins with zeroes, sets epoll_fd, api, log.path
 * and metrics.start_s once, and the times after every wait. */
struct conns {
    int epoll_fd;
    struct api api;
    int64_t now_us, now_ms; /* a monotonic clock just after the last wait for events */
    int64_t horizon_ms;     /* whoever was ready by then has been reported: what deadlines go by */
    bool is_draining;       /* persist no more */

    unsigned count, refusal_count, late_count;
    struct conn_list lists[CONN_STATES];
    struct conn *to_write, **to_write_end; /* the queue of the write phase, and between two passes
                                              of those held back with requests received */
    char date[HTTP_DATE_BYTES];
    time_t date_s;
    struct api_reply reply; /* the one being made */
    struct metrics metrics;
    struct access_log log;
    struct inbox *scratch; /* takes what a recv brings; only a rest of it moves to a connection */
    struct outbox *spare_out[CONN_SPARE_OUTBOXES]; /* empty, for the next replies */
    unsigned spare_count;
};

/* Makes an empty set of a struct that is zeroed, but for what the owner sets. Returns 0, or -1 when
 * memory is short. conns_free closes every connection. */
int conns_init(struct conns *conns);
void conns_free(struct conns *conns);

/* Adds, changes or removes what epoll watches a source for. Returns false with errno set when the
 * kernel is out of memory or watches. */
bool conns_watch(const struct conns *conns, struct source *source, int operation, uint32_t events);

/* Takes over an accepted, non-blocking descriptor of a stream socket, whose protocol is TCP itself
 * or (is_tcp is false) another. A refusal is answered 503 and closed. Without memory or watches the
 * descriptor is closed. */
void conns_add(struct conns *conns, int fd, bool is_tcp, bool is_refusal);

/* The phases, in the order of a pass. None of them blocks, but for what api_answer may read. */
void conns_settle(struct conns *conns, const struct store_settled *settled);
void conns_apply_held_back(struct conns *conns);
void conns_handle_event(struct conns *conns, struct source *source, uint32_t events);
void conns_check_deadlines(struct conns *conns);
void conns_write(struct conns *conns);
unsigned conns_free_closed(struct conns *conns); /* returns how many */

/* When conns_check_deadlines next has something to do, on the clock of now_ms; 0 for at once,
 * INT64_MAX for never. */
int64_t conns_wake_ms(const struct conns *conns);

#endif
