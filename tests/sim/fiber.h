/*
 * fiber.h: a thread of control of its own inside this thread: entered, it runs until it leaves, and goes on from there
 * when it is entered again. So a replica can be stopped in the middle of a call, deterministically.
 */
#ifndef MUSIDECAR_FIBER_H
#define MUSIDECAR_FIBER_H

struct fiber;
/* `run` never returns; it leaves when it has nothing to do. */
struct fiber *fiber_new(void (*run)(void *), void *argument);
void fiber_free(struct fiber *f);
/* From outside any fiber. */
void fiber_enter(struct fiber *f);
/* From inside: back to whoever entered. */
void fiber_leave(struct fiber *f);

#endif
