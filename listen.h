/*
 * listen.h: listening sockets, from the address as text to the name in the ready line.
 */
#ifndef LISTEN_H
#define LISTEN_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

struct listener {
    int fd;           /* non-blocking, close-on-exec */
    bool is_tcp;      /* TCP itself: not Unix, nor another protocol of IP, as MPTCP is */
    struct stat made; /* a Unix socket's file, if listen_open has made it: only what is still ours
                         is unlinked at the end; otherwise zeroes */
    /* The address as listen_open takes it, with the real port; unix:@NAME for an abstract socket,
     * which it does not take. */
    char name[sizeof "unix:@" + sizeof((struct sockaddr_un *)0)->sun_path];
};

/* Judges an address: ADDR:PORT, [ADDR]:PORT (both numeric, port 0 for any free one) or unix:PATH.
 * Returns NULL if it is one; otherwise what is wrong with it and what to write instead, as a constant
 * for the operator. Does not block. */
const char *listen_fault(const char *text);

/* What an operator can do about an error (errno) that listen_open had with an address: the end of a
 * message, begun with ": ", as a constant; empty where the error says it all. May look at the file
 * system, and so block on it. */
const char *listen_way_out(const char *text, int error);

/* Writes the number of an IP socket's address. Returns false if it has none. Does not block. */
#define LISTEN_IP_BYTES 46 /* as long as INET6_ADDRSTRLEN */
bool listen_ip_text(const struct sockaddr_storage *any, char text[LISTEN_IP_BYTES]);

/* Listens on an address. A Unix socket left behind by a dead process is replaced, one that somebody
 * answers is not; nor is a file that is no socket. An IPv6 address takes IPv6 alone, so that it and
 * its IPv4 twin can be given together. Returns 0, or -1 with errno set. */
int listen_open(struct listener *listener, const char *text);

/* How many sockets this process was started with, as systemd passes them (sd_listen_fds(3)): their
 * descriptors are LISTEN_PASSED_FD and those that follow. Looks at LISTEN_FDS and LISTEN_PID, and
 * takes them out of the environment. Returns 0 too when they are meant for another process, and -1
 * when LISTEN_FDS is no number. */
#define LISTEN_PASSED_FD 3
int listen_count_passed(void);

/* Makes a listener of a passed socket. Its path, if it has one, belongs to whoever made it. Returns
 * 0, or -1 when the descriptor is no listening stream socket, TCP or Unix. */
int listen_adopt(struct listener *listener, int fd);

/* Connects to an address that listen_fault finds nothing wrong with. Returns a socket on which each call takes
 * at most limit_s seconds, as connecting did, or -1 with errno set. */
int listen_connect(const char *text, int limit_s);

/* Closes a listener; the path of a Unix socket that listen_open made is unlinked. */
void listen_close(struct listener *listener);

#endif
