/* census.c: see census.h. */
#include "engine/census.h"

#include <stdio.h>

#include "engine/client_list.h"
#include "engine/own_state.h"
#include "protocols/redis/session_clients.h"

#define PATIENCE_US 2000000ull     /* with a node that lives ... */
#define PATIENCE_DEAD_US 200000ull /* ... or seems not to */
#define LINE_BYTES_MAX 2048u
#define BUFFER_MIN 4096u /* of buffer.h */
#define REPLY_BUFFER_MIN 1024u /* of the server's for each client ... */
#define REPLY_BUFFER_MAX 16384u

/* ---- at every node ------------------------------------------------------------------------------------------------------ */

/* As the server would write it of a client that it keeps nothing else for. */
static void client_line(const struct engine *e, const struct client *c, struct buffer *out) {
    const struct session *s = &c->session;
    struct own_peer peer = {0};
    char flags[8] = "", text[1024];
    client_describe(c, &peer);
    snprintf(flags, sizeof flags, "%s%s", s->in_multi || s->own_multi ? "x" : "", c->leaving ? "c" : "");
    size_t unsent = buffer_length(&c->socket.out), held = c->socket.out.capacity;
    size_t answer = held <= BUFFER_MIN ? REPLY_BUFFER_MIN : held < REPLY_BUFFER_MAX ? held : REPLY_BUFFER_MAX;
    size_t query = buffer_length(&c->in) + c->asking, room = c->in.capacity, block = buffer_length(&s->block);
    int n = snprintf(text, sizeof text,
                     "id=%llu addr=%s laddr=%s fd=%d name=%s age=%llu idle=%llu flags=%s db=%u sub=0 psub=0 ssub=0 multi=%d qbuf=%zu qbuf-free=%zu "
                     "argv-mem=%zu multi-mem=%zu rbs=%zu rbp=%zu obl=%zu oll=0 omem=0 tot-mem=%zu events=r%s cmd=%s user=default redir=-1 resp=%u\n",
                     (unsigned long long)s->client_id, peer.addr, peer.laddr, c->socket.source.fd, s->name,
                     (unsigned long long)(e->now_us - c->since_us) / 1000000, (unsigned long long)(e->now_us - c->heard_us) / 1000000,
                     flags[0] != 0 ? flags : "N", s->database, s->in_multi ? (int)s->multi_commands - 1 : -1, query, room, (size_t)c->asking,
                     s->in_multi ? block : 0, answer, answer, unsent, sizeof *c + room + held + block, unsent > 0 ? "w" : "",
                     s->last != NULL ? s->last->name : "NULL", s->protocol);
    if (n > 0 && (size_t)n < sizeof text) buffer_append(out, text, (size_t)n);
}

static void entries_of(const struct engine *e, struct buffer *out) {
    struct buffer line = {0};
    for (uint32_t i = 0; i < e->clients_used; i++) {
        const struct client *c = &e->clients[i];
        if (!c->in_use) continue;
        buffer_clear(&line);
        client_line(e, c, &line);
        const struct census_entry entry = {.id = c->session.client_id, .slot = c->slot, .generation = c->generation,
                                           .line_bytes = (uint32_t)buffer_length(&line), .on_own = c->session.own != OWN_NONE};
        buffer_append(out, &entry, sizeof entry);
        buffer_append(out, buffer_bytes(&line), buffer_length(&line));
    }
    buffer_free(&line);
}

static void kill_here(struct engine *e, uint32_t slot, uint32_t generation, bool once_told) {
    struct client *c = client_find(e, slot, generation);
    if (c == NULL) return;
    if (!once_told) return client_close(e, c);
    c->leaving = true;
    client_want_flush(e, c);
}

/* Each turn, at a follower: INFO says how many clients there are. */
void census_tell(struct engine *e) {
    struct censuses *all = &e->censuses;
    uint32_t leader = engine_leads(e) ? REPLICA_NOBODY : link_leader(e);
    if (leader == REPLICA_NOBODY || (all->told == e->counters.clients && all->told_term == e->links[leader].serving_term)) return;
    all->told = e->counters.clients;
    all->told_term = e->links[leader].serving_term;
    link_send(e, leader, &(struct frame){.type = FRAME_CLIENT_COUNT, .sequence = all->told, .term = all->told_term}, NULL);
}

uint64_t census_count(const struct engine *e) {
    uint64_t count = e->counters.clients;
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self && e->links[i].socket.source.fd >= 0) count += e->links[i].clients;
    return count;
}

/* ---- at the leader: asking ------------------------------------------------------------------------------------------------ */

static void census_free(struct engine *e, struct census *census) {
    struct census **at = &e->censuses.first;
    while (*at != census) at = &(*at)->next;
    *at = census->next;
    buffer_free(&census->request);
    buffer_free(&census->backend);
    for (uint32_t i = 0; i < FABRIC_NODES_MAX; i++) buffer_free(&census->entries[i]);
    free(census);
}

void census_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length, uint8_t protocol) {
    static const char list[] = ASK_CLIENTS;
    struct census *census = calloc(1, sizeof *census);
    CHECK(census != NULL);
    *census = (struct census){.next = e->censuses.first, .to = *to, .number = ++e->censuses.asked, .since_us = e->now_us,
                              .protocol = protocol, .waits = 1u << e->self};
    e->censuses.first = census;
    buffer_append(&census->request, bytes, length);
    for (uint32_t i = 0; i < e->nodes; i++) {
        if (i == e->self || e->links[i].socket.source.fd < 0) continue;
        census->waits |= 1u << i;
        link_send(e, i, &(struct frame){.type = FRAME_CLIENTS_ASK, .sequence = census->number, .term = e->term}, NULL);
    }
    entries_of(e, &census->entries[e->self]);
    admin_queue(e, (struct admin_expect){.kind = ADMIN_CLIENTS, .to = {.node = REPLICA_NOBODY, .sequence = census->number}}, list, sizeof list - 1);
}

static struct census *census_find(struct engine *e, uint64_t number) {
    struct census *census = e->censuses.first;
    while (census != NULL && census->number != number) census = census->next;
    return census;
}

/* ---- at the leader: what it comes to --------------------------------------------------------------------------------------- */

struct row {
    uint64_t id;
    uint32_t node, slot, generation; /* of a line of the backend's: nobody */
    struct field line;
};

struct rows { struct row *all; size_t count; };

struct roll {
    struct rows rows, backend; /* the backend's lines, by its numbers */
    struct buffer texts;       /* of rows that had to be written */
    struct buffer ids;         /* uint64_t: LIST ID's */
};

static int by_id(const void *a, const void *b) {
    uint64_t x = ((const struct row *)a)->id, y = ((const struct row *)b)->id;
    return (x > y) - (x < y);
}

static void replace_by(struct buffer *out, struct field *line, const char *name, struct field from, const char *there) {
    struct field value;
    if (field_find(from, there, &value)) field_replace(out, line, name, value.text, value.length);
}

/* What the backend says of a client's own connection, with what its node knows better. In the backend's order of fields. */
static void merge(struct buffer *out, struct field line, const struct own_peer *peer, struct field told, bool asks) {
    struct field value;
    char text[32];
    static const char *const before[] = {"id", "addr", "laddr", "fd", "age"};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) replace_by(out, &line, before[i], told, before[i]);
    if (asks) replace_by(out, &line, "idle", told, "idle");
    if (field_find(line, "flags", &value)) {
        list_flags(value, text, sizeof text);
        field_replace(out, &line, "flags", text, strlen(text));
    }
    if (asks) replace_by(out, &line, "qbuf", told, "qbuf");
    if (asks) replace_by(out, &line, "cmd", told, "cmd");
    if (field_find(line, "redir", &value) && field_number(value) == peer->goes_to && peer->goes_to != 0)
        field_replace(out, &line, "redir", text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)peer->goes_to_client));
    buffer_append(out, line.text, line.length);
}

/* Another node's are judged: one line each, and no more. */
static bool line_right(const uint8_t *line, uint32_t length) {
    if (length == 0 || length > LINE_BYTES_MAX || line[length - 1] != '\n') return false;
    for (uint32_t i = 0; i + 1 < length; i++)
        if (line[i] < ' ' || line[i] > '~') return false;
    return true;
}

static void add(struct rows *rows, struct row row) {
    if ((rows->count & (rows->count - 1)) == 0) { /* at each power of two */
        rows->all = realloc(rows->all, (rows->count > 0 ? 2 * rows->count : 1) * sizeof *rows->all);
        CHECK(rows->all != NULL);
    }
    rows->all[rows->count++] = row;
}

static void sort(struct rows *rows) {
    if (rows->count > 0) qsort(rows->all, rows->count, sizeof *rows->all, by_id);
}

static const struct row *row_by_id(const struct rows *rows, uint64_t id) {
    const struct row key = {.id = id};
    return rows->count > 0 && id != 0 ? bsearch(&key, rows->all, rows->count, sizeof key, by_id) : NULL;
}

static void backend_lines(const struct census *census, struct rows *rows) {
    struct field body, line, value;
    size_t tag;
    if (!list_body(buffer_bytes(&census->backend), buffer_length(&census->backend), &body, &tag)) return;
    while (body.length > 0) {
        line = list_next(&body);
        if (field_find(line, "id", &value)) add(rows, (struct row){field_number(value), REPLICA_NOBODY, 0, 0, line});
    }
    sort(rows);
}

static void add_entries(struct engine *e, const struct census *census, struct roll *roll, uint32_t node) {
    const uint8_t *at = buffer_bytes(&census->entries[node]), *end = at + buffer_length(&census->entries[node]);
    struct census_entry entry;
    for (; (size_t)(end - at) >= sizeof entry; at += entry.line_bytes) {
        memcpy(&entry, at, sizeof entry);
        at += sizeof entry;
        if (entry.line_bytes > (size_t)(end - at) || !line_right(at, entry.line_bytes)) return;
        struct row row = {entry.id, node, entry.slot, entry.generation, {(const char *)at, entry.line_bytes}};
        const struct own_peer *peer = own_peer_of(e, node, entry.slot, entry.generation);
        const struct row *known = entry.on_own && peer != NULL ? row_by_id(&roll->backend, peer->id) : NULL;
        if (known != NULL) {
            const struct destination *to = &census->to;
            size_t before = buffer_length(&roll->texts);
            merge(&roll->texts, known->line, peer, row.line, to->node == node && to->slot == entry.slot && to->generation == entry.generation);
            row.line = (struct field){NULL, buffer_length(&roll->texts) - before};
        }
        add(&roll->rows, row);
    }
}

static bool field_same(struct field line, const char *name, struct word w) {
    struct field value;
    return field_find(line, name, &value) && value.length == w.length && memcmp(value.text, w.text, w.length) == 0;
}

static enum client_type type_of(struct field line) {
    struct field flags;
    if (!field_find(line, "flags", &flags)) return CLIENT_NORMAL;
    if (memchr(flags.text, 'M', flags.length) != NULL) return CLIENT_MASTER;
    if (memchr(flags.text, 'S', flags.length) != NULL) return CLIENT_REPLICA;
    return memchr(flags.text, 'P', flags.length) != NULL ? CLIENT_PUBSUB : CLIENT_NORMAL;
}

static int id_order(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void ids_read(const struct resp_request *request, const uint8_t *bytes, struct buffer *ids) {
    struct resp_argument a = resp_request_argument(request, bytes, 2);
    for (uint64_t i = 3; i < request->argc; i++) {
        long long number = 0;
        a = resp_request_next(request, bytes, a);
        word_number((struct word){(const char *)bytes + a.offset, a.length}, &number);
        const uint64_t id = (uint64_t)number;
        buffer_append(ids, &id, sizeof id);
    }
    qsort(buffer_bytes(ids), buffer_length(ids) / sizeof(uint64_t), sizeof(uint64_t), id_order);
}

static bool id_named(const struct buffer *ids, uint64_t id) {
    return bsearch(&id, buffer_bytes(ids), buffer_length(ids) / sizeof id, sizeof id, id_order) != NULL;
}

static bool is_meant(const struct client_filter *f, const struct buffer *ids, const struct row *row, bool asks) {
    if (asks ? f->skips_me : f->itself) return false;
    if ((f->id != 0 && f->id != row->id) || (f->ids && !id_named(ids, row->id))) return false;
    if (f->type != CLIENT_ANY && f->type != type_of(row->line)) return false;
    if (f->by_user && !field_same(row->line, "user", (struct word){"default", 7})) return false;
    if (f->addr.text != NULL && !field_same(row->line, "addr", f->addr)) return false;
    return f->laddr.text == NULL || field_same(row->line, "laddr", f->laddr);
}

static void kill_row(struct engine *e, const struct row *row, bool asks) {
    const struct destination to = {row->node, row->slot, row->generation, 0, 0};
    own_close(e, &to); /* so that it is given nothing any more */
    const struct frame frame = {.type = FRAME_CLIENT_KILL, .flags = asks ? FRAME_LAST : 0, .slot = row->slot, .generation = row->generation, .term = e->term};
    if (row->node == e->self) kill_here(e, row->slot, row->generation, asks);
    else link_send(e, row->node, &frame, NULL);
}

static void answer_list(struct engine *e, const struct census *census, const struct buffer *lines) {
    struct buffer out = {0};
    char head[40];
    bool verbatim = census->protocol == 3;
    int n = snprintf(head, sizeof head, "%c%zu\r\n%s", verbatim ? '=' : '$', buffer_length(lines) + (verbatim ? 4 : 0), verbatim ? "txt:" : "");
    buffer_append(&out, head, (size_t)n);
    buffer_append(&out, buffer_bytes(lines), buffer_length(lines));
    buffer_text(&out, "\r\n");
    admin_answer_client(e, &census->to, buffer_bytes(&out), buffer_length(&out));
    buffer_free(&out);
}

static void answer_kill(struct engine *e, const struct census *census, const struct client_filter *f, uint64_t killed) {
    char text[32];
    int n = snprintf(text, sizeof text, ":%llu\r\n", (unsigned long long)killed);
    if (f->old && killed > 0) n = snprintf(text, sizeof text, "+OK\r\n");
    else if (f->old) n = snprintf(text, sizeof text, "-ERR No such client\r\n");
    admin_answer_client(e, &census->to, text, (size_t)n);
}

static void roll_write(struct engine *e, const struct census *census, struct roll *roll) {
    backend_lines(census, &roll->backend);
    for (uint32_t i = 0; i < e->nodes; i++) add_entries(e, census, roll, i);
    const char *text = (const char *)buffer_bytes(&roll->texts); /* it stays where it is now */
    for (size_t i = 0; i < roll->rows.count; i++) {
        struct field *line = &roll->rows.all[i].line;
        if (line->text != NULL) continue;
        line->text = text;
        text += line->length;
    }
    sort(&roll->rows);
}

static void roll_free(struct roll *roll) {
    free(roll->rows.all);
    free(roll->backend.all);
    buffer_free(&roll->texts);
    buffer_free(&roll->ids);
}

/* Lists or kills those that are meant; who asks is told before he goes himself. */
static void roll_call(struct engine *e, const struct census *census, const struct client_filter *f, const struct roll *roll) {
    const struct destination *to = &census->to;
    const struct row *itself = NULL;
    struct buffer lines = {0};
    uint64_t killed = 0;
    for (size_t i = 0; i < roll->rows.count; i++) {
        const struct row *row = &roll->rows.all[i];
        bool asks = row->node == to->node && row->slot == to->slot && row->generation == to->generation;
        if (!is_meant(f, &roll->ids, row, asks)) continue;
        killed++;
        if (!f->kills) buffer_append(&lines, row->line.text, row->line.length);
        else if (asks) itself = row;
        else kill_row(e, row, false);
    }
    if (f->kills) answer_kill(e, census, f, killed);
    else answer_list(e, census, &lines);
    if (itself != NULL) kill_row(e, itself, true);
    buffer_free(&lines);
}

static void census_end(struct engine *e, struct census *census) {
    struct resp_request request;
    struct client_filter f;
    struct roll roll = {0};
    const uint8_t *bytes = buffer_bytes(&census->request);
    if (request_parse(bytes, buffer_length(&census->request), &request) && client_filter_read(&e->context, &request, bytes, &f)) {
        if (f.ids) ids_read(&request, bytes, &roll.ids);
        roll_write(e, census, &roll);
        roll_call(e, census, &f, &roll);
    }
    roll_free(&roll);
    census_free(e, census);
}

static void answered(struct engine *e, struct census *census, uint32_t node) {
    census->waits &= ~(1u << node);
    if (census->waits == 0) census_end(e, census);
}

void census_backend(struct engine *e, uint64_t number, const uint8_t *text, size_t length) {
    struct census *census = census_find(e, number);
    if (census == NULL) return;
    if (text[0] == '-') {
        admin_answer_client(e, &census->to, text, length);
        return census_free(e, census);
    }
    buffer_append(&census->backend, text, length);
    answered(e, census, e->self);
}

void census_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    struct census *census;
    struct buffer out = {0};
    switch ((enum frame_type)f->type) {
        case FRAME_CLIENTS_ASK:
            entries_of(e, &out);
            if (buffer_length(&out) > CENSUS_BYTES_MAX) buffer_clear(&out);
            link_send(e, peer, &(struct frame){.type = FRAME_CLIENTS, .length = (uint32_t)buffer_length(&out), .sequence = f->sequence}, buffer_bytes(&out));
            buffer_free(&out);
            break;
        case FRAME_CLIENTS:
            census = census_find(e, f->sequence);
            if (census == NULL || !(census->waits & (1u << peer))) break;
            buffer_append(&census->entries[peer], payload, f->length);
            answered(e, census, peer);
            break;
        case FRAME_CLIENT_KILL:
            if (peer == link_leader(e)) kill_here(e, f->slot, f->generation, f->flags & FRAME_LAST);
            break;
        default: e->links[peer].clients = f->sequence; break;
    }
}

static uint64_t patience_us(const struct engine *e, uint32_t node) {
    return replica_alive(e->replica) & (1u << node) ? PATIENCE_US : PATIENCE_DEAD_US;
}

void censuses_step(struct engine *e) {
    for (struct census *census = e->censuses.first, *next; census != NULL; census = next) {
        next = census->next;
        uint32_t gone = 0;
        for (uint32_t i = 0; i < e->nodes; i++)
            if (i != e->self && (e->links[i].socket.source.fd < 0 || e->now_us - census->since_us >= patience_us(e, i))) gone |= 1u << i;
        if ((census->waits & gone) == 0) continue;
        census->waits &= ~gone;
        if (census->waits == 0) census_end(e, census);
    }
}

void censuses_drop(struct engine *e) {
    while (e->censuses.first != NULL) {
        struct census *census = e->censuses.first;
        struct client *c = census->to.node == e->self ? client_find(e, census->to.slot, census->to.generation) : NULL;
        census_free(e, census);
        if (c != NULL) client_close(e, c);
    }
}
