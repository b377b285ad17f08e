/*
 * listen.c: listening sockets.
 *
 *     text --parse_address--> struct address --bind_and_listen--> descriptor --describe--> text
 *                                                     systemd's --> descriptor --describe--> text
 *
 * It knows addresses, Unix socket files, what systemd passes and how to connect to a listener, and
 * not epoll.
 * What it refuses: host names (which address would be meant is the operator's to say) and ports
 * past 65535.
 */
#include "listen.h"
#include "slice.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define LISTEN_BACKLOG 4096 /* as much as the kernel's somaxconn allows */

struct address {
    union {
        struct sockaddr_storage any;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    };
    socklen_t size;
};

static void *ip_of(struct address *address) {
    bool is_v6 = address->any.ss_family == AF_INET6;
    return is_v6 ? (void *)&address->in6.sin6_addr : (void *)&address->in.sin_addr;
}

/* Reads unix:PATH. */
static bool parse_unix(const char *path, struct address *address) {
    size_t size = strlen(path);
    if (size == 0 || size >= sizeof address->un.sun_path) return false;
    address->un.sun_family = AF_UNIX;
    memcpy(address->un.sun_path, path, size);
    address->size = sizeof address->un;
    return true;
}

/* Reads ADDR:PORT, [ADDR]:PORT or unix:PATH. */
static bool parse_address(const char *text, struct address *address) {
    memset(address, 0, sizeof *address);
    if (strncmp(text, "unix:", 5) == 0) return parse_unix(text + 5, address);
    char host[INET6_ADDRSTRLEN + 2];
    uint64_t port;
    const char *colon = strrchr(text, ':');
    size_t size = colon ? (size_t)(colon - text) : 0;
    if (size == 0 || size >= sizeof host) return false;
    if (!slice_number(slice_of(colon + 1), UINT16_MAX, &port)) return false;
    memcpy(host, text, size);
    host[size] = '\0';
    bool is_v6 = host[0] == '[' && host[size - 1] == ']';
    if (is_v6) host[size - 1] = '\0';
    address->any.ss_family = is_v6 ? AF_INET6 : AF_INET;
    address->in.sin_port = htons((uint16_t)port); /* which is where sin6_port is */
    address->size = is_v6 ? sizeof address->in6 : sizeof address->in;
    return inet_pton(address->any.ss_family, host + is_v6, ip_of(address)) == 1;
}

/* Removes a socket that nobody listens on any more. Returns whether the path is free now. */
static bool remove_stale_socket(const struct sockaddr_un *un) {
    struct stat status;
    if (lstat(un->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode)) return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    bool is_refused =
        connect(fd, (const struct sockaddr *)un, sizeof *un) < 0 && errno == ECONNREFUSED;
    close(fd);
    errno = EADDRINUSE;
    return is_refused && unlink(un->sun_path) == 0;
}

static int bind_and_listen(int fd, const struct address *address) {
    const struct sockaddr *name = (const struct sockaddr *)&address->any;
    int on = 1, family = name->sa_family;
    if (family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    int result = bind(fd, name, address->size);
    if (result < 0 && errno == EADDRINUSE && family == AF_UNIX && remove_stale_socket(&address->un))
        result = bind(fd, name, address->size);
    return result < 0 ? -1 : listen(fd, LISTEN_BACKLOG);
}

/* Takes the descriptor of a socket that listens, and names it. */
static int describe(struct listener *listener, int fd) {
    struct address address = {.size = sizeof address.any};
    if (getsockname(fd, (struct sockaddr *)&address.any, &address.size) < 0) return -1;
    const char *path = address.un.sun_path;
    int on = 1, family = address.any.ss_family;
    bool is_v6 = family == AF_INET6, is_abstract = path[0] == '\0';
    char host[INET6_ADDRSTRLEN];
    if (family == AF_UNIX) {
        snprintf(listener->name, sizeof listener->name, "unix:%s%s", is_abstract ? "@" : "",
                 path + is_abstract);
    } else {
        if (!inet_ntop(family, ip_of(&address), host, sizeof host)) return -1;
        snprintf(listener->name, sizeof listener->name, is_v6 ? "[%s]:%u" : "%s:%u", host,
                 ntohs(address.in.sin_port)); /* which is where sin6_port is */
        /* Accepted sockets inherit it: a reply is one send, nothing is gained by holding it
         * back. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    listener->fd = fd;
    return 0;
}

/* Remembers which file a Unix socket has made. */
static int claim_path(struct listener *listener, const struct address *address) {
    struct stat status;
    if (address->any.ss_family != AF_UNIX) return 0;
    if (lstat(address->un.sun_path, &status) < 0) return -1;
    memcpy(listener->unix_path, address->un.sun_path, sizeof listener->unix_path);
    listener->unix_dev = status.st_dev;
    listener->unix_ino = status.st_ino;
    return 0;
}

bool listen_is_address(const char *text) {
    struct address address;
    return parse_address(text, &address);
}

/* A socket for an address, which is read into *address. Returns -1 with errno set if that cannot
 * be. */
static int open_socket(const char *text, int flags, struct address *address) {
    errno = EINVAL;
    if (!parse_address(text, address)) return -1;
    return socket(address->any.ss_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
}

/* Closes a socket, keeps errno, and returns -1. */
static int fail(int fd) {
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int listen_open(struct listener *listener, const char *text) {
    struct address address;
    *listener = (struct listener){.fd = -1};
    int fd = open_socket(text, SOCK_NONBLOCK, &address);
    if (fd < 0) return -1;
    if (bind_and_listen(fd, &address) < 0 || claim_path(listener, &address) < 0 ||
        describe(listener, fd) < 0)
        return fail(fd);
    return 0;
}

int listen_count_passed(void) {
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    uint64_t number, count = 0;
    bool is_ours = pid && fds && fds[0] && slice_number(slice_of(pid), INT32_MAX, &number) &&
                   number == (uint64_t)getpid();
    bool is_known = !is_ours || slice_number(slice_of(fds), INT16_MAX, &count);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return is_known ? (int)count : -1;
}

int listen_adopt(struct listener *listener, int fd) {
    int type = 0, listens = 0;
    socklen_t size = sizeof(int);
    *listener = (struct listener){.fd = -1};
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 || !listens ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return -1;
    return describe(listener, fd);
}

int listen_connect(const char *text, int limit_s) {
    struct address address;
    struct timeval limit = {.tv_sec = limit_s};
    int fd = open_socket(text, 0, &address);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* for connect, too */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return connect(fd, (struct sockaddr *)&address.any, address.size) == 0 ? fd : fail(fd);
}

void listen_close(struct listener *listener) {
    struct stat status;
    close(listener->fd);
    if (listener->unix_path[0] && lstat(listener->unix_path, &status) == 0 &&
        status.st_dev == listener->unix_dev && status.st_ino == listener->unix_ino)
        unlink(listener->unix_path);
}
