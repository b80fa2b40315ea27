/*
 * simulate.c: the simulator. Runs seeds, one after the other, until one violates what must hold:
 *
 *   simulate [--seed N] [--seeds N] [--steps N] [--replicas N] [--trace]
 *            [--weights crash=3,pause=10] [--script "40 pause 0; 90 continue 0"] [--plant NAME]
 *
 * Exit 0 and a line of counts (JSON); or 1, with what was violated and how to replay it. musidecar-sim compiles and calls
 * it; `simulate --faults` and `--plants` list names, `--check-histories` judges histories from stdin.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "faults.h"
#include "history.h"
#include "oracle.h"
#include "plant.h"

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* others may be busy, too */
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The core found out by itself that something is wrong. */
static void aborted(int signal_number) {
    (void)signal_number;
    violation("the core stopped at an assertion of its own");
    world_say_replay();
    fflush(stdout);
    _exit(1);
}

static bool plant(const char *names) {
#ifdef MUSIDECAR_PLANTS
    return plant_choose(names);
#else
    (void)names;
    return false; /* built without them */
#endif
}

static void list_plants(void) {
#ifdef MUSIDECAR_PLANTS
    for (int k = 0; k < PLANTS; k++) puts(plant_names[k]);
#endif
}

static void say_counts(uint64_t seeds, double seconds) {
    const struct counts *c = &world.counts;
    printf("{\"seeds\": %llu, \"seconds\": %.3f, \"steps\": %llu, \"core_steps\": %llu, \"records\": %llu, \"leaders\": %llu, "
           "\"snapshots\": %llu, \"laps\": %llu, \"operations\": %llu, \"faults\": %llu, \"crashes\": %llu, \"restarts\": %llu, \"changes\": %llu, "
           "\"interruptions\": %llu, \"settle_us_max\": %llu}\n",
           (unsigned long long)seeds, seconds, (unsigned long long)c->steps,
           (unsigned long long)c->core_steps, (unsigned long long)c->records, (unsigned long long)c->leaders,
           (unsigned long long)c->installs, (unsigned long long)c->laps, (unsigned long long)c->operations,
           (unsigned long long)c->faults, (unsigned long long)c->crashes, (unsigned long long)c->restarts, (unsigned long long)c->changes,
           (unsigned long long)c->interruptions, (unsigned long long)c->settle_us_max);
}

static bool read_options(int argc, char **argv, struct settings *s, uint64_t *seeds) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--trace") == 0) {
            s->trace = true;
            continue;
        }
        if (++i == argc) return false;
        uint64_t number = strtoull(argv[i], NULL, 10);
        if (strcmp(name, "--seed") == 0) s->seed = number;
        else if (strcmp(name, "--seeds") == 0) *seeds = number;
        else if (strcmp(name, "--steps") == 0) s->steps = (uint32_t)number;
        else if (strcmp(name, "--replicas") == 0) s->nodes = (uint32_t)number;
        else if (strcmp(name, "--weights") == 0) s->weights = argv[i];
        else if (strcmp(name, "--script") == 0) s->script = argv[i];
        else if (strcmp(name, "--plant") != 0 || !plant(argv[i])) return false;
    }
    return s->nodes <= NODES_MAX && faults_begin(s->weights, s->script);
}

int main(int argc, char **argv) {
    struct settings settings = {.seed = 1, .steps = 2000};
    uint64_t wanted = 1, seeds = 0;
    if (argc == 2 && strcmp(argv[1], "--faults") == 0) return faults_list(), 0;
    if (argc == 2 && strcmp(argv[1], "--plants") == 0) return list_plants(), 0;
    if (argc == 2 && strcmp(argv[1], "--check-histories") == 0) return history_check_lines();
    world.nodes = 1;
    if (!read_options(argc, argv, &settings, &wanted)) {
        fprintf(stderr, "simulate: options not understood\n");
        return 2;
    }
    signal(SIGABRT, aborted);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever started it is the only one to hear of what it finds */
    double start_s = now_s();
    bool sound = true;
    for (; seeds < wanted && sound; seeds++, settings.seed++) sound = world_run(&settings);
    say_counts(seeds, now_s() - start_s);
    oracle_free();
    history_free();
    return sound ? 0 : 1;
}
