/*
 * test_sha256.c: SHA-256 against NIST's examples and against a second implementation.
 *
 * The prefixes below were computed with Python's hashlib (OpenSSL's SHA-256):
 *     hashlib.sha256(bytes((n + 7 * i) & 255 for i in range(n))).hexdigest()[:8]
 *
 * Everything is asked twice: of the server's own sha256, which on this processor may use its SHA
 * extensions, and of the portable one, built here under another name.
 */
#include "sha256.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PORTABLE
#define sha256 sha256_portable
#include "sha256.c"
#undef sha256

typedef void hash(const void *data, size_t n, unsigned char digest[SHA256_BYTES]);
static hash *const implementations[] = {sha256, sha256_portable};

static const uint32_t PREFIXES[] = {
    /* of the messages of 0, 1, ... 200 bytes: each place in a block, one block more or less */
    0xe3b0c442, 0x4bf5122f, 0x4b2871da, 0x6ab0dba1, 0xcc91969e, 0x548f1ba2, 0xd9bebe62, 0xea329d80,
    0xf8d2f3f0, 0xebf38f05, 0xebed051b, 0xee18d80d, 0x274224d6, 0xc4b39344, 0xf7844170, 0xd31c84cc,
    0x91fa54b4, 0xcf197c74, 0x82b26c63, 0x676dcbee, 0xf35ba446, 0x3256422b, 0xb570f8ff, 0x480bb272,
    0x6aa20097, 0x46f22d0c, 0x56493089, 0x9e27fdce, 0x6a05fba9, 0xb3c98cf7, 0x546f9cdd, 0x6c56c9f0,
    0x70b25e78, 0x91b1f04c, 0xa77a82dd, 0x0def435a, 0x76f26884, 0x604830b3, 0xe9484af3, 0xf2ce036a,
    0x12700850, 0xd52c9271, 0x89e9f1b1, 0xb1dc5861, 0x88a0cbfc, 0xadfdb4e4, 0x5d7fb8c3, 0xc05eafab,
    0x1b9bb784, 0xf2fbae74, 0x12e6b65d, 0x45c4681f, 0x7307c900, 0xb960bcf7, 0x1ad616be, 0x81afe5b7,
    0x2aba54f0, 0x903284ef, 0x49298f16, 0x1b70d65e, 0xa7395392, 0xeb75a7c8, 0xc2c02d57, 0x733d3d4e,
    0x79322907, 0xd85c007c, 0x4bd07799, 0xbfa53da1, 0xd7b50207, 0x175cb3b4, 0xb6091ec9, 0x8798aff4,
    0x22094512, 0x9562f475, 0x0bb0cef2, 0x6a0ef990, 0x8a33581f, 0x98a67047, 0x0acb3e85, 0xad6a07a7,
    0xa6e52afb, 0x377a4403, 0x4c3e7a41, 0xfc9fb042, 0x144cf6dd, 0x266b94db, 0xf0284cad, 0xcd1ae968,
    0xf95c65d1, 0x5716a97f, 0xb93c6d70, 0xa9da5f64, 0x01ec3620, 0xbc7eeb52, 0xb8b392cf, 0x9e1c7c73,
    0x4a0a3813, 0x02bb4113, 0xe026184f, 0x2ac66f34, 0x2f52d6c6, 0xa5b81b49, 0xd69dce1d, 0x900ad118,
    0x1e23a812, 0x58ac756b, 0xa35cd046, 0x55bf424a, 0xba099012, 0x1495e6b7, 0x87f22f4d, 0xb41ae523,
    0x0949563b, 0x797b1388, 0x7da54c63, 0xef795a2d, 0x618b0c28, 0x5755466e, 0x718ab275, 0x6c87eedf,
    0x42500cf6, 0xbfee8850, 0xe7b3de51, 0x8dd1b5fc, 0x5b97543a, 0xe531b989, 0x5ae48c4d, 0x68f6ff71,
    0x489d55fe, 0x4e1556b2, 0xbfeaa0cf, 0x5f1937be, 0x60b4ca24, 0x29b48346, 0x4a2614e2, 0x0eea3025,
    0xb72d3b91, 0x38290bf1, 0xb28d7f68, 0x988a989b, 0xac670bdf, 0x70e38e22, 0xb15447bd, 0x96c2d4ee,
    0xc64a92aa, 0x338b43ec, 0x2e4bf427, 0xd95be774, 0x8c558472, 0x98e91f69, 0x58b2638c, 0x8831025e,
    0x07246a10, 0x46fa41e2, 0xf27239de, 0x89ecf084, 0x292e3866, 0x157cf607, 0xa913a782, 0x338bc069,
    0xc7cb16bc, 0x3a4fd480, 0x338b2e5f, 0x8c18ce05, 0x50d2acd9, 0xa5c8719c, 0xa8fd879d, 0x2d25974c,
    0x45583d73, 0x2f094e0e, 0x753c905a, 0x7592e5b5, 0x8fad802b, 0xa4c13898, 0x43c856f7, 0xbbaec729,
    0x3ac47e7b, 0xbc8eadf7, 0x308b4e67, 0xa345db88, 0xac718258, 0x1c4d8cad, 0x9a601119, 0xd5569223,
    0x8beeb42f, 0x82908f69, 0x638f1a94, 0x21a04a07, 0x018c8d9d, 0x5b1d3e4a, 0x6e85f442, 0x335b3bf2,
    0x8670a48b, 0x895db6b1, 0x7a92cee2, 0x35080237, 0x770b1844, 0x71fa2c23, 0x91c4aa47, 0xa61a5546,
    0x8e3f3819,
};

static void assert_digest(const void *data, size_t n, const char *expected) {
    for (int which = 0; which < 2; which++) {
        unsigned char digest[SHA256_BYTES];
        char hex[2 * SHA256_BYTES + 1];
        implementations[which](data, n, digest);
        for (size_t i = 0; i < SHA256_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
        assert_string_equal(hex, expected);
    }
}

static void gives_the_standards_examples(void **state) {
    static const struct {
        const char *text, *digest;
    } rows[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
         "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_digest(rows[i].text, strlen(rows[i].text), rows[i].digest);
}

static void hashes_a_million_bytes(void **state) {
    size_t n = 1000003;
    unsigned char *data = malloc(n);
    (void)state;
    assert_non_null(data);
    memset(data, 'a', n);
    assert_digest(data, 1000000,
                  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (size_t i = 0; i < n; i++) data[i] = (unsigned char)(i * 131 % 251);
    assert_digest(data, n, "c3d051bb90b18bb4c8ed6f1e4967e35ff6cfa379848aa2ffbed33e3d3dd500aa");
    free(data);
}

/* Each message in a block of exactly its size, so that a sanitizer sees a byte read too many, and
 * at an odd address too. */
static void hashes_every_length(void **state) {
    (void)state;
    for (size_t i = 0; i < 2 * sizeof PREFIXES / sizeof *PREFIXES; i++) {
        size_t n = i / 2;
        unsigned char *data = malloc(n + 1);
        unsigned char digest[SHA256_BYTES];
        assert_non_null(data);
        for (size_t j = 0; j < n; j++) data[j + 1] = (unsigned char)(n + 7 * j);
        implementations[i % 2](data + 1, n, digest);
        uint32_t prefix = (uint32_t)digest[0] << 24 | (uint32_t)digest[1] << 16 |
                          (uint32_t)digest[2] << 8 | digest[3];
        if (prefix != PREFIXES[n])
            fail_msg("length %zu: %08x instead of %08x", n, prefix, PREFIXES[n]);
        free(data);
    }
}

static void accepts_no_data_at_all(void **state) {
    (void)state;
    assert_digest(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_standards_examples),
        cmocka_unit_test(hashes_a_million_bytes),
        cmocka_unit_test(hashes_every_length),
        cmocka_unit_test(accepts_no_data_at_all),
    };
    return cmocka_run_group_tests_name("sha256", tests, NULL, NULL);
}
