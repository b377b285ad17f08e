/*
 * test_json.c: json.c by itself: walking into nested values. What is JSON and what is not,
 * escapes and surrogates, are tested through api.c (test_api.c, fuzz_json.c).
 */
#include "json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h> /* wants setjmp.h and stdarg.h before it */

static bool malloc_fails;

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) { return malloc_fails ? NULL : __real_malloc(size); }

/* Reads a text that has to be JSON. */
static void read_text(struct json *json, const char *text) {
    if (json_read(json, slice_of(text)) != JSON_OK)
        fail_msg("%s at byte %zu: %s", json->why, json->at, text);
    assert_null(json->why);
}

static const jsmntok_t *member(const struct json *json, const jsmntok_t *object, const char *name) {
    return json_member(json, object, slice_of(name));
}

static void check_string(struct json *json, const jsmntok_t *value, const char *expected) {
    char buffer[64];
    assert_int_equal(json_type(json, value), JSON_STRING);
    struct slice text = json_string(json, value, buffer, sizeof buffer);
    if (!slice_equal(text, slice_of(expected)))
        fail_msg("got %.*s, expected %s", (int)text.n, text.p, expected);
}

/* ---- Shapes that imports meet ---------------------------------------------------------------- */

static void test_user(void **state) {
    static const char *const hashes[] = {"5fHuh80Tjn+LYcZ1/a=", "x", "/"};
    struct json json;
    const jsmntok_t *token = NULL;
    (void)state;
    read_text(&json, "{\"_id\":\"x\",\"services\":{\"password\":{\"bcrypt\":\"b\"},\"resume\":"
                     "{\"loginTokens\":[{\"when\":{\"$date\":\"2024-01-19T00:00:00Z\"},"
                     "\"hashedToken\":\"5fHuh80Tjn+LYcZ1\\/a=\"},{\"hashedToken\":\"x\"},"
                     "{\"hashedToken\":\"y\",\"hashedToken\":\"\\/\"}]}},\"hashedToken\":\"no\"}");
    check_string(&json, member(&json, json.root, "_id"), "x");
    const jsmntok_t *resume = member(&json, member(&json, json.root, "services"), "resume");
    const jsmntok_t *tokens = member(&json, resume, "loginTokens");
    assert_int_equal(json_type(&json, tokens), JSON_ARRAY);
    for (size_t i = 0; i < 3; i++) {
        token = json_next(&json, tokens, token);
        assert_int_equal(json_type(&json, token), JSON_OBJECT);
        check_string(&json, member(&json, token, "hashedToken"), hashes[i]);
    }
    assert_null(json_next(&json, tokens, token));
    json_free(&json);
}

static void test_subscription_and_room(void **state) {
    struct json json;
    (void)state;
    read_text(&json, "{\"rid\":\"r\",\"u\":{\"_id\":\"y\",\"username\":\"name\"},\"_id\":\"z\"}");
    check_string(&json, member(&json, member(&json, json.root, "u"), "_id"), "y");
    check_string(&json, member(&json, json.root, "_id"), "z");
    json_free(&json);
    read_text(&json, "{\"_id\":\"x\",\"t\":\"c\",\"e2eKeyId\":null}");
    assert_int_equal(json_type(&json, member(&json, json.root, "e2eKeyId")), JSON_NULL);
    assert_null(member(&json, json.root, "usernames"));
    json_free(&json);
}

/* ---- Values ---------------------------------------------------------------------------------- */

static void test_types(void **state) {
    static const enum json_type types[] = {JSON_NULL,   JSON_BOOLEAN, JSON_BOOLEAN, JSON_NUMBER,
                                           JSON_NUMBER, JSON_STRING,  JSON_STRING,  JSON_ARRAY,
                                           JSON_OBJECT, JSON_ARRAY};
    struct json json;
    const jsmntok_t *value = NULL;
    (void)state;
    read_text(&json, "{\"a\":[null, true, false, -1, 0e1, \"\", \"{\", [], {}, [[{\"b\":1}], 2]]}");
    const jsmntok_t *array = member(&json, json.root, "a");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        value = json_next(&json, array, value);
        assert_int_equal(json_type(&json, value), types[i]);
    }
    assert_null(json_next(&json, array, value));
    assert_int_equal(json_type(&json, NULL), JSON_UNDEFINED);
    assert_null(json_next(&json, array + 8, NULL)); /* of an empty array */
    json_free(&json);
}

/* A string is none, also where it looks like one. */

/* Nothing is found where there is nothing to look in. */
static void test_members_of_no_object(void **state) {
    static const char *const texts[] = {"[]", "[{\"a\":1}]", "\"a\"", "1", "true", "null", " 0 "};
    struct json json;
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        read_text(&json, texts[i]);
        assert_null(json.root);
        assert_null(member(&json, json.root, "a"));
        json_free(&json);
    }
    read_text(&json, "{\"a\":\"b\",\"c\":[\"d\",{\"e\":1}],\"f\":1,\"d\":{}}");
    assert_null(member(&json, member(&json, json.root, "a"), "b"));
    assert_null(member(&json, member(&json, json.root, "c"), "d"));
    assert_null(member(&json, member(&json, json.root, "c"), "e"));
    assert_null(member(&json, member(&json, json.root, "f"), "a"));
    assert_null(member(&json, member(&json, json.root, "d"), "a"));
    assert_null(member(&json, member(&json, json.root, "e"), "a"));
    json_free(&json);
}

static void test_names(void **state) {
    static const char *const names[] = {"b", "a", "c", "a"};
    struct json json;
    const jsmntok_t *name = NULL;
    (void)state;
    read_text(&json, "{\"b\":{\"a\":0,\"x\":[0]},\"a\":1,\"c\":[\"a\"],\"\\u0061\":\"last\"}");
    for (size_t i = 0; i < 4; i++) {
        name = json_next(&json, json.root, name);
        check_string(&json, name, names[i]);
    }
    assert_null(json_next(&json, json.root, name));
    check_string(&json, member(&json, json.root, "a"), "last");
    json_free(&json);
}

static void test_written(void **state) {
    static const char *const values[] = {"null", "true",  "-0",      "1e3",   "1.50E+07",
                                         "\"\"", "\"a\"", "\"\\n\"", "[ 1 ]", "{\"b\" :2}"};
    struct json json;
    char text[64];
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        bool is_string = values[i][0] == '"'; /* whose quotes are not part of it */
        snprintf(text, sizeof text, "{ \"a\" :\t%s\n}", values[i]);
        read_text(&json, text);
        struct slice written = json_written(&json, member(&json, json.root, "a"));
        struct slice expected = {values[i] + is_string, strlen(values[i]) - 2 * is_string};
        assert_true(slice_equal(written, expected));
        assert_int_equal(json_written(&json, member(&json, json.root, "b")).n, 0);
        json_free(&json);
    }
}

/* ---- Strings --------------------------------------------------------------------------------- */

static void test_strings(void **state) {
    struct json json;
    char buffer[4];
    (void)state;
    read_text(&json, "{\"plain\":\"abcdefgh\",\"escaped\":\"\\u0061bcdefgh\",\"none\":1}");
    const jsmntok_t *plain = member(&json, json.root, "plain");
    assert_int_equal(json_string(&json, plain, buffer, sizeof buffer).n, 8);
    struct slice cut =
        json_string(&json, member(&json, json.root, "escaped"), buffer, sizeof buffer);
    assert_true(slice_equal(cut, SLICE("abcd")));
    assert_int_equal(json_string(&json, member(&json, json.root, "none"), buffer, 4).n, 0);
    assert_int_equal(json_string(&json, NULL, buffer, 4).n, 0);
    assert_null(json.why);
    json_free(&json);
}

static void test_first_lone_surrogate(void **state) {
    struct json json;
    char buffer[16];
    (void)state;
    read_text(&json, "{\"a\":\"\\ud800\",\"b\":\"x\\udfff\"}");
    json_string(&json, member(&json, json.root, "b"), buffer, sizeof buffer);
    assert_string_equal(json.why, "lone surrogate");
    assert_int_equal(json.at, 20);
    json_string(&json, member(&json, json.root, "a"), buffer, sizeof buffer);
    assert_int_equal(json.at, 6);
    json_string(&json, member(&json, json.root, "b"), buffer, sizeof buffer);
    assert_int_equal(json.at, 6);
    json_free(&json);
}

static void check_quoted(struct slice text, const char *expected) {
    char out[JSON_QUOTED_BYTES(16)];
    size_t n = json_quote(text, out);
    if (!slice_equal((struct slice){out, n}, slice_of(expected)))
        fail_msg("got %.*s, expected %s", (int)n, out, expected);
}

static void test_quote(void **state) {
    char c, text[JSON_QUOTED_BYTES(1)], buffer[4];
    struct json json;
    (void)state;
    check_quoted(SLICE(""), "\"\"");
    check_quoted(SLICE("a\"\\/b"), "\"a\\\"\\\\/b\"");
    check_quoted(SLICE("\b\t\n\f\r"), "\"\\b\\t\\n\\f\\r\"");
    check_quoted(SLICE("\0\x01\x1F\x7F\xC3\xBF"), "\"\\u0000\\u0001\\u001f\x7F\xC3\xBF\"");
    for (c = 0; c < 0x7F; c++) { /* what is written is read back */
        char object[sizeof "{\"\":}" + sizeof text];
        size_t n = json_quote((struct slice){&c, 1}, text);
        assert_true(n <= sizeof text);
        snprintf(object, sizeof object, "{\"\":%.*s}", (int)n, text);
        read_text(&json, object);
        struct slice back = json_string(&json, member(&json, json.root, ""), buffer, sizeof buffer);
        assert_true(slice_equal(back, (struct slice){&c, 1}));
        json_free(&json);
    }
}

/* Every character that UTF-8 can write, and between two others: only printable ASCII is written, it
 * fits, and it is read back as what it was. */
static void test_quote_ascii(void **state) {
    char text[8], quoted[JSON_QUOTED_BYTES(6)], object[sizeof quoted + 8], buffer[8];
    struct json json;
    (void)state;
    for (unsigned c = 0; c <= 0x10FFFF; c++) {
        struct slice between = {text, 0};
        text[between.n++] = 'a';
        if (c < 0x80) {
            text[between.n++] = (char)c;
        } else {
            unsigned bytes = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
            text[between.n++] = (char)((0xF00u >> bytes & 0xFF) | c >> 6 * (bytes - 1));
            for (unsigned i = bytes - 1; i > 0; i--)
                text[between.n++] = (char)(0x80 | (c >> 6 * (i - 1) & 0x3F));
        }
        if (slice_utf8((struct slice){text + 1, between.n - 1}) == 0) continue; /* a surrogate */
        text[between.n++] = 'z';
        size_t n = json_quote_ascii(between, quoted);
        assert_true(n <= JSON_QUOTED_BYTES(between.n));
        for (size_t i = 0; i < n; i++) assert_in_range(quoted[i], ' ', '~');
        snprintf(object, sizeof object, "{\"\":%.*s}", (int)n, quoted);
        read_text(&json, object);
        struct slice back = json_string(&json, member(&json, json.root, ""), buffer, sizeof buffer);
        assert_true(slice_equal(back, between));
        json_free(&json);
    }
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static void test_memory(void **state) {
    char text[1024], *end = text;
    struct json json;
    (void)state;
    end += sprintf(end, "{\"\":[0");
    for (unsigned tokens = 4; tokens <= JSON_FEW_TOKENS + 1; tokens++) {
        strcpy(end, "]}");
        malloc_fails = true;
        enum json_result result = json_read(&json, slice_of(text));
        malloc_fails = false;
        assert_int_equal(result, tokens <= JSON_FEW_TOKENS ? JSON_OK : JSON_NO_MEMORY);
        if (result == JSON_OK) json_free(&json);
        end += sprintf(end, ",0");
    }
    strcpy(end, "]}");
    read_text(&json, text);
    assert_int_equal(json_type(&json, member(&json, json.root, "")), JSON_ARRAY);
    json_free(&json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_user),    cmocka_unit_test(test_subscription_and_room),
        cmocka_unit_test(test_types),   cmocka_unit_test(test_members_of_no_object),
        cmocka_unit_test(test_names),   cmocka_unit_test(test_written),
        cmocka_unit_test(test_strings), cmocka_unit_test(test_first_lone_surrogate),
        cmocka_unit_test(test_quote),   cmocka_unit_test(test_quote_ascii),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
