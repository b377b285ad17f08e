/*
 * json.c: JSON texts, read in two passes, both linear in their length, whatever they hold:
 *
 *     bytes --scan--> RFC 8259 proven, depth <= 64, tokens counted --jsmn--> tokens
 *
 * jsmn splits JSON well but judges it badly: it takes {"a"}, [1,,3] and {} {} for JSON, stops at a
 * NUL, and climbs from the last token to the bracket that closes, level by level: quadratic, were
 * the depth not bounded. Behind the scan it meets only what it is good at, with exactly as many
 * tokens as it will use.
 *
 * Tokens stand in the order of the text, a name just before its value, and each knows its parent:
 * the array or object around it, or a value's name.
 *
 *     text     {  "a" :  [  1 ,  {} ]  , "b" :  "c"  }
 *     token    0   1     2  3    4        5      6
 *     parent   -   0     1  2    2        0      5
 *
 * Refused on purpose: byte order marks, comments, trailing commas, NaN; none of it is RFC 8259.
 */
#define JSON_DEFINES_JSMN
#include "json.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define NOWHERE SIZE_MAX

/* ---- The scan -------------------------------------------------------------------------------- */

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

int json_hex_value(int c) {
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
        if (json_hex_value(peek(scan)) < 0) return fail(scan, "invalid escape");
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

/* ---- Tokens ---------------------------------------------------------------------------------- */

/* Lets jsmn split an object into as many tokens as the scan has counted. */
static enum json_result split(struct json *json) {
    unsigned room = (unsigned)json->_token_count;
    if (room > JSON_FEW_TOKENS) json->_tokens = malloc(room * sizeof *json->_tokens);
    if (json->_tokens == NULL) return JSON_NO_MEMORY;
    json->root = json->_tokens;
    jsmn_parser parser;
    jsmn_init(&parser);
    int count = jsmn_parse(&parser, json->_text.p, json->_text.n, json->_tokens, room);
    if (count == (int)room) return JSON_OK;
    /* It cannot come to this: jsmn refuses stray bytes, bad escapes, brackets that do not match,
     * values in place of names, and more tokens than it has room for; the scan let none pass. */
    json_free(json);
    json->why = "unknown structure";
    return JSON_INVALID;
}

enum json_result json_read(struct json *json, struct slice text) {
    struct scan scan = {.text = text};
    bool valid = scan_json(&scan);
    json->root = NULL;
    json->why = scan.why;
    json->at = scan.pos;
    json->_text = text;
    json->_tokens = json->_few;
    json->_token_count = scan.tokens;
    if (!valid) return JSON_INVALID;
    return scan.is_object ? split(json) : JSON_OK; /* nothing else has members to be asked for */
}

void json_free(struct json *json) {
    if (json->_tokens != json->_few) free(json->_tokens);
}

static struct slice token_text(const struct json *json, const jsmntok_t *token) {
    return (struct slice){json->_text.p + token->start, (size_t)(token->end - token->start)};
}

enum json_type json_type(const struct json *json, const jsmntok_t *value) {
    if (value == NULL) return JSON_UNDEFINED;
    if (value->type == JSMN_STRING) return JSON_STRING; /* its token begins behind the quote */
    switch (json->_text.p[value->start]) {
    case '{': return JSON_OBJECT;
    case '[': return JSON_ARRAY;
    case 't':
    case 'f': return JSON_BOOLEAN;
    case 'n': return JSON_NULL;
    default: return JSON_NUMBER;
    }
}

const jsmntok_t *json_next(const struct json *json, const jsmntok_t *array,
                           const jsmntok_t *previous) {
    const jsmntok_t *end = json->_tokens + json->_token_count;
    const int parent = (int)(array - json->_tokens);
    const jsmntok_t *token = previous != NULL ? previous : array;
    while (++token < end && token->start < array->end)
        if (token->parent == parent) return token;
    return NULL;
}

/* ---- Strings, read --------------------------------------------------------------------------- */

struct decoded {
    char *bytes;
    size_t n, size;
};

static void put(struct decoded *out, unsigned byte) {
    if (out->n < out->size) out->bytes[out->n++] = (char)byte;
}

/* In UTF-8: the first byte has as many leading ones as there are bytes. */
static void put_code_point(struct decoded *out, unsigned c) {
    unsigned bytes = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    unsigned shift = 6 * (bytes - 1);
    put(out, bytes == 1 ? c : (0xF00 >> bytes & 0xFF) | c >> shift);
    while (shift > 0) {
        shift -= 6;
        put(out, 0x80 | (c >> shift & 0x3F));
    }
}

/* The UTF-16 code unit of the \uXXXX at the beginning of text, or 0 if there is none. */
static unsigned unicode_escape(struct slice text) {
    unsigned unit = 0;
    if (text.n < 6 || text.p[0] != '\\' || text.p[1] != 'u') return 0;
    for (size_t i = 2; i < 6; i++) unit = unit << 4 | (unsigned)json_hex_value(text.p[i]);
    return unit;
}

/* Decodes the escape at the beginning of text. Returns its length in bytes, or 0 for a surrogate
 * without its other half: grammatical (RFC 8259, section 8.2) but no character, so in no ID. */
static size_t decode_escape(struct slice text, struct decoded *out) {
    static const char letters[] = "b\bf\fn\nr\rt\t";
    if (text.p[1] != 'u') {
        const char *letter = strchr(letters, text.p[1]);
        put(out, (unsigned char)(letter != NULL ? letter[1] : text.p[1]));
        return 2;
    }
    unsigned unit = unicode_escape(text);
    if (unit < 0xD800 || unit > 0xDFFF) {
        put_code_point(out, unit);
        return 6;
    }
    unsigned low = unicode_escape((struct slice){text.p + 6, text.n - 6});
    if (unit > 0xDBFF || low < 0xDC00 || low > 0xDFFF) return 0;
    put_code_point(out, 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
    return 12;
}

/* Decodes what stands between a string's quotes; the scan has proved it. Returns the offset of the
 * first lone surrogate in it, where decoding ends, or NOWHERE. */
static size_t decode(struct slice text, struct decoded *out) {
    for (size_t i = 0; i < text.n;) {
        size_t n = 1;
        if (text.p[i] == '\\')
            n = decode_escape((struct slice){text.p + i, text.n - i}, out);
        else
            put(out, (unsigned char)text.p[i]);
        if (n == 0) return i;
        i += n;
    }
    return NOWHERE;
}

static bool has_escapes(struct slice text) {
    return text.n > 0 && memchr(text.p, '\\', text.n) != NULL;
}

struct slice json_string(struct json *json, const jsmntok_t *string, char *buffer, size_t size) {
    struct slice text = token_text(json, string);
    if (!has_escapes(text)) return text;
    struct decoded out = {buffer, 0, size};
    size_t lone = decode(text, &out);
    if (lone != NOWHERE) {
        size_t at = (size_t)string->start + lone;
        if (json->why == NULL || at < json->at) json->at = at;
        json->why = "lone surrogate";
    }
    return (struct slice){buffer, out.n};
}

/* Whether a member's name, as written, is this one, which has no need of escapes: they only make it
 * longer. */
static bool is_named(struct slice written, struct slice name) {
    if (written.n <= name.n) return slice_equal(written, name);
    if (!has_escapes(written)) return false;
    char bytes[ID_MAX_BYTES];
    struct decoded out = {bytes, 0, sizeof bytes};
    return decode(written, &out) == NOWHERE && slice_equal((struct slice){bytes, out.n}, name);
}

const jsmntok_t *json_member(const struct json *json, const jsmntok_t *object, struct slice name) {
    const jsmntok_t *found = NULL, *token = NULL;
    if (object == NULL || object->type != JSMN_OBJECT) return NULL;
    while ((token = json_next(json, object, token)) != NULL)
        if (is_named(token_text(json, token), name)) found = token + 1;
    return found;
}

/* ---- Strings, written ------------------------------------------------------------------------ */

/* DEL and all that is not ASCII stand for themselves. */
size_t json_quote(struct slice text, char *out) {
    static const char letters[0x80] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f',
                                       ['\r'] = 'r', ['"'] = '"',  ['\\'] = '\\'};
    char *end = out;
    *end++ = '"';
    for (size_t i = 0; i < text.n; i++) {
        unsigned char c = (unsigned char)text.p[i];
        if (c < 0x80 && letters[c] != 0) {
            *end++ = '\\';
            *end++ = letters[c];
        } else if (c < 0x20) {
            end += snprintf(end, sizeof "\\u0000", "\\u%04x", c);
        } else {
            *end++ = (char)c;
        }
    }
    *end++ = '"';
    return (size_t)(end - out);
}
