/*
 * fuzz_access.c: what people may write into `users` and `rooms`, against access.c.
 *
 *     input:  [ the file users ][ a line "%%" ][ the file rooms ]
 *
 * Nobody can breed the hash of a token, so a word "=TOKEN" in users is replaced by its hash before
 * the file is written:
 *
 *     alice =secret   -->   alice K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=
 *
 * The oracle is a model that reads both files again for every question, with no index and no limit
 * on how slow it may be. It agrees on whether the files are good, on the first line that is not,
 * and on the answer to every question that the words in the files give rise to.
 */
#include "access.h"
#include "fuzz.h"

#define QUESTIONS 12 /* words asked about, of each file */

/* ---- The model: lines and words -------------------------------------------------------------- */

struct line {
    unsigned number;
    struct slice words[3]; /* the first ones; empty where there are fewer */
    struct slice rest;     /* what follows the first two */
};

static struct slice next_word(struct slice *text) {
    while (text->n > 0 && (*text->p == ' ' || *text->p == '\t')) text->p++, text->n--;
    struct slice word = {text->p, 0};
    while (word.n < text->n && word.p[word.n] != ' ' && word.p[word.n] != '\t') word.n++;
    *text = (struct slice){text->p + word.n, text->n - word.n};
    return word;
}

/* The next line with a word on it that is no comment. Returns false at the end. */
static bool next_line(struct slice *text, struct line *line) {
    while (text->n > 0) {
        struct slice whole = fuzz_cut(text, SLICE("\n"));
        line->number++;
        if (whole.n > 0 && whole.p[0] == '#') continue;
        if (whole.n > 0 && whole.p[whole.n - 1] == '\r') whole.n--;
        for (int i = 0; i < 3; i++) {
            if (i == 2) line->rest = whole;
            line->words[i] = next_word(&whole);
        }
        if (line->words[0].n > 0) return true;
    }
    return false;
}

/* ---- The model: what makes a file good ------------------------------------------------------- */

static bool stands_at(struct slice word, size_t at, const char *part) {
    struct slice sought = slice_of(part);
    return at <= word.n && sought.n <= word.n - at && memcmp(word.p + at, sought.p, sought.n) == 0;
}

static bool holds(struct slice word, const char *part) {
    for (size_t at = 0; at < word.n; at++)
        if (stands_at(word, at, part)) return true;
    return false;
}

static bool ends_in(struct slice word, const char *part) {
    return strlen(part) <= word.n && stands_at(word, word.n - strlen(part), part);
}

/* Whether somebody who wrote this meant no ID: a comment of some language, a list, a sentence, what
 * a word processor or a page makes of an ID, or nothing but signs. */
static bool is_slip(struct slice word) {
    static const char *const comments[] = {"#", "//", "/*", "\xE2\x80\x93", "\xE2\x80\x94"};
    static const char *const around[] = {"'",
                                         "\"",
                                         "`",
                                         "(",
                                         ")",
                                         "[",
                                         "]",
                                         "{",
                                         "}",
                                         "<",
                                         ">",
                                         "\xC2\xAB",
                                         "\xC2\xBB",
                                         "\xE2\x80\x98",
                                         "\xE2\x80\x99",
                                         "\xE2\x80\x9A",
                                         "\xE2\x80\x9C",
                                         "\xE2\x80\x9D",
                                         "\xE2\x80\x9E",
                                         "\xE2\x80\xB9",
                                         "\xE2\x80\xBA"};
    static const char *const within[] = {",",
                                         ";",
                                         "|",
                                         "*",
                                         "\xEF\xBC\x8C",
                                         "\xEF\xBC\x9B",
                                         "\xE3\x80\x81",
                                         "\xC2\xA0",
                                         "\xE2\x80\x8B",
                                         "\xE2\x80\x8E",
                                         "\xE2\x80\x8F",
                                         "\xE2\x80\xAF",
                                         "\xE2\x81\xA0",
                                         "\xE3\x80\x80",
                                         "\xEF\xBB\xBF"};
    for (size_t i = 0; i < sizeof comments / sizeof *comments; i++)
        if (stands_at(word, 0, comments[i])) return true;
    for (size_t i = 0; i < sizeof around / sizeof *around; i++)
        if (stands_at(word, 0, around[i]) || ends_in(word, around[i])) return true;
    for (size_t i = 0; i < sizeof within / sizeof *within; i++)
        if (holds(word, within[i])) return true;
    if (ends_in(word, ":") || ends_in(word, "\xEF\xBC\x9A")) return true;
    for (size_t i = 0; i < word.n; i++)
        if (memchr("!#$%&+/:=?\\^~", word.p[i], 13) == NULL) return false;
    return true;
}

static bool is_room(struct slice word) {
    return slice_is_id(word) && (slice_equal(word, SLICE("*")) || !is_slip(word));
}

static bool is_user(struct slice word) {
    size_t dashes = 0;
    while (dashes < word.n && word.p[dashes] == '-') dashes++;
    return slice_is_id(word) && dashes < word.n && !is_slip(word);
}

/* The base64 of 32 bytes (RFC 4648, 4): 43 characters and a '='. The last of the 43 stands for four
 * bits and two zeros. */
static bool is_hash(struct slice word) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t last = 0;
    if (word.n != ACCESS_HASH_CHARS || word.p[43] != '=') return false;
    for (size_t i = 0; i < 43; i++) {
        const char *at = memchr(alphabet, word.p[i], 64);
        if (at == NULL) return false;
        last = (size_t)(at - alphabet);
    }
    return last % 4 == 0;
}

/* A byte order mark: editors of another system begin a file with it, and it would be read as a part
 * of the first ID. */
static bool is_marked(struct slice file) {
    return file.n >= 3 && memcmp(file.p, "\xEF\xBB\xBF", 3) == 0;
}

/* Returns the number of the first bad line, or 0. */
static unsigned first_bad_user(struct slice users) {
    struct line line = {.number = 0};
    if (is_marked(users)) return 1;
    while (next_line(&users, &line))
        if (line.words[2].n > 0 || !is_user(line.words[0]) || !is_hash(line.words[1]))
            return line.number;
    return 0;
}

static bool has_room_above(struct slice rooms, const struct line *below) {
    struct line line = {.number = 0};
    while (next_line(&rooms, &line) && line.number < below->number)
        if (slice_equal(line.words[0], below->words[0])) return true;
    return false;
}

static unsigned first_bad_room(struct slice rooms) {
    struct line line = {.number = 0};
    if (is_marked(rooms)) return 1;
    for (struct slice rest = rooms; next_line(&rest, &line);) {
        struct slice type = line.words[1], member;
        bool is_type = type.n == 1 && memchr("cpd", type.p[0], 3) != NULL;
        if (!is_room(line.words[0]) || !is_type || has_room_above(rooms, &line)) return line.number;
        while ((member = next_word(&line.rest)).n > 0)
            if (!is_user(member)) return line.number;
    }
    return 0;
}

/* ---- The model: who may what ----------------------------------------------------------------- */

static bool knows_user(struct slice users, struct slice user, struct slice token) {
    char hash[ACCESS_HASH_CHARS + 1];
    struct line line;
    access_hash_token(token, hash);
    while (next_line(&users, &line))
        if (slice_equal(line.words[0], user) && slice_equal(line.words[1], slice_of(hash)))
            return true;
    return false;
}

static char room_type(struct slice rooms, struct slice room, struct slice user) {
    struct line line, found = {.number = 0};
    bool is_listed = false, is_known = false;
    for (struct slice rest = rooms; next_line(&rest, &line);) {
        bool is_default = slice_equal(line.words[0], SLICE("*"));
        bool is_room = !is_default && slice_equal(line.words[0], room);
        if (is_room || (is_default && !is_listed)) found = line;
        is_listed = is_listed || is_room;
        is_known = is_known || is_room || is_default;
    }
    if (!is_known) return 0;
    if (found.words[1].p[0] == 'c') return 'c';
    for (struct slice member; (member = next_word(&found.rest)).n > 0;)
        if (slice_equal(member, user)) return found.words[1].p[0];
    return 0;
}

/* ---- Questions ------------------------------------------------------------------------------- */

struct words {
    struct slice word[QUESTIONS + 3];
    size_t n;
};

/* Some of the words of a text, the last ones, and some that nobody is called. */
static void collect(struct words *words, struct slice text) {
    static const char *const strange[] = {"", "-", "*"};
    size_t seen = 0;
    for (struct line line; next_line(&text, &line);) {
        struct slice rest = line.rest;
        for (struct slice word = line.words[0]; word.n > 0; word = next_word(&rest))
            words->word[seen++ % QUESTIONS] = word;
    }
    words->n = seen < QUESTIONS ? seen : QUESTIONS;
    for (size_t i = 0; i < 3; i++) words->word[words->n++] = slice_of(strange[i]);
}

/* The words "=TOKEN" of users as it was before they were replaced. */
static void collect_tokens(struct words *tokens, struct slice users) {
    for (struct line line; next_line(&users, &line);)
        if (line.words[1].n > 1 && line.words[1].p[0] == '=' && tokens->n < QUESTIONS)
            tokens->word[tokens->n++] = (struct slice){line.words[1].p + 1, line.words[1].n - 1};
    tokens->word[tokens->n++] = SLICE("");
    tokens->word[tokens->n++] = SLICE("nobody's");
}

struct files {
    struct slice users_template, users, rooms;
};

static void check_answers(const struct access *access, const struct files *files) {
    struct words users = {.n = 0}, rooms = {.n = 0}, tokens = {.n = 0};
    collect(&users, files->users);
    collect(&rooms, files->rooms);
    collect_tokens(&tokens, files->users_template);
    for (size_t i = 0; i < users.n; i++)
        for (size_t j = 0; j < tokens.n; j++)
            REQUIRE(access_knows_user(access, users.word[i], tokens.word[j]) ==
                    (is_user(users.word[i]) &&
                     knows_user(files->users, users.word[i], tokens.word[j])));
    for (size_t i = 0; i < rooms.n; i++)
        for (size_t j = 0; j < rooms.n + users.n; j++) {
            struct slice room = rooms.word[i];
            struct slice user = j < rooms.n ? rooms.word[j] : users.word[j - rooms.n];
            if (!slice_is_id(room)) continue;
            REQUIRE(access_room_type(access, room, user) == room_type(files->rooms, room, user));
        }
}

/* What access_load says when it does not load: the right line of the right file, and nothing that
 * stands in it. */
static void check_refusal(const char *dir, const char *why, const struct files *files) {
    char expected[FUZZ_PATH_BYTES + 32];
    unsigned user = first_bad_user(files->users), room = first_bad_room(files->rooms);
    REQUIRE(user > 0 || room > 0);
    snprintf(expected, sizeof expected, "%s/%s:%u: ", dir, user > 0 ? "users" : "rooms",
             user > 0 ? user : room);
    REQUIRE(strncmp(why, expected, strlen(expected)) == 0);
    for (const char *p = why; *p != '\0'; p++) REQUIRE(*p >= ' ' && *p <= '~');
}

/* ---- The target ------------------------------------------------------------------------------ */

/* Writes the file users with hashes in the places of tokens to *text. */
static void add_hashes(struct fuzz_text *text, struct slice template) {
    while (template.n > 0) {
        struct slice before = fuzz_cut(&template, SLICE(" ="));
        fuzz_add(text, before);
        bool has_token = template.p > before.p + before.n;
        size_t n = 0;
        while (n < template.n && strchr(" \t\r\n", template.p[n]) == NULL) n++;
        if (!has_token) continue;
        char hash[ACCESS_HASH_CHARS + 1];
        access_hash_token((struct slice){template.p, n}, hash);
        fuzz_add(text, SLICE(" "));
        fuzz_add(text, slice_of(hash));
        template = (struct slice){template.p + n, template.n - n};
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_text users = {0};
    struct files files = {.rooms = {(const char *)data, size}};
    files.users_template = fuzz_cut(&files.rooms, SLICE("%%\n"));
    add_hashes(&users, files.users_template);
    files.users = (struct slice){users.p, users.n};

    char dir[FUZZ_PATH_BYTES], path[FUZZ_PATH_BYTES + 32], why[256] = "";
    fuzz_make_dir(dir);
    fuzz_write_file(dir, "users", files.users);
    fuzz_write_file(dir, "rooms", files.rooms);
    struct access *access = access_load(dir, why, sizeof why);
    snprintf(path, sizeof path, "%s/users", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/rooms", dir);
    unlink(path);
    rmdir(dir);

    if (access == NULL) {
        check_refusal(dir, why, &files);
    } else {
        REQUIRE(first_bad_user(files.users) == 0 && first_bad_room(files.rooms) == 0);
        check_answers(access, &files);
    }
    access_free(access);
    free(users.p);
    return 0;
}
