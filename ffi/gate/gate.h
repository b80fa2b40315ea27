/*
 * gate.h: between those who ask in the terms of wire.h, over a few stream connections, and HERD, which takes requests of one client in
 * slots of memory and answers with datagrams that say nothing but from which worker they come. Pure: bytes come in, bytes and slots
 * go out; gate_loop.c has the sockets and the device.
 *
 * A request becomes one step for HERD for each of its keys (a deletion two: what was there, and that it is not there any more), which
 * wait in the order of their coming for their worker, one queue each. A worker does its client's steps in order, at most 32 of them
 * under way, so the next reply of a worker belongs to the oldest of its steps. It says so nowhere: one that is lost
 * puts all behind it off by one. That a PUT is done is true all the same, for what was asked later is done later; so is a value with the
 * check of the key that was asked for. A miss is told only once a number of the gate's own, put and got behind it, has come back as it
 * should. Whatever does not fit, and a worker that is silent for too long, ends the gate, and what HERD holds is given up.
 */
#ifndef MUSIDECAR_GATE_H
#define MUSIDECAR_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocols/herd/slot.h"
#include "protocols/herd/wire.h"

#define GATE_WORKERS_MAX 128u
#define GATE_CONNECTIONS_MAX 64u

struct gate;

struct gate_config {
    uint32_t workers, keys_max;
    uint64_t answer_us; /* a worker may take so long */
};

/* NULL: no memory for so many keys. */
struct gate *gate_new(const struct gate_config *config);
void gate_free(struct gate *g);
/* Before: only WIRE_PING is answered, with `waits_for`. */
void gate_serve(struct gate *g, uint32_t clients);
void gate_waits_for(struct gate *g, const char *what);
const char *gate_awaited(const struct gate *g);

/* ---- those who ask ---- */
int gate_open(struct gate *g); /* a connection's number; -1: there are too many */
void gate_close(struct gate *g, int connection);
/* What it sends. False: it is none of wire.h's: close it. */
bool gate_input(struct gate *g, int connection, const uint8_t *bytes, size_t length);
bool gate_wants_input(const struct gate *g, int connection);
/* What it is to be sent. */
const uint8_t *gate_output(const struct gate *g, int connection, size_t *length);
void gate_sent(struct gate *g, int connection, size_t length);

/* ---- HERD ---- */
struct gate_step {
    uint32_t worker, length; /* bytes of the slot to be written; of a PUT, its opcode apart and later */
    bool is_put;
    uint64_t at;             /* in the request region */
    uint8_t slot[HERD_SLOT_BYTES];
};
/* The next thing to be written, under way from now on; false: nothing, or nothing more until there are replies. */
bool gate_next(struct gate *g, uint64_t now_ns, struct gate_step *step);
/* A worker has sent this. False: it was not asked. */
bool gate_reply(struct gate *g, uint32_t worker, const uint8_t *bytes, size_t length, uint64_t now_ns);
void gate_stray(struct gate *g);
bool gate_under_way(const struct gate *g);
/* The worker that has been silent for too long, or -1. Time in which this was not asked does not count: nobody was listening. */
int gate_silent(struct gate *g, uint64_t now_ns);
void gate_status(const struct gate *g, struct wire_status *out);

#endif
