/* trace.c: see trace.h. */
#include "trace.h"

#include <stdarg.h>
#include <stdio.h>

void trace(uint32_t node, const char *format, ...) {
    va_list args;
    if (!tracing()) return;
    printf("%6u %9llu us  ", world.step, (unsigned long long)world.now_us);
    if (node == SIM_NOBODY) printf("       ");
    else printf("node %u ", node);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

void trace_record(uint32_t node, const char *what, const struct record_header *h) {
    static const char *const kinds[] = {"?", "COMMAND", "EFFECT", "NOOP", "CONFIG", "ADMIN"};
    trace(node, "%s %llu: %s of %u bytes, ballot %llu.%llu, proposal %llu", what, (unsigned long long)h->index,
          kinds[h->kind <= RECORD_ADMIN ? h->kind : 0], h->length, (unsigned long long)h->ballot >> 8,
          (unsigned long long)h->ballot & 255, (unsigned long long)h->origin_sequence);
}

void trace_nodes(void) {
    static const char *const roles[] = {"follows", "is a candidate", "leads"};
    static const char *const damages[] = {"", ", left behind", ", diverged"};
    for (uint32_t i = 0; i < world.nodes; i++) {
        const struct node *n = &world.node[i];
        const struct replica *r = n->replica;
        if (!r) continue;
        printf("  node %u %s%s%s: leader %d, term %llu, last %llu, commit %llu, delivered %llu, alive %x, confirmed %x, free %llu\n",
               i, n->dead ? "(dead) " : n->paused ? "(paused) " : n->busy ? "(in a call) " : "", roles[replica_role(r)],
               damages[replica_damage(r)], (int)replica_leader(r), (unsigned long long)replica_term(r),
               (unsigned long long)replica_last(r), (unsigned long long)replica_commit(r),
               (unsigned long long)n->delivered, replica_alive(r), replica_confirmed(r),
               (unsigned long long)replica_free_bytes(r));
    }
}
