/* pieces.c: see pieces.h. One growing buffer per kind; a large one is given back once its payload was handed out. */
#include "core/pieces.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

#define PIECES_KINDS (RECORD_ADMIN + 1)
#define PIECES_KEEP_BYTES (1u << 20) /* a buffer up to this size is kept for the next payload */

struct buffer {
    uint8_t *bytes;
    uint64_t length, room, first_index;
    bool open, handed, spilled; /* spilled: beyond the bound, waiting for the last piece */
};

struct pieces {
    uint64_t bytes_max, bytes;
    struct buffer buffers[PIECES_KINDS];
};

struct pieces *pieces_new(uint64_t bytes_max) {
    struct pieces *p = calloc(1, sizeof *p);
    if (p) p->bytes_max = bytes_max;
    return p;
}

static void clear(struct pieces *p, struct buffer *b) {
    p->bytes -= b->length;
    if (b->room > PIECES_KEEP_BYTES) {
        free(b->bytes);
        b->bytes = NULL;
        b->room = 0;
    }
    b->length = 0;
    b->open = b->handed = b->spilled = false;
}

void pieces_void(struct pieces *p) {
    for (int kind = 0; kind < PIECES_KINDS; kind++) clear(p, &p->buffers[kind]);
}

void pieces_free(struct pieces *p) {
    if (!p) return;
    for (int kind = 0; kind < PIECES_KINDS; kind++) free(p->buffers[kind].bytes);
    free(p);
}

static bool append(struct pieces *p, struct buffer *b, const uint8_t *bytes, uint64_t length) {
    if (b->spilled || length > p->bytes_max - p->bytes) return false;
    if (b->length + length > b->room) {
        uint64_t room = b->room ? b->room : 4096;
        while (room < b->length + length) room *= 2;
        uint8_t *grown = realloc(b->bytes, room);
        if (!grown) return false;
        b->bytes = grown;
        b->room = room;
    }
    if (length) memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
    p->bytes += length;
    return true;
}

static void spill(struct pieces *p, struct buffer *b) {
    clear(p, b);
    b->open = b->spilled = true;
}

enum pieces_result pieces_add(struct pieces *p, const struct record_header *record, struct piece_payload *out) {
    CHECK(record->kind < PIECES_KINDS);
    struct buffer *b = &p->buffers[record->kind];
    bool more = record->flags & RECORD_MORE;
    for (int kind = 0; kind < PIECES_KINDS; kind++) /* handed out by the last call: no longer needed */
        if (p->buffers[kind].handed) clear(p, &p->buffers[kind]);
    if (record->kind == RECORD_NOOP) pieces_void(p);
    if (!b->open && !more) {
        *out = (struct piece_payload){record_payload(record), record->length, record->index};
        return PIECES_WHOLE;
    }
    if (!b->open) b->first_index = record->index;
    b->open = true;
    if (!append(p, b, record_payload(record), record->length)) spill(p, b);
    if (more) return b->spilled ? PIECES_TOO_LARGE : PIECES_MORE;
    if (b->spilled) {
        clear(p, b);
        return PIECES_TOO_LARGE;
    }
    b->open = false;
    b->handed = true;
    *out = (struct piece_payload){b->bytes, b->length, b->first_index};
    return PIECES_WHOLE;
}

bool pieces_pending(const struct pieces *p, enum record_kind kind, struct piece_payload *out) {
    const struct buffer *b = &p->buffers[kind];
    if (!b->open || b->spilled) return false;
    *out = (struct piece_payload){b->bytes, b->length, b->first_index};
    return true;
}

enum pieces_result pieces_restore(struct pieces *p, enum record_kind kind, const struct piece_payload *pending) {
    CHECK(kind < PIECES_KINDS);
    struct buffer *b = &p->buffers[kind];
    clear(p, b);
    b->open = true;
    b->first_index = pending->first_index;
    if (append(p, b, pending->bytes, pending->length)) return PIECES_MORE;
    spill(p, b);
    return PIECES_TOO_LARGE;
}

uint64_t pieces_bytes(const struct pieces *p) { return p->bytes; }
