/*
 * history.h: what the clients asked and were told, and whether it was linearizable. Exact checks for three types, each
 * in n log n: a register whose values are all different (zones of Gibbons and Korach), a counter whose increments return
 * the new value, and an append-only list whose appends return the new length (both: the returned values are the order).
 * An operation without an answer may have happened at any time after it was asked for, or never.
 */
#ifndef MUSIDECAR_HISTORY_H
#define MUSIDECAR_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "machine.h"

#define NEVER UINT64_MAX

struct operation {
    uint32_t client, op, key;
    uint32_t sequence;
    uint64_t value;      /* written by SET */
    uint64_t result;     /* read; or new value or length */
    uint64_t start, end; /* on one clock that never stands still; end NEVER: no answer */
};

void history_begin(void);
/* Both return what names the operation. */
uint64_t history_asked(const struct request *request);
void history_answered(uint64_t operation, uint64_t result);
/* The element that a list has at this length. */
void history_appended(uint32_t key, uint64_t length, uint64_t element);
uint64_t history_operations(void);
/* NULL, or why not. `last`: the state in which everybody ended. */
const char *history_judge(const struct machine *last);
/* One type and key; NULL or why not. The array is sorted meanwhile. */
const char *history_check(enum op write, struct operation *operations, uint64_t count);
/* Reads histories from stdin, one operation a line (op value result start end, `-` for no answer), an empty line behind
 * each, and writes a line for each: "linearizable", or why not. */
int history_check_lines(void);
void history_free(void);

#endif
