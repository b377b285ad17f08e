/*
 * sha256.h: the SHA-256 hash function of FIPS 180-4, in one call.
 */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>

#define SHA256_BYTES 32

/* Writes the digest of data[0..n) to digest. Cannot fail, never blocks, allocates nothing. The work
 * depends on n alone, never on the bytes: it hashes secrets. */
void sha256(const void *data, size_t n, unsigned char digest[SHA256_BYTES]);

#endif
