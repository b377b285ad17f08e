/*
 * admin.c: the commands beside `serve`: what an operator asks of a data directory.
 *
 *     check     is the log whole? what would a start do? do users and rooms read well?
 *     export    the key IDs as JSON lines
 *
 * Both only read, and work beside a running server: they read the log to its end, sync it, and only
 * then speak of it. Neither ever cuts or mends anything; --salvage writes a new file.
 */
#include "admin.h"
#include "access.h"
#include "http.h"
#include "json.h"
#include "log.h"
#include "store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WHY_BYTES 512

struct arguments {
    const char *dir;
    const char *salvage; /* a file to make, or NULL */
};

static int complain(const char *what, const char *why) {
    fprintf(stderr, "roomkeyd: %s: %s\n", what, why);
    return 1;
}

/* Reports what could not be written to standard output: a full disk, a closed pipe. */
static int finish_output(void) {
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    return is_written ? 0 : complain("standard output", strerror(errno));
}

/* ------------------------------------------------------------------------ check */

/* A new log in the making: one batch with every valid record of another, and a seal. */
struct salvage {
    FILE *file;
    uint64_t offset;
};

static int write_line(struct salvage *salvage, const struct log_line *line) {
    char bytes[LOG_LINE_MAX_BYTES];
    size_t size = log_format(line, bytes);
    salvage->offset += size;
    return fwrite(bytes, 1, size, salvage->file) == size ? 0 : -1;
}

static int salvage_record(void *context, const struct store_record *record, uint64_t time_ms) {
    char user[LOG_ESCAPED_MAX_BYTES], room[LOG_ESCAPED_MAX_BYTES], key[LOG_ESCAPED_MAX_BYTES];
    struct log_line line = {
        .batch = LOG_FIRST_LINE_BYTES,
        .time_ms = time_ms,
        .user = {user, log_escape(record->user, user)},
        .room = {room, log_escape(record->room, room)},
        .key = {key, log_escape(record->key, key)},
    };
    return write_line(context, &line);
}

/* Ends a salvaged log: the seal, which certifies it, is written only when all before it is on
 * disk. */
static int finish_salvage(struct salvage *salvage) {
    int fd = fileno(salvage->file);
    if (fflush(salvage->file) != 0 || log_sync_all(fd) < 0) return -1;
    struct log_line seal = {.batch = salvage->offset, .is_seal = true};
    if (write_line(salvage, &seal) < 0 || fflush(salvage->file) != 0) return -1;
    return log_sync_all(fd);
}

/* Inspects the log and, on the way, writes its valid records to a new file. Returns 0, or -1 with
 * the reason in why; then the file is removed again. */
static int inspect_and_salvage(const struct arguments *arguments,
                               struct store_inspection *inspection, char *why) {
    struct salvage salvage = {.offset = LOG_FIRST_LINE_BYTES};
    int fd = open(arguments->salvage, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || !(salvage.file = fdopen(fd, "w"))) {
        snprintf(why, WHY_BYTES, "%s: %s", arguments->salvage, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    inspection->visit = salvage_record;
    inspection->context = &salvage;
    int result = fputs(LOG_FIRST_LINE, salvage.file) < 0 ? -1 : 0;
    if (result == 0) result = store_inspect(arguments->dir, inspection, why, WHY_BYTES);
    inspection->context = NULL; /* the salvage lives no longer than this call */
    if (result == 0 && finish_salvage(&salvage) < 0) {
        snprintf(why, WHY_BYTES, "%s: %s", arguments->salvage, strerror(errno));
        result = -1;
    }
    fclose(salvage.file);
    if (result < 0) unlink(arguments->salvage);
    return result;
}

static void print_inspection(const char *dir, const struct store_inspection *inspection) {
    uint64_t bad = inspection->fault_offset, rest = inspection->size - bad;
    printf("%s/" LOG_NAME ": %" PRIu64 " records in %" PRIu64 " bytes\n", dir, inspection->records,
           bad);
    if (!inspection->fault) return;
    if (inspection->is_damaged) {
        printf("%s/" LOG_NAME ": damaged at byte %" PRIu64 ": %s\n", dir, bad, inspection->fault);
        printf("%s/" LOG_NAME ": %" PRIu64 " valid records in the %" PRIu64 " bytes behind that\n",
               dir, inspection->records_after, rest);
    } else {
        printf("%s/" LOG_NAME ": %" PRIu64 " bytes at byte %" PRIu64
               " are a torn tail, or what a server is writing: %s\n",
               dir, rest, bad, inspection->fault);
    }
}

/* Exit code 1 when a server would not start with these files. */
static int check(const struct arguments *arguments) {
    char why[WHY_BYTES];
    struct store_inspection inspection = {.visit = NULL};
    int code = 0;
    int result = arguments->salvage ? inspect_and_salvage(arguments, &inspection, why)
                                    : store_inspect(arguments->dir, &inspection, why, sizeof why);
    if (result < 0) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        code = 1;
    } else {
        print_inspection(arguments->dir, &inspection);
        if (inspection.is_damaged) code = 1;
        if (arguments->salvage)
            printf("%s: %" PRIu64 " records\n", arguments->salvage,
                   inspection.records + inspection.records_after);
    }
    struct access *access = access_load(arguments->dir, why, sizeof why);
    if (!access) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        code = 1;
    }
    access_free(access);
    return finish_output() != 0 ? 1 : code;
}

/* ------------------------------------------------------------------------ export */

static void print_field(const char *before, struct slice text) {
    char string[JSON_QUOTED_BYTES(ID_MAX_BYTES)];
    size_t size = json_quote(text, string);
    fputs(before, stdout);
    fwrite(string, 1, size, stdout);
}

/* The date of http_date in the order of ISO 8601. */
static void print_time(uint64_t time_ms) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    char date[HTTP_DATE_BYTES], name[4] = "";
    http_date((time_t)(time_ms / 1000), date); /* Thu, 01 Jan 1970 00:00:00 GMT */
    memcpy(name, date + 8, 3);
    int month = (int)(strstr(months, name) - months) / 3 + 1;
    printf("%.4s-%02d-%.2sT%.8s.%03uZ", date + 12, month, date + 5, date + 17,
           (unsigned)(time_ms % 1000));
}

static int print_record(void *context, const struct store_record *record, uint64_t time_ms) {
    (void)context;
    print_field("{\"_id\":", record->room);
    print_field(",\"e2eKeyId\":", record->key);
    if (slice_equal(record->user, SLICE("-")))
        fputs(",\"setBy\":null", stdout);
    else
        print_field(",\"setBy\":", record->user);
    fputs(",\"setAt\":\"", stdout);
    print_time(time_ms);
    fputs("\"}\n", stdout);
    return ferror(stdout) ? -1 : 0;
}

/* Two passes: the first finds out how far the log is whole and syncs it, the second prints that
 * far. So nothing is printed that a crash could take back. */
static int export(const struct arguments *arguments) {
    char why[WHY_BYTES];
    struct store_inspection first = {.visit = NULL};
    if (store_inspect(arguments->dir, &first, why, sizeof why) < 0) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        return 1;
    }
    if (first.is_damaged) {
        fprintf(stderr, "roomkeyd: %s: " LOG_NAME ": damaged at byte %" PRIu64 ": %s; see check\n",
                arguments->dir, first.fault_offset, first.fault);
        return 1;
    }
    struct store_inspection second = {.visit = print_record, .limit = first.fault_offset};
    if (store_inspect(arguments->dir, &second, why, sizeof why) < 0 && !ferror(stdout)) {
        fprintf(stderr, "roomkeyd: %s\n", why);
        return 1;
    }
    return finish_output();
}

/* ------------------------------------------------------------------------ the commands */

struct command {
    const char *name;
    int (*run)(const struct arguments *arguments);
    const char *usage, *help;
};

static const struct command commands[] = {
    {"check", check, "usage: roomkeyd check [--data DIR] [--salvage NEWFILE]\n",
     "\n"
     "Reads the log, users and rooms, and says what is wrong with them; changes nothing. Works "
     "beside\n"
     "a running server. Exit code: 0 a server would start with these files, 1 it would not.\n"
     "\n"
     "  --data DIR         the data directory (default data)\n"
     "  --salvage NEWFILE  also write every valid record to a new log\n"},
    {"export", export, "usage: roomkeyd export [--data DIR]\n",
     "\n"
     "Prints the key IDs as JSON lines: "
     "{\"_id\":RID,\"e2eKeyId\":KEYID,\"setBy\":USERID,\"setAt\":TIME}.\n"
     "Works beside a running server. Exit code: 0 printed, 1 the log cannot be read or is "
     "damaged.\n"
     "\n"
     "  --data DIR  the data directory (default data)\n"},
};

static const struct command *find_command(const char *name) {
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

bool admin_has(const char *name) { return find_command(name) != NULL; }

int admin_run(int argc, char **argv) {
    static const struct option options[] = {
        {"data", required_argument, NULL, 'd'},
        {"salvage", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    const struct command *command = find_command(argv[0]);
    struct arguments arguments = {.dir = "data"};
    int option;
    assert(command != NULL); /* the caller has asked admin_has */
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        bool is_known = option != 's' || command->run == check;
        if (option == 'h') {
            printf("%s%s", command->usage, command->help);
            return finish_output();
        }
        if (option == '?' || !is_known) {
            fprintf(stderr, "roomkeyd: unknown option, or a value missing or unasked: '%s'\n%s",
                    argv[optind - 1], command->usage);
            return 2;
        }
        *(option == 'd' ? &arguments.dir : &arguments.salvage) = optarg;
    }
    if (optind < argc) {
        fprintf(stderr, "roomkeyd: unexpected argument: '%s'\n%s", argv[optind], command->usage);
        return 2;
    }
    return command->run(&arguments);
}
