/*
 * fuzz_log.c: any bytes at all as keys.log, against the replay in store.c and log.c.
 *
 *     input:  a file, in which three things are filled in before it is written:
 *
 *     roomkeyd keys.log 1
 *     ########  @  S  1732354800000  alice  general  key-1       ########  the line's checksum
 *     ########  =  S  1732354800001  bob    random   key-2       @         the line's own offset
 *     ########  @  -                                             =         BATCH of the line before
 *
 * So nobody has to breed checksums, and a corpus can be read. An input that begins with a tab gets
 * the first line put before it.
 *
 * The oracle is a model of what a replay has to do, written from the rules and not from store.c: it
 * looks for certifying lines at every single offset, and for a room by going through all of them.
 * - The store opens or refuses as the model says, and store_inspect has said so before. Refused,
 *   the directory is as it was.
 * - Opened, the log is the model's valid lines, byte for byte; what was cut off is in
 *   keys.log.torn-N.
 * - Every record in them is answered, a set of its room is refused, and a set of a new room is
 *   taken.
 * - Closed and opened again, nothing is lost and nothing is found to repair.
 */
#include "fuzz.h"
#include "log.h"
#include "store.h"

#include <dirent.h>
#include <inttypes.h>

#define MAX_RECORDS 256
#define NEW_ROOM    "a room that no input names"

/* ---- Filling in ------------------------------------------------------------------------------ */

/* Bit by bit, as the polynomial says (RFC 3720, appendix B.4). */
static uint32_t crc32c(struct slice bytes) {
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < bytes.n; i++) {
        crc ^= (unsigned char)bytes.p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78 : 0);
    }
    return ~crc;
}

/* Copies a line, with the newline that it may have, and fills in its BATCH. */
static void add_line(struct fuzz_text *log, struct slice line, uint64_t *batch) {
    size_t start = log->n;
    struct slice rest = line, checksum = fuzz_cut(&rest, SLICE("\t"));
    char digits[20];
    if (rest.n == 0 || (rest.p[0] != '@' && rest.p[0] != '=')) {
        fuzz_add(log, line);
        return;
    }
    if (rest.p[0] == '@') *batch = start;
    int n = snprintf(digits, sizeof digits, "\t%" PRIx64, *batch);
    fuzz_add(log, checksum);
    fuzz_add(log, (struct slice){digits, (size_t)n});
    fuzz_add(log, (struct slice){rest.p + 1, rest.n - 1});
}

/* From the end, so that a line inside another one is right before the outer one is summed up. */
static void fill_in_checksums(struct fuzz_text *log) {
    for (size_t i = log->n; i-- > 0;) {
        char hex[9];
        if (log->n - i < 9 || memcmp(log->p + i, "########\t", 9) != 0) continue;
        struct slice rest = {log->p + i + 9, log->n - i - 9};
        snprintf(hex, sizeof hex, "%08" PRIx32, crc32c(fuzz_cut(&rest, SLICE("\n"))));
        memcpy(log->p + i, hex, 8);
    }
}

static struct fuzz_text fill_in(struct slice input) {
    struct fuzz_text log = {0};
    uint64_t batch = LOG_FIRST_LINE_BYTES;
    if (input.n > 0 && input.p[0] == '\t') {
        fuzz_add(&log, SLICE(LOG_FIRST_LINE));
        input = (struct slice){input.p + 1, input.n - 1};
    }
    while (input.n > 0) {
        const char *newline = memchr(input.p, '\n', input.n);
        size_t n = newline != NULL ? (size_t)(newline - input.p) + 1 : input.n;
        add_line(&log, (struct slice){input.p, n}, &batch);
        input = (struct slice){input.p + n, input.n - n};
    }
    fill_in_checksums(&log);
    return log;
}

/* ---- The model ------------------------------------------------------------------------------- */

struct id {
    size_t n;
    char bytes[ID_MAX_BYTES];
};

struct model {
    struct slice log;
    bool opens;
    size_t end;        /* where the valid lines end, if it opens */
    bool is_looked_at; /* it may be damaged, but it is a log */
    size_t records;
    struct record {
        struct id room, key;
    } record[MAX_RECORDS];
};

static struct slice id_slice(const struct id *id) { return (struct slice){id->bytes, id->n}; }

/* The line at an offset, without its newline, if there is a whole one. */
static bool whole_line(struct slice log, size_t at, struct slice *text) {
    size_t left = log.n - at, n = left < LOG_LINE_MAX_BYTES ? left : LOG_LINE_MAX_BYTES;
    const char *newline = n > 0 ? memchr(log.p + at, '\n', n) : NULL;
    *text = (struct slice){log.p + at, newline != NULL ? (size_t)(newline - log.p) - at : 0};
    return newline != NULL;
}

/* Whether a text's first field is the checksum of what follows the tab (RFC 3720: none is 0). */
static bool sums_up(struct slice text) {
    char hex[9];
    if (text.n < 8 || strspn(text.p, "0123456789abcdef") < 8) return false;
    if (text.n > 8 && text.p[8] != '\t') return false;
    struct slice rest = text.n > 8 ? (struct slice){text.p + 9, text.n - 9} : SLICE("");
    snprintf(hex, sizeof hex, "%08" PRIx32, crc32c(rest));
    return memcmp(text.p, hex, 8) == 0;
}

/* log_parse, which also has to be the exact inverse of log_format and to know a checksum. */
static enum log_fault parse(struct slice text, struct log_line *line) {
    char again[LOG_LINE_MAX_BYTES];
    enum log_fault fault = log_parse(text, line);
    REQUIRE((fault == LOG_BAD_CHECKSUM) == !sums_up(text));
    if (fault == LOG_VALID) {
        REQUIRE(log_format(line, again) == text.n + 1 && memcmp(text.p, again, text.n) == 0);
        REQUIRE(again[text.n] == '\n');
    }
    return fault;
}

static const struct record *find(const struct model *model, struct slice room) {
    for (size_t i = 0; i < model->records; i++)
        if (slice_equal(id_slice(&model->record[i].room), room)) return &model->record[i];
    return NULL;
}

/* Admits the line at model->end. Returns whether it is valid there. */
static bool admit(struct model *model, uint64_t *batch) {
    struct slice text;
    struct log_line line;
    if (!whole_line(model->log, model->end, &text) || parse(text, &line) != LOG_VALID) return false;
    if (line.batch != model->end && (line.batch != *batch || line.is_seal)) return false;
    if (!line.is_seal) {
        struct record *record = &model->record[model->records];
        REQUIRE(model->records < MAX_RECORDS - 1);
        record->room.n = log_unescape(line.room, record->room.bytes).n;
        record->key.n = log_unescape(line.key, record->key.bytes).n;
        if (find(model, id_slice(&record->room)) != NULL) return false;
        model->records++;
    }
    *batch = line.batch;
    model->end += text.n + 1;
    return true;
}

/* Whether something from the bad line on shows that the bad line was on disk once: a line with a
 * later BATCH, or one of a newer roomkeyd. What stands inside a valid line is a record's, though it
 * may look like a line; so may what stands inside a bad one, where only a BATCH of this log's size
 * is believed. */
static bool is_certified(const struct model *model) {
    for (size_t at = model->end; at < model->log.n; at++) {
        struct slice text;
        struct log_line line;
        if (!whole_line(model->log, at, &text)) continue;
        enum log_fault fault = parse(text, &line);
        bool is_inside = at > model->end && model->log.p[at - 1] != '\n';
        bool is_believed = !is_inside || (fault == LOG_VALID && line.batch / 2 <= at);
        if (is_believed && (fault == LOG_NEWER || (fault == LOG_VALID && line.batch > model->end)))
            return true;
        if (fault == LOG_VALID) at += text.n;
    }
    return false;
}

/* What a crash can leave behind the last valid line is a part of the batch that was being written,
 * whose BATCH is that line's or the bad line's offset, and of failed ones before it, whose BATCH is
 * where a line begins now. A whole line at the start of a line is somebody's work if it is a first
 * line, if it is valid but for a CR, if it is a seal of another place, or if it goes on with what is
 * neither its own batch nor that of the line before. */
static bool is_nobodys_crash(const struct model *model, uint64_t batch) {
    uint64_t foreign = 0, foreign_end = 0;
    for (size_t at = model->end; at < model->log.n; at++) {
        struct slice text, other;
        struct log_line line, named;
        bool is_start = at == model->end || model->log.p[at - 1] == '\n';
        if (!is_start || !whole_line(model->log, at, &text)) continue;
        struct slice plain = text;
        if (plain.n > 0 && plain.p[plain.n - 1] == '\r') plain.n--;
        if (slice_equal(plain, SLICE("roomkeyd keys.log 1")) ||
            slice_equal(plain, SLICE("\xEF\xBB\xBFroomkeyd keys.log 1")))
            return true;
        if (plain.n < text.n && parse(plain, &line) == LOG_VALID) return true;
        if (parse(text, &line) != LOG_VALID || line.batch == batch || line.batch >= model->end)
            continue;
        if (line.is_seal || !whole_line(model->log, line.batch, &other) ||
            parse(other, &named) != LOG_VALID)
            return true;
        if (foreign_end == at && foreign != line.batch) return true;
        foreign = line.batch;
        foreign_end = at + text.n + 1;
    }
    return false;
}

static void replay(struct model *model) {
    struct slice log = model->log, first = SLICE(LOG_FIRST_LINE);
    uint64_t batch = 0;
    model->opens = false;
    model->is_looked_at = log.n > 0;
    if (log.n < first.n || memcmp(log.p, first.p, first.n) != 0) return;
    model->end = first.n;
    while (model->end < log.n && admit(model, &batch)) {
    }
    model->opens = model->end == log.n || (!is_certified(model) && !is_nobodys_crash(model, batch));
}

/* ---- The directory --------------------------------------------------------------------------- */

static struct fuzz_text read_file(const char *dir, const char *name) {
    char path[FUZZ_PATH_BYTES + 64], block[4096];
    struct fuzz_text text = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL);
    for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;)
        fuzz_add(&text, (struct slice){block, n});
    fclose(file);
    return text;
}

static void check_file(const char *dir, const char *name, struct slice expected) {
    struct fuzz_text text = read_file(dir, name);
    REQUIRE(slice_equal((struct slice){text.p, text.n}, expected));
    free(text.p);
}

/* Calls the directory's files by name: counts them, and removes them if wanted. */
static unsigned list_files(const char *dir, bool remove_them) {
    char path[FUZZ_PATH_BYTES + 300];
    unsigned count = 0;
    DIR *stream = opendir(dir);
    REQUIRE(stream != NULL);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        count++;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (remove_them) unlink(path);
    }
    closedir(stream);
    return count;
}

/* ---- The store against the model ------------------------------------------------------------- */

static void check_records(struct store *store, const struct model *model) {
    for (size_t i = 0; i < model->records; i++) {
        const struct record *record = &model->record[i];
        char key[ID_MAX_BYTES];
        size_t size = 0;
        uint64_t ticket = 1;
        struct store_record again = {SLICE("-"), id_slice(&record->room), SLICE("another")};
        REQUIRE(store_get(store, id_slice(&record->room), key, &size) == STORE_OK);
        REQUIRE(slice_equal(id_slice(&record->key), (struct slice){key, size}));
        REQUIRE(store_set(store, &again, &ticket) == STORE_EXISTS && ticket == 0);
    }
}

static struct store *open_store(const char *dir) {
    char why[256];
    return store_open(dir, why, sizeof why);
}

/* After the first opening: only whole lines are left, and the rest is in a file of its own. */
static void check_repair(const char *dir, const struct model *model) {
    struct slice rest = {model->log.p + model->end, model->log.n - model->end};
    char torn[64];
    check_file(dir, LOG_NAME, (struct slice){model->log.p, model->end});
    REQUIRE(list_files(dir, false) == (rest.n > 0 ? 3 : 2)); /* with its mark */
    snprintf(torn, sizeof torn, LOG_NAME ".torn-%zu", model->end);
    if (rest.n > 0) check_file(dir, torn, rest);
}

/* Sets a room of the fuzzer's own and adds it to the model. */
static void set_new_room(struct store *store, struct model *model) {
    struct store_record new_record = {SLICE("-"), SLICE(NEW_ROOM), SLICE("\tkey\\\n")};
    struct record *record = &model->record[model->records];
    uint64_t ticket = 0;
    if (find(model, new_record.room) != NULL) return;
    REQUIRE(store_set(store, &new_record, &ticket) == STORE_OK && ticket > 0);
    record->room.n = new_record.room.n;
    memcpy(record->room.bytes, new_record.room.p, new_record.room.n);
    record->key.n = new_record.key.n;
    memcpy(record->key.bytes, new_record.key.p, new_record.key.n);
    model->records++;
}

static void check_opened(struct store *store, const char *dir, struct model *model) {
    unsigned files = list_files(dir, false);
    check_repair(dir, model);
    check_records(store, model);
    set_new_room(store, model);
    REQUIRE(store_close(store) == 0);

    struct fuzz_text closed = read_file(dir, LOG_NAME);
    REQUIRE(closed.n >= model->end);
    REQUIRE(slice_equal((struct slice){closed.p, model->end},
                        (struct slice){model->log.p, model->end}));
    store = open_store(dir);
    REQUIRE(store != NULL);
    check_records(store, model);
    REQUIRE(store_close(store) == 0);
    check_file(dir, LOG_NAME, (struct slice){closed.p, closed.n});
    REQUIRE(list_files(dir, false) == files);
    free(closed.p);
}

/* What check and export go by: whether the log is damaged and where, and how many records are
 * whole. */
static void check_inspection(const char *dir, const struct model *model) {
    char why[256];
    struct store_inspection inspection = {.visit = NULL};
    int result = store_inspect(dir, &inspection, why, sizeof why);
    REQUIRE(result == (model->is_looked_at ? 0 : -1));
    if (result < 0) return;
    REQUIRE(inspection.is_damaged == !model->opens);
    REQUIRE(inspection.fault_offset == model->end);
    REQUIRE(inspection.records == model->records);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_text log = fill_in((struct slice){(const char *)data, size});
    struct model *model = calloc(1, sizeof *model);
    char dir[FUZZ_PATH_BYTES];
    REQUIRE(model != NULL);
    model->log = (struct slice){log.n > 0 ? log.p : "", log.n};
    replay(model);
    fuzz_make_dir(dir);
    fuzz_write_file(dir, LOG_NAME, model->log);

    /* What the store tells people about a torn tail is not for here. */
    FILE *standard_error = stderr;
    stderr = fopen("/dev/null", "w");
    check_inspection(dir, model);
    struct store *store = open_store(dir);
    REQUIRE((store != NULL) == model->opens);
    if (store != NULL) {
        check_opened(store, dir, model);
    } else {
        check_file(dir, LOG_NAME, model->log);
        REQUIRE(list_files(dir, false) == 1);
    }
    fclose(stderr);
    stderr = standard_error;

    list_files(dir, true);
    rmdir(dir);
    free(log.p);
    free(model);
    return 0;
}
