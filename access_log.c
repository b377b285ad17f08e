/*
 * access_log.c: the access log: Combined Log Format, as Apache writes and escapes it.
 *
 *     192.0.2.7 - alice [23/Nov/2026:13:00:27 +0000] "POST /api/... HTTP/1.1" 200 16 "-" "curl/8"
 *     |           |      |                            |                        |   |  |   `- agent
 *     |           |      |                            |                        |   |  `- referrer
 *     |           |      |                            |                        |   `- body bytes, or -
 *     |           |      |                            |                        `- status
 *     |           |      |                            `- - for what was no request
 *     |           |      `- when it was answered
 *     |           `- the user ID, only once it is proved: - otherwise
 *     `- the client's address; - for a Unix socket
 *
 *     request --> line --(the ticket settles)--> add --> bytes --write, once a pass--> file
 *
 * Invariants: no field of a request gets in but these, so no token does; what a client sent is
 * escaped, so it can make neither a line nor a quote; a line is added whole or not at all.
 *
 * How a write never blocks. A file of our own is opened with O_NONBLOCK, which counts for pipes
 * (and keeps one without a reader from holding up the start). Standard output is shared with
 * whoever started us, and O_NONBLOCK would be theirs too; so it is asked first whether it is ready,
 * and then given PIPE_BUF bytes at most, for which a ready pipe, socket or terminal has room. A
 * regular file may still wait for its disk, as any write does that finds too many unwritten pages.
 */
#include "access_log.h"
#include "listen.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define FIXED_BYTES 256 /* of a line: address, date, quotes; more than enough */

/* Something is wrong, and may be for long. Always returns -1. */
static int complain(struct access_log *log, const char *why) {
    if (!log->is_told) tell("access log: %s: %s", log->path, why);
    log->is_told = true;
    return -1;
}

static bool is_shared(const struct access_log *log) { return strcmp(log->path, "-") == 0; }

int access_log_open(struct access_log *log) {
    const int flags = O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    if (!log->path) return 0;
    int fd = is_shared(log) ? STDOUT_FILENO : open(log->path, flags, 0640);
    if (fd < 0) return complain(log, strerror(errno));
    if (log->fd > STDERR_FILENO) close(log->fd);
    log->fd = fd;
    return 0;
}

/* ------------------------------------------------------------------------ a line */

/* The client's address, or "-". */
static char *put_peer(char *out, int fd) {
    struct sockaddr_storage peer = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof peer;
    char text[LISTEN_IP_BYTES];
    getpeername(fd, (struct sockaddr *)&peer, &size);
    return stpcpy(out, listen_ip_text(&peer, text) ? text : "-");
}

/* What a client sent, or "-". */
static char *put_escaped(char *out, struct slice text) {
    static const char digits[] = "0123456789abcdef";
    if (text.n == 0) return stpcpy(out, "-");
    for (size_t i = 0; i < text.n; i++) {
        unsigned char c = (unsigned char)text.p[i];
        if (c == '"' || c == '\\' || c == '\t') *out++ = '\\';
        if (c == '\t') c = 't';
        if (c >= ' ' && c <= '~')
            *out++ = (char)c;
        else
            out = stpcpy(out, (char[]){'\\', 'x', digits[c / 16], digits[c % 16], '\0'});
    }
    return out;
}

char *access_log_line(int fd, const struct http_request *request, struct slice user,
                      const char *date) {
    struct slice asked = SLICE(""), referer = asked, agent = asked;
    if (request) {
        asked = http_request_line(request);
        http_field(request, "referer", &referer);
        http_field(request, "user-agent", &agent);
    }
    char *line = malloc(FIXED_BYTES + 4 * (user.n + asked.n + referer.n + agent.n));
    if (!line) return NULL;
    char *out = put_escaped(stpcpy(put_peer(line, fd), " - "), user);
    char *day = stpcpy(out, " ["); /* then 01 Jan 1970 00:00:00 GMT, mended */
    memcpy(day, date + strlen("Thu, "), strlen("01 Jan 1970 00:00:00"));
    day[2] = day[6] = '/';
    day[11] = ':';
    out = stpcpy(day + strlen("01/Jan/1970:00:00:00"), " +0000] \"");
    out = stpcpy(put_escaped(out, asked), "\"") + 1; /* the first string ends here */
    out = stpcpy(put_escaped(stpcpy(out, " \""), referer), "\" \"");
    stpcpy(put_escaped(out, agent), "\"\n");
    return line;
}

/* ------------------------------------------------------------------------ the file */

void access_log_add(struct access_log *log, const char *line, int status, size_t body_bytes) {
    char *end = log->bytes + log->size; /* where there is room for a NUL at least */
    size_t room = sizeof log->bytes - log->size;
    char bytes[SLICE_NUMBER_BYTES + 1] = "-";
    if (body_bytes > 0) *slice_put_number(bytes, body_bytes) = '\0';
    int n =
        line ? snprintf(end, room, "%s %d %s%s", line, status, bytes, line + strlen(line) + 1) : 0;
    if (n > 0 && (size_t)n < room) {
        log->size += (size_t)n;
        return;
    }
    log->dropped++;
    complain(log, "lines are dropped: there is no room for them until others are written");
}

void access_log_write(struct access_log *log) {
    struct pollfd ready = {.fd = log->fd, .events = POLLOUT};
    if (log->size == 0) return;
    size_t done = 0, most = is_shared(log) ? PIPE_BUF : log->size;
    while (done < log->size && (!is_shared(log) || poll(&ready, 1, 0) == 1)) {
        size_t n = log->size - done;
        ssize_t written = write(log->fd, log->bytes + done, n < most ? n : most);
        if (written < 0 && errno != EAGAIN && errno != EINTR) complain(log, strerror(errno));
        if (written < 0) break;
        done += (size_t)written;
    }
    log->size -= done;
    memmove(log->bytes, log->bytes + done, log->size);
    if (log->size == 0) log->is_told = false;
}
