/* world.c: see world.h. */
#include "world.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "clients.h"
#include "core/limits.h"
#include "faults.h"
#include "history.h"
#include "members.h"
#include "oracle.h"
#include "plant.h"
#include "trace.h"

/* Of simulated time, after the last fault: by then everybody must be served again. */
#define SETTLE_US 800000u

struct world world;

uint32_t world_alive(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < world.nodes; i++) count += !world.node[i].dead;
    return count;
}

/* ---- violations ------------------------------------------------------------------------------------------------ */

void world_say_replay(void) {
    const struct settings *s = &world.settings;
    printf("replay: musidecar-sim --seed %llu --replicas %u --steps %u", (unsigned long long)s->seed, world.nodes, s->steps);
    if (s->weights) printf(" --weights %s", s->weights);
    if (s->script) printf(" --script '%s'", s->script);
#ifdef MUSIDECAR_PLANTS
    for (int k = 0; k < PLANTS; k++)
        if (planted((enum plant)k)) printf(" --plant %s", plant_names[k]);
#endif
    printf("\n");
}

void violation(const char *format, ...) {
    va_list args;
    if (world.violated) return;
    world.violated = true;
    printf("violation: seed %llu, %u replicas, step %u, %llu us: ", (unsigned long long)world.settings.seed, world.nodes,
           world.step, (unsigned long long)world.now_us);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* ---- one seed ---------------------------------------------------------------------------------------------------- */

static void choose_sizes(void) {
    world.config = (struct replica_config){.nodes = world.nodes, .ring_bytes = 4096u << roll(3), .salt = 99 + world.settings.seed,
                                           .suspect_us = 2000, .fail_us = 4000, .late_us = 2500, .request_us = 1000,
                                           .seed = world.settings.seed};
    world.config.piece_bytes_max = roll(2) ? 300 : 500;
    world.config.pin_us = (uint32_t)roll(2) * 500;
    world.interrupt_in = roll(2) ? 40u << roll(6) : 0;
    world.noise = (uint32_t)roll(4) * 3;
    world.pace_us = 20 + (uint32_t)roll(80);
    world.late_reads = roll(2);
}

#ifdef MUSIDECAR_SIMULATED
struct replica_limits replica_limits = REPLICA_LIMITS;

static void choose_limits(void) {
    static const struct replica_limits usual = REPLICA_LIMITS;
    replica_limits = usual;
    if (roll(2)) return;
    replica_limits = (struct replica_limits){.completions = 1 + (uint32_t)roll(8), .record_posts = 2 + (uint32_t)roll(20),
                                             .feed_posts = 1 + (uint32_t)roll(4), .feed_bytes = (uint32_t)roll(2000),
                                             .scan_records = 1 + (uint32_t)roll(20), .walk_first = 64u << roll(4),
                                             .walk_bytes = 512u << roll(2)};
}
#else
static void choose_limits(void) {}
#endif

static void begin(const struct settings *settings) {
    static const uint32_t delays[] = {0, 20, 120, 120, 400}, parts[] = {0, 8, 64, 64};
    struct counts counts = world.counts;
    oracle_begin();
    memset(&world, 0, sizeof world);
    world.counts = counts;
    world.settings = *settings;
    world.schedule = settings->seed;
    world.chaos = settings->seed ^ MIX_A;
    world.wishes = settings->seed ^ MIX_B;
    world.nodes = roll(2) ? 3 : 5;
    if (settings->nodes) world.nodes = settings->nodes;
    world.now_us = 1000;
    choose_sizes();
    choose_limits();
    struct sim_config config = {.nodes = world.nodes, .log_bytes = replica_log_bytes(&world.config), .seed = settings->seed,
                                .background_bytes = replica_background_bytes(), .delay_max_us = delays[roll(5)],
                                .part_bytes = parts[roll(4)], .scatter = roll(3) == 0, .processor = roll(2)};
    world.config_processor = config.processor;
    world.sim = sim_new(&config);
    oracle_watch();
    history_begin();
    if (tracing())
        trace(SIM_NOBODY, "seed %llu: %u replicas, ring %llu, %s, delay %u us, parts of %u%s", (unsigned long long)settings->seed,
              world.nodes, (unsigned long long)world.config.ring_bytes, config.processor ? "processors" : "network cards",
              config.delay_max_us, config.part_bytes, config.scatter ? " in any order" : "");
    members_begin();
    for (uint32_t i = 0; i < world.nodes; i++) node_begin(i);
    clients_begin();
}

static void step(void) {
    world.step++;
    world.counts.steps++;
    world.now_us += roll(4) ? roll(world.pace_us) : roll(5u * world.pace_us);
    sim_advance(world.sim, world.now_us);
    if (world.settling) members_operate();
    else faults_step();
    clients_step();
    for (uint32_t i = 0; i < world.nodes && !world.violated; i++) {
        struct node *n = &world.node[i];
        if (running(n) && roll(3)) node_turn(n);
    }
}

static bool settled(uint64_t acknowledged) {
    for (uint32_t i = 0; i < world.nodes; i++) {
        const struct node *n = &world.node[i];
        if (!n->dead && (n->delivered < acknowledged || replica_damage(n->replica) != REPLICA_SOUND)) return false;
    }
    return members_settled() && clients_served();
}

/* The faults stop: everybody alive comes to the same end, and every client is served again. */
static void settle(void) {
    uint64_t start_us = world.now_us, acknowledged = oracle_acknowledged();
    world.settling = true;
    trace(SIM_NOBODY, "the faults stop");
    faults_stop();
    clients_mark();
    while (!world.violated && !settled(acknowledged)) {
        step();
        if (world.now_us - start_us <= SETTLE_US || world.violated) continue;
        violation("no progress for %u us after the faults stopped: %u clients wait, %llu was acknowledged", SETTLE_US,
                  clients_waiting(), (unsigned long long)acknowledged);
    }
    uint64_t took_us = world.now_us - start_us;
    if (took_us > world.counts.settle_us_max) world.counts.settle_us_max = took_us;
}

static void judge_history(void) {
    const struct node *most = &world.node[0];
    for (uint32_t i = 1; i < world.nodes; i++)
        if (world.node[i].delivered > most->delivered) most = &world.node[i];
    const char *wrong = history_judge(&most->machine);
    if (wrong) violation("the clients' history is not linearizable: %s", wrong);
}

bool world_run(const struct settings *settings) {
    begin(settings);
    bool understood = faults_begin(settings->weights, settings->script);
    CHECK(understood);
    while (world.step < settings->steps && !world.violated) step();
    if (!world.violated) settle();
    if (!world.violated) judge_history();
    if (world.violated) {
        world_say_replay();
        trace_nodes();
    }
    world.counts.records += world.top;
    uint64_t laps = 0;
    for (uint32_t i = 0; i < world.nodes; i++) {
        if (world.node[i].end / world.config.ring_bytes > laps) laps = world.node[i].end / world.config.ring_bytes;
        node_end(&world.node[i]);
    }
    world.counts.laps += laps;
    members_end();
    sim_free(world.sim);
    return !world.violated;
}
