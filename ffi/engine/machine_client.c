/*
 * machine_client.c: the clients of a node whose backend is a machine (machine.h): what they send is framed and classified by the
 * protocol here, at their own node, and travels as it came.
 */
#include "engine/engine_state.h"

/* A client never has a request that is to be decided under way together with another, whichever order they come in: answers
 * are given in the order of decisions. */
static bool must_wait(const struct client *c, const struct protocol_request *q) {
    return q->class == PROTOCOL_DECIDE && c->outstanding > 0;
}

static bool submit(struct engine *e, struct client *c, const struct protocol_request *q, const uint8_t *bytes) {
    struct session_decision d = {.verdict = SESSION_SUBMIT, .bytes = bytes, .length = q->length, .writes = q->class != PROTOCOL_READ,
                                 .replies = 1, .database_after = -1};
    if (must_wait(c, q) || !client_submit(e, c, &d)) return false;
    if (q->class == PROTOCOL_DECIDE) c->barrier = true;
    return true;
}

static void close_behind(struct engine *e, struct client *c, const struct protocol_request *q) {
    if (q->why != NULL) engine_log(e, 30, "a client is closed: %s", q->why);
    client_answer_local(e, c, &e->answer);
    c->leaving = true;
}

static void say_status(struct engine *e, struct client *c) {
    const struct engine_status *s = &e->counters; /* as of the last tick */
    const struct { const char *name; uint64_t value; } lines[] = {
        {"musidecar_leads", engine_leads(e)}, {"musidecar_leader", s->leader == REPLICA_NOBODY ? 0 : s->leader + 1}, {"musidecar_term", s->term},
        {"musidecar_commit_index", s->commit}, {"musidecar_applied_index", s->applied}, {"musidecar_backend_index", s->backend_offset},
        {"musidecar_requests", s->requests}, {"musidecar_reads", s->reads}, {"musidecar_writes", s->writes}, {"musidecar_forwarded", s->forwarded},
        {"musidecar_takeovers", s->takeovers}, {"musidecar_refilled", s->refilled}, {"musidecar_failed", s->failed}};
    buffer_clear(&e->answer);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) e->machine.protocol->status(lines[i].name, lines[i].value, &e->answer);
    e->machine.protocol->status(NULL, 0, &e->answer);
    client_answer_local(e, c, &e->answer);
}

/* False: it waits. */
static bool take(struct engine *e, struct client *c, const struct protocol_request *q, const uint8_t *bytes) {
    switch (q->class) {
        case PROTOCOL_NOTHING: return true;
        case PROTOCOL_ANSWER: client_answer_local(e, c, &e->answer); return true;
        case PROTOCOL_STATUS: say_status(e, c); return true;
        case PROTOCOL_CLOSE: close_behind(e, c, q); return true;
        case PROTOCOL_LOCAL:
        case PROTOCOL_STREAM: return c->outstanding == 0 && machine_ask_local(e, c, q, bytes);
        default: return submit(e, c, q, bytes);
    }
}

size_t machine_process(struct engine *e, struct client *c, const uint8_t *bytes, size_t length) {
    const struct machine *m = &e->machine;
    size_t done = 0;
    struct protocol_request q;
    for (;;) {
        uint64_t some = c->swallow < length - done ? c->swallow : length - done;
        done += (size_t)some;
        c->swallow -= some;
        if (!client_may_go_on(e, c) || done == length || length - done < c->wanted) break;
        buffer_clear(&e->answer);
        q.class = PROTOCOL_MORE;
        q.wanted = 0;
        q.swallow = 0;
        q.scanned = c->scanned;
        q.why = NULL;
        m->protocol->request(&m->limits, bytes + done, length - done, &q, &e->answer);
        c->wanted = q.class == PROTOCOL_MORE ? q.wanted : 0;
        c->scanned = q.class == PROTOCOL_MORE ? q.scanned : 0;
        if (q.class == PROTOCOL_MORE && length - done > e->config.client_input_bytes_max) return c->leaving = true, length;
        if (q.class == PROTOCOL_MORE || !take(e, c, &q, bytes + done)) break;
        if (!c->in_use || c->leaving) return length;
        done += q.length;
        c->swallow = q.swallow;
    }
    return done;
}
