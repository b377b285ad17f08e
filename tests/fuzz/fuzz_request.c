/*
 * fuzz_request.c: bytes in, replies out: http.c and api.c together, as a connection runs them.
 *
 *     input:  [ 3 bytes: lengths of pieces ][ a stream of requests ... ]
 *
 * alice has the token "secret" and bob "hidden"; rooms and their key IDs are in a small array. What
 * is checked:
 * - every reply is one: a status line, a Date, fields, and a body that is as long as Content-Length
 *   says and that jansson reads as JSON where its type says so;
 * - one reply a request, in order, and none after a close;
 * - a coded body is never taken, and the refusal says which coding would be;
 * - a method's result repeats the call's ID, as jansson reads it;
 * - a 200 to a set means that the array has the key ID, and nothing else changes the array; a key
 *   ID once there is what every later reply shows, and never replaced;
 * - the stream cut into pieces gets the same replies as the whole.
 */
#include "api.h"
#include "fuzz.h"

#include <jansson.h>

#define PIECES    3
#define MAX_ROOMS 64

/* ---- Fakes ----------------------------------------------------------------------------------- */

struct id {
    size_t n;
    char bytes[ID_MAX_BYTES];
};

struct store {
    size_t rooms;
    unsigned sets; /* that were taken */
    struct room {
        struct id room, key;
    } room[MAX_ROOMS];
};

static struct slice id_slice(const struct id *id) { return (struct slice){id->bytes, id->n}; }

static void keep(struct id *id, struct slice bytes) {
    REQUIRE(slice_is_id(bytes));
    id->n = bytes.n;
    memcpy(id->bytes, bytes.p, bytes.n);
}

static const struct room *find(const struct store *store, struct slice room) {
    for (size_t i = 0; i < store->rooms; i++)
        if (slice_equal(id_slice(&store->room[i].room), room)) return &store->room[i];
    return NULL;
}

bool access_knows_user(const struct access *access, struct slice user, struct slice token) {
    (void)access;
    return (slice_equal(user, SLICE("alice")) && slice_equal(token, SLICE("secret"))) ||
           (slice_equal(user, SLICE("bob")) && slice_equal(token, SLICE("hidden")));
}

/* "private" is alice's, "nowhere" is no room, and every other one is everybody's. */
char access_room_type(const struct access *access, struct slice room, struct slice user) {
    (void)access;
    REQUIRE(slice_is_id(room));
    if (slice_equal(room, SLICE("nowhere"))) return 0;
    if (slice_equal(room, SLICE("private"))) return slice_equal(user, SLICE("alice")) ? 'p' : 0;
    return 'c';
}

/* A room called "failing" cannot be read or written, and neither can one too many. */
enum store_result store_set(struct store *store, const struct store_record *record,
                            uint64_t *ticket) {
    *ticket = 0;
    if (find(store, record->room) != NULL) return STORE_EXISTS;
    if (store->rooms == MAX_ROOMS || slice_equal(record->room, SLICE("failing")))
        return STORE_UNAVAILABLE;
    struct room *room = &store->room[store->rooms++];
    keep(&room->room, record->room);
    keep(&room->key, record->key);
    *ticket = ++store->sets;
    return STORE_OK;
}

enum store_result store_get(struct store *store, struct slice room, char key[ID_MAX_BYTES],
                            size_t *key_size) {
    const struct room *found = find(store, room);
    if (slice_equal(room, SLICE("failing"))) return STORE_UNAVAILABLE;
    if (found == NULL) return STORE_NONE;
    memcpy(key, found->key.bytes, found->key.n);
    *key_size = found->key.n;
    return STORE_OK;
}

bool store_has_failed(const struct store *store) { return store->rooms == MAX_ROOMS; }

bool store_has_lost_log(const struct store *store) { return store_has_failed(store); }

uint64_t store_key_ids(const struct store *store) { return store->rooms; }

uint64_t store_log_bytes(const struct store *store) { return 100 * (uint64_t)store->rooms; }

/* ---- A reply's syntax ------------------------------------------------------------------------ */

struct seen_reply {
    int status;
    bool has_length, has_date, closes, is_json, wants_no_coding;
    size_t length;
    struct slice body;
};

static void read_field(struct seen_reply *seen, struct slice line) {
    struct slice value = line, name = fuzz_cut(&value, SLICE(": "));
    REQUIRE(name.n > 0 && value.n > 0 && memchr(line.p, '\r', line.n) == NULL);
    for (size_t i = 0; i < line.n; i++) REQUIRE(line.p[i] >= ' ' && line.p[i] <= '~');
    if (http_equal_ignoring_case(name, SLICE("content-length"))) {
        REQUIRE(!seen->has_length);
        seen->has_length = true;
        for (size_t i = 0; i < value.n; i++) {
            REQUIRE(value.p[i] >= '0' && value.p[i] <= '9' && seen->length < SIZE_MAX / 16);
            seen->length = seen->length * 10 + (size_t)(value.p[i] - '0');
        }
    } else if (http_equal_ignoring_case(name, SLICE("date"))) {
        REQUIRE(!seen->has_date && value.n == HTTP_DATE_BYTES - 1);
        seen->has_date = true;
    } else if (http_equal_ignoring_case(name, SLICE("connection"))) {
        seen->closes = slice_equal(value, SLICE("close"));
    } else if (http_equal_ignoring_case(name, SLICE("content-type"))) {
        seen->is_json = slice_equal(value, SLICE("application/json"));
    } else if (http_equal_ignoring_case(name, SLICE("accept-encoding"))) {
        seen->wants_no_coding = slice_equal(value, SLICE("identity"));
        REQUIRE(seen->wants_no_coding && seen->status == 415);
    }
}

/* Takes a reply apart; bytes hold it and nothing else. */
static void read_reply(struct seen_reply *seen, struct slice bytes, bool head_only) {
    struct slice line = fuzz_cut(&bytes, SLICE("\r\n"));
    REQUIRE(line.n > 13 && memcmp(line.p, "HTTP/1.1 ", 9) == 0 && line.p[12] == ' ');
    *seen = (struct seen_reply){.status = atoi(line.p + 9)};
    REQUIRE(
        slice_equal((struct slice){line.p + 9, line.n - 9}, slice_of(http_status(seen->status))));
    while ((line = fuzz_cut(&bytes, SLICE("\r\n"))).n > 0) read_field(seen, line);

    seen->body = bytes;
    REQUIRE(seen->has_date && seen->has_length == (seen->status != 204));
    REQUIRE(seen->body.n == (head_only ? 0 : seen->length));
    if (!seen->is_json || head_only) return;
    json_t *value = json_loadb(bytes.p, bytes.n, JSON_REJECT_DUPLICATES, NULL);
    REQUIRE(json_is_object(value));
    REQUIRE(json_is_boolean(json_object_get(value, "success")));
    REQUIRE(json_is_true(json_object_get(value, "success")) == (seen->status == 200));
    json_decref(value);
}

/* ---- A connection ---------------------------------------------------------------------------- */

struct connection {
    struct store store;
    struct http_request request;
    struct api_reply reply;
    char *buffer; /* size bytes of memory, no more */
    size_t size;
    bool closed;
    struct fuzz_text out; /* all replies */
};

/* Writes the reply into exactly the memory that http.h asks for, and takes it apart. */
static void send_reply(struct connection *connection, struct seen_reply *seen, bool closes) {
    struct http_reply *reply = &connection->reply.http;
    char date[HTTP_DATE_BYTES], *out = malloc(HTTP_MAX_REPLY_HEAD_BYTES + reply->body.n);
    REQUIRE(out != NULL && !connection->closed && reply->body.n <= API_MAX_BODY_BYTES);
    http_date(0, date);
    reply->close = connection->closed = closes;
    size_t n = http_write_reply(out, reply, date);
    REQUIRE(n <= HTTP_MAX_REPLY_HEAD_BYTES + reply->body.n);
    read_reply(seen, (struct slice){out, n}, reply->head_only);
    REQUIRE(seen->closes == closes);
    fuzz_add(&connection->out, (struct slice){out, n});
    free(out);
}

static unsigned count_room_ids(struct slice query) {
    unsigned count = 0;
    while (query.n > 0) {
        struct slice value = fuzz_cut(&query, SLICE("&"));
        count += slice_equal(fuzz_cut(&value, SLICE("=")), SLICE("roomId"));
    }
    return count;
}

/* Whether what a GET shows is what the store holds, and was asked for once. */
static void check_shown_key(const struct store *store, struct slice query, struct slice body) {
    json_t *value = json_loadb(body.p, body.n, 0, NULL);
    const json_t *room = json_object_get(value, "room");
    const json_t *id = json_object_get(room, "_id"), *key = json_object_get(room, "e2eKeyId");
    if (room != NULL) {
        struct slice rid = {json_string_value(id), json_string_length(id)};
        const struct room *found = find(store, rid);
        REQUIRE((found != NULL) == json_is_string(key) && count_room_ids(query) == 1);
        if (found != NULL)
            REQUIRE(slice_equal(id_slice(&found->key),
                                (struct slice){json_string_value(key), json_string_length(key)}));
    }
    json_decref(value);
}

/* Whether the fields say that the body is something else than it looks like. */
static bool is_coded(const struct http_request *request) {
    struct slice value;
    unsigned count = http_field(request, "content-encoding", &value);
    bool is_plain = value.n == 0 || http_equal_ignoring_case(value, SLICE("identity"));
    return count > 1 || !is_plain;
}

/* The JSON text in a JSON object's message; NULL if there is none that jansson reads. */
static json_t *read_message(struct slice body) {
    json_t *outer = json_loadb(body.p, body.n, JSON_ALLOW_NUL, NULL);
    const json_t *text = json_object_get(outer, "message");
    json_t *inner =
        json_is_string(text)
            ? json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, NULL)
            : NULL;
    json_decref(outer);
    return inner;
}

/* Whether a result's ID is the call's: a number's text means the same number, null is empty. */
static void check_call_id(struct slice asked, struct slice replied) {
    json_t *call = read_message(asked), *result = read_message(replied);
    const json_t *id = json_object_get(call, "id"), *repeated = json_object_get(result, "id");
    struct slice text = {json_string_value(repeated), json_string_length(repeated)};
    if (call != NULL && result != NULL) {
        REQUIRE((id == NULL) == (repeated == NULL));
        REQUIRE(id == NULL || (json_is_string(repeated) && text.n <= ID_MAX_BYTES));
        REQUIRE(id == NULL || json_is_string(id) || json_is_number(id) || json_is_null(id));
        REQUIRE(!json_is_null(id) || text.n == 0);
        REQUIRE(!json_is_string(id) ||
                slice_equal(text, (struct slice){json_string_value(id), json_string_length(id)}));
    }
    if (call != NULL && result != NULL && json_is_number(id)) {
        json_t *number = json_loadb(text.p, text.n, JSON_DECODE_ANY, NULL);
        REQUIRE(json_equal(number, id));
        json_decref(number);
    }
    json_decref(call);
    json_decref(result);
}

static void answer(struct connection *connection) {
    const struct http_request *request = &connection->request;
    struct store *store = &connection->store;
    struct api api = {.store = store};
    struct seen_reply seen;
    unsigned sets = store->sets;
    bool is_post = slice_equal(request->method, SLICE("POST"));
    bool is_get = slice_equal(request->method, SLICE("GET"));

    api_answer(&api, request, &connection->reply);
    connection->reply.http.confirm_keep_alive = request->is_http10 && request->keep_alive;
    send_reply(connection, &seen, !request->keep_alive);

    REQUIRE((store->sets > sets) == (is_post && seen.status == 200));
    REQUIRE(connection->reply.ticket == (store->sets > sets ? store->sets : 0));
    REQUIRE(!seen.wants_no_coding || (is_post && is_coded(request)));
    if (is_post && is_coded(request))
        REQUIRE(seen.status == 401 || seen.status == 404 || seen.status == 405 ||
                seen.status == 415);
    if (is_post && seen.is_json) check_call_id(request->body, seen.body);
    if (is_get && seen.is_json) check_shown_key(store, request->query, seen.body);
}

static void refuse(struct connection *connection) {
    struct seen_reply seen;
    api_refuse(connection->request.status, connection->request.why, &connection->reply);
    send_reply(connection, &seen, true);
    REQUIRE(seen.status >= 400 && seen.is_json);
}

/* Takes a complete request off the front of the buffer. */
static void drop_request(struct connection *connection) {
    size_t taken = connection->request.size;
    connection->size -= taken;
    char *rest = fuzz_copy((struct slice){connection->buffer + taken, connection->size});
    free(connection->buffer);
    connection->buffer = rest;
    http_request_init(&connection->request);
}

static void receive(struct connection *connection, struct slice piece) {
    char *buffer = malloc(connection->size + piece.n);
    REQUIRE(buffer != NULL);
    if (connection->size > 0) memcpy(buffer, connection->buffer, connection->size);
    memcpy(buffer + connection->size, piece.p, piece.n);
    free(connection->buffer);
    connection->buffer = buffer;
    connection->size += piece.n;
    while (connection->size > 0 && !connection->closed) {
        enum http_progress progress =
            http_parse(&connection->request, connection->buffer, &connection->size);
        if (progress == HTTP_MORE || progress == HTTP_CONTINUE) return;
        if (progress == HTTP_ERROR) {
            refuse(connection);
        } else {
            answer(connection);
            drop_request(connection);
        }
    }
}

/* Serves input, whole or in pieces. Returns all replies, which the caller frees. */
static struct fuzz_text serve(struct slice input, const uint8_t *pieces) {
    struct connection *connection = calloc(1, sizeof *connection);
    REQUIRE(connection != NULL);
    http_request_init(&connection->request);
    for (size_t i = 0; input.n > 0 && !connection->closed; i++) {
        size_t n = pieces != NULL ? pieces[i % PIECES] % 64 + 1u : input.n;
        n = n < input.n ? n : input.n;
        receive(connection, (struct slice){input.p, n});
        input = (struct slice){input.p + n, input.n - n};
    }
    struct fuzz_text out = connection->out;
    free(connection->buffer);
    free(connection);
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size <= PIECES) return 0;
    struct slice input = {(const char *)data + PIECES, size - PIECES};
    struct fuzz_text whole = serve(input, NULL);
    struct fuzz_text in_pieces = serve(input, data);
    REQUIRE(
        slice_equal((struct slice){whole.p, whole.n}, (struct slice){in_pieces.p, in_pieces.n}));
    free(whole.p);
    free(in_pieces.p);
    return 0;
}
