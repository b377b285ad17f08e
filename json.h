/*
 * json.h: JSON texts: judged, split, and read value by value; and strings written.
 *
 *     struct json json;
 *     if (json_read(&json, text) == JSON_OK) {
 *         const jsmntok_t *name = json_member(&json, json.root, SLICE("name"));
 *         if (json_type(&json, name) == JSON_STRING) ... json_string(&json, name, ...)
 *         json_free(&json);
 *     }
 *
 * A value is its token: it lives until json_free, and NULL is the value that is not there. Nothing
 * here blocks, and all work is linear: json_read's in the text, json_member's in the object, a walk
 * with json_next in the array or object that is walked.
 */
#ifndef JSON_H
#define JSON_H

#include "slice.h"

/* jsmn: its types for everybody, its functions for json.c alone. */
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#ifdef JSON_DEFINES_JSMN
#define JSMN_STATIC
#else
#define JSMN_HEADER
#endif
#include <jsmn.h>

#define JSON_MAX_DEPTH  64 /* levels of nesting */
#define JSON_FEW_TOKENS 64 /* as many need no malloc, 20 bytes each; a name is one too */

enum json_result {
    JSON_OK,
    JSON_INVALID, /* not one RFC 8259 text in UTF-8, or nested too deeply: .why and .at say more */
    JSON_NO_MEMORY, /* more than JSON_FEW_TOKENS, and malloc failed */
};

enum json_type {
    JSON_UNDEFINED, /* there is no such value */
    JSON_NULL,
    JSON_BOOLEAN,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
};

struct json {
    const jsmntok_t *root; /* the text's object; NULL if it is JSON of another kind */
    const char *why; /* NULL, or in a few words what is wrong, and at which byte of the text */
    size_t at;

    /* json.c's own. */
    struct slice _text;
    jsmntok_t *_tokens; /* ._few or allocated */
    size_t _token_count;
    jsmntok_t _few[JSON_FEW_TOKENS];
};

/* Reads a text, which has to live as long as json. JSON_OK: json_free is due. */
enum json_result json_read(struct json *json, struct slice text);
void json_free(struct json *json);

/* The value of an object's member, of several with that name the last. NULL if there is none, or if
 * object is NULL or no object. name is one that JSON writes without escapes. */
const jsmntok_t *json_member(const struct json *json, const jsmntok_t *object, struct slice name);

/* The element of an array after `previous`, or its first if that is NULL; NULL behind the last. (Of
 * an object: its names, each of which stands just before its value.) */
const jsmntok_t *json_next(const struct json *json, const jsmntok_t *array,
                           const jsmntok_t *previous);

/* What kind of value it is; JSON_UNDEFINED for NULL. */
enum json_type json_type(const struct json *json, const jsmntok_t *value);

/* The characters of a string, escapes decoded; none if it is no string. Without escapes they are
 * where they stand in the text; otherwise in buffer, where those past its size are dropped: make it
 * a byte longer than what is still welcome, and too long a string shows. A lone surrogate (RFC
 * 8259, section 8.2) is no character: .why and .at then tell of the first of all that were met, and
 * the result is to be thrown away. */
struct slice json_string(struct json *json, const jsmntok_t *string, char *buffer, size_t size);

/* A value as it stands in the text; of a string, what stands between its quotes, with its escapes.
 * Empty if there is no such value. */
struct slice json_written(const struct json *json, const jsmntok_t *value);

/* Writes text, which is UTF-8, as a JSON string with its quotes, escaped as JSON.stringify does.
 * Returns the bytes written; out has room for JSON_QUOTED_BYTES(text.n). */
#define JSON_QUOTED_BYTES(n) (6 * (n) + 2)
size_t json_quote(struct slice text, char *out);

/* As json_quote, but with \uXXXX for every character that is not printable ASCII: for a terminal,
 * on which such a character may clear the screen, or look like another one. */
size_t json_quote_ascii(struct slice text, char *out);

/* The value of a hexadecimal digit, or -1. */
int json_hex_value(int c);

#endif
