/*
 * payload.h: what stands in the payloads of COMMAND, EFFECT and ADMIN records, and in a snapshot of what they made.
 */
#ifndef MUSIDECAR_PAYLOAD_H
#define MUSIDECAR_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "engine/origin.h"
#include "protocols/redis/psync.h"

struct command_entry { /* one request in a COMMAND record; `length` bytes follow */
    uint32_t length;
    uint16_t database;
    uint8_t protocol, flags; /* enum command_flags */
    uint32_t replies, swallow; /* of so many answers, the client is not given the first `swallow` */
    struct origin origin;
};
enum command_flags { COMMAND_FORWARDED = 1 /* by another node */, COMMAND_ANY_FORWARDED = 2 /* on a record's first entry */ };
struct effect_head { /* in front of the first piece of an EFFECT; start == end: the COMMANDs covered had none */
    uint64_t epoch, start, end, covered;
    uint64_t replies; /* bytes of the answers to forwarded requests (struct origin_reply) behind the stream's */
};
enum admin_record { ADMIN_RECORD_EPOCH = 1, ADMIN_RECORD_SCRIPT = 2, ADMIN_RECORD_SCRIPT_FLUSH = 3, ADMIN_RECORD_RERUN = 4,
                    ADMIN_RECORD_PAUSE = 5, ADMIN_RECORD_SETTING = 6 /* 8 bytes, then a request that every node's backend is given */,
                    ADMIN_RECORD_ORIGIN = 7 };
struct origin_record { /* a forwarded write that runs on a connection of its client's own: nobody runs it again (R5) */
    uint32_t kind, pad;
    struct origin origin;
};
struct pause_record { /* automatic fail-over is paused, or not any more */
    uint32_t kind, paused;
};
struct epoch_record { /* EPOCH: from `start` on the effects are those of `replid`, the history of that leader's backend */
    uint32_t kind, leader;
    uint64_t epoch, start;
    char replid[REPLID_BYTES];
};

/* The entry at `bytes` and the request behind it; false when they are not whole. */
static inline bool command_entry_read(const uint8_t *bytes, size_t length, struct command_entry *entry) {
    if (length < sizeof *entry) return false;
    memcpy(entry, bytes, sizeof *entry);
    return entry->length <= length - sizeof *entry;
}

/* Whole entries, and nothing else? */
static inline bool command_entries_whole(const uint8_t *bytes, size_t length) {
    struct command_entry entry;
    for (size_t at = 0; at < length; at += sizeof entry + entry.length)
        if (!command_entry_read(bytes + at, length - at, &entry)) return false;
    return length > 0;
}

static inline bool effect_head_read(const uint8_t *bytes, size_t length, struct effect_head *head) {
    if (length < sizeof *head) return false;
    memcpy(head, bytes, sizeof *head);
    if (head->end < head->start || head->replies > UINT32_MAX) return false;
    return length - sizeof *head <= head->end - head->start + head->replies;
}

#endif
