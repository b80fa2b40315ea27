/* replconf.c: see replconf.h. */
#include "protocols/redis/replconf.h"

#include <string.h>
#include <strings.h>

#include "protocols/redis/digits.h"

static bool argument_is(const uint8_t *bytes, struct resp_argument a, const char *text) {
    return a.length == strlen(text) && strncasecmp((const char *)bytes + a.offset, text, a.length) == 0;
}

struct replica_ask replica_ask_read(const struct resp_request *request, const uint8_t *bytes) {
    const struct resp_argument *arguments = request->arguments;
    struct replica_ask asked = {.asks = ASKS_NOTHING_KNOWN};
    uint64_t argc = request->argc;
    if (request->is_inline || argc == 0 || argc > RESP_ARGUMENTS_KEPT) return asked;
    if (argument_is(bytes, arguments[0], "PING")) {
        asked.asks = ASKS_PING;
    } else if (argument_is(bytes, arguments[0], "AUTH") && argc >= 2) {
        asked.asks = ASKS_AUTH;
        asked.password = arguments[argc - 1];
    } else if (argument_is(bytes, arguments[0], "REPLCONF") && argc >= 3) {
        bool ack = argument_is(bytes, arguments[1], "ACK");
        if (ack && !digits_read(bytes + arguments[2].offset, arguments[2].length, &asked.offset)) return asked;
        asked.asks = ack ? ASKS_ACK : ASKS_REPLCONF;
    } else if (argument_is(bytes, arguments[0], "PSYNC") && argc == 3) {
        if (!argument_is(bytes, arguments[2], "-1") &&
            !digits_read(bytes + arguments[2].offset, arguments[2].length, &asked.offset)) return asked;
        asked.asks = ASKS_PSYNC;
        asked.replid = arguments[1];
    }
    return asked;
}
