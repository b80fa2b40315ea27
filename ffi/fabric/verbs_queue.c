/* verbs_queue.c: posts, and what becomes of them. Every send is signalled; a queue pair completes in order, so that a
 * completion is always that of the oldest send. What the device has no room for waits here: a slow peer fills neither its
 * queue pair nor anybody else's. */
#include "fabric/verbs_state.h"

#ifdef VERBS_BUILT

#include <errno.h>
#include <string.h>

#define COMPLETIONS_AT_ONCE 32

static struct verbs_post *post_at(struct verbs_queue *q, uint32_t number) { return &q->posts[number % VERBS_POSTS]; }

/* ---- wr_id: which post of which queue -------------------------------------------------------------------------------- */

static uint64_t work_id(uint32_t peer, const struct verbs_queue *q, uint32_t number) {
    return (uint64_t)q->serial << 32 | (uint64_t)peer << 24 | (uint64_t)q->region << 16 | (uint16_t)number;
}

/* ---- settling -------------------------------------------------------------------------------------------------------- */

/* Passes what has an outcome; the staging of the last one passed and of all before is free again. */
static inline void pass(struct verbs_queue *q) {
    while (q->settled != q->posted && post_at(q, q->settled)->status != VERBS_UNSETTLED) {
        uint64_t staged = post_at(q, q->settled)->staged;
        if (staged) q->staging_tail = staged;
        q->settled++;
    }
    if ((int32_t)(q->sent - q->settled) < 0) q->sent = q->settled;
}

static void advance(struct verbs *v, uint32_t peer, struct verbs_queue *q) {
    pass(q);
    if (q->taken != q->settled) v->ready |= verbs_bit(peer, q->region);
}

static uint8_t failure(struct verbs_queue *q, const struct verbs_post *post, enum fabric_status status) {
    if (q->told == post->session) return FABRIC_FLUSHED;
    q->told = post->session;
    return (uint8_t)status;
}

void verbs_give_up(struct verbs *v, uint32_t peer, uint32_t region, enum fabric_status status) {
    struct verbs_queue *q = v->peers[peer].queues[region];
    for (uint32_t i = q->settled; i != q->posted; i++) {
        struct verbs_post *post = post_at(q, i);
        if (post->status != VERBS_UNSETTLED) continue;
        if ((int32_t)(i - q->sent) < 0) v->under_way--;
        post->status = failure(q, post, status);
    }
    q->sent = q->posted;
    advance(v, peer, q);
    q->staging_head = q->staging_tail = 0;
    q->serial++;
    q->broken = true;
    v->waiting &= ~verbs_bit(peer, region);
}

static enum fabric_status meaning(enum ibv_wc_status status, const struct verbs_queue *q, const struct verbs_post *post) {
    bool refused = status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR || status == IBV_WC_REM_OP_ERR;
    return refused && q->region == FABRIC_LOG && post->kind == VERBS_WRITE ? FABRIC_REFUSED : FABRIC_DOWN;
}

/* The queue pair is in its error state: it sends nothing more. */
static void fail(struct verbs *v, uint32_t peer, struct verbs_queue *q, enum fabric_status status) {
    v->counters.broken++;
    verbs_give_up(v, peer, q->region, status);
    if (q->region == FABRIC_LOG) verbs_tell_broken(v, peer);
    else atomic_store(&v->peers[peer].cut, true);
}

static uint8_t *staging_of(const struct verbs *v, const struct verbs_queue *q, const struct verbs_post *post) {
    return q->staging + (post->staged - post->length) % v->staging_bytes;
}

/* The oldest send of a queue is done; NULL: given up meanwhile, or it failed. */
static inline struct verbs_queue *complete(struct verbs *v, const struct ibv_wc *wc) {
    uint32_t peer = wc->wr_id >> 24 & 0xff, region = wc->wr_id >> 16 & 0xff;
    struct verbs_queue *q = v->peers[peer].queues[region];
    if ((uint32_t)(wc->wr_id >> 32) != q->serial) return NULL;
    CHECK(q->settled != q->sent && (uint16_t)q->settled == (uint16_t)wc->wr_id);
    struct verbs_post *post = post_at(q, q->settled);
    if (wc->status != IBV_WC_SUCCESS) {
        fail(v, peer, q, meaning(wc->status, q, post));
        return NULL;
    }
    if (post->kind == VERBS_READ) memcpy(post->into, staging_of(v, q, post), post->length);
    post->status = FABRIC_DONE;
    v->under_way--;
    pass(q);
    return q;
}

/* Takes the device's completions, and tells up to `max` of them: those before which nothing is to be told. */
static int reap(struct verbs *v, struct fabric_completion *out, int max) {
    struct ibv_wc done[COMPLETIONS_AT_ONCE];
    int told = 0;
    for (int count = COMPLETIONS_AT_ONCE; count == COMPLETIONS_AT_ONCE && v->under_way > 0;) {
        count = ibv_poll_cq(v->device.sent, COMPLETIONS_AT_ONCE, done);
        CHECK(count >= 0);
        for (int i = 0; i < count; i++) {
            struct verbs_queue *q = complete(v, &done[i]);
            if (!q) continue;
            uint32_t peer = done[i].wr_id >> 24 & 0xff;
            const struct verbs_post *post = post_at(q, q->taken);
            if (q->taken + 1 == q->settled && !post->internal && told < max) {
                out[told++] = (struct fabric_completion){.id = post->id, .peer = peer, .status = FABRIC_DONE};
                q->taken++;
            } else {
                v->ready |= verbs_bit(peer, q->region);
            }
        }
    }
    return told;
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

/* A place for `length` bytes; NULL: not now. */
static uint8_t *stage(const struct verbs *v, struct verbs_queue *q, struct verbs_post *post) {
    uint64_t size = v->staging_bytes;
    CHECK(post->length <= size);
    if (q->staging_head == q->staging_tail) q->staging_head = q->staging_tail = 0;
    uint64_t head = q->staging_head, at = head % size;
    if (at + post->length > size) head += size - at; /* in one piece */
    if (head + post->length - q->staging_tail > size) return NULL;
    q->staging_head = post->staged = head + post->length;
    return q->staging + head % size;
}

static bool is_own(const struct verbs *v, uint32_t region, const uint8_t *source, uint32_t length) {
    const uint8_t *memory = v->memory[region];
    return source >= memory && source + length <= memory + v->memory_bytes[region];
}

/* Where the device finds the bytes of what is not sent inline, or puts them. False: no staging now. */
static bool place_bytes(const struct verbs *v, struct verbs_queue *q, struct verbs_post *post) {
    struct ibv_sge *piece = &q->piece;
    if (post->kind == VERBS_WRITE && is_own(v, q->region, post->source, post->length)) {
        piece->addr = (uintptr_t)post->source;
        piece->lkey = v->keys[q->region]->lkey;
        return true;
    }
    uint8_t *staging = stage(v, q, post);
    if (!staging) return false;
    if (post->kind == VERBS_WRITE) memcpy(staging, post->source, post->length);
    piece->addr = (uintptr_t)staging;
    piece->lkey = v->staging_keys[q->region]->lkey;
    return true;
}

/* Fills in the queue's work request, of which most never changes. False: it has to wait for staging. */
static inline bool prepare(const struct verbs *v, const struct verbs_link *link, uint32_t peer, struct verbs_queue *q,
                           struct verbs_post *post) {
    bool log = q->region == FABRIC_LOG;
    struct ibv_send_wr *work = &q->work;
    work->wr_id = work_id(peer, q, q->sent);
    work->sg_list = &q->piece;
    work->num_sge = 1;
    work->wr.rdma.remote_addr = (log ? link->theirs.log_address : link->theirs.background_address) + post->offset;
    work->wr.rdma.rkey = log ? link->theirs.log_key : link->theirs.background_key;
    q->piece.length = post->length;
    if (post->kind == VERBS_WRITE && post->length <= v->device.place.inline_bytes) {
        q->piece.addr = (uintptr_t)post->source;
        work->opcode = IBV_WR_RDMA_WRITE;
        work->send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE;
        return true;
    }
    work->send_flags = IBV_SEND_SIGNALED;
    work->opcode = post->kind == VERBS_WRITE ? IBV_WR_RDMA_WRITE : post->kind == VERBS_READ ? IBV_WR_RDMA_READ : IBV_WR_SEND;
    if (post->kind != VERBS_RING) return place_bytes(v, q, post);
    work->num_sge = 0;
    return true;
}

/* The oldest post that was not sent. False: it has to wait. */
static inline bool send_next(struct verbs *v, uint32_t peer, struct verbs_queue *q, struct verbs_post *post) {
    const struct verbs_link *link = v->peers[peer].link;
    if (q->sent - q->settled >= v->device.place.queue_depth) return false;
    if (!prepare(v, link, peer, q, post)) return false;
    struct ibv_send_wr *bad;
    if (ibv_post_send(link->out[q->region], &q->work, &bad)) {
        CHECK(q->sent == q->settled || errno != EINVAL);
        if (q->sent != q->settled) return false; /* completions will make room */
        fail(v, peer, q, FABRIC_DOWN);
        return true;
    }
    v->under_way++;
    q->sent++;
    return true;
}

static void send_waiting(struct verbs *v) {
    for (uint64_t rest = v->waiting; rest; rest &= rest - 1) {
        uint32_t which = (uint32_t)__builtin_ctzll(rest), peer = which / FABRIC_REGIONS;
        struct verbs_queue *q = v->peers[peer].queues[which % FABRIC_REGIONS];
        while (q->sent != q->posted) {
            struct verbs_post *post = post_at(q, q->sent);
            if (post->status != VERBS_UNSETTLED) q->sent++;
            else if (!send_next(v, peer, q, post)) break;
        }
        if (q->sent == q->posted) v->waiting &= ~verbs_bit(peer, q->region);
    }
}

static int progress(struct verbs *v, struct fabric_completion *out, int max) {
    verbs_adopt(v);
    int told = reap(v, out, max);
    if (v->waiting) send_waiting(v);
    return told;
}

void verbs_reap(struct verbs *v) { reap(v, NULL, 0); }

void verbs_progress(struct verbs *v) { progress(v, NULL, 0); }

/* ---- posting ----------------------------------------------------------------------------------------------------------- */

/* What is known already to fail. */
static uint8_t foreseen(const struct verbs_peer *p, struct verbs_queue *q, const struct verbs_post *post) {
    if (!p->link) return FABRIC_DOWN;
    if (q->broken) return FABRIC_FLUSHED;
    if (q->region != FABRIC_LOG || post->kind != VERBS_WRITE || p->token) return VERBS_UNSETTLED;
    q->broken = true; /* not permitted: nothing of it, nor of what follows, goes out */
    return failure(q, post, FABRIC_REFUSED);
}

/* The peer takes nothing any more. */
static void give_up_stuck(struct verbs *v, uint32_t peer, struct verbs_queue *q) {
    const struct verbs_link *link = v->peers[peer].link;
    if (link) verbs_stop(v, link->out[q->region]);
    fail(v, peer, q, FABRIC_DOWN);
}

/* What was not sent: it waits, or is known already to fail. `first`: nothing waited before it. */
static void put_off(struct verbs *v, uint32_t peer, struct verbs_queue *q, struct verbs_post *post, bool first) {
    if (post->status != VERBS_UNSETTLED) {
        if (first) q->sent++;
        advance(v, peer, q);
        return;
    }
    if (post->kind == VERBS_WRITE && post->length <= FABRIC_INLINE_MAX)
        post->source = memcpy(q->kept[post - q->posts], post->source, post->length);
    v->waiting |= verbs_bit(peer, q->region);
    v->counters.waits++;
}

/* Fills in the next place of a queue, and sends it if nothing waits before it. Field by field: a copy of the whole is made
 * in the stack first. */
static inline void fill(struct verbs *v, uint32_t peer, struct verbs_queue *q, struct verbs_post wanted) {
    if (__builtin_expect(q->posted - q->settled >= VERBS_STUCK, 0)) give_up_stuck(v, peer, q);
    CHECK(q->posted - q->taken < VERBS_POSTS);
    struct verbs_post *post = post_at(q, q->posted);
    post->id = wanted.id;
    post->offset = wanted.offset;
    post->source = wanted.source; /* or `into` */
    post->staged = 0;
    post->length = wanted.length;
    post->session = q->session;
    post->kind = wanted.kind;
    post->internal = wanted.internal;
    post->status = foreseen(&v->peers[peer], q, post);
    bool first = q->sent == q->posted;
    q->posted++;
    if (post->status == VERBS_UNSETTLED && first && send_next(v, peer, q, post)) return;
    put_off(v, peer, q, post, first);
}

/* The queue of a caller's post. */
static inline struct verbs_queue *queue_for(struct verbs *v, uint32_t peer, enum fabric_region region, uint64_t offset,
                                            uint32_t length) {
    uint64_t bytes = region == FABRIC_LOG ? v->config.log_bytes : v->config.background_bytes;
    fabric_check_post(&v->fabric, peer, region, bytes, offset, length);
    verbs_adopt(v);
    return v->peers[peer].queues[region];
}

void verbs_post_write(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, const void *bytes,
                      uint32_t length, uint64_t id) {
    struct verbs *v = verbs_of(f);
    struct verbs_queue *q = queue_for(v, peer, region, offset, length);
    v->counters.writes++;
    v->counters.write_bytes += length;
    fill(v, peer, q, (struct verbs_post){.id = id, .kind = VERBS_WRITE, .offset = offset, .source = bytes, .length = length});
}

void verbs_post_read(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                     uint32_t length, uint64_t id) {
    struct verbs *v = verbs_of(f);
    struct verbs_queue *q = queue_for(v, peer, region, offset, length);
    v->counters.reads++;
    fill(v, peer, q, (struct verbs_post){.id = id, .kind = VERBS_READ, .offset = offset, .into = into, .length = length});
}

void verbs_post_internal(struct verbs *v, uint32_t peer, enum verbs_kind kind, uint64_t offset, const void *bytes, uint32_t length) {
    struct verbs_queue *q = v->peers[peer].queues[FABRIC_BACKGROUND];
    if (!v->peers[peer].link || q->broken) return;
    fill(v, peer, q,
         (struct verbs_post){.kind = (uint8_t)kind, .offset = offset, .source = bytes, .length = length, .internal = true});
}

/* ---- telling ----------------------------------------------------------------------------------------------------------- */

int verbs_poll(struct fabric *f, struct fabric_completion *out, int max) {
    struct verbs *v = verbs_of(f);
    int count = progress(v, out, max);
    for (uint64_t rest = v->ready; rest && count < max; rest &= rest - 1) {
        uint32_t which = (uint32_t)__builtin_ctzll(rest), peer = which / FABRIC_REGIONS;
        struct verbs_queue *q = v->peers[peer].queues[which % FABRIC_REGIONS];
        for (; count < max && q->taken != q->settled; q->taken++) {
            const struct verbs_post *post = post_at(q, q->taken);
            if (post->internal) continue;
            if (post->status != FABRIC_DONE) v->counters.refused++;
            out[count++] = (struct fabric_completion){.id = post->id, .peer = peer, .status = post->status};
        }
        if (q->taken == q->settled) v->ready &= ~verbs_bit(peer, q->region);
    }
    return count;
}

#endif
