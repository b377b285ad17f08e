/*
 * format.h: what a text is that was to be JSON lines, or a token, and is neither.
 */
#ifndef FORMAT_H
#define FORMAT_H

#include "slice.h"

/* Takes a line that is no JSON object, with its newline if it has one, and the byte (0 to line.n) at
 * which it stops being JSON. Returns a sentence for the operator that says which format the line
 * looks like and what to do about that, or NULL if it looks like no format that is known here. The
 * sentence is a constant, and so holds nothing of the line. Does not block. */
const char *format_hint(struct slice line, size_t at);

/* The same kind of sentence, for a line that is JSON, but whose ID is {"$oid":"..."}. */
extern const char format_hint_object_id[];

/* Whether a text looks like UTF-16: with a byte order mark, or ASCII with a zero beside each byte. */
bool format_is_utf16(struct slice text);

/* The UTF-8 form of the byte order mark: no character, but a sign at the beginning of a file. */
#define FORMAT_BOM "\xEF\xBB\xBF"

/* Whether a text begins with a string. */
bool format_begins(struct slice text, struct slice string);

#endif
