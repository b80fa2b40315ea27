/*
 * replica_state.h: what the files of ffi/core share about one replica. Private to ffi/core.
 *
 *   replica.c     life, driving, completions, accessors      leader.c    propose, commit, probes
 *   election.c    heartbeats, verdicts, when to campaign     confirm.c   confirmed followers: join, feed, drop, recycle
 *   permission.c  asking, serving and collecting grants      follow.c    reading the own ring, handing records out
 *   takeover.c    from the permissions to the first NOOP     walk.c      reading a peer's ring record by record
 *   config.c      who belongs to it, who votes
 *
 * Cursors: applied <= delivered <= commit <= last. `last` is the end of the log: on a leader what it proposed, on a
 * candidate what its ring holds, elsewhere how far headers were looked at beyond the commit index (no more than a hint:
 * the leader may be overwriting them; each tick and each grant set it back to `commit`).
 */
#ifndef MUSIDECAR_REPLICA_STATE_H
#define MUSIDECAR_REPLICA_STATE_H

#include "check.h"
#include "core/limits.h"
#include "core/quorum.h"
#include "core/replica.h"
#include "core/ring.h"

#define PLANNED_FACTOR 8ull          /* for so many times fail_us a replica that campaigns by plan tries again */
#define REPLICA_IDLE_PROBE_US 20000u /* a silent leader asks this often whether it is one still */

/* What a post was for: the top byte of its id; below it 8 bits of generation and 48 of value. */
enum post_kind {
    POST_SAMPLE = 1,   /* read of status and progress, each tick */
    POST_INSPECT = 2,  /* the same, after a grant */
    POST_NOTE = 3,     /* request or ack */
    POST_RECORD = 16,  /* from here on: log region; value = last index written */
    POST_PROBE = 17,   /* value = number */
    POST_COMMIT = 18,  /* commit index on its own */
    POST_HEAD = 19,    /* read of the minimal proposal */
    POST_ANNOUNCE = 20, /* write of it */
    POST_WALK = 21     /* read of records */
};
#define POST_VALUE_BITS 48
#define POST_VALUE_MASK ((1ull << POST_VALUE_BITS) - 1)

struct point { /* a cursor whose hash nobody needs */
    uint64_t index, position;
};

enum walk_mode {
    WALK_NONE = 0,
    WALK_SURVEY = 1, /* how far does the peer's log reach, under which ballot? */
    WALK_MATCH = 2,  /* how far is it the same as the own? */
    WALK_COPY = 3    /* take its records into the own ring */
};
struct walk {
    enum walk_mode mode;
    bool reading, ended, blocked; /* blocked: a copy waits for room in the own ring */
    struct cursor at;
    uint64_t until;  /* COPY: last index wanted */
    struct cursor claim; /* COPY: where the peer said, or was seen, to be then */
    uint64_t ballot; /* of the last record passed; 0: none */
    uint32_t want;   /* bytes of the next or present read */
    uint8_t *landing;
};

/* How far a peer is on its way to being a confirmed follower. */
enum peer_stage {
    PEER_APART = 0,
    PEER_ASKED = 1,     /* permission asked for */
    PEER_PERMITTED = 2, /* granted: this replica alone may write its log */
    PEER_INSPECTED = 3, /* its minimal proposal and progress are being read */
    PEER_MATCHED = 4,   /* its log is being compared */
    PEER_CONFIRMED = 5  /* counts */
};

struct peer_view { /* adjacent in the background region: one read */
    struct replica_status status;
    struct replica_progress progress;
};

struct peer {
    /* what it says of itself */
    bool linked, known, alive, suspected, rebase; /* rebase: the next heartbeat read only sets the mark */
    bool sampling, inspecting;                    /* reads in flight */
    uint8_t link;                                 /* counts replica_peer_up(): what was posted before may fail */
    uint64_t seen_us;                             /* its heartbeat last moved */
    uint64_t heartbeat;
    struct replica_status status;
    struct replica_progress progress;
    struct peer_view sample, inspect; /* where reads land */
    /* permission */
    uint64_t served;  /* its request number last served here */
    uint64_t grantor; /* incarnation that granted the present session */
    uint64_t request; /* number of the own request to it */
    uint64_t asked_us, rung_us;
    uint32_t refusals; /* attempts to join it that came to nothing, in a row */
    /* its log */
    enum peer_stage stage;
    uint8_t generation; /* completions of earlier sessions are not counted */
    uint8_t inspect_generation; /* session in which the read of its progress was posted */
    bool headed, inspected, announced, pins; /* pins: its applied position holds the ring */
    uint32_t log_posts; /* in flight */
    struct cursor sent;
    struct point landed;          /* behind the last record completed; until it pins the ring */
    uint64_t acked, told, probed; /* last index completed, commit index told, probe number completed */
    uint64_t probing;             /* probe number posted */
    uint64_t head;                /* where its minimal proposal lands */
    uint64_t moved_us;            /* its applied position last moved */
    uint64_t retry_us;
    struct walk walk;
};

enum takeover_stage {
    TAKEOVER_NONE = 0,
    TAKEOVER_PERMISSION = 1, /* waiting for a majority of grants */
    TAKEOVER_INSPECT = 2,    /* reading their progress and minimal proposals */
    TAKEOVER_CATCH_UP = 3,   /* taking over what any of them knows to be decided */
    TAKEOVER_SURVEY = 4,     /* announcing the ballot, reading what lies beyond */
    TAKEOVER_ADOPT = 5,      /* taking over the best log */
    TAKEOVER_MATCH = 6,      /* how far does each member's log agree with it? */
    TAKEOVER_OPEN = 7        /* the term's NOOP is on its way */
};
struct takeover {
    enum takeover_stage stage;
    uint32_t members;  /* with permission, self included */
    uint32_t unusable; /* sources whose ring no longer holds what is missing */
    uint32_t source;   /* peer that is being copied from, or REPLICA_NOBODY */
    uint32_t attempts; /* failed in a row */
    uint64_t deadline_us;
    uint64_t ballot_seen; /* largest ballot met */
};

struct replica {
    /* the request path */
    enum replica_role role;
    uint32_t self, nodes, majority, confirmed; /* majority: of the members in force */
    uint32_t voting; /* bit i: whoever granted from slot i is the member there; only these count */
    bool alone;      /* this replica is the only member */
    struct fabric *fabric;
    const struct fabric_ops *ops;
    struct ring ring;
    uint64_t salt, ballot, limit; /* limit: no byte at or beyond this position may be written */
    struct cursor last, commit;
    struct point delivered, applied;
    uint64_t reserved;     /* index of the record whose place replica_reserve() last gave away */
    uint64_t reserved_end; /* the own ring is written up to here at most */
    uint32_t feeding;      /* bit i: peer i lacks records that were not posted to it yet */
    uint64_t opened;       /* index of this term's NOOP; nothing commits before it does */
    uint64_t now_us, posted_us;
    struct replica_log_head *head;
    struct replica_background *background;
    struct peer peers[FABRIC_NODES_MAX];

    /* membership: config.c */
    uint64_t incarnation;
    struct replica_membership members, latest, applied_members;
    uint64_t config_ahead; /* a CONFIG record was seen here, beyond the commit index then; a hint */

    /* follower */
    uint64_t heard; /* highest commit index heard of */
    uint64_t base;  /* the own ring holds nothing before this position */
    enum replica_damage damage;
    bool dirty; /* progress is to be published */

    /* leader */
    uint64_t probe, probed;
    uint64_t committed_us; /* the commit index last moved, or there was nothing to commit */
    uint32_t evicted;      /* bit i: peer i held up the ring and was dropped */

    /* election */
    bool eligible;
    uint32_t leader;
    uint64_t leaderless_us; /* since when there is no healthy leader */
    uint64_t hold_us;       /* after resigning: not before this */
    uint64_t defer_us;      /* another one is to lead by plan: not before this */
    bool paused;            /* campaigns by plan only: ... */
    uint64_t planned_us;    /* until then it does */
    uint64_t backoff_us;
    uint64_t tick_us;       /* last tick, and when the next was promised */
    uint32_t interval_us;
    uint64_t wake_us;
    uint64_t request;       /* last request number used */
    uint32_t granted_to;
    uint64_t granted_us;
    uint32_t awaiting;      /* bit i: a request to i is unanswered */
    struct takeover takeover;
    struct replica_takeover times;
    uint64_t random;
    struct replica_config config;
    uint8_t *landings;
};

/* ---- replica.c */
void replica_publish_status(struct replica *r);
void replica_publish_progress(struct replica *r);
bool replica_complete(struct replica *r); /* takes what the fabric has */
uint64_t replica_oldest(const struct replica *r); /* position from which on the own ring is intact, at best */

static inline uint64_t post_id(enum post_kind kind, uint8_t generation, uint64_t value) {
    return (uint64_t)kind << 56 | (uint64_t)generation << 48 | (value & POST_VALUE_MASK);
}
static inline uint32_t bit(uint32_t node) { return 1u << node; }
static inline uint64_t ring_log_offset(const struct ring *ring, uint64_t position) {
    return REPLICA_RING_OFFSET + ring_offset(ring, position);
}
static inline uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }
static inline uint64_t sooner(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Posts to a peer's log under the present session. */
void log_write(struct replica *r, uint32_t peer, uint64_t offset, const void *bytes, uint32_t length,
               enum post_kind kind, uint64_t value);
void log_read(struct replica *r, uint32_t peer, uint64_t offset, void *into, uint32_t length, enum post_kind kind);

/* ---- election.c */
void election_sample(struct replica *r);
void election_sampled(struct replica *r, uint32_t peer, bool done);
void election_verdict(struct replica *r);
void election_consider(struct replica *r); /* campaign, if it is up to this replica */
void election_lost(struct replica *r, uint32_t peer); /* peer is taken for dead */
bool election_may_lead(struct replica *r);
uint64_t election_backoff(struct replica *r, uint32_t attempts);
void election_adopt_view(struct replica *r, struct peer *p, const struct peer_view *view);
bool peer_view_whole(const struct peer_view *view, bool *status, bool *progress);

/* ---- permission.c */
void permission_take_own(struct replica *r);
bool permission_ask(struct replica *r, uint32_t peer); /* false: not now */
void permission_ring(struct replica *r, uint32_t peer);
bool permission_serve(struct replica *r);
bool permission_collect(struct replica *r);

/* ---- takeover.c */
void takeover_begin(struct replica *r);
bool takeover_advance(struct replica *r);
void takeover_fail(struct replica *r);
void takeover_permitted(struct replica *r, uint32_t peer);
void takeover_lost(struct replica *r, uint32_t peer);
void takeover_opened(struct replica *r);

/* ---- walk.c */
void walk_begin(struct replica *r, uint32_t peer, enum walk_mode mode, struct cursor from, uint64_t until);
void walk_landed(struct replica *r, uint32_t peer);
void walk_resume(struct replica *r, uint32_t peer);

/* ---- leader.c */
int64_t leader_append(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                      uint32_t length);
int64_t leader_propose(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                       const void *payload, uint32_t length);
void leader_commit(struct replica *r);
void leader_probed(struct replica *r);
void leader_probe_peer(struct replica *r, uint32_t peer); /* now, or when its queue is shorter */
void leader_step_down(struct replica *r);
void leader_tick(struct replica *r);
bool leader_poll(struct replica *r);

/* ---- confirm.c */
void confirm_inspect(struct replica *r, uint32_t peer); /* posts the reads that follow a grant */
void confirm_peer(struct replica *r, uint32_t peer, struct cursor held);
void confirm_lose(struct replica *r, uint32_t peer); /* its log link broke, or it is dropped */
bool confirm_advance(struct replica *r);             /* joins, leader only */
bool confirm_landed(struct replica *r, uint32_t peer, uint64_t index); /* not pinning; false: it no longer counts */
void confirm_feed(struct replica *r, uint32_t peer);
void confirm_limit(struct replica *r);
void confirm_recycle(struct replica *r);

/* ---- config.c */
bool config_form(struct replica *r); /* from the configuration; false: it is impossible */
void config_install(struct replica *r, const struct replica_membership *members);
void config_count(struct replica *r); /* who votes: after a grant, or a change of what is in force */
void config_extended(struct replica *r, const struct record_header *header); /* a CONFIG record came at the end */
void config_reset(struct replica *r);                                        /* `last` went back to the commit index */
void config_decided(struct replica *r, const struct record_header *header);  /* the commit index passed one */
void config_applied(struct replica *r, const struct record_header *header);
bool config_is_member(struct replica *r);      /* this replica, at the end of its log */
bool config_majority_alive(struct replica *r); /* as far as this replica sees */
bool config_is_gone(const struct replica *r, uint32_t peer); /* removed, or a former life: to be ignored */
void config_settled(struct replica *r);
void config_dismiss(struct replica *r);
static inline bool config_quorum(const struct replica *r, uint32_t nodes) {
    return (uint32_t)__builtin_popcount(nodes & r->voting) >= r->majority;
}

/* ---- follow.c */
bool follow_scan(struct replica *r, uint32_t records_max);
void follow_commit(struct replica *r, uint64_t index);
void follow_reset(struct replica *r);
void follow_extend(struct replica *r);
bool follow_hash_at(const struct replica *r, uint64_t index, uint64_t *hash);

#endif
