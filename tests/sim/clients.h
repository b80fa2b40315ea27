/* clients.h: those who use the cluster. A client asks one node one thing at a time; without an answer it asks again,
 * the same thing under the same sequence, there or elsewhere; seldom it gives up and lives on, not knowing. */
#ifndef MUSIDECAR_CLIENTS_H
#define MUSIDECAR_CLIENTS_H

#include "world.h"

void clients_begin(void);
void clients_step(void);
void clients_answer(const struct request *request, uint64_t result);
/* That node does not lead; `hint` may. */
void clients_redirect(const struct request *request, uint64_t attempt, uint32_t hint);
/* The faults have stopped: has every client done something from beginning to end since? */
void clients_mark(void);
bool clients_served(void);
uint32_t clients_waiting(void);

#endif
