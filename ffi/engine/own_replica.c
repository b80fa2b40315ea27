/* own_replica.c: see own_replica.h. */
#include "engine/own_replica.h"

#include <stdlib.h>

#include "check.h"

#define WINDOW_BYTES (4u << 20)
#define LAG_BYTES_MAX (256u << 20) /* Redis's own default for a replica */

struct own_replica *own_replica_new(uint64_t now_us, uint64_t position) {
    struct own_replica *r = calloc(1, sizeof *r);
    CHECK(r != NULL);
    psync_relay(&r->psync);
    r->position = position;
    r->took_us = now_us;
    return r;
}

void own_replica_passed(struct own_replica *r, const uint8_t *bytes, size_t length, bool empty, uint64_t position) {
    r->untaken += length;
    if (!r->live && !r->refused) {
        enum psync_event event;
        size_t used = psync_feed(&r->psync, bytes, length, &event);
        length -= used;
        r->live = event == PSYNC_STREAMS;
        r->refused = event == PSYNC_REFUSED || event == PSYNC_BAD;
    }
    if (!r->live) return;
    r->passed += length;
    if (!empty) return;
    r->position = position;
    r->passed = 0;
}

void own_replica_took(struct own_replica *r, uint64_t bytes, uint64_t now_us) {
    r->untaken -= bytes < r->untaken ? bytes : r->untaken;
    r->took_us = now_us;
}

uint64_t own_replica_window(uint64_t output_bytes_max) { return output_bytes_max < WINDOW_BYTES ? output_bytes_max : WINDOW_BYTES; }

bool own_replica_lags(const struct own_replica *r, bool waits, uint64_t now_us, uint64_t timeout_us, uint64_t position) {
    uint64_t grown = position - r->position;
    bool behind = grown > r->passed && grown - r->passed > LAG_BYTES_MAX;
    return behind || (waits && now_us - r->took_us > timeout_us);
}
