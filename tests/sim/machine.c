/* machine.c: see machine.h. */
#include "machine.h"

#include "history.h"

bool machine_write(struct machine *m, const struct request *q, uint64_t *result) {
    if (q->sequence < m->clients[q->client].sequence) return false;
    if (q->sequence == m->clients[q->client].sequence) { /* a retry */
        *result = m->clients[q->client].result;
        return true;
    }
    switch (q->op) {
    case OP_SET: *result = m->registers[q->key] = q->value; break;
    case OP_INCR: *result = ++m->counters[q->key]; break;
    default:
        *result = ++m->lengths[q->key];
        history_appended(q->key, *result, (uint64_t)q->client << 32 | q->sequence);
        break;
    }
    m->clients[q->client].sequence = q->sequence;
    m->clients[q->client].result = *result;
    return true;
}

uint64_t machine_read(const struct machine *m, const struct request *q) {
    switch (q->op) {
    case OP_GET: return m->registers[q->key];
    case OP_COUNT: return m->counters[q->key];
    default: return m->lengths[q->key];
    }
}
