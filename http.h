/*
 * http.h: HTTP/1.1 as bytes: requests in, replies out (RFC 9110 and RFC 9112).
 *
 * The parser is incremental: hand it what has arrived, and again when more has; any split of the
 * bytes gives the same result. It allocates nothing, keeps no pointer between two calls (the buffer
 * may move), and every slice it hands out points into the caller's buffer. It knows neither sockets
 * nor routes.
 */
#ifndef HTTP_H
#define HTTP_H

#include "slice.h"
#include <stdint.h>
#include <time.h>

/* Limits of one request, in bytes where they are no number of fields; past them it is answered 414,
 * 431 or 413, and a chunk's line 400. */
#define HTTP_MAX_TARGET_BYTES     8192
#define HTTP_MAX_HEAD_BYTES       16384 /* request line and fields; a chunked body's trailers too */
#define HTTP_MAX_FIELDS           100
#define HTTP_MAX_BODY_BYTES       65536 /* after chunks are joined */
#define HTTP_MAX_CHUNK_LINE_BYTES 1024  /* a chunk's size and extensions */

/* Longest origin that http_is_origin takes: a name of DNS has at most 253. */
#define HTTP_MAX_ORIGIN_BYTES 300

/* A buffer of this size is never too small: while http_parse asks for more, it holds less. */
#define HTTP_MAX_REQUEST_BYTES (HTTP_MAX_HEAD_BYTES + HTTP_MAX_BODY_BYTES + HTTP_MAX_HEAD_BYTES)

/* What http_parse found. */
enum http_progress {
    HTTP_MORE,     /* the request is not complete: read more, call again */
    HTTP_CONTINUE, /* as HTTP_MORE, and the client waits for HTTP_100_CONTINUE; once a request */
    HTTP_DONE,     /* the request is complete */
    HTTP_ERROR,    /* reply with .status and .why, then close: nothing after this can be trusted */
};

/* Where a field's line begins, has its ':' and ends: offsets, since a buffer may move. A head is at
 * most 16 KiB, so 16 bits are enough. */
struct http_field {
    uint16_t line, colon, end;
};

struct http_request {
    /* HTTP_DONE: the request. The slices live as long as the buffer and its bytes stay put. */
    struct slice method; /* as sent; methods are case-sensitive */
    struct slice path;   /* of an origin-form or absolute-form target, undecoded, never empty;
                            "*" for the asterisk-form; the target itself for the authority-form */
    struct slice query;  /* after the first '?', undecoded; empty if there is none */
    struct slice body;   /* chunks joined; empty if there is none */
    size_t size;         /* bytes of the buffer that the request took; the next one begins there */
    bool keep_alive;     /* the client lets the connection persist (RFC 9112, 9.3) */
    bool is_http10;      /* HTTP/1.0, where persisting has to be confirmed in the reply */

    /* HTTP_ERROR: the reply's status code and its reason in a few English words. */
    int status;
    const char *why;

    /* Any time: the request has begun (so a silent client is owed a 408; an empty line before it
     * does not count); it is a HEAD, to which even a refusal has no content (RFC 9110, 9.3.2); its
     * head is complete (so it is the body that is waited for). */
    bool begun;
    bool is_head;
    bool head_done;

    /* The parser's own; offsets into the buffer where nothing else is said. */
    unsigned char _state;
    bool _chunked, _expects_continue;
    size_t _pos;          /* the next byte to look at: all before it are done with */
    size_t _limit;        /* the section being read has to end here or before */
    size_t _head_size;    /* bytes */
    size_t _body_size;    /* bytes, joined so far */
    size_t _line, _colon; /* of the field being read: where it begins, where its ':' stands */
    uint64_t _length;     /* of the body, or of the chunk, in bytes */
    uint16_t _method, _target, _target_len;
    uint16_t _field_count, _field_lines; /* of the head; of the section being read, trailers too */
    const char *_base;                   /* the buffer, as of the last call */
    struct http_field _fields[HTTP_MAX_FIELDS];
};

/* Makes request ready for the first byte of a request. */
void http_request_init(struct http_request *request);

/* Parses buffer[0..*size), where buffer[0] is the request's first byte, and buffer[0..*size) begins
 * with all that the previous call left there. Joins chunks in place: as long as the request is not
 * complete, *size shrinks by the framing that is dropped. What follows a complete request stays
 * where it is, in buffer[request->size..*size). Work is linear in the bytes that are new. Never
 * blocks, allocates nothing. After HTTP_DONE or HTTP_ERROR the request has to be made ready again
 * before the next call. */
enum http_progress http_parse(struct http_request *request, char *buffer, size_t *size);

/* How often the field called name (in lower case) occurs in a complete request; *value is the first
 * one's value without the white space around it, or an empty slice. Trailers are not among them. */
unsigned http_field(const struct http_request *request, const char *name, struct slice *value);

/* The request line of a complete request, as sent, without its end. */
struct slice http_request_line(const struct http_request *request);

/* Whether a and b are the same but for the case of ASCII letters. */
bool http_equal_ignoring_case(struct slice a, struct slice b);

/* Cuts off and returns what stands before the first separator, or all of it; *rest begins after. */
struct slice http_cut(struct slice *rest, char separator);

/* Whether s is an origin as browsers write it: http or https, a host, perhaps a port (RFC 6454,
 * section 6.2). No wildcards. */
bool http_is_origin(struct slice s);

/* The interim reply to an expectation (RFC 9110, 10.1.1), complete. */
#define HTTP_100_CONTINUE "HTTP/1.1 100 Continue\r\n\r\n"

struct http_reply {
    int status;              /* one that http_status knows */
    unsigned retry_after_s;  /* seconds, for a 503; not sent when 0 */
    struct slice media_type; /* of the body; not sent when empty */
    struct slice body;       /* its length is sent even when head_only; not for a 204 */
    const char *allow;       /* the methods of a 405 or 204, or NULL */
    const char *field;       /* one more field, "NAME: VALUE", or NULL */
    struct slice origin;     /* whose scripts may read the reply (CORS); not sent when empty */
    bool varies_by_origin;   /* send Vary: Origin */
    bool is_private;         /* send Cache-Control: no-store */
    bool head_only;          /* the reply to a HEAD: no body */
    bool close;              /* send Connection: close */
    bool confirm_keep_alive; /* otherwise send Connection: keep-alive, to an HTTP/1.0 client */
};

/* A status code of this server's with its reason phrase, "404 Not Found"; "" for any other. */
const char *http_status(int status);

/* An IMF-fixdate (RFC 9110, 5.6.7) with its NUL, for the Date field. */
#define HTTP_DATE_BYTES 30
void http_date(time_t now, char date[HTTP_DATE_BYTES]);

/* Longest head that http_write_reply writes, in bytes, as long as media_type, field, origin and
 * twice allow together stay under HTTP_MAX_REPLY_TEXT_BYTES. */
#define HTTP_MAX_REPLY_HEAD_BYTES 1024
#define HTTP_MAX_REPLY_TEXT_BYTES 512

/* Writes the reply to out, which has room for HTTP_MAX_REPLY_HEAD_BYTES + reply->body.n. Returns
 * the bytes written. Cannot fail. */
size_t http_write_reply(char *out, const struct http_reply *reply, const char *date);

#endif
