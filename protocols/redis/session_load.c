/*
 * session_load.c: DEBUG RELOAD and DEBUG LOADAOF, which put what the leader's backend has on its disk in the place of its
 * data. Only what was written there for the purpose may be loaded: the RDB that RELOAD saves first, and an AOF that holds
 * every change. Any other file would leave other data than the log's, in the leader's backend alone. See session.h.
 */
#include "protocols/redis/session_word.h"

/* With both options what is saved is laid over what is there: the same again. NOFLUSH alone finds every key there already,
 * and ends the server; NOSAVE loads a file from earlier. */
static bool reloads_itself(const struct resp_request *request, const uint8_t *bytes) {
    bool merges = false, keeps = false;
    for (uint64_t i = 2; i < request->argc; i++) {
        struct word option = word_at(request, bytes, i);
        if (word_is(option, "merge")) merges = true;
        else if (word_is(option, "noflush")) keeps = true;
        else return false;
    }
    return merges == keeps;
}

enum session_loads session_loads(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_DEBUG || request->argc < 2) return LOADS_NOTHING;
    struct word sub = word_at(request, bytes, 1);
    if (word_is(sub, "reload")) return reloads_itself(request, bytes) ? LOADS_RDB : LOADS_NOTHING;
    return word_is(sub, "loadaof") && request->argc == 2 ? LOADS_AOF : LOADS_NOTHING;
}

bool session_loads_twice(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_DEBUG || request->argc != 3 || !word_is(word_at(request, bytes, 1), "reload")) return false;
    return word_is(word_at(request, bytes, 2), "noflush");
}
