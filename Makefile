# roomkeyd: `make` builds ./roomkeyd, `make test` proves it, `make help` lists the rest.
#
# Each flavour has its own folder under build/, so that objects of two kinds never meet.

CC     ?= gcc
JSMN   ?= /usr/include
CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes $(WERROR)
HARDEN   := -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2
LDHARDEN := -pie -Wl,-z,relro,-z,now

VERSION := 0.1.0
FEATURES := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64 \
            -DROOMKEYD_VERSION='"$(VERSION)"' -idirafter $(JSMN) -pthread -MMD -MP

MODULES := http api access store table sha256
