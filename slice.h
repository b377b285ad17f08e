/*
 * slice.h: a run of bytes that somebody else owns, and what makes one an ID, or a number.
 *
 * Every module passes these: http.c points them into a connection's buffer, access.c into its two
 * files, store.c at the records it writes. They live here, in a header without a .c, so that no
 * module has to include another one just to speak of bytes.
 */
#ifndef SLICE_H
#define SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The longest room ID, key ID and user ID, in bytes. A rule of the protocol, checked in slice_is_id
 * alone; the record format and several buffers are sized by it. */
#define ID_MAX_BYTES 255

struct slice {
    const char *p; /* not NUL-terminated; may be anything when n is 0 */
    size_t n;      /* bytes */
};

/* The slice of a string literal, and of a NUL-terminated string. */
#define SLICE(literal) ((struct slice){(literal), sizeof(literal) - 1})
static inline struct slice slice_of(const char *text) { return (struct slice){text, strlen(text)}; }

static inline bool slice_equal(struct slice a, struct slice b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* A byte eight times over: what is done to a word is done to eight bytes at once. */
#define EIGHT(byte) (0x0101010101010101 * (uint64_t)(unsigned char)(byte))

/* How many bytes at the start of s are sure to be printable ASCII and neither of two characters.
 * Most text here is nothing else, and most scans begin with this. It stops early, at a multiple of
 * eight: what is left is for a look at every byte. */
static inline size_t slice_plain(struct slice s, char but, char nor) {
    size_t n = 0;
    for (uint64_t x; s.n - n >= sizeof x; n += sizeof x) {
        memcpy(&x, s.p + n, sizeof x);
        /* The top bit of a byte: past ASCII, past '~', below ' ', one of the two. A carry or borrow
         * into the next byte comes only from one that has its own top bit set here. */
        uint64_t not_plain = x | (x + EIGHT(1)) | (x - EIGHT(' ')) | ((x ^ EIGHT(but)) - EIGHT(1)) |
                             ((x ^ EIGHT(nor)) - EIGHT(1));
        if (not_plain & EIGHT(0x80)) break;
    }
    return n;
}

/* Length in bytes (1 to 4) of the well-formed UTF-8 sequence at the start of s, or 0 if there is
 * none: Unicode 15, table 3-7, so no overlong forms, no surrogates, nothing past U+10FFFF. */
static inline size_t slice_utf8(struct slice s) {
    const unsigned char *u = (const unsigned char *)s.p;
    if (s.n == 0) return 0;
    if (u[0] < 0x80) return 1;
    size_t length = u[0] >= 0xF0 ? 4 : u[0] >= 0xE0 ? 3 : 2;
    if (u[0] < 0xC2 || u[0] > 0xF4 || s.n < length) return 0;
    /* The second byte carries every exception; the others only have to be continuation bytes. */
    unsigned char low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    if (u[1] < low || u[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    return length;
}

/* Reads decimal digits, and nothing else, as a number of at most max. Returns whether s is one. */
static inline bool slice_number(struct slice s, uint64_t max, uint64_t *number) {
    *number = 0;
    for (size_t i = 0; i < s.n; i++) {
        unsigned digit = (unsigned)s.p[i] - '0';
        if (digit > 9 || __builtin_mul_overflow(*number, 10, number) ||
            __builtin_add_overflow(*number, digit, number) || *number > max)
            return false;
    }
    return s.n > 0;
}

/* Writes a number in decimal at out, at most SLICE_NUMBER_BYTES. Returns where the next byte goes. */
#define SLICE_NUMBER_BYTES 20 /* of 2^64 - 1 */
static inline char *slice_put_number(char *out, uint64_t number) {
    char digits[SLICE_NUMBER_BYTES];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    memcpy(out, digits + at, sizeof digits - at);
    return out + (sizeof digits - at);
}

/* Whether s is as long as an ID may be. */
static inline bool slice_has_id_size(struct slice s) { return s.n > 0 && s.n <= ID_MAX_BYTES; }

/* Whether s may name a room, a key or a user: 1 to ID_MAX_BYTES bytes of UTF-8 without a NUL. */
static inline bool slice_is_id(struct slice s) {
    if (!slice_has_id_size(s)) return false;
    for (size_t length = slice_plain(s, 0, 0); s.n > length;) {
        s = (struct slice){s.p + length, s.n - length};
        length = slice_utf8(s);
        if (length == 0 || s.p[0] == '\0') return false;
    }
    return true;
}

#endif
