/*
 * commands.c: the command table. See commands.h.
 *
 * Open addressing, never more than half full, nothing removed. A name is kept as four words, lower case, padded with
 * zeros, its length in the last byte, so that a look-up folds, hashes and compares words. A sub-command is an entry of its own, "config|set", that a
 * first argument spelled so does not find.
 */
#include "protocols/redis/commands.h"

#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NAME_BYTES_MAX 31u
#define NAME_WORDS 4u
#define ERROR_PART_BYTES_MAX 128 /* of a name, and of all arguments together */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "names are packed into words by shifting");

struct key {
    uint64_t words[NAME_WORDS];
};

struct slot {
    struct key key; /* words[0] == 0: empty, as no name starts with a NUL */
    bool is_sub;
    struct command_info info;
};

struct command_table {
    uint32_t mask, capacity, used;
    struct slot slots[];
};

/* ---- names as words --------------------------------------------------------------------------------------------- */

/* ASCII capitals of eight bytes to small letters, all at once; other bytes stay. */
static inline uint64_t fold(uint64_t word) {
    const uint64_t ones = 0x0101010101010101u;
    uint64_t low = word & (0x7f * ones);
    uint64_t from_a = low + (0x80 - 'A') * ones;
    uint64_t beyond_z = low + (0x80 - 'Z' - 1) * ones;
    uint64_t capital = from_a & ~beyond_z & ~word & (0x80 * ones);
    return word | (capital >> 2);
}

static inline uint64_t load8(const uint8_t *text) {
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return word;
}

/* 1 to 8 bytes as a word, with loads of fixed size that may overlap. */
static inline uint64_t load_short(const uint8_t *text, size_t length) {
    if (length == 8) return load8(text);
    if (length >= 4) {
        uint32_t low, high;
        memcpy(&low, text, 4);
        memcpy(&high, text + length - 4, 4);
        return low | (uint64_t)high << (8 * (length - 4));
    }
    return text[0] | (uint64_t)text[length / 2] << (8 * (length / 2)) | (uint64_t)text[length - 1] << (8 * (length - 1));
}

/* False: no command has such a name. */
static inline bool key_of(const uint8_t *text, size_t length, struct key *key) {
    if (length == 0 || length > NAME_BYTES_MAX) return false;
    *key = (struct key){{0}};
    uint64_t *word = key->words;
    uint64_t length_word = (uint64_t)length << 56; /* "get" and "get\0" differ: the 32nd byte is free */
    for (; length > 8; length -= 8, text += 8) *word++ = fold(load8(text));
    *word = fold(load_short(text, length));
    key->words[3] |= length_word;
    return key->words[0] != 0;
}

static inline uint32_t hash_of(const struct key *key) {
    uint64_t h = key->words[0] * 0x9e3779b97f4a7c15u;
    h = (h ^ key->words[1]) * 0xbf58476d1ce4e5b9u;
    h ^= key->words[2] * 0x94d049bb133111ebu ^ key->words[3] * 0xd6e8feb86659fd93u;
    return (uint32_t)(h >> 32) ^ (uint32_t)(h >> 50);
}

static inline bool same(const struct key *a, const struct key *b) {
    return ((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) | (a->words[2] ^ b->words[2]) |
            (a->words[3] ^ b->words[3])) == 0;
}

/* The slot of a name, or the empty one where it would go. */
static inline uint32_t find(const struct command_table *t, const struct key *key, bool is_sub) {
    uint32_t i = hash_of(key) & t->mask;
    while (t->slots[i].key.words[0] != 0 && (!same(&t->slots[i].key, key) || t->slots[i].is_sub != is_sub))
        i = (i + 1) & t->mask;
    return i;
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

struct command_table *command_table_new(uint32_t capacity) {
    CHECK(capacity > 0 && capacity <= 1u << 20);
    uint32_t slots = 16;
    while (slots < 2 * capacity) slots *= 2;
    struct command_table *t = calloc(1, sizeof *t + slots * sizeof t->slots[0]);
    CHECK(t != NULL);
    t->mask = slots - 1;
    t->capacity = capacity;
    return t;
}

void command_table_free(struct command_table *t) {
    free(t);
}

int command_table_add(struct command_table *t, const struct command_info *info) {
    size_t length = strnlen(info->name, sizeof info->name);
    struct key key;
    if (!key_of((const uint8_t *)info->name, length, &key)) return -1;
    bool is_sub = memchr(info->name, '|', length) != NULL;
    struct slot *slot = &t->slots[find(t, &key, is_sub)];
    if (slot->key.words[0] == 0) {
        if (t->used == t->capacity) return -1;
        t->used++;
    }
    slot->key = key;
    slot->is_sub = is_sub;
    slot->info = *info;
    memcpy(slot->info.name, key.words, NAME_BYTES_MAX); /* lower case, padded */
    slot->info.name[NAME_BYTES_MAX] = 0;
    return 0;
}

/* ---- look-up ---------------------------------------------------------------------------------------------------- */

static inline enum command_verdict arity_of(const struct command_info *info, uint64_t argc) {
    bool fits = info->arity >= 0 ? argc == (uint64_t)info->arity : argc >= (uint64_t)(-(int64_t)info->arity);
    return fits ? COMMAND_OK : COMMAND_ARITY;
}

enum command_verdict command_lookup_sub(const struct command_table *t, const struct command_info *container,
                                        const struct resp_request *request, const uint8_t *bytes,
                                        const struct command_info **info) {
    if (request->argc < 2) {
        *info = container;
        return arity_of(container, request->argc);
    }
    struct resp_argument sub = request->arguments[1];
    uint8_t name[NAME_BYTES_MAX];
    size_t length = strlen(container->name);
    *info = NULL;
    if (sub.length == 0 || length + 1 + sub.length > sizeof name) return COMMAND_UNKNOWN_SUB;
    memcpy(name, container->name, length);
    name[length] = '|';
    memcpy(name + length + 1, bytes + sub.offset, sub.length);
    struct key key;
    if (!key_of(name, length + 1 + sub.length, &key)) return COMMAND_UNKNOWN_SUB;
    const struct slot *slot = &t->slots[find(t, &key, true)];
    if (slot->key.words[0] == 0) return COMMAND_UNKNOWN_SUB;
    *info = &slot->info;
    return arity_of(*info, request->argc);
}

enum command_verdict command_lookup(const struct command_table *t, const struct resp_request *request,
                                    const uint8_t *bytes, const struct command_info **info) {
    struct resp_argument name = request->arguments[0];
    struct key key;
    *info = NULL;
    if (!key_of(bytes + name.offset, name.length, &key)) return COMMAND_UNKNOWN;
    const struct slot *slot = &t->slots[find(t, &key, false)];
    if (slot->key.words[0] == 0) return COMMAND_UNKNOWN;
    if (slot->info.is_container && request->argc > 1) return command_lookup_sub(t, &slot->info, request, bytes, info);
    *info = &slot->info;
    return arity_of(*info, request->argc);
}

/* As Redis compares options: up to the first NUL, so "BLOCK\0x" is a BLOCK too. */
static bool option_is(const uint8_t *bytes, struct resp_argument argument, const char *option) {
    size_t length = strnlen((const char *)bytes + argument.offset, argument.length);
    return length == strlen(option) && strncasecmp((const char *)bytes + argument.offset, option, length) == 0;
}

bool command_blocks(const struct resp_request *request, const uint8_t *bytes) {
    struct resp_argument argument = request->arguments[0];
    uint64_t skip = 0; /* values of the option before */
    for (uint64_t i = 1; i < request->argc; i++) {
        argument = resp_request_next(request, bytes, argument);
        if (skip > 0) {
            skip--;
            continue;
        }
        if (option_is(bytes, argument, "block")) return true;
        if (option_is(bytes, argument, "count")) skip = 1;
        else if (option_is(bytes, argument, "group")) skip = 2;
        else if (!option_is(bytes, argument, "noack")) return false; /* STREAMS, or an error */
    }
    return false;
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

struct text {
    char *out;
    size_t length, room;
};

static void append(struct text *text, const char *bytes, size_t length) {
    if (length > text->room - text->length) length = text->room - text->length;
    memcpy(text->out + text->length, bytes, length);
    text->length += length;
}

static void append_string(struct text *text, const char *string) {
    append(text, string, strlen(string));
}

/* As "%.*s" prints an argument: not beyond its first NUL. Returns how many bytes. */
static size_t append_argument(struct text *text, const uint8_t *bytes, struct resp_argument argument, size_t bytes_max) {
    size_t length = argument.length < bytes_max ? argument.length : bytes_max;
    length = strnlen((const char *)bytes + argument.offset, length);
    append(text, (const char *)bytes + argument.offset, length);
    return length;
}

static void append_unknown(struct text *text, const struct resp_request *request, const uint8_t *bytes) {
    append_string(text, "unknown command '");
    struct resp_argument argument = request->arguments[0];
    append_argument(text, bytes, argument, ERROR_PART_BYTES_MAX);
    append_string(text, "', with args beginning with: ");
    size_t shown = 0;
    for (uint64_t i = 1; i < request->argc && shown < ERROR_PART_BYTES_MAX; i++) {
        argument = resp_request_next(request, bytes, argument);
        append_string(text, "'");
        shown += append_argument(text, bytes, argument, ERROR_PART_BYTES_MAX - shown);
        append_string(text, "' ");
        shown += 3;
    }
}

static void append_unknown_sub(struct text *text, const struct resp_request *request, const uint8_t *bytes) {
    append_string(text, "unknown subcommand '");
    append_argument(text, bytes, request->arguments[1], ERROR_PART_BYTES_MAX);
    append_string(text, "'. Try ");
    size_t from = text->length;
    append_argument(text, bytes, request->arguments[0], NAME_BYTES_MAX);
    for (size_t i = from; i < text->length; i++) {
        if (text->out[i] >= 'a' && text->out[i] <= 'z') text->out[i] = (char)(text->out[i] - 'a' + 'A');
    }
    append_string(text, " HELP.");
}

size_t command_error(enum command_verdict verdict, const struct command_info *info, const struct resp_request *request,
                     const uint8_t *bytes, char *out, size_t room) {
    CHECK(room >= 2 && verdict != COMMAND_OK);
    struct text text = {out, 0, room - 2};
    bool discards = verdict == COMMAND_ARITY && info->action == ACTION_EXEC; /* the transaction, if there is one */
    append_string(&text, discards ? "-EXECABORT Transaction discarded because of: " : "-ERR ");
    if (verdict == COMMAND_UNKNOWN) {
        append_unknown(&text, request, bytes);
    } else if (verdict == COMMAND_UNKNOWN_SUB) {
        append_unknown_sub(&text, request, bytes);
    } else {
        append_string(&text, "wrong number of arguments for '");
        append_string(&text, info->name);
        append_string(&text, "' command");
    }
    for (size_t i = 0; i < text.length; i++) {
        if (out[i] == '\r' || out[i] == '\n') out[i] = ' ';
    }
    memcpy(out + text.length, "\r\n", 2);
    return text.length + 2;
}
