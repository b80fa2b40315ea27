/* history.c: see history.h. */
#include "history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static struct {
    struct operation *operations;
    uint64_t count, room, clock;
    struct { uint64_t *elements, room; } list[KEYS]; /* by length, from 1 */
    const char *wrong;
} h;

/* ---- recording --------------------------------------------------------------------------------------------------- */

void history_begin(void) {
    h.count = 0;
    h.clock = 1;
    h.wrong = NULL;
    for (uint32_t k = 0; k < KEYS; k++)
        if (h.list[k].elements) memset(h.list[k].elements, 0, h.list[k].room * sizeof(uint64_t));
}

void history_free(void) {
    free(h.operations);
    for (uint32_t k = 0; k < KEYS; k++) free(h.list[k].elements);
    memset(&h, 0, sizeof h);
}

static void add(struct operation operation) {
    if (h.count == h.room) {
        h.room = h.room ? 2 * h.room : 1024;
        CHECK((h.operations = realloc(h.operations, h.room * sizeof *h.operations)) != NULL);
    }
    h.operations[h.count++] = operation;
}

uint64_t history_asked(const struct request *q) {
    add((struct operation){.client = q->client, .sequence = q->sequence, .op = q->op, .key = q->key, .value = q->value,
                           .start = h.clock++, .end = NEVER});
    return h.count - 1;
}

void history_answered(uint64_t operation, uint64_t result) {
    CHECK(operation < h.count && h.operations[operation].end == NEVER);
    h.operations[operation].result = result;
    h.operations[operation].end = h.clock++;
}

void history_appended(uint32_t key, uint64_t length, uint64_t element) {
    if (length >= h.list[key].room) {
        uint64_t room = h.list[key].room ? 2 * h.list[key].room : 1024;
        CHECK(length < room && (h.list[key].elements = realloc(h.list[key].elements, room * sizeof element)) != NULL);
        memset(h.list[key].elements + h.list[key].room, 0, (room - h.list[key].room) * sizeof element);
        h.list[key].room = room;
    }
    uint64_t *at = &h.list[key].elements[length];
    if (*at && *at != element) h.wrong = "two nodes have different elements at the same place of a list";
    *at = element;
}

uint64_t history_operations(void) { return h.count; }

/* ---- a register ---------------------------------------------------------------------------------------------------- */

/* All operations on one value: the write and its reads. They must all fit between two other values' clusters, so if the
 * first to end ends before the last to start starts, the value is the register's all that time (a forward zone); else
 * it may have been there for a moment only, somewhere in between (a backward zone). */
struct zone {
    uint64_t low, high;
    bool forward;
};

static int by_value(const void *a, const void *b) {
    const struct operation *p = a, *q = b;
    uint64_t v = p->op == OP_SET ? p->value : p->result, w = q->op == OP_SET ? q->value : q->result;
    if (v != w) return v < w ? -1 : 1;
    return (p->op != OP_SET) - (q->op != OP_SET); /* the write first */
}

static int by_low(const void *a, const void *b) {
    const struct zone *p = a, *q = b;
    return (p->low > q->low) - (p->low < q->low);
}

/* The zone of the cluster at `from`; returns what is behind it. */
static uint64_t cluster(const struct operation *operations, uint64_t count, uint64_t from, struct zone *zone,
                        bool *counts, const char **wrong) {
    const struct operation *first = &operations[from];
    bool written = first->op == OP_SET;
    uint64_t value = written ? first->value : first->result, start = 0, soonest = 0, latest = 0, at = from;
    if (value == 0 && !written) written = true; /* as if written before everything */
    else if (written) start = latest = first->start, soonest = first->end, at++;
    if (!written) *wrong = "a value was read that nobody wrote";
    for (; at < count; at++) {
        const struct operation *q = &operations[at];
        if ((q->op == OP_SET ? q->value : q->result) != value) break;
        if (q->op == OP_SET) *wrong = "a value was written twice";
        if (q->end < start) *wrong = "a value was read before it was written";
        if (q->start > latest) latest = q->start;
        if (q->end < soonest) soonest = q->end;
    }
    *counts = at > from + 1 || soonest != NEVER; /* a write without answer that nobody saw need not have been */
    zone->forward = soonest < latest;
    zone->low = zone->forward ? soonest : latest;
    zone->high = zone->forward ? latest : soonest;
    return at;
}

static const char *compare_zones(struct zone *zones, uint64_t count) {
    uint64_t forward = 0;
    qsort(zones, count, sizeof *zones, by_low);
    for (uint64_t i = 0; i < count; i++) { /* the forward ones, by themselves */
        if (!zones[i].forward) continue;
        struct zone swap = zones[forward];
        zones[forward++] = zones[i];
        zones[i] = swap;
    }
    for (uint64_t i = 1; i < forward; i++)
        if (zones[i].low < zones[i - 1].high) return "two values were both the register's at one time: a stale read";
    for (uint64_t i = forward; i < count; i++) {
        uint64_t low = 0, high = forward; /* the last forward zone that begins before this one */
        while (low < high) {
            uint64_t middle = (low + high) / 2;
            if (zones[middle].low < zones[i].low) low = middle + 1;
            else high = middle;
        }
        if (low > 0 && zones[i].high < zones[low - 1].high) return "a value came while another stayed: a lost write or a stale read";
    }
    return NULL;
}

static const char *check_register(struct operation *operations, uint64_t count) {
    const char *wrong = NULL;
    struct zone *zones = calloc(count + 1, sizeof *zones);
    uint64_t used = 0;
    CHECK(zones != NULL);
    qsort(operations, count, sizeof *operations, by_value);
    for (uint64_t at = 0; at < count && !wrong;) {
        bool counts;
        at = cluster(operations, count, at, &zones[used], &counts, &wrong);
        used += counts;
    }
    if (!wrong) wrong = compare_zones(zones, used);
    free(zones);
    return wrong;
}

/* ---- a counter, a list ----------------------------------------------------------------------------------------------- */

/* An increment that returned k is the k-th, a read of k stands between the k-th and the next: their order is known. It
 * must agree with time: who comes later in it must not have ended before somebody earlier started. Increments without
 * an answer fill the places that nobody was told of: those that started first the places that had to be filled first. */
static int by_result(const void *a, const void *b) {
    const struct operation *p = a, *q = b;
    if (p->result != q->result) return p->result < q->result ? -1 : 1;
    return (p->op >= OP_WRITES) - (q->op >= OP_WRITES); /* the write first */
}

static int by_start(const void *a, const void *b) {
    const struct operation *p = a, *q = b;
    return (p->start > q->start) - (p->start < q->start);
}

/* Those without an answer to the end, by start; returns how many have one. */
static uint64_t split(struct operation *operations, uint64_t count) {
    uint64_t answered = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (operations[i].end == NEVER && operations[i].result == 0 && operations[i].op < OP_WRITES) continue;
        struct operation swap = operations[answered];
        operations[answered++] = operations[i];
        operations[i] = swap;
    }
    qsort(operations, answered, sizeof *operations, by_result);
    qsort(operations + answered, count - answered, sizeof *operations, by_start);
    return answered;
}

/* Soonest end among the operations from each on: until then all places before must be filled. */
static uint64_t *deadlines(const struct operation *operations, uint64_t count) {
    uint64_t *soonest = malloc((count + 1) * sizeof *soonest);
    CHECK(soonest != NULL);
    soonest[count] = NEVER;
    for (uint64_t i = count; i-- > 0;)
        soonest[i] = operations[i].end < soonest[i + 1] ? operations[i].end : soonest[i + 1];
    return soonest;
}

static const char *check_order(const struct operation *operations, uint64_t answered, uint64_t count,
                               const uint64_t *soonest) {
    uint64_t place = 0, latest = 0, next = answered; /* place: the last filled; latest: start of those before */
    for (uint64_t i = 0; i < answered;) {
        uint64_t group = i, value = operations[i].result, starts = latest;
        bool write = operations[i].op < OP_WRITES;
        for (uint64_t missing = place + 1; value > 0 && missing < value + (write ? 0 : 1) && missing > place; missing++) {
            if (next == count) return "a place was never filled: a write was lost, or one was executed twice";
            if (operations[next].start > soonest[i]) return "what filled a place began after somebody saw it filled";
            if (operations[next].start > starts) starts = operations[next].start;
            next++;
        }
        if (write && value <= place) return "two writes were told the same place";
        if (write && value == 0) return "a write was told that nothing is there";
        latest = starts;
        for (; i < answered && operations[i].result == value && (operations[i].op < OP_WRITES) == write; i++) {
            if (write && i > group) return "two writes were told the same place";
            if (operations[i].end < latest) return "the order of the answers contradicts time: a stale read";
            if (operations[i].start > starts) starts = operations[i].start;
        }
        latest = starts;
        place = value > place ? value : place;
    }
    return NULL;
}

static const char *check_places(struct operation *operations, uint64_t count) {
    uint64_t answered = split(operations, count);
    uint64_t *soonest = deadlines(operations, answered);
    const char *wrong = check_order(operations, answered, count, soonest);
    free(soonest);
    return wrong;
}

const char *history_check(enum op write, struct operation *operations, uint64_t count) {
    uint64_t kept = 0;
    for (uint64_t i = 0; i < count; i++) /* a read without an answer tells nothing */
        if (operations[i].op < OP_WRITES || operations[i].end != NEVER) operations[kept++] = operations[i];
    return write == OP_SET ? check_register(operations, kept) : check_places(operations, kept);
}

/* ---- the whole ----------------------------------------------------------------------------------------------------- */

/* Where the appends without an answer ended up, the list itself says. */
static void place_appends(struct operation *operations, uint64_t count, uint32_t key, const struct machine *last) {
    for (uint64_t i = 0; i < count; i++) {
        if (operations[i].op != OP_APPEND || operations[i].end != NEVER) continue;
        uint64_t element = (uint64_t)operations[i].client << 32 | operations[i].sequence;
        for (uint64_t place = 1; place <= last->lengths[key] && place < h.list[key].room; place++)
            if (h.list[key].elements[place] == element) operations[i].result = place;
    }
}

const char *history_judge(const struct machine *last) {
    struct operation *some = malloc((h.count + 1) * sizeof *some);
    CHECK(some != NULL);
    for (uint32_t write = 0; write < OP_WRITES && !h.wrong; write++) {
        for (uint32_t key = 0; key < KEYS && !h.wrong; key++) {
            uint64_t count = 0;
            for (uint64_t i = 0; i < h.count; i++)
                if (h.operations[i].key == key && h.operations[i].op % OP_WRITES == write) some[count++] = h.operations[i];
            struct request final = {.op = write + OP_WRITES, .key = key};
            some[count++] = (struct operation){.op = final.op, .key = key, .result = machine_read(last, &final),
                                               .start = h.clock, .end = h.clock + 1};
            if (write == OP_APPEND) place_appends(some, count, key, last);
            h.wrong = history_check((enum op)write, some, count);
        }
    }
    free(some);
    return h.wrong;
}

int history_check_lines(void) {
    static const char *const names[OPS] = {"set", "incr", "append", "get", "count", "length"};
    char line[256], name[16], end[32];
    uint64_t count = 0, room = 1024;
    struct operation *operations = malloc(room * sizeof *operations);
    CHECK(operations != NULL);
    while (fgets(line, sizeof line, stdin)) {
        struct operation q = {.end = NEVER};
        if (sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %31s", name, &q.value, &q.result, &q.start, end) == 5) {
            while (q.op < OPS && strcmp(names[q.op], name) != 0) q.op++;
            if (q.op == OPS || count == room) break;
            if (end[0] != '-') q.end = strtoull(end, NULL, 10);
            operations[count++] = q;
            continue;
        }
        const char *wrong = count ? history_check((enum op)(operations[0].op % OP_WRITES), operations, count) : NULL;
        puts(wrong ? wrong : "linearizable");
        count = 0;
    }
    free(operations);
    return 0;
}
