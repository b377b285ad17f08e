/*
 * format.c: what a text is that was to be JSON lines, or a token, and is neither.
 *
 *     {            a line that was refused, and     "an object over several lines, ...:
 *       "_id": 1   where it stops being JSON    ->   export without --pretty, or use jq -c ."
 *     }
 *
 * "Unexpected end" is true of such a line and helps nobody. The formats here are those that people
 * have when they want to import: other options of mongoexport, other tools, and what a shell makes of
 * a file. They are told apart by their first bytes, or by what stands where the JSON ends. A guess
 * can be wrong, so it is only added to what is known.
 *
 * Nothing here knows what a line should have said. No sentence quotes a line, which may hold the hash
 * of a token.
 */
#include "format.h"

/* What an operator can do about a format. Each is the end of a message: "line 1: WHY: HINT". */
static const char utf16[] = "this is UTF-16, as > of PowerShell writes it: let mongoexport write "
                            "the file (-o FILE), or convert it (iconv -f UTF-16 -t UTF-8)";
static const char packed[] = "this is compressed: unpack it first (gzip -dc, zstd -dc, unzip -p)";
static const char bson[] =
    "this is BSON, as mongodump writes it: use mongoexport, or bsondump FILE.bson";
static const char own_log[] =
    "this is a log of roomkeyd's: roomkeyd export --data DIR prints what can be imported";
static const char markup[] = "this is HTML or XML, perhaps the error page of a server: look at the "
                             "file, and fetch it again";
static const char array[] = "this is an array, as --jsonArray and Compass write it: export without "
                            "that, or take the array apart (jq -c '.[]')";
static const char pretty[] =
    "this is an object over several lines, as --pretty, Compass and mongo-express write it: export "
    "without that, or put each object on one line (jq -c .)";
static const char cut[] = "the input ends inside an object: its end is missing";
static const char shell[] =
    "this is what the mongo shell prints, which is no JSON: use mongoexport";
static const char news[] = "this is a message of mongoexport's: keep its standard error out of the "
                           "file, or use --quiet";
static const char table[] = "this is CSV or TSV: export as JSON (mongoexport without --type)";

const char format_hint_object_id[] = "the ID is an ObjectId ({\"$oid\":...}), but all IDs of "
                                     "Rocket.Chat are strings: this is another "
                                     "collection, or a copy that lost the types of its IDs";

bool format_begins(struct slice text, struct slice string) {
    return text.n >= string.n && memcmp(text.p, string.p, string.n) == 0;
}

bool format_is_utf16(struct slice text) {
    if (format_begins(text, SLICE("\xFF\xFE")) || format_begins(text, SLICE("\xFE\xFF")))
        return true;
    if (text.n < 4) return false;
    bool is_zero[4];
    for (size_t i = 0; i < 4; i++) is_zero[i] = text.p[i] == '\0';
    return is_zero[0] != is_zero[1] && is_zero[0] == is_zero[2] && is_zero[1] == is_zero[3];
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$';
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static size_t skip_blank(struct slice line, size_t at) {
    while (at < line.n && memchr(" \t\r\n", line.p[at], 4)) at++;
    return at;
}

/* Whether the text begins with a BSON document whose first member is _id: its size (4 bytes), the
 * type of the member (2 is a string, 7 an ObjectId), and the name. Some bytes are missing where one
 * of the size is a newline, at which the reader of lines has cut. */
static bool is_bson(struct slice text) {
    static const char members[][sizeof "\2_id"] = {"\2_id", "\7_id"};
    struct slice head = {text.p, text.n < 16 ? text.n : 16};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (memmem(head.p, head.n, members[i], sizeof *members)) return true;
    return format_begins(text, SLICE("\x6D\xE2\x99\x81")); /* mongodump --archive */
}

static bool is_packed(struct slice text) {
    static const struct slice magics[] = {
        {"\x1F\x8B", 2},         /* gzip */
        {"\x28\xB5\x2F\xFD", 4}, /* Zstandard */
        {"PK\3\4", 4},           /* zip */
        {"\xFD\x37zXZ", 5},      /* xz */
        {"BZh", 3},              /* bzip2 */
    };
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if (format_begins(text, magics[i])) return true;
    return false;
}

/* Whether what stands where the JSON ends is what JavaScript has and JSON has not: ObjectId("..."),
 * new Date(...), a name without quotes, a string in single quotes. */
static bool is_shell_notation(struct slice line, size_t at) {
    if (at < line.n && line.p[at] == '\'') return true;
    while (at > 0 && is_letter(line.p[at - 1])) at--; /* `new` stops being `null` inside */
    size_t end = at;
    while (end < line.n && (is_letter(line.p[end]) || is_digit(line.p[end]))) end++;
    struct slice word = {line.p + at, end - at};
    end = skip_blank(line, end);
    return word.n > 0 && end < line.n &&
           (line.p[end] == '(' || line.p[end] == ':' || slice_equal(word, SLICE("new")));
}

/* Whether a line begins with a time and a tab, as each message of MongoDB's tools does:
 *
 *     2024-11-23T12:00:00.000+0000    connected to: mongodb://localhost/ */
static bool is_news(struct slice line) {
    static const char form[] = "dddd-dd-ddTdd:dd:dd";
    for (size_t i = 0; i < sizeof form - 1; i++)
        if (i >= line.n || (form[i] == 'd' ? !is_digit(line.p[i]) : line.p[i] != form[i]))
            return false;
    return memchr(line.p, '\t', line.n) != NULL;
}

/* Whether a line looks like the first one of a table: names, with commas, semicolons or tabs between
 * them. */
static bool is_table_head(struct slice line) {
    bool has_separator = false;
    for (size_t i = 0; i < line.n; i++) {
        char c = line.p[i];
        bool is_separator = c == ',' || c == ';' || c == '\t';
        if (!is_separator && !is_letter(c) && !is_digit(c) && !memchr(". \"'-\r\n", c, 7))
            return false;
        has_separator |= is_separator;
    }
    return has_separator;
}

/* What a line is whose first character that is not blank is a brace, and which is no JSON. */
static const char *hint_of_object(struct slice line, size_t at) {
    if (at < line.n) return is_shell_notation(line, at) ? shell : NULL;
    return line.p[line.n - 1] == '\n' ? pretty : cut;
}

const char *format_hint(struct slice line, size_t at) {
    size_t first = skip_blank(line, 0);
    if (format_is_utf16(line)) return utf16;
    if (is_packed(line)) return packed;
    if (is_bson(line)) return bson;
    if (format_begins(line, SLICE("roomkeyd keys.log"))) return own_log;
    if (format_begins(line, SLICE("/*"))) return pretty; /* Robo 3T numbers its objects */
    if (first < line.n && line.p[first] == '<') return markup;
    if (first < line.n && line.p[first] == '[') return array;
    if (first < line.n && line.p[first] == '{') return hint_of_object(line, at);
    if (is_news(line)) return news;
    return is_table_head(line) ? table : NULL;
}
