/*
 * origin.h: what the log says about requests that came through another node than the leader: for each stream (a client
 * of a node) the last write that is logged, and the answers to those that its client may still wait for (R1, R14). The
 * next leader tells by it whether a request that is put to it again is new, answered, or of unknown outcome.
 *
 * A stream is (node, life of the node, slot, generation). What is kept of it goes when its client has the answers, when its
 * slot has another client, or its node another life. The same on every replica at the same index.
 */
#ifndef MUSIDECAR_ORIGIN_H
#define MUSIDECAR_ORIGIN_H

#include <stdbool.h>
#include <stdint.h>

#include "buffer.h"
#include "fabric/fabric.h"

#define ORIGIN_SLOTS_MAX (1u << 20)         /* of one node */
#define ORIGIN_REPLY_BYTES_MAX (64u << 10)  /* larger answers are not kept: those who wait for them are closed */
#define ORIGIN_BYTES_MAX (64u << 20)        /* of all answers kept; beyond, none is */

struct origin { /* one request */
    uint32_t node, slot;
    uint64_t life; /* the node's incarnation */
    uint64_t sequence;
    uint32_t generation;
    uint32_t unanswered; /* this many of the sequences before it have no answer yet, at most */
};

struct origin_reply { /* in front of each answer in an EFFECT */
    struct origin origin;
    uint32_t length, pad;
};

struct origin_stream;
struct origin_table {
    struct origin_node {
        uint64_t life;
        struct origin_stream *streams; /* by slot */
        uint32_t slots;
    } nodes[FABRIC_NODES_MAX];
    uint64_t bytes; /* of answers kept */
};

enum origin_fate { ORIGIN_NEW, ORIGIN_ANSWERED, ORIGIN_UNKNOWN };

void origin_free(struct origin_table *t);
/* A write is in the log. */
void origin_logged(struct origin_table *t, const struct origin *o);
/* Takes the answers behind an EFFECT; false: they are not whole. */
bool origin_take(struct origin_table *t, const uint8_t *bytes, size_t length);
/* A request that is put to the leader again. ANSWERED: *bytes, *length is what it was answered; they stay the table's. */
enum origin_fate origin_find(const struct origin_table *t, const struct origin *o, const uint8_t **bytes, size_t *length);
/* As part of a snapshot. */
void origin_save(const struct origin_table *t, struct buffer *out);
bool origin_load(struct origin_table *t, const uint8_t *bytes, size_t length);

#endif
