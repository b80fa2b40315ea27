/* faults.c: see faults.h. */
#include "faults.h"

#include <stdio.h>
#include <string.h>

#include "members.h"
#include "trace.h"

enum fault {
    FAULT_CRASH,      /* node; value odd: the others are told at once */
    FAULT_REBIRTH,    /* node: a dead one comes back without its memory */
    FAULT_ADD,        /* node: whoever leads is asked to add it, in its present life */
    FAULT_REMOVE,     /* node: ... to remove it */
    FAULT_PAUSE,      /* node: as SIGSTOP */
    FAULT_CONTINUE,   /* node */
    FAULT_INTERRUPT,  /* node: at its so manieth (second argument) use of the fabric, for value us */
    FAULT_CUT,        /* from, to: one direction */
    FAULT_HEAL,       /* from, to */
    FAULT_SPLIT,      /* mask; second argument: 0 both directions, 1 out of the mask only */
    FAULT_MEND,       /* all cuts */
    FAULT_BREAK,      /* from, to: the log link fails once */
    FAULT_HOLD,       /* from, to: only value more steps of what is posted to its log happen */
    FAULT_RELEASE,    /* from, to; the same twice: to all */
    FAULT_MUTE,       /* node, mask: as hold, of what is posted to all that are not in the mask */
    FAULT_SLOW,       /* from, to, us */
    FAULT_FAR,        /* node: whatever it sends or is sent takes value us longer */
    FAULT_NEAR,       /* node: no longer */
    FAULT_LAZY,       /* node: applies one time in value */
    FAULT_RESIGN,     /* node */
    FAULT_INELIGIBLE, /* node */
    FAULT_ELIGIBLE,   /* node */
    FAULT_CLOCK,      /* node: its clock jumps ahead by value us */
    FAULT_DOWN,       /* node, whom the others are told to be dead while it is not */
    FAULT_SWITCHOVER, /* node: it campaigns by plan; value odd: the others defer to it first */
    FAULTS
};

static const struct {
    const char *name;
    uint32_t weight;  /* usual */
    bool relief;      /* always possible; the others a seed may leave out */
    uint32_t value_max;
} kinds[FAULTS] = {
    [FAULT_CRASH] = {"crash", 4, false, 2},          [FAULT_REBIRTH] = {"rebirth", 12, true, 0},
    [FAULT_ADD] = {"add", 40, true, 0},              [FAULT_REMOVE] = {"remove", 10, false, 0},
    [FAULT_PAUSE] = {"pause", 16, false, 0},         [FAULT_CONTINUE] = {"continue", 24, true, 0},
    [FAULT_INTERRUPT] = {"interrupt", 12, false, 9000}, [FAULT_CUT] = {"cut", 10, false, 0},
    [FAULT_HEAL] = {"heal", 24, true, 0},            [FAULT_SPLIT] = {"split", 4, false, 0},
    [FAULT_MEND] = {"mend", 6, true, 0},             [FAULT_BREAK] = {"break", 6, false, 0},
    [FAULT_HOLD] = {"hold", 8, false, 6},            [FAULT_RELEASE] = {"release", 16, true, 0},
    [FAULT_MUTE] = {"mute", 6, false, 4},
    [FAULT_SLOW] = {"slow", 8, false, 500},          [FAULT_FAR] = {"far", 6, false, 16000},
    [FAULT_NEAR] = {"near", 12, true, 0},            [FAULT_LAZY] = {"lazy", 8, false, 300},
    [FAULT_RESIGN] = {"resign", 3, false, 0},        [FAULT_INELIGIBLE] = {"ineligible", 3, false, 0},
    [FAULT_ELIGIBLE] = {"eligible", 6, true, 0},     [FAULT_CLOCK] = {"clock", 3, false, 20000},
    [FAULT_DOWN] = {"down", 4, false, 0},            [FAULT_SWITCHOVER] = {"switchover", 6, false, 10},
};

#define SCRIPT_MAX 1024u
#define PLANS_MAX 64u

struct order {
    uint32_t step;
    enum fault kind;
    uint32_t a, b, value;
};

static struct {
    uint32_t weight[FAULTS], total, in, calm; /* in: one step in so many; calm: until this step nothing */
    struct order script[SCRIPT_MAX], plan[PLANS_MAX];
    uint32_t plots, plans; /* plots: one fault in so many begins one */
    uint32_t orders, next;
    bool scripted;
} f;

static uint64_t chance(uint64_t sides) { return draw(&world.chaos, sides); }

void faults_list(void) {
    for (int k = 0; k < FAULTS; k++) puts(kinds[k].name);
}

static bool named(const char *name, size_t length, enum fault *kind) {
    for (int k = 0; k < FAULTS; k++) {
        *kind = (enum fault)k;
        if (strlen(kinds[k].name) == length && strncmp(kinds[k].name, name, length) == 0) return true;
    }
    return false;
}

/* ---- what is to come ------------------------------------------------------------------------------------------- */

static bool read_weights(const char *text) {
    while (text && *text) {
        enum fault kind;
        size_t length = strcspn(text, "=");
        if (text[length] != '=' || !named(text, length, &kind)) return false;
        char *end;
        f.weight[kind] = (uint32_t)strtoul(text + length + 1, &end, 10);
        text = end + (*end == ',');
    }
    return true;
}

static bool read_script(const char *text) {
    while (*text) {
        struct order order = {0};
        char name[16];
        size_t length = strcspn(text, ";");
        char one[128];
        if (length >= sizeof one || f.orders == SCRIPT_MAX) return false;
        memcpy(one, text, length);
        one[length] = 0;
        int fields = sscanf(one, "%u %15s %u %u %u", &order.step, name, &order.a, &order.b, &order.value);
        if (fields >= 2) {
            if (!named(name, strlen(name), &order.kind)) return false;
            if (f.orders && order.step < f.script[f.orders - 1].step) order.step = f.script[f.orders - 1].step;
            f.script[f.orders++] = order;
        }
        text += length + (text[length] == ';');
    }
    return true;
}

bool faults_begin(const char *weights, const char *script) {
    memset(&f, 0, sizeof f);
    f.in = 8 + (uint32_t)(chance(3) ? chance(40) : chance(200));
    for (int k = 0; k < FAULTS; k++) { /* each seed has its own mixture */
        uint32_t weight = kinds[k].weight << chance(3);
        f.weight[k] = kinds[k].relief || chance(2) ? weight : 0;
    }
    if (!read_weights(weights)) return false;
    f.plots = weights ? 0 : (uint32_t)chance(3) * 4;
    f.scripted = script != NULL;
    if (script && !read_script(script)) return false;
    for (int k = 0; k < FAULTS; k++) f.total += f.weight[k];
    return true;
}

/* ---- what happens ------------------------------------------------------------------------------------------------ */

static bool crash(uint32_t i, bool told) {
    struct node *n = &world.node[i];
    if (n->dead || !members_can_spare(i)) return false;
    n->dead = true;
    n->paused = false;
    n->lived_to = world.proposed;
    n->term = 0;
    sim_crash(world.sim, i);
    world.counts.crashes++;
    for (uint32_t k = 0; told && k < world.nodes; k++)
        if (k != i && !world.node[k].dead) node_send(&world.node[k], MAIL_DOWN, i);
    return true;
}

/* Without its memory it is nobody, until it is added. */
static bool rebirth(uint32_t i) {
    return world.node[i].dead && (!members_count_on(i) || members_can_spare(i)) && node_rebirth(i);
}

/* Everybody who thinks that he leads is asked. A dead member's slot can be emptied, too. */
static bool ask_to_change(uint32_t i, enum mail_kind kind) {
    bool any = false;
    for (uint32_t k = 0; k < world.nodes; k++) {
        if (!running(&world.node[k]) || !world.node[k].term) continue;
        node_send(&world.node[k], kind, i);
        any = true;
    }
    return any;
}

static bool pause(uint32_t i, bool paused) {
    struct node *n = &world.node[i];
    if (n->dead || n->paused == paused) return false;
    n->paused = paused;
    /* Stores by its processor stand still, those by a network card go on. */
    sim_freeze(world.sim, i, (paused || n->busy) && world.config_processor);
    return true;
}

static bool cut(uint32_t from, uint32_t to) {
    if (from == to || world.cut[from][to]) return false;
    world.cut[from][to] = true;
    sim_cut(world.sim, from, to);
    return true;
}

static bool heal(uint32_t from, uint32_t to) {
    if (from == to || !world.cut[from][to] || world.node[from].dead) return false;
    node_send(&world.node[from], MAIL_UP, to);
    return true;
}

static bool split(uint32_t mask, bool one_way) {
    bool any = false;
    for (uint32_t i = 0; i < world.nodes; i++) {
        for (uint32_t j = 0; j < world.nodes; j++) {
            bool out = mask >> i & 1 && !(mask >> j & 1), in = mask >> j & 1 && !(mask >> i & 1);
            if (out || (in && !one_way)) any |= cut(i, j);
        }
    }
    return any;
}

static bool mend(void) {
    bool any = false;
    for (uint32_t i = 0; i < world.nodes; i++)
        for (uint32_t j = 0; j < world.nodes; j++) any |= heal(i, j);
    return any;
}

static bool rumour(uint32_t i) {
    for (uint32_t k = 0; k < world.nodes; k++)
        if (k != i && !world.node[k].dead) node_send(&world.node[k], MAIL_DOWN, i);
    return true;
}

static bool mute(uint32_t i, uint32_t mask, uint32_t steps) {
    for (uint32_t j = 0; j < world.nodes; j++)
        if (i != j) sim_hold(world.sim, i, j, mask >> j & 1 ? UINT32_MAX : steps);
    return true;
}

static bool switchover(uint32_t i, bool deferred) {
    for (uint32_t k = 0; deferred && k < world.nodes; k++)
        if (k != i && !world.node[k].dead) node_send(&world.node[k], MAIL_DEFER, i);
    node_send(&world.node[i], MAIL_CAMPAIGN, i);
    return !world.node[i].dead;
}

static bool far(uint32_t i, uint32_t us) {
    for (uint32_t j = 0; j < world.nodes; j++) {
        if (i == j) continue;
        sim_set_slow(world.sim, i, j, us);
        sim_set_slow(world.sim, j, i, us);
    }
    return true;
}

static bool mail(struct node *n, enum mail_kind kind) {
    node_send(n, kind, n->number);
    return !n->dead;
}

static bool happen(const struct order *order) {
    uint32_t a = order->a, b = order->b, value = order->value;
    struct node *n = &world.node[a % world.nodes];
    bool second = order->kind != FAULT_INTERRUPT && order->kind != FAULT_MUTE; /* is a node, too */
    if (order->kind != FAULT_SPLIT && (a >= world.nodes || (second && b >= world.nodes))) return false;
    switch (order->kind) {
    case FAULT_CRASH: return crash(a, value & 1);
    case FAULT_REBIRTH: return rebirth(a);
    case FAULT_ADD: return ask_to_change(a, MAIL_ADD);
    case FAULT_REMOVE: return ask_to_change(a, MAIL_REMOVE);
    case FAULT_PAUSE: return pause(a, true);
    case FAULT_CONTINUE: return pause(a, false);
    case FAULT_INTERRUPT:
        n->interrupt_after = b + 1;
        n->interrupt_us = value;
        return !n->dead;
    case FAULT_CUT: return cut(a, b);
    case FAULT_HEAL: return heal(a, b);
    case FAULT_SPLIT: return split(a, b & 1);
    case FAULT_MEND: return mend();
    case FAULT_BREAK:
        if (a != b) sim_break(world.sim, a, b);
        return a != b;
    case FAULT_HOLD:
        if (a != b) sim_hold(world.sim, a, b, value);
        return a != b;
    case FAULT_RELEASE:
        if (a == b) return mute(a, UINT32_MAX, 0);
        sim_hold(world.sim, a, b, UINT32_MAX);
        return true;
    case FAULT_MUTE: return mute(a, b, value);
    case FAULT_SLOW:
        if (a != b) sim_set_slow(world.sim, a, b, value);
        return a != b;
    case FAULT_FAR: return far(a, value);
    case FAULT_NEAR: return far(a, 0);
    case FAULT_LAZY: n->laziness = 1 + value; return true;
    case FAULT_RESIGN: return mail(n, MAIL_RESIGN);
    case FAULT_INELIGIBLE: return mail(n, MAIL_INELIGIBLE);
    case FAULT_ELIGIBLE: return mail(n, MAIL_ELIGIBLE);
    case FAULT_CLOCK: n->clock_us += value; return true;
    case FAULT_DOWN: return rumour(a);
    case FAULT_SWITCHOVER: return switchover(a, value & 1);
    case FAULTS: break;
    }
    return false;
}

static void carry_out(struct order order) {
    if (!happen(&order)) return;
    world.counts.faults++;
    trace(SIM_NOBODY, "fault: %u %s %u %u %u", order.step, kinds[order.kind].name, order.a, order.b, order.value);
}

/* Whoever leads is the most rewarding victim. */
static uint32_t victim(void) {
    uint32_t i = (uint32_t)chance(world.nodes);
    bool leader = chance(3) == 0;
    for (uint32_t k = 0; leader && k < world.nodes; k++)
        if (world.node[k].term && running(&world.node[k])) i = k;
    return i;
}

static struct order drawn(void) {
    uint64_t at = chance(f.total);
    enum fault kind = 0;
    while (at >= f.weight[kind]) at -= f.weight[kind++];
    struct order order = {.step = world.step, .kind = kind};
    order.a = kind == FAULT_SPLIT ? (uint32_t)chance(1u << world.nodes) : victim();
    order.b = (uint32_t)chance(kind == FAULT_INTERRUPT ? 40 : kind == FAULT_MUTE ? 1u << world.nodes : world.nodes);
    uint32_t most = kinds[kind].value_max, high = (uint32_t)chance(most + 1), low = (uint32_t)chance(most / 10 + 1);
    order.value = chance(2) ? high : low;
    return order;
}

static void plan(uint32_t in, enum fault kind, uint32_t a, uint32_t b, uint32_t value) {
    if (f.plans == PLANS_MAX) return;
    f.plan[f.plans++] = (struct order){.step = world.step + in, .kind = kind, .a = a, .b = b, .value = value};
}

/* What chance seldom brings about: a leader reaches only some of the others, leaves them records that are not decided, is
 * overthrown, and comes back when somebody else has led. */
static void plot(void) {
    static const enum fault ways[] = {FAULT_DOWN, FAULT_RESIGN, FAULT_PAUSE, FAULT_CRASH, FAULT_FAR, FAULT_INELIGIBLE, FAULT_SPLIT};
    uint32_t who = victim(), soon = 2 + (uint32_t)chance(80), later = soon + 20 + (uint32_t)chance(400);
    enum fault way = ways[chance(sizeof ways / sizeof *ways)];
    plan(0, FAULT_MUTE, who, (uint32_t)chance(1u << world.nodes), (uint32_t)chance(4) ? 0 : (uint32_t)chance(30));
    plan(soon, way, way == FAULT_SPLIT ? 1u << who : who, 1, 5000);
    if (chance(2)) plan(soon, FAULT_FAR, who, 0, 1000u << chance(5)); /* nor does it hear of that */
    plan(later, FAULT_RELEASE, who, who, 0);
    plan(later, FAULT_CONTINUE, who, 0, 0);
    plan(later, FAULT_NEAR, who, 0, 0);
    plan(later, FAULT_ELIGIBLE, who, 0, 0);
    plan(later + (uint32_t)chance(40), FAULT_MEND, 0, 0, 0);
}

static void carry_out_plans(void) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f.plans; i++) {
        struct order order = f.plan[i];
        if (order.step > world.step) {
            f.plan[kept++] = order;
            continue;
        }
        order.step = world.step; /* as the trace shall say it */
        carry_out(order);
    }
    f.plans = kept;
}

void faults_step(void) {
    if (f.scripted) {
        while (f.next < f.orders && f.script[f.next].step <= world.step) carry_out(f.script[f.next++]);
        return;
    }
    carry_out_plans();
    if (f.total == 0 || chance(f.in)) return;
    if (f.plots && chance(f.plots) == 0) plot();
    uint32_t together = chance(6) ? 1 : 2 + (uint32_t)chance(3);
    while (together--) carry_out(drawn());
}

void faults_stop(void) {
    for (uint32_t i = 0; i < world.nodes; i++) {
        struct node *n = &world.node[i];
        pause(i, false);
        n->laziness = 1;
        n->resume_us = 0;
        n->interrupt_after = 0;
        node_send(n, MAIL_ELIGIBLE, i);
        for (uint32_t j = 0; j < world.nodes; j++) {
            if (i == j) continue;
            sim_set_slow(world.sim, i, j, 0);
            sim_hold(world.sim, i, j, UINT32_MAX);
            if (!world.node[j].dead) heal(i, j);
        }
    }
}
