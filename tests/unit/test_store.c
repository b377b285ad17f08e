/*
 * test_store.c: the log and its store against everything that can become of a file, short of a
 * power failure (that is torture.c's).
 *
 * Linked with --wrap for the calls named in enum call: fsync and fdatasync only count here, and any
 * call can be made to fail at its n-th use. Standard error goes to a file: each test says what it
 * expects there, and anything else fails it. Commits are waited for at the store's event
 * descriptor, time is passed in as a number: nothing sleeps. SEED=... repeats a run of the random
 * test.
 */
#include "clock.h"
#include "log.h"
#include "store.h"
#include "table.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define COMMIT_TIMEOUT_MS 60000
#define FILE_MAX_BYTES    (8u << 20)

/* -------------------------------------------------------------------- calls that fail on demand */

enum call {
    PWRITE,
    PREAD,
    FDATASYNC,
    FSYNC,
    FTRUNCATE,
    OPEN,
    OPENAT,
    RENAMEAT,
    FLOCK,
    EVENTFD,
    PTHREAD_CREATE,
    GETRANDOM,
    MALLOC,
    CALLOC,
    REALLOC,
    CALLS
};

#define SHORT_COUNT (-1) /* in place of an errno: half of what was asked for */

/* Set only while the committer is idle: the store's lock then hands it over like a batch. */
static struct fault {
    unsigned made;        /* calls so far */
    unsigned first, last; /* those of them that fail, from 1; last is 0 for none */
    int error;
    bool half_first; /* the first to fail does half of its work, as one that finds a disk full */
    bool fired;
    void (*meanwhile)(void); /* done while the next use is under way; or NULL */
} faults[CALLS];

/* Which call was given which file, in their order, since the last disarm: "pwrite keys.log, fsync
 * ." (the directory). A call that is given another descriptor does nothing for the file that was
 * meant, and nothing that could be read back shows it. */
static char journal[4096];

static void disarm(void) {
    memset(faults, 0, sizeof faults);
    journal[0] = '\0';
}

static void arm(enum call call, unsigned first, unsigned last, int error) {
    faults[call] = (struct fault){.first = first, .last = last, .error = error};
}

/* Either of the store's threads may ask. */
static bool is_hit(struct fault *fault) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    unsigned n = ++fault->made;
    bool hit = n >= fault->first && n <= fault->last;
    void (*meanwhile)(void) = fault->meanwhile;
    fault->fired = fault->fired || hit;
    fault->meanwhile = NULL;
    pthread_mutex_unlock(&lock);
    if (meanwhile) meanwhile();
    return hit;
}

static bool fails(enum call call) {
    if (!is_hit(&faults[call])) return false;
    errno = faults[call].error;
    return true;
}

/* For calls that count bytes: those that this one is to do, or 0 when it fails. */
static size_t allowed(enum call call, size_t size) {
    struct fault *fault = &faults[call];
    if (!is_hit(fault)) return size;
    if (fault->error == SHORT_COUNT || (fault->half_first && fault->made == fault->first))
        return (size + 1) / 2;
    errno = fault->error;
    return 0;
}

ssize_t __real_pwrite64(int fd, const void *bytes, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t size, off_t offset);
ssize_t __real_pread64(int fd, void *bytes, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *bytes, size_t size, off_t offset);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __real_openat64(int dir, const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, ...);
int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __real_flock(int fd, int operation);
int __wrap_flock(int fd, int operation);
int __real_eventfd(unsigned value, int flags);
int __wrap_eventfd(unsigned value, int flags);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);
ssize_t __real_getrandom(void *bytes, size_t size, unsigned flags);
ssize_t __wrap_getrandom(void *bytes, size_t size, unsigned flags);
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);

uint64_t __real_table_hash(struct table_key key, struct slice bytes);
uint64_t __wrap_table_hash(struct table_key key, struct slice bytes);

int __real_fstatat64(int dir, const char *name, struct stat *status, int flags);
int __wrap_fstatat64(int dir, const char *name, struct stat *status, int flags);

static off_t last_write_at, before_last_write_at;
static bool hashes_collide;
static bool numbers_are_unstable; /* of files that are looked up by name */
static int look_error;            /* of such a look; 0: none */

/* Somebody's deed, done once, while the next sync is made, or just before the next write. */
static void (*at_sync)(const char *path), (*at_write)(const char *path);
static const char *at_sync_path, *at_write_path;

static void note(const char *call, int fd);

uint64_t __wrap_table_hash(struct table_key key, struct slice bytes) {
    return hashes_collide ? 7 : __real_table_hash(key, bytes);
}

/* Not what is made beside it: a mark, a note, a torn tail. */
static bool is_log(int fd) {
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    return !strstr(path, LOG_NAME ".");
}

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t size, off_t offset) {
    void (*deed)(const char *path) = is_log(fd) ? at_write : NULL;
    note("pwrite", fd);
    if (is_log(fd)) {
        before_last_write_at = last_write_at;
        last_write_at = offset;
    }
    if (deed) at_write = NULL;
    if (deed) deed(at_write_path);
    size_t n = allowed(PWRITE, size);
    return n ? __real_pwrite64(fd, bytes, n, offset) : -1;
}

ssize_t __wrap_pread64(int fd, void *bytes, size_t size, off_t offset) {
    size_t n = allowed(PREAD, size);
    return n ? __real_pread64(fd, bytes, n, offset) : -1;
}

int __wrap_fstatat64(int dir, const char *name, struct stat *status, int flags) {
    if (look_error) {
        errno = look_error;
        return -1;
    }
    int result = __real_fstatat64(dir, name, status, flags);
    static ino_t moved;
    if (numbers_are_unstable) status->st_ino += 1000 + ++moved;
    return result;
}

int __wrap_fdatasync(int fd) {
    void (*deed)(const char *path) = at_sync;
    note("fdatasync", fd);
    at_sync = NULL;
    if (deed) deed(at_sync_path);
    return fails(FDATASYNC) ? -1 : 0;
}

int __wrap_fsync(int fd) {
    note("fsync", fd);
    return fails(FSYNC) ? -1 : 0;
}

int __wrap_ftruncate64(int fd, off_t size) {
    note("ftruncate", fd);
    return fails(FTRUNCATE) ? -1 : __real_ftruncate64(fd, size);
}

int __wrap_open64(const char *path, int flags, ...) {
    return fails(OPEN) ? -1 : __real_open64(path, flags, 0600);
}

int __wrap_openat64(int dir, const char *path, int flags, ...) {
    return fails(OPENAT) ? -1 : __real_openat64(dir, path, flags, 0600);
}

int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return fails(RENAMEAT) ? -1 : __real_renameat(from_dir, from, to_dir, to);
}

int __wrap_flock(int fd, int operation) { return fails(FLOCK) ? -1 : __real_flock(fd, operation); }

int __wrap_eventfd(unsigned value, int flags) {
    return fails(EVENTFD) ? -1 : __real_eventfd(value, flags);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument) {
    return fails(PTHREAD_CREATE) ? errno
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

/* ------------------------------------------------------------------------ the scene of a test */

/* A sanitizer's report must not end in the file that standard error goes to. */
void __sanitizer_set_report_fd(void *fd) __attribute__((weak));

static struct {
    char dir[256];
    struct store *store; /* open, or NULL */
    char why[512];       /* if it could not be opened */
    bool lost_collected; /* the loss of the log, before assert_lost */
    int epoll_fd;
    int true_stderr, captured;
    char bytes[FILE_MAX_BYTES + 1]; /* of the file that was read last */
    uint64_t random;
} scene;

static int set_up(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(scene.dir, sizeof scene.dir, "%s/test_store.XXXXXX", parent ? parent : "/tmp");
    disarm();
    hashes_collide = numbers_are_unstable = false;
    look_error = 0;
    scene.lost_collected = false;
    scene.store = NULL;
    scene.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    scene.true_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
    if (scene.epoll_fd < 0 || scene.true_stderr < 0 || !mkdtemp(scene.dir)) return -1;
    if (__sanitizer_set_report_fd) __sanitizer_set_report_fd((void *)(intptr_t)scene.true_stderr);
    scene.captured = open(scene.dir, O_TMPFILE | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    return scene.captured < 0 || dup2(scene.captured, STDERR_FILENO) < 0 ? -1 : 0;
}

static const char *path_of(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", scene.dir, name);
    return path;
}

/* Notes a call in the journal, with the name that its descriptor's file has now. */
static void note(const char *call, int fd) {
    char link[64], path[512];
    size_t n = strlen(journal);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = '\0';
    const char *slash = strrchr(path, '/'), *dir = strrchr(scene.dir, '/');
    const char *name = !slash ? path : strcmp(slash, dir) == 0 ? "." : slash + 1;
    snprintf(journal + n, sizeof journal - n, "%s%s %s", n > 0 ? ", " : "", call, name);
}

/* Removes what is in the directory; rmdir and unlink each fail on the other's kind. */
static void empty_dir(void) {
    struct dirent *entry;
    DIR *dir = opendir(scene.dir);
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.' && unlink(path_of(entry->d_name)) < 0)
            rmdir(path_of(entry->d_name));
    if (dir) closedir(dir);
}

static int tear_down(void **state) {
    (void)state;
    disarm();
    if (scene.store) store_close(scene.store);
    empty_dir();
    rmdir(scene.dir);
    fflush(stderr);
    off_t stray = lseek(scene.captured, 0, SEEK_END);
    ssize_t n = pread(scene.captured, scene.bytes, FILE_MAX_BYTES, 0);
    dup2(scene.true_stderr, STDERR_FILENO);
    if (stray > 0) print_error("on standard error, unexpected:\n%.*s", (int)n, scene.bytes);
    close(scene.captured);
    close(scene.true_stderr);
    close(scene.epoll_fd);
    return stray == 0 ? 0 : -1;
}

/* What the store has said since the last call. It lives until the next call. */
static const char *said(void) {
    static char text[8192];
    ssize_t n = pread(scene.captured, text, sizeof text - 1, 0);
    assert_true(n >= 0);
    text[n] = '\0';
    assert_int_equal(ftruncate(scene.captured, 0), 0);
    return text;
}

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t x = scene.random += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static int seed_generator(void **state) {
    const char *text = getenv("SEED");
    scene.random = text ? strtoull(text, NULL, 0) : (uint64_t)(uintptr_t)&state ^ 20211123;
    print_message("SEED=%" PRIu64 "\n", scene.random);
    return set_up(state);
}

/* ------------------------------------------------------------------------ files */

static struct slice read_named(const char *name) {
    int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_msg("%s: %s", name, strerror(errno));
    ssize_t n = log_read_at(fd, scene.bytes, FILE_MAX_BYTES, 0);
    assert_true(n >= 0);
    scene.bytes[n] = '\0';
    close(fd);
    return (struct slice){scene.bytes, (size_t)n};
}

static struct slice read_log(void) { return read_named(LOG_NAME); }

static void write_log(struct slice bytes) {
    int fd = open(path_of(LOG_NAME), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(log_write_at(fd, bytes, 0), 0);
    close(fd);
}

static void assert_named_is(const char *name, struct slice expected) {
    struct slice bytes = read_named(name);
    assert_int_equal(bytes.n, expected.n);
    if (expected.n > 0) assert_memory_equal(bytes.p, expected.p, expected.n);
}

/* Those in the directory, but for the mark that is born with a log and stays. */
static unsigned count_files(void) {
    unsigned n = 0;
    struct dirent *entry;
    DIR *dir = opendir(scene.dir);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        n += entry->d_name[0] != '.' && strcmp(entry->d_name, LOG_MARK_NAME) != 0;
    closedir(dir);
    return n;
}

/* --------------------------------------------------------------------- the store in short words */

static bool try_open(void) {
    assert_null(scene.store);
    scene.why[0] = '\0';
    scene.store = store_open(scene.dir, scene.why, sizeof scene.why);
    if (!scene.store) return false;
    /* As the server does: at the edge, since nobody reads the descriptor. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    int fd = store_event_fd(scene.store);
    assert_int_equal(epoll_ctl(scene.epoll_fd, EPOLL_CTL_ADD, fd, &event), 0);
    return true;
}

static void open_store(void) {
    if (!try_open()) fail_msg("cannot open: %s", scene.why);
}

static int close_store(void) {
    int result = store_close(scene.store);
    scene.store = NULL;
    return result;
}

static void reopen(void) {
    assert_int_equal(close_store(), 0);
    open_store();
}

static enum store_result set_slices(struct slice room, struct slice key, uint64_t *ticket) {
    struct store_record record = {SLICE("-"), room, key};
    return store_set(scene.store, &record, ticket);
}

static enum store_result set(const char *room, const char *key, uint64_t *ticket) {
    return set_slices(slice_of(room), slice_of(key), ticket);
}

static uint64_t must_set(const char *room, const char *key) {
    uint64_t ticket;
    assert_int_equal(set(room, key, &ticket), STORE_OK);
    assert_true(ticket > 0);
    return ticket;
}

static struct store_settled collect(void) {
    struct store_settled settled;
    struct epoll_event event;
    while (!store_collect(scene.store, &settled))
        assert_int_equal(epoll_wait(scene.epoll_fd, &event, 1, COMMIT_TIMEOUT_MS), 1);
    return settled;
}

static struct store_settled commit(void) {
    store_hand_over(scene.store);
    return collect();
}

static void must_commit(void) { assert_true(commit().ok); }

static void assert_key(const char *room, const char *key) {
    char found[ID_MAX_BYTES];
    size_t n;
    enum store_result result = store_get(scene.store, slice_of(room), found, &n);
    if (!key) {
        assert_int_equal(result, STORE_NONE);
        return;
    }
    assert_int_equal(result, STORE_OK);
    assert_int_equal(n, strlen(key));
    assert_memory_equal(found, key, n);
}

/* ------------------------------------------------------------------------ a log to spoil */

/* Record i stands on line i + 1 of the sample; '|' begins a batch. */
static const char *const sample_rooms[] = {"room", "other\ttab", "| third", "| four\nth", "last"};
#define SAMPLE_RECORDS (sizeof sample_rooms / sizeof *sample_rooms)

static struct {
    char bytes[4096];
    size_t size;
    size_t line_start[SAMPLE_RECORDS + 3]; /* of line i; behind the last one: the end */
    unsigned lines;                        /* with the first one, and the seal if there is one */
    size_t certified;                      /* the highest BATCH, by construction */
} sample;

static const char *sample_key(unsigned i) {
    static const char *const keys[SAMPLE_RECORDS] = {"k0", "k\\1", "k2", "k\xc3\xa9", "k4"};
    return keys[i];
}

/* Makes the sample with the store, with a seal at its end or without. */
static void make_sample(bool with_seal) {
    empty_dir();
    open_store();
    for (unsigned i = 0; i < SAMPLE_RECORDS; i++) {
        if (sample_rooms[i][0] == '|') must_commit();
        must_set(sample_rooms[i], sample_key(i));
    }
    must_commit();
    assert_int_equal(close_store(), 0);

    struct slice log = read_log();
    sample.lines = 0;
    sample.line_start[0] = 0;
    for (size_t at = 0; at < log.n; at++)
        if (log.p[at] == '\n') sample.line_start[++sample.lines] = at + 1;
    assert_int_equal(sample.lines, SAMPLE_RECORDS + 2);
    if (!with_seal) sample.lines--;
    sample.size = sample.line_start[sample.lines];
    sample.certified = sample.line_start[with_seal ? SAMPLE_RECORDS + 1 : 4];
    memcpy(sample.bytes, log.p, sample.size);
}

/* The line in which a byte of the sample stands. */
static unsigned line_of(size_t at) {
    unsigned line = 0;
    while (sample.line_start[line + 1] <= at) line++;
    return line;
}

/* Exactly the records on the sample's first `lines` lines are there. */
static void assert_lines_there(unsigned lines) {
    for (unsigned i = 0; i < SAMPLE_RECORDS; i++)
        assert_key(sample_rooms[i], i + 1 < lines ? sample_key(i) : NULL);
}

/* What people are told of a log agrees with what a start makes of it. */
static void assert_inspected(bool is_damaged, size_t at) {
    struct store_inspection inspection = {.visit = NULL};
    char why[256];
    assert_int_equal(store_inspect(scene.dir, &inspection, why, sizeof why), 0);
    assert_int_equal(inspection.is_damaged, is_damaged);
    assert_int_equal(inspection.fault_offset, at);
    assert_non_null(inspection.fault);
}

static bool try_open_with(struct slice log) {
    empty_dir();
    write_log(log);
    return try_open();
}

/* Not opened, and yet so many records can be had from it. */
static void assert_salvageable(struct slice log, const char *fault, unsigned records) {
    char why[256];
    struct store_inspection inspection = {.visit = NULL};
    assert_false(try_open_with(log));
    if (!strstr(scene.why, fault)) fail_msg("refused with: %s\ninstead of: %s", scene.why, fault);
    assert_int_equal(store_inspect(scene.dir, &inspection, why, sizeof why), 0);
    assert_true(inspection.is_damaged);
    assert_non_null(strstr(inspection.fault, fault));
    assert_int_equal(inspection.fault_offset, 0);
    assert_int_equal(inspection.records, 0);
    assert_int_equal(inspection.records_after, records);
}

/* Opening fails for this reason, and changes nothing. */
static void assert_refused(struct slice log, const char *reason) {
    empty_dir();
    write_log(log);
    if (try_open()) fail_msg("opened, instead of: %s; it said: %s", reason, said());
    if (!strstr(scene.why, reason)) fail_msg("refused with: %s\ninstead of: %s", scene.why, reason);
    assert_named_is(LOG_NAME, log);
    assert_int_equal(count_files(), 1);
    assert_string_equal(said(), "");
}

static void assert_damaged(struct slice log, size_t at) {
    char reason[64];
    snprintf(reason, sizeof reason, "/keys.log: damaged at byte %zu: ", at);
    const char *name = strrchr(reason, '/') + 1;
    assert_refused(log, name);
    assert_inspected(true, at);
}

/* Opens, with the bytes from `at` on moved to a file of their own, byte for byte. */
static void assert_torn(struct slice log, size_t at) {
    char name[64], message[256];
    empty_dir();
    write_log(log);
    assert_inspected(false, at);
    open_store();
    snprintf(name, sizeof name, LOG_NAME ".torn-%zu", at);
    snprintf(message, sizeof message,
             "roomkeyd: keys.log: a crash left a torn tail of %zu bytes at byte %zu, "
             "never acknowledged: moved to %s\n",
             log.n - at, at, name);
    assert_string_equal(said(), message);
    assert_named_is(name, (struct slice){log.p + at, log.n - at});
    assert_named_is(LOG_NAME, (struct slice){log.p, at});
    assert_int_equal(count_files(), 2);
}

/* After any repair: sets work, and are there after opening again, and again. */
static void assert_goes_on(unsigned lines) {
    assert_lines_there(lines);
    must_set("afterwards", "new");
    must_commit();
    for (int i = 0; i < 2; i++) {
        reopen();
        assert_lines_there(lines);
        assert_key("afterwards", "new");
    }
    assert_int_equal(close_store(), 0);
    assert_string_equal(said(), "");
}

/* ------------------------------------------------------------------------ lines */

static uint32_t plain_crc32c(struct slice bytes) {
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < bytes.n; i++) {
        crc ^= (unsigned char)bytes.p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78 : crc >> 1;
    }
    return ~crc;
}

#if defined(__x86_64__)
/* What __builtin_cpu_supports reads, in gcc's runtime and in clang's. */
extern struct { unsigned vendor, type, subtype, features[1]; } __cpu_model;
#define FEATURE_SSE42 (1u << 8)
#endif

static void assert_checksums(void) {
    struct log_line line;
    char text[LOG_LINE_MAX_BYTES], id[ID_MAX_BYTES], crc[9];

    /* The check value of every table of CRCs. The checksum holds, so what is wrong is the rest. */
    assert_int_equal(plain_crc32c(SLICE("123456789")), 0xe3069283);
    assert_int_equal(log_parse(SLICE("e3069283\t123456789"), &line), LOG_NEWER);
    assert_int_equal(log_parse(SLICE("e3069282\t123456789"), &line), LOG_BAD_CHECKSUM);

    memset(id, 'x', sizeof id);
    for (size_t n = 1; n <= ID_MAX_BYTES; n++) {
        struct log_line longer = {20, 1732354800000, false, SLICE("-"), {id, n}, SLICE("k")};
        size_t size = log_format(&longer, text);
        snprintf(crc, sizeof crc, "%08" PRIx32, plain_crc32c((struct slice){text + 9, size - 10}));
        assert_memory_equal(text, crc, 8);
    }
}

/* By the processor's instruction, and as on a processor that has none. */
static void the_checksum_is_crc32c(void **state) {
    (void)state;
    assert_checksums();
#if defined(__x86_64__)
    unsigned features = __cpu_model.features[0];
    __cpu_model.features[0] &= ~FEATURE_SSE42;
    assert_false(__builtin_cpu_supports("sse4.2")); /* or nothing has been turned off */
    assert_checksums();
    __cpu_model.features[0] = features;
#endif
}

static void ids_are_escaped_one_way_only(void **state) {
    (void)state;
    char out[LOG_ESCAPED_MAX_BYTES], back[ID_MAX_BYTES], wild[ID_MAX_BYTES];
    struct slice escaped = log_escape(SLICE("a\tb\nc\rd\\e\"\xc3\xa9"), out);
    assert_true(slice_equal(escaped, SLICE("a\\tb\\nc\\rd\\\\e\"\xc3\xa9")));
    assert_true(slice_equal(log_unescape(escaped, back), SLICE("a\tb\nc\rd\\e\"\xc3\xa9")));

    memset(wild, '\n', sizeof wild);
    escaped = log_escape((struct slice){wild, sizeof wild}, out);
    assert_int_equal(escaped.n, 2 * ID_MAX_BYTES);
    assert_true(slice_equal(log_unescape(escaped, back), (struct slice){wild, sizeof wild}));

    const struct slice bad[] = {SLICE(""),    SLICE("a\\"), SLICE("\\x"), SLICE("\\N"),
                                SLICE("a\t"), SLICE("\n"),  SLICE("\r"),  SLICE("\\\\\\")};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(log_unescape(bad[i], back).n, 0);
    char too_long[ID_MAX_BYTES + 1];
    memset(too_long, 'x', sizeof too_long);
    assert_int_equal(log_unescape((struct slice){too_long, sizeof too_long}, back).n, 0);
    memset(too_long, '\x01', sizeof too_long);
    assert_int_equal(log_unescape((struct slice){too_long, sizeof too_long}, back).n, 0);
}

/* A line around what its checksum covers. */
static struct slice checked(const char *covered) {
    static char text[LOG_LINE_MAX_BYTES * 2];
    int n =
        snprintf(text, sizeof text, "%08" PRIx32 "\t%s", plain_crc32c(slice_of(covered)), covered);
    return (struct slice){text, (size_t)n};
}

static void lines_have_one_spelling(void **state) {
    (void)state;
    static const struct {
        const char *covered;
        enum log_fault fault;
    } rows[] = {
        {"14\tS\t0\t-\tr\tk", LOG_VALID},
        {"14\tS\t18446744073709551615\t-\tr\tk", LOG_VALID},
        {"ffffffffffffffff\tS\t1\tu\tr\tk", LOG_VALID},
        {"14\t-", LOG_VALID},
        {"14\t-\t", LOG_BAD_FIELDS},
        {"14\t-\t1", LOG_BAD_FIELDS},
        {"014\tS\t1\tu\tr\tk", LOG_BAD_FIELDS},
        {"0\tS\t1\tu\tr\tk", LOG_BAD_FIELDS},
        {"A\tS\t1\tu\tr\tk", LOG_BAD_FIELDS},
        {"\tS\t1\tu\tr\tk", LOG_BAD_FIELDS},
        {"1ffffffffffffffff\tS\t1\tu\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t01\tu\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t18446744073709551616\tu\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t\tu\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t-1\tu\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t1\tu\tr", LOG_BAD_FIELDS},
        {"14\tS\t1\tu\tr\t", LOG_BAD_FIELDS},
        {"14\tS\t1\tu\tr\tk\t", LOG_BAD_FIELDS},
        {"14\tS\t1\t\tr\tk", LOG_BAD_FIELDS},
        {"14\tS\t1\tu\t\tk", LOG_BAD_FIELDS},
        {"14\tS\t1\tu\tr\\x\tk", LOG_BAD_FIELDS},
        {"14\tR\t1\tu\tr", LOG_NEWER},
        {"14\tSS\t1\tu\tr\tk", LOG_NEWER},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct log_line line;
        enum log_fault found = log_parse(checked(rows[i].covered), &line);
        if (found != rows[i].fault) fail_msg("%s: %s", rows[i].covered, log_fault_text(found));
    }
}

/* --------------------------------------------------------------------- sets, tickets, the model */

static void a_set_is_shown_when_it_is_durable(void **state) {
    (void)state;
    uint64_t ticket;
    struct store_settled settled;
    open_store();
    assert_int_equal(count_files(), 1);
    assert_key("r", NULL);
    uint64_t first = must_set("r", "k1");
    assert_key("r", NULL);
    assert_int_equal(set("r", "k2", &ticket), STORE_EXISTS);
    assert_int_equal(ticket, first);
    assert_false(store_collect(scene.store, &settled));

    store_hand_over(scene.store);
    assert_key("r", NULL);
    assert_int_equal(set("r", "k2", &ticket), STORE_EXISTS);
    assert_int_equal(ticket, first);
    uint64_t second = must_set("s", "k3");
    assert_true(second > first);
    assert_int_equal(set("s", "k4", &ticket), STORE_EXISTS);
    assert_int_equal(ticket, second);

    settled = collect();
    assert_true(settled.ok);
    assert_int_equal(settled.up_to, first);
    assert_key("r", "k1");
    assert_key("s", NULL);
    assert_int_equal(set("r", "k2", &ticket), STORE_EXISTS);
    assert_int_equal(ticket, 0);
    settled = commit();
    assert_true(settled.ok);
    assert_int_equal(settled.up_to, second);
    assert_key("s", "k3");
}

/* The index only says where to look: at each stage of a batch, and in a replay. */
static void rooms_of_one_hash_are_told_apart(void **state) {
    (void)state;
    uint64_t ticket;
    hashes_collide = true;
    open_store();
    uint64_t first = must_set("a", "k1");
    assert_int_equal(must_set("b", "k2"), first);
    store_hand_over(scene.store);
    assert_true(must_set("c", "k3") > first);
    assert_int_equal(set("b", "other", &ticket), STORE_EXISTS);
    assert_int_equal(ticket, first);
    assert_true(collect().ok);
    assert_key("c", NULL);
    must_commit();
    must_set("d", "k4");
    must_commit();
    for (int i = 0; i < 2; i++) {
        assert_key("a", "k1");
        assert_key("b", "k2");
        assert_key("c", "k3");
        assert_key("d", "k4");
        assert_key("e", NULL);
        assert_int_equal(set("c", "other", &ticket), STORE_EXISTS);
        reopen();
    }
}

static void closing_commits_what_is_open(void **state) {
    (void)state;
    open_store();
    must_set("handed over", "k1");
    store_hand_over(scene.store);
    must_set("open", "k2");
    assert_int_equal(close_store(), 0);
    open_store();
    assert_key("handed over", "k1");
    assert_key("open", "k2");
}

static void a_batch_is_one_write_and_one_sync(void **state) {
    (void)state;
    char room[32];
    open_store();
    disarm();
    for (int i = 0; i < 1000; i++) {
        snprintf(room, sizeof room, "room %d", i);
        must_set(room, "k");
    }
    must_commit();
    assert_int_equal(faults[PWRITE].made, 1);
    assert_int_equal(faults[FDATASYNC].made, 1);
    assert_string_equal(journal, "pwrite keys.log, fdatasync keys.log");
}

/* A sync comes after the write that it is for, and each is of the log; so is the cut. */
static void each_call_is_given_the_log(void **state) {
    (void)state;
    static const struct {
        int write, sync, cut; /* the errors of the first of each, or 0; below: after a half */
        const char *journal;
        bool is_for_good;
    } rows[] = {
        {0, 0, 0, "pwrite keys.log, fdatasync keys.log", false},
        {0, EINTR, 0, "pwrite keys.log, fdatasync keys.log, fdatasync keys.log", false},
        {0, EIO, 0, "pwrite keys.log, fdatasync keys.log, ftruncate keys.log", true},
        /* What was not written need not be cut off, and the cut could fail, too. */
        {EIO, 0, 0, "pwrite keys.log", true},
        {ENOSPC, 0, 0, "pwrite keys.log", false},
        {ENOSPC, 0, ENOSPC, "pwrite keys.log", false},
        /* Half of it was written. */
        {-ENOSPC, 0, 0, "pwrite keys.log, pwrite keys.log, ftruncate keys.log", false},
        {-ENOSPC, 0, EINTR,
         "pwrite keys.log, pwrite keys.log, ftruncate keys.log, ftruncate keys.log", false},
        {-ENOSPC, 0, EIO, "pwrite keys.log, pwrite keys.log, ftruncate keys.log", true},
        {-ENOSPC, 0, EPERM, "pwrite keys.log, pwrite keys.log, ftruncate keys.log", true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        open_store();
        must_set("a", "k");
        disarm();
        if (rows[i].write > 0) arm(PWRITE, 1, 1, rows[i].write);
        if (rows[i].write < 0) {
            arm(PWRITE, 1, 2, -rows[i].write);
            faults[PWRITE].half_first = true;
        }
        if (rows[i].sync) arm(FDATASYNC, 1, 1, rows[i].sync);
        if (rows[i].cut) arm(FTRUNCATE, 1, 1, rows[i].cut);
        commit();
        assert_string_equal(journal, rows[i].journal);
        assert_int_equal(store_has_failed(scene.store), rows[i].is_for_good);
        disarm();
        close_store();
        empty_dir();
        said();
    }
    open_store();
    must_set("sealed", "k");
    must_commit();
    disarm();
    assert_int_equal(close_store(), 0);
    assert_string_equal(journal, "pwrite keys.log"); /* the seal */
}

#define MODEL_ROOMS 200
#define MODEL_STEPS 20000

struct model_id {
    char bytes[ID_MAX_BYTES];
    size_t n;
};

/* A room without a key has a key of no bytes. */
static struct {
    struct model_id room, key;
    uint64_t ticket; /* 0 when it is durable */
} model[MODEL_ROOMS];

static struct slice slice_of_id(const struct model_id *id) {
    return (struct slice){id->bytes, id->n};
}

static void draw_id(struct model_id *id) {
    static const char *const parts[] = {"\t", "\n", "\r", "\\", "t",    "n", " ",
                                        "\"", "0",  "a",  "-",  "\x01", "é", "𝄞"};
    size_t limit = draw() % 8 == 0 ? ID_MAX_BYTES : 1 + draw() % 6;
    id->n = 0;
    while (id->n < limit) {
        const char *part = parts[draw() % (sizeof parts / sizeof *parts)];
        if (id->n + strlen(part) > limit) part = "x";
        memcpy(id->bytes + id->n, part, strlen(part));
        id->n += strlen(part);
    }
    assert_true(slice_is_id(slice_of_id(id)));
}

/* The first room with the same ID stands for all of them. */
static unsigned draw_room(void) {
    unsigned drawn = (unsigned)(draw() % MODEL_ROOMS), room = 0;
    while (!slice_equal(slice_of_id(&model[room].room), slice_of_id(&model[drawn].room))) room++;
    return room;
}

static void model_settle(uint64_t up_to) {
    for (unsigned i = 0; i < MODEL_ROOMS; i++)
        if (model[i].ticket <= up_to) model[i].ticket = 0;
}

static void model_set(void) {
    unsigned room = draw_room();
    struct model_id key;
    uint64_t ticket;
    draw_id(&key);
    enum store_result result =
        set_slices(slice_of_id(&model[room].room), slice_of_id(&key), &ticket);
    assert_int_equal(result, model[room].key.n > 0 ? STORE_EXISTS : STORE_OK);
    if (result == STORE_EXISTS) {
        assert_int_equal(ticket, model[room].ticket);
        return;
    }
    assert_true(ticket > 0);
    model[room].key = key;
    model[room].ticket = ticket;
}

static void model_get(void) {
    char found[ID_MAX_BYTES];
    size_t n;
    unsigned room = draw_room();
    struct slice id = slice_of_id(&model[room].room), key = slice_of_id(&model[room].key);
    bool is_shown = key.n > 0 && model[room].ticket == 0;
    assert_int_equal(store_get(scene.store, id, found, &n), is_shown ? STORE_OK : STORE_NONE);
    if (is_shown) assert_true(slice_equal((struct slice){found, n}, key));
}

static void random_runs_agree_with_the_model(void **state) {
    (void)state;
    struct store_settled settled;
    uint64_t settled_up_to = 0;
    int64_t now_ms = 1;
    for (unsigned i = 0; i < MODEL_ROOMS; i++) draw_id(&model[i].room);
    open_store();
    for (unsigned step = 0; step < MODEL_STEPS; step++) {
        /* At first few sets, or the rooms are used up before anything has happened. */
        unsigned what = (unsigned)(draw() % 1000);
        if (what < 30)
            model_set();
        else if (what < 600)
            model_get();
        else if (what < 750)
            store_hand_over(scene.store);
        else if (what < 990)
            store_tick(scene.store, now_ms += (int64_t)(draw() % 700));
        if (what >= 990) {
            reopen();
            model_settle(UINT64_MAX);
            settled_up_to = 0;
        } else if (store_collect(scene.store, &settled)) {
            assert_true(settled.ok);
            assert_true(settled.up_to > settled_up_to);
            model_settle(settled_up_to = settled.up_to);
        }
    }
    assert_int_equal(close_store(), 0);
}

static void a_log_may_be_longer_than_any_buffer(void **state) {
    (void)state;
    enum { ROOMS = 4000, BURST = 2500 };
    char room[ID_MAX_BYTES + 1], key[ID_MAX_BYTES + 1];
    memset(key, '\\', sizeof key - 1); /* twice as long in the log */
    key[ID_MAX_BYTES] = '\0';
    open_store();
    for (int i = 0; i < ROOMS; i++) {
        int n = snprintf(room, sizeof room, "%d", i);
        memset(room + n, 'r', (size_t)(i % (ID_MAX_BYTES - n)));
        room[n + i % (ID_MAX_BYTES - n)] = '\0';
        must_set(room, key);
        if (i == BURST || i == ROOMS - 1) must_commit();
    }
    assert_true(read_log().n > 2 * LOG_READ_BUFFER_BYTES);
    reopen();
    for (int i = 0; i < ROOMS; i++) {
        int n = snprintf(room, sizeof room, "%d", i);
        memset(room + n, 'r', (size_t)(i % (ID_MAX_BYTES - n)));
        room[n + i % (ID_MAX_BYTES - n)] = '\0';
        assert_key(room, key);
    }
}

/* What one large batch needed is given back behind it, and the next ones begin anew. */
/* As when the disk hangs, and clients come, set and go. */
static void a_batch_that_nobody_takes_has_an_end(void **state) {
    (void)state;
    char room[ID_MAX_BYTES], key[ID_MAX_BYTES];
    uint64_t ticket, sets = 0;
    enum store_result result;
    memset(room, '\n', sizeof room);
    memset(key, '\n', sizeof key);
    open_store();
    do {
        memcpy(room, &sets, sizeof sets);
        result =
            set_slices((struct slice){room, sizeof room}, (struct slice){key, sizeof key}, &ticket);
        sets += result == STORE_OK;
        room[8] = '.'; /* behind the number, which may hold a NUL */
    } while (result == STORE_OK);
    assert_int_equal(result, STORE_UNAVAILABLE);
    must_commit();
    assert_in_range(store_log_bytes(scene.store), 32u << 20, 33u << 20);
    assert_int_equal(store_key_ids(scene.store), sets);
    must_set("afterwards", "key");
    must_commit();
}

static void a_batch_may_be_larger_than_any_other(void **state) {
    (void)state;
    enum { ROOMS = 70000, BATCHES = 3 };
    char room[32];
    open_store();
    for (int i = 0; i < ROOMS; i++) {
        snprintf(room, sizeof room, "room %d", i);
        must_set(room, "k");
    }
    must_commit();
    for (int i = 0; i < 2 * BATCHES; i++) {
        snprintf(room, sizeof room, "later %d", i);
        if (i == BATCHES - 1) disarm();
        must_set(room, "k");
        must_commit();
    }
    assert_int_equal(faults[REALLOC].made, 2); /* bytes and entries of the batch given back */
    disarm();
    reopen();
    assert_key("room 0", "k");
    assert_key("room 69999", "k");
    assert_key("later 5", "k");
}

/* ------------------------------------------------------------------------ torn tails and damage */

static void cut_at(size_t cut) {
    struct slice log = {sample.bytes, cut};
    if (cut < LOG_FIRST_LINE_BYTES) {
        assert_refused(log, cut == 0 ? "keys.log: empty, which roomkeyd never leaves it"
                                     : "keys.log: its first line is not that of a log");
        return;
    }
    unsigned lines = line_of(cut - 1) + (sample.bytes[cut - 1] == '\n');
    if (sample.line_start[lines] == cut) {
        empty_dir();
        write_log(log);
        open_store();
        assert_int_equal(count_files(), 1);
        assert_string_equal(said(), "");
    } else {
        assert_torn(log, sample.line_start[lines]);
    }
    assert_goes_on(lines);
}

static void a_log_cut_anywhere_keeps_its_whole_lines(void **state) {
    (void)state;
    make_sample(true);
    for (size_t cut = 0; cut <= sample.size; cut++) cut_at(cut);
}

/* One byte of the sample changed. What must follow depends only on where it stands. */
static void change_byte(size_t at, char value) {
    char bytes[sizeof sample.bytes];
    struct slice log = {bytes, sample.size};
    memcpy(bytes, sample.bytes, sample.size);
    if (bytes[at] == value) return;
    bytes[at] = value;
    unsigned line = line_of(at);
    if (line == 0) {
        bool is_later = at == LOG_FIRST_LINE_BYTES - 2 && value > '1' && value <= '9';
        assert_refused(log, is_later ? "newer" : "keys.log: its ");
    } else if (at < sample.certified) {
        assert_damaged(log, sample.line_start[line]);
    } else {
        assert_torn(log, sample.line_start[line]);
        assert_lines_there(line);
        assert_int_equal(close_store(), 0);
    }
}

static void change_every_byte(void) {
    static const unsigned char flips[] = {0x01, 0x02, 0x10, 0x20, 0x80, 0xff};
    static const char values[] = {'\n', '\t', '\0', '0', 'f', '9'};
    for (size_t at = 0; at < sample.size; at++) {
        for (size_t i = 0; i < sizeof flips; i++)
            change_byte(at, (char)(sample.bytes[at] ^ flips[i]));
        for (size_t i = 0; i < sizeof values; i++) change_byte(at, values[i]);
    }
}

static void a_changed_byte_is_damage_or_a_torn_tail(void **state) {
    (void)state;
    make_sample(false);
    change_every_byte();
}

static void a_seal_certifies_the_log_to_its_end(void **state) {
    (void)state;
    make_sample(true);
    assert_true(sample.certified == sample.line_start[sample.lines - 1]);
    change_every_byte();
}

/* Copies pieces of the sample, by their lines, one behind the other. */
static struct slice join(const unsigned (*pieces)[2], size_t count) {
    static char bytes[sizeof sample.bytes * 2];
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        size_t from = sample.line_start[pieces[i][0]], to = sample.line_start[pieces[i][1]];
        memcpy(bytes + n, sample.bytes + from, to - from);
        n += to - from;
    }
    return (struct slice){bytes, n};
}

#define PIECES(...)                                                                                \
    join((const unsigned[][2]){__VA_ARGS__},                                                       \
         sizeof((const unsigned[][2]){__VA_ARGS__}) / sizeof(unsigned[2]))

/* How many records of a damaged log are still to be had. */
static uint64_t count_salvaged(void) {
    struct store_inspection inspection = {.visit = NULL};
    char why[256];
    assert_int_equal(store_inspect(scene.dir, &inspection, why, sizeof why), 0);
    assert_true(inspection.is_damaged);
    return inspection.records + inspection.records_after;
}

static void lines_lost_moved_or_doubled_are_damage(void **state) {
    (void)state;
    for (int with_seal = 0; with_seal < 2; with_seal++) {
        make_sample(with_seal);
        unsigned end = sample.lines;
        for (unsigned line = 1; line < 4; line++) {
            assert_refused(PIECES({0, line}, {line + 1, end}), "keys.log: damaged at byte ");
            assert_int_equal(count_salvaged(), SAMPLE_RECORDS - 1);
            size_t at = sample.line_start[line + 1];
            if (at < sample.certified) assert_damaged(PIECES({0, line + 1}, {line, end}), at);
        }
        assert_damaged(PIECES({0, 2}, {3, 4}, {2, 3}, {4, end}), sample.line_start[2]);
        assert_int_equal(count_salvaged(), SAMPLE_RECORDS);
        if (with_seal) /* the seal alone tells */
            assert_damaged(PIECES({0, end - 2}, {end - 1, end}), sample.line_start[end - 2]);
    }
}

static void bytes_lost_or_added_are_damage(void **state) {
    (void)state;
    char bytes[sizeof sample.bytes];
    for (int with_seal = 0; with_seal < 2; with_seal++) {
        make_sample(with_seal);
        for (size_t at = LOG_FIRST_LINE_BYTES; at < sample.certified; at++) {
            size_t bad = sample.line_start[line_of(at)];
            memcpy(bytes, sample.bytes, at);
            memcpy(bytes + at, sample.bytes + at + 1, sample.size - at - 1);
            assert_damaged((struct slice){bytes, sample.size - 1}, bad);
            bytes[at] = '#';
            memcpy(bytes + at + 1, sample.bytes + at, sample.size - at);
            assert_damaged((struct slice){bytes, sample.size + 1}, bad);
        }
    }
}

static void a_zeroed_block_is_damage(void **state) {
    (void)state;
    char bytes[sizeof sample.bytes];
    make_sample(true);
    for (size_t from = LOG_FIRST_LINE_BYTES; from < sample.certified; from += 7)
        for (size_t to = from + 1; to <= sample.certified; to += 13) {
            memcpy(bytes, sample.bytes, sample.size);
            memset(bytes + from, 0, to - from);
            assert_damaged((struct slice){bytes, sample.size}, sample.line_start[line_of(from)]);
        }
}

/* Puts one more line (or any text) behind the sample. */
static struct slice with_tail(struct slice tail) {
    static char bytes[4u << 20];
    memcpy(bytes, sample.bytes, sample.size);
    memcpy(bytes + sample.size, tail.p, tail.n);
    return (struct slice){bytes, sample.size + tail.n};
}

static struct slice line_text(uint64_t batch, const char *format) {
    static char text[LOG_LINE_MAX_BYTES * 2];
    char covered[LOG_LINE_MAX_BYTES];
    snprintf(covered, sizeof covered, format, batch);
    struct slice line = checked(covered);
    memcpy(text, line.p, line.n);
    text[line.n] = '\n';
    return (struct slice){text, line.n + 1};
}

static void a_tail_of_anything_is_torn(void **state) {
    (void)state;
    static char filler[3u << 20];
    make_sample(false);
    size_t end = sample.size;
    const struct {
        char byte;
        size_t size;
        bool ends;
    } rows[] = {
        {'\0', 1, false},
        {'\0', 4096, false},
        {'\0', sizeof filler, false},
        {'x', LOG_LINE_MAX_BYTES - 1, true},
        {'x', LOG_LINE_MAX_BYTES, true},
        {'x', LOG_LINE_MAX_BYTES, false},
        {'x', sizeof filler, true},
        {'\n', 1, false},
        {'\n', 600, false},
        {'\t', 600, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memset(filler, rows[i].byte, rows[i].size);
        if (rows[i].ends) filler[rows[i].size - 1] = '\n';
        assert_torn(with_tail((struct slice){filler, rows[i].size}), end);
        assert_goes_on(sample.lines);
    }
    static const char *const lines[] = {
        "%" PRIx64 "\tS\t1\t-\troom\tk", /* a room twice, in a batch of its own */
        "%" PRIx64 "\tS\t1\t-\tnew",     /* too few fields */
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        assert_torn(with_tail(line_text(end, lines[i])), end);
        assert_int_equal(last_write_at, sample.certified); /* all that is not certified, again */
        assert_goes_on(sample.lines);
    }
    assert_torn(with_tail(line_text(sample.certified, "%" PRIx64 "\tS\t1\t-\troom\tk")), end);
    assert_goes_on(sample.lines);
}

/* Refused, also by those who only look, and every record is still to be had. */
static void assert_handmade(struct slice log, size_t at, const char *cause, unsigned records) {
    char reason[256], why[256];
    struct store_inspection inspection = {.visit = NULL};
    snprintf(reason, sizeof reason, "keys.log: byte %zu: %s", at, cause);
    assert_refused(log, reason);
    assert_int_equal(store_inspect(scene.dir, &inspection, why, sizeof why), 0);
    assert_true(inspection.is_damaged);
    assert_non_null(inspection.cause);
    assert_non_null(strstr(inspection.cause, cause));
    assert_int_equal(inspection.cause_offset, at);
    assert_int_equal(inspection.records + inspection.records_after, records);
}

/* A log of one record a batch, from a room's number to another's: sealed or not. */
static struct slice other_log(unsigned from, unsigned to, bool with_seal) {
    char room[32];
    empty_dir();
    open_store();
    for (unsigned i = from; i < to; i++) {
        snprintf(room, sizeof room, "other%u", i);
        must_set(room, "k");
        must_commit();
    }
    assert_int_equal(close_store(), 0);
    struct slice log = read_log();
    if (!with_seal && to > from)
        log.n = (size_t)((const char *)memrchr(log.p, '\n', log.n - 1) + 1 - log.p);
    return log;
}

/* Each of them was written whole and synced: a crash does not put such a line there. */
static void lines_put_together_by_hand_are_refused(void **state) {
    (void)state;
    static const char joined[] = "a second log begins here";
    static const char stranger[] = "the line here is whole, but was written for another place";
    static const char converted[] = "lines end in CR LF from here on";
    static char other[16384], both[32768];
    for (int sealed = 0; sealed < 2; sealed++)
        for (unsigned count = 0; count <= 70; count += count < 4 ? 1 : 33) {
            struct slice log = other_log(0, count, sealed == 1);
            size_t head = LOG_FIRST_LINE_BYTES, n = log.n;
            memcpy(other, log.p, n);
            make_sample(sealed == 1);
            unsigned records = SAMPLE_RECORDS + count;
            size_t end = sample.size;
            /* cat */
            assert_handmade(with_tail((struct slice){other, n}), end, joined, records);
            /* cat, where the first log had a torn tail */
            char torn[16384 + 8];
            size_t torn_n = (size_t)snprintf(torn, sizeof torn, "?torn\n%.*s", (int)n, other);
            assert_handmade(with_tail((struct slice){torn, torn_n}), end + 6, joined, records);
            /* cat of a log that has been given a byte order mark, or CR LF */
            torn_n = (size_t)snprintf(torn, sizeof torn, "\xEF\xBB\xBF%.*s", (int)n, other);
            assert_handmade(with_tail((struct slice){torn, torn_n}), end, joined, records);
            /* tail -n +2: one line alone may be of a batch that failed, if its BATCH is right. */
            if (count + (unsigned)sealed < 2) continue;
            struct slice lines = {other + head, n - head};
            memcpy(both, sample.bytes, sample.size);
            memcpy(both + sample.size, lines.p, lines.n);
            empty_dir();
            write_log((struct slice){both, sample.size + lines.n});
            assert_false(try_open());
            if (!strstr(scene.why, stranger) && !strstr(scene.why, "damaged at byte"))
                fail_msg("%s", scene.why);
        }
    /* The log itself once more, without its first line. */
    make_sample(true);
    struct slice again = {sample.bytes + LOG_FIRST_LINE_BYTES, sample.size - LOG_FIRST_LINE_BYTES};
    memcpy(other, again.p, again.n);
    assert_false(try_open_with(with_tail((struct slice){other, again.n})));
    assert_non_null(strstr(scene.why, stranger));
    /* A line of no batch, and a seal of another place. */
    make_sample(false);
    assert_handmade(with_tail(line_text(0, "15\tS\t1\t-\tnew\tk")), sample.size, stranger,
                    SAMPLE_RECORDS + 1);
    assert_handmade(with_tail(line_text(0, "14\t-")), sample.size, stranger, SAMPLE_RECORDS);
    /* An editor's line ends, in what was added with it. */
    struct slice line = line_text(sample.size, "%" PRIx64 "\tS\t1\t-\tnew\tk");
    memcpy(other, line.p, line.n);
    memcpy(other + line.n - 1, "\r\n", 2);
    assert_handmade(with_tail((struct slice){other, line.n + 1}), sample.size, converted,
                    SAMPLE_RECORDS + 1);
}

/* Nothing but its first line, or what stands before it or at its end, is wrong with a log. */
static void records_after_a_bad_first_line_are_found(void **state) {
    (void)state;
    static char log[8192];
    make_sample(true);
    struct slice whole = {sample.bytes, sample.size};
    size_t n = 0;
    /* CR LF throughout */
    for (size_t i = 0; i < whole.n; i++) {
        if (whole.p[i] == '\n') log[n++] = '\r';
        log[n++] = whole.p[i];
    }
    assert_salvageable((struct slice){log, n}, "its lines end in CR LF", SAMPLE_RECORDS);
    n = (size_t)snprintf(log, sizeof log, "\xEF\xBB\xBF%.*s", (int)whole.n, whole.p);
    assert_salvageable((struct slice){log, n}, "a byte order mark", SAMPLE_RECORDS);
    struct slice headless = {whole.p + LOG_FIRST_LINE_BYTES, whole.n - LOG_FIRST_LINE_BYTES};
    assert_salvageable(headless, "its first line is not that of a log", SAMPLE_RECORDS);
    for (size_t at = 0; at < LOG_FIRST_LINE_BYTES; at++) {
        memcpy(log, whole.p, whole.n);
        log[at] ^= 0x40;
        assert_salvageable((struct slice){log, whole.n}, "its first line is not that of a log",
                           SAMPLE_RECORDS);
    }
    /* A zeroed block, from the beginning into each line in turn */
    for (unsigned line = 1; line <= SAMPLE_RECORDS; line++) {
        memcpy(log, whole.p, whole.n);
        memset(log, 0, sample.line_start[line] + 5);
        assert_salvageable((struct slice){log, whole.n}, "its first line is not that of a log",
                           SAMPLE_RECORDS - line);
    }
}

/* A log of one batch with `records` records, of which the one numbered `twice` has the room of the
 * first; the numbers begin with 0. *at is where it stands. */
static struct slice log_with_a_room_twice(unsigned records, unsigned twice, size_t *at) {
    static char log[16384];
    char format[64];
    size_t n = (size_t)snprintf(log, sizeof log, LOG_FIRST_LINE);
    for (unsigned i = 0; i < records; i++) {
        snprintf(format, sizeof format, "%%" PRIx64 "\tS\t1\t-\troom%u\tk", i == twice ? 0 : i);
        struct slice line = line_text(LOG_FIRST_LINE_BYTES, format);
        if (i == twice) *at = n;
        memcpy(log + n, line.p, line.n);
        n += line.n;
    }
    return (struct slice){log, n};
}

/* What stands behind it is not there either. */
static void a_room_twice_is_found_however_far_from_the_end(void **state) {
    (void)state;
    char room[32];
    uint64_t ticket;
    size_t at;
    for (unsigned records = 2; records <= 70; records++) {
        unsigned twice = records > 40 ? 3 : 1;
        struct slice log = log_with_a_room_twice(records, twice, &at);
        assert_torn(log, at);
        for (unsigned i = 0; i < records; i++) {
            snprintf(room, sizeof room, "room%u", i);
            assert_int_equal(set(room, "new", &ticket), i < twice ? STORE_EXISTS : STORE_OK);
        }
        must_commit();
        assert_int_equal(close_store(), 0);
    }
}

/* It does not know which rooms there are, nor whether the log is damaged or torn. */
static void a_start_that_could_not_look_at_all_is_none(void **state) {
    (void)state;
    static const struct {
        enum call call;
        int error;
    } rows[] = {{PREAD, EIO}, {CALLOC, ENOMEM}};
    char log[sizeof sample.bytes];
    size_t at;
    make_sample(false);
    memcpy(log, sample.bytes, sample.size);
    log[sample.line_start[2] - 2] ^= 1; /* what is behind that certifies it */
    const struct slice damaged = {log, sample.size}, torn = with_tail(SLICE("torn"));
    const struct slice logs[] = {damaged, torn, log_with_a_room_twice(3, 1, &at)};
    for (size_t i = 0; i < 3 * sizeof rows / sizeof *rows; i++) {
        bool fired = true;
        for (unsigned n = 1; fired; n++) {
            empty_dir();
            write_log(logs[i % 3]);
            arm(rows[i / 3].call, n, n, rows[i / 3].error);
            bool opened = try_open();
            fired = faults[rows[i / 3].call].fired;
            disarm();
            said();
            /* The look at the end of a start may fail: by then all is known. */
            assert_int_equal(opened, i % 3 > 0 && (!fired || opened));
            if (opened) assert_key(i % 3 == 1 ? sample_rooms[0] : "room0", i % 3 == 1 ? "k0" : "k");
            if (opened) assert_int_equal(close_store(), 0);
            if (i % 3 == 0) assert_named_is(LOG_NAME, damaged);
        }
    }
}

static void what_certifies_is_found_behind_anything(void **state) {
    (void)state;
    static char filler[3u << 20];
    static const size_t sizes[] = {1,
                                   2,
                                   600,
                                   LOG_LINE_MAX_BYTES - 30,
                                   LOG_LINE_MAX_BYTES,
                                   LOG_LINE_MAX_BYTES * 2 + 7,
                                   sizeof filler / 2};
    make_sample(false);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int ends = 0; ends < 2; ends++) {
            memset(filler, 'x', sizes[i]);
            if (ends) filler[sizes[i] - 1] = '\n';
            struct slice seal = line_text(sample.size + sizes[i], "%" PRIx64 "\t-");
            memcpy(filler + sizes[i], seal.p, seal.n);
            assert_damaged(with_tail((struct slice){filler, sizes[i] + seal.n}), sample.size);
        }
}

/* A user chooses what stands behind the last digits of an ID, and a crash may lose what stands
 * before them. */
static void what_a_client_chose_certifies_nothing(void **state) {
    (void)state;
    char tail[256];
    make_sample(false);
    const struct {
        uint64_t batch;
        const char *format;
        bool begins_a_line, certifies;
    } rows[] = {
        {sample.size + 1, "%" PRIx64 "\t-", false, true},
        {sample.size * 4, "%" PRIx64 "\t-", false, false}, /* a seal of a much larger log */
        {sample.size * 4, "%" PRIx64 "\t-", true, true},
        {sample.size + 1, "%" PRIx64 "\tkey", false, false}, /* an operation of the future */
        {sample.size + 1, "%" PRIx64 "\tkey", true, true},
        {sample.size + 1, "%" PRIx64, false, false}, /* or none */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct slice line = line_text(rows[i].batch, rows[i].format);
        int n = snprintf(tail, sizeof tail, "lost%s%.*s", rows[i].begins_a_line ? "\n" : "",
                         (int)line.n, line.p);
        struct slice log = with_tail((struct slice){tail, (size_t)n});
        if (rows[i].certifies) {
            assert_damaged(log, sample.size);
        } else {
            assert_torn(log, sample.size);
            assert_goes_on(sample.lines);
        }
    }
}

static void an_earlier_torn_file_is_kept(void **state) {
    (void)state;
    char name[64], message[256];
    make_sample(false);
    snprintf(name, sizeof name, LOG_NAME ".torn-%zu", sample.size);
    for (int i = 1; i <= 3; i++) {
        write_log(with_tail(i == 1 ? SLICE("one") : i == 2 ? SLICE("two") : SLICE("three")));
        open_store();
        snprintf(message, sizeof message, "moved to %s%s\n", name,
                 i == 1   ? ""
                 : i == 2 ? ".2"
                          : ".3");
        assert_non_null(strstr(said(), message));
        assert_int_equal(close_store(), 0);
    }
    assert_named_is(name, SLICE("one"));
    snprintf(name, sizeof name, LOG_NAME ".torn-%zu.3", sample.size);
    assert_named_is(name, SLICE("three"));
}

/* ------------------------------------------------------------------------ seals */

static unsigned count_seals(struct slice log) {
    unsigned seals = 0;
    for (size_t i = 2; i < log.n; i++)
        seals += log.p[i] == '\n' && log.p[i - 1] == '-' && log.p[i - 2] == '\t';
    return seals;
}

/* BATCH of the log's last line. */
static uint64_t last_batch(void) {
    struct slice log = read_log();
    size_t at = log.n - 1;
    while (at > 0 && log.p[at - 1] != '\n') at--;
    struct log_line line;
    assert_int_equal(log_parse((struct slice){log.p + at, log.n - 1 - at}, &line), LOG_VALID);
    return line.batch;
}

static void a_log_at_rest_is_sealed_after_a_second(void **state) {
    (void)state;
    open_store();
    assert_int_equal(store_tick(scene.store, 5000), -1); /* a new log needs none */
    must_set("a", "k");
    assert_true(store_tick(scene.store, 5100) > 0);
    must_commit();
    assert_int_equal(store_tick(scene.store, 5200), 900);
    assert_int_equal(store_tick(scene.store, 6099), 1);
    size_t end = read_log().n;
    disarm();
    assert_true(store_tick(scene.store, 6100) > 0);
    assert_true(collect().ok);
    assert_int_equal(faults[PWRITE].made, 1);
    assert_int_equal(faults[FDATASYNC].made, 0);
    assert_int_equal(store_tick(scene.store, 90000), -1);
    assert_int_equal(last_batch(), end);

    /* The seal was not synced: what follows it stands or falls with it. */
    must_set("b", "k");
    must_commit();
    assert_int_equal(last_batch(), end);
    size_t next = read_log().n;
    must_set("c", "k");
    must_commit();
    assert_int_equal(last_batch(), next);
    reopen();
    assert_key("a", "k");
    assert_key("c", "k");
    assert_int_equal(count_seals(read_log()), 2);
}

static void sets_during_a_seal_belong_to_it(void **state) {
    (void)state;
    open_store();
    must_set("a", "k");
    must_commit();
    size_t end = read_log().n;
    store_tick(scene.store, 1);
    store_tick(scene.store, 1001);
    must_set("b", "k");
    assert_true(collect().ok);
    assert_key("b", NULL);
    must_commit();
    assert_int_equal(last_batch(), end);
    reopen();
    assert_key("b", "k");
}

static void a_sealed_log_is_not_sealed_again(void **state) {
    (void)state;
    make_sample(true);
    for (int i = 0; i < 3; i++) {
        open_store();
        assert_int_equal(store_tick(scene.store, 1), -1);
        assert_int_equal(close_store(), 0);
        assert_named_is(LOG_NAME, (struct slice){sample.bytes, sample.size});
    }
    uint64_t ticket;
    open_store();
    arm(REALLOC, 1, 100, ENOMEM);
    assert_int_equal(set("new", "k", &ticket), STORE_UNAVAILABLE);
    disarm();
    assert_int_equal(close_store(), 0);
    assert_named_is(LOG_NAME, (struct slice){sample.bytes, sample.size});

    make_sample(false);
    write_log((struct slice){sample.bytes, sample.size});
    open_store();
    assert_int_equal(store_tick(scene.store, 7), 1000);
    assert_int_equal(close_store(), 0);
    assert_int_equal(count_seals(read_log()), 1);
}

/* A seal says that what precedes it is on disk; so it must not follow one that was never synced,
 * even when the batch between them is gone. */
static void a_seal_never_follows_an_unsynced_one(void **state) {
    (void)state;
    open_store();
    must_set("a", "k");
    must_commit();
    store_tick(scene.store, 1);
    store_tick(scene.store, 1001);
    assert_true(collect().ok);
    arm(PWRITE, 1, 1, ENOSPC);
    must_set("b", "k");
    assert_false(commit().ok);
    disarm();
    assert_non_null(strstr(said(), "No space left"));
    assert_int_equal(store_tick(scene.store, 9000), -1);
    assert_int_equal(store_tick(scene.store, 19000), -1);
    assert_int_equal(close_store(), 0);
    assert_int_equal(count_seals(read_log()), 1);
}

/* ---------------------------------------------------------------- what may stand in a directory */

static void a_directory_has_one_store(void **state) {
    (void)state;
    char why[512];
    open_store();
    assert_null(store_open(scene.dir, why, sizeof why));
    assert_non_null(strstr(why, "in use by another roomkeyd"));
    must_set("a", "k");
    must_commit();
    assert_int_equal(close_store(), 0);
    open_store();
    assert_key("a", "k");
}

static void what_is_no_log_is_left_alone(void **state) {
    (void)state;
    static const char first_line[] =
        "its first line is not that of a log; nothing has been changed";
    static const char *const blank[] = {"\n", " ", "\t\r\n", "\n\n\n"};
    assert_refused(SLICE(""), "empty, which roomkeyd never leaves it");
    for (size_t i = 0; i < sizeof blank / sizeof *blank; i++)
        assert_refused(slice_of(blank[i]), first_line);
    assert_refused(SLICE("hello\n"), first_line);
    assert_refused(SLICE("\0\0\0\0"), first_line);
    assert_refused(SLICE("roomkeyd keys.log 1"), first_line);
    assert_refused(SLICE("roomkeyd keys.log 01\n"), first_line);
    assert_refused(SLICE("roomkeyd keys.log \n"), first_line);
    assert_refused(SLICE("roomkeyd keys.log 1\r\n"), "CR LF");
    assert_refused(SLICE("\xEF\xBB\xBFroomkeyd keys.log 1\n"), "byte order mark");
    assert_refused(SLICE("\xFF\xFEr\0o\0o\0m\0"), "UTF-16");
    assert_refused(SLICE("\xFE\xFF\0r\0o\0o\0m"), "UTF-16");
    assert_refused(SLICE("roomkeyd keys.log 2\n"), "newer");
    assert_refused(SLICE("roomkeyd keys.log 10\nanything"), "newer");
}

static void lines_of_a_newer_version_are_not_lost(void **state) {
    (void)state;
    char reason[64];
    make_sample(false);
    snprintf(reason, sizeof reason, "keys.log: byte %zu: it was written by a newer", sample.size);
    assert_refused(with_tail(line_text(sample.size, "%" PRIx64 "\tR\t1\tu\tr")), reason);
    assert_inspected(true, sample.size);

    char tail[256];
    struct slice line = line_text(sample.size + 2, "%" PRIx64 "\tR\t1\tu\tr");
    tail[0] = '?';
    tail[1] = '\n';
    memcpy(tail + 2, line.p, line.n);
    assert_damaged(with_tail((struct slice){tail, line.n + 2}), sample.size);
}

static void what_is_no_file_is_refused(void **state) {
    (void)state;
    assert_int_equal(mkdir(path_of(LOG_NAME), 0700), 0);
    assert_false(try_open());
    assert_non_null(strstr(scene.why, "keys.log: Is a directory"));
    empty_dir();
    assert_int_equal(mkfifo(path_of(LOG_NAME), 0600), 0);
    assert_false(try_open());
    assert_non_null(strstr(scene.why, "keys.log: not a regular file"));
    empty_dir();
    assert_int_equal(symlink("/dev/full", path_of(LOG_NAME)), 0);
    assert_false(try_open());
    assert_non_null(strstr(scene.why, "keys.log: a symbolic link"));

    char why[512];
    assert_null(store_open(path_of("missing"), why, sizeof why));
    assert_non_null(strstr(why, "/missing: No such file or directory"));
    empty_dir();
    write_log(SLICE("a file"));
    assert_null(store_open(path_of(LOG_NAME), why, sizeof why));
    assert_non_null(strstr(why, "/keys.log: Not a directory"));
}

static void a_half_born_log_is_no_obstacle(void **state) {
    (void)state;
    int fd = open(path_of(LOG_NAME ".new"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "room\0\0\0", 7), 7);
    close(fd);
    open_store();
    assert_named_is(LOG_NAME, SLICE(LOG_FIRST_LINE));
    assert_int_equal(count_files(), 1);
    struct stat status;
    assert_int_equal(stat(path_of(LOG_NAME), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
}

static void a_log_is_not_born_behind_a_link(void **state) {
    (void)state;
    int fd = open(path_of("precious"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "gold", 4), 4);
    close(fd);
    assert_int_equal(symlink("precious", path_of(LOG_NAME ".new")), 0);
    open_store();
    assert_named_is("precious", SLICE("gold"));
    assert_named_is(LOG_NAME, SLICE(LOG_FIRST_LINE));
}

static void overwrite(size_t at, struct slice bytes) {
    int fd = open(path_of(LOG_NAME), O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, bytes.p, bytes.n, (off_t)at), bytes.n);
    close(fd);
}

/* After somebody has changed the log: nothing that waits settles well, no set is taken, it is told
 * once, and nothing starts until the note is gone. */
static void assert_lost(const char *how) {
    uint64_t ticket;
    char message[512];
    if (!scene.lost_collected) assert_false(collect().ok);
    scene.lost_collected = false;
    assert_true(store_has_failed(scene.store));
    assert_true(store_has_lost_log(scene.store));
    assert_int_equal(set("later", "k", &ticket), STORE_UNAVAILABLE);
    assert_int_equal(close_store(), -1);
    int n =
        snprintf(message, sizeof message, "roomkeyd: keys.log: %s: nothing more is written", how);
    const char *text = said();
    if (strncmp(text, message, (size_t)n) != 0) fail_msg("%s\ninstead of: %s", text, message);
    assert_int_equal(strchr(text, '\n')[1], '\0');
    assert_false(try_open());
    if (!strstr(scene.why, how) || !strstr(scene.why, LOG_NOTE_NAME)) fail_msg("%s", scene.why);
    assert_int_equal(unlink(path_of(LOG_NOTE_NAME)), 0);
}

#define CHANGED_ON_DISK                                                                            \
    "has changed on disk: a record that was read back is not the one written there"

/* Not that the room has no key ID, either: that would make a second winner. */
static void a_record_that_changes_on_disk_is_not_told(void **state) {
    (void)state;
    char found[ID_MAX_BYTES];
    size_t n;
    uint64_t ticket;
    open_store();
    must_set("a", "k");
    must_set("b", "k");
    must_commit();
    assert_key("b", "k"); /* it is kept */
    overwrite(LOG_FIRST_LINE_BYTES + 3, SLICE("?"));
    must_set("c", "k");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_get(scene.store, SLICE("a"), found, &n), STORE_UNAVAILABLE);
        assert_int_equal(set("a", "other", &ticket), STORE_UNAVAILABLE);
        assert_int_equal(ticket, 0);
    }
    assert_key("b", "k");
    store_hand_over(scene.store);
    assert_lost(CHANGED_ON_DISK);
}

/* A valid line, but another room's: it stands where the index says that the room's own does. */
static void a_record_of_another_room_is_not_taken_for_none(void **state) {
    (void)state;
    char found[ID_MAX_BYTES];
    size_t n;
    open_store();
    must_set("a", "k");
    must_set("b", "k");
    must_commit();
    overwrite(LOG_FIRST_LINE_BYTES, line_text(LOG_FIRST_LINE_BYTES, "%" PRIx64 "\tS\t1\t-\tx\tk"));
    assert_int_equal(store_get(scene.store, SLICE("a"), found, &n), STORE_UNAVAILABLE);
    assert_lost(CHANGED_ON_DISK);
}

/* What is done to the log, given its path. */
static void rename_log(const char *path) { assert_int_equal(rename(path, path_of("aside")), 0); }

static void remove_log(const char *path) { assert_int_equal(unlink(path), 0); }

/* As rename, but under the name that it had there is a link to another file. */
static void replace_log(const char *path) {
    char other[512];
    assert_int_equal(rename(path, path_of("aside")), 0);
    snprintf(other, sizeof other, "%s", path_of("other"));
    int fd = open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, LOG_FIRST_LINE, LOG_FIRST_LINE_BYTES), LOG_FIRST_LINE_BYTES);
    close(fd);
    assert_int_equal(rename(other, path), 0);
}

static void remove_log_with_a_link(const char *path) {
    char other[512];
    snprintf(other, sizeof other, "%s", path_of("other"));
    assert_int_equal(link(path, other), 0);
    assert_int_equal(unlink(path), 0);
}

static void cut_log(const char *path) { assert_int_equal(truncate(path, 30), 0); }

static void empty_log(const char *path) { assert_int_equal(truncate(path, 0), 0); }

static void extend_log(const char *path) { assert_int_equal(truncate(path, 5000), 0); }

static void append_to_log(const char *path) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, "\n", 1), 1);
    close(fd);
}

/* As `cp other keys.log` does, where the other has as many bytes. */
static void overwrite_log(const char *path) {
    struct slice log = read_log();
    scene.bytes[log.n - 4] ^= 1;
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    assert_int_equal(log_write_at(fd, log, 0), 0);
    close(fd);
}

static void move_directory(const char *path) {
    (void)path;
    char aside[300];
    snprintf(aside, sizeof aside, "%s.aside", scene.dir);
    assert_int_equal(rename(scene.dir, aside), 0);
}

static void replace_directory(const char *path) {
    move_directory(path);
    assert_int_equal(mkdir(scene.dir, 0700), 0);
}

static void move_directory_back(void) {
    char aside[300];
    snprintf(aside, sizeof aside, "%s.aside", scene.dir);
    if (access(aside, F_OK) < 0) return;
    rmdir(scene.dir);
    assert_int_equal(rename(aside, scene.dir), 0);
}

static const struct {
    void (*deed)(const char *path);
    const char *how;
} deeds[] = {
    {rename_log, "has been renamed"},
    {remove_log, "has been removed"},
    {replace_log, "has been replaced by another file"},
    {remove_log_with_a_link, "has been renamed"},
    {cut_log, "has been cut"},
    {empty_log, "has been cut"},
    {extend_log, "has grown: somebody else has written to it"},
    {append_to_log, "has grown: somebody else has written to it"},
    {overwrite_log, "has been overwritten"},
    {move_directory, "is no longer in use: its directory has been moved"},
    {replace_directory, "is no longer in use: another directory has taken the place of its own"},
};
#define DEEDS (sizeof deeds / sizeof *deeds)

/* Begins with a log of one record. */
static void do_deed(size_t i) {
    char path[512];
    move_directory_back();
    empty_dir();
    open_store();
    must_set("a", "k");
    must_commit();
    snprintf(path, sizeof path, "%s", path_of(LOG_NAME));
    deeds[i].deed(path);
    /* A batch that follows another one at once rests on the look after that. */
    for (int64_t begun_us = clock_us(); clock_us() - begun_us < 1000;) continue;
}

/* By the look before a batch is written, so that not a byte of it gets into a stranger. */
static void a_batch_is_not_written_into_a_stranger(void **state) {
    (void)state;
    for (size_t i = 0; i < DEEDS; i++) {
        do_deed(i);
        last_write_at = -1;
        must_set("b", "k");
        assert_false(commit().ok);
        assert_int_equal(last_write_at, -1);
        scene.lost_collected = true;
        move_directory_back();
        assert_lost(deeds[i].how);
    }
}

/* By the look after the sync: a deed while a batch is written. */
static void a_batch_in_a_stranger_is_not_acknowledged(void **state) {
    (void)state;
    for (size_t i = 0; i < DEEDS; i++) {
        char path[512];
        move_directory_back();
        empty_dir();
        open_store();
        must_set("a", "k");
        must_commit();
        snprintf(path, sizeof path, "%s", path_of(LOG_NAME));
        at_sync = deeds[i].deed;
        at_sync_path = path;
        must_set("b", "k");
        assert_false(commit().ok);
        scene.lost_collected = true;
        move_directory_back();
        assert_lost(deeds[i].how);
    }
}

static void cut_end(const char *path) {
    assert_int_equal(truncate(path, (off_t)read_log().n - 10), 0);
}

/* More than is compared of the beginning and the end together. */
static void make_long_log(void) {
    open_store();
    for (char room[] = "a"; room[0] <= 'l'; room[0]++) {
        must_set(room, "k");
        must_commit();
    }
    assert_true(read_log().n > (size_t)(2 * LOG_TAIL_BYTES));
}

/* Between the look and the write: the batch then gives the log its size and its last bytes back. */
static void a_batch_after_a_hole_is_not_acknowledged(void **state) {
    (void)state;
    char path[512], room[LOG_TAIL_BYTES + 1];
    memset(room, 'r', sizeof room - 1);
    room[sizeof room - 1] = '\0';
    make_long_log();
    snprintf(path, sizeof path, "%s", path_of(LOG_NAME));
    at_write = cut_end;
    at_write_path = path;
    must_set(room, "k"); /* a line that is longer than what is compared of the end */
    assert_false(commit().ok);
    scene.lost_collected = true;
    assert_lost("has been cut or overwritten");
}

/* As dd conv=notrunc does with a shorter log: size and end are as they were. */
static void a_log_whose_beginning_is_overwritten_is_lost(void **state) {
    (void)state;
    for (int is_read = 0; is_read < 2; is_read++) {
        empty_dir();
        make_long_log();
        if (is_read) { /* the beginning, at the start; otherwise it has grown with the batches */
            assert_int_equal(close_store(), 0);
            open_store();
        }
        overwrite(LOG_TAIL_BYTES - 1, SLICE("?"));
        must_set("new", "k");
        assert_false(commit().ok);
        scene.lost_collected = true;
        assert_lost("has been overwritten");
    }
}

/* Without a set, a seal or a read. */
static void a_log_at_rest_is_looked_at_too(void **state) {
    (void)state;
    for (size_t i = 0; i < DEEDS; i += 5) { /* each takes a second */
        do_deed(i);
        struct store_settled settled = collect();
        assert_false(settled.ok);
        assert_int_equal(settled.sets, 0);
        scene.lost_collected = true;
        move_directory_back();
        assert_lost(deeds[i].how);
    }
}

/* At the very end, when the last look is not a second old. */
static void a_stop_looks_once_more(void **state) {
    (void)state;
    for (size_t i = 0; i < DEEDS; i++) {
        do_deed(i);
        assert_int_equal(close_store(), -1);
        if (!strstr(said(), deeds[i].how)) fail_msg("not told: %s", deeds[i].how);
        move_directory_back();
        assert_false(try_open());
        assert_non_null(strstr(scene.why, deeds[i].how));
    }
}

/* The mark is what tells a lost log from a first start. */
static void a_mark_without_a_log_is_refused(void **state) {
    (void)state;
    static const char *const witnesses[] = {
        LOG_MARK_NAME, LOG_NAME ".torn-99", LOG_NAME ".1",  LOG_NAME "-20261201",
        LOG_NAME "~",  "." LOG_NAME ".swp", LOG_NAME ".gz", LOG_NAME ".bak"};
    open_store();
    must_set("a", "k");
    must_commit();
    assert_int_equal(close_store(), 0);
    assert_int_equal(unlink(path_of(LOG_NAME)), 0);
    assert_false(try_open());
    for (size_t i = 0; i < sizeof witnesses / sizeof *witnesses; i++) {
        empty_dir();
        unlink(path_of("." LOG_NAME ".swp"));
        close(open(path_of(witnesses[i]), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        assert_false(try_open());
        if (!strstr(scene.why, "keys.log: missing, but ") || !strstr(scene.why, witnesses[i]))
            fail_msg("%s", scene.why);
        assert_int_equal(access(path_of(LOG_NAME), F_OK), -1);
        unlink(path_of(witnesses[i]));
    }
    /* More than a birth leaves. */
    int fd = open(path_of(LOG_NAME ".new"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "longer than the first line", 26), 26);
    close(fd);
    assert_false(try_open());
    assert_non_null(strstr(scene.why, "keys.log: missing, but keys.log.new"));
}

static void an_older_log_gets_its_mark(void **state) {
    (void)state;
    write_log(SLICE(LOG_FIRST_LINE));
    open_store();
    assert_int_equal(access(path_of(LOG_MARK_NAME), F_OK), 0);
    assert_int_equal(close_store(), 0);
    open_store();
    assert_string_equal(said(), "");
}

/* Then what happens to it is told all the same by its size and its end. */
static void file_numbers_that_are_unstable_are_told(void **state) {
    (void)state;
    numbers_are_unstable = true;
    open_store();
    numbers_are_unstable = false;
    assert_non_null(strstr(said(), "this file system numbers its files differently at each look"));
    must_set("a", "k");
    must_commit();
    numbers_are_unstable = true;
    must_set("b", "k");
    must_commit();
    numbers_are_unstable = false;
    char path[512];
    snprintf(path, sizeof path, "%s", path_of(LOG_NAME));
    cut_log(path);
    assert_lost("has been cut");
}

/* A path that may no longer be looked up is not one that is another's. */
static void what_cannot_be_looked_up_is_not_lost(void **state) {
    (void)state;
    open_store();
    look_error = EACCES;
    must_set("a", "k");
    must_commit();
    look_error = 0;
    assert_int_equal(close_store(), 0);
    assert_string_equal(said(), "");
}

/* What was read back once is not read again: one changed byte, or a disk that reads no more, does
 * not matter to it. */
static void a_line_read_back_is_kept(void **state) {
    (void)state;
    open_store();
    must_set("a", "k");
    must_set("b", "k");
    must_commit();
    assert_key("a", "k");
    arm(PREAD, 1, 1000, EIO);
    for (int i = 0; i < 3; i++) assert_key("a", "k");
    assert_false(faults[PREAD].fired);
    char found[ID_MAX_BYTES];
    size_t n;
    assert_int_equal(store_get(scene.store, SLICE("b"), found, &n), STORE_UNAVAILABLE);
    assert_true(faults[PREAD].fired);
    disarm();
    assert_key("b", "k");
    said();
}

static void a_long_line_read_back_is_kept(void **state) {
    (void)state;
    char key[ID_MAX_BYTES + 1] = {0};
    memset(key, '\\', ID_MAX_BYTES);
    open_store();
    must_set("a", key);
    must_commit();
    assert_key("a", key);
    arm(PREAD, 1, 1000, EIO);
    assert_key("a", key);
    assert_false(faults[PREAD].fired);
}

/* Few lines are kept, each in a place that others share: what spoils a place is not taken for what
 * was there before. The lines are equally long, so that many of them share the first one's. */
static void a_line_that_is_not_valid_is_not_kept(void **state) {
    (void)state;
    char room[16], found[ID_MAX_BYTES];
    size_t n;
    open_store();
    for (int i = 10; i < 90; i++) {
        snprintf(room, sizeof room, "r%d", i);
        must_set(room, room);
    }
    must_commit();
    int fd = open(path_of(LOG_NAME), O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "?", 1, (off_t)LOG_FIRST_LINE_BYTES + 3), 1);
    close(fd);
    for (int i = 11; i < 90; i++) {
        snprintf(room, sizeof room, "r%d", i);
        assert_key(room, room);
        assert_int_equal(store_get(scene.store, SLICE("r10"), found, &n), STORE_UNAVAILABLE);
        assert_key(room, room);
    }
    said();
}

/* A line that replay read and cut off is not taken for the one that is written in its place. */
static void what_was_cut_off_is_forgotten(void **state) {
    (void)state;
    open_store();
    must_set("a", "k");
    must_commit();
    assert_int_equal(close_store(), 0);
    struct slice log = read_log();
    size_t end =
        (size_t)((const char *)memchr(log.p + LOG_FIRST_LINE_BYTES, '\n', log.n) - log.p) + 1;
    char bytes[256];
    memcpy(bytes, log.p, end);
    struct slice twice = line_text(end, "%" PRIx64 "\tS\t1\t-\ta\tk");
    memcpy(bytes + end, twice.p, twice.n);
    assert_torn((struct slice){bytes, end + twice.n}, end);
    must_set("b", "k");
    must_commit();
    assert_key("b", "k");
    uint64_t ticket;
    assert_int_equal(set("b", "other", &ticket), STORE_EXISTS);
}

/* ------------------------------------------------------------------------ when a batch fails */

/* "a" is durable, "b" is in the batch that meets the fault, "c" in the one that gathers
 * meanwhile. */
static void fail_a_batch(enum call call, unsigned last, int error) {
    open_store();
    must_set("a", "k");
    must_commit();
    must_set("b", "k");
    arm(call, 1, last, error);
    store_hand_over(scene.store);
    uint64_t ticket = must_set("c", "k");
    struct store_settled settled = collect();
    assert_true(faults[call].fired);
    disarm();
    assert_false(settled.ok);
    assert_int_equal(settled.up_to, ticket);
    assert_key("a", "k");
    assert_key("b", NULL);
    assert_key("c", NULL);
}

/* Batches, their times, and the log's length, as the store tells them. */
static void a_batch_says_how_it_went(void **state) {
    (void)state;
    open_store();
    assert_int_equal(store_key_ids(scene.store), 0);
    assert_int_equal(store_log_bytes(scene.store), read_log().n);
    must_set("a", "k");
    must_set("b", "k");
    must_set("c", "k");
    assert_int_equal(store_key_ids(scene.store), 0);
    struct store_settled settled = commit();
    assert_true(settled.ok && settled.sets == 3);
    assert_in_range(settled.commit_us, 0, COMMIT_TIMEOUT_MS * 1000);
    assert_int_equal(store_key_ids(scene.store), 3);
    assert_int_equal(store_log_bytes(scene.store), read_log().n);

    store_tick(scene.store, 1000);
    store_tick(scene.store, 3000);
    settled = collect();
    assert_true(settled.ok && settled.sets == 0); /* a seal */
    assert_int_equal(store_log_bytes(scene.store), read_log().n);

    must_set("d", "k");
    must_set("e", "k");
    arm(PWRITE, 1, 1, ENOSPC);
    settled = commit();
    disarm();
    assert_true(!settled.ok && settled.sets == 2);
    assert_non_null(strstr(said(), "No space left"));
    assert_int_equal(store_key_ids(scene.store), 3);
    assert_int_equal(store_log_bytes(scene.store), read_log().n);
    reopen();
    assert_int_equal(store_key_ids(scene.store), 3);
    assert_int_equal(store_log_bytes(scene.store), read_log().n);
}

static void a_full_disk_refuses_while_it_is_full(void **state) {
    (void)state;
    static const int errors[] = {ENOSPC, EDQUOT, EFBIG};
    char message[256];
    for (size_t i = 0; i < 3; i++) {
        empty_dir();
        fail_a_batch(PWRITE, 1, errors[i]);
        snprintf(message, sizeof message,
                 "roomkeyd: keys.log: write: %s: sets are refused while that lasts\n",
                 strerror(errors[i]));
        assert_string_equal(said(), message);
        assert_false(store_has_failed(scene.store));

        uint64_t failed = must_set("b", "k2");
        arm(PWRITE, 1, 1, errors[i]);
        struct store_settled settled = commit();
        disarm();
        assert_false(settled.ok);
        assert_true(settled.up_to >= failed);
        assert_string_equal(said(), ""); /* it has been said */

        assert_true(must_set("b", "k3") > settled.up_to);
        must_commit();
        assert_string_equal(said(), "roomkeyd: keys.log: there is space again, sets are taken\n");
        reopen();
        assert_key("a", "k");
        assert_key("b", "k3");
        assert_key("c", NULL);
        assert_int_equal(close_store(), 0);
    }
}

/* Sets that fail for hours must not make the index grow. */
/* A copy-on-write file system needs space even for writing what is there. Of a log that was sealed
 * nothing has to be written before it is read; before it grows the seal is, so that no batch rests
 * on one that may not be on disk. */
static void a_sealed_log_is_read_on_a_full_disk(void **state) {
    (void)state;
    static const int errors[] = {ENOSPC, EDQUOT, EFBIG};
    uint64_t ticket;
    for (size_t i = 0; i < 3; i++) {
        make_sample(true);
        off_t seal = (off_t)sample.line_start[SAMPLE_RECORDS + 1];
        arm(PWRITE, 1, 1000, errors[i]);
        open_store();
        assert_non_null(strstr(said(), "no space even for its last line: sets are refused while"));
        assert_lines_there(sample.lines);
        assert_int_equal(set("room", "other", &ticket), STORE_EXISTS);
        must_set("new", "k");
        assert_false(commit().ok);
        assert_false(store_has_failed(scene.store));
        assert_lines_there(sample.lines);
        disarm();
        must_set("new", "k");
        must_commit();
        assert_int_equal(before_last_write_at, seal);
        assert_int_equal(last_write_at, sample.size);
        assert_string_equal(said(), "roomkeyd: keys.log: there is space again, sets are taken\n");
        reopen();
        assert_lines_there(sample.lines);
        assert_key("new", "k");
        assert_int_equal(close_store(), 0);
    }
    /* Without a set it stays as it is, and so does the next start. */
    make_sample(true);
    for (int i = 0; i < 2; i++) {
        arm(PWRITE, 1, 1000, ENOSPC);
        open_store();
        disarm();
        assert_int_equal(close_store(), 0);
        assert_named_is(LOG_NAME, (struct slice){sample.bytes, sample.size});
    }
    said();
    /* What may not be on disk is not told. */
    make_sample(false);
    empty_dir();
    write_log((struct slice){sample.bytes, sample.size});
    arm(PWRITE, 1, 1000, ENOSPC);
    assert_false(try_open());
    disarm();
    assert_non_null(strstr(scene.why, "cannot bring the last batch to disk again: No space left"));
}

/* The file system is named, not the batch, and not only the error. */
static void what_a_file_system_cannot_do_is_named(void **state) {
    (void)state;
    static const int errors[] = {EINVAL, ENOSYS, EOPNOTSUPP};
    for (size_t i = 0; i < 3; i++)
        for (unsigned n = 1; n <= 3; n++) { /* at birth: the file, the directory; and at the end */
            empty_dir();
            arm(FSYNC, n, 1000, errors[i]);
            assert_false(try_open());
            disarm();
            assert_non_null(strstr(scene.why, "its file system cannot sync a directory"));
        }
    static const int locks[] = {ENOLCK, ENOSYS, EOPNOTSUPP};
    for (size_t i = 0; i < 3; i++) {
        empty_dir();
        arm(FLOCK, 1, 1, locks[i]);
        assert_false(try_open());
        disarm();
        assert_non_null(strstr(scene.why, "cannot lock the directory"));
        assert_non_null(strstr(scene.why, "the file system has no locks"));
    }
}

static void failed_sets_leave_nothing_reserved(void **state) {
    (void)state;
    char room[32];
    open_store();
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 200; i++) {
            snprintf(room, sizeof room, "room %d", i);
            must_set(room, "k");
        }
        arm(PWRITE, 1, 1, ENOSPC);
        assert_false(commit().ok);
        if (round < 3) disarm(); /* all three batches have grown now */
    }
    assert_int_equal(faults[CALLOC].made, 0);
    disarm();
    assert_non_null(strstr(said(), "No space left"));
}

/* It was made for the place behind that: written there, it would stand behind a gap. */
static void a_batch_behind_one_that_fails_is_not_written(void **state) {
    (void)state;
    struct store_settled settled;
    struct epoll_event event;
    open_store();
    must_set("a", "k");
    arm(PWRITE, 1, 1, ENOSPC);
    store_hand_over(scene.store);
    assert_int_equal(epoll_wait(scene.epoll_fd, &event, 1, COMMIT_TIMEOUT_MS), 1);
    uint64_t behind = must_set("b", "k");
    store_hand_over(scene.store);
    assert_true(store_collect(scene.store, &settled));
    assert_false(settled.ok);
    assert_true(settled.up_to >= behind);
    assert_int_equal(faults[PWRITE].made, 1);
    disarm();
    must_set("b", "k");
    must_set("a", "k");
    must_commit();
    assert_non_null(strstr(said(), "No space left"));
    reopen();
    assert_key("a", "k");
    assert_key("b", "k");
}

static void half_a_write_is_finished_or_cut_back(void **state) {
    (void)state;
    char before[512];
    open_store();
    must_set("a", "k");
    must_set("b", "k");
    arm(PWRITE, 1, 3, SHORT_COUNT);
    must_commit();
    assert_int_equal(faults[PWRITE].made, 4);
    assert_key("a", "k");
    assert_key("b", "k");
    struct slice log = read_log();
    size_t size = log.n;
    memcpy(before, log.p, size);

    must_set("c", "k");
    must_set("d", "k");
    arm(PWRITE, 1, 2, ENOSPC);
    faults[PWRITE].half_first = true;
    assert_false(commit().ok);
    assert_int_equal(faults[PWRITE].made, 2);
    assert_non_null(strstr(said(), "No space left"));
    assert_named_is(LOG_NAME, (struct slice){before, size});
    assert_false(store_has_failed(scene.store));
    reopen();
    assert_key("b", "k");
    assert_key("c", NULL);
    assert_key("d", NULL);
}

static void a_failed_disk_refuses_until_it_is_opened_again(void **state) {
    (void)state;
    static const struct {
        enum call call;
        const char *name;
        int error;
    } rows[] = {{FDATASYNC, "fdatasync", EIO},    {FDATASYNC, "fdatasync", ENOSPC},
                {FDATASYNC, "fdatasync", EDQUOT}, {PWRITE, "write", EIO},
                {PWRITE, "write", EROFS},         {PWRITE, "write", EBADF}};
    char message[256];
    uint64_t ticket;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        empty_dir();
        fail_a_batch(rows[i].call, 1, rows[i].error);
        snprintf(message, sizeof message,
                 "roomkeyd: keys.log: %s: %s: sets are refused until restart\n", rows[i].name,
                 strerror(rows[i].error));
        assert_string_equal(said(), message);
        assert_true(store_has_failed(scene.store));
        assert_int_equal(set("b", "k2", &ticket), STORE_UNAVAILABLE);
        assert_int_equal(ticket, 0);
        assert_int_equal(set("a", "k2", &ticket), STORE_EXISTS);
        assert_int_equal(store_tick(scene.store, 100000), -1);
        assert_int_equal(close_store(), -1);
        open_store();
        assert_key("a", "k");
        assert_key("b", NULL);
        assert_key("c", NULL);
        must_set("b", "k3");
        assert_int_equal(close_store(), 0);
    }
}

static void a_log_that_cannot_be_cut_is_not_written_to(void **state) {
    (void)state;
    uint64_t ticket;
    open_store();
    must_set("a", "k");
    must_commit();
    must_set("b", "k");
    must_set("c", "a longer key, so that half of the batch has no end");
    arm(PWRITE, 1, 2, ENOSPC);
    faults[PWRITE].half_first = true;
    arm(FTRUNCATE, 1, 1, EIO);
    assert_false(commit().ok);
    disarm();
    assert_string_equal(said(), "roomkeyd: keys.log: write: No space left on device: "
                                "sets are refused while that lasts\n"
                                "roomkeyd: keys.log: ftruncate: Input/output error: "
                                "sets are refused until restart\n");
    assert_true(store_has_failed(scene.store));
    assert_int_equal(set("d", "k", &ticket), STORE_UNAVAILABLE);
    assert_key("a", "k");
    assert_key("b", NULL);
    assert_int_equal(close_store(), -1);

    /* "b" was written whole and could not be cut off: it has come true after all. */
    open_store();
    assert_non_null(strstr(said(), "a crash left a torn tail"));
    assert_key("a", "k");
    assert_key("b", "k");
    assert_key("c", NULL);
}

/* A start rests on all that it locks, writes, syncs, names and cuts: if one of these fails, there is none,
 * the reason is told, and a torn tail is where it was or in its file. What a start reads back would
 * look the same. */
static void a_start_of_which_anything_fails_is_none(void **state) {
    (void)state;
    static const enum call calls[] = {FLOCK, PWRITE, FDATASYNC, FSYNC, RENAMEAT, FTRUNCATE};
    static const char *const tails[] = {NULL, "", "torn"}; /* of the log; NULL: there is none */
    make_sample(false);
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        for (size_t j = 0; j < sizeof calls / sizeof *calls; j++)
            for (unsigned use = 1, is_open = 0; !is_open; use++) {
                char log[sizeof sample.bytes + 8], torn[64];
                size_t n = tails[i] ? strlen(tails[i]) : 0;
                empty_dir();
                memcpy(log, sample.bytes, sample.size);
                memcpy(log + sample.size, tails[i] ? tails[i] : "", n);
                if (tails[i]) write_log((struct slice){log, sample.size + n});
                disarm();
                int error = calls[j] == FLOCK ? ENOLCK : calls[j] == FTRUNCATE ? EPERM : EIO;
                arm(calls[j], use, use, error);
                is_open = try_open();
                assert_int_equal(is_open, !faults[calls[j]].fired);
                disarm();
                said();
                if (is_open)
                    close_store();
                else
                    assert_non_null(strstr(scene.why, strerror(error)));
                if (n > 0 && read_log().n < sample.size + n) {
                    snprintf(torn, sizeof torn, LOG_NAME ".torn-%zu", sample.size);
                    assert_named_is(torn, slice_of(tails[i]));
                }
            }
}

static unsigned reads_before; /* the log becomes shorter */

static void shorten_later(void) {
    if (reads_before-- > 0)
        faults[PREAD].meanwhile = shorten_later;
    else
        assert_int_equal(truncate(path_of(LOG_NAME), (off_t)LOG_FIRST_LINE_BYTES), 0);
}

/* Nobody who keeps to the locks does that: a start sees it or not, and has a reason if it does. */
static void a_log_that_becomes_shorter_during_a_start(void **state) {
    (void)state;
    unsigned refused = 0;
    bool was_shortened = true;
    make_sample(false);
    for (unsigned reads = 1; was_shortened; reads++) {
        empty_dir();
        write_log((struct slice){sample.bytes, sample.size});
        disarm();
        reads_before = reads - 1;
        faults[PREAD].meanwhile = shorten_later;
        bool is_open = try_open();
        was_shortened = faults[PREAD].made >= reads;
        if (is_open) close_store();
        refused += !is_open;
        assert_null(strstr(scene.why, strerror(0)));
        assert_true(is_open || strstr(scene.why, strerror(EIO)) ||
                    strstr(scene.why, ", while it was read"));
    }
    assert_true(refused > 0);
    said();
}

/* ------------------------------------------------------------------------ every call fails once */

#define RUN_ROOMS 8

enum fate { NOT_ASKED, REFUSED, FAILED, ACKNOWLEDGED };

static const char *run_room(unsigned i) {
    static const char *const rooms[RUN_ROOMS] = {"r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"};
    return rooms[i];
}

static void run_batch(enum fate fates[RUN_ROOMS], unsigned from, unsigned to) {
    uint64_t ticket;
    bool is_any_taken = false;
    for (unsigned i = from; i < to; i++) {
        fates[i] = set(run_room(i), "k", &ticket) == STORE_OK ? FAILED : REFUSED;
        is_any_taken = is_any_taken || fates[i] == FAILED;
    }
    if (is_any_taken && commit().ok)
        for (unsigned i = from; i < to; i++)
            fates[i] = fates[i] == FAILED ? ACKNOWLEDGED : fates[i];
}

/* Reads may fail, but they do not lie. */
static void run_reads(const enum fate fates[RUN_ROOMS]) {
    char key[ID_MAX_BYTES];
    size_t n;
    for (unsigned i = 0; i < RUN_ROOMS; i++) {
        enum store_result result = store_get(scene.store, slice_of(run_room(i)), key, &n);
        if (result != STORE_UNAVAILABLE)
            assert_int_equal(result, fates[i] == ACKNOWLEDGED ? STORE_OK : STORE_NONE);
    }
}

/* A life of the store, from birth or from the log that is there to a clean stop. Nothing in it but
 * the store allocates. Returns whether it could be opened. */
static bool run_script(enum fate fates[RUN_ROOMS]) {
    if (!try_open()) return false;
    run_batch(fates, 0, 2);
    run_batch(fates, 2, 5);
    for (int64_t now_ms = 1; now_ms <= 1001; now_ms += 1000) store_tick(scene.store, now_ms);
    struct store_settled settled;
    struct epoll_event event;
    while (store_tick(scene.store, 1002) != -1 && !store_collect(scene.store, &settled))
        assert_int_equal(epoll_wait(scene.epoll_fd, &event, 1, COMMIT_TIMEOUT_MS), 1);
    run_reads(fates);
    run_batch(fates, 5, RUN_ROOMS);
    run_reads(fates);
    close_store();
    return true;
}

/* What is there when the store is opened again, with nothing failing. */
static void check_run(const enum fate fates[RUN_ROOMS], bool could_cut) {
    char key[ID_MAX_BYTES];
    size_t n;
    open_store();
    for (unsigned i = 0; i < RUN_ROOMS; i++) {
        enum store_result result = store_get(scene.store, slice_of(run_room(i)), key, &n);
        if (fates[i] == ACKNOWLEDGED)
            assert_int_equal(result, STORE_OK);
        else if (fates[i] != FAILED || could_cut)
            assert_int_equal(result, STORE_NONE);
    }
    must_set("afterwards", "k");
    assert_int_equal(close_store(), 0);
}

static void prepare_run(bool with_torn_tail) {
    disarm();
    empty_dir();
    if (with_torn_tail) {
        char log[512];
        struct slice line = line_text(LOG_FIRST_LINE_BYTES, "%" PRIx64 "\tS\t1\t-\told\tk");
        int n = snprintf(log, sizeof log, LOG_FIRST_LINE "%.*stor", (int)line.n, line.p);
        write_log((struct slice){log, (size_t)n});
    }
}

/* Each complaint is a whole line of the store's. */
static void assert_said_sound(void) {
    for (const char *line = said(); *line; line = strchr(line, '\n') + 1) {
        assert_int_equal(strncmp(line, "roomkeyd: keys.log: ", 20), 0);
        assert_non_null(strchr(line, '\n'));
    }
}

/* The script with one kind of call failing from its n-th use on, `length` times. Returns whether it
 * is used that often. */
static bool run_with_fault(enum call call, unsigned n, unsigned length, int error) {
    for (int with_torn_tail = 0, used = 0;; with_torn_tail++) {
        if (with_torn_tail == 2) return used;
        enum fate fates[RUN_ROOMS] = {NOT_ASKED};
        prepare_run(with_torn_tail);
        arm(call, n, n + length - 1, error);
        bool opened = run_script(fates);
        bool fired = faults[call].fired, is_hidden = error == EINTR || error == SHORT_COUNT;
        disarm();
        if (!opened) {
            assert_true(fired && !is_hidden);
            assert_non_null(strstr(scene.why, scene.dir));
            assert_non_null(strstr(scene.why, error == ENOMEM ? "emory"
                                              : call == FLOCK && error == EWOULDBLOCK
                                                  ? "in use"
                                                  : strerror(error)));
        }
        for (unsigned i = 0; (!fired || is_hidden) && i < RUN_ROOMS; i++)
            assert_int_equal(fates[i], ACKNOWLEDGED);
        check_run(fates, call != FTRUNCATE);
        assert_said_sound();
        used = used || fired;
    }
}

static void any_call_may_fail_at_any_use(void **state) {
    (void)state;
    static const struct {
        enum call call;
        int errors[7];
    } rows[] = {
        {PWRITE, {EIO, ENOSPC, EDQUOT, EFBIG, EINTR, SHORT_COUNT}},
        {PREAD, {EIO, EINTR, SHORT_COUNT}},
        {FDATASYNC, {EIO, ENOSPC, EDQUOT, EINTR}},
        {FSYNC, {EIO, ENOSPC, EDQUOT, EINTR}},
        {FTRUNCATE, {EIO, EPERM, EINTR}},
        {OPEN, {EACCES, EMFILE, ENFILE, ENOMEM}},
        {OPENAT, {EACCES, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS, EIO}},
        {RENAMEAT, {EIO, ENOSPC, EDQUOT, EROFS}},
        {FLOCK, {EWOULDBLOCK, ENOLCK}},
        {EVENTFD, {EMFILE, ENFILE, ENOMEM}},
        {PTHREAD_CREATE, {EAGAIN}},
        {GETRANDOM, {ENOSYS}},
        {MALLOC, {ENOMEM}},
        {CALLOC, {ENOMEM}},
        {REALLOC, {ENOMEM}},
    };
    unsigned runs = 0;
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
        for (size_t i = 0; i < 7 && rows[row].errors[i] != 0; i++)
            for (unsigned length = 1; length <= 100; length += 99) {
                /* An EINTR or a short count for ever would be another story. */
                unsigned times = rows[row].errors[i] == SHORT_COUNT && length > 1 ? 4 : length;
                unsigned n = 1;
                while (run_with_fault(rows[row].call, n, times, rows[row].errors[i])) n++;
                assert_true(n > 1); /* each is used at least once */
                runs += n;
            }
    print_message("%u runs with a fault\n", runs);
}

int main(void) {
#define UNIT(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        UNIT(the_checksum_is_crc32c),
        UNIT(ids_are_escaped_one_way_only),
        UNIT(lines_have_one_spelling),
        UNIT(a_set_is_shown_when_it_is_durable),
        UNIT(rooms_of_one_hash_are_told_apart),
        UNIT(closing_commits_what_is_open),
        UNIT(a_batch_is_one_write_and_one_sync),
        UNIT(each_call_is_given_the_log),
        cmocka_unit_test_setup_teardown(random_runs_agree_with_the_model, seed_generator,
                                        tear_down),
        UNIT(a_log_may_be_longer_than_any_buffer),
        UNIT(a_batch_may_be_larger_than_any_other),
        UNIT(a_batch_that_nobody_takes_has_an_end),
        UNIT(a_log_cut_anywhere_keeps_its_whole_lines),
        UNIT(a_changed_byte_is_damage_or_a_torn_tail),
        UNIT(a_seal_certifies_the_log_to_its_end),
        UNIT(lines_lost_moved_or_doubled_are_damage),
        UNIT(bytes_lost_or_added_are_damage),
        UNIT(a_zeroed_block_is_damage),
        UNIT(a_tail_of_anything_is_torn),
        UNIT(lines_put_together_by_hand_are_refused),
        UNIT(records_after_a_bad_first_line_are_found),
        UNIT(a_room_twice_is_found_however_far_from_the_end),
        UNIT(a_start_that_could_not_look_at_all_is_none),
        UNIT(what_certifies_is_found_behind_anything),
        UNIT(what_a_client_chose_certifies_nothing),
        UNIT(an_earlier_torn_file_is_kept),
        UNIT(a_log_at_rest_is_sealed_after_a_second),
        UNIT(sets_during_a_seal_belong_to_it),
        UNIT(a_sealed_log_is_not_sealed_again),
        UNIT(a_seal_never_follows_an_unsynced_one),
        UNIT(a_directory_has_one_store),
        UNIT(what_is_no_log_is_left_alone),
        UNIT(lines_of_a_newer_version_are_not_lost),
        UNIT(what_is_no_file_is_refused),
        UNIT(a_half_born_log_is_no_obstacle),
        UNIT(a_log_is_not_born_behind_a_link),
        UNIT(a_record_that_changes_on_disk_is_not_told),
        UNIT(a_record_of_another_room_is_not_taken_for_none),
        UNIT(a_batch_is_not_written_into_a_stranger),
        UNIT(a_batch_in_a_stranger_is_not_acknowledged),
        UNIT(a_batch_after_a_hole_is_not_acknowledged),
        UNIT(a_log_whose_beginning_is_overwritten_is_lost),
        UNIT(a_log_at_rest_is_looked_at_too),
        UNIT(a_stop_looks_once_more),
        UNIT(a_mark_without_a_log_is_refused),
        UNIT(an_older_log_gets_its_mark),
        UNIT(file_numbers_that_are_unstable_are_told),
        UNIT(what_cannot_be_looked_up_is_not_lost),
        UNIT(a_line_read_back_is_kept),
        UNIT(a_long_line_read_back_is_kept),
        UNIT(a_line_that_is_not_valid_is_not_kept),
        UNIT(what_was_cut_off_is_forgotten),
        UNIT(a_batch_says_how_it_went),
        UNIT(a_full_disk_refuses_while_it_is_full),
        UNIT(a_sealed_log_is_read_on_a_full_disk),
        UNIT(what_a_file_system_cannot_do_is_named),
        UNIT(failed_sets_leave_nothing_reserved),
        UNIT(a_batch_behind_one_that_fails_is_not_written),
        UNIT(half_a_write_is_finished_or_cut_back),
        UNIT(a_failed_disk_refuses_until_it_is_opened_again),
        UNIT(a_log_that_cannot_be_cut_is_not_written_to),
        UNIT(a_start_of_which_anything_fails_is_none),
        UNIT(a_log_that_becomes_shorter_during_a_start),
        UNIT(any_call_may_fail_at_any_use),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
