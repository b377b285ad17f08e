/*
 * test_http.c: the request parser and the reply writer.
 *
 * A row is a run of bytes and what has to become of it. Each row is run whole, byte by byte, and
 * cut in two at every offset, and every run has to come to the same. Before each call the bytes are
 * moved so that the last one touches an unreadable page: reading one byte too many crashes, and a
 * pointer kept from an earlier call points at rubbish.
 */
#include "http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Running bytes through the parser ----------------------------------------------------- */

#define ARENA_BYTES ((size_t)1 << 20)

/* Memory that ends at an unreadable page. */
static char *make_arena(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p =
        mmap(NULL, ARENA_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + ARENA_BYTES, page, PROT_NONE) != 0) abort();
    return p;
}

/* One request on its way through the parser. */
struct run {
    struct http_request request;
    char *arena, *buffer; /* buffer + size is always the arena's end between two calls */
    size_t size;
    size_t fed; /* bytes of the input that have arrived */
    unsigned continues;
    enum http_progress progress;
};

static void begin_run(struct run *run, char *arena) {
    memset(run, 0xA5, sizeof(*run)); /* http_request_init must not rely on zeros */
    http_request_init(&run->request);
    run->arena = arena;
    run->buffer = arena + ARENA_BYTES;
    run->size = run->fed = 0;
    run->continues = 0;
    run->progress = HTTP_MORE;
}

/* Lets bytes of the input arrive up to offset `to`, and calls the parser. */
static void feed(struct run *run, struct slice input, size_t to) {
    size_t more = to - run->fed, before = run->size + more;
    char *moved = run->arena + ARENA_BYTES - before;
    assert_true(before <= ARENA_BYTES);
    memmove(moved, run->buffer, run->size);
    memcpy(moved + run->size, input.p + run->fed, more);
    run->fed = to;
    run->size = before;
    run->progress = http_parse(&run->request, moved, &run->size);
    assert_true(run->size <= before);
    run->buffer = moved;
    if (run->progress == HTTP_CONTINUE) {
        run->continues++;
        run->progress = HTTP_MORE;
    }
    if (run->progress == HTTP_MORE) {
        /* Everything is done with but perhaps one CR, so no byte is looked at in two calls; and a
         * buffer of the promised size is never full. */
        assert_true(run->size - run->request._pos <= 1);
        assert_true(run->size < HTTP_MAX_REQUEST_BYTES);
        run->buffer = run->arena + ARENA_BYTES - run->size;
        memmove(run->buffer, moved, run->size);
    }
}

/* Feeds the input in pieces of `piece` bytes, the first one of `first`. */
static void feed_pieces(struct run *run, struct slice input, size_t first, size_t piece) {
    size_t to = first;
    for (;;) {
        feed(run, input, to < input.n ? to : input.n);
        if (run->progress != HTTP_MORE || run->fed == input.n) return;
        to = run->fed + piece;
    }
}

/* ---- Rows --------------------------------------------------------------------------------- */

#define INCOMPLETE (-1)

struct row {
    const char *name;
    struct slice input;
    int status;         /* of the error, or 0: the request is complete, or INCOMPLETE */
    size_t certain_at;  /* the error is found when this many bytes are there; 0: not checked */
    const char *method; /* NULL: "POST" if the input begins so, otherwise "GET" */
    const char *path;   /* NULL: "/" */
    const char *query, *body, *rest; /* NULL: "" */
    struct slice long_body;          /* instead of body */
    unsigned continues;              /* byte by byte: HTTP_CONTINUE this many times */
    bool close, http10;
};

static struct slice text_or(const char *text, const char *otherwise) {
    return slice_of(text ? text : otherwise);
}

#define assert_slice(found, wanted) assert_slice_at(found, wanted, __LINE__)
static void assert_slice_at(struct slice found, struct slice wanted, int line) {
    if (slice_equal(found, wanted)) return;
    print_error("line %d: found '%.*s', wanted '%.*s'\n", line, (int)found.n, found.p,
                (int)wanted.n, wanted.p);
    fail();
}

static void check_complete(const struct run *run, const struct row *row) {
    const struct http_request *request = &run->request;
    bool is_post = row->input.n > 4 && memcmp(row->input.p, "POST", 4) == 0;
    struct slice rest = text_or(row->rest, "");
    size_t here = run->size - request->size; /* bytes of the rest that have arrived */

    assert_slice(request->method, text_or(row->method, is_post ? "POST" : "GET"));
    const char *line = row->input.p;
    while (*line == '\r' || *line == '\n') line++;
    const char *end = memchr(line, '\r', row->input.n);
    struct slice whole = {line, (size_t)(end - line)};
    assert_slice(http_request_line(request), whole);
    assert_slice(request->path, text_or(row->path, "/"));
    assert_slice(request->query, text_or(row->query, ""));
    assert_slice(request->body, row->long_body.n > 0 ? row->long_body : text_or(row->body, ""));
    assert_int_equal(request->keep_alive, !row->close);
    assert_int_equal(request->is_http10, row->http10);
    assert_true(request->begun && request->head_done);
    assert_true(here + (row->input.n - run->fed) == rest.n);
    assert_memory_equal(run->buffer + request->size, rest.p, here);
}

static void check_outcome(const struct run *run, const struct row *row) {
    if (row->status == INCOMPLETE) {
        assert_int_equal(run->progress, HTTP_MORE);
    } else if (row->status == 0) {
        assert_int_equal(run->progress, HTTP_DONE);
        check_complete(run, row);
    } else {
        assert_int_equal(run->progress, HTTP_ERROR);
        assert_int_equal(run->request.status, row->status);
        assert_null(strpbrk(run->request.why, "\"\\"));
        assert_true(strlen(run->request.why) > 0);
    }
}

/* Two runs of one row came to the same. */
static void check_same(const struct run *run, const struct run *whole) {
    assert_int_equal(run->progress, whole->progress);
    assert_int_equal(run->request.begun, whole->request.begun);
    assert_int_equal(run->request.head_done, whole->request.head_done);
    if (run->progress == HTTP_ERROR) assert_string_equal(run->request.why, whole->request.why);
}

/* Runs a row whole, byte by byte, and cut in two at every `stride`th offset. */
static void check_row(const struct row *row, size_t stride) {
    char *arena = make_arena();
    struct run whole, by_byte, cut;
    begin_run(&whole, arena);
    feed(&whole, row->input, row->input.n);
    check_outcome(&whole, row);

    begin_run(&by_byte, arena);
    feed_pieces(&by_byte, row->input, 1, 1);
    check_outcome(&by_byte, row);
    check_same(&by_byte, &whole);
    assert_int_equal(by_byte.continues, row->continues);
    if (row->certain_at > 0) assert_int_equal(by_byte.fed, row->certain_at);

    for (size_t at = 0; at <= row->input.n; at += stride) {
        begin_run(&cut, arena);
        feed_pieces(&cut, row->input, at, row->input.n);
        check_outcome(&cut, row);
        check_same(&cut, &whole);
        /* What is certain at some byte is certain as soon as that byte is there. */
        bool first_part_decides = by_byte.progress != HTTP_MORE && at >= by_byte.fed;
        assert_int_equal(cut.fed == at && cut.progress != HTTP_MORE, first_part_decides);
    }
    munmap(arena, ARENA_BYTES + (size_t)sysconf(_SC_PAGESIZE));
}

static void check_rows(const struct row *rows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        print_message("  %s\n", rows[i].name);
        check_row(&rows[i], 1);
    }
}

/* What becomes of a row. */
#define FINE                   .status = 0
#define WAITS                  .status = INCOMPLETE
#define REFUSED(code)          .status = (code)
#define REFUSED_AT(code, byte) .status = (code), .certain_at = (byte)

/* The shapes most rows' inputs have. */
#define IN(bytes)                                                                                  \
    { (bytes), sizeof(bytes) - 1 }
#define GET(target, fields) IN("GET " target " HTTP/1.1\r\nHost: h\r\n" fields "\r\n")
#define BARE(request_line)  IN(request_line "\r\nHost: h\r\n\r\n")
#define POST(fields, rest)  IN("POST / HTTP/1.1\r\nHost: h\r\n" fields "\r\n" rest)
#define CHUNKED(rest)       POST("Transfer-Encoding: chunked\r\n", rest)

static const struct row request_line_rows[] = {
    {"a plain GET", GET("/", ""), FINE},
    {"nothing at all", IN(""), WAITS},
    {"no end of the head", IN("GET / HTTP/1.1\r\nHost: h\r\n"), WAITS},
    {"a CR at the end of what is there", IN("GET / HTTP/1.1\r\nHost: h\r\n\r"), WAITS},
    {"a method of odd characters", BARE("!#$%&'*+-.^_`|~09azAZ / HTTP/1.1"), FINE,
     .method = "!#$%&'*+-.^_`|~09azAZ"},
    {"methods are case-sensitive", BARE("get / HTTP/1.1"), FINE, .method = "get"},
    {"a method of one letter", BARE("G / HTTP/1.1"), FINE, .method = "G"},
    {"an empty line first", IN("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"), FINE},
    {"two empty lines first", IN("\r\n\r\nGET / HTTP/1.1\r\n"), REFUSED_AT(400, 3)},
    {"an empty line of LF first", IN("\nGET / HTTP/1.1\r\n"), REFUSED_AT(400, 1)},
    {"a CR first", IN("\rGET / HTTP/1.1\r\n"), REFUSED_AT(400, 2)},
    {"an empty line only", IN("\r\n"), WAITS},
    {"a space first", IN(" GET / HTTP/1.1\r\n"), REFUSED_AT(400, 1)},
    {"no method", IN(" / HTTP/1.1\r\n"), REFUSED_AT(400, 1)},
    {"a TLS handshake", IN("\x16\x03\x01\x02"), REFUSED_AT(400, 1)},
    {"a NUL", IN("\0GET"), REFUSED_AT(400, 1)},
    {"a NUL in the method", IN("GE\0T"), REFUSED_AT(400, 3)},
    {"a colon in the method", IN("GET: / HTTP/1.1\r\n"), REFUSED_AT(400, 4)},
    {"a tab after the method", IN("GET\t/ HTTP/1.1\r\n"), REFUSED_AT(400, 4)},
    {"a line end after the method", IN("GET\r\n"), REFUSED_AT(400, 4)},
    {"a byte over 0x7F in the method", IN("G\xC3\x89T / HTTP/1.1\r\n"), REFUSED_AT(400, 2)},
    {"two spaces before the target", IN("GET  / HTTP/1.1\r\n"), REFUSED_AT(400, 5)},
    {"two spaces after the target", IN("GET /  HTTP/1.1\r\n"), REFUSED_AT(400, 7)},
    {"a tab after the target", IN("GET /\tHTTP/1.1\r\n"), REFUSED_AT(400, 6)},
    {"a space after the version", IN("GET / HTTP/1.1 \r\n"), REFUSED_AT(400, 15)},
    {"a space in the target", IN("GET /a b HTTP/1.1\r\n"), REFUSED_AT(400, 8)},
    {"HTTP/0.9", IN("GET /\r\n"), REFUSED_AT(400, 6)},
    {"no version", IN("GET / \r\n"), REFUSED_AT(400, 7)},
    {"a bare LF after the request line", IN("GET / HTTP/1.1\nHost: h\r\n\r\n"),
     REFUSED_AT(400, 15)},
    {"a bare CR after the request line", IN("GET / HTTP/1.1\rHost: h\r\n\r\n"),
     REFUSED_AT(400, 16)},
    {"two CRs after the request line", IN("GET / HTTP/1.1\r\r\nHost: h\r\n\r\n"),
     REFUSED_AT(400, 16)},
    {"HTTP/1.0", IN("GET / HTTP/1.0\r\n\r\n"), FINE, .http10 = true, .close = true},
    {"HTTP/1.2 is taken as 1.1", BARE("GET / HTTP/1.2"), FINE},
    {"HTTP/1.9 is taken as 1.1", BARE("GET / HTTP/1.9"), FINE},
    {"HTTP/2.0", BARE("GET / HTTP/2.0"), REFUSED_AT(505, 16)},
    {"HTTP/0.9 in so many words", BARE("GET / HTTP/0.9"), REFUSED_AT(505, 16)},
    {"HTTP/3.1", BARE("GET / HTTP/3.1"), REFUSED_AT(505, 16)},
    {"HTTP/2's preface", IN("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), REFUSED_AT(505, 16)},
    {"an older version that is malformed", IN("GET / HTTP/2\r\n"), REFUSED_AT(400, 13)},
    {"http in lower case", IN("GET / http/1.1\r\n"), REFUSED_AT(400, 7)},
    {"two digits of a minor version", IN("GET / HTTP/1.10\r\n"), REFUSED_AT(400, 15)},
    {"two digits of a major version", IN("GET / HTTP/11.1\r\n"), REFUSED_AT(400, 13)},
    {"a comma in the version", IN("GET / HTTP/1,1\r\n"), REFUSED_AT(400, 13)},
    {"a letter for a digit", IN("GET / HTTP/1.x\r\n"), REFUSED_AT(400, 14)},
    {"another protocol", IN("GET / RTSP/1.0\r\n"), REFUSED_AT(400, 7)},
};

static const struct row target_rows[] = {
    {"a path and a query", GET("/a/b?c=d", ""), FINE, .path = "/a/b", .query = "c=d"},
    {"a query with a question mark", GET("/?a?b", ""), FINE, .query = "a?b"},
    {"an empty query", GET("/a?", ""), FINE, .path = "/a"},
    {"escapes stay as they are", GET("/%2e%2E?%", ""), FINE, .path = "/%2e%2E", .query = "%"},
    {"any visible character", GET("/\"<>[]^`{|}\\", ""), FINE, .path = "/\"<>[]^`{|}\\"},
    {"a path that begins with two slashes", GET("//h/a", ""), FINE, .path = "//h/a"},
    {"a fragment", GET("/a#b", ""), REFUSED_AT(400, 7)},
    {"a NUL in the target", IN("GET /\0 HTTP/1.1\r\n"), REFUSED_AT(400, 6)},
    {"a byte over 0x7F in the target", IN("GET /\xC3\xA9 HTTP/1.1\r\n"), REFUSED_AT(400, 6)},
    {"a DEL in the target", IN("GET /\x7F HTTP/1.1\r\n"), REFUSED_AT(400, 6)},
    {"a relative target", GET("a/b", ""), REFUSED(400)},
    {"a query alone", GET("?a", ""), REFUSED(400)},
    {"an absolute target", GET("http://h/a?b", ""), FINE, .path = "/a", .query = "b"},
    {"one with https", GET("https://h:443/a", ""), FINE, .path = "/a"},
    {"a scheme in capitals", GET("HtTpS://h/a", ""), FINE, .path = "/a"},
    {"an absolute target without a path", GET("http://h", ""), FINE},
    {"one with a query alone", GET("http://h?a=/b", ""), FINE, .query = "a=/b"},
    {"one without a host", GET("http:///a", ""), REFUSED(400)},
    {"one without anything", GET("http://", ""), REFUSED(400)},
    {"one with a port alone", GET("http://:80/", ""), REFUSED(400)},
    {"one with an empty port", GET("http://h:/", ""), FINE},
    {"one with a bad port", GET("http://h:8x/", ""), REFUSED(400)},
    {"one with user information", GET("http://u@h/", ""), REFUSED(400)},
    {"one with an IPv6 address", GET("http://[::1]:80/a", ""), FINE, .path = "/a"},
    {"one whose address is not closed", GET("http://[::1/a", ""), REFUSED(400)},
    {"one with another scheme", GET("ftp://h/a", ""), REFUSED(400)},
    {"half a scheme", GET("http:/h/a", ""), REFUSED(400)},
    {"the asterisk of OPTIONS", BARE("OPTIONS * HTTP/1.1"), FINE, .method = "OPTIONS", .path = "*"},
    {"an origin of OPTIONS", BARE("OPTIONS http://h HTTP/1.1"), FINE, .method = "OPTIONS",
     .path = "*"},
    {"an origin and a slash", BARE("OPTIONS http://h/ HTTP/1.1"), FINE, .method = "OPTIONS"},
    {"an origin and a query", BARE("OPTIONS http://h?a HTTP/1.1"), FINE, .method = "OPTIONS",
     .query = "a"},
    {"the asterisk of another method", GET("*", ""), REFUSED(400)},
    {"the asterisk and more", BARE("OPTIONS *a HTTP/1.1"), REFUSED(400)},
    {"a path for OPTIONS", BARE("OPTIONS /a HTTP/1.1"), FINE, .method = "OPTIONS", .path = "/a"},
    {"CONNECT", BARE("CONNECT h:443 HTTP/1.1"), FINE, .method = "CONNECT", .path = "h:443"},
    {"CONNECT to an IPv6 address", BARE("CONNECT [::1]:443 HTTP/1.1"), FINE, .method = "CONNECT",
     .path = "[::1]:443"},
    {"CONNECT without a port", BARE("CONNECT h HTTP/1.1"), REFUSED(400)},
    {"CONNECT with an empty port", BARE("CONNECT h: HTTP/1.1"), REFUSED(400)},
    {"CONNECT to a path", BARE("CONNECT / HTTP/1.1"), REFUSED(400)},
    {"CONNECT to an absolute target", BARE("CONNECT http://h:80/ HTTP/1.1"), REFUSED(400)},
    {"an authority for GET", GET("h:443", ""), REFUSED(400)},
};

static const struct row field_rows[] = {
    {"a field", GET("/", "A: b\r\n"), FINE},
    {"no white space around a value", GET("/", "A:b\r\n"), FINE},
    {"much white space around a value", GET("/", "A: \t b \t \r\n"), FINE},
    {"an empty value", GET("/", "A:\r\n"), FINE},
    {"a value of white space", GET("/", "A: \t \r\n"), FINE},
    {"obs-text in a value", GET("/", "A: \x80\xFF\r\n"), FINE},
    {"a colon in a value", GET("/", "A: b: c\r\n"), FINE},
    {"a space before the colon", GET("/", "A : b\r\n"), REFUSED_AT(400, 27)},
    {"a tab before the colon", GET("/", "A\t: b\r\n"), REFUSED_AT(400, 27)},
    {"a space before Content-Length's colon", POST("Content-Length : 5\r\n", "hello"),
     REFUSED(400)},
    {"no name", GET("/", ": b\r\n"), REFUSED_AT(400, 26)},
    {"no colon", GET("/", "A\r\n"), REFUSED_AT(400, 27)},
    {"a space in a name", GET("/", "A B: c\r\n"), REFUSED_AT(400, 27)},
    {"a byte over 0x7F in a name", GET("/", "A\x80: c\r\n"), REFUSED_AT(400, 27)},
    {"a NUL in a name", GET("/", "A\0: c\r\n"), REFUSED_AT(400, 27)},
    {"a folded line", GET("/", "A: b\r\n c\r\n"), REFUSED_AT(400, 32)},
    {"a line folded with a tab", GET("/", "A: b\r\n\tc\r\n"), REFUSED_AT(400, 32)},
    {"a folded Transfer-Encoding", POST("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
     REFUSED(400)},
    {"a space before the first field", IN("GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
     REFUSED_AT(400, 17)},
    {"a line of a space at the end", IN("GET / HTTP/1.1\r\nHost: h\r\n \r\n"), REFUSED_AT(400, 26)},
    {"a bare LF after a field", GET("/", "A: b\nB: c\r\n"), REFUSED_AT(400, 30)},
    {"a bare LF as the empty line", IN("GET / HTTP/1.1\r\nHost: h\r\n\n"), REFUSED_AT(400, 26)},
    {"bare LFs throughout", IN("GET / HTTP/1.1\nHost: h\n\n"), REFUSED_AT(400, 15)},
    {"a bare CR in a value", GET("/", "A: b\rc\r\n"), REFUSED_AT(400, 31)},
    {"two CRs after a field", GET("/", "A: b\r\r\n"), REFUSED_AT(400, 31)},
    {"a CR and something as the empty line", IN("GET / HTTP/1.1\r\nHost: h\r\n\rA: b\r\n"),
     REFUSED_AT(400, 27)},
    {"a NUL in a value", GET("/", "A: b\0c\r\n"), REFUSED_AT(400, 30)},
    {"a DEL in a value", GET("/", "A: b\x7F\r\n"), REFUSED_AT(400, 30)},
    {"a vertical tab in a value", GET("/", "A: b\vc\r\n"), REFUSED_AT(400, 30)},
};

static const struct row host_rows[] = {
    {"no host in HTTP/1.1", IN("GET / HTTP/1.1\r\n\r\n"), REFUSED_AT(400, 18)},
    {"no host but an absolute target", IN("GET http://h/ HTTP/1.1\r\n\r\n"), REFUSED(400)},
    {"two hosts", GET("/", "Host: h\r\n"), REFUSED(400)},
    {"two different hosts", GET("/", "hOST: other\r\n"), REFUSED(400)},
    {"two hosts in HTTP/1.0", IN("GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n"), REFUSED(400)},
    {"a host in HTTP/1.0", IN("GET / HTTP/1.0\r\nHost: h\r\n\r\n"), FINE, .http10 = true,
     .close = true},
    {"an empty host", IN("GET / HTTP/1.1\r\nHost:\r\n\r\n"), FINE},
    {"a host of white space", IN("GET / HTTP/1.1\r\nHost: \t\r\n\r\n"), FINE},
    {"a host and a port", IN("GET / HTTP/1.1\r\nHost: a-b.example:3000\r\n\r\n"), FINE},
    {"an empty port", IN("GET / HTTP/1.1\r\nHost: h:\r\n\r\n"), FINE},
    {"an IPv4 address", IN("GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n"), FINE},
    {"an IPv6 address", IN("GET / HTTP/1.1\r\nHost: [::FFFF:1.2.3.4]:80\r\n\r\n"), FINE},
    {"an IPv6 address alone", IN("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"), FINE},
    {"an IPv6 address without brackets", IN("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n"), REFUSED(400)},
    {"an empty IPv6 address", IN("GET / HTTP/1.1\r\nHost: []\r\n\r\n"), REFUSED(400)},
    {"an IPv6 address and rubbish", IN("GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n"), REFUSED(400)},
    {"an IPv6 address not closed", IN("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"), REFUSED(400)},
    {"no IPv6 address", IN("GET / HTTP/1.1\r\nHost: [1::2::3]\r\n\r\n"), REFUSED(400)},
    {"an IPv4 address in brackets", IN("GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n"), REFUSED(400)},
    {"the longest IPv6 address",
     IN("GET / HTTP/1.1\r\nHost: [1111:2222:3333:4444:5555:6666:255.255.255.255]:80\r\n\r\n"),
     FINE},
    {"a longer one",
     IN("GET / HTTP/1.1\r\nHost: [0000000000000000000000000000000000000000000::1]"
        "\r\n\r\n"),
     REFUSED(400)},
    {"percents", IN("GET / HTTP/1.1\r\nHost: %c3%A9a%20:80\r\n\r\n"), FINE},
    {"a percent at the end", IN("GET / HTTP/1.1\r\nHost: a%\r\n\r\n"), REFUSED(400)},
    {"a percent and a digit", IN("GET / HTTP/1.1\r\nHost: a%c\r\n\r\n"), REFUSED(400)},
    {"a percent and no digit", IN("GET / HTTP/1.1\r\nHost: a%cg\r\n\r\n"), REFUSED(400)},
    {"a zone in an IPv6 address", IN("GET / HTTP/1.1\r\nHost: [::1%25eth0]\r\n\r\n"), REFUSED(400)},
    {"a port alone", IN("GET / HTTP/1.1\r\nHost: :80\r\n\r\n"), REFUSED(400)},
    {"letters in the port", IN("GET / HTTP/1.1\r\nHost: h:8a\r\n\r\n"), REFUSED(400)},
    {"two ports", IN("GET / HTTP/1.1\r\nHost: h:80:80\r\n\r\n"), REFUSED(400)},
    {"a space in the host", IN("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), REFUSED(400)},
    {"a list of hosts", IN("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), REFUSED(400)},
    {"user information", IN("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n"), REFUSED(400)},
    {"obs-text in the host", IN("GET / HTTP/1.1\r\nHost: \xC3\xA9\r\n\r\n"), REFUSED(400)},
};

static const struct row length_rows[] = {
    {"a body", POST("Content-Length: 5\r\n", "hello"), FINE, .body = "hello"},
    {"a body and more", POST("Content-Length: 5\r\n", "helloGET"), FINE, .body = "hello",
     .rest = "GET"},
    {"a body that is not complete", POST("Content-Length: 5\r\n", "hell"), WAITS},
    {"an empty body", POST("Content-Length: 0\r\n", "GET"), FINE, .rest = "GET"},
    {"no length, no body", POST("", "GET"), FINE, .rest = "GET"},
    {"a body of a GET", IN("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nxGET"), FINE,
     .body = "x", .rest = "GET"},
    {"the name in capitals", POST("CONTENT-LENGTH: 1\r\n", "a"), FINE, .body = "a"},
    {"leading zeros", POST("Content-Length: 0000000000000000000000000000005\r\n", "hello"), FINE,
     .body = "hello"},
    {"white space around the length", POST("Content-Length: \t5 \r\n", "hello"), FINE,
     .body = "hello"},
    {"bodies hold any bytes", POST("Content-Length: 6\r\n", "\r\n\r\n\x80\x7F"), FINE,
     .body = "\r\n\r\n\x80\x7F"},
    {"no digits", POST("Content-Length:\r\n", ""), REFUSED(400)},
    {"a plus", POST("Content-Length: +5\r\n", "hello"), REFUSED(400)},
    {"a minus", POST("Content-Length: -5\r\n", "hello"), REFUSED(400)},
    {"a hexadecimal length", POST("Content-Length: 0x5\r\n", "hello"), REFUSED(400)},
    {"a letter at the end", POST("Content-Length: 5a\r\n", "hello"), REFUSED(400)},
    {"a space within", POST("Content-Length: 5 5\r\n", "hello"), REFUSED(400)},
    {"a point", POST("Content-Length: 5.0\r\n", "hello"), REFUSED(400)},
    {"a list of the same", POST("Content-Length: 5, 5\r\n", "hello"), REFUSED(400)},
    {"a list of two", POST("Content-Length: 5, 6\r\n", "hello"), REFUSED(400)},
    {"twice the same", POST("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), REFUSED(400)},
    {"two different ones", POST("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"),
     REFUSED(400)},
    {"two, the first one empty", POST("Content-Length:\r\nContent-Length: 5\r\n", "hello"),
     REFUSED(400)},
    {"one byte too many", POST("Content-Length: 65537\r\n", ""), REFUSED(413)},
    {"2^64", POST("Content-Length: 18446744073709551616\r\n", ""), REFUSED(413)},
    {"2^64 and five", POST("Content-Length: 18446744073709551621\r\n", "hello"), REFUSED(413)},
    {"a very long number", POST("Content-Length: 99999999999999999999999999999999\r\n", ""),
     REFUSED(413)},
    {"a very long number and a letter", POST("Content-Length: 99999999999999999999999x\r\n", ""),
     REFUSED(400)},
};

static const struct row coding_rows[] = {
    {"chunked", CHUNKED("5\r\nhello\r\n0\r\n\r\n"), FINE, .body = "hello"},
    {"in capitals", POST("TRANSFER-ENCODING: CHUNKED\r\n", "1\r\na\r\n0\r\n\r\n"), FINE,
     .body = "a"},
    {"chunks for a GET", GET("/", "Transfer-Encoding: chunked\r\n"), WAITS},
    {"identity", POST("Transfer-Encoding: identity\r\n", ""), REFUSED(501)},
    {"gzip", POST("Transfer-Encoding: gzip\r\n", ""), REFUSED(501)},
    {"gzip, chunked", POST("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"chunked, identity", POST("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
     REFUSED(501)},
    {"chunked twice", POST("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"two fields", POST("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""),
     REFUSED(501)},
    {"two fields, one is unknown",
     POST("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"an empty one", POST("Transfer-Encoding:\r\n", ""), REFUSED(501)},
    {"a comma after it", POST("Transfer-Encoding: chunked,\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"a comma before it", POST("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"a parameter", POST("Transfer-Encoding: chunked;a=b\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"quotes", POST("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"xchunked", POST("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), REFUSED(501)},
    {"a tab before it is white space", POST("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"), FINE},
    {"a vertical tab is not", POST("Transfer-Encoding: \vchunked\r\n", "0\r\n\r\n"), REFUSED(400)},
    {"a NUL after it", POST("Transfer-Encoding: chunked\0\r\n", "0\r\n\r\n"), REFUSED(400)},
    {"obs-text before it",
     POST("Transfer-Encoding: \xA0"
          "chunked\r\n",
          "0\r\n\r\n"),
     REFUSED(501)},
    {"a space before the colon", POST("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
     REFUSED(400)},
    {"in a name that only looks alike", POST("Transfer_Encoding: chunked\r\n", "GET"), FINE,
     .rest = "GET"},
    {"CL.TE", POST("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG"),
     REFUSED(400)},
    {"TE.CL", POST("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5\r\nhello\r\n0\r\n"),
     REFUSED(400)},
    {"CL.TE with an unknown coding", POST("Content-Length: 1\r\nTransfer-Encoding: x\r\n", "a"),
     REFUSED(400)},
    {"a length that is too large does not hide it",
     POST("Content-Length: 99999999\r\nTransfer-Encoding: chunked\r\n", ""), REFUSED(400)},
    {"a length of 0 beside it",
     POST("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), REFUSED(400)},
    {"chunks in HTTP/1.0", IN("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
     REFUSED(400)},
    {"chunks in HTTP/1.2",
     IN("POST / HTTP/1.2\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), FINE},
};

static const struct row chunk_rows[] = {
    {"no chunks", CHUNKED("0\r\n\r\n"), FINE},
    {"three chunks", CHUNKED("1\r\na\r\n2\r\nbc\r\n003\r\ndef\r\n0\r\n\r\n"), FINE,
     .body = "abcdef"},
    {"a last chunk of many zeros", CHUNKED("1\r\na\r\n0000\r\n\r\n"), FINE, .body = "a"},
    {"hexadecimal, small", CHUNKED("a\r\n0123456789\r\n0\r\n\r\n"), FINE, .body = "0123456789"},
    {"hexadecimal, capital", CHUNKED("B\r\n0123456789a\r\n0\r\n\r\n"), FINE, .body = "0123456789a"},
    {"bytes after it", CHUNKED("3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n"), FINE, .body = "abc",
     .rest = "GET / HTTP/1.1\r\n"},
    {"chunks that look like chunks", CHUNKED("5\r\n0\r\n\r\n\r\n0\r\n\r\n"), FINE,
     .body = "0\r\n\r\n"},
    {"no empty line after the last chunk", CHUNKED("1\r\na\r\n0\r\n"), WAITS},
    {"the last chunk is missing", CHUNKED("1\r\na\r\n"), WAITS},
    {"a chunk that is not complete", CHUNKED("5\r\nhell"), WAITS},
    {"no size", CHUNKED("\r\na\r\n"), REFUSED(400)},
    {"a space before the size", CHUNKED(" 1\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a space after the size", CHUNKED("1 \r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a size of 0x1", CHUNKED("0x1\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a plus", CHUNKED("+1\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a minus", CHUNKED("-1\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a letter that is no digit", CHUNKED("g\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a NUL after the size", CHUNKED("1\0\r\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF after the size", CHUNKED("1\na\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare CR after the size", CHUNKED("1\ra\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF after the data", CHUNKED("1\r\na\n0\r\n\r\n"), REFUSED(400)},
    {"a bare CR after the data", CHUNKED("1\r\na\r0\r\n\r\n"), REFUSED(400)},
    {"no line end after the data", CHUNKED("1\r\na0\r\n\r\n"), REFUSED(400)},
    {"data longer than the size", CHUNKED("1\r\nab\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF after the last chunk", CHUNKED("0\n\r\n"), REFUSED(400)},
    {"a bare LF as the empty line", CHUNKED("0\r\n\n"), REFUSED(400)},
    {"a chunk of 64 KiB and one byte", CHUNKED("10001"), REFUSED_AT(413, 61)},
    {"a chunk of 2^64", CHUNKED("10000000000000000"), REFUSED_AT(413, 62)},
    {"a chunk of 2^64 - 1", CHUNKED("FFFFFFFFFFFFFFFF\r\n"), REFUSED_AT(413, 61)},
    {"many zeros before a size", CHUNKED("00000000000000000000000000001\r\na\r\n0\r\n\r\n"), FINE,
     .body = "a"},
    {"a sum over 64 KiB", CHUNKED("2\r\nab\r\nFFFF\r\n"), REFUSED(413)},
};

static const struct row extension_rows[] = {
    {"a name", CHUNKED("1;a\r\nx\r\n0\r\n\r\n"), FINE, .body = "x"},
    {"a name and a value", CHUNKED("1;a=b\r\nx\r\n0;c=d\r\n\r\n"), FINE, .body = "x"},
    {"several", CHUNKED("1;a;b=c;d=\"e\";f\r\nx\r\n0\r\n\r\n"), FINE, .body = "x"},
    {"white space", CHUNKED("1 \t; a \t= b \t; c\t=\t\"d\" ;e  ;f\r\nx\r\n0\r\n\r\n"), FINE,
     .body = "x"},
    {"a quoted value", CHUNKED("1;a=\"b;c\\\"d \t\x80\"\r\nx\r\n0\r\n\r\n"), FINE, .body = "x"},
    {"an empty quoted value", CHUNKED("1;a=\"\"\r\nx\r\n0\r\n\r\n"), FINE, .body = "x"},
    {"an escaped tab", CHUNKED("1;a=\"\\\t\"\r\nx\r\n0\r\n\r\n"), FINE, .body = "x"},
    {"no name", CHUNKED("1;\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"no name but a space", CHUNKED("1; \r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"no name but a value", CHUNKED("1;=b\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"no name, then another one", CHUNKED("1;;a\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"no value", CHUNKED("1;a=\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"no value, then another name", CHUNKED("1;a=;b\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"white space after a name", CHUNKED("1;a \r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"white space after a value", CHUNKED("1;a=b \r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"white space after a quoted value", CHUNKED("1;a=\"b\" \r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a second word", CHUNKED("1;a b\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a second word after a value", CHUNKED("1;a=b c\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"text after a quoted value", CHUNKED("1;a=\"b\"c\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a second equals sign", CHUNKED("1;a=b=c\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF in a name", CHUNKED("1;a\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF after a semicolon", CHUNKED("1;\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF in a value", CHUNKED("1;a=b\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare LF in quotes", CHUNKED("1;a=\"b\nc\"\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a CR LF in quotes", CHUNKED("1;a=\"b\r\nc\"\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"an escaped LF", CHUNKED("1;a=\"\\\n\"\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a bare CR in a name", CHUNKED("1;a\rb\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a NUL in a value", CHUNKED("1;a=\0\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a DEL in quotes", CHUNKED("1;a=\"\x7F\"\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
    {"a comma", CHUNKED("1,2\r\nx\r\n0\r\n\r\n"), REFUSED(400)},
};

static const struct row trailer_rows[] = {
    {"a trailer", CHUNKED("1\r\nx\r\n0\r\nA: b\r\n\r\nGET"), FINE, .body = "x", .rest = "GET"},
    {"two trailers", CHUNKED("0\r\nA: b\r\nC:\r\n\r\n"), FINE},
    {"trailers say nothing about framing",
     CHUNKED("0\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\nHost: a\r\n\r\nGET"), FINE,
     .rest = "GET"},
    {"nor about the connection", CHUNKED("0\r\nConnection: close\r\n\r\n"), FINE},
    {"a space before the colon", CHUNKED("0\r\nA : b\r\n\r\n"), REFUSED(400)},
    {"a folded line", CHUNKED("0\r\nA: b\r\n c\r\n\r\n"), REFUSED(400)},
    {"a space first", CHUNKED("0\r\n A: b\r\n\r\n"), REFUSED(400)},
    {"a bare LF", CHUNKED("0\r\nA: b\n\r\n"), REFUSED(400)},
    {"a bare CR", CHUNKED("0\r\nA: b\rc\r\n\r\n"), REFUSED(400)},
    {"a NUL", CHUNKED("0\r\nA: \0\r\n\r\n"), REFUSED(400)},
    {"no colon", CHUNKED("0\r\nGET / HTTP/1.1\r\n\r\n"), REFUSED(400)},
    {"no name", CHUNKED("0\r\n: a\r\n\r\n"), REFUSED(400)},
};

static const struct row expect_rows[] = {
    {"before a body", POST("Expect: 100-continue\r\nContent-Length: 1\r\n", "a"), FINE, .body = "a",
     .continues = 1},
    {"in capitals", POST("EXPECT: 100-CONTINUE\r\nContent-Length: 1\r\n", "a"), FINE, .body = "a",
     .continues = 1},
    {"before chunks",
     POST("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", "1\r\na\r\n0\r\n\r\n"), FINE,
     .body = "a", .continues = 1},
    {"twice", POST("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n", "a"),
     FINE, .body = "a", .continues = 1},
    {"without a body", POST("Expect: 100-continue\r\n", ""), FINE},
    {"before an empty body", POST("Expect: 100-continue\r\nContent-Length: 0\r\n", ""), FINE},
    {"in HTTP/1.0", IN("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na"),
     FINE, .body = "a", .http10 = true, .close = true},
    {"something else", POST("Expect: a\r\n", ""), REFUSED(417)},
    {"nothing", POST("Expect:\r\n", ""), REFUSED(417)},
    {"a list", POST("Expect: 100-continue, a\r\n", ""), REFUSED(417)},
    {"something else in HTTP/1.0", IN("POST / HTTP/1.0\r\nExpect: a\r\n\r\n"), REFUSED(417)},
    {"something else second", POST("Expect: 100-continue\r\nExpect: a\r\n", ""), REFUSED(417)},
    {"before a body too large", POST("Expect: 100-continue\r\nContent-Length: 65537\r\n", ""),
     REFUSED(413)},
    {"before a chunk too large",
     POST("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", "10001\r\n"), REFUSED(413),
     .continues = 1},
};

static const struct row connection_rows[] = {
    {"close", GET("/", "Connection: close\r\n"), FINE, .close = true},
    {"close in capitals", GET("/", "connection: CLOSE\r\n"), FINE, .close = true},
    {"keep-alive", GET("/", "Connection: keep-alive\r\n"), FINE},
    {"something else", GET("/", "Connection: a, closed, clos, close-\r\n"), FINE},
    {"close in a list", GET("/", "Connection: a ,\tclose\t, b\r\n"), FINE, .close = true},
    {"close in an untidy list", GET("/", "Connection: ,, ,close,\r\n"), FINE, .close = true},
    {"close and keep-alive", GET("/", "Connection: close, keep-alive\r\n"), FINE, .close = true},
    {"keep-alive and close", GET("/", "Connection: keep-alive, close\r\n"), FINE, .close = true},
    {"close in a second field", GET("/", "Connection: a\r\nConnection: close\r\n"), FINE,
     .close = true},
    {"an empty list", GET("/", "Connection:\r\n"), FINE},
    {"keep-alive in HTTP/1.0", IN("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), FINE,
     .http10 = true},
    {"both in HTTP/1.0",
     IN("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n"), FINE,
     .http10 = true, .close = true},
    {"something else in HTTP/1.0", IN("GET / HTTP/1.0\r\nConnection: a\r\n\r\n"), FINE,
     .http10 = true, .close = true},
};

static void test_request_lines(void **state) {
    (void)state;
    check_rows(request_line_rows, COUNT(request_line_rows));
}

static void test_targets(void **state) {
    (void)state;
    check_rows(target_rows, COUNT(target_rows));
}

static void test_fields(void **state) {
    (void)state;
    check_rows(field_rows, COUNT(field_rows));
}

static void test_hosts(void **state) {
    (void)state;
    check_rows(host_rows, COUNT(host_rows));
}

static void test_lengths(void **state) {
    (void)state;
    check_rows(length_rows, COUNT(length_rows));
}

static void test_codings(void **state) {
    (void)state;
    check_rows(coding_rows, COUNT(coding_rows));
}

static void test_chunks(void **state) {
    (void)state;
    check_rows(chunk_rows, COUNT(chunk_rows));
}

static void test_extensions(void **state) {
    (void)state;
    check_rows(extension_rows, COUNT(extension_rows));
}

static void test_trailers(void **state) {
    (void)state;
    check_rows(trailer_rows, COUNT(trailer_rows));
}

static void test_expectations(void **state) {
    (void)state;
    check_rows(expect_rows, COUNT(expect_rows));
}

static void test_connections(void **state) {
    (void)state;
    check_rows(connection_rows, COUNT(connection_rows));
}

/* ---- Every byte in every place ------------------------------------------------------------ */

static bool is_in(unsigned byte, const char *set) {
    return byte != 0 && strchr(set, (int)byte) != NULL;
}

static bool is_alnum(unsigned byte) {
    return is_in(byte, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
}

static bool is_tchar(unsigned byte) { return is_alnum(byte) || is_in(byte, "!#$%&'*+-.^_`|~"); }

static bool is_target_char(unsigned byte) { return byte > 0x20 && byte < 0x7F && byte != '#'; }

static bool is_value_char(unsigned byte) { return byte == '\t' || (byte >= 0x20 && byte != 0x7F); }

static bool is_host_char(unsigned byte) { return is_alnum(byte) || is_in(byte, "-._~!$&'()*+,;="); }

static bool is_name_char(unsigned byte) {
    return is_tchar(byte) || byte == ':'; /* "A:a: b" is a name and a value */
}

static bool is_quoted_char(unsigned byte) {
    return is_value_char(byte) && byte != '"'; /* a backslash escapes the letter after it */
}

static bool is_extension_char(unsigned byte) {
    return is_tchar(byte) || byte == '=' || byte == ';';
}

static void test_every_byte_in_every_place(void **state) {
    (void)state;
    static const struct place {
        struct slice input; /* with \1 where the byte goes */
        bool (*is_allowed)(unsigned byte);
    } places[] = {
        {IN("G\1T / HTTP/1.1\r\nHost: h\r\n\r\n"), is_tchar},
        {IN("GET /\1a HTTP/1.1\r\nHost: h\r\n\r\n"), is_target_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nA\1a: b\r\n\r\n"), is_name_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nA: a\1b\r\n\r\n"), is_value_char},
        {IN("GET / HTTP/1.1\r\nHost: h\1h\r\n\r\n"), is_host_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0;a\1a\r\n\r\n"),
         is_extension_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0;a=\"\1a\"\r\n\r\n"),
         is_quoted_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0;a=\"\\\1\"\r\n\r\n"),
         is_value_char},
        {IN("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: \1\r\n\r\n"),
         is_value_char},
    };
    char *arena = make_arena(), text[128];
    for (size_t i = 0; i < COUNT(places); i++) {
        for (unsigned byte = 0; byte < 256; byte++) {
            struct slice input = {text, places[i].input.n};
            struct run run;
            memcpy(text, places[i].input.p, input.n);
            *(char *)memchr(text, 1, input.n) = (char)byte;
            begin_run(&run, arena);
            feed(&run, input, input.n);
            bool is_right = places[i].is_allowed(byte) == (run.progress == HTTP_DONE);
            if (!is_right || (run.progress == HTTP_ERROR && run.request.status != 400))
                fail_msg("place %zu, byte 0x%02X: progress %d", i, byte, (int)run.progress);
        }
    }
    munmap(arena, ARENA_BYTES + (size_t)sysconf(_SC_PAGESIZE));
}

/* ---- Limits: exactly at, and one past ----------------------------------------------------- */

/* A growing text for inputs that are too long for a literal. */
struct text {
    char bytes[ARENA_BYTES];
    size_t n;
};

static void add(struct text *text, const char *more) {
    size_t n = strlen(more);
    assert_true(text->n + n <= sizeof(text->bytes));
    memcpy(text->bytes + text->n, more, n);
    text->n += n;
}

static void add_fill(struct text *text, char c, size_t n) {
    assert_true(text->n + n <= sizeof(text->bytes));
    memset(text->bytes + text->n, c, n);
    text->n += n;
}

static struct text *new_text(const char *start) {
    struct text *text = malloc(sizeof(*text));
    assert_non_null(text);
    text->n = 0;
    add(text, start);
    return text;
}

/* Runs the text as a row and frees it. */
static void check_text(struct text *text, struct row row, size_t stride) {
    row.input = (struct slice){text->bytes, text->n};
    check_row(&row, stride);
    free(text);
}

static void test_target_limit(void **state) {
    (void)state;
    char *path = malloc(HTTP_MAX_TARGET_BYTES + 1);
    assert_non_null(path);
    memset(path, '/', HTTP_MAX_TARGET_BYTES);
    path[HTTP_MAX_TARGET_BYTES] = '\0';

    struct text *at = new_text("GET ");
    add(at, path);
    add(at, " HTTP/1.1\r\nHost: h\r\n\r\n");
    check_text(at, (struct row){.path = path}, 61);

    struct text *past = new_text("GET /");
    add(past, path);
    size_t certain_at = past->n;
    add(past, " HTTP/1.1\r\nHost: h\r\n\r\n");
    check_text(past, (struct row){.status = 414, .certain_at = certain_at}, 61);

    /* No line end in sight, not even a good byte after it. */
    struct text *open = new_text("GET /");
    add(open, path);
    check_text(open, (struct row){.status = 414, .certain_at = certain_at}, 61);

    struct text *almost = new_text("GET ");
    add(almost, path);
    check_text(almost, (struct row){.status = INCOMPLETE}, 61);
    free(path);
}

/* A head of n bytes in all. */
static struct text *head_of(size_t n) {
    struct text *text = new_text("GET / HTTP/1.1\r\nHost: h\r\nA: ");
    add_fill(text, 'a', n - text->n - 4);
    add(text, "\r\n\r\n");
    return text;
}

static void test_head_limit(void **state) {
    (void)state;
    struct row past = {.status = 431, .certain_at = HTTP_MAX_HEAD_BYTES};
    struct text *with_rest = head_of(HTTP_MAX_HEAD_BYTES);
    add(with_rest, "GET / ");
    check_text(head_of(HTTP_MAX_HEAD_BYTES), (struct row){.status = 0}, 97);
    check_text(with_rest, (struct row){.rest = "GET / "}, 97);
    check_text(head_of(HTTP_MAX_HEAD_BYTES + 1), past, 97);
    check_text(head_of(HTTP_MAX_HEAD_BYTES + 2), past, 97);
    check_text(head_of(HTTP_MAX_HEAD_BYTES + 3), past, 97);
    check_text(head_of(HTTP_MAX_HEAD_BYTES * 2), past, 97);

    struct text *method = new_text("");
    add_fill(method, 'A', HTTP_MAX_HEAD_BYTES);
    check_text(method, past, 97);
    struct text *name = new_text("GET / HTTP/1.1\r\n");
    add_fill(name, 'A', HTTP_MAX_HEAD_BYTES);
    check_text(name, past, 97);

    /* The leading empty line counts. */
    struct text *full = head_of(HTTP_MAX_HEAD_BYTES - 1), *late = new_text("\r\n");
    full->bytes[full->n] = '\0';
    add(late, full->bytes);
    free(full);
    check_text(late, past, 97);
}

static void test_field_limit(void **state) {
    (void)state;
    for (unsigned count = HTTP_MAX_FIELDS; count <= HTTP_MAX_FIELDS + 1; count++) {
        struct text *head = new_text("GET / HTTP/1.1\r\nHost: h\r\n");
        struct text *trailers = new_text("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked"
                                         "\r\n\r\n0\r\n");
        add(trailers, "A: b\r\n");
        for (unsigned i = 1; i < count; i++) {
            add(head, "A: b\r\n");
            add(trailers, "A: b\r\n");
        }
        add(head, "\r\n");
        add(trailers, "\r\n");
        struct row row = {.status = count > HTTP_MAX_FIELDS ? 431 : 0};
        check_text(head, row, 7);
        check_text(trailers, row, 7);
    }
}

static void test_body_limit(void **state) {
    (void)state;
    struct text *body = new_text("");
    for (unsigned i = 0; i < HTTP_MAX_BODY_BYTES; i++) add_fill(body, (char)(i * 7 + i / 256), 1);
    struct row row = {.long_body = {body->bytes, body->n}, .rest = "G"};

    struct text *whole = new_text("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 65536\r\n\r\n");
    memcpy(whole->bytes + whole->n, body->bytes, body->n);
    whole->n += body->n;
    add(whole, "G");
    check_text(whole, row, 4099);

    for (unsigned chunk = 16; chunk <= HTTP_MAX_BODY_BYTES; chunk *= 64) {
        struct text *chunks = new_text("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked"
                                       "\r\n\r\n");
        for (size_t at = 0; at < body->n; at += chunk) {
            char line[16];
            snprintf(line, sizeof(line), "%X\r\n", chunk);
            add(chunks, line);
            memcpy(chunks->bytes + chunks->n, body->bytes + at, chunk);
            chunks->n += chunk;
            add(chunks, "\r\n");
        }
        struct text *past = malloc(sizeof(*past));
        assert_non_null(past);
        memcpy(past, chunks, sizeof(*past));
        add(chunks, "0\r\n\r\nG");
        check_text(chunks, row, 9001);
        add(past, "1");
        check_text(past, (struct row){.status = 413, .certain_at = past->n}, 9001);
    }
    free(body);
}

static struct text *chunk_line_of(size_t n) {
    struct text *text = new_text("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 "1\r\na\r\n0;");
    add_fill(text, 'a', n - 2);
    return text;
}

static void test_chunk_line_limit(void **state) {
    (void)state;
    struct text *at = chunk_line_of(HTTP_MAX_CHUNK_LINE_BYTES);
    struct text *past = chunk_line_of(HTTP_MAX_CHUNK_LINE_BYTES + 1);
    struct text *endless = chunk_line_of(HTTP_MAX_CHUNK_LINE_BYTES * 2);
    size_t certain_at = at->n + 2;
    add(at, "\r\n\r\n");
    add(past, "\r\n\r\n");
    check_text(at, (struct row){.body = "a"}, 1);
    check_text(past, (struct row){.status = 400, .certain_at = certain_at}, 1);
    check_text(endless, (struct row){.status = 400, .certain_at = certain_at}, 1);

    struct text *zeros =
        new_text("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    add_fill(zeros, '0', HTTP_MAX_CHUNK_LINE_BYTES * 2);
    check_text(zeros, (struct row){.status = 400}, 1);
}

static struct text *trailers_of(size_t n) {
    struct text *text = new_text("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 "1\r\na\r\n0\r\n");
    add(text, "A: ");
    add_fill(text, 'a', n - 7);
    add(text, "\r\n\r\n");
    return text;
}

static void test_trailer_limit(void **state) {
    (void)state;
    check_text(trailers_of(HTTP_MAX_HEAD_BYTES), (struct row){.body = "a"}, 97);
    check_text(trailers_of(HTTP_MAX_HEAD_BYTES + 1), (struct row){.status = 431}, 97);
    check_text(trailers_of(HTTP_MAX_HEAD_BYTES * 2), (struct row){.status = 431}, 97);
}

/* ---- Several requests, and what is promised between calls --------------------------------- */

/* Parses a stream of requests as a server does, `piece` bytes at a time, and lists them in log. */
static void list_requests(struct slice input, size_t piece, struct text *log) {
    static const size_t room = HTTP_MAX_REQUEST_BYTES;
    char *buffer = malloc(room);
    struct http_request request;
    size_t size = 0, fed = 0;
    enum http_progress progress = HTTP_MORE;
    assert_non_null(buffer);
    http_request_init(&request);
    log->n = 0;
    while (progress != HTTP_ERROR) {
        progress = http_parse(&request, buffer, &size);
        if (progress == HTTP_DONE) {
            add(log, "[");
            memcpy(log->bytes + log->n, request.path.p, request.path.n);
            log->n += request.path.n;
            add(log, " ");
            memcpy(log->bytes + log->n, request.body.p, request.body.n);
            log->n += request.body.n;
            add(log, "]");
            size -= request.size;
            memmove(buffer, buffer + request.size, size);
            http_request_init(&request);
        } else if (progress == HTTP_ERROR) {
            add(log, "error: ");
            add(log, request.why);
        } else {
            size_t more = input.n - fed < piece ? input.n - fed : piece;
            if (more == 0) break;
            assert_true(size + more <= room);
            memcpy(buffer + size, input.p + fed, more);
            fed += more;
            size += more;
        }
    }
    free(buffer);
}

static void assert_log(const struct text *log, const char *wanted) {
    assert_slice(((struct slice){log->bytes, log->n}), slice_of(wanted));
}

static void test_pipelining(void **state) {
    (void)state;
    const struct slice input =
        SLICE("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n"
              "POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"
              "\r\nPOST /3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
              "3;x=\"\\\"\"\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"
              "POST /4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nf\r\n0\r\n\r\n"
              "GET /5 HTTP/1.1\r\nHost: h\r\n\r\n"
              "GET /6 HTTP/1.1\r\nHost : h\r\n\r\n"
              "GET /7 HTTP/1.1\r\nHost: h\r\n\r\n");
    struct text *log = new_text("");
    for (size_t piece = 1; piece <= input.n; piece++) {
        list_requests(input, piece, log);
        assert_log(log, "[/1 ][/2 ab][/3 abcde][/4 f][/5 ]error: bad field name");
    }
    free(log);
}

/* What is parsed in one call leaves the bytes behind it where they are, chunked or not. */
static void test_the_rest_does_not_move(void **state) {
    (void)state;
    char text[] = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "1\r\na\r\n1\r\nb\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
    struct http_request request;
    size_t size = sizeof(text) - 1;
    http_request_init(&request);
    assert_int_equal(http_parse(&request, text, &size), HTTP_DONE);
    assert_int_equal(size, sizeof(text) - 1);
    assert_slice(request.body, SLICE("ab"));
    assert_string_equal(text + request.size, "GET / HTTP/1.1\r\n");
}

static void test_begun_and_head_done(void **state) {
    (void)state;
    const struct slice input = POST("Content-Length: 2\r\n", "ab");
    char buffer[128];
    struct http_request request;
    size_t size = 0;
    http_request_init(&request);
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    assert_false(request.begun);
    memcpy(buffer, "\r\n", 2);
    size = 2;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    assert_false(request.begun); /* a stray empty line is not worth a 408 */
    memcpy(buffer + 2, input.p, input.n);
    size = 3;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    assert_true(request.begun);
    size = 2 + input.n - 3;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    assert_false(request.head_done);
    size = 2 + input.n - 2;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    assert_true(request.head_done);
    size = 2 + input.n;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_DONE);
    assert_int_equal(request.size, size);
}

/* HTTP_CONTINUE is for a client that waits: not for one that has sent everything. */
static void test_continue_only_while_waiting(void **state) {
    (void)state;
    const struct slice input = POST("Expect: 100-continue\r\nContent-Length: 2\r\n", "ab");
    char buffer[128];
    memcpy(buffer, input.p, input.n);
    struct http_request request;
    size_t size = input.n;
    http_request_init(&request);
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_DONE);

    http_request_init(&request);
    size = input.n - 2;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_CONTINUE);
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    size = input.n - 1;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_MORE);
    size = input.n;
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_DONE);
}

/* The longest request that there is, in a buffer of just the promised size. */
static void test_buffer_size(void **state) {
    (void)state;
    struct text *input = new_text("POST /long HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked"
                                  "\r\nA: ");
    struct text *log = new_text("");
    add_fill(input, 'a', HTTP_MAX_HEAD_BYTES - input->n - 4);
    add(input, "\r\n\r\n");
    for (unsigned i = 0; i < HTTP_MAX_BODY_BYTES / 16; i++) {
        add(input, "10;");
        add_fill(input, 'e', 97);
        add(input, "\r\n0123456789abcdef\r\n");
    }
    add(input, "0\r\n");
    for (unsigned i = 0; i < HTTP_MAX_FIELDS; i++) {
        add(input, "B: ");
        add_fill(input, 'b', 156);
        add(input, "\r\n");
    }
    add(input, "\r\n");
    list_requests((struct slice){input->bytes, input->n}, 1021, log);
    assert_int_equal(log->n, sizeof("[/long ]") - 1 + HTTP_MAX_BODY_BYTES);
    free(input);
    free(log);
}

/* Joining 64 Ki chunks of one byte moves 64 KiB: were the rest moved down at each chunk, it would
 * be 12 GiB and take seconds, where this takes milliseconds. Processor time, so other processes do
 * not count, and a bound that is generous under every sanitizer. */
static void test_joining_is_linear(void **state) {
    (void)state;
    struct text *input =
        new_text("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    struct http_request request;
    for (unsigned i = 0; i < HTTP_MAX_BODY_BYTES; i++) add(input, "1\r\nx\r\n");
    add(input, "0\r\n\r\n");
    clock_t begin = clock();
    http_request_init(&request);
    assert_int_equal(http_parse(&request, input->bytes, &input->n), HTTP_DONE);
    assert_int_equal(request.body.n, HTTP_MAX_BODY_BYTES);
    assert_true(clock() - begin < CLOCKS_PER_SEC / 4);
    free(input);
}

/* ---- Random inputs ------------------------------------------------------------------------ */

static uint64_t next_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

/* A row's input with a few bytes replaced, doubled or taken out. */
static void mutate(struct text *text, struct slice input, uint64_t *seed) {
    static const char bytes[] = "\r\n\r\n \t:;=\",0159aAfF\\/\0\x80";
    text->n = 0;
    for (size_t i = 0; i < input.n; i++) {
        uint64_t choice = next_random(seed) % 40;
        if (choice == 0)
            add_fill(text, bytes[next_random(seed) % (sizeof(bytes) - 1)], 1);
        else if (choice > 1)
            add_fill(text, input.p[i], choice == 2 ? 2 : 1);
    }
}

/* Whatever the bytes, any split of them comes to the same. */
static void test_random_splits(void **state) {
    (void)state;
    static const struct slice inputs[] = {
        CHUNKED("3;a=\"b\\c\"\r\nabc\r\n2 ; d\r\nde\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n"),
        IN("POST http://h:80/p?q HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 10\r\n"
           "Connection: a, close\r\nExpect: 100-continue\r\n\r\n0123456789GET"),
        IN("\r\nGET /a?b HTTP/1.0\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n"),
    };
    const char *given = getenv("SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    print_message("  SEED=%llu\n", (unsigned long long)seed);
    struct text *input = new_text(""), *whole = new_text(""), *split = new_text("");
    for (unsigned round = 0; round < 20000; round++) {
        mutate(input, inputs[round % COUNT(inputs)], &seed);
        struct slice bytes = {input->bytes, input->n};
        list_requests(bytes, bytes.n + 1, whole);
        list_requests(bytes, 1 + (size_t)(next_random(&seed) % 9), split);
        if (!slice_equal((struct slice){whole->bytes, whole->n},
                         (struct slice){split->bytes, split->n}))
            fail_msg("round %u: '%.*s' or '%.*s'", round, (int)whole->n, whole->bytes,
                     (int)split->n, split->bytes);
    }
    free(input);
    free(whole);
    free(split);
}

/* ---- Looking fields up -------------------------------------------------------------------- */

static void test_field_lookup(void **state) {
    (void)state;
    const struct slice input =
        GET("/", "X-Auth-Token: \t a b \r\nEmpty:\r\nx-AUTH-token:second\r\nX-Auth-Toke: c\r\n");
    char buffer[256];
    struct http_request request;
    struct slice value;
    size_t size = input.n;
    memcpy(buffer, input.p, input.n);
    http_request_init(&request);
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_DONE);
    assert_int_equal(http_field(&request, "x-auth-token", &value), 2);
    assert_slice(value, SLICE("a b"));
    assert_int_equal(http_field(&request, "empty", &value), 1);
    assert_slice(value, SLICE(""));
    assert_int_equal(http_field(&request, "host", &value), 1);
    assert_slice(value, SLICE("h"));
    value = SLICE("stale");
    assert_int_equal(http_field(&request, "x-auth", &value), 0);
    assert_slice(value, SLICE(""));
}

static void test_trailers_are_not_fields(void **state) {
    (void)state;
    const struct slice input = CHUNKED("0\r\nX-Auth-Token: a\r\nHost: b\r\n\r\n");
    char buffer[256];
    struct http_request request;
    struct slice value;
    size_t size = input.n;
    memcpy(buffer, input.p, input.n);
    http_request_init(&request);
    assert_int_equal(http_parse(&request, buffer, &size), HTTP_DONE);
    assert_int_equal(http_field(&request, "x-auth-token", &value), 0);
    assert_int_equal(http_field(&request, "host", &value), 1);
    assert_slice(value, SLICE("h"));
}

static void test_equal_ignoring_case(void **state) {
    (void)state;
    assert_true(http_equal_ignoring_case(SLICE("aZ09-"), SLICE("Az09-")));
    assert_true(http_equal_ignoring_case(SLICE(""), SLICE("")));
    assert_false(http_equal_ignoring_case(SLICE("a"), SLICE("ab")));
    assert_false(http_equal_ignoring_case(SLICE("a"), SLICE("b")));
    /* Only letters have a case: these differ in the bit that letters' cases differ in. */
    assert_false(http_equal_ignoring_case(SLICE("@[`{"), SLICE("`{@[")));
    assert_false(http_equal_ignoring_case(SLICE("\xC0"), SLICE("\xE0")));
}

/* ---- Replies ------------------------------------------------------------------------------ */

#define DATE "Sun, 06 Nov 1994 08:49:37 GMT"

/* The reply is `wanted`, and its head keeps to the promised length. */
static void assert_reply(struct http_reply reply, const char *wanted) {
    char out[HTTP_MAX_REPLY_HEAD_BYTES + 256];
    size_t n = http_write_reply(out, &reply, DATE);
    assert_slice(((struct slice){out, n}), slice_of(wanted));
    assert_true(n <= HTTP_MAX_REPLY_HEAD_BYTES + reply.body.n);
}

static void test_replies(void **state) {
    (void)state;
    const struct slice json = SLICE("application/json"), ok = SLICE("{\"success\":true}");
    assert_reply(
        (struct http_reply){.status = 200, .media_type = json, .body = ok, .is_private = true},
        "HTTP/1.1 200 OK\r\nDate: " DATE "\r\nContent-Type: application/json\r\n"
        "Content-Length: 16\r\nCache-Control: no-store\r\n\r\n{\"success\":true}");
    assert_reply(
        (struct http_reply){.status = 200, .media_type = json, .body = ok, .head_only = true},
        "HTTP/1.1 200 OK\r\nDate: " DATE "\r\nContent-Type: application/json\r\n"
        "Content-Length: 16\r\n\r\n");
    assert_reply(
        (struct http_reply){
            .status = 204, .media_type = json, .body = ok, .allow = "OPTIONS, POST"},
        "HTTP/1.1 204 No Content\r\nDate: " DATE "\r\nAllow: OPTIONS, POST\r\n\r\n");
    assert_reply(
        (struct http_reply){
            .status = 405, .body = SLICE("no"), .allow = "POST", .confirm_keep_alive = true},
        "HTTP/1.1 405 Method Not Allowed\r\nDate: " DATE "\r\nContent-Length: 2\r\n"
        "Allow: POST\r\nConnection: keep-alive\r\n\r\nno");
    assert_reply(
        (struct http_reply){
            .status = 503, .retry_after_s = 10, .close = true, .confirm_keep_alive = true},
        "HTTP/1.1 503 Service Unavailable\r\nDate: " DATE "\r\nContent-Length: 0\r\n"
        "Retry-After: 10\r\nConnection: close\r\n\r\n");
    assert_reply((struct http_reply){.status = 400, .body = ok, .origin = SLICE("*")},
                 "HTTP/1.1 400 Bad Request\r\nDate: " DATE "\r\nContent-Length: 16\r\n"
                 "Access-Control-Allow-Origin: *\r\n\r\n{\"success\":true}");
    assert_reply((struct http_reply){.status = 404, .varies_by_origin = true},
                 "HTTP/1.1 404 Not Found\r\nDate: " DATE "\r\nContent-Length: 0\r\n"
                 "Vary: Origin\r\n\r\n");
    assert_reply(
        (struct http_reply){.status = 415, .body = SLICE("no"), .field = "Accept-Encoding: a, b"},
        "HTTP/1.1 415 Unsupported Media Type\r\nDate: " DATE "\r\nContent-Length: 2\r\n"
        "Accept-Encoding: a, b\r\n\r\nno");
    assert_reply(
        (struct http_reply){
            .status = 204, .allow = "POST", .origin = SLICE("https://a"), .varies_by_origin = true},
        "HTTP/1.1 204 No Content\r\nDate: " DATE "\r\nAllow: POST\r\nVary: Origin\r\n"
        "Access-Control-Allow-Origin: https://a\r\n"
        "Access-Control-Allow-Headers: Content-Type, X-User-Id, X-Auth-Token, "
        "X-Requested-With\r\nAccess-Control-Allow-Methods: POST\r\n\r\n");
}

static void test_longest_reply_head(void **state) {
    (void)state;
    char out[HTTP_MAX_REPLY_HEAD_BYTES];
    char allow[(HTTP_MAX_REPLY_TEXT_BYTES - HTTP_MAX_ORIGIN_BYTES) / 2 - 16],
        origin[HTTP_MAX_ORIGIN_BYTES];
    memset(allow, 'A', sizeof(allow));
    memset(origin, 'O', sizeof(origin));
    allow[sizeof(allow) - 1] = '\0';
    struct http_reply reply = {.status = 431,
                               .allow = allow,
                               .field = "Accept-Encoding: identity, a",
                               .retry_after_s = UINT32_MAX,
                               .is_private = true,
                               .head_only = true,
                               .confirm_keep_alive = true,
                               .origin = {origin, sizeof(origin)},
                               .varies_by_origin = true,
                               .media_type = {"", 0},
                               .body = {"", SIZE_MAX}};
    reply.media_type = SLICE("a"); /* the field's name takes room even if its value hardly does */
    assert_true(http_write_reply(out, &reply, DATE) <= sizeof(out));
    reply.status = 204; /* has no length, but what a preflight asks for */
    assert_true(http_write_reply(out, &reply, DATE) <= sizeof(out));
}

static void test_origins(void **state) {
    (void)state;
    static const char *const good[] = {"http://h", "https://h:1", "HTTPS://H.example",
                                       "http://[::1]", "http://127.0.0.1:65535"};
    static const char *const bad[] = {"",          "h",          "http://",     "http:/h",
                                      "http://h/", "http://h:",  "http://h:x",  "http://:1",
                                      "http://*",  "*",          "http://*.h",  "http://h#",
                                      "http://h?", "http://a@h", "http://[::1", "ws://h",
                                      "null",      "http://h ",  " http://h",   "http://h\r\nX: y",
                                      "http://%",  "http://[.]"};
    for (size_t i = 0; i < COUNT(good); i++) assert_true(http_is_origin(slice_of(good[i])));
    for (size_t i = 0; i < COUNT(bad); i++) assert_false(http_is_origin(slice_of(bad[i])));
    char longest[HTTP_MAX_ORIGIN_BYTES + 1];
    memset(longest, 'h', sizeof(longest));
    memcpy(longest, "http://", 7);
    assert_true(http_is_origin((struct slice){longest, HTTP_MAX_ORIGIN_BYTES}));
    assert_false(http_is_origin((struct slice){longest, HTTP_MAX_ORIGIN_BYTES + 1}));
}

static void test_statuses(void **state) {
    (void)state;
    static const int statuses[] = {200, 204, 400, 401, 404, 405, 408, 413,
                                   414, 415, 417, 431, 501, 503, 505};
    for (size_t i = 0; i < COUNT(statuses); i++) {
        const char *text = http_status(statuses[i]);
        assert_int_equal(atoi(text), statuses[i]);
        assert_true(strlen(text) > strlen("200 ") && text[3] == ' ');
    }
    assert_string_equal(http_status(431), "431 Request Header Fields Too Large");
    assert_string_equal(http_status(299), "");
}

static void assert_date(time_t now, const char *wanted) {
    char date[HTTP_DATE_BYTES];
    http_date(now, date);
    assert_string_equal(date, wanted);
}

static void test_dates(void **state) {
    (void)state;
    assert_date(0, "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_date(784111777, "Sun, 06 Nov 1994 08:49:37 GMT"); /* the one in RFC 9110, 5.6.7 */
    assert_date(951782399, "Mon, 28 Feb 2000 23:59:59 GMT");
    assert_date(951782400, "Tue, 29 Feb 2000 00:00:00 GMT");
    assert_date(951868800, "Wed, 01 Mar 2000 00:00:00 GMT");
    assert_date(1709164800, "Thu, 29 Feb 2024 00:00:00 GMT");
    assert_date(1735689599, "Tue, 31 Dec 2024 23:59:59 GMT");
    assert_date(2147483647, "Tue, 19 Jan 2038 03:14:07 GMT");
    assert_date(-1, "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_date((time_t)2147483648, "Tue, 19 Jan 2038 03:14:08 GMT");
    assert_date((time_t)4107542400, "Mon, 01 Mar 2100 00:00:00 GMT"); /* 2100 is no leap year */
    assert_date((time_t)253402300799, "Fri, 31 Dec 9999 23:59:59 GMT");
    assert_date((time_t)253402300800, "Fri, 31 Dec 9999 23:59:59 GMT");
    assert_date((time_t)INT64_MAX, "Fri, 31 Dec 9999 23:59:59 GMT");
}

/* Every other day or so, at all hours, until 2400, against the C library in the locale "C". */
static void test_dates_against_the_library(void **state) {
    (void)state;
    for (int64_t now = 0; now < 13569465600; now += 86400 * 2 + 3661) {
        char wanted[64];
        struct tm tm;
        time_t t = (time_t)now;
        assert_non_null(gmtime_r(&t, &tm));
        strftime(wanted, sizeof(wanted), "%a, %d %b %Y %H:%M:%S GMT", &tm);
        assert_date(t, wanted);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_lines),
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_hosts),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_codings),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_extensions),
        cmocka_unit_test(test_trailers),
        cmocka_unit_test(test_expectations),
        cmocka_unit_test(test_connections),
        cmocka_unit_test(test_every_byte_in_every_place),
        cmocka_unit_test(test_target_limit),
        cmocka_unit_test(test_head_limit),
        cmocka_unit_test(test_field_limit),
        cmocka_unit_test(test_body_limit),
        cmocka_unit_test(test_chunk_line_limit),
        cmocka_unit_test(test_trailer_limit),
        cmocka_unit_test(test_pipelining),
        cmocka_unit_test(test_the_rest_does_not_move),
        cmocka_unit_test(test_begun_and_head_done),
        cmocka_unit_test(test_continue_only_while_waiting),
        cmocka_unit_test(test_buffer_size),
        cmocka_unit_test(test_joining_is_linear),
        cmocka_unit_test(test_random_splits),
        cmocka_unit_test(test_field_lookup),
        cmocka_unit_test(test_trailers_are_not_fields),
        cmocka_unit_test(test_equal_ignoring_case),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_longest_reply_head),
        cmocka_unit_test(test_origins),
        cmocka_unit_test(test_statuses),
        cmocka_unit_test(test_dates),
        cmocka_unit_test(test_dates_against_the_library),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
