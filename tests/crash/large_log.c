/*
 * large_log.c: a log past 4 GiB, written by the store itself, on 64 bits and on 32.
 *
 * Usage: large_log DIR. Fills DIR, which it makes and removes, with the longest records there are
 * until the log is larger than 2^32 bytes; closes; opens; and finds every room's key ID, the first,
 * the last and those at both sides of the limit, and that each is still set once.
 */
#include "store.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_BYTES       ((UINT64_C(1) << 32) + (1 << 20))
#define SETS_PER_COMMIT 20000

static char dir[4096], path[4200];

static void fail(const char *what, uint64_t number) {
    fprintf(stderr, "large_log: %s (record %" PRIu64 ")\n", what, number);
    unlink(path);
    rmdir(dir);
    exit(1);
}

/* The IDs of a record: unique by their first bytes, and twice as long in the log as here. */
static struct slice make_id(char id[ID_MAX_BYTES], char letter, uint64_t number) {
    memset(id, '\t', ID_MAX_BYTES);
    int n = sprintf(id, "%c%" PRIu64, letter, number);
    id[n] = '\t';
    return (struct slice){id, ID_MAX_BYTES};
}

static enum store_result set(struct store *store, uint64_t number, uint64_t *ticket) {
    char user[ID_MAX_BYTES], room[ID_MAX_BYTES], key[ID_MAX_BYTES];
    struct store_record record = {make_id(user, 'u', number), make_id(room, 'r', number),
                                  make_id(key, 'k', number)};
    return store_set(store, &record, ticket);
}

static void commit(struct store *store, uint64_t ticket) {
    struct store_settled settled = {.up_to = 0};
    struct pollfd event = {.fd = store_event_fd(store), .events = POLLIN};
    store_hand_over(store);
    while (settled.up_to < ticket) {
        if (store_collect(store, &settled)) {
            if (!settled.ok) fail("a commit failed", ticket);
            continue;
        }
        poll(&event, 1, 1);
    }
}

static uint64_t size_of_log(void) {
    struct stat status;
    if (stat(path, &status) < 0) fail("no log", 0);
    return (uint64_t)status.st_size;
}

static struct store *must_open(void) {
    char why[512];
    struct store *store = store_open(dir, why, sizeof why);
    if (!store) fail(why, 0);
    return store;
}

static void check(struct store *store, uint64_t number) {
    char key[ID_MAX_BYTES], wanted[ID_MAX_BYTES], room[ID_MAX_BYTES];
    size_t size;
    uint64_t ticket;
    if (store_get(store, make_id(room, 'r', number), key, &size) != STORE_OK)
        fail("a key is lost", number);
    if (!slice_equal((struct slice){key, size}, make_id(wanted, 'k', number)))
        fail("a key is another", number);
    if (set(store, number, &ticket) != STORE_EXISTS || ticket != 0) fail("set twice", number);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    snprintf(dir, sizeof dir, "%s", argv[1]);
    snprintf(path, sizeof path, "%s/keys.log", dir);
    mkdir(dir, 0700);
    struct store *store = must_open();
    uint64_t count = 0, ticket = 0;
    while (size_of_log() <= LOG_BYTES) {
        for (int i = 0; i < SETS_PER_COMMIT; i++)
            if (set(store, count++, &ticket) != STORE_OK) fail("not set", count);
        commit(store, ticket);
    }
    if (store_close(store) < 0) fail("not closed", count);

    store = must_open();
    for (uint64_t number = 0; number < count; number += number % 1000 < 999 ? 999 : 1)
        check(store, number);
    for (uint64_t number = count - 2 * SETS_PER_COMMIT; number < count; number++)
        check(store, number);
    if (set(store, count, &ticket) != STORE_OK) fail("not set after a start", count);
    commit(store, ticket);
    check(store, count);
    if (store_close(store) < 0) fail("not closed again", count);
    store = must_open();
    check(store, 0);
    check(store, count);
    store_close(store);
    printf("large log: %" PRIu64 " records, %" PRIu64 " bytes, %zu-bit, violations 0\n", count + 1,
           size_of_log(), 8 * sizeof(void *));
    unlink(path);
    return rmdir(dir) == 0 ? 0 : 1;
}
