/*
 * cover.c: lets every process of a build that measures coverage write its counts.
 *
 * gcc's runtime does that when exit has run everything else. _exit and abort do not come by there:
 * the linker sends them here first (--wrap). Nor can it write where a test has limited the size of
 * files, as a full disk would; only this process's limit goes, when all else is done.
 */
#include <gcov.h>
#include <sys/resource.h>

__attribute__((destructor)) static void lift_size_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void write_counts(void) {
    lift_size_limit();
    __gcov_dump();
}

_Noreturn void __real__exit(int code);
_Noreturn void __wrap__exit(int code);
_Noreturn void __wrap__exit(int code) {
    write_counts();
    __real__exit(code);
}

_Noreturn void __real_abort(void);
_Noreturn void __wrap_abort(void);
_Noreturn void __wrap_abort(void) {
    write_counts();
    __real_abort();
}
