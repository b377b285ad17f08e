/*
 * access.c: two text files, kept as they were read, with an index over each.
 *
 *     users     d26x6zSkaPSe5gCyy 5fHuh80T...V80= \n bob 47DEQpj8...FAU= \n ...
 *               ^                                      ^
 *     index     hash(USERID, HASHED_TOKEN) -> offset of the line
 *
 *     rooms     wCiXndNp5NqNY3uCc c \n Qe3Wa3outaDMKzAZC p d26x6zSkaPSe5gCyy \n ...
 *               ^                      ^
 *     index     hash(RID) -> offset of the line
 *
 * No line is ever copied or taken apart into structs: the index finds a line, and its words are
 * read from the text again. A room costs its line and about 17 bytes.
 *
 * Tokens. `users` is looked up by user and token together, so an unknown user and a known one's
 * wrong token are the same event: no candidate. Even then one comparison is made, with a line that
 * nobody can match, so that the right token takes the same work as well. What touches a digest
 * (base64, the comparison) neither branches nor indexes memory by it.
 *
 * Members. The first LINE_MEMBERS of a room are compared straight from its line, which is in the
 * cache by then: that serves direct rooms and small groups without a byte of index. The others of a
 * large room stand in an index of their own, so that nobody waits while 10,000 names are read:
 *
 *     hash(RID, USERID) -> number of a membership -> offsets of the room's line and of the name
 *
 * Both offsets are needed to make the answer exact: the hash alone is a guess, and the name alone
 * does not tell which line it stands on.
 *
 * The line for RID * is not in the index. It answers for rooms that are not there, and a client
 * that asks for a room called * gets what any such room would get.
 *
 * Refused with file and line: IDs that are not 1 to 255 bytes of UTF-8 without a NUL; a user called
 * "-", which is how the log says that nobody is known; a HASHED_TOKEN that is not the one canonical
 * base64 of 32 bytes; any other TYPE; a room listed twice. No message quotes a file: a token that
 * somebody pasted into the wrong place must not reach a journal.
 */
#include "access.h"
#include "sha256.h"
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MEMBERS 8

#define ID_RULE "must be 1 to 255 bytes of UTF-8 without NUL"
_Static_assert(ID_MAX_BYTES == 255, "ID_RULE says how long");

/* Compared with where there is no candidate: "-" is nobody's ID, and no base64 has a '-' in it. */
static const char NOBODY[] = "- --------------------------------------------";
_Static_assert(sizeof NOBODY - 1 == 2 + ACCESS_HASH_CHARS, "looks like a line of users");

struct file {
    const char *name;
    char *bytes; /* owned; size of them are read */
    size_t size;
};

struct membership {
    size_t line, name; /* offsets in rooms */
};

struct access {
    struct file users, rooms;
    struct table_key key;
    struct table users_index, rooms_index, members_index;
    struct membership *members; /* what members_index points at */
    size_t member_count, member_space;
    bool has_default;
    size_t default_line; /* the offset of the line for RID *, if there is one */
};

struct loader {
    struct access *access;
    const char *dir;
    const char *users, *rooms; /* the files' names; NULL: not to be read */
    const struct file *file;   /* the one that is being read */
    size_t line;               /* its number, from 1 */
    char *why;
    size_t why_size;
};

/* ---- words ---- */

/* SP, HTAB, and a CR that ends the line. */
static bool is_blank(struct slice text) {
    if (text.p[0] == '\r') return text.n == 1 || text.p[1] == '\n';
    return text.p[0] == ' ' || text.p[0] == '\t';
}

bool access_next_word(struct slice *text, struct slice *word) {
    while (text->n > 0 && is_blank(*text)) text->p++, text->n--;
    word->p = text->p;
    size_t plain = slice_plain(*text, ' ', ' ');
    *text = (struct slice){text->p + plain, text->n - plain};
    /* All that ends a word is a space or below, which most bytes are not. */
    while (text->n > 0 &&
           ((unsigned char)text->p[0] > ' ' || (text->p[0] != '\n' && !is_blank(*text))))
        text->p++, text->n--;
    word->n = (size_t)(text->p - word->p);
    return word->n > 0;
}

bool access_can_hold(struct slice id) {
    struct slice text = id, word;
    return slice_is_id(id) && access_next_word(&text, &word) && slice_equal(word, id) &&
           id.p[0] != '#' && !slice_equal(id, SLICE("-")) && !slice_equal(id, SLICE("*"));
}

static void skip_line(struct slice *text) {
    const char *newline = text->n > 0 ? memchr(text->p, '\n', text->n) : NULL;
    size_t size = newline != NULL ? (size_t)(newline - text->p) + 1 : text->n;
    text->p += size;
    text->n -= size;
}

/* The file's text from an offset on. */
static struct slice text_at(const struct file *file, uint64_t offset) {
    return (struct slice){file->bytes + offset, file->size - (size_t)offset};
}

/* ---- tokens ---- */

/* Of eight numbers below 64, a byte each: 1 where a number is past limit, 0 elsewhere. */
static uint64_t past(uint64_t x, unsigned limit) {
    return (x + EIGHT(127 - limit)) >> 7 & EIGHT(1);
}

/* The standard alphabet (RFC 4648, section 4) as arithmetic: a table would be indexed by the
 * secret, and a cache remembers which of its lines were touched. Eight at a time, none of which
 * carries into its neighbour: no sum leaves a byte. */
static uint64_t base64_chars(uint64_t x) {
    return x + EIGHT('A') + past(x, 25) * ('a' - 'Z' - 1) - past(x, 51) * ('z' + 1 - '0') -
           past(x, 61) * ('9' + 1 - '+') + past(x, 62) * ('/' - '+' - 1);
}

void access_hash_token(struct slice token, char hash[ACCESS_HASH_CHARS + 1]) {
    /* Twelve times three bytes make six times eight characters. */
    unsigned char digest[SHA256_BYTES + 4] = {0};
    uint64_t chars[6];
    unsigned char *x = (unsigned char *)chars;
    sha256(token.p, token.n, digest);
    for (size_t i = 0; i < sizeof digest; i += 3) {
        unsigned bits = (unsigned)digest[i] << 16 | (unsigned)digest[i + 1] << 8 | digest[i + 2];
        for (unsigned j = 0; j < 4; j++) *x++ = bits >> (18 - 6 * j) & 63;
    }
    for (size_t i = 0; i < 6; i++) chars[i] = base64_chars(chars[i]);
    memcpy(hash, chars, ACCESS_HASH_CHARS);
    hash[ACCESS_HASH_CHARS - 1] = '='; /* the last six bits were all padding */
    hash[ACCESS_HASH_CHARS] = '\0';
}

static bool is_base64_char(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' ||
           c == '/';
}

/* The last character has two bits that stand for nothing and must be zero (RFC 4648, section 3.5):
 * one in four of the alphabet. */
bool access_is_hash(struct slice word) {
    if (word.n != ACCESS_HASH_CHARS || word.p[ACCESS_HASH_CHARS - 1] != '=') return false;
    for (size_t i = 0; i < ACCESS_HASH_CHARS - 1; i++)
        if (!is_base64_char(word.p[i])) return false;
    return memchr("AEIMQUYcgkosw048", word.p[ACCESS_HASH_CHARS - 2], 16) != NULL;
}

static bool is_same_hash(const char *a, const char *b) {
    uint32_t x, y, difference = 0;
    for (size_t i = 0; i < ACCESS_HASH_CHARS; i += sizeof x) {
        memcpy(&x, a + i, sizeof x);
        memcpy(&y, b + i, sizeof y);
        difference |= x ^ y;
    }
    return difference == 0;
}

/* ---- looking up ---- */

/* The hash of two words, of at most ID_MAX_BYTES bytes each. */
static uint64_t hash_pair(const struct access *access, struct slice a, struct slice b) {
    char pair[2 * ID_MAX_BYTES + 1];
    memcpy(pair, a.p, a.n);
    pair[a.n] = '\t';
    memcpy(pair + a.n + 1, b.p, b.n);
    return table_hash(access->key, (struct slice){pair, a.n + 1 + b.n});
}

static bool is_users_line(struct slice line, struct slice user, const char *hash) {
    struct slice name, hashed;
    access_next_word(&line, &name);
    access_next_word(&line, &hashed);
    bool same_hash = is_same_hash(hashed.p, hash);
    return slice_equal(name, user) && same_hash;
}

/* One comparison for no candidate as for one; a second candidate takes two keys whose hashes agree
 * in 40 bits, and nobody can aim for that. */
static bool has_user(const struct access *access, struct slice user, const char *hash) {
    struct slice hashed = {hash, ACCESS_HASH_CHARS};
    struct table_search search = table_find(&access->users_index, hash_pair(access, user, hashed));
    uint64_t offset;
    bool more, found;
    do {
        more = table_next(&search, &offset);
        struct slice line = more ? text_at(&access->users, offset) : SLICE(NOBODY);
        found = is_users_line(line, user, hash);
    } while (more && !found);
    return found;
}

bool access_knows_user(const struct access *access, struct slice user, struct slice token) {
    char hash[ACCESS_HASH_CHARS + 1];
    access_hash_token(token, hash);
    if (!slice_is_id(user)) user = SLICE("-"); /* nobody's, but as much work as anybody's */
    return has_user(access, user, hash);
}

/* Whether there is a line for the room; *line is its offset. */
static bool find_room(const struct access *access, struct slice room, size_t *line) {
    struct table_search search = table_find(&access->rooms_index, table_hash(access->key, room));
    uint64_t offset;

    while (table_next(&search, &offset)) {
        struct slice text = text_at(&access->rooms, offset), name;
        access_next_word(&text, &name);
        if (slice_equal(name, room)) {
            *line = (size_t)offset;
            return true;
        }
    }
    return false;
}

/* Whether user is one of the later members on a room's line; hash is that of the pair of IDs. */
static bool has_member(const struct access *access, uint64_t hash, size_t line, struct slice user) {
    struct table_search search = table_find(&access->members_index, hash);
    uint64_t number;

    while (table_next(&search, &number)) {
        const struct membership *member = &access->members[number];
        struct slice text = text_at(&access->rooms, member->name), name;
        access_next_word(&text, &name);
        if (member->line == line && slice_equal(name, user)) return true;
    }
    return false;
}

char access_room_type(const struct access *access, struct slice room, struct slice user) {
    size_t line = access->default_line;
    if (!find_room(access, room, &line) && !access->has_default) return 0;

    struct slice text = text_at(&access->rooms, line), rid, type, member;
    access_next_word(&text, &rid);
    access_next_word(&text, &type);
    if (type.p[0] == 'c') return 'c';
    for (int i = 0; i < LINE_MEMBERS; i++) {
        if (!access_next_word(&text, &member)) return 0;
        if (slice_equal(member, user)) return type.p[0];
    }
    if (!slice_is_id(user)) return 0; /* too long for hash_pair, perhaps */
    return has_member(access, hash_pair(access, rid, user), line, user) ? type.p[0] : 0;
}

/* ---- loading ---- */

static int fail(struct loader *loader, const char *reason) {
    snprintf(loader->why, loader->why_size, "%s/%s: %s", loader->dir, loader->file->name, reason);
    return -1;
}

static int fail_line(struct loader *loader, const char *reason) {
    snprintf(loader->why, loader->why_size, "%s/%s:%zu: %s", loader->dir, loader->file->name,
             loader->line, reason);
    return -1;
}

static int fail_memory(struct loader *loader) {
    snprintf(loader->why, loader->why_size, "out of memory");
    return -1;
}

/* Reads fd to its end, wherever that is by then: fstat's size is only a guess at the memory. */
static int read_all(struct loader *loader, struct file *file, int fd) {
    struct stat info;
    if (fstat(fd, &info) < 0) return fail(loader, strerror(errno));
    if (!S_ISREG(info.st_mode)) return fail(loader, "not a regular file");
    if ((uintmax_t)info.st_size > SIZE_MAX / 4) return fail(loader, strerror(EFBIG));

    size_t space = (size_t)info.st_size + 1; /* the byte more lets read() report the end */
    for (;;) {
        char *bytes = realloc(file->bytes, space);
        if (bytes == NULL) return fail_memory(loader);
        file->bytes = bytes;
        while (file->size < space) {
            ssize_t n = read(fd, bytes + file->size, space - file->size);
            if (n == 0) return 0;
            if (n < 0 && errno != EINTR) return fail(loader, strerror(errno));
            file->size += n > 0 ? (size_t)n : 0;
        }
        space *= 2;
    }
}

static int read_file(struct loader *loader, struct file *file, const char *name) {
    char path[PATH_MAX];
    file->name = name;
    loader->file = file;
    loader->line = 0;

    int size = snprintf(path, sizeof path, "%s/%s", loader->dir, name);
    if (size < 0 || (size_t)size >= sizeof path) return fail(loader, strerror(ENAMETOOLONG));
    /* O_NONBLOCK: opening a FIFO, which is refused a moment later, must not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(loader, strerror(errno));
    int result = read_all(loader, file, fd);
    close(fd);
    return result;
}

static int add_entry(struct loader *loader, struct table *table, uint64_t hash, size_t value) {
    if (table_reserve(table, hash) < 0) return fail_memory(loader);
    table_insert(table, hash, value);
    return 0;
}

static int check_user(struct loader *loader, struct slice user) {
    if (!slice_is_id(user)) return fail_line(loader, "user ID " ID_RULE);
    if (slice_equal(user, SLICE("-"))) return fail_line(loader, "user ID must not be -");
    return 0;
}

/* Adds the line of users that text begins with, and takes its words off text. */
static int add_user(struct loader *loader, struct slice *text) {
    struct access *access = loader->access;
    size_t line = (size_t)(text->p - access->users.bytes);
    struct slice user, hashed, more;

    if (!access_next_word(text, &user)) return 0;
    if (!access_next_word(text, &hashed) || access_next_word(text, &more))
        return fail_line(loader, "line must be USERID HASHED_TOKEN");
    if (check_user(loader, user) < 0) return -1;
    if (!access_is_hash(hashed))
        return fail_line(loader, "hashed token must be 44 characters, the base64 of 32 bytes");
    if (has_user(access, user, hashed.p)) return 0;
    return add_entry(loader, &access->users_index, hash_pair(access, user, hashed), line);
}

static int add_member(struct loader *loader, size_t line, struct slice rid, struct slice user) {
    struct access *access = loader->access;
    uint64_t hash = hash_pair(access, rid, user);
    if (has_member(access, hash, line, user)) return 0;

    if (access->member_count == access->member_space) {
        size_t space = access->member_space > 0 ? 2 * access->member_space : 64;
        struct membership *members = reallocarray(access->members, space, sizeof *members);
        if (members == NULL) return fail_memory(loader);
        access->members = members;
        access->member_space = space;
    }
    size_t name = (size_t)(user.p - access->rooms.bytes);
    access->members[access->member_count] = (struct membership){line, name};
    return add_entry(loader, &access->members_index, hash, access->member_count++);
}

static int fail_duplicate(struct loader *loader, size_t first) {
    char reason[64];
    size_t number = 1;
    for (size_t i = 0; i < first; i++) number += loader->access->rooms.bytes[i] == '\n';
    snprintf(reason, sizeof reason, "room is already on line %zu", number);
    return fail_line(loader, reason);
}

/* Adds a room's RID, which stands at the offset line. */
static int add_rid(struct loader *loader, size_t line, struct slice rid) {
    struct access *access = loader->access;
    size_t first = access->default_line;
    bool is_default = slice_equal(rid, SLICE("*"));

    if (is_default ? access->has_default : find_room(access, rid, &first))
        return fail_duplicate(loader, first);
    if (!is_default)
        return add_entry(loader, &access->rooms_index, table_hash(access->key, rid), line);
    access->has_default = true;
    access->default_line = line;
    return 0;
}

/* Adds the line of rooms that text begins with, and takes its words off text. */
static int add_room(struct loader *loader, struct slice *text) {
    size_t line = (size_t)(text->p - loader->access->rooms.bytes);
    struct slice rid, type, member;

    if (!access_next_word(text, &rid)) return 0;
    if (!access_next_word(text, &type))
        return fail_line(loader, "line must be RID TYPE [USERID...]");
    if (!slice_is_id(rid)) return fail_line(loader, "room ID " ID_RULE);
    if (type.n != 1 || memchr("cpd", type.p[0], 3) == NULL)
        return fail_line(loader, "type must be c, p or d");
    if (add_rid(loader, line, rid) < 0) return -1;
    for (size_t i = 0; access_next_word(text, &member); i++) {
        if (check_user(loader, member) < 0) return -1;
        if (i < LINE_MEMBERS || type.p[0] == 'c') continue;
        if (add_member(loader, line, rid, member) < 0) return -1;
    }
    return 0;
}

/* Calls add for each line of the file that is being read. */
static int add_lines(struct loader *loader, int (*add)(struct loader *, struct slice *)) {
    struct slice text = text_at(loader->file, 0);
    bool is_marked = text.n >= 3 && memcmp(text.p, "\xEF\xBB\xBF", 3) == 0;
    for (; text.n > 0; skip_line(&text)) {
        loader->line++;
        if (is_marked) return fail_line(loader, "begins with a byte order mark");
        if (text.p[0] != '#' && add(loader, &text) < 0) return -1;
    }
    return 0;
}

static int draw_key(struct loader *loader, struct table_key *key) {
    ssize_t n;
    do n = getrandom(key, sizeof *key, 0);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof *key) return 0;
    snprintf(loader->why, loader->why_size, "no random bytes: %s", strerror(errno));
    return -1;
}

static int load(struct loader *loader) {
    struct access *access = loader->access;
    if (draw_key(loader, &access->key) < 0) return -1;
    if (table_init(&access->users_index, TABLE_MANY_PARTS) < 0 ||
        table_init(&access->rooms_index, TABLE_MANY_PARTS) < 0 ||
        table_init(&access->members_index, TABLE_MANY_PARTS) < 0)
        return fail_memory(loader);
    if (loader->users &&
        (read_file(loader, &access->users, loader->users) < 0 || add_lines(loader, add_user) < 0))
        return -1;
    if (loader->rooms &&
        (read_file(loader, &access->rooms, loader->rooms) < 0 || add_lines(loader, add_room) < 0))
        return -1;
    return 0;
}

static struct access *make_access(struct loader *loader) {
    loader->access = calloc(1, sizeof *loader->access);
    if (loader->access == NULL) {
        fail_memory(loader);
        return NULL;
    }
    if (load(loader) < 0) {
        access_free(loader->access);
        return NULL;
    }
    return loader->access;
}

struct access *access_load(const char *dir, char *why, size_t why_size) {
    struct loader loader = {
        .dir = dir, .users = "users", .rooms = "rooms", .why = why, .why_size = why_size};
    return make_access(&loader);
}

struct access *access_load_one(const char *dir, const char *name, char *why, size_t why_size) {
    struct loader loader = {.dir = dir, .why = why, .why_size = why_size};
    *(name[0] == 'u' ? &loader.users : &loader.rooms) = name;
    return make_access(&loader);
}

void access_free(struct access *access) {
    if (access == NULL) return;
    table_free(&access->users_index);
    table_free(&access->rooms_index);
    table_free(&access->members_index);
    free(access->members);
    free(access->users.bytes);
    free(access->rooms.bytes);
    free(access);
}
