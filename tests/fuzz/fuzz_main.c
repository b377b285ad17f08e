/*
 * fuzz_main.c: a fuzz target without a fuzzer.
 *
 *     build/asan/fuzz_http tests/fuzz/corpus/http [FILE or DIRECTORY...]
 *
 * Gives the target every file named, and every file in the directories named, and prints how many
 * those were. A property that does not hold ends the process (fuzz.h); with VERBOSE=1 each file is
 * named first. An argument without a file is a failure: a corpus that is not there tests nothing.
 */
#include "fuzz.h"

#include <dirent.h>

static bool read_file(const char *path, struct fuzz_text *text) {
    char block[4096];
    FILE *file = fopen(path, "rb");
    if (file == NULL) return false;
    for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;)
        fuzz_add(text, (struct slice){block, n});
    bool ok = !ferror(file);
    fclose(file);
    return ok;
}

static bool replay_file(const char *path) {
    struct fuzz_text text = {0};
    bool ok = read_file(path, &text);
    if (ok) {
        char *input = fuzz_copy((struct slice){text.p, text.n});
        if (getenv("VERBOSE") != NULL) dprintf(STDERR_FILENO, "%s\n", path);
        LLVMFuzzerTestOneInput((const uint8_t *)input, text.n);
        free(input);
    }
    free(text.p);
    return ok;
}

/* Replays a file, or the files of a directory. Returns how many. */
static unsigned replay(const char *path) {
    DIR *dir = opendir(path);
    if (dir == NULL) return replay_file(path);
    unsigned count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') count += replay_file(name);
    }
    closedir(dir);
    return count;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        unsigned count = replay(argv[i]);
        printf("%s: %u inputs\n", argv[i], count);
        if (count == 0) return EXIT_FAILURE;
    }
    return argc > 1 ? EXIT_SUCCESS : EXIT_FAILURE;
}
