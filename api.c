/*
 * api.c: what each request means, and the exact reply it gets.
 *
 *     http_request --> route --> authentication --> arguments --> rules --> outcome --> reply
 *                        |             |                |           |
 *                    404, 405         401        415, 400 (JSON)  400, 503
 *
 * The checks of an endpoint run in that order and the first that fails answers, so the order alone
 * decides what a stranger can learn: nothing about rooms before authentication, nothing about keys
 * before access to the room. Arguments (what the client wrote) and rules (what may happen) are kept
 * apart: the rules do not know how a call was spelled.
 *
 * Invariants: every body stands in one list, the outcomes, once, with a '%' where variable text
 * goes; a constant body is sent from there without a copy. No request makes a body longer than
 * API_MAX_BODY_BYTES. Nothing is remembered between two calls.
 *
 * Refused on purpose: a Content-Type that is not JSON, compressed bodies, and credentials given
 * twice.
 */
#include "api.h"
#include "json.h"
#include "text.h"

#define RETRY_AFTER_S 1 /* seconds until a refused connection is worth another try */

/* ---- Outcomes -------------------------------------------------------------------------------- */

/* What may come of a request. */
struct outcome {
    int status;
    bool is_private;
    struct slice media_type, body;
    struct slice in_call; /* the same within a method's result; success has none */
    const char *field;    /* of the reply's head, or NULL */
};

#define TEXT(literal)                                                                              \
    { (literal), sizeof(literal) - 1 }
#define JSON(code, text)  (code), true, TEXT("application/json"), .body = TEXT(text)
#define PLAIN(code, text) (code), false, TEXT("text/plain"), .body = TEXT(text)

/* Rocket.Chat's errors: a sentence, its code in brackets, the code once more, sometimes details. */
#define FAILURE               "{\"success\":false,\"error\":\""
#define CODE(code)            " [" code "]\",\"errorType\":\"" code "\""
#define ERROR(sentence, code) FAILURE sentence CODE(code) "}"
#define DETAILS(method)       ",\"details\":{\"method\":\"" method "\"}"
#define ID_OR_NAME            "\\\"roomId\\\" or \\\"roomName\\\""

/* The errors of its methods. REFUSAL: ours, as each of the two endpoints that set says it. */
#define METEOR_ERROR(error, reason, details, code)                                                 \
    "{\"isClientSafe\":true,\"error\":" error ",\"reason\":\"" reason "\"" details                 \
    ",\"message\":\"" reason " [" code "]\",\"errorType\":\"Meteor.Error\"}"
#define IN_CALL(error) .in_call = TEXT(",\"error\":" error)
#define REFUSAL(reason, code, details, details_in_call)                                            \
    JSON(400, FAILURE reason CODE(code) details "}"),                                              \
        IN_CALL(METEOR_ERROR("\"" code "\"", reason, details_in_call, code))
#define RESULT(is_success)                                                                         \
    "{\"message\":\"{\\\"msg\\\":\\\"result\\\"%}\",\"success\":" is_success "}"

/* Variable text takes the place of every '%', none of which stands at an end. */
/* clang-format off */
static const struct outcome
    success             = {JSON(200, "{\"success\":true}")},
    unauthorized        = {JSON(401, FAILURE "unauthorized\"}")},
    bad_media_type      = {JSON(415, ERROR("Content-Type must be application/json",
                                           "error-unsupported-media-type"))},
    bad_coding          = {JSON(415, ERROR("Content-Encoding must be identity",
                                           "error-unsupported-content-encoding")),
                           .field = "Accept-Encoding: identity"}, /* RFC 9110, section 15.5.16 */
    invalid_json        = {JSON(400, ERROR("Invalid JSON: % at byte %", "error-invalid-json"))},
    match_error         = {JSON(400, FAILURE "Match error: Expected string, got %\"}"),
                           IN_CALL("{\"message\":\"Match error: Expected string, got %\","
                                   "\"path\":\"\",\"sanitizedError\":"
                                   METEOR_ERROR("400", "Match failed", "", "400")
                                   ",\"errorType\":\"Match.Error\"}")},
    invalid_room        = {REFUSAL("Invalid room", "error-invalid-room",
                                   DETAILS("canAccessRoom"), DETAILS("e2e.setRoomKeyID"))},
    invalid_key_id      = {REFUSAL("Invalid key ID: 1 to 255 bytes, no NUL", "error-invalid-key-id",
                                   "", "")},
    key_exists          = {REFUSAL("E2E Key ID already exists", "error-room-e2e-key-already-exists",
                                   DETAILS("e2e.setRoomKeyID"), DETAILS("e2e.setRoomKeyID"))},
    storage_unavailable = {JSON(503, ERROR("Storage unavailable", "error-storage"))},
    invalid_call        = {JSON(400, FAILURE "Invalid method call\"}")},
    call_done           = {JSON(200, RESULT("true"))},
    call_failed         = {JSON(400, RESULT("false"))},
    no_method           = {IN_CALL(METEOR_ERROR("404", "Method '%' not found", "", "404"))},
    room_without_key    = {JSON(200, "{\"room\":{\"_id\":\"%\",\"t\":\"%\"},\"success\":true}")},
    room_with_key       = {JSON(200, "{\"room\":{\"_id\":\"%\",\"t\":\"%\",\"e2eKeyId\":\"%\"},"
                                     "\"success\":true}")},
    no_room_id          = {JSON(400, ERROR("The parameter " ID_OR_NAME " is required",
                                           "error-roomid-param-not-provided"))},
    room_not_found      = {JSON(400, ERROR("The required " ID_OR_NAME
                                           " param provided does not match any channel",
                                           "error-room-not-found"))},
    path_not_found      = {JSON(404, FAILURE "Resource not found\"}")},
    method_not_allowed  = {JSON(405, FAILURE "Method Not Allowed\"}")},
    options             = {.status = 204},
    refused             = {JSON(400, FAILURE "%\"}")}, /* the status varies, too */
    healthy             = {PLAIN(200, "ok")},
    unhealthy           = {PLAIN(503, "storage failed")},
    metrics_page        = {.status = 200, .media_type = TEXT("text/plain; version=0.0.4")};
/* clang-format on */

/* A request on its way to its reply. */
struct exchange {
    struct api *api;
    const struct http_request *request;
    struct api_reply *reply;
    struct slice body; /* with variable text, or the metrics'; empty: the outcome's own */
    uint64_t ticket;   /* as in the reply */
    bool exists;       /* likewise */
};

/* Makes the reply. */
static void finish(const struct exchange *exchange, const struct outcome *outcome) {
    struct api_reply *reply = exchange->reply;
    reply->http = (struct http_reply){.status = outcome->status,
                                      .media_type = outcome->media_type,
                                      .body = exchange->body.n > 0 ? exchange->body : outcome->body,
                                      .field = outcome->field,
                                      .is_private = outcome->is_private};
    reply->ticket = exchange->ticket;
    reply->exists = exchange->exists;
}

/* ---- Variable text --------------------------------------------------------------------------- */

/* A text that is being written. What has no room is cut off; only an overlong WHY could be. */
struct draft {
    char *bytes; /* API_MAX_BODY_BYTES */
    size_t n;
};

static void add(struct draft *draft, struct slice more) {
    size_t room = API_MAX_BODY_BYTES - draft->n, n = more.n < room ? more.n : room;
    memcpy(draft->bytes + draft->n, more.p, n);
    draft->n += n;
}

/* Adds what is plain as it stands within a JSON string. */
static void add_escaped(struct draft *draft, struct slice plain) {
    char string[JSON_QUOTED_BYTES(API_MAX_BODY_BYTES)];
    if (plain.n > API_MAX_BODY_BYTES) plain.n = API_MAX_BODY_BYTES; /* it is cut off all the same */
    add(draft, (struct slice){string + 1, json_quote(plain, string) - 2});
}

/* Adds a template, where each '%' gives way to the next of the plain texts, escaped. */
#define TEXTS(...) ((const struct slice[]){__VA_ARGS__, {NULL, 0}})
static void add_filled(struct draft *draft, struct slice template, const struct slice *plain) {
    while (template.n > 0) {
        add(draft, http_cut(&template, '%'));
        if (template.n > 0 && plain->p != NULL) add_escaped(draft, *plain++);
    }
}

/* Writes the body of an outcome with variable text. Returns the outcome. */
#define with_text(exchange, outcome, ...) with_texts((exchange), (outcome), TEXTS(__VA_ARGS__))
static const struct outcome *with_texts(struct exchange *exchange, const struct outcome *outcome,
                                        const struct slice *plain) {
    struct draft body = {exchange->reply->scratch, 0};
    add_filled(&body, outcome->body, plain);
    exchange->body = (struct slice){body.bytes, body.n};
    return outcome;
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
    enum json_type type; /* match_error: of what should be a string */
};

/* By enum json_type, in JavaScript's words: what `typeof` says, and null. */
static const struct slice type_names[] = {TEXT("undefined"), TEXT("null"),   TEXT("boolean"),
                                          TEXT("number"),    TEXT("string"), TEXT("object"),
                                          TEXT("object")};

static void read_argument(struct json *json, const jsmntok_t *value, struct argument *argument) {
    argument->type = json_type(json, value);
    argument->text = json_string(json, value, argument->decoded, sizeof argument->decoded);
}

static void read_member(struct json *json, struct slice name, struct argument *argument) {
    read_argument(json, json_member(json, json->root, name), argument);
}

/* The rules of setting a key ID, whichever endpoint was called. */
static const struct outcome *set_key_id(struct exchange *exchange, struct set_call *call) {
    const struct api *api = exchange->api;
    struct store_record record = {api->user, call->room.text, call->key.text};
    call->type = call->room.type != JSON_STRING ? call->room.type : call->key.type;
    if (call->type != JSON_STRING) return with_text(exchange, &match_error, type_names[call->type]);
    if (!slice_is_id(record.room) || access_room_type(api->access, record.room, record.user) == 0)
        return &invalid_room;
    if (!slice_is_id(record.key)) return &invalid_key_id;
    enum store_result result = store_set(api->store, &record, &exchange->ticket);
    exchange->exists = result == STORE_EXISTS;
    if (result == STORE_EXISTS) return &key_exists;
    return result == STORE_OK ? &success : &storage_unavailable;
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

/* Whether the body is the text itself, not compressed: no coding is named, or the one that changes
 * nothing. An empty value is a list of none (RFC 9110, section 5.6.1). Longer lists and two fields
 * name one or are what no client sends. */
static bool has_no_coding(const struct http_request *request) {
    struct slice coding;
    unsigned fields = http_field(request, "content-encoding", &coding);
    return fields == 0 ||
           (fields == 1 && (coding.n == 0 || http_equal_ignoring_case(coding, SLICE("identity"))));
}

/* Whether the request proves who sends it: api->user. */
static bool authenticate(struct api *api, const struct http_request *request) {
    struct slice user, token;
    bool is_known = http_field(request, "x-user-id", &user) == 1 &&
                    http_field(request, "x-auth-token", &token) == 1 &&
                    access_knows_user(api->access, user, token);
    if (is_known) api->user = user;
    return is_known;
}

static const struct outcome *refuse_json(struct exchange *exchange, const struct json *json) {
    return with_text(exchange, &invalid_json, slice_of(json->why), slice_of(DECIMAL(json->at)));
}

/* What both endpoints begin with. NULL: the user is known, and json_free is due. */
static const struct outcome *read_body(struct exchange *exchange, struct json *json) {
    struct slice body = exchange->request->body;
    if (!authenticate(exchange->api, exchange->request)) return &unauthorized;
    if (!has_json_type(exchange->request)) return &bad_media_type;
    if (!has_no_coding(exchange->request)) return &bad_coding;
    enum json_result result = json_read(json, body.n > 0 ? body : SLICE("{}"));
    if (result == JSON_INVALID) return refuse_json(exchange, json);
    return result == JSON_OK ? NULL : &storage_unavailable;
}

static const struct outcome *answer_set(struct exchange *exchange) {
    struct set_call call;
    const struct outcome *outcome = read_body(exchange, &call.json);
    if (outcome != NULL) return outcome;
    read_member(&call.json, SLICE("rid"), &call.room);
    read_member(&call.json, SLICE("keyID"), &call.key);
    json_free(&call.json); /* the arguments point into the body, not to tokens */
    return call.json.why != NULL ? refuse_json(exchange, &call.json) : set_key_id(exchange, &call);
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

/* Reads a call's ID, which the reply repeats as a string: a number as it is written, null as an
 * empty one. Returns whether it may be one; there may be none, too. */
static bool read_id(struct json *json, struct argument *id) {
    const jsmntok_t *value = json_member(json, json->root, SLICE("id"));
    read_argument(json, value, id);
    if (id->type == JSON_NUMBER) id->text = json_written(json, value);
    bool is_id = id->type == JSON_STRING || id->type == JSON_NUMBER || id->type == JSON_NULL;
    return (is_id || id->type == JSON_UNDEFINED) && id->text.n <= ID_MAX_BYTES;
}

/* Reads what the message says. Returns whether it has a call's shape. */
static bool read_message(struct json *json, struct method_call *call) {
    const jsmntok_t *params = json_member(json, json->root, SLICE("params"));
    if (json_type(json, params) != JSON_ARRAY) return false;
    const jsmntok_t *room = json_next(json, params, NULL);
    read_argument(json, room, &call->set.room);
    read_argument(json, room != NULL ? json_next(json, params, room) : NULL, &call->set.key);
    read_member(json, SLICE("msg"), &call->msg);
    read_member(json, SLICE("method"), &call->method);
    bool has_good_id = read_id(json, &call->id);
    bool is_call = call->msg.type == JSON_UNDEFINED || slice_equal(call->msg.text, SLICE("method"));
    return json->why == NULL && is_call && has_good_id && call->method.type == JSON_STRING &&
           call->method.text.n <= ID_MAX_BYTES;
}

/* Reads a call. NULL: it names a method; its arguments point into the message. */
static const struct outcome *read_call(struct exchange *exchange, struct method_call *call) {
    struct json *body = &call->set.json, json;
    const struct outcome *outcome = read_body(exchange, body);
    if (outcome != NULL) return outcome;
    const jsmntok_t *message = json_member(body, body->root, SLICE("message"));
    enum json_type type = json_type(body, message);
    struct slice text = json_string(body, message, call->message, sizeof call->message);
    json_free(body);
    if (type != JSON_STRING) return with_text(exchange, &match_error, type_names[type]);
    if (body->why != NULL) return refuse_json(exchange, body);
    enum json_result result = json_read(&json, text);
    if (result != JSON_OK) return result == JSON_INVALID ? &invalid_call : &storage_unavailable;
    bool is_call = read_message(&json, call);
    json_free(&json);
    return is_call ? NULL : &invalid_call;
}

/* Says an outcome as a method's result, in place of a body of its own. */
static const struct outcome *in_result(struct exchange *exchange, const struct method_call *call,
                                       const struct outcome *outcome) {
    char bytes[API_MAX_BODY_BYTES];
    struct draft rest = {bytes, 0};
    bool is_match_error = outcome == &match_error;
    struct slice plain = is_match_error ? type_names[call->set.type] : call->method.text;
    if (call->id.type != JSON_UNDEFINED)
        add_filled(&rest, SLICE(",\"id\":\"%\""), TEXTS(call->id.text));
    add_filled(&rest, outcome->in_call, TEXTS(plain, plain));
    const struct outcome *result = outcome == &success ? &call_done : &call_failed;
    return with_text(exchange, result, (struct slice){bytes, rest.n});
}

static const struct outcome *answer_call(struct exchange *exchange) {
    struct method_call call;
    const struct outcome *outcome = read_call(exchange, &call);
    if (outcome != NULL) return outcome;
    bool is_set = slice_equal(call.method.text, SLICE("e2e.setRoomKeyID"));
    outcome = is_set ? set_key_id(exchange, &call.set) : &no_method;
    return outcome == &storage_unavailable ? outcome : in_result(exchange, &call, outcome);
}

/* ---- GET /api/v1/rooms.info ------------------------------------------------------------------ */

/* How often a name occurs in a query; *value is the last one's, as it is sent. */
static unsigned find_parameter(struct slice query, struct slice name, struct slice *value) {
    unsigned count = 0;
    while (query.n > 0) {
        struct slice rest = http_cut(&query, '&');
        if (!slice_equal(http_cut(&rest, '='), name)) continue;
        *value = rest;
        count++;
    }
    return count;
}

/* Decodes %XX (RFC 3986, section 2.1); '+' is itself, as it is everywhere outside HTML forms. An
 * escape that is not whole leaves nothing. What is longer than an ID may be is cut off, and still
 * longer than that. */
static struct slice percent_decode(struct slice text, char decoded[ID_MAX_BYTES + 1]) {
    size_t n = 0;
    for (size_t i = 0; i < text.n; i++) {
        int byte = (unsigned char)text.p[i];
        if (byte == '%') {
            if (text.n - i <= 2) return SLICE("");
            byte = json_hex_value(text.p[i + 1]) * 16 | json_hex_value(text.p[i + 2]);
            if (byte < 0) return SLICE(""); /* as is the value of what is no digit */
            i += 2;
        }
        if (n <= ID_MAX_BYTES) decoded[n++] = (char)byte;
    }
    return (struct slice){decoded, n};
}

/* A roomId that is empty, broken or given twice is as good as none. Rooms have no names here, so a
 * roomName finds none. */
static const struct outcome *answer_info(struct exchange *exchange) {
    struct api *api = exchange->api;
    struct slice query = exchange->request->query, parameter = SLICE("");
    char decoded[ID_MAX_BYTES + 1], key[ID_MAX_BYTES];
    if (!authenticate(api, exchange->request)) return &unauthorized;
    bool is_given = find_parameter(query, SLICE("roomId"), &parameter) == 1;
    struct slice room = percent_decode(parameter, decoded), key_id = {key, 0};
    if (!is_given || room.n == 0)
        return find_parameter(query, SLICE("roomName"), &parameter) > 0 ? &room_not_found
                                                                        : &no_room_id;
    char type = slice_is_id(room) ? access_room_type(api->access, room, api->user) : 0;
    if (type == 0) return &room_not_found;
    struct slice type_text = {&type, 1};
    switch (store_get(api->store, room, key, &key_id.n)) {
    case STORE_OK: return with_text(exchange, &room_with_key, room, type_text, key_id);
    case STORE_NONE: return with_text(exchange, &room_without_key, room, type_text);
    default: return &storage_unavailable;
    }
}

/* ---- GET /healthz ---------------------------------------------------------------------------- */

static const struct outcome *answer_health(struct exchange *exchange) {
    return store_has_failed(exchange->api->store) ? &unhealthy : &healthy;
}

/* ---- GET /metrics ---------------------------------------------------------------------------- */

static const struct outcome *answer_metrics(struct exchange *exchange) {
    struct metrics *metrics = exchange->api->metrics;
    metrics->key_ids = store_key_ids(exchange->api->store);
    metrics->log_bytes = store_log_bytes(exchange->api->store);
    metrics->failed = store_has_failed(exchange->api->store);
    exchange->body = metrics_text(metrics);
    return &metrics_page;
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

/* ---- Routes ---------------------------------------------------------------------------------- */

typedef const struct outcome *handler(struct exchange *exchange);

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

static const struct outcome *answer(struct exchange *exchange, const struct route *route) {
    struct slice method = exchange->request->method; /* case-sensitive (RFC 9110, section 9.1) */
    bool is_get = slice_equal(method, SLICE("GET")) || slice_equal(method, SLICE("HEAD"));
    if (route == NULL) return &path_not_found;
    if (is_get && route->get != NULL) return route->get(exchange);
    if (slice_equal(method, SLICE("POST")) && route->post != NULL) return route->post(exchange);
    return slice_equal(method, SLICE("OPTIONS")) ? &options : &method_not_allowed;
}

void api_answer(struct api *api, const struct http_request *request, struct api_reply *reply) {
    struct exchange exchange = {.api = api, .request = request, .reply = reply};
    const struct route *route = find_route(request->path);
    if (route != NULL && route->endpoint == AT_METRICS && api->metrics == NULL) route = NULL;
    api->user = SLICE("");
    const struct outcome *outcome = answer(&exchange, route);
    finish(&exchange, outcome);
    if (outcome == &options || outcome == &method_not_allowed) reply->http.allow = route->allow;
    reply->endpoint = route != NULL ? route->endpoint : AT_OTHER;
    reply->http.head_only = request->is_head;
}

void api_refuse(int status, const char *why, struct api_reply *reply) {
    struct exchange exchange = {.reply = reply};
    finish(&exchange, with_text(&exchange, &refused, slice_of(why)));
    reply->http.status = status;
    reply->http.retry_after_s = status == 503 ? RETRY_AFTER_S : 0;
    reply->endpoint = AT_OTHER;
}

void api_storage_unavailable(struct api_reply *reply) {
    finish(&(struct exchange){.reply = reply}, &storage_unavailable);
}
