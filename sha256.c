/*
 * sha256.c: SHA-256 as FIPS 180-4 writes it down (sections 4.1.2, 5.1.1 and 6.2.2).
 *
 *     message  | data ...                         | 80 | 00 ... 00 | bits, 64, big-endian |
 *              '---- whole blocks of 64 bytes ----'-------- 1 or 2 last blocks ----------'
 *                              |                                   |
 *     state  H(0) -> compress -+-> ... -> compress ----------------+-> digest, big-endian
 *
 * An auth token has 43 bytes and is one block. The work is in compress():
 * 64 rounds of additions, rotations and logic, with no branch and no table look-up that depends on
 * the data, so that the time taken says nothing about it. Where the processor has instructions for
 * that, accel.h takes its place.
 *
 * The names of the standard's functions and variables are kept: Ch, Maj, the four sigmas, a to h.
 */
#include "sha256.h"
#include "accel.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BLOCK_BYTES 64

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotr(uint32_t x, unsigned bits) { return x >> bits | x << (32 - bits); }

/* Takes count whole blocks into the state H. */
static void compress(uint32_t H[8], const unsigned char *block, size_t count) {
    if (accel_has_sha256()) {
        accel_sha256(H, K, block, count);
        return;
    }
    for (; count > 0; count--, block += BLOCK_BYTES) {
        uint32_t W[64];
        memcpy(W, block, BLOCK_BYTES);
        for (int t = 0; t < 16; t++) W[t] = be32toh(W[t]);
        for (int t = 16; t < 64; t++) {
            uint32_t sigma0 = rotr(W[t - 15], 7) ^ rotr(W[t - 15], 18) ^ W[t - 15] >> 3;
            uint32_t sigma1 = rotr(W[t - 2], 17) ^ rotr(W[t - 2], 19) ^ W[t - 2] >> 10;
            W[t] = sigma1 + W[t - 7] + sigma0 + W[t - 16];
        }

        uint32_t a = H[0], b = H[1], c = H[2], d = H[3];
        uint32_t e = H[4], f = H[5], g = H[6], h = H[7];
        for (int t = 0; t < 64; t++) {
            uint32_t Sigma1 = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
            uint32_t Ch = (e & f) ^ (~e & g);
            uint32_t T1 = h + Sigma1 + Ch + K[t] + W[t];
            uint32_t Sigma0 = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22);
            uint32_t Maj = (a & b) ^ (a & c) ^ (b & c);
            h = g, g = f, f = e, e = d + T1;
            d = c, c = b, b = a, a = T1 + Sigma0 + Maj;
        }
        H[0] += a, H[1] += b, H[2] += c, H[3] += d;
        H[4] += e, H[5] += f, H[6] += g, H[7] += h;
    }
}

void sha256(const void *data, size_t n, unsigned char digest[SHA256_BYTES]) {
    /* The first 32 bits of the fractional parts of the square roots of the first 8 primes. */
    uint32_t H[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    compress(H, data, n / BLOCK_BYTES);

    unsigned char last[2 * BLOCK_BYTES] = {0};
    uint64_t bits = htobe64((uint64_t)n << 3);
    size_t rest = n % BLOCK_BYTES;
    size_t size = rest + 1 + sizeof bits <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
    if (rest > 0) memcpy(last, (const unsigned char *)data + n - rest, rest);
    last[rest] = 0x80;
    memcpy(last + size - sizeof bits, &bits, sizeof bits);
    compress(H, last, size / BLOCK_BYTES);

    for (int i = 0; i < 8; i++) H[i] = htobe32(H[i]);
    memcpy(digest, H, SHA256_BYTES);
}
