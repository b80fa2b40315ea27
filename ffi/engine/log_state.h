/* log_state.h: what the committed log says, as apply.c keeps it. */
#ifndef MUSIDECAR_ENGINE_LOG_STATE_H
#define MUSIDECAR_ENGINE_LOG_STATE_H

#include "buffer.h"
#include "engine/origin.h"
#include "engine/payload.h"
#include "protocols/redis/psync.h"

struct uncovered { /* a COMMAND record whose effect is in no committed EFFECT */
    uint64_t index;
    uint32_t length;
    bool tried; /* its re-run was logged */
    bool mine;  /* ... by this leader, now */
    uint8_t *own; /* the bytes of a large one; NULL: in uncovered_bytes, in order */
};

struct assembly { bool open; uint64_t first; struct buffer bytes; }; /* pieces of a COMMAND so far, from that record on */
struct effect_assembly { bool open; struct effect_head head; uint64_t received; struct buffer replies; }; /* the stream's bytes are the feed's */

#define EPOCHS_KEPT 64u
struct epoch_mark { /* from `start` on, to the next one's, the effects are the history `replid` of this leader's backend */
    uint64_t start;
    uint32_t leader, pad;
    char replid[REPLID_BYTES];
};

struct log_state { /* what the committed log says; the same on every replica at the same index */
    uint64_t epoch;             /* 0: no data yet */
    struct epoch_mark epochs[EPOCHS_KEPT]; /* the last ones, in order */
    uint32_t epochs_kept;
    uint64_t epoch_start;
    char replid[REPLID_BYTES + 1];
    uint64_t effect_offset;     /* end of the last EFFECT */
    uint64_t effect_index;
    struct queue uncovered;     /* struct uncovered */
    struct buffer uncovered_bytes;
    struct assembly command;
    struct effect_assembly effect;
    bool paused;                /* automatic fail-over */
    struct origin_table origins; /* requests that came through other nodes */
    struct buffer settings;     /* u32 length, request; in order: CONFIG SET, ACL SETUSER */
    struct buffer scripts;      /* u32 length, body; in order */
    uint64_t *script_hashes;    /* open addressing, 0 empty */
    uint32_t script_count, script_capacity;
};

#endif
