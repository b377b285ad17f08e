/*
 * fuzz.h: what the fuzz targets share.
 *
 * A target is a file fuzz_X.c with one LLVMFuzzerTestOneInput. Linked with libFuzzer it is driven
 * by inputs that are bred for coverage (`make fuzz`); linked with fuzz_main.c it replays
 * tests/fuzz/corpus/X under any compiler (`make test`). Either way it checks more than that nothing
 * crashes: each target says at its top what its oracle is.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "slice.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the process with the property that does not hold. Not through stdio's stderr: a target may
 * have sent that elsewhere. */
#define REQUIRE(property)                                                                          \
    ((property) ? (void)0 : fuzz_fail(__FILE__, __LINE__, "does not hold: " #property))

static inline void fuzz_fail(const char *file, int line, const char *what) {
    dprintf(STDERR_FILENO, "%s:%d: %s\n", file, line, what);
    abort();
}

/* Exactly n bytes of the heap, so that AddressSanitizer sees a read past them. Freed by the
 * caller. */
static inline char *fuzz_copy(struct slice bytes) {
    char *copy = malloc(bytes.n);
    REQUIRE(copy != NULL || bytes.n == 0);
    if (bytes.n > 0) memcpy(copy, bytes.p, bytes.n);
    return copy;
}

/* Cuts off and returns what stands before the first separator, or all of it. */
static inline struct slice fuzz_cut(struct slice *rest, struct slice separator) {
    struct slice head = *rest;
    const char *at = rest->n > 0 ? memmem(rest->p, rest->n, separator.p, separator.n) : NULL;
    size_t taken = rest->n;
    if (at != NULL) {
        head.n = (size_t)(at - rest->p);
        taken = head.n + separator.n;
    }
    *rest = (struct slice){rest->p + taken, rest->n - taken};
    return head;
}

/* Bytes that grow at their end. Start with a zeroed struct; freed by the caller. */
struct fuzz_text {
    char *p;
    size_t n, capacity;
};

static inline void fuzz_add(struct fuzz_text *text, struct slice bytes) {
    if (text->capacity - text->n < bytes.n) {
        text->capacity = 2 * text->n + bytes.n;
        text->p = realloc(text->p, text->capacity);
        REQUIRE(text->p != NULL);
    }
    if (bytes.n > 0) memcpy(text->p + text->n, bytes.p, bytes.n);
    text->n += bytes.n;
}

#define FUZZ_PATH_BYTES 64

/* Makes an empty directory of this input's own, in memory where there is /dev/shm: what a file
 * system does is not what is tested. */
static inline void fuzz_make_dir(char path[FUZZ_PATH_BYTES]) {
    snprintf(path, FUZZ_PATH_BYTES, "/dev/shm/roomkeyd-fuzz-XXXXXX");
    if (mkdtemp(path) != NULL) return;
    snprintf(path, FUZZ_PATH_BYTES, "/tmp/roomkeyd-fuzz-XXXXXX");
    REQUIRE(mkdtemp(path) != NULL);
}

static inline void fuzz_write_file(const char *dir, const char *name, struct slice bytes) {
    char path[FUZZ_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    REQUIRE(bytes.n == 0 || fwrite(bytes.p, 1, bytes.n, file) == bytes.n);
    REQUIRE(fclose(file) == 0);
}

#endif
