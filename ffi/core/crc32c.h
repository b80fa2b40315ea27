/* crc32c.h: CRC-32C (Castagnoli), RFC 3720 appendix B.4. The processor's own instruction where it has one, tables else. */
#ifndef MUSIDECAR_CRC32C_H
#define MUSIDECAR_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Checksum of `bytes`, continuing from `seed` (0 to start; a result continues where it ended). */
uint32_t crc32c(uint32_t seed, const void *bytes, size_t length);
/* The same without the processor's instruction: the fallback, and the oracle of the tests. */
uint32_t crc32c_tables(uint32_t seed, const void *bytes, size_t length);
bool crc32c_hardware(void);

#endif
