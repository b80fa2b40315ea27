/*
 * buffer.h: bytes that come in at the end and leave at the start. Grows by doubling, so that in the steady state
 * nothing is allocated; buffer_trim() gives memory back after an unusual size.
 */
#ifndef MUSIDECAR_BUFFER_H
#define MUSIDECAR_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

struct buffer {
    uint8_t *data;
    size_t start, end, capacity;
};

static inline size_t buffer_length(const struct buffer *b) { return b->end - b->start; }
static inline uint8_t *buffer_bytes(const struct buffer *b) { return b->data == NULL ? NULL : b->data + b->start; }

#define BUFFER_MOVE_MAX (1u << 20) /* more than this is moved only when as much has left: else it would hold up the loop */

/* Room for `bytes` more behind the end. */
static inline uint8_t *buffer_room(struct buffer *b, size_t bytes) {
    if (b->data != NULL && b->capacity - b->end >= bytes) return b->data + b->end;
    size_t held = buffer_length(b);
    if (b->start > 0 && (held <= BUFFER_MOVE_MAX || held <= b->start)) {
        memmove(b->data, b->data + b->start, held);
        b->start = 0;
        b->end = held;
        if (b->capacity - held >= bytes) return b->data + b->end;
    }
    size_t capacity = b->capacity ? b->capacity : 4096;
    while (capacity - b->end < bytes) capacity *= 2;
    b->data = realloc(b->data, capacity); /* large ones are remapped, not copied */
    CHECK(b->data != NULL);
    b->capacity = capacity;
    return b->data + b->end;
}

static inline void buffer_append(struct buffer *b, const void *bytes, size_t length) {
    if (length == 0) return;
    memcpy(buffer_room(b, length), bytes, length);
    b->end += length;
}

static inline void buffer_text(struct buffer *b, const char *text) { buffer_append(b, text, strlen(text)); }

static inline void buffer_consume(struct buffer *b, size_t length) {
    CHECK(length <= buffer_length(b));
    b->start += length;
    if (b->start == b->end) b->start = b->end = 0;
}

static inline void buffer_clear(struct buffer *b) { b->start = b->end = 0; }

static inline void buffer_free(struct buffer *b) {
    free(b->data);
    *b = (struct buffer){0};
}

/* Empties the buffer and returns its memory if it holds more than `keep` bytes of it. */
static inline void buffer_trim(struct buffer *b, size_t keep) {
    if (buffer_length(b) == 0 && b->capacity > keep) buffer_free(b);
}

/* ---- a queue of small fixed-size things, power-of-two ring, grows when full ---- */
struct queue {
    uint8_t *data;
    size_t item_bytes;
    uint64_t head, tail, capacity; /* absolute counts; capacity a power of two */
};

static inline void queue_init(struct queue *q, size_t item_bytes, uint64_t capacity) {
    *q = (struct queue){.data = malloc(item_bytes * capacity), .item_bytes = item_bytes, .capacity = capacity};
    CHECK(q->data != NULL);
}
static inline void queue_free(struct queue *q) { free(q->data); q->data = NULL; }
static inline uint64_t queue_length(const struct queue *q) { return q->tail - q->head; }
static inline void queue_clear(struct queue *q) { q->head = q->tail = 0; }
static inline void *queue_at(const struct queue *q, uint64_t absolute) {
    return q->data + (absolute & (q->capacity - 1)) * q->item_bytes;
}
static inline void *queue_front(const struct queue *q) { return q->head == q->tail ? NULL : queue_at(q, q->head); }
static inline void *queue_back(const struct queue *q) { return q->head == q->tail ? NULL : queue_at(q, q->tail - 1); }
static inline void queue_pop(struct queue *q) {
    CHECK(q->head < q->tail);
    q->head++;
}
static inline void *queue_push(struct queue *q) {
    if (queue_length(q) == q->capacity) {
        uint8_t *data = malloc(q->item_bytes * q->capacity * 2);
        CHECK(data != NULL);
        for (uint64_t i = q->head; i < q->tail; i++)
            memcpy(data + (i & (q->capacity * 2 - 1)) * q->item_bytes, queue_at(q, i), q->item_bytes);
        free(q->data);
        q->data = data;
        q->capacity *= 2;
    }
    return queue_at(q, q->tail++);
}

#endif
