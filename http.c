/*
 * http.c: HTTP/1.1 as bytes: the incremental request parser and the reply writer.
 *
 * The parser is a state machine that looks at every byte once, in order, and remembers in struct
 * http_request how far it is (_pos) and what it is in the middle of (_state):
 *
 *     START --> METHOD --> TARGET --> VERSION         [CR LF] method SP target SP HTTP/d.d CR LF
 *                                        |
 *          +-----------------------------+
 *          v
 *     FIELD_START --> FIELD_NAME --> FIELD_VALUE      *( name ":" value CR LF )
 *          |   ^                          |
 *          |   +--------------------------+
 *          | CR LF: the head is complete, and is now judged as a whole
 *          +--------> DATA --> WHOLE                  Content-Length bytes; if none, WHOLE at once
 *          +--------> CHUNK_FIRST ... CHUNK_LF        size [extensions] CR LF
 *                       ^     |         |
 *             CHUNK_END +-- DATA <------+             bytes CR LF
 *                                       | size 0
 *                                       +-> FIELD_START and so on again, for the trailers: WHOLE
 *
 * Invariants:
 * - What is decided at a byte depends on the bytes up to it, never on how many more have arrived.
 *   So any split of the bytes gives the same result, and an error is found at the first byte that
 *   makes it certain: a TLS handshake or a target that is too long needs no line end to be refused.
 *   Limits fit in by cutting the view: no step sees a byte past the _limit of its section.
 * - A step that asks for more has used up all bytes but, at most, one CR. So nothing is scanned
 *   twice, and one byte a call costs no more in sum than all bytes in one call.
 * - The head never moves within the buffer. A chunk moves once, down to the body's end; the gap
 *   that the framing leaves behind is closed only when the caller has to read more:
 *
 *       [ head | joined body | framing, done with | _pos ...        during a call
 *       [ head | joined body | _pos ...                             after it, *size is smaller
 *
 * What it refuses is what RFC 9112 lets a recipient be lenient about and what has been used to make
 * two servers disagree on where a request ends (section 11.2): bare LF and CR, folded lines, white
 * space before a colon, repeated or listed lengths, a length next to chunks, repeated hosts, sloppy
 * chunk lines. Every refusal ends the connection, so none can be followed by a smuggled request.
 */
#include "http.h"
#include "clock.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <strings.h>

/* ---- Characters --------------------------------------------------------------------------- */

enum char_class {
    IN_TOKEN = 0x01,  /* tchar: methods, field names, chunk extensions (RFC 9110, 5.6.2) */
    IN_TARGET = 0x02, /* visible ASCII but '#', which no request-target has (RFC 9112, 3.2) */
    IN_VALUE = 0x04,  /* field values: visible, SP, HTAB, obs-text (RFC 9110, 5.5) */
    IN_HOST = 0x08,   /* of a reg-name or an IPv4 address, but '%' (RFC 3986, 3.2.2) */
    IN_DIGIT = 0x20,
    IN_HEX = 0x30, /* a digit, or 0x10: A to F */
};

/* The classes of every byte, 64 to a row, as the lower six bits of a letter: @ is in none, D in
 * values alone, o a digit, _ one of A to F, O in a token, a target, a value and a host. The rows:
 * up to '?', up to DEL, obs-text. */
static const unsigned char char_classes[] =
    "@@@@@@@@@D@@@@@@@@@@@@@@@@@@@@@@DOFEOGOONNOONOOFooooooooooFNFNFF"
    "F______OOOOOOOOOOOOOOOOOOOOFFFGOG______OOOOOOOOOOOOOOOOOOOOFGFO@"
    "DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD"
    "DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD";

static inline bool is(char c, enum char_class wanted) {
    return (char_classes[(unsigned char)c] & wanted) != 0;
}

static inline bool is_blank(char c) { return c == ' ' || c == '\t'; }

/* Where the run of bytes of a class that begins at pos ends: at n or before. */
static inline size_t span(const char *p, size_t pos, size_t n, enum char_class wanted) {
    struct slice rest = {p + pos, n - pos};
    if (wanted == IN_VALUE) pos += slice_plain(rest, 0, 0);
    if (wanted == IN_TARGET) pos += slice_plain(rest, ' ', '#');
    while (pos < n && is(p[pos], wanted)) pos++;
    return pos;
}

/* strncasecmp ends at a NUL, but nothing that gets here has one: neither names nor values do. The
 * locale is C's. */
bool http_equal_ignoring_case(struct slice a, struct slice b) {
    return a.n == b.n && (a.n == 0 || strncasecmp(a.p, b.p, a.n) == 0);
}

struct slice http_cut(struct slice *rest, char separator) {
    const char *at = rest->n > 0 ? memchr(rest->p, separator, rest->n) : NULL;
    struct slice head = {rest->p, at != NULL ? (size_t)(at - rest->p) : rest->n};
    size_t taken = head.n + (at != NULL);
    *rest = (struct slice){rest->p + taken, rest->n - taken};
    return head;
}

static struct slice trim(struct slice s) {
    while (s.n > 0 && is_blank(s.p[0])) s = (struct slice){s.p + 1, s.n - 1};
    while (s.n > 0 && is_blank(s.p[s.n - 1])) s.n--;
    return s;
}

/* ---- Steps -------------------------------------------------------------------------------- */

enum state {
    START,       /* before the request: an empty line may come first */
    METHOD,      /* in the method, or before it */
    TARGET,      /* in the target */
    VERSION,     /* in "HTTP/d.d" CR LF */
    FIELD_START, /* at the start of a field's line, or of the empty line after the last one */
    FIELD_NAME,  /* in a field's name */
    FIELD_VALUE, /* in its value and the white space around that */
    DATA,        /* in the body's bytes, or a chunk's */
    CHUNK_END,   /* after a chunk's bytes, before CR LF */
    WHOLE,       /* behind the request */

    /* In a chunk's size line, RFC 9112, 7.1 and 7.1.1:
     *     1*HEXDIG *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] ) CR LF
     * BWS is any white space. It may stand only where it is followed by what the grammar says. */
    CHUNK_FIRST,      /* before the first digit of the size */
    CHUNK_SIZE,       /* in the size */
    EXT_WANTED,       /* in white space that a ';' has to follow */
    EXT_NAME_WANTED,  /* after ';' */
    EXT_NAME,         /* in the name */
    EXT_NAME_ENDED,   /* in white space that a '=' or a ';' has to follow */
    EXT_VALUE_WANTED, /* after '=' */
    EXT_TOKEN,        /* in a value that is a token */
    EXT_QUOTED,       /* in a quoted one */
    EXT_ESCAPED,      /* there, after a backslash */
    EXT_QUOTED_ENDED, /* after its closing quote */
    CHUNK_LF,         /* after CR */
    CHUNK_BAD,        /* never a state to be in: the line is wrong */
};

/* A step returns whether the state has changed, so that there is a next one to take. Otherwise the
 * request is whole, has a status now, or all bytes in view are used up, but perhaps for one CR. */

static bool refuse(struct http_request *request, int status, const char *why) {
    request->status = status;
    request->why = why;
    return false;
}

static bool go(struct http_request *request, enum state state) {
    request->_state = (unsigned char)state;
    return true;
}

/* Passes over CR LF. RFC 9112, 2.2 lets a recipient take a bare LF for it; whoever stands before us
 * may not, so we do not either. */
static bool pass_crlf(struct http_request *request, const char *p, size_t n) {
    size_t at = request->_pos;
    if (at < n && p[at] != '\r') return refuse(request, 400, "line does not end in CR LF");
    if (n - at < 2) return false;
    if (p[at + 1] != '\n') return refuse(request, 400, "CR without LF");
    request->_pos = at + 2;
    return true;
}

/* ---- Request line (RFC 9112, section 3) --------------------------------------------------- */

/* One empty line before a request is passed over, for old clients that end a body with one too many
 * (RFC 9112, 2.2). */
static bool start(struct http_request *request, const char *p, size_t n) {
    if (p[request->_pos] == '\r' && !pass_crlf(request, p, n)) return false;
    request->_method = (uint16_t)request->_pos;
    return go(request, METHOD);
}

static bool method(struct http_request *request, const char *p, size_t n) {
    request->begun = true;
    request->_pos = span(p, request->_pos, n, IN_TOKEN);
    if (request->_pos == n) return false;
    request->method = (struct slice){p + request->_method, request->_pos - request->_method};
    if (p[request->_pos] != ' ' || request->method.n == 0)
        return refuse(request, 400, "bad method");
    request->is_head = slice_equal(request->method, SLICE("HEAD"));
    request->_target = (uint16_t)++request->_pos;
    return go(request, TARGET);
}

static bool target(struct http_request *request, const char *p, size_t n) {
    size_t too_far = request->_target + HTTP_MAX_TARGET_BYTES + 1u;
    request->_pos = span(p, request->_pos, n < too_far ? n : too_far, IN_TARGET);
    if (request->_pos == too_far) return refuse(request, 414, "target too long");
    if (request->_pos == n) return false;
    request->_target_len = (uint16_t)(request->_pos - request->_target);
    if (p[request->_pos] != ' ' || request->_target_len == 0)
        return refuse(request, 400, "bad request target");
    request->_line = ++request->_pos;
    return go(request, VERSION);
}

/* Where the IP literal that s begins with ends: an IPv6 address in brackets; 0 if it is none. */
static size_t ip_literal_end(struct slice s) {
    char text[INET6_ADDRSTRLEN] = "";
    struct in6_addr address;
    const char *bracket = memchr(s.p, ']', s.n);
    size_t n = bracket ? (size_t)(bracket - s.p) - 1 : 0;
    if (n >= sizeof text) return 0;
    memcpy(text, s.p + 1, n);
    return inet_pton(AF_INET6, text, &address) == 1 ? n + 2 : 0;
}

/* Where the reg-name or IPv4 address that s begins with ends; a '%' stands before two digits. */
static size_t name_end(struct slice s) {
    size_t end = span(s.p, 0, s.n, IN_HOST);
    while (s.n - end > 2 && s.p[end] == '%' && is(s.p[end + 1], IN_HEX) && is(s.p[end + 2], IN_HEX))
        end = span(s.p, end + 3, s.n, IN_HOST);
    return end;
}

/* Whether s is uri-host [ ":" port ] (RFC 3986, 3.2.2, without the IP addresses of the future). No
 * user information: RFC 9110, 4.2.4. */
static bool is_host(struct slice s, bool needs_port) {
    size_t end = s.n > 0 && s.p[0] == '[' ? ip_literal_end(s) : name_end(s);
    if (end == 0 || (end < s.n && s.p[end] != ':')) return false;
    return end + 1 < s.n ? span(s.p, end + 1, s.n, IN_DIGIT) == s.n : !needs_port;
}

/* Where host and port end in a URI that begins with http:// or https://; 0 if s begins with
 * neither, or what follows is no host. */
static size_t authority_end(struct slice s) {
    struct slice rest = s, scheme = http_cut(&rest, ':');
    bool is_known = http_equal_ignoring_case(scheme, SLICE("http")) ||
                    http_equal_ignoring_case(scheme, SLICE("https"));
    if (!is_known || rest.n < 2 || memcmp(rest.p, "//", 2) != 0) return 0;
    size_t begin = scheme.n + strlen("://"), end = begin;
    while (end < s.n && s.p[end] != '/' && s.p[end] != '?') end++;
    return is_host((struct slice){s.p + begin, end - begin}, false) ? end : 0;
}

bool http_is_origin(struct slice s) {
    return s.n > 0 && s.n <= HTTP_MAX_ORIGIN_BYTES && authority_end(s) == s.n &&
           s.p[s.n - 1] != ':' && memchr(s.p, '*', s.n) == NULL;
}

/* Points method, path and query into the request line. Returns whether its target has one of the
 * four forms of RFC 9112, 3.2.1 to 3.2.4. */
static bool split_target(struct http_request *request, const char *p) {
    struct slice target = {p + request->_target, request->_target_len};
    request->method.p = p + request->_method;
    request->path = target;
    request->query = SLICE("");
    bool is_options = slice_equal(request->method, SLICE("OPTIONS"));
    if (slice_equal(request->method, SLICE("CONNECT"))) return is_host(target, true);
    if (is_options && slice_equal(target, SLICE("*"))) return true;
    /* The absolute-form's host is not looked at further, like the one in the field: this server has
     * one name. */
    size_t begin = target.p[0] == '/' ? 0 : authority_end(target);
    if (begin == 0 && target.p[0] != '/') return false;
    request->query = (struct slice){target.p + begin, target.n - begin};
    request->path = http_cut(&request->query, '?');
    /* No path means "/" (RFC 9110, 4.2.3); only OPTIONS without a query means "*" with it, and has
     * no path (RFC 9112, 3.2.4). */
    if (request->path.n == 0)
        request->path = is_options && begin == target.n ? SLICE("*") : SLICE("/");
    return true;
}

/* The target is judged only after the version: another major version may have targets of its own,
 * and a client that begins with HTTP/2's "PRI * HTTP/2.0" is owed a 505. A minor version above 1
 * means 1.1 (RFC 9110, 2.5). */
static bool version(struct http_request *request, const char *p, size_t n) {
    static const char pattern[] = "HTTP/d.d\r\n"; /* d: a digit */
    const char *wanted = pattern + (request->_pos - request->_line);
    for (; *wanted != '\0' && request->_pos < n; wanted++) {
        char c = p[request->_pos++];
        if (*wanted == 'd' ? !is(c, IN_DIGIT) : c != *wanted)
            return refuse(request, 400, "bad HTTP version");
    }
    if (*wanted != '\0') return false;
    const char *number = p + request->_line + strlen("HTTP/");
    if (number[0] != '1') return refuse(request, 505, "HTTP version not supported");
    request->is_http10 = number[2] == '0';
    return split_target(request, p) ? go(request, FIELD_START)
                                    : refuse(request, 400, "bad request target");
}

/* ---- Fields (RFC 9110, 5.5; RFC 9112, section 5) ------------------------------------------ */

/* The value of the next field called name, from number *i on, which is left behind it. Its .p is
 * NULL if there is none. */
static struct slice next_field(const struct http_request *request, struct slice name, unsigned *i) {
    while (*i < request->_field_count) {
        struct http_field field = request->_fields[(*i)++];
        struct slice found = {request->_base + field.line, (size_t)field.colon - field.line};
        /* Lengths and initials, in lower case: few calls are made in vain. */
        if (found.n != name.n || (found.p[0] | 0x20) != name.p[0]) continue;
        if (!http_equal_ignoring_case(found, name)) continue;
        return trim((struct slice){found.p + found.n + 1, (size_t)field.end - field.colon - 1});
    }
    return (struct slice){NULL, 0};
}

unsigned http_field(const struct http_request *request, const char *name, struct slice *value) {
    struct slice found, wanted = slice_of(name);
    unsigned count = 0;
    *value = SLICE("");
    for (unsigned i = 0; (found = next_field(request, wanted, &i)).p != NULL; count++)
        if (count == 0) *value = found;
    return count;
}

struct slice http_request_line(const struct http_request *request) {
    size_t end = request->_target + request->_target_len + sizeof " HTTP/1.1" - 1;
    return (struct slice){request->_base + request->_method, end - request->_method};
}

/* RFC 9112, 3.2: a host twice is how two servers are made to serve two different hosts. */
static bool judge_host(struct http_request *request) {
    struct slice host;
    unsigned count = http_field(request, "host", &host);
    if (count > 1) return refuse(request, 400, "more than one Host");
    if (count == 0 && !request->is_http10) return refuse(request, 400, "missing Host");
    return host.n == 0 || is_host(host, false) || refuse(request, 400, "bad Host");
}

/* Where the body ends: RFC 9112, 6.1 to 6.3. Both ways of saying it in one request are the classic
 * of request smuggling, and HTTP/1.0 has no chunks, so whoever sends them there passes on something
 * that it did not understand. RFC 9110, 8.6 allows "5, 5" and the same field twice to be taken for
 * one 5; we do not. */
static bool judge_framing(struct http_request *request) {
    struct slice coding, digits;
    unsigned codings = http_field(request, "transfer-encoding", &coding);
    unsigned lengths = http_field(request, "content-length", &digits);
    if (codings > 0 && request->is_http10)
        return refuse(request, 400, "Transfer-Encoding in HTTP/1.0");
    if (codings > 0 && lengths > 0)
        return refuse(request, 400, "both Transfer-Encoding and Content-Length");
    request->_chunked = codings == 1 && http_equal_ignoring_case(coding, SLICE("chunked"));
    if (codings > 0 && !request->_chunked)
        return refuse(request, 501, "transfer coding not supported");
    if (lengths == 0) return true;
    if (lengths > 1 || digits.n == 0 || span(digits.p, 0, digits.n, IN_DIGIT) < digits.n)
        return refuse(request, 400, "bad Content-Length");
    return slice_number(digits, HTTP_MAX_BODY_BYTES, &request->_length) ||
           refuse(request, 413, "body too large");
}

/* RFC 9110, 10.1.1. HTTP/1.0 clients do not know interim replies, so theirs is passed over. Without
 * a body the request is whole now, and nobody asks what it expects. */
static bool judge_expectations(struct http_request *request) {
    struct slice value;
    for (unsigned i = 0; (value = next_field(request, SLICE("expect"), &i)).p != NULL;) {
        if (!http_equal_ignoring_case(value, SLICE("100-continue")))
            return refuse(request, 417, "unknown expectation");
        request->_expects_continue = !request->is_http10;
    }
    return true;
}

/* RFC 9112, 9.3: close wins; otherwise 1.1 persists, and 1.0 where it asks for it. */
static void judge_connection(struct http_request *request) {
    bool close = false, keep_alive = false;
    struct slice list;
    for (unsigned i = 0; (list = next_field(request, SLICE("connection"), &i)).p != NULL;)
        while (list.n > 0) {
            struct slice option = trim(http_cut(&list, ',')); /* RFC 9110, 5.6.1 */
            close = close || http_equal_ignoring_case(option, SLICE("close"));
            keep_alive = keep_alive || http_equal_ignoring_case(option, SLICE("keep-alive"));
        }
    request->keep_alive = !close && (keep_alive || !request->is_http10);
}

static bool begin_chunk_line(struct http_request *request) {
    request->_length = 0;
    request->_limit = request->_pos + HTTP_MAX_CHUNK_LINE_BYTES + sizeof("\r\n") - 1;
    return go(request, CHUNK_FIRST);
}

/* Judged when it is whole, the fields' order makes no difference to the answer. */
static bool end_head(struct http_request *request) {
    request->head_done = true;
    request->_head_size = request->_pos;
    request->_field_lines = 0;
    if (!judge_host(request) || !judge_framing(request) || !judge_expectations(request))
        return false;
    judge_connection(request);
    if (request->_chunked) return begin_chunk_line(request);
    request->_limit = request->_pos + (size_t)request->_length;
    return go(request, request->_length > 0 ? DATA : WHOLE);
}

static bool field_start(struct http_request *request, const char *p, size_t n) {
    char c = p[request->_pos];
    if (c == '\r' && !pass_crlf(request, p, n)) return false;
    if (c == '\r') return request->head_done ? go(request, WHOLE) : end_head(request);
    if (is_blank(c)) /* obs-fold, RFC 9112, 5.2; before the first field: 2.2 */
        return refuse(request, 400, "line begins with white space");
    if (!is(c, IN_TOKEN)) return refuse(request, 400, "bad field name");
    if (request->_field_lines++ == HTTP_MAX_FIELDS) return refuse(request, 431, "too many fields");
    request->_line = request->_pos;
    return go(request, FIELD_NAME);
}

/* The colon follows at once: RFC 9112, 5.1 demands a 400 for white space before it. */
static bool field_name(struct http_request *request, const char *p, size_t n) {
    request->_pos = span(p, request->_pos, n, IN_TOKEN);
    if (request->_pos == n) return false;
    if (p[request->_pos] != ':') return refuse(request, 400, "bad field name");
    request->_colon = request->_pos++;
    return go(request, FIELD_VALUE);
}

static bool field_value(struct http_request *request, const char *p, size_t n) {
    size_t end = request->_pos = span(p, request->_pos, n, IN_VALUE);
    if (end < n && p[end] != '\r' && p[end] != '\n')
        return refuse(request, 400, "control byte in a field value");
    if (!pass_crlf(request, p, n)) return false;
    if (!request->head_done) /* nothing here needs what trailers say */
        request->_fields[request->_field_count++] =
            (struct http_field){(uint16_t)request->_line, (uint16_t)request->_colon, (uint16_t)end};
    return go(request, FIELD_START);
}

/* ---- Body (RFC 9112, sections 6 and 7) ---------------------------------------------------- */

static bool data(struct http_request *request, char *p, size_t n) {
    size_t bytes = n - request->_pos;
    char *body_end = p + request->_head_size + request->_body_size;
    if (request->_chunked) memmove(body_end, p + request->_pos, bytes);
    request->_body_size += bytes;
    request->_pos = n;
    if (n < request->_limit) return false;
    request->_limit += strlen("\r\n"); /* of a chunk's end */
    return go(request, request->_chunked ? CHUNK_END : WHOLE);
}

/* What may follow a size or a whole extension. A bare LF does not: a server that takes it for the
 * line's end and one that takes it for part of an extension see different chunks. */
static enum state after_extension(char c) {
    return c == ';' ? EXT_NAME_WANTED : is_blank(c) ? EXT_WANTED : c == '\r' ? CHUNK_LF : CHUNK_BAD;
}

/* What may follow an extension's name. */
static enum state after_name(char c) {
    return c == '=' ? EXT_VALUE_WANTED : is_blank(c) ? EXT_NAME_ENDED : after_extension(c);
}

/* The state that a byte of a chunk's size line leads to; behind the line, DATA. */
static enum state next_in_chunk_line(enum state state, char c) {
    switch (state) {
    case CHUNK_FIRST: return is(c, IN_HEX) ? CHUNK_SIZE : CHUNK_BAD;
    case CHUNK_SIZE: return is(c, IN_HEX) ? CHUNK_SIZE : after_extension(c);
    case EXT_WANTED: return c == '\r' ? CHUNK_BAD : after_extension(c);
    case EXT_NAME_WANTED: return is_blank(c) ? state : is(c, IN_TOKEN) ? EXT_NAME : CHUNK_BAD;
    case EXT_NAME: return is(c, IN_TOKEN) ? EXT_NAME : after_name(c);
    case EXT_NAME_ENDED: return c == '\r' ? CHUNK_BAD : after_name(c);
    case EXT_VALUE_WANTED:
        if (is_blank(c)) return EXT_VALUE_WANTED;
        return c == '"' ? EXT_QUOTED : is(c, IN_TOKEN) ? EXT_TOKEN : CHUNK_BAD;
    case EXT_TOKEN: return is(c, IN_TOKEN) ? EXT_TOKEN : after_extension(c);
    case EXT_QUOTED:
        if (c == '"' || c == '\\') return c == '"' ? EXT_QUOTED_ENDED : EXT_ESCAPED;
        return is(c, IN_VALUE) ? EXT_QUOTED : CHUNK_BAD;
    case EXT_ESCAPED: return is(c, IN_VALUE) ? EXT_QUOTED : CHUNK_BAD;
    case EXT_QUOTED_ENDED: return after_extension(c);
    default: return c == '\n' ? DATA : CHUNK_BAD; /* CHUNK_LF */
    }
}

static bool chunk_line(struct http_request *request, const char *p) {
    char c = p[request->_pos++];
    enum state next = next_in_chunk_line((enum state)request->_state, c);
    if (next == CHUNK_BAD) return refuse(request, 400, "bad chunk size or extension");
    /* A digit more: letters end in 1 to 6. Checked at every digit, the size cannot overflow. */
    if (next == CHUNK_SIZE)
        request->_length = request->_length * 16 + (unsigned)(c & 0xF) + (is(c, IN_DIGIT) ? 0 : 9);
    if (request->_length > HTTP_MAX_BODY_BYTES - request->_body_size)
        return refuse(request, 413, "body too large");
    if (next != DATA) return go(request, next);
    /* The last chunk, of size 0, is followed by the trailers. */
    bool is_last = request->_length == 0;
    request->_limit = request->_pos + (is_last ? HTTP_MAX_HEAD_BYTES : (size_t)request->_length);
    return go(request, is_last ? FIELD_START : DATA);
}

/* ---- The parser --------------------------------------------------------------------------- */

void http_request_init(struct http_request *request) {
    /* The fields come last and are most of it; _field_count says which of them mean anything. */
    memset(request, 0, offsetof(struct http_request, _fields));
    request->_limit = HTTP_MAX_HEAD_BYTES;
}

/* One step; p[0..n) ends where the section has to, and has at least one byte that is new. */
static bool take_step(struct http_request *request, char *p, size_t n) {
    switch ((enum state)request->_state) {
    case START: return start(request, p, n);
    case METHOD: return method(request, p, n);
    case TARGET: return target(request, p, n);
    case VERSION: return version(request, p, n);
    case FIELD_START: return field_start(request, p, n);
    case FIELD_NAME: return field_name(request, p, n);
    case FIELD_VALUE: return field_value(request, p, n);
    case DATA: return data(request, p, n);
    case CHUNK_END: return pass_crlf(request, p, n) && begin_chunk_line(request);
    case WHOLE: return false;
    default: return chunk_line(request, p);
    }
}

enum http_progress http_parse(struct http_request *request, char *buffer, size_t *size) {
    size_t n;
    request->_base = buffer;
    do {
        n = *size < request->_limit ? *size : request->_limit;
        assert(request->_pos <= n);
    } while (request->_pos < n && take_step(request, buffer, n));
    if (request->_state == WHOLE) {
        split_target(request, buffer); /* once more: the buffer may have moved */
        request->body = (struct slice){buffer + request->_head_size, request->_body_size};
        request->size = request->_pos;
        return HTTP_DONE;
    }
    bool is_full = request->status == 0 && n == request->_limit; /* and the section not complete */
    if (is_full && request->_state >= CHUNK_FIRST)
        refuse(request, 400, "chunk extensions too long");
    else if (is_full)
        refuse(request, 431, request->head_done ? "trailers too large" : "head too large");
    if (request->status != 0) return HTTP_ERROR;
    if (!request->head_done) return HTTP_MORE;

    /* Close the gap between the joined body and what is still to be looked at: nothing, or a CR. */
    size_t joined = request->_head_size + request->_body_size, gap = request->_pos - joined;
    memmove(buffer + joined, buffer + request->_pos, *size - request->_pos);
    request->_limit -= gap;
    request->_pos = joined;
    *size -= gap;
    bool waits = request->_expects_continue;
    request->_expects_continue = false;
    return waits ? HTTP_CONTINUE : HTTP_MORE;
}

/* ---- Replies ------------------------------------------------------------------------------ */

const char *http_status(int status) {
    switch (status) {
    case 200: return "200 OK";
    case 204: return "204 No Content";
    case 400: return "400 Bad Request";
    case 401: return "401 Unauthorized";
    case 404: return "404 Not Found";
    case 405: return "405 Method Not Allowed";
    case 408: return "408 Request Timeout";
    case 413: return "413 Content Too Large";
    case 414: return "414 URI Too Long";
    case 415: return "415 Unsupported Media Type";
    case 417: return "417 Expectation Failed";
    case 431: return "431 Request Header Fields Too Large";
    case 501: return "501 Not Implemented";
    case 503: return "503 Service Unavailable";
    case 505: return "505 HTTP Version Not Supported";
    default: return "";
    }
}

/* Appends s at out and returns where the next byte goes. Inlined, so that for a literal it becomes
 * a few stores; this and no printf, since a reply's head is written for every request. */
static inline char *append(char *out, struct slice s) {
    if (s.n > 0) memcpy(out, s.p, s.n);
    return out + s.n;
}

/* strftime's names follow the locale. A clock outside 1970 to 9999, where the format ends, is shown as
 * the nearest date that there is. */
void http_date(time_t now, char date[HTTP_DATE_BYTES]) {
    static const char weekdays[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    struct tm utc;
    char text[96]; /* room for any numbers, as far as the compiler knows */
    clock_utc(now, &utc);
    snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT", weekdays[utc.tm_wday],
             utc.tm_mday, months[utc.tm_mon], utc.tm_year + 1900, utc.tm_hour, utc.tm_min,
             utc.tm_sec);
    memcpy(date, text, HTTP_DATE_BYTES);
}

/* What a script may send beyond what every page may (Fetch, "CORS-safelisted request-header"). */
#define CORS_FIELDS                                                                                \
    "\r\nAccess-Control-Allow-Headers: Content-Type, X-User-Id, X-Auth-Token, X-Requested-With"    \
    "\r\nAccess-Control-Allow-Methods: "

/* Each line is begun with the CR LF of the one before it: one append fewer a line. */
size_t http_write_reply(char *out, const struct http_reply *reply, const char *date) {
    bool has_content = reply->status != 204; /* RFC 9110, 8.6: no Content-Length with it either */
    assert(http_status(reply->status)[0] != '\0'); /* or the status line would have no status */
    char *end = append(append(out, SLICE("HTTP/1.1 ")), slice_of(http_status(reply->status)));
    end = append(append(end, SLICE("\r\nDate: ")), (struct slice){date, HTTP_DATE_BYTES - 1});
    if (has_content && reply->media_type.n > 0)
        end = append(append(end, SLICE("\r\nContent-Type: ")), reply->media_type);
    if (has_content)
        end = slice_put_number(append(end, SLICE("\r\nContent-Length: ")), reply->body.n);
    if (reply->is_private) end = append(end, SLICE("\r\nCache-Control: no-store"));

    /* The fields that few replies have. */
    if (reply->allow) end = append(append(end, SLICE("\r\nAllow: ")), slice_of(reply->allow));
    if (reply->field) end = append(append(end, SLICE("\r\n")), slice_of(reply->field));
    if (reply->retry_after_s > 0)
        end = slice_put_number(append(end, SLICE("\r\nRetry-After: ")), reply->retry_after_s);
    if (reply->varies_by_origin) end = append(end, SLICE("\r\nVary: Origin"));
    if (reply->origin.n > 0)
        end = append(append(end, SLICE("\r\nAccess-Control-Allow-Origin: ")), reply->origin);
    if (reply->origin.n > 0 && reply->allow && reply->status == 204) /* to a preflight */
        end = append(append(end, SLICE(CORS_FIELDS)), slice_of(reply->allow));
    if (reply->close) end = append(end, SLICE("\r\nConnection: close"));
    if (reply->confirm_keep_alive && !reply->close)
        end = append(end, SLICE("\r\nConnection: keep-alive"));

    end = append(end, SLICE("\r\n\r\n"));
    assert(end - out <= HTTP_MAX_REPLY_HEAD_BYTES);
    if (has_content && !reply->head_only) end = append(end, reply->body);
    return (size_t)(end - out);
}
