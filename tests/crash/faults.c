/*
 * faults.c: a roomkeyd whose system calls fail on demand.
 *
 * Linked with all of roomkeyd, and with -Wl,--wrap= for each call below, so that a call that the
 * program makes comes here first:
 *
 *     store.c: fdatasync(fd) --> __wrap_fdatasync: the n-th? --no--> __real_fdatasync, libc's
 *                                                   `--yes--> -1 and an errno, nothing done
 *
 * The environment says what fails. FAULTS holds any number of quadruples, separated by semicolons:
 *
 *     CALL FIRST TIMES WHAT        FAULTS='send 3 1 11; pwrite64 2 1 -20; pwrite64 3 1 28'
 *
 * From the FIRST use of CALL on (counted from 1), so many TIMES, it fails with errno WHAT; if that
 * is negative, it succeeds, with a count of no more than -WHAT bytes; if that is 0, it never returns,
 * as from a disk that is stuck. FAULTS_REPORT names a file that is mapped and kept up to date with how
 * often each call was used and made to fail (struct count), so it survives any end of the process.
 * tests/crash/faults.py drives this.
 *
 * What libc calls for itself (the write of an fprintf, the mmap of a malloc) does not come here.
 * Nor does a failed call do half of its work: a failed fdatasync has lost nothing. What a disk may
 * lose is in torture.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FAULTS_MAX  16
#define NAME_BYTES  16
#define REFUSE_EXIT 98 /* none of roomkeyd's exit codes, nor of a sanitizer's */

/* clang-format off */
enum call {
    PWRITE, PREAD, READ, FDATASYNC, FSYNC, FTRUNCATE, OPEN, OPENAT, RENAMEAT, UNLINKAT, UNLINK,
    FLOCK, FSTAT, LSTAT, EVENTFD, EVENTFD_WRITE, EPOLL_CREATE, EPOLL_CTL, EPOLL_WAIT, SOCKET,
    GETSOCKOPT, SETSOCKOPT, BIND, LISTEN, GETSOCKNAME, CONNECT, ACCEPT, RECV, SEND, SHUTDOWN, WRITE, GETPEERNAME, THREAD_CREATE,
    GETRANDOM, MALLOC, CALLOC, REALLOC, CALLS
};

/* Symbols, as the linker knows them: 64 for large files. */
static const char *const names[CALLS] = {
    [PWRITE] = "pwrite64", [PREAD] = "pread64", [READ] = "read", [FDATASYNC] = "fdatasync",
    [FSYNC] = "fsync", [FTRUNCATE] = "ftruncate64", [OPEN] = "open64", [OPENAT] = "openat64",
    [RENAMEAT] = "renameat", [UNLINKAT] = "unlinkat", [UNLINK] = "unlink", [FLOCK] = "flock",
    [FSTAT] = "fstat64", [LSTAT] = "lstat64", [EVENTFD] = "eventfd",
    [EVENTFD_WRITE] = "eventfd_write", [EPOLL_CREATE] = "epoll_create1", [EPOLL_CTL] = "epoll_ctl",
    [EPOLL_WAIT] = "epoll_wait", [SOCKET] = "socket", [SETSOCKOPT] = "setsockopt", [BIND] = "bind",
    [GETSOCKOPT] = "getsockopt",
    [LISTEN] = "listen", [GETSOCKNAME] = "getsockname", [CONNECT] = "connect", [ACCEPT] = "accept4",
    [RECV] = "recv", [SEND] = "send", [SHUTDOWN] = "shutdown", [WRITE] = "write",
    [GETPEERNAME] = "getpeername", [THREAD_CREATE] = "pthread_create",
    [GETRANDOM] = "getrandom", [MALLOC] = "malloc", [CALLOC] = "calloc", [REALLOC] = "realloc",
};
/* clang-format on */

/* The report: one of these for each call. */
struct count {
    char name[NAME_BYTES];
    _Atomic uint32_t used, failed;
};

struct fault {
    enum call call;
    uint32_t first, times;
    int what;
};

static struct fault faults[FAULTS_MAX];
static size_t fault_count;
static struct count unreported[CALLS];
static struct count *counts = unreported;

/* ------------------------------------------------------------------------ which one fails */

/* The fault that this use of a call suffers, or NULL. */
static const struct fault *suffer(enum call call) {
    uint32_t n = atomic_fetch_add(&counts[call].used, 1) + 1;
    for (size_t i = 0; i < fault_count; i++) {
        const struct fault *fault = &faults[i];
        if (fault->call != call || n < fault->first || n - fault->first >= fault->times) continue;
        atomic_fetch_add(&counts[call].failed, 1);
        while (fault->what == 0) pause();
        return fault;
    }
    return NULL;
}

/* Whether this use of a call fails; errno says how. */
static int fails(enum call call) {
    const struct fault *fault = suffer(call);
    if (fault) errno = fault->what;
    return fault != NULL;
}

/* For calls that count bytes: puts into *size how many this one may do, unless it fails. */
static int fails_or_limits(enum call call, size_t *size) {
    const struct fault *fault = suffer(call);
    if (!fault) return 0;
    if (fault->what > 0) {
        errno = fault->what;
        return 1;
    }
    size_t limit = (size_t)-fault->what;
    if (*size > limit) *size = limit;
    return 0;
}

/* ------------------------------------------------------------------------ the calls */

extern __typeof__(pwrite) __real_pwrite64;
extern __typeof__(pread) __real_pread64;
extern __typeof__(read) __real_read;
extern __typeof__(fdatasync) __real_fdatasync;
extern __typeof__(fsync) __real_fsync;
extern __typeof__(ftruncate) __real_ftruncate64;
extern __typeof__(open) __real_open64;
extern __typeof__(openat) __real_openat64;
extern __typeof__(renameat) __real_renameat;
extern __typeof__(unlinkat) __real_unlinkat;
extern __typeof__(unlink) __real_unlink;
extern __typeof__(flock) __real_flock;
extern __typeof__(fstat) __real_fstat64;
extern __typeof__(lstat) __real_lstat64;
extern __typeof__(eventfd) __real_eventfd;
extern __typeof__(eventfd_write) __real_eventfd_write;
extern __typeof__(epoll_create1) __real_epoll_create1;
extern __typeof__(epoll_ctl) __real_epoll_ctl;
extern __typeof__(epoll_wait) __real_epoll_wait;
extern __typeof__(socket) __real_socket;
extern __typeof__(getsockopt) __real_getsockopt;
extern __typeof__(setsockopt) __real_setsockopt;
extern __typeof__(listen) __real_listen;
extern __typeof__(recv) __real_recv;
extern __typeof__(send) __real_send;
extern __typeof__(shutdown) __real_shutdown;
extern __typeof__(write) __real_write;
extern __typeof__(pthread_create) __real_pthread_create;
extern __typeof__(getrandom) __real_getrandom;
extern __typeof__(malloc) __real_malloc;
extern __typeof__(calloc) __real_calloc;
extern __typeof__(realloc) __real_realloc;

/* The prototypes of <sys/socket.h> take a union of all kinds of address. */
int __real_bind(int fd, const struct sockaddr *name, socklen_t size);
int __real_getsockname(int fd, struct sockaddr *name, socklen_t *size);
int __real_getpeername(int fd, struct sockaddr *name, socklen_t *size);
int __real_connect(int fd, const struct sockaddr *name, socklen_t size);
int __real_accept4(int fd, struct sockaddr *name, socklen_t *size, int flags);

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t size, off_t offset) {
    return fails_or_limits(PWRITE, &size) ? -1 : __real_pwrite64(fd, bytes, size, offset);
}

ssize_t __wrap_pread64(int fd, void *bytes, size_t size, off_t offset) {
    return fails_or_limits(PREAD, &size) ? -1 : __real_pread64(fd, bytes, size, offset);
}

/* Reads of files. One of a signalfd comes whole or finds nothing, and has no error to give. */
ssize_t __wrap_read(int fd, void *bytes, size_t size) {
    if (size == sizeof(struct signalfd_siginfo)) return __real_read(fd, bytes, size);
    return fails_or_limits(READ, &size) ? -1 : __real_read(fd, bytes, size);
}

/* Of the access log. */
ssize_t __wrap_write(int fd, const void *bytes, size_t size) {
    return fails_or_limits(WRITE, &size) ? -1 : __real_write(fd, bytes, size);
}

int __wrap_fdatasync(int fd) { return fails(FDATASYNC) ? -1 : __real_fdatasync(fd); }

int __wrap_fsync(int fd) { return fails(FSYNC) ? -1 : __real_fsync(fd); }

int __wrap_ftruncate64(int fd, off_t size) {
    return fails(FTRUNCATE) ? -1 : __real_ftruncate64(fd, size);
}

/* Of what open makes there is only the access log; openat makes the rest. */
int __wrap_open64(const char *path, int flags, ...) {
    return fails(OPEN) ? -1 : __real_open64(path, flags, 0640);
}

int __wrap_openat64(int dir, const char *path, int flags, ...) {
    return fails(OPENAT) ? -1 : __real_openat64(dir, path, flags, 0600);
}

int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return fails(RENAMEAT) ? -1 : __real_renameat(from_dir, from, to_dir, to);
}

int __wrap_unlinkat(int dir, const char *path, int flags) {
    return fails(UNLINKAT) ? -1 : __real_unlinkat(dir, path, flags);
}

int __wrap_unlink(const char *path) { return fails(UNLINK) ? -1 : __real_unlink(path); }

int __wrap_flock(int fd, int operation) { return fails(FLOCK) ? -1 : __real_flock(fd, operation); }

int __wrap_fstat64(int fd, struct stat *status) {
    return fails(FSTAT) ? -1 : __real_fstat64(fd, status);
}

int __wrap_lstat64(const char *path, struct stat *status) {
    return fails(LSTAT) ? -1 : __real_lstat64(path, status);
}

int __wrap_eventfd(unsigned value, int flags) {
    return fails(EVENTFD) ? -1 : __real_eventfd(value, flags);
}

int __wrap_eventfd_write(int fd, eventfd_t value) {
    return fails(EVENTFD_WRITE) ? -1 : __real_eventfd_write(fd, value);
}

int __wrap_epoll_create1(int flags) {
    return fails(EPOLL_CREATE) ? -1 : __real_epoll_create1(flags);
}

int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event) {
    return fails(EPOLL_CTL) ? -1 : __real_epoll_ctl(epoll_fd, operation, fd, event);
}

int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms) {
    return fails(EPOLL_WAIT) ? -1 : __real_epoll_wait(epoll_fd, events, max, timeout_ms);
}

int __wrap_socket(int domain, int type, int protocol) {
    return fails(SOCKET) ? -1 : __real_socket(domain, type, protocol);
}

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *size) {
    return fails(GETSOCKOPT) ? -1 : __real_getsockopt(fd, level, name, value, size);
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
    return fails(SETSOCKOPT) ? -1 : __real_setsockopt(fd, level, name, value, size);
}

int __wrap_bind(int fd, const struct sockaddr *name, socklen_t size) {
    return fails(BIND) ? -1 : __real_bind(fd, name, size);
}

int __wrap_listen(int fd, int backlog) { return fails(LISTEN) ? -1 : __real_listen(fd, backlog); }

int __wrap_getsockname(int fd, struct sockaddr *name, socklen_t *size) {
    return fails(GETSOCKNAME) ? -1 : __real_getsockname(fd, name, size);
}

int __wrap_getpeername(int fd, struct sockaddr *name, socklen_t *size) {
    return fails(GETPEERNAME) ? -1 : __real_getpeername(fd, name, size);
}

int __wrap_connect(int fd, const struct sockaddr *name, socklen_t size) {
    return fails(CONNECT) ? -1 : __real_connect(fd, name, size);
}

int __wrap_accept4(int fd, struct sockaddr *name, socklen_t *size, int flags) {
    return fails(ACCEPT) ? -1 : __real_accept4(fd, name, size, flags);
}

ssize_t __wrap_recv(int fd, void *bytes, size_t size, int flags) {
    return fails_or_limits(RECV, &size) ? -1 : __real_recv(fd, bytes, size, flags);
}

ssize_t __wrap_send(int fd, const void *bytes, size_t size, int flags) {
    return fails_or_limits(SEND, &size) ? -1 : __real_send(fd, bytes, size, flags);
}

int __wrap_shutdown(int fd, int how) { return fails(SHUTDOWN) ? -1 : __real_shutdown(fd, how); }

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument) {
    return fails(THREAD_CREATE) ? errno
                                : __real_pthread_create(thread, attributes, start, argument);
}

ssize_t __wrap_getrandom(void *bytes, size_t size, unsigned flags) {
    return fails(GETRANDOM) ? -1 : __real_getrandom(bytes, size, flags);
}

void *__wrap_malloc(size_t size) { return fails(MALLOC) ? NULL : __real_malloc(size); }

void *__wrap_calloc(size_t count, size_t size) {
    return fails(CALLOC) ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size) {
    return fails(REALLOC) ? NULL : __real_realloc(memory, size);
}

/* ------------------------------------------------------------------------ before and after main */

static void refuse(const char *variable) {
    fprintf(stderr, "faults: bad %s\n", variable);
    _exit(REFUSE_EXIT);
}

/* Maps the report. */
static void open_report(const char *path) {
    int fd = __real_open64(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || __real_ftruncate64(fd, sizeof unreported) < 0) refuse("FAULTS_REPORT");
    counts = mmap(NULL, sizeof unreported, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counts == MAP_FAILED) refuse("FAULTS_REPORT");
    close(fd);
    for (int call = 0; call < CALLS; call++) strncpy(counts[call].name, names[call], NAME_BYTES);
}

/* Reads one quadruple. */
static void add_fault(const char *text) {
    char name[NAME_BYTES];
    struct fault *fault = &faults[fault_count];
    if (fault_count == FAULTS_MAX ||
        sscanf(text, "%15s %u %u %d", name, &fault->first, &fault->times, &fault->what) != 4)
        refuse("FAULTS");
    while (fault->call < CALLS && strcmp(name, names[fault->call]) != 0) fault->call++;
    if (fault->call == CALLS || fault->first == 0) refuse("FAULTS");
    fault_count++;
}

__attribute__((constructor)) static void prepare(void) {
    const char *report = getenv("FAULTS_REPORT");
    const char *text = getenv("FAULTS");
    if (report) open_report(report);
    while (text && *text) {
        add_fault(text);
        text = strchr(text, ';');
        if (text) text++;
    }
}

/* What comes after main is not roomkeyd's: a build that measures coverage writes its counts now. */
__attribute__((destructor)) static void retire(void) {
    fault_count = 0;
    counts = unreported;
}
