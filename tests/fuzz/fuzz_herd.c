/*
 * fuzz_herd.c: what a client sends to a HERD, at once and in parts; what is logged of it, which the gate must take and HERD answer; and
 * what the client is then given.
 */
#include "fuzz.h"

#include "gate/gate.h"
#include "protocols/herd/protocol.h"

#define WORKERS 2u

static struct edge edge;
static struct story stories[2];
static struct buffer text, out, given;

static const struct protocol *const P = &herd_protocol;

static uint8_t last[WORKERS][HERD_VALUE_BYTES];

/* Each step is answered at once, with what was put last. */
static void serve(struct gate *g) {
    struct gate_step step;
    while (gate_next(g, 1, &step)) {
        CHECK(step.worker < WORKERS && step.at % HERD_SLOT_BYTES == 0 && step.length == (step.is_put ? HERD_PUT_BYTES : HERD_GET_BYTES));
        CHECK(step.slot[HERD_OPCODE_AT] == (step.is_put ? HERD_OPCODE_NONE : HERD_OPCODE_GET));
        if (step.is_put) memcpy(last[step.worker], step.slot + 18, HERD_VALUE_BYTES);
        CHECK(gate_reply(g, step.worker, last[step.worker], step.is_put ? 0 : HERD_VALUE_BYTES, 2));
    }
    CHECK(!gate_under_way(g));
}

/* What is logged is one request, which has one answer. */
static void through_the_gate(struct gate *g, int asker, const struct protocol_request *r, const uint8_t *bytes, struct story *story) {
    size_t length;
    buffer_clear(&out);
    P->rewrite(r, bytes, 1, &out);
    CHECK(gate_input(g, asker, buffer_bytes(&out), buffer_length(&out)));
    serve(g);
    const uint8_t *answer = gate_output(g, asker, &length);
    struct protocol_reply state = {{0}};
    enum protocol_status status;
    CHECK(P->reply(&state, 1, answer, length, &status) == length && status == PROTOCOL_REPLY_WHOLE);
    buffer_clear(&given);
    CHECK(P->answer(r->style, NULL, 0, answer, length, 1, &given));
    story_bytes(story, buffer_bytes(&given), buffer_length(&given));
    gate_sent(g, asker, length);
}

static void read_request(struct protocol_request *r, size_t scanned, const uint8_t *bytes, size_t length) {
    const struct protocol_limits none = {0};
    r->scanned = scanned;
    buffer_clear(&text);
    P->request(&none, bytes, length, r, &text);
    if (r->class == PROTOCOL_MORE) {
        CHECK(r->scanned <= length && (r->wanted == 0 || r->wanted > length) && buffer_length(&text) == 0);
        return;
    }
    CHECK(r->class == PROTOCOL_READ || r->class == PROTOCOL_WRITE || r->class == PROTOCOL_ANSWER || r->class == PROTOCOL_NOTHING ||
          r->class == PROTOCOL_CLOSE);
    CHECK(r->length > 0 && r->length <= length);
}

static void requests(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct gate *g = gate_new(&(struct gate_config){.workers = WORKERS, .keys_max = 16, .answer_us = 1});
    CHECK(g != NULL);
    gate_serve(g, 2);
    int asker = gate_open(g);
    size_t start = 0, known = 0, scanned = 0, wanted = 0;
    story->count = 0;
    memset(last, 0, sizeof last);
    while (known < length) {
        known = dice == NULL ? length : known + dice_part(dice, length - known);
        while (start < known && known - start >= wanted) {
            struct protocol_request r;
            const uint8_t *part = edge_put(&edge, bytes + start, known - start);
            read_request(&r, scanned, part, known - start);
            scanned = r.class == PROTOCOL_MORE ? r.scanned : 0;
            wanted = r.class == PROTOCOL_MORE ? r.wanted : 0;
            if (r.class == PROTOCOL_MORE) break;
            story_tell(story, (uint64_t)r.class << 32 | (r.class == PROTOCOL_CLOSE ? 0 : r.length)); /* nobody looks at what follows */
            story_bytes(story, buffer_bytes(&text), buffer_length(&text));
            if (r.class == PROTOCOL_CLOSE) goto closed;
            if (r.class == PROTOCOL_READ || r.class == PROTOCOL_WRITE) through_the_gate(g, asker, &r, part, story);
            start += r.length;
            uint64_t passed = r.swallow < length - start ? r.swallow : length - start;
            start += (size_t)passed;
            if (start > known) known = start;
        }
    }
closed:
    gate_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    requests(&stories[0], data + 1, size - 1, NULL);
    requests(&stories[1], data + 1, size - 1, &dice);
    story_compare(&stories[0], &stories[1]);
    return 0;
}
