/*
 * api.c: what each request means, and the exact reply it gets.
 *
 *     http_request --> route --> authentication --> arguments --> rules --> reply
 *                        |             |                |           |
 *                    404, 405         401        415, 400 (JSON)  400, 503
 *
 * The checks of an endpoint run in that order and the first that fails answers, so the order alone
 * decides what a stranger can learn: nothing about rooms before authentication, nothing about keys
 * before access to the room. Arguments (what the client wrote) and rules (what may happen) are kept
 * apart: the rules do not know how a call was spelled.
 *
 * Invariants: every body stands in one of two tables, once, with a '%' where its variable text
 * goes; a constant body is sent from there without a copy. No request makes a body longer than
 * API_MAX_BODY_BYTES. Nothing is remembered between two calls.
 *
 * Refused on purpose: a Content-Type that is not JSON, and credentials given twice.
 */
#include "api.h"
#include "json.h"
#include <stdio.h>

#define RETRY_AFTER_S 1 /* seconds until a refused connection is worth another try */

/* ---- Replies --------------------------------------------------------------------------------- */

enum reply_id {
    REPLY_SUCCESS,
    REPLY_UNAUTHORIZED,
    REPLY_MEDIA_TYPE,
    REPLY_INVALID_JSON, /* variable text: WHY at byte N */
    REPLY_MATCH_ERROR,  /* variable text: the type of what is not a string */
    REPLY_INVALID_ROOM,
    REPLY_INVALID_KEY_ID,
    REPLY_KEY_EXISTS,
    REPLY_STORAGE,
    REPLY_RESULT,       /* variable text: the rest of a method's result, escaped */
    REPLY_METHOD_ERROR, /* likewise */
    REPLY_NO_METHOD,    /* always within a REPLY_METHOD_ERROR */
    REPLY_INVALID_CALL,
    REPLY_ROOM, /* variable text: the room's fields */
    REPLY_NO_ROOM_ID,
    REPLY_ROOM_NOT_FOUND,
    REPLY_PATH_NOT_FOUND,
    REPLY_METHOD_NOT_ALLOWED,
    REPLY_OPTIONS,
    REPLY_REFUSED, /* variable text: WHY; the status varies too */
    REPLY_HEALTHY,
    REPLY_UNHEALTHY,
    REPLY_METRICS, /* the body is the metrics' */
};

#define TEXT(literal)                                                                              \
    { (literal), sizeof(literal) - 1 }
#define JSON(text)  .media_type = TEXT("application/json"), .body = TEXT(text), .is_private = true
#define PLAIN(text) .media_type = TEXT("text/plain"), .body = TEXT(text)

/* Rocket.Chat's errors: a sentence, its code in brackets, the code once more, sometimes details. */
#define FAILURE               "{\"success\":false,\"error\":\""
#define CODE(code)            " [" code "]\",\"errorType\":\"" code "\""
#define ERROR(sentence, code) FAILURE sentence CODE(code) "}"
#define ERROR_IN(method, sentence, code)                                                           \
    FAILURE sentence CODE(code) ",\"details\":{\"method\":\"" method "\"}}"
#define RESULT     "{\"message\":\"{\\\"msg\\\":\\\"result\\\""
#define ID_OR_NAME "\\\"roomId\\\" or \\\"roomName\\\""

/* Variable text takes the place of a '%'. */
/* clang-format off */
static const struct http_reply replies[] = {
    [REPLY_SUCCESS]       = {200, JSON("{\"success\":true}")},
    [REPLY_UNAUTHORIZED]  = {401, JSON(FAILURE "unauthorized\"}")},
    [REPLY_MEDIA_TYPE]    = {415, JSON(ERROR("Content-Type must be application/json",
                                             "error-unsupported-media-type"))},
    [REPLY_INVALID_JSON]  = {400, JSON(ERROR("Invalid JSON: %", "error-invalid-json"))},
    [REPLY_MATCH_ERROR]   = {400, JSON(FAILURE "Match error: Expected string, got %\"}")},
    [REPLY_INVALID_ROOM]  = {400, JSON(ERROR_IN("canAccessRoom", "Invalid room",
                                                "error-invalid-room"))},
    [REPLY_INVALID_KEY_ID] = {400, JSON(ERROR("Invalid key ID: 1 to 255 bytes, no NUL",
                                              "error-invalid-key-id"))},
    [REPLY_KEY_EXISTS]    = {400, JSON(ERROR_IN("e2e.setRoomKeyID", "E2E Key ID already exists",
                                                "error-room-e2e-key-already-exists"))},
    [REPLY_STORAGE]       = {503, JSON(ERROR("Storage unavailable", "error-storage"))},
    [REPLY_RESULT]        = {200, JSON(RESULT "%}\",\"success\":true}")},
    [REPLY_METHOD_ERROR]  = {400, JSON(RESULT "%}\",\"success\":false}")},
    [REPLY_INVALID_CALL]  = {400, JSON(FAILURE "Invalid method call\"}")},
    [REPLY_ROOM]          = {200, JSON("{\"room\":{\"_id\":%},\"success\":true}")},
    [REPLY_NO_ROOM_ID]    = {400, JSON(ERROR("The parameter " ID_OR_NAME " is required",
                                             "error-roomid-param-not-provided"))},
    [REPLY_ROOM_NOT_FOUND] = {400, JSON(ERROR("The required " ID_OR_NAME
                                              " param provided does not match any channel",
                                              "error-room-not-found"))},
    [REPLY_PATH_NOT_FOUND] = {404, JSON(FAILURE "Resource not found\"}")},
    [REPLY_METHOD_NOT_ALLOWED] = {405, JSON(FAILURE "Method Not Allowed\"}")},
    [REPLY_OPTIONS]       = {.status = 204},
    [REPLY_REFUSED]       = {400, JSON(FAILURE "%\"}")},
    [REPLY_HEALTHY]       = {200, PLAIN("ok")},
    [REPLY_UNHEALTHY]     = {503, PLAIN("storage failed")},
    [REPLY_METRICS]       = {200, .media_type = TEXT("text/plain; version=0.0.4")},
};
/* clang-format on */

/* A reply whose body is constant, or the beginning of one whose body is not. */
static void reply_start(struct api_reply *reply, enum reply_id id) {
    reply->http = replies[id];
    reply->ticket = 0;
    reply->exists = id == REPLY_KEY_EXISTS;
}

/* Adds to a body in .scratch. What has no room is cut off; only an overlong WHY could be. */
static void reply_add(struct api_reply *reply, struct slice text) {
    struct slice *body = &reply->http.body;
    size_t room = sizeof reply->scratch - body->n;
    size_t n = text.n < room ? text.n : room;
    memcpy(reply->scratch + body->n, text.p, n);
    body->n += n;
}

/* Begins a reply with variable text: add that, then what is returned, the rest of the body. */
static struct slice reply_begin(struct api_reply *reply, enum reply_id id) {
    struct slice rest = replies[id].body;
    reply_start(reply, id);
    reply->http.body = (struct slice){reply->scratch, 0};
    reply_add(reply, http_cut(&rest, '%'));
    return rest;
}

static void reply_with(struct api_reply *reply, enum reply_id id, struct slice text) {
    struct slice rest = reply_begin(reply, id);
    reply_add(reply, text);
    reply_add(reply, rest);
}

/* Adds text as it stands within a JSON string; text may be a quoted ID. */
static void reply_add_escaped(struct api_reply *reply, struct slice text) {
    char string[JSON_QUOTED_BYTES(JSON_QUOTED_BYTES(ID_MAX_BYTES))];
    reply_add(reply, (struct slice){string + 1, json_quote(text, string) - 2});
}

static void reply_add_json_string(struct api_reply *reply, struct slice text) {
    reply_add(reply, SLICE("\""));
    reply_add_escaped(reply, text);
    reply_add(reply, SLICE("\""));
}

/* ---- POST /api/v1/e2e.setRoomKeyID ----------------------------------------------------------- */

struct argument {
    enum json_type type;
    struct slice text; /* decoded: in the body, or in .decoded if it had escapes */
    char decoded[ID_MAX_BYTES + 1];
};

struct set_call {
    struct json json; /* the body */
    struct argument room, key;
    enum json_type type; /* REPLY_MATCH_ERROR: of what should be a string */
};

static void read_argument(struct json *json, const jsmntok_t *value, struct argument *argument) {
    argument->type = json_type(json, value);
    argument->text = json_string(json, value, argument->decoded, sizeof argument->decoded);
}

static void read_member(struct json *json, struct slice name, struct argument *argument) {
    read_argument(json, json_member(json, json->root, name), argument);
}

/* The rules of setting a key ID, whichever endpoint was called. What *ticket becomes is what
 * the reply rests on. */
static enum reply_id set_key_id(struct api *api, struct set_call *call, uint64_t *ticket) {
    call->type = call->room.type != JSON_STRING ? call->room.type : call->key.type;
    if (call->type != JSON_STRING) return REPLY_MATCH_ERROR;
    struct store_record record = {api->user, call->room.text, call->key.text};
    if (!slice_is_id(record.room) || access_room_type(api->access, record.room, record.user) == 0)
        return REPLY_INVALID_ROOM;
    if (!slice_is_id(record.key)) return REPLY_INVALID_KEY_ID;
    switch (store_set(api->store, &record, ticket)) {
    case STORE_OK: return REPLY_SUCCESS;
    case STORE_EXISTS: return REPLY_KEY_EXISTS;
    default: return REPLY_STORAGE;
    }
}

/* Whether the body may be read as JSON. Parameters say nothing: JSON is always UTF-8 (RFC 8259,
 * section 8.1). Two fields could be read as either by whoever stands in front of this server. */
static bool has_json_type(const struct http_request *request) {
    struct slice value;
    unsigned fields = http_field(request, "content-type", &value);
    if (fields == 0) return true;
    struct slice type = http_cut(&value, ';');
    while (type.n > 0 && (type.p[type.n - 1] == ' ' || type.p[type.n - 1] == '\t')) type.n--;
    return fields == 1 && http_equal_ignoring_case(type, SLICE("application/json"));
}

/* Whether the request proves who sends it: api->user. */
static bool authenticate(struct api *api, const struct http_request *request) {
    struct slice user, token;
    if (http_field(request, "x-user-id", &user) != 1 ||
        http_field(request, "x-auth-token", &token) != 1 ||
        !access_knows_user(api->access, user, token))
        return false;
    api->user = user;
    return true;
}

static enum reply_id read_json(struct json *json, struct slice text) {
    enum json_result result = json_read(json, text);
    if (result == JSON_INVALID) return REPLY_INVALID_JSON;
    return result == JSON_OK ? REPLY_SUCCESS : REPLY_STORAGE;
}

/* What both endpoints begin with. REPLY_SUCCESS: the user is known, and json_free is due. */
static enum reply_id read_body(struct api *api, const struct http_request *request,
                               struct set_call *call) {
    if (!authenticate(api, request)) return REPLY_UNAUTHORIZED;
    if (!has_json_type(request)) return REPLY_MEDIA_TYPE;
    return read_json(&call->json, request->body.n > 0 ? request->body : SLICE("{}"));
}

/* By enum json_type, in JavaScript's words: what `typeof` says, and null. */
static const char *const type_names[] = {"undefined", "null",   "boolean", "number",
                                         "string",    "object", "object"};

static void reply_to_set(struct api_reply *reply, enum reply_id id, const struct set_call *call) {
    if (id == REPLY_INVALID_JSON) {
        char why[128];
        snprintf(why, sizeof why, "%s at byte %zu", call->json.why, call->json.at);
        reply_with(reply, id, slice_of(why));
    } else if (id == REPLY_MATCH_ERROR) {
        reply_with(reply, id, slice_of(type_names[call->type]));
    } else {
        reply_start(reply, id);
    }
}

static void answer_set(struct api *api, const struct http_request *request,
                       struct api_reply *reply) {
    struct set_call call;
    uint64_t ticket = 0;
    enum reply_id id = read_body(api, request, &call);
    if (id == REPLY_SUCCESS) {
        read_member(&call.json, SLICE("rid"), &call.room);
        read_member(&call.json, SLICE("keyID"), &call.key);
        json_free(&call.json); /* the arguments point into the body, not to tokens */
        id = call.json.why != NULL ? REPLY_INVALID_JSON : set_key_id(api, &call, &ticket);
    }
    reply_to_set(reply, id, &call);
    reply->ticket = ticket;
}

/* ---- POST /api/v1/method.call/e2e.setRoomKeyID ----------------------------------------------- */

/* The same call as the web client sends it: the body's `message` is a JSON text in a string, and so
 * is the reply's. Within their quotes, unescaped:
 *
 *     {"msg":"method","id":"1","method":"e2e.setRoomKeyID","params":[RID,KEYID]}
 *     {"msg":"result","id":"1"}
 *
 * What the method itself refuses is an error within the message; all else is said as at the
 * other endpoint. */
struct method_call {
    struct set_call set;
    struct argument msg, id, method;
    char message[HTTP_MAX_BODY_BYTES]; /* decoded: escapes only make a text longer, so it fits */
};

#define METEOR_ERROR(error, reason, details, code)                                                 \
    "{\"isClientSafe\":true,\"error\":" error ",\"reason\":\"" reason "\"" details                 \
    ",\"message\":\"" reason " [" code "]\",\"errorType\":\"Meteor.Error\"}"
#define FROM_METHOD(code, reason, details) METEOR_ERROR("\"" code "\"", reason, details, code)
#define DETAILS                            ",\"details\":{\"method\":\"e2e.setRoomKeyID\"}"

/* What stands within the result; success has none. Variable text takes the place of every '%'. */
/* clang-format off */
static const struct slice method_errors[] = {
    [REPLY_MATCH_ERROR]    = TEXT("{\"message\":\"Match error: Expected string, got %\","
                                  "\"path\":\"\",\"sanitizedError\":"
                                  METEOR_ERROR("400", "Match failed", "", "400")
                                  ",\"errorType\":\"Match.Error\"}"),
    [REPLY_INVALID_ROOM]   = TEXT(FROM_METHOD("error-invalid-room", "Invalid room", DETAILS)),
    [REPLY_INVALID_KEY_ID] = TEXT(FROM_METHOD("error-invalid-key-id",
                                              "Invalid key ID: 1 to 255 bytes, no NUL", "")),
    [REPLY_KEY_EXISTS]     = TEXT(FROM_METHOD("error-room-e2e-key-already-exists",
                                              "E2E Key ID already exists", DETAILS)),
    [REPLY_NO_METHOD]      = TEXT(METEOR_ERROR("404", "Method '%' not found", "", "404")),
};
/* clang-format on */

/* Reads what the message says. Returns whether it has a call's shape. */
static bool read_message(struct json *json, struct method_call *call) {
    const jsmntok_t *params = json_member(json, json->root, SLICE("params"));
    if (json_type(json, params) != JSON_ARRAY) return false;
    const jsmntok_t *room = json_next(json, params, NULL);
    read_argument(json, room, &call->set.room);
    read_argument(json, room != NULL ? json_next(json, params, room) : NULL, &call->set.key);
    read_member(json, SLICE("msg"), &call->msg);
    read_member(json, SLICE("id"), &call->id);
    read_member(json, SLICE("method"), &call->method);
    bool is_call = call->msg.type == JSON_UNDEFINED || slice_equal(call->msg.text, SLICE("method"));
    bool has_id = call->id.type == JSON_STRING || call->id.type == JSON_UNDEFINED;
    return json->why == NULL && is_call && has_id && call->id.text.n <= ID_MAX_BYTES &&
           call->method.type == JSON_STRING && call->method.text.n <= ID_MAX_BYTES;
}

/* Reads a call. REPLY_SUCCESS: it names a method; its arguments point into the message. */
static enum reply_id read_call(struct api *api, const struct http_request *request,
                               struct method_call *call) {
    struct json *body = &call->set.json, json;
    enum reply_id id = read_body(api, request, &call->set);
    if (id != REPLY_SUCCESS) return id;
    const jsmntok_t *message = json_member(body, body->root, SLICE("message"));
    call->set.type = json_type(body, message);
    struct slice text = json_string(body, message, call->message, sizeof call->message);
    json_free(body);
    if (call->set.type != JSON_STRING) return REPLY_MATCH_ERROR;
    if (body->why != NULL) return REPLY_INVALID_JSON;
    id = read_json(&json, text);
    if (id != REPLY_SUCCESS) return id == REPLY_INVALID_JSON ? REPLY_INVALID_CALL : id;
    id = read_message(&json, call) ? REPLY_SUCCESS : REPLY_INVALID_CALL;
    json_free(&json);
    return id;
}

/* The reply to a call that has come as far as a method. */
static void reply_to_call(struct api_reply *reply, enum reply_id id,
                          const struct method_call *call) {
    char string[JSON_QUOTED_BYTES(ID_MAX_BYTES)];
    enum reply_id frame = id == REPLY_SUCCESS ? REPLY_RESULT : REPLY_METHOD_ERROR;
    struct slice rest = method_errors[id];
    struct slice text = call->method.text;
    if (id == REPLY_MATCH_ERROR) text = slice_of(type_names[call->set.type]);
    struct slice after = reply_begin(reply, frame);
    if (call->id.type == JSON_STRING) {
        reply_add_escaped(reply, SLICE(",\"id\":"));
        reply_add_escaped(reply, (struct slice){string, json_quote(call->id.text, string)});
    }
    text = (struct slice){string + 1, json_quote(text, string) - 2};
    if (rest.n > 0) reply_add_escaped(reply, SLICE(",\"error\":"));
    while (rest.n > 0) {
        reply_add_escaped(reply, http_cut(&rest, '%'));
        if (rest.n > 0) reply_add_escaped(reply, text);
    }
    reply_add(reply, after);
}

static void answer_call(struct api *api, const struct http_request *request,
                        struct api_reply *reply) {
    struct method_call call;
    uint64_t ticket = 0;
    enum reply_id id = read_call(api, request, &call);
    bool is_call = id == REPLY_SUCCESS;
    if (is_call && slice_equal(call.method.text, SLICE("e2e.setRoomKeyID")))
        id = set_key_id(api, &call.set, &ticket);
    else if (is_call)
        id = REPLY_NO_METHOD;
    if (is_call && id != REPLY_STORAGE)
        reply_to_call(reply, id, &call);
    else
        reply_to_set(reply, id, &call.set);
    reply->exists = id == REPLY_KEY_EXISTS;
    reply->ticket = ticket;
}

/* ---- GET /api/v1/rooms.info ------------------------------------------------------------------ */

struct room {
    struct slice id; /* in .decoded */
    char decoded[ID_MAX_BYTES + 1];
    char type;
    size_t key_size; /* 0: none is set */
    char key[ID_MAX_BYTES];
};

/* Decodes %XX (RFC 3986, section 2.1); '+' is itself, as it is everywhere outside HTML forms.
 * Returns whether every escape is whole. What is longer than an ID may be is cut off, and still
 * longer than that. */
static bool percent_decode(struct slice text, struct room *room) {
    room->id = (struct slice){room->decoded, 0};
    for (size_t i = 0; i < text.n; i++) {
        unsigned byte = (unsigned char)text.p[i];
        if (byte == '%') {
            int high = text.n - i > 2 ? json_hex_value(text.p[i + 1]) : -1;
            int low = text.n - i > 2 ? json_hex_value(text.p[i + 2]) : -1;
            if (high < 0 || low < 0) return false;
            byte = (unsigned)(high << 4 | low);
            i += 2;
        }
        if (room->id.n < sizeof room->decoded) room->decoded[room->id.n++] = (char)byte;
    }
    return true;
}

/* Finds roomId in a query. One that is empty, broken or given twice is as good as none. */
static enum reply_id read_room_id(struct slice query, struct room *room) {
    unsigned given = 0;
    bool usable = false, has_name = false;
    while (query.n > 0) {
        struct slice value = http_cut(&query, '&');
        struct slice name = http_cut(&value, '=');
        if (slice_equal(name, SLICE("roomId"))) {
            given++;
            usable = value.n > 0 && percent_decode(value, room);
        } else if (slice_equal(name, SLICE("roomName"))) {
            has_name = true; /* rooms have no names here, so none matches */
        }
    }
    if (given == 1 && usable) return REPLY_SUCCESS;
    return has_name ? REPLY_ROOM_NOT_FOUND : REPLY_NO_ROOM_ID;
}

static enum reply_id find_room(struct api *api, const struct http_request *request,
                               struct room *room) {
    if (!authenticate(api, request)) return REPLY_UNAUTHORIZED;
    enum reply_id id = read_room_id(request->query, room);
    if (id != REPLY_SUCCESS) return id;
    room->type = slice_is_id(room->id) ? access_room_type(api->access, room->id, api->user) : 0;
    if (room->type == 0) return REPLY_ROOM_NOT_FOUND;
    room->key_size = 0;
    enum store_result result = store_get(api->store, room->id, room->key, &room->key_size);
    return result == STORE_OK || result == STORE_NONE ? REPLY_ROOM : REPLY_STORAGE;
}

static void answer_info(struct api *api, const struct http_request *request,
                        struct api_reply *reply) {
    struct room room;
    enum reply_id id = find_room(api, request, &room);
    if (id != REPLY_ROOM) {
        reply_start(reply, id);
        return;
    }
    struct slice rest = reply_begin(reply, id);
    reply_add_json_string(reply, room.id);
    reply_add(reply, SLICE(",\"t\":"));
    reply_add_json_string(reply, (struct slice){&room.type, 1});
    if (room.key_size > 0) {
        reply_add(reply, SLICE(",\"e2eKeyId\":"));
        reply_add_json_string(reply, (struct slice){room.key, room.key_size});
    }
    reply_add(reply, rest);
}

/* ---- GET /healthz ---------------------------------------------------------------------------- */

static void answer_health(struct api *api, const struct http_request *request,
                          struct api_reply *reply) {
    (void)request;
    reply_start(reply, store_has_failed(api->store) ? REPLY_UNHEALTHY : REPLY_HEALTHY);
}

/* ---- Origins (CORS) -------------------------------------------------------------------------- */

bool api_is_origin_list(struct slice list) {
    if (slice_equal(list, SLICE("*"))) return true;
    bool is_list = list.n > 0 && list.p[list.n - 1] != ',';
    while (is_list && list.n > 0) is_list = http_is_origin(http_cut(&list, ','));
    return is_list;
}

struct slice api_origin(const struct api *api, const struct http_request *request) {
    struct slice rest = api->origins, named;
    if (slice_equal(rest, SLICE("*"))) return rest;
    bool has_one = rest.n > 0 && request != NULL && http_field(request, "origin", &named) == 1;
    while (has_one && rest.n > 0) {
        struct slice origin = http_cut(&rest, ',');
        if (http_equal_ignoring_case(origin, named)) return origin;
    }
    return (struct slice){NULL, 0};
}

/* ---- GET /metrics ---------------------------------------------------------------------------- */

static void answer_metrics(struct api *api, const struct http_request *request,
                           struct api_reply *reply) {
    (void)request;
    api->metrics->key_ids = store_key_ids(api->store);
    api->metrics->log_bytes = store_log_bytes(api->store);
    api->metrics->failed = store_has_failed(api->store);
    reply_start(reply, REPLY_METRICS);
    reply->http.body = metrics_text(api->metrics);
}

/* ---- Routes ---------------------------------------------------------------------------------- */

typedef void handler(struct api *api, const struct http_request *request, struct api_reply *reply);

struct route {
    struct slice path;
    const char *allow;
    handler *get, *post; /* HEAD is a GET without its body (RFC 9110, section 9.3.2) */
    uint8_t endpoint;
};

/* Paths are compared as they are sent: no client needs to write one of these with escapes. */
static const struct route routes[] = {
    {TEXT("/api/v1/e2e.setRoomKeyID"), "POST, OPTIONS", NULL, answer_set, AT_SET},
    {TEXT("/api/v1/method.call/e2e.setRoomKeyID"), "POST, OPTIONS", NULL, answer_call, AT_CALL},
    {TEXT("/api/v1/rooms.info"), "GET, HEAD, OPTIONS", answer_info, NULL, AT_INFO},
    {TEXT("/healthz"), "GET, HEAD, OPTIONS", answer_health, NULL, AT_HEALTH},
    {TEXT("/metrics"), "GET, HEAD, OPTIONS", answer_metrics, NULL, AT_METRICS},
    {TEXT("*"), "GET, HEAD, POST, OPTIONS", NULL, NULL, AT_OTHER}, /* the server itself */
};

static const struct route *find_route(struct slice path) {
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (slice_equal(path, routes[i].path)) return &routes[i];
    return NULL;
}

/* Methods are case-sensitive (RFC 9110, section 9.1). */
static handler *find_handler(const struct route *route, struct slice method) {
    if (slice_equal(method, SLICE("POST"))) return route->post;
    if (slice_equal(method, SLICE("GET")) || slice_equal(method, SLICE("HEAD"))) return route->get;
    return NULL;
}

void api_answer(struct api *api, const struct http_request *request, struct api_reply *reply) {
    const struct route *route = find_route(request->path);
    if (route != NULL && route->endpoint == AT_METRICS && api->metrics == NULL) route = NULL;
    api->user = SLICE("");
    handler *answer = route != NULL ? find_handler(route, request->method) : NULL;
    if (answer != NULL) {
        answer(api, request, reply);
    } else if (route == NULL) {
        reply_start(reply, REPLY_PATH_NOT_FOUND);
    } else {
        bool asks = slice_equal(request->method, SLICE("OPTIONS"));
        reply_start(reply, asks ? REPLY_OPTIONS : REPLY_METHOD_NOT_ALLOWED);
        reply->http.allow = route->allow;
    }
    reply->endpoint = route != NULL ? route->endpoint : AT_OTHER;
    reply->http.head_only = request->is_head;
}

void api_refuse(int status, const char *why, struct api_reply *reply) {
    reply_with(reply, REPLY_REFUSED, slice_of(why));
    reply->http.status = status;
    reply->endpoint = AT_OTHER;
    reply->http.retry_after_s = status == 503 ? RETRY_AFTER_S : 0;
}

void api_storage_unavailable(struct api_reply *reply) { reply_start(reply, REPLY_STORAGE); }
