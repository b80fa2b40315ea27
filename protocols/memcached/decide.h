/* decide.h: private to protocols/memcached: one decision. */
#ifndef MUSIDECAR_MEMCACHED_DECIDE_H
#define MUSIDECAR_MEMCACHED_DECIDE_H

#include "protocols/memcached/parts.h"

#define PROLONGED_S 60 /* see touch() */

struct deciding {
    const struct protocol_request *request;
    const struct parts *parts;
    const uint8_t *bytes;
    struct memcached_item *item;
    struct key key;
    uint64_t term, now_s;
    struct buffer *command, *reply;
    uint32_t *style;
    bool base64; /* k is said so */
};

/* The value of an item is in one or two pieces. */
struct pieces { const uint8_t *first, *second; size_t first_length, second_length; };

static inline struct pieces one_piece(const uint8_t *bytes, size_t length) { return (struct pieces){bytes, NULL, length, 0}; }
static inline size_t pieces_length(const struct pieces *v) { return v->first_length + v->second_length; }

enum outcome { OUTCOME_DONE, OUTCOME_NOT_STORED, OUTCOME_EXISTS, OUTCOME_NOT_FOUND };

/* decide.c */
bool decide_nothing(struct deciding *d, uint32_t hide);  /* `reply` is said, with STYLE_REPLY; logged is at most that a token is free again */
bool decide_write(struct deciding *d, uint32_t hide);    /* the same, once `command` is done */
void say_text(struct deciding *d, const char *line);     /* appended to the reply */
/* What a c says: 0, what the item has, or a NUL for what storing it brings (STYLE_REPLY). */
enum said_cas { SAID_NONE, SAID_OWN, SAID_STORED };
void say_meta_flags(struct deciding *d, const char *letters, enum said_cas cas, int64_t expires_s);
bool outcome_nothing(struct deciding *d, enum outcome outcome);
/* Logs the item as it will be. `expires_s` as in struct memcached_item. */
void put_store(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary, bool wants_cas);
/* Under a key that is text; not answered: something has to follow. */
void put_store_unanswered(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s);
void put_mark(struct deciding *d); /* md <key> I: stale, and its token is free */
void put_store_stale(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary);
void item_stored(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary);
bool item_matches(const struct deciding *d);
/* What expires at this time is there no more, as the backend's clock has it. */
static inline int64_t backend_s(const struct deciding *d) { return (int64_t)d->now_s - d->item->lag_s; }
static inline bool is_over(const struct deciding *d, int64_t expires_s) { return expires_s != 0 && expires_s <= backend_s(d); }
/* The last of T and N in the line wins. */
int64_t created_expires_s(const struct deciding *d);

/* decide_touch.c */
bool decide_touch(struct deciding *d);
bool decide_mg(struct deciding *d);
bool decide_md(struct deciding *d);

#endif
