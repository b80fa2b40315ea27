/*
 * fuzz_gate.c: any bytes at the gate, of two askers in turns, and any replies of HERD; any bytes at HERD's registry. What is asked in
 * parts is answered as what is asked at once.
 */
#include "fuzz.h"

#include "gate/gate.h"
#include "protocols/herd/registry.h"

#define WORKERS 3u

static struct edge edge;
static struct story stories[2];
static struct herd_registry registry;
static struct buffer out;

/* HERD answers some of what it was asked; a value is any bytes of any length. */
static void serve(struct gate *g, struct dice *dice) {
    struct gate_step step;
    uint32_t waiting[WORKERS] = {0};
    bool puts[WORKERS][HERD_WINDOW];
    for (bool more = true; more;) {
        more = gate_next(g, 1, &step);
        if (more) {
            CHECK(step.worker < WORKERS && waiting[step.worker] < HERD_WINDOW && step.at < HERD_REGION_BYTES);
            puts[step.worker][waiting[step.worker]++] = step.is_put;
        }
        for (uint32_t w = 0; w < WORKERS; w++) {
            if (waiting[w] == 0 || (more && dice_below(dice, 3) > 0)) continue;
            uint8_t value[64];
            size_t length = puts[w][0] ? 0 : dice_below(dice, 2) ? HERD_VALUE_BYTES : dice_below(dice, sizeof value + 1);
            for (size_t i = 0; i < sizeof value; i++) value[i] = (uint8_t)dice_below(dice, 40);
            if (!gate_reply(g, w, value, length, 2)) return; /* it has noticed that these replies are no HERD's */
            memmove(puts[w], puts[w] + 1, --waiting[w] * sizeof puts[w][0]);
            more = true;
        }
    }
    CHECK(!gate_under_way(g));
}

static void ask(struct story *story, const uint8_t *bytes, size_t length, struct dice *parts) {
    struct gate *g = gate_new(&(struct gate_config){.workers = WORKERS, .keys_max = 8, .answer_us = 1});
    struct dice replies = {99};
    size_t answered;
    CHECK(g != NULL);
    gate_serve(g, 2);
    int asker = gate_open(g);
    bool good = true;
    story->count = 0;
    for (size_t at = 0; at < length && good;) {
        size_t part = parts == NULL ? length - at : dice_part(parts, length - at);
        good = gate_input(g, asker, edge_put(&edge, bytes + at, part), part);
        at += part;
    }
    story_tell(story, good);
    if (good) serve(g, &replies);
    const uint8_t *answers = gate_output(g, asker, &answered);
    if (good) story_bytes(story, answers, answered);
    gate_free(g);
}

static void register_all(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    size_t start = 0, known = 0;
    bool good = true;
    herd_registry_start(&registry, 5, 6, 7, 2);
    buffer_clear(&out);
    story->count = 0;
    while (known < length && good) {
        known = dice == NULL ? length : known + dice_part(dice, length - known);
        size_t used = herd_registry_feed(&registry, edge_put(&edge, bytes + start, known - start), known - start, &out, &good);
        CHECK(used <= known - start);
        start += used;
    }
    CHECK(registry.clients <= HERD_CLIENTS_MAX && registry.connected <= registry.clients);
    story_bytes(story, buffer_bytes(&out), buffer_length(&out));
    story_bytes(story, (const uint8_t *)registry.trouble, sizeof registry.trouble);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    story_twice(ask, stories, data + 1, size - 1, &dice);
    story_twice(register_all, stories, data + 1, size - 1, &dice);
    return 0;
}
