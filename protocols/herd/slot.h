/*
 * slot.h: HERD's request region: an array of slots of 64 bytes, of which one worker looks at one slot of each client at a time, in
 * turn. A request is written there by RDMA.
 *
 *     key @0, 16 bytes | opcode u8 @16 | length of the value u8 @17 | value @18
 *
 * The worker takes the slot once its opcode is one of a request, whatever stands behind it by then. So the opcode of a PUT is
 * written last, by itself: it does not matter in how many pieces the device stores the rest.
 */
#ifndef MUSIDECAR_HERD_SLOT_H
#define MUSIDECAR_HERD_SLOT_H

#include <stdint.h>

#include "protocols/herd/key.h"
#include "protocols/herd/value.h"

#define HERD_SLOT_BYTES 64u
#define HERD_WINDOW 32u      /* slots of one client at one worker: as many requests may be under way */
#define HERD_REGION_BYTES (16u << 20)
#define HERD_GET_BYTES 17u
#define HERD_PUT_BYTES 64u
#define HERD_OPCODE_AT 16u

enum { HERD_OPCODE_NONE = 0, HERD_OPCODE_GET = 121, HERD_OPCODE_PUT = 122 };

static inline uint64_t herd_slot_at(uint32_t worker, uint32_t clients, uint32_t client, uint32_t turn) {
    return (((uint64_t)worker * clients + client) * HERD_WINDOW + turn % HERD_WINDOW) * HERD_SLOT_BYTES;
}
/* HERD_GET_BYTES of it. */
void herd_slot_get(uint8_t out[HERD_SLOT_BYTES], const uint8_t key[HERD_KEY_BYTES]);
/* HERD_PUT_BYTES, still without its opcode. */
void herd_slot_put(uint8_t out[HERD_SLOT_BYTES], const uint8_t key[HERD_KEY_BYTES], const uint8_t value[HERD_VALUE_BYTES]);

#endif
