/*
 * main.c: the process: signals, and the event loop.
 *
 * One thread serves all connections with epoll, edge-triggered; listeners and signals, of which a
 * pass may leave some for the next one, are level-triggered. A pass of the loop is a fixed sequence
 * of phases. That a reply waits for the disk is not left to their order: while a connection has a
 * ticket, its reply is not sent (conn.c, 1), and only collect settles tickets.
 *
 *     wait -> collect -> accept -> read -> deadlines -> hand over -> write -> close
 *      |         |          |       |          |            |           |        `- free the closed
 *      |         |          |       |          |            |           `- send, log what was asked
 *      |         |          |       |          |            `- the open batch to the committer
 *      |         |          |       |          `- 408 or close for those who were not ready
 *      |         |          |       `- receive, parse, apply; replies gather per connection
 *      |         |          `- signals, reloads; new connections, a bounded number
 *      |         `- settled tickets: their connections go on
 *      `- the only place that sleeps
 *
 * Three threads at most: this one; the store's committer, which wakes it through an eventfd; and
 * while users and rooms are reread, one that does that. What they share is in store.c and struct
 * reload. Signals are blocked in all of them and read from a descriptor like everything else: a
 * handler would need global state, and Linux lets no signal into a wait that finds events at once,
 * so a server that is never idle could not be stopped. (Process 1 has a handler for the time before
 * and after the loop: see end_at_signals.)
 *
 * To read the server from here: conn.c drives a connection, http.c parses it, api.c answers,
 * access.c says who may, store.c keeps.
 */
#include "access.h"
#include "clock.h"
#include "conn.h"
#include "listen.h"
#include "options.h"
#include "store.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DRAIN_MS          10000    /* after SIGTERM, to finish what is in flight */
#define ACCEPT_REST_MS    1000     /* without descriptors, before the listeners try again */
#define ACCEPT_TELL_MS    60000    /* before that is told again */
#define WATCHDOG_MAX_MS   86400000 /* a day, the longest sleep because of it */
#define RELOAD_RECHECK_MS 20       /* while users and rooms are reread: whether that is done */
#define EVENTS_PER_PASS   256
#define ACCEPTS_PER_PASS  256
#define REFUSALS_MAX      64 /* connections beyond the limit that are being told so */
#define DESCRIPTORS_KEPT  32 /* for listeners, log, directory, epoll, the manager, a reload */

struct listening {
    struct source source;
    struct listener listener;
};

/* A running reread of users and rooms. */
struct reload {
    const char *dir;
    const struct access *old; /* in force meanwhile */
    pthread_t thread;
    bool is_running, is_wanted;
    struct access_reload result; /* the thread's, until it has been joined */
};

/* The service manager that started this process, such as systemd. */
struct manager {
    int fd; /* a datagram socket; -1: there is no manager */
    struct sockaddr_un un;
    socklen_t un_size;
    int64_t watchdog_ms;    /* how often its watchdog is answered; 0: it has none */
    int64_t watchdog_at_ms; /* when that is due */
};

struct server {
    const struct options *options;
    struct manager manager;
    unsigned max_connections; /* of those asked for, as many as there are descriptors for */
    struct conns conns;
    struct listening listening[OPTIONS_LISTEN_MAX];
    int listening_count;
    bool is_resting; /* the listeners are not watched: there are no descriptors left */
    int64_t rest_until_ms, rest_tell_ms; /* when they try again; when that may be told again */
    int64_t round_ms; /* when the events of a round of waits began to be counted */
    unsigned round_events;
    int64_t drain_until_ms;
    struct source store_source, signal_source;
    struct store *store;
    struct access *access;
    struct reload reload;
};

/* ------------------------------------------------------------------------ the service manager */

/* Half of the time after which the manager's watchdog takes this process for hung, in milliseconds
 * (sd_watchdog_enabled(3)); 0 if there is no watchdog, or it is meant for another process. */
static int64_t read_watchdog(void) {
    const char *limit = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    uint64_t limit_us, number;
    if (!limit || !slice_number(slice_of(limit), UINT64_MAX, &limit_us) || limit_us == 0) return 0;
    bool is_ours =
        !pid || (slice_number(slice_of(pid), INT32_MAX, &number) && number == (uint64_t)getpid());
    uint64_t half_ms = limit_us / 2000;
    if (half_ms == 0) half_ms = 1;
    if (half_ms > WATCHDOG_MAX_MS) half_ms = WATCHDOG_MAX_MS;
    return is_ours ? (int64_t)half_ms : 0;
}

/* Finds the service manager that started this process (sd_notify(3)); there may be none. Its socket is
 * opened once and for all: a server that is out of descriptors is well, and has to be able to say so.
 */
static void find_manager(struct manager *manager) {
    const char *path = getenv("NOTIFY_SOCKET");
    size_t size = path ? strlen(path) : 0;
    *manager = (struct manager){.fd = -1, .un.sun_family = AF_UNIX};
    if (size < 2 || size > sizeof manager->un.sun_path || !strchr("/@", path[0])) return;
    memcpy(manager->un.sun_path, path, size);
    if (path[0] == '@') manager->un.sun_path[0] = '\0'; /* an abstract one */
    manager->un_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size);
    manager->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (manager->fd >= 0) manager->watchdog_ms = read_watchdog();
}

/* Tells the manager; where there is none, nobody. What it does not take at once is lost: it is news
 * of the service, not the service. Returns whether it was taken. */
static bool notify(const struct manager *manager, const char *news) {
    const struct sockaddr *name = (const struct sockaddr *)&manager->un;
    return manager->fd >= 0 &&
           sendto(manager->fd, news, strlen(news), 0, name, manager->un_size) >= 0;
}

/* Answers the watchdog when that is due. Only the loop calls this, after all phases of a pass, so that
 * a loop that hangs is silent. The answer does not depend on the committer: while that waits for a disk
 * that is stuck, the loop serves reads, and refuses sets when there is no room for more. A restart
 * would not make that better, because it would have to read the log from the same disk. */
static void answer_watchdog(struct manager *manager, int64_t now_ms) {
    if (manager->watchdog_ms == 0 || now_ms < manager->watchdog_at_ms) return;
    bool is_taken = notify(manager, "WATCHDOG=1");
    /* A manager that is busy is asked again before the other half of its time is over. */
    manager->watchdog_at_ms =
        now_ms + (is_taken ? manager->watchdog_ms : manager->watchdog_ms / 4 + 1);
}

/* ------------------------------------------------------------------------ phase: accept */

static bool watch_listeners(struct server *server, uint32_t events) {
    bool is_done = true;
    for (int i = 0; i < server->listening_count; i++)
        is_done &= conns_watch(&server->conns, &server->listening[i].source, EPOLL_CTL_MOD, events);
    return is_done;
}

/* Without descriptors or memory a listener would stay ready and the loop would spin: it rests until
 * a connection closes or some time has passed. */
static void rest_listeners(struct server *server, const char *why) {
    int64_t now_ms = server->conns.now_ms;
    if (now_ms >= server->rest_tell_ms) {
        tell("cannot accept connections for now: %s", why);
        server->rest_tell_ms = now_ms + ACCEPT_TELL_MS;
    }
    server->is_resting = true;
    server->rest_until_ms = now_ms + ACCEPT_REST_MS;
    watch_listeners(server, 0);
}

static void wake_listeners(struct server *server) {
    server->is_resting = !watch_listeners(server, EPOLLIN);
    server->rest_until_ms = server->conns.now_ms + ACCEPT_REST_MS;
}

/* Whether an error of accept is the trouble of one connection (accept(2)): the next may be well. */
static bool is_of_one(int error) {
    static const int errors[] = {EINTR,    ECONNABORTED, EPROTO,    ENOPROTOOPT,  EOPNOTSUPP,
                                 ENETDOWN, ENETUNREACH,  EHOSTDOWN, EHOSTUNREACH, ENONET};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i] == error) return true;
    return false;
}

/* Accepts a bounded number of connections. Returns whether there may be more. */
static bool accept_conns(struct server *server, const struct listening *listening) {
    for (int i = 0; i < ACCEPTS_PER_PASS && !server->is_resting; i++) {
        bool has_room = server->conns.refusal_count < REFUSALS_MAX;
        int fd =
            has_room ? accept4(listening->source.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
        if (fd >= 0) {
            unsigned served = server->conns.count - server->conns.refusal_count;
            conns_add(&server->conns, fd, listening->listener.is_tcp,
                      served >= server->max_connections);
        } else if (!has_room) {
            rest_listeners(server, "too many connections beyond the limit");
        } else if (errno == EAGAIN || errno == EINVAL) {
            return false; /* nobody waits; or it was shut down, as its event says */
        } else if (!is_of_one(errno)) {
            rest_listeners(server, strerror(errno));
        }
    }
    return !server->is_resting;
}

/* ------------------------------------------------------------------------ reload */

static void *reload_main(void *argument) {
    struct reload *reload = argument;
    access_reload(reload->dir, reload->old, &reload->result);
    return NULL;
}

/* Whether the last reading of a file has succeeded, for the metrics. */
static void note_reload(struct metrics_reload *noted, bool is_good) {
    noted->is_good = is_good;
    if (is_good) noted->good_s = (uint64_t)time(NULL);
}

/* Starts rereading users and rooms beside the loop, or remembers to when that is under way. Says
 * when: the manager looks for a reread that is later than its signal, by the same clock. */
static void start_reload(struct server *server) {
    struct reload *reload = &server->reload;
    char news[64];
    snprintf(news, sizeof news, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, (uint64_t)clock_us());
    notify(&server->manager, news);
    reload->is_wanted = reload->is_running;
    if (reload->is_running) return;
    reload->old = server->access;
    int error = pthread_create(&reload->thread, NULL, reload_main, reload);
    reload->is_running = error == 0;
    if (error == 0) return;
    tell("cannot reload: %s", strerror(error));
    note_reload(&server->conns.metrics.users_reload, false);
    note_reload(&server->conns.metrics.rooms_reload, false);
    notify(&server->manager, "READY=1");
}

/* Says what is wrong with a file, and what is in force now; what is taken is what the other one may
 * have taken away. */
static void tell_of_bad_file(const struct server *server, enum access_file bad, const char *name,
                             const char *other_name, const char *taken) {
    const struct access_reload *result = &server->reload.result;
    if (result->why[bad][0] == '\0') return;
    if (result->access)
        tell("%s; %s: %s that are gone are out of force, new ones wait until %s is mended",
             result->why[bad], other_name, taken, name);
    else
        tell("%s; users and rooms stay as they were", result->why[bad]);
}

static void finish_reload(struct server *server) {
    struct reload *reload = &server->reload;
    if (!reload->is_running || pthread_tryjoin_np(reload->thread, NULL) != 0) return;
    reload->is_running = false;
    if (reload->result.access) { /* first of all: to tell of it may have to wait for a reader */
        access_free(server->access);
        server->conns.api.access = server->access = reload->result.access;
    }
    struct metrics *metrics = &server->conns.metrics;
    note_reload(&metrics->users_reload, reload->result.why[ACCESS_USERS][0] == '\0');
    note_reload(&metrics->rooms_reload, reload->result.why[ACCESS_ROOMS][0] == '\0');
    tell_of_bad_file(server, ACCESS_USERS, "users", "rooms", "rooms and members");
    tell_of_bad_file(server, ACCESS_ROOMS, "rooms", "users", "tokens");
    if (reload->is_wanted)
        start_reload(server);
    else
        notify(&server->manager, "READY=1");
}

/* ------------------------------------------------------------------------ the loop */

static void close_listeners(struct server *server) {
    for (int i = 0; i < server->listening_count; i++) listen_close(&server->listening[i].listener);
    server->listening_count = 0;
    server->is_resting = false;
}

/* The first SIGTERM or SIGINT, or a listener that was shut down: whoever has connected by now is
 * still served, for as long as DRAIN_MS and CONN_LAST_CALL_MS say, and nobody else is. */
static void start_draining(struct server *server) {
    notify(&server->manager, "STOPPING=1");
    for (int i = 0; i < server->listening_count; i++)
        while (accept_conns(server, &server->listening[i])) continue;
    close_listeners(server);
    server->conns.is_draining = true;
    server->drain_until_ms = server->conns.now_ms + DRAIN_MS;
}

static int64_t earlier(int64_t wake_ms, bool is_set, int64_t at_ms) {
    return is_set && at_ms < wake_ms ? at_ms : wake_ms;
}

/* How long the loop may sleep, in milliseconds; -1 for ever. */
static int sleep_ms(struct server *server, int64_t now_ms) {
    int64_t wake_ms = conns_wake_ms(&server->conns);
    int tick_ms = store_tick(server->store, now_ms);
    wake_ms = earlier(wake_ms, tick_ms >= 0, now_ms + tick_ms);
    wake_ms = earlier(wake_ms, server->is_resting, server->rest_until_ms);
    wake_ms = earlier(wake_ms, server->conns.is_draining, server->drain_until_ms);
    wake_ms = earlier(wake_ms, server->reload.is_running, now_ms + RELOAD_RECHECK_MS);
    wake_ms = earlier(wake_ms, server->conns.log.size > 0, now_ms + ACCESS_LOG_RETRY_MS);
    wake_ms = earlier(wake_ms, server->manager.watchdog_ms > 0, server->manager.watchdog_at_ms);
    if (wake_ms == INT64_MAX) return -1;
    return wake_ms <= now_ms ? 0 : (int)(wake_ms - now_ms);
}

/* Moves the horizon (conn.c, 2) after a wait that was asked for at asked_ms and brought n events:
 * the last moment of which all who were ready then have been reported. A wait that brought fewer
 * than asked for has reported everybody. Otherwise the kernel's ready list is a queue: once it has
 * given as many events as there are sources, it has given all who stood in it when the round began.
 */
static void move_horizon(struct server *server, int64_t asked_ms, int n) {
    if (server->round_events == 0) server->round_ms = asked_ms;
    server->round_events += (unsigned)n;
    bool saw_all = n < EVENTS_PER_PASS;
    if (!saw_all && server->round_events < server->conns.count + OPTIONS_LISTEN_MAX + 2) return;
    server->conns.horizon_ms = saw_all ? asked_ms : server->round_ms;
    server->round_events = 0;
}

/* The only place that sleeps. Returns the number of events. */
static int wait_for_events(struct server *server, struct epoll_event *events) {
    int64_t asked_ms = clock_us() / 1000;
    int n = epoll_wait(server->conns.epoll_fd, events, EVENTS_PER_PASS, sleep_ms(server, asked_ms));
    if (n < 0 && errno != EINTR) {
        tell("epoll_wait: %s", strerror(errno));
        abort(); /* EBADF, EFAULT or EINVAL: a defect of this program */
    }
    server->conns.now_us = clock_us();
    server->conns.now_ms = server->conns.now_us / 1000;
    if (n < 0) return 0; /* stopped or traced: no signal of ours comes here, nor did an event */
    move_horizon(server, asked_ms, n);
    return n;
}

/* While sets wait for the disk nothing is urgent. Whoever else wants this processor goes first: a
 * client most likely, whose next requests will then be found together. Not so where a batch has
 * just been answered: whoever gives way is next in line behind everybody, so each of the replies
 * that follow would wake a client that takes the processor at once. */
static void give_way(const struct server *server, bool has_settled) {
    if (server->conns.lists[CONN_COMMIT].first && !has_settled) sched_yield();
}

static void handle_signals(struct server *server) {
    struct signalfd_siginfo signal;
    while (read(server->signal_source.fd, &signal, sizeof signal) == (ssize_t)sizeof signal) {
        if (signal.ssi_signo == SIGHUP) {
            access_log_open(&server->conns.log);
            start_reload(server);
        } else if (!server->conns.is_draining)
            start_draining(server);
        else
            _exit(1); /* asked twice: at once. What was acknowledged is on disk. */
    }
}

/* Before anything is answered: a server that is told to stop says so in its replies. */
static void accept_and_signals(struct server *server, const struct epoll_event *events, int n) {
    if (server->is_resting && server->conns.now_ms >= server->rest_until_ms) wake_listeners(server);
    for (int i = 0; i < n; i++) {
        struct source *source = events[i].data.ptr;
        bool may_accept = source->kind == SOURCE_LISTENER && !server->conns.is_draining;
        if (may_accept && events[i].events & EPOLLHUP) { /* whoever has passed it may do that */
            tell("a listening socket has been shut down: stopping");
            start_draining(server);
        } else if (may_accept) {
            accept_conns(server, (const struct listening *)source);
        } else if (source->kind == SOURCE_SIGNAL) {
            handle_signals(server);
        }
    }
}

static void read_conns(struct server *server, const struct epoll_event *events, int n) {
    conns_apply_held_back(&server->conns);
    for (int i = 0; i < n; i++) {
        struct source *source = events[i].data.ptr;
        if (source->kind == SOURCE_CONN)
            conns_handle_event(&server->conns, source, events[i].events);
    }
}

static bool is_finished(const struct server *server) {
    return server->conns.is_draining &&
           (server->conns.count == 0 || server->conns.now_ms >= server->drain_until_ms);
}

/* Serves until a signal has stopped it and what was in flight is done. */
static void run(struct server *server) {
    struct epoll_event events[EVENTS_PER_PASS];
    struct store_settled settled;
    while (!is_finished(server)) {
        int n = wait_for_events(server, events);
        bool has_settled = store_collect(server->store, &settled);
        if (has_settled) conns_settle(&server->conns, &settled);
        finish_reload(server);
        accept_and_signals(server, events, n);
        read_conns(server, events, n);
        conns_check_deadlines(&server->conns);
        store_hand_over(server->store);
        conns_write(&server->conns);
        access_log_write(&server->conns.log);
        if (conns_free_closed(&server->conns) > 0 && server->is_resting) wake_listeners(server);
        answer_watchdog(&server->manager, server->conns.now_ms);
        give_way(server, has_settled);
    }
}

/* ------------------------------------------------------------------------ the process */

/* Takes the listener in the next free place, which has just been opened, into the loop. */
static bool add_listener(struct server *server) {
    struct listening *listening = &server->listening[server->listening_count++];
    listening->source = (struct source){SOURCE_LISTENER, listening->listener.fd};
    return conns_watch(&server->conns, &listening->source, EPOLL_CTL_ADD, EPOLLIN);
}

/* Takes over the listeners that the service manager has opened; they outlive this process, and what
 * waits in them waits for the next one. */
static int adopt_listeners(struct server *server) {
    int count = listen_count_passed(), max = OPTIONS_LISTEN_MAX - server->options->listen_count;
    if (count < 0 || count > max)
        return tell("LISTEN_FDS is not a number from 0 to %" PRIu64, (uint64_t)max);
    for (int fd = LISTEN_PASSED_FD; fd < LISTEN_PASSED_FD + count; fd++) {
        struct listening *listening = &server->listening[server->listening_count];
        if (listen_adopt(&listening->listener, fd) == 0 && add_listener(server)) continue;
        return tell("LISTEN_FDS: descriptor %" PRIu64 " is no listening stream socket",
                    (uint64_t)fd);
    }
    return 0;
}

/* Opens all other listeners. If there are none at all: both loopback addresses, as `localhost` may
 * be either. */
static int open_listeners(struct server *server) {
    static const char *const defaults[] = {"127.0.0.1:3000", "[::1]:3000"};
    const struct options *options = server->options;
    if (adopt_listeners(server) < 0) return -1;
    bool is_default = options->listen_count + server->listening_count == 0;
    int count = is_default ? 2 : options->listen_count;
    for (int i = 0; i < count; i++) {
        struct listening *listening = &server->listening[server->listening_count];
        const char *text = is_default ? defaults[i] : options->listen[i];
        if (listen_open(&listening->listener, text) == 0 && add_listener(server)) continue;
        int error = errno;
        bool has_no_ipv6 = error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
        if (is_default && i == 1 && has_no_ipv6) continue;
        return tell("cannot listen on %s: %s%s", text, strerror(error),
                    listen_way_out(text, error));
    }
    return 0;
}

/* Says where the server listens, now that it does. */
static void print_ready_lines(const struct server *server) {
    for (int i = 0; i < server->listening_count; i++)
        printf("roomkeyd: listening on %s\n", server->listening[i].listener.name);
    fflush(stdout);
}

/* From now on the signals come to the loop. Until then, and when it is over, those that stop the
 * server end the process at once, as they do by default: a long replay and a stuck disk can be left.
 */
static int watch_signals(struct server *server) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    server->signal_source = (struct source){SOURCE_SIGNAL, fd};
    if (fd >= 0 && conns_watch(&server->conns, &server->signal_source, EPOLL_CTL_ADD, EPOLLIN))
        return 0;
    return tell("signalfd: %s", strerror(errno));
}

/* Raises the descriptor limit as far as it goes, and lowers the connection limit to what it
 * leaves. */
static void fit_limits(struct server *server) {
    struct rlimit limit;
    if (prlimit(0, RLIMIT_NOFILE, NULL, &limit) < 0) return;
    struct rlimit raised = {limit.rlim_max, limit.rlim_max};
    if (prlimit(0, RLIMIT_NOFILE, &raised, NULL) == 0) limit = raised;
    rlim_t kept = DESCRIPTORS_KEPT + REFUSALS_MAX;
    if (limit.rlim_cur <= 2 * kept) kept = limit.rlim_cur / 2;
    if (server->max_connections > limit.rlim_cur - kept)
        server->max_connections = (unsigned)(limit.rlim_cur - kept);
}

/* Does not push a client off its processor for every request it sends: as a batch process the
 * server runs when the client has to wait, and finds the others' requests beside the first one.
 * Less switching, and fuller batches. Somebody who has chosen another policy for it has reasons. */
static void prefer_gathering(void) {
    struct sched_param parameters;
    int policy;
    if (pthread_getschedparam(pthread_self(), &policy, &parameters) == 0 && policy == SCHED_OTHER)
        pthread_setschedparam(pthread_self(), SCHED_BATCH, &parameters);
}

/* Everything that has to be there before the first connection. Returns 0, or -1, reported. */
static int start(struct server *server) {
    char why[512] = "out of memory";
    const struct options *options = server->options;
    struct conns *conns = &server->conns;
    if (conns_init(conns) == 0) server->access = access_load(options->dir, why, sizeof why);
    if (server->access) server->store = store_open(options->dir, why, sizeof why);
    if (!server->store) return tell("%s", why);
    conns->api = (struct api){.access = server->access,
                              .store = server->store,
                              .origins = slice_of(options->cors),
                              .metrics = options->has_no_metrics ? NULL : &conns->metrics};
    conns->metrics.start_s = (uint64_t)time(NULL);
    note_reload(&conns->metrics.users_reload, true); /* otherwise it would not start */
    note_reload(&conns->metrics.rooms_reload, true);
    conns->log.path = options->access_log;
    if (access_log_open(&conns->log) < 0) return -1;
    conns->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->store_source = (struct source){SOURCE_STORE, store_event_fd(server->store)};
    server->reload.dir = options->dir;
    /* Edge-triggered: nobody reads the count, and every addition to it is an event all the same. */
    uint32_t edge = EPOLLIN | EPOLLET;
    if (conns->epoll_fd < 0 || !conns_watch(conns, &server->store_source, EPOLL_CTL_ADD, edge))
        return tell("epoll: %s", strerror(errno));
    return watch_signals(server) < 0 ? -1 : open_listeners(server);
}

/* Undoes start, however far that came; descriptors of the loop's own close with the process.
 * Returns whether the disk has never failed. */
static bool stop(struct server *server) {
    close_listeners(server);
    conns_free(&server->conns);
    access_log_write(&server->conns.log);
    if (server->conns.log.size > 0 && !server->conns.log.is_told)
        tell("access log: the last %zu bytes are lost: nobody takes them", server->conns.log.size);
    if (server->reload.is_running) {
        pthread_join(server->reload.thread, NULL);
        access_free(server->reload.result.access);
    }
    bool is_sound = !server->store || store_close(server->store) == 0;
    access_free(server->access);
    return is_sound;
}

/* The main job. Returns 0, or -1, reported. */
static int serve(const struct options *options) {
    struct server *server = calloc(1, sizeof *server);
    sigset_t mask;
    if (!server) return tell("out of memory");
    server->options = options;
    server->max_connections = options->max_connections;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    sigaddset(&mask, SIGHUP); /* it waits for the loop: what was read before it may be old */
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    find_manager(&server->manager);
    fit_limits(server);
    prefer_gathering();
    signal(SIGPIPE, SIG_IGN);
    int result = start(server);
    if (result == 0) {
        print_ready_lines(server);
        notify(&server->manager, "READY=1");
        run(server);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (!stop(server)) result = -1;
    free(server);
    return result;
}

static void end_at_once(int number) { _exit(128 + number); }

/* The kernel spares process 1 of a container the signals whose action it has not chosen itself: a
 * command that waits for its input, and a server in a long replay, would be deaf to Ctrl-C and to
 * `docker stop`. Process 1 chooses to end, as any other process does by default, with the exit code
 * that a shell has for that. What was told as done is on disk, and what was begun is no more than a
 * crash leaves. A signal that is ignored already, as nohup does it, stays so. */
static void end_at_signals(void) {
    static const int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action;
        if (sigaction(numbers[i], NULL, &action) < 0 || action.sa_handler != SIG_DFL) continue;
        action = (struct sigaction){.sa_handler = end_at_once};
        sigaction(numbers[i], &action, NULL);
    }
}

int main(int argc, char **argv) {
    struct options options;
    /* A closed one of these would become a file of ours, and what is printed would go there. */
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/", O_PATH) < 0) return 1;
    signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is an EFBIG, which is handled */
    if (getpid() == 1) end_at_signals();
    int code = options_read(argc, argv, &options);
    if (code != OPTIONS_RUN) return code;
    int result = options.run ? options.run(&options) : serve(&options);
    return result == 0 ? 0 : 1;
}
