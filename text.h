/*
 * text.h: text for people and for files: strings, one after the other.
 *
 * printf could do it, and would bring floating point and wide characters along, a tenth of the
 * static binary. Here a text is joined from whole strings; numbers become strings by DECIMAL. Each
 * of the first four takes any number of strings, one at least.
 */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Joins strings in out[0..size), which becomes a string, too: what has no room is cut off. Returns
 * its length. size is not 0. */
#define text_join(out, size, ...) text_join_all((out), (size), __VA_ARGS__, (const char *)NULL)

/* Why something could not be done: text for people, in the caller's buffer. text_fail puts it there
 * and always returns -1, so that failing reads as one statement. */
struct text_why {
    char *text;
    size_t size;
};
#define text_fail(why, ...) text_fail_all((why), __VA_ARGS__, (const char *)NULL)

/* Tells the operator: one line on standard error, begun with "roomkeyd: ". Always returns -1. May
 * wait for whoever reads that. */
#define tell(...) tell_all(__VA_ARGS__, (const char *)NULL)

/* Adds strings to a stream, where ferror says whether that could be done. */
#define text_print(file, ...) text_print_all((file), __VA_ARGS__, (const char *)NULL)

/* Ends a command that has printed. Returns 0, or -1 when standard output did not take it all, a
 * full disk or a closed pipe, which is told. */
int text_finish_output(void);

/* A number's digits as a string, for the statement that this stands in: as many as it has, or so
 * many at least, with zeros before it (20 at most). text_number gives it for longer. */
#define DECIMAL(number)        PADDED((number), 1)
#define PADDED(number, digits) (text_number((number), (digits)).string)
#define TEXT_NUMBER_BYTES      21 /* of 2^64 - 1, with a NUL */
struct text_number {
    char string[TEXT_NUMBER_BYTES];
};
struct text_number text_number(uint64_t number, unsigned digits);

/* The same at the end of a buffer. Returns where it begins. */
char *text_digits(char buffer[TEXT_NUMBER_BYTES], uint64_t number, unsigned digits);

/* What the macros above call. */
__attribute__((sentinel)) size_t text_join_all(char *out, size_t size, ...);
__attribute__((sentinel)) int text_fail_all(struct text_why why, ...);
__attribute__((sentinel)) int tell_all(const char *first, ...);
__attribute__((sentinel)) void text_print_all(FILE *file, ...);

#endif
