/*
 * text.c: text for people and for files: strings, one after the other.
 *
 *     tell("cannot listen on ", name, ": ", strerror(errno))
 *        -> [roomkeyd: cannot listen on 127.0.0.1:80: Permission denied\n] -> standard error
 *
 * A line of news is one write, so that those of two threads never mix. What does not fit is cut
 * off: a text is for people, and a long one of them is better than none.
 */
#include "text.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#define LINE_BYTES (PATH_MAX + 512) /* of news: a path and what is wrong with it */

static size_t join(char *out, size_t size, const char *string, va_list others) {
    size_t used = 0;
    for (; string; string = va_arg(others, const char *)) {
        size_t n = strnlen(string, size - 1 - used);
        memcpy(out + used, string, n);
        used += n;
    }
    out[used] = '\0';
    return used;
}

size_t text_join_all(char *out, size_t size, ...) {
    va_list strings;
    va_start(strings, size);
    size_t used = join(out, size, "", strings);
    va_end(strings);
    return used;
}

int text_fail_all(struct text_why why, ...) {
    va_list strings;
    va_start(strings, why);
    join(why.text, why.size, "", strings);
    va_end(strings);
    return -1;
}

int tell_all(const char *first, ...) {
    char line[LINE_BYTES] = "roomkeyd: ";
    size_t used = strlen(line);
    va_list strings;
    va_start(strings, first);
    used += join(line + used, sizeof line - used - 1, first, strings);
    va_end(strings);
    line[used++] = '\n';
    fwrite(line, 1, used, stderr); /* which has no buffer, so this is the one write */
    return -1;
}

void text_print_all(FILE *file, ...) {
    va_list strings;
    va_start(strings, file);
    for (const char *string; (string = va_arg(strings, const char *));) fputs(string, file);
    va_end(strings);
}

int text_finish_output(void) {
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    return is_written ? 0 : tell("standard output: ", strerror(errno));
}

char *text_digits(char buffer[TEXT_NUMBER_BYTES], uint64_t number, unsigned digits) {
    size_t at = TEXT_NUMBER_BYTES - 1;
    for (buffer[at] = '\0'; number > 0 || digits > 0; number /= 10) {
        buffer[--at] = (char)('0' + number % 10);
        digits -= digits > 0;
    }
    return buffer + at;
}

struct text_number text_number(uint64_t number, unsigned digits) {
    struct text_number text;
    char buffer[TEXT_NUMBER_BYTES], *first = text_digits(buffer, number, digits);
    memcpy(text.string, first, (size_t)(buffer + sizeof buffer - first));
    return text;
}
