/* trace.h: one line per event, when asked for. */
#ifndef MUSIDECAR_TRACE_H
#define MUSIDECAR_TRACE_H

#include "world.h"

/* `node`: whose event, or SIM_NOBODY. */
void trace(uint32_t node, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline bool tracing(void) { return __builtin_expect(world.settings.trace, 0); }
void trace_record(uint32_t node, const char *what, const struct record_header *h);
void trace_nodes(void); /* a line on each, also without tracing */

#endif
