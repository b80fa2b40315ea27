/* gate.c: see gate.h. */
#include "gate/gate.h"

#include <stdio.h>

#include "buffer.h"
#include "engine/histogram.h"
#include "gate/table.h"

#define STEPS_MAX 8192u         /* of one connection, waiting or under way: then it is not read on */
#define STEPS_FIRST 1024u       /* of a worker, waiting, before there has to be more memory for them */
#define OUTPUT_BYTES_MAX (4u << 20)
#define INPUT_BYTES_MAX (4u << 20)
#define ABSENT_NS 50000000ull   /* between two looks at the clock no more than this counts as silence */
#define ENTRY_BYTES (HERD_KEY_BYTES + HERD_VALUE_BYTES) /* of WIRE_LIST and WIRE_LOAD */

enum item_kind { ITEM_GET, ITEM_PUT, ITEM_DELETE, ITEM_RAW };

struct item { /* what is done to one key */
    struct herd_key key;
    uint64_t job;
    uint8_t kind;
    bool known, found; /* to the key table, when it was asked for; by HERD */
    uint8_t value[HERD_VALUE_BYTES]; /* to be put, or what was found */
};

struct job { /* a request that is not answered yet; its bytes stand in the connection's input */
    struct wire_head head;
    uint64_t cursor;
    uint32_t items, left; /* steps that have no reply */
};

struct connection {
    bool open, broken;
    uint32_t generation;
    size_t taken;       /* of the input: by the jobs */
    struct buffer in, out;
    struct queue jobs, items;
};

struct step { /* of an item of a connection, or (`is_proof`) the gate's own */
    uint64_t item, since_ns;
    uint32_t connection, generation;
    bool is_put, is_proof;
};

struct worker {
    struct queue waiting, under_way;
    struct queue unproven; /* steps with replies that are not believed yet */
    struct herd_key proof; /* a key of the gate's own at this worker */
    uint64_t proofs;       /* begun: the value of that key */
    bool proving;
    uint32_t turn;
    uint64_t heard_ns; /* on the gate's own clock */
};

struct gate {
    struct gate_config config;
    uint32_t clients; /* 0: HERD is not there yet */
    char waits_for[160];
    uint32_t next_worker;
    uint64_t clock_ns, looked_ns; /* see gate_silent() */
    struct wire_status status;
    struct histogram replies;
    struct table table;
    struct worker workers[GATE_WORKERS_MAX];
    struct connection connections[GATE_CONNECTIONS_MAX];
};

/* The first of these keys that is kept by this worker. */
static void find_proof(struct gate *g, uint32_t worker) {
    struct { char name[20]; uint32_t number; } text = {.name = "musidecar: proof", .number = 0};
    do herd_key_of(&text, sizeof text, &g->workers[worker].proof);
    while (text.number++, herd_worker(g->workers[worker].proof.bytes, g->config.workers) != worker);
}

struct gate *gate_new(const struct gate_config *config) {
    CHECK(config->workers > 0 && config->workers <= GATE_WORKERS_MAX);
    struct gate *g = calloc(1, sizeof *g);
    CHECK(g != NULL);
    g->config = *config;
    if (!table_init(&g->table, config->keys_max)) return free(g), NULL;
    for (uint32_t i = 0; i < config->workers; i++) {
        queue_init(&g->workers[i].waiting, sizeof(struct step), STEPS_FIRST);
        queue_init(&g->workers[i].under_way, sizeof(struct step), HERD_WINDOW);
        queue_init(&g->workers[i].unproven, sizeof(struct step), HERD_WINDOW);
        find_proof(g, i);
    }
    return g;
}

void gate_free(struct gate *g) {
    for (int i = 0; i < (int)GATE_CONNECTIONS_MAX; i++) gate_close(g, i);
    for (uint32_t i = 0; i < g->config.workers; i++) {
        queue_free(&g->workers[i].waiting);
        queue_free(&g->workers[i].under_way);
        queue_free(&g->workers[i].unproven);
    }
    table_free(&g->table);
    free(g);
}

void gate_waits_for(struct gate *g, const char *what) { snprintf(g->waits_for, sizeof g->waits_for, "%s", what); }

const char *gate_awaited(const struct gate *g) { return g->waits_for; }

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static void say(struct connection *c, uint8_t kind, uint16_t items, const void *bytes, size_t length) {
    const struct wire_head head = {.kind = kind, .items = items, .bytes = (uint32_t)length};
    buffer_append(&c->out, &head, sizeof head);
    buffer_append(&c->out, bytes, length);
}

static struct wire_head *say_later(struct connection *c) {
    buffer_append(&c->out, &(struct wire_head){0}, sizeof(struct wire_head));
    return (struct wire_head *)(void *)(c->out.data + c->out.end - sizeof(struct wire_head));
}

static void say_found(struct connection *c, const struct job *job, const uint8_t *bytes) {
    size_t at = 0, start = c->out.end - c->out.start;
    const uint8_t *key;
    uint8_t key_length;
    say_later(c);
    for (uint64_t i = 0; i < job->items; i++) {
        const struct item *item = queue_at(&c->items, c->items.head + i);
        struct herd_value value = {0};
        CHECK(wire_key(bytes, job->head.bytes, &at, &key, &key_length));
        bool found = item->found && herd_value_read(item->value, sizeof item->value, item->key.check, &value);
        const struct wire_found head = {.found = found, .key_length = key_length, .data_length = value.length, .flags = value.flags};
        buffer_append(&c->out, &head, sizeof head);
        buffer_append(&c->out, key, key_length);
        buffer_append(&c->out, value.data, value.length);
    }
    struct wire_head head = {.kind = WIRE_GET, .items = (uint16_t)job->items};
    head.bytes = (uint32_t)(buffer_length(&c->out) - start - sizeof head);
    memcpy(buffer_bytes(&c->out) + start, &head, sizeof head);
}

static void say_deleted(struct connection *c, const struct job *job) {
    uint8_t found[WIRE_ITEMS_MAX];
    for (uint64_t i = 0; i < job->items; i++) {
        const struct item *item = queue_at(&c->items, c->items.head + i);
        struct herd_value value;
        found[i] = item->found && herd_value_read(item->value, sizeof item->value, item->key.check, &value);
    }
    say(c, WIRE_DELETE, (uint16_t)job->items, found, job->items);
}

static void say_listed(struct connection *c, const struct job *job) {
    size_t start = buffer_length(&c->out);
    uint16_t items = 0;
    say_later(c);
    buffer_append(&c->out, &job->cursor, sizeof job->cursor);
    for (uint64_t i = 0; i < job->items; i++) {
        const struct item *item = queue_at(&c->items, c->items.head + i);
        if (!item->found || !herd_value_is_whole(item->value, sizeof item->value)) continue;
        buffer_append(&c->out, item->key.bytes, HERD_KEY_BYTES);
        buffer_append(&c->out, item->value, HERD_VALUE_BYTES);
        items++;
    }
    struct wire_head head = {.kind = WIRE_LIST, .items = items};
    head.bytes = (uint32_t)(buffer_length(&c->out) - start - sizeof head);
    memcpy(buffer_bytes(&c->out) + start, &head, sizeof head);
}

static void answer(struct gate *g, struct connection *c, const struct job *job, const uint8_t *bytes) {
    struct wire_status status;
    uint64_t left = g->table.keys;
    switch ((enum wire_kind)job->head.kind) {
        case WIRE_GET: return say_found(c, job, bytes);
        case WIRE_DELETE: return say_deleted(c, job);
        case WIRE_LIST: return say_listed(c, job);
        case WIRE_EMPTY: return say(c, WIRE_EMPTY, 0, &left, sizeof left);
        case WIRE_STATUS:
            gate_status(g, &status);
            return say(c, WIRE_STATUS, 0, &status, sizeof status);
        case WIRE_PING: return say(c, WIRE_PING, 0, g->waits_for, g->clients > 0 ? 0 : strlen(g->waits_for));
        case WIRE_PUT:
        case WIRE_LOAD: return say(c, job->head.kind, 0, NULL, 0);
    }
}

static size_t head_bytes(const struct job *job) { return job->head.kind == WIRE_PING ? 1 : sizeof(struct wire_head); }

/* Of the jobs in front that nothing is missing to. */
static void answer_done(struct gate *g, struct connection *c) {
    for (struct job *job = queue_front(&c->jobs); job != NULL && job->left == 0; job = queue_front(&c->jobs)) {
        size_t whole = head_bytes(job) + job->head.bytes;
        answer(g, c, job, buffer_bytes(&c->in) + head_bytes(job));
        buffer_consume(&c->in, whole);
        c->taken -= whole;
        c->items.head += job->items;
        queue_pop(&c->jobs);
    }
}

/* ---- requests ------------------------------------------------------------------------------------------------------------ */

static struct item *add_item(struct connection *c, enum item_kind kind) {
    struct item *item = queue_push(&c->items);
    item->kind = (uint8_t)kind;
    item->job = c->jobs.tail - 1;
    item->found = false;
    return item;
}

/* Its steps go to the end of its worker's queue. */
static void add_steps(struct gate *g, struct connection *c, struct item *item) {
    struct job *job = queue_back(&c->jobs);
    struct worker *w = &g->workers[herd_worker(item->key.bytes, g->config.workers)];
    struct step step = {.item = c->items.tail - 1, .connection = (uint32_t)(c - g->connections), .generation = c->generation};
    job->items++;
    if (item->kind != ITEM_PUT) {
        step.is_put = false;
        *(struct step *)queue_push(&w->waiting) = step;
        job->left++;
    }
    if (item->kind == ITEM_PUT || item->kind == ITEM_DELETE) {
        step.is_put = true;
        *(struct step *)queue_push(&w->waiting) = step;
        job->left++;
    }
}

static bool keyed(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes, enum item_kind kind) {
    size_t at = 0;
    const uint8_t *key;
    uint8_t length;
    if (head->items == 0 || head->items > WIRE_ITEMS_MAX) return false;
    for (uint16_t i = 0; i < head->items; i++) /* all of them are looked at before the first is done */
        if (!wire_key(bytes, head->bytes, &at, &key, &length)) return false;
    if (at != head->bytes) return false;
    at = 0;
    while (wire_key(bytes, head->bytes, &at, &key, &length)) {
        struct item *item = add_item(c, kind);
        herd_key_of(key, length, &item->key);
        add_steps(g, c, item);
    }
    return true;
}

static bool put(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes) {
    uint32_t flags;
    if (head->items != 1 || head->bytes < sizeof flags + 1u) return false;
    size_t key_length = bytes[sizeof flags], key_end = sizeof flags + 1 + key_length;
    if (key_length > WIRE_KEY_BYTES_MAX || head->bytes < key_end || head->bytes - key_end > HERD_DATA_BYTES_MAX) return false;
    memcpy(&flags, bytes, sizeof flags);
    struct item *item = add_item(c, ITEM_PUT);
    herd_key_of(bytes + sizeof flags + 1, key_length, &item->key);
    herd_value_write(item->value, item->key.check, flags, bytes + key_end, (uint8_t)(head->bytes - key_end));
    add_steps(g, c, item);
    return true;
}

static bool list(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes) {
    struct job *job = queue_back(&c->jobs);
    uint64_t cursor;
    uint32_t count;
    if (head->bytes != sizeof cursor + sizeof count) return false;
    memcpy(&cursor, bytes, sizeof cursor);
    memcpy(&count, bytes + sizeof cursor, sizeof count);
    if (count == 0 || count > WIRE_ITEMS_MAX) return false;
    for (; count > 0 && cursor < g->table.used; cursor++, count--) {
        const uint8_t *key = table_at(&g->table, cursor);
        if (key == NULL) continue;
        struct item *item = add_item(c, ITEM_RAW);
        memcpy(item->key.bytes, key, HERD_KEY_BYTES);
        add_steps(g, c, item);
    }
    job->cursor = cursor < g->table.used ? cursor : WIRE_END;
    return true;
}

static bool load(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes) {
    if (head->items > WIRE_ITEMS_MAX || head->bytes != head->items * ENTRY_BYTES) return false;
    for (uint32_t i = 0; i < head->items; i++) {
        const uint8_t *entry = bytes + i * ENTRY_BYTES;
        uint64_t none = 0;
        if (memcmp(entry, &none, sizeof none) == 0 || !herd_value_is_whole(entry + HERD_KEY_BYTES, HERD_VALUE_BYTES)) return false;
    }
    for (uint32_t i = 0; i < head->items; i++) {
        struct item *item = add_item(c, ITEM_PUT);
        memcpy(item->key.bytes, bytes + i * ENTRY_BYTES, HERD_KEY_BYTES);
        memcpy(item->value, bytes + i * ENTRY_BYTES + HERD_KEY_BYTES, HERD_VALUE_BYTES);
        add_steps(g, c, item);
    }
    return true;
}

/* What is on its way to the table when this comes belongs to those who asked for it. */
static bool empty(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes) {
    uint32_t count;
    if (head->bytes != sizeof count) return false;
    memcpy(&count, bytes, sizeof count);
    if (count == 0 || count > WIRE_ITEMS_MAX) return false;
    for (uint64_t place = g->table.used; place-- > 0 && count > 0;) {
        const uint8_t *key = table_at(&g->table, place);
        if (key == NULL) continue;
        struct item *item = add_item(c, ITEM_PUT);
        memcpy(item->key.bytes, key, HERD_KEY_BYTES);
        herd_value_deleted(item->value, 0);
        table_remove(&g->table, item->key.bytes);
        add_steps(g, c, item);
        count--;
    }
    return true;
}

static bool take(struct gate *g, struct connection *c, const struct wire_head *head, const uint8_t *bytes) {
    *(struct job *)queue_push(&c->jobs) = (struct job){.head = *head};
    switch ((enum wire_kind)head->kind) {
        case WIRE_GET: return keyed(g, c, head, bytes, ITEM_GET);
        case WIRE_DELETE: return keyed(g, c, head, bytes, ITEM_DELETE);
        case WIRE_PUT: return put(g, c, head, bytes);
        case WIRE_LIST: return list(g, c, head, bytes);
        case WIRE_LOAD: return load(g, c, head, bytes);
        case WIRE_EMPTY: return empty(g, c, head, bytes);
        case WIRE_STATUS: return head->bytes == 0;
        case WIRE_PING: return true;
    }
    return false;
}

/* Takes whole requests of what has come, as far as there is room. */
static void parse(struct gate *g, struct connection *c) {
    while (!c->broken && queue_length(&c->items) < STEPS_MAX && buffer_length(&c->out) < OUTPUT_BYTES_MAX) {
        const uint8_t *bytes = buffer_bytes(&c->in) + c->taken;
        size_t length = buffer_length(&c->in) - c->taken;
        struct wire_head head = {.kind = WIRE_PING};
        size_t head_length = 1;
        if (length == 0) break;
        if (bytes[0] != WIRE_PING) {
            if (g->clients == 0) break; /* HERD is not there yet */
            head_length = sizeof head;
            if (length < head_length) break;
            memcpy(&head, bytes, sizeof head);
            c->broken = head.bytes > WIRE_BYTES_MAX;
            if (c->broken || length - head_length < head.bytes) break;
        }
        c->taken += head_length + head.bytes;
        c->broken = !take(g, c, &head, bytes + head_length);
    }
    if (!c->broken) answer_done(g, c);
}

/* ---- connections ----------------------------------------------------------------------------------------------------------- */

int gate_open(struct gate *g) {
    for (int i = 0; i < (int)GATE_CONNECTIONS_MAX; i++) {
        struct connection *c = &g->connections[i];
        if (c->open) continue;
        *c = (struct connection){.open = true, .generation = c->generation + 1};
        queue_init(&c->jobs, sizeof(struct job), 64);
        queue_init(&c->items, sizeof(struct item), 64);
        return i;
    }
    return -1;
}

/* Its steps that HERD has are waited for all the same; the others are let go when their turn comes. */
void gate_close(struct gate *g, int connection) {
    struct connection *c = &g->connections[connection];
    if (!c->open) return;
    c->open = false;
    buffer_free(&c->in);
    buffer_free(&c->out);
    queue_free(&c->jobs);
    queue_free(&c->items);
}

bool gate_input(struct gate *g, int connection, const uint8_t *bytes, size_t length) {
    struct connection *c = &g->connections[connection];
    buffer_append(&c->in, bytes, length);
    parse(g, c);
    return !c->broken;
}

bool gate_wants_input(const struct gate *g, int connection) {
    const struct connection *c = &g->connections[connection];
    return !c->broken && buffer_length(&c->in) < INPUT_BYTES_MAX && buffer_length(&c->out) < OUTPUT_BYTES_MAX;
}

const uint8_t *gate_output(const struct gate *g, int connection, size_t *length) {
    const struct connection *c = &g->connections[connection];
    *length = buffer_length(&c->out);
    return buffer_bytes(&c->out);
}

void gate_sent(struct gate *g, int connection, size_t length) {
    struct connection *c = &g->connections[connection];
    buffer_consume(&c->out, length);
    parse(g, c);
}

void gate_serve(struct gate *g, uint32_t clients) {
    CHECK(clients > 0);
    g->clients = clients;
    for (uint32_t i = 0; i < GATE_CONNECTIONS_MAX; i++)
        if (g->connections[i].open) parse(g, &g->connections[i]);
}

/* ---- HERD ------------------------------------------------------------------------------------------------------------------ */

static void proof_value(const struct worker *w, uint8_t out[HERD_VALUE_BYTES]) {
    herd_value_write(out, w->proof.check, 0, &w->proofs, sizeof w->proofs);
}

/* Behind all that waits: a number is put and got. When it is what HERD answers, so was every reply before. */
static void prove(struct worker *w) {
    if (w->proving) return;
    w->proving = true;
    w->proofs++;
    *(struct step *)queue_push(&w->waiting) = (struct step){.is_proof = true, .is_put = true};
    *(struct step *)queue_push(&w->waiting) = (struct step){.is_proof = true};
}

static struct connection *asker(struct gate *g, const struct step *step) {
    if (step->is_proof) return NULL;
    struct connection *c = &g->connections[step->connection];
    return c->open && c->generation == step->generation ? c : NULL;
}

static void fill_proof(const struct worker *w, const struct step *step, struct gate_step *out) {
    uint8_t value[HERD_VALUE_BYTES];
    proof_value(w, value);
    if (step->is_put) herd_slot_put(out->slot, w->proof.bytes, value);
    else herd_slot_get(out->slot, w->proof.bytes);
}

static void fill(struct gate *g, struct item *item, const struct step *step, struct gate_step *out) {
    uint8_t gone[HERD_VALUE_BYTES];
    if (!step->is_put) {
        item->known = table_has(&g->table, item->key.bytes);
        herd_slot_get(out->slot, item->key.bytes);
        g->status.gets++;
        return;
    }
    if (item->kind == ITEM_DELETE) herd_value_deleted(gone, item->key.check);
    const uint8_t *value = item->kind == ITEM_DELETE ? gone : item->value;
    herd_slot_put(out->slot, item->key.bytes, value);
    if (herd_value_is_whole(value, HERD_VALUE_BYTES)) table_add(&g->table, item->key.bytes);
    else table_remove(&g->table, item->key.bytes);
    g->status.puts++;
}

static bool next_of(struct gate *g, uint32_t number, uint64_t now_ns, struct gate_step *out) {
    struct worker *w = &g->workers[number];
    for (const struct step *front = queue_front(&w->waiting); front != NULL; front = queue_front(&w->waiting)) {
        if (queue_length(&w->under_way) == HERD_WINDOW) return false;
        struct connection *c = asker(g, front);
        struct step step = *front;
        queue_pop(&w->waiting);
        if (c == NULL && !step.is_proof) continue;
        if (queue_length(&w->under_way) == 0) w->heard_ns = g->clock_ns; /* it had nothing to say */
        step.since_ns = now_ns;
        *(struct step *)queue_push(&w->under_way) = step;
        out->worker = number;
        out->is_put = step.is_put;
        out->at = herd_slot_at(number, g->clients, 0, w->turn++);
        out->length = step.is_put ? HERD_PUT_BYTES : HERD_GET_BYTES;
        if (step.is_proof) return fill_proof(w, &step, out), true;
        fill(g, queue_at(&c->items, step.item), &step, out);
        g->status.requests++;
        return true;
    }
    return false;
}

bool gate_next(struct gate *g, uint64_t now_ns, struct gate_step *step) {
    for (uint32_t i = 0; i < g->config.workers && g->clients > 0; i++) {
        uint32_t worker = g->next_worker++ % g->config.workers;
        if (next_of(g, worker, now_ns, step)) return true;
    }
    return false;
}

/* A reply says nothing of what it answers. It is believed when it brings the value of the very key that was asked for; a miss, or what
 * else a request behind the one that was lost would have got, only once a proof has come back. */
static bool is_plain(const struct item *item) {
    struct herd_value value;
    return item->kind != ITEM_RAW && item->found && herd_value_read(item->value, sizeof item->value, item->key.check, &value);
}

static void note_found(struct item *item, const uint8_t *bytes, size_t length) {
    item->found = length == HERD_VALUE_BYTES;
    if (item->found) memcpy(item->value, bytes, length);
}

/* What the step was for goes on. */
static void step_done(struct gate *g, const struct step *step) {
    struct connection *c = asker(g, step);
    if (c == NULL) return;
    const struct item *item = queue_at(&c->items, step->item);
    if (!step->is_put && item->found) g->status.hits++;
    else if (!step->is_put && item->known) g->status.gone++;
    struct job *job = queue_at(&c->jobs, item->job);
    job->left--;
    if (job->left > 0) return;
    answer_done(g, c);
    parse(g, c);
}

/* False: it is none: a reply was lost. */
static bool proven(struct gate *g, struct worker *w, const uint8_t *bytes, size_t length) {
    uint8_t wanted[HERD_VALUE_BYTES];
    proof_value(w, wanted);
    if (length != HERD_VALUE_BYTES || memcmp(bytes, wanted, length) != 0) return false;
    w->proving = false;
    for (uint64_t count = queue_length(&w->unproven); count > 0; count--) {
        const struct step step = *(const struct step *)queue_front(&w->unproven);
        queue_pop(&w->unproven);
        step_done(g, &step);
    }
    return true;
}

bool gate_reply(struct gate *g, uint32_t worker, const uint8_t *bytes, size_t length, uint64_t now_ns) {
    if (worker >= g->config.workers) return false;
    struct worker *w = &g->workers[worker];
    const struct step *front = queue_front(&w->under_way);
    if (front == NULL || (front->is_put && length > 0)) return false;
    const struct step step = *front;
    queue_pop(&w->under_way);
    w->heard_ns = g->clock_ns;
    if (step.is_proof) return step.is_put || proven(g, w, bytes, length);
    g->status.replies++;
    histogram_add(&g->replies, now_ns > step.since_ns ? now_ns - step.since_ns : 0);
    struct connection *c = asker(g, &step);
    if (c == NULL) return true;
    struct item *item = queue_at(&c->items, step.item);
    if (!step.is_put) note_found(item, bytes, length);
    if (step.is_put || is_plain(item)) return step_done(g, &step), true;
    *(struct step *)queue_push(&w->unproven) = step;
    prove(w);
    return true;
}

void gate_stray(struct gate *g) { g->status.strays++; }

bool gate_under_way(const struct gate *g) {
    for (uint32_t i = 0; i < g->config.workers; i++)
        if (queue_length(&g->workers[i].under_way) > 0) return true;
    return false;
}

int gate_silent(struct gate *g, uint64_t now_ns) {
    uint64_t passed = g->looked_ns == 0 || now_ns < g->looked_ns ? 0 : now_ns - g->looked_ns;
    g->looked_ns = now_ns;
    g->clock_ns += passed < ABSENT_NS ? passed : ABSENT_NS;
    for (uint32_t i = 0; i < g->config.workers; i++) {
        const struct worker *w = &g->workers[i];
        if (queue_length(&w->under_way) > 0 && g->clock_ns - w->heard_ns > g->config.answer_us * 1000) return (int)i;
    }
    return -1;
}

void gate_status(const struct gate *g, struct wire_status *out) {
    *out = g->status;
    out->keys = g->table.keys;
    out->keys_max = g->table.keys_max;
    out->forgotten = g->table.forgotten;
    out->reply_p50_ns = histogram_quantile_ns(&g->replies, 0.5);
    out->reply_p99_ns = histogram_quantile_ns(&g->replies, 0.99);
    out->reply_max_ns = g->replies.max_ns;
}
