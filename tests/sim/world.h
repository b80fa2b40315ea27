/*
 * world.h: a cluster of real replicas (ffi/core) over the simulated fabric, their clients, and everything that may
 * happen to them, decided by one seed. The program that runs it is simulate.c.
 *
 *   world.c     the cluster: made from a seed, stepped, brought to rest       faults.c   what may happen to it, and when
 *   node.c      one node: its replica, its machine, what it does in a turn    oracle.c   what must hold at every moment
 *   clients.c   clients of the replicated machine, who retry                  history.c  was it linearizable?
 *   trace.c     one line per event                                            fiber.c    stopping in the middle of a call
 *   members.c   who belongs to it, as decided and as wanted                   machine.c  what is replicated
 *
 * A step of the world lets a little time pass, perhaps does harm, and gives some of the nodes a turn. Randomness comes
 * from four sequences of the seed, so that leaving out one fault changes nothing but what follows from it.
 */
#ifndef MUSIDECAR_WORLD_H
#define MUSIDECAR_WORLD_H

#include "check.h"
#include "core/mix.h"
#include "core/replica.h"
#include "fabric/sim.h"
#include "fiber.h"
#include "machine.h"

#define NODES_MAX 5u
#define TICK_US 500u
#define INBOX 64u  /* requests waiting at a node, power of two */
#define PENDING 64u /* requests that a node works on */
#define MAIL 48u /* more than kinds times nodes */

#define DEFER_US 20000u /* for which a hand-over keeps the others from campaigning */

enum mail_kind { MAIL_UP, MAIL_DOWN, MAIL_ELIGIBLE, MAIL_INELIGIBLE, MAIL_RESIGN, MAIL_ADD, MAIL_REMOVE, MAIL_CAMPAIGN, MAIL_DEFER };
struct mail {
    enum mail_kind kind;
    uint32_t peer;
};

struct pending { /* of a client, at the node that it asked */
    struct request request;
    uint64_t attempt;
    uint64_t term, index, probe; /* answered when this record of this term is delivered; or when this probe is done */
    uint64_t sequence;           /* of its proposal */
    uint64_t result;             /* of a read, as found when it arrived */
};

struct node {
    uint32_t number;
    struct replica *replica;
    struct fiber *fiber;
    bool dead, paused;
    bool busy;            /* its turn was interrupted in the middle of a call */
    uint64_t resume_us;   /* until then */
    uint32_t interrupt_after, interrupt_us; /* it shall be, at its so manieth use of the fabric, for so long */
    uint64_t clock_us;    /* its clock is ahead of the world's by this */
    uint64_t tick_us, delivered, end; /* end: position behind the last delivered */
    uint32_t laziness;                /* applies one time in so many */
    uint64_t lived_to;                /* proposals made when it died */
    uint64_t incarnation;             /* its present life, from INCARNATION_FIRST */
    uint64_t noop_term;  /* of the last NOOP delivered */
    uint64_t term;       /* in which it leads, as it knew after its last turn; 0: none */
    uint64_t minimum;    /* its minimal proposal, as last seen */
    struct machine machine;
    struct request_sent { struct request request; uint64_t attempt; } inbox[INBOX];
    uint32_t inbox_first, inbox_end;
    struct mail mail[MAIL];
    uint32_t mail_count;
    struct pending pending[PENDING];
    uint32_t pending_count;
};

struct settings { /* as asked for */
    uint64_t seed;
    uint32_t nodes; /* 0: as the seed says */
    uint32_t steps;
    bool trace;
    const char *weights, *script;
};

struct counts { /* of all seeds so far */
    uint64_t steps, core_steps, records, leaders, installs, laps, operations, faults, crashes, restarts, changes, interruptions;
    uint64_t settle_us_max; /* us of simulated time from the last fault to all being served */
};

struct world {
    struct settings settings;
    uint32_t nodes, step;
    uint64_t schedule, chaos, wishes; /* states of the random sequences: who runs when; faults; clients */
    uint64_t now_us, proposed, top;
    uint32_t interrupt_in; /* a call is interrupted at one in so many uses of the fabric; 0: never */
    uint32_t noise, pace_us;
    bool late_reads;       /* a read is executed when its probe is done, not before */
    bool settling, violated;
    bool config_processor; /* logs are written by processors: who stops, stops storing */
    struct replica_config config;
    struct sim *sim;
    struct node node[NODES_MAX];
    bool cut[NODES_MAX][NODES_MAX];
    struct counts counts;
};
extern struct world world;

static inline uint64_t draw(uint64_t *sequence, uint64_t sides) { return mix_next(sequence) % sides; }
static inline uint64_t roll(uint64_t sides) { return draw(&world.schedule, sides); }
static inline bool running(const struct node *n) { return !n->dead && !n->paused; }
static inline uint64_t node_now_us(const struct node *n) { return world.now_us + n->clock_us; }

/* ---- world.c */
/* One seed from beginning to end; false when something was violated. */
bool world_run(const struct settings *settings);
uint32_t world_alive(void);
/* Says what was violated, and how to see it again; the run ends. */
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Called by main() before abort() ends the program. */
void world_say_replay(void);

/* ---- node.c */
void node_begin(uint32_t i);
void node_turn(struct node *n); /* goes on with its turn, or begins one */
void node_send(struct node *n, enum mail_kind kind, uint32_t peer);
bool node_ask(struct node *n, const struct request *request, uint64_t attempt); /* false: its inbox is full */
bool node_rebirth(uint32_t i); /* it begins a new life, without its memory; false: not now */
void node_end(struct node *n);
void node_watch(struct sim_watch *watch);

#endif
