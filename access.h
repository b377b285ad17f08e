/*
 * access.h: who may touch which room.
 *
 * Two text files in the data directory, read whole and indexed; a loaded `struct access` never
 * changes. A reload makes a new one beside it, and the owner swaps the two. While one of the files
 * has a mistake in it, the other one takes away and does not add: a token that is revoked is out of
 * force whatever happens to `rooms`, and no new token meets the old rooms.
 *
 *     users    USERID HASHED_TOKEN        one line a token; base64(SHA-256(token)), padded
 *     rooms    RID TYPE [USERID...]       TYPE: c every user, p and d the listed users;
 *                                         RID * stands for every room that has no line of its own
 *
 * Words are separated by spaces or tabs; empty lines and lines that begin with # are passed over. A
 * word that cannot be meant as an ID (a # after others, u1,u2, "u1", RID:) is refused, not taken.
 * Both formats are roomkeyd's own; HASHED_TOKEN is what Rocket.Chat stores as
 * services.resume.loginTokens.hashedToken, and TYPE is its room field `t`.
 */
#ifndef ACCESS_H
#define ACCESS_H

#include "slice.h"

#include <limits.h>

struct access;

#define ACCESS_HASH_CHARS 44 /* base64 of 32 bytes, padded, without a NUL */

/* Reads dir/users and dir/rooms. Returns what they say, owned by the caller, or NULL with the
 * reason ("data/rooms:17: ...") in why. Blocks on the disk; safe to call from any thread. */
struct access *access_load(const char *dir, char *why, size_t why_size);

/* As access_load, but of one file alone, whose name begins as that of the file it is to replace:
 * "users.new" or "rooms.new". */
struct access *access_load_one(const char *dir, const char *name, char *why, size_t why_size);

/* So many bytes hold a reason with a path in it. */
#define ACCESS_WHY_BYTES (PATH_MAX + 128)

/* What came of a reload. */
enum access_file { ACCESS_USERS, ACCESS_ROOMS, ACCESS_FILES };
struct access_reload {
    struct access *access; /* in force from now on, owned by the caller; NULL: what was stays */
    char why[ACCESS_FILES][ACCESS_WHY_BYTES]; /* what is wrong with a file; "": it is good */
};

/* Reads both files again. If both are good, reload->access is what they say. If one is bad, it is
 * what is in force by `old` and stands in the good file, too: of users their tokens, of rooms those
 * who may access them; and in the bad file's place, what is in force by `old`. If both are bad, or
 * memory is short, it is NULL, and so it is with `old` NULL and one of them bad: nothing is in force
 * yet. Other threads may ask `old` meanwhile; it is not needed afterwards. Blocks on the disk. */
void access_reload(const char *dir, const struct access *old, struct access_reload *reload);

/* Frees access, which may be NULL. */
void access_free(struct access *access);

/* Whether token is one of user's. The same work for an unknown user, a wrong token and the right
 * one: one digest, one probe, one comparison, in time independent of the secrets' bytes. */
bool access_knows_user(const struct access *access, struct slice user, struct slice token);

/* The type ('c', 'p' or 'd') of the room if it is known and user may access it, otherwise 0: the
 * two reasons for 0 cannot be told apart. room must be an ID (slice_is_id). Constant time, whatever
 * the number of rooms and members. */
char access_room_type(const struct access *access, struct slice room, struct slice user);

/* Counts the members that rooms lists, each one once, who have no token in users: it may be a slip
 * of the pen. Returns 0, or -1 if memory is short. Work linear in both files. */
struct access_strangers {
    uint64_t count;
    size_t line; /* of rooms, where the first one stands */
};
int access_count_strangers(const struct access *access, struct access_strangers *strangers);

/* Writes base64(SHA-256(token)) and a NUL to hash: the HASHED_TOKEN of `users`. */
void access_hash_token(struct slice token, char hash[ACCESS_HASH_CHARS + 1]);

/* Whether word is what access_hash_token might write. */
bool access_is_hash(struct slice word);

/* For those who write the files. Takes the next word of the line that text begins with off text;
 * returns false at the line's end. */
bool access_next_word(struct slice *text, struct slice *word);

/* Why an ID cannot stand in the files and mean itself, in words that do not repeat it, or NULL where
 * it can: the files are loaded with it, as a user, as a member and as a room. */
const char *access_mistake(struct slice id);

/* Whether it can. */
static inline bool access_can_hold(struct slice id) { return access_mistake(id) == NULL; }

#endif
