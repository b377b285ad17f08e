# roomkeyd. `make` builds ./roomkeyd, `make test` proves it, `make help` names the rest.
#
# Every flavour has a folder of its own under build/, so objects of two kinds never meet.
# CC, CFLAGS, LDFLAGS and JSMN (the directory of jsmn.h, from Debian's libjsmn-dev) may be set.

.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

CC      := $(if $(filter default undefined,$(origin CC)),gcc,$(CC))
CFLAGS  ?= -O3 -g
LDFLAGS ?=
JSMN    ?= /usr/include
LLHTTP  ?= /usr/share
PYTHON  ?= /usr/bin/python3
MUSL    ?= $(shell command -v musl-gcc)

VERSION  := 0.1.0
MODULES  := main options admin format inspect conn listen access_log http api json metrics access store log table sha256 text
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes $(WERROR)
LANGUAGE := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64 -pthread \
            -DROOMKEYD_VERSION='"$(VERSION)"' -idirafter $(JSMN) -MMD -MP
HARDENED := -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2
SHORT    := -DCONN_IDLE_MS=700 -DCONN_HEAD_MS=700 -DCONN_BODY_MS=700 -DCONN_WRITE_MS=700

# What sets each flavour apart from the others: compiler, flags, link flags. PORTABLE leaves out the
# instructions that only some processors have, and 6 KB that ask for them; no libc makes memory
# read-only (RELRO) in a static binary that nothing relocates. What has to hold is asserted in all
# flavours but those that are shipped (NDEBUG) and clang, which has the warnings of that build.
release_CFLAGS  := $(CFLAGS) $(HARDENED) -DNDEBUG
release_LDFLAGS := -pie -Wl,-z,relro,-z,now
asan_CFLAGS     := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
                   -fno-omit-frame-pointer
asan_LDFLAGS    := -fsanitize=address,undefined
quick_CFLAGS    := $(asan_CFLAGS) $(SHORT)
quick_LDFLAGS   := $(asan_LDFLAGS)
tsan_CFLAGS     := -O1 -g -fsanitize=thread
tsan_LDFLAGS    := -fsanitize=thread
clang_CC        := clang
clang_CFLAGS    := $(CFLAGS) $(HARDENED) -DNDEBUG
clang_LDFLAGS   := $(release_LDFLAGS)
fuzz_CC         := clang
fuzz_CFLAGS     := $(asan_CFLAGS) -fsanitize=fuzzer-no-link
fuzz_LDFLAGS    := -fsanitize=fuzzer,address,undefined
cover_CC        := gcc
cover_CFLAGS    := -O0 -g --coverage -fprofile-update=atomic
cover_LDFLAGS   := --coverage -Wl,--wrap=_exit -Wl,--wrap=abort
cover-quick_CC      := gcc
cover-quick_CFLAGS  := $(cover_CFLAGS) $(SHORT)
cover-quick_LDFLAGS := $(cover_LDFLAGS)
m32_CFLAGS      := $(CFLAGS) -m32
m32_LDFLAGS     := -m32
static_CC       := $(if $(MUSL),$(MUSL),$(CC))
static_CFLAGS   := -DPORTABLE -DNDEBUG -Oz -flto -flto-partition=one -fno-jump-tables \
                   -fno-optimize-sibling-calls -fno-asynchronous-unwind-tables -fno-pie \
                   -fstack-protector-strong
static_LDFLAGS  := -static -s -Wl,-z,norelro,-z,noseparate-code

FLAVOURS := release asan quick tsan clang m32 static fuzz cover cover-quick
FUZZED   := http json request access log
UNITS    := slice text format sha256 table access access_work http json api metrics store listen
TIMED    := access api

.PHONY: all static install uninstall test units corpus server fuzz test-ecosystem torture torture-timed torture-short \
        torture-large m32 tsan lint cover bench bench-scale clean help
all: roomkeyd

roomkeyd: build/release/roomkeyd
	cp --remove-destination $< $@

# $(1): a flavour.
define flavour
$(1)_CC ?= $$(CC)
$(1)_OBJECTS := $$(MODULES:%=build/$(1)/%.o)

build/$(1)/roomkeyd: $$($(1)_OBJECTS)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

build/$(1)/%.o: %.c Makefile
	@mkdir -p $$(@D)
	$$($(1)_CC) $$(LANGUAGE) $$(WARNINGS) $$($(1)_CFLAGS) -c $$< -o $$@

build/$(1)/tests/%.o: tests/%.c Makefile
	@mkdir -p $$(@D)
	$$($(1)_CC) $$(LANGUAGE) $$(WARNINGS) -I. $$($(1)_CFLAGS) -c $$< -o $$@

build/$(1)/tests/%: build/$(1)/tests/%.o $$(filter-out build/$(1)/main.o,$$($(1)_OBJECTS))
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_$$*) $$($(1)_LDFLAGS) $$(LDFLAGS) -lcmocka -o $$@

# api.c alone with the parser: the test plays the store and the access files itself.
build/$(1)/tests/test_api: $$(patsubst %,build/$(1)/%.o,tests/test_api http api json metrics text)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$(WRAP_test_api) $$($(1)_LDFLAGS) $$(LDFLAGS) -lcmocka -o $$@

# access.c inside the test, which counts the work of every function.
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
build/$(1)/llhttp/%.o: $(LLHTTP)/llhttp/%.c Makefile
	@mkdir -p $$(@D)
	$$($(1)_CC) -O2 -w -DLLHTTP_STRICT_MODE=1 -I$(LLHTTP)/include/llhttp \
	    $$(filter -fsanitize=fuzzer-no-link,$$($(1)_CFLAGS)) -c $$< -o $$@
build/$(1)/tests/fuzz_http.o: LANGUAGE += -idirafter $(LLHTTP)/include/llhttp
endef
$(foreach f,$(FLAVOURS),$(eval $(call flavour,$(f))))
.SECONDARY:
-include $(wildcard build/*/*.d build/*/tests/*.d)

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
WRAP_blind       := $(call wrap,log_glance log_find_change log_holds_tail)
WRAP_test_access_work := $(call wrap,sha256 table_hash table_find table_next)
WRAP_torture     := $(call wrap,pwrite64 fdatasync fsync ftruncate64 openat64 renameat unlinkat)
WRAP_test_access := $(call wrap,malloc calloc realloc read getrandom table_hash)

# A static binary, for an empty root. With musl it is small; without it, it is what CC makes.
static: build/static/roomkeyd
	@ls -l $<

# For a service under systemd. PREFIX is where it is to run from, DESTDIR a root to put that into.
# The units name /usr/local, which is replaced.
PREFIX  ?= /usr/local
DESTDIR ?=
INSTALL ?= install
UNITDIR := $(PREFIX)/lib/systemd/system

install: roomkeyd
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(UNITDIR)
	$(INSTALL) -m 755 roomkeyd $(DESTDIR)$(PREFIX)/sbin/roomkeyd
	$(INSTALL) -m 644 deploy/roomkeyd.8 $(DESTDIR)$(PREFIX)/share/man/man8/roomkeyd.8
	$(INSTALL) -m 644 deploy/roomkeyd.service deploy/roomkeyd.socket $(DESTDIR)$(UNITDIR)
	sed -i 's|/usr/local/|$(PREFIX)/|' $(DESTDIR)$(UNITDIR)/roomkeyd.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/roomkeyd $(DESTDIR)$(PREFIX)/share/man/man8/roomkeyd.8 \
	    $(DESTDIR)$(UNITDIR)/roomkeyd.service $(DESTDIR)$(UNITDIR)/roomkeyd.socket

# A unit's runner prints cmocka's own lines; the first failure stops. Those that hold the code to times
# run once more without sanitizers.
units: $(UNITS:%=build/asan/tests/test_%) $(TIMED:%=build/release/tests/test_%)
	@set -e; for unit in $^; do echo "$$unit"; $$unit; done

# What the fuzzers have found worth keeping, without a fuzzer.
corpus: $(FUZZED:%=build/asan/fuzz_%)
	@set -e; for name in $(FUZZED); do build/asan/fuzz_$$name tests/corpus/$$name; done

# Runs every fuzzer for SECONDS. What it finds interesting stays in build/corpus; what it finds wrong,
# in build/fuzz/NAME-crash-...: mend it, then give that file a name in tests/corpus/NAME.
SECONDS ?= 120
fuzz: $(FUZZED:%=build/fuzz/fuzz_%)
	@set -e; for name in $(FUZZED); do \
	    mkdir -p build/corpus/$$name; echo "$$name: $(SECONDS) s"; \
	    ASAN_OPTIONS=quarantine_size_mb=16 build/fuzz/fuzz_$$name -max_total_time=$(SECONDS) \
	        -max_len=4096 -dict=tests/dictionaries/$$name.dict -artifact_prefix=build/fuzz/$$name- \
	        -print_final_stats=1 build/corpus/$$name tests/corpus/$$name >build/fuzz/$$name.log 2>&1 || \
	        { grep -v '^#' build/fuzz/$$name.log; exit 1; }; \
	    grep -E '^stat::(number|average)' build/fuzz/$$name.log; \
	done

# $(1): the flavour that is put to the whole-server tests. $(2), $(3): those that play the parts of
# quick and, under faults, of asan.
pytest = ROOMKEYD=build/$(1)/roomkeyd ROOMKEYD_QUICK=build/$(or $(2),quick)/roomkeyd \
         ROOMKEYD_RELEASE=build/release/roomkeyd ROOMKEYD_STATIC=build/static/roomkeyd \
         ROOMKEYD_FAULTS=build/$(or $(3),asan)/tests/faults \
         $(PYTHON) -m pytest -q -p no:cacheprovider
BINARIES := build/quick/roomkeyd build/release/roomkeyd build/static/roomkeyd build/asan/tests/faults

server: build/asan/roomkeyd $(BINARIES)
	$(call pytest,asan) tests

test: units corpus torture-short server

# Which lines `make test` runs: apt-get install gcovr. Fails when a test does, or when a file has fewer
# than COVER_MIN % of its lines run; lines that no test reaches say why, in place. Left out: what
# measures the release build in time. Some servers run as another user: the first process, which
# makes the files of counts, lets everybody write them.
COVER_MIN := 95
COVERED   := build/cover/roomkeyd build/cover-quick/roomkeyd build/cover/tests/faults \
             $(UNITS:%=build/cover/tests/test_%) $(FUZZED:%=build/cover/fuzz_%)
$(COVERED): build/cover/tests/cover.o

cover: $(COVERED) build/release/roomkeyd build/static/roomkeyd
	@find build/cover build/cover-quick -name '*.gcda' -delete
	@umask 0; build/cover/roomkeyd --version; build/cover-quick/roomkeyd --version
	@set -e; for unit in $(UNITS); do build/cover/tests/test_$$unit; done
	@set -e; for name in $(FUZZED); do build/cover/fuzz_$$name tests/corpus/$$name; done
	$(call pytest,cover,cover-quick,cover) --ignore=tests/test_misbehaviour_p99.py tests
	gcovr --root . --filter '[^/]*\.[ch]$$' build/cover build/cover-quick >build/cover/lines
	@cat build/cover/lines
	@awk -v modules=$(words $(MODULES)) '$$1 ~ /\.c$$/ { modules-- } \
	    $$1 ~ /\.[ch]$$/ && $$4 + 0 < $(COVER_MIN) { print $$1 ": fewer than $(COVER_MIN) %"; bad = 1 } \
	    END { if (modules) print "a module is missing"; exit bad || modules }' build/cover/lines

# Clients and tools that are heavy to install. A missing one is a failure.
test-ecosystem: $(BINARIES)
	$(call pytest,release) tests/ecosystem

# The whole-server tests against the 32-bit build.
m32: build/m32/roomkeyd $(BINARIES)
	$(call pytest,m32) tests

# Data races: the store's units and the whole server.
tsan: build/tsan/tests/test_store build/tsan/roomkeyd $(BINARIES)
	build/tsan/tests/test_store
	$(call pytest,tsan) --ignore=tests/test_faults.py tests

# What could lose a key: crash states, kills under load, failing calls, what people do to the log of a
# running server, a log past 4 GiB. SECONDS= is the budget of all but the last, SEED= repeats a run.
torture: torture-timed torture-large

torture-timed: build/release/tests/torture build/release/roomkeyd build/asan/tests/faults build/release/tests/blind
	@mkdir -p build/torture
	@export SEED=$(SEED) ROOMKEYD=build/release/roomkeyd ROOMKEYD_FAULTS=build/asan/tests/faults \
	    ROOMKEYD_BLIND=build/release/tests/blind; \
	part() { echo "$$3 $$4, $$2 s"; SECONDS=$$2 $$3 $$4 >build/torture/$$1.log 2>&1 || \
	    { cat build/torture/$$1.log; exit 1; }; }; \
	part 1 $$(($(SECONDS) * 3 / 8)) build/release/tests/torture && \
	part 2 $$(($(SECONDS) * 3 / 16)) $(PYTHON) tests/torture.py && \
	part 3 $$(($(SECONDS) * 3 / 16)) $(PYTHON) tests/faults.py && \
	part 4 $$(($(SECONDS) / 4)) $(PYTHON) tests/torture_hands.py
	@grep -h violations build/torture/*.log

# As much of it as make test has time for: every state of a scripted life, and whether the checker of
# histories can tell good from bad.
torture-short: build/release/tests/torture
	SECONDS=10 SEED=$(SEED) build/release/tests/torture
	$(PYTHON) tests/torture.py --self-test

torture-large: build/release/tests/large_log build/m32/tests/large_log
	build/release/tests/large_log build/large
	build/m32/tests/large_log build/large

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

# Beside nginx, Redis and webdis, with a plot; and ten million key IDs:
# apt-get install nginx-light redis-server webdis wrk strace valgrind gnuplot-nox procps linux-perf.
bench: build/release/roomkeyd
	ROOMKEYD=build/release/roomkeyd $(PYTHON) tests/bench.py
bench-scale: build/release/roomkeyd
	ROOMKEYD=build/release/roomkeyd $(PYTHON) tests/bench_scale.py

clean:
	rm -rf build roomkeyd

help:
	@echo 'make                 ./roomkeyd'
	@echo 'make static          build/static/roomkeyd, for an empty root'
	@echo 'make install         binary, manual, systemd units; PREFIX= and DESTDIR='
	@echo 'make uninstall'
	@echo 'make test            units and whole server, with sanitizers'
	@echo 'make test-ecosystem  the heavy clients'
	@echo 'make fuzz            every fuzzer for SECONDS= each'
	@echo 'make torture         what could lose a key; SECONDS= and SEED='
	@echo 'make lint            cppcheck, clang-tidy, gcc -fanalyzer'
	@echo 'make cover           which lines make test runs'
	@echo 'make bench           beside nginx, Redis and webdis'
	@echo 'make bench-scale     ten million key IDs'
	@echo 'make m32             the whole-server tests against a 32-bit build'
	@echo 'make tsan            data races'
	@echo 'make clean'
