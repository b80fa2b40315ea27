/* table.c: see table.h. */
#include "gate/table.h"

#include <string.h>
#include <sys/mman.h>

#include "check.h"

static uint64_t word(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Pages that are not touched take no memory. */
static void *reserve(size_t bytes) {
    void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

static size_t index_bytes(const struct table *t) { return ((size_t)t->mask + 1) * sizeof *t->index; }

bool table_init(struct table *t, uint32_t keys_max) {
    CHECK(keys_max > 0 && keys_max <= TABLE_KEYS_MAX);
    uint32_t size = 2;
    while (size < 2 * keys_max) size *= 2;
    *t = (struct table){.keys_max = keys_max, .mask = size - 1};
    t->places = reserve((size_t)keys_max * sizeof *t->places);
    t->index = reserve(index_bytes(t));
    if (t->places != NULL && t->index != NULL) return true;
    table_free(t);
    return false;
}

void table_free(struct table *t) {
    if (t->places != NULL) munmap(t->places, (size_t)t->keys_max * sizeof *t->places);
    if (t->index != NULL) munmap(t->index, index_bytes(t));
    t->places = NULL;
    t->index = NULL;
}

/* Where the key is in the index, or would be. */
static uint32_t find(const struct table *t, const uint8_t *key) {
    uint32_t at = (uint32_t)word(key) & t->mask;
    while (t->index[at] != 0 && memcmp(t->places[t->index[at] - 1].key, key, HERD_KEY_BYTES) != 0) at = (at + 1) & t->mask;
    return at;
}

bool table_has(const struct table *t, const uint8_t key[HERD_KEY_BYTES]) { return t->index[find(t, key)] != 0; }

const uint8_t *table_at(const struct table *t, uint64_t place) {
    if (place >= t->used || t->places[place].free.none == 0) return NULL;
    return t->places[place].key;
}

/* The entries behind a hole move up, unless they would get in front of where they belong. */
static void close_hole(struct table *t, uint32_t hole) {
    for (uint32_t at = (hole + 1) & t->mask; t->index[at] != 0; at = (at + 1) & t->mask) {
        uint32_t home = (uint32_t)word(t->places[t->index[at] - 1].key) & t->mask;
        if (((at - home) & t->mask) < ((at - hole) & t->mask)) continue;
        t->index[hole] = t->index[at];
        hole = at;
    }
    t->index[hole] = 0;
}

void table_remove(struct table *t, const uint8_t key[HERD_KEY_BYTES]) {
    uint32_t at = find(t, key), place = t->index[at];
    if (place == 0) return;
    close_hole(t, at); /* while the key can still be read */
    t->places[place - 1].free.none = 0;
    t->places[place - 1].free.next = t->free_place;
    t->free_place = place;
    t->keys--;
}

static void forget_one(struct table *t) {
    const uint8_t *old;
    do old = table_at(t, t->hand++ % t->keys_max);
    while (old == NULL);
    uint8_t key[HERD_KEY_BYTES];
    memcpy(key, old, sizeof key);
    table_remove(t, key);
    t->forgotten++;
}

void table_add(struct table *t, const uint8_t key[HERD_KEY_BYTES]) {
    CHECK(word(key) != 0);
    if (table_has(t, key)) return;
    if (t->keys == t->keys_max) forget_one(t);
    uint32_t place = t->free_place;
    if (place != 0) t->free_place = (uint32_t)t->places[place - 1].free.next;
    else place = ++t->used;
    memcpy(t->places[place - 1].key, key, HERD_KEY_BYTES);
    t->index[find(t, key)] = place;
    t->keys++;
}
