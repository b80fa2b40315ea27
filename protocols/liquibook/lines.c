/* lines.c: see lines.h. The checks come in the order of grammar.py, so that both say the same of a line. */
#include "protocols/liquibook/lines.h"

#include <stdbool.h>
#include <string.h>

#define WORDS_MAX 9u /* BUY trader id symbol quantity price STOP price AON */
#define REJECT(code, text) "REJECT " code " " text "\nEND\n"

struct word { const uint8_t *at; size_t length; };
struct words { struct word word[WORDS_MAX]; size_t count; /* may be more than are kept */ };

/* What a number may be, and what is said of another. */
struct rule { uint64_t least, most; const char *no_number, *out_of_range; };

static const struct rule QUANTITY = {1, LINES_QUANTITY_MAX, REJECT("malformed", "quantity is not a number"),
                                     REJECT("quantity", "quantity is not 1 to 2147483647")};
static const struct rule PRICE = {1, LINES_PRICE_MAX, REJECT("malformed", "price is not a number"),
                                  REJECT("price", "price is not 1 to 1000000000000000")};
static const struct rule STOP_PRICE = {1, LINES_PRICE_MAX, REJECT("malformed", "stop price is not a number"),
                                       REJECT("price", "stop price is not 1 to 1000000000000000")};
static const struct rule LEVELS = {1, 1000, REJECT("malformed", "levels is not a number"),
                                   REJECT("malformed", "levels is not 1 to 1000")};
static const struct rule EVENT = {0, LINES_NUMBER_MAX, REJECT("malformed", "event is not a number"),
                                  REJECT("malformed", "event is not 0 to 9223372036854775807")};
static const struct rule COUNT = {1, 1000, REJECT("malformed", "count is not a number"),
                                  REJECT("malformed", "count is not 1 to 1000")};

static bool is(struct word word, const char *text) {
    return word.length == strlen(text) && memcmp(word.at, text, word.length) == 0;
}

/* What is wrong with it; NULL: nothing. */
static const char *number(struct word word, const struct rule *rule) {
    bool negative = word.at[0] == '-';
    uint64_t value = 0;
    bool fits = true;
    if (word.length == negative) return rule->no_number;
    for (size_t i = negative; i < word.length; i++) {
        unsigned digit = (unsigned)word.at[i] - '0';
        if (digit > 9) return rule->no_number;
        fits = fits && !__builtin_mul_overflow(value, 10u, &value) && !__builtin_add_overflow(value, digit, &value);
    }
    if (!fits || (negative && value > 0) || value < rule->least || value > rule->most) return rule->out_of_range;
    return NULL;
}

static const char *limit(struct word word) { return is(word, "MKT") ? NULL : number(word, &PRICE); }

/* ---- the words of each request ------------------------------------------------------------------------------------- */

static const char *counted(const struct words *words, size_t least, size_t most) {
    return words->count - 1 < least || words->count - 1 > most ? REJECT("malformed", "wrong number of words") : NULL;
}

/* The words behind the first, up to `last`, are names. */
static const char *named(const struct words *words, size_t last) {
    for (size_t i = 1; i <= last; i++)
        if (words->word[i].length > LINES_NAME_BYTES_MAX) return REJECT("malformed", "a name is longer than 64");
    return NULL;
}

static const char *check_new(const struct words *words) {
    const struct word *w = words->word;
    const char *wrong = counted(words, 5, 8);
    if (wrong == NULL) wrong = named(words, 3);
    if (wrong != NULL) return wrong;
    size_t at = 6;
    const struct word *stop = NULL;
    if (at < words->count && is(w[at], "STOP")) {
        if (at + 1 == words->count) return REJECT("malformed", "STOP without a price");
        stop = &w[at + 1];
        at += 2;
    }
    if (at < words->count && (at + 1 < words->count || (!is(w[at], "AON") && !is(w[at], "IOC") && !is(w[at], "FOK"))))
        return REJECT("malformed", "not STOP PRICE, AON, IOC or FOK");
    wrong = number(w[4], &QUANTITY);
    if (wrong == NULL) wrong = limit(w[5]);
    return wrong == NULL && stop != NULL ? number(*stop, &STOP_PRICE) : wrong;
}

static const char *check_cancel(const struct words *words) {
    const char *wrong = counted(words, 3, 3);
    return wrong == NULL ? named(words, 3) : wrong;
}

static const char *check_replace(const struct words *words) {
    const char *wrong = counted(words, 5, 5);
    if (wrong == NULL) wrong = named(words, 3);
    if (wrong == NULL) wrong = number(words->word[4], &QUANTITY);
    return wrong == NULL ? limit(words->word[5]) : wrong;
}

static const char *check_status(const struct words *words) {
    const char *wrong = counted(words, 2, 2);
    return wrong == NULL ? named(words, 2) : wrong;
}

static const char *check_depth(const struct words *words) {
    const char *wrong = counted(words, 1, 2);
    if (wrong == NULL) wrong = named(words, 1);
    return wrong == NULL && words->count == 3 ? number(words->word[2], &LEVELS) : wrong;
}

static const char *check_events(const struct words *words) {
    const char *wrong = counted(words, 2, 3);
    if (wrong == NULL) wrong = named(words, 1);
    if (wrong == NULL) wrong = number(words->word[2], &EVENT);
    return wrong == NULL && words->count == 4 ? number(words->word[3], &COUNT) : wrong;
}

static const char *check_plain(const struct words *words) { return counted(words, 0, 0); }

static const char *check_not_here(const struct words *words) {
    (void)words;
    return REJECT("malformed", "not for clients");
}

static const struct { const char *name; enum lines_class class; const char *(*check)(const struct words *words); } REQUESTS[] = {
    {"BUY", LINES_WRITE, check_new}, {"SELL", LINES_WRITE, check_new}, {"CANCEL", LINES_DECIDE, check_cancel},
    {"REPLACE", LINES_DECIDE, check_replace}, {"ROLL", LINES_WRITE, check_plain}, {"STATUS", LINES_READ, check_status},
    {"DEPTH", LINES_READ, check_depth}, {"EVENTS", LINES_READ, check_events}, {"PING", LINES_READ, check_plain},
    {"STATE", LINES_READ, check_plain}, {"SYMBOLS", LINES_READ, check_plain}, {"SNAPSHOT", LINES_BAD, check_not_here},
    {"RESTORE", LINES_BAD, check_not_here}, {"CHECK", LINES_BAD, check_not_here},
};

/* ---- a line -------------------------------------------------------------------------------------------------------- */

/* False: two blanks, or one at an end, or nothing. */
static bool split(const uint8_t *line, size_t length, struct words *words) {
    words->count = 0;
    for (size_t start = 0; start <= length;) {
        const uint8_t *blank = start < length ? memchr(line + start, ' ', length - start) : NULL;
        size_t end = blank != NULL ? (size_t)(blank - line) : length;
        if (end == start) return false;
        if (words->count < WORDS_MAX) words->word[words->count] = (struct word){line + start, end - start};
        words->count++;
        start = end + 1;
    }
    return true;
}

/* Of so few that looking through them costs less than a hash would. */
static bool is_book(struct word symbol, const char *symbols) {
    char wanted[LINES_NAME_BYTES_MAX + 3] = "\n";
    memcpy(wanted + 1, symbol.at, symbol.length);
    memcpy(wanted + 1 + symbol.length, "\n", 2);
    return strstr(symbols, wanted) != NULL;
}

static uint64_t hash_of(const struct words *words) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    if (words->count < 3) return 0;
    for (const uint8_t *at = words->word[1].at; at < words->word[2].at + words->word[2].length; at++) hash = (hash ^ *at) * 0x100000001b3u;
    return hash;
}

static enum lines_class classify(const uint8_t *line, size_t length, const char *symbols, struct lines_request *request) {
    const char **text = &request->text;
    struct words words;
    for (size_t i = 0; i < length; i++)
        if (line[i] < 0x20 || line[i] > 0x7e) return *text = REJECT("malformed", "not printable ASCII"), LINES_BAD;
    if (!split(line, length, &words)) {
        *text = REJECT("malformed", "empty line, or more than one blank between words");
        return LINES_BAD;
    }
    if (line[0] == '@') return *text = check_not_here(&words), LINES_BAD;
    for (size_t i = 0; i < sizeof REQUESTS / sizeof *REQUESTS; i++) {
        if (!is(words.word[0], REQUESTS[i].name)) continue;
        *text = REQUESTS[i].check(&words);
        if (*text == NULL && REQUESTS[i].check == check_new && symbols != NULL && !is_book(words.word[3], symbols))
            *text = REJECT("symbol", "there is no such book");
        request->hash = hash_of(&words);
        return *text == NULL ? REQUESTS[i].class : LINES_BAD;
    }
    return *text = REJECT("malformed", "unknown request"), LINES_BAD;
}

enum lines_class lines_request_read(struct lines_request *request, const uint8_t *bytes, size_t length, const char *symbols) {
    size_t stop = length < LINES_BYTES_MAX ? length : LINES_BYTES_MAX;
    const uint8_t *end = request->scanned < stop ? memchr(bytes + request->scanned, '\n', stop - request->scanned) : NULL;
    request->text = NULL;
    if (end != NULL) {
        request->length = (size_t)(end - bytes) + 1;
        request->class = classify(bytes, request->length - 1, symbols, request);
    } else if (stop == LINES_BYTES_MAX) {
        request->length = stop;
        request->text = REJECT("malformed", "line too long");
        request->class = LINES_CLOSE;
    } else {
        request->scanned = stop;
        request->class = LINES_MORE;
    }
    return request->class;
}

/* ---- replies ------------------------------------------------------------------------------------------------------- */

#define OTHER_LINE 4u /* `matched`: bytes of "END" at the start of a line, or this */

size_t lines_reply_read(struct lines_reply *reply, const uint8_t *bytes, size_t length, enum lines_status *status) {
    static const uint8_t END[] = {'E', 'N', 'D', '\n'};
    uint32_t matched = reply->matched;
    for (size_t at = 0; at < length;) {
        if (matched < sizeof END && bytes[at] == END[matched]) {
            matched++;
            at++;
            if (matched < sizeof END) continue;
            reply->matched = 0;
            *status = LINES_REPLY_WHOLE;
            return at;
        }
        const uint8_t *newline = memchr(bytes + at, '\n', length - at);
        matched = newline == NULL ? OTHER_LINE : 0;
        at = newline == NULL ? length : (size_t)(newline - bytes) + 1;
    }
    reply->matched = matched;
    *status = LINES_REPLY_MORE;
    return length;
}
