/*
 * test_access_work.c: whether a token is right does not show in the work that finding out takes.
 *
 * No clock is asked: what is counted is what access_knows_user does. Digests, keyed hashes, probes
 * and steps of a search are counted where the linker (--wrap) finds access.c calling them; the
 * comparisons of hashed tokens, which stay inside access.c, by the compiler's own instrumentation:
 * this file includes access.c and is compiled with -finstrument-functions, so every function's
 * entry is reported, inlined or not.
 *
 *     access_knows_user -> sha256, base64        a digest
 *                       -> table_hash            of user and hashed token, one keyed hash
 *                       -> table_find            a probe
 *                       -> table_next            a step: is there a candidate
 *                       -> is_same_hash          a comparison, with the candidate or with nobody
 */
#include "access.c"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define UNSEEN __attribute__((no_instrument_function))

struct work {
    size_t digests, digested_bytes;
    size_t hashes, hashed_bytes;
    size_t probes, steps, candidates;
    size_t lines, comparisons; /* lines of users that were taken apart; hashed tokens compared */
};
static struct work work;

/* ---- what is counted ---- */

void __real_sha256(const void *data, size_t n, unsigned char digest[SHA256_BYTES]);
void __wrap_sha256(const void *data, size_t n, unsigned char digest[SHA256_BYTES]);
void __wrap_sha256(const void *data, size_t n, unsigned char digest[SHA256_BYTES]) {
    work.digests++;
    work.digested_bytes += n;
    __real_sha256(data, n, digest);
}

uint64_t __real_table_hash(struct table_key key, struct slice bytes);
uint64_t __wrap_table_hash(struct table_key key, struct slice bytes);
uint64_t __wrap_table_hash(struct table_key key, struct slice bytes) {
    work.hashes++;
    work.hashed_bytes += bytes.n;
    return __real_table_hash(key, bytes);
}

struct table_search __real_table_find(const struct table *table, uint64_t hash);
struct table_search __wrap_table_find(const struct table *table, uint64_t hash);
struct table_search __wrap_table_find(const struct table *table, uint64_t hash) {
    work.probes++;
    return __real_table_find(table, hash);
}

bool __real_table_next(struct table_search *search, uint64_t *value);
bool __wrap_table_next(struct table_search *search, uint64_t *value);
bool __wrap_table_next(struct table_search *search, uint64_t *value) {
    bool found = __real_table_next(search, value);
    work.steps++;
    work.candidates += found;
    return found;
}

UNSEEN void __cyg_profile_func_enter(void *function, void *call_site);
UNSEEN void __cyg_profile_func_enter(void *function, void *call_site) {
    (void)call_site;
    work.lines += (uintptr_t)function == (uintptr_t)is_users_line;
    work.comparisons += (uintptr_t)function == (uintptr_t)is_same_hash;
}

UNSEEN void __cyg_profile_func_exit(void *function, void *call_site);
UNSEEN void __cyg_profile_func_exit(void *function, void *call_site) {
    (void)function;
    (void)call_site;
}

/* ---- the calls ---- */

/* Users and tokens are the same length throughout, where nothing else is said: what a client sends
 * may take as long as it is long. */
static const struct {
    const char *name, *user, *token;
    bool is_right;
} calls[] = {
    {"right token", "alice", "alice's token", true},
    {"right token, the user's second", "alice", "alice's spare", true},
    {"right token of another user", "bobby", "bobby's token", true},
    {"wrong token", "alice", "alice's tokeN", false},
    {"another user's token", "alice", "bobby's token", false},
    {"unknown user, known token", "carol", "alice's token", false},
    {"unknown user and token", "carol", "carol's token", false},
    {"a name that begins like a user's", "alicf", "alice's token", false},
    {"a hashed token as the token", "alice", "5fHuh80Tjn+LY", false},
};
#define CALLS (sizeof calls / sizeof *calls)

static struct access *access_under_test;

static bool ask(struct slice user, struct slice token) {
    work = (struct work){0};
    return access_knows_user(access_under_test, user, token);
}

/* One digest, one keyed hash, one probe, one line, one comparison. The search goes one step on from a
 * candidate, which is the right token and nothing else: what all others get is the same to the step. */
static void check_work(const char *name, bool is_right) {
    if (work.digests != 1 || work.hashes != 1 || work.probes != 1 || work.lines != 1 ||
        work.comparisons != 1 || work.candidates != is_right || work.steps != 1)
        fail_msg("%s: %zu digests, %zu hashes, %zu probes, %zu steps, %zu candidates, %zu lines, "
                 "%zu comparisons",
                 name, work.digests, work.hashes, work.probes, work.steps, work.candidates,
                 work.lines, work.comparisons);
}

static void the_work_does_not_tell_who_is_known(void **state) {
    (void)state;
    for (size_t i = 0; i < CALLS; i++) {
        struct slice user = slice_of(calls[i].user), token = slice_of(calls[i].token);
        assert_int_equal(ask(user, token), calls[i].is_right);
        check_work(calls[i].name, calls[i].is_right);
        assert_int_equal(work.digested_bytes, strlen("alice's token"));
        assert_int_equal(work.hashed_bytes, strlen("alice\t") + ACCESS_HASH_CHARS);
    }
}

static void nothing_is_too_odd_for_the_same_work(void **state) {
    (void)state;
    char long_text[ID_MAX_BYTES + 1];
    memset(long_text, 'a', sizeof long_text);
    const struct slice odd[] = {
        {"", 0},
        {NULL, 0},
        {"-", 1},
        {"\0", 1},
        {"\xff", 1},
        {"*", 1},
        {"a b", 3},
        {"#", 1},
        {long_text, ID_MAX_BYTES},
        {long_text, ID_MAX_BYTES + 1},
    };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        assert_false(ask(odd[i], SLICE("alice's token")));
        check_work("an odd user", false);
        assert_false(ask(SLICE("alice"), odd[i]));
        check_work("an odd token", false);
        assert_false(ask(odd[i], odd[i]));
        check_work("an odd user and an odd token", false);
    }
}

/* The order of the files' lines, and how many there are, is nothing to go by either. */
static void the_same_work_among_many_users(void **state) {
    (void)state;
    char user[ID_MAX_BYTES], token[ID_MAX_BYTES];
    for (int i = 0; i < 2000; i++) {
        snprintf(user, sizeof user, "user%d", i);
        snprintf(token, sizeof token, "token%d", i);
        bool is_right = i < 1000; /* the file's users end there */
        assert_int_equal(ask(slice_of(user), slice_of(token)), is_right);
        /* A probe may have to pass entries of others; to which it is led by a keyed hash of the
         * token's digest, which nobody who guesses can steer. */
        check_work(user, is_right);
    }
}

/* ---- the files ---- */

static char dir[PATH_MAX - 16], users[PATH_MAX], rooms[PATH_MAX];

static int make_dir(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/access-work.XXXXXX", parent != NULL ? parent : "/tmp");
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(users, sizeof users, "%s/users", dir);
    snprintf(rooms, sizeof rooms, "%s/rooms", dir);
    return 0;
}

static void add_line(FILE *file, const char *user, const char *token) {
    char hash[ACCESS_HASH_CHARS + 1];
    access_hash_token(slice_of(token), hash);
    fprintf(file, "%s %s\n", user, hash);
}

static int write_users(void) {
    char user[32], token[32];
    FILE *file = fopen(users, "w");
    if (file == NULL) return -1;
    for (size_t i = 0; i < CALLS; i++)
        if (calls[i].is_right) add_line(file, calls[i].user, calls[i].token);
    for (int i = 0; i < 1000; i++) {
        snprintf(user, sizeof user, "user%d", i);
        snprintf(token, sizeof token, "token%d", i);
        add_line(file, user, token);
    }
    return fclose(file);
}

static int write_rooms(const char *text) {
    FILE *file = fopen(rooms, "w");
    return file != NULL && fputs(text, file) >= 0 && fclose(file) == 0 ? 0 : -1;
}

static int set_up(void **state) {
    (void)state;
    char why[512] = "";
    if (make_dir() < 0) return -1;
    if (write_users() == 0 && write_rooms("") == 0)
        access_under_test = access_load(dir, why, sizeof why);
    if (access_under_test == NULL) print_error("%s\n", why);
    return access_under_test != NULL ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    access_free(access_under_test);
    unlink(users);
    unlink(rooms);
    return rmdir(dir);
}

/* ---- reloads that fail ---- */

static void reload(void) {
    static struct access_reload result;
    access_reload(dir, access_under_test, &result);
    assert_non_null(result.access);
    access_free(access_under_test);
    access_under_test = result.access;
}

/* Tokens that were taken away, that wait for the other file, and that are in force cannot be told
 * apart by the work, and there is one state to ask, however many reloads have failed. */
static void the_same_work_after_reloads_that_fail(void **state) {
    (void)state;
    assert_int_equal(write_rooms("bad\n"), 0);
    for (int i = 0; i < 20; i++) {
        FILE *file = fopen(users, "w");
        assert_non_null(file);
        add_line(file, "alice", "alice's token");
        if (i % 2) add_line(file, "bobby", "bobby's token"); /* it goes, and comes back */
        add_line(file, "carol", "carol's token");            /* it is new */
        assert_int_equal(fclose(file), 0);
        reload();
        assert_true(ask(SLICE("alice"), SLICE("alice's token")));
        check_work("in force", true);
        assert_false(ask(SLICE("alice"), SLICE("alice's spare")));
        check_work("taken away", false);
        assert_false(ask(SLICE("bobby"), SLICE("bobby's token")));
        check_work("taken away, and back", false);
        assert_false(ask(SLICE("carol"), SLICE("carol's token")));
        check_work("waits", false);
        assert_false(ask(SLICE("david"), SLICE("carol's token")));
        check_work("unknown", false);
    }
}

/* The text of rooms that two states have in common grows with the rooms they name, and not with the
 * number of reloads. */
static void rooms_do_not_grow_by_reloads_that_fail(void **state) {
    static const char *const texts[] = {
        "a p alice bobby\nb c\n* c\n", "a p alice\nc p bobby\n* c\n", "a c\nb c\nd p carol\n* c\n"};
    (void)state;
    size_t largest = 0, all = 0;
    for (size_t i = 0; i < 3; i++) all += strlen(texts[i]);
    assert_int_equal(write_users(), 0);
    assert_int_equal(write_rooms("* c\n"), 0);
    reload();
    FILE *file = fopen(users, "w");
    assert_true(file != NULL && fputs("bad\n", file) >= 0 && fclose(file) == 0);
    for (size_t i = 0; i < 60; i++) {
        assert_int_equal(write_rooms(texts[i % 3]), 0);
        reload();
        if (access_under_test->rooms.size > largest) largest = access_under_test->rooms.size;
        work = (struct work){0};
        assert_int_equal(access_room_type(access_under_test, SLICE("e"), SLICE("alice")), 'c');
        assert_int_equal(work.probes, 1);
    }
    assert_true(largest > 0 && largest <= all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_work_does_not_tell_who_is_known),
        cmocka_unit_test(nothing_is_too_odd_for_the_same_work),
        cmocka_unit_test(the_same_work_among_many_users),
        cmocka_unit_test(the_same_work_after_reloads_that_fail),
        cmocka_unit_test(rooms_do_not_grow_by_reloads_that_fail),
    };
    return cmocka_run_group_tests_name("access_work", tests, set_up, tear_down);
}
