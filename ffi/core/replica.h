/*
 * replica.h: one replica of the Mu protocol (OSDI'20) as a state machine without I/O.
 *
 * It is driven from outside, by one thread: replica_tick(now) now and then, replica_poll(now) whenever something may
 * have come (completions, permission requests, records), replica_propose() on the leader. It answers with posts on its
 * fabric and with committed records, in order, from replica_next(). It knows no clock, makes no system call and
 * allocates nothing after replica_new().
 *
 * Invariants (mu.md 1.14): single writer per log; a completed write proves that nobody took the permission since;
 * ballots grow; no holes; below the commit index everything is decided; agreement.
 */
#ifndef MUSIDECAR_REPLICA_H
#define MUSIDECAR_REPLICA_H

#include "core/membership.h"
#include "core/record.h"
#include "fabric/fabric.h"

/* ---- layout of the regions: the same on every fabric --------------------------------------------------------- */

#define REPLICA_LINE 64u

/* Head of the LOG region, written only by the holder of its permission; a line per word so that writers and readers of
 * one do not disturb the other. The ring follows at REPLICA_RING_OFFSET: `ring_bytes`, then `piece_bytes_max` plus a
 * record's overhead into which a record that starts before the end may run over (so records are always contiguous).
 * The record at absolute position p stands at p % ring_bytes; positions are the same in every replica's ring. */
struct replica_log_head {
    _Alignas(64) uint64_t min_proposal; /* highest ballot announced here */
    _Alignas(64) uint64_t commit;       /* commit index, written on its own when the leader goes idle */
    _Alignas(64) uint64_t probe;        /* permission probes land here */
};
#define REPLICA_RING_OFFSET 4096u

/* BACKGROUND region: one line per word-group and writer. */
struct replica_status { /* written by the owner, read by all */
    _Alignas(64) uint64_t heartbeat; /* grows by one each tick of a replicator that is not stuck */
    uint64_t term;
    uint32_t role;          /* enum replica_role */
    uint32_t leader;        /* who the owner takes for the leader, or REPLICA_NOBODY */
    uint32_t eligible;      /* may lead: backend up, clean, caught up, not joining */
    uint32_t interval_us;   /* the owner's next tick comes within this */
    uint64_t incarnation;   /* of the owner */
    uint64_t check;         /* mix of the other words: a torn read does not match */
};
struct replica_progress { /* written by the owner, read by all */
    _Alignas(64) uint64_t index; /* commit index known to the owner: all <= index decided, and held */
    uint64_t position;           /* where the record index + 1 starts */
    uint64_t hash;               /* running hash up to index */
    uint64_t applied_index;      /* copied out by the owner */
    uint64_t applied_position;   /* the ring before this position may be reused */
    uint64_t oldest_position;    /* the ring still holds the records from here on */
    uint64_t incarnation;        /* of the owner */
    uint64_t check;
};
/* Both carry the incarnation of the writer. */
struct replica_request { _Alignas(64) uint64_t number; uint64_t incarnation, check; };    /* element i: written by peer i */
struct replica_ack { _Alignas(64) uint64_t number; uint64_t epoch, incarnation, check; }; /* element j: written by peer j */
struct replica_background {
    struct replica_status status;
    struct replica_progress progress;
    struct replica_request requests[FABRIC_NODES_MAX];
    struct replica_ack acks[FABRIC_NODES_MAX];
};

/* ---- configuration ------------------------------------------------------------------------------------------- */

struct replica_config {
    uint32_t self, nodes;     /* nodes: slots, whether they have a member or not */
    uint64_t ring_bytes;      /* power of two */
    uint32_t piece_bytes_max; /* longest payload of one record */
    uint64_t salt;            /* from the cluster's secret: foreign or forged bytes never validate */
    uint32_t suspect_us;      /* without heartbeat for this plus the promised interval: suspected */
    uint32_t fail_us;         /* ... for this: taken for dead */
    uint32_t late_us;         /* a sampler that woke this much late gives no verdict */
    uint32_t request_us;      /* a permission request unanswered for this is repeated, backed off */
    uint32_t pin_us;          /* a follower that holds up the ring for this is dropped; 0: suspect_us */
    uint64_t pin_bytes;       /* ... and so many bytes of it, before COMMANDs have to wait; 0: five eighths of the ring */
    uint64_t seed;            /* for back-off */
    uint64_t incarnation;     /* own; larger in each life of this node that begins without memory. 0: INCARNATION_FIRST */
    /* Of the formation, the same everywhere and for ever: who was a member before the first CONFIG record. All 0: every
     * node, as INCARNATION_FIRST. A replica that is no member follows if it is let, counts for nothing and never leads. */
    uint64_t members[FABRIC_NODES_MAX];
};

enum replica_role { REPLICA_FOLLOWER = 0, REPLICA_CANDIDATE = 1, REPLICA_LEADER = 2 };
#define REPLICA_NOBODY 0xffffffffu

uint64_t replica_log_bytes(const struct replica_config *config);        /* size of a LOG region */
uint64_t replica_background_bytes(void);                                /* size of a BACKGROUND region */

struct replica;
/* `log` and `background` are this replica's own regions, zeroed. NULL when the configuration is impossible. */
struct replica *replica_new(const struct replica_config *config, struct fabric *fabric, void *log, void *background);
void replica_free(struct replica *r);

/* ---- driving ------------------------------------------------------------------------------------------------- */

void replica_tick(struct replica *r, uint64_t now_us, uint32_t next_interval_us);
/* Completions, permission requests, newly arrived records. Cheap when there is nothing. Returns true when it changed
 * something (call again, or look at the accessors). */
bool replica_poll(struct replica *r, uint64_t now_us);
void replica_peer_down(struct replica *r, uint32_t peer, uint64_t now_us); /* proof of death, or judged stopped */
void replica_peer_up(struct replica *r, uint32_t peer, uint64_t now_us);   /* its link stands (first time, or again) */
void replica_set_eligible(struct replica *r, bool eligible);
/* Stop leading (backend lost); the replica stays a follower until eligible and needed again. */
void replica_resign(struct replica *r, uint64_t now_us);
/* Campaign now, though another one leads: a planned hand-over. False: this replica is no follower, or may not lead. */
bool replica_campaign(struct replica *r, uint64_t now_us);
/* Do not campaign before then: somebody else is about to, by plan. 0: no more. */
void replica_defer(struct replica *r, uint64_t until_us);
/* While paused this replica campaigns by replica_campaign() only. */
void replica_pause(struct replica *r, bool paused);
/* Bit i: a confirmed follower that says of itself that it may lead, when leading. */
uint32_t replica_heirs(const struct replica *r);

/* ---- the leader ---------------------------------------------------------------------------------------------- */

enum replica_propose_error {
    REPLICA_NOT_LEADER = -1,
    REPLICA_FULL = -2,
    REPLICA_TOO_LARGE = -3,
    REPLICA_NOT_NOW = -4,  /* a change of membership that has to wait */
    REPLICA_NO_CHANGE = -5 /* it is none: see membership_take() */
};

/* A place in the own ring for a payload of up to `length_max` bytes, to be filled and then proposed with
 * replica_propose_reserved() before anything else is proposed; NULL when not leader, too long or no room. COMMANDs never
 * take the ring's last quarter, nothing but a term's NOOP its last sixteenth. */
uint8_t *replica_reserve(struct replica *r, enum record_kind kind, uint32_t length_max);
/* Both return the record's index (> 0) or an error. The outcome of an index is known when replica_commit() reaches it;
 * if the term ends first it is unknown and the record must never be proposed again. */
int64_t replica_propose_reserved(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                                 uint32_t length);
int64_t replica_propose(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                        const void *payload, uint32_t length);

/* Proposes the CONFIG record that adds this incarnation in an empty slot, or, with 0, removes the member in the slot.
 * The index, or an error: NOT_NOW while an earlier change is undecided, when the incarnation to be added does not keep
 * up as a follower yet, or when no majority of the membership to be would be confirmed; NO_CHANGE when the slot is
 * taken or empty, the incarnation is not larger than every earlier one there, or nobody would be left. A leader may remove
 * itself: it steps down when that is decided. (replica_propose() takes no CONFIG records.) */
int64_t replica_propose_member(struct replica *r, uint32_t slot, uint64_t incarnation);

/* A permission probe: returns its number; done when replica_probed() >= it. 0 when not leader. Reads answered after a
 * probe that started after they arrived are linearizable. */
uint64_t replica_probe(struct replica *r);
uint64_t replica_probed(const struct replica *r);
/* Tells the followers the commit index if no record carried it yet (call when going idle). */
void replica_flush_commit(struct replica *r);

/* ---- what came of it ----------------------------------------------------------------------------------------- */

/* The next committed record, in order, or NULL. It stays where it is until replica_applied() passes it. */
const struct record_header *replica_next(struct replica *r);
/* Everything up to `index` (handed out by replica_next) is copied out: its place may be reused. */
void replica_applied(struct replica *r, uint64_t index);

enum replica_role replica_role(const struct replica *r); /* LEADER only once this term's NOOP is committed */
uint64_t replica_term(const struct replica *r);
uint32_t replica_leader(const struct replica *r); /* the healthy leader as far as known, or REPLICA_NOBODY */
uint64_t replica_commit(const struct replica *r); /* commit index as known here */
uint64_t replica_last(const struct replica *r);   /* last index proposed or seen */
uint64_t replica_hash(const struct replica *r);   /* running hash up to the commit index */
uint64_t replica_free_bytes(const struct replica *r);
uint32_t replica_suspects(const struct replica *r); /* bit i: no heartbeat of peer i for suspect_us */
uint32_t replica_alive(const struct replica *r);    /* bit i: peer i taken for alive (self included) */
uint32_t replica_evicted(const struct replica *r);   /* bit i: dropped because it held up the ring, and not back yet; when leading */
uint64_t replica_completed(const struct replica *r, uint32_t peer); /* what the log of a confirmed follower holds, when leading */
uint32_t replica_confirmed(const struct replica *r); /* bit i: confirmed follower (self included), when leading */
/* A follower that the ring has left behind, or whose log contradicts the cluster's: it must install a snapshot. Who was
 * left behind is sound again when nobody alive is ahead any more. */
enum replica_damage { REPLICA_SOUND = 0, REPLICA_LAPPED = 1, REPLICA_DIVERGED = 2 };
enum replica_damage replica_damage(const struct replica *r);
/* Whose state to install then: the leader's, or, when nobody can lead without this replica, that of the alive peer that
 * has applied most; REPLICA_NOBODY when none has applied more than is committed here. */
uint32_t replica_source(const struct replica *r);
/* Start of a log that continues after `index`: state up to there came by a snapshot, with the membership in force there.
 * Only on a non-leader. */
void replica_install(struct replica *r, uint64_t index, uint64_t position, uint64_t hash,
                     const struct replica_membership *members, uint64_t now_us);
/* What a snapshot of the applied state needs to name: index, position and hash after the last replica_applied(). */
void replica_applied_point(const struct replica *r, uint64_t *index, uint64_t *position, uint64_t *hash);
struct replica_membership replica_applied_members(const struct replica *r);
/* The membership at the commit index: bit i: slot i has a member; which incarnation (0: none); is it this replica? */
uint32_t replica_members(const struct replica *r);
uint64_t replica_incarnation(const struct replica *r, uint32_t slot);
bool replica_is_member(const struct replica *r);
uint64_t replica_own_incarnation(const struct replica *r);
/* When the replica next wants replica_poll() without an outside event (back-off, retry); UINT64_MAX: never. */
uint64_t replica_deadline_us(const struct replica *r);

/* Times of the last take-over by this replica, in now_us of the calls: for the fail-over benchmark. */
struct replica_takeover { uint64_t suspected_us, requested_us, permitted_us, prepared_us, opened_us; };
struct replica_takeover replica_takeover_times(const struct replica *r);

#endif
