/*
 * test_format.c: what is said of a line that is no JSON object, by what json.c makes of it.
 */
#include "format.h"
#include "json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LINE(literal)                                                                              \
    { literal, sizeof(literal) - 1 }

static const struct {
    struct slice line;
    const char *hint; /* a part of the sentence; NULL: there is none */
} rows[] = {
    /* PowerShell's >, with and without the mark; a first line that is empty; the other byte order. */
    {LINE("\xFF\xFE{\0\"\0_\0i\0d\0\"\0:\0\"\0a\0\"\0}\0\r\0\n"), "UTF-16"},
    {LINE("{\0\"\0_\0i\0d\0\"\0:\0\"\0a\0\"\0}\0\r\0\n"), "UTF-16"},
    {LINE("\xFF\xFE\r\0\n"), "UTF-16"},
    {LINE("\0{\0\"\0_\0i\0d\0\"\0:\0\"\0a\0\"\0}\0\n"), "UTF-16"},
    {LINE("\xFE\xFF\0{\0\"\0_\0i\0d\0\"\0:\0\"\0a\0\"\0}\0\n"), "UTF-16"},
    {LINE("\0\n"), NULL},
    {LINE("a\0\0b\n"), NULL},

    {LINE("\x1F\x8B\x08\0\0\0\0\0\0\x03\xAB\x56\n"), "compressed"},
    {LINE("\x28\xB5\x2F\xFD\x04\x58\n"), "compressed"},
    {LINE("PK\x03\x04\x14\n"), "compressed"},
    {LINE("\xFD\x37zXZ\0\0\n"), "compressed"},
    {LINE("BZh91AY&SY\n"), "compressed"},

    {LINE("\x1C\0\0\0\2_id\0\2\0\0\0a\0\2t\0\2\0\0\0c\0\0"), "BSON"},
    {LINE("\x1C\0\0\0\7_id\0\x5F\x1B\x1A\x2B\x3C\x4D\n"), "BSON"},
    {LINE("\0\0\0\2_id\0\2\0\0\0a\0\n"), "BSON"}, /* its size began with a newline */
    {LINE("\x6D\xE2\x99\x81\x3E\0\0\0\n"), "BSON"},

    {LINE("roomkeyd keys.log 1\n"), "roomkeyd export"},

    {LINE("<!DOCTYPE html>\n"), "HTML"},
    {LINE("  <html><body>\n"), "HTML"},
    {LINE("<?xml version=\"1.0\"?>\n"), "HTML"},

    {LINE("[{\"_id\":\"r\",\"t\":\"c\"},\n"), "array"},
    {LINE("[{\"_id\":\"r\",\"t\":\"c\"}]\n"), "array"},
    {LINE(" [\n"), "array"},
    {LINE("[]"), "array"},

    {LINE("{\n"), "over several lines"},
    {LINE("{\r\n"), "over several lines"},
    {LINE("{ \"_id\" : \"r\",\n"), "over several lines"},
    {LINE("{\"_id\":\"r\",\"u\":{\n"), "over several lines"},
    {LINE("/* 1 */\n"), "over several lines"},
    {LINE("{"), "end is missing"},
    {LINE("{\"_id\":\"r\",\"t\":\"c"), "end is missing"},
    {LINE("{\"_id\":\"r\",\"t\":\"c\n"), NULL}, /* a control character in a string */

    {LINE("{ \"_id\" : ObjectId(\"5f1b1a2b3c4d5e6f7a8b9c0d\"), \"t\" : \"c\" }\n"), "mongo shell"},
    {LINE("{ \"_id\" : \"r\", \"ts\" : ISODate(\"2024-11-23T12:00:00Z\") }\n"), "mongo shell"},
    {LINE("{ \"_id\" : \"r\", \"msgs\" : NumberLong(5) }\n"), "mongo shell"},
    {LINE("{ \"_id\" : \"r\", \"ts\" : new Date(1732354800000) }\n"), "mongo shell"},
    {LINE("{ \"_id\" : \"r\", \"ts\" : Timestamp (1, 2) }\n"), "mongo shell"},
    {LINE("{ _id: 'r', t: 'c' }\n"), "mongo shell"},
    {LINE("{ \"_id\" : 'r' }\n"), "mongo shell"},
    {LINE("{\"_id\":\"r\",\"t\":c}\n"), NULL},
    {LINE("{\"_id\":\"r\",\"t\":nul"), "end is missing"},
    {LINE("{\"_id\":\"r\"},\n"), NULL},
    {LINE("{\"_id\":\"\xE4\"}\n"), NULL}, /* not UTF-8: that is what json.c says */

    {LINE("2024-11-23T12:00:00.000+0000\tconnected to: mongodb://localhost/\n"), "message"},
    {LINE("2024-11-23T12:00:00.000+0000 connected\n"), NULL},
    {LINE("2024-11-23"), NULL},

    {LINE("_id,e2eKeyId\n"), "CSV"},
    {LINE("_id,services.resume.loginTokens.0.hashedToken\r\n"), "CSV"},
    {LINE("\"_id\",\"t\"\n"), "CSV"},
    {LINE("_id;t\n"), "CSV"},
    {LINE("_id\tt\n"), "TSV"},
    {LINE("_id,t"), "CSV"},
    {LINE("_id\n"), NULL},
    {LINE("\"_id\":\"r\",\"t\":\"c\"}\n"), NULL}, /* the end of a line */
    {LINE("nonsense\n"), NULL},
    {LINE("7\n"), NULL},
    {LINE("\n"), NULL},
    {LINE(""), NULL},
};

/* Every beginning of every line, too: none makes it read past its end, where the sanitizer of addresses
 * looks on. */
static void test_hints(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct json json;
        for (size_t n = 0; n <= rows[i].line.n; n++) {
            char *copy = malloc(n + 1); /* one more, as malloc(0) may fail */
            assert_non_null(copy);
            memcpy(copy + 1, rows[i].line.p, n);
            struct slice line = {copy + 1, n};
            enum json_result result = json_read(&json, line);
            const char *hint = format_hint(line, result == JSON_OK ? 0 : json.at);
            if (result == JSON_OK) json_free(&json);
            free(copy);
            if (n < rows[i].line.n) continue;
            print_message("%zu: %s\n", i, hint ? hint : "-");
            assert_int_equal(hint != NULL, rows[i].hint != NULL);
            if (hint) assert_non_null(strstr(hint, rows[i].hint));
        }
    }
    assert_non_null(strstr(format_hint_object_id, "$oid"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hints),
    };
    return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
