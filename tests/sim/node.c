/* node.c: one node: its replica, its copy of the replicated machine, and what it does in a turn: ticks, polls, hands
 * committed records to the machine, answers clients. A turn runs in the node's fiber: any use of the fabric may stop it
 * there, in the middle of a call to the core, while the others go on. */
#include <string.h>

#include "clients.h"
#include "members.h"
#include "oracle.h"
#include "trace.h"

#define NOISE_MAX 512u

static struct node *current; /* whose turn it is */

/* ---- stopping in the middle ------------------------------------------------------------------------------------ */

static void between(void *context, uint32_t i) {
    (void)context;
    struct node *n = &world.node[i];
    if (current != n) return;
    if (n->interrupt_after) {
        if (--n->interrupt_after) return;
        n->resume_us = world.now_us + n->interrupt_us;
    } else {
        if (!world.interrupt_in || world.settling || roll(world.interrupt_in)) return;
        n->resume_us = world.now_us + (roll(8) ? roll(300) : roll(12000));
    }
    n->busy = true;
    world.counts.interruptions++;
    if (tracing()) trace(i, "stops between two steps until %llu", (unsigned long long)n->resume_us);
    if (world.config_processor) sim_freeze(world.sim, i, true);
    fiber_leave(n->fiber);
}

/* ---- mail ------------------------------------------------------------------------------------------------------ */

/* What says the same as an earlier one replaces it, so there is always room. */
void node_send(struct node *n, enum mail_kind kind, uint32_t peer) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n->mail_count; i++)
        if (n->mail[i].kind != kind || n->mail[i].peer != peer) n->mail[kept++] = n->mail[i];
    n->mail[kept] = (struct mail){.kind = kind, .peer = peer};
    n->mail_count = kept + 1;
}

/* What its operator asks of whom he takes for the leader. */
static void change(struct node *n, uint32_t slot, enum membership_step step) {
    struct membership_change what = {.slot = slot, .step = step, .incarnation = world.node[slot].incarnation};
    uint64_t next = replica_last(n->replica) + 1;
    if (step == MEMBERSHIP_REMOVE) what.incarnation = replica_incarnation(n->replica, slot);
    if (replica_role(n->replica) != REPLICA_LEADER || !members_bear(&what)) return;
    members_proposed(next, &what); /* before the call: it may be stopped in the middle */
    int64_t index = replica_propose_member(n->replica, slot, step == MEMBERSHIP_ADD ? what.incarnation : 0);
    CHECK(index <= 0 || (uint64_t)index == next);
    if (index > 0 && tracing())
        trace(n->number, "proposes %lld: %s incarnation %llu of node %u", (long long)index,
              step == MEMBERSHIP_ADD ? "add" : "remove", (unsigned long long)what.incarnation, slot);
    if (index <= 0) members_withdraw(next, &what);
}

static void read_mail(struct node *n) {
    for (uint32_t i = 0; i < n->mail_count; i++) {
        struct mail m = n->mail[i];
        switch (m.kind) {
        case MAIL_UP:
            world.cut[n->number][m.peer] = false;
            sim_heal(world.sim, n->number, m.peer);
            replica_peer_up(n->replica, m.peer, node_now_us(n));
            break;
        case MAIL_DOWN: replica_peer_down(n->replica, m.peer, node_now_us(n)); break;
        case MAIL_ELIGIBLE: replica_set_eligible(n->replica, true); break;
        case MAIL_INELIGIBLE: replica_set_eligible(n->replica, false); break;
        case MAIL_RESIGN: replica_resign(n->replica, node_now_us(n)); break;
        case MAIL_CAMPAIGN: replica_campaign(n->replica, node_now_us(n)); break;
        case MAIL_DEFER: replica_defer(n->replica, node_now_us(n) + DEFER_US); break;
        case MAIL_ADD: change(n, m.peer, MEMBERSHIP_ADD); break;
        case MAIL_REMOVE: change(n, m.peer, MEMBERSHIP_REMOVE); break;
        }
    }
    n->mail_count = 0;
}

/* ---- clients at this node ---------------------------------------------------------------------------------------- */

bool node_ask(struct node *n, const struct request *request, uint64_t attempt) {
    if (n->inbox_end - n->inbox_first == INBOX) return false;
    n->inbox[n->inbox_end++ % INBOX] = (struct request_sent){.request = *request, .attempt = attempt};
    return true;
}

static void forget(struct node *n, uint32_t which) { n->pending[which] = n->pending[--n->pending_count]; }

/* What was asked under a term that has ended has an unknown outcome: whoever asked shall ask again. */
static void end_term(struct node *n) {
    uint64_t term = replica_role(n->replica) == REPLICA_LEADER ? replica_term(n->replica) : 0;
    for (uint32_t i = 0; i < n->pending_count;) {
        if (n->pending[i].term == term) {
            i++;
            continue;
        }
        clients_redirect(&n->pending[i].request, n->pending[i].attempt, replica_leader(n->replica));
        forget(n, i);
    }
}

static int64_t propose(struct node *n, enum record_kind kind, const struct request *request, uint32_t length,
                       uint64_t *proposal) {
    uint8_t payload[NOISE_MAX];
    uint64_t sequence = ++world.proposed; /* before the call: it may be stopped in the middle */
    uint32_t from = request ? (uint32_t)sizeof *request : 0;
    CHECK(length <= NOISE_MAX && length >= from);
    if (request) memcpy(payload, request, from);
    for (uint32_t i = from; i < length; i++) payload[i] = (uint8_t)(sequence * 31 + i);
    struct record_origin origin = {.node = n->number, .stream = request ? request->client + 1 : 0, .sequence = sequence};
    int64_t index = replica_propose(n->replica, kind, 0, origin, payload, length);
    if (index <= 0) return index;
    if (proposal) *proposal = sequence;
    oracle_proposed(n, sequence);
    if (tracing())
        trace(n->number, "proposes %lld: proposal %llu, %u bytes", (long long)index, (unsigned long long)sequence, length);
    return index;
}

static uint32_t some_length(uint32_t least) {
    uint32_t most = world.config.piece_bytes_max;
    return least + (uint32_t)(roll(8) == 0 ? roll(most + 1 - least) : roll(100));
}

/* False: to be tried again later. */
static bool serve(struct node *n, const struct request_sent *sent) {
    const struct request *q = &sent->request;
    if (replica_role(n->replica) != REPLICA_LEADER) {
        clients_redirect(q, sent->attempt, replica_leader(n->replica));
        return true;
    }
    if (n->pending_count == PENDING) return false;
    struct pending p = {.request = *q, .attempt = sent->attempt, .term = replica_term(n->replica)};
    if (q->op < OP_WRITES) {
        int64_t index = propose(n, RECORD_COMMAND, q, some_length(sizeof *q), &p.sequence);
        if (index == REPLICA_FULL) return false;
        p.index = index > 0 ? (uint64_t)index : 0;
    } else if (roll(4) == 0) { /* a record committed since the read came is as good as a probe */
        int64_t index = propose(n, RECORD_EFFECT, NULL, some_length(0), NULL);
        if (index == REPLICA_FULL) return false;
        p.index = index > 0 ? (uint64_t)index : 0;
    } else {
        p.probe = replica_probe(n->replica);
    }
    if (!p.index && !p.probe) { /* it leads no more */
        clients_redirect(q, sent->attempt, SIM_NOBODY);
        return true;
    }
    if (q->op >= OP_WRITES) p.result = machine_read(&n->machine, q);
    n->pending[n->pending_count++] = p;
    return true;
}

static void serve_all(struct node *n) {
    while (n->inbox_first != n->inbox_end && serve(n, &n->inbox[n->inbox_first % INBOX])) n->inbox_first++;
}

static void answer_reads(struct node *n) {
    bool leads = replica_role(n->replica) == REPLICA_LEADER;
    uint64_t term = replica_term(n->replica);
    for (uint32_t i = 0; i < n->pending_count;) {
        struct pending *p = &n->pending[i];
        bool done = p->request.op >= OP_WRITES && leads && p->term == term &&
                    (p->probe ? replica_probed(n->replica) >= p->probe : replica_commit(n->replica) >= p->index);
        if (!done) {
            i++;
            continue;
        }
        clients_answer(&p->request, world.late_reads ? machine_read(&n->machine, &p->request) : p->result);
        forget(n, i);
    }
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

static void execute(struct node *n, const struct record_header *h) {
    struct request q;
    uint64_t result;
    if (h->kind != RECORD_COMMAND) return;
    CHECK(h->length >= sizeof q);
    memcpy(&q, record_payload(h), sizeof q);
    CHECK(q.client < CLIENTS_MAX && q.key < KEYS && q.op < OP_WRITES);
    bool known = machine_write(&n->machine, &q, &result);
    for (uint32_t i = 0; i < n->pending_count; i++) {
        if (n->pending[i].sequence != h->origin_sequence) continue;
        if (known) clients_answer(&q, result);
        forget(n, i);
        return;
    }
}

static void drain(struct node *n) {
    const struct record_header *h;
    while (!world.violated && (h = replica_next(n->replica)) != NULL) {
        if (tracing()) trace_record(n->number, "is handed", h);
        oracle_delivered(n, h);
        if (!world.violated) execute(n, h);
    }
    if (roll(n->laziness) == 0) replica_applied(n->replica, n->delivered);
}

/* A snapshot of somebody sound who is ahead. */
static void install(struct node *n) {
    uint32_t first = replica_source(n->replica);
    for (uint32_t k = 0; k < world.nodes; k++) {
        struct node *from = &world.node[first == REPLICA_NOBODY ? k : (first + k) % world.nodes];
        if (from == n || !running(from) || from->busy || replica_damage(from->replica) != REPLICA_SOUND) continue;
        if (from->delivered <= n->delivered) continue;
        uint64_t index, position, hash;
        replica_applied(from->replica, from->delivered);
        replica_applied_point(from->replica, &index, &position, &hash);
        oracle_point(index, position, hash);
        if (tracing()) trace(n->number, "installs a snapshot of %u at %llu", from->number, (unsigned long long)index);
        struct replica_membership members = replica_applied_members(from->replica);
        replica_install(n->replica, index, position, hash, &members, node_now_us(n));
        n->machine = from->machine;
        n->delivered = index;
        n->end = position;
        world.counts.installs++;
        return;
    }
}

/* ---- a turn -------------------------------------------------------------------------------------------------------- */

static void turn(struct node *n) {
    read_mail(n);
    if (node_now_us(n) >= n->tick_us) {
        n->tick_us = node_now_us(n) + TICK_US;
        replica_tick(n->replica, node_now_us(n), TICK_US);
    }
    replica_poll(n->replica, node_now_us(n));
    drain(n);
    end_term(n);
    answer_reads(n);
    serve_all(n);
    while (world.noise && !world.settling && replica_role(n->replica) == REPLICA_LEADER && roll(world.noise) == 0)
        if (propose(n, roll(2) ? RECORD_EFFECT : RECORD_ADMIN, NULL, some_length(0), NULL) <= 0) break;
    if (roll(4) == 0) replica_flush_commit(n->replica);
    if (replica_damage(n->replica) == REPLICA_LAPPED && roll(8) == 0) install(n);
}

static void live(void *argument) {
    struct node *n = argument;
    for (;;) {
        turn(n);
        fiber_leave(n->fiber);
    }
}

void node_turn(struct node *n) {
    if (n->busy && world.now_us < n->resume_us) return;
    if (n->busy) sim_freeze(world.sim, n->number, false);
    n->busy = false;
    current = n;
    world.counts.core_steps++;
    fiber_enter(n->fiber);
    current = NULL;
    if (!n->busy && !world.violated) oracle_turn(n);
}

/* ---- lives --------------------------------------------------------------------------------------------------------- */

void node_begin(uint32_t i) {
    struct node *n = &world.node[i];
    world.config.self = n->number = i;
    world.config.incarnation = ++n->incarnation;
    n->replica = replica_new(&world.config, sim_fabric(world.sim, i), sim_log(world.sim, i), sim_background(world.sim, i));
    n->fiber = fiber_new(live, n);
    CHECK(n->replica != NULL);
    n->laziness = 1;
    n->tick_us = node_now_us(n) + roll(TICK_US);
    node_send(n, MAIL_ELIGIBLE, i);
    for (uint32_t j = 0; j < world.nodes; j++)
        if (i != j) node_send(n, MAIL_UP, j);
}

void node_end(struct node *n) {
    fiber_free(n->fiber);
    replica_free(n->replica);
    n->fiber = NULL;
    n->replica = NULL;
}

bool node_rebirth(uint32_t i) {
    struct node *n = &world.node[i];
    uint64_t clock_us = n->clock_us, incarnation = n->incarnation;
    if (!members_bury(n)) return false;
    node_end(n);
    *n = (struct node){.clock_us = clock_us, .incarnation = incarnation};
    sim_wipe(world.sim, i);
    node_begin(i); /* it links to the others, and they to it */
    for (uint32_t j = 0; j < world.nodes; j++) {
        if (j == i) continue;
        world.cut[i][j] = world.cut[j][i] = true;
        if (!world.node[j].dead) node_send(&world.node[j], MAIL_UP, i);
    }
    world.counts.restarts++;
    if (tracing()) trace(i, "begins life %llu, with empty memory", (unsigned long long)n->incarnation);
    return true;
}

void node_watch(struct sim_watch *watch) { watch->between = between; }
