/*
 * store.c: the append-only log, its replay, and the thread that commits to it.
 *
 * The log, DIR/keys.log, is text: a first line that names format and version, then a line a record,
 * fields separated by tabs. Backslash escapes (\t \n \r \\, as in PostgreSQL's COPY) keep every
 * field on its line, so cut, awk and grep read it.
 *
 *     roomkeyd keys.log 1
 *     f8eebc0a  14   S   1732354800000  d26x6zSkaPSe5gCyy  wCiXndNp5NqNY3uCc  my-UniQu3_ke4_Id
 *     |         |    |   |              |                  |                  `- KEYID
 *     |         |    |   |              |                  `- RID: each at most once in a log
 *     |         |    |   |              `- USERID: who set it, or -
 *     |         |    |   `- TIME: milliseconds since 1970, for information only
 *     |         |    `- OP: S set; - a seal, which ends here; R (reset) is reserved
 *     |         `- BATCH: the offset (hex) at which this line's batch begins
 *     `- CRC: CRC-32C (hex) of all that stands after its tab, up to the newline
 *
 * BATCH is what tells a crash from damage. A batch is one write and one fdatasync, and the next one
 * is written only after that sync has succeeded. So a line whose BATCH is B says: everything before
 * B was on disk when I was written. Let C be the highest BATCH of any valid line:
 *
 *     0              C                    X               end
 *     |--------------|--------------------|~~~~~~~~~~~~~~~~|
 *     certified:      the last batch: whole lines are kept,  from its first bad line on: a torn
 *     a bad line      since they may have been acknowledged  tail, never acknowledged: saved in a
 *     is damage                                              file of its own, reported, cut off
 *
 * A seal is a line without a record: it certifies a log at rest to its end. It is not synced
 * itself, so the batch after it counts as beginning at the seal.
 *
 * A torn tail holds a part of the last batch, and nothing else that was written whole. If a whole
 * line of another place stands there, somebody has put it there, and a start refuses to move it away
 * (struct rest).
 *
 * What has to hold:
 *   1. A ticket settles well only after fdatasync has returned 0 for its batch, and replay lets the
 *      store answer only after what it kept has been written and synced again: after a failed sync
 *      Linux forgets which pages it never wrote, and reading them back proves nothing.
 *   2. What has been committed is never written again, except with itself: by replay, or, if there
 *      was no space for that, before the first batch after it. Nothing is ever removed but a tail
 *      that no acknowledgement rests on.
 *   3. A durable record always fits the index: its slot is reserved before it is written.
 *   4. What is open is what this store left: the file that has the log's name in the log's
 *      directory, with the same size, the same beginning and the same end. The committer looks before
 *      it writes a batch (so that nothing is written into somebody else's file) and after it has
 *      synced the batch (so that nothing is acknowledged that is only in a file without a name), and
 *      once a second while there is no batch. If 4 does not hold, the log is lost: nothing is
 *      written any more, nothing settles well, and a note beside the log keeps servers from starting
 *      until somebody has looked.
 *
 * Assumed of the disk, as SQLite does ("powersafe overwrite"): a write that a power failure cuts
 * short harms no byte outside its own range.
 *
 * Who owns what. A batch goes round through three hands, and its slot with it:
 *
 *     open --taken--> committing --written, synced--> settled --collected--> (free)
 *     the owner adds  the committer writes it         the owner moves its entries to the index
 *
 * There are two threads, the owner's (the loop) and the committer, and three kinds of fields in
 * struct store. Those after `lock` are shared, and whoever uses one holds the lock: which batch is
 * where, what is in the open batch, and whether the log is lost. Those under "the committer's own"
 * are that. All others are the owner's own, and need no lock.
 *
 * A batch that is committing or settled is read by both threads and changed by neither, until the
 * owner has collected it (but for how long its commit took, which the committer notes before the
 * batch is settled). If the owner has offered the open batch, the committer takes it as soon as it
 * has nothing else to do: between two syncs the disk waits for nobody to wake up. No thread holds the
 * lock during a system call that may block, so the owner never waits for the disk because of the
 * committer. The owner waits for the disk only when it reads a record back to confirm a match in the
 * index, which may meet a page that is not in memory.
 */
#include "store.h"
#include "clock.h"
#include "log.h"
#include "table.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BATCH_KEEP_BYTES  (1u << 20) /* a batch's buffers above this are given back after use */
#define USUAL_LINE_BYTES  128        /* read back at first: nearly all lines end in it */
#define SEAL_AFTER_MS     1000       /* without a set */
#define COMMIT_RECHECK_MS 1000       /* in case the committer's wake-up was lost */
#define QUEUE_RECORDS     16         /* between judging one in a replay and indexing it */
#define COLLECT_AHEAD     8          /* likewise between two entries of a batch */
#define RECENT_LINES      16         /* read back, and kept */
#define LOOK_FRESH_US     50         /* as long as a look before a write is not done again */
#define LOOK_AFTER_MS     1000       /* at the log's identity, when nothing is committed */

/* While the disk hangs, clients may come, set and go. It is more than IMPORT_BATCH of the longest
 * lines, and than as many clients as the limit usually is. */
#define BATCH_MAX_BYTES (32u << 20)

/* ------------------------------------------------------------------------ types */

/* One set in a batch: what the durable index needs to know of it once it is on disk. */
struct entry {
    uint64_t hash, offset;
};

/* The bytes of one write, and an index of the sets among them. */
struct batch {
    uint64_t number; /* the ticket of its sets; the first is 1 */
    uint64_t start;  /* file offset at which its bytes go */
    uint64_t base;   /* BATCH of its lines: start, or the offset of an unsynced seal before it */
    char *bytes;
    struct entry *entries; /* there is one for every record that the bytes have room for */
    size_t size, capacity, entry_count;
    struct table index; /* hash of a room -> file offset of its line */
    int64_t commit_us;  /* how long its write and sync took */
};

/* A line that was read back and found valid. Nothing on disk changes, so it stays so. Members who
 * race for a room ask for its line one after the other, and the first of them reads it for all: a
 * refusal then takes 0.88 of the processor time of a request to nginx, instead of 1.03. */
struct recent {
    uint64_t offset; /* 0: none */
    struct log_line line;
    char bytes[LOG_LINE_MAX_BYTES];
};

/* How a commit ended. */
enum outcome {
    COMMITTED,
    NOT_COMMITTED, /* no space, and the log was cut back: the next batch may do better */
    DISK_FAILED,   /* what is on disk is no longer known: no set until the log is opened again */
};

struct store {
    struct log_place place; /* its directory and the log are open and locked */
    int event_fd;
    struct table_key key;
    struct table durable; /* hash of a room -> file offset of its line, which is on disk */

    uint64_t log_bytes; /* the end of what is committed and collected; a seal may not be on disk */
    bool failed;        /* DISK_FAILED has happened, or the log is lost */
    bool has_lost_log;  /* the latter */
    bool has_unoffered_sets; /* the open batch has grown since it was offered last */
    bool is_seal_due;        /* a seal can certify more of the log than it is certified by now */
    bool read_failure_told;  /* that a record cannot be read */
    struct recent recent[RECENT_LINES];
    int64_t last_busy_ms; /* when store_tick last saw a set on its way; 0: not yet */

    pthread_t committer;
    bool committer_runs;

    /* The committer's own. */
    struct log_end end;     /* how the log ends as it was left */
    uint64_t rewrite_from;  /* from here on it has to be written again first; 0: nothing has to */
    bool is_short_of_space; /* it has said so, and says when that is over */
    bool has_left_note;     /* that the log is lost */
    int64_t looked_us;      /* when it last looked at the log's identity */
    bool is_over;           /* after DISK_FAILED nobody knows how the log should end */

    pthread_mutex_t lock; /* for all that follows */
    pthread_cond_t work;  /* what the committer waits for */
    pthread_cond_t idle;  /* what the owner waits for when it closes */
    struct batch batches[3];
    struct batch *open;       /* gathers sets; the next in turn after `committing` or `settled` */
    struct batch *committing; /* the committer has it; or NULL */
    struct batch *settled; /* the committer is done with it, the owner has to collect it; or NULL */
    enum outcome outcome;  /* of the settled one */
    bool is_offered;       /* the committer may take the open batch */
    bool stopping;
    const char *lost; /* what somebody else has done to the log, so that nothing is written to it
                         any more and nothing settles well; NULL: nothing */
};

/* ------------------------------------------------------------------------ a log that is lost */

/* The log is no longer what this store left. From now on nothing is written and nothing settles
 * well. Either thread may find that out, once the committer runs; it tells, and the committer leaves
 * a note, so that no start takes the stranger for the log, or its absence for a new installation. */
static void lose(struct store *store, const char *how) {
    pthread_mutex_lock(&store->lock);
    bool is_new = !store->lost;
    if (is_new) store->lost = how;
    store->is_offered = false;
    pthread_mutex_unlock(&store->lock);
    if (!is_new) return;
    tell(LOG_NAME ": %s: nothing more is written, sets are refused. Put the right log back, "
                  "remove " LOG_NOTE_NAME ", and start again",
         how);
    pthread_cond_signal(&store->work);
    eventfd_write(store->event_fd, 1);
}

static bool is_lost(struct store *store) {
    pthread_mutex_lock(&store->lock);
    bool result = store->lost != NULL;
    pthread_mutex_unlock(&store->lock);
    return result;
}

/* ------------------------------------------------------------------------ the index */

static bool is_record(struct slice text, struct log_line *line) {
    return log_parse(text, line) == LOG_VALID && !line->is_seal;
}

static bool ends_in_cr(struct slice text) { return text.n > 0 && text.p[text.n - 1] == '\r'; }

/* A record is no longer where it was written. While the log is replayed, that is an error of the
 * start. */
static void lose_by_reading(struct store *store) {
    if (store->committer_runs)
        lose(store,
             "has changed on disk: a record that was read back is not the one written there");
}

/* Reads the line of a durable record back from the log. It lives until the next call. Returns NULL
 * with errno set if the disk does not give it, which is told once, or if what it gives is not what
 * was written there, by which the log is lost. */
static const struct log_line *read_back(struct store *store, uint64_t offset) {
    struct recent *recent = &store->recent[offset % RECENT_LINES];
    char *bytes = recent->bytes;
    if (recent->offset == offset) return &recent->line;
    ssize_t n = log_read_at(store->place.log_fd, bytes, USUAL_LINE_BYTES, offset);
    const char *newline = n > 0 ? memchr(bytes, '\n', (size_t)n) : NULL;
    if (n == USUAL_LINE_BYTES && !newline) {
        n = log_read_at(store->place.log_fd, bytes, LOG_LINE_MAX_BYTES, offset);
        newline = n > 0 ? memchr(bytes, '\n', (size_t)n) : NULL;
    }
    struct slice text = {bytes, newline ? (size_t)(newline - bytes) : 0};
    /* A converted log is only looked at. */
    if (!store->committer_runs && ends_in_cr(text)) text.n--;
    bool is_valid = newline && is_record(text, &recent->line);
    /* Not kept before the committer runs: replay may yet cut the line off, and another follow. */
    recent->offset = is_valid && store->committer_runs ? offset : 0;
    if (is_valid) return &recent->line;
    int error = n < 0 ? errno : EIO;
    if (n >= 0) {
        lose_by_reading(store);
    } else if (!store->read_failure_told) {
        tell(LOG_NAME ": cannot read the record at byte %" PRIu64 " back: %s", offset,
             strerror(error));
        store->read_failure_told = true;
    }
    errno = error;
    return NULL;
}

/* Looks for a room, as the log spells it, among the durable records; the index only says where to
 * look. Returns STORE_OK with its key ID, as the log spells it, until the next call (key may be
 * NULL); STORE_NONE; or STORE_UNAVAILABLE with errno set. */
static enum store_result find_durable(struct store *store, struct slice room, uint64_t hash,
                                      struct slice *key) {
    uint64_t offset;
    struct table_search search = table_find(&store->durable, hash);
    while (table_next(&search, &offset)) {
        const struct log_line *line = read_back(store, offset);
        if (!line) return STORE_UNAVAILABLE;
        if (key) *key = line->key;
        if (slice_equal(line->room, room)) return STORE_OK;
        if (!table_confuses(&store->durable, hash, table_hash(store->key, line->room))) {
            lose_by_reading(store); /* the index did not mean that room */
            errno = EIO;
            return STORE_UNAVAILABLE;
        }
    }
    return STORE_NONE;
}

/* Whether a batch that is not durable yet sets the room. */
static bool is_in_batch(const struct batch *batch, struct slice room, uint64_t hash) {
    uint64_t offset;
    struct table_search search = table_find(&batch->index, hash);
    while (table_next(&search, &offset)) {
        struct log_line line;
        size_t at = (size_t)(offset - batch->start);
        const char *start = batch->bytes + at, *newline = memchr(start, '\n', batch->size - at);
        struct slice text = {start, (size_t)(newline - start)};
        if (is_record(text, &line) && slice_equal(line.room, room)) return true;
    }
    return false;
}

/* ------------------------------------------------------------------------ replay */

/* What stands at and after the first bad line. A crash leaves a part of the last batch there, and
 * nothing else: a line of another one, whole and at the start of a line, was put there by somebody. */
struct rest {
    uint64_t bad;       /* where it begins */
    uint64_t batch;     /* BATCH of the last line before it */
    uint64_t highest;   /* the highest BATCH of a line that certifies; 0: none */
    uint64_t head;      /* where a log's first line stands; 0: nowhere. So for the next two: */
    uint64_t stranger;  /* a line that was written for another place */
    uint64_t converted; /* a line that is valid but for a CR at its end */
    uint64_t foreign, foreign_end; /* BATCH of the last line of another batch, and its end */
};

/* A record that has been judged and is not in the index yet, and the replay as it was before it. */
struct queued {
    uint64_t hash, offset;
    uint64_t certified, batch;
};

/* Records wait in a queue before they are indexed. Meanwhile the memory that the index needs for
 * one, anywhere in hundreds of megabytes, comes into the cache: a replay of 3 million records takes
 * 1.4 times as long without the queue. */
struct replay {
    struct store *store;
    struct rest rest; /* once there is a bad line */
    struct queued queue[QUEUE_RECORDS];
    unsigned queue_first, queue_count;
    struct log_reader reader;
    bool is_broken;       /* going on behind a bad line, where lines need not follow one another */
    struct log_line line; /* the last one judged */
    uint64_t batch;       /* BATCH of the line before */
    uint64_t certified;   /* C so far: the highest BATCH of a valid line */
    uint64_t end;         /* where the valid lines end */
    uint64_t seal_end;    /* where the last seal among them ends */
};

/* Looks for a record's room among those in the index, one of which has the same hash. Returns as
 * find_durable does. */
static enum store_result find_twin(struct store *store, const struct queued *record) {
    char room[LOG_ESCAPED_MAX_BYTES];
    const struct log_line *line = read_back(store, record->offset);
    if (!line) return STORE_UNAVAILABLE;
    memcpy(room, line->room.p, line->room.n);
    return find_durable(store, (struct slice){room, line->room.n}, record->hash, NULL);
}

/* Takes the first record off the queue and indexes it, if its room is new. Otherwise the replay goes
 * back to before it. */
static enum log_fault index_first(struct replay *replay) {
    struct table *durable = &replay->store->durable;
    struct queued record = replay->queue[replay->queue_first];
    uint64_t other;
    assert(replay->queue_count > 0);
    replay->queue_first = (replay->queue_first + 1) % QUEUE_RECORDS;
    replay->queue_count--;
    struct table_search search = table_find(durable, record.hash);
    enum store_result twin =
        table_next(&search, &other) ? find_twin(replay->store, &record) : STORE_NONE;
    if (twin == STORE_UNAVAILABLE) return LOG_UNREADABLE;
    if (twin == STORE_OK) {
        replay->end = record.offset;
        replay->certified = record.certified;
        replay->batch = record.batch;
        return LOG_ROOM_TWICE;
    }
    if (table_reserve(durable, record.hash) < 0) {
        errno = ENOMEM;
        return LOG_UNREADABLE;
    }
    table_insert(durable, record.hash, record.offset);
    return LOG_VALID;
}

static enum log_fault index_queue(struct replay *replay) {
    enum log_fault fault = LOG_VALID;
    while (replay->queue_count > 0 && fault == LOG_VALID) fault = index_first(replay);
    return fault;
}

/* Adds a record to the queue. If that is full, the first one has to make room. Returns as
 * index_first does. */
static enum log_fault queue_record(struct replay *replay, const struct log_span *span) {
    uint64_t hash = table_hash(replay->store->key, replay->line.room);
    table_prefetch(&replay->store->durable, hash);
    enum log_fault fault = replay->queue_count == QUEUE_RECORDS ? index_first(replay) : LOG_VALID;
    if (fault != LOG_VALID) return fault;
    replay->queue[(replay->queue_first + replay->queue_count++) % QUEUE_RECORDS] =
        (struct queued){hash, span->offset, replay->certified, replay->batch};
    return LOG_VALID;
}

/* Raises *certified to the offset before which all was on disk, by the word of a line in its place
 * or behind a bad one. Inside a bad line little is believed: where a crash has lost the beginning
 * of a line, the rest is what a client chose. It is easy to choose a key ID so that this looks like
 * a line of a newer roomkeyd. A seal leaves nothing to choose but its offset, and hardly any that
 * the log can have reached fits the checksum. */
static void certify(const struct log_span *span, enum log_fault fault, const struct log_line *line,
                    uint64_t *certified) {
    uint64_t before = 0;
    if (fault == LOG_NEWER && !span->is_inside) before = UINT64_MAX;
    if (fault == LOG_VALID || fault == LOG_ROOM_TWICE)
        before = span->is_inside && line->batch / 2 > span->offset ? 0 : line->batch;
    if (before > *certified) *certified = before;
}

/* Takes a line apart, wherever it stands. */
static enum log_fault parse_span(const struct log_span *span, struct log_line *line) {
    *line = (struct log_line){.batch = 0};
    return span->is_whole ? log_parse(span->text, line) : LOG_NOT_A_LINE;
}

/* Judges a line in its place and, if it is valid and holds a record, queues that. Returns the fault
 * of the first bad line, which is this one or one from the queue, and begins where the valid lines
 * end now; LOG_VALID if there is none. */
static enum log_fault admit(struct replay *replay, const struct log_span *span) {
    struct log_line *line = &replay->line;
    enum log_fault fault = parse_span(span, line);
    if (fault != LOG_VALID) return fault;
    bool follows = line->batch == span->offset || (line->batch == replay->batch && !line->is_seal);
    if (!follows && !replay->is_broken) return LOG_BAD_BATCH;
    if (!line->is_seal) fault = queue_record(replay, span);
    if (fault != LOG_VALID) return fault;
    replay->batch = line->batch;
    certify(span, LOG_VALID, line, &replay->certified);
    replay->end = span->offset + span->text.n + 1;
    if (line->is_seal) replay->seal_end = replay->end;
    return LOG_VALID;
}

/* Whether a line begins at an offset in the part of the log that is valid. */
static bool begins_line(const struct store *store, uint64_t offset) {
    char bytes[LOG_LINE_MAX_BYTES];
    struct log_line line;
    ssize_t n = log_read_at(store->place.log_fd, bytes, sizeof bytes, offset);
    const char *newline = n > 0 ? memchr(bytes, '\n', (size_t)n) : NULL;
    return newline &&
           log_parse((struct slice){bytes, (size_t)(newline - bytes)}, &line) == LOG_VALID;
}

/* Notes a whole line of another batch than the one that a crash may have torn. One such line alone
 * can be what is left on the disk of a batch that failed and was cut off: its batch began where the
 * line of a later one begins now. Two that follow each other, and of which the second neither goes on with the
 * batch of the first nor begins one, cannot; nor can a seal that does not stand where it says. */
static void note_foreign(const struct store *store, struct rest *rest, const struct log_span *span,
                         const struct log_line *line) {
    bool follows = rest->foreign_end == span->offset;
    bool is_misplaced = follows && line->batch != rest->foreign && line->batch != span->offset;
    bool is_seal_of_elsewhere = line->is_seal && line->batch != span->offset;
    if (!rest->stranger &&
        (is_misplaced || is_seal_of_elsewhere || !begins_line(store, line->batch)))
        rest->stranger = span->offset;
    rest->foreign = line->batch;
    rest->foreign_end = span->offset + span->text.n + 1;
}

/* Takes a line at or after the first bad one into account; fault and line are what log_parse says of
 * it. */
static void weigh(const struct store *store, struct rest *rest, const struct log_span *span,
                  enum log_fault fault, const struct log_line *line) {
    struct log_line stripped;
    struct slice text = span->text;
    certify(span, fault, line, &rest->highest);
    if (!span->is_whole || span->is_inside) return;
    if (fault == LOG_VALID && line->batch != rest->batch && line->batch != rest->bad &&
        line->batch <= rest->bad)
        note_foreign(store, rest, span, line);
    if (ends_in_cr(text)) {
        text.n--;
        if (!rest->converted && log_parse(text, &stripped) == LOG_VALID)
            rest->converted = span->offset;
    }
    if (!rest->head && log_is_first_line(text)) rest->head = span->offset;
}

/* Weighs all from the bad line on, which the reader has yet to give, looking for lines at any
 * offset, since bytes may have been lost or added. Returns 0 at the end of the log, or -1 with errno
 * set. */
static int weigh_rest(const struct store *store, struct rest *rest, struct log_reader *reader) {
    struct log_span span;
    struct log_line line;
    int got;
    while ((got = log_read_line(reader, &span)) > 0) {
        enum log_fault fault = parse_span(&span, &line);
        weigh(store, rest, &span, fault, &line);
        if (fault != LOG_VALID) log_look_inside(reader, &span);
    }
    return got;
}

/* What the rest shows to be no crash's work: a sentence about the byte at *at, with the way out, or
 * NULL. */
static const char *find_cause(const struct rest *rest, uint64_t *at) {
    const struct {
        uint64_t at;
        const char *text;
    } causes[] = {
        {rest->head, "a second log begins here: somebody has put two logs into one file. Cut them "
                     "apart here, and merge them by export and import"},
        {rest->converted, "lines end in CR LF from here on: a program has converted them. check "
                          "--salvage saves the records"},
        {rest->stranger, "the line here is whole, but was written for another place: somebody has "
                         "put lines together. check --salvage saves the records; export and import "
                         "merge logs"},
    };
    for (size_t i = 0; i < sizeof causes / sizeof *causes; i++) {
        *at = causes[i].at;
        if (*at > 0) return causes[i].text;
    }
    return NULL;
}

/* Moves the bytes from `from` to the end into a new file keys.log.torn-OFFSET and makes that
 * durable; a number is added where an earlier crash has left a file of that name. The log is not
 * cut yet. */
static int save_torn_tail(struct store *store, uint64_t from, uint64_t size, struct text_why why) {
    char name[64];
    unsigned number = 1;
    int fd, result = 0;
    do {
        if (number == 1)
            snprintf(name, sizeof name, LOG_NAME ".torn-%" PRIu64, from);
        else
            snprintf(name, sizeof name, LOG_NAME ".torn-%" PRIu64 ".%u", from, number);
        fd = openat(store->place.dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EEXIST && ++number <= 1000);
    if (fd < 0) return text_fail(why, "%s: cannot save the torn tail: %s", name, strerror(errno));
    log_give_to_owner(store->place.dir_fd, fd);
    if (log_copy(store->place.log_fd, fd, from, size, 0) == 0 && log_sync_all(fd) == 0 &&
        log_sync_all(store->place.dir_fd) == 0) {
        tell(LOG_NAME ": a crash left a torn tail of %" PRIu64 " bytes at byte %" PRIu64
                      ", never acknowledged: moved to %s",
             size - from, from, name);
    } else {
        result = text_fail(why, "%s: cannot save the torn tail: %s", name, strerror(errno));
        unlinkat(store->place.dir_fd, name, 0);
    }
    close(fd);
    return result;
}

/* Decides what the bad line at replay->end means, and repairs a torn tail. */
static int repair(struct replay *replay, enum log_fault fault, struct text_why why) {
    struct store *store = replay->store;
    uint64_t bad = replay->end, at;
    struct rest rest = {.bad = bad, .batch = replay->batch};
    if (fault == LOG_NEWER)
        return text_fail(why, LOG_NAME ": byte %" PRIu64 ": %s", bad, log_fault_text(fault));
    struct log_reader reader = {
        .fd = store->place.log_fd, .buffer = replay->reader.buffer, .offset = bad};
    if (weigh_rest(store, &rest, &reader) < 0)
        return text_fail(why, LOG_NAME ": %s", strerror(errno));
    const char *cause = find_cause(&rest, &at);
    if (cause)
        return text_fail(why, LOG_NAME ": byte %" PRIu64 ": %s; nothing has been changed", at,
                         cause);
    if (rest.highest > bad)
        return text_fail(
            why,
            LOG_NAME ": damaged at byte %" PRIu64
                     ": %s, but what follows shows that it was on disk; nothing has been changed",
            bad, log_fault_text(fault));
    if (save_torn_tail(store, bad, reader.offset, why) < 0) return -1;
    if (log_cut(store->place.log_fd, bad) == 0) return 0;
    return text_fail(why, LOG_NAME ": cannot cut the torn tail: %s", strerror(errno));
}

/* Ready for the first record. Returns 0 with a reader whose buffer has to be freed, or -1. */
static int begin_replay(struct replay *replay, struct store *store, struct text_why why) {
    char *buffer = malloc(LOG_READ_BUFFER_BYTES);
    *replay = (struct replay){
        .store = store,
        .reader = {.fd = store->place.log_fd, .buffer = buffer, .offset = LOG_FIRST_LINE_BYTES},
        .certified = LOG_FIRST_LINE_BYTES,
        .end = LOG_FIRST_LINE_BYTES,
        .seal_end = LOG_FIRST_LINE_BYTES, /* an empty log needs none */
    };
    return buffer ? 0 : text_fail(why, "out of memory");
}

/* Judges line after line up to the first bad one, and has all before it indexed. Returns as admit
 * does. */
static enum log_fault admit_all(struct replay *replay) {
    struct log_span span;
    enum log_fault fault = LOG_VALID;
    int got = 1;
    while (fault == LOG_VALID && (got = log_read_line(&replay->reader, &span)) > 0)
        fault = admit(replay, &span);
    if (got < 0) return LOG_UNREADABLE;
    if (fault == LOG_UNREADABLE || fault == LOG_ROOM_TWICE) return fault;
    enum log_fault earlier = index_queue(replay);
    return earlier == LOG_VALID ? fault : earlier;
}

/* Whether an error says that there is no space for a write. */
static bool is_no_space(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

/* Writes the log's end from `from` on over itself, and syncs it. Returns 0, or -1 with errno set. */
static int rewrite_end(struct store *store, uint64_t from, uint64_t end) {
    int fd = store->place.log_fd;
    return log_copy(fd, fd, from, end, from) < 0 ? -1 : log_sync_data(fd);
}

/* Brings the log to disk to its end, whatever of it was not. A seal alone may wait for space, which
 * a copy-on-write file system needs even for that: no acknowledgement rests on it. */
static int secure_end(struct store *store, const struct replay *replay, struct text_why why) {
    uint64_t end = replay->end, from = replay->certified;
    bool is_sealed = replay->seal_end == end;
    int fd = store->place.log_fd;
    if (rewrite_end(store, from, end) == 0) {
        from = end;
    } else if (is_sealed && is_no_space(errno)) {
        tell(LOG_NAME ": no space even for its last line: sets are refused while that lasts");
        store->rewrite_from = from;
        store->is_short_of_space = true;
    } else {
        return text_fail(why, LOG_NAME ": cannot bring the last batch to disk again: %s",
                         strerror(errno));
    }
    if (log_sync_all(store->place.dir_fd) < 0)
        return text_fail(why, "cannot sync the directory: %s", log_sync_error(errno));
    if (log_read_end(fd, end, &store->end) < 0)
        return text_fail(why, LOG_NAME ": %s", strerror(errno));
    store->open->start = store->log_bytes = end;
    store->open->base = from;
    store->is_seal_due = !is_sealed;
    return 0;
}

/* Reads the log into the index and leaves it whole, on disk to its end, and ready to append to. */
static int replay_log(struct store *store, struct text_why why) {
    struct replay replay;
    if (begin_replay(&replay, store, why) < 0) return -1;
    posix_fadvise(store->place.log_fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    enum log_fault fault = admit_all(&replay);
    int result = 0;
    posix_fadvise(store->place.log_fd, 0, 0, POSIX_FADV_NORMAL);
    if (fault == LOG_UNREADABLE)
        result = text_fail(why, LOG_NAME ": %s", strerror(errno));
    else if (fault != LOG_VALID)
        result = repair(&replay, fault, why);
    free(replay.reader.buffer);
    return result < 0 ? -1 : secure_end(store, &replay, why);
}

/* The directory's lock is there before the log is. The log's own is for a log that is in two
 * directories, by a hard link or a mount. */
static int lock(int fd, struct text_why why) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
    if (errno == EWOULDBLOCK) return text_fail(why, "in use by another roomkeyd");
    bool is_unknown = errno == ENOSYS || errno == ENOLCK || errno == EOPNOTSUPP || errno == EINVAL;
    return text_fail(why, "cannot lock the directory and the log in it: %s%s", strerror(errno),
                     is_unknown ? " (the file system has no locks, or they are turned off; without "
                                  "one two servers could set one room)"
                                : "");
}

/* Leaves the mark beside a log that has none yet, and makes sure that the log is where it should be,
 * so that whatever is done to it from now on is seen. */
static int guard_log(struct store *store, struct text_why why) {
    if (log_leave_mark(store->place.dir_fd) < 0) {
        if (!is_no_space(errno))
            return text_fail(why, LOG_MARK_NAME ": cannot make it: %s", log_sync_error(errno));
        tell(LOG_NAME ": no space for " LOG_MARK_NAME " beside it: the next start will try again");
    }
    store->place.is_comparable = log_is_comparable(&store->place);
    if (!store->place.is_comparable)
        tell(LOG_NAME ": this file system numbers its files differently at each look: if another "
                      "file takes the place of the log, that is not seen");
    const char *change = log_find_change(&store->place, &store->end);
    return change ? text_fail(why, LOG_NAME ": %s, while it was read", change) : 0;
}

/* ------------------------------------------------------------------------ the committer */

/* Whether a batch, which is not empty, is a seal and nothing else. That is not synced. */
static bool is_seal(const struct batch *batch) { return batch->entry_count == 0; }

/* Looks whether the log is still what this store left. Returns false when it is lost. */
static bool look(struct store *store) {
    if (is_lost(store)) return false;
    const char *change = log_find_change(&store->place, &store->end);
    if (change) lose(store, change);
    store->looked_us = clock_us();
    return !change;
}

/* As look, before a write. The look at the end of one batch serves for the next one, if that follows
 * at once: otherwise looking would take a tenth of the processor time of a set. */
static bool look_again(struct store *store) {
    bool is_fresh = clock_us() - store->looked_us < LOOK_FRESH_US;
    return is_fresh ? !is_lost(store) : look(store);
}

/* The note that a lost log asks for. */
static void leave_note(struct store *store) {
    char line[256];
    snprintf(line, sizeof line, LOG_NAME ": %s", store->lost);
    if (log_leave_note(store->place.dir_fd, line) < 0)
        tell(LOG_NAME ": cannot make " LOG_NOTE_NAME
                      ": %s: do not start again before the right log is back",
             strerror(errno));
    store->has_left_note = true;
}

/* Writes and syncs a batch. Returns 0, or -1 with errno set; *is_written says how far it came. */
static int write_batch(struct store *store, const struct batch *batch, bool *is_written) {
    struct slice bytes = {batch->bytes, batch->size};
    *is_written = false;
    if (store->rewrite_from > 0 && rewrite_end(store, store->rewrite_from, batch->start) < 0)
        return -1;
    store->rewrite_from = 0;
    if (log_write_at(store->place.log_fd, bytes, batch->start) < 0) return -1;
    *is_written = true;
    return is_seal(batch) ? 0 : log_sync_data(store->place.log_fd);
}

/* Cuts the log back to where a batch began. What was not written need not be cut off: on some file
 * systems that would take space, too, even where it changes nothing. Returns 0, or -1 with errno
 * set. */
static int cut_back(const struct store *store, uint64_t size) {
    struct stat status;
    bool is_there = fstat(store->place.log_fd, &status) == 0 && (uint64_t)status.st_size == size;
    return is_there ? 0 : log_cut(store->place.log_fd, size);
}

/* One batch onto the disk, between two looks at the log: nothing is written into a stranger, and
 * nothing that was is acknowledged. Reports what goes wrong, and cuts the log back to where the
 * batch began. */
static enum outcome commit(struct store *store, const struct batch *batch) {
    bool is_written;
    struct log_end before = store->end;
    assert(batch->size > 0 && batch->start == store->end.size);
    if (!look_again(store)) return DISK_FAILED;
    if (write_batch(store, batch, &is_written) == 0) {
        log_append_end(&store->end, (struct slice){batch->bytes, batch->size});
        if (!look(store)) return DISK_FAILED;
        /* Cut after the first look, the log has its size back, but a hole before the batch. */
        if (!log_holds_tail(store->place.log_fd, &before)) {
            lose(store, "has been cut or overwritten");
            return DISK_FAILED;
        }
        if (store->is_short_of_space && !is_seal(batch)) {
            tell(LOG_NAME ": there is space again, sets are taken");
            store->is_short_of_space = false;
        }
        return COMMITTED;
    }
    bool is_full = !is_written && is_no_space(errno);
    if (!is_full || !store->is_short_of_space)
        tell(LOG_NAME "%s%s: sets are refused %s",
             is_written ? ": fdatasync: " : ": write: ", strerror(errno),
             is_full ? "while that lasts" : "until restart");
    store->is_short_of_space = is_full;
    if (cut_back(store, batch->start) == 0) return is_full ? NOT_COMMITTED : DISK_FAILED;
    tell(LOG_NAME ": ftruncate: %s: sets are refused until restart", strerror(errno));
    return DISK_FAILED;
}

/* Makes the open batch the committing one. Under lock, with nothing committing. */
static void take_open_batch(struct store *store) {
    struct batch *batch = store->open;
    struct batch *next = &store->batches[(batch - store->batches + 1) % 3];
    /* Of three batches at most one is settled while none is committing. */
    assert(!store->committing && next != store->settled && next->size == 0);
    next->number = batch->number + 1;
    next->start = batch->start + batch->size;
    next->base = is_seal(batch) ? batch->base : next->start;
    store->open = next;
    store->committing = batch;
    store->is_offered = false;
}

/* Whether the committer may take the open batch: not behind one that failed, since it was written
 * for the place behind that. Under lock. */
static bool may_take(const struct store *store) {
    return store->is_offered && !store->committing && !store->lost &&
           !(store->settled && store->outcome != COMMITTED);
}

/* Waits for a batch to commit, but not for ever. Returns it, or NULL when it is time to look at the
 * log: a while has passed, the log is lost and a note is due, or (*is_last) there will be no batch
 * any more. */
static struct batch *wait_for_batch(struct store *store, bool *is_last) {
    int64_t until_us = clock_us() + (int64_t)LOOK_AFTER_MS * 1000;
    struct timespec until = {(time_t)(until_us / 1000000), (long)(until_us % 1000000) * 1000};
    int timed_out = 0;
    pthread_mutex_lock(&store->lock);
    while (!store->committing && !may_take(store) && !store->stopping && !timed_out &&
           (!store->lost || store->has_left_note))
        timed_out = pthread_cond_timedwait(&store->work, &store->lock, &until);
    if (may_take(store)) take_open_batch(store);
    struct batch *batch = store->committing;
    *is_last = store->stopping;
    pthread_mutex_unlock(&store->lock);
    return batch;
}

/* Commits a batch, and gives it to the owner to collect. */
static void settle_batch(struct store *store, struct batch *batch) {
    int64_t begun_us = clock_us();
    enum outcome outcome = commit(store, batch);
    batch->commit_us = clock_us() - begun_us;
    store->is_over = store->is_over || outcome == DISK_FAILED;

    pthread_mutex_lock(&store->lock);
    while (store->settled) pthread_cond_wait(&store->work, &store->lock);
    store->committing = NULL;
    store->settled = batch;
    store->outcome = outcome;
    pthread_cond_signal(&store->idle);
    pthread_mutex_unlock(&store->lock);
    /* Should this fail, COMMIT_RECHECK_MS brings the owner round all the same. */
    eventfd_write(store->event_fd, 1);
}

static void *committer_main(void *argument) {
    struct store *store = argument;
    bool is_last = false;
    while (!is_last) {
        struct batch *batch = wait_for_batch(store, &is_last);
        if (batch)
            settle_batch(store, batch);
        else if (!store->is_over)
            look(store);
        if (is_lost(store) && !store->has_left_note) leave_note(store);
        is_last = is_last && !batch;
    }
    return NULL;
}

static int start_committer(struct store *store, struct text_why why) {
    store->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (store->event_fd < 0) return text_fail(why, "eventfd: %s", strerror(errno));
    /* Signals are the owner's business: the committer inherits a mask that blocks them all. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&store->committer, NULL, committer_main, store);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return text_fail(why, "cannot start the committer: %s", strerror(error));
    store->committer_runs = true;
    return 0;
}

/* ------------------------------------------------------------------------ batches */

/* Empties a batch. Large buffers are given back: they were needed for one burst. */
static void reset_batch(struct batch *batch) {
    if (batch->capacity > BATCH_KEEP_BYTES) {
        free(batch->bytes);
        free(batch->entries);
        batch->bytes = NULL;
        batch->entries = NULL;
        batch->capacity = 0;
    }
    table_clear(&batch->index);
    batch->size = batch->entry_count = 0;
}

/* Makes room in a batch for one more line and its entry. */
static bool make_room(struct batch *batch) {
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): a store always has an open batch */
    size_t wanted = batch->size + LOG_LINE_MAX_BYTES, space = 2 * wanted;
    if (batch->size > BATCH_MAX_BYTES) return false;
    if (wanted <= batch->capacity) return true;
    char *bytes = realloc(batch->bytes, space);
    if (!bytes) return false;
    batch->bytes = bytes;
    struct entry *entries = realloc(batch->entries, space / LOG_RECORD_MIN_BYTES * sizeof *entries);
    if (!entries) return false;
    batch->entries = entries;
    batch->capacity = space;
    return true;
}

/* A failed batch gives back the slots that were reserved for its records. */
static void abandon(struct store *store, struct batch *batch) {
    for (size_t i = 0; i < batch->entry_count; i++)
        table_release(&store->durable, batch->entries[i].hash);
    reset_batch(batch);
}

/* Offers the open batch; if nothing is committing the committer has to be woken to see it. */
static void offer(struct store *store) {
    pthread_mutex_lock(&store->lock);
    store->is_offered = store->open->size > 0 && !store->lost;
    bool is_waiting = may_take(store);
    if (is_waiting) take_open_batch(store); /* before it grows further: a seal must stay alone */
    pthread_mutex_unlock(&store->lock);
    /* Outside the lock: or the committer would wake up only to wait for that. */
    if (is_waiting) pthread_cond_signal(&store->work);
}

/* Seals the log with a batch of its own, if all before it is on disk and collected. */
static void seal(struct store *store) {
    pthread_mutex_lock(&store->lock);
    struct batch *batch = store->open;
    bool is_at_rest = !store->committing && !store->settled && batch->size == 0;
    if (is_at_rest && make_room(batch)) {
        assert(is_seal(batch));
        struct log_line line = {.batch = batch->start, .is_seal = true};
        batch->base = batch->start;
        batch->size = log_format(&line, batch->bytes);
    }
    pthread_mutex_unlock(&store->lock);
    store->is_seal_due = false; /* if it cannot be written, the next set makes another one due */
    offer(store);
}

/* ------------------------------------------------------------------------ the interface */

/* A store with its directory open, and nothing else yet. Returns NULL with the reason. */
static struct store *make_store(const char *dir, struct text_why why) {
    struct store *store = calloc(1, sizeof *store);
    pthread_condattr_t monotonic;
    if (!store) {
        text_fail(why, "out of memory");
        return NULL;
    }
    store->place = (struct log_place){.dir = dir, .dir_fd = -1, .log_fd = -1};
    store->event_fd = -1;
    store->open = &store->batches[0];
    store->open->number = 1;
    pthread_mutex_init(&store->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&store->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&store->idle, NULL);
    for (int i = 0; i < 3; i++) store->batches[i].index.is_small = true;
    if (getrandom(&store->key, sizeof store->key, 0) != (ssize_t)sizeof store->key)
        text_fail(why, "getrandom: %s", strerror(errno));
    else if ((store->place.dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        text_fail(why, "%s", strerror(errno));
    else
        return store;
    store_close(store);
    return NULL;
}

/* Where a reason goes: behind the directory that it is about. */
static struct text_why about(const char *dir, char *why, size_t why_size) {
    int n = snprintf(why, why_size, "%s: ", dir);
    size_t used = (size_t)n < why_size ? (size_t)n : why_size - 1;
    return (struct text_why){why + used, why_size - used};
}

struct store *store_open(const char *dir, char *why, size_t why_size) {
    struct text_why reason = about(dir, why, why_size);
    struct store *store = make_store(dir, reason);
    if (store && lock(store->place.dir_fd, reason) == 0 &&
        (store->place.log_fd = log_open(store->place.dir_fd, reason)) >= 0 &&
        lock(store->place.log_fd, reason) == 0 && replay_log(store, reason) == 0 &&
        guard_log(store, reason) == 0 && start_committer(store, reason) == 0)
        return store;
    if (store) store_close(store);
    return NULL;
}

/* Under lock: takes a record into the open batch, or finds that a batch on its way has the room. */
static enum store_result take_record(struct store *store, struct log_line *line, uint64_t hash,
                                     uint64_t *ticket) {
    struct batch *open = store->open;
    const struct batch *const on_their_way[] = {store->settled, store->committing, open};
    for (int i = 0; i < 3; i++)
        if (on_their_way[i] && is_in_batch(on_their_way[i], line->room, hash)) {
            *ticket = on_their_way[i]->number;
            return STORE_EXISTS;
        }
    if (!make_room(open) || table_reserve(&open->index, hash) < 0) return STORE_UNAVAILABLE;
    if (table_reserve(&store->durable, hash) < 0) {
        table_release(&open->index, hash);
        return STORE_UNAVAILABLE;
    }
    uint64_t offset = open->start + open->size;
    line->batch = open->base;
    open->size += log_format(line, open->bytes + open->size);
    assert(open->size <= open->capacity);
    assert(open->entry_count < open->capacity / LOG_RECORD_MIN_BYTES);
    open->entries[open->entry_count++] = (struct entry){hash, offset};
    table_insert(&open->index, hash, offset);
    *ticket = open->number;
    return STORE_OK;
}

enum store_result store_set(struct store *store, const struct store_record *record,
                            uint64_t *ticket) {
    char escaped[3][LOG_ESCAPED_MAX_BYTES];
    assert(slice_has_id_size(record->user) && slice_has_id_size(record->room) &&
           slice_has_id_size(record->key));
    struct slice room = log_escape(record->room, escaped[0]);
    uint64_t hash = table_hash(store->key, room);
    struct timespec now;
    table_prefetch(&store->durable, hash); /* it comes while the line is made */
    struct log_line line = {
        .user = log_escape(record->user, escaped[1]),
        .room = room,
        .key = log_escape(record->key, escaped[2]),
    };
    *ticket = 0;
    enum store_result result = find_durable(store, room, hash, NULL);
    if (result == STORE_OK) return STORE_EXISTS;
    if (result == STORE_UNAVAILABLE || store->failed) return STORE_UNAVAILABLE;
    clock_gettime(CLOCK_REALTIME, &now);
    line.time_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    pthread_mutex_lock(&store->lock);
    result = take_record(store, &line, hash, ticket);
    pthread_mutex_unlock(&store->lock);
    if (result == STORE_OK) store->has_unoffered_sets = store->is_seal_due = true;
    return result;
}

enum store_result store_get(struct store *store, struct slice room, char key[ID_MAX_BYTES],
                            size_t *key_size) {
    char escaped[LOG_ESCAPED_MAX_BYTES];
    struct slice spelled = log_escape(room, escaped), found;
    enum store_result result =
        find_durable(store, spelled, table_hash(store->key, spelled), &found);
    if (result == STORE_OK) *key_size = log_unescape(found, key).n;
    return result;
}

void store_hand_over(struct store *store) {
    if (!store->has_unoffered_sets) return;
    store->has_unoffered_sets = false;
    offer(store);
}

int store_event_fd(const struct store *store) { return store->event_fd; }

/* Gives up what has not settled: the batch that failed, if there is one, and the open one, which was
 * written for the place after it. (One that is committing when the log is lost follows as soon as
 * the committer is done with it.) Under lock. */
static void abandon_unsettled(struct store *store, struct store_settled *settled) {
    struct batch *batch = store->settled, *open = store->open;
    *settled = (struct store_settled){.up_to = open->number};
    if (batch) {
        store->failed = store->failed || store->outcome == DISK_FAILED;
        settled->sets = batch->entry_count;
        settled->commit_us = batch->commit_us;
        open->start = batch->start;
        open->base = batch->base;
        /* The last line is a seal again, and may not be on disk: another one after it would say
         * that it is. */
        if (batch->base < batch->start) store->is_seal_due = false;
        abandon(store, batch);
    }
    store->failed = store->failed || store->lost;
    store->has_lost_log = store->lost != NULL;
    abandon(store, open);
    open->number++;
    store->is_offered = false;
}

/* Moves what is on disk to the index. */
static void index_settled(struct store *store, struct batch *batch) {
    for (size_t i = 0; i < batch->entry_count; i++) {
        size_t later = i + COLLECT_AHEAD;
        if (later < batch->entry_count) table_prefetch(&store->durable, batch->entries[later].hash);
        table_insert(&store->durable, batch->entries[i].hash, batch->entries[i].offset);
    }
    store->log_bytes = batch->start + batch->size;
    reset_batch(batch);
}

bool store_collect(struct store *store, struct store_settled *settled) {
    pthread_mutex_lock(&store->lock);
    struct batch *batch = store->settled;
    bool is_newly_lost = store->lost && !store->has_lost_log, has_news = batch || is_newly_lost;
    if (batch && store->outcome == COMMITTED && !store->lost) {
        pthread_mutex_unlock(&store->lock); /* its bytes and entries are at rest */
        *settled =
            (struct store_settled){batch->number, true, batch->entry_count, batch->commit_us};
        index_settled(store, batch);
        pthread_mutex_lock(&store->lock);
    } else if (has_news) {
        abandon_unsettled(store, settled);
    }
    store->settled = NULL;
    bool has_next = store->committing || store->is_offered;
    pthread_mutex_unlock(&store->lock);
    if (batch && has_next) pthread_cond_signal(&store->work); /* it may wait for this slot */
    return has_news;
}

int store_tick(struct store *store, int64_t now_ms) {
    pthread_mutex_lock(&store->lock);
    bool is_busy = store->committing || store->settled || store->open->size > 0;
    pthread_mutex_unlock(&store->lock);
    if (is_busy) {
        store->last_busy_ms = now_ms;
        return COMMIT_RECHECK_MS;
    }
    if (!store->is_seal_due || store->failed) return -1;
    /* The first call after a replay that ended without a seal. */
    if (store->last_busy_ms == 0) store->last_busy_ms = now_ms;
    int64_t left = store->last_busy_ms + SEAL_AFTER_MS - now_ms;
    if (left > 0) return (int)left;
    seal(store);
    return COMMIT_RECHECK_MS;
}

bool store_has_failed(const struct store *store) { return store->failed; }

bool store_has_lost_log(const struct store *store) { return store->has_lost_log; }

uint64_t store_key_ids(const struct store *store) { return store->durable.count; }

uint64_t store_log_bytes(const struct store *store) { return store->log_bytes; }

/* Waits until the committer has done all that it was offered, and collects. */
static void settle(struct store *store) {
    struct store_settled settled;
    do {
        pthread_mutex_lock(&store->lock);
        while ((store->committing || store->is_offered) && !store->settled)
            pthread_cond_wait(&store->idle, &store->lock);
        pthread_mutex_unlock(&store->lock);
    } while (store_collect(store, &settled));
}

static void stop_committer(struct store *store) {
    offer(store);
    settle(store);
    if (store->is_seal_due && !store->failed) seal(store);
    settle(store);
    pthread_mutex_lock(&store->lock);
    store->stopping = true;
    pthread_cond_signal(&store->work);
    pthread_mutex_unlock(&store->lock);
    pthread_join(store->committer, NULL);
}

int store_close(struct store *store) {
    if (store->committer_runs) stop_committer(store);
    int result = store->failed || store->lost ? -1 : 0;
    for (int i = 0; i < 3; i++) {
        free(store->batches[i].bytes);
        free(store->batches[i].entries);
        table_free(&store->batches[i].index);
    }
    table_free(&store->durable);
    int fds[] = {store->event_fd, store->place.log_fd, store->place.dir_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0) close(fds[i]);
    pthread_cond_destroy(&store->idle);
    pthread_cond_destroy(&store->work);
    pthread_mutex_destroy(&store->lock);
    free(store);
    return result;
}

/* ------------------------------------------------------------------------ looking at a log */

/* Hands the record that was judged last to the visitor. */
static int visit_record(const struct store_inspection *inspection, const struct log_line *line) {
    char user[ID_MAX_BYTES], room[ID_MAX_BYTES], key[ID_MAX_BYTES];
    struct store_record record = {
        .user = log_unescape(line->user, user),
        .room = log_unescape(line->room, room),
        .key = log_unescape(line->key, key),
    };
    return inspection->visit ? inspection->visit(inspection->context, &record, line->time_ms) : 0;
}

/* As admit, and the line's room is judged at once. */
static enum log_fault admit_now(struct replay *replay, const struct log_span *span) {
    enum log_fault fault = admit(replay, span);
    return fault == LOG_VALID ? index_queue(replay) : fault;
}

/* As admit_now, of a line after the first bad one (or that one itself): also valid is what would be but
 * for a CR at its end. */
static enum log_fault admit_rest(struct replay *replay, const struct log_span *span) {
    struct log_line line;
    struct log_span stripped = *span;
    enum log_fault alone = parse_span(span, &line);
    weigh(replay->store, &replay->rest, span, alone, &line);
    stripped.text.n -= ends_in_cr(span->text);
    bool is_converted = alone != LOG_VALID && parse_span(&stripped, &line) == LOG_VALID;
    return admit_now(replay, is_converted ? &stripped : span);
}

/* Judges one line and counts it. Returns 0, or -1 with errno set. */
static int inspect_line(struct replay *replay, struct store_inspection *inspection,
                        const struct log_span *span) {
    enum log_fault fault = replay->is_broken ? admit_rest(replay, span) : admit_now(replay, span);
    if (fault != LOG_VALID && fault != LOG_UNREADABLE && !replay->is_broken) {
        inspection->fault = log_fault_text(fault);
        inspection->fault_offset = span->offset;
        replay->is_broken = true;
        replay->rest = (struct rest){.bad = span->offset, .batch = replay->batch};
        fault = admit_rest(replay, span); /* what is wrong may be before it, or but a CR */
    }
    if (fault == LOG_UNREADABLE) return -1;
    if (fault != LOG_VALID) {
        certify(span, fault, &replay->line, &replay->certified);
        log_look_inside(&replay->reader, span);
        return 0;
    }
    if (replay->line.is_seal) return 0;
    *(replay->is_broken ? &inspection->records_after : &inspection->records) += 1;
    return visit_record(inspection, &replay->line);
}

/* Reads a log to its end; head_fault is what is wrong with its first line. */
static int inspect_log(struct store *store, struct store_inspection *inspection,
                       const char *head_fault, struct text_why why) {
    struct replay replay;
    struct log_span span;
    int got = 1;
    if (begin_replay(&replay, store, why) < 0) return -1;
    if (head_fault) {
        inspection->fault = head_fault;
        replay.reader.offset = 0;
        replay.is_broken = true;
    }
    while (got > 0 && (inspection->limit == 0 || replay.reader.offset < inspection->limit) &&
           (got = log_read_line(&replay.reader, &span)) > 0)
        if (inspect_line(&replay, inspection, &span) < 0) got = -1;
    inspection->size = replay.reader.offset;
    if (got < 0 || log_sync_seen(store->place.log_fd) < 0)
        got = text_fail(why, LOG_NAME ": %s", strerror(errno));
    free(replay.reader.buffer);
    if (!inspection->fault) inspection->fault_offset = inspection->size;
    inspection->cause = find_cause(&replay.rest, &inspection->cause_offset);
    inspection->is_damaged =
        head_fault || inspection->cause || inspection->fault_offset < replay.certified;
    return got < 0 ? -1 : 0;
}

int store_inspect(const char *dir, struct store_inspection *inspection, char *why,
                  size_t why_size) {
    const char *head_fault;
    struct text_why reason = about(dir, why, why_size);
    struct store *store = make_store(dir, reason);
    if (!store) return -1;
    store->place.log_fd = log_open_to_look(store->place.dir_fd, &head_fault, reason);
    int result = store->place.log_fd < 0 ? -1 : inspect_log(store, inspection, head_fault, reason);
    store_close(store);
    return result;
}
