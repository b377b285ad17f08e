/*
 * admin.h: the commands beside `serve`: what an operator asks of a data directory.
 */
#ifndef ADMIN_H
#define ADMIN_H

#include <stdbool.h>

/* Whether name is one of them. */
bool admin_has(const char *name);

/* Runs the command argv[0] with its options. Results go to standard output, the rest to standard
 * error. Returns the process's exit code. Blocks. */
int admin_run(int argc, char **argv);

#endif
