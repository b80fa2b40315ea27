/*
 * load.c: DEBUG RELOAD and DEBUG LOADAOF. What they load was written from the very data that it takes the place of, so the
 * followers, who load nothing, hold the same still. That is not taken for granted: behind the load, on the same connection,
 * the backend is asked what became of it, and the ROLE that lets its answer go comes after that. A load that failed half
 * way, or that left keys out because their time was up (a leader's RDB is loaded without them, and nobody is told), has left
 * other data than the log's: nothing that ran on it is ever committed, another node leads, and this backend is filled anew.
 *
 * An AOF is loaded only where the backend says that it holds everything: it is asked before, too.
 */
#include <stdio.h>

#include "engine/engine_state.h"

static const char INFO[] = ASK_PERSISTENCE;

static void load_ask(struct engine *e, enum expect_kind kind, const struct destination *to, enum session_loads loads) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = (uint8_t)kind, .loads = (uint8_t)loads, .replies = 1, .database_after = -1, .to = *to, .since_ns = e->now_ns};
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, INFO, sizeof INFO - 1, &x);
}

static void load_do(struct engine *e, const struct destination *to, enum session_loads loads, const void *bytes, size_t length) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = EXPECT_LOAD, .loads = (uint8_t)loads, .replies = 1, .database_after = -1, .to = *to, .since_ns = e->now_ns};
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, bytes, length, &x);
    load_ask(e, EXPECT_LOADED, to, loads);
}

void load_submit(struct engine *e, const struct request *r) {
    const struct session_decision *d = r->decision;
    if (d->loads == LOADS_AOF) load_ask(e, EXPECT_AOF, &r->from, LOADS_AOF);
    else load_do(e, &r->from, d->loads, d->bytes, d->length);
}

/* Does INFO say so? Its lines are "name:value". */
static bool says(const struct buffer *info, const char *name, const char *value) {
    char line[64];
    int length = snprintf(line, sizeof line, "\n%s:%s\r", name, value);
    return memmem(buffer_bytes(info), buffer_length(info), line, (size_t)length) != NULL;
}

/* On, begun, and written to: then it holds everything. */
static bool aof_holds_all(const struct buffer *info) {
    return says(info, "aof_enabled", "1") && says(info, "aof_rewrite_in_progress", "0") && says(info, "aof_rewrite_scheduled", "0") &&
           says(info, "aof_last_bgrewrite_status", "ok") && says(info, "aof_last_write_status", "ok");
}

static void load_aof(struct engine *e, const struct destination *to) {
    static const char load[] = "*2\r\n$5\r\nDEBUG\r\n$7\r\nLOADAOF\r\n";
    static const char why[] = "-ERR DEBUG LOADAOF is refused: the AOF does not hold everything now (see INFO persistence)\r\n";
    if (!e->big.active && aof_holds_all(&e->shared.info)) return load_do(e, to, LOADS_AOF, load, sizeof load - 1);
    struct client *c = to->node == e->self ? client_find(e, to->slot, to->generation) : NULL;
    if (c != NULL) client_answer(e, c, why, sizeof why - 1);
    else if (to->node != e->self) link_answer(e, to, why, sizeof why - 1);
}

/* An answer to one of these is whole, in shared.info. */
void load_replied(struct engine *e, const struct expect *x) {
    static const char failed[] = "-ERR Error trying to load";
    struct shared *s = &e->shared;
    const struct buffer *info = &s->info;
    switch ((enum expect_kind)x->kind) {
        case EXPECT_LOAD:
            if (buffer_length(info) >= sizeof failed && memcmp(buffer_bytes(info), failed, sizeof failed - 1) == 0) s->changed = true;
            break;
        case EXPECT_LOADED:
            if (!says(info, "rdb_last_load_keys_expired", "0") || (x->loads == LOADS_AOF && !aof_holds_all(info))) s->changed = true;
            break;
        case EXPECT_AOF: load_aof(e, &x->to); break;
        default: break;
    }
}
