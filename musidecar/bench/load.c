/*
 * load.c: the load generator of `musidecar bench proxy`: one thread, epoll, N connections that each keep one batch of P
 * requests under way, SET or GET of random keys, optionally a WAIT after each SET (the pair counts as one). The same
 * program drives every contestant, so that a ratio compares servers and not generators. Latency is that of a batch: from
 * handing it to the kernel to the last byte of its last reply. Built with gcc when needed; not part of the extension.
 *
 * usage: load HOST PORT CONNECTIONS PIPELINE SECONDS set|get|stale|fill VALUE_BYTES KEYS WAIT_REPLICAS WARM_SECONDS [SEED [BACKEND]]
 * HOST may be the path of a Unix socket. Speaks RESP, memcached's text protocol, or an exchange's (BACKEND liquibook), where a
 * SET is a limit order that meets the one before it, and a GET asks for the book.
 * Writes one line of JSON. Exit 1 when a connection broke or an error was answered (the line says which).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REPLY_ROOM = 1 << 17, REQUEST_BYTES_MAX = 160, VALUE_BYTES_MAX = 65536, CONNECTIONS_MAX = 4096,
       HISTOGRAM_STEPS = 16, HISTOGRAM_SLOTS = 64 * HISTOGRAM_STEPS };

enum mode { MODE_SET, MODE_GET, MODE_FILL, MODE_STALE /* GET, after READONLY */ };

struct load {
    const char *host;
    int port, connections, pipeline, value_bytes, wait_replicas;
    double seconds, warm_seconds;
    enum mode mode;
    bool memcached, exchange;
    uint64_t keys, seed, filled, orders, run; /* run: makes ids differ from those of another run */
    char *value;
};

struct connection {
    int fd;
    char *out;
    size_t out_bytes, out_sent;
    char in[REPLY_ROOM];
    size_t in_bytes;
    uint64_t skip; /* bytes of a bulk reply still to come */
    int replies_due;
    uint64_t sent_ns;
};

static uint64_t histogram[HISTOGRAM_SLOTS];
static uint64_t done, done_batches, errors;
static char first_error[120];

static void fail(const char *what)
{
    printf("{\"error\":\"%s: %s\"}\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random_next(struct load *l) /* xorshift64* */
{
    l->seed ^= l->seed >> 12;
    l->seed ^= l->seed << 25;
    l->seed ^= l->seed >> 27;
    return l->seed * 2685821657736338717u;
}

/* Log-linear: HISTOGRAM_STEPS slots an octave, so a percentile is right to within 1/16. */
static unsigned slot_of(uint64_t ns)
{
    if (ns < HISTOGRAM_STEPS)
        return (unsigned)ns;
    unsigned octave = 63u - (unsigned)__builtin_clzll(ns);
    return (octave - 3) * HISTOGRAM_STEPS + (unsigned)((ns >> (octave - 4)) & (HISTOGRAM_STEPS - 1));
}

static uint64_t slot_value(unsigned slot)
{
    if (slot < HISTOGRAM_STEPS)
        return slot;
    unsigned octave = slot / HISTOGRAM_STEPS + 3;
    return ((uint64_t)HISTOGRAM_STEPS + slot % HISTOGRAM_STEPS) << (octave - 4);
}

static double percentile_us(double share)
{
    uint64_t seen = 0, wanted = (uint64_t)((double)done_batches * share);
    for (unsigned i = 0; i < HISTOGRAM_SLOTS; i++) {
        seen += histogram[i];
        if (seen > wanted)
            return (double)slot_value(i) / 1e3;
    }
    return 0;
}

static size_t put_memcached(const struct load *l, char *out, uint64_t key)
{
    if (l->mode == MODE_GET || l->mode == MODE_STALE)
        return (size_t)sprintf(out, "get key:%012llu\r\n", (unsigned long long)key);
    size_t n = (size_t)sprintf(out, "set key:%012llu 0 0 %d\r\n", (unsigned long long)key, l->value_bytes);
    memcpy(out + n, l->value, (size_t)l->value_bytes);
    n += (size_t)l->value_bytes;
    memcpy(out + n, "\r\n", 2);
    return n + 2;
}

static size_t put_order(struct load *l, char *out)
{
    if (l->mode == MODE_GET || l->mode == MODE_STALE)
        return (size_t)sprintf(out, "DEPTH AAPL\n");
    uint64_t number = l->orders++;
    return (size_t)sprintf(out, "%s load%llu %llx-%llu AAPL 10 10000\n", number & 1 ? "SELL" : "BUY",
                           (unsigned long long)number % 16, (unsigned long long)l->run, (unsigned long long)number);
}

static size_t put_request(struct load *l, char *out)
{
    if (l->exchange)
        return put_order(l, out);
    uint64_t key = l->mode == MODE_FILL ? l->filled++ % l->keys : random_next(l) % l->keys;
    if (l->memcached)
        return put_memcached(l, out, key);
    if (l->mode == MODE_GET || l->mode == MODE_STALE)
        return (size_t)sprintf(out, "*2\r\n$3\r\nGET\r\n$16\r\nkey:%012llu\r\n", (unsigned long long)key);
    size_t n = (size_t)sprintf(out, "*3\r\n$3\r\nSET\r\n$16\r\nkey:%012llu\r\n$%d\r\n", (unsigned long long)key,
                               l->value_bytes);
    memcpy(out + n, l->value, (size_t)l->value_bytes);
    n += (size_t)l->value_bytes;
    memcpy(out + n, "\r\n", 2);
    n += 2;
    if (l->wait_replicas)
        n += (size_t)sprintf(out + n, "*3\r\n$4\r\nWAIT\r\n$1\r\n%d\r\n$1\r\n0\r\n", l->wait_replicas);
    return n;
}

static void watch(int epoll, struct connection *c, uint32_t events, int how)
{
    struct epoll_event event = { .events = events, .data.ptr = c };
    if (epoll_ctl(epoll, how, c->fd, &event))
        fail("epoll_ctl");
}

static void flush_batch(int epoll, struct connection *c)
{
    while (c->out_sent < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_bytes - c->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(epoll, c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        if (n < 0)
            fail("send");
        c->out_sent += (size_t)n;
    }
}

static void start_batch(struct load *l, int epoll, struct connection *c)
{
    c->out_bytes = c->out_sent = 0;
    for (int i = 0; i < l->pipeline; i++)
        c->out_bytes += put_request(l, c->out + c->out_bytes);
    c->replies_due = l->pipeline * (l->wait_replicas ? 2 : 1);
    c->sent_ns = now_ns();
    flush_batch(epoll, c);
}

static void note_error(const char *line, size_t bytes)
{
    if (!errors++) {
        size_t n = bytes < sizeof first_error ? bytes : sizeof first_error - 1;
        for (size_t i = 0; i < n; i++)
            first_error[i] = line[i] == '"' || line[i] == '\\' || (unsigned char)line[i] < 32 ? ' ' : line[i];
    }
}

/* What begins with this line: the bytes behind it that belong to it, or -1: the line is all. *whole: with it the answer is. */
static long long behind_resp(const char *line, bool *whole)
{
    long long length = *line == '$' ? strtoll(line + 1, NULL, 10) : -1;
    *whole = true;
    return length < 0 ? -1 : length + 2;
}

static long long behind_line(const char *line, bool *whole)
{
    *whole = strncmp(line, "END\n", 4) == 0;
    return -1;
}

static long long behind_memcached(const char *line, bool *whole)
{
    const char *last = line;
    *whole = strncmp(line, "VALUE ", 6) != 0; /* END follows */
    if (*whole)
        return -1;
    for (const char *at = line; *at != '\r'; at++)
        if (*at == ' ')
            last = at;
    return strtoll(last, NULL, 10) + 2;
}

/* Counts whole replies at the front of c->in; what is incomplete stays. Only + - : $ _ occur as answers of Redis here. */
static void take_replies(const struct load *l, struct connection *c)
{
    size_t at = 0;
    for (;;) {
        if (c->skip) {
            size_t n = c->in_bytes - at < c->skip ? c->in_bytes - at : c->skip;
            at += n;
            c->skip -= n;
            if (c->skip)
                break;
            c->replies_due -= !l->memcached;
        }
        char *end = at < c->in_bytes ? memchr(c->in + at, '\n', c->in_bytes - at) : NULL;
        if (!end)
            break;
        const char *line = c->in + at;
        bool whole;
        long long behind = l->exchange    ? behind_line(line, &whole)
                           : l->memcached ? behind_memcached(line, &whole)
                                          : behind_resp(line, &whole);
        size_t bytes = (size_t)(end - line) - !l->exchange;
        if (l->exchange    ? bytes > 6 && !memcmp(line, "REJECT", 6)
            : l->memcached ? memmem(line, bytes, "ERROR", 5) != NULL
                           : *line == '-')
            note_error(line, bytes);
        at = (size_t)(end - c->in) + 1;
        if (behind >= 0)
            c->skip = (uint64_t)behind;
        else
            c->replies_due -= whole;
    }
    memmove(c->in, c->in + at, c->in_bytes - at);
    c->in_bytes -= at;
}

/* True when a batch is complete. */
static bool read_replies(const struct load *l, struct connection *c)
{
    ssize_t n = recv(c->fd, c->in + c->in_bytes, REPLY_ROOM - c->in_bytes, 0);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0)
        fail(n ? "recv" : "connection closed");
    c->in_bytes += (size_t)n;
    take_replies(l, c);
    return c->replies_due == 0;
}

static void say_readonly(struct connection *c)
{
    static const char words[] = "*1\r\n$8\r\nREADONLY\r\n", ok[] = "+OK\r\n";
    char answer[sizeof ok] = "";
    if (send(c->fd, words, sizeof words - 1, MSG_NOSIGNAL) < 0 || recv(c->fd, answer, sizeof ok - 1, MSG_WAITALL) < 0)
        fail("READONLY");
    if (strcmp(answer, ok)) {
        errno = EOPNOTSUPP;
        fail("READONLY");
    }
}

static void connect_to(const struct load *l, struct connection *c)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)l->port) };
    struct sockaddr_un path = { .sun_family = AF_UNIX };
    bool is_path = l->host[0] == '/';
    int one = 1;
    c->fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || (is_path ? strlen(l->host) >= sizeof path.sun_path : inet_pton(AF_INET, l->host, &to.sin_addr) != 1))
        fail("address");
    if (is_path)
        strcpy(path.sun_path, l->host);
    if (connect(c->fd, is_path ? (struct sockaddr *)&path : (struct sockaddr *)&to, is_path ? sizeof path : sizeof to))
        fail("connect");
    if (!is_path)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void open_connection(struct load *l, struct connection *c)
{
    connect_to(l, c);
    if (l->mode == MODE_STALE)
        say_readonly(c);
    size_t each = REQUEST_BYTES_MAX + (size_t)l->value_bytes;
    c->out = malloc(each * (size_t)l->pipeline);
    if (!c->out)
        fail("memory");
}

static void serve(struct load *l, int epoll, struct connection *c, uint32_t events, uint64_t warm_ns)
{
    if (events & EPOLLOUT) {
        watch(epoll, c, EPOLLIN, EPOLL_CTL_MOD);
        flush_batch(epoll, c);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || !read_replies(l, c))
        return;
    uint64_t now = now_ns();
    if (now >= warm_ns) {
        histogram[slot_of(now - c->sent_ns)]++;
        done_batches++;
        done += (uint64_t)l->pipeline;
    }
    start_batch(l, epoll, c);
}

static void run(struct load *l, struct connection *all)
{
    int epoll = epoll_create1(0);
    struct epoll_event events[256];
    for (int i = 0; i < l->connections; i++) {
        open_connection(l, &all[i]);
        watch(epoll, &all[i], EPOLLIN, EPOLL_CTL_ADD);
    }
    uint64_t warm_ns = now_ns() + (uint64_t)(l->warm_seconds * 1e9);
    uint64_t end_ns = warm_ns + (uint64_t)(l->seconds * 1e9);
    for (int i = 0; i < l->connections; i++)
        start_batch(l, epoll, &all[i]);
    uint64_t now = 0;
    while ((now = now_ns()) < end_ns && (l->mode != MODE_FILL || done < l->keys)) {
        int n = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < n; i++)
            serve(l, epoll, events[i].data.ptr, events[i].events, warm_ns);
    }
    double seconds = (double)(now - warm_ns) / 1e9;
    printf("{\"ops\":%llu,\"seconds\":%.6f,\"rps\":%.1f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"max_us\":%.2f,"
           "\"errors\":%llu,\"first_error\":\"%s\"}\n", (unsigned long long)done, seconds, (double)done / seconds,
           percentile_us(0.50), percentile_us(0.99), percentile_us(1 - 1e-9), (unsigned long long)errors, first_error);
}

int main(int argc, char **argv)
{
    if (argc < 11) {
        fprintf(stderr, "usage: load HOST PORT CONNECTIONS PIPELINE SECONDS set|get|stale|fill VALUE_BYTES KEYS "
                        "WAIT_REPLICAS WARM_SECONDS [SEED [BACKEND]]\n");
        return 2;
    }
    struct load l = { .host = argv[1], .port = atoi(argv[2]), .connections = atoi(argv[3]), .pipeline = atoi(argv[4]),
                      .seconds = atof(argv[5]), .value_bytes = atoi(argv[7]), .keys = strtoull(argv[8], NULL, 10),
                      .wait_replicas = atoi(argv[9]), .warm_seconds = atof(argv[10]),
                      .memcached = argc > 12 && !strcmp(argv[12], "memcached"),
                      .exchange = argc > 12 && !strcmp(argv[12], "liquibook"),
                      .seed = argc > 11 ? strtoull(argv[11], NULL, 10) | 1 : now_ns() | 1 };
    l.run = l.seed;
    l.mode = !strcmp(argv[6], "get") ? MODE_GET : !strcmp(argv[6], "fill") ? MODE_FILL :
             !strcmp(argv[6], "stale") ? MODE_STALE : MODE_SET;
    if (l.connections < 1 || l.connections > CONNECTIONS_MAX || l.pipeline < 1 || l.pipeline > 100000 || !l.keys ||
        l.value_bytes < 0 || l.value_bytes > VALUE_BYTES_MAX || l.wait_replicas < 0 || l.wait_replicas > 9) {
        fprintf(stderr, "load: an argument is out of range\n");
        return 2;
    }
    struct connection *all = calloc((size_t)l.connections, sizeof *all);
    l.value = malloc((size_t)l.value_bytes + 1);
    if (!all || !l.value)
        fail("memory");
    memset(l.value, 'x', (size_t)l.value_bytes);
    run(&l, all);
    return errors ? 1 : 0;
}
