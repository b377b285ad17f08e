/*
 * listen.c: listening sockets.
 *
 *     text --parse_address--> struct address --bind, listen--> descriptor --describe--> text
 *                                                  systemd's --> descriptor --describe--> text
 *
 * It knows addresses, Unix socket files, what systemd passes and how to connect to a listener, and
 * not epoll.
 * What it refuses: host names (which address would be meant is the operator's to say) and ports
 * past 65535.
 */
#include "listen.h"
#include "slice.h"
#include "text.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define UNIX_PREFIX    "unix:"
#define LISTEN_BACKLOG 4096 /* as much as the kernel's somaxconn allows */

struct address {
    union {
        struct sockaddr_storage any; /* the largest */
        struct sockaddr sa;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    };
    socklen_t size;
};

/* A function that parses returns NULL, or what is wrong with the text, and what to write instead. */

static const char *parse_path(const char *path, struct address *address) {
    _Static_assert(sizeof address->un.sun_path == 108, "the message below says so");
    if (path[0] == '\0') return "unix: needs a path after it";
    if (path[0] == '@')
        return "an abstract socket is not made here, only taken over (LISTEN_FDS); a file of that "
               "name is unix:./@NAME";
    if (strlen(path) >= sizeof address->un.sun_path)
        return "the path is too long: at most 107 bytes";
    address->un.sun_family = AF_UNIX;
    address->size = sizeof address->un;
    snprintf(address->un.sun_path, sizeof address->un.sun_path, "%s", path);
    return NULL;
}

/* Why a host is none that can be listened on. */
static const char *host_fault(const char *host, size_t n, bool is_v6) {
    if (is_v6) return "what is in the brackets is no IPv6 address (a zone, as %eth0, is not taken)";
    if (n == 0 || strncmp(host, "*:", 2) == 0)
        return "no address before the port: write 127.0.0.1:PORT, or 0.0.0.0:PORT and [::]:PORT "
               "for any";
    if (strspn(host, "0123456789.") == n) return "an IPv4 address is four numbers from 0 to 255";
    return "a name is not looked up: write an address, such as 127.0.0.1:PORT";
}

/* Reads ADDR:PORT or [ADDR]:PORT. */
static const char *parse_ip(const char *text, struct address *address) {
    char host[INET6_ADDRSTRLEN];
    uint64_t port;
    bool is_v6 = text[0] == '[';
    const char *begin = text + is_v6;
    size_t n = strcspn(begin, is_v6 ? "]" : ":");
    const char *rest = begin + n; /* "]:PORT" or ":PORT" */
    if (text[0] == '/' || text[0] == '.') return "a path of a Unix socket needs unix: before it";
    if (strstr(text, "://")) return "this is a URL: write ADDR:PORT alone";
    if (is_v6 && *rest != ']') return "no ] after the IPv6 address";
    rest += is_v6;
    bool is_number = text[0] != '\0' && strspn(text, "0123456789") == strlen(text);
    if (is_number)
        return "a port alone: write 127.0.0.1:PORT, or 0.0.0.0:PORT and [::]:PORT for any";
    if (rest[0] != ':' || rest[1] == '\0') return "no port: write ADDR:PORT";
    if (strchr(rest + 1, ':')) return "an IPv6 address needs brackets: write [ADDR]:PORT";
    if (!slice_number(slice_of(rest + 1), UINT16_MAX, &port))
        return "the port is not a number from 0 to 65535";
    snprintf(host, sizeof host, "%.*s", (int)(n < sizeof host ? n : 0), begin);
    address->any.ss_family = is_v6 ? AF_INET6 : AF_INET;
    address->in.sin_port = htons((uint16_t)port); /* which is where sin6_port is */
    address->size = is_v6 ? sizeof address->in6 : sizeof address->in;
    void *ip = is_v6 ? (void *)&address->in6.sin6_addr : (void *)&address->in.sin_addr;
    bool is_ip = n < sizeof host && inet_pton(address->any.ss_family, host, ip) == 1;
    return is_ip ? NULL : host_fault(begin, n, is_v6);
}

static bool is_unix_path(const char *text) {
    return strncmp(text, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0;
}

static const char *parse_address(const char *text, struct address *address) {
    memset(address, 0, sizeof *address);
    return is_unix_path(text) ? parse_path(text + strlen(UNIX_PREFIX), address)
                              : parse_ip(text, address);
}

bool listen_ip_text(const struct sockaddr_storage *any, char text[LISTEN_IP_BYTES]) {
    bool is_v6 = any->ss_family == AF_INET6;
    const void *ip = is_v6 ? (const void *)&((const struct sockaddr_in6 *)any)->sin6_addr
                           : (const void *)&((const struct sockaddr_in *)any)->sin_addr;
    return inet_ntop(any->ss_family, ip, text, LISTEN_IP_BYTES) != NULL;
}

/* Removes a socket that nobody listens on any more. Whatever else is at the path stays. */
static int remove_stale_socket(const struct address *address) {
    struct stat status;
    if (lstat(address->un.sun_path, &status) < 0 || !S_ISSOCK(status.st_mode)) return 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    bool is_refused = connect(fd, &address->sa, address->size) < 0 && errno == ECONNREFUSED;
    close(fd);
    return is_refused ? unlink(address->un.sun_path) : 0;
}

/* Makes a listener of the descriptor of a socket that listens, and names it. */
static int describe(struct listener *listener, int fd) {
    struct address address = {.size = sizeof address.any};
    const char *path = address.un.sun_path;
    char host[LISTEN_IP_BYTES];
    *listener = (struct listener){.fd = fd};
    if (getsockname(fd, &address.sa, &address.size) < 0) return -1;
    int on = 1, protocol = 0, family = address.any.ss_family;
    socklen_t protocol_size = sizeof protocol;
    listener->is_tcp = getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &protocol_size) == 0 &&
                       protocol == IPPROTO_TCP;
    /* Accepted sockets inherit this and the next option. A passed socket may have been told to keep
     * quiet until more bytes are there than a request has. */
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &on, sizeof on);
    bool is_v6 = family == AF_INET6, is_abstract = path[0] == '\0';
    if (family == AF_UNIX) {
        snprintf(listener->name, sizeof listener->name, UNIX_PREFIX "%s%s", is_abstract ? "@" : "",
                 path + is_abstract);
        return 0;
    }
    if (!listen_ip_text(&address.any, host)) return -1;
    snprintf(listener->name, sizeof listener->name, is_v6 ? "[%s]:%u" : "%s:%u", host,
             (unsigned)ntohs(address.in.sin_port)); /* which is where sin6_port is */
    /* A reply is one send, nothing is gained by holding it back. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return 0;
}

const char *listen_fault(const char *text) {
    struct address address;
    return parse_address(text, &address);
}

static const char *path_way_out(const char *path, int error) {
    struct stat status;
    bool is_there = lstat(path, &status) == 0;
    switch (error) {
    case EADDRINUSE:
        if (!is_there || S_ISSOCK(status.st_mode)) return ": another process listens there";
        return S_ISDIR(status.st_mode)
                   ? ": that is a directory: name a file in it"
                   : ": a file is there that is no socket, and it is kept: name another one";
    case ENOENT: return ": the directory of the socket is not there: make it";
    case EACCES: return ": this user may not make or remove a file in that directory";
    default: return "";
    }
}

const char *listen_way_out(const char *text, int error) {
    if (is_unix_path(text)) return path_way_out(text + strlen(UNIX_PREFIX), error);
    switch (error) {
    case EADDRINUSE: return ": another process listens there (ss -ltnp shows which)";
    case EADDRNOTAVAIL: return ": no interface of this machine has this address";
    case EACCES: return ": a port below 1024 needs root, or CAP_NET_BIND_SERVICE";
    case EAFNOSUPPORT: return ": this machine has no IPv6";
    default: return "";
    }
}

/* A socket for an address, which is read into *address. Returns -1 with errno set if that cannot
 * be. */
static int open_socket(const char *text, int flags, struct address *address) {
    errno = EINVAL;
    if (parse_address(text, address)) return -1;
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
    int fd = open_socket(text, SOCK_NONBLOCK, &address), on = 1;
    if (fd < 0) return -1;
    bool is_unix = address.any.ss_family == AF_UNIX, is_v6 = address.any.ss_family == AF_INET6;
    if (!is_unix) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (is_v6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if ((is_unix && remove_stale_socket(&address) < 0) || bind(fd, &address.sa, address.size) < 0 ||
        listen(fd, LISTEN_BACKLOG) < 0 || describe(listener, fd) < 0 ||
        (is_unix && lstat(address.un.sun_path, &listener->made) < 0))
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
    return connect(fd, &address.sa, address.size) == 0 ? fd : fail(fd);
}

void listen_close(struct listener *listener) {
    const char *path = listener->name + strlen(UNIX_PREFIX);
    struct stat now, made = listener->made;
    close(listener->fd);
    if (S_ISSOCK(made.st_mode) && lstat(path, &now) == 0 && now.st_dev == made.st_dev &&
        now.st_ino == made.st_ino)
        unlink(path);
}
