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
 * A JSON body is read in two passes, both linear in its length, whatever it holds:
 *
 *     bytes --scan--> RFC 8259 proven, depth <= 64, tokens counted --jsmn--> tokens
 *
 * jsmn splits JSON well but judges it badly: it takes {"a"}, [1,,3] and {} {} for JSON, stops at a
 * NUL, and climbs from the last token to the bracket that closes, level by level: quadratic, were
 * the depth not bounded. Behind the scan it meets only what it is good at, with exactly as many
 * tokens as it will use.
 *
 * Invariants: every body stands in the table of replies, once, cut where its variable text goes; a
 * constant body is sent from there without a copy. No request makes a body longer than
 * API_MAX_BODY_BYTES. Nothing is remembered between two calls.
 *
 * Refused on purpose: byte order marks, comments, trailing commas, NaN (none of it is RFC 8259), a
 * Content-Type that is not JSON, and credentials given twice.
 */
#include "api.h"
#include <stdio.h>
#include <stdlib.h>

#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#include <jsmn.h>

#define JSON_MAX_DEPTH  64 /* levels of nesting, one bit each in scan.nesting */
#define JSON_FEW_TOKENS 64 /* as many fit on the stack, 20 bytes each */
#define RETRY_AFTER_S   1  /* seconds until a refused connection is worth another try */
#define NOWHERE         SIZE_MAX

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

struct reply_text {
    int status;
    bool is_private;
    struct slice media_type, before, after; /* variable text stands between before and after */
};

#define TEXT(literal)                                                                              \
    { (literal), sizeof(literal) - 1 }
#define JSON(before, after) true, TEXT("application/json"), TEXT(before), TEXT(after)
#define PLAIN(body)         false, TEXT("text/plain"), TEXT(body), TEXT("")
#define NO_BODY             false, TEXT(""), TEXT(""), TEXT("")

/* Rocket.Chat's errors: a sentence, its code in brackets, the code once more, sometimes details. */
#define FAILURE               "{\"success\":false,\"error\":\""
#define CODE(code)            " [" code "]\",\"errorType\":\"" code "\""
#define ERROR(sentence, code) FAILURE sentence CODE(code) "}"
#define ERROR_IN(method, sentence, code)                                                           \
    FAILURE sentence CODE(code) ",\"details\":{\"method\":\"" method "\"}}"
#define ID_OR_NAME "\\\"roomId\\\" or \\\"roomName\\\""

/* clang-format off */
static const struct reply_text replies[] = {
    [REPLY_SUCCESS]       = {200, JSON("{\"success\":true}", "")},
    [REPLY_UNAUTHORIZED]  = {401, JSON(FAILURE "unauthorized\"}", "")},
    [REPLY_MEDIA_TYPE]    = {415, JSON(ERROR("Content-Type must be application/json",
                                             "error-unsupported-media-type"), "")},
    [REPLY_INVALID_JSON]  = {400, JSON(FAILURE "Invalid JSON: ", CODE("error-invalid-json") "}")},
    [REPLY_MATCH_ERROR]   = {400, JSON(FAILURE "Match error: Expected string, got ", "\"}")},
    [REPLY_INVALID_ROOM]  = {400, JSON(ERROR_IN("canAccessRoom", "Invalid room",
                                                "error-invalid-room"), "")},
    [REPLY_INVALID_KEY_ID] = {400, JSON(ERROR("Invalid key ID: 1 to 255 bytes, no NUL",
                                              "error-invalid-key-id"), "")},
    [REPLY_KEY_EXISTS]    = {400, JSON(ERROR_IN("e2e.setRoomKeyID", "E2E Key ID already exists",
                                                "error-room-e2e-key-already-exists"), "")},
    [REPLY_STORAGE]       = {503, JSON(ERROR("Storage unavailable", "error-storage"), "")},
    [REPLY_ROOM]          = {200, JSON("{\"room\":{\"_id\":", "},\"success\":true}")},
    [REPLY_NO_ROOM_ID]    = {400, JSON(ERROR("The parameter " ID_OR_NAME " is required",
                                             "error-roomid-param-not-provided"), "")},
    [REPLY_ROOM_NOT_FOUND] = {400, JSON(ERROR("The required " ID_OR_NAME
                                              " param provided does not match any channel",
                                              "error-room-not-found"), "")},
    [REPLY_PATH_NOT_FOUND] = {404, JSON(FAILURE "Resource not found\"}", "")},
    [REPLY_METHOD_NOT_ALLOWED] = {405, JSON(FAILURE "Method Not Allowed\"}", "")},
    [REPLY_OPTIONS]       = {204, NO_BODY},
    [REPLY_REFUSED]       = {400, JSON(FAILURE, "\"}")},
    [REPLY_HEALTHY]       = {200, PLAIN("ok")},
    [REPLY_UNHEALTHY]     = {503, PLAIN("storage failed")},
    [REPLY_METRICS]       = {200, false, TEXT("text/plain; version=0.0.4"), TEXT(""), TEXT("")},
};
/* clang-format on */

/* A reply whose body is constant, or the beginning of one whose body is not. */
static void reply_start(struct api_reply *reply, enum reply_id id) {
    const struct reply_text *text = &replies[id];
    reply->http = (struct http_reply){
        .status = text->status,
        .media_type = text->media_type,
        .body = text->before,
        .is_private = text->is_private,
    };
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

/* Begins a reply with variable text: add the text, then call reply_end. */
static void reply_begin(struct api_reply *reply, enum reply_id id) {
    reply_start(reply, id);
    struct slice before = reply->http.body;
    reply->http.body = (struct slice){reply->scratch, 0};
    reply_add(reply, before);
}

static void reply_end(struct api_reply *reply, enum reply_id id) {
    reply_add(reply, replies[id].after);
}

/* The escape of a character in a JSON string as JSON.stringify writes it, or an empty slice for a
 * character that stands for itself: DEL and all that is not ASCII do. */
static struct slice json_escape(unsigned char c, char escape[8]) {
    static const char letters[0x20] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    if (c == '"' || c == '\\' || (c < 0x20 && letters[c] != 0)) {
        escape[0] = '\\';
        escape[1] = c < 0x20 ? letters[c] : (char)c;
        return (struct slice){escape, 2};
    }
    if (c < 0x20) return (struct slice){escape, (size_t)snprintf(escape, 8, "\\u%04x", c)};
    return (struct slice){escape, 0};
}

size_t api_json_string(struct slice text, char *out) {
    char *end = out, buffer[8];
    *end++ = '"';
    for (size_t i = 0; i < text.n; i++) {
        struct slice escape = json_escape((unsigned char)text.p[i], buffer);
        if (escape.n == 0) escape = (struct slice){text.p + i, 1};
        memcpy(end, escape.p, escape.n);
        end += escape.n;
    }
    *end++ = '"';
    return (size_t)(end - out);
}

static void reply_add_json_string(struct api_reply *reply, struct slice text) {
    char string[API_JSON_STRING_BYTES(ID_MAX_BYTES)];
    reply_add(reply, (struct slice){string, api_json_string(text, string)});
}

/* ---- JSON: the scan -------------------------------------------------------------------------- */

#define END (-1) /* what stands behind the last byte */

struct scan {
    struct slice text;
    size_t pos;
    size_t tokens;    /* strings, numbers, literals, objects and arrays: what jsmn will count */
    const char *why;  /* NULL, or what is wrong at .pos */
    uint64_t nesting; /* bit 0 is the innermost level: 1 an object, 0 an array */
    unsigned depth;
    bool is_object; /* the text as a whole */
};

/* What the grammar asks for next (RFC 8259, sections 2, 4 and 5). */
enum expected {
    A_VALUE,
    A_VALUE_OR_CLOSE, /* just after [ */
    A_NAME,
    A_NAME_OR_CLOSE,  /* just after { */
    A_COMMA_OR_CLOSE, /* after a value; at depth 0, the end */
};

static int peek(const struct scan *scan) {
    return scan->pos < scan->text.n ? (unsigned char)scan->text.p[scan->pos] : END;
}

static struct slice scan_rest(const struct scan *scan) {
    return (struct slice){scan->text.p + scan->pos, scan->text.n - scan->pos};
}

static bool fail(struct scan *scan, const char *why) {
    scan->why = peek(scan) == END ? "unexpected end" : why;
    return false;
}

static void skip_space(struct scan *scan) {
    int c = peek(scan);
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t') {
        scan->pos++;
        c = peek(scan);
    }
}

/* The value of a hexadecimal digit, or -1. */
static int hex_value(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    int letter = c | 0x20; /* lower case; -1 stays -1 */
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

static bool scan_escape(struct scan *scan) {
    scan->pos++;
    int c = peek(scan);
    if (c == END || strchr("\"\\/bfnrtu", c) == NULL || c == '\0')
        return fail(scan, "invalid escape");
    scan->pos++;
    for (int digits = c == 'u' ? 4 : 0; digits > 0; digits--) {
        if (hex_value(peek(scan)) < 0) return fail(scan, "invalid escape");
        scan->pos++;
    }
    return true;
}

/* How many bytes at the beginning of text are ASCII that stands for itself in a string. */
static size_t plain_run(struct slice text) {
    size_t n = 0;
    while (n < text.n && text.p[n] >= 0x20 && (unsigned char)text.p[n] < 0x80 && text.p[n] != '"' &&
           text.p[n] != '\\')
        n++;
    return n;
}

static bool scan_utf8(struct scan *scan) {
    size_t n = slice_utf8(scan_rest(scan));
    scan->pos += n;
    return n > 0 || fail(scan, "invalid UTF-8");
}

static bool scan_string(struct scan *scan) {
    scan->tokens++;
    scan->pos++;
    for (;;) {
        scan->pos += plain_run(scan_rest(scan));
        int c = peek(scan);
        if (c == '"') break;
        if (c < 0x20) return fail(scan, "unescaped control character");
        if (!(c == '\\' ? scan_escape(scan) : scan_utf8(scan))) return false;
    }
    scan->pos++;
    return true;
}

static bool scan_digits(struct scan *scan) {
    if (peek(scan) < '0' || peek(scan) > '9') return fail(scan, "expected a digit");
    while (peek(scan) >= '0' && peek(scan) <= '9') scan->pos++;
    return true;
}

/* Section 6: no leading zeros, no plus sign, digits on both sides of the point. */
static bool scan_number(struct scan *scan) {
    scan->tokens++;
    if (peek(scan) == '-') scan->pos++;
    if (peek(scan) == '0')
        scan->pos++;
    else if (!scan_digits(scan))
        return false;
    if (peek(scan) == '.') {
        scan->pos++;
        if (!scan_digits(scan)) return false;
    }
    if (peek(scan) == 'e' || peek(scan) == 'E') {
        scan->pos++;
        if (peek(scan) == '+' || peek(scan) == '-') scan->pos++;
        return scan_digits(scan);
    }
    return true;
}

static bool scan_literal(struct scan *scan, const char *literal) {
    scan->tokens++;
    for (; *literal != '\0'; literal++, scan->pos++)
        if (peek(scan) != *literal) return fail(scan, "expected true, false or null");
    return true;
}

static enum expected scan_open(struct scan *scan, bool is_object) {
    if (scan->depth == JSON_MAX_DEPTH) {
        fail(scan, "nesting too deep");
        return A_VALUE;
    }
    if (scan->tokens == 0) scan->is_object = is_object;
    scan->tokens++;
    scan->pos++;
    scan->depth++;
    scan->nesting = scan->nesting << 1 | is_object;
    return is_object ? A_NAME_OR_CLOSE : A_VALUE_OR_CLOSE;
}

static enum expected scan_close(struct scan *scan) {
    scan->pos++;
    scan->depth--;
    scan->nesting >>= 1;
    return A_COMMA_OR_CLOSE;
}

static enum expected scan_value(struct scan *scan) {
    int c = peek(scan);
    if (c == '{' || c == '[') return scan_open(scan, c == '{');
    if (c == '"')
        scan_string(scan);
    else if (c == '-' || (c >= '0' && c <= '9'))
        scan_number(scan);
    else if (c == 't' || c == 'f' || c == 'n')
        scan_literal(scan, c == 't' ? "true" : c == 'f' ? "false" : "null");
    else
        fail(scan, "expected a value");
    return A_COMMA_OR_CLOSE;
}

static enum expected scan_name(struct scan *scan) {
    if (peek(scan) != '"') {
        fail(scan, "expected a name in quotes");
    } else if (scan_string(scan)) {
        skip_space(scan);
        if (peek(scan) == ':')
            scan->pos++;
        else
            fail(scan, "expected a colon");
    }
    return A_VALUE;
}

static enum expected scan_after_value(struct scan *scan) {
    bool in_object = scan->nesting & 1;
    if (scan->depth == 0)
        fail(scan, "text after the value");
    else if (peek(scan) == (in_object ? '}' : ']'))
        return scan_close(scan);
    else if (peek(scan) == ',')
        scan->pos++;
    else
        fail(scan, in_object ? "expected a comma or a closing brace"
                             : "expected a comma or a closing bracket");
    return in_object ? A_NAME : A_VALUE;
}

/* Whether all of the text is one RFC 8259 text in UTF-8, not nested too deeply. */
static bool scan_json(struct scan *scan) {
    enum expected expected = A_VALUE;
    while (scan->why == NULL) {
        skip_space(scan);
        int c = peek(scan);
        if (expected == A_COMMA_OR_CLOSE && scan->depth == 0 && c == END) return true;
        if (expected == A_COMMA_OR_CLOSE)
            expected = scan_after_value(scan);
        else if ((expected == A_NAME_OR_CLOSE && c == '}') ||
                 (expected == A_VALUE_OR_CLOSE && c == ']'))
            expected = scan_close(scan);
        else if (expected == A_NAME || expected == A_NAME_OR_CLOSE)
            expected = scan_name(scan);
        else
            expected = scan_value(scan);
    }
    return false;
}

/* ---- JSON: names and values ------------------------------------------------------------------ */

/* A text and, if it is an object, its tokens; nothing else has members to be asked for. */
struct json {
    struct slice text;
    const char *why; /* if the text is no JSON: what is wrong, and at which byte */
    size_t at;
    jsmntok_t *tokens; /* .few or allocated */
    size_t token_count;
    jsmntok_t few[JSON_FEW_TOKENS];
};

static void json_free(struct json *json) {
    if (json->tokens != json->few) free(json->tokens);
}

/* Lets jsmn split an object of token_count tokens. */
static enum reply_id json_split(struct json *json) {
    unsigned room = (unsigned)json->token_count;
    if (room > JSON_FEW_TOKENS) json->tokens = malloc(room * sizeof *json->tokens);
    if (json->tokens == NULL) return REPLY_STORAGE;
    jsmn_parser parser;
    jsmn_init(&parser);
    int count = jsmn_parse(&parser, json->text.p, json->text.n, json->tokens, room);
    if (count == (int)room) return REPLY_SUCCESS;
    /* It cannot come to this: jsmn refuses stray bytes, bad escapes, brackets that do not match,
     * values in place of names, and more tokens than it has room for; the scan let none pass. */
    json_free(json);
    json->why = "unknown structure";
    return REPLY_INVALID_JSON;
}

/* Reads text, which has to live as long as json. REPLY_SUCCESS: json_free is due.
 * REPLY_INVALID_JSON: .why and .at say more. REPLY_STORAGE: no memory. */
static enum reply_id json_read(struct json *json, struct slice text) {
    struct scan scan = {.text = text};
    bool valid = scan_json(&scan);
    json->text = text;
    json->why = scan.why;
    json->at = scan.pos;
    json->tokens = json->few;
    json->token_count = scan.tokens;
    if (!valid) return REPLY_INVALID_JSON;
    if (scan.is_object) return json_split(json);
    json->token_count = 0;
    return REPLY_SUCCESS;
}

/* Room for a decoded ID. An n past ID_MAX_BYTES says that it was longer than an ID may be. */
struct id_buffer {
    size_t n;
    char bytes[ID_MAX_BYTES + 1];
};

static void id_put(struct id_buffer *id, unsigned byte) {
    if (id->n < sizeof id->bytes) id->bytes[id->n++] = (char)byte;
}

static void id_put_code_point(struct id_buffer *id, unsigned c) {
    if (c < 0x80) {
        id_put(id, c);
        return;
    }
    if (c < 0x800) {
        id_put(id, 0xC0 | c >> 6);
    } else if (c < 0x10000) {
        id_put(id, 0xE0 | c >> 12);
        id_put(id, 0x80 | (c >> 6 & 0x3F));
    } else {
        id_put(id, 0xF0 | c >> 18);
        id_put(id, 0x80 | (c >> 12 & 0x3F));
        id_put(id, 0x80 | (c >> 6 & 0x3F));
    }
    id_put(id, 0x80 | (c & 0x3F));
}

/* The UTF-16 code unit of the \uXXXX at the beginning of text, or 0 if there is none. */
static unsigned unicode_escape(struct slice text) {
    unsigned unit = 0;
    if (text.n < 6 || text.p[0] != '\\' || text.p[1] != 'u') return 0;
    for (size_t i = 2; i < 6; i++) unit = unit << 4 | (unsigned)hex_value(text.p[i]);
    return unit;
}

/* Decodes the escape at the beginning of text. Returns its length in bytes, or 0 for a surrogate
 * without its other half: grammatical (RFC 8259, section 8.2) but no character, so in no ID. */
static size_t decode_escape(struct slice text, struct id_buffer *id) {
    static const char letters[] = "b\bf\fn\nr\rt\t";
    if (text.p[1] != 'u') {
        const char *letter = strchr(letters, text.p[1]);
        id_put(id, (unsigned char)(letter != NULL ? letter[1] : text.p[1]));
        return 2;
    }
    unsigned unit = unicode_escape(text);
    if (unit < 0xD800 || unit > 0xDFFF) {
        id_put_code_point(id, unit);
        return 6;
    }
    unsigned low = unicode_escape((struct slice){text.p + 6, text.n - 6});
    if (unit > 0xDBFF || low < 0xDC00 || low > 0xDFFF) return 0;
    id_put_code_point(id, 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
    return 12;
}

/* Decodes what stands between a string's quotes; the scan has proved it. Returns the offset of the
 * first lone surrogate in it, where decoding ends, or NOWHERE. */
static size_t decode_string(struct slice text, struct id_buffer *id) {
    id->n = 0;
    for (size_t i = 0; i < text.n;) {
        size_t n = 1;
        if (text.p[i] == '\\')
            n = decode_escape((struct slice){text.p + i, text.n - i}, id);
        else
            id_put(id, (unsigned char)text.p[i]);
        if (n == 0) return i;
        i += n;
    }
    return NOWHERE;
}

static struct slice token_text(const struct json *json, const jsmntok_t *token) {
    return (struct slice){json->text.p + token->start, (size_t)(token->end - token->start)};
}

/* Whether a member's name, as written, is this one. */
static bool is_named(struct slice written, struct slice name) {
    if (written.n == 0 || memchr(written.p, '\\', written.n) == NULL)
        return slice_equal(written, name);
    struct id_buffer decoded;
    return decode_string(written, &decoded) == NOWHERE &&
           slice_equal((struct slice){decoded.bytes, decoded.n}, name);
}

/* The value of the object's member called name, of several the last, or NULL. The tokens of names
 * are the root's children; each one's value is the token after it. */
static const jsmntok_t *find_member(const struct json *json, struct slice name) {
    for (size_t i = json->token_count; i-- > 1;) {
        const jsmntok_t *token = &json->tokens[i];
        if (token->parent == 0 && is_named(token_text(json, token), name)) return token + 1;
    }
    return NULL;
}

/* ---- POST /api/v1/e2e.setRoomKeyID ----------------------------------------------------------- */

struct argument {
    const char *not_string; /* NULL if it is a string, otherwise what it is instead */
    struct slice text;      /* decoded: in the body, or in .decoded if it had escapes */
    struct id_buffer decoded;
};

struct set_call {
    struct argument room, key;
};

/* JavaScript's names, as `typeof` gives them, and null. */
static const char *type_name(char first_byte) {
    switch (first_byte) {
    case '{':
    case '[': return "object";
    case 't':
    case 'f': return "boolean";
    case 'n': return "null";
    default: return "number";
    }
}

/* Reads a member of the body. Returns the offset of a lone surrogate in the body, or NOWHERE. */
static size_t read_argument(const struct json *json, struct slice name, struct argument *argument) {
    const jsmntok_t *token = find_member(json, name);
    argument->not_string = "undefined";
    if (token == NULL) return NOWHERE;
    argument->text = token_text(json, token);
    argument->not_string = token->type == JSMN_STRING ? NULL : type_name(argument->text.p[0]);
    if (argument->not_string != NULL || argument->text.n == 0 ||
        memchr(argument->text.p, '\\', argument->text.n) == NULL)
        return NOWHERE;
    size_t lone = decode_string(argument->text, &argument->decoded);
    argument->text = (struct slice){argument->decoded.bytes, argument->decoded.n};
    return lone == NOWHERE ? NOWHERE : (size_t)token->start + lone;
}

static enum reply_id read_arguments(struct json *json, struct set_call *call) {
    size_t in_room = read_argument(json, SLICE("rid"), &call->room);
    size_t in_key = read_argument(json, SLICE("keyID"), &call->key);
    json->at = in_room < in_key ? in_room : in_key;
    if (json->at == NOWHERE) return REPLY_SUCCESS;
    json->why = "lone surrogate";
    return REPLY_INVALID_JSON;
}

/* The rules of setting a key ID, whichever door the call came through. What *ticket becomes is what
 * the reply rests on. */
static enum reply_id set_key_id(struct api *api, const struct set_call *call, uint64_t *ticket) {
    if (call->room.not_string != NULL || call->key.not_string != NULL) return REPLY_MATCH_ERROR;
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

/* Of two arguments that are no strings the room is the one to be named. */
static const char *match_error(const struct set_call *call) {
    return call->room.not_string != NULL ? call->room.not_string : call->key.not_string;
}

/* Cuts off and returns what stands before the first separator, or all of it; *rest begins after. */
static struct slice cut(struct slice *rest, char separator) {
    struct slice head = *rest;
    const char *at = rest->n > 0 ? memchr(rest->p, separator, rest->n) : NULL;
    if (at != NULL) head.n = (size_t)(at - rest->p);
    size_t taken = head.n + (at != NULL);
    *rest = (struct slice){rest->p + taken, rest->n - taken};
    return head;
}

/* Whether the body may be read as JSON. Parameters say nothing: JSON is always UTF-8 (RFC 8259,
 * section 8.1). Two fields could be read as either by whoever stands in front of this server. */
static bool has_json_type(const struct http_request *request) {
    struct slice value;
    unsigned fields = http_field(request, "content-type", &value);
    if (fields == 0) return true;
    struct slice type = cut(&value, ';');
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

static enum reply_id read_set_call(struct api *api, const struct http_request *request,
                                   struct json *json, struct set_call *call) {
    if (!authenticate(api, request)) return REPLY_UNAUTHORIZED;
    if (!has_json_type(request)) return REPLY_MEDIA_TYPE;
    enum reply_id id = json_read(json, request->body.n > 0 ? request->body : SLICE("{}"));
    if (id != REPLY_SUCCESS) return id;
    id = read_arguments(json, call);
    json_free(json); /* the arguments point into the body, not to tokens */
    return id;
}

static void answer_set(struct api *api, const struct http_request *request,
                       struct api_reply *reply) {
    struct json json;
    struct set_call call;
    uint64_t ticket = 0;
    enum reply_id id = read_set_call(api, request, &json, &call);
    if (id == REPLY_SUCCESS) id = set_key_id(api, &call, &ticket);

    if (id == REPLY_INVALID_JSON) {
        char at[sizeof " at byte " + 20];
        snprintf(at, sizeof at, " at byte %zu", json.at);
        reply_begin(reply, id);
        reply_add(reply, slice_of(json.why));
        reply_add(reply, slice_of(at));
        reply_end(reply, id);
    } else if (id == REPLY_MATCH_ERROR) {
        reply_begin(reply, id);
        reply_add(reply, slice_of(match_error(&call)));
        reply_end(reply, id);
    } else {
        reply_start(reply, id);
        reply->ticket = ticket;
    }
}

/* ---- GET /api/v1/rooms.info ------------------------------------------------------------------ */

struct room {
    struct id_buffer id;
    char type;
    size_t key_size; /* 0: none is set */
    char key[ID_MAX_BYTES];
};

/* Decodes %XX (RFC 3986, section 2.1); '+' is itself, as it is everywhere outside HTML forms.
 * Returns whether every escape is whole. */
static bool percent_decode(struct slice text, struct id_buffer *id) {
    id->n = 0;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] != '%') {
            id_put(id, (unsigned char)text.p[i]);
            continue;
        }
        int high = text.n - i > 2 ? hex_value(text.p[i + 1]) : -1;
        int low = text.n - i > 2 ? hex_value(text.p[i + 2]) : -1;
        if (high < 0 || low < 0) return false;
        id_put(id, (unsigned)(high << 4 | low));
        i += 2;
    }
    return true;
}

/* Finds roomId in a query. One that is empty, broken or given twice is as good as none. */
static enum reply_id read_room_id(struct slice query, struct id_buffer *id) {
    unsigned given = 0;
    bool usable = false, has_name = false;
    while (query.n > 0) {
        struct slice value = cut(&query, '&');
        struct slice name = cut(&value, '=');
        if (slice_equal(name, SLICE("roomId"))) {
            given++;
            usable = value.n > 0 && percent_decode(value, id);
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
    enum reply_id id = read_room_id(request->query, &room->id);
    if (id != REPLY_SUCCESS) return id;
    struct slice rid = {room->id.bytes, room->id.n};
    room->type = slice_is_id(rid) ? access_room_type(api->access, rid, api->user) : 0;
    if (room->type == 0) return REPLY_ROOM_NOT_FOUND;
    room->key_size = 0;
    enum store_result result = store_get(api->store, rid, room->key, &room->key_size);
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
    reply_begin(reply, id);
    reply_add_json_string(reply, (struct slice){room.id.bytes, room.id.n});
    reply_add(reply, SLICE(",\"t\":"));
    reply_add_json_string(reply, (struct slice){&room.type, 1});
    if (room.key_size > 0) {
        reply_add(reply, SLICE(",\"e2eKeyId\":"));
        reply_add_json_string(reply, (struct slice){room.key, room.key_size});
    }
    reply_end(reply, id);
}

/* ---- GET /healthz ---------------------------------------------------------------------------- */

static void answer_health(struct api *api, const struct http_request *request,
                          struct api_reply *reply) {
    (void)request;
    reply_start(reply, store_has_failed(api->store) ? REPLY_UNHEALTHY : REPLY_HEALTHY);
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
    reply->http.head_only = slice_equal(request->method, SLICE("HEAD"));
}

void api_refuse(int status, const char *why, struct api_reply *reply) {
    reply_begin(reply, REPLY_REFUSED);
    reply_add(reply, slice_of(why));
    reply_end(reply, REPLY_REFUSED);
    reply->http.status = status;
    reply->endpoint = AT_OTHER;
    reply->http.retry_after_s = status == 503 ? RETRY_AFTER_S : 0;
}

void api_storage_unavailable(struct api_reply *reply) { reply_start(reply, REPLY_STORAGE); }
