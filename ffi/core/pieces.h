/*
 * pieces.h: payloads larger than one record, put together from records with RECORD_MORE. A record of another kind may
 * come between the pieces; a NOOP voids all that is unfinished, because its proposer is gone. What has come so far is
 * kept in private memory, bounded for all kinds together, so that it pins no ring.
 */
#ifndef MUSIDECAR_PIECES_H
#define MUSIDECAR_PIECES_H

#include "core/record.h"

enum pieces_result {
    PIECES_TOO_LARGE = -1, /* beyond the bound: the payload is dropped up to its last piece, which gives this, too */
    PIECES_MORE = 0,       /* kept; not the end */
    PIECES_WHOLE = 1
};

struct piece_payload {
    const uint8_t *bytes;
    uint64_t length;
    uint64_t first_index; /* of its first piece */
};

struct pieces;
struct pieces *pieces_new(uint64_t bytes_max);
void pieces_free(struct pieces *p);
/* The next committed record, in log order. WHOLE: *out is the payload, valid until the next call; that of a record in
 * one piece stays where it is. */
enum pieces_result pieces_add(struct pieces *p, const struct record_header *record, struct piece_payload *out);
/* What is unfinished of a kind (for snapshots); false: nothing. */
bool pieces_pending(const struct pieces *p, enum record_kind kind, struct piece_payload *out);
/* The same, put back (from a snapshot). */
enum pieces_result pieces_restore(struct pieces *p, enum record_kind kind, const struct piece_payload *pending);
uint64_t pieces_bytes(const struct pieces *p); /* kept at present */
void pieces_void(struct pieces *p);            /* as a NOOP does */

#endif
