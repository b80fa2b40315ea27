/* view_reply.h: a whole answer, item by item: heads of arrays and maps are items of their own. Bounded by what is there. */
#ifndef MUSIDECAR_VIEW_REPLY_H
#define MUSIDECAR_VIEW_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct engine;
struct buffer;

struct reply { const uint8_t *at, *end; };

struct reply_item {
    uint8_t type;
    bool is_bulk;     /* text, length: what is in it */
    int64_t number;   /* of ':', or how many items there are behind a head; of null -1 */
    const uint8_t *at;
    size_t whole;     /* bytes of the item itself */
    const char *text; /* else: what stands on its line */
    size_t length;
};

/* False: there is no whole item any more. */
static inline bool reply_next(struct reply *r, struct reply_item *item) {
    const uint8_t *stop = r->at < r->end ? memchr(r->at, '\n', (size_t)(r->end - r->at)) : NULL;
    if (stop == NULL || stop - r->at < 2) return false;
    *item = (struct reply_item){.type = *r->at, .at = r->at, .whole = (size_t)(stop - r->at) + 1,
                                .text = (const char *)r->at + 1, .length = (size_t)(stop - r->at) - 2};
    if (memchr(":$=*%~>", item->type, 7) != NULL) {
        bool negative = item->length > 0 && *item->text == '-';
        for (size_t i = negative; i < item->length && i < 19 && item->text[i] >= '0' && item->text[i] <= '9'; i++)
            item->number = item->number * 10 + (item->text[i] - '0');
        if (negative) item->number = -item->number;
    }
    if ((item->type == '$' || item->type == '=') && item->number >= 0) {
        if (item->number + 2 > r->end - (stop + 1)) return false;
        item->is_bulk = true;
        item->text = (const char *)stop + 1;
        item->length = (size_t)item->number;
        item->whole += item->length + 2;
    }
    r->at += item->whole;
    return true;
}

/* Past an item and all that is in it. */
static inline bool reply_skip(struct reply *r) {
    struct reply_item item;
    for (int64_t left = 1; left > 0; left--) {
        if (!reply_next(r, &item)) return false;
        if (memchr("*~>%", item.type, 4) != NULL && item.number > 0) left += item.type == '%' ? 2 * item.number : item.number;
    }
    return true;
}

/* view_info.c */
void view_role(struct buffer *answer);
void view_info(struct engine *e, struct buffer *answer);

#endif
