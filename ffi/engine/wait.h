/*
 * wait.h: WAIT. What a client was answered is in the log of a majority; how many other nodes' logs hold it the leader
 * knows, by what each has completed. A client that wants more of them than a majority has waits here, at the leader, until
 * so many have, or its time is over, and is told how many do: never more than it was.
 *
 * Only what is committed is asked for: a client waits once everything before is answered.
 */
#ifndef MUSIDECAR_WAIT_H
#define MUSIDECAR_WAIT_H

#include <stddef.h>
#include <stdint.h>

struct engine;
struct destination;

void waits_init(struct engine *e);
void waits_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length); /* a struct session_wait */
void waits_step(struct engine *e);                                  /* each tick */
void waits_close(struct engine *e, const struct destination *to);   /* the client is gone */
void waits_drop(struct engine *e);                                  /* this node does not lead any more */

#endif
