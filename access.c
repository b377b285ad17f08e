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
 *     hash(RID, USERID) -> offset of the room's line (32 bits), offset of the name (32 bits)
 *
 * Both offsets are needed to make the answer exact: the hash alone is a guess, and the name alone
 * does not tell which line it stands on. So a file of 4 GiB is refused as too large.
 *
 * A text says all that is in force, even where that is not what its file says: while one of the two
 * files is bad, a reload leaves out of the other's text what was not in force (see "reloading"). So
 * there is one way to answer a question.
 *
 * The line for RID * stands in the index as any other, and answers for rooms that do not: a client
 * that asks for a room called * gets what any such room would get.
 *
 * Refused with file and line: IDs that are not 1 to 255 bytes of UTF-8 without a NUL; a user called
 * "-", which is how the log says that nobody is known; a HASHED_TOKEN that is not the one canonical
 * base64 of 32 bytes; any other TYPE; a room listed twice; and every word that cannot be meant as an
 * ID, such as the # of a comment at the end of a line, or "u1,u2": taken as IDs, the words of a
 * comment would be members, and a room would be open to whoever is called like one of them. No
 * message quotes a file: a token that somebody pasted into the wrong place must not reach a journal.
 */
#include "access.h"
#include "sha256.h"
#include "table.h"
#include "text.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MEMBERS 8
#define NOWHERE      SIZE_MAX

#define ID_RULE "must be 1 to 255 bytes of UTF-8 without NUL"
_Static_assert(ID_MAX_BYTES == 255, "ID_RULE says how long");

/* Compared with where there is no candidate: "-" is nobody's ID, and no base64 has a '-' in it. */
static const char NOBODY[] = "- --------------------------------------------";
_Static_assert(sizeof NOBODY - 1 == 2 + ACCESS_HASH_CHARS, "looks like a line of users");

struct file {
    char *bytes; /* owned; size of them are read */
    size_t size;
};

struct access {
    struct file users, rooms;
    struct table_key key;
    struct table users_index, rooms_index, members_index;
    size_t default_line; /* the offset of the line for RID *, or NOWHERE */
};

struct loader {
    struct access *access;
    const char *dir, *name; /* of the file that is being read */
    size_t line;            /* its number, from 1; 0: it is the file as a whole */
    struct text_why why;
};

/* A walk over the lines of a file. */
struct lines {
    struct slice rest;
    size_t number; /* of the line that next_line has just found, from 1 */
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

/* The file's text from an offset on. */
static struct slice text_at(const struct file *file, uint64_t offset) {
    return (struct slice){file->bytes + offset, file->size - (size_t)offset};
}

static struct lines lines_of(const struct file *file) {
    return (struct lines){.rest = text_at(file, 0)};
}

/* Finds the next line that is no comment, where text then begins. Returns false at the end. */
static bool next_line(struct lines *lines, struct slice *text) {
    while (lines->rest.n > 0) {
        *text = lines->rest;
        const char *newline = memchr(text->p, '\n', text->n);
        size_t size = newline != NULL ? (size_t)(newline - text->p) + 1 : text->n;
        lines->rest = (struct slice){text->p + size, text->n - size};
        lines->number++;
        if (text->p[0] != '#') return true;
    }
    return false;
}

/* The word that stands at an offset. */
static struct slice word_at(const struct file *file, uint64_t offset) {
    struct slice text = text_at(file, offset), word;
    access_next_word(&text, &word);
    return word;
}

/* ---- words that cannot be meant ---- */

#define COMMENT_RULE "a comment begins at the start of its line, with #"

/* What shows that a word is no ID. Rocket.Chat's IDs are letters and digits, at times with - _ . or
 * @, so each of these is a slip of somebody who writes the file: of a comment, a list, a sentence,
 * or a text that was copied from a page. */
enum { FIRST = 1, LAST = 2, ANYWHERE = 4 };
static const struct {
    unsigned where;    /* in the word */
    const char *parts; /* with spaces between them */
    const char *reason;
} mistakes[] = {
    {FIRST, "# // /* \u2013 \u2014", COMMENT_RULE},
    {FIRST | LAST,
     "' \" ` ( ) [ ] { } < > \u00AB \u00BB \u2018 \u2019 \u201A \u201C \u201D \u201E \u2039 \u203A",
     "an ID stands without quotes and brackets"},
    {ANYWHERE, ", ; | \uFF0C \uFF1B \u3001",
     "words are separated by spaces or tabs, and nothing else"},
    {LAST, ": \uFF1A", "an ID does not end in a colon"},
    {ANYWHERE, "*", "* stands alone, as a room ID: there are no patterns"},
    {ANYWHERE, "\u00A0 \u200B \u200E \u200F \u202F \u2060 \u3000 \uFEFF",
     "an invisible character, or a blank that is neither a space nor a tab"},
};

static bool has_part(struct slice word, struct slice part, unsigned where) {
    if (part.n > word.n) return false;
    struct slice first = {word.p, part.n}, last = {word.p + word.n - part.n, part.n};
    return (where & FIRST && slice_equal(first, part)) ||
           (where & LAST && slice_equal(last, part)) ||
           (where & ANYWHERE && memmem(word.p, word.n, part.p, part.n) != NULL);
}

/* Whether a word is made of these characters alone. */
static bool is_made_of(struct slice word, const char *characters) {
    for (size_t i = 0; i < word.n; i++)
        if (word.p[i] == '\0' || strchr(characters, word.p[i]) == NULL) return false;
    return true;
}

/* Why a word cannot be meant as an ID, or NULL. Nearly every word is of letters and digits alone,
 * and is done with at once. */
static const char *mistake_in(struct slice word) {
    size_t plain = 0;
    while (plain < word.n && isalnum((unsigned char)word.p[plain])) plain++;
    if (plain == word.n) return NULL;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        struct slice parts = slice_of(mistakes[i].parts), part;
        while (access_next_word(&parts, &part))
            if (has_part(word, part, mistakes[i].where)) return mistakes[i].reason;
    }
    return is_made_of(word, "!#$%&+/:=?\\^~") ? "punctuation alone is no ID" : NULL;
}

/* Why a word cannot be the ID of a user, or NULL. -- is a comment to many. */
static const char *mistake_in_user(struct slice word) {
    if (!slice_is_id(word)) return "user ID " ID_RULE;
    if (is_made_of(word, "-")) return "user ID must not be dashes alone";
    return mistake_in(word);
}

const char *access_mistake(struct slice id) {
    struct slice text = id, word;
    const char *mistake = mistake_in_user(id);
    if (mistake != NULL) return mistake;
    bool is_word = access_next_word(&text, &word) && slice_equal(word, id);
    return is_word ? NULL : "an ID is one word, without blanks and line ends";
}

/* ---- tokens ---- */

/* All ones if a six-bit number is past a limit, otherwise 0. */
static unsigned past(unsigned x, unsigned limit) { return (limit - x) >> 16; }

/* The character for a six-bit number in the standard alphabet (RFC 4648, section 4), by arithmetic: a
 * table would be indexed by the secret, and a cache remembers which of its lines were touched. */
static char base64_char(unsigned x) {
    unsigned c = x + 'A';
    c += past(x, 25) & ('a' - 'Z' - 1);
    c -= past(x, 51) & ('z' + 1 - '0');
    c -= past(x, 61) & ('9' + 1 - '+');
    c += past(x, 62) & ('/' - '+' - 1);
    return (char)c;
}

void access_hash_token(struct slice token, char hash[ACCESS_HASH_CHARS + 1]) {
    unsigned char digest[SHA256_BYTES + 1] = {0}; /* a multiple of three bytes */
    char *out = hash;
    sha256(token.p, token.n, digest);
    for (size_t i = 0; i < sizeof digest; i += 3) {
        unsigned bits = (unsigned)digest[i] << 16 | (unsigned)digest[i + 1] << 8 | digest[i + 2];
        for (unsigned shift = 24; shift > 0; shift -= 6)
            *out++ = base64_char(bits >> (shift - 6) & 63);
    }
    hash[ACCESS_HASH_CHARS - 1] = '='; /* the last six bits were all padding */
    hash[ACCESS_HASH_CHARS] = '\0';
}

/* The last character has two bits that stand for nothing and must be zero (RFC 4648, section 3.5):
 * one in four of the alphabet. Letters are those of ASCII: nobody sets a locale. */
bool access_is_hash(struct slice word) {
    if (word.n != ACCESS_HASH_CHARS || word.p[ACCESS_HASH_CHARS - 1] != '=') return false;
    for (size_t i = 0; i < ACCESS_HASH_CHARS - 1; i++)
        if (!isalnum((unsigned char)word.p[i]) && word.p[i] != '+' && word.p[i] != '/')
            return false;
    return memchr("AEIMQUYcgkosw048", word.p[ACCESS_HASH_CHARS - 2], 16) != NULL;
}

static bool is_same_hash(const char *a, const char *b) {
    int difference = 0;
    for (size_t i = 0; i < ACCESS_HASH_CHARS; i++) difference |= a[i] ^ b[i];
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
    bool more = true, found = false;
    while (more && !found) {
        more = table_next(&search, &offset);
        struct slice line = more ? text_at(&access->users, offset) : SLICE(NOBODY);
        found = is_users_line(line, user, hash);
    }
    return found;
}

bool access_knows_user(const struct access *access, struct slice user, struct slice token) {
    char hash[ACCESS_HASH_CHARS + 1];
    access_hash_token(token, hash);
    if (!slice_is_id(user)) user = SLICE("-"); /* nobody's, but as much work as anybody's */
    return has_user(access, user, hash);
}

/* The offset of the room's line, or NOWHERE. */
static size_t find_room(const struct access *access, struct slice room) {
    struct table_search search = table_find(&access->rooms_index, table_hash(access->key, room));
    uint64_t offset;
    while (table_next(&search, &offset))
        if (slice_equal(word_at(&access->rooms, offset), room)) return (size_t)offset;
    return NOWHERE;
}

/* Whether user is one of the later members on a room's line; hash is that of the pair of IDs. */
static bool has_member(const struct access *access, uint64_t hash, size_t line, struct slice user) {
    struct table_search search = table_find(&access->members_index, hash);
    uint64_t member;
    while (table_next(&search, &member))
        if (member >> 32 == line && slice_equal(word_at(&access->rooms, (uint32_t)member), user))
            return true;
    return false;
}

/* The offset of the line that speaks for a room, its own or the one of all others, or NOWHERE. */
static size_t line_for(const struct access *access, struct slice room) {
    size_t line = find_room(access, room);
    return line != NOWHERE ? line : access->default_line;
}

/* The type of the room on a line if user may access it, otherwise 0. */
static char type_on_line(const struct access *access, size_t line, struct slice user) {
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

char access_room_type(const struct access *access, struct slice room, struct slice user) {
    size_t line = line_for(access, room);
    return line != NOWHERE ? type_on_line(access, line, user) : 0;
}

/* ---- loading ---- */

static int fail(const struct loader *loader, const char *reason) {
    if (loader->line == 0)
        return text_fail(loader->why, "%s/%s: %s", loader->dir, loader->name, reason);
    return text_fail(loader->why, "%s/%s:%zu: %s", loader->dir, loader->name, loader->line,
                     reason);
}

static int fail_memory(struct loader *loader) { return text_fail(loader->why, "out of memory"); }

/* Reads fd to its end, wherever that is by then: fstat's size is only a guess at the memory. */
static int read_all(struct loader *loader, struct file *file, int fd) {
    struct stat info;
    if (fstat(fd, &info) < 0) return fail(loader, strerror(errno));
    if (!S_ISREG(info.st_mode)) return fail(loader, "not a regular file");

    /* The byte more lets read() report the end. */
    for (uint64_t space = (uint64_t)info.st_size + 1;; space *= 2) {
        if (space > UINT32_MAX) return fail(loader, strerror(EFBIG));
        char *bytes = realloc(file->bytes, (size_t)space);
        if (bytes == NULL) return fail_memory(loader);
        file->bytes = bytes;
        while (file->size < space) {
            ssize_t n = read(fd, bytes + file->size, (size_t)space - file->size);
            if (n == 0) return 0;
            if (n < 0 && errno != EINTR) return fail(loader, strerror(errno));
            file->size += n > 0 ? (size_t)n : 0;
        }
    }
}

static int read_file(struct loader *loader, struct file *file) {
    char path[PATH_MAX + 1]; /* one that has to be cut off is too long for open as well */
    snprintf(path, sizeof path, "%s/%s", loader->dir, loader->name);
    /* O_NONBLOCK: opening a FIFO, which is refused a moment later, must not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(loader, strerror(errno));
    int result = read_all(loader, file, fd);
    close(fd);
    return result;
}

static int add_entry(struct loader *loader, struct table *table, uint64_t hash, uint64_t value) {
    if (table_reserve(table, hash) < 0) return fail_memory(loader);
    table_insert(table, hash, value);
    return 0;
}

static int check_user(struct loader *loader, struct slice user) {
    const char *mistake = mistake_in_user(user);
    return mistake == NULL ? 0 : fail(loader, mistake);
}

static int check_room(struct loader *loader, struct slice rid) {
    if (!slice_is_id(rid)) return fail(loader, "room ID " ID_RULE);
    const char *mistake = slice_equal(rid, SLICE("*")) ? NULL : mistake_in(rid);
    return mistake == NULL ? 0 : fail(loader, mistake);
}

/* Where another word than an ID has to stand, this is the likeliest mistake. */
static bool is_comment(struct slice word) { return word.n > 0 && word.p[0] == '#'; }

/* Adds the line of users that text begins with. */
static int add_user(struct loader *loader, struct slice text) {
    struct access *access = loader->access;
    size_t line = (size_t)(text.p - access->users.bytes);
    struct slice user, hashed, more;

    if (!access_next_word(&text, &user)) return 0;
    if (check_user(loader, user) < 0) return -1;
    access_next_word(&text, &hashed);
    access_next_word(&text, &more);
    if (is_comment(hashed) || is_comment(more)) return fail(loader, COMMENT_RULE);
    if (hashed.n == 0 || more.n > 0) return fail(loader, "line must be USERID HASHED_TOKEN");
    if (!access_is_hash(hashed))
        return fail(loader, "hashed token must be 44 characters, the base64 of 32 bytes");
    if (has_user(access, user, hashed.p)) return 0;
    return add_entry(loader, &access->users_index, hash_pair(access, user, hashed), line);
}

static int add_member(struct loader *loader, size_t line, struct slice rid, struct slice user) {
    struct access *access = loader->access;
    uint64_t hash = hash_pair(access, rid, user);
    uint64_t member = (uint64_t)line << 32 | (uint64_t)(user.p - access->rooms.bytes);
    if (has_member(access, hash, line, user)) return 0;
    return add_entry(loader, &access->members_index, hash, member);
}

static int fail_duplicate(struct loader *loader, size_t first) {
    char reason[64];
    size_t number = 1;
    for (size_t i = 0; i < first; i++) number += loader->access->rooms.bytes[i] == '\n';
    snprintf(reason, sizeof reason, "room is already on line %zu", number);
    return fail(loader, reason);
}

/* Adds the line of rooms that text begins with. */
static int add_room(struct loader *loader, struct slice text) {
    struct access *access = loader->access;
    size_t line = (size_t)(text.p - access->rooms.bytes);
    struct slice rid, type, member;

    if (!access_next_word(&text, &rid)) return 0;
    if (check_room(loader, rid) < 0) return -1;
    if (!access_next_word(&text, &type)) return fail(loader, "line must be RID TYPE [USERID...]");
    if (is_comment(type)) return fail(loader, COMMENT_RULE);
    if (type.n != 1 || memchr("cpd", type.p[0], 3) == NULL)
        return fail(loader, "type must be c, p or d");
    size_t first = find_room(access, rid);
    if (first != NOWHERE) return fail_duplicate(loader, first);
    if (add_entry(loader, &access->rooms_index, table_hash(access->key, rid), line) < 0) return -1;
    for (size_t i = 0; access_next_word(&text, &member); i++) {
        if (check_user(loader, member) < 0) return -1;
        if (i < LINE_MEMBERS || type.p[0] == 'c') continue;
        if (add_member(loader, line, rid, member) < 0) return -1;
    }
    return 0;
}

static int index_users(struct loader *loader) {
    struct lines lines = lines_of(&loader->access->users);
    for (struct slice text; next_line(&lines, &text);) {
        loader->line = lines.number;
        if (add_user(loader, text) < 0) return -1;
    }
    return 0;
}

static int index_rooms(struct loader *loader) {
    struct lines lines = lines_of(&loader->access->rooms);
    for (struct slice text; next_line(&lines, &text);) {
        loader->line = lines.number;
        if (add_room(loader, text) < 0) return -1;
    }
    loader->access->default_line = find_room(loader->access, SLICE("*"));
    return 0;
}

/* Reads a file whole. */
static int read_text(struct loader *loader, const char *name, struct file *file) {
    loader->name = name;
    loader->line = 0;
    if (read_file(loader, file) < 0) return -1;
    bool is_marked = file->size >= 3 && memcmp(file->bytes, "\xEF\xBB\xBF", 3) == 0;
    loader->line = 1;
    return is_marked ? fail(loader, "begins with a byte order mark") : 0;
}

static int load_users(struct loader *loader, const char *name) {
    return read_text(loader, name, &loader->access->users) < 0 ? -1 : index_users(loader);
}

static int load_rooms(struct loader *loader, const char *name) {
    return read_text(loader, name, &loader->access->rooms) < 0 ? -1 : index_rooms(loader);
}

/* Makes what knows nobody and no room yet. */
static int make_empty(struct loader *loader) {
    struct access *access = loader->access = calloc(1, sizeof *access);
    if (access == NULL) return fail_memory(loader);
    access->default_line = NOWHERE;
    while (getrandom(&access->key, sizeof access->key, 0) != (ssize_t)sizeof access->key)
        if (errno != EINTR) return text_fail(loader->why, "no random bytes: %s", strerror(errno));
    return 0;
}

/* Loads the files with these names; NULL: none. */
static struct access *load(struct loader *loader, const char *users, const char *rooms) {
    if (make_empty(loader) < 0 || (users && load_users(loader, users) < 0) ||
        (rooms && load_rooms(loader, rooms) < 0)) {
        access_free(loader->access);
        return NULL;
    }
    return loader->access;
}

struct access *access_load(const char *dir, char *why, size_t why_size) {
    struct loader loader = {.dir = dir, .why = {why, why_size}};
    return load(&loader, "users", "rooms");
}

struct access *access_load_one(const char *dir, const char *name, char *why, size_t why_size) {
    struct loader loader = {.dir = dir, .why = {why, why_size}};
    return name[0] == 'u' ? load(&loader, name, NULL) : load(&loader, NULL, name);
}

static void drop_users(struct access *access) {
    table_free(&access->users_index);
    free(access->users.bytes);
    access->users = (struct file){NULL, 0};
}

static void drop_rooms(struct access *access) {
    table_free(&access->rooms_index);
    table_free(&access->members_index);
    free(access->rooms.bytes);
    access->rooms = (struct file){NULL, 0};
    access->default_line = NOWHERE;
}

void access_free(struct access *access) {
    if (access == NULL) return;
    drop_users(access);
    drop_rooms(access);
    free(access);
}

/* ---- reloading ----
 *
 * While one file is bad, the good one takes away and does not add: in force is then what was in
 * force before and stands in the good file, too. To ask an old and a new state each time would do
 * for one reload that fails; after a second one there would be three states to ask, and so on.
 * Instead, the two become one, as text:
 *
 *     users    the new text, where a line that was not in force has become a comment
 *     rooms    a line for each room that both states know, with the members whom both let in
 *
 * and the bad file's text is the one that was in force. So there is one state again, from which the
 * next reload starts: it need not know what was in force earlier, because that can only have been
 * more. A token that one reload takes away and the next one brings back is therefore new, and waits
 * until both files are good. That is the safe way: whoever was put out stays out until an operator
 * has seen to it that both files say what they should.
 */

static int copy_text(struct loader *loader, struct file *to, const struct file *from) {
    to->bytes = malloc(from->size + 1); /* a byte even of nothing */
    if (to->bytes == NULL) return fail_memory(loader);
    memcpy(to->bytes, from->bytes, from->size);
    to->size = from->size;
    return 0;
}

/* `rooms` is bad: takes from users what was not in force, and the rooms that were. */
static int narrow_users(struct loader *loader, const struct access *old) {
    struct access *access = loader->access;
    struct lines lines = lines_of(&access->users);
    for (struct slice text; next_line(&lines, &text);) {
        char *line = access->users.bytes + (text.p - access->users.bytes);
        struct slice user, hashed;
        if (!access_next_word(&text, &user)) continue;
        access_next_word(&text, &hashed);
        if (!has_user(old, user, hashed.p)) *line = '#';
    }
    table_free(&access->users_index);
    if (index_users(loader) < 0) return -1;
    assert(access->users_index.count <= old->users_index.count);
    drop_rooms(access);
    return copy_text(loader, &access->rooms, &old->rooms) < 0 ? -1 : index_rooms(loader);
}

/* The text of rooms that two states have in common, in the making. */
struct common {
    const struct access *old, *new;
    struct file rooms;
    size_t space; /* bytes of rooms that are allocated */
};

/* The members on a line of rooms, as text that begins with them; and its type. */
static struct slice members_at(const struct access *access, size_t line, struct slice *type) {
    struct slice text = text_at(&access->rooms, line), rid;
    access_next_word(&text, &rid);
    access_next_word(&text, type);
    return text;
}

static void put(struct common *common, struct slice bytes) {
    assert(common->rooms.bytes != NULL && bytes.n <= common->space - common->rooms.size);
    memcpy(common->rooms.bytes + common->rooms.size, bytes.p, bytes.n);
    common->rooms.size += bytes.n;
}

/* Makes sure that so many bytes can be put. */
static int make_space(struct loader *loader, struct common *common, size_t size) {
    if (size <= common->space - common->rooms.size) return 0;
    uint64_t space = 2 * (uint64_t)common->space + size;
    loader->line = 0; /* it is not one line that is too long */
    if (space > UINT32_MAX) return fail(loader, strerror(EFBIG));
    char *bytes = realloc(common->rooms.bytes, (size_t)space);
    if (bytes == NULL) return fail_memory(loader);
    common->rooms.bytes = bytes;
    common->space = (size_t)space;
    return 0;
}

/* Adds a line for a room, with those whom a line of each state lets in. The members come from the old
 * state's line, or, if that is open to all, from the new one's. (Only that may be longer than what was
 * read: where many rooms were open, each by a line of its own, and the new file has one long line for
 * all others instead.) Where one state has no line for the room, it has none for all others either,
 * and so neither will the result: nobody gets in there. */
static int put_common(struct loader *loader, struct common *common, struct slice rid,
                      size_t old_line, size_t new_line) {
    if (old_line == NOWHERE || new_line == NOWHERE) return 0;
    const struct access *from = common->old, *other = common->new;
    struct slice type, text = members_at(from, old_line, &type), member;
    size_t other_line = new_line;
    if (type.p[0] == 'c') {
        from = common->new, other = common->old, other_line = old_line;
        text = members_at(from, new_line, &type);
    }
    const char *newline = memchr(text.p, '\n', text.n);
    size_t size = newline != NULL ? (size_t)(newline - text.p) : text.n;
    if (make_space(loader, common, rid.n + sizeof " c\n" + size) < 0) return -1;
    put(common, rid);
    put(common, SLICE(" "));
    put(common, type);
    while (access_next_word(&text, &member)) {
        if (type_on_line(other, other_line, member) == 0) continue;
        put(common, SLICE(" "));
        put(common, member);
    }
    put(common, SLICE("\n"));
    return 0;
}

static int put_all_common(struct loader *loader, struct common *common) {
    const struct access *old = common->old, *new = common->new;
    struct slice text, rid;
    for (struct lines lines = lines_of(&old->rooms); next_line(&lines, &text);) {
        size_t line = (size_t)(text.p - old->rooms.bytes);
        if (!access_next_word(&text, &rid)) continue;
        if (put_common(loader, common, rid, line, line_for(new, rid)) < 0) return -1;
    }
    for (struct lines lines = lines_of(&new->rooms); next_line(&lines, &text);) {
        size_t line = (size_t)(text.p - new->rooms.bytes);
        if (!access_next_word(&text, &rid) || find_room(old, rid) != NOWHERE) continue;
        if (put_common(loader, common, rid, old->default_line, line) < 0) return -1;
    }
    return 0;
}

/* `users` is bad: takes from rooms what was not in force, and the users who were. */
static int narrow_rooms(struct loader *loader, const struct access *old) {
    struct access *access = loader->access;
    struct common common = {.old = old, .new = access};
    if (make_space(loader, &common, access->rooms.size + 1) < 0 ||
        put_all_common(loader, &common) < 0) {
        free(common.rooms.bytes);
        return -1;
    }
    drop_rooms(access);
    access->rooms = common.rooms;
    if (index_rooms(loader) < 0) return -1;
    assert(access->default_line == NOWHERE || old->default_line != NOWHERE);
    drop_users(access);
    return copy_text(loader, &access->users, &old->users) < 0 ? -1 : index_users(loader);
}

void access_reload(const char *dir, const struct access *old, struct access_reload *reload) {
    struct text_why users = {reload->why[ACCESS_USERS], ACCESS_WHY_BYTES};
    struct text_why rooms = {reload->why[ACCESS_ROOMS], ACCESS_WHY_BYTES};
    struct loader loader = {.dir = dir, .why = users};
    *users.text = *rooms.text = '\0';
    reload->access = NULL;
    int result = make_empty(&loader);
    if (result == 0) {
        bool has_users = load_users(&loader, "users") == 0;
        loader.why = rooms;
        bool has_rooms = load_rooms(&loader, "rooms") == 0;
        if (has_users) loader.why = users; /* to be told if what was read cannot be kept */
        if (!has_users || !has_rooms) result = -1;
        if (old && has_users && !has_rooms) result = narrow_users(&loader, old);
        if (old && has_rooms && !has_users) result = narrow_rooms(&loader, old);
    } else {
        snprintf(rooms.text, rooms.size, "%s", users.text);
    }
    if (result == 0)
        reload->access = loader.access;
    else
        access_free(loader.access);
}

/* ---- counting strangers ---- */

/* Whether a word stands in a table of words of a file. */
static bool has_word(const struct access *access, const struct table *table,
                     const struct file *file, struct slice word) {
    struct table_search search = table_find(table, table_hash(access->key, word));
    uint64_t at;
    while (table_next(&search, &at))
        if (slice_equal(word_at(file, at), word)) return true;
    return false;
}

/* Adds a word of a file to a table of that file's words. Returns whether it is new, or -1 if memory
 * is short. */
static int note_word(const struct access *access, struct table *table, const struct file *file,
                     struct slice word) {
    uint64_t hash = table_hash(access->key, word);
    if (has_word(access, table, file, word)) return 0;
    if (table_reserve(table, hash) < 0) return -1;
    table_insert(table, hash, (uint64_t)(word.p - file->bytes));
    return 1;
}

int access_count_strangers(const struct access *access, struct access_strangers *strangers) {
    struct table known = {0}, seen = {0}; /* of users; of rooms */
    struct slice text, word;
    int is_new = 0;
    *strangers = (struct access_strangers){0};
    for (struct lines lines = lines_of(&access->users); is_new >= 0 && next_line(&lines, &text);)
        if (access_next_word(&text, &word))
            is_new = note_word(access, &known, &access->users, word);
    for (struct lines lines = lines_of(&access->rooms); is_new >= 0 && next_line(&lines, &text);) {
        access_next_word(&text, &word);
        access_next_word(&text, &word); /* its room and type */
        while (is_new >= 0 && access_next_word(&text, &word)) {
            if (has_word(access, &known, &access->users, word)) continue;
            is_new = note_word(access, &seen, &access->rooms, word);
            if (is_new > 0 && strangers->count++ == 0) strangers->line = lines.number;
        }
    }
    table_free(&known);
    table_free(&seen);
    return is_new < 0 ? -1 : 0;
}
