/*
 * table.h: the keys that HERD has been given, since HERD cannot list them: 16 bytes each, in places that do not move, and an index
 * to them of 8 to 16 bytes a key. The memory for `keys_max` is reserved at the start, and used as keys come. With more
 * keys than that an old one is forgotten for each new one: HERD keeps it, but no other node is given it any more.
 */
#ifndef MUSIDECAR_GATE_TABLE_H
#define MUSIDECAR_GATE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "protocols/herd/key.h"

#define TABLE_KEYS_MAX (1u << 28)

struct table_place {
    union {
        uint8_t key[HERD_KEY_BYTES];
        struct { uint64_t none, next; } free; /* no key begins with 8 zeros */
    };
};

struct table {
    struct table_place *places;
    uint32_t *index;    /* place + 1, 0: none; open addressing, half full at most */
    uint32_t keys_max, mask;
    uint32_t used;      /* places that were ever used */
    uint32_t free_place; /* of those the first free one + 1, which says in `next` which is another */
    uint32_t keys;
    uint32_t hand;      /* the next to be forgotten */
    uint64_t forgotten;
};

bool table_init(struct table *t, uint32_t keys_max); /* false: there is not so much memory */
void table_free(struct table *t);
void table_add(struct table *t, const uint8_t key[HERD_KEY_BYTES]);
void table_remove(struct table *t, const uint8_t key[HERD_KEY_BYTES]);
bool table_has(const struct table *t, const uint8_t key[HERD_KEY_BYTES]);
/* The key at this place, or NULL. */
const uint8_t *table_at(const struct table *t, uint64_t place);

#endif
