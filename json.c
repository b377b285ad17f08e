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
#include <assert.h>
#include <stdlib.h>

/* ---- The scan -------------------------------------------------------------------------------- */

#define END (-1) /* what stands behind the last byte */

struct scan {
    struct slice text;
    size_t pos;
    unsigned tokens; /* strings, numbers, literals, objects and arrays: what jsmn will count */
    const char *why; /* NULL, or what is wrong at .pos */
    unsigned depth;
    char closings[JSON_MAX_DEPTH + 1]; /* what closes a level; [0]: none, [depth]: the innermost */
    bool just_opened;                  /* that one, so nothing is in it yet */
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

/* Passes over a character. Returns whether it was there. */
static bool skip(struct scan *scan, char c) {
    bool is_there = peek(scan) == c;
    scan->pos += is_there;
    return is_there;
}

static void skip_space(struct scan *scan) {
    for (int c = peek(scan); c == ' ' || c == '\n' || c == '\r' || c == '\t'; c = peek(scan))
        scan->pos++;
}

int json_hex_value(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    int letter = c | 0x20; /* lower case; -1 stays -1 */
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* What stands behind a backslash. */
static bool scan_escape(struct scan *scan) {
    static const char letters[] = "\"\\/bfnrtu";
    int c = peek(scan);
    if (memchr(letters, c, strlen(letters)) == NULL) return fail(scan, "invalid escape");
    scan->pos++;
    for (int digits = c == 'u' ? 4 : 0; digits > 0; digits--, scan->pos++)
        if (json_hex_value(peek(scan)) < 0) return fail(scan, "invalid escape");
    return true;
}

/* Passes over ASCII that stands for itself in a string. */
static void skip_plain(struct scan *scan) {
    scan->pos += slice_plain(scan_rest(scan), '"', '\\');
    for (int c = peek(scan); c >= ' ' && c < 0x80 && c != '"' && c != '\\'; c = peek(scan))
        scan->pos++;
}

static bool scan_string(struct scan *scan) {
    scan->pos++;
    for (;;) {
        skip_plain(scan);
        if (skip(scan, '"')) return true;
        int c = peek(scan);
        size_t n = slice_utf8(scan_rest(scan));
        if (c < 0x20) return fail(scan, "unescaped control character");
        if (n == 0) return fail(scan, "invalid UTF-8");
        scan->pos += n;
        if (c == '\\' && !scan_escape(scan)) return false;
    }
}

static bool scan_digits(struct scan *scan) {
    if (peek(scan) < '0' || peek(scan) > '9') return fail(scan, "expected a digit");
    while (peek(scan) >= '0' && peek(scan) <= '9') scan->pos++;
    return true;
}

/* Section 6: no leading zeros, no plus sign, digits on both sides of the point. */
static bool scan_number(struct scan *scan) {
    skip(scan, '-');
    if (!skip(scan, '0') && !scan_digits(scan)) return false;
    if (skip(scan, '.') && !scan_digits(scan)) return false;
    if (!skip(scan, 'e') && !skip(scan, 'E')) return true;
    if (!skip(scan, '+')) skip(scan, '-');
    return scan_digits(scan);
}

static bool scan_literal(struct scan *scan, const char *literal) {
    for (; *literal != '\0'; literal++, scan->pos++)
        if (peek(scan) != *literal) return fail(scan, "expected true, false or null");
    return true;
}

static bool scan_open(struct scan *scan, char closing) {
    if (scan->depth == JSON_MAX_DEPTH) return fail(scan, "nesting too deep");
    scan->pos++;
    scan->closings[++scan->depth] = closing;
    return true;
}

static bool scan_value(struct scan *scan) {
    skip_space(scan); /* behind a colon */
    scan->tokens++;
    int c = peek(scan);
    scan->just_opened = c == '{' || c == '[';
    if (scan->just_opened) return scan_open(scan, c == '{' ? '}' : ']');
    if (c == '"') return scan_string(scan);
    if (c == '-' || (c >= '0' && c <= '9')) return scan_number(scan);
    if (c == 't') return scan_literal(scan, "true");
    if (c == 'f') return scan_literal(scan, "false");
    return c == 'n' ? scan_literal(scan, "null") : fail(scan, "expected a value");
}

static bool scan_name(struct scan *scan) {
    skip_space(scan); /* behind a comma */
    if (peek(scan) != '"') return fail(scan, "expected a name in quotes");
    scan->tokens++;
    if (!scan_string(scan)) return false;
    skip_space(scan);
    return skip(scan, ':') || fail(scan, "expected a colon");
}

/* Whether all of the text is one RFC 8259 text in UTF-8, not nested too deeply. In turn: a value,
 * in an object with its name; all brackets that close behind it; a comma, but not just after [ or {
 * (RFC 8259, sections 4 and 5). */
static bool scan_json(struct scan *scan) {
    for (;;) {
        if (scan->closings[scan->depth] == '}' && !scan_name(scan)) return false;
        if (!scan_value(scan)) return false;
        skip_space(scan);
        while (scan->depth > 0 && skip(scan, scan->closings[scan->depth])) {
            scan->depth--;
            scan->just_opened = false;
            skip_space(scan);
        }
        if (scan->depth == 0) return peek(scan) == END || fail(scan, "text after the value");
        if (!scan->just_opened && !skip(scan, ','))
            return fail(scan, scan->closings[scan->depth] == '}'
                                  ? "expected a comma or a closing brace"
                                  : "expected a comma or a closing bracket");
    }
}

/* ---- Tokens ---------------------------------------------------------------------------------- */

enum json_result json_read(struct json *json, struct slice text) {
    struct scan scan = {.text = text};
    skip_space(&scan);
    bool is_object = peek(&scan) == '{', is_valid = scan_json(&scan);
    json->root = NULL;
    json->why = scan.why;
    json->at = scan.pos;
    json->_text = text;
    json->_tokens = json->_few;
    json->_token_count = scan.tokens;
    if (!is_valid) return JSON_INVALID;
    if (!is_object) return JSON_OK; /* nothing else has members to be asked for */

    /* Let jsmn split it, into as many tokens as the scan has counted. */
    if (scan.tokens > JSON_FEW_TOKENS) json->_tokens = malloc(scan.tokens * sizeof *json->_tokens);
    if (json->_tokens == NULL) return JSON_NO_MEMORY;
    json->root = json->_tokens;
    jsmn_parser parser;
    jsmn_init(&parser);
    int count = jsmn_parse(&parser, text.p, text.n, json->_tokens, scan.tokens);
    if (count == (int)scan.tokens) return JSON_OK;
    /* It cannot come to this, so no test does: jsmn refuses stray bytes, bad escapes, brackets that
     * do not match, values in place of names, and more tokens than it has room for; the scan let
     * none pass. */
    json_free(json);
    json->why = "unknown structure";
    return JSON_INVALID;
}

void json_free(struct json *json) {
    if (json->_tokens != json->_few) free(json->_tokens);
}

static struct slice token_text(const struct json *json, const jsmntok_t *token) {
    return (struct slice){json->_text.p + token->start, (size_t)(token->end - token->start)};
}

struct slice json_written(const struct json *json, const jsmntok_t *value) {
    return value != NULL ? token_text(json, value) : SLICE("");
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
    const jsmntok_t *token = previous != NULL ? previous : array;
    while (++token < end && token->start < array->end)
        if (json->_tokens + token->parent == array) return token;
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
    for (; shift > 0; shift -= 6) put(out, 0x80 | (c >> (shift - 6) & 0x3F));
}

/* The UTF-16 code unit of the \uXXXX at the beginning of text, or 0 if there is none. */
static unsigned unicode_escape(struct slice text) {
    unsigned unit = 0;
    if (text.n < 6 || text.p[0] != '\\' || text.p[1] != 'u') return 0;
    for (size_t i = 2; i < 6; i++) unit = unit << 4 | (unsigned)json_hex_value(text.p[i]);
    return unit;
}

/* Decodes what text begins with: a byte or an escape. Returns its length in bytes, or 0 for a
 * surrogate without its other half: grammatical (RFC 8259, section 8.2) but no character, so in no
 * ID. */
static size_t decode_one(struct slice text, struct decoded *out) {
    static const char letters[] = "b\bf\fn\nr\rt\t";
    if (text.p[0] != '\\') {
        put(out, (unsigned char)text.p[0]);
        return 1;
    }
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

/* Decodes what stands between a string's quotes; the scan has proved it. Returns how much of it:
 * all but what begins with the first lone surrogate. */
static size_t decode(struct slice text, struct decoded *out) {
    size_t done = 0;
    for (size_t n = 1; n > 0 && done < text.n; done += n)
        n = decode_one((struct slice){text.p + done, text.n - done}, out);
    return done;
}

struct slice json_string(struct json *json, const jsmntok_t *string, char *buffer, size_t size) {
    if (json_type(json, string) != JSON_STRING) return (struct slice){"", 0};
    struct slice text = token_text(json, string);
    if (memchr(text.p, '\\', text.n) == NULL) return text;
    struct decoded out = {buffer, 0, size};
    size_t done = decode(text, &out), at = (size_t)string->start + done;
    if (done < text.n) {
        if (json->why == NULL || at < json->at) json->at = at;
        json->why = "lone surrogate";
    }
    return (struct slice){buffer, out.n};
}

/* Whether a member's name, as written, is this one, which has no need of escapes: they only make it
 * longer. */
static bool is_named(struct slice written, struct slice name) {
    if (written.n <= name.n) return slice_equal(written, name);
    if (memchr(written.p, '\\', written.n) == NULL) return false;
    char bytes[ID_MAX_BYTES];
    struct decoded out = {bytes, 0, sizeof bytes};
    return decode(written, &out) == written.n && slice_equal((struct slice){bytes, out.n}, name);
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
        char letter = c < 0x80 ? letters[c] : '\0';
        if (letter || c < 0x20) *end++ = '\\';
        if (!letter && c < 0x20) { /* \u00XX */
            end = stpcpy(end, c < 0x10 ? "u000" : "u001");
            letter = "0123456789abcdef"[c % 16];
        }
        *end++ = letter ? letter : (char)c;
    }
    *end++ = '"';
    return (size_t)(end - out);
}

/* The character that text begins with, which is UTF-8 of this many bytes. */
static unsigned code_point(struct slice text, size_t length) {
    unsigned c = (unsigned char)text.p[0];
    if (length > 1) c &= 0xFFu >> (length + 1); /* the first byte also says how many there are */
    for (size_t i = 1; i < length; i++) c = c << 6 | ((unsigned char)text.p[i] & 0x3F);
    return c;
}

/* Writes a UTF-16 code unit as \uXXXX. Returns the end of that. */
static char *put_unit(char *end, unsigned unit) {
    *end++ = '\\';
    *end++ = 'u';
    for (int shift = 12; shift >= 0; shift -= 4) *end++ = "0123456789abcdef"[unit >> shift & 15];
    return end;
}

size_t json_quote_ascii(struct slice text, char *out) {
    char *end = out;
    *end++ = '"';
    while (text.n > 0) {
        size_t length = slice_utf8(text);
        assert(length > 0);
        unsigned c = code_point(text, length);
        if (c == '"' || c == '\\') *end++ = '\\';
        if (c >= ' ' && c <= '~')
            *end++ = (char)c;
        else if (c < 0x10000)
            end = put_unit(end, c);
        else /* a surrogate pair (RFC 8259, section 7) */
            end = put_unit(put_unit(end, 0xD800 + ((c - 0x10000) >> 10)), 0xDC00 + (c & 0x3FF));
        text = (struct slice){text.p + length, text.n - length};
    }
    *end++ = '"';
    return (size_t)(end - out);
}
