/*
 * options.c: the command line.
 *
 *     roomkeyd  user add   --data DIR   USERID
 *               |          |            `- operands
 *               |          `- options, in any place after the command, --data=DIR too
 *               `- the command; where the first word is an option, or none at all: serve
 *
 * A command is one entry of a table: what runs it, which options it takes, what --help says of it.
 *
 * It refuses options of other commands and values that cannot be meant, and quotes what is wrong;
 * but not the words that a command (other than serve) has too many, nor an unknown option that does
 * not look like one: each may be a token.
 *
 * It also refuses an option that is abbreviated. getopt_long takes --dat for --data as long as no
 * other option begins so; a script that relied on that would mean another option, or none, with the
 * next version.
 */
#include "options.h"
#include "admin.h"
#include "api.h"
#include "inspect.h"
#include "listen.h"
#include "text.h"

#include <ctype.h>
#include <getopt.h>
#include <stdlib.h>

#define CONNECTIONS_DEFAULT 16384
#define CONNECTIONS_MAX     1000000
#define MAX_AGE_DAYS_MAX    36500

struct command {
    const char *name; /* of one word or two */
    int (*run)(const struct options *options);
    const char *takes; /* the letters of its options */
    int operands_min, operands_max;
    const char *usage, *help;
};

/* What the help of most commands ends with. */
static const char DATA_HELP[] = "  --data DIR         the data directory (default data)\n";
static const char EXIT_HELP[] = "\nA running server rereads users and rooms when it gets SIGHUP. "
                                "Exit code: 0 done and well, 1\n"
                                "not, for the reason given, 2 bad usage.\n";

static const struct command commands[] = {
    {"serve", NULL, "ldmcanv", 0, 0,
     "[serve] [--listen ADDR]... [--data DIR] [--max-connections N]\n"
     "                        [--cors ORIGIN,...] [--access-log FILE|-] [--no-metrics]",
     "Sets the key ID of an end-to-end encrypted room, once: POST /api/v1/e2e.setRoomKeyID.\n"
     "\n"
     "  --listen ADDR         127.0.0.1:3000, 0.0.0.0:3000, [::]:3000 or unix:PATH; port 0 for "
     "any\n"
     "                        free one; may be given several times (default: the sockets that\n"
     "                        systemd passes, or else 127.0.0.1:3000 and [::1]:3000)\n"
     "  --data DIR            the directory of users, rooms and keys.log (default data)\n"
     "  --max-connections N   more than these are answered 503 (default 16384, at most what the\n"
     "                        descriptor limit leaves)\n"
     "  --cors ORIGIN,...     lets scripts of web pages from there call: http[s]://HOST[:PORT], "
     "or\n"
     "                        * for any (default none)\n"
     "  --access-log FILE     a line for each request, Combined Log Format (-: standard output)\n"
     "  --no-metrics          no GET /metrics\n"
     "  --help, --version     print this, or the version, and exit\n"
     "\n"
     "SIGTERM or SIGINT stops after what is in flight, a second one at once; SIGHUP rereads users\n"
     "and rooms, reopens the access log. Exit code: 0 stopped, 1 no start, failed disk or second\n"
     "signal, 2 bad usage.\n"},
    {"check", inspect_check, "dsu", 0, 0, "check [--data DIR] [--no-log | --salvage NEWFILE]",
     "Says what is wrong with the log, users and rooms, and changes nothing: 1 where a server\n"
     "would not start, or there is no log yet. Says how many members of rooms have no token in\n"
     "users, which is no failure: one may be misspelt. With --salvage, writes every valid record\n"
     "to a new log. Also beside a server.\n"
     "\n"
     "  --no-log           users and rooms alone: the log may be long\n"
     "  --salvage NEWFILE  a log to be made, of every valid record\n"},
    {"export", inspect_export, "d", 0, 0, "export [--data DIR]",
     "Prints the key IDs as JSON lines. Also beside a server.\n\n"},
    {"import", admin_import, "d", 0, 0, "import [--data DIR] <FILE",
     "Sets key IDs from JSON lines of export (setAt becomes the time of import) or of mongoexport\n"
     "--fields _id,e2eKeyId. Not beside a server. A room that has another key ID keeps that: each\n"
     "such room is named at the end, by its line, and the exit code is 1. A line that is wrong "
     "ends\n"
     "the import; what is before it is on disk, and does no harm a second time.\n\n"},
    {"users import", admin_users_import, "dg", 0, 0,
     "users import [--data DIR] [--max-age DAYS] <FILE",
     "Replaces users by the login tokens in mongoexport's JSON lines of users. Users who are not\n"
     "active are passed over. Tokens do not expire here; in Rocket.Chat they do, after 90 days\n"
     "unless it is told otherwise.\n"
     "\n"
     "  --max-age DAYS     passes over tokens whose `when` is older, or cannot be read; not those "
     "of\n"
     "                     type personalAccessToken, which have none\n"},
    {"rooms import", admin_rooms_import, "d", 0, 0, "rooms import [--data DIR] <FILE",
     "Replaces rooms by those in mongoexport's JSON lines of rocketchat_room and\n"
     "rocketchat_subscription, together and in any order. Types but c, p and d are passed "
     "over.\n\n"},
    {"user add", admin_user_add, "d", 1, 1, "user add [--data DIR] USERID",
     "Makes a token, adds its hash to users, and prints the token, once.\n\n"},
    {"user revoke", admin_user_revoke, "d", 1, 2, "user revoke [--data DIR] USERID [HASH]",
     "Takes all tokens of a user, or the one with this hash, out of users.\n\n"},
    {"hash-token", admin_hash_token, "", 0, 0, "hash-token",
     "Reads a token, alone on its line, and prints its hash as it stands in users.\n"},
    {"health", admin_health, "l", 0, 0, "health [--listen ADDR]",
     "Asks a server's /healthz. ADDR is as for the server (default 127.0.0.1:3000). 3 seconds at\n"
     "most for each of connecting, asking and being answered.\n"
     "\n"
     "  --listen ADDR      where the server listens\n"},
};
#define COMMANDS_END (commands + sizeof commands / sizeof *commands)
#define SERVE        (commands)

/* Whether a command's first word is this one. */
static bool begins_with(const struct command *command, const char *word) {
    size_t n = strlen(word);
    return strncmp(command->name, word, n) == 0 && (command->name[n] == ' ' || !command->name[n]);
}

static const struct command *find_command(const char *word, const char *next) {
    char words[64];
    if (strchr(word, ' ')) return NULL; /* two words, but in one argument */
    snprintf(words, sizeof words, "%s %s", word, next ? next : "");
    for (const struct command *command = commands; command < COMMANDS_END; command++)
        if (strcmp(command->name, word) == 0 || strcmp(command->name, words) == 0) return command;
    return NULL;
}

/* How the commands with this first word are used; with serve's, or if there is none, which others
 * there are. */
static void print_usage(FILE *file, const char *word) {
    bool is_serve = true;
    for (const struct command *command = commands; command < COMMANDS_END; command++)
        if (begins_with(command, word)) is_serve = command == SERVE;
    for (const struct command *command = commands; command < COMMANDS_END; command++)
        if (is_serve ? command == SERVE : begins_with(command, word))
            fprintf(file, "usage: roomkeyd %s\n", command->usage);
        else if (is_serve)
            fprintf(file, "       roomkeyd %s [--help] ...\n", command->name);
}

/* What was asked for has been printed. */
static int finish(void) { return text_finish_output() == 0 ? 0 : 1; }

/* What is wrong has been told. */
static int misused(const char *word) {
    print_usage(stderr, word);
    return 2;
}

static int read_listen(const char *text, struct options *options) {
    const char *fault = listen_fault(text);
    if (fault) return tell("--listen '%s': %s", text, fault);
    if (options->listen_count == OPTIONS_LISTEN_MAX)
        return tell("--listen: given more than %d times", OPTIONS_LISTEN_MAX);
    options->listen[options->listen_count++] = text;
    return 0;
}

static int read_max_connections(const char *text, struct options *options) {
    uint64_t n;
    if (!slice_number(slice_of(text), CONNECTIONS_MAX, &n) || n == 0)
        return tell("--max-connections: not a number from 1 to %d: '%s'", CONNECTIONS_MAX, text);
    options->max_connections = (unsigned)n;
    return 0;
}

static int read_max_age(const char *text, struct options *options) {
    uint64_t n;
    if (!slice_number(slice_of(text), MAX_AGE_DAYS_MAX, &n) || n == 0)
        return tell("--max-age: not a number of days from 1 to %d: '%s'", MAX_AGE_DAYS_MAX, text);
    options->max_age_days = (unsigned)n;
    return 0;
}

static int read_cors(char *text, struct options *options) {
    if (!api_is_origin_list(slice_of(text)))
        return tell("--cors: not http[s]://HOST[:PORT],... or *: '%s'", text);
    for (char *c = text; *c != '\0'; c++) *c = (char)tolower(*c); /* as browsers write origins */
    options->cors = text;
    return 0;
}

/* A path that is empty is a variable of a script that was not set. */
static int read_path(const char *name, const char *value, const char **path) {
    *path = value;
    return value[0] != '\0' ? 0 : tell("%s: the path is empty", name);
}

/* Returns 0, or -1, reported. */
static int read_option(int letter, char *value, struct options *options) {
    switch (letter) {
    case 'l': return read_listen(value, options);
    case 'm': return read_max_connections(value, options);
    case 'c': return read_cors(value, options);
    case 'g': return read_max_age(value, options);
    case 'u': options->has_no_log = true; break;
    case 'd': return read_path("--data", value, &options->dir);
    case 's': return read_path("--salvage", value, &options->salvage);
    case 'a': return read_path("--access-log", value, &options->access_log);
    case 'n': options->has_no_metrics = true; break;
    }
    return 0;
}

static int print_version(void) {
    printf("roomkeyd " ROOMKEYD_VERSION "\n");
    return finish();
}

static int print_help(const struct command *command) {
    print_usage(stdout, command->name);
    printf("\n%s", command->help);
    if (command != SERVE) printf("%s%s", strchr(command->takes, 'd') ? DATA_HELP : "", EXIT_HELP);
    return finish();
}

/* All options of all commands; by LONG a letter cannot be mistaken for a short option, of which there
 * are none. */
#define LONG(letter) (256 + (letter))
static const struct option known[] = {
    {"listen", required_argument, NULL, LONG('l')},
    {"data", required_argument, NULL, LONG('d')},
    {"max-connections", required_argument, NULL, LONG('m')},
    {"cors", required_argument, NULL, LONG('c')},
    {"access-log", required_argument, NULL, LONG('a')},
    {"no-metrics", no_argument, NULL, LONG('n')},
    {"salvage", required_argument, NULL, LONG('s')},
    {"no-log", no_argument, NULL, LONG('u')},
    {"max-age", required_argument, NULL, LONG('g')},
    {"help", no_argument, NULL, LONG('h')},
    {"version", no_argument, NULL, LONG('v')},
    {0},
};

static const struct option *find_option(int value) {
    for (const struct option *option = known; option->name; option++)
        if (option->val == value) return option;
    return NULL;
}

/* Tells of a word that is no option. It is repeated only if it looks like one: short, of lower-case
 * letters, after two dashes, or a single letter. Anything else may be a token, which may begin with
 * a dash, too. Returns -1. */
static int tell_unknown(const char *word) {
    size_t size = strcspn(word, "=");
    bool is_harmless = size < 24 && (size == 2 || strncmp(word, "--", 2) == 0) &&
                       strspn(word, "-abcdefghijklmnopqrstuvwxyz") == size;
    char text[24] = "";
    if (!is_harmless) return tell("unknown option, not repeated here: it may be a token");
    memcpy(text, word, size);
    return tell("unknown option: '%s' (options are not abbreviated)", text);
}

/* Judges what getopt_long has just found before argv[optind]. Returns the option, or NULL,
 * reported. */
static const struct option *judge_option(const struct command *command, int result, char **argv) {
    const struct option *option = find_option(result == '?' || result == ':' ? optopt : result);
    const char short_one[] = {'-', (char)optopt, '\0'}, *name = option ? option->name : "";
    bool is_apart = optarg == argv[optind - 1]; /* the value is a word of its own */
    const char *word = argv[optind - 1 - is_apart];
    if (!option && optopt > 0) {
        tell_unknown(short_one);
    } else if (!option || strncmp(word + 2, name, strlen(name)) != 0) {
        tell_unknown(word);
    } else if (result == '?') {
        tell("--%s takes no value", name);
    } else if (result == ':') {
        tell("--%s needs a value", name);
    } else if (is_apart && strncmp(optarg, "--", 2) == 0) { /* the value was forgotten */
        tell("--%s needs a value; one that begins with -- is written --%s=VALUE", name, name);
    } else if (option->val != LONG('h') && !strchr(command->takes, option->val - LONG(0))) {
        tell("--%s is not an option of %s", name, command->name);
    } else {
        return option;
    }
    return NULL;
}

/* Judges the words that are left, and finishes *options. Returns as options_read does. */
static int take_operands(const struct command *command, int count, char **operands,
                         struct options *options) {
    /* The name of serve may be after its options, too. */
    bool is_serve = command == SERVE && count > 0 && strcmp(operands[0], SERVE->name) == 0;
    count -= is_serve;
    operands += is_serve;
    if (count < command->operands_min || count > command->operands_max) {
        if (command == SERVE)
            tell("not a command, or not the first word: '%s'", operands[0]);
        else
            tell("too few words, or too many");
        return misused(command->name);
    }
    if (options->has_no_log && options->salvage) {
        tell("--salvage reads the log, which --no-log leaves out");
        return misused(command->name);
    }
    options->run = command->run;
    options->operands = operands;
    return OPTIONS_RUN;
}

/* Reads what follows a command; argv[0] is its last word. Returns as options_read does. */
static int read_arguments(const struct command *command, int argc, char **argv,
                          struct options *options) {
    int result;
    opterr = 0;
    unsetenv("POSIXLY_CORRECT"); /* options may follow operands, whatever the environment says */
    while ((result = getopt_long(argc, argv, ":", known, NULL)) != -1) {
        const struct option *option = judge_option(command, result, argv);
        if (!option) return misused(command->name);
        if (option->val == LONG('h')) return print_help(command);
        if (option->val == LONG('v')) return print_version();
        if (read_option(option->val - LONG(0), optarg, options) < 0) return misused(command->name);
    }
    return take_operands(command, argc - optind, argv + optind, options);
}

int options_read(int argc, char **argv, struct options *options) {
    bool is_named = argc > 1 && argv[1][0] != '-';
    const struct command *command = is_named ? find_command(argv[1], argv[2]) : SERVE;
    *options = (struct options){.dir = "data", .cors = "", .max_connections = CONNECTIONS_DEFAULT};
    if (command) {
        int words = !is_named ? 0 : strchr(command->name, ' ') ? 2 : 1;
        return read_arguments(command, argc - words, argv + words, options);
    }
    if (argv[2] && strcmp(argv[2], "--help") == 0) { /* of `user`, say, which alone is none */
        print_usage(stdout, argv[1]);
        return finish();
    }
    tell("not a command: '%s'", argv[1]);
    return misused(argv[1]);
}
