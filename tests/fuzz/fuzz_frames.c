/*
 * fuzz_frames.c: what another node's engine sends: the frames themselves, and the whole of link.c and forward.c behind
 * them, at once and in parts. In place of the rest of the engine stand functions that say what they were asked and hold the caller to
 * its word. A leader has no room at times (the frame stays and comes again), and takes large requests' buffers over.
 */
#include "fuzz.h"

#include "engine/forward.c" /* their functions are static */
#include "engine/link.c"

#define PEER 1u

static struct engine engine;
static struct client client;
static struct story stories[2], *story;
static struct dice room; /* when there is none */
static uint8_t choice;
static struct edge edge;

/* ---- the rest of the engine --------------------------------------------------------------------------------------- */

void engine_log(struct engine *e, uint32_t level, const char *format, ...) { (void)e, (void)level, (void)format; }
void member_asked(struct engine *e, uint32_t peer, uint64_t incarnation) {
    (void)e;
    CHECK(peer == PEER);
    story_tell(story, incarnation);
}
void engine_fatal(struct engine *e, const char *text) {
    (void)e;
    story_bytes(story, (const uint8_t *)text, strlen(text));
}
void engine_tell(struct engine *e, enum engine_event_kind kind, uint64_t a, uint64_t b) {
    (void)e;
    CHECK(kind == ENGINE_LINK_LOST && a == PEER && b == 0);
    story_tell(story, 8);
}
void source_watch(struct engine *e, struct source *s, uint32_t interest) { (void)e, s->interest = interest; }
void source_close(struct engine *e, struct source *s) { (void)e, s->fd = -1; }
bool socket_flush(struct engine *e, struct socket *s, size_t limit, size_t *written) {
    (void)e, (void)s;
    *written = limit;
    return true;
}
void clients_wake_all(struct engine *e) { (void)e, story_tell(story, 2); }
void client_want_ready(struct engine *e, struct client *c) { (void)e, (void)c; }
void client_want_flush(struct engine *e, struct client *c) { (void)e, (void)c; }
void client_close(struct engine *e, struct client *c) {
    (void)e;
    CHECK(c->in_use);
    c->in_use = false;
    story_tell(story, 3);
}
struct client *client_find(struct engine *e, uint32_t slot, uint32_t generation) {
    (void)e;
    return client.in_use && slot == client.slot && generation == client.generation ? &client : NULL;
}
void client_answered(struct engine *e, struct client *c, int32_t database_after, uint8_t type) {
    (void)e;
    CHECK(c->in_use && c->outstanding > 0);
    c->outstanding--;
    story_tell(story, (uint64_t)type << 32 | (uint32_t)database_after);
}
void admin_send_for(struct engine *e, struct destination to, const void *bytes, size_t length, bool travels) {
    (void)e;
    CHECK(to.node == PEER && length > 0);
    story_tell(story, travels);
    story_bytes(story, bytes, length);
}
void owns_kill_replicas(struct engine *e, const struct destination *to) {
    (void)e;
    CHECK(to->node == PEER);
    story_tell(story, to->slot);
}
void waits_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length) {
    (void)e;
    CHECK(to->node == PEER);
    story_bytes(story, bytes, length);
}
uint64_t replica_own_incarnation(const struct replica *r) { return r == NULL ? 1 : 0; }
void turn_local(struct engine *e, struct destination to, const void *bytes, size_t length) {
    (void)e, (void)to, (void)bytes, (void)length;
    CHECK(!"a node that follows answers its own clients itself");
}
void feed_stop(struct engine *e) { (void)e, story_tell(story, 4); }
void handover_frame(struct engine *e, uint32_t peer, const struct frame *f) {
    (void)e;
    CHECK(peer == PEER && f->length == 0 && f->type >= FRAME_HOLD && f->type <= FRAME_CAUGHT_UP);
    story_bytes(story, (const uint8_t *)f, sizeof *f);
}
void handover_link_closed(struct engine *e, uint32_t peer) { (void)e, (void)peer; }
void handover_serves(struct engine *e, uint32_t peer) { (void)e, story_tell(story, 0x200u + peer); }
void backend_set(struct engine *e, enum backend_state state) { (void)e, story_tell(story, 0x100u + state); }
void scripts_hand_on(struct engine *e, bool afresh) { (void)e, story_tell(story, 6 + afresh); }
bool log_state_whole(const struct log_state *log) { return log != NULL; }
void log_state_save(const struct log_state *log, struct buffer *out) { (void)log, buffer_text(out, "state"); }
bool log_state_load(struct log_state *log, const uint8_t *bytes, size_t length) {
    (void)log;
    story_bytes(story, bytes, length);
    return length % 2 == 0;
}
enum replica_damage replica_damage(const struct replica *r) { return r == NULL && choice & 2 ? REPLICA_LAPPED : REPLICA_SOUND; }
uint32_t replica_alive(const struct replica *r) { return r == NULL ? 7 : 0; }
uint64_t replica_commit(const struct replica *r) { return r == NULL ? 5 : 0; }
void replica_applied_point(const struct replica *r, uint64_t *index, uint64_t *position, uint64_t *hash) {
    (void)r;
    *index = *position = *hash = 0;
}
struct replica_membership replica_applied_members(const struct replica *r) {
    (void)r;
    return (struct replica_membership){.incarnation = {1, 1, 1}};
}
void replica_install(struct replica *r, uint64_t index, uint64_t position, uint64_t hash,
                     const struct replica_membership *members, uint64_t now_us) {
    (void)r, (void)now_us;
    CHECK(position % RECORD_ALIGN == 0 && index > 5);
    CHECK(membership_mask(members) != 0 && membership_mask(members) < 8);
    story_tell(story, index ^ position ^ hash);
}

void stale_asked(struct engine *e, uint32_t peer, const struct frame *f) {
    (void)e;
    CHECK(peer == PEER && f->length == 0);
    story_tell(story, f->sequence);
}
void stale_answered(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    (void)e;
    CHECK(peer == PEER && f->length == sizeof(uint64_t));
    story_bytes(story, payload, f->length);
}
void owns_end(struct engine *e, uint32_t node) { (void)e, CHECK(node == PEER); }
void own_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    (void)e;
    CHECK(peer == PEER && (f->type >= FRAME_OWN_PUSH && f->type <= FRAME_OWN_GONE));
    story_bytes(story, payload, f->length);
}
void slowlog_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    (void)e;
    CHECK(peer == PEER && f->length == (f->type == FRAME_WHO ? 0 : sizeof(struct slow_client)));
    story_bytes(story, payload, f->length);
}
bool own_frame_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    CHECK(peer == PEER && f->length > 0 && f->length <= e->config.client_input_bytes_max && f->swallow <= f->replies);
    CHECK(f->script_offset <= f->length && f->script_length <= f->length - f->script_offset);
    if (dice_below(&room, 4) == 0) return false;
    story_bytes(story, payload, f->length);
    return true;
}

bool turn_submit(struct engine *e, const struct request *r, struct buffer *holder) {
    const struct session_decision *d = r->decision;
    CHECK(r->from.node == PEER && r->database < e->config.databases && (r->protocol == 2 || r->protocol == 3));
    CHECK(d->length > 0 && d->length <= e->config.client_input_bytes_max && d->replies > 0 && d->swallow < d->replies);
    CHECK(d->script == NULL || (d->script >= d->bytes && d->script + d->script_length <= d->bytes + d->length));
    CHECK(d->bytes >= buffer_bytes(holder) && d->bytes + d->length <= buffer_bytes(holder) + buffer_length(holder));
    if (dice_below(&room, 4) == 0) return false;
    story_bytes(story, d->bytes, d->length);
    story_tell(story, r->from.sequence);
    story_bytes(story, d->script, d->script_length);
    if (d->length < 24) return true;
    struct buffer rest = {0}; /* as big_take() in turn.c does */
    const uint8_t *behind = d->bytes + d->length;
    buffer_append(&rest, behind, (size_t)(holder->data + holder->end - behind));
    if (rest.data == NULL) buffer_room(&rest, 1);
    buffer_free(holder);
    *holder = rest;
    return true;
}

bool turn_take(struct engine *e, const struct request *r, struct buffer *holder) { return turn_submit(e, r, holder); }

/* ---- one pass over the input ---------------------------------------------------------------------------------------- */

/* What two streams of the peer did: one wrote 5, the other 7, with an answer. Nothing here changes that. */
static void know_origins(void) {
    struct { struct origin_reply head; uint8_t bytes[2]; } reply = {.head = {.length = 2}, .bytes = "+\n"};
    reply.head.origin = (struct origin){.node = PEER, .slot = 1, .life = 1, .sequence = 7};
    origin_logged(&engine.log.origins, &(struct origin){.node = PEER, .life = 1, .sequence = 5});
    origin_logged(&engine.log.origins, &reply.head.origin);
    CHECK(origin_take(&engine.log.origins, (const uint8_t *)&reply, sizeof reply.head + sizeof reply.bytes));
}

static void begin(struct story *told) {
    story = told;
    story->count = 0;
    room.state = 77;
    engine.nodes = 3;
    engine.term = 0;
    engine.clients = &client;
    engine.clients_used = 1;
    engine.takeover = choice & 1 ? TAKE_SERVING : TAKE_IDLE;
    engine.backend = BACKEND_FED;
    engine.context.busy = false;
    engine.config.client_input_bytes_max = 512;
    engine.config.databases = 16;
    for (uint32_t i = 0; i < 3; i++) {
        struct link *link = &engine.links[i];
        link->socket.source.fd = i == PEER ? 100 : -1;
        link->socket.source.interest = EPOLLIN;
        link->serving_term = i == PEER && choice & 4 ? 3 : 0;
        buffer_clear(&link->socket.out);
        buffer_clear(&link->in);
        link->releasable = 0;
    }
    if (client.pending.data == NULL) queue_init(&client.pending, sizeof(struct pending), 16);
    queue_clear(&client.pending);
    for (uint64_t i = 1; i <= 4; i++)
        *(struct pending *)queue_push(&client.pending) = (struct pending){.sequence = i, .local = i == 4, .database_after = -1};
    buffer_clear(&client.socket.out);
    client.outstanding = 4;
    client.answer_bytes = client.waiting_since_us = 0;
    client.unsettled = false;
    if (engine.log.origins.bytes == 0) know_origins();
    client.in_use = true;
    client.releasable = 0;
}

static bool is_open(void) { return engine.links[PEER].socket.source.fd >= 0; }

static void run(struct story *told, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct link *link = &engine.links[PEER];
    begin(told);
    for (size_t start = 0; start < length && is_open();) {
        size_t part = dice == NULL ? length - start : dice_part(dice, length - start);
        buffer_append(&link->in, bytes + start, part);
        start += part;
        link_process(&engine, PEER);
        for (int i = 0; i < 1000 && is_open() && !(link->socket.source.interest & EPOLLIN); i++) links_process(&engine);
    }
    story_tell(story, is_open());
    story_tell(story, link->serving_term);
    story_bytes(story, buffer_bytes(&client.socket.out), buffer_length(&client.socket.out));
    story_bytes(story, buffer_bytes(&link->socket.out), buffer_length(&link->socket.out));
    CHECK(client.releasable == buffer_length(&client.socket.out));
    buffer_trim(&link->in, 1u << 20); /* a head may have announced a megabyte */
}

/* A head is judged as soon as it is there, and what it announces is bounded. */
static void read_alone(const uint8_t *bytes, size_t length) {
    const struct frame_limits limits = {512, 16};
    struct frame frame;
    size_t whole;
    enum frame_status status = frame_read(edge_put(&edge, bytes, length), length, &limits, &frame, &whole);
    if (length < sizeof frame) CHECK(status == FRAME_MORE && whole == 0);
    else if (status != FRAME_BAD) CHECK(whole == sizeof frame + frame.length && (status == FRAME_WHOLE) == (whole <= length));
    if (status != FRAME_BAD && length >= sizeof frame) CHECK(frame.type == FRAME_SNAPSHOT || frame.length <= 1u << 20);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    choice = data[0];
    struct dice dice = {data[1] * 2u + 1u};
    read_alone(data + 2, size - 2);
    run(&stories[0], data + 2, size - 2, NULL);
    run(&stories[1], data + 2, size - 2, &dice);
    story_compare(&stories[0], &stories[1]);
    return 0;
}
