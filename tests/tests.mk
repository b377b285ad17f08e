# What only the tests of roomkeyd need; the Makefile includes it. README.md, beside this file, says how
# long each target takes, and which test to run for which source file.

LLHTTP ?= /usr/share
PYTHON ?= /usr/bin/python3

# The deadlines of connections, so short that a test can wait for them.
SHORT := -DCONN_IDLE_MS=700 -DCONN_HEAD_MS=700 -DCONN_BODY_MS=700 -DCONN_WRITE_MS=700

# The flavours that only tests use: compiler, flags, link flags, as in the Makefile.
asan_CFLAGS                   := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
                                 -fno-omit-frame-pointer
asan_LDFLAGS                  := -fsanitize=address,undefined
short-deadlines_CFLAGS        := $(asan_CFLAGS) $(SHORT)
short-deadlines_LDFLAGS       := $(asan_LDFLAGS)
tsan_CFLAGS                   := -O1 -g -fsanitize=thread
tsan_LDFLAGS                  := -fsanitize=thread
clang_CC                      := clang
clang_CFLAGS                  := $(CFLAGS) $(HARDENED) -DNDEBUG
clang_LDFLAGS                 := $(release_LDFLAGS)
fuzz_CC                       := clang
fuzz_CFLAGS                   := $(asan_CFLAGS) -fsanitize=fuzzer-no-link
fuzz_LDFLAGS                  := -fsanitize=fuzzer,address,undefined
cover_CC                      := gcc
cover_CFLAGS                  := -O0 -g --coverage -fprofile-update=atomic
cover_LDFLAGS                 := --coverage -Wl,--wrap=_exit -Wl,--wrap=abort
cover-short-deadlines_CC      := gcc
cover-short-deadlines_CFLAGS  := $(cover_CFLAGS) $(SHORT)
cover-short-deadlines_LDFLAGS := $(cover_LDFLAGS)
m32_CFLAGS                    := $(CFLAGS) -m32
m32_LDFLAGS                   := -m32

FLAVOURS := release asan short-deadlines tsan clang m32 static fuzz cover cover-short-deadlines
FUZZED   := http json request access log
UNITS    := slice text format sha256 table access access_work http json api metrics store listen
TIMED    := access api

.PHONY: units corpus server fuzz test-ecosystem torture torture-timed torture-short torture-large m32 tsan \
        lint cover bench bench-scale

$(foreach f,$(filter-out release static,$(FLAVOURS)),$(eval $(call flavour,$(f))))

# Where make finds the C sources of the tests. What is built from them is all in build/FLAVOUR/tests,
# but the fuzzers, which are in build/FLAVOUR.
vpath %.c tests/unit tests/fuzz tests/crash tests/lib

# $(1): a flavour.
define tests
build/$(1)/tests/%.o: %.c $(MAKEFILE_LIST)
	@mkdir -p $$(@D)
	$$($(1)_CC) $$(LANGUAGE) $$(WARNINGS) -I. $$($(1)_CFLAGS) -c $$< -o $$@

build/$(1)/tests/%: build/$(1)/tests/%.o $$(filter-out build/$(1)/main.o,$$($(1)_OBJECTS))
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_$$*) $$($(1)_LDFLAGS) $$(LDFLAGS) -lcmocka -o $$@

# api.c alone with the parser: the test plays the store and the access files itself.
build/$(1)/tests/test_api: $$(patsubst %,build/$(1)/%.o,tests/test_api http api json metrics text)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_test_api) $$($(1)_LDFLAGS) $$(LDFLAGS) -lcmocka -o $$@

# access.c inside the test, which counts the work of every function. The flag is for this object alone,
# and an object's own flag needs its full name, flavour included: so it stands in this define. A flag
# of the program would also instrument the modules that the program is linked with.
build/$(1)/tests/test_access_work.o: LANGUAGE += -finstrument-functions
build/$(1)/tests/test_access_work: $$(patsubst %,build/$(1)/%.o,tests/test_access_work table sha256 text)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_test_access_work) $$($(1)_LDFLAGS) $$(LDFLAGS) \
	    -lcmocka -o $$@

# Crash states of the store alone; no cmocka, so that it links with -m32 too.
build/$(1)/tests/torture: $$(patsubst %,build/$(1)/%.o,tests/torture store log table text)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_torture) $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

# The whole server, whose system calls fail on demand.
build/$(1)/tests/faults: build/$(1)/tests/faults.o $$($(1)_OBJECTS)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_faults) $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

# The whole server, which does not look whether its log is still its own.
build/$(1)/tests/blind: build/$(1)/tests/blind.o $$($(1)_OBJECTS)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_blind) $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

# A log past 4 GiB, where 32 bits end; likewise.
build/$(1)/tests/large_log: $$(patsubst %,build/$(1)/%.o,tests/large_log store log table text)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

# A fuzz target with its modules, and main from libFuzzer or from fuzz_main.c.
build/$(1)/fuzz_%: build/$(1)/tests/fuzz_%.o $$(if $$(filter fuzz,$(1)),,build/$(1)/tests/fuzz_main.o)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$($(1)_LDFLAGS) $$(LDFLAGS) -ljansson -o $$@
build/$(1)/fuzz_http: $$(patsubst %,build/$(1)/%.o,http text llhttp/api llhttp/http llhttp/llhttp)
build/$(1)/fuzz_json build/$(1)/fuzz_request: $$(patsubst %,build/$(1)/%.o,http api json metrics text)
build/$(1)/fuzz_log: $$(patsubst %,build/$(1)/%.o,store log table text)
build/$(1)/fuzz_access: $$(patsubst %,build/$(1)/%.o,access table sha256 text)

# Not ours: no warnings, and no sanitizers but the fuzzer's eyes.
build/$(1)/llhttp/%.o: $(LLHTTP)/llhttp/%.c $(MAKEFILE_LIST)
	@mkdir -p $$(@D)
	$$($(1)_CC) -O2 -w -DLLHTTP_STRICT_MODE=1 -I$(LLHTTP)/include/llhttp \
	    $$(filter -fsanitize=fuzzer-no-link,$$($(1)_CFLAGS)) -c $$< -o $$@
build/$(1)/tests/fuzz_http.o: LANGUAGE += -idirafter $(LLHTTP)/include/llhttp
endef
$(foreach f,$(FLAVOURS),$(eval $(call tests,$(f))))

# System calls that a test makes fail on demand.
wrap = $(1:%=-Wl,--wrap=%)
WRAP_test_api    := $(call wrap,malloc)
WRAP_test_json   := $(call wrap,malloc)
WRAP_test_table  := $(call wrap,calloc free)
WRAP_test_store  := $(call wrap,pwrite64 pread64 fdatasync fsync ftruncate64 open64 openat64 renameat \
                    fstatat64 flock eventfd pthread_create getrandom malloc calloc realloc table_hash)
WRAP_faults      := $(call wrap,pwrite64 pread64 read fdatasync fsync ftruncate64 open64 openat64 renameat \
                    unlinkat unlink flock fstat64 lstat64 eventfd eventfd_write epoll_create1 epoll_ctl \
                    epoll_wait socket getsockopt setsockopt bind listen getsockname getpeername connect accept4 recv send \
                    shutdown write pthread_create getrandom malloc calloc realloc)
WRAP_blind       := $(call wrap,log_find_change log_holds_tail)
WRAP_test_access_work := $(call wrap,sha256 table_hash table_find table_next)
WRAP_torture     := $(call wrap,pwrite64 fdatasync fsync ftruncate64 openat64 renameat unlinkat)
WRAP_test_access := $(call wrap,malloc calloc realloc read getrandom table_hash)

# A unit's runner prints cmocka's own lines; the first failure stops. Those that hold the code to times
# run once more without sanitizers.
units: $(UNITS:%=build/asan/tests/test_%) $(TIMED:%=build/release/tests/test_%)
	@set -e; for unit in $^; do echo "$$unit"; $$unit; done

# What the fuzzers have found worth keeping, without a fuzzer.
corpus: $(FUZZED:%=build/asan/fuzz_%)
	@set -e; for name in $(FUZZED); do build/asan/fuzz_$$name tests/fuzz/corpus/$$name; done

#: make fuzz            every fuzzer for SECONDS= each
# What a fuzzer finds interesting stays in build/corpus; what it finds wrong, in
# build/fuzz/NAME-crash-...: mend it, then give that file a name in tests/fuzz/corpus/NAME.
SECONDS ?= 120
fuzz: $(FUZZED:%=build/fuzz/fuzz_%)
	@set -e; for name in $(FUZZED); do \
	    mkdir -p build/corpus/$$name; echo "$$name: $(SECONDS) s"; \
	    ASAN_OPTIONS=quarantine_size_mb=16 build/fuzz/fuzz_$$name -max_total_time=$(SECONDS) \
	        -max_len=4096 -dict=tests/fuzz/dictionaries/$$name.dict -artifact_prefix=build/fuzz/$$name- \
	        -print_final_stats=1 build/corpus/$$name tests/fuzz/corpus/$$name >build/fuzz/$$name.log 2>&1 || \
	        { grep -v '^#' build/fuzz/$$name.log; exit 1; }; \
	    grep -E '^stat::(number|average)' build/fuzz/$$name.log; \
	done

# $(1): the flavour that is put to the whole-server tests. $(2), $(3): those that play the parts of
# short-deadlines and, under faults, of asan.
pytest = ROOMKEYD=build/$(1)/roomkeyd ROOMKEYD_SHORT_DEADLINES=build/$(or $(2),short-deadlines)/roomkeyd \
         ROOMKEYD_RELEASE=build/release/roomkeyd ROOMKEYD_STATIC=build/static/roomkeyd \
         ROOMKEYD_FAULTS=build/$(or $(3),asan)/tests/faults \
         $(PYTHON) -m pytest -q -p no:cacheprovider
BINARIES := build/short-deadlines/roomkeyd build/release/roomkeyd build/static/roomkeyd build/asan/tests/faults

# TESTS= on make's command line (not from the environment) names some of them, with options of pytest:
# make server TESTS='tests/server/test_http.py -x'
TESTS :=
server: build/asan/roomkeyd $(BINARIES)
	$(call pytest,asan) $(or $(TESTS),tests)

#: make cover           which lines make test runs
# apt-get install gcovr. Fails when a test does, or when a file has fewer than COVER_MIN % of its lines
# run; lines that no test reaches say why, in place. Left out: what measures the release build in time.
# Some servers run as another user: the first process, which makes the files of counts, lets everybody
# write them.
COVER_MIN := 95
COVERED   := build/cover/roomkeyd build/cover-short-deadlines/roomkeyd build/cover/tests/faults \
             $(UNITS:%=build/cover/tests/test_%) $(FUZZED:%=build/cover/fuzz_%)
$(COVERED): build/cover/tests/cover.o

cover: $(COVERED) build/release/roomkeyd build/static/roomkeyd
	@find build/cover build/cover-short-deadlines -name '*.gcda' -delete
	@umask 0; build/cover/roomkeyd --version; build/cover-short-deadlines/roomkeyd --version
	@set -e; for unit in $(UNITS); do build/cover/tests/test_$$unit; done
	@set -e; for name in $(FUZZED); do build/cover/fuzz_$$name tests/fuzz/corpus/$$name; done
	$(call pytest,cover,cover-short-deadlines,cover) --ignore=tests/server/test_clients_that_misbehave_cost.py tests
	gcovr --root . --filter '[^/]*\.[ch]$$' build/cover build/cover-short-deadlines >build/cover/lines
	@cat build/cover/lines
	@awk -v modules=$(words $(MODULES)) '$$1 ~ /\.c$$/ { modules-- } \
	    $$1 ~ /\.[ch]$$/ && $$4 + 0 < $(COVER_MIN) { print $$1 ": fewer than $(COVER_MIN) %"; bad = 1 } \
	    END { if (modules) print "a module is missing"; exit bad || modules }' build/cover/lines

#: make test-ecosystem  the heavy clients
# Clients and tools that are heavy to install. A missing one is a failure.
test-ecosystem: $(BINARIES)
	$(call pytest,release) $(or $(TESTS),tests/ecosystem)

#: make m32             the whole-server tests against a 32-bit build
m32: build/m32/roomkeyd $(BINARIES)
	$(call pytest,m32) $(or $(TESTS),tests)

#: make tsan            data races
# The store's units and the whole server.
tsan: build/tsan/tests/test_store build/tsan/roomkeyd $(BINARIES)
	build/tsan/tests/test_store
	$(call pytest,tsan) --ignore=tests/crash/test_faults.py $(or $(TESTS),tests)

#: make torture         what could lose a key; SECONDS= and SEED=
# Crash states, kills under load, failing calls, what people do to the log of a running server, a log
# past 4 GiB. SECONDS= is the budget of all but the last, SEED= repeats a run.
torture: torture-timed torture-large

torture-timed: build/release/tests/torture build/release/roomkeyd build/asan/tests/faults build/release/tests/blind
	@mkdir -p build/torture
	@export SEED=$(SEED) ROOMKEYD=build/release/roomkeyd ROOMKEYD_FAULTS=build/asan/tests/faults \
	    ROOMKEYD_BLIND=build/release/tests/blind; \
	part() { echo "$$3 $$4, $$2 s"; SECONDS=$$2 $$3 $$4 >build/torture/$$1.log 2>&1 || \
	    { cat build/torture/$$1.log; exit 1; }; }; \
	part 1 $$(($(SECONDS) * 3 / 8)) build/release/tests/torture && \
	part 2 $$(($(SECONDS) * 3 / 16)) $(PYTHON) tests/crash/torture.py && \
	part 3 $$(($(SECONDS) * 3 / 16)) $(PYTHON) tests/crash/faults.py && \
	part 4 $$(($(SECONDS) / 4)) $(PYTHON) tests/crash/torture_hands.py
	@grep -h violations build/torture/*.log

# As much of it as make test has time for: every state of a scripted life, and whether the checker of
# histories can tell good from bad.
torture-short: build/release/tests/torture
	SECONDS=10 SEED=$(SEED) build/release/tests/torture
	$(PYTHON) tests/crash/torture.py --self-test

torture-large: build/release/tests/large_log build/m32/tests/large_log
	build/release/tests/large_log build/large
	build/m32/tests/large_log build/large

#: make lint            cppcheck, clang-tidy, gcc -fanalyzer
# Three analyzers, all clean: apt-get install cppcheck clang-tidy. clang-tidy takes a file at a time:
# with several it reports va_lists that are none. gcc's leak checker is right only without optimization.
LINTED = -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64 -pthread \
         -DROOMKEYD_VERSION='"$(VERSION)"' -idirafter $(JSMN)
lint:
	cppcheck --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
	    --std=c11 -D_GNU_SOURCE --quiet $(MODULES:%=%.c)
	@set -e; for m in $(MODULES); do echo "lint $$m.c"; \
	    clang-tidy --quiet $$m.c -- $(LINTED); \
	    gcc $(LINTED) -O0 -fanalyzer -fno-analyzer-state-merge -Werror -c $$m.c -o /dev/null; done

#: make bench           beside nginx, Redis and webdis
#: make bench-scale     ten million key IDs
# The first one also draws a plot.
# apt-get install nginx-light redis-server webdis wrk strace valgrind gnuplot-nox procps linux-perf.
bench: build/release/roomkeyd
	ROOMKEYD=build/release/roomkeyd $(PYTHON) tests/bench/bench.py
bench-scale: build/release/roomkeyd
	ROOMKEYD=build/release/roomkeyd $(PYTHON) tests/bench/bench_scale.py

-include $(wildcard build/*/tests/*.d)
