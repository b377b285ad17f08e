/*
 * access_log.h: a line for every request, in Combined Log Format, that never waits for its reader.
 *
 * A line is made when its request is answered and added when the reply is certain, which for a set
 * is later. Lines gather in a buffer that is written once a pass of the loop. Where the reader is
 * slow or the disk is full, whole lines are dropped, and that is said once. Not thread-safe.
 */
#ifndef ACCESS_LOG_H
#define ACCESS_LOG_H

#include "http.h"

#define ACCESS_LOG_BYTES    262144 /* that wait to be written, at most */
#define ACCESS_LOG_RETRY_MS 100    /* until access_log_write is worth another try */

/* Begins zeroed, but for path. */
struct access_log {
    const char *path; /* a file's, or "-" for standard output; NULL: nothing is logged */
    int fd;
    bool is_told;     /* that something is wrong: said once until all is written */
    uint64_t dropped; /* lines */
    size_t size;      /* of what waits to be written */
    char bytes[ACCESS_LOG_BYTES];
};

/* Opens the file, or opens it anew (after a rotation): it is appended to, and made, mode 0640, if
 * it is not there. A named pipe needs a reader. Returns 0, or -1, reported on standard error; then
 * what was open still is. May wait for the disk. */
int access_log_open(struct access_log *log);

/* Makes the line of a request that came through the socket fd at a date as http_date writes it. The
 * user is empty where nobody has proved who they are; a request that could not be read is NULL.
 * Returns two strings, one behind the other, for the caller to free: what stands before status and
 * size, and what stands behind. NULL when memory is short. */
char *access_log_line(int fd, const struct http_request *request, struct slice user,
                      const char *date);

/* Adds a line; drops it if there is no room for it or it is NULL. */
void access_log_add(struct access_log *log, const char *line, int status, size_t body_bytes);

/* Writes what can be written at once. Never waits for a reader; a regular file may wait for its
 * disk. */
void access_log_write(struct access_log *log);

#endif
