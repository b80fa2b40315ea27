/* origin.c: see origin.h. */
#include "engine/origin.h"

struct kept { uint64_t sequence; size_t length; };

struct origin_stream {
    uint64_t logged; /* sequence of the last write; 0: the slot was never used */
    uint32_t generation;
    struct queue replies; /* struct kept, by sequence */
    struct buffer bytes;  /* theirs, in order */
};

static void forget_reply(struct origin_table *t, struct origin_stream *s) {
    size_t length = ((struct kept *)queue_front(&s->replies))->length;
    buffer_consume(&s->bytes, length);
    buffer_trim(&s->bytes, 4096);
    queue_pop(&s->replies);
    t->bytes -= length;
}

static void stream_clear(struct origin_table *t, struct origin_stream *s) {
    while (queue_length(&s->replies) > 0) forget_reply(t, s);
    s->logged = 0;
}

static void node_clear(struct origin_table *t, struct origin_node *n) {
    for (uint32_t i = 0; i < n->slots; i++) {
        stream_clear(t, &n->streams[i]);
        queue_free(&n->streams[i].replies);
        buffer_free(&n->streams[i].bytes);
    }
    free(n->streams);
    *n = (struct origin_node){0};
}

void origin_free(struct origin_table *t) {
    for (uint32_t i = 0; i < FABRIC_NODES_MAX; i++) node_clear(t, &t->nodes[i]);
    CHECK(t->bytes == 0);
}

static struct origin_stream *find(const struct origin_table *t, const struct origin *o) {
    const struct origin_node *n = &t->nodes[o->node];
    if (n->life != o->life || o->slot >= n->slots) return NULL;
    struct origin_stream *s = &n->streams[o->slot];
    return s->logged > 0 && s->generation == o->generation ? s : NULL;
}

/* The stream's place; NULL: of an earlier life, or of no node. */
static struct origin_stream *place(struct origin_table *t, const struct origin *o) {
    if (o->node >= FABRIC_NODES_MAX || o->slot >= ORIGIN_SLOTS_MAX || o->life < t->nodes[o->node].life) return NULL;
    struct origin_node *n = &t->nodes[o->node];
    if (o->life > n->life) node_clear(t, n);
    n->life = o->life;
    if (o->slot >= n->slots) {
        uint32_t slots = n->slots ? n->slots : 64;
        while (slots <= o->slot) slots *= 2;
        n->streams = realloc(n->streams, slots * sizeof *n->streams);
        CHECK(n->streams != NULL);
        memset(n->streams + n->slots, 0, (slots - n->slots) * sizeof *n->streams);
        n->slots = slots;
    }
    struct origin_stream *s = &n->streams[o->slot];
    if (s->generation != o->generation) stream_clear(t, s);
    s->generation = o->generation;
    return s;
}

void origin_logged(struct origin_table *t, const struct origin *o) {
    struct origin_stream *s = place(t, o);
    if (s == NULL) return;
    if (o->sequence > s->logged) s->logged = o->sequence;
    for (struct kept *k = queue_front(&s->replies); k != NULL && k->sequence + o->unanswered < o->sequence; k = queue_front(&s->replies))
        forget_reply(t, s);
}

/* To a request that was logged, so its stream is there unless the slot has another client by now. */
static void keep(struct origin_table *t, const struct origin *o, const uint8_t *bytes, size_t length) {
    struct origin_stream *s = o->node < FABRIC_NODES_MAX ? find(t, o) : NULL;
    if (s == NULL || length == 0 || t->bytes + length > ORIGIN_BYTES_MAX) return;
    const struct kept *last = s->replies.data == NULL ? NULL : queue_back(&s->replies);
    if (last != NULL && last->sequence >= o->sequence) return;
    if (s->replies.data == NULL) queue_init(&s->replies, sizeof(struct kept), 2);
    *(struct kept *)queue_push(&s->replies) = (struct kept){o->sequence, length};
    buffer_append(&s->bytes, bytes, length);
    t->bytes += length;
}

bool origin_take(struct origin_table *t, const uint8_t *bytes, size_t length) {
    while (length > 0) {
        struct origin_reply head;
        if (length < sizeof head) return false;
        memcpy(&head, bytes, sizeof head);
        if (head.length > length - sizeof head) return false;
        keep(t, &head.origin, bytes + sizeof head, head.length);
        bytes += sizeof head + head.length;
        length -= sizeof head + head.length;
    }
    return true;
}

enum origin_fate origin_find(const struct origin_table *t, const struct origin *o, const uint8_t **bytes, size_t *length) {
    const struct origin_stream *s = find(t, o);
    if (s == NULL || o->sequence > s->logged) return ORIGIN_NEW;
    *bytes = buffer_bytes(&s->bytes);
    for (uint64_t i = s->replies.head; i < s->replies.tail; i++) {
        const struct kept *k = queue_at(&s->replies, i);
        *length = k->length;
        if (k->sequence == o->sequence) return ORIGIN_ANSWERED;
        *bytes += k->length;
    }
    return ORIGIN_UNKNOWN;
}

/* ---- snapshots: each stream as an answer of no bytes to its last write, then its answers ------------------------------- */

static void save_one(struct buffer *out, const struct origin *o, const uint8_t *bytes, size_t length) {
    struct origin_reply head = {.origin = *o, .length = (uint32_t)length};
    buffer_append(out, &head, sizeof head);
    buffer_append(out, bytes, length);
}

void origin_save(const struct origin_table *t, struct buffer *out) {
    for (uint32_t node = 0; node < FABRIC_NODES_MAX; node++) {
        const struct origin_node *n = &t->nodes[node];
        for (uint32_t slot = 0; slot < n->slots; slot++) {
            const struct origin_stream *s = &n->streams[slot];
            if (s->logged == 0) continue;
            struct origin o = {.node = node, .slot = slot, .life = n->life, .sequence = s->logged, .generation = s->generation};
            save_one(out, &o, NULL, 0);
            const uint8_t *at = buffer_bytes(&s->bytes);
            for (uint64_t i = s->replies.head; i < s->replies.tail; i++) {
                const struct kept *k = queue_at(&s->replies, i);
                o.sequence = k->sequence;
                save_one(out, &o, at, k->length);
                at += k->length;
            }
        }
    }
}

bool origin_load(struct origin_table *t, const uint8_t *bytes, size_t length) {
    while (length > 0) {
        struct origin_reply head;
        if (length < sizeof head) return false;
        memcpy(&head, bytes, sizeof head);
        const struct origin *o = &head.origin;
        if (head.length > length - sizeof head || o->node >= FABRIC_NODES_MAX || o->sequence == 0) return false;
        const struct origin_stream *s = find(t, o);
        if (s == NULL) origin_logged(t, o);
        else if (o->sequence > s->logged || !origin_take(t, bytes, sizeof head + head.length)) return false;
        bytes += sizeof head + head.length;
        length -= sizeof head + head.length;
    }
    return true;
}
