# roomkeyd. `make` builds ./roomkeyd, `make test` proves it, `make help` names the rest.
#
# Every flavour has a folder of its own under build/, so objects of two kinds never meet.
# CC, CFLAGS, LDFLAGS and JSMN (the directory of jsmn.h, from Debian's libjsmn-dev) may be set.
# What only the tests need is in tests/tests.mk. `make help` prints the lines that begin with "#: ".

.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

CC      := $(if $(filter default undefined,$(origin CC)),gcc,$(CC))
CFLAGS  ?= -O3 -g
LDFLAGS ?=
JSMN    ?= /usr/include
MUSL    ?= $(shell command -v musl-gcc)

VERSION  := 0.1.0
MODULES  := main options admin format inspect conn listen access_log http api json metrics access store log table sha256 text
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes $(WERROR)
LANGUAGE := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64 -pthread \
            -DROOMKEYD_VERSION='"$(VERSION)"' -idirafter $(JSMN) -MMD -MP
HARDENED := -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2

# What sets each flavour apart from the others: compiler, flags, link flags. PORTABLE leaves out the
# instructions that only some processors have, and 6 KB that ask for them; no libc makes memory
# read-only (RELRO) in a static binary that nothing relocates. What has to hold is asserted in all
# flavours but those that are shipped (NDEBUG) and clang, which has the warnings of that build.
release_CFLAGS  := $(CFLAGS) $(HARDENED) -DNDEBUG
release_LDFLAGS := -pie -Wl,-z,relro,-z,now
static_CC       := $(if $(MUSL),$(MUSL),$(CC))
static_CFLAGS   := -DPORTABLE -DNDEBUG -Oz -flto -flto-partition=one -fno-jump-tables \
                   -fno-optimize-sibling-calls -fno-asynchronous-unwind-tables -fno-pie \
                   -fstack-protector-strong
static_LDFLAGS  := -static -s -Wl,-z,norelro,-z,noseparate-code

.PHONY: all static install uninstall test clean help
#: make                 ./roomkeyd
all: roomkeyd

roomkeyd: build/release/roomkeyd
	cp --remove-destination $< $@

# $(1): a flavour. Its objects are built again after a change of the files that say how to build it:
# $(MAKEFILE_LIST) is what make has read so far: this file, and for the tests' flavours tests.mk.
define flavour
$(1)_CC ?= $$(CC)
$(1)_OBJECTS := $$(MODULES:%=build/$(1)/%.o)

build/$(1)/roomkeyd: $$($(1)_OBJECTS)
	$$($(1)_CC) $$($(1)_CFLAGS) -pthread $$^ $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@

build/$(1)/%.o: %.c $(MAKEFILE_LIST)
	@mkdir -p $$(@D)
	$$($(1)_CC) $$(LANGUAGE) $$(WARNINGS) $$($(1)_CFLAGS) -c $$< -o $$@
endef
$(foreach f,release static,$(eval $(call flavour,$(f))))
.SECONDARY:

#: make static          build/static/roomkeyd, for an empty root
# With musl it is small; without it, it is what CC makes.
static: build/static/roomkeyd
	@ls -l $<

# For a service under systemd. PREFIX is where it is to run from, DESTDIR a root to put that into.
# The units name /usr/local, which is replaced.
PREFIX  ?= /usr/local
DESTDIR ?=
INSTALL ?= install
UNITDIR := $(PREFIX)/lib/systemd/system

#: make install         binary, manual, systemd units; PREFIX= and DESTDIR=
install: roomkeyd
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(UNITDIR)
	$(INSTALL) -m 755 roomkeyd $(DESTDIR)$(PREFIX)/sbin/roomkeyd
	$(INSTALL) -m 644 deploy/roomkeyd.8 $(DESTDIR)$(PREFIX)/share/man/man8/roomkeyd.8
	$(INSTALL) -m 644 deploy/roomkeyd.service deploy/roomkeyd.socket $(DESTDIR)$(UNITDIR)
	sed -i 's|/usr/local/|$(PREFIX)/|' $(DESTDIR)$(UNITDIR)/roomkeyd.service

#: make uninstall
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/roomkeyd $(DESTDIR)$(PREFIX)/share/man/man8/roomkeyd.8 \
	    $(DESTDIR)$(UNITDIR)/roomkeyd.service $(DESTDIR)$(UNITDIR)/roomkeyd.socket

#: make test            units and whole server, with sanitizers
test: units corpus torture-short server

#: make clean
clean:
	rm -rf build roomkeyd

help:
	@sed -n 's/^#: //p' Makefile $(wildcard tests/tests.mk)

# The minus sign: go on without the file. The image (deploy/Dockerfile) is built without tests.
-include tests/tests.mk
-include $(wildcard build/*/*.d)
