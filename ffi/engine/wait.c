/* wait.c: see wait.h. */
#include "engine/engine_state.h"

struct waiter {
    struct destination to;
    uint64_t index;    /* of the last record that counts */
    uint64_t until_us; /* 0: for ever */
    uint32_t wanted;
};

static uint32_t count(const struct engine *e, uint64_t index) {
    uint32_t others = replica_confirmed(e->replica) & ~(1u << e->self), held = 0;
    for (; others != 0; others &= others - 1) held += replica_completed(e->replica, (uint32_t)__builtin_ctz(others)) >= index;
    uint32_t least = member_count(e) / 2; /* it is committed */
    return held > least ? held : least;
}

static bool gone(struct engine *e, const struct destination *to) {
    if (to->node == e->self) return client_find(e, to->slot, to->generation) == NULL;
    return e->links[to->node].socket.source.fd < 0 || e->links[to->node].session != to->session;
}

static void answer(struct engine *e, const struct destination *to, uint32_t held) {
    char text[16];
    size_t length = (size_t)snprintf(text, sizeof text, ":%u\r\n", held);
    struct client *c = to->node == e->self ? client_find(e, to->slot, to->generation) : NULL;
    if (c != NULL) client_answer(e, c, text, length);
    else if (to->node != e->self) link_answer(e, to, text, length);
}

void waits_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length) {
    struct session_wait wait;
    if (length != sizeof wait) return;
    memcpy(&wait, bytes, sizeof wait);
    bool bounded = wait.timeout_ms > 0 && wait.timeout_ms < UINT64_MAX / 2000;
    *(struct waiter *)queue_push(&e->waiters) = (struct waiter){.to = *to, .index = replica_commit(e->replica), .wanted = wait.nodes,
                                                                .until_us = bounded ? e->now_us + wait.timeout_ms * 1000 : 0};
    e->more = true;
}

void waits_step(struct engine *e) {
    for (uint64_t n = queue_length(&e->waiters); n > 0; n--) {
        struct waiter w = *(struct waiter *)queue_front(&e->waiters);
        queue_pop(&e->waiters);
        if (gone(e, &w.to)) continue;
        uint32_t held = count(e, w.index);
        bool over = held >= w.wanted || (w.until_us != 0 && e->now_us >= w.until_us) || e->handover.waits; /* nobody waits for a hand-over */
        if (over) answer(e, &w.to, held);
        else *(struct waiter *)queue_push(&e->waiters) = w;
    }
}

void waits_close(struct engine *e, const struct destination *to) {
    for (uint64_t n = queue_length(&e->waiters); n > 0; n--) {
        struct waiter w = *(struct waiter *)queue_front(&e->waiters);
        queue_pop(&e->waiters);
        if (w.to.node != to->node || w.to.slot != to->slot || w.to.generation != to->generation)
            *(struct waiter *)queue_push(&e->waiters) = w;
    }
}

void waits_drop(struct engine *e) {
    for (struct waiter *w = queue_front(&e->waiters); w != NULL; w = queue_front(&e->waiters)) {
        struct client *c = w->to.node == e->self ? client_find(e, w->to.slot, w->to.generation) : NULL;
        queue_pop(&e->waiters);
        if (c != NULL) client_close(e, c);
    }
}

void waits_init(struct engine *e) { queue_init(&e->waiters, sizeof(struct waiter), 8); }
