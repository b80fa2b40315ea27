/*
 * ask.h: what the sidecar itself asks its backend. Every one of these questions begins with a word in a spelling that nobody
 * else uses: MONITOR and SLOWLOG show it, and a client is not shown it.
 */
#ifndef MUSIDECAR_REDIS_ASK_H
#define MUSIDECAR_REDIS_ASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ASK_ROLE "*1\r\n$4\r\nRoLE\r\n"
#define ASK_ALIVE "*1\r\n$4\r\nPiNG\r\n"
#define ASK_ID "*2\r\n$6\r\nCLiENT\r\n$2\r\nID\r\n"
#define ASK_CLIENTS "*2\r\n$6\r\nCLiENT\r\n$4\r\nLIST\r\n"
#define ASK_PERSISTENCE "*2\r\n$4\r\niNFO\r\n$11\r\npersistence\r\n"
#define ASK_HELLO_2 "*2\r\n$5\r\nHeLLO\r\n$1\r\n2\r\n"
#define ASK_HELLO_3 "*2\r\n$5\r\nHeLLO\r\n$1\r\n3\r\n"
#define ASK_USERS "*2\r\n$3\r\nAcL\r\n$4\r\nLIST\r\n"
#define ASK_SELECT "*2\r\n$6\r\nSeLECT\r\n" /* and the number, as a bulk */
/* Of the key "" nothing is overwritten. */
#define ASK_WRITABLE "*4\r\n$8\r\nSeTRaNGe\r\n$0\r\n\r\n$1\r\n0\r\n$0\r\n\r\n"

#define OUR_AUTH "AuTH"
#define OUR_CLIENT "CLiENT"
#define OUR_CONFIG "CoNFIG"
#define OUR_REPLCONF "RePLCONF"
#define OUR_PSYNC "PSyNC"
#define ASK_FUNCTIONS "*2\r\n$8\r\nFuNCTION\r\n$4\r\nDUMP\r\n"
#define OUR_EVAL "EVaL"

/* Commands whose calls are counted, for clients are told of their own alone (view_stats.c). */
enum our_calls { OUR_CALLS_ROLE, OUR_CALLS_PING, OUR_CALLS_SELECT, OUR_CALLS_HELLO, OUR_CALLS_REPLCONF, OUR_CALLS_CLIENT_ID,
                 OUR_CALLS_CLIENT_SETNAME, OUR_CALLS_SLOWLOG_GET, OUR_CALLS_CONFIG_GET, OUR_CALLS };

static inline bool ask_is_ours(const char *word, size_t length) {
    static const char *const words[] = {"RoLE", "PiNG", "iNFO", "HeLLO", "SeLECT", "SeTRaNGe", "AcL", "FuNCTION", OUR_AUTH, OUR_CLIENT, OUR_CONFIG, OUR_REPLCONF,
                                        OUR_PSYNC, OUR_EVAL, "SLoWLOG"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (length == strlen(words[i]) && memcmp(word, words[i], length) == 0) return true;
    return false;
}

/* In a line of MONITOR? */
static inline bool ask_is_seen(const uint8_t *bytes, size_t length) {
    const char *word = bytes[0] == '+' ? memmem(bytes, length, "] \"", 3) : NULL; /* +1700000000.123456 [0 1.2.3.4:5] "GET" "k" */
    if (word == NULL) return false;
    word += 3;
    const char *end = memchr(word, '"', length - (size_t)(word - (const char *)bytes));
    return end != NULL && ask_is_ours(word, (size_t)(end - word));
}

#endif
