/*
 * conn.c: one connection after the other: bytes in, requests applied, replies out.
 *
 * A connection is in exactly one state, and in the list of that state:
 *
 *     IDLE --first byte--> HEAD --head complete--> BODY
 *       ^                   |                       |
 *       |                   `----whole request------'
 *       |                           |      |
 *       |                a set      |      |  anything else
 *       |             .-------------'      |          .--socket is full--> WRITE --.
 *       |          COMMIT --ticket settled-+--> replies sent <----all are taken----'
 *       |                                         |    |
 *       `-------------keep-alive------------------'    `---close---> LINGER
 *
 * A deadline leads from each of them but COMMIT to CLOSED, in HEAD and BODY by way of a 408. An
 * error leads there from all of them, and so does the departure of the client (7).
 *
 * Every list but COMMIT's has one duration for all, so it is ordered by deadline as it stands, and
 * its first connection is the one to judge. COMMIT has none: the disk takes the time it takes.
 *
 * What has to hold:
 *   1. While a connection has a ticket, no byte of the reply that rests on it is sent, and no
 *      further request of that connection is applied.
 *   2. A deadline is judged only against the horizon: the latest moment of which it is certain that
 *      whoever was ready then has been served since. So a process that was stopped for a while, or
 *      that has more ready sockets than fit in a pass, does not punish its clients.
 *   3. A connection is freed only in the last phase: no event of a pass can point at freed memory.
 *   4. A request is counted and logged once, when its reply is certain: with the status that the
 *      client gets, or 499 if it is known by then that the client has gone.
 *   5. Buffers are bounded: HTTP_MAX_REQUEST_BYTES in, OUT_LIMIT_BYTES and one reply out; an idle
 *      connection has none (CONN_SPARE_OUTBOXES empty ones, for whoever is next, belong to nobody).
 *   6. Nothing that has arrived is forgotten. A TCP socket is watched edge-triggered: epoll reports
 *      an arrival once, and does not look again at a socket that has been served. That suffices
 *      where recv has taken all that was there, which is certain if it left room in the buffer.
 *      Where something may be left, .watched is 0: when the connection may go on, epoll is asked
 *      anew, and then it looks. But not every recv takes what it has room for (.may_stop_short): on
 *      a TCP socket it stops at urgent data, which epoll reports as EPOLLPRI; on a Unix socket,
 *      after a descriptor that was sent with the bytes, and between the bytes of two senders; on
 *      others, at the end of a message. Such a socket is watched level-triggered: epoll reports it
 *      in every pass until it is empty.
 *   7. Requests that have arrived whole are applied, in order, also when their client has gone
 *      (.is_gone): after a close or a reset the kernel still has what came before it. Replies are
 *      dropped instead of sent, and the connection closes as soon as nothing is left to be applied.
 *      But nobody waits for that, so it must not hold up the others. A client that has gone has one
 *      turn more, like everybody; if that leaves something, it becomes a late one, and all late
 *      ones together have the turn of one. There are LATE_MAX of them at most; what further ones
 *      leave is dropped.
 */
#include "conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Deadlines, in milliseconds. A test build shortens the first four. */
#ifndef CONN_IDLE_MS
#define CONN_IDLE_MS  75000 /* between requests: longer than the usual 60 s of a proxy's pool */
#define CONN_HEAD_MS  10000 /* from a request's first byte to the end of its head */
#define CONN_BODY_MS  20000 /* from there to the end of its body: 64 KiB over a poor link */
#define CONN_WRITE_MS 20000 /* for a client to take the replies it asked for */
#endif
#define CONN_LINGER_MS 2000 /* for a client to see the end of the connection and close its own */

/* When the server stops: for a client that has just connected, and whose request is on its way. */
#define CONN_LAST_CALL_MS 500

#define OUT_LIMIT_BYTES 65536 /* of unsent replies; past them a connection is not parsed further */
#define APPLY_PER_PASS  16    /* requests of a connection: a long pipeline is no long pass */
#define LATE_MAX        256   /* clients that have gone and have left something to be applied */
#define CLIENT_GONE     499   /* nginx's status for a client that did not wait for the reply */
#define IN_FIRST_BYTES  2048  /* of room in a connection's input buffer when it first needs one */
#define OUT_FIRST_BYTES 1280  /* likewise for replies; enough for one of nearly all */

/* What a connection waits for. Edge-triggered (EPOLLET): what is there when it is asked for, or
 * comes later, is told once, and costs no second look by the kernel when it has been dealt with.
 * EPOLLPRI: something urgent is there. EPOLLRDHUP: the client has shut its end. Errors, and the end
 * of both directions (EPOLLHUP), are told unasked. */
#define INPUT       (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET)
#define INPUT_LEVEL (EPOLLIN | EPOLLRDHUP) /* told in every pass until it is taken */
#define OUTPUT      (EPOLLOUT | EPOLLET)
#define NOTHING     EPOLLET

/* Bytes received and not yet used up, with the state of their parsing. */
struct inbox {
    struct http_request request;
    size_t begin, end, capacity; /* bytes[begin] is the first byte of a request */
    char bytes[];
};

/* Replies that are not sent yet. */
struct outbox {
    size_t size, capacity;
    char bytes[];
};

struct conn {
    struct source source;
    uint8_t state;            /* enum conn_state */
    bool peer_done;           /* the client has shut its end, and all before that is received */
    bool is_gone;             /* nobody can get a reply any more */
    bool is_late;             /* what is left of it is applied in its turn, without events */
    bool may_stop_short;      /* a recv may leave bytes in the kernel for which it had room */
    bool closing;             /* close when the replies are sent */
    bool has_input;           /* the inbox may hold a whole request: serve before receiving more */
    bool is_queued;           /* in the queue of the write phase */
    bool is_refusal;          /* beyond the limit */
    bool is_http10;           /* the last request was; that it persists has to be confirmed */
    uint32_t watched;         /* one of the four above, or 0: to be asked for again */
    struct conn *prev, *next; /* in the list of its state */
    struct conn *next_queued; /* in the queue of the write phase */
    int64_t since_ms;         /* when it entered its state */
    struct slice origin;      /* of the last request, whole or not: who may read its reply */
    uint64_t ticket;          /* what the last reply rests on, 0 if nothing */
    size_t reply_begin;       /* while there is a ticket: where that reply begins in the outbox */
    struct metrics_request asked; /* of the last reply: what is counted once it is certain */
    char *line;                   /* and logged; NULL when all are, or nothing is */
    struct inbox *in;             /* NULL when empty */
    struct outbox *out;           /* NULL when empty */
};

/* ------------------------------------------------------------------------ lists and buffers */

/* Milliseconds that a connection may stay in a state; 0 for ever. */
static const int limits_ms[CONN_STATES] = {
    [CONN_IDLE] = CONN_IDLE_MS,   [CONN_HEAD] = CONN_HEAD_MS,     [CONN_BODY] = CONN_BODY_MS,
    [CONN_WRITE] = CONN_WRITE_MS, [CONN_LINGER] = CONN_LINGER_MS,
};

/* When the first connection in a state will have been there for too long; INT64_MAX for never, and
 * for one that the write phase is to look at first. */
static int64_t deadline_ms(const struct conns *conns, int state) {
    const struct conn *conn = conns->lists[state].first;
    int limit_ms = conns->is_draining && state == CONN_IDLE ? CONN_LAST_CALL_MS : limits_ms[state];
    return conn && !conn->is_queued && limit_ms > 0 ? conn->since_ms + limit_ms + 1 : INT64_MAX;
}

/* Moves a connection to the end of a state's list, also when it is in that already: its time in the
 * state begins now. A new one has no neighbours, and leaves an empty list as it was. */
static void enter(struct conns *conns, struct conn *conn, enum conn_state state) {
    struct conn_list *from = &conns->lists[conn->state], *to = &conns->lists[state];
    *(conn->prev ? &conn->prev->next : &from->first) = conn->next;
    *(conn->next ? &conn->next->prev : &from->last) = conn->prev;
    conn->prev = to->last;
    conn->next = NULL;
    *(to->last ? &to->last->next : &to->first) = conn;
    to->last = conn;
    conn->state = (uint8_t)state;
    conn->since_ms = conns->now_ms;
}

static void queue_write(struct conns *conns, struct conn *conn) {
    if (conn->is_queued) return;
    conn->is_queued = true;
    conn->next_queued = NULL;
    *conns->to_write_end = conn;
    conns->to_write_end = &conn->next_queued;
}

/* The last reply is certain: it is counted and logged. */
static void note(struct conns *conns, struct conn *conn) {
    if (conn->is_gone) {
        conn->asked.status = CLIENT_GONE;
        conn->asked.body_bytes = 0;
    }
    metrics_count(&conns->metrics, &conn->asked);
    if (!conns->log.path) return;
    access_log_add(&conns->log, conn->line, conn->asked.status, conn->asked.body_bytes);
    conns->metrics.lines_dropped = conns->log.dropped;
    free(conn->line);
    conn->line = NULL;
}

static void close_conn(struct conns *conns, struct conn *conn) {
    conns->late_count -= conn->is_late;
    conn->is_late = false;
    conn->is_gone = true;
    if (conn->ticket) note(conns, conn);
    conn->ticket = 0; /* what it stands for happens all the same; nobody is there to be told */
    enter(conns, conn, CONN_CLOSED);
}

bool conns_watch(const struct conns *conns, struct source *source, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(conns->epoll_fd, operation, source->fd, &event) == 0;
}

/* Whether the kernel has bytes of the client's that are not received yet. */
static bool has_more(const struct conn *conn) {
    char byte;
    return recv(conn->source.fd, &byte, 1, MSG_PEEK) > 0;
}

static void watch_conn(struct conns *conns, struct conn *conn, uint32_t events) {
    if (conn->watched == events) return;
    conn->watched = events;
    if (!conns_watch(conns, &conn->source, EPOLL_CTL_MOD, events)) close_conn(conns, conn);
}

static uint32_t input_of(const struct conn *conn) {
    return conn->may_stop_short ? INPUT_LEVEL : INPUT;
}

static void watch_input(struct conns *conns, struct conn *conn) {
    watch_conn(conns, conn, input_of(conn));
}

static size_t unsent(const struct conn *conn) { return conn->out ? conn->out->size : 0; }

/* Room for n more bytes of replies. Returns where to put them, or NULL without memory: then the
 * connection closes, since its next reply cannot be given. */
static char *reserve_out(struct conns *conns, struct conn *conn, size_t n) {
    if (!conn->out && conns->spare_count > 0) conn->out = conns->spare_out[--conns->spare_count];
    size_t used = unsent(conn), capacity = used + n > OUT_FIRST_BYTES ? used + n : OUT_FIRST_BYTES;
    if (!conn->out || conn->out->capacity < capacity) {
        struct outbox *grown = realloc(conn->out, sizeof *grown + capacity);
        if (!grown) {
            close_conn(conns, conn);
            return NULL;
        }
        *grown = (struct outbox){used, capacity};
        conn->out = grown;
    }
    return conn->out->bytes + used;
}

/* The Date field's value, made anew once a second. */
static const char *current_date(struct conns *conns) {
    time_t now = time(NULL);
    if (now != conns->date_s) http_date(now, conns->date);
    conns->date_s = now;
    return conns->date;
}

/* Adds the reply in conns->reply. */
static void add_reply(struct conns *conns, struct conn *conn) {
    struct http_reply *reply = &conns->reply.http;
    assert(!conn->ticket); /* the reply that has one is the last */
    conn->asked.exists = conns->reply.exists;
    conn->asked.status = (uint16_t)reply->status;
    conn->asked.body_bytes = reply->head_only ? 0 : (uint32_t)reply->body.n;
    char *to = reserve_out(conns, conn, HTTP_MAX_REPLY_HEAD_BYTES + reply->body.n);
    if (!to) return;
    reply->close = conn->closing;
    reply->confirm_keep_alive = conn->is_http10;
    reply->origin = conn->origin;
    reply->varies_by_origin = conns->api.origins.n > 0 && conns->api.origins.p[0] != '*';
    conn->reply_begin = conn->out->size;
    conn->out->size += http_write_reply(to, reply, current_date(conns));
    assert(conn->out->size <= conn->out->capacity);
    conn->ticket = conns->reply.ticket;
    queue_write(conns, conn);
}

/* Adds the reply to a request, or to what is none (NULL), and sees to it that it is noted. The time
 * of the request ends here; the write phase gives the connection the state that follows. */
static void reply_to(struct conns *conns, struct conn *conn, const struct http_request *request) {
    enter(conns, conn, CONN_IDLE);
    conn->asked.endpoint = conns->reply.endpoint;
    conn->asked.begun_us = conns->now_us;
    if (conns->log.path)
        conn->line = access_log_line(conn->source.fd, request,
                                     request ? conns->api.user : SLICE(""), current_date(conns));
    add_reply(conns, conn);
    if (!conn->ticket) note(conns, conn);
}

/* Ends a connection with an error reply, to a request that is not whole or to none (NULL). */
static void refuse(struct conns *conns, struct conn *conn, const struct http_request *request,
                   int status, const char *why) {
    api_refuse(status, why, &conns->reply);
    conns->reply.http.head_only = request && request->is_head;
    conn->closing = true;
    reply_to(conns, conn, NULL);
}

/* ------------------------------------------------------------------------ phase: read */

/* Answers a request. is_last: nothing of a next one is in the inbox. A server that stops says so in
 * its last reply to each client, the one after which nothing is left to answer, here or in the
 * kernel. */
static void answer(struct conns *conns, struct conn *conn, const struct http_request *request,
                   bool is_last) {
    api_answer(&conns->api, request, &conns->reply);
    conn->closing = !request->keep_alive || (conns->is_draining && is_last && !has_more(conn));
    conn->is_http10 = request->is_http10;
    reply_to(conns, conn, request);
}

static bool may_apply(const struct conn *conn) {
    return conn->state != CONN_CLOSED && !conn->ticket && !conn->closing &&
           unsent(conn) < OUT_LIMIT_BYTES;
}

static void add_continue(struct conns *conns, struct conn *conn) {
    char *to = reserve_out(conns, conn, sizeof HTTP_100_CONTINUE - 1);
    if (!to) return;
    memcpy(to, HTTP_100_CONTINUE, sizeof HTTP_100_CONTINUE - 1);
    conn->out->size += sizeof HTTP_100_CONTINUE - 1;
}

/* Applies requests from an inbox until it has no whole one, the connection may not go on, or it is
 * the others' turn. */
static void apply(struct conns *conns, struct conn *conn, struct inbox *in) {
    struct http_request *request = &in->request;
    assert(in->begin <= in->end && in->end <= in->capacity);
    conn->has_input = false;
    for (int i = 0; i < APPLY_PER_PASS && may_apply(conn) && in->begin < in->end; i++) {
        size_t size = in->end - in->begin;
        enum http_progress progress = http_parse(request, in->bytes + in->begin, &size);
        in->end = in->begin + size;
        conn->origin = api_origin(&conns->api, request); /* if this is all, a 408's */
        if (progress == HTTP_CONTINUE) add_continue(conns, conn);
        if (progress == HTTP_ERROR) refuse(conns, conn, request, request->status, request->why);
        if (progress != HTTP_DONE) return;
        in->begin += request->size;
        answer(conns, conn, request, in->begin == in->end);
        http_request_init(request);
    }
    conn->has_input = in->begin < in->end;
}

static struct inbox *empty_inbox(struct inbox *in) {
    in->begin = in->end = 0;
    http_request_init(&in->request);
    return in;
}

/* An inbox of a connection's own that holds what is in `in`, with room for more: while a request
 * is not complete, it is smaller than the largest. */
static struct inbox *copy_inbox(const struct inbox *in) {
    size_t size = in->end - in->begin, capacity = 2 * size + IN_FIRST_BYTES;
    if (capacity > HTTP_MAX_REQUEST_BYTES) capacity = HTTP_MAX_REQUEST_BYTES;
    struct inbox *copy = malloc(sizeof *copy + capacity);
    if (!copy) return NULL;
    *copy = (struct inbox){.request = in->request, .end = size, .capacity = capacity};
    memcpy(copy->bytes, in->bytes + in->begin, size);
    return copy;
}

/* Applies what is in the inbox (the connection's or the shared scratch) and keeps what is left,
 * where there is room for more. The connection is in the queue of the write phase. */
static void apply_and_keep(struct conns *conns, struct conn *conn, struct inbox *in) {
    apply(conns, conn, in);
    bool is_empty = in->begin == in->end, has_room = in == conn->in && in->end < in->capacity;
    if (!is_empty && has_room) return;
    struct inbox *rest = is_empty ? NULL : copy_inbox(in);
    if (!is_empty && !rest) close_conn(conns, conn);
    free(conn->in);
    conn->in = rest;
}

static void receive(struct conns *conns, struct conn *conn) {
    struct inbox *in = conn->in ? conn->in : empty_inbox(conns->scratch);
    size_t room = in->capacity - in->end;
    assert(room > 0); /* or a recv of 0 bytes would be taken for the end */
    assert(!conn->ticket && !conn->has_input && !conn->peer_done);
    ssize_t n = recv(conn->source.fd, in->bytes + in->end, room, 0);
    bool has_failed = n < 0 && errno != EAGAIN && errno != EINTR;
    if (has_failed || (n == 0 && conn->state == CONN_LINGER)) close_conn(conns, conn);
    conn->peer_done = n == 0 || (n < 0 && conn->is_late); /* its requests are still answered */
    queue_write(conns, conn);
    if (n > 0 && conn->state != CONN_LINGER) { /* what a refused client still sends is dropped */
        in->end += (size_t)n;
        apply_and_keep(conns, conn, in);
    }
    /* Nothing is left to be told of where there was room for more and a request was complete. */
    if (n < 0 || (size_t)n == room || conn->in) conn->watched = 0;
}

/* Requests that were received but held back: for a ticket, for replies to be taken first, or
 * because the others had not had their turn. Who has some is in the queue by now. Of the late ones
 * it is one's turn. */
void conns_apply_held_back(struct conns *conns) {
    struct conn *late = conns->lists[CONN_LATE].first;
    for (struct conn *conn = conns->to_write; conn; conn = conn->next_queued)
        if (conn->has_input && conn->state != CONN_CLOSED && !conn->is_late)
            apply_and_keep(conns, conn, conn->in);
    if (!late) return;
    queue_write(conns, late);
    if (late->has_input)
        apply_and_keep(conns, late, late->in);
    else
        receive(conns, late);
}

void conns_handle_event(struct conns *conns, struct source *source, uint32_t events) {
    struct conn *conn = (struct conn *)source;
    bool has_ended = events & (EPOLLERR | EPOLLHUP); /* it has failed, or both ends are shut */
    if (conn->state == CONN_CLOSED || conn->is_late) return;
    if (events & EPOLLPRI) conn->may_stop_short = true;
    if (has_ended && conn->state != CONN_LINGER) {
        conn->is_gone = true;
        queue_write(conns, conn); /* where it closes, unless something is still to be applied */
    } else if (has_ended && (events & EPOLLERR || !(events & EPOLLIN))) {
        /* It lingers no longer: to close before all input was read would have been a reset. */
        close_conn(conns, conn);
        return;
    }
    if (events & EPOLLOUT) queue_write(conns, conn);
    if (!(events & EPOLLIN)) return;
    bool may_go_on =
        !conn->ticket && conn->state != CONN_WRITE && !conn->peer_done && !conn->has_input;
    if (may_go_on) receive(conns, conn);
    /* What stays unread is asked for again when the connection may go on; so is the end of the
     * input, which may stand right after what was received. Until then a level-triggered socket
     * would be told of in every pass. */
    if (!may_go_on && conn->may_stop_short)
        watch_conn(conns, conn, NOTHING);
    else if (!may_go_on || events & EPOLLRDHUP)
        conn->watched = 0;
}

/* ------------------------------------------------------------------------ phase: collect */

/* Resumes the connections whose tickets have settled: they are all in COMMIT, since every pass ends
 * with giving each connection that has a ticket that state. */
void conns_settle(struct conns *conns, const struct store_settled *settled) {
    assert(!conns->to_write || !conns->to_write->ticket); /* the pass before has ended */
    if (settled->sets > 0) metrics_count_commit(&conns->metrics, settled->sets, settled->commit_us);
    for (struct conn *conn = conns->lists[CONN_COMMIT].first, *next; conn; conn = next) {
        next = conn->next;
        assert(conn->ticket && conn->out && conn->reply_begin < conn->out->size);
        if (conn->ticket > settled->up_to) continue;
        conn->ticket = 0;
        if (!settled->ok) {
            api_storage_unavailable(&conns->reply);
            conn->out->size = conn->reply_begin;
            add_reply(conns, conn);
        }
        note(conns, conn);
        if (conn->state != CONN_CLOSED) enter(conns, conn, CONN_IDLE);
        queue_write(conns, conn);
    }
}

/* ------------------------------------------------------------------------ phase: deadlines */

static void expire(struct conns *conns, struct conn *conn) {
    assert(!conn->ticket && !conn->is_late); /* there is no deadline for the server itself */
    if (conn->state == CONN_WRITE || !conn->in || !conn->in->request.begun)
        close_conn(conns, conn); /* it is owed nothing, or does not take it */
    else
        refuse(conns, conn, &conn->in->request, 408, "the request did not arrive in time");
}

/* Judges those who have been in a state for too long. */
void conns_check_deadlines(struct conns *conns) {
    for (int state = 0; state < CONN_STATES; state++)
        while (deadline_ms(conns, state) <= conns->horizon_ms)
            expire(conns, conns->lists[state].first);
}

/* ------------------------------------------------------------------------ phase: write */

/* Sends what may be sent. What nobody can get any more is as good as sent. */
static void send_replies(struct conns *conns, struct conn *conn) {
    struct outbox *out = conn->out;
    size_t end = conn->ticket ? conn->reply_begin : out->size, sent = 0;
    assert(end <= out->size);
    while (sent < end && !conn->is_gone) {
        ssize_t n = send(conn->source.fd, out->bytes + sent, end - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0 && errno != EPIPE && errno != ECONNRESET) close_conn(conns, conn);
        conn->is_gone = n < 0;
        sent += n < 0 ? 0 : (size_t)n;
    }
    if (conn->is_gone) sent = end;
    out->size -= sent;
    conn->reply_begin -= conn->ticket ? sent : 0;
    /* What was sent makes room, or an endless pipeline of sets would make an endless outbox. */
    memmove(out->bytes, out->bytes + sent, out->size);
    if (out->size > 0) return;
    conn->out = NULL;
    if (conns->spare_count < CONN_SPARE_OUTBOXES && out->capacity == OUT_FIRST_BYTES)
        conns->spare_out[conns->spare_count++] = out;
    else
        free(out);
}

/* Shuts our end after the last reply and waits for the client to shut its own. Closing at once
 * while the client still sends would reset the connection, and the reset may overtake the reply
 * (RFC 9112, 9.6). */
static void linger(struct conns *conns, struct conn *conn) {
    assert(!conn->ticket && unsent(conn) == 0 && !conn->peer_done);
    free(conn->in);
    conn->in = NULL;
    conn->has_input = false;
    enter(conns, conn, CONN_LINGER);
    if (shutdown(conn->source.fd, SHUT_WR) < 0)
        close_conn(conns, conn);
    else
        watch_input(conns, conn);
}

/* Whether there is nothing left to do: no reply is to be sent, and no request will be applied. The
 * rest of a request, if there is one, will never come. A late one finds its end by receiving. */
static bool is_over(const struct conn *conn, bool is_free) {
    bool has_reader = !conn->is_gone && !(is_free && conn->peer_done);
    if (has_reader || conn->closing) return !has_reader;
    return !conn->has_input && (conn->peer_done || (!conn->is_late && !has_more(conn)));
}

/* Makes a client that has gone a late one, or drops what it has left. */
static void postpone(struct conns *conns, struct conn *conn) {
    if (conns->late_count == LATE_MAX) {
        close_conn(conns, conn);
        return;
    }
    conn->is_late = true;
    conns->late_count++;
    watch_conn(conns, conn, NOTHING);
}

/* Gives a connection the state that follows from what it holds. */
static void choose_state(struct conns *conns, struct conn *conn) {
    bool is_free = !conn->ticket && unsent(conn) == 0;
    if (is_over(conn, is_free))
        close_conn(conns, conn);
    else if (conn->is_gone && !conn->is_late)
        postpone(conns, conn);
    if (conn->state == CONN_CLOSED) return;
    if (is_free && conn->closing) {
        linger(conns, conn);
    } else if (is_free && conn->has_input && !conn->is_late) {
        queue_write(conns, conn); /* in the next pass, and to be applied before that */
    } else {
        enum conn_state state = conn->ticket                  ? CONN_COMMIT
                                : conn->is_late               ? CONN_LATE
                                : !is_free                    ? CONN_WRITE
                                : !conn->in                   ? CONN_IDLE
                                : conn->in->request.head_done ? CONN_BODY
                                                              : CONN_HEAD;
        if (conn->state != state) enter(conns, conn, state);
        if (state == CONN_WRITE) watch_conn(conns, conn, OUTPUT);
        if (is_free && !conn->is_late) watch_input(conns, conn);
    }
}

void conns_write(struct conns *conns) {
    struct conn *conn = conns->to_write, *next;
    conns->to_write = NULL;
    conns->to_write_end = &conns->to_write;
    for (; conn; conn = next) {
        next = conn->next_queued;
        conn->is_queued = false;
        if (conn->state == CONN_LINGER) watch_input(conns, conn);
        if (conn->state == CONN_CLOSED || conn->state == CONN_LINGER) continue;
        if (conn->out) send_replies(conns, conn);
        if (conn->state != CONN_CLOSED) choose_state(conns, conn);
    }
}

/* ------------------------------------------------------------------------ phase: close */

unsigned conns_free_closed(struct conns *conns) {
    unsigned freed = 0;
    for (struct conn *conn = conns->lists[CONN_CLOSED].first, *next; conn; conn = next, freed++) {
        next = conn->next;
        assert(!conn->is_queued && !conn->line);
        conns->refusal_count -= conn->is_refusal;
        close(conn->source.fd);
        free(conn->in);
        free(conn->out);
        free(conn);
    }
    conns->lists[CONN_CLOSED] = (struct conn_list){NULL, NULL};
    conns->metrics.connections = conns->count -= freed;
    return freed;
}

/* ------------------------------------------------------------------------ all of them */

int conns_init(struct conns *conns) {
    conns->to_write_end = &conns->to_write;
    conns->scratch = malloc(sizeof *conns->scratch + HTTP_MAX_REQUEST_BYTES);
    if (!conns->scratch) return -1;
    conns->scratch->capacity = HTTP_MAX_REQUEST_BYTES;
    return 0;
}

void conns_free(struct conns *conns) {
    for (struct conn *conn = conns->to_write; conn; conn = conn->next_queued)
        conn->is_queued = false; /* nobody's turn comes any more */
    for (int state = 0; state < CONN_CLOSED; state++)
        while (conns->lists[state].first) close_conn(conns, conns->lists[state].first);
    conns_free_closed(conns);
    while (conns->spare_count > 0) free(conns->spare_out[--conns->spare_count]);
    free(conns->scratch);
}

void conns_add(struct conns *conns, int fd, bool is_tcp, bool is_refusal) {
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn) {
        close(fd);
        return;
    }
    conn->source = (struct source){SOURCE_CONN, fd};
    conn->may_stop_short = !is_tcp;
    conn->watched = input_of(conn);
    conn->is_refusal = is_refusal;
    conn->origin = api_origin(&conns->api, NULL);
    enter(conns, conn, CONN_IDLE);
    conns->metrics.connections = ++conns->count;
    conns->metrics.accepted++;
    conns->refusal_count += is_refusal;
    if (!conns_watch(conns, &conn->source, EPOLL_CTL_ADD, conn->watched))
        close_conn(conns, conn);
    else if (is_refusal)
        refuse(conns, conn, NULL, 503, "too many connections");
}

int64_t conns_wake_ms(const struct conns *conns) {
    bool is_held_back = conns->to_write || conns->lists[CONN_LATE].first; /* between two passes */
    int64_t wake_ms = is_held_back ? 0 : INT64_MAX;
    for (int state = 0; state < CONN_STATES; state++)
        if (deadline_ms(conns, state) < wake_ms) wake_ms = deadline_ms(conns, state);
    return wake_ms;
}
