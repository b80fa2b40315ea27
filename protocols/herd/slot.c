/* slot.c: see slot.h. */
#include "protocols/herd/slot.h"

#include <assert.h>
#include <string.h>

enum { LENGTH_AT = 17, VALUE_AT = 18 };
static_assert(VALUE_AT + HERD_VALUE_BYTES == HERD_PUT_BYTES, "a value fills its slot");

void herd_slot_get(uint8_t out[HERD_SLOT_BYTES], const uint8_t key[HERD_KEY_BYTES]) {
    memcpy(out, key, HERD_KEY_BYTES);
    out[HERD_OPCODE_AT] = HERD_OPCODE_GET;
}

void herd_slot_put(uint8_t out[HERD_SLOT_BYTES], const uint8_t key[HERD_KEY_BYTES], const uint8_t value[HERD_VALUE_BYTES]) {
    memcpy(out, key, HERD_KEY_BYTES);
    out[HERD_OPCODE_AT] = HERD_OPCODE_NONE;
    out[LENGTH_AT] = HERD_VALUE_BYTES;
    memcpy(out + VALUE_AT, value, HERD_VALUE_BYTES);
}
