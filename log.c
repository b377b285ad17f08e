/*
 * log.c: the log as a file: its lines, how it is born, how it is read.
 *
 *     f8eebc0a  14   S   1732354800000  d26x6zSkaPSe5gCyy  wCiXndNp5NqNY3uCc  my-UniQu3_ke4_Id
 *     CRC       BATCH OP TIME           USERID             RID                KEYID
 *
 * (store.c draws it whole, with what it means.) A line that log_format wrote is one that log_parse
 * accepts, and log_parse accepts no other spelling of it: there is one way to write a number and
 * one to escape a byte, so two lines are about the same room if and only if their RID fields are
 * equal.
 */
#include "log.h"
#include "accel.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CRC_CHARS   8
#define LOG_MAGIC   "roomkeyd keys.log "
#define LOG_VERSION 1

/* CRC-32C (Castagnoli): the reflected polynomial 0x82F63B78, as in RFC 3720, appendix B.4. */
static uint32_t crc32c(struct slice bytes) {
    if (accel_has_crc32c()) return accel_crc32c(bytes);
    static const uint32_t nibble[16] = {0x00000000, 0x105EC76F, 0x20BD8EDE, 0x30E349B1,
                                        0x417B1DBC, 0x5125DAD3, 0x61C69362, 0x7198540D,
                                        0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9,
                                        0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75};
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < bytes.n; i++) {
        crc ^= (unsigned char)bytes.p[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}

/* The bytes that would end a field or a line, and what is written after a backslash for each. */
static const char ESCAPED[] = "\t\n\r\\", LETTERS[] = "tnr\\";

/* Where a byte stands in ESCAPED, or NULL. Nearly none does, and one look tells that. */
static const char *find_escaped(char c) {
    bool is_written_as_such = (unsigned char)c > '\r' && c != '\\';
    return is_written_as_such ? NULL : memchr(ESCAPED, c, sizeof ESCAPED - 1);
}

struct slice log_escape(struct slice id, char out[LOG_ESCAPED_MAX_BYTES]) {
    size_t n = slice_plain(id, '\\', '\\');
    memcpy(out, id.p, n);
    for (size_t i = n; i < id.n; i++) {
        const char *escaped = find_escaped(id.p[i]);
        if (escaped) out[n++] = '\\';
        out[n++] = escaped ? LETTERS[escaped - ESCAPED] : id.p[i];
    }
    return (struct slice){out, n};
}

struct slice log_unescape(struct slice field, char out[ID_MAX_BYTES]) {
    const struct slice nothing = {out, 0};
    size_t n = slice_plain(field, '\\', '\\');
    if (n > ID_MAX_BYTES) return nothing;
    memcpy(out, field.p, n);
    for (size_t i = n; i < field.n; i++) {
        char c = field.p[i];
        if (n == ID_MAX_BYTES) return nothing;
        if (find_escaped(c)) {
            const char *letter =
                c == '\\' && ++i < field.n ? memchr(LETTERS, field.p[i], sizeof LETTERS - 1) : NULL;
            if (!letter) return nothing; /* ESCAPED as it is, or a backslash before anything else */
            c = ESCAPED[letter - LETTERS];
        }
        out[n++] = c;
    }
    return (struct slice){out, n};
}

/* The put_ functions write at out and return where the next byte goes. A number gets as many digits
 * as it needs, or so many at least. */
static char *put_hex(char *out, uint64_t value, int digits) {
    while (digits < 16 && value >> (4 * digits) != 0) digits++;
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4)
        *out++ = "0123456789abcdef"[value >> shift & 15];
    return out;
}

static char *put_field(char *out, struct slice field) {
    *out++ = '\t';
    memcpy(out, field.p, field.n);
    return out + field.n;
}

size_t log_format(const struct log_line *line, char start[LOG_LINE_MAX_BYTES]) {
    char *covered = start + CRC_CHARS + 1;
    char *out = put_hex(covered, line->batch, 1);
    out = put_field(out, line->is_seal ? SLICE("-") : SLICE("S"));
    if (!line->is_seal) {
        *out++ = '\t';
        out = slice_put_number(out, line->time_ms);
        out = put_field(out, line->user);
        out = put_field(out, line->room);
        out = put_field(out, line->key);
    }
    put_hex(start, crc32c((struct slice){covered, (size_t)(out - covered)}), CRC_CHARS);
    start[CRC_CHARS] = '\t';
    *out++ = '\n';
    assert(out - start <= (ptrdiff_t)LOG_LINE_MAX_BYTES);
    return (size_t)(out - start);
}

const char *log_fault_text(enum log_fault fault) {
    static const char *const text[] = {
        [LOG_VALID] = "it is valid",
        [LOG_BAD_CHECKSUM] = "its checksum does not match",
        [LOG_BAD_FIELDS] = "its fields are not those of a record",
        [LOG_NEWER] = "it was written by a newer roomkeyd",
        [LOG_BAD_BATCH] = "it belongs to another batch",
        [LOG_ROOM_TWICE] = "its room has a key ID already",
        [LOG_NOT_A_LINE] = "the line does not end",
        [LOG_UNREADABLE] = "it cannot be read",
    };
    return text[fault];
}

/* Cuts the bytes up to the next tab (or the end) off *rest and returns them. */
static struct slice next_field(struct slice *rest) {
    const char *tab = memchr(rest->p, '\t', rest->n);
    struct slice field = {rest->p, tab ? (size_t)(tab - rest->p) : rest->n};
    size_t used = field.n + (tab != NULL);
    *rest = (struct slice){rest->p + used, rest->n - used};
    return field;
}

/* Reads a hex number as put_hex writes it. */
static bool read_hex(struct slice digits, uint64_t *value) {
    if (digits.n == 0 || digits.n > 16) return false;
    *value = 0;
    for (size_t i = 0; i < digits.n; i++) {
        char c = digits.p[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
        *value = *value << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return true;
}

static bool read_decimal(struct slice digits, uint64_t *value) {
    return slice_number(digits, UINT64_MAX, value) && (digits.n == 1 || digits.p[0] != '0');
}

static bool is_escaped_id(struct slice field) {
    char id[ID_MAX_BYTES];
    return log_unescape(field, id).n > 0;
}

/* Whether a line's checksum holds, and what it covers. */
static bool is_intact(struct slice text, struct slice *covered) {
    uint64_t crc;
    *covered = text;
    struct slice field = next_field(covered);
    return field.n == CRC_CHARS && read_hex(field, &crc) && crc == crc32c(*covered);
}

enum log_fault log_parse(struct slice text, struct log_line *line) {
    struct slice rest;
    *line = (struct log_line){.batch = 0};
    if (!is_intact(text, &rest)) return LOG_BAD_CHECKSUM;
    struct slice field = next_field(&rest);
    if (!read_hex(field, &line->batch) || field.p[0] == '0') return LOG_BAD_FIELDS;
    field = next_field(&rest);
    line->is_seal = slice_equal(field, SLICE("-"));
    if (line->is_seal) /* and nothing behind it, not even a tab */
        return field.p + field.n == text.p + text.n ? LOG_VALID : LOG_BAD_FIELDS;
    if (!slice_equal(field, SLICE("S"))) return LOG_NEWER;
    if (!read_decimal(next_field(&rest), &line->time_ms)) return LOG_BAD_FIELDS;
    line->user = next_field(&rest);
    line->room = next_field(&rest);
    line->key = rest;
    bool is_record =
        is_escaped_id(line->user) && is_escaped_id(line->room) && is_escaped_id(line->key);
    return is_record ? LOG_VALID : LOG_BAD_FIELDS;
}

bool log_is_first_line(struct slice text) {
    static const char mark[] = "\xEF\xBB\xBF" LOG_FIRST_LINE;
    struct slice marked = {mark, sizeof mark - 2}; /* without the newline */
    return slice_equal(text, marked) || slice_equal(text, (struct slice){mark + 3, marked.n - 3});
}

/* ---------------------------------------------------------------------- system calls made whole */

ssize_t log_read_at(int fd, char *buffer, size_t size, uint64_t offset) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, buffer + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int log_write_at(int fd, struct slice bytes, uint64_t offset) {
    while (bytes.n > 0) {
        ssize_t n = pwrite(fd, bytes.p, bytes.n, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* POSIX gives it no meaning; going on could go on for ever */
        if (n <= 0) return -1;
        bytes.p += n;
        bytes.n -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* Some file systems let a signal interrupt a sync or a cut. */
static int sync_by(int (*call)(int), int fd) {
    while (call(fd) < 0)
        if (errno != EINTR) return -1;
    return 0;
}

int log_sync_data(int fd) { return sync_by(fdatasync, fd); }

int log_sync_all(int fd) { return sync_by(fsync, fd); }

int log_sync_seen(int fd) {
    struct statvfs file_system;
    if (log_sync_data(fd) == 0) return 0;
    int error = errno;
    bool is_read_only = fstatvfs(fd, &file_system) == 0 && file_system.f_flag & ST_RDONLY;
    bool is_unasked = error == EROFS || error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
    errno = error;
    return is_read_only && is_unasked ? 0 : -1;
}

const char *log_sync_error(int error) {
    bool is_unknown = error == EINVAL || error == ENOSYS || error == EOPNOTSUPP || error == ENOTTY;
    return is_unknown ? "its file system cannot sync a directory, and so cannot keep a promise; "
                        "choose another one for --data"
                      : strerror(error);
}

int log_cut(int fd, uint64_t size) {
    while (ftruncate(fd, (off_t)size) < 0)
        if (errno != EINTR) return -1;
    return 0;
}

int log_copy(int from_fd, int to_fd, uint64_t from, uint64_t to, uint64_t at) {
    char block[16384];
    while (from < to) {
        size_t want = to - from < sizeof block ? (size_t)(to - from) : sizeof block;
        ssize_t n = log_read_at(from_fd, block, want, from);
        if (n == 0) errno = EIO; /* the file has become shorter under our lock */
        if (n <= 0 || log_write_at(to_fd, (struct slice){block, (size_t)n}, at) < 0) return -1;
        from += (uint64_t)n;
        at += (uint64_t)n;
    }
    return 0;
}

/* ------------------------------------------------------------------------ reading line by line */

/* Makes sure that a whole line is in the buffer if there is one. Returns 0, or -1 with errno. */
static int fill(struct log_reader *reader) {
    if (reader->at_end || reader->end - reader->begin >= LOG_LINE_MAX_BYTES) return 0;
    memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
    reader->end -= reader->begin;
    reader->begin = 0;
    size_t want = LOG_READ_BUFFER_BYTES - reader->end;
    ssize_t n =
        log_read_at(reader->fd, reader->buffer + reader->end, want, reader->offset + reader->end);
    if (n < 0) return -1;
    reader->at_end = (size_t)n < want;
    reader->end += (size_t)n;
    return 0;
}

int log_read_line(struct log_reader *reader, struct log_span *span) {
    if (fill(reader) < 0) return -1;
    size_t available = reader->end - reader->begin;
    if (available == 0) return 0;
    size_t window = available < LOG_LINE_MAX_BYTES ? available : LOG_LINE_MAX_BYTES;
    const char *start = reader->buffer + reader->begin;
    const char *newline = memchr(start, '\n', window);
    span->text = (struct slice){start, newline ? (size_t)(newline - start) : window};
    span->offset = reader->offset;
    span->is_whole = newline != NULL;
    span->is_inside = reader->is_inside;
    reader->is_inside = !span->is_whole;
    reader->begin += span->text.n + span->is_whole;
    reader->offset += span->text.n + span->is_whole;
    return 1;
}

void log_look_inside(struct log_reader *reader, const struct log_span *span) {
    uint64_t crc;
    struct slice text = span->text;
    size_t i = 1; /* where a checksum may stand, and a tab behind it */
    while (i + CRC_CHARS < text.n && (text.p[i + CRC_CHARS] != '\t' ||
                                      !read_hex((struct slice){text.p + i, CRC_CHARS}, &crc)))
        i++;
    /* At the end of what is no whole line, the tab may be yet to come. */
    if (i + CRC_CHARS > text.n || (i + CRC_CHARS == text.n && span->is_whole)) return;
    size_t back = (size_t)(reader->offset - (span->offset + i));
    assert(back <= reader->begin); /* it is still in the buffer, which only the next read moves */
    reader->begin -= back;
    reader->offset = span->offset + i;
    reader->is_inside = true;
}

/* ------------------------------------------------------------------------ opening */

void log_give_to_owner(int dir_fd, int fd) {
    struct stat status;
    bool is_another = geteuid() == 0 && fstat(dir_fd, &status) == 0 && status.st_uid != 0;
    if (is_another && fchown(fd, status.st_uid, status.st_gid) < 0) return;
}

/* Makes the log, complete with its first line, or not at all. Returns a descriptor, or -1 with the
 * reason. */
static int create_log(int dir_fd, struct text_why why) {
    int fd = -1; /* what a crash has left goes first; so does somebody's link, unfollowed */
    if (unlinkat(dir_fd, LOG_BIRTH_NAME, 0) == 0 || errno == ENOENT)
        fd = openat(dir_fd, LOG_BIRTH_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) log_give_to_owner(dir_fd, fd);
    if (fd >= 0 && log_write_at(fd, SLICE(LOG_FIRST_LINE), 0) == 0 && log_sync_all(fd) == 0 &&
        renameat(dir_fd, LOG_BIRTH_NAME, dir_fd, LOG_NAME) == 0 && log_sync_all(dir_fd) == 0)
        return fd;
    text_fail(why, LOG_NAME ": cannot make it: %s", log_sync_error(errno));
    if (fd >= 0) close(fd);
    return -1;
}

/* Whether a file is what a crash leaves of create_log: no more than a first line, whole or not. */
static bool is_half_born(int dir_fd, const char *name) {
    struct stat status;
    return strcmp(name, LOG_BIRTH_NAME) == 0 &&
           fstatat(dir_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
           (!S_ISREG(status.st_mode) || (uint64_t)status.st_size <= LOG_FIRST_LINE_BYTES);
}

/* Looks in a directory that has no log for a file that bears witness of one: the mark, a torn tail,
 * what a rotation or an editor has made of it. Returns 0 if there is none, or -1 with the reason. */
static int find_witness(int dir_fd, struct text_why why) {
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), result = 0;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    if (!dir) {
        result = text_fail(why, "cannot list the directory: %s", strerror(errno));
        if (fd >= 0) close(fd);
        return result;
    }
    errno = 0;
    while (result == 0 && (entry = readdir(dir))) {
        const char *name = entry->d_name + (entry->d_name[0] == '.');
        bool is_witness = strncmp(name, LOG_NAME, sizeof LOG_NAME - 1) == 0;
        if (is_witness && !is_half_born(dir_fd, entry->d_name))
            result = text_fail(
                why,
                LOG_NAME
                ": missing, but %s shows that there was one. Put the log back; or, to begin anew "
                "without any key ID, remove every file whose name begins with " LOG_NAME,
                entry->d_name);
        errno = 0;
    }
    if (result == 0 && errno != 0)
        result = text_fail(why, "cannot list the directory: %s", strerror(errno));
    closedir(dir);
    return result;
}

/* What is wrong with the first bytes of a log that do not begin with its first line. */
static const char *head_fault_text(struct slice head) {
    static const struct {
        struct slice prefix;
        const char *text;
    } known[] = {
        {{"\xEF\xBB\xBF" LOG_MAGIC, 3 + sizeof LOG_MAGIC - 1},
         "a byte order mark stands before its first line: a program has converted it"},
        {{"roomkeyd keys.log 1\r\n", LOG_FIRST_LINE_BYTES + 1},
         "its lines end in CR LF: a program has converted it"},
        {{"\xFF\xFE", 2}, "it is UTF-16: a program has converted it"},
        {{"\xFE\xFF", 2}, "it is UTF-16: a program has converted it"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (head.n >= known[i].prefix.n &&
            memcmp(head.p, known[i].prefix.p, known[i].prefix.n) == 0)
            return known[i].text;
    return "its first line is not that of a log";
}

/* Whether a file begins, up to a NUL, as a log of a later version does. */
static bool is_newer(const char *line) {
    uint64_t version;
    if (strncmp(line, LOG_MAGIC, sizeof LOG_MAGIC - 1) != 0) return false;
    struct slice digits = {line + sizeof LOG_MAGIC - 1, strcspn(line + sizeof LOG_MAGIC - 1, "\n")};
    return digits.p[digits.n] == '\n' && slice_number(digits, UINT64_MAX, &version) &&
           version > LOG_VERSION;
}

/* Whether an open file is a log that this program understands. Returns 0 with *head_fault NULL, or
 * what is wrong with its first line; or -1 with the reason. */
static int check_log(int fd, const char **head_fault, struct text_why why) {
    char line[64];
    struct stat status;
    *head_fault = NULL;
    if (fstat(fd, &status) < 0) return text_fail(why, LOG_NAME ": %s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return text_fail(why, LOG_NAME ": not a regular file");
    ssize_t n = log_read_at(fd, line, sizeof line - 1, 0);
    if (n < 0) return text_fail(why, LOG_NAME ": %s", strerror(errno));
    if (n == 0)
        return text_fail(why, LOG_NAME
                         ": empty, which roomkeyd never leaves it: somebody has emptied it, or a "
                         "copy has failed. Restore it from a copy; or, to begin anew without any "
                         "key ID, remove every file whose name begins with " LOG_NAME);
    line[n] = '\0';
    if (strncmp(line, LOG_FIRST_LINE, LOG_FIRST_LINE_BYTES) == 0) return 0;
    *head_fault = is_newer(line) ? log_fault_text(LOG_NEWER)
                                 : head_fault_text((struct slice){line, (size_t)n});
    return 0;
}

/* Opens the file that should be the log. Returns a descriptor, or -1 with errno set and, unless that
 * is ENOENT, the reason. */
static int open_log(int dir_fd, int mode, struct text_why why) {
    /* The file itself: behind a symbolic link it could be shared with another directory, whose lock
     * is another one, or be on a disk that is not mounted just now. */
    int fd = openat(dir_fd, LOG_NAME, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    int error = errno;
    if (fd < 0 && error == ELOOP)
        text_fail(why, LOG_NAME ": a symbolic link; the log has to be in the directory itself");
    else if (fd < 0 && error != ENOENT)
        text_fail(why, LOG_NAME ": %s", strerror(error));
    errno = error;
    return fd;
}

int log_open_to_look(int dir_fd, const char **head_fault, struct text_why why) {
    int fd = open_log(dir_fd, O_RDONLY, why);
    if (fd < 0 && errno == ENOENT && find_witness(dir_fd, why) == 0)
        text_fail(why, LOG_NAME ": %s", strerror(ENOENT));
    if (fd < 0 || check_log(fd, head_fault, why) == 0) return fd;
    close(fd);
    return -1;
}

int log_open(int dir_fd, struct text_why why) {
    const char *head_fault;
    if (log_check_note(dir_fd, why) < 0) return -1;
    int fd = open_log(dir_fd, O_RDWR, why);
    if (fd < 0)
        return errno == ENOENT && find_witness(dir_fd, why) == 0 ? create_log(dir_fd, why) : -1;
    int result = check_log(fd, &head_fault, why);
    if (result == 0 && head_fault)
        result = text_fail(why,
                           LOG_NAME ": %s; nothing has been changed. %sRestore it from a copy, or "
                                    "see what check says and what check --salvage saves",
                           head_fault,
                           head_fault == log_fault_text(LOG_NEWER) ? "If so, use that one. " : "");
    if (result == 0) return fd;
    close(fd);
    return -1;
}

/* ------------------------------------------------------------------------ mark and note */

/* Makes a small file in a directory, if it is not there, durable with its name. Returns 0, or -1
 * with errno set. */
static int leave_file(int dir_fd, const char *name, struct slice text) {
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return errno == EEXIST ? 0 : -1;
    log_give_to_owner(dir_fd, fd);
    int result = log_write_at(fd, text, 0), error = errno;
    if (result == 0 && (result = log_sync_all(fd)) < 0) error = errno;
    close(fd);
    if (log_sync_all(dir_fd) < 0 && result == 0) return -1;
    errno = error;
    return result;
}

int log_leave_mark(int dir_fd) {
    return leave_file(dir_fd, LOG_MARK_NAME,
                      SLICE("A " LOG_NAME
                            " was made in this directory. As long as this file is here "
                            "and the log is not,\nroomkeyd does not start: rooms that had a key ID "
                            "would get a second one.\n"));
}

int log_leave_note(int dir_fd, const char *line) {
    char text[1024];
    int n =
        snprintf(text, sizeof text,
                 "%s\n\n"
                 "roomkeyd does not start while this file is here. Find the log that the server "
                 "has written\n(roomkeyd check says what is in one), make it " LOG_NAME
                 " in this directory again, then\nremove this file. Every key ID that was "
                 "acknowledged is in that log, as far as nobody has\noverwritten it.\n",
                 line);
    assert(n > 0 && (size_t)n < sizeof text);
    return leave_file(dir_fd, LOG_NOTE_NAME, (struct slice){text, (size_t)n});
}

int log_check_note(int dir_fd, struct text_why why) {
    char text[512];
    int fd = openat(dir_fd, LOG_NOTE_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return 0;
    if (fd < 0) return text_fail(why, LOG_NOTE_NAME ": %s", strerror(errno));
    ssize_t n = log_read_at(fd, text, sizeof text - 1, 0);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return text_fail(
        why,
        LOG_NOTE_NAME
        " keeps servers from starting: %s. Put the right log back, then remove that file",
        text[0] ? text : "a server found its log changed by somebody else");
}

/* ------------------------------------------------------------------------ identity */

static bool is_same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether one look by descriptor and one by name agree. Somebody may replace the file between the
 * two, but hardly three times in a row. */
static bool is_stable(int dir_fd, const char *name, int flags) {
    bool agree = false;
    for (int i = 0; i < 3 && !agree; i++) {
        struct stat open, named;
        int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
        agree = fd < 0 || fstat(fd, &open) < 0 || fstatat(dir_fd, name, &named, 0) < 0 ||
                is_same_file(&open, &named);
        if (fd >= 0) close(fd);
    }
    return agree;
}

bool log_is_comparable(const struct log_place *place) {
    return is_stable(place->dir_fd, LOG_NAME, O_NOFOLLOW) &&
           is_stable(AT_FDCWD, place->dir, O_DIRECTORY);
}

int log_read_end(int fd, uint64_t size, struct log_end *end) {
    size_t want = size < LOG_TAIL_BYTES ? (size_t)size : LOG_TAIL_BYTES;
    end->size = size;
    end->tail_size = want;
    ssize_t first = log_read_at(fd, end->head, want, 0);
    ssize_t last = first < 0 ? -1 : log_read_at(fd, end->tail, want, size - want);
    if (last < 0) return -1;
    if (first == (ssize_t)want && last == (ssize_t)want) return 0;
    errno = EIO;
    return -1;
}

void log_append_end(struct log_end *end, struct slice bytes) {
    size_t added = bytes.n < LOG_TAIL_BYTES ? bytes.n : LOG_TAIL_BYTES;
    size_t kept = LOG_TAIL_BYTES - added, missing = LOG_TAIL_BYTES - end->tail_size;
    if (missing > 0) /* the head is the whole log yet */
        memcpy(end->head + end->tail_size, bytes.p, added < missing ? added : missing);
    if (kept > end->tail_size) kept = end->tail_size;
    assert(kept + added <= LOG_TAIL_BYTES);
    memmove(end->tail, end->tail + end->tail_size - kept, kept);
    memcpy(end->tail + kept, bytes.p + bytes.n - added, added);
    end->tail_size = kept + added;
    end->size += bytes.n;
}

/* Whether a file has so many bytes at an offset, and these; yes if it cannot be read. */
static bool holds(int fd, const char *bytes, size_t size, uint64_t offset) {
    char found[LOG_TAIL_BYTES];
    ssize_t n = log_read_at(fd, found, size, offset);
    return n < 0 || ((size_t)n == size && memcmp(found, bytes, size) == 0);
}

bool log_holds_tail(int fd, const struct log_end *end) {
    return holds(fd, end->tail, end->tail_size, end->size - end->tail_size);
}

/* The directory is still the one at its path. */
static const char *find_directory_change(const struct log_place *place) {
    struct stat open, named;
    if (fstat(place->dir_fd, &open) < 0) return NULL;
    if (stat(place->dir, &named) == 0)
        return is_same_file(&open, &named) || !place->is_comparable
                   ? NULL
                   : "is no longer in use: another directory has taken the place of its own";
    bool is_gone = errno == ENOENT || errno == ENOTDIR;
    return is_gone ? "is no longer in use: its directory has been moved" : NULL;
}

const char *log_find_change(const struct log_place *place, const struct log_end *end) {
    struct stat open, named;
    if (fstat(place->log_fd, &open) < 0) return errno == ESTALE ? "has been removed" : NULL;
    if (open.st_nlink == 0) return "has been removed";
    if (fstatat(place->dir_fd, LOG_NAME, &named, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno == ENOENT) return "has been renamed";
    } else if (place->is_comparable && !is_same_file(&open, &named)) {
        return "has been replaced by another file";
    }
    if ((uint64_t)open.st_size < end->size) return "has been cut";
    if ((uint64_t)open.st_size > end->size) return "has grown: somebody else has written to it";
    if (!holds(place->log_fd, end->head, end->tail_size, 0) || !log_holds_tail(place->log_fd, end))
        return "has been overwritten";
    return find_directory_change(place);
}
