/* machine.h: the replicated state machine of the simulation: registers, counters and append-only lists, and for each
 * client the sequence and result of what it last wrote, so that a retry is not executed twice. */
#ifndef MUSIDECAR_MACHINE_H
#define MUSIDECAR_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#define CLIENTS_MAX 12u
#define KEYS 2u /* of each type */

enum op { OP_SET, OP_INCR, OP_APPEND, OP_WRITES, OP_GET = OP_WRITES, OP_COUNT, OP_LENGTH, OPS };

struct request { /* starts the payload of every COMMAND */
    uint32_t client, sequence;
    uint32_t op, key;
    uint64_t value; /* SET: unlike any other's */
};

struct machine {
    uint64_t registers[KEYS], counters[KEYS], lengths[KEYS];
    struct { uint64_t sequence, result; } clients[CLIENTS_MAX];
};

/* Executes a write unless it was before; false when the client has since written something else. */
bool machine_write(struct machine *m, const struct request *q, uint64_t *result);
uint64_t machine_read(const struct machine *m, const struct request *q);

#endif
