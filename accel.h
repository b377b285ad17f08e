/*
 * accel.h: two computations for which x86 processors have instructions, and whether this one has
 * them.
 *
 * Everything specific to a processor is in this file. Whoever computes has the same in portable C
 * beside it, and asks here which to take. The instructions stay because of what they save: a replay
 * spends 0.3 us less on a record (of 0.6) by the CRC, and a 401 0.3 us less (of 5) by SHA-256.
 *
 * PORTABLE leaves them out: the static binary is for processors that have none, and smaller so.
 */
#ifndef ACCEL_H
#define ACCEL_H

#include "slice.h"
#include <stdint.h>

#if defined(__x86_64__) && !defined(PORTABLE)
#include <immintrin.h>
#define ACCEL_WITH(instructions) __attribute__((target(instructions)))
#define ACCEL_HAS_CRC32C         __builtin_cpu_supports("sse4.2")
#else
#define ACCEL_WITH(instructions)
#define ACCEL_HAS_CRC32C false
#endif

/* clang 14 cannot be asked whether the processor has these. */
#if defined(__x86_64__) && !defined(PORTABLE) && !defined(__clang__)
#define ACCEL_HAS_SHA256 __builtin_cpu_supports("sha")
#else
#define ACCEL_HAS_SHA256 false
#endif

/* Whether this processor has the instructions for accel_crc32c, and for accel_sha256, which may not
 * be called otherwise. */
static inline bool accel_has_crc32c(void) { return ACCEL_HAS_CRC32C; }
static inline bool accel_has_sha256(void) { return ACCEL_HAS_SHA256; }

/* Returns the CRC-32C of bytes (RFC 3720, appendix B.4). Never blocks. */
ACCEL_WITH("sse4.2") static inline uint32_t accel_crc32c(struct slice bytes) {
    uint64_t crc = 0xFFFFFFFF;
#if defined(__x86_64__) && !defined(PORTABLE)
    for (; bytes.n >= 8; bytes.p += 8, bytes.n -= 8) {
        uint64_t word;
        memcpy(&word, bytes.p, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    for (; bytes.n > 0; bytes.p++, bytes.n--)
        crc = _mm_crc32_u8((uint32_t)crc, (unsigned char)*bytes.p);
#endif
    (void)bytes;
    return ~(uint32_t)crc;
}

#define ACCEL_SHA256_BLOCK_BYTES 64

/* Takes count whole blocks into the state H of SHA-256 (FIPS 180-4, 6.2.2), whose constants are K.
 * No branch and no address depends on what is in the blocks. Never blocks.
 *
 * Four rounds a turn. The instructions want the state as ABEF and CDGH, high word first, and W as a
 * window of sixteen words, four to a register. */
ACCEL_WITH("sha,sse4.1")
static inline void accel_sha256(uint32_t H[8], const uint32_t K[64], const unsigned char *block,
                                size_t count) {
#if defined(__x86_64__) && !defined(PORTABLE)
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i ABEF = _mm_set_epi32((int)H[0], (int)H[1], (int)H[4], (int)H[5]);
    __m128i CDGH = _mm_set_epi32((int)H[2], (int)H[3], (int)H[6], (int)H[7]);
    for (; count > 0; count--, block += ACCEL_SHA256_BLOCK_BYTES) {
        __m128i ABEF_before = ABEF, CDGH_before = CDGH, W[4];
        for (int i = 0; i < 4; i++)
            W[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block + i), big_endian);
        for (int t = 0; t < 64; t += 4) {
            __m128i KW = _mm_add_epi32(W[0], _mm_loadu_si128((const __m128i *)(K + t)));
            CDGH = _mm_sha256rnds2_epu32(CDGH, ABEF, KW);
            ABEF = _mm_sha256rnds2_epu32(ABEF, CDGH, _mm_shuffle_epi32(KW, 0x0e));
            __m128i sum =
                _mm_add_epi32(_mm_sha256msg1_epu32(W[0], W[1]), _mm_alignr_epi8(W[3], W[2], 4));
            W[0] = W[1], W[1] = W[2], W[2] = W[3];
            W[3] = _mm_sha256msg2_epu32(sum, W[3]);
        }
        ABEF = _mm_add_epi32(ABEF, ABEF_before);
        CDGH = _mm_add_epi32(CDGH, CDGH_before);
    }
    ABEF = _mm_shuffle_epi32(ABEF, 0x1b); /* low word first */
    CDGH = _mm_shuffle_epi32(CDGH, 0x1b);
    _mm_storeu_si128((__m128i *)H, _mm_unpacklo_epi64(ABEF, CDGH));
    _mm_storeu_si128((__m128i *)(H + 4), _mm_unpackhi_epi64(ABEF, CDGH));
#endif
    (void)H, (void)K, (void)block, (void)count;
}

#endif
