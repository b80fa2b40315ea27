/* source.h: what epoll knows of, and where an answer goes. */
#ifndef MUSIDECAR_ENGINE_SOURCE_H
#define MUSIDECAR_ENGINE_SOURCE_H

#include <stdint.h>
#include "buffer.h"

enum source_kind {
    SOURCE_CLIENT, SOURCE_LISTEN, SOURCE_FEED_LISTEN, SOURCE_FEED, SOURCE_SHARED, SOURCE_STREAM, SOURCE_ADMIN,
    SOURCE_VERIFY, SOURCE_LOCAL, SOURCE_LINK, SOURCE_FABRIC, SOURCE_CONTROL, SOURCE_OWN, SOURCE_STALE, SOURCE_GONE
};

struct source {
    enum source_kind kind;
    int fd; /* -1: closed */
    uint32_t interest;
};

/* A stream socket with bytes waiting to leave. */
struct socket {
    struct source source;
    struct buffer out;
};

/* Where an answer goes. */
struct destination {
    uint32_t node; /* self: a client of this node */
    uint32_t slot, generation;
    uint64_t sequence;
    uint32_t session; /* of the link to that node: what came over one is not answered over the next */
};

#endif
