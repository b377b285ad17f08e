/*
 * store.h: the key IDs, each set once, on disk before anybody hears of it.
 *
 * A store is one directory's append-only log (its format is drawn in store.c) with an index of it
 * in memory. Sets gather in a batch; a thread of the store's own, the committer, writes a batch and
 * syncs it (group commit) while the next one gathers. A set that has been taken is not yet durable:
 * it gives a ticket, and what the ticket stands for is true only when the ticket has settled.
 *
 *     store_set -> ticket ... store_hand_over ... [committer: write, fdatasync] ...
 *     the event descriptor turns readable -> store_collect: tickets up to N are durable (or failed)
 *
 * All functions are for one thread, the owner's; only the committer runs beside it. Of those
 * that use an open store only store_close and, on a cold page, store_set and store_get wait for the
 * disk.
 */
#ifndef STORE_H
#define STORE_H

#include "slice.h"
#include <stdint.h>

struct store;

struct store_record {
    struct slice user; /* who sets it; an ID, or "-" where that is not known */
    struct slice room; /* an ID (slice_is_id) */
    struct slice key;  /* the key ID, an ID */
};

enum store_result {
    STORE_OK,
    STORE_EXISTS,      /* store_set: the room has a key ID */
    STORE_NONE,        /* store_get: the room has no durable key ID */
    STORE_UNAVAILABLE, /* a failed disk, a record that cannot be read back, or no memory */
};

/* Opens dir, whose path is to live as long as the store: takes the directory's lock, makes the log
 * if there never was one, replays it, repairs a torn tail (reported on standard error), makes sure
 * that all that was read is on disk, and starts the committer. Blocks. Returns the store, or NULL with the reason in why. */
struct store *store_open(const char *dir, char *why, size_t why_size);

/* Takes the key ID of a room into the open batch. Never waits for a sync; reads back one record
 * where the index has a match. *ticket is what the answer rests on: 0 when nothing (it is final),
 * otherwise a batch's number, never reused, and the answer may be told only when that has settled
 * well.
 *     STORE_OK           will be set (ticket > 0)
 *     STORE_EXISTS       the room has a key ID (0), or will if the ticket settles well (> 0)
 *     STORE_UNAVAILABLE  not set (0) */
enum store_result store_set(struct store *store, const struct store_record *record,
                            uint64_t *ticket);

/* The durable key ID of a room: STORE_OK with its bytes in key and their number in *key_size,
 * STORE_NONE or STORE_UNAVAILABLE. A key ID that is not on disk yet is not shown. */
enum store_result store_get(struct store *store, struct slice room, char key[ID_MAX_BYTES],
                            size_t *key_size);

/* Offers the open batch, if there is something in it, to the committer, which takes it as soon as
 * it is free. Sets that come until then join it. Call it whenever sets may have been taken. Never
 * blocks. */
void store_hand_over(struct store *store);

/* Signals when there is something to collect. Nobody has to read it: watch it with EPOLLET, for the
 * edge, or empty it before store_collect. It is the store's own. */
int store_event_fd(const struct store *store);

struct store_settled {
    uint64_t up_to;    /* all unsettled tickets up to this one have settled */
    bool ok;           /* durable; otherwise failed: nothing that rested on them happened */
    uint64_t sets;     /* in the batch that was tried; 0: it was a seal */
    int64_t commit_us; /* how long that took, write and sync */
};

/* Collects what the committer finished. Returns whether there was something. Never blocks. */
bool store_collect(struct store *store, struct store_settled *settled);

/* Certifies a log at rest: a second after the last set a seal is written behind it. now_ms is any
 * monotonic clock, in milliseconds. Returns the milliseconds after which to call again, or -1 when
 * only a set or a commit can make that necessary. Never blocks. */
int store_tick(struct store *store, int64_t now_ms);

/* Whether sets are refused until the directory is opened again, because the disk failed or the log
 * is lost; whether it is lost: what is open, or stands under its name, is no longer what this store
 * left. The committer looks with every batch, and once a second while there is none. */
bool store_has_failed(const struct store *store);
bool store_has_lost_log(const struct store *store);

/* How many rooms have a key ID that is on disk, and how long the log is that says so, in bytes. */
uint64_t store_key_ids(const struct store *store);
uint64_t store_log_bytes(const struct store *store);

/* Commits what is open, seals the log, stops the committer and frees everything. Blocks. Returns 0,
 * or -1 if the disk has failed at any time. What was not collected is durable, but nobody knows. */
int store_close(struct store *store);

/* ------------------------------------------------------------------------ looking at a log */

/* What a log holds, valid or not: for people and for exports. The log is only read, and may belong
 * to a running server: then what it is writing just now looks like a torn tail. */
struct store_inspection {
    /* Called for every valid record, in order; time_ms is since 1970. Returns 0, or -1 to give up.
     * May be NULL. */
    int (*visit)(void *context, const struct store_record *record, uint64_t time_ms);
    void *context;
    uint64_t limit; /* of bytes to look at, 0 for all */

    uint64_t size;          /* bytes looked at */
    uint64_t records;       /* valid ones before the first bad line */
    uint64_t records_after; /* and behind it */
    const char *fault;      /* what is wrong with the first bad line, NULL if there is none */
    uint64_t fault_offset;  /* where that begins; size if there is none */
    bool is_damaged;        /* no crash leaves a log like that; otherwise it is a torn tail */
    const char *cause;      /* what somebody has done to it, with the way out; NULL: not known */
    uint64_t cause_offset;  /* where that shows */
};

/* Reads the log in dir to its end, also past a bad line, be it the first one; and syncs it, so that
 * what was seen is not taken back by a crash. Blocks. Returns 0, or -1 with the reason in why: it cannot be read, or visit gave up. */
int store_inspect(const char *dir, struct store_inspection *inspection, char *why, size_t why_size);

#endif
