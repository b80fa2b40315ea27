/*
 * reply.c: where an answer of the backend ends. A line ends with "\r\n": what `stats conns` prints of a socket may have any
 * byte in it. An answer says by its first word what it is: one line, unless
 *   VA <bytes> ...                       a line and a value
 *   VALUE <key> <flags> <bytes> ...      the same, and more of them or END
 *   STAT, ITEM, PREFIX                   more of them or END
 */
#include "protocols/memcached/parts.h"

#define WORD_BYTES_MAX 8u
#define VALUE_BYTES_MAX INT32_MAX

enum stage { STAGE_WORD = 0, STAGE_FIELDS, STAGE_LINE, STAGE_VALUE };
enum kind { KIND_LINE = 0, KIND_VA, KIND_VALUE, KIND_LIST, KIND_END };

struct reading {
    uint64_t number;       /* the field that is a length */
    uint64_t left;         /* of a value */
    uint32_t answers;      /* that have ended */
    uint8_t stage, kind;
    uint8_t list;          /* the kind of its lines, while it goes on */
    uint8_t field;         /* being read: the word is 0 */
    uint8_t digits;
    uint8_t word_length;
    bool returned;         /* the byte before was a '\r' */
    char word[WORD_BYTES_MAX];
};
static_assert(sizeof(struct reading) <= sizeof(struct protocol_reply), "the state has room");

static const struct { const char *word; uint8_t kind; } WORDS[] = {{"VA", KIND_VA}, {"VALUE", KIND_VALUE}, {"END", KIND_END},
                                                                   {"STAT", KIND_LIST}, {"ITEM", KIND_LIST}, {"PREFIX", KIND_LIST}};

static uint8_t length_field(uint8_t kind) { return kind == KIND_VA ? 1 : kind == KIND_VALUE ? 3 : 0; }

/* False: no answer begins like that, or it does not go on so. */
static bool word_done(struct reading *g) {
    g->kind = KIND_LINE;
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (is_text((const uint8_t *)g->word, g->word_length, WORDS[i].word)) g->kind = WORDS[i].kind;
    g->stage = length_field(g->kind) != 0 ? STAGE_FIELDS : STAGE_LINE;
    g->field = g->digits = 0;
    g->number = 0;
    return g->word_length > 0 && (g->list == 0 || g->kind == g->list || g->kind == KIND_END);
}

static bool word_bytes(struct reading *g, const uint8_t *bytes, size_t length, size_t *at) {
    for (; *at < length; ++*at) {
        uint8_t c = bytes[*at];
        if (c == ' ' || c == '\r' || c == '\n') return word_done(g);
        if (g->word_length == 0 && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9')) return false;
        if (g->word_length < WORD_BYTES_MAX) g->word[g->word_length++] = (char)c; /* one that long is none of the list */
    }
    return true;
}

static bool field_bytes(struct reading *g, const uint8_t *bytes, size_t length, size_t *at) {
    uint8_t wanted = length_field(g->kind);
    for (; *at < length; ++*at) {
        uint8_t c = bytes[*at];
        if (c == ' ' && g->field < wanted) {
            g->field++;
        } else if (c == '\n' || (g->field == wanted && (c == ' ' || c == '\r'))) { /* a '\r' may be in a key */
            g->stage = STAGE_LINE;
            return g->field == wanted && g->digits > 0;
        } else if (g->field == wanted) {
            if (c < '0' || c > '9' || ++g->digits > 10) return false;
            g->number = g->number * 10 + (uint64_t)(c - '0');
        }
    }
    return true;
}

/* Whether the line ends in these bytes. */
static bool line_bytes(struct reading *g, const uint8_t *bytes, size_t length, size_t *at) {
    while (*at < length) {
        const uint8_t *end = memchr(bytes + *at, '\n', length - *at);
        size_t last = end == NULL ? length : (size_t)(end - bytes);
        if (last > *at) g->returned = bytes[last - 1] == '\r';
        bool ended = end != NULL && g->returned;
        *at = end == NULL ? length : last + 1;
        if (end != NULL) g->returned = false;
        if (ended) return true;
    }
    return false;
}

/* -1: bad; 1: it was the last one of its answer. */
static int line_end(struct reading *g) {
    g->stage = STAGE_WORD;
    g->word_length = 0;
    switch ((enum kind)g->kind) {
        case KIND_VALUE: g->list = KIND_VALUE; /* fall through */
        case KIND_VA:
            if (g->number > VALUE_BYTES_MAX) return -1;
            g->left = g->number + 2;
            g->stage = STAGE_VALUE;
            return 0;
        case KIND_LIST: g->list = KIND_LIST; return 0;
        default: return 1;
    }
}

size_t memcached_reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status) {
    struct reading *g = (struct reading *)(void *)state->state;
    size_t at = 0;
    *status = PROTOCOL_REPLY_BAD;
    while (at < length) {
        bool over = false;
        if (g->stage == STAGE_WORD) {
            if (!word_bytes(g, bytes, length, &at)) return at;
        } else if (g->stage == STAGE_FIELDS) {
            if (!field_bytes(g, bytes, length, &at)) return at;
        } else if (g->stage == STAGE_LINE) {
            int ended = line_bytes(g, bytes, length, &at) ? line_end(g) : 0;
            if (ended < 0) return at;
            over = ended > 0;
        } else {
            size_t part = g->left < length - at ? (size_t)g->left : length - at;
            at += part;
            g->left -= part;
            if (g->left == 0) g->stage = STAGE_WORD;
            over = g->left == 0 && g->kind == KIND_VA;
        }
        if (!over) continue;
        g->list = 0;
        if (++g->answers < answers) continue;
        *status = PROTOCOL_REPLY_WHOLE;
        return at;
    }
    *status = PROTOCOL_REPLY_MORE;
    return at;
}
