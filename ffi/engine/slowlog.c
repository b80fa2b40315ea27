/* slowlog.c: see slowlog.h. */
#include "engine/slowlog.h"

#include <stdio.h>

#include "engine/engine_state.h"
#include "engine/view_reply.h"

#define NOTES_MAX 1024u
#define KNOWN_FOR_US 10000u /* what was said of a client's name */
#define LATE_MIN 4u /* a fetch is one itself, with the ROLE behind it */

static const char LIMITS[] = "*3\r\n$6\r\n" OUR_CONFIG "\r\n$3\r\nGET\r\n$9\r\nslowlog-*\r\n";

struct slow_note {
    enum slow_way way;
    struct destination to;
    struct slow_client client;
    uint64_t serial, since_us;
    uint32_t bytes; /* of the request behind its head */
    bool known;
    bool block;     /* a transaction: what it did has entries behind its MULTI's */
    bool script;    /* what it did has entries in front of its own */
    bool used;
    uint8_t head[SLOW_HEAD_BYTES];
};

struct slow_entry { int64_t id; uint64_t serial /* of its note; 0: none */; struct slow_client client; size_t bytes; };

void slow_head(const uint8_t *bytes, size_t length, uint8_t head[SLOW_HEAD_BYTES], uint32_t *behind) {
    size_t skip = length > 5 && bytes[2] == '\r' ? 4 : length > 5 && bytes[3] == '\r' ? 5 : 6;
    *behind = length > skip ? (uint32_t)(length - skip) : 0;
    if (*behind >= SLOW_HEAD_BYTES) memcpy(head, bytes + skip, SLOW_HEAD_BYTES);
    else memset(head, 0, SLOW_HEAD_BYTES);
}

/* ---- whose -------------------------------------------------------------------------------------------------------------- */

static bool same_client(const struct destination *a, const struct destination *b) {
    return a->node == b->node && a->slot == b->slot && a->generation == b->generation;
}

static void describe(struct engine *e, struct slow_note *n) {
    struct slowlog *s = &e->slowlog;
    for (uint64_t i = s->notes.tail - 1; i > s->notes.head; i--) { /* not n itself, which is the last */
        const struct slow_note *before = queue_at(&s->notes, i - 1);
        if (before->way != SLOW_SHARED || !same_client(&before->to, &n->to)) continue;
        if (!before->known || e->now_us - before->since_us > KNOWN_FOR_US) break;
        n->client = before->client;
        n->since_us = before->since_us;
        n->known = true;
        return;
    }
    if (n->to.node != e->self) {
        link_send(e, n->to.node, &(struct frame){.type = FRAME_WHO, .slot = n->to.slot, .generation = n->to.generation, .sequence = n->serial}, NULL);
        return;
    }
    struct client *c = client_find(e, n->to.slot, n->to.generation);
    if (c == NULL) return;
    struct own_peer peer = {0};
    client_describe(c, &peer);
    memcpy(n->client.addr, peer.addr, sizeof n->client.addr);
    memcpy(n->client.name, c->session.name, sizeof n->client.name);
    n->known = true;
}

void slowlog_note(struct engine *e, enum slow_way way, const struct destination *to, const uint8_t head[SLOW_HEAD_BYTES], uint32_t bytes,
                  bool block, const char *addr) {
    struct slowlog *s = &e->slowlog;
    slowlog_late(e);
    if (queue_length(&s->notes) >= NOTES_MAX) queue_pop(&s->notes);
    struct slow_note *n = queue_push(&s->notes);
    *n = (struct slow_note){.way = way, .to = *to, .serial = ++s->serial, .since_us = e->now_us, .bytes = bytes, .block = block};
    memcpy(n->head, head, SLOW_HEAD_BYTES);
    static const char *const scripts[] = {"$4\r\neval", "$7\r\nevalsha", "$5\r\nfcall", "$7\r\neval_ro", "$8\r\nfcall_ro", "$10\r\nevalsha_ro"};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) n->script |= strncasecmp((const char *)head, scripts[i], strlen(scripts[i])) == 0;
    if (way != SLOW_OWN) return describe(e, n);
    n->known = addr[0] != 0;
    if (n->known) snprintf(n->client.addr, sizeof n->client.addr, "%s", addr);
}

/* At its client's node: who is it? And the answer to that, at the leader. */
void slowlog_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    struct slow_client who = {0};
    struct slowlog *s = &e->slowlog;
    if (f->type == FRAME_WHO) {
        struct client *c = client_find(e, f->slot, f->generation);
        if (c == NULL) return;
        struct own_peer described = {0};
        client_describe(c, &described);
        memcpy(who.addr, described.addr, sizeof who.addr);
        memcpy(who.name, c->session.name, sizeof who.name);
        link_send(e, peer, &(struct frame){.type = FRAME_WHO_IS, .length = sizeof who, .sequence = f->sequence}, &who);
        return;
    }
    memcpy(&who, payload, sizeof who);
    who.addr[sizeof who.addr - 1] = who.name[sizeof who.name - 1] = 0;
    for (uint64_t i = s->notes.head; i < s->notes.tail; i++) {
        struct slow_note *n = queue_at(&s->notes, i);
        if (n->serial != f->sequence || n->to.node != peer) continue;
        n->client = who;
        n->known = true;
        return;
    }
    uint8_t *at = buffer_bytes(&s->entries);
    for (uint64_t i = 0; i < s->count; i++) { /* what it did was fetched already */
        struct slow_entry entry;
        memcpy(&entry, at, sizeof entry);
        if (entry.serial == f->sequence) {
            entry.client = who;
            memcpy(at, &entry, sizeof entry);
        }
        at += sizeof entry + entry.bytes;
    }
}

/* ---- entries as the server gives them ----------------------------------------------------------------------------------- */

struct slow_raw { /* one of them: number, when, how long, words, address, name */
    int64_t id;
    const uint8_t *head, *words; /* from its number on; behind the head of the words */
    size_t head_bytes, words_bytes;
    struct reply_item first, addr, name;
    int64_t count;
};

static bool raw_read(struct reply *reply, struct slow_raw *raw) {
    struct reply_item item;
    if (!reply_next(reply, &item) || item.type != '*' || item.number < 6) return false;
    int64_t more = item.number - 6;
    raw->head = reply->at;
    if (!reply_next(reply, &item) || item.type != ':') return false;
    raw->id = item.number;
    if (!reply_next(reply, &item) || !reply_next(reply, &item)) return false;
    if (!reply_next(reply, &item) || item.type != '*' || item.number < 1) return false;
    raw->count = item.number;
    raw->words = reply->at;
    for (int64_t i = 0; i < raw->count; i++) {
        if (!reply_next(reply, &item) || !item.is_bulk) return false;
        if (i == 0) raw->first = item;
    }
    raw->words_bytes = (size_t)(reply->at - raw->words);
    raw->head_bytes = (size_t)(reply->at - raw->head);
    if (!reply_next(reply, &raw->addr) || !raw->addr.is_bulk || !reply_next(reply, &raw->name) || !raw->name.is_bulk) return false;
    while (more-- > 0)
        if (!reply_skip(reply)) return false;
    return true;
}

static bool item_is(const struct reply_item *item, const char *text) { return item->length == strlen(text) && memcmp(item->text, text, item->length) == 0; }

static enum slow_way way_of(const struct slow_raw *raw) {
    return item_is(&raw->name, "musidecar-shared") ? SLOW_SHARED : item_is(&raw->name, "musidecar-admin") ? SLOW_ADMIN : SLOW_OWN;
}

static bool contains(const struct slow_raw *raw, const char *text) { return memmem(raw->words, raw->words_bytes, text, strlen(text)) != NULL; }

/* Is it this request? The server shortens what is long, and hides what is secret. */
static bool matches(const struct slow_raw *raw, const struct slow_note *n) {
    static const char hidden[] = "$10\r\n(redacted)\r\n";
    size_t first = raw->first.whole < SLOW_HEAD_BYTES ? raw->first.whole : SLOW_HEAD_BYTES;
    bool secret = contains(raw, hidden), shortened = secret || contains(raw, " more arguments)\r\n") || contains(raw, " more bytes)\r\n");
    if (memcmp(raw->words, n->head, first) != 0) return false;
    if (n->block) return raw->count == 1; /* its MULTI */
    if (!shortened) return raw->words_bytes == n->bytes && memcmp(raw->words, n->head, raw->words_bytes < SLOW_HEAD_BYTES ? first : SLOW_HEAD_BYTES) == 0;
    size_t seen = secret ? (size_t)((const uint8_t *)memmem(raw->words, raw->words_bytes, hidden, sizeof hidden - 1) - raw->words) : first;
    return memcmp(raw->words, n->head, seen < SLOW_HEAD_BYTES ? seen : SLOW_HEAD_BYTES) == 0;
}

static bool any_matches(const struct slow_raw *raws, size_t count, const struct slow_note *n) {
    for (size_t i = 0; i < count; i++)
        if (way_of(&raws[i]) == n->way && matches(&raws[i], n)) return true;
    return false;
}

/* The note that the entry is of, going back from `*from`; NULL: it cannot be told. `older`: entries behind it, which came
 * before. What does the same is slow the same: a request that may have an entry has one. */
static struct slow_note *note_of(struct slowlog *s, const struct slow_raw *raw, size_t older, uint64_t *from) {
    struct slow_note *part_of = NULL;
    bool several = false;
    for (uint64_t i = *from; i > s->notes.head; i--) {
        struct slow_note *n = queue_at(&s->notes, i - 1);
        if (n->way != way_of(raw)) continue;
        if (!n->used && matches(raw, n)) {
            if (part_of != NULL && any_matches(raw + 1, older, n)) return NULL; /* it, or part of a later one */
            n->used = true;
            *from = n->script ? i : i - 1;
            return n;
        }
        if (n->block && !n->used && any_matches(raw + 1, older, n)) return n; /* between it and its MULTI there is nothing else */
        if (!n->block && !(n->script && n->used)) continue;
        several = several || (part_of != NULL && !same_client(&part_of->to, &n->to));
        part_of = part_of == NULL ? n : part_of;
    }
    return several ? NULL : part_of;
}

static void entry_keep(struct slowlog *s, const struct slow_raw *raw, const struct slow_note *n) {
    struct slow_entry entry = {.id = raw->id, .bytes = raw->head_bytes};
    if (n != NULL) {
        entry.serial = n->serial;
        entry.client = n->client;
    }
    bool own = way_of(raw) == SLOW_OWN;
    if (own && raw->name.length < sizeof entry.client.name) {
        memset(entry.client.name, 0, sizeof entry.client.name);
        memcpy(entry.client.name, raw->name.text, raw->name.length);
    }
    if (own && (n == NULL || !n->known) && raw->addr.length < sizeof entry.client.addr) memcpy(entry.client.addr, raw->addr.text, raw->addr.length);
    buffer_append(&s->entries, &entry, sizeof entry);
    buffer_append(&s->entries, raw->head, raw->head_bytes);
    s->count++;
}

static void entries_clear(struct slowlog *s) {
    buffer_clear(&s->entries);
    s->count = 0;
}

static void entry_drop(struct slowlog *s) {
    struct slow_entry oldest;
    memcpy(&oldest, buffer_bytes(&s->entries), sizeof oldest);
    buffer_consume(&s->entries, sizeof oldest + oldest.bytes);
    s->count--;
}

static uint64_t shown_max(struct engine *e) {
    struct buffer text = {0};
    uint64_t most = e->slowlog.server_max;
    if (config_kept_value(e, "slowlog-max-len", 15, &text)) {
        buffer_append(&text, "", 1);
        most = strtoull((const char *)buffer_bytes(&text), NULL, 10);
    }
    buffer_free(&text);
    return most;
}

/* All that the server has; the newest come first. */
static void entries_take(struct engine *e, const uint8_t *bytes, size_t length) {
    struct slowlog *s = &e->slowlog;
    struct reply reply = {bytes, bytes + length};
    struct reply_item head;
    if (!reply_next(&reply, &head) || head.type != '*' || head.number < 0) return;
    struct slow_raw *raws = calloc((size_t)head.number + 1, sizeof *raws);
    const struct slow_note **notes = calloc((size_t)head.number + 1, sizeof *notes);
    CHECK(raws != NULL && notes != NULL);
    size_t count = 0, fresh = 0, i;
    while (count < (size_t)head.number && raw_read(&reply, &raws[count])) count++;
    if (count < s->server_max) { /* it holds all that there was since it was cleared */
        int64_t oldest = count > 0 ? raws[count - 1].id : INT64_MAX;
        struct slow_entry first;
        while (s->count > 0 && (memcpy(&first, buffer_bytes(&s->entries), sizeof first), first.id < oldest)) entry_drop(s);
    }
    uint64_t from[SLOW_WAYS] = {s->notes.tail, s->notes.tail, s->notes.tail};
    while (fresh < count && raws[fresh].id > s->newest) fresh++;
    for (i = 0; i < fresh; i++)
        if (!ask_is_ours(raws[i].first.text, raws[i].first.length)) notes[i] = note_of(s, &raws[i], fresh - i - 1, &from[way_of(&raws[i])]);
    for (i = fresh; i > 0; i--)
        if (!ask_is_ours(raws[i - 1].first.text, raws[i - 1].first.length)) entry_keep(s, &raws[i - 1], notes[i - 1]);
    if (count > 0) s->newest = raws[0].id;
    for (uint64_t most = shown_max(e); s->count > most;) entry_drop(s);
    s->notes.head = s->notes.tail;
    buffer_trim(&s->entries, 1u << 16);
    free(raws);
    free(notes);
}

/* ---- when they are fetched ------------------------------------------------------------------------------------------------ */

void slowlog_late(struct engine *e) {
    struct slowlog *s = &e->slowlog;
    uint64_t most = s->server_max / 4 < LATE_MIN ? LATE_MIN : s->server_max / 4;
    if (++s->late >= most) s->due = true;
}

/* On the shared connection, behind everything that it was asked so far. */
void slowlog_fetch(struct engine *e) {
    static const char entries[] = "*3\r\n$7\r\nSLoWLOG\r\n$3\r\nGET\r\n$2\r\n-1\r\n";
    struct shared *s = &e->shared;
    if (!engine_leads(e) || e->context.busy || e->big.active || s->socket.source.fd < 0) return;
    e->slowlog.due = false;
    e->slowlog.late = 0;
    struct expect x = {.kind = EXPECT_SLOW_LIMITS, .replies = 1, .database_after = -1, .since_ns = e->now_ns};
    uint32_t database = s->database >= 0 ? (uint32_t)s->database : 0;
    turn_forward(e, database, s->protocol, LIMITS, sizeof LIMITS - 1, &x);
    x.kind = EXPECT_SLOW_ENTRIES;
    turn_forward(e, database, s->protocol, entries, sizeof entries - 1, &x);
    e->our_calls[OUR_CALLS_CONFIG_GET]++;
    e->our_calls[OUR_CALLS_SLOWLOG_GET]++;
}

static void limits_take(struct slowlog *s, const uint8_t *bytes, size_t length) {
    struct reply reply = {bytes, bytes + length};
    struct reply_item name, value;
    if (!reply_next(&reply, &name)) return;
    while (reply_next(&reply, &name) && reply_next(&reply, &value)) {
        char text[32] = "";
        if (!value.is_bulk || value.length >= sizeof text) continue;
        memcpy(text, value.text, value.length);
        if (item_is(&name, "slowlog-max-len")) s->server_max = strtoull(text, NULL, 10);
        if (!item_is(&name, "slowlog-log-slower-than")) continue;
        long long us = strtoll(text, NULL, 10);
        s->late_ns = us < 0 ? SLOW_NEVER : (uint64_t)us * 500;
    }
}

void slowlog_replied(struct engine *e, const struct expect *x) {
    const struct buffer *answer = &e->shared.info;
    if (x->kind == EXPECT_SLOW_LIMITS) limits_take(&e->slowlog, buffer_bytes(answer), buffer_length(answer));
    else entries_take(e, buffer_bytes(answer), buffer_length(answer));
}

/* ---- what a client is shown ------------------------------------------------------------------------------------------------ */

static void append_bulk(struct buffer *out, const char *text) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", strlen(text)));
    buffer_text(out, text);
    buffer_text(out, "\r\n");
}

/* In the place of the server's answer to SLOWLOG GET. count: -1, all. */
void slowlog_view(struct engine *e, int32_t count, struct buffer *answer) {
    struct slowlog *s = &e->slowlog;
    if (buffer_length(answer) == 0 || *buffer_bytes(answer) != '*') return;
    uint64_t shown = count < 0 || (uint64_t)count > s->count ? s->count : (uint64_t)count;
    size_t *places = calloc(s->count + 1, sizeof *places);
    CHECK(places != NULL);
    const uint8_t *at = buffer_bytes(&s->entries);
    struct slow_entry entry;
    for (uint64_t i = 0; i < s->count; i++) {
        memcpy(&entry, at + places[i], sizeof entry);
        places[i + 1] = places[i] + sizeof entry + entry.bytes;
    }
    char head[32];
    buffer_clear(answer);
    buffer_append(answer, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)shown));
    for (uint64_t i = 0; i < shown; i++) {
        const uint8_t *one = at + places[s->count - 1 - i];
        memcpy(&entry, one, sizeof entry);
        buffer_text(answer, "*6\r\n");
        buffer_append(answer, one + sizeof entry, entry.bytes);
        append_bulk(answer, entry.client.addr[0] ? entry.client.addr : "?:0");
        append_bulk(answer, entry.client.name);
    }
    free(places);
}

void slowlog_view_length(struct engine *e, struct buffer *answer) {
    char text[32];
    if (buffer_length(answer) == 0 || *buffer_bytes(answer) != ':') return;
    buffer_clear(answer);
    buffer_append(answer, text, (size_t)snprintf(text, sizeof text, ":%llu\r\n", (unsigned long long)e->slowlog.count));
}

/* It was cleared. */
void slowlog_view_reset(struct engine *e, const struct buffer *answer) {
    if (buffer_length(answer) > 0 && *buffer_bytes(answer) == '+') entries_clear(&e->slowlog);
}

/* ---- its life --------------------------------------------------------------------------------------------------------------- */

/* This node leads, from here on or not any more: nothing of another time counts. */
void slowlog_begin(struct engine *e) {
    struct slowlog *s = &e->slowlog;
    entries_clear(s);
    buffer_trim(&s->entries, 0);
    s->notes.head = s->notes.tail;
    s->newest = -1;
    s->late = 0;
    s->late_ns = SLOW_NEVER;
    s->due = true;
}

void slowlog_init(struct engine *e) {
    queue_init(&e->slowlog.notes, sizeof(struct slow_note), 16);
    slowlog_begin(e);
}

void slowlog_free(struct engine *e) {
    queue_free(&e->slowlog.notes);
    buffer_free(&e->slowlog.entries);
}
