/*
 * admin.c: the commands that change a data directory, and two that touch no file.
 *
 *     import                      sets key IDs             holds the directory: no server beside it
 *     user add, user revoke,
 *     users import, rooms import  replace users or rooms   beside a running server
 *     hash-token, health          touch no file
 *
 * import is one more user of the store: what it has counted as in is on disk. It passes over a room
 * that has another key ID, and names it when all else is done. What is no JSON line ends any import:
 * the rest may be no better. format.c then says what it looks like.
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
#include "format.h"
#include "json.h"
#include "listen.h"
#include "log.h"
#include "store.h"
#include "text.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WHY_BYTES 512

/* As fopen, of a name in a directory, and what is made is for its owner alone. */
static FILE *open_file(int dir_fd, const char *name, int flags) {
    int fd = openat(dir_fd, name, flags | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, flags & O_WRONLY ? "w" : "r");
    if (fd >= 0 && !file) close(fd);
    return file;
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
    struct stat locked, named;
    do {
        named.st_ino = 0;
        if (edit->file) fclose(edit->file);
        edit->file = open_file(edit->dir_fd, edit->new_name, O_WRONLY | O_CREAT | O_NOFOLLOW);
        if (!edit->file || flock(fileno(edit->file), LOCK_EX) < 0 ||
            fstat(fileno(edit->file), &locked) < 0)
            return -1;
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

/* What an operator can do about an error of changing a file; nothing where the error says it all. */
static const char *way_out(int error) {
    switch (error) {
    case EBUSY: /* of a rename: docker -v ./users:/data/users */
        return ": it is mounted by itself, and a mount point cannot be replaced: mount its "
               "directory instead, or edit it in place (hash-token makes a hash)";
    case EROFS: return ": it is mounted read-only here: change it where it can be written";
    case EACCES: return ": run this as the owner of the directory and its files, or as root";
    case EPERM:
        return ": it or its directory is immutable or append-only (lsattr shows that), or is "
               "somebody else's";
    default: return "";
    }
}

/* Tells that a file cannot be changed, because of errno. it_is_new: the error is of the new file.
 * Returns -1. */
static int tell_unchanged(const struct edit *edit, bool it_is_new) {
    int error = errno;
    return tell("%s: cannot change %s: %s%s%s%s", edit->dir, edit->name,
                it_is_new ? edit->new_name : "", it_is_new ? ": " : "",
                error == ELOOP ? "a symbolic link, which is neither followed nor replaced"
                               : strerror(error),
                way_out(error));
}

/* Returns 0, and end_edit is due, or -1, reported. */
static int begin_edit(struct edit *edit, const char *dir, const char *name) {
    *edit = (struct edit){.dir = dir, .name = name};
    snprintf(edit->new_name, sizeof edit->new_name, "%s.new", name);
    edit->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (edit->dir_fd < 0 || lock_new(edit) < 0) {
        tell_unchanged(edit, edit->dir_fd >= 0);
    } else {
        edit->old = open_file(edit->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
        if ((edit->old || errno == ENOENT) && keep_owner(edit) == 0) return 0;
        tell_unchanged(edit, false);
        unlinkat(edit->dir_fd, edit->new_name, 0);
    }
    close_edit(edit);
    return -1;
}

/* Whether a server would load the old or the new file; says why it would not. */
static bool can_be_loaded(const struct edit *edit, const char *name) {
    char why[WHY_BYTES];
    struct access *access = access_load_one(edit->dir, name, why, sizeof why);
    bool is_loaded = access != NULL;
    if (!is_loaded) tell("%s: nothing has been changed", why);
    access_free(access);
    return is_loaded;
}

/* Brings the new file to disk and puts it into the old one's place, if a server would load it.
 * Returns 0, or -1, reported. */
static int replace(const struct edit *edit) {
    bool is_written =
        fflush(edit->file) == 0 && !ferror(edit->file) && log_sync_all(fileno(edit->file)) == 0;
    if (!is_written) return tell("%s/%s: %s", edit->dir, edit->new_name, strerror(errno));
    if (!can_be_loaded(edit, edit->new_name)) return -1;
    int result = renameat(edit->dir_fd, edit->new_name, edit->dir_fd, edit->name);
    return result < 0 ? tell_unchanged(edit, false) : 0;
}

/* Ends what begin_edit began: with is_wanted by replacing the file. Returns 0, or -1, reported, or
 * if it was not wanted. */
static int end_edit(const struct edit *edit, bool is_wanted) {
    int result = is_wanted ? replace(edit) : -1;
    if (result < 0)
        unlinkat(edit->dir_fd, edit->new_name, 0); /* it is still ours: the lock */
    else if (log_sync_all(edit->dir_fd) < 0)
        result = tell("%s: %s", edit->dir, strerror(errno));
    close_edit(edit);
    return result;
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
               : tell("%s: %s", edit->name, strerror(errno));
}

static int make_token(char token[TOKEN_CHARS + 1]) {
    static const char alphabet[] = /* RFC 4648, section 5 */
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned char random[TOKEN_CHARS];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return tell("no random bytes: %s", strerror(errno));
    for (size_t i = 0; i < TOKEN_CHARS; i++) token[i] = alphabet[random[i] & 63];
    token[TOKEN_CHARS] = '\0';
    return 0;
}

int admin_user_add(const struct options *options) {
    const char *user = options->operands[0];
    char token[TOKEN_CHARS + 1], hash[ACCESS_HASH_CHARS + 1];
    struct edit edit;
    const char *mistake = access_mistake(slice_of(user));
    if (mistake) return tell("users cannot hold this USERID: %s", mistake);
    if (make_token(token) < 0 || begin_edit(&edit, options->dir, "users") < 0) return -1;
    bool is_copied = copy_users(&edit, SLICE(""), SLICE("")) >= 0;
    access_hash_token(slice_of(token), hash);
    fprintf(edit.file, "%s %s\n", user, hash);
    if (end_edit(&edit, is_copied) < 0) return -1;
    signal(SIGPIPE, SIG_IGN); /* that nobody reads the token has to be told */
    printf("%s\n", token);
    return text_finish_output() == 0 ? 0 : tell("%s: revoke this token, nobody has seen it", hash);
}

int admin_user_revoke(const struct options *options) {
    const char *user = options->operands[0], *hash = options->operands[1];
    struct edit edit;
    if (begin_edit(&edit, options->dir, "users") < 0) return -1;
    bool could_be_there = access_can_hold(slice_of(user)) && /* or it could mean a comment */
                          (!hash || access_is_hash(slice_of(hash)));
    int revoked =
        could_be_there ? copy_users(&edit, slice_of(user), slice_of(hash ? hash : "")) : 0;
    if (revoked == 0) tell("%s: no such token", user);
    if (end_edit(&edit, revoked > 0) < 0) return -1;
    printf("users: %" PRIu64 " tokens taken out; out of force once the server has reread users: "
           "SIGHUP or systemctl reload\n",
           (uint64_t)revoked);
    return text_finish_output();
}

/* Whether a token can be a field's value, which ends in nothing blank and holds no controls (RFC
 * 9110, 5.5): the hash of any other one would never be met. */
static bool is_sendable(struct slice token) {
    for (size_t i = 0; i < token.n; i++)
        if ((unsigned char)token.p[i] < ' ' || token.p[i] == 0x7F) return false;
    return token.n > 0 && token.p[0] != ' ' && token.p[token.n - 1] != ' ';
}

int admin_hash_token(const struct options *options) {
    (void)options;
    char hash[ACCESS_HASH_CHARS + 1], *line = NULL;
    size_t space = 0;
    ssize_t size = getline(&line, &space, stdin);
    if (size > 0 && line[size - 1] == '\n') size--;
    if (size > 0 && line[size - 1] == '\r') size--;
    struct slice token = {line, size > 0 ? (size_t)size : 0};
    bool is_token = is_sendable(token) && getc(stdin) == EOF && !ferror(stdin);
    const char *why = size < 0                 ? ", but nothing (docker exec needs -i for it)"
                      : format_is_utf16(token) ? ", but UTF-16, as Windows writes it: convert it "
                                                 "(iconv -f UTF-16 -t UTF-8)"
                      : format_begins(token, SLICE(FORMAT_BOM))
                          ? ": begins with a byte order mark, which would be hashed, too"
                      : is_token ? NULL
                                 : "";
    if (!why) access_hash_token(token, hash);
    free(line);
    if (why) return tell("standard input: not a token alone on its line%s", why);
    printf("%s\n", hash);
    return text_finish_output();
}

/* ------------------------------------------------------------------------ imports */

#define IMPORT_BATCH   16384 /* sets in one write and one sync */
#define PROGRESS_LINES 16384
#define RECHECK_MS     1000 /* in case the store's wake-up was lost */

#define CONFLICTS_MAX_BYTES (64u << 20)

/* Rooms that cannot get the key ID of their line, because they have another one. Each takes the
 * number of its line (CONFLICT_LINE_BYTES), the size of its ID (1), and its ID. */
struct conflicts {
    char *bytes;
    size_t size, space;
    uint64_t count; /* of all, also of those that are no longer in bytes */
};
#define CONFLICT_LINE_BYTES sizeof(uint64_t)

/* What becomes of standard input, JSON lines. */
struct import {
    int (*take)(struct import *import, struct json *json); /* a line. 0, or -1, reported */
    uint64_t line, taken, known, passed_over;
    bool has_input;   /* a line was not blank */
    const char *hint; /* what this line seems to be instead (format.h), or NULL */

    struct store *store;      /* key IDs go here */
    uint64_t ticket, waiting; /* the last one's, and how many wait for it to be settled */
    struct conflicts conflicts;

    FILE *file;   /* users go here, and facts of rooms */
    size_t facts; /* how many */

    int64_t oldest_ms; /* of tokens, the time before which they are too old; NO_LIMIT: none is */
    uint64_t left_out; /* of what is passed over: because it was said to be out of use */
};
#define NO_LIMIT         INT64_MIN
#define DAYS_BEFORE_1970 719469 /* from the first of March of the year 0 */

/* Tells what is wrong with a line, and what it seems to be instead. Returns -1. */
static int tell_of_line(const struct import *import, const char *between, const char *why) {
    const char *hint = import->hint;
    return tell("line %" PRIu64 "%s%s%s%s", import->line, between, why, hint ? ": " : "",
                hint ? hint : "");
}

static int refuse(const struct import *import, const char *why) {
    return tell_of_line(import, ": ", why);
}

static int pass_over(struct import *import, const char *why) {
    tell_of_line(import, " ", why);
    import->passed_over++;
    return 0;
}

static const jsmntok_t *member(const struct json *json, const char *name) {
    return json_member(json, json->root, slice_of(name));
}

static bool is_object_id(const struct json *json, const jsmntok_t *id) {
    return json_member(json, id, SLICE("$oid")) != NULL;
}

static bool has_object_id(const struct json *json) {
    return is_object_id(json, member(json, "_id")) || is_object_id(json, member(json, "rid")) ||
           is_object_id(json, json_member(json, member(json, "u"), SLICE("_id")));
}

static int take_line(struct import *import, struct slice text) {
    struct json json;
    enum json_result read = json_read(&json, text);
    if (read == JSON_NO_MEMORY) return refuse(import, "out of memory");
    if (read == JSON_INVALID || !json.root)
        import->hint = format_hint(text, read == JSON_INVALID ? json.at : 0);
    else if (has_object_id(&json))
        import->hint = format_hint_object_id;
    int result = read == JSON_INVALID ? refuse(import, json.why)
                 : !json.root         ? refuse(import, "not a JSON object")
                                      : import->take(import, &json);
    if (read == JSON_OK) json_free(&json);
    import->hint = NULL;
    return result;
}

/* Windows puts a byte order mark at the beginning of a UTF-8 file, and `cat` moves it to the beginning
 * of any line. No JSON begins with one, so nothing is lost with it (RFC 8259, section 8.1). */
static struct slice without_mark(struct slice line) {
    size_t n = format_begins(line, SLICE(FORMAT_BOM)) ? strlen(FORMAT_BOM) : 0;
    return (struct slice){line.p + n, line.n - n};
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
        struct slice text = without_mark((struct slice){line, (size_t)size});
        if (strspn(text.p, " \t\r\n") == text.n) continue;
        import->has_input = true;
        result = take_line(import, text);
    }
    free(line);
    if (result == 0 && !feof(stdin)) return refuse(import, strerror(errno));
    if (result == 0 && !import->has_input)
        return tell("nothing to import: standard input is empty (docker exec needs -i for it)");
    return result;
}

/* Space for an ID, and for the byte more that makes it none. */
#define ID_BYTES (ID_MAX_BYTES + 2)

#define QUOTED_BYTES (JSON_QUOTED_BYTES(ID_MAX_BYTES) + 1)

/* A room ID for a terminal. A client has chosen it: as a JSON string in ASCII it can do no harm there,
 * and jq still finds the room by it. Returns string. */
static const char *quote(struct slice id, char string[QUOTED_BYTES]) {
    string[json_quote_ascii(id, string)] = '\0';
    return string;
}

/* A string's characters, as far as they matter to an ID, which becomes a string in id; none where
 * there is no string. */
static struct slice text_of(struct json *json, const jsmntok_t *value, char id[ID_BYTES]) {
    struct slice text = json_string(json, value, id, ID_MAX_BYTES + 1);
    size_t n = json->why ? 0 : text.n <= ID_MAX_BYTES ? text.n : ID_MAX_BYTES + 1;
    memmove(id, text.p, n);
    id[n] = '\0';
    return (struct slice){id, n};
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

static void name_conflict(uint64_t line, struct slice room) {
    char quoted[QUOTED_BYTES];
    tell("line %" PRIu64 ": the room %s has another key ID", line, quote(room, quoted));
}

/* Names all rooms that are in conflicts, and empties that. */
static void name_conflicts(struct conflicts *conflicts) {
    for (size_t at = 0; at < conflicts->size;) {
        uint64_t line;
        memcpy(&line, conflicts->bytes + at, CONFLICT_LINE_BYTES);
        size_t n = (unsigned char)conflicts->bytes[at + CONFLICT_LINE_BYTES];
        at += CONFLICT_LINE_BYTES + 1;
        name_conflict(line, (struct slice){conflicts->bytes + at, n});
        at += n;
    }
    conflicts->size = 0;
}

/* Makes space for more bytes. Returns whether there is some. */
static bool grow_conflicts(struct conflicts *conflicts, size_t more) {
    if (conflicts->space - conflicts->size >= more) return true;
    size_t space = conflicts->space > 0 ? 2 * conflicts->space : 4096;
    char *bytes = space <= CONFLICTS_MAX_BYTES ? realloc(conflicts->bytes, space) : NULL;
    if (!bytes) return false;
    conflicts->bytes = bytes;
    conflicts->space = space;
    return true;
}

/* Keeps a room, to be named when the import is over, where its line is not lost among others. When
 * there is no memory for more of them, those that are kept are named now. */
static void keep_conflict(struct import *import, struct slice room) {
    struct conflicts *conflicts = &import->conflicts;
    size_t size = CONFLICT_LINE_BYTES + 1 + room.n;
    conflicts->count++;
    if (!grow_conflicts(conflicts, size)) name_conflicts(conflicts);
    if (conflicts->space < size) {
        name_conflict(import->line, room);
        return;
    }
    char *end = conflicts->bytes + conflicts->size;
    conflicts->size += size;
    assert(conflicts->size <= conflicts->space && room.n <= UINT8_MAX);
    memcpy(end, &import->line, CONFLICT_LINE_BYTES);
    end[CONFLICT_LINE_BYTES] = (char)room.n;
    memcpy(end + CONFLICT_LINE_BYTES + 1, room.p, room.n);
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
    if (slice_equal((struct slice){known, size}, record->key))
        import->known++;
    else
        keep_conflict(import, record->room);
    return 0;
}

static int take_key(struct import *import, struct json *json) {
    char room[ID_BYTES], key[ID_BYTES], user[ID_BYTES];
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

int admin_import(const struct options *options) {
    char why[WHY_BYTES];
    struct import import = {.take = take_key};
    import.store = store_open(options->dir, why, sizeof why);
    if (!import.store) return tell("cannot import: %s", why);
    int result = read_lines(&import);
    if (settle(&import) < 0) result = -1;
    if (store_close(import.store) < 0) result = -1;
    name_conflicts(&import.conflicts);
    free(import.conflicts.bytes);
    if (import.conflicts.count > 0) result = -1;
    printf("%" PRIu64 " set, %" PRIu64 " set already, %" PRIu64 " without a key ID", import.taken,
           import.known, import.passed_over);
    if (import.conflicts.count > 0)
        printf(", %" PRIu64 " with another key ID", import.conflicts.count);
    printf("\n");
    return text_finish_output() == 0 ? result : -1;
}

/* ------------------------------------------------------------------------ users, rooms import */

static int leave_out(struct import *import, const char *why) {
    import->left_out++;
    return pass_over(import, why);
}

/* Takes a number of so many digits off text, from min to max, and what has to stand before it. */
static bool take_part(struct slice *text, const char *before, size_t digits, uint64_t min,
                      uint64_t max, uint64_t *number) {
    size_t n = strlen(before);
    if (text->n < n + digits || memcmp(text->p, before, n) != 0) return false;
    if (!slice_number((struct slice){text->p + n, digits}, max, number)) return false;
    *text = (struct slice){text->p + n + digits, text->n - n - digits};
    return *number >= min;
}

/* Reads the zone at the end of a date: Z, +HHMM or +HH:MM, a minus likewise. */
static bool read_zone(struct slice text, int64_t *seconds) {
    uint64_t hours, minutes;
    *seconds = 0;
    if (slice_equal(text, SLICE("Z"))) return true;
    const char *sign = text.n > 0 && text.p[0] == '-' ? "-" : "+";
    bool is_zone = take_part(&text, sign, 2, 0, 23, &hours) &&
                   take_part(&text, text.n > 0 && text.p[0] == ':' ? ":" : "", 2, 0, 59, &minutes);
    if (!is_zone || text.n > 0) return false;
    *seconds = (int64_t)(hours * 3600 + minutes * 60) * (*sign == '-' ? -1 : 1);
    return true;
}

/* Reads a date of ISO 8601, such as 2024-11-23T12:00:00.123Z, down to the second, as seconds since
 * 1970. For the count of days a year begins in March here, so that its leap day is its last one: the
 * months from March on have 31, 30, 31, 30, 31 days, and again, which is 153 in five months. */
static bool read_date(struct slice text, int64_t *seconds) {
    uint64_t year, month, day, hour, minute, second;
    int64_t zone_s;
    if (!take_part(&text, "", 4, 1, 9999, &year) || !take_part(&text, "-", 2, 1, 12, &month) ||
        !take_part(&text, "-", 2, 1, 31, &day) || !take_part(&text, "T", 2, 0, 23, &hour) ||
        !take_part(&text, ":", 2, 0, 59, &minute) || !take_part(&text, ":", 2, 0, 60, &second))
        return false;
    if (text.n > 0 && text.p[0] == '.') do
            text.p++, text.n--;
        while (text.n > 0 && text.p[0] >= '0' && text.p[0] <= '9');
    if (!read_zone(text, &zone_s)) return false;
    year -= month <= 2;
    month += month <= 2 ? 12 : 0;
    uint64_t days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month - 457) / 5 + day;
    *seconds = ((int64_t)days - DAYS_BEFORE_1970) * 86400 +
               (int64_t)(hour * 3600 + minute * 60 + second) - zone_s;
    return true;
}

/* Reads milliseconds since 1970, of which those before it are negative. */
static bool read_ms(struct slice text, int64_t *ms) {
    uint64_t number;
    bool is_negative = text.n > 0 && text.p[0] == '-';
    text = (struct slice){text.p + is_negative, text.n - is_negative};
    if (text.n > 2 && memcmp(text.p + text.n - 2, ".0", 2) == 0) text.n -= 2; /* a double */
    if (!slice_number(text, INT64_MAX, &number)) return false;
    *ms = is_negative ? -(int64_t)number : (int64_t)number;
    return true;
}

/* Reads a time as mongoexport writes it: {"$date": ...}, of a string in ISO 8601 or of milliseconds
 * since 1970, which may be {"$numberLong": "..."}; and what is inside of these alone. */
static bool read_when(struct json *json, const jsmntok_t *value, int64_t *ms) {
    char decoded[64];
    int64_t seconds;
    const jsmntok_t *inner = json_member(json, value, SLICE("$date"));
    if (inner) value = inner;
    if (json_type(json, value) == JSON_NUMBER) return read_ms(json_written(json, value), ms);
    inner = json_member(json, value, SLICE("$numberLong"));
    struct slice text = json_string(json, inner ? inner : value, decoded, sizeof decoded);
    if (json->why) return false;
    if (inner) return read_ms(text, ms);
    if (!read_date(text, &seconds)) return false;
    *ms = seconds * 1000;
    return true;
}

/* Takes a token of a user, or says why not. */
static int take_token(struct import *import, struct json *json, const char *user,
                      const jsmntok_t *token) {
    char hash[ID_BYTES], type[ID_BYTES];
    int64_t when_ms;
    json->why = NULL; /* a lone surrogate in one token is no fault of the next */
    struct slice hashed = text_of(json, json_member(json, token, SLICE("hashedToken")), hash);
    if (!access_is_hash(hashed))
        return pass_over(import, "has a token that is passed over: without a hashedToken");
    struct slice kind = text_of(json, json_member(json, token, SLICE("type")), type);
    if (import->oldest_ms != NO_LIMIT && !slice_equal(kind, SLICE("personalAccessToken"))) {
        if (!read_when(json, json_member(json, token, SLICE("when")), &when_ms))
            return pass_over(import, "has a token that is passed over: without a `when` that can "
                                     "be read, so its age is not known");
        if (when_ms < import->oldest_ms)
            return leave_out(import, "has a token that is passed over: older than --max-age");
    }
    fprintf(import->file, "%s %s\n", user, hash);
    import->taken++;
    return 0;
}

static int take_user(struct import *import, struct json *json) {
    char id[ID_BYTES];
    struct slice user = text_of(json, member(json, "_id"), id);
    const jsmntok_t *resume = json_member(json, member(json, "services"), SLICE("resume"));
    const jsmntok_t *tokens = json_member(json, resume, SLICE("loginTokens")), *token = NULL;
    if (!access_can_hold(user))
        return pass_over(import, "is passed over: users cannot hold its _id");
    const jsmntok_t *active = member(json, "active");
    if (json_type(json, active) == JSON_BOOLEAN &&
        slice_equal(json_written(json, active), SLICE("false")))
        return leave_out(import, "is passed over: its user is not active");
    if (json_type(json, tokens) != JSON_ARRAY) return 0;
    while ((token = json_next(json, tokens, token))) take_token(import, json, id, token);
    return 0;
}

/* Notes what a line says of a room, as text that sorts by room, and the room before its members:
 *
 *     RID 0 TYPE
 *     RID 1 USERID */
static int take_fact(struct import *import, struct json *json) {
    char rid[ID_BYTES], id[ID_BYTES];
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
    fprintf(import->file, "%s%s%s", rid, is_member ? " 1 " : " 0 ", id);
    putc('\0', import->file);
    return ferror(import->file) ? refuse(import, strerror(errno)) : 0;
}

static int compare_facts(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Writes a line for each room. Returns 0, or -1, reported: a room of two types is of none. */
static int write_rooms(struct import *import, char **facts, FILE *out) {
    const char *room = "", *last = "";
    char type = 0, quoted[QUOTED_BYTES];
    qsort(facts, import->facts, sizeof *facts, compare_facts);
    for (size_t i = 0; i < import->facts; i++) {
        char *rid = facts[i], *rest = rid + strcspn(rid, " "), *value = rest + 3;
        *rest++ = '\0';
        bool is_room = rest[0] == '0', is_same = strcmp(rid, room) == 0;
        if (is_same ? strcmp(rest, last) == 0 : !is_room) {
            import->passed_over++;
        } else if (is_room && is_same) {
            return tell("the room %s has two types", quote(slice_of(room), quoted));
        } else if (is_room) {
            room = rid;
            type = value[0];
            fprintf(out, "%s%s %s", import->taken++ ? "\n" : "", room, value);
        } else if (type != 'c') {
            fprintf(out, " %s", value);
        }
        last = rest;
    }
    putc('\n', out);
    return 0;
}

/* Sorts what was noted, fact by fact with a NUL behind each, into rooms. */
static int sort_facts(struct import *import, char *text, FILE *out) {
    char **facts = calloc(import->facts + 1, sizeof *facts);
    if (!facts) return tell("rooms: %s", strerror(errno));
    for (size_t i = 0; i < import->facts; i++, text += strlen(text) + 1) facts[i] = text;
    int result = write_rooms(import, facts, out);
    free(facts);
    return result;
}

/* Ends an import. A file with no line at all would lock everybody out, and is a mistake that was made
 * somewhere else; but if there was something, and all of it is out of use, nobody is left. */
static int end_import(const struct import *import, const struct edit *edit, int result) {
    bool has_nothing = import->taken == 0, is_users = edit->name[0] == 'u';
    bool is_emptied = import->left_out > 0 && import->left_out == import->passed_over;
    if (result == 0 && has_nothing && !is_emptied)
        result = tell("%s: nothing to import: no line has %s", edit->name,
                      is_users ? "a login token" : "a room of type c, p or d");
    if (end_edit(edit, result == 0) < 0) return -1;
    printf("%s: %" PRIu64 " lines, %" PRIu64 " passed over\n", edit->name, import->taken,
           import->passed_over);
    return text_finish_output();
}

int admin_users_import(const struct options *options) {
    struct edit edit;
    if (begin_edit(&edit, options->dir, "users") < 0) return -1;
    struct import import = {.take = take_user, .file = edit.file, .oldest_ms = NO_LIMIT};
    if (options->max_age_days > 0)
        import.oldest_ms = ((int64_t)time(NULL) - options->max_age_days * (int64_t)86400) * 1000;
    return end_import(&import, &edit, read_lines(&import));
}

int admin_rooms_import(const struct options *options) {
    struct edit edit;
    char *text = NULL;
    size_t size;
    if (begin_edit(&edit, options->dir, "rooms") < 0) return -1;
    struct import import = {.take = take_fact, .file = open_memstream(&text, &size)};
    int result = import.file ? read_lines(&import) : -1;
    if (!import.file || fclose(import.file) != 0) result = tell("rooms: %s", strerror(errno));
    if (result == 0) result = sort_facts(&import, text, edit.file);
    free(text);
    return end_import(&import, &edit, result);
}

/* ------------------------------------------------------------------------ health */

#define HEALTH_LIMIT_S 3 /* for each of connecting, asking and being answered */

int admin_health(const struct options *options) {
    static const char request[] =
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    const char *address =
        options->listen_count > 0 ? options->listen[options->listen_count - 1] : "127.0.0.1:3000";
    char status[sizeof "HTTP/1.1 200"] = "";
    int fd = listen_connect(address, HEALTH_LIMIT_S);
    if (fd < 0) return tell("%s: %s", address, strerror(errno));
    ssize_t n = send(fd, request, sizeof request - 1, MSG_NOSIGNAL);
    if (n > 0) n = recv(fd, status, sizeof status - 1, MSG_WAITALL);
    int error = errno == EAGAIN ? ETIMEDOUT : errno;
    close(fd);
    if (n < 0) return tell("%s: %s", address, strerror(error));
    if (strcmp(status, "HTTP/1.1 200") == 0) return 0;
    for (char *c = status; *c != '\0'; c++)
        if (*c < ' ' || *c > '~') *c = '?'; /* it may be anybody's, and goes to a terminal */
    return tell("%s: %s", address, status[0] ? status : "no answer");
}
