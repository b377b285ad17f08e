/*
 * admin.c: the commands beside `serve`: what an operator asks of a data directory.
 *
 *     check, export               look at the log          beside a running server
 *     import                      sets key IDs             holds the directory: no server beside it
 *     user add, user revoke,
 *     users import, rooms import  replace users or rooms   beside a running server
 *     hash-token, health          touch no file
 *
 * Those that look never cut or mend anything: they read the log to its end, sync it, and only then
 * speak of it; --salvage writes a new file. import is one more user of the store: what it has
 * counted as in is on disk.
 *
 * A file is replaced whole or not at all, and never by one that a server would refuse:
 *
 *     lock NAME.new -> read NAME -> write NAME.new -> sync -> load it -> rename -> sync directory
 *
 * NAME.new is its own lock, so that no lock file is left behind for another user of the machine to
 * trip over: whoever has locked it makes sure that it still has that name. Otherwise the one before
 * has made it NAME, or thrown it away, and there is a newer one to wait for.
 *
 * No token comes from the command line, where every process can read it, and none is printed but
 * the one that user add has made, once, when it is on disk.
 */
#include "admin.h"
#include "access.h"
#include "http.h"
#include "json.h"
#include "listen.h"
#include "log.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHY_BYTES 512

struct arguments {
    const char *dir;
    const char *salvage; /* a file to make, or NULL */
    const char *listen;
    char **operands; /* followed by a NULL */
};

static int complain(const char *what, const char *why) {
    fprintf(stderr, "roomkeyd: %s: %s\n", what, why);
    return 1;
}

/* Reports what could not be written to standard output: a full disk, a closed pipe. */
static int finish_output(void) {
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    return is_written ? 0 : complain("standard output", strerror(errno));
}

/* ------------------------------------------------------------------------ check */

/* A new log in the making: one batch with every valid record of another, and a seal. */
struct salvage {
    FILE *file;
    uint64_t offset;
    int error; /* of its file, where that could not be written */
};

static int write_line(struct salvage *salvage, const struct log_line *line) {
    char bytes[LOG_LINE_MAX_BYTES];
    size_t size = log_format(line, bytes);
    salvage->offset += size;
    if (fwrite(bytes, 1, size, salvage->file) == size) return 0;
    salvage->error = errno;
    return -1;
}

static int salvage_record(void *context, const struct store_record *record, uint64_t time_ms) {
    char user[LOG_ESCAPED_MAX_BYTES], room[LOG_ESCAPED_MAX_BYTES], key[LOG_ESCAPED_MAX_BYTES];
    struct log_line line = {
        .batch = LOG_FIRST_LINE_BYTES,
        .time_ms = time_ms,
        .user = {user, log_escape(record->user, user)},
        .room = {room, log_escape(record->room, room)},
        .key = {key, log_escape(record->key, key)},
    };
    return write_line(context, &line);
}

/* Ends a salvaged log: the seal, which certifies it, is written only when all before it is on
 * disk. */
static int finish_salvage(struct salvage *salvage) {
    int fd = fileno(salvage->file);
    if (fflush(salvage->file) != 0 || log_sync_all(fd) < 0) return -1;
    struct log_line seal = {.batch = salvage->offset, .is_seal = true};
    if (write_line(salvage, &seal) < 0 || fflush(salvage->file) != 0) return -1;
    return log_sync_all(fd);
}

/* Inspects the log and, on the way, writes its valid records to a new file. Returns 0, or -1 with
 * the reason in why; then the file is removed again. */
static int inspect_and_salvage(const struct arguments *arguments,
                               struct store_inspection *inspection, char *why) {
    struct salvage salvage = {.offset = LOG_FIRST_LINE_BYTES};
    int fd = open(arguments->salvage, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || !(salvage.file = fdopen(fd, "w"))) {
        snprintf(why, WHY_BYTES, "%s: %s", arguments->salvage, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    inspection->visit = salvage_record;
    inspection->context = &salvage;
    if (fputs(LOG_FIRST_LINE, salvage.file) < 0) salvage.error = errno;
    int result = salvage.error ? -1 : store_inspect(arguments->dir, inspection, why, WHY_BYTES);
    inspection->context = NULL; /* the salvage lives no longer than this call */
    if (result == 0 && (result = finish_salvage(&salvage)) < 0) salvage.error = errno;
    if (salvage.error)
        snprintf(why, WHY_BYTES, "%s: %s", arguments->salvage, strerror(salvage.error));
    fclose(salvage.file);
    if (result < 0) unlink(arguments->salvage);
    return result;
}

static void print_inspection(const char *dir, const struct store_inspection *inspection) {
    uint64_t bad = inspection->fault_offset, rest = inspection->size - bad;
    printf("%s/" LOG_NAME ": %" PRIu64 " records in %" PRIu64 " bytes\n", dir, inspection->records,
           bad);
    if (!inspection->fault) return;
    if (inspection->is_damaged) {
        printf("%s/" LOG_NAME ": damaged at byte %" PRIu64 ": %s\n", dir, bad, inspection->fault);
        printf("%s/" LOG_NAME ": %" PRIu64 " valid records in the %" PRIu64 " bytes behind that\n",
               dir, inspection->records_after, rest);
    } else {
        printf("%s/" LOG_NAME ": %" PRIu64 " bytes at byte %" PRIu64
               " are a torn tail, or what a server is writing: %s\n",
               dir, rest, bad, inspection->fault);
    }
}

/* Exit code 1 when a server would not start with these files, or has yet to make the log. */
static int check(const struct arguments *arguments) {
    char why[WHY_BYTES];
    struct store_inspection inspection = {.visit = NULL};
    int code = 0;
    int result = arguments->salvage ? inspect_and_salvage(arguments, &inspection, why)
                                    : store_inspect(arguments->dir, &inspection, why, sizeof why);
    if (result < 0) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        code = 1;
    } else {
        print_inspection(arguments->dir, &inspection);
        if (inspection.is_damaged) code = 1;
        if (arguments->salvage)
            printf("%s: %" PRIu64 " records\n", arguments->salvage,
                   inspection.records + inspection.records_after);
    }
    struct access *access = access_load(arguments->dir, why, sizeof why);
    if (!access) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        code = 1;
    }
    access_free(access);
    return finish_output() != 0 ? 1 : code;
}

/* ------------------------------------------------------------------------ export */

static void print_field(const char *before, struct slice text) {
    char string[JSON_QUOTED_BYTES(ID_MAX_BYTES)];
    size_t size = json_quote(text, string);
    fputs(before, stdout);
    fwrite(string, 1, size, stdout);
}

/* The date of http_date in the order of ISO 8601. */
static void print_time(uint64_t time_ms) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    const char *month = months;
    char date[HTTP_DATE_BYTES];
    http_date((time_t)(time_ms / 1000), date); /* Thu, 01 Jan 1970 00:00:00 GMT */
    while (memcmp(month, date + 8, 3) != 0) month += 3;
    printf("%.4s-%02d-%.2sT%.8s.%03uZ", date + 12, (int)(month - months) / 3 + 1, date + 5,
           date + 17, (unsigned)(time_ms % 1000));
}

static int print_record(void *context, const struct store_record *record, uint64_t time_ms) {
    (void)context;
    print_field("{\"_id\":", record->room);
    print_field(",\"e2eKeyId\":", record->key);
    if (slice_equal(record->user, SLICE("-")))
        fputs(",\"setBy\":null", stdout);
    else
        print_field(",\"setBy\":", record->user);
    fputs(",\"setAt\":\"", stdout);
    print_time(time_ms);
    fputs("\"}\n", stdout);
    return ferror(stdout) ? -1 : 0;
}

/* Two passes: the first finds out how far the log is whole and syncs it, the second prints that
 * far. So nothing is printed that a crash could take back, as long as the disk keeps its word: after
 * a sync that has failed under a running server, the batch that it refused may still be read. */
static int export(const struct arguments *arguments) {
    char why[WHY_BYTES];
    struct store_inspection first = {.visit = NULL};
    if (store_inspect(arguments->dir, &first, why, sizeof why) < 0) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        return 1;
    }
    if (first.is_damaged) {
        fprintf(stderr, "roomkeyd: %s: " LOG_NAME ": damaged at byte %" PRIu64 ": %s; see check\n",
                arguments->dir, first.fault_offset, first.fault);
        return 1;
    }
    struct store_inspection second = {.visit = print_record, .limit = first.fault_offset};
    if (store_inspect(arguments->dir, &second, why, sizeof why) < 0 && !ferror(stdout)) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        return 1;
    }
    return finish_output();
}

/* ------------------------------------------------------------------------ replacing a file */

/* users or rooms, and the file that is to replace it. */
struct edit {
    const char *dir, *name;
    char new_name[sizeof "users.new"];
    int dir_fd;
    FILE *old;  /* NULL if there is none */
    FILE *file; /* NAME.new */
};

static void close_edit(const struct edit *edit) {
    if (edit->old) fclose(edit->old);
    if (edit->file) fclose(edit->file);
    if (edit->dir_fd >= 0) close(edit->dir_fd);
}

/* Opens NAME.new when nobody else has it, and empties it. Returns 0, or -1 with errno set. */
static int lock_new(struct edit *edit) {
    const int flags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
    struct stat locked, named;
    do {
        named.st_ino = 0;
        if (edit->file) fclose(edit->file);
        int fd = openat(edit->dir_fd, edit->new_name, flags, 0600);
        edit->file = fd < 0 ? NULL : fdopen(fd, "w");
        if (!edit->file || flock(fd, LOCK_EX) < 0 || fstat(fd, &locked) < 0) return -1;
        fstatat(edit->dir_fd, edit->new_name, &named, AT_SYMLINK_NOFOLLOW);
    } while (named.st_ino != locked.st_ino);
    return log_cut(fileno(edit->file), 0);
}

/* The new file gets the owner and mode of the old one. Where there is none it is for the
 * directory's owner, as far as we may decide that: for the server, even if it is root who asks. At
 * once, not when it is complete: or what an interrupted root leaves would lock that owner out. */
static int keep_owner(const struct edit *edit) {
    struct stat status;
    int fd = fileno(edit->file);
    if (fstat(edit->old ? fileno(edit->old) : edit->dir_fd, &status) < 0) return -1;
    if (fchown(fd, status.st_uid, status.st_gid) < 0 && edit->old) return -1;
    return edit->old ? fchmod(fd, status.st_mode & 07777) : 0;
}

/* Returns 0, and end_edit is due, or -1, reported. */
static int begin_edit(struct edit *edit, const char *dir, const char *name) {
    *edit = (struct edit){.dir = dir, .name = name};
    snprintf(edit->new_name, sizeof edit->new_name, "%s.new", name);
    edit->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (edit->dir_fd >= 0 && lock_new(edit) == 0) {
        int fd = openat(edit->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        edit->old = fd < 0 ? NULL : fdopen(fd, "r");
        if ((edit->old || errno == ENOENT) && keep_owner(edit) == 0) return 0;
        int error = errno;
        unlinkat(edit->dir_fd, edit->new_name, 0);
        errno = error;
    }
    fprintf(stderr, "roomkeyd: %s: cannot change %s: %s\n", dir, name,
            errno == ELOOP ? "a symbolic link, which would be replaced" : strerror(errno));
    close_edit(edit);
    return -1;
}

/* Whether a server would load the old or the new file; says why it would not. */
static bool can_be_loaded(const struct edit *edit, const char *name) {
    char why[WHY_BYTES];
    struct access *access = access_load_one(edit->dir, name, why, sizeof why);
    if (!access) complain(why, "nothing has been changed");
    access_free(access);
    return access != NULL;
}

/* Brings the new file to disk and puts it into the old one's place, if a server would load it.
 * Returns 0, or -1, reported. */
static int replace(const struct edit *edit) {
    bool is_written =
        fflush(edit->file) == 0 && !ferror(edit->file) && log_sync_all(fileno(edit->file)) == 0;
    if (is_written && !can_be_loaded(edit, edit->new_name)) return -1;
    if (is_written && renameat(edit->dir_fd, edit->new_name, edit->dir_fd, edit->name) == 0)
        return 0;
    return -complain(edit->new_name, strerror(errno));
}

/* Ends what begin_edit began: with is_wanted by replacing the file. Returns the exit code. */
static int end_edit(const struct edit *edit, bool is_wanted) {
    int code = is_wanted ? replace(edit) : -1;
    if (code < 0)
        unlinkat(edit->dir_fd, edit->new_name, 0); /* it is still ours: the lock */
    else if (log_sync_all(edit->dir_fd) < 0)
        code = complain(edit->dir, strerror(errno));
    close_edit(edit);
    return code == 0 ? 0 : 1;
}

/* ------------------------------------------------------------------------ user, hash-token */

#define TOKEN_CHARS 43 /* of six bits: 258 bits, as Rocket.Chat's own */

/* Copies users without the lines of one user ("" is nobody), or, if hash is not empty, of one of
 * the user's tokens. Returns how many those are, or -1, reported. */
static int copy_users(const struct edit *edit, struct slice user, struct slice hash) {
    char *line = NULL;
    size_t space = 0;
    ssize_t size;
    int omitted = 0;
    if (edit->old && !can_be_loaded(edit, edit->name)) return -1;
    while (edit->old && (size = getline(&line, &space, edit->old)) > 0) {
        struct slice text = {line, (size_t)size}, name, hashed;
        access_next_word(&text, &name);
        access_next_word(&text, &hashed);
        bool is_meant =
            name.n > 0 && slice_equal(name, user) && (hash.n == 0 || slice_equal(hashed, hash));
        omitted += is_meant;
        if (is_meant) continue;
        fwrite(line, 1, (size_t)size, edit->file);
        if (line[size - 1] != '\n') putc('\n', edit->file);
    }
    free(line);
    return !edit->old || (feof(edit->old) && !ferror(edit->old))
               ? omitted
               : -complain(edit->name, strerror(errno));
}

static int make_token(char token[TOKEN_CHARS + 1]) {
    static const char alphabet[] = /* RFC 4648, section 5 */
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned char random[TOKEN_CHARS];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return complain("no random bytes", strerror(errno));
    for (size_t i = 0; i < TOKEN_CHARS; i++) token[i] = alphabet[random[i] & 63];
    token[TOKEN_CHARS] = '\0';
    return 0;
}

static int user_add(const struct arguments *arguments) {
    const char *user = arguments->operands[0];
    char token[TOKEN_CHARS + 1], hash[ACCESS_HASH_CHARS + 1];
    struct edit edit;
    if (!access_can_hold(slice_of(user)))
        return complain(user, "a USERID is 1 to 255 bytes of UTF-8, no white space, no leading #, "
                              "neither * nor -");
    if (make_token(token) != 0 || begin_edit(&edit, arguments->dir, "users") < 0) return 1;
    bool is_copied = copy_users(&edit, SLICE(""), SLICE("")) >= 0;
    access_hash_token(slice_of(token), hash);
    fprintf(edit.file, "%s %s\n", user, hash);
    if (end_edit(&edit, is_copied) != 0) return 1;
    signal(SIGPIPE, SIG_IGN); /* that nobody reads the token has to be told */
    printf("%s\n", token);
    return finish_output() == 0 ? 0 : complain(hash, "revoke this token, nobody has seen it");
}

static int user_revoke(const struct arguments *arguments) {
    const char *user = arguments->operands[0], *hash = arguments->operands[1];
    struct edit edit;
    if (begin_edit(&edit, arguments->dir, "users") < 0) return 1;
    bool could_be_there = access_can_hold(slice_of(user)) && /* or it could mean a comment */
                          (!hash || access_is_hash(slice_of(hash)));
    int revoked =
        could_be_there ? copy_users(&edit, slice_of(user), slice_of(hash ? hash : "")) : 0;
    if (revoked == 0) complain(user, "no such token");
    return end_edit(&edit, revoked > 0);
}

/* Whether a token can be a field's value, which ends in nothing blank and holds no controls (RFC
 * 9110, 5.5): the hash of any other one would never be met. */
static bool is_sendable(struct slice token) {
    for (size_t i = 0; i < token.n; i++)
        if ((unsigned char)token.p[i] < ' ' || token.p[i] == 0x7F) return false;
    return token.n > 0 && token.p[0] != ' ' && token.p[token.n - 1] != ' ';
}

static int hash_token(const struct arguments *arguments) {
    (void)arguments;
    char hash[ACCESS_HASH_CHARS + 1], *line = NULL;
    size_t space = 0;
    ssize_t size = getline(&line, &space, stdin);
    if (size > 0 && line[size - 1] == '\n') size--;
    if (size > 0 && line[size - 1] == '\r') size--;
    struct slice token = {line, size > 0 ? (size_t)size : 0};
    bool is_token = is_sendable(token) && getc(stdin) == EOF && !ferror(stdin);
    if (is_token) access_hash_token(token, hash);
    free(line);
    if (!is_token) return complain("standard input", "not a token alone on its line");
    printf("%s\n", hash);
    return finish_output();
}

/* ------------------------------------------------------------------------ imports */

#define IMPORT_BATCH   16384 /* sets in one write and one sync */
#define PROGRESS_LINES 16384
#define RECHECK_MS     1000 /* in case the store's wake-up was lost */

/* What becomes of standard input, JSON lines. */
struct import {
    int (*take)(struct import *import,
                struct json *json); /* a line. 0, or -1: .why it is refused */
    const char *why;
    uint64_t line, taken, known, passed_over;

    struct store *store;      /* key IDs go here */
    uint64_t ticket, waiting; /* the last one's, and how many wait for it to be settled */

    FILE *file;   /* users go here, and facts of rooms */
    size_t facts; /* how many */
};

static int refuse(struct import *import, const char *why) {
    import->why = why;
    return -1;
}

static int pass_over(struct import *import, const char *why) {
    fprintf(stderr, "roomkeyd: line %" PRIu64 " %s\n", import->line, why);
    import->passed_over++;
    return 0;
}

static int take_line(struct import *import, struct slice text) {
    struct json json;
    enum json_result read = json_read(&json, text);
    if (read != JSON_OK) return refuse(import, read == JSON_INVALID ? json.why : "out of memory");
    int result = json.root ? import->take(import, &json) : refuse(import, "not a JSON object");
    json_free(&json);
    return result;
}

/* Reads standard input to its end or the first line that is refused. Returns 0, or -1, reported. */
static int read_lines(struct import *import) {
    char *line = NULL;
    size_t space = 0;
    ssize_t size;
    int result = 0;
    bool is_watched = isatty(STDERR_FILENO);
    while (result == 0 && (size = getline(&line, &space, stdin)) > 0) {
        if (++import->line % PROGRESS_LINES == 0 && is_watched)
            fprintf(stderr, "roomkeyd: %" PRIu64 " lines\r", import->line);
        if (strspn(line, " \t\r\n") < (size_t)size)
            result = take_line(import, (struct slice){line, (size_t)size});
    }
    free(line);
    if (result == 0 && !feof(stdin)) result = refuse(import, strerror(errno));
    if (result < 0) fprintf(stderr, "roomkeyd: line %" PRIu64 ": %s\n", import->line, import->why);
    return result;
}

static const jsmntok_t *member(const struct json *json, const char *name) {
    return json_member(json, json->root, slice_of(name));
}

/* A string's characters, as far as they matter to an ID; none where there is no string. */
static struct slice text_of(struct json *json, const jsmntok_t *value, char id[ID_MAX_BYTES + 1]) {
    struct slice text = json_string(json, value, id, ID_MAX_BYTES + 1);
    return json->why ? SLICE("") : text;
}

/* ------------------------------------------------------------------------ import */

/* Brings what was set to disk, and counts it. */
static int settle(struct import *import) {
    struct store_settled settled = {.ok = true};
    struct pollfd event = {.fd = store_event_fd(import->store), .events = POLLIN};
    eventfd_t count;
    store_hand_over(import->store);
    while (settled.ok && settled.up_to < import->ticket) {
        poll(&event, 1, RECHECK_MS);
        eventfd_read(event.fd, &count);
        store_collect(import->store, &settled);
    }
    if (settled.ok) import->taken += import->waiting;
    import->ticket = import->waiting = 0;
    return settled.ok ? 0 : refuse(import, "the disk is full or has failed");
}

static int set_key(struct import *import, const struct store_record *record) {
    char known[ID_MAX_BYTES];
    size_t size;
    uint64_t ticket;
    if (store_set(import->store, record, &ticket) == STORE_OK) {
        import->ticket = ticket;
        return ++import->waiting < IMPORT_BATCH ? 0 : settle(import);
    }
    if (ticket > 0 && settle(import) < 0)
        return -1; /* the room's key ID came just before this one */
    if (store_get(import->store, record->room, known, &size) != STORE_OK)
        return refuse(import, "the store is unavailable");
    if (!slice_equal((struct slice){known, size}, record->key))
        return refuse(import, "the room has another key ID");
    import->known++;
    return 0;
}

static int take_key(struct import *import, struct json *json) {
    char room[ID_MAX_BYTES + 1], key[ID_MAX_BYTES + 1], user[ID_MAX_BYTES + 1];
    const jsmntok_t *key_id = member(json, "e2eKeyId"), *set_by = member(json, "setBy");
    struct store_record record = {
        .user = json_type(json, set_by) <= JSON_NULL ? SLICE("-") : text_of(json, set_by, user),
        .room = text_of(json, member(json, "_id"), room),
        .key = text_of(json, key_id, key),
    };
    bool is_empty = json_type(json, key_id) == JSON_STRING && record.key.n == 0 && !json->why;
    if (json_type(json, key_id) <= JSON_NULL || is_empty) {
        import->passed_over++;
        return 0;
    }
    if (!slice_is_id(record.room) || !slice_is_id(record.key) || !slice_is_id(record.user))
        return refuse(import, "_id, e2eKeyId, setBy must be strings of 1 to 255 bytes, no NUL");
    return set_key(import, &record);
}

static int import_keys(const struct arguments *arguments) {
    char why[WHY_BYTES];
    struct import import = {.take = take_key};
    import.store = store_open(arguments->dir, why, sizeof why);
    if (!import.store) return complain("cannot import", why);
    int code = read_lines(&import) == 0 ? 0 : 1;
    if (settle(&import) < 0) code = complain(arguments->dir, import.why);
    if (store_close(import.store) < 0) code = 1;
    printf("%" PRIu64 " set, %" PRIu64 " set already, %" PRIu64 " without a key ID\n", import.taken,
           import.known, import.passed_over);
    return finish_output() == 0 ? code : 1;
}

/* ------------------------------------------------------------------------ users, rooms import */

static int take_user(struct import *import, struct json *json) {
    char id[ID_MAX_BYTES + 1], hash[ID_MAX_BYTES + 1];
    struct slice user = text_of(json, member(json, "_id"), id);
    const jsmntok_t *resume = json_member(json, member(json, "services"), SLICE("resume"));
    const jsmntok_t *tokens = json_member(json, resume, SLICE("loginTokens")), *token = NULL;
    if (!access_can_hold(user))
        return pass_over(import, "is passed over: users cannot hold its _id");
    if (json_type(json, tokens) != JSON_ARRAY) return 0;
    while ((token = json_next(json, tokens, token))) {
        struct slice hashed = text_of(json, json_member(json, token, SLICE("hashedToken")), hash);
        if (!access_is_hash(hashed)) {
            pass_over(import, "has a token that is passed over: without a hashedToken");
            continue;
        }
        fprintf(import->file, "%.*s %.*s\n", (int)user.n, user.p, (int)hashed.n, hashed.p);
        import->taken++;
    }
    return 0;
}

/* Notes what a line says of a room, as text that sorts by room, and the room before its members:
 *
 *     RID 0 TYPE
 *     RID 1 USERID */
static int take_fact(struct import *import, struct json *json) {
    char rid[ID_MAX_BYTES + 1], id[ID_MAX_BYTES + 1];
    bool is_member = member(json, "rid") != NULL;
    const jsmntok_t *user = json_member(json, member(json, "u"), SLICE("_id"));
    struct slice room = text_of(json, member(json, is_member ? "rid" : "_id"), rid);
    struct slice value = text_of(json, is_member ? user : member(json, "t"), id);
    if (room.n == 0 || value.n == 0)
        return refuse(import, "neither a room (_id, t) nor a subscription (rid, u._id)");
    if (!is_member && (value.n != 1 || !memchr("cpd", value.p[0], 3))) {
        import->passed_over++;
        return 0;
    }
    if (!access_can_hold(room) || !access_can_hold(value))
        return pass_over(import, "is passed over: rooms cannot hold its IDs");
    import->facts++;
    fprintf(import->file, "%.*s %d %.*s%c", (int)room.n, room.p, is_member, (int)value.n, value.p,
            0);
    return ferror(import->file) ? refuse(import, strerror(errno)) : 0;
}

static int compare_facts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Writes a line for each room. Returns 0, or -1, reported: a room of two types is of none. */
static int write_rooms(struct import *import, const char **facts, FILE *out) {
    const char *room = "", *last = "";
    size_t size = 1; /* of "RID " */
    qsort(facts, import->facts, sizeof *facts, compare_facts);
    for (size_t i = 0; i < import->facts; last = facts[i++]) {
        const char *fact = facts[i], *value = strchr(fact, ' ') + 3;
        bool is_room = value[-2] == '0', is_same = strncmp(fact, room, size) == 0;
        if (strcmp(fact, last) == 0 || (!is_room && !is_same)) {
            import->passed_over++;
        } else if (is_room && is_same) {
            fprintf(stderr, "roomkeyd: %.*s: a room of two types\n", (int)size - 1, room);
            return -1;
        } else if (is_room) {
            room = fact;
            size = (size_t)(value - fact) - 2;
            fprintf(out, "%s%.*s%s", import->taken++ ? "\n" : "", (int)size, fact, value);
        } else if (room[size + 2] != 'c') {
            fprintf(out, " %s", value);
        }
    }
    putc('\n', out);
    return 0;
}

/* Sorts what was noted, fact by fact with a NUL behind each, into rooms. */
static int sort_facts(struct import *import, const char *text, FILE *out) {
    const char **facts = calloc(import->facts + 1, sizeof *facts);
    if (!facts) return -complain("rooms", strerror(errno));
    for (size_t i = 0; i < import->facts; i++, text += strlen(text) + 1) facts[i] = text;
    int result = write_rooms(import, facts, out);
    free(facts);
    return result;
}

/* Ends an import. Nothing at all to import is a mistake made somewhere else. */
static int end_import(const struct import *import, const struct edit *edit, int result) {
    if (result == 0 && import->taken == 0) result = complain(edit->name, "nothing to import");
    if (end_edit(edit, result == 0) != 0) return 1;
    printf("%s: %" PRIu64 " lines, %" PRIu64 " passed over\n", edit->name, import->taken,
           import->passed_over);
    return finish_output();
}

static int users_import(const struct arguments *arguments) {
    struct edit edit;
    if (begin_edit(&edit, arguments->dir, "users") < 0) return 1;
    struct import import = {.take = take_user, .file = edit.file};
    return end_import(&import, &edit, read_lines(&import));
}

static int rooms_import(const struct arguments *arguments) {
    struct edit edit;
    char *text = NULL;
    size_t size;
    if (begin_edit(&edit, arguments->dir, "rooms") < 0) return 1;
    struct import import = {.take = take_fact, .file = open_memstream(&text, &size)};
    int result = import.file ? read_lines(&import) : -1;
    if (!import.file || fclose(import.file) != 0) result = -complain("rooms", strerror(errno));
    if (result == 0) result = sort_facts(&import, text, edit.file);
    free(text);
    return end_import(&import, &edit, result);
}

/* ------------------------------------------------------------------------ health */

#define HEALTH_LIMIT_S 3 /* for each of connecting, asking and being answered */

static int health(const struct arguments *arguments) {
    static const char request[] =
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char status[sizeof "HTTP/1.1 200"] = "";
    int fd = listen_connect(arguments->listen, HEALTH_LIMIT_S);
    if (fd < 0) return complain(arguments->listen, strerror(errno));
    ssize_t n = send(fd, request, sizeof request - 1, MSG_NOSIGNAL);
    if (n > 0) n = recv(fd, status, sizeof status - 1, MSG_WAITALL);
    int error = errno == EAGAIN ? ETIMEDOUT : errno;
    close(fd);
    if (n < 0) return complain(arguments->listen, strerror(error));
    if (strcmp(status, "HTTP/1.1 200") == 0) return 0;
    for (char *c = status; *c != '\0'; c++)
        if (*c < ' ' || *c > '~') *c = '?'; /* it may be anybody's, and goes to a terminal */
    return complain(arguments->listen, status[0] ? status : "no answer");
}

/* ------------------------------------------------------------------------ the commands */

struct command {
    const char *name, *action; /* "user", "add"; action is NULL where the name says it all */
    int (*run)(const struct arguments *arguments);
    const char *options; /* the first letters of those it takes */
    int operands_min, operands_max;
    const char *usage, *help;
};

static const struct command commands[] = {
    {"check", NULL, check, "ds", 0, 0, "check [--data DIR] [--salvage NEWFILE]",
     "Says what is wrong with the log, users and rooms, and changes nothing: 1 where a server\n"
     "would not start, or there is no log yet. With --salvage, writes every valid record to a\n"
     "new log. Also beside a server."},
    {"export", NULL, export, "d", 0, 0, "export [--data DIR]",
     "Prints the key IDs as JSON lines. Also beside a server."},
    {"import", NULL, import_keys, "d", 0, 0, "import [--data DIR] <FILE",
     "Sets key IDs from JSON lines of export (setAt becomes the time of import) or of mongoexport\n"
     "--fields _id,e2eKeyId. Not beside a server. Ends at the first line that is wrong, or whose\n"
     "room has another key ID; what is before it is on disk, and does no harm a second time."},
    {"users", "import", users_import, "d", 0, 0, "users import [--data DIR] <FILE",
     "Replaces users by the login tokens in mongoexport's JSON lines of users."},
    {"rooms", "import", rooms_import, "d", 0, 0, "rooms import [--data DIR] <FILE",
     "Replaces rooms by those in mongoexport's JSON lines of rocketchat_room and\n"
     "rocketchat_subscription, together and in any order. Types but c, p and d are passed over."},
    {"user", "add", user_add, "d", 1, 1, "user add [--data DIR] USERID",
     "Makes a token, adds its hash to users, and prints the token, once."},
    {"user", "revoke", user_revoke, "d", 1, 2, "user revoke [--data DIR] USERID [HASH]",
     "Takes all tokens of a user, or the one with this hash, out of users."},
    {"hash-token", NULL, hash_token, "", 0, 0, "hash-token",
     "Reads a token, alone on its line, and prints its hash as it stands in users."},
    {"health", NULL, health, "l", 0, 0, "health [--listen ADDR]",
     "Asks a server's /healthz. ADDR is as for the server (default 127.0.0.1:3000). 3 seconds at\n"
     "most for each of connecting, asking and being answered."},
};
static const char COMMON_HELP[] =
    "\n"
    "A running server rereads users and rooms when it gets SIGHUP. Exit code: 0 done and well, 1\n"
    "not, for the reason given, 2 bad usage.\n";
#define COMMAND_COUNT (sizeof commands / sizeof *commands)

bool admin_has(const char *name) {
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(commands[i].name, name) == 0) return true;
    return false;
}

static const struct command *find_command(const char *name, const char *action) {
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        const struct command *command = &commands[i];
        bool is_action = !command->action || (action && strcmp(command->action, action) == 0);
        if (strcmp(command->name, name) == 0 && is_action) return command;
    }
    return NULL;
}

/* Says how the commands of this name are used. Returns the exit code. */
static int misused(const char *name, const char *what) {
    bool is_asked = what && strcmp(what, "--help") == 0;
    if (!is_asked) fprintf(stderr, "roomkeyd: unknown or incomplete: '%s'\n", what ? what : name);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(commands[i].name, name) == 0)
            fprintf(is_asked ? stdout : stderr, "usage: roomkeyd %s\n", commands[i].usage);
    return is_asked ? finish_output() : 2;
}

static const char *option_help(char letter) {
    switch (letter) {
    case 'd': return "  --data DIR         the data directory (default data)\n";
    case 's': return "  --salvage NEWFILE  a log to be made, of every valid record\n";
    default: return "  --listen ADDR      where the server listens\n";
    }
}

/* Runs a command. argv[0] is the last word of its name. */
static int run_command(const struct command *command, int argc, char **argv) {
    static const struct option options[] = {
        {"data", required_argument, NULL, 'd'},
        {"salvage", required_argument, NULL, 's'},
        {"listen", required_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct arguments arguments = {.dir = "data", .listen = "127.0.0.1:3000"};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'h') {
            printf("usage: roomkeyd %s\n\n%s\n", command->usage, command->help);
            for (const char *letter = command->options; *letter; letter++)
                printf("%s%s", letter == command->options ? "\n" : "", option_help(*letter));
            fputs(COMMON_HELP, stdout);
            return finish_output();
        }
        bool is_bad =
            !strchr(command->options, option) || (option == 'l' && !listen_is_address(optarg));
        if (is_bad) return misused(command->name, argv[optind - 1]);
        *(option == 'd'   ? &arguments.dir
          : option == 's' ? &arguments.salvage
                          : &arguments.listen) = optarg;
    }
    if (argc - optind < command->operands_min || argc - optind > command->operands_max)
        return misused(command->name, NULL); /* not what is too much: it might be a token */
    arguments.operands = argv + optind;
    return command->run(&arguments);
}

int admin_run(int argc, char **argv) {
    const struct command *command = find_command(argv[0], argv[1]);
    if (!command) return misused(argv[0], argv[1]);
    signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is an EFBIG, which is reported */
    int words = command->action ? 1 : 0;
    return run_command(command, argc - words, argv + words);
}
