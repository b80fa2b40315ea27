/*
 * schedule.c: seeded random schedules of a simulated cluster, judged by one oracle that sees every commit. A program of
 * its own so that it runs under the sanitizers:
 *
 *   schedule NODES FIRST_SEED SEEDS STEPS BUGS
 *
 * The oracle: per index one record, at every node, ever; every record proposed at most once and delivered at most once;
 * what a leader sees committed is in the memory of a majority that lived to see it, and in every log; equal hashes at equal indexes; and once the faults stop, a leader serves
 * and everybody gets to the same end. Exit 1 with the seed when it is broken; BUGS plants mistakes in the fabric
 * (enum sim_bug), which must then be noticed. A failing seed runs alone as `schedule NODES SEED 1 STEPS 0`.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "core/mix.h"
#include "core/replica.h"
#include "fabric/sim.h"

#define NODES_MAX 5u
#define INDEX_MAX 200000u
#define TICK_US 500u

struct decided {
    uint64_t hash;     /* of the log up to it; 0: unknown */
    uint64_t position; /* behind it */
    uint64_t sequence; /* of its proposal, COMMANDs and EFFECTs */
};

struct node {
    struct replica *replica;
    bool dead, paused;
    uint64_t tick_us, delivered, end; /* end: position behind the last delivered */
    uint32_t laziness;                /* applies one time in so many */
    uint64_t lived_to;                /* proposals made when it died */
};

static struct {
    uint32_t nodes;
    uint64_t seed, random, now_us, proposed, leaders, installs, wraps;
    struct replica_config config;
    struct sim *sim;
    struct node node[NODES_MAX];
    bool cut[NODES_MAX][NODES_MAX];
    uint64_t acknowledged; /* highest index that a leader saw committed */
    uint64_t sequences_seen, top;
} world;
static struct decided decided[INDEX_MAX];
static uint8_t delivered_sequences[INDEX_MAX];
static bool violated;

static void violation(const char *format, ...) {
    va_list args;
    va_start(args, format);
    printf("seed %llu nodes %u at %llu us: ", (unsigned long long)world.seed, world.nodes,
           (unsigned long long)world.now_us);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    violated = true;
}

static uint64_t roll(uint64_t sides) { return mix_next(&world.random) % sides; }

/* ---- the oracle ------------------------------------------------------------------------------------------------ */

static bool payload_right(const struct record_header *h) {
    const uint8_t *payload = record_payload(h);
    if (h->kind == RECORD_NOOP) return h->length == 8 && memcmp(payload, &h->ballot, 8) == 0;
    uint64_t stream = h->origin_sequence;
    for (uint32_t i = 0; i < h->length; i += 97)
        if (payload[i] != (uint8_t)(stream * 31 + i)) return false;
    return true;
}

static void judge(struct node *n, const struct record_header *h) {
    uint64_t hash = record_hash(h);
    uint64_t i = h->index;
    CHECK(i < INDEX_MAX);
    if (i != n->delivered + 1) violation("node delivered %llu after %llu", (unsigned long long)i, (unsigned long long)n->delivered);
    if (!payload_right(h)) violation("index %llu has a wrong payload", (unsigned long long)i);
    n->end += record_span(h->length);
    n->delivered = i;
    if (decided[i].hash) {
        if (decided[i].hash != hash) violation("index %llu decided twice", (unsigned long long)i);
        if (decided[i].position != n->end) violation("index %llu at two places", (unsigned long long)i);
        return;
    }
    decided[i] = (struct decided){.hash = hash, .position = n->end, .sequence = h->origin_sequence};
    if (i > world.top) world.top = i;
    if (i > 1 && decided[i - 1].hash != h->prev_hash) violation("index %llu breaks the chain", (unsigned long long)i);
    if (h->kind == RECORD_NOOP) return;
    if (h->origin_sequence == 0 || h->origin_sequence > world.proposed) violation("nobody proposed %llu", (unsigned long long)h->origin_sequence);
    if (delivered_sequences[h->origin_sequence]++) violation("proposal %llu decided twice", (unsigned long long)h->origin_sequence);
}

/* Is the record in this node's memory, or was it and is applied? */
static bool holds(uint32_t i, uint64_t index) {
    const struct node *n = &world.node[i];
    uint64_t position = decided[index - 1].position % world.config.ring_bytes;
    const uint8_t *slot = (const uint8_t *)sim_log(world.sim, i) + REPLICA_RING_OFFSET + position;
    if (n->delivered >= index) return true;
    if (n->dead && decided[index].sequence > n->lived_to) return false;
    uint64_t room = world.config.ring_bytes - position + record_span(world.config.piece_bytes_max);
    return record_valid(slot, room, index, decided[index - 1].hash, world.config.salt);
}

/* The leader has just seen everything up to here committed. */
static void acknowledge(uint64_t index) {
    for (uint64_t i = world.acknowledged + 1; i <= index && !violated; i++) {
        uint32_t holders = 0;
        for (uint32_t k = 0; k < world.nodes; k++) holders += holds(k, i);
        if (holders < world.nodes / 2 + 1) violation("index %llu committed with %u holders", (unsigned long long)i, holders);
    }
    if (index > world.acknowledged) world.acknowledged = index;
}

static void drain(struct node *n) {
    const struct record_header *h;
    while (!violated && (h = replica_next(n->replica)) != NULL) judge(n, h);
    if (replica_role(n->replica) == REPLICA_LEADER && !violated) acknowledge(replica_commit(n->replica));
    if (roll(n->laziness) == 0) replica_applied(n->replica, n->delivered);
    if (replica_damage(n->replica) == REPLICA_DIVERGED) violation("a log diverged");
}

/* ---- driving --------------------------------------------------------------------------------------------------- */

static bool running(const struct node *n) { return !n->dead && !n->paused; }

/* A snapshot of the most advanced sound node. */
static void install(struct node *n) {
    for (uint32_t i = 0; i < world.nodes; i++) {
        struct node *from = &world.node[i];
        if (from == n || !running(from) || replica_damage(from->replica) != REPLICA_SOUND) continue;
        uint64_t index, position, hash;
        replica_applied_point(from->replica, &index, &position, &hash);
        if (index <= n->delivered) continue;
        if (decided[index].hash != hash || decided[index].position != position) violation("snapshot point is wrong");
        replica_install(n->replica, index, position, hash, world.now_us);
        n->delivered = index;
        n->end = position;
        world.installs++;
        return;
    }
}

static void propose(struct node *n, bool small) {
    uint8_t payload[512];
    uint32_t length = small ? 16 : (uint32_t)roll(8) == 0 ? (uint32_t)roll(world.config.piece_bytes_max + 1) : (uint32_t)roll(100);
    uint64_t sequence = world.proposed + 1;
    for (uint32_t i = 0; i < length; i++) payload[i] = (uint8_t)(sequence * 31 + i);
    enum record_kind kind = roll(2) ? RECORD_COMMAND : RECORD_EFFECT;
    struct record_origin origin = {.node = n->replica == NULL, .stream = 1, .sequence = sequence};
    CHECK(sequence < INDEX_MAX);
    if (replica_propose(n->replica, kind, 0, origin, payload, length) > 0) world.proposed++;
}

static void drive(struct node *n) {
    if (world.now_us >= n->tick_us) {
        n->tick_us = world.now_us + TICK_US;
        replica_tick(n->replica, world.now_us, TICK_US);
    }
    enum replica_role before = replica_role(n->replica);
    replica_poll(n->replica, world.now_us);
    drain(n);
    if (before != REPLICA_LEADER && replica_role(n->replica) == REPLICA_LEADER) world.leaders++;
    if (replica_damage(n->replica) == REPLICA_LAPPED && roll(8) == 0) install(n);
}

static uint32_t alive(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < world.nodes; i++) count += !world.node[i].dead;
    return count;
}

static void pause_node(uint32_t i, bool paused) {
    world.node[i].paused = paused;
    sim_freeze(world.sim, i, paused && roll(2)); /* stores by its processor stand still, those by a network card go on */
}

static void cut(uint32_t from, uint32_t to, bool now_cut) {
    if (world.cut[from][to] == now_cut) return;
    world.cut[from][to] = now_cut;
    if (now_cut) {
        sim_cut(world.sim, from, to);
        return;
    }
    sim_heal(world.sim, from, to);
    replica_peer_up(world.node[from].replica, to, world.now_us);
}

static void harm(void) {
    uint32_t i = (uint32_t)roll(world.nodes), j = (uint32_t)roll(world.nodes);
    struct node *n = &world.node[i];
    if (n->dead) return;
    switch (roll(12)) {
    case 0:
        if (roll(6) || alive() - 1 < world.nodes / 2 + 1) return; /* a majority stays */
        n->dead = true;
        n->lived_to = world.proposed;
        sim_crash(world.sim, i);
        if (roll(2)) break; /* nobody is told: heartbeats will show */
        for (uint32_t k = 0; k < world.nodes; k++)
            if (k != i && running(&world.node[k])) replica_peer_down(world.node[k].replica, i, world.now_us);
        break;
    case 1: case 2: pause_node(i, true); break;
    case 3: case 4: case 5: pause_node(i, false); break;
    case 6:
        if (i != j) cut(i, j, true);
        break;
    case 7: case 8: case 9:
        if (i != j && running(n)) cut(i, j, false);
        break;
    case 10: n->laziness = 1 + (uint32_t)roll(60) * (uint32_t)roll(10); break;
    case 11:
        if (i != j) sim_set_slow(world.sim, i, j, roll(2) ? (uint32_t)roll(400) : 0);
        if (roll(3) == 0 && running(n)) replica_resign(n->replica, world.now_us);
        break;
    }
}

static void begin(uint32_t nodes, uint64_t seed, uint32_t bugs) {
    memset(&world, 0, sizeof world);
    memset(decided, 0, sizeof decided);
    memset(delivered_sequences, 0, sizeof delivered_sequences);
    world.nodes = nodes;
    world.seed = world.random = seed;
    world.now_us = 1000;
    world.config = (struct replica_config){.nodes = nodes, .ring_bytes = 4096u << roll(3), .salt = 99 + seed,
                                           .suspect_us = 2000, .fail_us = 4000, .late_us = 2500, .request_us = 1000, .seed = seed};
    world.config.piece_bytes_max = roll(2) ? 300 : 500;
    world.config.pin_us = (uint32_t)roll(2) * 500;
    struct sim_config config = {.nodes = nodes, .log_bytes = replica_log_bytes(&world.config), .seed = seed,
                                .background_bytes = replica_background_bytes(),
                                .delay_max_us = (uint32_t)(roll(3) ? roll(120) : 0), .part_bytes = roll(2) ? 64 : 0};
    world.sim = sim_new(&config);
    sim_plant(world.sim, bugs);
    for (uint32_t i = 0; i < nodes; i++) {
        world.config.self = i;
        struct node *n = &world.node[i];
        n->replica = replica_new(&world.config, sim_fabric(world.sim, i), sim_log(world.sim, i), sim_background(world.sim, i));
        CHECK(n->replica != NULL);
        n->laziness = 1;
        n->tick_us = world.now_us + roll(TICK_US);
        replica_set_eligible(n->replica, true);
    }
    for (uint32_t i = 0; i < nodes; i++)
        for (uint32_t j = 0; j < nodes; j++)
            if (i != j) replica_peer_up(world.node[i].replica, j, world.now_us);
}

static void step(uint32_t harm_in) {
    world.now_us += roll(4) ? roll(60) : roll(300);
    sim_advance(world.sim, world.now_us);
    if (harm_in && roll(harm_in) == 0) harm();
    for (uint32_t i = 0; i < world.nodes && !violated; i++) {
        struct node *n = &world.node[i];
        if (!running(n) || roll(3) == 0) continue;
        drive(n);
        while (replica_role(n->replica) == REPLICA_LEADER && roll(3) == 0) propose(n, false);
    }
}

/* The faults stop: everybody alive must come to the same end, with one more record. */
static void settle(void) {
    for (uint32_t i = 0; i < world.nodes; i++) {
        if (!world.node[i].dead) pause_node(i, false);
        world.node[i].laziness = 1;
        for (uint32_t j = 0; j < world.nodes; j++) {
            if (i == j) continue;
            sim_set_slow(world.sim, i, j, 0);
            if (!world.node[i].dead && !world.node[j].dead) cut(i, j, false);
        }
    }
    uint64_t before = world.proposed;
    for (int round = 0; round < 8000 && !violated; round++) {
        step(0);
        if (round < 4000) continue;
        bool same = false;
        for (uint64_t i = before + 1; i <= world.proposed; i++) same |= delivered_sequences[i];
        uint64_t least = UINT64_MAX;
        for (uint32_t i = 0; i < world.nodes; i++)
            if (!world.node[i].dead && world.node[i].delivered < least) least = world.node[i].delivered;
        if (same && least >= world.acknowledged) return;
    }
    if (violated) return;
    violation("no progress: acknowledged %llu, top %llu, %u alive", (unsigned long long)world.acknowledged, (unsigned long long)world.top, alive());
    for (uint32_t i = 0; i < world.nodes; i++) {
        struct replica *r = world.node[i].replica;
        printf("  node %u%s role %d leader %d term %llu commit %llu last %llu delivered %llu damage %d alive %x confirmed %x free %llu\n", i,
               world.node[i].dead ? " (dead)" : "", replica_role(r), (int)replica_leader(r), (unsigned long long)replica_term(r),
               (unsigned long long)replica_commit(r), (unsigned long long)replica_last(r), (unsigned long long)world.node[i].delivered,
               replica_damage(r), replica_alive(r), replica_confirmed(r), (unsigned long long)replica_free_bytes(r));
    }
}

static void finish(void) {
    for (uint32_t i = 0; i < world.nodes; i++) {
        if (world.node[i].end / world.config.ring_bytes > world.wraps) world.wraps = world.node[i].end / world.config.ring_bytes;
        replica_free(world.node[i].replica);
    }
    sim_free(world.sim);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    uint32_t nodes = (uint32_t)atoi(argv[1]), seeds = (uint32_t)atoi(argv[3]), steps = (uint32_t)atoi(argv[4]);
    uint64_t first = strtoull(argv[2], NULL, 10);
    uint64_t records = 0, leaders = 0, installs = 0, wraps = 0, failed = 0;
    CHECK(nodes >= 1 && nodes <= NODES_MAX);
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        violated = false;
        begin(nodes, seed, (uint32_t)atoi(argv[5]));
        uint32_t harm_in = 10 + (uint32_t)roll(200);
        for (uint32_t i = 0; i < steps && !violated; i++) step(harm_in);
        if (!violated) settle();
        finish();
        failed += violated;
        records += world.top;
        leaders += world.leaders;
        installs += world.installs;
        wraps += world.wraps;
    }
    printf("%u nodes, %u seeds: %llu records decided, %llu leaders, %llu snapshots, %llu laps, %llu violated\n", nodes, seeds,
           (unsigned long long)records, (unsigned long long)leaders, (unsigned long long)installs, (unsigned long long)wraps,
           (unsigned long long)failed);
    return failed ? 1 : 0;
}
