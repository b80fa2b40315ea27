/* socket.c: non-blocking stream sockets and their registration with epoll. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/engine_state.h"

void source_watch(struct engine *e, struct source *s, uint32_t interest) {
    if (s->fd < 0 || s->interest == interest) return;
    struct epoll_event event = {.events = interest, .data.ptr = s};
    int op = s->interest == 0 ? EPOLL_CTL_ADD : interest == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    CHECK(epoll_ctl(e->epoll, op, s->fd, &event) == 0);
    s->interest = interest;
}

void source_close(struct engine *e, struct source *s) {
    if (s->fd < 0) return;
    source_watch(e, s, 0);
    close(s->fd);
    s->fd = -1;
}

static int connect_unix(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path) return -1;
    memcpy(address.sun_path, path, length + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static int connect_tcp(const char *host, uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) return -1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS) return fd;
    close(fd);
    return -1;
}

int backend_connect(struct engine *e) {
    const struct engine_config *config = &e->config;
    if (config->backend_path[0]) return connect_unix(config->backend_path);
    return connect_tcp(config->backend_host, (uint16_t)config->backend_port);
}

int32_t socket_child(const struct socket *s) {
    struct ucred other;
    socklen_t length = sizeof other;
    if (s->source.fd < 0 || getsockopt(s->source.fd, SOL_SOCKET, SO_PEERCRED, &other, &length) != 0 || other.pid <= 0) return 0;
    siginfo_t info = {0};
    bool child = waitid(P_PID, (id_t)other.pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0; /* and runs */
    return child ? other.pid : 0;
}

void append_command(struct buffer *out, uint32_t count, ...) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "*%u\r\n", count));
    va_list words;
    va_start(words, count);
    for (uint32_t i = 0; i < count; i++) {
        const char *word = va_arg(words, const char *);
        buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", strlen(word)));
        buffer_text(out, word);
        buffer_text(out, "\r\n");
    }
    va_end(words);
}

uint32_t append_auth(struct engine *e, struct buffer *out) {
    if (!e->config.backend_password[0]) return 0;
    if (e->config.backend_user[0]) append_command(out, 3, OUR_AUTH, e->config.backend_user, e->config.backend_password);
    else append_command(out, 2, OUR_AUTH, e->config.backend_password);
    return 1;
}

/* Sends up to `limit` of the waiting bytes and watches for room when some are left. */
bool socket_flush(struct engine *e, struct socket *s, size_t limit, size_t *written) {
    *written = 0;
    while (*written < limit) {
        ssize_t n = send(s->source.fd, buffer_bytes(&s->out), limit - *written, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) break;
        if (n < 0) return false;
        *written += (size_t)n;
        buffer_consume(&s->out, (size_t)n);
    }
    uint32_t base = s->source.interest & ~(uint32_t)EPOLLOUT;
    source_watch(e, &s->source, *written < limit ? base | EPOLLOUT : base);
    return true;
}
