/*
 * test_api.c: api.c between the real parser and a store and an access that do as they are told.
 *
 *     request bytes -> http.c -> api.c -> struct api_reply
 *                                 |  |
 *                    struct access   struct store     fakes: they count calls, note what they are
 *                                                     given, and answer what the test has set
 *
 * Every request ends where its memory ends, so that AddressSanitizer sees a read past it.
 */
#include "api.h"
#include "json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h> /* wants setjmp.h and stdarg.h before it */

#define RID     "wCiXndNp5NqNY3uCc"
#define KEY     "my-UniQu3_ke4_Id"
#define SET_KEY "/api/v1/e2e.setRoomKeyID"
#define CALL    "/api/v1/method.call/e2e.setRoomKeyID"
#define ROOMS   "/api/v1/rooms.info"

#define SUCCESS      "{\"success\":true}"
#define UNAUTHORIZED "{\"success\":false,\"error\":\"unauthorized\"}"
#define NOT_JSON_TYPE                                                                              \
    "{\"success\":false,\"error\":\"Content-Type must be application/json "                        \
    "[error-unsupported-media-type]\",\"errorType\":\"error-unsupported-media-type\"}"
#define BAD_CODING_TEXT                                                                            \
    "{\"success\":false,\"error\":\"Content-Encoding must be identity "                            \
    "[error-unsupported-content-encoding]\",\"errorType\":\"error-unsupported-content-encoding\"}"
#define INVALID_JSON(why)                                                                          \
    "{\"success\":false,\"error\":\"Invalid JSON: " why " [error-invalid-json]\","                 \
    "\"errorType\":\"error-invalid-json\"}"
#define MATCH_ERROR(type)                                                                          \
    "{\"success\":false,\"error\":\"Match error: Expected string, got " type "\"}"
#define INVALID_ROOM                                                                               \
    "{\"success\":false,\"error\":\"Invalid room [error-invalid-room]\","                          \
    "\"errorType\":\"error-invalid-room\",\"details\":{\"method\":\"canAccessRoom\"}}"
#define INVALID_KEY_ID                                                                             \
    "{\"success\":false,\"error\":\"Invalid key ID: 1 to 255 bytes, no NUL "                       \
    "[error-invalid-key-id]\",\"errorType\":\"error-invalid-key-id\"}"
#define KEY_EXISTS                                                                                 \
    "{\"success\":false,\"error\":\"E2E Key ID already exists "                                    \
    "[error-room-e2e-key-already-exists]\",\"errorType\":\"error-room-e2e-key-already-exists\","   \
    "\"details\":{\"method\":\"e2e.setRoomKeyID\"}}"
#define STORAGE                                                                                    \
    "{\"success\":false,\"error\":\"Storage unavailable [error-storage]\","                        \
    "\"errorType\":\"error-storage\"}"
#define NO_ROOM_ID                                                                                 \
    "{\"success\":false,\"error\":\"The parameter \\\"roomId\\\" or \\\"roomName\\\" is required " \
    "[error-roomid-param-not-provided]\",\"errorType\":\"error-roomid-param-not-provided\"}"
#define ROOM_NOT_FOUND                                                                             \
    "{\"success\":false,\"error\":\"The required \\\"roomId\\\" or \\\"roomName\\\" param "        \
    "provided does not match any channel [error-room-not-found]\","                                \
    "\"errorType\":\"error-room-not-found\"}"
#define INVALID_CALL       "{\"success\":false,\"error\":\"Invalid method call\"}"
#define NOT_FOUND          "{\"success\":false,\"error\":\"Resource not found\"}"
#define METHOD_NOT_ALLOWED "{\"success\":false,\"error\":\"Method Not Allowed\"}"

/* ---- Fakes ----------------------------------------------------------------------------------- */

struct access {
    unsigned asked_user, asked_room;
};

struct text {
    size_t n;
    char bytes[ID_MAX_BYTES];
};

struct store {
    enum store_result result; /* of store_set and store_get */
    uint64_t ticket;
    bool failed;
    struct slice shown_key;
    unsigned sets, gets;
    struct text user, room, key; /* of the last call */
};

/* alice has the token "secret" and bob "hidden". */
bool access_knows_user(const struct access *access, struct slice user, struct slice token) {
    ((struct access *)access)->asked_user++;
    return (slice_equal(user, SLICE("alice")) && slice_equal(token, SLICE("secret"))) ||
           (slice_equal(user, SLICE("bob")) && slice_equal(token, SLICE("hidden")));
}

/* Every room is a channel, but for these. */
char access_room_type(const struct access *access, struct slice room, struct slice user) {
    ((struct access *)access)->asked_room++;
    assert_true(slice_is_id(room));
    if (slice_equal(room, SLICE("nowhere"))) return 0;
    if (slice_equal(room, SLICE("private"))) return slice_equal(user, SLICE("alice")) ? 'p' : 0;
    return slice_equal(room, SLICE("direct")) ? 'd' : 'c';
}

static void note(struct text *text, struct slice id) {
    assert_true(slice_is_id(id));
    memcpy(text->bytes, id.p, id.n);
    text->n = id.n;
}

enum store_result store_set(struct store *store, const struct store_record *record,
                            uint64_t *ticket) {
    store->sets++;
    note(&store->user, record->user);
    note(&store->room, record->room);
    note(&store->key, record->key);
    *ticket = store->ticket;
    return store->result;
}

enum store_result store_get(struct store *store, struct slice room, char key[ID_MAX_BYTES],
                            size_t *key_size) {
    store->gets++;
    note(&store->room, room);
    if (store->result == STORE_OK) {
        memcpy(key, store->shown_key.p, store->shown_key.n);
        *key_size = store->shown_key.n;
    }
    return store->result;
}

bool store_has_failed(const struct store *store) { return store->failed; }

bool store_has_lost_log(const struct store *store) { return store->failed; }

uint64_t store_key_ids(const struct store *store) { return 3u + store->failed; }

uint64_t store_log_bytes(const struct store *store) { return 5000000000 + store->failed; }

static bool malloc_fails;
static unsigned mallocs;

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    mallocs++;
    return malloc_fails ? NULL : __real_malloc(size);
}

/* ---- Asking ---------------------------------------------------------------------------------- */

struct world {
    struct access access;
    struct store store;
    struct metrics *metrics; /* NULL: there are none */
    struct slice user;       /* who asked, as far as is proved */
    char *buffer;            /* the request, and not a byte more */
    struct http_request request;
    struct api_reply reply;
};

static int set_up(void **state) {
    struct world *w = calloc(1, sizeof *w);
    *state = w;
    return w == NULL;
}

static int tear_down(void **state) {
    struct world *w = *state;
    free(w->buffer);
    free(w);
    return 0;
}

/* Makes w->request from a head (its empty line included) and a body. */
static void parse(struct world *w, struct slice head, struct slice body) {
    size_t size = head.n + body.n;
    free(w->buffer);
    w->buffer = malloc(size);
    assert_non_null(w->buffer);
    memcpy(w->buffer, head.p, head.n);
    if (body.n > 0) memcpy(w->buffer + head.n, body.p, body.n);
    http_request_init(&w->request);
    if (http_parse(&w->request, w->buffer, &size) != HTTP_DONE)
        fail_msg("not a whole request: %s\n%s", w->request.why, head.p);
    assert_int_equal(w->request.size, head.n + body.n);
}

static void answer(struct world *w) {
    struct api api = {.access = &w->access, .store = &w->store, .metrics = w->metrics};
    memset(&w->reply, 0xA5, sizeof w->reply); /* nothing may be left as it was */
    api.user = SLICE("somebody else");
    api_answer(&api, &w->request, &w->reply);
    w->user = api.user;
}

/* METHOD TARGET with these fields, each ended by \r\n, and this body. */
static void ask_plain(struct world *w, const char *line, const char *fields, struct slice body) {
    char head[HTTP_MAX_HEAD_BYTES];
    int n = snprintf(head, sizeof head, "%s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %zu\r\n\r\n",
                     line, fields, body.n);
    parse(w, (struct slice){head, (size_t)n}, body);
    answer(w);
}

/* The same with alice's credentials. */
static void ask(struct world *w, const char *line, const char *fields, struct slice body) {
    char all[512];
    snprintf(all, sizeof all, "X-User-Id: alice\r\nX-Auth-Token: secret\r\n%s", fields);
    ask_plain(w, line, all, body);
}

static void post(struct world *w, struct slice body) {
    ask(w, "POST " SET_KEY, "Content-Type: application/json\r\n", body);
}

static void get(struct world *w, const char *target) {
    char line[HTTP_MAX_TARGET_BYTES + 16];
    snprintf(line, sizeof line, "GET %s", target);
    ask(w, line, "", SLICE(""));
}

static void check_text(struct slice got, const char *expected) {
    if (!slice_equal(got, slice_of(expected)))
        fail_msg("got      %.*s\nexpected %s", (int)got.n, got.p, expected);
}

/* The reply as a whole: what the caller sets is not set yet, what is not said is not sent. */
static void check(struct world *w, int status, const char *body) {
    const struct http_reply *http = &w->reply.http;
    bool is_json = body[0] == '{';
    check_text(http->body, body);
    assert_int_equal(http->status, status);
    check_text(http->media_type, is_json           ? "application/json"
                                 : body[0] != '\0' ? "text/plain"
                                                   : "");
    assert_int_equal(http->is_private, is_json);
    assert_int_equal(w->reply.ticket, 0);
    assert_false(http->close);
    assert_false(http->confirm_keep_alive);
    assert_int_equal(http->retry_after_s, 0);
    assert_int_equal(http->head_only, slice_equal(w->request.method, SLICE("HEAD")));
    if (status != 405 && status != 204) assert_null(http->allow);
    if (strcmp(body, BAD_CODING_TEXT) == 0)
        assert_string_equal(http->field, "Accept-Encoding: identity");
    else
        assert_null(http->field);
}

static void check_id(const struct text *got, struct slice expected) {
    if (!slice_equal((struct slice){got->bytes, got->n}, expected))
        fail_msg("got %.*s, expected %.*s", (int)got->n, got->bytes, (int)expected.n, expected.p);
}

/* ---- POST /api/v1/e2e.setRoomKeyID: the rows ------------------------------------------------- */

#define BODY(rid, key) SLICE("{\"rid\":" rid ",\"keyID\":" key "}")

static void test_sets_a_key(void **state) {
    struct world *w = *state;
    w->store.ticket = 7;
    post(w, BODY("\"" RID "\"", "\"" KEY "\""));
    assert_int_equal(w->reply.ticket, 7);
    w->reply.ticket = 0;
    check(w, 200, SUCCESS);
    assert_int_equal(w->store.sets, 1);
    check_id(&w->store.user, SLICE("alice"));
    check_id(&w->store.room, SLICE(RID));
    check_id(&w->store.key, SLICE(KEY));
}

static void test_usual_call_allocates_nothing(void **state) {
    struct world *w = *state;
    struct api api = {.access = &w->access, .store = &w->store, .metrics = w->metrics};
    post(w, BODY("\"" RID "\"", "\"" KEY "\""));
    mallocs = 0;
    api_answer(&api, &w->request, &w->reply);
    assert_int_equal(mallocs, 0);
    assert_ptr_not_equal(w->reply.http.body.p, w->reply.scratch); /* nor copies its body */
}

static void test_key_exists(void **state) {
    struct world *w = *state;
    w->store.result = STORE_EXISTS;
    post(w, BODY("\"r\"", "\"k\""));
    check(w, 400, KEY_EXISTS);
    w->store.ticket = 9; /* it will exist, if the batch that it is in reaches the disk */
    post(w, BODY("\"r\"", "\"k\""));
    assert_int_equal(w->reply.ticket, 9);
}

static void test_storage_unavailable(void **state) {
    struct world *w = *state;
    w->store.result = STORE_UNAVAILABLE;
    post(w, BODY("\"r\"", "\"k\""));
    check(w, 503, STORAGE);
    memset(&w->reply, 0xA5, sizeof w->reply);
    api_storage_unavailable(&w->reply); /* the same when a ticket fails later */
    check(w, 503, STORAGE);
}

static void test_credentials(void **state) {
    static const char *const refused[] = {
        "",
        "X-User-Id: alice\r\n",
        "X-Auth-Token: secret\r\n",
        "X-User-Id: alice\r\nX-Auth-Token: hidden\r\n",
        "X-User-Id: carol\r\nX-Auth-Token: secret\r\n",
        "X-User-Id:\r\nX-Auth-Token:\r\n",
        "X-User-Id: alice\r\nX-User-Id: alice\r\nX-Auth-Token: secret\r\n",
        "X-User-Id: alice\r\nX-Auth-Token: secret\r\nx-auth-token: secret\r\n",
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        ask_plain(w, "POST " SET_KEY, refused[i], BODY("\"r\"", "\"k\""));
        check(w, 401, UNAUTHORIZED);
        ask_plain(w, "GET " ROOMS "?roomId=r", refused[i], SLICE(""));
        check(w, 401, UNAUTHORIZED);
    }
    assert_int_equal(w->store.sets + w->store.gets + w->access.asked_room, 0);
}

static void test_content_types(void **state) {
    static const struct {
        const char *fields;
        bool taken;
    } rows[] = {
        {"", true},
        {"Content-Type: application/json\r\n", true},
        {"content-type:APPLICATION/Json\r\n", true},
        {"Content-Type: application/json; charset=utf-8\r\n", true},
        {"Content-Type: application/json;charset=latin1\r\n", true},
        {"Content-Type: application/json \t ;a=b;c\r\n", true},
        {"Content-Type: application/json;\r\n", true},
        {"Content-Type:\r\n", false},
        {"Content-Type: ;\r\n", false},
        {"Content-Type: application/jsonp\r\n", false},
        {"Content-Type: application/jso\r\n", false},
        {"Content-Type: application/json, text/plain\r\n", false},
        {"Content-Type: application/problem+json\r\n", false},
        {"Content-Type: text/plain\r\n", false},
        {"Content-Type: application/x-www-form-urlencoded\r\n", false},
        {"Content-Type: application/json\r\nContent-Type: application/json\r\n", false},
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ask(w, "POST " SET_KEY, rows[i].fields, BODY("\"r\"", "\"k\""));
        check(w, rows[i].taken ? 200 : 415, rows[i].taken ? SUCCESS : NOT_JSON_TYPE);
    }
}

static void test_content_codings(void **state) {
    static const struct {
        const char *fields;
        bool taken;
    } rows[] = {
        {"", true},
        {"Content-Encoding: identity\r\n", true},
        {"content-encoding:\tIDENTITY \r\n", true},
        {"Content-Encoding:\r\n", true},
        {"Content-Encodings: gzip\r\n", true},
        {"Accept-Encoding: gzip\r\n", true},
        {"Content-Encoding: gzip\r\n", false},
        {"Content-Encoding: x-gzip\r\n", false},
        {"Content-Encoding: deflate\r\n", false},
        {"Content-Encoding: br\r\n", false},
        {"Content-Encoding: identit\r\n", false},
        {"Content-Encoding: identity2\r\n", false},
        {"Content-Encoding: identity;q=1\r\n", false},
        {"Content-Encoding: \"identity\"\r\n", false},
        {"Content-Encoding: identity, gzip\r\n", false},
        {"Content-Encoding: gzip, identity\r\n", false},
        {"Content-Encoding: identity, identity\r\n", false},
        {"Content-Encoding: identity,\r\n", false},
        {"Content-Encoding: ,\r\n", false},
        {"Content-Encoding: identity\r\nContent-Encoding: identity\r\n", false},
        {"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", false},
        {"Content-Encoding:\r\nContent-Encoding: gzip\r\n", false},
        {"Content-Encoding: 0\r\n", false},
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned sets = w->store.sets;
        const char *fields = rows[i].fields;
        bool taken = rows[i].taken;
        print_message("%s", fields);
        ask(w, "POST " SET_KEY, fields, BODY("\"r\"", "\"k\""));
        check(w, taken ? 200 : 415, taken ? SUCCESS : BAD_CODING_TEXT);
        assert_int_equal(w->store.sets - sets, taken);
        ask(w, "POST " SET_KEY, fields, SLICE("")); /* also where there is nothing to decode */
        check(w, taken ? 400 : 415, taken ? MATCH_ERROR("undefined") : BAD_CODING_TEXT);
        ask(w, "POST " CALL, fields, SLICE("{}"));
        check(w, taken ? 400 : 415, taken ? MATCH_ERROR("undefined") : BAD_CODING_TEXT);
        w->store.result = STORE_NONE;
        ask(w, "GET " ROOMS "?roomId=r", fields, SLICE("")); /* which has no body to be coded */
        assert_int_equal(w->reply.http.status, 200);
        w->store.result = STORE_OK;
    }
}

struct body_row {
    struct slice body;
    int status;
    const char *expected;
};

#define ROW(body, status, expected)                                                                \
    { {(body), sizeof(body) - 1}, (status), (expected) }

static void check_bodies(struct world *w, const struct body_row *rows, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned sets = w->store.sets;
        post(w, rows[i].body);
        check(w, rows[i].status, rows[i].expected);
        assert_int_equal(w->store.sets - sets, rows[i].status == 200);
    }
}

#define CHECK_BODIES(w, rows) check_bodies((w), (rows), sizeof(rows) / sizeof *(rows))

static void test_types(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        ROW("",                                 400, MATCH_ERROR("undefined")), /* counts as {} */
        ROW("{}",                               400, MATCH_ERROR("undefined")),
        ROW("{\"keyID\":\"k\"}",                400, MATCH_ERROR("undefined")),
        ROW("{\"rid\":\"r\"}",                  400, MATCH_ERROR("undefined")),
        ROW("{\"rid\":null,\"keyID\":\"k\"}",   400, MATCH_ERROR("null")),
        ROW("{\"rid\":-1,\"keyID\":\"k\"}",     400, MATCH_ERROR("number")),
        ROW("{\"rid\":0.5e1,\"keyID\":\"k\"}",  400, MATCH_ERROR("number")),
        ROW("{\"rid\":true,\"keyID\":\"k\"}",   400, MATCH_ERROR("boolean")),
        ROW("{\"rid\":false,\"keyID\":\"k\"}",  400, MATCH_ERROR("boolean")),
        ROW("{\"rid\":{},\"keyID\":\"k\"}",     400, MATCH_ERROR("object")),
        ROW("{\"rid\":[\"r\"],\"keyID\":\"k\"}",400, MATCH_ERROR("object")),
        ROW("{\"keyID\":null,\"rid\":\"r\"}",   400, MATCH_ERROR("null")),
        ROW("{\"keyID\":12,\"rid\":\"r\"}",     400, MATCH_ERROR("number")),
        ROW("{\"keyID\":false,\"rid\":\"r\"}",  400, MATCH_ERROR("boolean")),
        ROW("{\"keyID\":[],\"rid\":\"r\"}",     400, MATCH_ERROR("object")),
        ROW("{\"keyID\":{},\"rid\":\"r\"}",     400, MATCH_ERROR("object")),
        ROW("{\"keyID\":{},\"rid\":5}",         400, MATCH_ERROR("number")), /* rid comes first */
        ROW("{\"RID\":\"r\",\"keyid\":\"k\"}",  400, MATCH_ERROR("undefined")),
        /* no object: nothing in it has a name */
        ROW("[]",                               400, MATCH_ERROR("undefined")),
        ROW("[{\"rid\":\"r\",\"keyID\":\"k\"}]",400, MATCH_ERROR("undefined")),
        ROW("\"rid\"",                          400, MATCH_ERROR("undefined")),
        ROW("null",                             400, MATCH_ERROR("undefined")),
        ROW(" 5 ",                              400, MATCH_ERROR("undefined")),
        ROW("true",                             400, MATCH_ERROR("undefined")),
        /* clang-format on */
    };
    CHECK_BODIES((struct world *)*state, rows);
}

static void test_members(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        ROW("\t{\n \"keyID\" : \"k\" ,\r\n \"rid\" : \"r\" } \n", 200, SUCCESS),
        ROW("{\"x\":[1,{\"y\":2}],\"rid\":\"r\",\"z\":{},\"keyID\":\"k\",\"w\":0}", 200, SUCCESS),
        /* of duplicates the last counts, whatever it is */
        ROW("{\"rid\":5,\"rid\":\"r\",\"keyID\":[],\"keyID\":\"k\"}", 200, SUCCESS),
        ROW("{\"rid\":\"r\",\"keyID\":\"k\",\"rid\":null}",   400, MATCH_ERROR("null")),
        ROW("{\"rid\":\"r\",\"keyID\":\"k\",\"keyID\":7}",    400, MATCH_ERROR("number")),
        ROW("{\"rid\":\"nowhere\",\"keyID\":\"k\",\"\\u0072id\":\"r\"}", 200, SUCCESS),
        /* names with escapes */
        ROW("{\"\\u0072\\u0069\\u0064\":\"r\",\"ke\\u0079\\u0049D\":\"k\"}", 200, SUCCESS),
        ROW("{\"rid\\u0000\":\"r\",\"keyID\":\"k\"}",         400, MATCH_ERROR("undefined")),
        ROW("{\"\\ud800rid\":\"r\",\"keyID\":\"k\"}",       400, MATCH_ERROR("undefined")),
        ROW("{\"rid\\ud800\":\"r\",\"keyID\":\"k\"}",       400, MATCH_ERROR("undefined")),
        ROW("{\"rid\\n\":\"r\",\"keyID\":\"k\"}",             400, MATCH_ERROR("undefined")),
        /* only the top level counts */
        ROW("{\"x\":{\"rid\":\"r\"},\"keyID\":\"k\"}",        400, MATCH_ERROR("undefined")),
        ROW("{\"keyID\":\"k\",\"x\":[\"rid\",\"r\"]}",        400, MATCH_ERROR("undefined")),
        ROW("{\"keyID\":\"k\",\"x\":\"rid\"}",                400, MATCH_ERROR("undefined")),
        ROW("{\"rid\":{\"rid\":\"r\"},\"keyID\":\"k\"}",      400, MATCH_ERROR("object")),
        ROW("{\"rid\":\"r\",\"keyID\":\"k\",\"x\":{\"rid\":0,\"keyID\":0}}", 200, SUCCESS),
        /* clang-format on */
    };
    CHECK_BODIES((struct world *)*state, rows);
}

static void test_rooms_and_keys(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        ROW("{\"rid\":\"\",\"keyID\":\"k\"}",        400, INVALID_ROOM),
        ROW("{\"rid\":\"nowhere\",\"keyID\":\"k\"}", 400, INVALID_ROOM),
        ROW("{\"rid\":\"\\u0000\",\"keyID\":\"k\"}", 400, INVALID_ROOM),
        ROW("{\"rid\":\"r\\u0000\",\"keyID\":\"k\"}",400, INVALID_ROOM),
        ROW("{\"rid\":\"r\",\"keyID\":\"\"}",        400, INVALID_KEY_ID),
        ROW("{\"rid\":\"r\",\"keyID\":\"\\u0000\"}", 400, INVALID_KEY_ID),
        ROW("{\"rid\":\"r\",\"keyID\":\"k\\u0000k\"}", 400, INVALID_KEY_ID),
        ROW("{\"rid\":\"*\",\"keyID\":\" \"}",       200, SUCCESS),
        ROW("{\"rid\":\"private\",\"keyID\":\"\\u007f\"}", 200, SUCCESS),
        /* clang-format on */
    };
    struct world *w = *state;
    CHECK_BODIES(w, rows);
    ask_plain(w, "POST " SET_KEY, "X-User-Id: bob\r\nX-Auth-Token: hidden\r\n",
              BODY("\"private\"", "\"k\"")); /* known, but not to bob: not to be told apart */
    check(w, 400, INVALID_ROOM);
}

/* Writes {"rid":"r...","keyID":"k..."} with so many times each unit. */
static struct slice long_body(char *out, const char *unit, size_t rids, size_t keys) {
    char *p = out;
    p += sprintf(p, "{\"rid\":\"");
    for (size_t i = 0; i < rids; i++) p += sprintf(p, "%s", unit);
    p += sprintf(p, "\",\"keyID\":\"");
    for (size_t i = 0; i < keys; i++) p += sprintf(p, "%s", unit);
    p += sprintf(p, "\"}");
    return (struct slice){out, (size_t)(p - out)};
}

static void test_lengths(void **state) {
    static const struct {
        const char *unit, *decoded;
    } units[] = {{"a", "a"},
                 {"\\u0061", "a"},
                 {"\\/", "/"},
                 {"\\u00e9", "\xC3\xA9"},
                 {"\xE2\x82\xAC", "\xE2\x82\xAC"},
                 {"\\u20AC", "\xE2\x82\xAC"},
                 {"\\ud83d\\ude00", "\xF0\x9F\x98\x80"}};
    struct world *w = *state;
    char body[HTTP_MAX_BODY_BYTES];
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const char *unit = units[i].unit;
        size_t longest = ID_MAX_BYTES / strlen(units[i].decoded);
        post(w, long_body(body, unit, longest, longest));
        check(w, 200, SUCCESS);
        assert_int_equal(w->store.key.n, longest * strlen(units[i].decoded));
        assert_memory_equal(w->store.key.bytes, units[i].decoded, strlen(units[i].decoded));
        post(w, long_body(body, unit, longest + 1, 1));
        check(w, 400, INVALID_ROOM);
        post(w, long_body(body, unit, 1, longest + 1));
        check(w, 400, INVALID_KEY_ID);
        post(w, long_body(body, unit, 5000, 1));
        check(w, 400, INVALID_ROOM);
    }
}

static void test_decoded_values(void **state) {
    static const struct {
        struct slice written, decoded;
    } rows[] = {
#define DECODES(written, decoded)                                                                  \
    {                                                                                              \
        {(written), sizeof(written) - 1}, { (decoded), sizeof(decoded) - 1 }                       \
    }
        DECODES("plain", "plain"),
        DECODES("\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t"),
        DECODES("\\u0001\\u007F", "\x01\x7F"),
        DECODES("\\u0080\\u07ff", "\xC2\x80\xDF\xBF"),
        DECODES("\\u0800\\uFFFF", "\xE0\xA0\x80\xEF\xBF\xBF"),
        DECODES("\\uD7FF\\uE000", "\xED\x9F\xBF\xEE\x80\x80"),
        DECODES("\\uD800\\uDC00", "\xF0\x90\x80\x80"),
        DECODES("\\udbff\\udfff", "\xF4\x8F\xBF\xBF"),
        DECODES("x\\uaBcD", "x\xEA\xAF\x8D"),
        DECODES("\\\\u0041", "\\u0041"),
        DECODES("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"),
        DECODES("a\\nb\\u0020c", "a\nb c"),
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[256];
        int n = snprintf(body, sizeof body, "{\"rid\":\"%s\",\"keyID\":\"k%s\"}", rows[i].written.p,
                         rows[i].written.p);
        post(w, (struct slice){body, (size_t)n});
        check(w, 200, SUCCESS);
        check_id(&w->store.room, rows[i].decoded);
        assert_int_equal(w->store.key.bytes[0], 'k');
        assert_int_equal(w->store.key.n, rows[i].decoded.n + 1);
    }
}

static void test_lone_surrogates(void **state) {
#define LONE(n) INVALID_JSON("lone surrogate at byte " #n)
    static const struct body_row rows[] = {
        /* clang-format off */
        ROW("{\"rid\":\"\\ud800\",\"keyID\":\"k\"}",             400, LONE(8)),
        ROW("{\"rid\":\"ab\\udfff\",\"keyID\":\"k\"}",           400, LONE(10)),
        ROW("{\"rid\":\"\\ud800\\ud800\\udc00\",\"keyID\":\"k\"}", 400, LONE(8)),
        ROW("{\"rid\":\"\\ud800\\ue000\",\"keyID\":\"k\"}",       400, LONE(8)),
        ROW("{\"rid\":\"\\ud800\\udc00\\ud800x\",\"keyID\":\"k\"}", 400, LONE(20)),
        ROW("{\"rid\":\"\\udbff\\u0041\",\"keyID\":\"k\"}",      400, LONE(8)),
        ROW("{\"rid\":\"\\udc00\\udc00\",\"keyID\":\"k\"}",      400, LONE(8)),
        ROW("{\"rid\":\"\\udbff\\n\\udc00\",\"keyID\":\"k\"}",   400, LONE(8)),
        ROW("{\"rid\":\"\\udbff\\\\udc00\",\"keyID\":\"k\"}",    400, LONE(8)),
        ROW("{\"keyID\":\"\\udc00\"}",                           400, LONE(10)), /* no rid */
        ROW("{\"rid\":5,\"keyID\":\"\\udc00\"}",                 400, LONE(18)),
        ROW("{\"rid\":\"nowhere\",\"keyID\":\"\\ud800\"}",       400, LONE(26)),
        ROW("{\"rid\":\"\\ud800\",\"keyID\":\"\\ud800\"}",       400, LONE(8)),
        ROW("{\"keyID\":\"\\ud800\",\"rid\":\"\\ud800\"}",       400, LONE(10)),
        /* harmless elsewhere, and where another value counts */
        ROW("{\"x\":\"\\ud800\",\"rid\":\"r\",\"keyID\":\"k\"}", 200, SUCCESS),
        ROW("{\"\\ud800\":1,\"rid\":\"r\",\"keyID\":\"k\"}",     200, SUCCESS),
        ROW("{\"rid\":\"\\ud800\",\"rid\":\"r\",\"keyID\":\"k\"}", 200, SUCCESS),
        ROW("{\"rid\":[\"\\ud800\"],\"keyID\":\"k\"}",           400, MATCH_ERROR("object")),
        ROW("\"\\ud800\"",                                       400, MATCH_ERROR("undefined")),
        /* clang-format on */
    };
    struct world *w = *state;
    CHECK_BODIES(w, rows);
    char body[HTTP_MAX_BODY_BYTES]; /* far behind the longest ID it still counts */
    int n = snprintf(body, sizeof body, "{\"rid\":\"\\n%01000d\\ud800\",\"keyID\":\"k\"}", 0);
    post(w, (struct slice){body, (size_t)n});
    check(w, 400, LONE(1010));
}

/* ---- The order of the checks ----------------------------------------------------------------- */

enum {
    BAD_CREDENTIALS = 1 << 0,
    BAD_TYPE = 1 << 1,
    BAD_CODING = 1 << 2,
    BAD_JSON = 1 << 3,
    RID_NO_STRING = 1 << 4,
    KEY_NO_STRING = 1 << 5,
    BAD_ROOM = 1 << 6,
    BAD_KEY = 1 << 7,
    SET_BEFORE = 1 << 8,
    STORE_FAILS = 1 << 9,
    ALL_FAULTS = (1 << 10) - 1,
};

static void ask_with_faults(struct world *w, unsigned faults) {
    char body[128], fields[256];
    const char *rid = faults & RID_NO_STRING ? "5" : faults & BAD_ROOM ? "\"nowhere\"" : "\"r\"";
    const char *key = faults & KEY_NO_STRING ? "{}" : faults & BAD_KEY ? "\"\"" : "\"k\"";
    int n = snprintf(body, sizeof body, "{\"rid\":%s,\"keyID\":%s}%s", rid, key,
                     faults & BAD_JSON ? "," : "");
    snprintf(fields, sizeof fields,
             "X-User-Id: alice\r\nX-Auth-Token: %s\r\nContent-Type: %s\r\nContent-Encoding: %s\r\n",
             faults & BAD_CREDENTIALS ? "wrong" : "secret",
             faults & BAD_TYPE ? "text/plain" : "application/json",
             faults & BAD_CODING ? "gzip" : "identity");
    w->store.result = faults & SET_BEFORE    ? STORE_EXISTS
                      : faults & STORE_FAILS ? STORE_UNAVAILABLE
                                             : STORE_OK;
    ask_plain(w, "POST " SET_KEY, fields, (struct slice){body, (size_t)n});
}

static void check_first_fault(struct world *w, unsigned faults) {
    static const struct {
        unsigned fault;
        int status;
        const char *body;
    } order[] = {
        {BAD_CREDENTIALS, 401, UNAUTHORIZED},
        {BAD_TYPE, 415, NOT_JSON_TYPE},
        {BAD_CODING, 415, BAD_CODING_TEXT},
        {BAD_JSON, 400, "INVALID_JSON"}, /* its offset varies */
        {RID_NO_STRING, 400, MATCH_ERROR("number")},
        {KEY_NO_STRING, 400, MATCH_ERROR("object")},
        {BAD_ROOM, 400, INVALID_ROOM},
        {BAD_KEY, 400, INVALID_KEY_ID},
        {SET_BEFORE, 400, KEY_EXISTS},
        {STORE_FAILS, 503, STORAGE},
        {0, 200, SUCCESS},
    };
    size_t i = 0;
    while (order[i].fault != 0 && !(faults & order[i].fault)) i++;
    if (order[i].fault == BAD_JSON)
        assert_non_null(
            strstr(w->reply.http.body.p, "Invalid JSON: text after the value at byte "));
    else
        check(w, order[i].status, order[i].body);
}

/* Every set of faults that can occur together; the earliest of each has to answer. */
static void test_order_of_checks(void **state) {
    struct world *w = *state;
    for (unsigned faults = 0; faults <= ALL_FAULTS; faults++) {
        if ((faults & RID_NO_STRING && faults & BAD_ROOM) ||
            (faults & KEY_NO_STRING && faults & BAD_KEY) ||
            (faults & SET_BEFORE && faults & STORE_FAILS))
            continue; /* one value cannot be wrong in two ways */
        unsigned sets = w->store.sets, asked = w->access.asked_room;
        ask_with_faults(w, faults);
        check_first_fault(w, faults);
        bool got_to_room = !(faults & (BAD_ROOM - 1u));
        bool got_to_store = !(faults & (SET_BEFORE - 1u));
        assert_int_equal(w->access.asked_room - asked, got_to_room);
        assert_int_equal(w->store.sets - sets, got_to_store);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static const char *const valid_json[] = {
    /* clang-format off */
    "0", "-0", "1", "-1", "10", "1234567890", "0.0", "1.5", "-0.1", "1e1", "1E1", "1e+1", "1e-1",
    "1.5e300", "0e0", "-0.0E-00", "1e999999", "123456789012345678901234567890",
    "true", "false", "null",
    "\"\"", "\"a\"", "\"\\\"\"", "\"\\\\\"", "\"\\/\"", "\"\\b\\f\\n\\r\\t\"", "\"\\u0000\"",
    "\"\\uABCD\\uabcd\\u0123\"", "\"\\ud800\"", "\"\\udc00\\ud800\"", "\"\\ud83d\\ude00\"",
    "\"/\"", "\"\x7F\"", "\"'\"", "\"\xC2\x80\"", "\"\xDF\xBF\"", "\"\xE0\xA0\x80\"",
    "\"\xED\x9F\xBF\"", "\"\xEE\x80\x80\"", "\"\xEF\xBB\xBF\"", "\"\xEF\xBF\xBF\"",
    "\"\xF0\x90\x80\x80\"", "\"\xF4\x8F\xBF\xBF\"", "\"{}[],:\"", "\"\\\\\\\"\"",
    "[]", "[ ]", "[\n]", "[1]", "[1,2]", "[ 1 , 2 ]", "[[]]", "[[],[]]", "[[[1],2],3]", "[{}]",
    "[\"\",null,true,0,{},[]]",
    "{}", "{ }", "{\"\":0}", "{\"a\":1}", "{ \"a\" : 1 }", "{\"a\":1,\"b\":2}", "{\"a\":1,\"a\":2}",
    "{\"a\":{\"b\":{\"c\":[{}]}}}", "{\"a\":[],\"b\":{},\"c\":\"\",\"d\":0,\"e\":null}",
    "{\"\\u0061\":\"b\"}", "{\"a\":\"b\",\"c\":{\"d\":1},\"e\":[1,[2]]}",
    " 1", "1 ", "\t1\r\n", " \"a\" ", " [ ] ", "\n{\n}\n",
    /* clang-format on */
};

/* Each one as a whole body, and as a value among others: that shows that jsmn agrees. */
static void test_valid_json(void **state) {
    struct world *w = *state;
    for (size_t i = 0; i < sizeof valid_json / sizeof *valid_json; i++) {
        char body[512];
        post(w, slice_of(valid_json[i]));
        check(w, 400, MATCH_ERROR("undefined"));
        snprintf(body, sizeof body, "{\"x\":%s,\"rid\":\"r\",\"y\":[%s],\"keyID\":\"k\",\"z\":%s}",
                 valid_json[i], valid_json[i], valid_json[i]);
        post(w, slice_of(body));
        check(w, 200, SUCCESS);
    }
}

#define BAD(body, why) ROW(body, 400, INVALID_JSON(why))

static void test_structure(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        BAD(" ", "unexpected end at byte 1"),
        BAD("\r\n\t ", "unexpected end at byte 4"),
        BAD("\0", "expected a value at byte 0"),
        BAD("{}\0", "text after the value at byte 2"),
        BAD("\0{}", "expected a value at byte 0"),
        BAD("{\"a\":\0001}", "expected a value at byte 5"),
        BAD("\xEF\xBB\xBF{}", "expected a value at byte 0"), /* a byte order mark */
        BAD("\xFE\xFF", "expected a value at byte 0"),
        BAD("\f{}", "expected a value at byte 0"),
        BAD("\xC2\xA0{}", "expected a value at byte 0"), /* a no-break space is no space */
        BAD("{", "unexpected end at byte 1"),
        BAD("[", "unexpected end at byte 1"),
        BAD("}", "expected a value at byte 0"),
        BAD("]", "expected a value at byte 0"),
        BAD(",", "expected a value at byte 0"),
        BAD(":", "expected a value at byte 0"),
        BAD("[}", "expected a value at byte 1"),
        BAD("{]", "expected a name in quotes at byte 1"),
        BAD("[1}", "expected a comma or a closing bracket at byte 2"),
        BAD("{\"a\":1]", "expected a comma or a closing brace at byte 6"),
        BAD("[1,]", "expected a value at byte 3"),
        BAD("[,1]", "expected a value at byte 1"),
        BAD("[1,,3]", "expected a value at byte 3"),
        BAD("[1 2]", "expected a comma or a closing bracket at byte 3"),
        BAD("[1:2]", "expected a comma or a closing bracket at byte 2"),
        BAD("[\"a\":2]", "expected a comma or a closing bracket at byte 4"),
        BAD("[1]]", "text after the value at byte 3"),
        BAD("[[1]", "unexpected end at byte 4"),
        BAD("[][]", "text after the value at byte 2"),
        BAD("{} {}", "text after the value at byte 3"),
        BAD("{},", "text after the value at byte 2"),
        BAD("{}}", "text after the value at byte 2"),
        BAD("1 2", "text after the value at byte 2"),
        BAD("\"a\"\"b\"", "text after the value at byte 3"),
        BAD("{\"a\"}", "expected a colon at byte 4"),
        BAD("{\"a\" \"b\"}", "expected a colon at byte 5"),
        BAD("{\"a\",1}", "expected a colon at byte 4"),
        BAD("{\"a\"", "unexpected end at byte 4"),
        BAD("{\"a\":", "unexpected end at byte 5"),
        BAD("{\"a\":}", "expected a value at byte 5"),
        BAD("{\"a\"::1}", "expected a value at byte 5"),
        BAD("{\"a\":1", "unexpected end at byte 6"),
        BAD("{\"a\":1,", "unexpected end at byte 7"),
        BAD("{\"a\":1,}", "expected a name in quotes at byte 7"),
        BAD("{\"a\":1,,\"b\":2}", "expected a name in quotes at byte 7"),
        BAD("{,\"a\":1}", "expected a name in quotes at byte 1"),
        BAD("{\"a\":1 \"b\":2}", "expected a comma or a closing brace at byte 7"),
        BAD("{\"a\":1:2}", "expected a comma or a closing brace at byte 6"),
        BAD("{a:1}", "expected a name in quotes at byte 1"),
        BAD("{'a':1}", "expected a name in quotes at byte 1"),
        BAD("{1:1}", "expected a name in quotes at byte 1"),
        BAD("{null:1}", "expected a name in quotes at byte 1"),
        BAD("{[]:1}", "expected a name in quotes at byte 1"),
        BAD("{{}:1}", "expected a name in quotes at byte 1"),
        BAD("{:1}", "expected a name in quotes at byte 1"),
        BAD("{1}", "expected a name in quotes at byte 1"),
        BAD("['a']", "expected a value at byte 1"),
        BAD("[/**/1]", "expected a value at byte 1"),
        BAD("{}//x", "text after the value at byte 2"),
        BAD("{\"a\":1}#", "text after the value at byte 7"),
        BAD("{\\n    \"rid\": \"r\"}", "expected a name in quotes at byte 1"), /* PHP's quotes */
        BAD("rid=r&keyID=k", "expected a value at byte 0"),
        BAD("<a>", "expected a value at byte 0"),
        /* clang-format on */
    };
    CHECK_BODIES((struct world *)*state, rows);
}

static void test_numbers_and_literals(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        BAD("-", "unexpected end at byte 1"),
        BAD("[-]", "expected a digit at byte 2"),
        BAD("[--1]", "expected a digit at byte 2"),
        BAD("[+1]", "expected a value at byte 1"),
        BAD("[.5]", "expected a value at byte 1"),
        BAD("[-.5]", "expected a digit at byte 2"),
        BAD("[01]", "expected a comma or a closing bracket at byte 2"),
        BAD("[-01]", "expected a comma or a closing bracket at byte 3"),
        BAD("01", "text after the value at byte 1"),
        BAD("[0x1]", "expected a comma or a closing bracket at byte 2"),
        BAD("[1.]", "expected a digit at byte 3"),
        BAD("1.", "unexpected end at byte 2"),
        BAD("[1.e1]", "expected a digit at byte 3"),
        BAD("[1.5.5]", "expected a comma or a closing bracket at byte 4"),
        BAD("[1e]", "expected a digit at byte 3"),
        BAD("1e", "unexpected end at byte 2"),
        BAD("[1e+]", "expected a digit at byte 4"),
        BAD("[1e-]", "expected a digit at byte 4"),
        BAD("[1e1.5]", "expected a comma or a closing bracket at byte 4"),
        BAD("[1ee1]", "expected a digit at byte 3"),
        BAD("[1a]", "expected a comma or a closing bracket at byte 2"),
        BAD("[1_000]", "expected a comma or a closing bracket at byte 2"),
        BAD("[\xEF\xBC\x91]", "expected a value at byte 1"), /* a full-width 1 */
        BAD("[Infinity]", "expected a value at byte 1"),
        BAD("[-Infinity]", "expected a digit at byte 2"),
        BAD("[NaN]", "expected a value at byte 1"),
        BAD("[nan]", "expected true, false or null at byte 2"),
        BAD("t", "unexpected end at byte 1"),
        BAD("tru", "unexpected end at byte 3"),
        BAD("[nul]", "expected true, false or null at byte 4"),
        BAD("[nil]", "expected true, false or null at byte 2"),
        BAD("[truE]", "expected true, false or null at byte 4"),
        BAD("[True]", "expected a value at byte 1"),
        BAD("[FALSE]", "expected a value at byte 1"),
        BAD("[falsy]", "expected true, false or null at byte 5"),
        BAD("truefalse", "text after the value at byte 4"),
        BAD("nullx", "text after the value at byte 4"),
        BAD("[undefined]", "expected a value at byte 1"),
        /* clang-format on */
    };
    CHECK_BODIES((struct world *)*state, rows);
}

static void test_strings(void **state) {
    static const struct body_row rows[] = {
        /* clang-format off */
        BAD("\"", "unexpected end at byte 1"),
        BAD("\"abc", "unexpected end at byte 4"),
        BAD("\"\\\"", "unexpected end at byte 3"),
        BAD("\"\\", "unexpected end at byte 2"),
        BAD("\"\\u00", "unexpected end at byte 5"),
        BAD("'a'", "expected a value at byte 0"),
        BAD("\"a\nb\"", "unescaped control character at byte 2"),
        BAD("\"\t\"", "unescaped control character at byte 1"),
        BAD("\"\x1F\"", "unescaped control character at byte 1"),
        BAD("\"a\0b\"", "unescaped control character at byte 2"),
        BAD("\"\\a\"", "invalid escape at byte 2"),
        BAD("\"\\0\"", "invalid escape at byte 2"),
        BAD("\"\\\0\"", "invalid escape at byte 2"),
        BAD("\"\\'\"", "invalid escape at byte 2"),
        BAD("\"\\x41\"", "invalid escape at byte 2"),
        BAD("\"\\N\"", "invalid escape at byte 2"),
        BAD("\"\\U0041\"", "invalid escape at byte 2"),
        BAD("\"\\\n\"", "invalid escape at byte 2"),
        BAD("\"\\\xC3\xA9\"", "invalid escape at byte 2"),
        BAD("\"\\u\"", "invalid escape at byte 3"),
        BAD("\"\\u00\"", "invalid escape at byte 5"),
        BAD("\"\\u004\"", "invalid escape at byte 6"),
        BAD("\"\\u00G0\"", "invalid escape at byte 5"),
        BAD("\"\\u{41}\"", "invalid escape at byte 3"),
        BAD("\"\\u-041\"", "invalid escape at byte 3"),
        BAD("\"\\u 041\"", "invalid escape at byte 3"),
        BAD("\"\\ud800\\u\"", "invalid escape at byte 9"),
        BAD("\"a\x80\"", "invalid UTF-8 at byte 2"),
        BAD("\"\xBF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xC0\x80\"", "invalid UTF-8 at byte 1"), /* overlong */
        BAD("\"\xC1\xBF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xE0\x9F\xBF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xF0\x8F\xBF\xBF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xED\xA0\x80\"", "invalid UTF-8 at byte 1"), /* surrogates */
        BAD("\"\xED\xBF\xBF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xF4\x90\x80\x80\"", "invalid UTF-8 at byte 1"), /* past U+10FFFF */
        BAD("\"\xF5\x80\x80\x80\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xFF\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xC3\"", "invalid UTF-8 at byte 1"), /* cut short */
        BAD("\"\xE2\x82\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xF0\x9F\x98\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xE2\x28\xA1\"", "invalid UTF-8 at byte 1"),
        BAD("\"\xE2\x82", "invalid UTF-8 at byte 1"),
        BAD("\"\xE9\"", "invalid UTF-8 at byte 1"), /* Latin-1 */
        BAD("{\"\xFF\":1}", "invalid UTF-8 at byte 2"),
        BAD("{\"rid\":\"r\",\"keyID\":\"\xFF\"}", "invalid UTF-8 at byte 20"),
        /* clang-format on */
    };
    CHECK_BODIES((struct world *)*state, rows);
}

/* Where a text is cut off, that is where it is wrong. */
static void test_every_prefix(void **state) {
    static const char text[] =
        "{\"rid\":\"r\\u0041\\n\",\"x\":[-1.5e+3,true,{\"y\":null},[]],\"keyID\":\"k\"}";
    struct world *w = *state;
    for (size_t n = 1; n < sizeof text - 1; n++) {
        char expected[256];
        snprintf(expected, sizeof expected, INVALID_JSON("unexpected end at byte %zu"), n);
        post(w, (struct slice){text, n});
        check(w, 400, expected);
    }
    post(w, SLICE(text));
    check(w, 200, SUCCESS);
}

/* ---- Depth, width, time ---------------------------------------------------------------------- */

/* open and close each so many times, with middle between them. */
static struct slice nested(char *out, const char *open, size_t depth, const char *middle) {
    char *p = out;
    for (size_t i = 0; i < depth; i++) p += sprintf(p, "%s", open);
    p += sprintf(p, "%s", middle);
    for (size_t i = 0; i < depth; i++) *p++ = open[0] == '[' ? ']' : '}';
    *p = '\0';
    return (struct slice){out, (size_t)(p - out)};
}

static void test_depth(void **state) {
    struct world *w = *state;
    char body[1024];
    post(w, nested(body, "[", 64, ""));
    check(w, 400, MATCH_ERROR("undefined"));
    post(w, nested(body, "[", 65, ""));
    check(w, 400, INVALID_JSON("nesting too deep at byte 64"));
    post(w, nested(body, "[", 65, "x"));
    check(w, 400, INVALID_JSON("nesting too deep at byte 64"));
    post(w, nested(body, "{\"a\":", 64, "1"));
    check(w, 400, MATCH_ERROR("undefined"));
    post(w, nested(body, "{\"a\":", 65, "1"));
    check(w, 400, INVALID_JSON("nesting too deep at byte 320"));
    post(w, nested(body, "{\"rid\":", 64, "\"r\"")); /* 64 names, 63 of them hidden */
    check(w, 400, MATCH_ERROR("object"));
    /* each level is an object or an array of its own, down to the last bit */
    post(w, SLICE("[{\"a\":[{\"a\":[{}]}]}}"));
    check(w, 400, INVALID_JSON("expected a comma or a closing bracket at byte 19"));
}

static void repeat(char *body, const char *before, const char *unit, const char *after) {
    char *p = body + sprintf(body, "%s", before);
    while ((size_t)(p - body) + strlen(unit) + strlen(after) <= HTTP_MAX_BODY_BYTES)
        p += sprintf(p, "%s", unit);
    strcpy(p, after);
}

static void test_width(void **state) {
    struct world *w = *state;
    char *body = malloc(HTTP_MAX_BODY_BYTES + 1);
    assert_non_null(body);
    repeat(body, "{\"rid\":\"r\",\"x\":[0", ",0", "],\"keyID\":\"k\"}");
    post(w, slice_of(body));
    check(w, 200, SUCCESS);
    repeat(body, "{\"rid\":\"r\"", ",\"\":0", ",\"keyID\":\"k\"}");
    post(w, slice_of(body));
    check(w, 200, SUCCESS);
    for (unsigned fields = 20; fields < 50; fields++) { /* around JSON_FEW_TOKENS */
        char *p = body + sprintf(body, "{\"rid\":\"r\"");
        for (unsigned i = 0; i < fields; i++) p += sprintf(p, ",\"x\":%u", i);
        strcpy(p, ",\"keyID\":\"k\"}");
        post(w, slice_of(body));
        check(w, 200, SUCCESS);
    }
    free(body);
}

static void test_no_memory(void **state) {
    struct world *w = *state;
    struct api api = {.access = &w->access, .store = &w->store, .metrics = w->metrics};
    char body[HTTP_MAX_BODY_BYTES];
    for (unsigned numbers = 56; numbers <= 59; numbers++) {
        char *p = body + sprintf(body, "{\"rid\":\"r\",\"x\":[0");
        for (unsigned i = 1; i < numbers; i++) p += sprintf(p, ",0");
        strcpy(p, "],\"keyID\":\"k\"}");
        post(w, slice_of(body));
        check(w, 200, SUCCESS);
        w->store.sets = mallocs = 0;
        malloc_fails = true;
        api_answer(&api, &w->request, &w->reply);
        malloc_fails = false;
        bool fits = numbers + 7 <= 64; /* the object, three names, two strings, the array */
        check(w, fits ? 200 : 503, fits ? SUCCESS : STORAGE);
        assert_int_equal(mallocs, !fits);
        assert_int_equal(w->store.sets, fits);
    }
}

#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MAX_PASSES 20.0
#else
#define MAX_PASSES 100.0
#endif

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* How long a pass over the longest body takes that multiplies once a byte (FNV-1a): what a machine
 * that is slow, or busy just now, is slow at as well. */
static double pass_ms(const char *body) {
    static volatile uint32_t sink;
    uint32_t hash = 2166136261u;
    double start = now_ms();
    for (size_t i = 0; i < HTTP_MAX_BODY_BYTES; i++)
        hash = (hash ^ (unsigned char)body[i]) * 16777619u;
    sink = hash;
    (void)sink;
    return now_ms() - start;
}

/* Answers the request once more, some times: the best, beside the best of as many passes in
 * between. */
static void check_time(struct world *w, const char *name, const char *body, double max_passes) {
    struct api api = {.access = &w->access, .store = &w->store, .metrics = w->metrics};
    double best = 1e9, pass = 1e9;
    for (int i = 0; i < 20; i++) {
        double start = now_ms();
        api_answer(&api, &w->request, &w->reply);
        double took = now_ms() - start, passed = pass_ms(body);
        best = took < best ? took : best;
        pass = passed < pass ? passed : pass;
    }
    print_message("           %6.3f ms, %5.1f passes  %5zu bytes  %d  %s\n", best, best / pass,
                  strlen(body), w->reply.http.status, name);
    assert_true(best < max_passes * pass);
}

static void test_linear_time(void **state) {
    static const struct {
        const char *name, *before, *unit, *after;
    } rows[] = {
        {"opening brackets", "", "[", ""},
        {"empty arrays", "{\"a\":[[]", ",[]", "]}"},
        {"empty objects", "{\"a\":[{}", ",{}", "]}"},
        {"numbers", "{\"a\":[0", ",0", "]}"},
        {"empty keys", "{\"\":0", ",\"\":0", "}"},
        {"empty strings", "{\"a\":[\"\"", ",\"\"", "]}"},
        {"keys with escapes", "{\"\":0", ",\"\\u0072i\":0", "}"},
        {"the same key", "{\"rid\":0", ",\"rid\":\"\\n\"", "}"},
        {"short escapes", "{\"rid\":\"", "\\n", "\",\"keyID\":\"k\"}"},
        {"long escapes", "{\"rid\":\"", "\\u0041", "\",\"keyID\":\"k\"}"},
        {"surrogate pairs in a key", "{\"", "\\ud83d\\ude00", "\":0}"},
        {"one long string", "{\"rid\":\"", "a", "\",\"keyID\":\"k\"}"},
        {"UTF-8", "{\"rid\":\"", "\xC3\xA9", "\",\"keyID\":\"k\"}"},
        {"white space", "{", " ", "}"},
        {"one number", "{\"a\":1", "1", "}"},
    };
    struct world *w = *state;
    char *body = calloc(1, HTTP_MAX_BODY_BYTES + 1);
    assert_non_null(body);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        repeat(body, rows[i].before, rows[i].unit, rows[i].after);
        post(w, slice_of(body));
        check_time(w, rows[i].name, body, MAX_PASSES);
    }
    /* Closing a level, jsmn climbs to it from the last token: linear still, but for deep nesting up
     * to 64 steps at a closing bracket. */
    char unit[1024];
    nested(unit + sprintf(unit, ",\"\":"), "{\"a\":", 63, "0");
    repeat(body, "{\"a\":0", unit, "}");
    post(w, slice_of(body));
    check_time(w, "objects 64 deep, side by side", body, 5 * MAX_PASSES);
    nested(unit + sprintf(unit, ","), "[", 62, "");
    repeat(body, "{\"a\":[0", unit, "]}");
    post(w, slice_of(body));
    check_time(w, "arrays 64 deep, side by side", body, 5 * MAX_PASSES);
    free(body);
}

/* ---- POST /api/v1/method.call/e2e.setRoomKeyID ----------------------------------------------- */

static void post_call(struct world *w, const char *message) {
    char string[JSON_QUOTED_BYTES(4096)], body[sizeof string + 16];
    assert_true(strlen(message) <= 4096);
    size_t n = json_quote(slice_of(message), string);
    n = (size_t)snprintf(body, sizeof body, "{\"message\":%.*s}", (int)n, string);
    ask(w, "POST " CALL, "Content-Type: application/json\r\n", (struct slice){body, n});
}

/* The reply's message, unquoted, has to be this one. */
static void check_result(struct world *w, int status, const char *message) {
    char string[JSON_QUOTED_BYTES(4096)], body[sizeof string + 64];
    size_t n = json_quote(slice_of(message), string);
    snprintf(body, sizeof body, "{\"message\":%.*s,\"success\":%s}", (int)n, string,
             status == 200 ? "true" : "false");
    check(w, status, body);
}

#define PARAMS(params)                                                                             \
    "{\"msg\":\"method\",\"id\":\"1\",\"method\":\"e2e.setRoomKeyID\",\"params\":" params "}"
#define RESULT "{\"msg\":\"result\",\"id\":\"1\""
#define METEOR_ERROR(error, reason, details, code)                                                 \
    "{\"isClientSafe\":true,\"error\":" error ",\"reason\":\"" reason "\"" details                 \
    ",\"message\":\"" reason " [" code "]\",\"errorType\":\"Meteor.Error\"}"
#define FAILED(code, reason, details)                                                              \
    RESULT ",\"error\":" METEOR_ERROR("\"" code "\"", reason, details, code) "}"
#define DETAILS ",\"details\":{\"method\":\"e2e.setRoomKeyID\"}"
#define CALL_MATCH_ERROR(type)                                                                     \
    RESULT ",\"error\":{\"message\":\"Match error: Expected string, got " type                     \
           "\",\"path\":\"\",\"sanitizedError\":" METEOR_ERROR(                                    \
               "400", "Match failed", "", "400") ",\"errorType\":\"Match.Error\"}}"
#define CALL_INVALID_ROOM FAILED("error-invalid-room", "Invalid room", DETAILS)
#define CALL_INVALID_KEY_ID                                                                        \
    FAILED("error-invalid-key-id", "Invalid key ID: 1 to 255 bytes, no NUL", "")
#define CALL_KEY_EXISTS                                                                            \
    FAILED("error-room-e2e-key-already-exists", "E2E Key ID already exists", DETAILS)

static void test_call_sets_a_key(void **state) {
    struct world *w = *state;
    w->store.ticket = 7;
    mallocs = 0;
    post_call(w, PARAMS("[\"" RID "\",\"" KEY "\"]"));
    assert_int_equal(mallocs, 1); /* the test's own */
    assert_int_equal(w->reply.ticket, 7);
    w->reply.ticket = 0;
    check_result(w, 200, RESULT "}");
    assert_int_equal(w->store.sets, 1);
    check_id(&w->store.user, SLICE("alice"));
    check_id(&w->store.room, SLICE(RID));
    check_id(&w->store.key, SLICE(KEY));
    w->store.result = STORE_EXISTS;
    w->store.ticket = 9;
    post_call(w, PARAMS("[\"r\",\"k\"]"));
    assert_int_equal(w->reply.ticket, 9);
    w->reply.ticket = 0;
    check_result(w, 400, CALL_KEY_EXISTS);
    w->store.result = STORE_UNAVAILABLE;
    w->store.ticket = 0;
    post_call(w, PARAMS("[\"r\",\"k\"]"));
    check(w, 503, STORAGE);
}

static void test_call_arguments(void **state) {
    static const struct {
        const char *params, *expected;
    } rows[] = {
        {"[]", CALL_MATCH_ERROR("undefined")},
        {"[null,\"k\"]", CALL_MATCH_ERROR("null")},
        {"[1]", CALL_MATCH_ERROR("number")},
        {"[false,{}]", CALL_MATCH_ERROR("boolean")},
        {"[[\"r\"],\"k\"]", CALL_MATCH_ERROR("object")},
        {"[\"r\"]", CALL_MATCH_ERROR("undefined")},
        {"[\"r\",null,\"k\"]", CALL_MATCH_ERROR("null")},
        {"[\"r\",{\"k\":\"k\"}]", CALL_MATCH_ERROR("object")},
        {"[\"\",\"k\"]", CALL_INVALID_ROOM},
        {"[\"nowhere\",\"\"]", CALL_INVALID_ROOM},
        {"[\"r\\u0000\",\"k\"]", CALL_INVALID_ROOM},
        {"[\"r\",\"\"]", CALL_INVALID_KEY_ID},
        {"[\"r\",\"\\u0000\"]", CALL_INVALID_KEY_ID},
    };
    struct world *w = *state;
    char message[512];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(message, sizeof message, PARAMS("%s"), rows[i].params);
        post_call(w, message);
        check_result(w, 400, rows[i].expected);
    }
    assert_int_equal(w->store.sets, 0);
}

static void test_call_shapes(void **state) {
    static const char *const invalid[] = {
        "",
        "[]",
        "{}",
        "{\"params\":[]}",
        "{\"method\":\"e2e.setRoomKeyID\"}",
        PARAMS("{}"),
        PARAMS("[\"r\",\"k\"]") "x",
        PARAMS("[\"\\ud800\",\"k\"]"),
        PARAMS("[\"r\",\"\\udc00\"]"),
        "{\"method\":1,\"params\":[]}",
        "{\"method\":\"\",\"params\":[],\"msg\":\"ping\"}",
        PARAMS("[\"r\",\"k\"],\"id\":{}"),
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        post_call(w, invalid[i]);
        check(w, 400, INVALID_CALL);
    }
    ask(w, "POST " CALL, "", SLICE("{\"message\":5}"));
    check(w, 400, MATCH_ERROR("number"));
    ask(w, "POST " CALL, "", SLICE("{\"message\":\"\\udc00\"}"));
    check(w, 400, INVALID_JSON("lone surrogate at byte 12"));
    ask(w, "POST " CALL, "", SLICE("{\"message\""));
    check(w, 400, INVALID_JSON("unexpected end at byte 10"));
    ask(w, "POST " CALL, "Content-Type: text/plain\r\n", SLICE("{}"));
    check(w, 415, NOT_JSON_TYPE);
    ask_plain(w, "POST " CALL, "", SLICE("{}"));
    check(w, 401, UNAUTHORIZED);
    post_call(w, "{\"method\":\"a\\\"%\",\"params\":[]}");
    check_result(w, 400,
                 "{\"msg\":\"result\",\"error\":" METEOR_ERROR("404", "Method 'a\\\"%' not found",
                                                               "", "404") "}");
    assert_int_equal(w->store.sets, 0);
}

/* What the reply repeats as the call's ID. */
static void test_call_ids(void **state) {
    static const struct {
        const char *id, *repeated; /* NULL: it makes the call invalid */
    } rows[] = {
        {"\"\"", ""},
        {"\"7\"", "7"},
        {"\"\\u0037\"", "7"},
        {"null", ""},
        {"7", "7"},
        {"0", "0"},
        {"-0", "-0"},
        {"-1.50", "-1.50"},
        {"1e3", "1e3"},
        {"1E+3", "1E+3"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {" 7 ", "7"},
        {"true", NULL},
        {"false", NULL},
        {"{}", NULL},
        {"[]", NULL},
        {"[7]", NULL},
        {"{\"id\":7}", NULL},
    };
    struct world *w = *state;
    char message[1024], expected[1024];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        print_message("%s\n", rows[i].id);
        snprintf(message, sizeof message,
                 "{\"id\":%s,\"method\":\"e2e.setRoomKeyID\",\"params\":[\"r\",\"k\"]}",
                 rows[i].id);
        post_call(w, message);
        snprintf(expected, sizeof expected, "{\"msg\":\"result\",\"id\":\"%s\"}", rows[i].repeated);
        if (rows[i].repeated == NULL)
            check(w, 400, INVALID_CALL);
        else
            check_result(w, 200, expected);
    }
    post_call(w, "{\"id\":5,\"method\":\"e2e.setRoomKeyID\",\"id\":null,\"params\":[]}");
    check_text(w->reply.http.body,
               "{\"message\":\"{\\\"msg\\\":\\\"result\\\",\\\"id\\\":\\\"\\\","
               "\\\"error\\\":{\\\"message\\\":\\\"Match error: Expected string, "
               "got undefined\\\",\\\"path\\\":\\\"\\\",\\\"sanitizedError\\\":"
               "{\\\"isClientSafe\\\":true,\\\"error\\\":400,\\\"reason\\\":"
               "\\\"Match failed\\\",\\\"message\\\":\\\"Match failed [400]\\\","
               "\\\"errorType\\\":\\\"Meteor.Error\\\"},\\\"errorType\\\":"
               "\\\"Match.Error\\\"}}\",\"success\":false}");
    for (int digits = ID_MAX_BYTES; digits <= ID_MAX_BYTES + 1; digits++) {
        char number[ID_MAX_BYTES + 2];
        memset(number, '9', sizeof number);
        snprintf(message, sizeof message,
                 "{\"id\":%.*s,\"method\":\"e2e.setRoomKeyID\",\"params\":[\"r\",\"k\"]}", digits,
                 number);
        post_call(w, message);
        snprintf(expected, sizeof expected, "{\"msg\":\"result\",\"id\":\"%.*s\"}", digits, number);
        if (digits > ID_MAX_BYTES)
            check(w, 400, INVALID_CALL);
        else
            check_result(w, 200, expected);
    }
}

/* Without memory for the tokens of the body, and for those of the message. */
static void test_call_no_memory(void **state) {
    struct world *w = *state;
    struct api api = {.access = &w->access, .store = &w->store};
    char body[4096];
    for (int inside = 0; inside < 2; inside++) {
        char *p = body;
        p += sprintf(p, "{\"message\":\"{\\\"method\\\":\\\"e2e.setRoomKeyID\\\",\\\"params\\\":"
                        "[\\\"r\\\",\\\"k\\\"");
        for (int i = 0; inside && i < JSON_FEW_TOKENS; i++) p += sprintf(p, ",0");
        p += sprintf(p, "]}\",\"x\":[0");
        for (int i = 0; !inside && i < JSON_FEW_TOKENS; i++) p += sprintf(p, ",0");
        p += sprintf(p, "]}");
        ask(w, "POST " CALL, "", slice_of(body));
        check_text(w->reply.http.body,
                   "{\"message\":\"{\\\"msg\\\":\\\"result\\\"}\",\"success\":true}");
        mallocs = 0;
        malloc_fails = true;
        api_answer(&api, &w->request, &w->reply);
        malloc_fails = false;
        check(w, 503, STORAGE);
        assert_int_equal(mallocs, 1);
    }
}

/* The longest body there is, to the byte that its bound is made of. */
static void test_call_longest_body(void **state) {
    struct world *w = *state;
    char message[4096], *p = message, *name;
    p += sprintf(p, "{\"params\":[],\"method\":\"");
    name = p;
    for (int i = 0; i < ID_MAX_BYTES; i++) p += sprintf(p, "\\u0001");
    p += sprintf(p, "\",\"id\":\"%.*s\"}", (int)(p - name), name);
    post_call(w, message);
    struct slice body = w->reply.http.body;
    assert_int_equal(w->reply.http.status, 400);
    assert_true(body.n > 3 * 7 * ID_MAX_BYTES && body.n < API_MAX_BODY_BYTES);
    const char *tail = "\\\"Meteor.Error\\\"}}\",\"success\":false}";
    assert_memory_equal(body.p + body.n - strlen(tail), tail, strlen(tail));
}

static void test_call_linear_time(void **state) {
    static const struct {
        const char *name, *before, *unit, *after;
    } rows[] = {
        {"escaped escapes", "{\"message\":\"{\\\"x\\\":\\\"", "\\\\n", "\\\"}\"}"},
        {"escaped names", "{\"message\":\"{\\\"\\\":0", ",\\\"\\\":0", "}\"}"},
        {"escaped arrays", "{\"message\":\"{\\\"params\\\":[[]", ",[]",
         "],\\\"method\\\":\\\"\\\"}\"}"},
        {"messages", "{\"message\":\"\"", ",\"message\":\"\\n\"", "}"},
    };
    struct world *w = *state;
    char *body = calloc(1, HTTP_MAX_BODY_BYTES + 1);
    assert_non_null(body);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        repeat(body, rows[i].before, rows[i].unit, rows[i].after);
        ask(w, "POST " CALL, "", slice_of(body));
        check_time(w, rows[i].name, body, 2 * MAX_PASSES);
    }
    free(body);
}

/* ---- Origins --------------------------------------------------------------------------------- */

static void check_origin(struct world *w, const char *listed, const char *fields,
                         const char *expected) {
    struct api api = {.origins = slice_of(listed)};
    ask_plain(w, "GET /healthz", fields, SLICE(""));
    check_text(api_origin(&api, &w->request), expected);
}

static void test_origins(void **state) {
    struct world *w = *state;
    check_origin(w, "", "Origin: https://a\r\n", "");
    check_origin(w, "*", "", "*");
    check_origin(w, "*", "Origin: null\r\n", "*");
    check_origin(w, "https://a", "Origin: https://a\r\n", "https://a");
    check_origin(w, "https://a", "Origin: HTTPS://A\r\n", "https://a");
    check_origin(w, "https://b,https://a", "Origin: https://a\r\n", "https://a");
    check_origin(w, "https://b,https://a", "", "");
    check_origin(w, "https://b,https://a", "Origin:\r\n", "");
    check_origin(w, "https://b,https://a", "Origin: https://b,https://a\r\n", "");
    check_origin(w, "https://b,https://a", "Origin: https://c\r\n", "");
    check_origin(w, "https://a", "Origin: https://a\r\nOrigin: https://a\r\n", "");
    struct api listed = {.origins = SLICE("https://a")}, any = {.origins = SLICE("*")};
    check_text(api_origin(&listed, NULL), "");
    check_text(api_origin(&any, NULL), "*");
    assert_true(api_is_origin_list(SLICE("*")));
    assert_true(api_is_origin_list(SLICE("https://a,http://b:1")));
    assert_false(api_is_origin_list(SLICE("")));
    assert_false(api_is_origin_list(SLICE("https://a,")));
    assert_false(api_is_origin_list(SLICE("https://a,*")));
}

/* ---- GET /api/v1/rooms.info ------------------------------------------------------------------ */

static void test_room_info(void **state) {
    struct world *w = *state;
    w->store.result = STORE_NONE;
    get(w, ROOMS "?roomId=" RID);
    check(w, 200, "{\"room\":{\"_id\":\"" RID "\",\"t\":\"c\"},\"success\":true}");
    w->store.result = STORE_OK;
    w->store.shown_key = SLICE(KEY);
    get(w, ROOMS "?roomId=" RID);
    check(w, 200,
          "{\"room\":{\"_id\":\"" RID "\",\"t\":\"c\",\"e2eKeyId\":\"" KEY "\"},\"success\":true}");
    get(w, ROOMS "?roomId=private");
    check(w, 200,
          "{\"room\":{\"_id\":\"private\",\"t\":\"p\",\"e2eKeyId\":\"" KEY "\"},\"success\":true}");
    ask(w, "HEAD " ROOMS "?roomId=direct", "", SLICE(""));
    check(w, 200,
          "{\"room\":{\"_id\":\"direct\",\"t\":\"d\",\"e2eKeyId\":\"" KEY "\"},\"success\":true}");
    w->store.result = STORE_UNAVAILABLE;
    get(w, ROOMS "?roomId=" RID);
    check(w, 503, STORAGE);
}

static void test_room_info_queries(void **state) {
    static const struct {
        const char *query;
        const char *room; /* what it names, or NULL for no parameter, "" for no such room */
    } rows[] = {
        {"", NULL},
        {"?", NULL},
        {"?roomId", NULL},
        {"?roomId=", NULL},
        {"?roomId=a&roomId=a", NULL},
        {"?roomId=&roomId=a", NULL},
        {"?roomId=a&roomId", NULL},
        {"?roomId=%", NULL},
        {"?roomId=%4", NULL},
        {"?roomId=a%4&b=1", NULL},
        {"?roomId=%4G", NULL},
        {"?roomId=%G4", NULL},
        {"?roomId=%%41", NULL},
        {"?roomid=a", NULL},
        {"?room%49d=a", NULL},
        {"?roomIdx=a&xroomId=b", NULL},
        {"?a=roomId=b", NULL},
        {"?roomId=a", "a"},
        {"?x=1&roomId=a&y", "a"},
        {"?&&roomId=a&", "a"},
        {"?roomId=a=b", "a=b"},
        {"?roomId=a+b", "a+b"},
        {"?roomId=a;b?c", "a;b?c"},
        {"?roomId=%61%2B%2f%26", "a+/&"},
        {"?roomId=%C3%A9", "\xC3\xA9"},
        {"?roomId=a&roomName=b", "a"},
        {"?roomName=b", ""},
        {"?roomName=b&roomId=", ""},
        {"?roomId=%4&roomName=b", ""},
        {"?roomId=a&roomId=b&roomName=c", ""},
        {"?roomId=nowhere", ""},
        {"?roomId=%00", ""},
        {"?roomId=a%00", ""},
        {"?roomId=%FF", ""},
        {"?roomId=%C3", ""},
        {"?roomId=%ED%A0%80", ""},
    };
    struct world *w = *state;
    w->store.result = STORE_NONE;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char target[128];
        snprintf(target, sizeof target, ROOMS "%s", rows[i].query);
        unsigned gets = w->store.gets;
        get(w, target);
        if (rows[i].room == NULL) {
            check(w, 400, NO_ROOM_ID);
        } else if (rows[i].room[0] == '\0') {
            check(w, 400, ROOM_NOT_FOUND);
        } else {
            assert_int_equal(w->reply.http.status, 200);
            check_id(&w->store.room, slice_of(rows[i].room));
            gets++;
        }
        assert_int_equal(w->store.gets, gets);
    }
}

static void test_room_info_lengths(void **state) {
    struct world *w = *state;
    char target[HTTP_MAX_TARGET_BYTES];
    w->store.result = STORE_NONE;
    snprintf(target, sizeof target, ROOMS "?roomId=%0*d", ID_MAX_BYTES, 0);
    get(w, target);
    assert_int_equal(w->reply.http.status, 200);
    assert_int_equal(w->store.room.n, ID_MAX_BYTES);
    snprintf(target, sizeof target, ROOMS "?roomId=%0*d", ID_MAX_BYTES + 1, 0);
    get(w, target);
    check(w, 400, ROOM_NOT_FOUND);
    snprintf(target, sizeof target, ROOMS "?roomId=%0*d", 5000, 0);
    get(w, target);
    check(w, 400, ROOM_NOT_FOUND);
    snprintf(target, sizeof target, ROOMS "?roomId=%0*d%%4", 5000, 0); /* a late broken escape */
    get(w, target);
    check(w, 400, NO_ROOM_ID);
}

static void test_json_escapes(void **state) {
    struct world *w = *state;
    w->store.shown_key = SLICE("\x01\x08\t\n\x0B\f\r\x1B\x1F\"\\/\x7F'<\xC3\xA9\xE2\x80\xA8");
    get(w, ROOMS "?roomId=%22%5c%0a%1f%7f%e2%82%ac");
    check(w, 200,
          "{\"room\":{\"_id\":\"\\\"\\\\\\n\\u001f\x7F\xE2\x82\xAC\",\"t\":\"c\",\"e2eKeyId\":\""
          "\\u0001\\b\\t\\n\\u000b\\f\\r\\u001b\\u001f\\\"\\\\/\x7F'<\xC3\xA9\xE2\x80\xA8\"},"
          "\"success\":true}");
}

/* The longest body there is fits, and its end is whole. */
static void test_longest_body(void **state) {
    struct world *w = *state;
    char key[ID_MAX_BYTES], target[HTTP_MAX_TARGET_BYTES];
    memset(key, 1, sizeof key);
    w->store.shown_key = (struct slice){key, sizeof key};
    char *p = target + sprintf(target, ROOMS "?roomId=");
    for (unsigned i = 0; i < ID_MAX_BYTES; i++) p += sprintf(p, "%%01");
    get(w, target);
    struct slice body = w->reply.http.body;
    assert_int_equal(body.n, strlen("{\"room\":{\"_id\":\"\",\"t\":\"c\",\"e2eKeyId\":\"\"},"
                                    "\"success\":true}") +
                                 2 * 6 * ID_MAX_BYTES);
    assert_true(body.n <= API_MAX_BODY_BYTES);
    assert_memory_equal(body.p + body.n - 19, "1\"},\"success\":true}", 19);
}

/* ---- Everything else ------------------------------------------------------------------------- */

static void test_health(void **state) {
    struct world *w = *state;
    ask_plain(w, "GET /healthz", "", SLICE(""));
    check(w, 200, "ok");
    w->store.failed = true;
    ask_plain(w, "GET /healthz?x", "", SLICE(""));
    check(w, 503, "storage failed");
    ask_plain(w, "HEAD /healthz", "", SLICE(""));
    check(w, 503, "storage failed");
    assert_int_equal(w->access.asked_user, 0);
}

/* Only where there are metrics is there /metrics; what the store says is in the text. */
static void test_metrics(void **state) {
    struct world *w = *state;
    ask_plain(w, "GET /metrics", "", SLICE(""));
    check(w, 404, NOT_FOUND);
    assert_int_equal(w->reply.endpoint, AT_OTHER);
    ask_plain(w, "OPTIONS /metrics", "", SLICE(""));
    check(w, 404, NOT_FOUND);

    struct metrics *metrics = calloc(1, sizeof *metrics);
    assert_non_null(metrics);
    w->metrics = metrics;
    for (int failed = 0; failed < 2; failed++) {
        w->store.failed = failed;
        ask_plain(w, failed ? "HEAD /metrics" : "GET /metrics?x", "", SLICE(""));
        const struct http_reply *http = &w->reply.http;
        check_text(http->media_type, "text/plain; version=0.0.4");
        assert_int_equal(http->status, 200);
        assert_int_equal(w->reply.endpoint, AT_METRICS);
        const char *expected = failed ? "\nroomkeyd_key_ids 4\n" : "\nroomkeyd_key_ids 3\n";
        assert_non_null(memmem(http->body.p, http->body.n, expected, strlen(expected)));
        expected = "\nroomkeyd_log_size_bytes 500000000";
        assert_non_null(memmem(http->body.p, http->body.n, expected, strlen(expected)));
        expected = failed ? "\nroomkeyd_storage_failed 1\n" : "\nroomkeyd_storage_failed 0\n";
        assert_non_null(memmem(http->body.p, http->body.n, expected, strlen(expected)));
    }
    ask_plain(w, "POST /metrics", "", SLICE(""));
    check(w, 405, METHOD_NOT_ALLOWED);
    assert_string_equal(w->reply.http.allow, "GET, HEAD, OPTIONS");
    ask_plain(w, "OPTIONS /metrics", "", SLICE(""));
    check(w, 204, "");
    assert_int_equal(w->access.asked_user, 0);
    w->metrics = NULL;
    free(metrics);
}

/* What a reply is counted as, and whose it is: nobody's who has not proved it. */
static void test_who_and_where(void **state) {
    static const struct {
        const char *line;
        enum metrics_endpoint endpoint;
        bool is_authenticated;
    } rows[] = {
        {"POST " SET_KEY, AT_SET, true},     {"GET " SET_KEY, AT_SET, false},
        {"OPTIONS " SET_KEY, AT_SET, false}, {"GET " ROOMS "?roomId=a", AT_INFO, true},
        {"GET " ROOMS, AT_INFO, true},       {"PUT " ROOMS, AT_INFO, false},
        {"GET /healthz", AT_HEALTH, false},  {"OPTIONS *", AT_OTHER, false},
        {"GET /nowhere", AT_OTHER, false},
    };
    struct world *w = *state;
    w->store.shown_key = SLICE("key");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ask(w, rows[i].line, "", SLICE(""));
        assert_int_equal(w->reply.endpoint, rows[i].endpoint);
        check_text(w->user, rows[i].is_authenticated ? "alice" : "");
        assert_false(w->reply.exists);
        ask_plain(w, rows[i].line, "X-User-Id: alice\r\nX-Auth-Token: wrong\r\n", SLICE(""));
        check_text(w->user, "");
        ask_plain(w, rows[i].line, "X-User-Id: secret\r\nX-Auth-Token: alice\r\n", SLICE(""));
        check_text(w->user, "");
    }
    w->store.result = STORE_EXISTS;
    w->store.ticket = 7;
    post(w, BODY("\"a\"", "\"b\""));
    assert_true(w->reply.exists && w->reply.ticket == 7);
    api_storage_unavailable(&w->reply);
    assert_false(w->reply.exists);
    api_refuse(400, "why", &w->reply);
    assert_int_equal(w->reply.endpoint, AT_OTHER);
}

#define ALLOW_POST "POST, OPTIONS"
#define ALLOW_GET  "GET, HEAD, OPTIONS"
#define ALLOW_ALL  "GET, HEAD, POST, OPTIONS"

static void test_routes(void **state) {
    static const struct {
        const char *line;
        int status;
        const char *allow;
    } rows[] = {
        {"OPTIONS " SET_KEY, 204, ALLOW_POST},
        {"OPTIONS " CALL, 204, ALLOW_POST},
        {"GET " CALL, 405, ALLOW_POST},
        {"OPTIONS " ROOMS, 204, ALLOW_GET},
        {"OPTIONS /healthz", 204, ALLOW_GET},
        {"OPTIONS *", 204, ALLOW_ALL},
        {"GET " SET_KEY, 405, ALLOW_POST},
        {"HEAD " SET_KEY, 405, ALLOW_POST},
        {"PUT " SET_KEY, 405, ALLOW_POST},
        {"post " SET_KEY, 405, ALLOW_POST},
        {"POSTS " SET_KEY, 405, ALLOW_POST},
        {"POST " ROOMS "?roomId=a", 405, ALLOW_GET},
        {"DELETE " ROOMS, 405, ALLOW_GET},
        {"POST /healthz", 405, ALLOW_GET},
        {"BREW /healthz", 405, ALLOW_GET},
        {"options /healthz", 405, ALLOW_GET},
        {"GET /", 404, NULL},
        {"HEAD /", 404, NULL},
        {"POST /api/v1/e2e.setRoomKeyID/", 404, NULL},
        {"POST /api/v1/e2e.setRoomKeyIDs", 404, NULL},
        {"POST /api/v1/e2e.setRoomKeyI", 404, NULL},
        {"POST /api/v1/e2e%2EsetRoomKeyID", 404, NULL},
        {"POST /API/v1/e2e.setRoomKeyID", 404, NULL},
        {"POST //api/v1/e2e.setRoomKeyID", 404, NULL},
        {"POST /api/v1/method.call/e2e.setRoomKeyIDs", 404, NULL},
        {"POST /api/v1/method.call/e2e:setRoomKeyID", 404, NULL},
        {"POST /api/v1/method.call", 404, NULL},
        {"OPTIONS /unknown", 404, NULL},
        {"BREW /coffee", 404, NULL},
    };
    struct world *w = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ask_plain(w, rows[i].line, "", SLICE(""));
        check(w, rows[i].status,
              rows[i].status == 404   ? NOT_FOUND
              : rows[i].status == 405 ? METHOD_NOT_ALLOWED
                                      : "");
        if (rows[i].allow != NULL) assert_string_equal(w->reply.http.allow, rows[i].allow);
    }
    assert_int_equal(w->access.asked_user + w->store.sets + w->store.gets, 0);
}

static void test_refuse(void **state) {
    static const int statuses[] = {400, 408, 413, 414, 417, 431, 501, 503, 505};
    struct world *w = *state;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        memset(&w->reply, 0xA5, sizeof w->reply);
        api_refuse(statuses[i], "a few words", &w->reply);
        assert_int_equal(w->reply.http.retry_after_s > 0, statuses[i] == 503);
        w->reply.http.retry_after_s = 0;
        check(w, statuses[i], "{\"success\":false,\"error\":\"a few words\"}");
    }
    char why[2 * API_MAX_BODY_BYTES]; /* absurd, but then no reason to write past the end */
    memset(why, 'x', sizeof why);
    why[sizeof why - 1] = '\0';
    api_refuse(400, why, &w->reply);
    assert_int_equal(w->reply.http.body.n, API_MAX_BODY_BYTES);
}

/* api.c and http.c together, down to the wire. */
static void test_wire(void **state) {
    struct world *w = *state;
    char out[HTTP_MAX_REPLY_HEAD_BYTES + API_MAX_BODY_BYTES];
    post(w, BODY("\"\"", "\"\""));
    size_t n = http_write_reply(out, &w->reply.http, "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_true(n > sizeof INVALID_ROOM);
    assert_memory_equal(out, "HTTP/1.1 400 Bad Request\r\n", 26);
    assert_memory_equal(out + n - (sizeof INVALID_ROOM - 1), INVALID_ROOM, sizeof INVALID_ROOM - 1);
    assert_non_null(memmem(out, n, "\r\nContent-Type: application/json\r\n", 34));
    assert_non_null(memmem(out, n, "\r\nCache-Control: no-store\r\n", 27));
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_sets_a_key),
        TEST(test_usual_call_allocates_nothing),
        TEST(test_key_exists),
        TEST(test_storage_unavailable),
        TEST(test_credentials),
        TEST(test_content_types),
        TEST(test_content_codings),
        TEST(test_types),
        TEST(test_members),
        TEST(test_rooms_and_keys),
        TEST(test_lengths),
        TEST(test_decoded_values),
        TEST(test_lone_surrogates),
        TEST(test_order_of_checks),
        TEST(test_valid_json),
        TEST(test_structure),
        TEST(test_numbers_and_literals),
        TEST(test_strings),
        TEST(test_every_prefix),
        TEST(test_depth),
        TEST(test_width),
        TEST(test_no_memory),
        TEST(test_linear_time),
        TEST(test_call_sets_a_key),
        TEST(test_call_arguments),
        TEST(test_call_shapes),
        TEST(test_call_ids),
        TEST(test_call_no_memory),
        TEST(test_call_longest_body),
        TEST(test_call_linear_time),
        TEST(test_origins),
        TEST(test_room_info),
        TEST(test_room_info_queries),
        TEST(test_room_info_lengths),
        TEST(test_json_escapes),
        TEST(test_longest_body),
        TEST(test_health),
        TEST(test_metrics),
        TEST(test_who_and_where),
        TEST(test_routes),
        TEST(test_refuse),
        TEST(test_wire),
    };
    return cmocka_run_group_tests_name("api", tests, NULL, NULL);
}
