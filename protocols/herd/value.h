/*
 * value.h: what HERD keeps under a key: always 46 bytes, for a PUT of another length than the key's last kills HERD.
 *
 *     check u64 @0 | client flags u32 @8 | length u8 @12, 255: deleted | data @13, 33 bytes, the rest of them 0
 *
 * in the host's byte order. HERD fills itself at its start with values of 32 bytes, which are none of these.
 */
#ifndef MUSIDECAR_HERD_VALUE_H
#define MUSIDECAR_HERD_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HERD_VALUE_BYTES 46u
#define HERD_DATA_BYTES_MAX 33u

struct herd_value {
    uint32_t flags;
    uint8_t length;
    uint8_t data[HERD_DATA_BYTES_MAX];
};

void herd_value_write(uint8_t out[HERD_VALUE_BYTES], uint64_t check, uint32_t flags, const void *data, uint8_t length);
/* HERD cannot delete. */
void herd_value_deleted(uint8_t out[HERD_VALUE_BYTES], uint64_t check);
/* False: it is not the value of the key with this check, but a deleted one, another key's, or none of ours. */
bool herd_value_read(const uint8_t *bytes, size_t length, uint64_t check, struct herd_value *value);
/* Of any key, and not deleted. */
bool herd_value_is_whole(const uint8_t *bytes, size_t length);

#endif
