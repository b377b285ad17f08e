/*
 * inspect.h: the commands that look at a data directory.
 */
#ifndef INSPECT_H
#define INSPECT_H

#include "options.h"

/* Each runs the command that its name ends in (options.c says what that does). Results go to
 * standard output, the rest to standard error. Returns 0, or -1 when it could not be done, or what
 * was looked at is not well. Blocks. */
int inspect_check(const struct options *options);
int inspect_export(const struct options *options);

#endif
