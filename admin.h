/*
 * admin.h: the commands that change a data directory, and two that touch no file.
 */
#ifndef ADMIN_H
#define ADMIN_H

#include "options.h"

/* Each runs the command that its name ends in (options.c says what that does). Results go to
 * standard output, the rest to standard error. Returns 0, or -1 when it could not be done, or
 * (health) what was asked is not well. Blocks. */
int admin_import(const struct options *options);
int admin_users_import(const struct options *options);
int admin_rooms_import(const struct options *options);
int admin_user_add(const struct options *options);
int admin_user_revoke(const struct options *options);
int admin_hash_token(const struct options *options);
int admin_health(const struct options *options);

#endif
