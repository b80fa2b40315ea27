/* oracle.c: see oracle.h. */
#include "oracle.h"

#include <stddef.h>
#include <string.h>

#include "members.h"
#include "trace.h"

struct decided {
    uint64_t hash;     /* of the log up to it; 0: unknown */
    uint64_t position; /* behind it */
    uint64_t sequence; /* of its proposal; 0: NOOP */
};

static struct {
    struct decided *decided;      /* by index */
    uint8_t *delivered;           /* by proposal */
    uint64_t *terms;              /* by term: who opened it, from 1 */
    uint64_t room, rooms, termed; /* entries of the three arrays */
    uint64_t acknowledged;
    struct { uint32_t holder; uint64_t epoch; } grant[NODES_MAX];
} o;

static void *grown(void *array, uint64_t *room, uint64_t wanted, size_t size) {
    if (wanted < *room) return array;
    uint64_t more = *room ? *room : 4096;
    while (more <= wanted) more *= 2;
    array = realloc(array, more * size);
    CHECK(array != NULL);
    memset((uint8_t *)array + *room * size, 0, (more - *room) * size);
    *room = more;
    return array;
}

static struct decided *decided(uint64_t index) {
    o.decided = grown(o.decided, &o.room, index, sizeof *o.decided);
    return &o.decided[index];
}

void oracle_begin(void) {
    if (o.decided) memset(o.decided, 0, (world.top + 1 < o.room ? world.top + 1 : o.room) * sizeof *o.decided);
    if (o.delivered) memset(o.delivered, 0, o.rooms);
    if (o.terms) memset(o.terms, 0, o.termed * sizeof *o.terms);
    o.acknowledged = 0;
    for (uint32_t i = 0; i < NODES_MAX; i++) o.grant[i].holder = SIM_NOBODY;
}

void oracle_free(void) {
    free(o.decided);
    free(o.delivered);
    free(o.terms);
    memset(&o, 0, sizeof o);
}

uint64_t oracle_acknowledged(void) { return o.acknowledged; }
bool oracle_was_delivered(uint64_t sequence) { return sequence < o.rooms && o.delivered[sequence]; }

/* ---- records --------------------------------------------------------------------------------------------------- */

static bool payload_right(const struct record_header *h) {
    const uint8_t *payload = record_payload(h);
    if (h->kind == RECORD_CONFIG) return true; /* judged otherwise */
    if (h->kind == RECORD_NOOP) return h->length == 8 && memcmp(payload, &h->ballot, 8) == 0;
    for (uint32_t i = h->kind == RECORD_COMMAND ? (uint32_t)sizeof(struct request) : 0; i < h->length; i++)
        if (payload[i] != (uint8_t)(h->origin_sequence * 31 + i)) return false;
    return true;
}

bool oracle_in_memory(const uint8_t *log, uint64_t delivered, uint64_t lived_to, uint64_t index) {
    uint64_t position = decided(index - 1)->position % world.config.ring_bytes;
    const uint8_t *slot = log + REPLICA_RING_OFFSET + position;
    if (delivered >= index) return true;
    if (decided(index)->sequence > lived_to) return false;
    uint64_t room = world.config.ring_bytes - position + record_span(world.config.piece_bytes_max);
    return record_valid(slot, room, index, decided(index - 1)->hash, world.config.salt);
}

/* Nobody may be told before a majority has it. */
static void judge_first(const struct node *n, const struct record_header *h) {
    uint32_t holders;
    if (!members_hold(h->index, &holders))
        violation("index %llu was handed out by node %u when only %u members had it", (unsigned long long)h->index, n->number,
                  holders);
    if (h->index > 1 && decided(h->index - 1)->hash != h->prev_hash)
        violation("index %llu breaks the chain of hashes", (unsigned long long)h->index);
    if (h->kind == RECORD_NOOP) return;
    if (h->kind == RECORD_CONFIG) {
        if (!members_decided(h)) violation("index %llu: nobody proposed this change of membership", (unsigned long long)h->index);
        return;
    }
    if (h->origin_sequence == 0 || h->origin_sequence > world.proposed) {
        violation("index %llu: nobody proposed %llu", (unsigned long long)h->index, (unsigned long long)h->origin_sequence);
        return;
    }
    o.delivered = grown(o.delivered, &o.rooms, h->origin_sequence, 1);
    if (o.delivered[h->origin_sequence]++)
        violation("proposal %llu was decided twice, now at index %llu", (unsigned long long)h->origin_sequence,
                  (unsigned long long)h->index);
}

void oracle_delivered(struct node *n, const struct record_header *h) {
    uint64_t i = h->index, hash = record_hash(h);
    if (i != n->delivered + 1)
        violation("node %u was handed %llu after %llu", n->number, (unsigned long long)i, (unsigned long long)n->delivered);
    if (!payload_right(h)) violation("node %u was handed a wrong payload at index %llu", n->number, (unsigned long long)i);
    n->end += record_span(h->length);
    n->delivered = i;
    if (h->kind == RECORD_NOOP) n->noop_term = h->ballot >> 8;
    if (world.violated) return;
    struct decided *d = decided(i);
    if (d->hash) {
        if (d->hash != hash)
            violation("index %llu: node %u was handed another record than somebody before", (unsigned long long)i, n->number);
        if (d->position != n->end) violation("index %llu stands at two places", (unsigned long long)i);
        return;
    }
    *d = (struct decided){.hash = hash, .position = n->end, .sequence = h->origin_sequence};
    if (i > world.top) world.top = i;
    judge_first(n, h);
}

void oracle_point(uint64_t index, uint64_t position, uint64_t hash) {
    if (index > world.top || decided(index)->hash != hash || decided(index)->position != position)
        violation("a snapshot at %llu is not of this log", (unsigned long long)index);
}

/* ---- nodes --------------------------------------------------------------------------------------------------------- */

static void judge_leader(struct node *n, uint64_t term) {
    o.terms = grown(o.terms, &o.termed, term, sizeof *o.terms);
    if (n->noop_term != term)
        violation("node %u leads term %llu without having seen its NOOP", n->number, (unsigned long long)term);
    if (o.terms[term])
        violation("term %llu was opened by node %llu and again by node %u", (unsigned long long)term,
                  (unsigned long long)o.terms[term] - 1, n->number);
    o.terms[term] = n->number + 1;
    world.counts.leaders++;
    if (tracing()) trace(n->number, "leads term %llu", (unsigned long long)term);
}

void oracle_turn(struct node *n) {
    bool leads = replica_role(n->replica) == REPLICA_LEADER;
    uint64_t term = leads ? replica_term(n->replica) : 0;
    if (tracing() && n->term && !leads) trace(n->number, "leads no more");
    if (leads && term != n->term) judge_leader(n, term);
    if (leads && !replica_is_member(n->replica)) violation("node %u leads and is no member", n->number);
    n->term = term;
    if (replica_damage(n->replica) == REPLICA_DIVERGED) violation("node %u says that its log diverged", n->number);
    uint64_t commit = replica_commit(n->replica);
    if (commit < n->delivered) violation("node %u: the commit index went back to %llu", n->number, (unsigned long long)commit);
    if (commit == n->delivered && commit && decided(commit)->hash != replica_hash(n->replica))
        violation("node %u: another running hash at %llu", n->number, (unsigned long long)commit);
    members_turn(n);
    if (leads && commit > o.acknowledged) o.acknowledged = commit;
    uint64_t minimum = ((const struct replica_log_head *)sim_log(world.sim, n->number))->min_proposal;
    if (minimum < n->minimum) violation("node %u: the minimal proposal went back", n->number);
    n->minimum = minimum;
}

void oracle_proposed(const struct node *n, uint64_t sequence) {
    if (o.grant[n->number].holder != n->number)
        violation("node %u wrote proposal %llu into its own log, which node %d may write", n->number,
                  (unsigned long long)sequence, (int)o.grant[n->number].holder);
}

/* ---- the fabric ------------------------------------------------------------------------------------------------------ */

static void landing(void *context, const struct sim_landing *what) {
    (void)context;
    if (what->region != FABRIC_LOG) return;
    if (tracing())
        trace(what->to, "has %u bytes landed at %llu by node %u", what->length, (unsigned long long)what->offset, what->from);
    if (o.grant[what->to].holder != what->from || o.grant[what->to].epoch != what->epoch)
        violation("node %u wrote into the log of node %u under grant %llu; it is node %d's under %llu", what->from, what->to,
                  (unsigned long long)what->epoch, (int)o.grant[what->to].holder,
                  (unsigned long long)o.grant[what->to].epoch);
    if (world.node[what->to].dead && !world.config_processor)
        violation("node %u wrote into the memory of node %u, which is dead", what->from, what->to);
    uint64_t now, next;
    if (what->offset != offsetof(struct replica_log_head, min_proposal) || what->length != sizeof next) return;
    memcpy(&next, what->bytes, sizeof next);
    memcpy(&now, sim_log(world.sim, what->to), sizeof now);
    if (next < now) violation("node %u announced a smaller ballot to node %u than was there", what->from, what->to);
}

static void granted(void *context, uint32_t owner, uint32_t holder, uint64_t epoch) {
    (void)context;
    o.grant[owner].holder = holder;
    o.grant[owner].epoch = epoch;
    if (!tracing()) return;
    if (holder == SIM_NOBODY) trace(owner, "revokes, epoch %llu", (unsigned long long)epoch);
    else trace(owner, "grants its log to %u, epoch %llu", holder, (unsigned long long)epoch);
}

void oracle_watch(void) {
    struct sim_watch watch = {.landing = landing, .granted = granted};
    node_watch(&watch);
    sim_watch(world.sim, &watch);
}
