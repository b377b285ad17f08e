/*
 * test_access.c: users and rooms: every rule of both files, every refusal with its exact words.
 *
 * Linked with --wrap for malloc, calloc, realloc, read and getrandom, by which the tests make each
 * of them fail, and for table_hash, to make all keys collide. ROOMKEYD_DATA names the repository's
 * data directory; without it the tests are run from the repository's top. SEED=... repeats a run of
 * the random tests.
 */
#include "access.h"
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* The user of the documentation's example calls. */
#define SEED_USER  "d26x6zSkaPSe5gCyy"
#define SEED_TOKEN "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"
#define SEED_HASH  "5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV80="

#define ID_RULE "must be 1 to 255 bytes of UTF-8 without NUL"

static struct {
    int allocations_left; /* until one fails; -1: none does */
    size_t read_bytes;    /* at most, by one read; 0: as many as asked for */
    int read_error;       /* of every read, but EINTR of every second one; 0: none */
    int random_error;     /* of getrandom, but EINTR of the first one only; 0: none */
    unsigned reads;
    bool collides;  /* every key has the same hash */
    int growing_fd; /* where the next read finds that the file has grown, or -1 */
    char dir[64];
} fake;

/* ---- what is wrapped ---- */

static bool is_refused(void) {
    if (fake.allocations_left > 0)
        fake.allocations_left--;
    else if (fake.allocations_left == 0)
        return true;
    return false;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) { return is_refused() ? NULL : __real_malloc(size); }

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    return is_refused() ? NULL : __real_calloc(count, size);
}

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size) {
    return is_refused() ? NULL : __real_realloc(memory, size);
}

ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size) {
    fake.reads++;
    if (fake.read_error != 0 && (fake.read_error != EINTR || fake.reads % 2 == 1)) {
        errno = fake.read_error;
        return -1;
    }
    if (fake.growing_fd >= 0) {
        assert_int_equal(write(fake.growing_fd, "late c\n", 7), 7);
        fake.growing_fd = -1;
    }
    return __real_read(fd, buffer,
                       fake.read_bytes > 0 && fake.read_bytes < size ? fake.read_bytes : size);
}

ssize_t __real_getrandom(void *buffer, size_t size, unsigned flags);
ssize_t __wrap_getrandom(void *buffer, size_t size, unsigned flags);
ssize_t __wrap_getrandom(void *buffer, size_t size, unsigned flags) {
    if (fake.random_error == 0) return __real_getrandom(buffer, size, flags);
    errno = fake.random_error;
    if (fake.random_error == EINTR) fake.random_error = 0;
    return -1;
}

uint64_t __real_table_hash(struct table_key key, struct slice bytes);
uint64_t __wrap_table_hash(struct table_key key, struct slice bytes);
uint64_t __wrap_table_hash(struct table_key key, struct slice bytes) {
    return fake.collides ? 7 : __real_table_hash(key, bytes);
}

/* ---- a directory with two files ---- */

static const char *path_of(const char *name) {
    static char path[sizeof fake.dir + 16];
    snprintf(path, sizeof path, "%s/%s", fake.dir, name);
    return path;
}

static void write_file(const char *name, struct slice text) {
    FILE *file = fopen(path_of(name), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text.p, 1, text.n, file), text.n);
    assert_int_equal(fclose(file), 0);
}

static int reset_fakes(void **state) {
    (void)state;
    fake.allocations_left = -1;
    fake.growing_fd = -1;
    fake.read_bytes = fake.reads = 0;
    fake.read_error = fake.random_error = 0;
    fake.collides = false;
    return 0;
}

static int make_dir(void **state) {
    const char *parent = getenv("TMPDIR");
    snprintf(fake.dir, sizeof fake.dir, "%.40s/access.XXXXXX", parent != NULL ? parent : "/tmp");
    return mkdtemp(fake.dir) == NULL ? -1 : reset_fakes(state);
}

static int remove_dir(void **state) {
    (void)state;
    unlink(path_of("users"));
    unlink(path_of("rooms"));
    return rmdir(fake.dir);
}

static struct access *load(struct slice users, struct slice rooms) {
    char why[512] = "";
    write_file("users", users);
    write_file("rooms", rooms);
    struct access *access = access_load(fake.dir, why, sizeof why);
    if (access == NULL) fail_msg("%s", why);
    return access;
}

static struct access *load_rooms(const char *rooms) { return load(SLICE(""), slice_of(rooms)); }

static int lowest_free_fd(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    return fd;
}

/* The directory as it is must be refused with this reason, which begins with the path. */
static void assert_refused(const char *reason) {
    char why[512] = "", expected[512];
    int fd = lowest_free_fd();
    snprintf(expected, sizeof expected, "%s/%s", fake.dir, reason);
    assert_null(access_load(fake.dir, why, sizeof why));
    assert_string_equal(why, expected);
    assert_int_equal(lowest_free_fd(), fd);
}

static bool knows(const struct access *access, const char *user, const char *token) {
    return access_knows_user(access, slice_of(user), slice_of(token));
}

static char type(const struct access *access, const char *room, const char *user) {
    return access_room_type(access, slice_of(room), slice_of(user));
}

/* ---- tokens ---- */

static void hashes_tokens(void **state) {
    static const struct {
        const char *token, *hash; /* from Python: b64encode(sha256(token).digest()) */
    } rows[] = {
        {SEED_TOKEN, SEED_HASH},
        {"", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
        {"abc", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="},
        {"a", "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="},
        {"b", "PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0="},
    };
    char hash[ACCESS_HASH_CHARS + 1];
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        access_hash_token(slice_of(rows[i].token), hash);
        assert_string_equal(hash, rows[i].hash);
    }
}

/* A thousand digests pass through every character in every place; what is written must be read. */
static void reads_the_hashes_it_writes(void **state) {
    static char users[1000 * 64];
    char hash[ACCESS_HASH_CHARS + 1], token[32];
    size_t size = 0;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(token, sizeof token, "token %d", i);
        access_hash_token(slice_of(token), hash);
        size += (size_t)sprintf(users + size, "u%d %s\n", i / 10, hash);
    }
    struct access *access = load((struct slice){users, size}, SLICE(""));
    for (int i = 0; i < 1000; i++) {
        char user[16];
        snprintf(user, sizeof user, "u%d", i / 10);
        snprintf(token, sizeof token, "token %d", i);
        assert_true(knows(access, user, token));
        snprintf(user, sizeof user, "u%d", i / 10 + 1);
        assert_false(knows(access, user, token));
    }
    access_free(access);
}

static void knows_the_right_token_only(void **state) {
    static char long_text[100000];
    struct access *access = load(SLICE(SEED_USER " " SEED_HASH "\n"), SLICE(""));
    (void)state;
    assert_true(knows(access, SEED_USER, SEED_TOKEN));
    assert_false(knows(access, SEED_USER, SEED_TOKEN "x"));
    assert_false(knows(access, SEED_USER, SEED_HASH));
    assert_false(knows(access, SEED_USER, ""));
    assert_false(knows(access, "D26x6zSkaPSe5gCyy", SEED_TOKEN));
    assert_false(knows(access, "d26x6zSkaPSe5gCy", SEED_TOKEN));
    assert_false(knows(access, SEED_USER " ", SEED_TOKEN));
    assert_false(knows(access, SEED_USER " " SEED_HASH, SEED_TOKEN));
    assert_false(knows(access, "", SEED_TOKEN));
    assert_false(knows(access, "-", SEED_TOKEN));
    assert_false(knows(access, "\xff", SEED_TOKEN));
    assert_false(access_knows_user(access, SLICE(SEED_USER "\0"), SLICE(SEED_TOKEN)));
    assert_false(access_knows_user(access, SLICE(SEED_USER), SLICE(SEED_TOKEN "\0")));
    assert_false(access_knows_user(access, (struct slice){NULL, 0}, (struct slice){NULL, 0}));

    memset(long_text, 'u', sizeof long_text);
    struct slice long_slice = {long_text, sizeof long_text};
    assert_false(access_knows_user(access, long_slice, SLICE(SEED_TOKEN)));
    assert_false(access_knows_user(access, SLICE(SEED_USER), long_slice));
    access_free(access);
}

static void lets_a_user_have_several_tokens(void **state) {
    struct access *access =
        load(SLICE("u 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n" /* "" */
                   "v ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=\n" /* "a" */
                   "u ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=\n" /* "abc" */
                   "v ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=\n"
                   "u ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=\n"),
             SLICE(""));
    (void)state;
    assert_true(knows(access, "u", ""));
    assert_true(knows(access, "u", "abc"));
    assert_false(knows(access, "u", "a"));
    assert_true(knows(access, "v", "a"));
    assert_true(knows(access, "v", "abc"));
    assert_false(knows(access, "v", ""));
    access_free(access);
}

/* ---- rooms ---- */

static void tells_types_and_members(void **state) {
    struct access *access = load_rooms("pub c\npubl c x y\npriv p ann bob\ndir d ann\nempty p\n");
    (void)state;
    assert_int_equal(type(access, "pub", "ann"), 'c');
    assert_int_equal(type(access, "publ", "ann"), 'c');
    assert_int_equal(type(access, "priv", "ann"), 'p');
    assert_int_equal(type(access, "priv", "bob"), 'p');
    assert_int_equal(type(access, "priv", "bo"), 0);
    assert_int_equal(type(access, "priv", "bobb"), 0);
    assert_int_equal(type(access, "priv", "p"), 0);
    assert_int_equal(type(access, "priv", "priv"), 0);
    assert_int_equal(type(access, "dir", "ann"), 'd');
    assert_int_equal(type(access, "dir", "bob"), 0);
    assert_int_equal(type(access, "dir", "empty"), 0);
    assert_int_equal(type(access, "empty", "ann"), 0);
    assert_int_equal(type(access, "pu", "ann"), 0);
    assert_int_equal(type(access, "pub c", "ann"), 0);
    assert_int_equal(type(access, "PUB", "ann"), 0);
    assert_int_equal(type(access, "nowhere", "ann"), 0);
    assert_int_equal(type(access, "*", "ann"), 0);
    access_free(access);
}

static void keeps_the_default_line_apart(void **state) {
    struct access *access = load_rooms("priv p ann\n* d bob\npub c\n");
    (void)state;
    assert_int_equal(type(access, "nowhere", "bob"), 'd');
    assert_int_equal(type(access, "nowhere", "ann"), 0);
    assert_int_equal(type(access, "*", "bob"), 'd'); /* as any room without a line */
    assert_int_equal(type(access, "*", "ann"), 0);
    assert_int_equal(type(access, "priv", "ann"), 'p');
    assert_int_equal(type(access, "priv", "bob"), 0); /* its own line counts alone */
    assert_int_equal(type(access, "pub", "bob"), 'c');
    access_free(access);
}

/* Writes a line "RID TYPE PREFIX0 ... PREFIXn-1". Returns its end. */
static char *print_room(char *out, const char *head, const char *prefix, int members) {
    out += sprintf(out, "%s", head);
    for (int i = 0; i < members; i++) out += sprintf(out, " %s%d", prefix, i);
    return out + sprintf(out, "\n");
}

/* The first eight members and the later ones are found in two ways; one must not know of the other,
 * of another room's or of another number of them. */
static void finds_any_number_of_members(void **state) {
    static const int counts[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,  12,
                                 13, 14, 15, 16, 17, 18, 19, 20, 64, 65, 1000};
    static char rooms[65536];
    (void)state;
    for (size_t row = 0; row < sizeof counts / sizeof *counts; row++) {
        int n = counts[row];
        char *end = print_room(rooms, "priv p", "u", n);
        end = print_room(end, "* p", "w", n);
        end = print_room(end, "dir d", "v", n);
        end = print_room(end, "pub c", "x", n);
        struct access *access = load(SLICE(""), (struct slice){rooms, (size_t)(end - rooms)});
        for (int i = 0; i <= n; i++) {
            char u[16], v[16], w[16];
            snprintf(u, sizeof u, "u%d", i);
            snprintf(v, sizeof v, "v%d", i);
            snprintf(w, sizeof w, "w%d", i);
            assert_int_equal(type(access, "priv", u), i < n ? 'p' : 0);
            assert_int_equal(type(access, "dir", v), i < n ? 'd' : 0);
            assert_int_equal(type(access, "other", w), i < n ? 'p' : 0);
            assert_int_equal(type(access, "*", w), i < n ? 'p' : 0);
            assert_int_equal(type(access, "priv", v), 0);
            assert_int_equal(type(access, "dir", u), 0);
            assert_int_equal(type(access, "dir", w), 0);
            assert_int_equal(type(access, "other", v), 0);
            assert_int_equal(type(access, "pub", v), 'c');
        }
        access_free(access);
    }
}

static void finds_ten_thousand_members(void **state) {
    static char rooms[200000];
    static char long_user[1000];
    char *end = print_room(rooms, "big p", "member", 10000);
    (void)state;
    end += sprintf(end, "again p a b c d e f g h i i i i a\n");
    struct access *access = load(SLICE(""), (struct slice){rooms, (size_t)(end - rooms)});
    for (int i = 0; i < 10000; i++) {
        char user[32];
        snprintf(user, sizeof user, "member%d", i);
        assert_int_equal(type(access, "big", user), 'p');
        assert_int_equal(type(access, "again", user), 0);
    }
    assert_int_equal(type(access, "big", "member10000"), 0);
    assert_int_equal(type(access, "big", "member"), 0);
    assert_int_equal(type(access, "big", ""), 0);
    assert_int_equal(type(access, "again", "i"), 'p');
    assert_int_equal(type(access, "again", "a"), 'p');
    memset(long_user, 'm', sizeof long_user);
    struct slice user = {long_user, sizeof long_user};
    assert_int_equal(access_room_type(access, SLICE("big"), user), 0);
    access_free(access);
}

static void finds_many_rooms(void **state) {
    static char rooms[20000 * 24];
    char *end = rooms, room[16];
    (void)state;
    for (int i = 0; i < 20000; i++)
        end += sprintf(end, "R%d %s\n", i, i % 3 == 0 ? "c" : i % 3 == 1 ? "p ann" : "d bob");
    struct access *access = load(SLICE(""), (struct slice){rooms, (size_t)(end - rooms)});
    for (int i = 0; i < 20000; i++) {
        snprintf(room, sizeof room, "R%d", i);
        assert_int_equal(type(access, room, "ann"), "cp"[i % 3]);
        snprintf(room, sizeof room, "S%d", i);
        assert_int_equal(type(access, room, "ann"), 0);
    }
    access_free(access);
}

/* A hash only proposes: with all of them equal, the answers are the same. */
static void answers_by_bytes_not_by_hashes(void **state) {
    static const char *const users[] = {"a", "b", "i", "j", "k", "x"};
    (void)state;
    fake.collides = true;
    struct access *access =
        load(SLICE("u " SEED_HASH "\n"
                   "v ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=\n"   /* "a" */
                   "w 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV84=\n"   /* the last one differs */
                   "x AfHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV80=\n"), /* the first one */
             SLICE("r p a b c d e f g h i j\nq p a b c d e f g h j k\ns c\n* d b\n"));
    assert_true(knows(access, "u", SEED_TOKEN));
    assert_true(knows(access, "v", "a"));
    assert_false(knows(access, "u", "a"));
    assert_false(knows(access, "v", SEED_TOKEN));
    assert_false(knows(access, "w", SEED_TOKEN));
    assert_false(knows(access, "x", SEED_TOKEN));
    assert_false(knows(access, "y", SEED_TOKEN));
    assert_false(knows(access, "-", SEED_TOKEN));
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(type(access, "r", users[i]), i < 4 ? 'p' : 0);
        assert_int_equal(type(access, "q", users[i]), i < 5 && i != 2 ? 'p' : 0);
        assert_int_equal(type(access, "s", users[i]), 'c');
        assert_int_equal(type(access, "t", users[i]), i == 1 ? 'd' : 0);
    }
    access_free(access);
}

/* ---- the text ---- */

static void passes_over_what_says_nothing(void **state) {
    static const char *const rows[] = {
        "r p ann\n",
        "r p ann",
        "r p ann\r\n",
        "r p ann\r",
        "r\tp\tann\n",
        "  r \t p\t\tann \t\r\n",
        "\n\r\n \t \n# r c\n#\nr p ann\n\n# r c",
        "#r p bob\n\n\nr p ann\r\n\r\n",
        "# \xff\xfe are not UTF-8, and nobody minds\nr p ann\n",
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct access *access = load_rooms(rows[i]);
        assert_int_equal(type(access, "r", "ann"), 'p');
        assert_int_equal(type(access, "r", "ann\r"), 0);
        assert_int_equal(type(access, "r", "bob"), 0);
        access_free(access);
    }
    struct access *access = load(SLICE("\r\n# users\r\n\t" SEED_USER "\t" SEED_HASH " \r\n"),
                                 SLICE("a#b c\nr\rs c\n#r c\n"));
    assert_true(knows(access, SEED_USER, SEED_TOKEN));
    assert_int_equal(type(access, "a#b", "u"), 'c');
    assert_int_equal(type(access, "r\rs", "u"), 'c'); /* a CR elsewhere is a byte of an ID */
    assert_int_equal(type(access, "#r", "u"), 0);
    access_free(access);
}

static void accepts_empty_files(void **state) {
    struct access *access = load(SLICE(""), SLICE(""));
    (void)state;
    assert_false(knows(access, SEED_USER, SEED_TOKEN));
    assert_int_equal(type(access, "r", "ann"), 0);
    access_free(access);
    access_free(NULL);
}

#define X50  "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
#define X255 X50 X50 X50 X50 X50 "xxxxx"

static void accepts_the_longest_ids(void **state) {
    struct access *access =
        load(SLICE(X255 " " SEED_HASH "\n\xf0\x9f\x94\x91 " SEED_HASH "\n"),
             SLICE(X255 " p a b c d e f g h " X255 "\n\xc3\xa9 d \xf0\x9f\x94\x91\n"));
    (void)state;
    assert_true(knows(access, X255, SEED_TOKEN));
    assert_true(knows(access, "\xf0\x9f\x94\x91", SEED_TOKEN));
    assert_false(knows(access, X255 "x", SEED_TOKEN));
    assert_int_equal(type(access, X255, X255), 'p');
    assert_int_equal(type(access, X255, X255 "x"), 0);
    assert_int_equal(type(access, "\xc3\xa9", "\xf0\x9f\x94\x91"), 'd');
    access_free(access);
}

/* ---- refusals ---- */

#define COMMENT_RULE   "a comment begins at the start of its line, with #"
#define QUOTE_RULE     "an ID stands without quotes and brackets"
#define SEPARATOR_RULE "words are separated by spaces or tabs, and nothing else"
#define COLON_RULE     "an ID does not end in a colon"
#define PATTERN_RULE   "* stands alone, as a room ID: there are no patterns"
#define BLANK_RULE     "an invisible character, or a blank that is neither a space nor a tab"
#define BARE_RULE      "punctuation alone is no ID"

/* A line for each place in which an ID may stand. */
static const struct place {
    const char *file, *format; /* of snprintf: the ID, or a NULL that it does not ask for */
} places[] = {
    {"users", "%s " SEED_HASH "\n"},
    {"users", "\t%s\t" SEED_HASH " \r\n"},
    {"rooms", "%s c\n"},
    {"rooms", "%s p ann"},
    {"rooms", "r p %s\n"},
    {"rooms", "r d ann %s\r\n"},
    {"rooms", "r p a b c d e f g h i %s j\n"},
    {"rooms", "r c %s\n"},
    {"rooms", "* c ann %s"},
};
#define PLACES (sizeof places / sizeof *places)

/* Writes two good lines and, as the third, one with an ID in a place; the other file is empty. */
static void write_in_place(const struct place *place, const char *id) {
    bool is_users = strcmp(place->file, "users") == 0;
    char text[2048];
    int size = snprintf(text, sizeof text, "# 1\n%s\n", is_users ? "v " SEED_HASH : "q c");
    snprintf(text + size, sizeof text - (size_t)size, place->format, id);
    write_file("users", slice_of(is_users ? text : ""));
    write_file("rooms", slice_of(is_users ? "" : text));
}

static void refuses_words_that_cannot_be_meant(void **state) {
    static const struct {
        const char *word, *reason;
    } rows[] = {
        {"#", COMMENT_RULE},
        {"#bob", COMMENT_RULE},
        {"##", COMMENT_RULE},
        {"//", COMMENT_RULE},
        {"//bob", COMMENT_RULE},
        {"/*", COMMENT_RULE},
        {"\u2013", COMMENT_RULE}, /* what word processors make of -- */
        {"\u2014", COMMENT_RULE},
        {"u1,", SEPARATOR_RULE},
        {"u1,u2", SEPARATOR_RULE},
        {",u1", SEPARATOR_RULE},
        {",", SEPARATOR_RULE},
        {"u1;", SEPARATOR_RULE},
        {"u1;u2", SEPARATOR_RULE},
        {";", SEPARATOR_RULE},
        {"u1|u2", SEPARATOR_RULE},
        {"|", SEPARATOR_RULE},
        {"u1\uFF0Cu2", SEPARATOR_RULE}, /* a comma, a semicolon and a colon of full width */
        {"u1\uFF1B", SEPARATOR_RULE},
        {"u1\u3001u2", SEPARATOR_RULE},
        {"u1:", COLON_RULE},
        {":", COLON_RULE},
        {"u1\uFF1A", COLON_RULE},
        {"'u1'", QUOTE_RULE},
        {"\"u1\"", QUOTE_RULE},
        {"\"u1", QUOTE_RULE},
        {"u1\"", QUOTE_RULE},
        {"'u1", QUOTE_RULE},
        {"u1'", QUOTE_RULE},
        {"\"\"", QUOTE_RULE},
        {"`u1`", QUOTE_RULE},
        {"\u201Cu1\u201D", QUOTE_RULE},
        {"\u2018u1\u2019", QUOTE_RULE},
        {"\u201Eu1", QUOTE_RULE},
        {"\u201Au1", QUOTE_RULE},
        {"\u00ABu1\u00BB", QUOTE_RULE},
        {"u1\u203A", QUOTE_RULE},
        {"\u2039u1", QUOTE_RULE},
        {"[u1]", QUOTE_RULE},
        {"[u1", QUOTE_RULE},
        {"u1]", QUOTE_RULE},
        {"[USERID...]", QUOTE_RULE},
        {"<u1>", QUOTE_RULE},
        {"(u1)", QUOTE_RULE},
        {"{u1}", QUOTE_RULE},
        {"->", QUOTE_RULE},
        {"**", PATTERN_RULE},
        {"u*", PATTERN_RULE},
        {"*u", PATTERN_RULE},
        {"a*b", PATTERN_RULE},
        {"u1\u00A0u2", BLANK_RULE},
        {"u1\u3000u2", BLANK_RULE},
        {"u1\u202F", BLANK_RULE},
        {"u1\u200B", BLANK_RULE},
        {"\u200Eu1", BLANK_RULE},
        {"u1\u200F", BLANK_RULE},
        {"u1\u2060", BLANK_RULE},
        {"\uFEFFu1", BLANK_RULE}, /* a byte order mark: of a file that was appended */
        {"/", BARE_RULE},
        {"&", BARE_RULE},
        {"+", BARE_RULE},
        {"=", BARE_RULE},
        {"==", BARE_RULE},
        {"%", BARE_RULE},
        {"!", BARE_RULE},
        {"?", BARE_RULE},
        {"$", BARE_RULE},
        {"~", BARE_RULE},
        {"^", BARE_RULE},
        {"\\", BARE_RULE}, /* a line that goes on in the next one */
        {"\\#", BARE_RULE},
    };
    char reason[160];
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < PLACES; j++) {
            if (rows[i].word[0] == '#' && places[j].format[0] == '%')
                continue; /* it is a comment */
            write_in_place(&places[j], rows[i].word);
            snprintf(reason, sizeof reason, "%s:3: %s", places[j].file, rows[i].reason);
            assert_refused(reason);
            assert_string_equal(access_mistake(slice_of(rows[i].word)), rows[i].reason);
        }
}

/* What only a user may not be called. */
static void refuses_users_that_cannot_be(void **state) {
    static const struct {
        const char *word, *reason;
    } rows[] = {{"*", PATTERN_RULE},
                {"-", "user ID must not be dashes alone"},
                {"--", "user ID must not be dashes alone"},
                {"---", "user ID must not be dashes alone"}};
    char reason[160], why[512];
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < PLACES; j++) {
            write_in_place(&places[j], rows[i].word);
            snprintf(reason, sizeof reason, "%s:3: %s", places[j].file, rows[i].reason);
            if (places[j].format[0] == '%' && strcmp(places[j].file, "rooms") == 0) {
                struct access *access = access_load(fake.dir, why, sizeof why);
                assert_non_null(access);
                access_free(access);
            } else {
                assert_refused(reason);
            }
        }
}

/* What looks a little like the former, and what IDs really are. */
static void takes_words_that_are_ids(void **state) {
    static const char *const rows[] = {
        "d26x6zSkaPSe5gCyy",
        "GENERAL",
        "rocket.cat",
        "a-b_c.d",
        "-a",
        "a-",
        "_",
        ".",
        "...",
        "_a",
        "a#b",
        "a#",
        "a:b",
        ":a",
        "@a",
        "a@b.example",
        "@",
        "a/b",
        "/a",
        "a+b==",
        "a=",
        "o'brien",
        "a\"b",
        "a[b",
        "a<b>c",
        "a&b",
        "a?",
        "a!",
        "!a",
        "$a",
        "~a",
        "100%",
        "\u00E9",
        "\u7533",
        "\xf0\x9f\x94\x91",
        "\u0627\u200C\u0628",
        "O\u2019Brien",
        "a\u2014b",
        "a\uFF1Ab",
    };
    char why[512] = "";
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < PLACES; j++) {
            write_in_place(&places[j], rows[i]);
            struct access *access = access_load(fake.dir, why, sizeof why);
            if (access == NULL) fail_msg("%s: %s", rows[i], why);
            assert_true(access_can_hold(slice_of(rows[i])));
            access_free(access);
        }
}

static void refuses_bad_users(void **state) {
#define ROW(text, reason)                                                                          \
    { {(text), sizeof(text) - 1}, "users:" reason }
#define FORM_RULE "line must be USERID HASHED_TOKEN"
#define HASH_RULE "hashed token must be 44 characters, the base64 of 32 bytes"
    static const struct {
        struct slice text;
        const char *reason;
    } rows[] = {
        ROW("u\n", "1: " FORM_RULE),
        ROW("u " SEED_HASH " x\n", "1: " FORM_RULE),
        ROW("# one\n\n\r\nu " SEED_HASH "\nu", "5: " FORM_RULE),
        ROW("- " SEED_HASH "\n", "1: user ID must not be dashes alone"),
        ROW("u # c\n", "1: " COMMENT_RULE),
        ROW("u #\n", "1: " COMMENT_RULE),
        ROW("u " SEED_HASH " # the seed\n", "1: " COMMENT_RULE),
        ROW("u " SEED_HASH " #\n", "1: " COMMENT_RULE),
        ROW(X255 "x " SEED_HASH "\n", "1: user ID " ID_RULE),
        ROW("\n\xff " SEED_HASH "\n", "2: user ID " ID_RULE),
        ROW("\xc0\x80 " SEED_HASH "\n", "1: user ID " ID_RULE),
        ROW("a\0b " SEED_HASH "\n", "1: user ID " ID_RULE),
        ROW("u \0\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV80\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV80==\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV8==\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV81=\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea/BexbBGYO8wiSV80A\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn-LYcZ14Lv7IEomHea/BexbBGYO8wiSV80=\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn+LYcZ14Lv7IEomHea_BexbBGYO8wiSV80=\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn=LYcZ14Lv7IEomHea/BexbBGYO8wiSV80=\n", "1: " HASH_RULE),
        ROW("u 5fHuh80Tjn\0LYcZ14Lv7IEomHea/BexbBGYO8wiSV80=\n", "1: " HASH_RULE),
        ROW("u e5f1ee87cd138e7f8b61c675e0bbfb204a261de6bf05ec5b04660ef3089257cd\n",
            "1: " HASH_RULE),
        ROW("u " SEED_TOKEN "\n", "1: " HASH_RULE),
    };
    (void)state;
    write_file("rooms", SLICE("bad"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_file("users", rows[i].text);
        assert_refused(rows[i].reason);
    }
#undef ROW
}

static void refuses_bad_rooms(void **state) {
#define ROW(text, reason)                                                                          \
    { {(text), sizeof(text) - 1}, "rooms:" reason }
#define LINE_RULE "line must be RID TYPE [USERID...]"
#define TYPE_RULE "type must be c, p or d"
    static const struct {
        struct slice text;
        const char *reason;
    } rows[] = {
        ROW("r\n", "1: " LINE_RULE),
        ROW("\n\n# three\nr", "4: " LINE_RULE),
        ROW("*\r\n", "1: " LINE_RULE),
        ROW("r x\n", "1: " TYPE_RULE),
        ROW("r C\n", "1: " TYPE_RULE),
        ROW("r cc\n", "1: " TYPE_RULE),
        ROW("r \0\n", "1: " TYPE_RULE),
        ROW("r ann p\n", "1: " TYPE_RULE),
        ROW("r p, ann\n", "1: " TYPE_RULE),
        ROW("r [p] ann\n", "1: " TYPE_RULE),
        ROW("r public\n", "1: " TYPE_RULE),
        ROW(" # not a comment\n", "1: " COMMENT_RULE),
        ROW("* c\n\t#\n", "2: " COMMENT_RULE),
        ROW("r # c\n", "1: " COMMENT_RULE),
        ROW("r #\n", "1: " COMMENT_RULE),
        ROW("r c # ann\n", "1: " COMMENT_RULE),
        ROW(X255 "x c\n", "1: room ID " ID_RULE),
        ROW("\xed\xa0\x80 c\n", "1: room ID " ID_RULE),
        ROW("r\0 c\n", "1: room ID " ID_RULE),
        ROW("a c\nr p -\n", "2: user ID must not be dashes alone"),
        ROW("r p a b c d e f g h -\n", "1: user ID must not be dashes alone"),
        ROW("r p a \xff\n", "1: user ID " ID_RULE),
        ROW("r c a \xff\n", "1: user ID " ID_RULE),
        ROW("r d a b c d e f g h i\0j\n", "1: user ID " ID_RULE),
        ROW("r c a b c d e f g h " X255 "x\n", "1: user ID " ID_RULE),
        ROW("r c\nr c\n", "2: room is already on line 1"),
        ROW("# 1\nr c\n\na d\nr p u\n", "5: room is already on line 2"),
        ROW("a c\n\r\n* c\n# 4\n* p u", "5: room is already on line 3"),
    };
    (void)state;
    write_file("users", SLICE(SEED_USER " " SEED_HASH));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_file("rooms", rows[i].text);
        assert_refused(rows[i].reason);
    }
#undef ROW
}

static void refuses_what_is_no_file(void **state) {
    static const char *const names[] = {"users", "rooms"};
    char reason[64];
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        write_file("users", SLICE(""));
        write_file("rooms", SLICE(""));
        assert_int_equal(unlink(path_of(names[i])), 0);
        snprintf(reason, sizeof reason, "%s: No such file or directory", names[i]);
        assert_refused(reason);

        snprintf(reason, sizeof reason, "%s: not a regular file", names[i]);
        assert_int_equal(mkdir(path_of(names[i]), 0700), 0);
        assert_refused(reason);
        assert_int_equal(rmdir(path_of(names[i])), 0);
        assert_int_equal(mkfifo(path_of(names[i]), 0600), 0);
        assert_refused(reason); /* and does not wait for a writer */
        assert_int_equal(unlink(path_of(names[i])), 0);
    }
}

static void refuses_a_directory_that_cannot_be(void **state) {
    static char dir[8192];
    char why[512];
    (void)state;
    assert_null(access_load("/nowhere/at/all", why, sizeof why));
    assert_string_equal(why, "/nowhere/at/all/users: No such file or directory");
    memset(dir, 'd', sizeof dir - 1);
    assert_null(access_load(dir, why, sizeof why));
    assert_int_equal(strlen(why), sizeof why - 1); /* cut, and still a string */
}

/* To the byte: what is longer is not cut into the name of another file. */
static void takes_paths_as_long_as_there_are(void **state) {
    char dir[PATH_MAX], why[2 * PATH_MAX];
    size_t longest = PATH_MAX - sizeof "/users";
    (void)state;
    write_file("users", SLICE(SEED_USER " " SEED_HASH "\n"));
    write_file("rooms", SLICE("r c\n"));
    memset(dir, '/', sizeof dir);
    memcpy(dir, fake.dir, strlen(fake.dir));
    for (size_t size = longest; size < longest + 3; size++) {
        dir[size] = '\0';
        struct access *access = access_load(dir, why, sizeof why);
        assert_int_equal(access != NULL, size == longest);
        const char *end = "/users: File name too long";
        if (access == NULL) assert_string_equal(why + strlen(why) - strlen(end), end);
        access_free(access);
        dir[size] = '/';
    }
}

/* ---- for those who write the files ---- */

/* Whether an ID, put into both files as those who write them do, comes out as itself again: as a
 * user, at the end of a line of members, and as a room that is not all rooms. */
static bool reads_back(const char *id) {
    char users[1024], rooms[1024], why[512];
    snprintf(users, sizeof users, "%s " SEED_HASH "\n", id);
    snprintf(rooms, sizeof rooms, "%s c\nother-room p %s\n", id, id);
    write_file("users", slice_of(users));
    write_file("rooms", slice_of(rooms));
    struct access *access = access_load(fake.dir, why, sizeof why);
    bool is_good = access && knows(access, id, SEED_TOKEN) && type(access, id, "nobody") == 'c' &&
                   type(access, "other-room", id) == 'p' && type(access, "no-room", id) == 0;
    access_free(access);
    return is_good;
}

static void can_hold_what_reads_back(void **state) {
    static const char *const forms[] = {"%c", "a%c", "%ca", "%c%c", "%cä", "ä%c", "-%c", "a%cb"};
    char id[8];
    (void)state;
    for (size_t form = 0; form < sizeof forms / sizeof *forms; form++)
        for (int c = 1; c < 256; c++) {
            snprintf(id, sizeof id, forms[form], c, c);
            if (access_can_hold(slice_of(id)) != reads_back(id))
                fail_msg("form %zu of byte %d: read back %d", form, c, reads_back(id));
        }
    assert_false(access_can_hold(SLICE("")));
    assert_false(access_can_hold(SLICE("a\0b")));
    assert_true(access_can_hold(SLICE("\xf0\x9f\x94\x91")));
}

/* Each file alone, whatever becomes of the other. */
static void loads_one_file(void **state) {
    char why[512], expected[128];
    (void)state;
    write_file("users", SLICE("nonsense\n"));
    write_file("rooms", SLICE("nonsense\n"));
    write_file("users.new", SLICE(SEED_USER " " SEED_HASH "\n"));
    write_file("rooms.new", SLICE("r c\n"));
    struct access *users = access_load_one(fake.dir, "users.new", why, sizeof why);
    struct access *rooms = access_load_one(fake.dir, "rooms.new", why, sizeof why);
    assert_non_null(users);
    assert_non_null(rooms);
    assert_true(knows(users, SEED_USER, SEED_TOKEN));
    assert_int_equal(type(users, "r", SEED_USER), 0);
    assert_int_equal(type(rooms, "r", SEED_USER), 'c');
    access_free(users);
    access_free(rooms);

    write_file("rooms.new", SLICE("r c\nr d\n"));
    assert_null(access_load_one(fake.dir, "rooms.new", why, sizeof why));
    snprintf(expected, sizeof expected, "%s/rooms.new:2: room is already on line 1", fake.dir);
    assert_string_equal(why, expected);
    assert_int_equal(unlink(path_of("users.new")), 0);
    assert_int_equal(unlink(path_of("rooms.new")), 0);
}

/* ---- reloads ---- */

#define HASH_OF_A "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="
#define HASH_OF_B "PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0="

/* Writes both files; NULL: there is none. */
static void write_files(const char *users, const char *rooms) {
    if (users != NULL) write_file("users", slice_of(users));
    if (rooms != NULL) write_file("rooms", slice_of(rooms));
    if (users == NULL) unlink(path_of("users"));
    if (rooms == NULL) unlink(path_of("rooms"));
}

/* Reloads from both texts, and frees what was in force if something else is now. */
static void reload(struct access **access, const char *users, const char *rooms, bool is_users_good,
                   bool is_rooms_good) {
    static struct access_reload result;
    write_files(users, rooms);
    int fd = lowest_free_fd();
    access_reload(fake.dir, *access, &result);
    assert_int_equal(lowest_free_fd(), fd);
    assert_int_equal(result.why[ACCESS_USERS][0] == '\0', is_users_good);
    assert_int_equal(result.why[ACCESS_ROOMS][0] == '\0', is_rooms_good);
    if (!is_users_good) assert_memory_equal(result.why[ACCESS_USERS], fake.dir, strlen(fake.dir));
    if (!is_rooms_good) assert_memory_equal(result.why[ACCESS_ROOMS], fake.dir, strlen(fake.dir));
    assert_int_equal(result.access != NULL, is_users_good || is_rooms_good);
    if (result.access == NULL) return;
    access_free(*access);
    *access = result.access;
}

static void tokens_are_taken_and_not_added_while_rooms_is_bad(void **state) {
    static const char *const bad_rooms[] = {"r\n", "r p ann # bob\n", "r c\nr c\n", NULL};
    (void)state;
    for (size_t i = 0; i < sizeof bad_rooms / sizeof *bad_rooms; i++) {
        struct access *access =
            load(SLICE("# both\nann " HASH_OF_A "\nann " HASH_OF_B "\nbob " HASH_OF_B "\n"),
                 SLICE("r p ann\nq d bob\n"));
        /* One token of ann's is gone, bob's is ann's now, and carol is new. */
        const char *users = "ann " HASH_OF_B "\r\n\ncarol " HASH_OF_A "\n\tbob " HASH_OF_A;
        for (int again = 0; again < 3; again++) {
            reload(&access, users, bad_rooms[i], true, false);
            assert_false(knows(access, "ann", "a"));
            assert_true(knows(access, "ann", "b"));
            assert_false(knows(access, "bob", "a"));
            assert_false(knows(access, "bob", "b"));
            assert_false(knows(access, "carol", "a"));
            assert_int_equal(type(access, "r", "ann"), 'p');
            assert_int_equal(type(access, "q", "bob"), 'd');
            assert_int_equal(type(access, "r", "bob"), 0);
        }
        reload(&access, users, "r p bob\n", true, true);
        assert_true(knows(access, "ann", "b"));
        assert_true(knows(access, "bob", "a"));
        assert_true(knows(access, "carol", "a"));
        assert_false(knows(access, "ann", "a"));
        assert_int_equal(type(access, "r", "ann"), 0);
        assert_int_equal(type(access, "r", "bob"), 'p');
        access_free(access);
    }
}

/* A token that goes and comes back is new: in between it was not in force. */
static void what_was_taken_away_comes_back_with_both_files_alone(void **state) {
    struct access *access =
        load(SLICE("ann " HASH_OF_A "\nbob " HASH_OF_B "\n"), SLICE("r p ann bob\n* c\n"));
    (void)state;
    reload(&access, "bob " HASH_OF_B "\n", "bad", true, false);
    assert_false(knows(access, "ann", "a"));
    reload(&access, "ann " HASH_OF_A "\nbob " HASH_OF_B "\n", "bad", true, false);
    assert_false(knows(access, "ann", "a"));
    assert_true(knows(access, "bob", "b"));

    /* Now it is the other file's turn to be good. Who was put out of a room stays out of it, also of
     * one that has lost its line, and is open to all by the one for all others. */
    reload(&access, "bad", "r p bob\ns p bob\n* c\n", false, true);
    assert_false(knows(access, "ann", "a"));
    assert_true(knows(access, "bob", "b"));
    assert_int_equal(type(access, "r", "ann"), 0);
    assert_int_equal(type(access, "s", "ann"), 0);
    reload(&access, "bad", "r p ann bob\n* c\n", false, true);
    assert_int_equal(type(access, "r", "ann"), 0);
    assert_int_equal(type(access, "r", "bob"), 'p');
    assert_int_equal(type(access, "s", "ann"), 0);
    assert_int_equal(type(access, "s", "bob"), 'p');
    assert_int_equal(type(access, "t", "ann"), 'c');

    reload(&access, "bad", NULL, false, false); /* nothing changes */
    assert_true(knows(access, "bob", "b"));
    assert_int_equal(type(access, "s", "bob"), 'p');

    reload(&access, "ann " HASH_OF_A "\n", "r p ann bob\n* c\n", true, true);
    assert_true(knows(access, "ann", "a"));
    assert_false(knows(access, "bob", "b"));
    assert_int_equal(type(access, "r", "ann"), 'p');
    assert_int_equal(type(access, "s", "ann"), 'c');
    access_free(access);
}

/* What a line of rooms was, what it is while users is bad, and who may enter: ann, bob, and a member
 * past those that are read from the line. */
static void rooms_are_taken_and_not_added_while_users_is_bad(void **state) {
#define EIGHT_MORE "a b c d e f g h "
    static const struct {
        const char *old, *new;
        char ann, bob, late; /* types */
    } rows[] = {
        {"r p ann bob", "r p ann", 'p', 0, 0},
        {"r p ann", "r p ann bob", 'p', 0, 0},
        {"r p ann", "r p bob", 0, 0, 0},
        {"r p ann", "", 0, 0, 0},
        {"", "r p ann", 0, 0, 0},
        {"", "r c", 0, 0, 0},
        {"r c", "", 0, 0, 0},
        {"r c", "r c", 'c', 'c', 'c'},
        {"r c", "r p ann", 'p', 0, 0},         /* it closes */
        {"r c", "r d bob", 0, 'd', 0},         /* likewise */
        {"r c", "r p", 0, 0, 0},               /* likewise */
        {"r p ann", "r c", 'p', 0, 0},         /* it does not open yet */
        {"r d ann", "r c bob", 'd', 0, 0},     /* likewise */
        {"r p ann", "r d ann bob", 'p', 0, 0}, /* of another type, which waits */
        {"r c", "* c", 'c', 'c', 'c'},         /* by another line */
        {"* c", "r c", 'c', 'c', 'c'},         /* likewise */
        {"* c", "r p ann", 'p', 0, 0},         /* it has got a line, which is narrower */
        {"r p ann", "* c", 'p', 0, 0},         /* it has lost its line, and would be open to all */
        {"r p ann", "* p ann bob", 'p', 0, 0}, /* likewise */
        {"* p ann", "r c", 'p', 0, 0},         /* likewise, the other way */
        {"* p ann", "r p ann bob", 'p', 0, 0},
        {"* p ann bob", "* p bob", 0, 'p', 0},
        {"* c", "* p bob", 0, 'p', 0},
        {"* p bob", "* c", 0, 'p', 0},
        {"* c", "", 0, 0, 0},
        {"", "* c", 0, 0, 0},
        {"r p ann\n* c", "r p bob\n* c", 0, 0, 0}, /* nobody is left: not all others */
        {"r p\n* c", "* c", 0, 0, 0},
        {"* c", "r p\n* c", 0, 0, 0},
        {"r p " EIGHT_MORE "ann late", "r p " EIGHT_MORE "bob late", 0, 0, 'p'},
        {"r p " EIGHT_MORE "ann late", "r p late", 0, 0, 'p'},
        {"r c", "r p " EIGHT_MORE "ann late", 'p', 0, 'p'},
        {"r p " EIGHT_MORE "ann late", "r c", 'p', 0, 'p'},
        {"* p " EIGHT_MORE "ann late", "r d ann bob late", 'p', 0, 'p'},
        {"# r c\nr p ann", "# r c\n\n  r\tp\tann  bob \r", 'p', 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int again = 0; again < 2; again++) { /* with the same file once more */
            struct access *access = load(SLICE("ann " HASH_OF_A "\n"), slice_of(rows[i].old));
            for (int j = 0; j <= again; j++)
                reload(&access, j ? NULL : "ann\n", rows[i].new, false, true);
            if (type(access, "r", "ann") != rows[i].ann ||
                type(access, "r", "bob") != rows[i].bob ||
                type(access, "r", "late") != rows[i].late)
                fail_msg("%s -> %s: %d %d %d", rows[i].old, rows[i].new, type(access, "r", "ann"),
                         type(access, "r", "bob"), type(access, "r", "late"));
            assert_true(knows(access, "ann", "a"));
            access_free(access);
        }
}

/* At a start there is nothing in force that could stay: both are told of, and neither is loaded. */
static void nothing_is_in_force_without_both(void **state) {
    static const char *const texts[] = {"", "bad", NULL};
    (void)state;
    for (size_t users = 0; users < 3; users++)
        for (size_t rooms = 0; rooms < 3; rooms++) {
            struct access_reload result;
            write_files(texts[users], texts[rooms]);
            access_reload(fake.dir, NULL, &result);
            assert_int_equal(result.access != NULL, users == 0 && rooms == 0);
            assert_int_equal(result.why[ACCESS_USERS][0] == '\0', users == 0);
            assert_int_equal(result.why[ACCESS_ROOMS][0] == '\0', rooms == 0);
            access_free(result.access);
        }
}

/* ---- reloads against a model ---- */

/* What is in force, in full: bits of users by room, of which the last one has a line in no file, and
 * bits of tokens. */
enum { MODEL_USERS = 14, MODEL_ROOMS = 6 };
struct model {
    unsigned tokens;               /* of user n: bits 2n and 2n + 1 */
    unsigned members[MODEL_ROOMS]; /* all bits: they need not be listed */
    bool is_open[MODEL_ROOMS];     /* to everybody there is */
    bool has_line[MODEL_ROOMS];    /* not kept: of a file that is being written */
};
#define EVERYBODY ((1u << MODEL_USERS) - 1)

static uint64_t random_state;
static unsigned next_random(unsigned below) { /* xorshift64 */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % below;
}

/* Writes users, for which a token of user n is n or n + 100 as text; returns whether it is good. */
static bool write_random_users(struct model *said) {
    char text[8192] = "", hash[ACCESS_HASH_CHARS + 1], token[16];
    bool is_good = next_random(3) > 0;
    size_t size = 0;
    said->tokens = 0;
    for (unsigned bit = 0; bit < 2 * MODEL_USERS; bit++) {
        if (next_random(4) == 0) continue;
        snprintf(token, sizeof token, "%u", bit);
        access_hash_token(slice_of(token), hash);
        size += (size_t)sprintf(text + size, "u%u %s\n", bit / 2, hash);
        said->tokens |= 1u << bit;
    }
    if (!is_good) strcpy(text + size, "bad\n");
    write_file("users", slice_of(text));
    return is_good;
}

static bool write_random_rooms(struct model *said) {
    char text[8192] = "";
    bool is_good = next_random(3) > 0, has_default = next_random(2);
    size_t size = 0;
    for (int room = MODEL_ROOMS - 1; room >= 0; room--) { /* the last one's line is that of * */
        bool is_last = room == MODEL_ROOMS - 1;
        said->has_line[room] = is_last ? has_default : next_random(3) > 0;
        said->is_open[room] = next_random(3) == 0;
        said->members[room] = said->is_open[room] ? EVERYBODY : 0;
        if (!said->has_line[room] && is_last) {
            said->is_open[room] = false;
            said->members[room] = 0;
        } else if (!said->has_line[room]) {
            said->is_open[room] = said->is_open[MODEL_ROOMS - 1];
            said->members[room] = said->members[MODEL_ROOMS - 1];
        } else {
            size +=
                (size_t)(is_last ? sprintf(text + size, "*") : sprintf(text + size, "r%d", room));
            size += (size_t)sprintf(text + size, " %c", said->is_open[room] ? 'c' : 'p');
            for (unsigned user = 0; !said->is_open[room] && user < MODEL_USERS; user++) {
                if (next_random(5) == 0) continue;
                size += (size_t)sprintf(text + size, " u%u", user);
                said->members[room] |= 1u << user;
            }
            text[size++] = '\n';
        }
    }
    strcpy(text + size, is_good ? "" : "bad\n");
    write_file("rooms", slice_of(text));
    return is_good;
}

static void check_model(const struct access *access, const struct model *model) {
    char user[16], token[16], room[16];
    for (unsigned bit = 0; bit < 2 * MODEL_USERS; bit++) {
        snprintf(user, sizeof user, "u%u", bit / 2);
        snprintf(token, sizeof token, "%u", bit);
        assert_int_equal(knows(access, user, token), model->tokens >> bit & 1);
    }
    for (int i = 0; i < MODEL_ROOMS; i++) {
        snprintf(room, sizeof room, "r%d", i);
        assert_int_equal(type(access, room, "stranger"), model->is_open[i] ? 'c' : 0);
        for (unsigned n = 0; n < MODEL_USERS; n++) {
            snprintf(user, sizeof user, "u%u", n);
            char expected = model->is_open[i] ? 'c' : model->members[i] >> n & 1 ? 'p' : 0;
            assert_int_equal(type(access, room, user), expected);
        }
    }
}

static void agrees_with_a_model_of_reloads(void **state) {
    const char *seed = getenv("SEED");
    (void)state;
    random_state = (seed != NULL ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL)) | 1;
    print_message("SEED=%llu\n", (unsigned long long)random_state);
    struct access *access = load(SLICE(""), SLICE(""));
    struct model model = {0}, said = {0};
    unsigned counts[4] = {0};
    for (int i = 0; i < 3000; i++) {
        bool is_users_good = write_random_users(&said), is_rooms_good = write_random_rooms(&said);
        struct access_reload result;
        access_reload(fake.dir, access, &result);
        counts[is_users_good + 2 * is_rooms_good]++;
        assert_int_equal(result.access != NULL, is_users_good || is_rooms_good);
        if (result.access != NULL) {
            access_free(access);
            access = result.access;
        }
        bool is_whole = is_users_good && is_rooms_good;
        if (is_users_good) model.tokens = said.tokens & (is_whole ? ~0u : model.tokens);
        for (int room = 0; is_rooms_good && room < MODEL_ROOMS; room++) {
            model.members[room] = said.members[room] & (is_whole ? ~0u : model.members[room]);
            model.is_open[room] = said.is_open[room] && (is_whole || model.is_open[room]);
        }
        check_model(access, &model);
    }
    for (size_t i = 0; i < 4; i++) assert_true(counts[i] > 100);
    access_free(access);
}

/* ---- members without a token ---- */

static void counts_members_without_a_token(void **state) {
    static const struct {
        const char *rooms;
        unsigned count, line;
    } rows[] = {
        {"", 0, 0},
        {"r c\n* c\n", 0, 0},
        {"r p ann bob\nq d ann\n", 0, 0},
        {"r p ann bobb\n", 1, 1},
        {"# x\n\nr p ann\nq d ann ana\ns p an ana anna\n", 3, 4},
        {"r p x x x\nq p x\n", 1, 1},
        {"r c x\n", 1, 1},
        {"* p a b c d e f g h i ann j", 10, 1},
        {"#r p x\n\tr\tp\tx \r\n", 1, 2},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct access *access = load(
            SLICE("# x " HASH_OF_A "\n\nann " HASH_OF_A "\nann " HASH_OF_B "\n bob " HASH_OF_B),
            slice_of(rows[i].rooms));
        for (int collides = 0; collides < 2; collides++) {
            struct access_strangers strangers;
            fake.collides = collides;
            assert_int_equal(access_count_strangers(access, &strangers), 0);
            assert_int_equal(strangers.count, rows[i].count);
            assert_int_equal(strangers.line, rows[i].line);
        }
        fake.collides = false;
        access_free(access);
    }
}

static void counts_nobody_without_memory(void **state) {
    static char rooms[4096];
    struct access_strangers strangers;
    int n = 0;
    (void)state;
    print_room(rooms, "big p", "u", 200);
    struct access *access = load(SLICE(SEED_USER " " SEED_HASH "\n"), slice_of(rooms));
    for (int result = -1; result < 0; n++) {
        fake.allocations_left = n;
        result = access_count_strangers(access, &strangers);
        fake.allocations_left = -1;
    }
    assert_true(n > 2);
    assert_int_equal(strangers.count, 200);
    access_free(access);
}

/* ---- what can go wrong below ---- */

static void reads_files_in_pieces(void **state) {
    (void)state;
    for (size_t piece = 1; piece < 40; piece++) {
        fake.read_bytes = piece;
        fake.read_error = piece % 2 ? EINTR : 0;
        struct access *access = load(SLICE(SEED_USER " " SEED_HASH "\n"), SLICE("r p ann\n"));
        assert_true(knows(access, SEED_USER, SEED_TOKEN));
        assert_int_equal(type(access, "r", "ann"), 'p');
        access_free(access);
    }
}

/* The file ends where read says so, not where fstat did. */
static void reads_what_was_added_meanwhile(void **state) {
    char why[512] = "";
    (void)state;
    write_file("users", SLICE("first " SEED_HASH "\n"));
    write_file("rooms", SLICE("early c\n"));
    /* The first read is of users. */
    fake.growing_fd = open(path_of("rooms"), O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_true(fake.growing_fd >= 0);
    int fd = fake.growing_fd;
    struct access *access = access_load(fake.dir, why, sizeof why);
    close(fd);
    assert_non_null(access);
    assert_int_equal(type(access, "late", "ann"), 'c');
    access_free(access);

    write_file("users", SLICE("# nobody\n"));
    fake.growing_fd = open(path_of("users"), O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_true(fake.growing_fd >= 0);
    fd = fake.growing_fd;
    assert_refused("users:2: hashed token must be 44 characters, the base64 of 32 bytes");
    close(fd);
}

static void reports_errors_of_the_system(void **state) {
    char why[512] = "";
    (void)state;
    write_file("users", SLICE(""));
    write_file("rooms", SLICE(""));
    fake.read_error = EIO;
    assert_refused("users: Input/output error");
    fake.read_error = 0;

    assert_int_equal(truncate(path_of("rooms"), UINT32_MAX), 0); /* nothing is read of it */
    assert_refused("rooms: File too large");
    assert_int_equal(truncate(path_of("rooms"), 0), 0);

    fake.random_error = ENOSYS;
    assert_null(access_load(fake.dir, why, sizeof why));
    assert_string_equal(why, "no random bytes: Function not implemented");
    fake.random_error = EINTR;
    struct access *access = access_load(fake.dir, why, sizeof why);
    assert_non_null(access);
    access_free(access);
}

/* Loads with one allocation after the other failing, until none does. */
static void survives_a_lack_of_memory(void **state) {
    static char rooms[4096];
    char why[512];
    char *end = print_room(rooms, "big p", "u", 200);
    struct access *access = NULL;
    int n = 0, fd = lowest_free_fd();
    (void)state;
    write_file("users", SLICE(SEED_USER " " SEED_HASH "\n"));
    sprintf(end, "small c\n* d ann\n");
    write_file("rooms", slice_of(rooms));

    for (; access == NULL; n++) {
        strcpy(why, "?");
        fake.allocations_left = n;
        access = access_load(fake.dir, why, sizeof why);
        fake.allocations_left = -1;
        if (access == NULL) assert_string_equal(why, "out of memory");
        assert_true(n < 1000);
    }
    assert_true(n > 10);
    assert_int_equal(lowest_free_fd(), fd);
    assert_true(knows(access, SEED_USER, SEED_TOKEN));
    assert_int_equal(type(access, "big", "u199"), 'p');
    access_free(access);
}

/* Reloads with one allocation after the other failing, and one of the files bad. What comes of it is
 * nothing, told of the good file, too; or what has to be in force; or what the lack of memory has made
 * of the good file, one that is bad. */
static void survives_a_lack_of_memory_in_a_reload(void **state) {
    static char rooms[4096], new_rooms[4096];
    static struct access_reload result;
    char *end = print_room(rooms, "big p", "u", 200);
    (void)state;
    sprintf(end, "small c\n* d ann\n");
    end = print_room(new_rooms, "big p", "u", 100);
    sprintf(end, "late c\n* c\n");
    for (int bad = 0; bad < ACCESS_FILES; bad++) {
        bool is_done = false;
        int n = 0, fd = lowest_free_fd();
        for (; !is_done; n++) {
            struct access *old =
                load(SLICE(SEED_USER " " SEED_HASH "\nann " HASH_OF_A "\n"), slice_of(rooms));
            write_files(bad == ACCESS_USERS ? "bad"
                                            : SEED_USER " " SEED_HASH "\nbob " HASH_OF_B "\n",
                        bad == ACCESS_ROOMS ? "bad" : new_rooms);
            fake.allocations_left = n;
            access_reload(fake.dir, old, &result);
            is_done = fake.allocations_left > 0;
            fake.allocations_left = -1;
            const char *why_good = result.why[!bad];
            const struct access *now = result.access ? result.access : old;
            if (!result.access) assert_string_equal(why_good, "out of memory");
            if (*why_good) assert_string_equal(why_good, "out of memory");
            if (is_done) assert_non_null(result.access);
            assert_true(*result.why[bad] != '\0');
            bool has_taken = result.access != NULL;
            assert_true(knows(now, SEED_USER, SEED_TOKEN));
            assert_false(knows(now, "bob", "b"));
            assert_int_equal(knows(now, "ann", "a"), !has_taken || bad == ACCESS_USERS);
            assert_int_equal(type(now, "big", "u99"), 'p');
            assert_int_equal(type(now, "big", "u100"), has_taken && bad == ACCESS_USERS ? 0 : 'p');
            assert_int_equal(type(now, "late", "x"), 0);
            assert_int_equal(type(now, "late", "ann"), 'd');
            access_free(result.access);
            access_free(old);
            assert_true(n < 1000);
        }
        assert_true(n > 10);
        assert_int_equal(lowest_free_fd(), fd);
    }
}

static void loads_the_repositorys_data(void **state) {
    const char *dir = getenv("ROOMKEYD_DATA");
    char why[512] = "";
    (void)state;
    struct access *access = access_load(dir != NULL ? dir : "data", why, sizeof why);
    if (access == NULL) fail_msg("%s", why);
    assert_true(knows(access, SEED_USER, SEED_TOKEN));
    assert_int_equal(type(access, "wCiXndNp5NqNY3uCc", SEED_USER), 'c');
    assert_int_equal(type(access, "Qe3Wa3outaDMKzAZC", SEED_USER), 'p');
    assert_int_equal(type(access, "Qe3Wa3outaDMKzAZC", "somebody"), 0);
    access_free(access);
}

/* Under a second of processor time; sanitizers and builds without optimization are given more. */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MILLION_MAX_S 1.0
#else
#define MILLION_MAX_S 30.0
#endif

static void loads_a_million_rooms(void **state) {
    enum { ROOMS = 1000000, LINE_BYTES = 32 };
    (void)state;
    char *rooms = malloc((size_t)ROOMS * LINE_BYTES), room[LINE_BYTES];
    assert_non_null(rooms);
    size_t size = 0;
    for (int i = 0; i < ROOMS; i++)
        size += (size_t)sprintf(rooms + size, i % 2 ? "r%07d c\n" : "r%07d d alice bob\n", i);
    write_file("rooms", (struct slice){rooms, size});
    write_file("users", SLICE(""));
    free(rooms);

    char why[512] = "";
    clock_t begin = clock();
    struct access *access = access_load(fake.dir, why, sizeof why);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    if (access == NULL) fail_msg("%s", why);
    print_message("            %.3f s for a million rooms\n", seconds);
    for (int i = 0; i < ROOMS; i += 997) {
        sprintf(room, "r%07d", i);
        assert_int_equal(type(access, room, "bob"), i % 2 ? 'c' : 'd');
        assert_int_equal(type(access, room, "carol"), i % 2 ? 'c' : 0);
    }
    assert_int_equal(type(access, "r1000000", "bob"), 0);
    access_free(access);
    assert_true(seconds < MILLION_MAX_S);
}

#define TEST(function) cmocka_unit_test_setup(function, reset_fakes)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(hashes_tokens),
        TEST(reads_the_hashes_it_writes),
        TEST(knows_the_right_token_only),
        TEST(lets_a_user_have_several_tokens),
        TEST(tells_types_and_members),
        TEST(keeps_the_default_line_apart),
        TEST(finds_any_number_of_members),
        TEST(finds_ten_thousand_members),
        TEST(finds_many_rooms),
        TEST(loads_a_million_rooms),
        TEST(answers_by_bytes_not_by_hashes),
        TEST(passes_over_what_says_nothing),
        TEST(accepts_empty_files),
        TEST(accepts_the_longest_ids),
        TEST(refuses_words_that_cannot_be_meant),
        TEST(refuses_users_that_cannot_be),
        TEST(takes_words_that_are_ids),
        TEST(refuses_bad_users),
        TEST(refuses_bad_rooms),
        TEST(refuses_what_is_no_file),
        TEST(refuses_a_directory_that_cannot_be),
        TEST(takes_paths_as_long_as_there_are),
        TEST(can_hold_what_reads_back),
        TEST(loads_one_file),
        TEST(tokens_are_taken_and_not_added_while_rooms_is_bad),
        TEST(what_was_taken_away_comes_back_with_both_files_alone),
        TEST(rooms_are_taken_and_not_added_while_users_is_bad),
        TEST(nothing_is_in_force_without_both),
        TEST(agrees_with_a_model_of_reloads),
        TEST(counts_members_without_a_token),
        TEST(counts_nobody_without_memory),
        TEST(reads_files_in_pieces),
        TEST(reads_what_was_added_meanwhile),
        TEST(reports_errors_of_the_system),
        TEST(survives_a_lack_of_memory),
        TEST(survives_a_lack_of_memory_in_a_reload),
        TEST(loads_the_repositorys_data),
    };
    return cmocka_run_group_tests_name("access", tests, make_dir, remove_dir);
}
