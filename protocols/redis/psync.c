/* psync.c: see psync.h. */
#include "protocols/redis/psync.h"

#include <string.h>

#include "check.h"
#include "protocols/redis/digits.h"

void psync_begin(struct psync *p, uint32_t answers, bool wants_full) {
    CHECK(answers > 0);
    p->stage = PSYNC_LINES;
    p->wants_full = wants_full;
    p->asked = p->relayed = false;
    p->answers_left = answers;
    p->offset = p->rdb_left = 0;
    p->replid[0] = 0;
    p->line_length = p->tail_length = 0;
}

void psync_relay(struct psync *p) {
    *p = (struct psync){.stage = PSYNC_LINES, .asked = true, .relayed = true};
}

/* ---- lines -------------------------------------------------------------------------------------------------------- */

/* Takes bytes up to the end of a line; true when it is whole: `line`, without its end and what has no room. */
static bool take_line(struct psync *p, const uint8_t *bytes, size_t length, size_t *used) {
    const uint8_t *end = memchr(bytes, '\n', length);
    size_t n = end == NULL ? length : (size_t)(end - bytes);
    size_t room = PSYNC_LINE_MAX - 1 - p->line_length;
    size_t kept = n < room ? n : room;
    memcpy(p->line + p->line_length, bytes, kept);
    p->line_length += (uint32_t)kept;
    *used = end == NULL ? n : n + 1;
    if (end == NULL) return false;
    p->line[p->line_length] = 0;
    p->line[strcspn(p->line, "\r")] = 0;
    p->line_length = 0;
    return true;
}

/* A replication id: 40 visible characters. */
static bool take_replid(struct psync *p, const char **at) {
    for (uint32_t i = 0; i < REPLID_BYTES; i++)
        if ((*at)[i] <= ' ' || (*at)[i] > '~') return false;
    memcpy(p->replid, *at, REPLID_BYTES);
    p->replid[REPLID_BYTES] = 0;
    *at += REPLID_BYTES;
    return true;
}

static bool take_word(const char **at, const char *word) {
    size_t length = strlen(word);
    if (strncmp(*at, word, length) != 0) return false;
    *at += length;
    return true;
}

/* "+FULLRESYNC <replid> <offset>" or "+CONTINUE[ <replid>]", whichever was asked for. */
static enum psync_event line_verdict(struct psync *p) {
    const char *at = p->line;
    if ((p->wants_full || p->relayed) && take_word(&at, "+FULLRESYNC ")) {
        if (!take_replid(p, &at) || !take_word(&at, " ")) return PSYNC_BAD;
        if (!digits_read((const uint8_t *)at, strlen(at), &p->offset)) return PSYNC_BAD;
        p->stage = PSYNC_RDB_HEAD;
        return PSYNC_MORE;
    }
    if ((!p->wants_full || p->relayed) && take_word(&at, "+CONTINUE")) {
        if (*at != 0 && (!take_word(&at, " ") || !take_replid(p, &at) || *at != 0)) return PSYNC_BAD;
        p->stage = PSYNC_LIVE;
        return PSYNC_STREAMS;
    }
    return PSYNC_REFUSED;
}

static enum psync_event line_rdb(struct psync *p) {
    const char *at = p->line;
    if (take_word(&at, "$EOF:")) {
        if (strlen(at) != REPLID_BYTES) return PSYNC_BAD;
        memcpy(p->mark, at, REPLID_BYTES);
        p->stage = PSYNC_RDB_MARK;
        return PSYNC_MORE;
    }
    if (!take_word(&at, "$") || !digits_read((const uint8_t *)at, strlen(at), &p->rdb_left)) return PSYNC_BAD;
    p->stage = p->rdb_left > 0 ? PSYNC_RDB_LENGTH : PSYNC_LIVE;
    return p->rdb_left > 0 ? PSYNC_MORE : PSYNC_STREAMS;
}

static enum psync_event line_done(struct psync *p) {
    if (p->line[0] == 0) return PSYNC_MORE; /* "still there" */
    if (p->stage == PSYNC_RDB_HEAD || (p->relayed && p->line[0] == '$')) return line_rdb(p);
    if (p->asked) return line_verdict(p);
    if (p->line[0] != '+') return PSYNC_REFUSED;
    p->asked = --p->answers_left == 0;
    return p->asked ? PSYNC_ASK : PSYNC_MORE;
}

/* ---- the RDB ------------------------------------------------------------------------------------------------------- */

static size_t pass_length(struct psync *p, size_t length, enum psync_event *event) {
    size_t used = p->rdb_left < length ? (size_t)p->rdb_left : length;
    p->rdb_left -= used;
    if (p->rdb_left == 0) {
        p->stage = PSYNC_LIVE;
        *event = PSYNC_STREAMS;
    }
    return used;
}

/* The last bytes before these ones stand in `tail`: a mark may begin there. Bytes up to its end, or 0. */
static size_t find_across(const struct psync *p, const uint8_t *bytes, size_t length) {
    uint8_t joint[2 * REPLID_BYTES];
    size_t more = length < REPLID_BYTES ? length : REPLID_BYTES;
    memcpy(joint, p->tail, p->tail_length);
    memcpy(joint + p->tail_length, bytes, more);
    const uint8_t *found = memmem(joint, p->tail_length + more, p->mark, REPLID_BYTES);
    return found == NULL ? 0 : (size_t)(found - joint) + REPLID_BYTES - p->tail_length;
}

static void keep_tail(struct psync *p, const uint8_t *bytes, size_t length) {
    if (length >= REPLID_BYTES) {
        memcpy(p->tail, bytes + length - (REPLID_BYTES - 1), REPLID_BYTES - 1);
        p->tail_length = REPLID_BYTES - 1;
        return;
    }
    size_t all = p->tail_length + length, drop = all > REPLID_BYTES - 1 ? all - (REPLID_BYTES - 1) : 0;
    memmove(p->tail, p->tail + drop, p->tail_length - drop);
    memcpy(p->tail + p->tail_length - drop, bytes, length);
    p->tail_length = (uint32_t)(all - drop);
}

static size_t pass_to_mark(struct psync *p, const uint8_t *bytes, size_t length, enum psync_event *event) {
    size_t used = find_across(p, bytes, length);
    if (used == 0) {
        const uint8_t *found = memmem(bytes, length, p->mark, REPLID_BYTES);
        if (found == NULL) {
            keep_tail(p, bytes, length);
            return length;
        }
        used = (size_t)(found - bytes) + REPLID_BYTES;
    }
    p->stage = PSYNC_LIVE;
    *event = PSYNC_STREAMS;
    return used;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------ */

size_t psync_feed(struct psync *p, const uint8_t *bytes, size_t length, enum psync_event *event) {
    size_t at = 0;
    *event = PSYNC_MORE;
    CHECK(p->stage != PSYNC_CLOSED && p->stage != PSYNC_LIVE);
    while (at < length && *event == PSYNC_MORE) {
        size_t used = 0;
        switch (p->stage) {
            case PSYNC_RDB_LENGTH: used = pass_length(p, length - at, event); break;
            case PSYNC_RDB_MARK: used = pass_to_mark(p, bytes + at, length - at, event); break;
            default:
                if (take_line(p, bytes + at, length - at, &used)) *event = line_done(p);
        }
        at += used;
    }
    return at;
}
