/* clients.c: see clients.h. */
#include "clients.h"

#include <string.h>

#include "history.h"
#include "trace.h"

struct client {
    bool waiting, fresh; /* fresh: asked since the mark */
    bool served;         /* asked and answered since the mark */
    struct request request;
    uint64_t operation, attempt, again_us;
    uint32_t target, sequence, tries;
};

static struct {
    uint32_t count, keys, reads, idle; /* reads: of 8; idle: starts something at one step in so many */
    uint32_t patience_us;
    struct client all[CLIENTS_MAX];
    bool marked;
} c;

static uint64_t wish(uint64_t sides) { return draw(&world.wishes, sides); }

void clients_begin(void) {
    memset(&c, 0, sizeof c);
    c.count = 2 + (uint32_t)wish(CLIENTS_MAX - 1);
    c.keys = 1 + (uint32_t)wish(KEYS);
    c.reads = 1 + (uint32_t)wish(6);
    c.idle = 1 + (uint32_t)wish(12);
    c.patience_us = 500u << wish(5);
    for (uint32_t i = 0; i < c.count; i++) c.all[i].target = (uint32_t)wish(world.nodes);
}

static void ask(struct client *x) {
    uint64_t patience_us = (uint64_t)c.patience_us << (x->tries < 4 ? x->tries : 4);
    if (world.node[x->target].dead) patience_us = 100; /* it is refused at once */
    x->again_us = world.now_us + patience_us / 2 + wish(patience_us);
    x->attempt++;
    x->tries++;
    if (!world.node[x->target].dead) node_ask(&world.node[x->target], &x->request, x->attempt);
}

static void start(uint32_t i) {
    static const char *const names[OPS] = {"sets", "increments", "appends to", "gets", "counts", "measures"};
    struct client *x = &c.all[i];
    uint32_t type = (uint32_t)wish(OP_WRITES);
    x->request = (struct request){.client = i, .sequence = ++x->sequence, .key = (uint32_t)wish(c.keys),
                                  .op = type + (wish(8) < c.reads ? OP_WRITES : 0)};
    x->request.value = (uint64_t)(i + 1) << 32 | x->sequence;
    x->operation = history_asked(&x->request);
    x->waiting = true;
    x->fresh = c.marked;
    x->tries = 0;
    if (tracing()) trace(SIM_NOBODY, "client %u %s key %u (sequence %u)", i, names[x->request.op], x->request.key, x->sequence);
    ask(x);
}

void clients_step(void) {
    for (uint32_t i = 0; i < c.count; i++) {
        struct client *x = &c.all[i];
        if (!x->waiting) {
            /* Once served they leave the others alone: who joins must be able to keep up. */
            if (!x->served && wish(c.idle) == 0) start(i);
            continue;
        }
        if (world.now_us < x->again_us) continue;
        if (wish(40) == 0) { /* it will never know */
            x->waiting = false;
            continue;
        }
        if (wish(4)) x->target = (uint32_t)wish(world.nodes);
        ask(x);
    }
}

void clients_answer(const struct request *request, uint64_t result) {
    struct client *x = &c.all[request->client];
    if (!x->waiting || x->request.sequence != request->sequence) return;
    history_answered(x->operation, result);
    if (tracing()) trace(SIM_NOBODY, "client %u is told %llu", request->client, (unsigned long long)result);
    x->waiting = false;
    x->served |= x->fresh;
    world.counts.operations++;
}

void clients_redirect(const struct request *request, uint64_t attempt, uint32_t hint) {
    struct client *x = &c.all[request->client];
    if (!x->waiting || x->request.sequence != request->sequence || x->attempt != attempt) return;
    x->target = hint < world.nodes ? hint : (uint32_t)wish(world.nodes);
    x->again_us = world.now_us + wish(200);
}

void clients_mark(void) {
    c.marked = true;
    for (uint32_t i = 0; i < c.count; i++) c.all[i].tries = 0, c.all[i].fresh = c.all[i].served = false;
}

uint32_t clients_waiting(void) {
    uint32_t unserved = 0;
    for (uint32_t i = 0; i < c.count; i++) unserved += !c.all[i].served;
    return unserved;
}

bool clients_served(void) { return clients_waiting() == 0; }
