/*
 * psync.h: what a Redis says to its replica before the replication stream runs: the answers to AUTH and REPLCONF, then to
 * PSYNC, then the RDB, which is passed over. Bytes as they come; nothing is allocated. A line that is too long is cut.
 *
 * An RDB comes with its length ("$<bytes>") or, diskless, between two copies of a mark ("$EOF:<mark>"); empty lines in
 * front of it are Redis saying that it is still there.
 */
#ifndef MUSIDECAR_REDIS_PSYNC_H
#define MUSIDECAR_REDIS_PSYNC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REPLID_BYTES 40u
#define PSYNC_LINE_MAX 256u

enum psync_stage { PSYNC_CLOSED = 0, PSYNC_LINES, PSYNC_RDB_HEAD, PSYNC_RDB_LENGTH, PSYNC_RDB_MARK, PSYNC_LIVE };

enum psync_event {
    PSYNC_MORE = 0,    /* nothing to do yet */
    PSYNC_ASK = 1,     /* everything so far is answered: now PSYNC may be sent */
    PSYNC_STREAMS = 2, /* what follows is the stream: from `offset` if it began with an RDB, else from where PSYNC said */
    PSYNC_REFUSED = 3, /* `line` says why */
    PSYNC_BAD = 4      /* this is no master */
};

struct psync {
    enum psync_stage stage;
    bool wants_full;       /* a FULLRESYNC is what will be asked for, else a CONTINUE */
    bool asked;
    bool relayed;          /* somebody else asked: it may be either, or SYNC's RDB at once */
    uint32_t answers_left; /* before PSYNC's */
    uint64_t offset;       /* of the RDB */
    char replid[REPLID_BYTES + 1]; /* "": a CONTINUE that did not name one */
    uint64_t rdb_left;
    uint32_t line_length, tail_length;
    char line[PSYNC_LINE_MAX];
    uint8_t mark[REPLID_BYTES];
    uint8_t tail[REPLID_BYTES]; /* of the RDB so far: the mark may come in parts */
};

/* `answers` (at least one) come before PSYNC is asked. */
void psync_begin(struct psync *p, uint32_t answers, bool wants_full);
/* What is said to another, who has asked for either. */
void psync_relay(struct psync *p);
/* Consumes bytes up to the next event, or all; returns how many. Nothing is fed after STREAMS, REFUSED or BAD. */
size_t psync_feed(struct psync *p, const uint8_t *bytes, size_t length, enum psync_event *event);

#endif
