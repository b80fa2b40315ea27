/*
 * machine_copy.c: filling the backend of a machine (machine.h). The control plane copies another node's data while requests go
 * on, so a copy is of no one moment: it began when the donor's backend had done all records up to some index, and holds nothing
 * of what is behind `complete`. Every logged request says outright what its key holds afterwards. So what is behind that index is
 * given to the backend on top of the copy, and from `complete` on its data is the log's. A backend that is told the numbers
 * of its requests copies at one moment, and says which: then nothing is given to it twice.
 */
#include "engine/engine_state.h"

#define WANT_AGAIN_US 500000ull

/* What the backend holds is not the log's: it is filled anew. What had not left for it does not. */
void machine_dirty(struct engine *e) {
    struct machine *m = &e->machine;
    machine_recede(e);
    m->collects = m->want_pending = false;
    buffer_free(&m->collected);
}

void machine_want_copy(struct engine *e) {
    struct machine *m = &e->machine;
    bool quiet = machine_caught_up(e) && e->shared.socket.source.fd >= 0; /* nothing lands on top of the copy but what belongs there */
    if (e->log.epoch == 0 || m->want_pending || m->collects || !quiet || e->now_us < m->want_again_us) return;
    m->collects = m->want_pending = true;
    m->collected_from = m->applied;
    engine_tell(e, ENGINE_WANT_RDB, m->collected_from, ++m->want_number);
}

void machine_copy_failed(struct engine *e, uint64_t number) {
    struct machine *m = &e->machine;
    if (number != m->want_number || !m->want_pending) return;
    m->collects = m->want_pending = false;
    buffer_free(&m->collected);
    m->want_again_us = e->now_us + WANT_AGAIN_US;
}

void machine_collect(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    const struct collected head = {first, index, length};
    if (buffer_length(&m->collected) + length > e->config.feed_bytes_max) {
        engine_log(e, 30, "the backend was not filled in time for what was written meanwhile (limits.feed_bytes_max): it will be, from the start");
        machine_copy_failed(e, m->want_number);
        return;
    }
    buffer_append(&m->collected, &head, sizeof head);
    buffer_append(&m->collected, bytes, length);
}

void machine_filled(struct engine *e, const struct control *c) {
    struct machine *m = &e->machine;
    if (c->number != m->want_number || !m->want_pending) return;
    if (c->offset < m->collected_from) return machine_copy_failed(e, c->number);
    m->collects = m->want_pending = false;
    m->copied = m->protocol->stamp != NULL ? c->exact : c->offset;
    m->complete = c->bytes;
    atomic_store(&m->due_s, c->due_s);
    e->counters.refilled++;
    backend_set(e, BACKEND_SYNCING);
    const uint8_t *at = buffer_bytes(&m->collected);
    for (size_t left = buffer_length(&m->collected); left > 0;) {
        struct collected head;
        memcpy(&head, at, sizeof head);
        machine_place(e, head.first, head.index, at + sizeof head, head.length);
        at += sizeof head + head.length;
        left -= sizeof head + head.length;
    }
    buffer_free(&m->collected);
    if (c->offset > atomic_load(&m->done)) atomic_store(&m->done, c->offset);
}

void machine_copy_step(struct engine *e) {
    struct machine *m = &e->machine;
    if (e->backend == BACKEND_SYNCING && m->applied >= m->complete && machine_caught_up(e)) backend_set(e, BACKEND_FED);
}
