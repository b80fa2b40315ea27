/* session_view.c: which answers are edited before their client is given them. See session.h. */
#include "protocols/redis/session_word.h"

enum session_view session_view(const struct command_info *info) {
    static const struct { const char *name; enum session_view view; } views[] = {
        {"config|get", VIEW_CONFIG}, {"config|resetstat", VIEW_RESETSTAT}, {"info", VIEW_INFO}, {"role", VIEW_ROLE},
        {"slowlog|get", VIEW_SLOWLOG_GET}, {"slowlog|len", VIEW_SLOWLOG_LEN}, {"slowlog|reset", VIEW_SLOWLOG_RESET},
        {"latency|histogram", VIEW_HISTOGRAM}};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        if (strcmp(info->name, views[i].name) == 0) return views[i].view;
    return VIEW_PLAIN;
}

/* SLOWLOG GET's; what is wrong with it the backend says. */
int32_t session_view_count(const struct resp_request *request, const uint8_t *bytes) {
    long long count = 10;
    if (request->argc == 3 && !word_number(word_at(request, bytes, 2), &count)) count = 0;
    return (int32_t)(count < -1 ? 0 : count > INT32_MAX ? INT32_MAX : count);
}

bool session_own_view(struct session *s, const struct command_info *info, const struct resp_request *request, const uint8_t *bytes,
                      struct session_decision *d) {
    if (info->action != ACTION_VIEW && info->action != ACTION_INFO) return false;
    if (s->own != OWN_COUNTED || s->own_multi || s->other_user || s->reply_off || s->reply_skip || !s->authenticated) return false;
    *d = s->quiet ? (struct session_decision){.verdict = SESSION_SUBMIT, .bytes = bytes, .length = request->length, .replies = 1,
                                              .database_after = -1, .view = session_view(info),
                                              .view_count = session_view_count(request, bytes)}
                  : (struct session_decision){.verdict = SESSION_WAIT};
    return true;
}
