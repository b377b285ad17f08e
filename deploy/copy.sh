#!/bin/sh
# copy.sh SOURCE COPY [SECONDS]: keeps a copy of a data directory, on another machine: run it there.
#
#     copy.sh chat.example:/var/lib/roomkeyd /var/lib/roomkeyd-copy 5
#
# SOURCE is what rsync takes: a directory, HOST:DIRECTORY or rsync://HOST/MODULE. With SECONDS it goes
# on, with that pause between two passes, until it is stopped or cannot go on; without, it makes one
# pass. The server at the source runs on and need not know.
#
# What a copy holds. The log only ever grows, so a pass sends its new end, whatever is being written
# meanwhile. When a pass is over, everything that was acknowledged before it began is in the copy and
# on its disk; COPY/copied is as old as the beginning of the last such pass. What the pass caught of a
# batch in the making is a torn tail, which a server repairs when it opens the log. A pass that is cut
# short takes nothing away. `users` and `rooms` go first: a room that the copy lists then has its key
# ID in the copied log, also when both have just come from another shard.
#
# To fail over:
#
#  1. Make sure that the old server is dead, and stays dead: two servers for a room make two winners.
#  2. If its directory can still be read, make one last pass: then nothing is missing. Otherwise sets
#     that were acknowledged after COPY/copied may be, and those rooms can be set once more. Members
#     who hold the first key will notice; so do not take this road to save a minute.
#  3. Stop this script. (While it runs no server can open COPY, and while a server has COPY open this
#     script refuses: both lock the directory.)
#  4. roomkeyd check --data COPY, then start a server on it. Make a new copy of it, elsewhere.
#
# Never start a server on a copy that is not the newest, and never copy one back over a log that has
# gone on: every set since then would be forgotten, and its room open again. A log moves forward only.
# For the same reason this script never makes the copied log shorter: if the source's is not longer
# and not the same (emptied, replaced, or cut when its machine had crashed), it stops and says so. A
# longer one is taken to be right: rsync compares all of it, and mends what differs.
set -eu

fail() {
    echo "copy.sh: $*" >&2
    exit 1
}

# One pass. Returns 0 if the copy now holds all that the source had when it began, 1 to try again.
pass() {
    : >"$copy/.began"
    rsync -a --fsync "$source/users" "$source/rooms" "$copy/" || fail "users and rooms: not copied"
    sent=$(rsync -ai --fsync --append-verify "$source/keys.log" "$copy/") ||
        fail "keys.log: not copied"
    case $sent in
    '>f'*) ;;
    *) # The source's log is not the longer one: then it has to be the same.
        [ -z "$(rsync -ain --checksum --no-times "$source/keys.log" "$copy/")" ] || return 1 ;;
    esac
    mv "$copy/.began" "$copy/copied"
}

[ $# -ge 2 ] && [ $# -le 3 ] || { echo "usage: copy.sh SOURCE COPY [SECONDS]" >&2; exit 2; }
source=${1%/} copy=${2%/} pause=${3:-}
mkdir -p -m 700 "$copy"
exec 9<"$copy"
flock -n 9 || fail "$copy is in use: by a server, or by another copy.sh"

while :; do
    # It may have grown between the two looks; twice in a row, without a pass that sends, it has not.
    pass || pass || fail "$source/keys.log is no continuation of $copy/keys.log; both are kept." \
        "If the source is right, move the copy's log away (do not delete it) and start again."
    [ -n "$pause" ] || exit 0
    sleep "$pause"
done
