/*
 * clock.h: the time that passes, for whoever measures it, and the date.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Microseconds on a monotonic clock. */
static inline int64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* The date and time of day, in UTC, of a time in seconds since 1970; of the nearest one in the years
 * 1970 to 9999 for one outside them. Fills all of *utc but tm_yday. By hand, since the first gmtime_r
 * of a process opens the time zone file. */
static inline void clock_utc(int64_t seconds, struct tm *utc) {
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const int64_t last = 253402300799; /* 9999-12-31T23:59:59 */
    int64_t clock = seconds < 0 ? 0 : seconds > last ? last : seconds;
    int days = (int)(clock / 86400), rest = (int)(clock % 86400), year = 1970, month = 0, length;
    *utc = (struct tm){.tm_hour = rest / 3600, .tm_min = rest / 60 % 60, .tm_sec = rest % 60};
    utc->tm_wday = (days + 4) % 7; /* it began with a Thursday */
    for (;; year++, days -= length) {
        bool is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        length = is_leap ? 366 : 365;
        if (days >= length) continue;
        for (; days >= (length = month_days[month] + (is_leap && month == 1)); month++)
            days -= length;
        break;
    }
    utc->tm_year = year - 1900;
    utc->tm_mon = month;
    utc->tm_mday = days + 1;
}

#endif
