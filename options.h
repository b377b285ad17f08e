/*
 * options.h: what the command line says: a command, its options, its operands.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>

#define OPTIONS_LISTEN_MAX 16

/* The strings are the command line's own. */
struct options {
    int (*run)(const struct options *options); /* NULL: serve. Returns 0, or -1, reported */
    const char *dir;                           /* the data directory */
    const char *listen[OPTIONS_LISTEN_MAX];    /* addresses that listen_fault has passed */
    int listen_count;
    unsigned max_connections;
    const char *cors;       /* "*", origins in lower case, or "" */
    const char *access_log; /* a file, "-" for standard output, or NULL */
    bool has_no_metrics;
    const char *salvage;   /* a file to make, or NULL */
    bool has_no_log;       /* of check: users and rooms, not the log */
    unsigned max_age_days; /* of the tokens that users import takes; 0: any */
    char **operands;       /* as many as the command takes, then NULL */
};

/* Reads the command line. Returns OPTIONS_RUN with *options, or the process's exit code where there
 * is nothing to run: help was asked for and given, or something is wrong and has been told. */
#define OPTIONS_RUN (-1)
int options_read(int argc, char **argv, struct options *options);

#endif
