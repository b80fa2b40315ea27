/*
 * session_load.c: DEBUG RELOAD and DEBUG LOADAOF, which put what the leader's backend has on its disk in the place of its
 * data, and DEBUG POPULATE, which makes keys beside the stream. See session.h.
 */
#include "protocols/redis/session_word.h"

#define KEYS_MAX 1000000000ll /* more are no test data: the server is not asked */

/* With both options what is saved is laid over what is there: the same again. NOFLUSH alone finds every key there already,
 * and ends the server; NOSAVE loads a file from earlier. */
static enum session_loads reloads(const struct resp_request *request, const uint8_t *bytes) {
    bool merges = false, keeps = false, saves = true;
    for (uint64_t i = 2; i < request->argc; i++) {
        struct word option = word_at(request, bytes, i);
        if (word_is(option, "merge")) merges = true;
        else if (word_is(option, "noflush")) keeps = true;
        else if (word_is(option, "nosave")) saves = false;
        else return LOADS_NOTHING;
    }
    if (!saves) return keeps && !merges ? LOADS_NOTHING : LOADS_FILE;
    return merges == keeps ? LOADS_RDB : LOADS_NOTHING;
}

static bool populates(const struct resp_request *request, const uint8_t *bytes) {
    long long keys, size = 0;
    if (request->argc < 3 || request->argc > 5 || !word_number(word_at(request, bytes, 2), &keys)) return false;
    if (request->argc == 5 && !word_number(word_at(request, bytes, 4), &size)) return false;
    return keys >= 0 && keys <= KEYS_MAX && size >= 0;
}

enum session_loads session_loads(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_DEBUG || request->argc < 2) return LOADS_NOTHING;
    struct word sub = word_at(request, bytes, 1);
    if (word_is(sub, "reload")) return reloads(request, bytes);
    if (word_is(sub, "populate")) return populates(request, bytes) ? LOADS_POPULATE : LOADS_NOTHING;
    return word_is(sub, "loadaof") && request->argc == 2 ? LOADS_AOF : LOADS_NOTHING;
}

bool session_loads_twice(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_DEBUG || request->argc != 3 || !word_is(word_at(request, bytes, 1), "reload")) return false;
    return word_is(word_at(request, bytes, 2), "noflush");
}
