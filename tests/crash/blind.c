/*
 * blind.c: a roomkeyd that never finds out what has been done to its log.
 *
 * torture_hands.py does to this server what it does to the real one, and has to find that keys are
 * lost: otherwise its checks would prove nothing.
 */
#include "log.h"

/* Stand in for log_find_change and log_holds_tail (the linker sees to that: --wrap). Nothing has ever
 * changed. */
const char *__wrap_log_find_change(const struct log_place *place, const struct log_end *end);
bool __wrap_log_holds_tail(int fd, const struct log_end *end);

const char *__wrap_log_find_change(const struct log_place *place, const struct log_end *end) {
    (void)place;
    (void)end;
    return NULL;
}

bool __wrap_log_holds_tail(int fd, const struct log_end *end) {
    (void)fd;
    (void)end;
    return true;
}
