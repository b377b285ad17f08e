#!/usr/bin/python3
"""slots.py SLOT...: of the lines on standard input, those whose room is in one of these slots.

The lines are those of a `rooms` file, or the JSON lines of `roomkeyd export`; which slot has a room
is computed as haproxy.cfg does it. Comments are dropped. A line for `*` is an error, since it has
no slot, and nothing is printed then: shards that both take every room make two winners.
"""

import json
import re
import sys
import zlib

SLOTS = 12  # as in haproxy.cfg


def slot_of(room):
    """The slot of a room's ID, which is bytes."""
    return zlib.crc32(room) % SLOTS


def room_of(line):
    """The room that a line is about; None for a comment or an empty line."""
    if line.startswith(b'{"_id":'):
        return json.loads(line)["_id"].encode()
    words = re.split(rb"[ \t\r\n]+", line.lstrip(b" \t\r\n"))
    return None if line.startswith(b"#") else words[0] or None


def main():
    """Reads everything before anything is printed."""
    wanted = {int(word) if word.isdecimal() else SLOTS for word in sys.argv[1:]}
    if not wanted or not wanted <= set(range(SLOTS)):
        sys.exit(f"usage: slots.py SLOT... <rooms; a slot is 0 to {SLOTS - 1}")
    found = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        room = room_of(line)
        if room == b"*" and line.lstrip(b" \t").startswith(b"*"):
            sys.exit(f"slots.py: line {number}: * is every room, and so is in no slot")
        if room is not None and slot_of(room) in wanted:
            found.append(line if line.endswith(b"\n") else line + b"\n")
    sys.stdout.buffer.writelines(found)


if __name__ == "__main__":
    main()
