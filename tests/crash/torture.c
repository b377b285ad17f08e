/*
 * torture.c: every state in which a crash may leave the log, opened again.
 *
 * A life of the store is recorded: each call by which it changes files, and between them what it
 * was asked (store_set) and what it told (a ticket that settled, a record found when it opened).
 * Then the power fails before each of those calls, and once after the last:
 *
 *     life     open  ask a  write  sync  tell a  ask b  write | sync  tell b  close
 *                                                             ^ here: a has been told, b only asked
 *     disk     [ synced ........ | sector | sector | sec ]      what was not synced, by sectors of
 *                                  new      old      garbage    512 bytes: each as at any time,
 *                                                  ^ size       or zeroed, or garbage; any size
 *
 * What may be on the disk is the model's business (struct file). A synced byte stays as it is, also
 * when the sector it stands in is written again, and when it is itself rewritten with the same
 * value ("powersafe overwrite"). What a failed sync was to write may be missing for good, and no
 * later sync brings it back unless it is written again. Names (creations, renames) may each be lost
 * or kept until the directory is synced. What a cut removed may reappear where the log grows again.
 *
 * The store then opens such a state. It must not refuse, all that was told must be there, nothing
 * may be there that was not asked for, no room twice, and sets must work. That is a life too: it is
 * recorded, and the power fails in the middle of it, three deep. And instead of the power, the
 * process may be killed: then the files are as the system has them in memory, but the disk may
 * still be behind, and the power fails only after the next start.
 *
 *     SECONDS=60 SEED=1 torture      LIFE=N: only that life
 *
 * Built with -Wl,--wrap= for the calls below. Works in a directory of its own under TMPDIR or
 * /dev/shm.
 */
#include "log.h"
#include "store.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECTOR_BYTES      512u
#define FILE_BYTES        (24u * SECTOR_BYTES)
#define NAMES             24
#define PENDING           8    /* directory changes between two syncs of it */
#define OPS               2000 /* of a life */
#define DATA_BYTES        (256u << 10)
#define ROOMS             20
#define DEPTH             4 /* lives: the workload's, and those of recoveries from recoveries */
#define EXHAUSTIVE_STATES 20000u /* at one moment; above that, samples */
#define SEEN_SLOTS        (1u << 23)
#define COMMIT_TIMEOUT_MS 60000

/* ------------------------------------------------------------------------ the model of a disk */

/* The content of one sector at some time. */
struct image {
    struct image *next;
    unsigned sector;
    char bytes[SECTOR_BYTES];
};

struct file {
    size_t size;            /* as the system shows it */
    size_t low, high;       /* the sizes it has had since the last sync, that one's included */
    char bytes[FILE_BYTES]; /* what was last written at each place; never forgotten by a cut */
    bool known[FILE_BYTES]; /* this byte is on disk, whatever of the rest is lost */
    bool dirty[FILE_BYTES]; /* the next sync will write this byte */
    struct image *images;   /* the past of those sectors of which not all is known */
};

struct naming {
    int from, to; /* -1: a creation, a removal */
    struct file *file;
};

struct disk {
    char names[NAMES][48];
    unsigned name_count;
    struct file *shown[NAMES];   /* the directory as the system shows it */
    struct file *durable[NAMES]; /* as it was synced last */
    struct naming pending[PENDING];
    unsigned pending_count;
    struct file *files[NAMES]; /* all, for freeing and copying */
    unsigned file_count;
};

/* What the world has asked for and been told. The n-th key asked for a room is a function of
 * both. */
struct hopes {
    uint8_t asked[ROOMS]; /* attempts */
    uint8_t told[ROOMS];  /* the attempt that is known to have set it, or 0 */
    uint64_t
        cut[ROOMS]; /* attempts that failed and were cut off: not there unless the power fails */
};

enum op_kind { CREATE, RENAME, REMOVE, WRITE, CUT, SYNC, FAILED_SYNC, SYNC_DIR, ASK, TELL, FAIL };

struct op {
    enum op_kind kind;
    unsigned name, other;   /* other: of a RENAME; whether a FAIL was cut off */
    size_t offset, size;    /* of a WRITE; size also of a CUT */
    const char *data;       /* of a WRITE */
    unsigned room, attempt; /* of ASK, TELL, FAIL */
    bool is_found;          /* a TELL of a record that was there when the store was opened */
};

struct life {
    struct disk start;
    struct hopes hopes; /* at its start */
    struct op ops[OPS];
    unsigned op_count;
    char data[DATA_BYTES];
    size_t data_size;
    unsigned point; /* where it was ended: before this op */
};

static struct {
    uint64_t seed, random, life_number;
    int64_t end_ms;
    char dir[256];
    int dir_fd;             /* the program's own */
    FILE *out, *complaints; /* the program's own, since the store's go nowhere */
    int epoll_fd;

    struct life lives[DEPTH];
    unsigned depth;

    /* The life that is being recorded. */
    pthread_mutex_t lock;
    struct life *life;
    struct disk now;
    struct hopes hopes;
    ssize_t space; /* bytes until the disk is full; -1: never */
    bool fail_sync, fail_cut, has_cut;

    uint64_t *seen;
    uint64_t states_whole, states_sampled, states_recovering, kills, seen_count;
} torture;

/* ------------------------------------------------------------------------ chance, time, trouble */

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t x = torture.random += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static unsigned draw_below(size_t limit) { return (unsigned)(draw() % limit); }

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

__attribute__((noreturn)) static void give_up(const char *what) {
    fprintf(torture.complaints, "torture: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void print_op(const struct life *life, const struct op *op) {
    static const char *const kinds[] = {"create", "rename", "remove",      "write",
                                        "cut",    "sync",   "failed sync", "sync the directory",
                                        "ask",    "tell",   "fail"};
    FILE *out = torture.complaints;
    fprintf(out, "    %s", kinds[op->kind]);
    if (op->kind >= ASK) {
        fprintf(out, " room %u attempt %u%s\n", op->room, op->attempt,
                op->is_found ? " (found)" : "");
        return;
    }
    if (op->kind != SYNC_DIR) fprintf(out, " %s", life->start.names[op->name]);
    if (op->kind == WRITE) fprintf(out, " %zu bytes at %zu", op->size, op->offset);
    if (op->kind == CUT) fprintf(out, " to %zu", op->size);
    fprintf(out, "\n");
}

/* Tells how the world came to this, leaves the directory as it is, and exits. */
__attribute__((noreturn, format(printf, 1, 2))) static void violation(const char *format, ...) {
    va_list args;
    FILE *out = torture.complaints;
    fprintf(out, "VIOLATION: ");
    va_start(args, format);
    vfprintf(out, format, args);
    va_end(args);
    fprintf(out, "\nSEED=%" PRIu64 " LIFE=%" PRIu64 ", the files are in %s\n", torture.seed,
            torture.life_number, torture.dir);
    for (unsigned depth = 0; depth <= torture.depth && depth < DEPTH; depth++) {
        const struct life *life = &torture.lives[depth];
        unsigned end = depth < torture.depth ? life->point : life->op_count;
        fprintf(out, "  life %u%s\n", depth, depth < torture.depth ? ", ended after" : ", so far");
        for (unsigned i = 0; i < end; i++) print_op(life, &life->ops[i]);
    }
    fprintf(torture.out, "crash states: violations 1, SEED=%" PRIu64 "\n", torture.seed);
    fflush(NULL);
    exit(1);
}

/* ----------------------------------------------------------------- what a call does to the disk */

static struct file *new_file(struct disk *disk) {
    struct file *file = calloc(1, sizeof *file);
    if (!file || disk->file_count == NAMES) give_up("a file more");
    return disk->files[disk->file_count++] = file;
}

static void free_disk(struct disk *disk) {
    for (unsigned i = 0; i < disk->file_count; i++) {
        for (struct image *image = disk->files[i]->images, *next; image; image = next) {
            next = image->next;
            free(image);
        }
        free(disk->files[i]);
    }
    memset(disk, 0, sizeof *disk);
}

static struct file *copied(const struct disk *from, const struct disk *to,
                           const struct file *file) {
    for (unsigned i = 0; file && i < from->file_count; i++)
        if (from->files[i] == file) return to->files[i];
    return NULL;
}

static void copy_disk(struct disk *to, const struct disk *from) {
    memset(to, 0, sizeof *to);
    memcpy(to->names, from->names, sizeof to->names);
    to->name_count = from->name_count;
    for (unsigned i = 0; i < from->file_count; i++) {
        struct file *file = new_file(to);
        *file = *from->files[i];
        struct image **end = &file->images;
        for (const struct image *image = from->files[i]->images; image; image = image->next) {
            struct image *copy = malloc(sizeof *copy);
            if (!copy) give_up("an image");
            *copy = *image;
            copy->next = NULL;
            *end = copy;
            end = &copy->next;
        }
        *end = NULL;
    }
    for (unsigned i = 0; i < NAMES; i++) {
        to->shown[i] = copied(from, to, from->shown[i]);
        to->durable[i] = copied(from, to, from->durable[i]);
    }
    to->pending_count = from->pending_count;
    for (unsigned i = 0; i < from->pending_count; i++) {
        to->pending[i] = from->pending[i];
        to->pending[i].file = copied(from, to, from->pending[i].file);
    }
}

static unsigned name_index(struct disk *disk, const char *name) {
    for (unsigned i = 0; i < disk->name_count; i++)
        if (strcmp(disk->names[i], name) == 0) return i;
    if (disk->name_count == NAMES) give_up("a name more");
    snprintf(disk->names[disk->name_count], sizeof disk->names[0], "%s", name);
    return disk->name_count++;
}

/* Keeps what stands in a sector, unless it is there already. */
static void remember(struct file *file, unsigned sector) {
    const char *bytes = file->bytes + sector * SECTOR_BYTES;
    struct image **end = &file->images;
    for (; *end; end = &(*end)->next)
        if ((*end)->sector == sector && memcmp((*end)->bytes, bytes, SECTOR_BYTES) == 0) return;
    struct image *image = malloc(sizeof *image);
    if (!image) give_up("an image");
    *image = (struct image){.sector = sector};
    memcpy(image->bytes, bytes, SECTOR_BYTES);
    *end = image;
}

static void remember_range(struct file *file, size_t from, size_t to) {
    for (size_t sector = from / SECTOR_BYTES; sector * SECTOR_BYTES < to; sector++)
        remember(file, (unsigned)sector);
}

static void resize(struct file *file, size_t size) {
    file->size = size;
    if (size < file->low) file->low = size;
    if (size > file->high) file->high = size;
}

static void apply_write(struct file *file, const struct op *op) {
    size_t end = op->offset + op->size;
    if (end > FILE_BYTES || op->offset > file->size) give_up("a write beyond the model's files");
    bool changes = false;
    for (size_t i = op->offset; i < end; i++)
        changes = changes || !file->known[i] || file->bytes[i] != op->data[i - op->offset];
    if (changes) remember_range(file, op->offset, end);
    for (size_t i = op->offset; i < end; i++) {
        file->known[i] = file->known[i] && file->bytes[i] == op->data[i - op->offset];
        file->dirty[i] = true;
        file->bytes[i] = op->data[i - op->offset];
    }
    if (changes) remember_range(file, op->offset, end);
    if (end > file->size) resize(file, end);
}

static void apply_cut(struct file *file, size_t size) {
    remember_range(file, size, file->high);
    for (size_t i = size; i < FILE_BYTES; i++) file->known[i] = file->dirty[i] = false;
    resize(file, size);
}

static void apply_sync(struct file *file, bool ok) {
    for (size_t i = 0; i < file->size; i++) {
        file->known[i] = file->known[i] || (ok && file->dirty[i]);
        file->dirty[i] = false;
    }
    if (ok) file->low = file->high = file->size;
}

static void apply_naming(struct file *directory[NAMES], struct naming naming) {
    if (naming.from >= 0) directory[naming.from] = NULL;
    if (naming.to >= 0) directory[naming.to] = naming.file;
}

static void name_file(struct disk *disk, struct naming naming) {
    if (disk->pending_count == PENDING) give_up("a directory change more");
    disk->pending[disk->pending_count++] = naming;
    apply_naming(disk->shown, naming);
}

static void apply_to_disk(struct disk *disk, const struct op *op) {
    int name = (int)op->name;
    struct file *file = disk->shown[op->name];
    switch (op->kind) {
    case CREATE: name_file(disk, (struct naming){-1, name, new_file(disk)}); break;
    case RENAME: name_file(disk, (struct naming){name, (int)op->other, file}); break;
    case REMOVE: name_file(disk, (struct naming){name, -1, NULL}); break;
    case WRITE: apply_write(file, op); break;
    case CUT: apply_cut(file, op->size); break;
    case SYNC: apply_sync(file, true); break;
    case FAILED_SYNC: apply_sync(file, false); break;
    case SYNC_DIR:
        memcpy(disk->durable, disk->shown, sizeof disk->durable);
        disk->pending_count = 0;
        break;
    case ASK:
    case TELL:
    case FAIL: break;
    }
}

static void apply_to_hopes(struct hopes *hopes, const struct op *op) {
    if (op->kind == ASK) hopes->asked[op->room] = (uint8_t)op->attempt;
    if (op->kind == TELL) hopes->told[op->room] = (uint8_t)op->attempt;
    if (op->kind == FAIL && op->other) hopes->cut[op->room] |= (uint64_t)1 << op->attempt;
}

/* Whether all that can be read is on disk. */
static bool is_all_durable(const struct disk *disk) {
    if (disk->pending_count > 0) return false;
    for (unsigned i = 0; i < disk->name_count; i++) {
        const struct file *file = disk->shown[i];
        if (!file || strcmp(disk->names[i], LOG_NAME) != 0) continue;
        if (file->low != file->high || memchr(file->known, false, file->size)) return false;
    }
    return true;
}

/* ------------------------------------------------------------------------ recording */

/* Adds an op to the life and does it to the model. */
static void record(struct op op) {
    struct life *life = torture.life;
    assert(op.name < NAMES);
    if (!life) return;
    pthread_mutex_lock(&torture.lock);
    if (life->op_count == OPS || life->data_size + op.size > DATA_BYTES) give_up("a longer life");
    if (op.kind == WRITE) {
        op.data = memcpy(life->data + life->data_size, op.data, op.size);
        life->data_size += op.size;
    }
    life->ops[life->op_count++] = op;
    apply_to_disk(&torture.now, &op);
    apply_to_hopes(&torture.hopes, &op);
    memcpy(life->start.names, torture.now.names, sizeof life->start.names);
    life->start.name_count = torture.now.name_count;
    pthread_mutex_unlock(&torture.lock);
}

#define DIRECTORY NAMES /* in the place of a name */

static bool is_same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* What a descriptor is: DIRECTORY, or the name that its file has there now. The file decides, not
 * the number: a call that is given another descriptor does nothing for the file that was meant. */
static unsigned name_of_fd(int fd) {
    struct stat file, other;
    if (fstat(fd, &file) == 0 && fstat(torture.dir_fd, &other) == 0) {
        if (is_same_file(&file, &other)) return DIRECTORY;
        for (unsigned i = 0; i < torture.now.name_count; i++)
            if (fstatat(torture.dir_fd, torture.now.names[i], &other, AT_SYMLINK_NOFOLLOW) == 0 &&
                is_same_file(&file, &other))
                return i;
    }
    violation("a call is given descriptor %d, which is nothing in the directory", fd);
}

ssize_t __real_pwrite64(int fd, const void *bytes, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t size, off_t offset);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __real_openat64(int dir, const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, ...);
int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __real_unlinkat(int dir, const char *path, int flags);
int __wrap_unlinkat(int dir, const char *path, int flags);

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t size, off_t offset) {
    if (torture.space == 0) {
        errno = ENOSPC;
        return -1;
    }
    if (torture.space > 0 && size >= (size_t)torture.space) size = (size_t)torture.space;
    ssize_t n = __real_pwrite64(fd, bytes, size, offset);
    if (n != (ssize_t)size) give_up("pwrite");
    if (torture.space > 0) torture.space -= n;
    record((struct op){.kind = WRITE,
                       .name = name_of_fd(fd),
                       .offset = (size_t)offset,
                       .size = size,
                       .data = bytes});
    return n;
}

/* Of the directory it changes nothing: it brings data to disk, and names are no data of a file. */
int __wrap_fdatasync(int fd) {
    unsigned name = name_of_fd(fd);
    enum op_kind kind = torture.fail_sync ? FAILED_SYNC : SYNC;
    torture.fail_sync = false;
    if (name != DIRECTORY) record((struct op){.kind = kind, .name = name});
    errno = EIO;
    return kind == SYNC ? 0 : -1;
}

int __wrap_fsync(int fd) {
    unsigned name = name_of_fd(fd);
    record(name == DIRECTORY ? (struct op){.kind = SYNC_DIR}
                             : (struct op){.kind = SYNC, .name = name});
    return 0;
}

int __wrap_ftruncate64(int fd, off_t size) {
    if (torture.fail_cut) {
        torture.fail_cut = false;
        errno = EIO;
        return -1;
    }
    if (__real_ftruncate64(fd, size) < 0) give_up("ftruncate");
    torture.has_cut = true;
    record((struct op){.kind = CUT, .name = name_of_fd(fd), .size = (size_t)size});
    return 0;
}

int __wrap_openat64(int dir, const char *path, int flags, ...) {
    int fd = __real_openat64(dir, path, flags, 0600);
    /* To list the directory changes nothing. */
    if (fd < 0 || strncmp(path, LOG_NAME, sizeof LOG_NAME - 1) != 0) return fd;
    unsigned name = name_index(&torture.now, path);
    if (!torture.now.shown[name]) record((struct op){.kind = CREATE, .name = name});
    return fd;
}

int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to) {
    if (__real_renameat(from_dir, from, to_dir, to) < 0) give_up("renameat");
    unsigned old = name_index(&torture.now, from), new = name_index(&torture.now, to);
    record((struct op){.kind = RENAME, .name = old, .other = new});
    return 0;
}

int __wrap_unlinkat(int dir, const char *path, int flags) {
    if (__real_unlinkat(dir, path, flags) < 0) {
        if (errno != ENOENT) give_up("unlinkat");
        return -1;
    }
    record((struct op){.kind = REMOVE, .name = name_index(&torture.now, path)});
    return 0;
}

/* ---------------------------------------------------------------------- the store and the world */

/* Some IDs are escaped, some long: lines of 60 to 600 bytes, so that they cross sectors
 * anywhere. */
static struct slice room_id(unsigned room, char id[ID_MAX_BYTES]) {
    size_t n = (size_t)snprintf(id, ID_MAX_BYTES, "room\t%u\n", room);
    size_t longer = room % 5 == 4 ? 40 * (room % 6) : 0;
    memset(id + n, 'r', longer);
    return (struct slice){id, n + longer};
}

static struct slice key_id(unsigned room, unsigned attempt, char id[ID_MAX_BYTES]) {
    size_t n = (size_t)snprintf(id, ID_MAX_BYTES, "key %u of %u", attempt, room);
    size_t longer = (room * 7 + attempt * 13) % 9 == 0 ? 200 : (room + attempt) % 4 * 10;
    memset(id + n, 'k', longer);
    return (struct slice){id, n + longer};
}

/* The attempt whose key this is, or 0. */
static unsigned attempt_of(unsigned room, struct slice key) {
    char id[ID_MAX_BYTES];
    for (unsigned attempt = 1; attempt <= torture.hopes.asked[room]; attempt++)
        if (slice_equal(key, key_id(room, attempt, id))) return attempt;
    return 0;
}

struct run {
    struct store *store;
    struct {
        unsigned room, attempt;
    } waiting[ROOMS * 2];
    unsigned waiting_count;
    int64_t clock_ms;
};

static void check_record(unsigned room, struct slice key) {
    struct hopes *hopes = &torture.hopes;
    unsigned attempt = attempt_of(room, key);
    if (attempt == 0) violation("room %u has a key that nobody asked for", room);
    if (hopes->told[room] && hopes->told[room] != attempt)
        violation("room %u: attempt %u, instead of %u", room, attempt, hopes->told[room]);
    if (hopes->cut[room] >> attempt & 1)
        violation("room %u: attempt %u failed and was cut off, but it is there", room, attempt);
}

/* Reads what is in the log without the store's help: whole valid lines, each room once. */
static void check_log(const bool is_set[ROOMS]) {
    static char bytes[FILE_BYTES + 1];
    char path[512], id[ID_MAX_BYTES], escaped[LOG_ESCAPED_MAX_BYTES];
    unsigned records = 0, rooms = 0;
    snprintf(path, sizeof path, "%s/%s", torture.dir, LOG_NAME);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : log_read_at(fd, bytes, FILE_BYTES, 0);
    if (n < 0) give_up(path);
    close(fd);
    bytes[n] = '\0';
    if (strncmp(bytes, LOG_FIRST_LINE, LOG_FIRST_LINE_BYTES) != 0)
        violation("the first line is lost");
    const char *line = bytes + LOG_FIRST_LINE_BYTES, *newline;
    for (; (newline = strchr(line, '\n')); line = newline + 1) {
        struct log_line parsed;
        if (log_parse((struct slice){line, (size_t)(newline - line)}, &parsed) != LOG_VALID)
            violation("a bad line at byte %td of the repaired log", line - bytes);
        records += !parsed.is_seal;
        for (unsigned room = 0; room < ROOMS && !parsed.is_seal; room++) {
            struct slice expected = log_escape(room_id(room, id), escaped);
            if (!slice_equal(parsed.room, expected)) continue;
            rooms++;
            if (!is_set[room]) violation("room %u is in the log, but not in the store", room);
        }
    }
    unsigned expected = 0;
    for (unsigned room = 0; room < ROOMS; room++) expected += is_set[room];
    if (line != bytes + n) violation("the repaired log does not end with a line");
    if (records != rooms || rooms != expected)
        violation("%u records, %u of known rooms, %u rooms", records, rooms, expected);
}

/* All that was told is there, and what is there will have been told. */
static void check_rooms(struct run *run) {
    char id[ID_MAX_BYTES], key[ID_MAX_BYTES];
    bool is_set[ROOMS];
    size_t n;
    for (unsigned room = 0; room < ROOMS; room++) {
        enum store_result result = store_get(run->store, room_id(room, id), key, &n);
        if (result != STORE_OK && result != STORE_NONE) violation("room %u cannot be read", room);
        is_set[room] = result == STORE_OK;
        if (!is_set[room] && torture.hopes.told[room])
            violation("room %u: attempt %u is lost", room, torture.hopes.told[room]);
        if (is_set[room]) check_record(room, (struct slice){key, n});
    }
    check_log(is_set);
    for (unsigned room = 0; room < ROOMS; room++) {
        if (!is_set[room] || torture.hopes.told[room]) continue;
        store_get(run->store, room_id(room, id), key, &n);
        unsigned attempt = attempt_of(room, (struct slice){key, n});
        record((struct op){.kind = TELL, .room = room, .attempt = attempt, .is_found = true});
    }
}

static void run_open(struct run *run) {
    char why[512];
    *run = (struct run){.store = store_open(torture.dir, why, sizeof why), .clock_ms = 1};
    if (!run->store) violation("refused: %s", why);
    if (!is_all_durable(&torture.now)) violation("open, but what it answers from is not on disk");
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epoll_ctl(torture.epoll_fd, EPOLL_CTL_ADD, store_event_fd(run->store), &event) < 0)
        give_up("epoll_ctl");
    check_rooms(run);
}

static void run_set(struct run *run, unsigned room) {
    char id[ID_MAX_BYTES], key[ID_MAX_BYTES];
    uint64_t ticket;
    if (torture.hopes.asked[room] == 60) return;
    unsigned attempt = torture.hopes.asked[room] + 1u;
    bool is_waiting = false;
    for (unsigned i = 0; i < run->waiting_count; i++)
        is_waiting = is_waiting || run->waiting[i].room == room;
    bool is_new = !is_waiting && !torture.hopes.told[room];
    if (is_new) record((struct op){.kind = ASK, .room = room, .attempt = attempt});
    struct store_record what = {SLICE("user"), room_id(room, id), key_id(room, attempt, key)};
    enum store_result result = store_set(run->store, &what, &ticket);
    if (store_has_failed(run->store) && is_new) {
        if (result != STORE_UNAVAILABLE) violation("a failed store takes sets");
        return;
    }
    if (result != (is_new ? STORE_OK : STORE_EXISTS) ||
        (ticket > 0) == (torture.hopes.told[room] > 0))
        violation("a set of room %u gives %d, ticket %" PRIu64, room, (int)result, ticket);
    if (!is_new) return;
    run->waiting[run->waiting_count].room = room;
    run->waiting[run->waiting_count++].attempt = attempt;
}

static void wait_for_committer(void) {
    struct epoll_event event;
    if (epoll_wait(torture.epoll_fd, &event, 1, COMMIT_TIMEOUT_MS) != 1)
        violation("the committer does not answer");
}

/* Commits what waits. Another `meanwhile` sets are taken before the outcome is collected; the
 * committer is done by then, so that a life is the same each time. */
static void run_commit(struct run *run, unsigned meanwhile) {
    struct store_settled settled;
    unsigned handed_over = run->waiting_count;
    if (handed_over == 0) return;
    torture.has_cut = false;
    store_hand_over(run->store);
    wait_for_committer();
    for (unsigned i = 0; i < meanwhile; i++) run_set(run, draw_below(ROOMS));
    if (!store_collect(run->store, &settled)) violation("nothing to collect");
    if (settled.ok && !is_all_durable(&torture.now)) violation("told before it was on disk");
    unsigned done = settled.ok ? handed_over : run->waiting_count;
    for (unsigned i = 0; i < done; i++)
        record((struct op){.kind = settled.ok ? TELL : FAIL,
                           .room = run->waiting[i].room,
                           .attempt = run->waiting[i].attempt,
                           .other = torture.has_cut});
    run->waiting_count -= done;
    memmove(run->waiting, run->waiting + done, run->waiting_count * sizeof *run->waiting);
}

static void run_settle(struct run *run) {
    while (run->waiting_count > 0) run_commit(run, 0);
}

static void run_seal(struct run *run) {
    struct store_settled settled;
    for (int i = 0; i < 3; i++) {
        store_tick(run->store, run->clock_ms += 1000);
        if (store_tick(run->store, run->clock_ms) == -1) return;
        if (i == 0) continue;
        wait_for_committer();
        store_collect(run->store, &settled);
    }
}

static void run_close(struct run *run) {
    bool had_failed = store_has_failed(run->store);
    run_settle(run);
    if ((store_close(run->store) == 0) == had_failed) violation("store_close forgets how it went");
}

/* ------------------------------------------------------------------------ lives */

static void begin_recording(struct life *life, const struct hopes *hopes) {
    life->op_count = 0;
    life->data_size = 0;
    life->hopes = *hopes;
    torture.hopes = *hopes;
    free_disk(&torture.now);
    copy_disk(&torture.now, &life->start);
    torture.life = life;
    torture.space = -1;
    torture.fail_sync = torture.fail_cut = false;
}

static void end_recording(void) { torture.life = NULL; }

static void empty_dir(void) {
    struct dirent *entry;
    DIR *dir = opendir(torture.dir);
    if (!dir) give_up(torture.dir);
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.') __real_unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}

/* Makes the directory what a disk shows. */
static void write_files(const struct disk *disk) {
    char path[512];
    empty_dir();
    for (unsigned i = 0; i < disk->name_count; i++) {
        if (!disk->shown[i]) continue;
        snprintf(path, sizeof path, "%s/%s", torture.dir, disk->names[i]);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        size_t size = disk->shown[i]->size;
        if (fd < 0 || __real_pwrite64(fd, disk->shown[i]->bytes, size, 0) != (ssize_t)size)
            give_up(path);
        close(fd);
    }
}

/* Steps of a workload, for the script and for chance. */
static void with_full_disk(struct run *run, ssize_t space, unsigned meanwhile) {
    torture.space = space;
    run_commit(run, meanwhile);
    torture.space = -1;
}

static void reopen(struct run *run) {
    run_close(run);
    run_open(run);
}

static void scripted_life(struct run *run) {
    run_open(run);
    run_set(run, 0);
    run_commit(run, 0);
    run_set(run, 1);
    run_set(run, 2);
    run_commit(run, 0);
    run_seal(run);
    run_set(run, 3);
    run_commit(run, 0);
    run_set(run, 5);
    run_set(run, 6);
    with_full_disk(run, 90, 0); /* the first of them whole, cut back */
    run_set(run, 5);
    run_set(run, 7);
    run_commit(run, 0);
    run_seal(run);
    run_set(run, 8);
    with_full_disk(run, 0, 0); /* nothing of it: the seal is the last line again */
    run_seal(run);
    run_set(run, 8);
    run_commit(run, 0);
    reopen(run);
    run_set(run, 9);
    run_commit(run, 0);
    run_seal(run);
    run_set(run, 10);
    torture.fail_sync = true;
    run_commit(run, 0);
    run_set(run, 10); /* refused: the seal may not be on disk, and no sync will tell */
    run_commit(run, 0);
    reopen(run);
    run_set(run, 10);
    run_set(run, 11);
    torture.fail_cut = true;
    with_full_disk(run, 70, 0);
    torture.fail_cut = false;
    reopen(run);
    run_set(run, 12);
    run_set(run, 13);
    with_full_disk(run, 90, 0);
    run_set(run, 16); /* a line as long as 12's first one: that one and the next fit together */
    run_set(run, 12);
    run_commit(run, 0);
    run_close(run);
}

static void random_step(struct run *run) {
    unsigned sets = 1 + draw_below(6), what = draw_below(16);
    if (draw_below(3) == 0) {
        run_settle(run);
        run_seal(run);
    }
    for (unsigned i = 0; i < sets; i++) run_set(run, draw_below(ROOMS));
    if (what < 6) run_commit(run, draw_below(3));
    if (what >= 6 && what < 10)
        with_full_disk(run, (ssize_t)draw_below(900) * (what % 2), draw_below(2));
    if (what == 10 || what == 11) {
        torture.fail_sync = what == 10;
        torture.fail_cut = what == 11;
        with_full_disk(run, what == 11 ? (ssize_t)draw_below(300) : -1, 0);
        torture.fail_sync = torture.fail_cut = false;
    }
    if (what >= 14 || (store_has_failed(run->store) && draw_below(2) == 0)) reopen(run);
}

static bool has_space_left(void) {
    const struct disk *disk = &torture.now;
    for (unsigned i = 0; i < disk->name_count; i++)
        if (disk->shown[i] && disk->shown[i]->high > FILE_BYTES / 2) return false;
    return true;
}

static void random_life(struct run *run) {
    unsigned steps = 1 + draw_below(14);
    run_open(run);
    while (steps-- > 0 && has_space_left()) random_step(run);
    run_close(run);
}

/* ------------------------------------------------------------------- states that a crash leaves */

static bool is_uncertain(const struct file *file, unsigned sector) {
    return memchr(file->known + sector * SECTOR_BYTES, false, SECTOR_BYTES) != NULL;
}

/* The bytes of an uncertain sector that are not known to be on disk, from the first to the last one
 * that was ever written. */
static size_t first_unknown(const struct file *file, unsigned sector) {
    const bool *known = file->known + sector * SECTOR_BYTES;
    return (size_t)((const bool *)memchr(known, false, SECTOR_BYTES) - known);
}

static size_t end_of_unknown(const struct file *file, unsigned sector) {
    size_t first = first_unknown(file, sector), start = sector * SECTOR_BYTES;
    size_t end = file->high > start + SECTOR_BYTES ? SECTOR_BYTES : file->high - start;
    while (end > first + 1 && file->known[start + end - 1]) end--;
    return end > first ? end : first + 1;
}

static unsigned count_images(const struct file *file, unsigned sector) {
    unsigned n = 0;
    for (const struct image *image = file->images; image; image = image->next)
        n += image->sector == sector;
    return n;
}

#define ZEROED    0
#define GARBAGE   1
#define OLDEST    2 /* and the later images after it */
#define BEFORE_IT 1000
#define NEWEST    1001

/* Writes one of the things a sector may hold; which of them is a choice from 0 to OLDEST +
 * images. */
static void write_sector(const struct file *file, unsigned sector, unsigned choice, char *to) {
    const size_t start = sector * SECTOR_BYTES;
    if (choice == GARBAGE)
        for (size_t i = 0; i < SECTOR_BYTES; i++) to[i] = (char)draw();
    if (choice == ZEROED) memset(to, 0, SECTOR_BYTES);
    unsigned index = OLDEST;
    for (const struct image *image = file->images; image; image = image->next)
        if (image->sector == sector && index++ == choice) memcpy(to, image->bytes, SECTOR_BYTES);
    for (size_t i = 0; i < SECTOR_BYTES; i++)
        if (file->known[start + i]) to[i] = file->bytes[start + i];
}

/* The beginning of one choice and, from `cut` on, the end of another. */
static void write_torn_sector(const struct file *file, unsigned sector, const unsigned choices[2],
                              size_t cut, char *to) {
    char other[SECTOR_BYTES];
    write_sector(file, sector, choices[0], to);
    write_sector(file, sector, choices[1], other);
    memcpy(to + cut, other + cut, SECTOR_BYTES - cut);
}

static unsigned draw_choice(const struct file *file, unsigned sector) {
    unsigned images = count_images(file, sector);
    return images > 0 && draw_below(4) > 0 ? OLDEST + draw_below(images)
                                           : draw_below(OLDEST + images);
}

/* Whole sectors mostly, as disks write them; but no byte that was not synced is promised. */
static void write_random_sector(const struct file *file, unsigned sector, char *to) {
    unsigned choices[2] = {draw_choice(file, sector), draw_choice(file, sector)};
    if (draw_below(3) > 0) choices[1] = choices[0];
    size_t first = first_unknown(file, sector), n = end_of_unknown(file, sector) - first;
    write_torn_sector(file, sector, choices, first + draw_below(n), to);
}

static size_t random_size(const struct file *file) {
    switch (draw_below(4)) {
    case 0: return file->low;
    case 1: return file->low + draw_below(file->high - file->low + 1);
    default: return file->high;
    }
}

/* The file of a state's disk that a file of the model has become: durable to its end. */
static struct file *settled_file(struct disk *state, const struct file *file) {
    struct file *settled = new_file(state);
    memcpy(settled->bytes, file->bytes, FILE_BYTES);
    return settled;
}

static void settle_size(struct file *settled, size_t size) {
    settled->size = settled->low = settled->high = size;
    memset(settled->known, true, size);
    memset(settled->bytes + size, 0, FILE_BYTES - size);
}

static void fill_at_random(struct file *settled, const struct file *file) {
    for (unsigned sector = 0; sector * SECTOR_BYTES < file->high; sector++)
        if (is_uncertain(file, sector))
            write_random_sector(file, sector, settled->bytes + sector * SECTOR_BYTES);
    settle_size(settled, random_size(file));
}

/* The directory with some of its pending changes, and all files but the log at random. Returns the
 * model's log, whose state is the caller's to choose, or NULL if there is none; *settled is then
 * its counterpart. */
static const struct file *settle_names(struct disk *state, const struct disk *disk, unsigned mask,
                                       struct file **settled) {
    struct file *directory[NAMES];
    const struct file *log = NULL;
    memset(state, 0, sizeof *state);
    memcpy(state->names, disk->names, sizeof state->names);
    state->name_count = disk->name_count;
    memcpy(directory, disk->durable, sizeof directory);
    for (unsigned i = 0; i < disk->pending_count; i++)
        if (mask >> i & 1) apply_naming(directory, disk->pending[i]);
    for (unsigned i = 0; i < disk->name_count; i++) {
        if (!directory[i]) continue;
        state->shown[i] = state->durable[i] = settled_file(state, directory[i]);
        if (strcmp(disk->names[i], LOG_NAME) != 0) {
            fill_at_random(state->shown[i], directory[i]);
            continue;
        }
        log = directory[i];
        *settled = state->shown[i];
    }
    return log;
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t size) {
    const unsigned char *p = bytes;
    for (size_t i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3;
    return hash ^ hash >> 29;
}

/* Whether this disk with these hopes is met for the first time. */
static bool is_new_state(const struct disk *state, const struct hopes *hopes) {
    uint64_t hash = mix(0xcbf29ce484222325, hopes, sizeof *hopes);
    for (unsigned i = 0; i < state->name_count; i++) {
        const struct file *file = state->shown[i];
        if (!file) continue;
        hash = mix(hash, state->names[i], strlen(state->names[i]) + 1);
        hash = mix(hash, &file->size, sizeof file->size);
        hash = mix(hash, file->bytes, file->size);
    }
    if (hash == 0) hash = 1;
    size_t slot = hash % SEEN_SLOTS;
    for (; torture.seen[slot] != 0; slot = (slot + 1) % SEEN_SLOTS)
        if (torture.seen[slot] == hash) return false;
    if (torture.seen_count++ > SEEN_SLOTS / 2) give_up("too many states for this memory");
    torture.seen[slot] = hash;
    return true;
}

static void explore(unsigned depth, bool is_exhaustive);

/* Opens the store on life `depth + 1`'s start and lives on a little. */
static void live_on(unsigned depth, const struct hopes *hopes, unsigned crashes) {
    struct run run;
    struct life *life = &torture.lives[depth + 1];
    torture.depth = depth + 1;
    write_files(&life->start);
    begin_recording(life, hopes);
    run_open(&run);
    unsigned room = draw_below(ROOMS);
    for (unsigned i = 0; i < 2; i++, room++) run_set(&run, room % ROOMS);
    run_commit(&run, 1);
    run_close(&run);
    end_recording();
    if (depth + 2 < DEPTH)
        while (crashes-- > 0) explore(depth + 1, false);
    torture.depth = depth;
}

/* The power fails, and this is left. Takes the state over. */
static void try_state(unsigned depth, struct disk *state, const struct hopes *hopes) {
    struct hopes after = *hopes;
    memset(after.cut, 0, sizeof after.cut);
    if (is_new_state(state, &after)) {
        free_disk(&torture.lives[depth + 1].start);
        torture.lives[depth + 1].start = *state;
        live_on(depth, &after, draw_below(4) == 0 ? 1 + draw_below(2) : 0);
        torture.states_recovering += depth > 0;
    } else {
        free_disk(state);
    }
}

static void try_sample(unsigned depth, const struct disk *disk, const struct hopes *hopes) {
    struct disk state;
    struct file *settled;
    unsigned mask = (unsigned)draw() & ((1u << disk->pending_count) - 1);
    const struct file *log = settle_names(&state, disk, mask, &settled);
    if (log) fill_at_random(settled, log);
    try_state(depth, &state, hopes);
}

/* The process is killed, perhaps in the middle of a write; the disk may be behind what is shown. */
static void try_kill(unsigned depth, const struct disk *disk, const struct hopes *hopes,
                     const struct op *next) {
    struct life *life = &torture.lives[depth + 1];
    free_disk(&life->start);
    copy_disk(&life->start, disk);
    if (next && next->kind == WRITE && draw_below(2) == 0) {
        struct op part = *next;
        part.size = draw_below(next->size);
        apply_to_disk(&life->start, &part);
    }
    live_on(depth, hopes, 3);
    torture.kills++;
}

/* How many states a log may be in, or EXHAUSTIVE_STATES + 1 for more than that. */
static size_t count_states(const struct file *log) {
    size_t sum = 0;
    for (size_t size = log->low; size <= log->high; size++) {
        size_t product = 1;
        for (unsigned sector = 0; sector * SECTOR_BYTES < size; sector++)
            if (is_uncertain(log, sector)) product *= OLDEST + count_images(log, sector);
        sum += product;
        if (sum > EXHAUSTIVE_STATES || product > EXHAUSTIVE_STATES) return EXHAUSTIVE_STATES + 1;
    }
    return sum;
}

/* The state of a log with a given number, below count_states. */
static void fill_by_number(struct file *settled, const struct file *log, size_t number) {
    size_t size = log->low;
    for (;; size++) {
        size_t product = 1;
        for (unsigned sector = 0; sector * SECTOR_BYTES < size; sector++)
            if (is_uncertain(log, sector)) product *= OLDEST + count_images(log, sector);
        if (number < product) break;
        number -= product;
    }
    for (unsigned sector = 0; sector * SECTOR_BYTES < size; sector++) {
        if (!is_uncertain(log, sector)) continue;
        unsigned choices = OLDEST + count_images(log, sector);
        write_sector(log, sector, (unsigned)(number % choices),
                     settled->bytes + sector * SECTOR_BYTES);
        number /= choices;
    }
    settle_size(settled, size);
}

/* Every state, or false when there are too many. */
static bool try_all(unsigned depth, const struct disk *disk, const struct hopes *hopes) {
    for (unsigned mask = 0; mask < 1u << disk->pending_count; mask++) {
        struct disk state;
        struct file *settled;
        for (size_t number = 0, count = 1; number < count; number++) {
            const struct file *log = settle_names(&state, disk, mask, &settled);
            count = log ? count_states(log) : 1;
            if (count > EXHAUSTIVE_STATES) {
                free_disk(&state);
                return false;
            }
            if (log) fill_by_number(settled, log, number);
            try_state(depth, &state, hopes);
        }
    }
    return true;
}

/* Resolves NEWEST and BEFORE_IT for a sector. */
static unsigned choice_for(const struct file *file, unsigned sector, unsigned choice) {
    unsigned images = count_images(file, sector);
    if (choice == NEWEST && images > 0) return OLDEST + images - 1;
    if (choice == BEFORE_IT && images > 1) return OLDEST + images - 2;
    return choice <= OLDEST && (choice != OLDEST || images > 0) ? choice : ZEROED;
}

static void fill_torn(struct file *settled, const struct file *log, const unsigned halves[2],
                      size_t cut) {
    for (unsigned sector = 0; sector * SECTOR_BYTES < log->high; sector++) {
        if (!is_uncertain(log, sector)) continue;
        size_t start = sector * SECTOR_BYTES;
        size_t inner = cut < start ? 0 : cut > start + SECTOR_BYTES ? SECTOR_BYTES : cut - start;
        unsigned choices[2] = {choice_for(log, sector, halves[0]),
                               choice_for(log, sector, halves[1])};
        write_torn_sector(log, sector, choices, inner, settled->bytes + start);
    }
    settle_size(settled, log->high);
}

/* What is uncertain of the log torn in two at each byte: one half is there, of the other one what
 * stood there before. */
static void try_torn(unsigned depth, const struct disk *disk, const struct hopes *hopes) {
    static const unsigned halves[][2] = {{NEWEST, ZEROED}, {NEWEST, GARBAGE},   {NEWEST, BEFORE_IT},
                                         {ZEROED, NEWEST}, {GARBAGE, NEWEST},   {BEFORE_IT, NEWEST},
                                         {OLDEST, NEWEST}, {BEFORE_IT, GARBAGE}};
    const struct file *log = disk->shown[0];
    for (size_t cut = 0; log && cut < log->high; cut++)
        for (size_t i = 0; !log->known[cut] && i < sizeof halves / sizeof *halves; i++) {
            struct disk state;
            struct file *settled = NULL;
            if (settle_names(&state, disk, (1u << disk->pending_count) - 1, &settled) != log)
                give_up("another log");
            fill_torn(settled, log, halves[i], cut);
            try_state(depth, &state, hopes);
        }
}

/* Ends life `depth` before each of its ops and after the last one (in every way, or by samples), or
 * before one that is drawn. */
static void explore(unsigned depth, bool is_exhaustive) {
    struct life *life = &torture.lives[depth];
    struct disk disk;
    struct hopes hopes = life->hopes;
    unsigned drawn = draw_below(life->op_count + 1u);
    copy_disk(&disk, &life->start);
    for (unsigned i = 0; i <= life->op_count; i++) {
        const struct op *next = i < life->op_count ? &life->ops[i] : NULL;
        life->point = i;
        if (depth == 0 && is_exhaustive && !try_all(depth, &disk, &hopes))
            for (unsigned sample = 0; sample < 2000; sample++) try_sample(depth, &disk, &hopes);
        if (depth == 0 && is_exhaustive) try_torn(depth, &disk, &hopes);
        if (depth == 0 && !is_exhaustive)
            for (unsigned sample = 0; sample < 40; sample++) try_sample(depth, &disk, &hopes);
        if (depth == 0)
            for (unsigned kill = 0; kill < 4; kill++) try_kill(depth, &disk, &hopes, next);
        if (depth > 0 && i == drawn && draw_below(8) == 0) try_kill(depth, &disk, &hopes, next);
        if (depth > 0 && i == drawn) try_sample(depth, &disk, &hopes);
        if (next) apply_to_disk(&disk, next);
        if (next) apply_to_hopes(&hopes, next);
    }
    free_disk(&disk);
}

/* ------------------------------------------------------------------------ the order of a start */

static void begin_life(unsigned number) {
    static const struct hopes none;
    torture.life_number = number;
    torture.random = torture.seed + number * 0x632be59bd9b4e019;
    torture.depth = 0;
    free_disk(&torture.lives[0].start);
    name_index(&torture.lives[0].start, LOG_NAME);
    empty_dir();
    begin_recording(&torture.lives[0], &none);
}

/* The calls of a start, up to its return, as one text. */
static void check_start(const char *expected) {
    static const char letters[] = {'C', 'R', 'X', 'W', 'T', 'S', 'F', 'D', 'a', 't', 'f'};
    char calls[256], why[512];
    unsigned n = 0, from = torture.life->op_count;
    struct store *store = store_open(torture.dir, why, sizeof why);
    if (!store) violation("refused: %s", why);
    for (unsigned i = from; i < torture.life->op_count && n < sizeof calls - 8; i++) {
        const struct op *op = &torture.life->ops[i];
        const char *suffix = strrchr(torture.now.names[op->name], '.');
        calls[n++] = letters[op->kind];
        if (op->kind != SYNC_DIR) calls[n++] = suffix[1];
        calls[n++] = ' ';
    }
    calls[n ? n - 1 : 0] = '\0';
    if (strcmp(calls, expected) != 0)
        violation("a start calls %s\ninstead of     %s", calls, expected);
    store_close(store);
}

/* C create, W write, S sync, T cut, R rename, D sync the directory; l keys.log, n its birth, b the
 * mark that it was born, t its torn tail. In this order: what is cut off is safe before it is cut
 * off; what is kept is written again before it is synced; the directory too; a mark comes after the
 * log that it speaks of; and only then does store_open return. */
static unsigned check_starts(void) {
    struct run run;
    char path[512];
    begin_life(0);
    check_start("Cn Wn Sn Rn D Sl D Cb Wb Sb D");
    check_start("Sl D");
    run_open(&run);
    run_set(&run, 1);
    run_close(&run);
    check_start("Wl Sl D");
    snprintf(path, sizeof path, "%s/%s", torture.dir, LOG_NAME);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    struct file *log = torture.now.shown[0];
    struct op torn = {.kind = WRITE, .name = 0, .offset = log->size, .size = 4, .data = "torn"};
    if (__real_pwrite64(fd, "torn", 4, (off_t)log->size) != 4) give_up(path);
    close(fd);
    record(torn);
    check_start("Ct Wt St D Tl Wl Sl D");
    check_start("Wl Sl D");
    end_recording();
    return 5;
}

/* ------------------------------------------------------------------------ the program */

static uint64_t number_from(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* Standard error is the store's from here on, and goes nowhere. */
static void set_up(void) {
    const char *parent = getenv("TMPDIR");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    torture.seed = number_from("SEED", (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20);
    torture.end_ms = now_ms() + (int64_t)number_from("SECONDS", 60) * 1000;
    torture.out = stdout;
    torture.complaints = fdopen(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10), "w");
    torture.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    torture.seen = calloc(SEEN_SLOTS, sizeof *torture.seen);
    pthread_mutex_init(&torture.lock, NULL);
    snprintf(torture.dir, sizeof torture.dir, "%s/torture.XXXXXX", parent ? parent : "/dev/shm");
    if (!torture.complaints || torture.epoll_fd < 0 || !torture.seen || !mkdtemp(torture.dir) ||
        !freopen("/dev/null", "w", stderr))
        give_up("setting up");
    torture.dir_fd = open(torture.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (torture.dir_fd < 0) give_up(torture.dir);
}

int main(void) {
    struct run run;
    struct log_line line;
    unsigned life = 1, only = (unsigned)number_from("LIFE", 0);
    set_up();
    printf("SEED=%" PRIu64 "\n", torture.seed);
    fflush(stdout);
    if (log_parse(SLICE("e3069283\t123456789"), &line) == LOG_BAD_CHECKSUM)
        violation("the checksum is not CRC-32C");
    unsigned starts = check_starts();

    uint64_t before = torture.seen_count;
    if (only <= 1) {
        begin_life(life);
        scripted_life(&run);
        end_recording();
        explore(0, true);
    }
    torture.states_whole = torture.seen_count - before - torture.states_recovering;
    uint64_t recovering = torture.states_recovering;
    for (life = only > 1 ? only : 2; only != 1 && now_ms() < torture.end_ms; life++) {
        begin_life(life);
        random_life(&run);
        end_recording();
        explore(0, false);
        if (only) break;
    }
    recovering = torture.states_recovering - recovering;
    torture.states_sampled = torture.seen_count - torture.states_whole - torture.states_recovering;
    empty_dir();
    rmdir(torture.dir);

    const char *end = "violations 0, SEED=";
    printf("order of a start: starts %u, %s%" PRIu64 "\n", starts, end, torture.seed);
    printf("crash states, each: states %" PRIu64 ", %s%" PRIu64 "\n", torture.states_whole, end,
           torture.seed);
    printf("crash states, sampled: lives %u, states %" PRIu64 ", %s%" PRIu64 "\n", life - 2,
           torture.states_sampled, end, torture.seed);
    printf("crashes during recovery: states %" PRIu64 ", %s%" PRIu64 "\n",
           torture.states_recovering, end, torture.seed);
    printf("kills, then crashes: kills %" PRIu64 ", %s%" PRIu64 "\n", torture.kills, end,
           torture.seed);
    return 0;
}
