/* sim.c: see sim.h. A link is a pair of nodes and a region; its posts take effect one after the other, each in steps:
 * a network card looks at the permission with every part that lands; a processor looks once, stores part by part, and
 * looks again before it calls the post done. */
#include "fabric/sim.h"

#include <string.h>

#include "check.h"
#include "core/mix.h"
#include "plant.h"

#define SIM_QUEUE 1024u /* posts in flight per link, power of two */
#define SIM_TRANSFER_US 40u /* of one post, from its first part to its last */
#define SIM_SCATTER 64u /* a post of more parts lands in order */

struct sim_post {
    uint64_t id, offset, landed, due_us;
    uint64_t arrived;     /* bit i: part i has, when parts arrive in any order */
    const uint8_t *bytes; /* long writes are read where they stand, when they land */
    uint8_t *into, *copy; /* reads: what was read so far */
    uint32_t length;
    bool write, finished;
    bool checked;   /* a processor has looked at the permission and goes on to store */
    bool barred;    /* the owner fenced it then: its stores land nowhere */
    bool permitted; /* when it was posted */
    uint32_t status;
    uint8_t small[FABRIC_INLINE_MAX];
};

struct sim_link {
    bool broken, cut;
    uint64_t token;          /* grant epoch under which the log may be written; 0: none */
    uint32_t slow_us, parts; /* parts: that may still land */
    uint32_t first, landing, end; /* first..landing: finished, not polled; landing..end: under way */
    struct sim_post posts[SIM_QUEUE];
};

struct sim_node {
    struct fabric fabric; /* first: the fabric's address is the node's */
    struct sim *sim;
    uint8_t *log, *background;
    bool dead, frozen;
    uint32_t holder;
    uint64_t epoch, wakes;
    struct sim_link *links[FABRIC_NODES_MAX][FABRIC_REGIONS]; /* to the others */
};

struct sim {
    struct sim_config config;
    uint64_t now_us, random, posts;
    struct sim_watch watch;
    struct sim_node nodes[FABRIC_NODES_MAX];
};

static struct sim_node *node_of(struct fabric *f) { return (struct sim_node *)(void *)f; }

static uint64_t delay(struct sim *s, const struct sim_link *link) {
    uint32_t spread = s->config.delay_max_us - s->config.delay_min_us;
    return s->config.delay_min_us + link->slow_us + (spread ? mix_next(&s->random) % (spread + 1) : 0);
}

/* A node's own thread may be stopped wherever it uses its fabric. */
static void between(struct sim_node *n) {
    if (n->sim->watch.between) n->sim->watch.between(n->sim->watch.context, n->fabric.self);
}

/* ---- landing ------------------------------------------------------------------------------------------------- */

static bool holds(const struct sim_node *owner, uint32_t from, const struct sim_link *link) {
    return owner->holder == from && owner->epoch == link->token;
}

static uint32_t refusal(const struct sim_node *owner, uint32_t from, const struct sim_link *link,
                        enum fabric_region region, const struct sim_post *post) {
    if (link->broken) return FABRIC_FLUSHED;
    if (link->cut || (owner->dead && !planted(PLANT_DEAD_ACKS))) return FABRIC_DOWN;
    if (region != FABRIC_LOG || !post->write) return FABRIC_DONE;
    if (planted(PLANT_NO_REVOKE) && link->token) return FABRIC_DONE;
    if (planted(PLANT_LATE_WRITES) && post->permitted) return FABRIC_DONE;
    return holds(owner, from, link) ? FABRIC_DONE : FABRIC_REFUSED;
}

static void finish(struct sim *s, struct sim_link *link, struct sim_post *post, uint32_t status) {
    post->finished = true;
    post->status = status;
    if (status != FABRIC_DONE) link->broken = true;
    post->due_us = s->now_us + delay(s, link); /* the answer travels, too */
    if (link->landing != link->first) {
        uint64_t before = link->posts[(link->landing - 1) % SIM_QUEUE].due_us;
        if (post->due_us < before) post->due_us = before;
    }
    link->landing++;
    if (link->landing == link->end) return;
    struct sim_post *next = &link->posts[link->landing % SIM_QUEUE];
    if (next->due_us < s->now_us) next->due_us = s->now_us;
}

/* Where the next part begins: in order, or whichever. */
static uint64_t next_part(struct sim *s, struct sim_post *post) {
    uint32_t size = s->config.part_bytes;
    uint32_t parts = size ? (post->length + size - 1) / size : 1;
    if (!s->config.scatter || parts == 1 || parts > SIM_SCATTER) return post->landed;
    uint64_t missing = ~post->arrived & (parts == 64 ? UINT64_MAX : (1ull << parts) - 1);
    uint32_t skip = (uint32_t)(mix_next(&s->random) % (uint64_t)__builtin_popcountll(missing));
    while (skip--) missing &= missing - 1;
    uint32_t part = (uint32_t)__builtin_ctzll(missing);
    post->arrived |= 1ull << part;
    return (uint64_t)part * size;
}

static void store_part(struct sim *s, uint32_t from, uint32_t to, enum fabric_region region, struct sim_post *post) {
    const struct sim_link *link = s->nodes[from].links[to][region];
    struct sim_node *owner = &s->nodes[to];
    uint64_t start = next_part(s, post), part = post->length - start;
    if (s->config.part_bytes && part > s->config.part_bytes) part = s->config.part_bytes;
    uint8_t *memory = (region == FABRIC_LOG ? owner->log : owner->background) + post->offset + start;
    const uint8_t *bytes = (post->length <= FABRIC_INLINE_MAX ? post->small : post->bytes) + start;
    post->landed += part;
    if (!post->write) {
        memcpy(post->copy + start, memory, part);
        return;
    }
    if (post->barred) return;
    if (s->watch.landing)
        s->watch.landing(s->watch.context, &(struct sim_landing){.from = from, .to = to, .region = region, .epoch = link->token,
                                                                 .offset = post->offset + start, .bytes = bytes,
                                                                 .length = (uint32_t)part});
    memcpy(memory, bytes, part);
}

/* However many parts: together they take about as long as one way, but links are not slower than fast. */
static uint64_t pause_between_parts(struct sim *s, const struct sim_post *post) {
    uint64_t parts = s->config.part_bytes ? (post->length + s->config.part_bytes - 1) / s->config.part_bytes : 1;
    uint64_t whole = s->config.delay_max_us < SIM_TRANSFER_US ? s->config.delay_max_us : SIM_TRANSFER_US;
    uint64_t most = 2 * whole / (parts + 1);
    return most ? mix_next(&s->random) % (most + 1) : 0;
}

static bool by_processor(const struct sim *s, enum fabric_region region, const struct sim_post *post) {
    return s->config.processor && region == FABRIC_LOG && post->write;
}

/* The next step of the link's next post. */
static void land(struct sim *s, uint32_t from, uint32_t to, enum fabric_region region) {
    struct sim_link *link = s->nodes[from].links[to][region];
    struct sim_post *post = &link->posts[link->landing % SIM_QUEUE];
    bool processor = by_processor(s, region, post);
    bool stored = post->landed == post->length;
    if (!processor || !post->checked || stored) {
        uint32_t status = refusal(&s->nodes[to], from, link, region, post);
        if (post->barred) status = FABRIC_REFUSED;
        if (status != FABRIC_DONE || stored) {
            finish(s, link, post, status);
            return;
        }
    }
    if (link->parts != UINT32_MAX) link->parts--;
    if (processor && !post->checked) post->checked = true;
    else store_part(s, from, to, region, post);
    if (!processor && post->landed == post->length) finish(s, link, post, FABRIC_DONE);
    else post->due_us = s->now_us + pause_between_parts(s, post);
}

/* The link whose next part is due first, until `until_us`. */
static bool earliest(const struct sim *s, uint64_t until_us, uint32_t *from, uint32_t *to, enum fabric_region *region) {
    uint64_t best = UINT64_MAX;
    for (uint32_t i = 0; i < s->config.nodes; i++) {
        if (s->nodes[i].dead || s->nodes[i].frozen) continue;
        for (uint32_t j = 0; j < s->config.nodes; j++) {
            for (int k = 0; k < FABRIC_REGIONS && i != j; k++) {
                const struct sim_link *link = s->nodes[i].links[j][k];
                if (link->landing == link->end || link->parts == 0) continue;
                uint64_t due_us = link->posts[link->landing % SIM_QUEUE].due_us;
                if (due_us > until_us || due_us >= best) continue;
                best = due_us;
                *from = i;
                *to = j;
                *region = (enum fabric_region)k;
            }
        }
    }
    return best != UINT64_MAX;
}

void sim_advance(struct sim *s, uint64_t now_us) {
    uint32_t from = 0, to = 0;
    enum fabric_region region = FABRIC_LOG;
    CHECK(now_us >= s->now_us);
    while (earliest(s, now_us, &from, &to, &region)) {
        const struct sim_link *link = s->nodes[from].links[to][region];
        uint64_t due_us = link->posts[link->landing % SIM_QUEUE].due_us;
        if (due_us > s->now_us) s->now_us = due_us;
        land(s, from, to, region);
    }
    s->now_us = now_us;
}

/* ---- operations ---------------------------------------------------------------------------------------------- */

static void post(struct sim_node *n, uint32_t peer, enum fabric_region region, struct sim_post what,
                 const void *bytes) {
    struct sim *s = n->sim;
    uint64_t bytes_max = region == FABRIC_LOG ? s->config.log_bytes : s->config.background_bytes;
    fabric_check_post(&n->fabric, peer, region, bytes_max, what.offset, what.length);
    struct sim_link *link = n->links[peer][region];
    CHECK(link->end - link->first < SIM_QUEUE);
    if (what.write && what.length <= FABRIC_INLINE_MAX) memcpy(what.small, bytes, what.length);
    if (!what.write) CHECK((what.copy = malloc(what.length)) != NULL);
    what.permitted = holds(&s->nodes[peer], n->fabric.self, link);
    what.due_us = s->now_us + delay(s, link);
    if (link->landing != link->end) {
        uint64_t before = link->posts[(link->end - 1) % SIM_QUEUE].due_us;
        if (what.due_us < before) what.due_us = before;
    }
    link->posts[link->end++ % SIM_QUEUE] = what;
    s->posts++;
    between(n);
}

static void post_write(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, const void *bytes,
                       uint32_t length, uint64_t id) {
    post(node_of(f), peer, region,
         (struct sim_post){.id = id, .offset = offset, .length = length, .write = true, .bytes = bytes}, bytes);
}

static void post_read(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                      uint32_t length, uint64_t id) {
    post(node_of(f), peer, region, (struct sim_post){.id = id, .offset = offset, .length = length, .into = into}, NULL);
}

static int poll_completions(struct fabric *f, struct fabric_completion *out, int max) {
    struct sim_node *n = node_of(f);
    struct sim *s = n->sim;
    int count = 0;
    between(n);
    CHECK(!n->dead && !n->frozen);
    sim_advance(s, s->now_us);
    for (uint32_t peer = 0; peer < s->config.nodes; peer++) {
        for (int region = 0; region < FABRIC_REGIONS && peer != f->self; region++) {
            struct sim_link *link = n->links[peer][region];
            for (; count < max && link->first != link->landing; link->first++) {
                struct sim_post *done = &link->posts[link->first % SIM_QUEUE];
                if (done->due_us > s->now_us) break;
                if (!done->write && done->status == FABRIC_DONE) memcpy(done->into, done->copy, done->length);
                free(done->copy);
                done->copy = NULL;
                out[count++] = (struct fabric_completion){.id = done->id, .peer = peer, .status = done->status};
            }
        }
    }
    return count;
}

/* The former holder may be between looking at its permission and the last of its stores. While it runs, it is waited
 * for, or it takes too long; stopped, it is fenced where it stands. */
static void await_or_bar(struct sim *s, uint32_t writer, uint32_t owner) {
    struct sim_link *link = s->nodes[writer].links[owner][FABRIC_LOG];
    struct sim_post *post = &link->posts[link->landing % SIM_QUEUE];
    if (link->landing == link->end || !by_processor(s, FABRIC_LOG, post) || !post->checked) return;
    bool stopped = s->nodes[writer].dead || s->nodes[writer].frozen || link->parts == 0;
    while (!stopped && post->landed < post->length && mix_next(&s->random) % 16)
        store_part(s, writer, owner, FABRIC_LOG, post);
    post->barred = post->landed < post->length;
}

static void watch_grant(const struct sim_node *n) {
    if (n->sim->watch.granted) n->sim->watch.granted(n->sim->watch.context, n->fabric.self, n->holder, n->epoch);
}

static void revoke(struct fabric *f) {
    struct sim_node *n = node_of(f);
    uint32_t former = n->holder;
    between(n);
    n->holder = SIM_NOBODY;
    n->epoch++;
    if (former != SIM_NOBODY && former != f->self && !planted(PLANT_NO_REVOKE) && !planted(PLANT_LATE_WRITES))
        await_or_bar(n->sim, former, f->self);
    watch_grant(n);
    between(n);
}

static uint64_t grant(struct fabric *f, uint32_t peer) {
    struct sim_node *n = node_of(f);
    CHECK(n->holder == SIM_NOBODY && peer < n->sim->config.nodes);
    n->holder = peer;
    uint64_t epoch = ++n->epoch;
    watch_grant(n);
    between(n);
    return epoch;
}

static void accept_permission(struct fabric *f, uint32_t peer, uint64_t epoch) {
    struct sim *s = node_of(f)->sim;
    struct sim_link *link = node_of(f)->links[peer][FABRIC_LOG];
    between(node_of(f));
    while (link->landing != link->end) /* under the new permission a post from before would land */
        finish(s, link, &link->posts[link->landing % SIM_QUEUE], link->broken ? FABRIC_FLUSHED : FABRIC_REFUSED);
    link->token = epoch;
    link->broken = false;
}

static bool holds_own(struct fabric *f) {
    bool own = node_of(f)->holder == f->self;
    between(node_of(f));
    return own;
}

static void wake(struct fabric *f, uint32_t peer) { node_of(f)->sim->nodes[peer].wakes++; }

static const struct fabric_ops sim_ops = {.post_write = post_write,
                                          .post_read = post_read,
                                          .poll = poll_completions,
                                          .revoke = revoke,
                                          .grant = grant,
                                          .accept = accept_permission,
                                          .holds_own = holds_own,
                                          .wake = wake};

/* ---- making, and doing harm ------------------------------------------------------------------------------------ */

static uint8_t *region_new(uint64_t bytes) {
    uint8_t *memory = aligned_alloc(4096, (bytes + 4095) & ~(uint64_t)4095);
    CHECK(memory != NULL);
    memset(memory, 0, bytes);
    return memory;
}

struct sim *sim_new(const struct sim_config *config) {
    if (config->nodes < 1 || config->nodes > FABRIC_NODES_MAX || config->delay_max_us < config->delay_min_us) return NULL;
    struct sim *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    s->config = *config;
    s->random = config->seed;
    for (uint32_t i = 0; i < config->nodes; i++) {
        struct sim_node *n = &s->nodes[i];
        n->fabric = (struct fabric){.ops = &sim_ops, .self = i, .nodes = config->nodes};
        n->sim = s;
        n->holder = SIM_NOBODY;
        n->log = region_new(config->log_bytes);
        n->background = region_new(config->background_bytes);
        for (uint32_t j = 0; j < config->nodes; j++) {
            for (int k = 0; k < FABRIC_REGIONS && i != j; k++) {
                CHECK((n->links[j][k] = calloc(1, sizeof(struct sim_link))) != NULL);
                n->links[j][k]->parts = UINT32_MAX;
            }
        }
    }
    return s;
}

static void link_free(struct sim_link *link) {
    if (!link) return;
    for (uint32_t i = link->first; i != link->end; i++) free(link->posts[i % SIM_QUEUE].copy);
    free(link);
}

void sim_free(struct sim *s) {
    if (!s) return;
    for (uint32_t i = 0; i < s->config.nodes; i++) {
        for (uint32_t j = 0; j < s->config.nodes; j++)
            for (int k = 0; k < FABRIC_REGIONS; k++) link_free(s->nodes[i].links[j][k]);
        free(s->nodes[i].log);
        free(s->nodes[i].background);
    }
    free(s);
}

struct fabric *sim_fabric(struct sim *s, uint32_t node) { return &s->nodes[node].fabric; }
void *sim_log(struct sim *s, uint32_t node) { return s->nodes[node].log; }
void *sim_background(struct sim *s, uint32_t node) { return s->nodes[node].background; }
uint64_t sim_now_us(const struct sim *s) { return s->now_us; }
uint64_t sim_posts(const struct sim *s) { return s->posts; }
uint32_t sim_holder(const struct sim *s, uint32_t node) { return s->nodes[node].holder; }
uint64_t sim_wakes(const struct sim *s, uint32_t node) { return s->nodes[node].wakes; }

void sim_set_delay(struct sim *s, uint32_t min_us, uint32_t max_us) {
    CHECK(max_us >= min_us);
    s->config.delay_min_us = min_us;
    s->config.delay_max_us = max_us;
}

void sim_set_slow(struct sim *s, uint32_t from, uint32_t to, uint32_t extra_us) {
    for (int k = 0; k < FABRIC_REGIONS; k++) s->nodes[from].links[to][k]->slow_us = extra_us;
}

void sim_cut(struct sim *s, uint32_t from, uint32_t to) {
    for (int k = 0; k < FABRIC_REGIONS; k++) s->nodes[from].links[to][k]->cut = true;
}

void sim_heal(struct sim *s, uint32_t from, uint32_t to) {
    for (int k = 0; k < FABRIC_REGIONS; k++) {
        struct sim_link *link = s->nodes[from].links[to][k];
        while (link->cut && link->landing != link->end) { /* what was under way is lost, not late */
            link->broken = true;
            finish(s, link, &link->posts[link->landing % SIM_QUEUE], FABRIC_FLUSHED);
        }
        if (k == FABRIC_LOG && link->cut) link->broken = true;
        if (k == FABRIC_BACKGROUND) link->broken = false;
        link->cut = false;
    }
}

void sim_freeze(struct sim *s, uint32_t node, bool frozen) { s->nodes[node].frozen = frozen; }
void sim_crash(struct sim *s, uint32_t node) { s->nodes[node].dead = true; }

void sim_wipe(struct sim *s, uint32_t node) {
    struct sim_node *n = &s->nodes[node];
    for (uint32_t j = 0; j < s->config.nodes; j++) {
        for (int k = 0; k < FABRIC_REGIONS && j != node; k++) {
            struct sim_link *out = n->links[j][k], *in = s->nodes[j].links[node][k];
            for (; out->first != out->end; out->first++) free(out->posts[out->first % SIM_QUEUE].copy);
            out->landing = out->end;
            while (in->landing != in->end) finish(s, in, &in->posts[in->landing % SIM_QUEUE], FABRIC_DOWN);
            out->broken = out->cut = in->broken = in->cut = true;
            out->token = 0;
        }
    }
    memset(n->log, 0, s->config.log_bytes);
    memset(n->background, 0, s->config.background_bytes);
    n->dead = n->frozen = false;
    n->holder = SIM_NOBODY;
    n->epoch++; /* no grant of its former life is good any more */
}

void sim_hold(struct sim *s, uint32_t from, uint32_t to, uint32_t parts) {
    s->nodes[from].links[to][FABRIC_LOG]->parts = parts;
}

void sim_break(struct sim *s, uint32_t from, uint32_t to) {
    struct sim_link *link = s->nodes[from].links[to][FABRIC_LOG];
    while (link->landing != link->end) finish(s, link, &link->posts[link->landing % SIM_QUEUE], FABRIC_FLUSHED);
    link->broken = true;
}

void sim_watch(struct sim *s, const struct sim_watch *watch) { s->watch = *watch; }
