/*
 * machine_decide.c: requests at the leader of a machine (machine.h). What can be logged as it stands is. What depends on what
 * its key holds locks the key: the backend is asked, behind everything that was logged before, and its answer decides this
 * request and, one after the other, all that have come for the key meanwhile; each as if it had come alone. The key is free
 * as soon as what they amount to is logged, for whoever asks next asks behind that.
 */
#include "engine/engine_state.h"

#define KEEP_BYTES (64u << 10)

struct waiter { /* `length` bytes of lock.bytes */
    struct destination from;
    uint64_t life;
    uint32_t unanswered;
    size_t length;
};

struct lock {
    struct lock *next;
    uint64_t hash;
    bool asks;          /* the backend has not answered yet; else `item` is what the key holds */
    bool decided;       /* the first of those who wait is: there was no room to log it */
    uint32_t style;     /* ... and this is what would have been */
    struct queue waiters;
    struct buffer bytes, command, reply;
    void *item;
};

static struct lock **lock_place(struct machine *m, uint64_t hash) {
    struct lock **at = &m->locks[(hash ^ hash >> 32) & (LOCK_BUCKETS - 1)];
    while (*at != NULL && (*at)->hash != hash) at = &(*at)->next;
    return at;
}

static struct lock *lock_new(struct machine *m, struct lock **at, uint64_t hash) {
    struct lock *lock = m->free_locks;
    if (lock != NULL) {
        m->free_locks = lock->next;
    } else {
        lock = calloc(1, sizeof *lock);
        CHECK(lock != NULL);
        queue_init(&lock->waiters, sizeof(struct waiter), 8);
        lock->item = calloc(1, m->protocol->item_bytes);
        CHECK(lock->item != NULL);
    }
    lock->hash = hash;
    lock->asks = true;
    lock->next = *at;
    *at = lock;
    m->locked++;
    return lock;
}

static void lock_end(struct machine *m, struct lock **at) {
    struct lock *lock = *at;
    *at = lock->next;
    queue_clear(&lock->waiters);
    struct buffer *buffers[] = {&lock->bytes, &lock->command, &lock->reply};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        buffer_clear(buffers[i]);
        buffer_trim(buffers[i], KEEP_BYTES);
    }
    lock->decided = false;
    lock->next = m->free_locks;
    m->free_locks = lock;
    if (--m->locked == 0) m->draining = false;
}

void machine_locks_clear(struct engine *e) {
    struct machine *m = &e->machine;
    for (uint32_t i = 0; i < LOCK_BUCKETS && m->locked > 0; i++)
        while (m->locks[i] != NULL) lock_end(m, &m->locks[i]);
    m->known = 0;
}

void machine_locks_free(struct engine *e) {
    struct machine *m = &e->machine;
    machine_locks_clear(e);
    for (struct lock *lock = m->free_locks, *next; lock != NULL; lock = next) {
        next = lock->next;
        queue_free(&lock->waiters);
        buffer_free(&lock->bytes);
        buffer_free(&lock->command);
        buffer_free(&lock->reply);
        m->protocol->item_free(lock->item);
        free(lock->item);
        free(lock);
    }
    m->free_locks = NULL;
}

/* ---- deciding ------------------------------------------------------------------------------------------------------------ */

static void wait_for(struct lock *lock, const struct request *r) {
    const struct session_decision *d = r->decision;
    buffer_append(&lock->bytes, d->bytes, d->length);
    *(struct waiter *)queue_push(&lock->waiters) =
        (struct waiter){.from = r->from, .life = r->life, .unanswered = r->unanswered, .length = d->length};
}

static void ask(struct engine *e, struct lock *lock, const struct protocol_request *q, const uint8_t *bytes) {
    struct machine *m = &e->machine;
    struct expect expect = {.kind = EXPECT_QUESTION, .database_after = -1, .covered = lock->hash, .since_ns = e->now_ns};
    buffer_clear(&m->command);
    expect.replies = m->protocol->question(q, bytes, &m->command);
    turn_forward(e, 0, 2, buffer_bytes(&m->command), buffer_length(&m->command), &expect);
    lock->asks = true;
}

static void parse(const struct machine *m, const uint8_t *bytes, size_t length, struct protocol_request *q, struct buffer *scratch) {
    q->class = PROTOCOL_MORE;
    q->scanned = 0;
    buffer_clear(scratch);
    m->protocol->request(&m->limits, bytes, length, q, scratch);
}

/* False: there is no room to log it now. */
static bool write_as_it_stands(struct engine *e, const struct request *r, const struct protocol_request *q, const uint8_t *bytes) {
    struct machine *m = &e->machine;
    buffer_clear(&m->command);
    buffer_clear(&m->reply);
    m->protocol->rewrite(q, bytes, machine_now_us(), &m->command);
    return machine_log(e, r, q->style);
}

/* Each decision changes the item: what could not be logged is kept as it was decided. */
static bool decide(struct engine *e, struct lock *lock, const struct request *r, const struct protocol_request *q, const uint8_t *bytes) {
    struct machine *m = &e->machine;
    buffer_clear(&m->command);
    buffer_clear(&m->reply);
    uint32_t style = lock->style;
    if (lock->decided) {
        buffer_append(&m->command, buffer_bytes(&lock->command), buffer_length(&lock->command));
        buffer_append(&m->reply, buffer_bytes(&lock->reply), buffer_length(&lock->reply));
    } else if (!m->protocol->decide(q, bytes, lock->item, e->term, machine_now_s(), &m->command, &m->reply, &style)) {
        buffer_clear(&m->given_answer); /* it was read from the backend why not */
        m->protocol->answer(style, buffer_bytes(&m->reply), buffer_length(&m->reply), NULL, 0, e->term, &m->given_answer);
        turn_local(e, r->from, buffer_bytes(&m->given_answer), buffer_length(&m->given_answer));
        m->reads = true;
        return true;
    }
    lock->decided = !machine_log(e, r, style);
    buffer_clear(&lock->command);
    buffer_clear(&lock->reply);
    if (!lock->decided) return true;
    lock->style = style;
    buffer_append(&lock->command, buffer_bytes(&m->command), buffer_length(&m->command));
    buffer_append(&lock->reply, buffer_bytes(&m->reply), buffer_length(&m->reply));
    return false;
}

/* Goes through those who wait, as far as there is room. */
static void lock_run(struct engine *e, struct lock **at) {
    struct machine *m = &e->machine;
    struct lock *lock = *at;
    bool known = true;
    for (struct waiter *w = queue_front(&lock->waiters); w != NULL; w = queue_front(&lock->waiters)) {
        const uint8_t *bytes = buffer_bytes(&lock->bytes);
        struct protocol_request q;
        struct request r = {.from = w->from, .protocol = 2, .life = w->life, .unanswered = w->unanswered};
        parse(m, bytes, w->length, &q, &m->reply);
        q.now_us = machine_now_us();
        if (q.class == PROTOCOL_DECIDE && !known) {
            ask(e, lock, &q, bytes);
            return;
        }
        if (q.class == PROTOCOL_WRITE ? !write_as_it_stands(e, &r, &q, bytes) : !decide(e, lock, &r, &q, bytes)) {
            m->known++; /* should this follow upon a WRITE it is one, too, and the item is not looked at before another question */
            return;
        }
        known = known && q.class == PROTOCOL_DECIDE;
        buffer_consume(&lock->bytes, w->length);
        queue_pop(&lock->waiters);
    }
    lock_end(m, at);
}

void machine_answered(struct engine *e, uint64_t key_hash, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    struct lock **at = lock_place(m, key_hash);
    CHECK(*at != NULL && (*at)->asks);
    struct lock *lock = *at;
    if (!m->protocol->item(lock->item, bytes, length, machine_now_s())) {
        backend_lost(e, "it answered a question with what is no answer to it");
        return;
    }
    lock->asks = false;
    lock_run(e, at);
}

void machine_locks_step(struct engine *e) {
    struct machine *m = &e->machine;
    if (m->known == 0 || e->big.active) return;
    m->known = 0;
    for (uint32_t i = 0; i < LOCK_BUCKETS; i++)
        for (struct lock **at = &m->locks[i]; *at != NULL;) {
            struct lock *lock = *at;
            if (!lock->asks) lock_run(e, at);
            if (*at == lock) at = &lock->next;
        }
    if (m->known > 0) e->stalled = true;
}

/* ---- what comes ------------------------------------------------------------------------------------------------------------ */

static struct expect read_expect(const struct engine *e, const struct request *r, const struct protocol_request *q) {
    return (struct expect){.kind = EXPECT_CLIENT, .reads = true, .replies = 1, .database_after = -1, .style = q->style, .to = r->from,
                           .since_ns = e->now_ns};
}

/* Not the kind that travels: its node is of another build, or it was spoilt. Its client is told that its outcome is not known. */
static bool refuse(struct engine *e, const struct request *r) {
    struct client *c = r->from.node == e->self ? client_find(e, r->from.slot, r->from.generation) : NULL;
    engine_log(e, 40, "node %u sent what is no request of this backend's", r->from.node + 1);
    if (c != NULL) client_close(e, c);
    else link_send(e, r->from.node, &(struct frame){.type = FRAME_UNKNOWN, .slot = r->from.slot, .generation = r->from.generation,
                                                    .sequence = r->from.sequence}, NULL);
    return true;
}

bool machine_submit(struct engine *e, const struct request *r, struct buffer *holder) {
    struct machine *m = &e->machine;
    const uint8_t *bytes = r->decision->bytes;
    struct protocol_request q;
    (void)holder; /* what is logged is never what lies there */
    parse(m, bytes, r->decision->length, &q, &m->reply);
    if (q.class == PROTOCOL_READ) {
        const struct expect expect = read_expect(e, r, &q);
        buffer_clear(&m->command);
        m->protocol->rewrite(&q, bytes, machine_now_us(), &m->command);
        turn_forward(e, 0, 2, buffer_bytes(&m->command), buffer_length(&m->command), &expect);
        m->reads = true;
        return true;
    }
    if (q.class != PROTOCOL_WRITE && q.class != PROTOCOL_DECIDE) return refuse(e, r);
    if (q.all_keys && m->locked > 0) m->draining = true;
    if (m->draining) return e->stalled = true, false; /* an answer of the backend wakes the loop */
    struct lock **at = m->locked > 0 || q.class == PROTOCOL_DECIDE ? lock_place(m, q.key_hash) : NULL;
    if (at != NULL && *at != NULL) return wait_for(*at, r), true;
    if (q.class == PROTOCOL_WRITE) return write_as_it_stands(e, r, &q, bytes);
    struct lock *lock = lock_new(m, at, q.key_hash);
    wait_for(lock, r);
    ask(e, lock, &q, bytes);
    return true;
}
