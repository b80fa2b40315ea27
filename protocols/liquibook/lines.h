/*
 * lines.h: the line protocol of liquibookd (PROTOCOL.md): where a request ends and what it is, where a reply ends. Pure,
 * incremental, nothing is copied.
 *
 * A request is checked as far as its line alone decides, in the words of liquibookd (grammar.py): what it would reject for its
 * form is rejected here and goes no further. What is for the sidecar alone (stamps, SNAPSHOT, RESTORE) is rejected too.
 */
#ifndef MUSIDECAR_LINES_H
#define MUSIDECAR_LINES_H

#include <stddef.h>
#include <stdint.h>

#define LINES_BYTES_MAX 1024u         /* of a request, its end included */
#define LINES_NAME_BYTES_MAX 64u
#define LINES_QUANTITY_MAX 2147483647u
#define LINES_PRICE_MAX 1000000000000000u
#define LINES_NUMBER_MAX 9223372036854775807u

enum lines_class {
    LINES_MORE = 0, /* not whole */
    LINES_READ,     /* changes nothing */
    LINES_WRITE,
    LINES_DECIDE,   /* writes, unless the order that it names is done, or there is none */
    LINES_BAD,      /* `text` is the reply; the next request stands behind it */
    LINES_CLOSE     /* `text` is the reply; there is no next one */
};

struct lines_request {
    enum lines_class class;
    size_t length;    /* bytes of it, its end included; once it is not MORE */
    size_t scanned;   /* no end before this: 0 for a new request, then as it was left */
    const char *text; /* BAD, CLOSE: static */
    uint64_t hash;    /* WRITE, DECIDE: of its trader and its id; 0 where it has none */
};

/* Looks at all bytes of a client that are not consumed, always from the same request's first on. symbols: of the books, each with
 * a line feed on both sides ("\nA\nB\n"); an order for another is BAD. NULL: not known. */
enum lines_class lines_request_read(struct lines_request *request, const uint8_t *bytes, size_t length, const char *symbols);

struct lines_reply { uint32_t matched; }; /* zero in front of a reply */
enum lines_status { LINES_REPLY_MORE = 0, LINES_REPLY_WHOLE = 1 };

/* Takes bytes of a reply; returns how many. WHOLE: its END was the last of them. */
size_t lines_reply_read(struct lines_reply *reply, const uint8_t *bytes, size_t length, enum lines_status *status);

#endif
