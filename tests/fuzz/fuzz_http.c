/*
 * fuzz_http.c: bytes that claim to be requests, against http.c.
 *
 *     input:  [ 3 bytes: lengths of pieces ][ a stream of requests ... ]
 *
 * Two oracles:
 * - Itself. The stream is parsed whole, and cut into pieces of those lengths over and over, in a
 *   buffer that moves with every piece and ends with its last byte. Both ways have to give the same
 *   requests, byte for byte, and the same error at the end.
 * - llhttp, the parser of Node.js, in its strict mode. Of each request that http.c takes, llhttp
 *   sees the same method, target and body, ending at the same byte. What http.c refuses may be
 *   anything to llhttp, but what http.c still waits for must not be a whole request to it. What
 *   llhttp refuses and http.c takes stands in `deliberate`, with the section that says so.
 */
#include "fuzz.h"
#include "http.h"

#include <llhttp.h>

#define PIECES 3

/* ---- llhttp ---------------------------------------------------------------------------------- */

struct verdict {
    struct fuzz_text target, body;
    bool complete;
};

static int on_target(llhttp_t *parser, const char *p, size_t n) {
    fuzz_add(&((struct verdict *)parser->data)->target, (struct slice){p, n});
    return 0;
}

static int on_body(llhttp_t *parser, const char *p, size_t n) {
    fuzz_add(&((struct verdict *)parser->data)->body, (struct slice){p, n});
    return 0;
}

/* Pauses, so that the parser tells where the request ends. */
static int on_complete(llhttp_t *parser) {
    ((struct verdict *)parser->data)->complete = true;
    return HPE_PAUSED;
}

/* ---- What llhttp refuses and http.c takes ---------------------------------------------------- */

struct refusal {
    const struct http_request *request; /* as http.c takes it */
    struct slice bytes;                 /* as it came, with what follows it */
    size_t at;                          /* where llhttp gives up */
    const char *reason;
};

static bool has_reason(const struct refusal *refusal, const char *beginning) {
    return strncmp(refusal->reason, beginning, strlen(beginning)) == 0;
}

/* Whether one of these is the byte at which llhttp gives up, or the one before it. */
static bool is_about(const struct refusal *refusal, const char *bytes) {
    size_t n = strlen(bytes);
    return memchr(bytes, refusal->bytes.p[refusal->at], n) != NULL ||
           (refusal->at > 0 && memchr(bytes, refusal->bytes.p[refusal->at - 1], n) != NULL);
}

static bool is_in_head(const struct refusal *refusal) {
    struct slice rest = refusal->bytes;
    return refusal->at <= fuzz_cut(&rest, SLICE("\r\n\r\n")).n + 4;
}

static bool is_method(const struct refusal *refusal) {
    struct slice rest = refusal->bytes, method = refusal->request->method;
#define DIFFERS(number, name, text) &&!slice_equal(method, SLICE(#text))
    bool is_unknown = true HTTP_METHOD_MAP(DIFFERS);
#undef DIFFERS
    if (rest.p[0] == '\r') fuzz_cut(&rest, SLICE("\n"));
    size_t line_end = (size_t)(rest.p - refusal->bytes.p) + fuzz_cut(&rest, SLICE("\r")).n;
    return is_unknown && refusal->at <= line_end;
}

/* llhttp looks for the rest of HTTP/2's preface behind the version. */
static bool is_preface_method(const struct refusal *refusal) {
    return has_reason(refusal, "Expected HTTP/2 Connection Preface") ||
           has_reason(refusal, "Pause on PRI/Upgrade");
}

static bool is_minor_version(const struct refusal *refusal) {
    return has_reason(refusal, "Invalid HTTP version") && is_about(refusal, "23456789");
}

static bool is_tab_after_length(const struct refusal *refusal) {
    return has_reason(refusal, "Invalid character in Content-Length") && is_about(refusal, "\t");
}

static bool is_tab_after_coding(const struct refusal *refusal) {
    struct slice rest = refusal->bytes, head = fuzz_cut(&rest, SLICE("\r\n\r\n"));
    return has_reason(refusal, "Request has invalid `Transfer-Encoding`") &&
           memchr(head.p, '\t', head.n) != NULL;
}

static bool is_space_in_chunk_line(const struct refusal *refusal) {
    return has_reason(refusal, "Invalid character in chunk") && is_about(refusal, " \t");
}

static bool is_second_extension(const struct refusal *refusal) {
    return has_reason(refusal, "Invalid character in chunk size") && is_about(refusal, ";");
}

static bool is_quoted_pair(const struct refusal *refusal) {
    return has_reason(refusal, "Invalid character in chunk extensions quoted value") &&
           is_about(refusal, "\\");
}

static bool is_framing_in_trailers(const struct refusal *refusal) {
    return !is_in_head(refusal) && (strstr(refusal->reason, "Content-Length") != NULL ||
                                    strstr(refusal->reason, "Transfer-Encoding") != NULL);
}

static const struct {
    bool (*is_this)(const struct refusal *);
    const char *why; /* http.c is right to take it */
} deliberate[] = {
    {is_method, "RFC 9110, 9.1 and 15.6.2: any token is a method; an unknown one is no bad syntax"},
    {is_preface_method, "RFC 9110, 9.1: so is PRI, as long as it is a request of HTTP/1.1"},
    {is_minor_version, "RFC 9110, 2.5: a higher minor version is taken for the highest known"},
    {is_tab_after_length, "RFC 9112, 5: a value may be followed by tabs as well as by spaces"},
    {is_tab_after_coding, "RFC 9112, 5: likewise"},
    {is_space_in_chunk_line, "RFC 9112, 7.1.1: BWS, which RFC 9110, 5.6.3 obliges to take"},
    {is_second_extension, "RFC 9112, 7.1.1: an extension may follow one whose value is a token"},
    {is_quoted_pair, "RFC 9110, 5.6.4: a backslash may stand before any byte of a quoted string"},
    {is_framing_in_trailers, "RFC 9110, 6.5.1: a trailer never changes the framing: passed over"},
};

static bool is_deliberate(const struct refusal *refusal) {
    for (size_t i = 0; i < sizeof deliberate / sizeof *deliberate; i++)
        if (deliberate[i].is_this(refusal)) return true;
    dprintf(STDERR_FILENO, "llhttp: %s at byte %zu\n", refusal->reason, refusal->at);
    return false;
}

/* ---- The two side by side -------------------------------------------------------------------- */

/* Whether a target as sent has the path and query that the request says. */
static bool is_same_target(const struct http_request *request, struct slice target) {
    struct slice query = target, path;
    if (target.p[0] != '/' && !slice_equal(target, request->path)) {
        fuzz_cut(&query, SLICE("://"));
        while (query.n > 0 && query.p[0] != '/' && query.p[0] != '?') query.p++, query.n--;
    }
    path = fuzz_cut(&query, SLICE("?"));
    bool is_asterisk = slice_equal(request->method, SLICE("OPTIONS")) &&
                       memchr(target.p, '?', target.n) == NULL; /* RFC 9112, 3.2.4 */
    if (path.n == 0) path = is_asterisk ? SLICE("*") : SLICE("/");
    return slice_equal(path, request->path) && slice_equal(query, request->query);
}

static void compare_requests(const struct http_request *request, llhttp_t *parser) {
    const struct verdict *verdict = parser->data;
    struct slice body = {verdict->body.p, verdict->body.n};
    REQUIRE(slice_equal(request->method,
                        slice_of(llhttp_method_name((llhttp_method_t)parser->method))));
    REQUIRE(is_same_target(request, (struct slice){verdict->target.p, verdict->target.n}));
    /* RFC 9112, 6: framing does not depend on the method. llhttp ends a CONNECT with its head. */
    REQUIRE(slice_equal(request->body, body) || parser->method == HTTP_CONNECT);
}

/* Puts the bytes from a request's first one on before llhttp. The request took taken of them, or it
 * is NULL, and http.c waits for more. */
static void compare(const struct http_request *request, struct slice bytes, size_t taken) {
    struct verdict verdict = {.complete = false};
    llhttp_settings_t settings;
    llhttp_t parser;
    llhttp_settings_init(&settings);
    settings.on_url = on_target;
    settings.on_body = on_body;
    settings.on_message_complete = on_complete;
    llhttp_init(&parser, HTTP_REQUEST, &settings);
    parser.data = &verdict;
    llhttp_errno_t error = llhttp_execute(&parser, bytes.p, bytes.n);
    size_t at = error == HPE_OK ? bytes.n : (size_t)(llhttp_get_error_pos(&parser) - bytes.p);

    if (request == NULL) {
        REQUIRE(!verdict.complete || parser.method == HTTP_CONNECT);
    } else if (verdict.complete) {
        compare_requests(request, &parser);
        REQUIRE(at == taken || parser.method == HTTP_CONNECT);
    } else {
        struct refusal refusal = {request, bytes, at, llhttp_get_error_reason(&parser)};
        /* HTTP/2's preface goes on behind the head: there llhttp may read on, or wait for more. In any
         * other request it gives up before the end, and nothing that it waits for has http.c seen. */
        bool is_pri = slice_equal(request->method, SLICE("PRI"));
        REQUIRE(at < taken || (is_pri && at <= taken + strlen("SM\r\n\r\n")));
        REQUIRE(error == HPE_OK ? is_pri : is_deliberate(&refusal));
    }
    free(verdict.target.p);
    free(verdict.body.p);
}

/* ---- http.c, whole and in pieces ------------------------------------------------------------- */

/* A connection's receiving end, and an account of all that came out of it. */
struct stream {
    struct slice input; /* the whole */
    size_t fed;         /* bytes of it that have arrived */
    size_t begin;       /* where in it the request begins */
    size_t dropped;     /* framing of the request that the parser has dropped from the buffer */
    char *buffer;       /* size bytes of memory, no more */
    size_t size;
    struct http_request request;
    bool was_told_to_continue, failed;
    struct fuzz_text account;
};

static void add_slice(struct fuzz_text *account, const char *name, struct slice value) {
    char head[64];
    int n = snprintf(head, sizeof head, "%s %zu ", name, value.n);
    fuzz_add(account, (struct slice){head, (size_t)n});
    fuzz_add(account, value);
    fuzz_add(account, SLICE("\n"));
}

static void add_fields(struct stream *stream) {
    static const char *const names[] = {"host",       "content-length", "transfer-encoding",
                                        "connection", "expect",         "a"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct slice value;
        unsigned count = http_field(&stream->request, names[i], &value);
        REQUIRE(count <= HTTP_MAX_FIELDS && (count > 0 || value.n == 0));
        for (; count > 0; count--) add_slice(&stream->account, names[i], value);
    }
}

/* Notes a complete request and puts it before llhttp, if wanted. */
static void finish_request(struct stream *stream, bool judge) {
    const struct http_request *request = &stream->request;
    size_t taken = request->size + stream->dropped;
    REQUIRE(request->size > 0 && request->size <= stream->size);
    REQUIRE(request->path.n > 0 && request->body.n <= HTTP_MAX_BODY_BYTES);
    REQUIRE(request->begun && request->head_done);
    add_slice(&stream->account, "method", request->method);
    add_slice(&stream->account, "path", request->path);
    add_slice(&stream->account, "query", request->query);
    add_slice(&stream->account, "body", request->body);
    add_slice(&stream->account, request->keep_alive ? "persists" : "closes", SLICE(""));
    add_slice(&stream->account, request->is_http10 ? "1.0" : "1.1", SLICE(""));
    add_fields(stream);
    struct slice bytes = {stream->input.p + stream->begin, stream->input.n - stream->begin};
    if (judge) compare(request, bytes, taken);

    stream->begin += taken;
    stream->size -= request->size;
    char *rest = fuzz_copy((struct slice){stream->buffer + request->size, stream->size});
    free(stream->buffer);
    stream->buffer = rest;
    stream->dropped = 0;
    stream->was_told_to_continue = false;
    http_request_init(&stream->request);
}

static void note_error(struct stream *stream) {
    const struct http_request *request = &stream->request;
    REQUIRE(http_status(request->status)[0] != '\0');
    REQUIRE(strpbrk(request->why, "\"\\") == NULL); /* it is going to stand in JSON */
    add_slice(&stream->account, http_status(request->status), slice_of(request->why));
    stream->failed = true;
}

/* Lets a piece arrive. */
static void feed(struct stream *stream, size_t n, bool judge) {
    char *buffer = malloc(stream->size + n);
    REQUIRE(buffer != NULL);
    if (stream->size > 0) memcpy(buffer, stream->buffer, stream->size);
    memcpy(buffer + stream->size, stream->input.p + stream->fed, n);
    free(stream->buffer);
    stream->buffer = buffer;
    stream->size += n;
    stream->fed += n;

    while (stream->size > 0 && !stream->failed) {
        size_t before = stream->size;
        enum http_progress progress = http_parse(&stream->request, stream->buffer, &stream->size);
        REQUIRE(stream->size <= before);
        stream->dropped += before - stream->size;
        if (progress == HTTP_ERROR) note_error(stream);
        if (progress == HTTP_DONE) finish_request(stream, judge);
        if (progress == HTTP_CONTINUE) {
            REQUIRE(!stream->was_told_to_continue);
            stream->was_told_to_continue = true;
        }
        if (progress == HTTP_MORE || progress == HTTP_CONTINUE) break;
    }
    REQUIRE(stream->failed || stream->size < HTTP_MAX_REQUEST_BYTES);
}

/* Parses all of input: in pieces, or whole and put before llhttp if pieces is NULL. Returns the
 * account, which the caller frees. */
static struct fuzz_text parse(struct slice input, const uint8_t *pieces) {
    struct stream stream = {.input = input};
    http_request_init(&stream.request);
    for (size_t i = 0; stream.fed < input.n && !stream.failed; i++) {
        size_t left = input.n - stream.fed;
        size_t piece = pieces ? pieces[i % PIECES] % 64 + 1u : left;
        feed(&stream, piece < left ? piece : left, pieces == NULL);
    }
    if (!stream.failed) {
        struct slice bytes = {input.p + stream.begin, input.n - stream.begin};
        add_slice(&stream.account, stream.request.begun ? "begun" : "waits", SLICE(""));
        add_slice(&stream.account, stream.request.head_done ? "in its body" : "", SLICE(""));
        if (pieces == NULL) compare(NULL, bytes, 0);
    }
    free(stream.buffer);
    return stream.account;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size <= PIECES) return 0;
    struct slice input = {(const char *)data + PIECES, size - PIECES};
    struct fuzz_text whole = parse(input, NULL);
    struct fuzz_text in_pieces = parse(input, data);
    REQUIRE(
        slice_equal((struct slice){whole.p, whole.n}, (struct slice){in_pieces.p, in_pieces.n}));
    free(whole.p);
    free(in_pieces.p);
    return 0;
}
