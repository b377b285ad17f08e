/*
 * log.h: the log as a file: its lines, how it is born, how it is read.
 *
 * What the lines mean together (batches, what is certified, what a bad line is) and when they are
 * written is store.c's business; the format is drawn there. Nothing here keeps any state but what
 * the caller passes. All that touches a file blocks.
 */
#ifndef LOG_H
#define LOG_H

#include "slice.h"
#include "text.h"
#include <stdint.h>
#include <sys/types.h>

#define LOG_NAME              "keys.log"
#define LOG_FIRST_LINE        "roomkeyd keys.log 1\n"
#define LOG_FIRST_LINE_BYTES  (sizeof LOG_FIRST_LINE - 1)
#define LOG_ESCAPED_MAX_BYTES (2 * ID_MAX_BYTES)
/* CRC, BATCH, OP, TIME, three IDs, six tabs, a newline. */
#define LOG_LINE_MAX_BYTES    (8 + 1 + 16 + 1 + 1 + 1 + 20 + 3 * (1 + LOG_ESCAPED_MAX_BYTES) + 1)
#define LOG_RECORD_MIN_BYTES  (8 + 1 + 1 + 1 + 1 + 1 + 1 + 3 * (1 + 1) + 1)

/* Writes an ID as it stands in a line to out, and returns that. */
struct slice log_escape(struct slice id, char out[LOG_ESCAPED_MAX_BYTES]);

/* Undoes log_escape. Returns the ID, which it writes to out, or nothing (n is 0) if the field is
 * not what log_escape writes for an ID: empty, too long, or with another escape in it. */
struct slice log_unescape(struct slice field, char out[ID_MAX_BYTES]);

/* A line: a record or a seal. The three IDs are escaped, and empty in a seal. */
struct log_line {
    uint64_t batch;
    uint64_t time_ms; /* since 1970 */
    bool is_seal;
    struct slice user, room, key;
};

/* Writes a line with its checksum and newline to out, and returns its size. */
size_t log_format(const struct log_line *line, char out[LOG_LINE_MAX_BYTES]);

/* What can be wrong with a line. log_parse judges it alone and says one of the first four; the
 * others come to light beside its neighbours. */
enum log_fault {
    LOG_VALID,
    LOG_BAD_CHECKSUM,
    LOG_BAD_FIELDS,
    LOG_NEWER, /* the checksum holds, but the operation is none of this version's */
    LOG_BAD_BATCH,
    LOG_ROOM_TWICE,
    LOG_NOT_A_LINE,
    LOG_UNREADABLE, /* none of the line's: the disk or the memory failed, errno says how */
};
const char *log_fault_text(enum log_fault fault);

/* Takes a line apart, given without its newline. The slices point into text. */
enum log_fault log_parse(struct slice text, struct log_line *line);

/* Whether a line is the first one of a log, perhaps after a byte order mark. */
bool log_is_first_line(struct slice text);

/* Reads a file line by line through a large buffer of the caller's. */
#define LOG_READ_BUFFER_BYTES (1u << 20)
struct log_reader {
    int fd;
    char *buffer;    /* LOG_READ_BUFFER_BYTES */
    uint64_t offset; /* where the next line begins in the file; set it to begin there */
    size_t begin, end;
    bool is_inside; /* the next line begins inside one that is bad */
    bool at_end;    /* nothing more in the file than in the buffer */
};

/* Bytes that may be a line. */
struct log_span {
    struct slice text; /* without the newline; lives until the next call */
    uint64_t offset;   /* in the file */
    bool is_whole;  /* a newline ends it; otherwise it is too long for a line, or the file ends */
    bool is_inside; /* no newline stands before it */
};

/* The next line. One that is too long comes in pieces, none but the last of them whole. Returns 1,
 * 0 at the end, -1 with errno set. */
int log_read_line(struct log_reader *reader, struct log_span *span);

/* After the span that log_read_line gave last, if that is no valid line: reading goes on where
 * inside it a line may begin all the same, the newline before which is gone. For those who look for
 * lines behind a bad one. */
void log_look_inside(struct log_reader *reader, const struct log_span *span);

/* ------------------------------------------------------------------------ opening */

/* What stands beside a log. The mark is born with it and stays: a mark without a log means that the
 * log was lost, not that there never was one. The note is left by a server that found its log
 * changed by somebody else; no server starts until an operator has removed it. */
#define LOG_BIRTH_NAME LOG_NAME ".new"
#define LOG_MARK_NAME  LOG_NAME ".born"
#define LOG_NOTE_NAME  LOG_NAME ".failed"

/* Opens the log in a directory for a server. Where there is none and nothing that only a log leaves
 * behind, it is made, complete and durable, or not at all. What is no log is not touched. Returns a
 * descriptor, or -1 with the reason. Blocks. */
int log_open(int dir_fd, struct text_why why);

/* Opens it to be looked at. *head_fault says what is wrong with its first line, or is NULL. Returns
 * a descriptor, or -1 with the reason. Blocks. */
int log_open_to_look(int dir_fd, const char **head_fault, struct text_why why);

/* Whether a note keeps servers from starting. Returns 0, or -1 with the reason. */
int log_check_note(int dir_fd, struct text_why why);

/* Leaves the mark, if it is not there, and the note, with one line of text. Both block, and return 0
 * or -1 with errno set. What the file system then holds of them may be empty: that they exist is
 * what counts. */
int log_leave_mark(int dir_fd);
int log_leave_note(int dir_fd, const char *line);

/* ------------------------------------------------------------------------ identity */

/* An open log, and where it should be found again. */
struct log_place {
    const char *dir; /* the path of its directory, the caller's */
    int dir_fd, log_fd;
    bool is_comparable; /* log_is_comparable has said so */
};

/* How a log begins and ends: what its server left. Whoever copies another log over it changes the
 * first bytes, whoever cuts it or appends to it the last ones. */
#define LOG_TAIL_BYTES 128
struct log_end {
    uint64_t size;             /* of the file, in bytes */
    size_t tail_size;          /* bytes; LOG_TAIL_BYTES, or the file is shorter */
    char head[LOG_TAIL_BYTES]; /* as many, the first ones: the first records */
    char tail[LOG_TAIL_BYTES]; /* the last ones */
};

/* Reads how an open log of `size` bytes begins and ends. Returns 0, or -1 with errno set. Blocks. */
int log_read_end(int fd, uint64_t size, struct log_end *end);

/* Whether the last bytes are still where they were, whatever follows them; yes if they cannot be
 * read. Blocks. */
bool log_holds_tail(int fd, const struct log_end *end);

/* Takes what has been appended into account. */
void log_append_end(struct log_end *end, struct slice bytes);

/* Whether the file system tells the same file by the same numbers, whether it is asked by name or by
 * descriptor. Blocks. */
bool log_is_comparable(const struct log_place *place);

/* Whether the open log is still what its server left, in the place where it was left: two fresh
 * looks, by descriptor and by name, and its end. Returns NULL if it is, or if that cannot be found
 * out (a name that may no longer be looked up is no other name); otherwise what has happened, as the
 * rest of a sentence that begins with LOG_NAME. Blocks as far as a look at a file does. */
const char *log_find_change(const struct log_place *place, const struct log_end *end);

/* ------------------------------------------------------------------------ system calls */

/* System calls made whole: short counts are finished, EINTR is no failure. All return -1 with errno
 * set when they fail. log_read_at returns fewer than size bytes only at the end of the file. */
ssize_t log_read_at(int fd, char *buffer, size_t size, uint64_t offset);
int log_write_at(int fd, struct slice bytes, uint64_t offset);
int log_sync_data(int fd);
int log_sync_all(int fd);

/* As log_sync_data, of a file that is only looked at: a read-only file system, which may not know
 * how to sync, has nothing to sync. */
int log_sync_seen(int fd);

/* What the error of a sync means, for people: a file system may not know how to sync a directory. */
const char *log_sync_error(int error);

/* Gives a new file to the directory's owner, if root has made it: a server that runs as that one
 * has to open it. Where even root may not, the file stays root's. */
void log_give_to_owner(int dir_fd, int fd);
int log_cut(int fd, uint64_t size);

/* Copies bytes [from, to) of a file to an offset of another, or onto themselves. */
int log_copy(int from_fd, int to_fd, uint64_t from, uint64_t to, uint64_t at);

#endif
