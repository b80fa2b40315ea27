/*
 * gate_loop.h: a gate (gate.h) with its sockets, its device and HERD's registry: one thread, which sleeps unless something is under
 * way, and then looks for replies for `spin_us` before it sleeps.
 */
#ifndef MUSIDECAR_GATE_LOOP_H
#define MUSIDECAR_GATE_LOOP_H

#include <stdint.h>

#include "gate/gate.h"

struct gate_loop_config {
    struct gate_config gate;
    uint32_t port_index, spin_us;
    uint64_t start_us;       /* HERD may take so long to be there */
    int listener, registry;  /* listening, stay the caller's: those who ask (Unix), and HERD (TCP) */
    int stop;                /* readable: end */
};

enum gate_loop_end {
    GATE_STOPPED = 0,
    GATE_CONNECTED = 1, /* HERD's master is: its workers may be started. Told once; run on */
    GATE_FAILED = 2,    /* `why` */
    GATE_HERD_ENDED = 3 /* a process of HERD's has: its number is in `why` */
};

struct gate_loop;

/* NULL: why. */
struct gate_loop *gate_loop_new(const struct gate_loop_config *config, char *why, uint32_t why_bytes);
void gate_loop_free(struct gate_loop *l);
const char *gate_loop_device(const struct gate_loop *l);
/* Ends when this pidfd is readable. 0, or -1 with errno. */
int gate_loop_watch(struct gate_loop *l, int pidfd, uint32_t number);
enum gate_loop_end gate_loop_run(struct gate_loop *l, char *why, uint32_t why_bytes);
/* What HERD takes for one request at a time, with nothing before it, once it serves: `count` of them, PUTs or GETs of what was put,
 * their times in ns. False: it did not answer. The loop is of no use afterwards. */
bool gate_loop_bare(struct gate_loop *l, uint32_t count, bool puts, uint64_t *ns);

#endif
