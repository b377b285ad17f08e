#!/bin/sh
# copy.sh SOURCE COPY [SECONDS]: keeps a copy of a data directory on another machine; run it there.
#
#     copy.sh chat.example:/var/lib/roomkeyd /var/lib/roomkeyd-copy 5
#
# SOURCE is what rsync takes: a directory, HOST:DIRECTORY or rsync://HOST/MODULE. With SECONDS it
# goes on, with that pause between two passes, also when the source is out of reach for a while;
# without, it makes one pass. The server at the source runs on and need not know.
#
# What a copy holds. The log only ever grows, so a pass sends its new end, whatever is being written
# meanwhile. When a pass is over, everything that was acknowledged before it began is in the copy
# and on its disk; the file COPY/copied is as old as the beginning of the last such pass. What it
# caught of a batch in the making is a torn tail, which a server repairs when it opens the log. A
# pass that is cut short takes nothing away. `users` and `rooms` go first: so a room that the copy
# lists has its key ID in the copied log, also when both have just come from another shard.
#
# To fail over:
#
#  1. Make sure that the old server is dead, and stays so: two servers for a room make two winners.
#  2. If its directory can still be read, make one last pass: then nothing is missing. Otherwise
#     sets that were acknowledged after COPY/copied may be, and those rooms can be set once more, to
#     the grief of members who hold the first key. Do not take this road to save a minute.
#  3. Stop this script. (While it runs no server can open COPY, and while a server has COPY open
#     this script refuses: both lock the directory.)
#  4. roomkeyd check --data COPY, then start a server on it. Make a new copy of it, elsewhere.
#
# Never start a server on a copy that is not the newest, and never copy one back over a log that has
# gone on: every set since then would be forgotten, and its room open again. A log moves forward
# only. That is why this script never makes the copied log shorter: if the source's is not longer
# and not the same (emptied, replaced, or cut when its machine had crashed), it stops and says so. A
# longer one is taken to be right: rsync compares all of it, and mends what differs in place.
set -u

fail() {
    echo "copy.sh: $*" >&2
    return 1
}

# One pass. Returns 0 if the copy now holds all that the source had when it began, 1 if it could not
# be made, 2 if the source's log was not longer and yet not the same.
pass() {
    : >"$copy/.began"
    rsync -a --fsync "$source/users" "$source/rooms" "$copy/" ||
        fail "users and rooms: not copied" || return 1
    sent=$(rsync -ai --fsync --append-verify "$source/keys.log" "$copy/") ||
        fail "keys.log: not copied" || return 1
    case $sent in
    '>f'*) ;;
    *)
        differs=$(rsync -ain --checksum "$source/keys.log" "$copy/") ||
            fail "keys.log: not compared" || return 1
        case $differs in '>f'*) return 2 ;; esac
        ;;
    esac
    [ -e "$copy/keys.log.born" ] || : >"$copy/keys.log.born"
    mv "$copy/.began" "$copy/copied"
}

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: copy.sh SOURCE COPY [SECONDS]" >&2
    exit 2
fi
source=${1%/} copy=${2%/} pause=${3:-}
umask 077
mkdir -p "$copy" && exec 9<"$copy" || exit 1
flock -n 9 || fail "$copy is in use: by a server, or by another copy.sh" || exit 1

while :; do
    pass
    status=$?
    if [ $status -eq 2 ]; then # it may have grown between the two looks, but not twice unseen
        pass
        status=$?
    fi
    if [ $status -eq 2 ]; then
        fail "$source/keys.log is no continuation of $copy/keys.log; both are kept." \
            "If the source is right, move the copy's log away (do not delete it) and start again."
        exit 1
    fi
    [ -n "$pause" ] || exit $status
    sleep "$pause"
done
