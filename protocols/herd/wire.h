/*
 * wire.h: what is said to the gate (ffi/gate/gate.h), which passes it on to HERD: requests as they are logged, and those of the
 * control plane. Every request but WIRE_PING, which is that byte alone, begins with a head, then `bytes` bytes, numbers in the host's
 * byte order; so does every answer, and there is one to each, in order.
 *
 *   WIRE_GET, WIRE_DELETE   items x (length u8, key)
 *       items x struct wire_found, key and data behind each; items x found u8
 *   WIRE_PUT                flags u32, length of key u8, key, data          -
 *   WIRE_LIST               cursor u64, count u32: that many places of the key table, from there on
 *       cursor u64 (where it goes on; all ones: that was the last), items x (HERD's key, HERD's value)
 *   WIRE_LOAD               items x (HERD's key, HERD's value)               -
 *   WIRE_EMPTY              count u32: delete so many keys                  left u64
 *   WIRE_STATUS             -                                               struct wire_status
 *   WIRE_PING               -                                               what it waits for; nothing: it serves
 */
#ifndef MUSIDECAR_HERD_WIRE_H
#define MUSIDECAR_HERD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_ITEMS_MAX 1024u
#define WIRE_KEY_BYTES_MAX 250u
#define WIRE_BYTES_MAX (WIRE_ITEMS_MAX * (WIRE_KEY_BYTES_MAX + 1u)) /* of a request, its head apart */
#define WIRE_ANSWER_BYTES_MAX (WIRE_ITEMS_MAX * 512u)
#define WIRE_END UINT64_MAX

enum wire_kind {
    WIRE_GET = 'G', WIRE_PUT = 'S', WIRE_DELETE = 'D', WIRE_LIST = 'K', WIRE_LOAD = 'L', WIRE_EMPTY = 'E', WIRE_STATUS = 'X', WIRE_PING = 'P'
};

struct wire_head {
    uint8_t kind, zero; /* enum wire_kind, also of the answer */
    uint16_t items;
    uint32_t bytes;
};

struct wire_found { uint8_t found, key_length, data_length, zero; uint32_t flags; };

struct wire_status {
    uint64_t requests, replies;    /* given to HERD, and answered by it */
    uint64_t gets, hits, puts;
    uint64_t keys, keys_max;       /* in the key table */
    uint64_t gone;                 /* gets of a key in the table that HERD did not have any more */
    uint64_t forgotten;            /* keys that the table had no room for */
    uint64_t strays;               /* datagrams that no worker of it sent */
    uint64_t reply_p50_ns, reply_p99_ns, reply_max_ns; /* of HERD's answers */
};

/* Walks the keys of WIRE_GET and WIRE_DELETE: false at the end, and at what is none. */
static inline bool wire_key(const uint8_t *bytes, size_t length, size_t *at, const uint8_t **key, uint8_t *key_length) {
    if (*at >= length || length - *at - 1 < bytes[*at] || bytes[*at] > WIRE_KEY_BYTES_MAX) return false;
    *key_length = bytes[*at];
    *key = bytes + *at + 1;
    *at += 1u + *key_length;
    return true;
}

#endif
