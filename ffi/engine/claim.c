/*
 * claim.c: a backend that has outlived a life of its node, or has loaded what it saved at the end of one, holds the cluster's
 * data up to some moment: up to an offset of a history, it says. If the log vouches for that pair (R15), it goes on from there
 * and gets only what it lacks, from another node's backend; else it is filled like an empty one.
 *
 * What vouches: an EPOCH names a history, and the node whose backend it was. On that node the history may have gone on beyond
 * what the log took of it, so its backend is vouched for up to the next EPOCH only. Everywhere else it is a name that a feed
 * has told, and what a feed has given since is in the log whatever it was called. The control plane claims nothing that
 * may be of another formation of the cluster, or after which something else was done to that backend.
 */
#include <stdio.h>

#include "engine/engine_state.h"

#define COME_SO_FAR_US 1000000u

enum verdict { VOUCHED, NOT_YET, UNKNOWN, BEYOND };

static enum verdict vouch(const struct log_state *log, uint32_t self, const char *replid, uint64_t offset) {
    uint32_t i = log->epochs_kept;
    while (i > 0 && memcmp(log->epochs[i - 1].replid, replid, REPLID_BYTES) != 0) i--;
    if (replid[0] == 0 || i == 0 || offset < log->epochs[0].start) return UNKNOWN;
    bool last = i == log->epochs_kept;
    if (log->epochs[i - 1].leader == self && !last) return offset <= log->epochs[i].start ? VOUCHED : BEYOND;
    return offset <= log->effect_offset ? VOUCHED : NOT_YET;
}

static void give_up(struct engine *e, const char *why) {
    e->claim.open = e->claim.asked = false;
    engine_log(e, 30, "the backend is not taken up where it was, and will be filled: %s", why);
}

static bool go_on(struct engine *e, uint8_t *tail, uint64_t length) {
    const struct engine_config *c = &e->config;
    e->claim.open = e->claim.asked = false;
    e->feed.want_pending = false;
    e->claim.taken = feed_go_on_with(e, c->claim_offset, c->claim_replid, tail, (size_t)length);
    if (!e->claim.taken) give_up(e, "it lacks more than there is room for");
    return e->claim.taken;
}

void claim_init(struct engine *e) { e->claim.open = e->config.claim_replid[0] != 0; }

static void ask(struct engine *e) {
    struct feed *f = &e->feed;
    uint64_t lacks = e->log.effect_offset - e->config.claim_offset;
    engine_log(e, 20, "the log vouches for what the backend holds, up to offset %llu: it lacks %llu bytes of changes",
               (unsigned long long)e->config.claim_offset, (unsigned long long)lacks);
    feed_disconnect(e);
    feed_collect_from(e, e->log.effect_offset);
    if (lacks == 0) {
        go_on(e, NULL, 0);
        return;
    }
    e->claim.asked = f->want_pending = true;
    engine_tell(e, ENGINE_WANT_TAIL, e->log.effect_offset, ++f->want_number);
}

bool claim_step(struct engine *e) {
    struct claim *c = &e->claim;
    const struct engine_config *config = &e->config;
    c->taken = false; /* whatever came of it, it is to be filled again */
    if (!c->open) return false;
    if (c->asked || e->log.epoch == 0 || e->log.effect.open) return true;
    enum verdict verdict = vouch(&e->log, e->self, config->claim_replid, config->claim_offset);
    if (verdict == UNKNOWN) verdict = vouch(&e->log, e->self, config->claim_before, config->claim_offset);
    if (c->until_us == 0) c->until_us = e->now_us + COME_SO_FAR_US;
    bool late = e->now_us >= c->until_us;
    bool past = e->log.effect_offset > config->claim_offset; /* what it held then was named before */
    if (verdict == UNKNOWN && (late || past)) give_up(e, "its history is none of the log's");
    else if (verdict == BEYOND) give_up(e, "it has done what the log does not know");
    else if (verdict == NOT_YET && late) give_up(e, "it holds more than the log");
    else if (verdict == VOUCHED) ask(e);
    return c->open || c->taken;
}

void claim_tail(struct engine *e, struct control *c) {
    struct feed *f = &e->feed;
    bool wanted = e->claim.asked && f->want_pending && f->active && c->number == f->want_number;
    if (wanted && c->bytes == f->base_offset - e->config.claim_offset) {
        go_on(e, c->tail, c->bytes);
        return;
    }
    free(c->tail);
    claim_failed(e, c->number);
}

bool claim_failed(struct engine *e, uint64_t number) {
    if (!e->claim.asked || number != e->feed.want_number) return false;
    e->feed.want_pending = false;
    give_up(e, "no other node has what it lacks any more");
    return true;
}

void claim_lost(struct engine *e) {
    if (e->claim.open) give_up(e, "it was lost meanwhile");
}

void claim_settled(struct engine *e, bool right) {
    e->claim.taken = false;
    if (!right) return give_up(e, "it has gone on by itself meanwhile");
    e->counters.continued++;
    engine_log(e, 20, "the backend goes on from offset %llu, where it was", (unsigned long long)e->config.claim_offset);
}
