/*
 * text.h: text for people: reasons, news, and the end of a command's output.
 */
#ifndef TEXT_H
#define TEXT_H

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

/* Why something could not be done: text for people, in the caller's buffer of size bytes, at least
 * one. What has no room is cut off. */
struct text_why {
    char *text;
    size_t size;
};

/* Puts a reason there, formatted as by printf. Always returns -1, so that failing reads as one
 * statement. */
__attribute__((format(printf, 2, 3))) int text_fail(struct text_why why, const char *format, ...);

/* Tells the operator: one line on standard error, begun with "roomkeyd: ", formatted as by printf,
 * without its newline. Always returns -1. May wait for whoever reads that. */
__attribute__((format(printf, 1, 2))) int tell(const char *format, ...);

/* Ends a command that has printed. Returns 0, or -1 when standard output did not take it all, a
 * full disk or a closed pipe, which is told. Blocks until it is taken. */
int text_finish_output(void);

#endif
