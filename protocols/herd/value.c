/* value.c: see value.h. */
#include "protocols/herd/value.h"

#include <string.h>

#include "check.h"

enum { FLAGS_AT = 8, LENGTH_AT = 12, DATA_AT = 13, DELETED = 255 };

void herd_value_write(uint8_t out[HERD_VALUE_BYTES], uint64_t check, uint32_t flags, const void *data, uint8_t length) {
    CHECK(length <= HERD_DATA_BYTES_MAX);
    memset(out, 0, HERD_VALUE_BYTES);
    memcpy(out, &check, sizeof check);
    memcpy(out + FLAGS_AT, &flags, sizeof flags);
    out[LENGTH_AT] = length;
    if (length > 0) memcpy(out + DATA_AT, data, length);
}

void herd_value_deleted(uint8_t out[HERD_VALUE_BYTES], uint64_t check) {
    herd_value_write(out, check, 0, NULL, 0);
    out[LENGTH_AT] = DELETED;
}

bool herd_value_is_whole(const uint8_t *bytes, size_t length) {
    return length == HERD_VALUE_BYTES && bytes[LENGTH_AT] <= HERD_DATA_BYTES_MAX;
}

bool herd_value_read(const uint8_t *bytes, size_t length, uint64_t check, struct herd_value *value) {
    if (!herd_value_is_whole(bytes, length) || memcmp(bytes, &check, sizeof check) != 0) return false;
    memcpy(&value->flags, bytes + FLAGS_AT, sizeof value->flags);
    value->length = bytes[LENGTH_AT];
    memcpy(value->data, bytes + DATA_AT, value->length);
    return true;
}
