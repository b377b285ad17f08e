/*
 * fuzz_json.c: bytes that claim to be the JSON body of a set, against api.c.
 *
 *     input: the body --> http.c --> api.c --> reply, and what the store is given
 *
 * Two oracles:
 * - jansson, a strict parser of RFC 8259. Where it reads the body, the whole reply follows from the
 *   value it reads, and it has to be api.c's, rid and keyID to the byte. Where it does not, api.c
 *   has to say "Invalid JSON". Where the two differ on purpose stands in `deliberate` and below it.
 * - Itself. "Invalid JSON: WHY at byte N" promises that the first N bytes are not to blame: cut off
 *   there, the body is JSON, or has an unexpected end, or at most a lone surrogate, since those are
 *   looked for only once the grammar holds.
 */
#include "api.h"
#include "fuzz.h"

#include <jansson.h>

#define MAX_DEPTH 64 /* levels of nesting that are taken */

/* ---- Fakes: everybody may set every room ----------------------------------------------------- */

struct store {
    struct fuzz_text room, key; /* what was set; empty if nothing was */
};

bool access_knows_user(const struct access *access, struct slice user, struct slice token) {
    (void)access, (void)user, (void)token;
    return true;
}

char access_room_type(const struct access *access, struct slice room, struct slice user) {
    (void)access, (void)user;
    REQUIRE(slice_is_id(room));
    return 'c';
}

enum store_result store_set(struct store *store, const struct store_record *record,
                            uint64_t *ticket) {
    REQUIRE(store->room.n == 0 && slice_is_id(record->room) && slice_is_id(record->key));
    fuzz_add(&store->room, record->room);
    fuzz_add(&store->key, record->key);
    *ticket = 1;
    return STORE_OK;
}

enum store_result store_get(struct store *store, struct slice room, char key[ID_MAX_BYTES],
                            size_t *key_size) {
    (void)store, (void)room, (void)key, (void)key_size;
    return STORE_NONE;
}

bool store_has_failed(const struct store *store) {
    (void)store;
    return false;
}

bool store_has_lost_log(const struct store *store) { return store_has_failed(store); }

uint64_t store_key_ids(const struct store *store) { return store_has_failed(store); }

uint64_t store_log_bytes(const struct store *store) { return store_has_failed(store); }

/* ---- Asking api.c ---------------------------------------------------------------------------- */

struct answer {
    struct store store;
    struct api_reply reply;
};

/* A set with this body, which ends where the memory ends. */
static void ask(struct answer *answer, struct slice body) {
    char head[256];
    int n = snprintf(head, sizeof head,
                     "POST /api/v1/e2e.setRoomKeyID HTTP/1.1\r\nHost: h\r\nX-User-Id: alice\r\n"
                     "X-Auth-Token: secret\r\nContent-Length: %zu\r\n\r\n",
                     body.n);
    struct fuzz_text text = {0};
    fuzz_add(&text, (struct slice){head, (size_t)n});
    fuzz_add(&text, body);
    char *buffer = fuzz_copy((struct slice){text.p, text.n});

    struct api api = {.store = &answer->store};
    struct http_request request;
    http_request_init(&request);
    REQUIRE(http_parse(&request, buffer, &text.n) == HTTP_DONE);
    api_answer(&api, &request, &answer->reply);
    free(buffer);
    free(text.p);
}

static void free_answer(struct answer *answer) {
    free(answer->store.room.p);
    free(answer->store.key.p);
}

#define SUCCESS      "{\"success\":true}"
#define INVALID_JSON "{\"success\":false,\"error\":\"Invalid JSON: "
#define MATCH_ERROR  "{\"success\":false,\"error\":\"Match error: Expected string, got "
#define INVALID_ROOM                                                                               \
    "{\"success\":false,\"error\":\"Invalid room [error-invalid-room]\","                          \
    "\"errorType\":\"error-invalid-room\",\"details\":{\"method\":\"canAccessRoom\"}}"
#define INVALID_KEY_ID                                                                             \
    "{\"success\":false,\"error\":\"Invalid key ID: 1 to 255 bytes, no NUL "                       \
    "[error-invalid-key-id]\",\"errorType\":\"error-invalid-key-id\"}"

/* Takes a beginning off text. Returns whether it was there. */
static bool begins(struct slice *text, struct slice beginning) {
    if (text->n < beginning.n || memcmp(text->p, beginning.p, beginning.n) != 0) return false;
    *text = (struct slice){text->p + beginning.n, text->n - beginning.n};
    return true;
}

/* ---- What jansson says ----------------------------------------------------------------------- */

static const struct {
    enum json_error_code code;
    const char *why; /* api.c may take such a body; it may also find fault with what follows */
} deliberate[] = {
    {json_error_numeric_overflow, "RFC 8259, 6: a number is a number, however large"},
    {json_error_null_byte_in_key, "RFC 8259, 7: \\u0000 is a character of a name like others"},
};

static bool is_deliberate(const json_error_t *error) {
    for (size_t i = 0; i < sizeof deliberate / sizeof *deliberate; i++)
        if (json_error_code(error) == deliberate[i].code) return true;
    return false;
}

/* The code unit of a \uXXXX at the beginning of text, or 0. */
static unsigned long code_unit(struct slice text) {
    char digits[5] = "";
    if (text.n < 6 || text.p[0] != '\\' || text.p[1] != 'u') return 0;
    memcpy(digits, text.p + 2, 4);
    return strspn(digits, "0123456789abcdefABCDEF") == 4 ? strtoul(digits, NULL, 16) : 0;
}

#define STAND_IN      "\\ue000" /* in a text that jansson reads */
#define STAND_IN_UTF8 "\xEE\x80\x80"

/* RFC 8259, 8.2: a lone surrogate is within the grammar, and api.c refuses it in rid and keyID
 * alone. jansson refuses it anywhere, so it is shown another character in its place. */
static void replace_lone_surrogates(char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (text[i] != '\\') continue;
        unsigned long unit = code_unit((struct slice){text + i, n - i});
        unsigned long next = n - i > 6 ? code_unit((struct slice){text + i + 6, n - i - 6}) : 0;
        if (unit >= 0xD800 && unit <= 0xDBFF && next >= 0xDC00 && next <= 0xDFFF)
            i += 11;
        else if (unit >= 0xD800 && unit <= 0xDFFF)
            memcpy(text + i, STAND_IN, 6);
        else
            i++;
    }
}

static bool has_stand_in(const json_t *string) {
    return json_is_string(string) &&
           memmem(json_string_value(string), json_string_length(string), STAND_IN_UTF8, 3) != NULL;
}

/* RFC 8259, 9 allows a limit; jansson's own is 2048. The text is JSON. */
static bool is_too_deep(struct slice text) {
    unsigned depth = 0, deepest = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];
        if (c == '"') in_string = !in_string;
        if (in_string && c == '\\') i++;
        if (in_string) continue;
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        deepest = depth > deepest ? depth : deepest;
    }
    return deepest > MAX_DEPTH;
}

static const char *type_name(const json_t *value) {
    if (value == NULL) return "undefined";
    if (json_is_null(value)) return "null";
    if (json_is_number(value)) return "number";
    return json_is_boolean(value) ? "boolean" : "object";
}

static struct slice string_of(const json_t *value) {
    return (struct slice){json_string_value(value), json_string_length(value)};
}

/* Checks the reply against the value that jansson has read. */
static void check_value(const json_t *value, const struct answer *answer) {
    const json_t *room = json_object_get(value, "rid"), *key = json_object_get(value, "keyID");
    struct slice reply = answer->reply.http.body;
    if (has_stand_in(room) || has_stand_in(key)) {
        REQUIRE(begins(&reply, SLICE(INVALID_JSON)) && begins(&reply, SLICE("lone surrogate ")));
    } else if (!json_is_string(room) || !json_is_string(key)) {
        const char *type = type_name(json_is_string(room) ? key : room);
        REQUIRE(begins(&reply, SLICE(MATCH_ERROR)) && begins(&reply, slice_of(type)));
        REQUIRE(slice_equal(reply, SLICE("\"}")));
    } else if (!slice_is_id(string_of(room))) {
        REQUIRE(slice_equal(reply, SLICE(INVALID_ROOM)));
    } else if (!slice_is_id(string_of(key))) {
        REQUIRE(slice_equal(reply, SLICE(INVALID_KEY_ID)));
    } else {
        const struct store *store = &answer->store;
        REQUIRE(slice_equal(reply, SLICE(SUCCESS)) && answer->reply.ticket == 1);
        REQUIRE(slice_equal((struct slice){store->room.p, store->room.n}, string_of(room)));
        REQUIRE(slice_equal((struct slice){store->key.p, store->key.n}, string_of(key)));
        return;
    }
    REQUIRE(answer->store.room.n == 0 && answer->reply.ticket == 0);
}

/* ---- "Invalid JSON: WHY at byte N" ----------------------------------------------------------- */

static size_t offset_in(struct slice reply) {
    struct slice why = fuzz_cut(&reply, SLICE(" at byte "));
    REQUIRE(begins(&why, SLICE(INVALID_JSON)) && why.n > 0 && reply.n > 0);
    return strtoul(reply.p, NULL, 10);
}

static void check_offset(struct slice body, struct slice reply) {
    struct answer answer = {.reply.ticket = 0};
    size_t at = offset_in(reply);
    REQUIRE(at <= body.n);
    body.n = at;
    ask(&answer, body);
    struct slice text = answer.reply.http.body;
    if (begins(&text, SLICE(INVALID_JSON)) && !begins(&text, SLICE("lone surrogate at byte ")))
        REQUIRE(begins(&text, SLICE("unexpected end at byte ")) && strtoul(text.p, NULL, 10) == at);
    free_answer(&answer);
}

/* Reads body as jansson does, and compares. */
static void compare(struct slice body, const struct answer *answer) {
    struct slice reply = answer->reply.http.body;
    bool is_invalid = begins(&reply, SLICE(INVALID_JSON));
    /* jansson passes over a NUL behind a literal or a number; in RFC 8259 it stands nowhere. */
    bool has_nul = memchr(body.p, '\0', body.n) != NULL;
    char *text = fuzz_copy(body);
    json_error_t error;
    replace_lone_surrogates(text, body.n);
    json_t *value = json_loadb(text, body.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (value != NULL && !is_too_deep(body) && !has_nul)
        check_value(value, answer);
    else
        REQUIRE(is_invalid || (value == NULL && !has_nul && is_deliberate(&error)));
    json_decref(value);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct slice body = {(const char *)data, size};
    struct answer answer = {.reply.ticket = 0};
    bool has_stand_ins = size > 0 && (memmem(body.p, body.n, STAND_IN_UTF8, 3) != NULL ||
                                      memmem(body.p, body.n, STAND_IN, 6) != NULL ||
                                      memmem(body.p, body.n, "\\uE000", 6) != NULL);
    if (size > HTTP_MAX_BODY_BYTES || has_stand_ins) return 0;
    ask(&answer, body);
    REQUIRE(answer.reply.http.status == 200 || answer.reply.http.status == 400);
    compare(size > 0 ? body : SLICE("{}"), &answer);
    struct slice reply = answer.reply.http.body;
    if (begins(&reply, SLICE(INVALID_JSON))) check_offset(body, answer.reply.http.body);
    free_answer(&answer);
    return 0;
}
