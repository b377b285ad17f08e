/*
 * text.c: text for people: reasons, news, and the end of a command's output.
 *
 *     tell("cannot listen on %s: %s", name, strerror(errno))
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

int text_fail(struct text_why why, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(why.text, why.size, format, values);
    va_end(values);
    return -1;
}

int tell(const char *format, ...) {
    char line[LINE_BYTES] = "roomkeyd: ";
    size_t begin = strlen(line), room = sizeof line - begin - 1; /* and the newline */
    va_list values;
    va_start(values, format);
    int size = vsnprintf(line + begin, room, format, values);
    va_end(values);
    size_t end = begin + (size < 0 ? 0 : (size_t)size < room ? (size_t)size : room - 1);
    line[end++] = '\n';
    fwrite(line, 1, end, stderr); /* which has no buffer, so this is the one write */
    return -1;
}

int text_finish_output(void) {
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    return is_written ? 0 : tell("standard output: %s", strerror(errno));
}
