/* permission.c: who may write which log. A request is a number in the owner's background region; the owner serves one at
 * a time: it stops writing its own log, revokes, grants, and answers with the number and the epoch of the grant. Only
 * the answer to the present number counts. */
#include <stddef.h>

#include "core/mix.h"
#include "core/replica_state.h"
#include "failpoint.h"
#include "plant.h"

static uint64_t request_check(uint64_t number, uint64_t incarnation) {
    return mix_words((const uint64_t[]){number, incarnation}, 2);
}

static uint64_t ack_check(uint64_t number, uint64_t epoch, uint64_t incarnation) {
    return mix_words((const uint64_t[]){number, epoch, incarnation}, 3);
}

/* The own log goes to `peer`. Revoking comes first: after it nothing of the former holder lands, ourselves included. */
static uint64_t hand_over(struct replica *r, uint32_t peer) {
    r->ops->revoke(r->fabric);
    uint64_t epoch = r->ops->grant(r->fabric, peer);
    r->granted_to = peer;
    r->granted_us = r->now_us;
    follow_scan(r, UINT32_MAX); /* what is decided so far */
    follow_reset(r);            /* the rest may be overwritten now */
    return epoch;
}

void permission_take_own(struct replica *r) { hand_over(r, r->self); }

bool permission_ask(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    /* No post of an earlier session may be left: under the new permission it would land. */
    if (!p->linked || p->log_posts > 0) return false;
    CHECK(p->stage == PEER_APART);
    if (r->ops->release) r->ops->release(r->fabric, peer);
    r->request = later(r->request + 1, r->now_us);
    p->request = r->request;
    p->stage = PEER_ASKED;
    p->asked_us = r->now_us;
    r->awaiting |= bit(peer);
    permission_ring(r, peer);
    return true;
}

void permission_ring(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    if (!p->linked) return;
    p->rung_us = r->now_us;
    struct replica_request request = {.number = p->request, .incarnation = r->incarnation,
                                      .check = request_check(p->request, r->incarnation)};
    uint64_t offset = offsetof(struct replica_background, requests) + r->self * sizeof(struct replica_request);
    r->ops->post_write(r->fabric, peer, FABRIC_BACKGROUND, offset, &request,
                       offsetof(struct replica_request, check) + sizeof request.check, post_id(POST_NOTE, p->link, 0));
    r->ops->wake(r->fabric, peer);
}

static void serve(struct replica *r, uint32_t peer, uint64_t number) {
    bool leads_on = planted(PLANT_LEADS_ON) || planted(PLANT_OWN_UNFENCED);
    if (r->role == REPLICA_LEADER && !leads_on) leader_step_down(r);
    if (r->role == REPLICA_CANDIDATE) takeover_fail(r);
    uint64_t epoch = hand_over(r, peer);
    struct replica_ack ack = {.number = number, .epoch = epoch, .incarnation = r->incarnation,
                              .check = ack_check(number, epoch, r->incarnation)};
    uint64_t offset = offsetof(struct replica_background, acks) + r->self * sizeof(struct replica_ack);
    if (!r->peers[peer].linked) return;
    r->ops->post_write(r->fabric, peer, FABRIC_BACKGROUND, offset, &ack,
                       offsetof(struct replica_ack, check) + sizeof ack.check, post_id(POST_NOTE, r->peers[peer].link, 0));
    r->ops->wake(r->fabric, peer);
    failpoint(FAIL_ANSWERED);
}

/* One request, the lowest requester's first; the others wait for the next call. Whoever is known to have been removed is
 * not answered; a later incarnation than is known here may have been added since. */
bool permission_serve(struct replica *r) {
    if (planted(PLANT_DEAF) && r->role == REPLICA_LEADER) return false;
    for (uint32_t i = 0; i < r->nodes; i++) {
        if (i == r->self) continue;
        const struct replica_request *request = &r->background->requests[i];
        uint64_t number = __atomic_load_n(&request->number, __ATOMIC_ACQUIRE);
        if (number == r->peers[i].served) continue;
        uint64_t check = __atomic_load_n(&request->check, __ATOMIC_ACQUIRE);
        uint64_t incarnation = __atomic_load_n(&request->incarnation, __ATOMIC_ACQUIRE);
        if (check != request_check(number, incarnation)) continue; /* half written */
        r->peers[i].served = number;
        if (membership_gone(&r->members, i, incarnation)) continue;
        serve(r, i, number);
        return true;
    }
    return false;
}

bool permission_collect(struct replica *r) {
    bool any = false;
    for (uint32_t i = 0; i < r->nodes; i++) {
        struct peer *p = &r->peers[i];
        if (!(r->awaiting & bit(i))) continue;
        const struct replica_ack *ack = &r->background->acks[i];
        uint64_t check = __atomic_load_n(&ack->check, __ATOMIC_ACQUIRE);
        uint64_t number = __atomic_load_n(&ack->number, __ATOMIC_ACQUIRE);
        uint64_t epoch = __atomic_load_n(&ack->epoch, __ATOMIC_ACQUIRE);
        uint64_t incarnation = __atomic_load_n(&ack->incarnation, __ATOMIC_ACQUIRE);
        if (number != p->request || check != ack_check(number, epoch, incarnation)) continue;
        r->awaiting &= ~bit(i);
        if (p->stage != PEER_ASKED) continue;
        CHECK(p->log_posts == 0);
        r->ops->accept(r->fabric, i, epoch);
        p->generation++;
        p->stage = PEER_PERMITTED;
        p->grantor = incarnation;
        config_count(r);
        p->headed = p->inspected = p->announced = p->pins = false;
        p->walk.mode = WALK_NONE;
        any = true;
        if (r->role == REPLICA_CANDIDATE) takeover_permitted(r, i);
    }
    return any;
}
