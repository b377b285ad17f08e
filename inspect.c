/*
 * inspect.c: the commands that look at a data directory: check, its --salvage, and export.
 *
 *     check      -> log, users, rooms: what is wrong with them
 *     --salvage  -> every valid record of the log, into a new one
 *     export     -> every key ID, as a line of JSON
 *
 * All work beside a running server. They never cut or mend anything: they read the log to its end,
 * sync it, and only then speak of it; --salvage writes a new file.
 */
#include "inspect.h"
#include "access.h"
#include "clock.h"
#include "json.h"
#include "log.h"
#include "store.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <unistd.h>

#define WHY_BYTES 512

/* ------------------------------------------------------------------------ check */

/* A new log in the making: one batch with every valid record of another, and a seal. */
struct salvage {
    int fd;
    uint64_t size, records;
    int error; /* of its file, where that could not be written */
};

static int note_error(struct salvage *salvage, int result) {
    if (result < 0) salvage->error = errno;
    return result;
}

static int write_line(struct salvage *salvage, const struct log_line *line) {
    char bytes[LOG_LINE_MAX_BYTES];
    struct slice text = {bytes, log_format(line, bytes)};
    uint64_t at = salvage->size;
    salvage->size += text.n;
    return note_error(salvage, log_write_at(salvage->fd, text, at));
}

static int salvage_record(void *context, const struct store_record *record, uint64_t time_ms) {
    char user[LOG_ESCAPED_MAX_BYTES], room[LOG_ESCAPED_MAX_BYTES], key[LOG_ESCAPED_MAX_BYTES];
    struct log_line line = {
        .batch = LOG_FIRST_LINE_BYTES,
        .time_ms = time_ms,
        .user = log_escape(record->user, user),
        .room = log_escape(record->room, room),
        .key = log_escape(record->key, key),
    };
    ((struct salvage *)context)->records++;
    return write_line(context, &line);
}

/* Makes the name of a new file durable. Returns 0, or -1 with errno set. */
static int sync_directory_of(const char *path) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) + 1 : 0;
    if (n >= sizeof dir) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(dir, n > 0 ? path : ".", n > 0 ? n : 1);
    dir[n > 0 ? n : 1] = '\0';
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = log_sync_all(fd), error = errno;
    close(fd);
    errno = error;
    return result;
}

/* Writes a log's valid records to a new one. Returns 0, or -1, reported, and nothing is left. */
static int salvage_log(const struct options *options) {
    char why[WHY_BYTES];
    int fd = open(options->salvage, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct salvage salvage = {.fd = fd, .size = LOG_FIRST_LINE_BYTES};
    struct store_inspection inspection = {.visit = salvage_record, .context = &salvage};
    if (fd < 0) return tell("%s: %s", options->salvage, strerror(errno));
    int result = note_error(&salvage, log_write_at(fd, SLICE(LOG_FIRST_LINE), 0));
    if (result == 0) result = store_inspect(options->dir, &inspection, why, sizeof why);
    if (result == 0) result = note_error(&salvage, log_sync_all(fd));
    struct log_line seal = {.batch = salvage.size, .is_seal = true}; /* of what is on disk now */
    if (result == 0) result = write_line(&salvage, &seal);
    if (result == 0) result = note_error(&salvage, log_sync_all(fd));
    if (result == 0) result = note_error(&salvage, sync_directory_of(options->salvage));
    close(fd);
    if (salvage.error)
        snprintf(why, sizeof why, "%s: %s", options->salvage, strerror(salvage.error));
    if (result == 0)
        printf("%s: %" PRIu64 " records\n", options->salvage, salvage.records);
    else
        unlink(options->salvage);
    return result == 0 ? 0 : tell("%s", why);
}

static void print_inspection(const char *dir, const struct store_inspection *inspection) {
    uint64_t bad = inspection->fault_offset, rest = inspection->size - bad;
    printf("%s/" LOG_NAME ": %" PRIu64 " records in %" PRIu64 " bytes\n", dir, inspection->records,
           bad);
    if (inspection->is_damaged)
        printf("%s/" LOG_NAME ": damaged at byte %" PRIu64 ": %s\n"
               "%s/" LOG_NAME ": %" PRIu64 " valid records in the %" PRIu64 " bytes behind that\n",
               dir, bad, inspection->fault, dir, inspection->records_after, rest);
    else if (inspection->fault)
        printf("%s/" LOG_NAME ": %" PRIu64 " bytes at byte %" PRIu64
               " are a torn tail, or what a server is writing: %s\n",
               dir, rest, bad, inspection->fault);
    if (inspection->cause)
        printf("%s/" LOG_NAME ": byte %" PRIu64 ": %s\n", dir, inspection->cause_offset,
               inspection->cause);
}

/* Whether the log may be used. Returns 0, or -1, reported. */
static int check_log(const struct options *options) {
    char why[WHY_BYTES] = "";
    struct store_inspection inspection = {.visit = NULL};
    int dir_fd = open(options->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), result = 0;
    if (dir_fd >= 0 && log_check_note(dir_fd, (struct text_why){why, sizeof why}) < 0)
        result = tell("%s: %s", options->dir, why);
    if (dir_fd >= 0) close(dir_fd);
    if (store_inspect(options->dir, &inspection, why, sizeof why) < 0) return tell("%s", why);
    print_inspection(options->dir, &inspection);
    if (inspection.is_damaged) result = -1;
    if (options->salvage && salvage_log(options) < 0) result = -1;
    return result;
}

/* Says what is wrong with users and rooms, of both, and who may be misspelt. Returns 0, or -1,
 * reported: a server would not start with them. */
static int check_access(const struct options *options) {
    static struct access_reload files; /* too large for a stack */
    struct access_strangers strangers;
    access_reload(options->dir, NULL, &files);
    for (int i = 0; i < ACCESS_FILES; i++)
        if (files.why[i][0] != '\0') tell("%s", files.why[i]);
    if (!files.access) return -1;
    int result = access_count_strangers(files.access, &strangers);
    access_free(files.access);
    if (result < 0) return tell("out of memory");
    if (strangers.count > 0)
        printf("%s/rooms: %" PRIu64 " members have no token in users, the first one on line %zu\n",
               options->dir, strangers.count, strangers.line);
    return 0;
}

/* Fails when a server would not start with these files, or has yet to make the log. */
int inspect_check(const struct options *options) {
    int result = 0;
    if (options->salvage) signal(SIGPIPE, SIG_IGN); /* it is made, whoever reads of it */
    if (!options->has_no_log) result = check_log(options);
    if (check_access(options) < 0) result = -1;
    return text_finish_output() == 0 ? result : -1;
}

/* ------------------------------------------------------------------------ export */

/* Space for an ID as a JSON string. */
#define QUOTED_BYTES (JSON_QUOTED_BYTES(ID_MAX_BYTES) + 1)

static const char *quote(struct slice id, char string[QUOTED_BYTES]) {
    string[json_quote(id, string)] = '\0';
    return string;
}

/* Prints a time in the form of ISO 8601 that JavaScript writes. */
static void print_time(uint64_t time_ms) {
    struct tm utc;
    clock_utc((int64_t)(time_ms / 1000), &utc);
    printf("%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
           utc.tm_hour, utc.tm_min, utc.tm_sec, (int)(time_ms % 1000));
}

static int print_record(void *context, const struct store_record *record, uint64_t time_ms) {
    (void)context;
    char room[QUOTED_BYTES], key[QUOTED_BYTES], user[QUOTED_BYTES] = "null";
    if (!slice_equal(record->user, SLICE("-"))) quote(record->user, user);
    printf("{\"_id\":%s,\"e2eKeyId\":%s,\"setBy\":%s,\"setAt\":\"", quote(record->room, room),
           quote(record->key, key), user);
    print_time(time_ms);
    printf("\"}\n");
    return ferror(stdout) ? -1 : 0;
}

/* Two passes: the first finds out how far the log is whole and syncs it, the second prints that
 * far. So nothing is printed that a crash could take back, as long as the disk keeps its word:
 * after a sync that has failed under a running server, the batch that it refused may be read. */
int inspect_export(const struct options *options) {
    char why[WHY_BYTES];
    struct store_inspection first = {.visit = NULL};
    if (store_inspect(options->dir, &first, why, sizeof why) < 0) return tell("%s", why);
    if (first.is_damaged)
        return tell("%s: " LOG_NAME ": damaged at byte %" PRIu64 ": %s; see check", options->dir,
                    first.fault_offset, first.fault);
    struct store_inspection second = {.visit = print_record, .limit = first.fault_offset};
    if (store_inspect(options->dir, &second, why, sizeof why) < 0 && !ferror(stdout))
        return tell("%s", why);
    return text_finish_output();
}
