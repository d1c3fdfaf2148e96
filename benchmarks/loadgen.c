/* loadgen.c: load generator: many daemons and clients in one thread, and the relay's CPU and memory.
 *
 *   throughput   key exchange, then e2ee frames that every daemon answers; round trips and CPU per delivered frame
 *   connect      upgrades: time from connect() to the 101, CPU of a connection's whole life
 *   idle         open connections and measure the relay's memory
 *
 * Every frame that arrives is checked: length, order within its session, and each byte against what was sent.
 * The ciphertext of a frame is a slice of random text that depends on session, direction and sequence number,
 * so that no frame equals another. Every frame has its own mask, every connection flushes by itself.
 * A frame counts when the relay delivered it; a round trip is two frames. One JSON object on standard output;
 * status 1 after an error of a connection or a frame, 2 if it could not run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define POOL_OFFSETS 65536u    /* slices of the random text that a ciphertext may be */
#define SCRATCH (256u << 10)   /* bytes per read when no incomplete frame is kept */
#define OPENING_AT_ONCE 32     /* concurrent upgrades in throughput and idle */
#define FIRST_SEQ 1000000000u  /* first sequence number: all have ten digits */
#define GIVE_UP 120            /* seconds for opening, or for one batch of upgrades */

enum role { DAEMON, CLIENT };
enum state { UNUSED, CONNECTING, UPGRADING, OPEN, CLOSING, CLOSED };
enum opcode { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

struct bytes { uint8_t *at; size_t len, cap; };

struct peer {
    int fd;
    enum role role;
    enum state state;
    bool wants_write;
    uint32_t pair, slot, token;
    struct bytes in, out;
    size_t out_from;       /* bytes of `out` that were sent */
    uint64_t opened_at;    /* ns */
    uint64_t sent, seen_by_daemon, answered; /* clients: sequence numbers of the session */
    uint64_t *sent_at;     /* clients: ns, a ring of `window` */
};

struct token { enum role role; char *workspace, *target, *text; };

/* -- settings ------------------------------------------------------------------------------------------- */

static struct sockaddr_in relay, clients_relay; /* equal, except with --client-port */
static char host_header[64];
static long relay_pid[8]; /* processes to measure, with their children */
static size_t relay_pids;
static struct token *tokens;
static uint32_t token_count;
static uint32_t daemons = 1, clients_each = 1, window = 1, spread, active, rate, count = 1000, at_once = 1, first_token, token_span;
static size_t size = 1024;
static double seconds = 2, warm_up = 0.5, settle = 2;
static bool prime;
static char *steps = "1000";

/* -- results ---------------------------------------------------------------------------------------- */

static int epoll;
static struct peer *peers;
static uint32_t peer_count, opened, opening, closed, exchanged;
static uint64_t errors, delivered, delivered_bytes;
static bool counting, sending;
static float *samples; /* microseconds */
static size_t sample_count, sample_cap;
static bool talkative;

static uint8_t *scratch;
static char *pool;

static void fatal(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(2);
}

__attribute__((format(printf, 2, 3))) static void wrong(struct peer *p, const char *format, ...) {
    errors++;
    if (!talkative || errors > 5) return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "loadgen: %s %u/%u: ", p->role == DAEMON ? "daemon" : "client", p->pair, p->slot);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random_state = 0x2545F4914F6CDD1Du;
static uint64_t random64(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Du;
}

static void sample(uint64_t since) {
    if (sample_count == sample_cap) {
        sample_cap = sample_cap ? 2 * sample_cap : 1u << 16;
        samples = realloc(samples, sample_cap * sizeof *samples);
        if (!samples) fatal("samples");
    }
    samples[sample_count++] = (float)(now() - since) / 1e3f;
}

/* -- the relay's CPU and memory in /proc -------------------------------------------------------------------------- */

struct usage { double cpu, system; long rss_kb; };

/* A process, its reaped children and the living ones. */
static void add_usage(long pid, struct usage *sum) {
    char path[96], text[4096];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    char *rest = strrchr(text, ')'); /* the name before it may contain any byte */
    unsigned long long user, system, child_user, child_system;
    long rss_pages;
    if (rest && sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %llu %llu %*d %*d %*d %*d %*u %*u %ld",
                       &user, &system, &child_user, &child_system, &rss_pages) == 5) {
        sum->cpu += (double)(user + system + child_user + child_system) / (double)sysconf(_SC_CLK_TCK);
        sum->system += (double)(system + child_system) / (double)sysconf(_SC_CLK_TCK);
        sum->rss_kb += rss_pages * (sysconf(_SC_PAGESIZE) / 1024);
    }
    snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", pid, pid);
    if (!(file = fopen(path, "r"))) return;
    long child;
    while (fscanf(file, "%ld", &child) == 1) add_usage(child, sum);
    fclose(file);
}

static struct usage relay_usage(void) {
    struct usage sum = {0, 0, 0};
    for (size_t i = 0; i < relay_pids; i++) add_usage(relay_pid[i], &sum);
    return sum;
}

static double own_cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* -- bytes out ------------------------------------------------------------------------------------------------ */

static uint8_t *room(struct bytes *b, size_t more) {
    if (b->len + more > b->cap) {
        b->cap = (b->len + more) * 3 / 2;
        b->at = realloc(b->at, b->cap);
        if (!b->at) fatal("memory");
    }
    return b->at + b->len;
}

/* `phase` is the place of the first byte within the frame's payload. */
static void copy_masked(uint8_t *to, const void *from, size_t n, uint32_t mask, size_t phase) {
    typedef uint64_t wide __attribute__((vector_size(32), aligned(1), may_alias));
    const uint8_t *source = from;
    unsigned turn = 8 * (phase & 3);
    uint32_t turned = turn ? mask >> turn | mask << (32 - turn) : mask;
    uint64_t twice = (uint64_t)turned << 32 | turned;
    wide full = {twice, twice, twice, twice};
    size_t i = 0;
    for (; i + 32 <= n; i += 32) *(wide *)(to + i) = *(const wide *)(source + i) ^ full;
    for (; i < n; i++) to[i] = source[i] ^ (uint8_t)(turned >> 8 * (i & 3));
}

struct part { const void *at; size_t len; };

static void put_frame(struct peer *p, enum opcode opcode, const struct part *parts, int n) {
    size_t length = 0;
    for (int i = 0; i < n; i++) length += parts[i].len;
    uint8_t *to = room(&p->out, length + 14), *begin = to;
    *to++ = 0x80 | opcode;
    if (length < 126) {
        *to++ = 0x80 | (uint8_t)length;
    } else {
        int width = length < 65536 ? 2 : 8;
        *to++ = 0x80 | (width == 2 ? 126 : 127);
        for (int shift = 8 * (width - 1); shift >= 0; shift -= 8) *to++ = (uint8_t)((uint64_t)length >> shift);
    }
    uint32_t mask = (uint32_t)(random64() >> 32);
    memcpy(to, &mask, 4); /* little-endian, as copy_masked takes it */
    to += 4;
    size_t phase = 0;
    for (int i = 0; i < n; i++) {
        copy_masked(to + phase, parts[i].at, parts[i].len, mask, phase);
        phase += parts[i].len;
    }
    p->out.len += (size_t)(to - begin) + length;
}

static void put_text(struct peer *p, const char *text, size_t length) {
    put_frame(p, TEXT, &(struct part){text, length}, 1);
}

static void shut(struct peer *p) {
    if (p->state == CLOSED || p->state == UNUSED) return;
    if (p->state == CONNECTING || p->state == UPGRADING) opening--;
    p->state = CLOSED;
    close(p->fd);
    free(p->in.at);
    free(p->out.at);
    p->in = p->out = (struct bytes){0};
    p->out_from = 0;
    closed++;
}

static void watch(struct peer *p, bool write, int how) {
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.u32 = (uint32_t)(p - peers)};
    if (epoll_ctl(epoll, how, p->fd, &e)) fatal("epoll_ctl");
    p->wants_write = write;
}

static void flush(struct peer *p) {
    if (p->state == CLOSED) return;
    while (p->out_from < p->out.len) {
        ssize_t n = send(p->fd, p->out.at + p->out_from, p->out.len - p->out_from, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) break;
            if (p->state != CLOSING) wrong(p, "send: %s", strerror(errno));
            shut(p);
            return;
        }
        p->out_from += (size_t)n;
    }
    if (p->out_from == p->out.len) {
        p->out.len = p->out_from = 0;
    } else if (p->out_from > p->out.cap / 2) {
        memmove(p->out.at, p->out.at + p->out_from, p->out.len -= p->out_from);
        p->out_from = 0;
    }
    bool left = p->out.len > 0;
    if (left != p->wants_write) watch(p, left, EPOLL_CTL_MOD);
}

/* -- the frames ------------------------------------------------------------------------------------------------ */

static const char head_form[] =
    "{\"type\":\"e2ee\",\"version\":2,\"profile\":\"noise-ik\",\"sessionId\":\"s%06u-%06u\",\"epoch\":1,\"seq\":%010llu,"
    "\"iv\":\"%s\",\"tag\":\"bG9hZCBnZW5lcmF0b3IgdA\",\"ciphertext\":\"";
static char heads[2][256]; /* by direction: one of a client, one of a daemon */
static size_t head_length, session_at, seq_at;

static void digits(char *to, uint64_t value, int n) {
    while (n--) {
        to[n] = (char)('0' + value % 10);
        value /= 10;
    }
}

static uint64_t read_digits(const char *from, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value = value * 10 + (uint64_t)(from[i] - '0');
    return value;
}

static void make_texts(void) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    pool = malloc(size + POOL_OFFSETS);
    scratch = malloc(SCRATCH);
    if (!pool || !scratch) fatal("memory");
    for (size_t i = 0; i < size + POOL_OFFSETS; i++) pool[i] = alphabet[random64() >> 58];
    static const char *const ivs[] = {[DAEMON] = "ZnJvbSBkYWVtb24x", [CLIENT] = "ZnJvbSBjbGllbnQx"};
    for (int from = DAEMON; from <= CLIENT; from++)
        head_length = (size_t)snprintf(heads[from], sizeof heads[from], head_form, 0u, 0u, FIRST_SEQ + 0ull, ivs[from]);
    session_at = (size_t)(strstr(heads[0], "\"s0") + 2 - heads[0]);
    seq_at = (size_t)(strstr(heads[0], "\"seq\":") + 6 - heads[0]);
}

static const char *head_of(enum role from, uint32_t pair, uint32_t slot, uint64_t seq) {
    char *head = heads[from];
    digits(head + session_at, pair, 6);
    digits(head + session_at + 7, slot, 6);
    digits(head + seq_at, FIRST_SEQ + seq, 10);
    return head;
}

static const char *ciphertext_of(enum role from, uint32_t pair, uint32_t slot, uint64_t seq) {
    uint64_t h = (seq * 2 + from) * 0x9E3779B97F4A7C15u + pair * 0xC2B2AE3D27D4EB4Fu + slot * 0x165667B19E3779F9u;
    return pool + ((h ^ h >> 29) >> 20) % POOL_OFFSETS;
}

static void put_e2ee(struct peer *p, enum role from, uint32_t pair, uint32_t slot, uint64_t seq) {
    struct part parts[] = {
        {head_of(from, pair, slot, seq), head_length}, {ciphertext_of(from, pair, slot, seq), size}, {"\"}", 2}};
    put_frame(p, TEXT, parts, 3);
}

static bool is_e2ee(enum role from, uint32_t pair, uint32_t slot, uint64_t seq, const char *text, size_t n) {
    return n == head_length + size + 2 && !memcmp(text, head_of(from, pair, slot, seq), head_length) &&
           !memcmp(text + head_length, ciphertext_of(from, pair, slot, seq), size) &&
           !memcmp(text + head_length + size, "\"}", 2);
}

static struct peer *client(uint32_t pair, uint32_t slot) { return &peers[daemons + pair * clients_each + slot]; }

static void send_next(struct peer *p) {
    p->sent++;
    p->sent_at[p->sent % window] = now();
    put_e2ee(p, CLIENT, p->pair, p->slot, p->sent);
}

static void delivered_frame(size_t n) {
    if (counting) {
        delivered++;
        delivered_bytes += n;
    }
}

/* A client's frame has reached its daemon: send the response. */
static void at_daemon(struct peer *p, const char *text, size_t n) {
    if (n < head_length) {
        wrong(p, "short frame: %.*s", (int)n, text);
        return;
    }
    uint64_t slot = read_digits(text + session_at + 7, 6);
    if (slot >= clients_each) {
        wrong(p, "a session of no client: %.*s", (int)head_length, text);
        return;
    }
    struct peer *from = client(p->pair, (uint32_t)slot);
    uint64_t seq = from->seen_by_daemon + 1;
    if (!is_e2ee(CLIENT, p->pair, (uint32_t)slot, seq, text, n)) {
        wrong(p, "not frame %llu of its session: %.*s", (unsigned long long)seq, (int)head_length, text);
        return;
    }
    from->seen_by_daemon = seq;
    delivered_frame(n);
    put_e2ee(p, DAEMON, p->pair, (uint32_t)slot, seq);
}

/* With `spread` the frames in flight rotate over all clients, or the first `active` ones; else each client has its own. */
static struct peer *whose_turn(struct peer *p) {
    static uint32_t turn;
    if (!spread) return p;
    uint32_t all = active ? active : daemons * clients_each;
    for (uint32_t tried = 0; tried < all; tried++) {
        struct peer *next = &peers[daemons + turn++ % all];
        if (next->sent - next->answered < window) return next;
    }
    return p;
}

static void at_client(struct peer *p, const char *text, size_t n) {
    uint64_t seq = p->answered + 1;
    if (seq > p->seen_by_daemon || !is_e2ee(DAEMON, p->pair, p->slot, seq, text, n)) {
        wrong(p, "not answer %llu: %.*s", (unsigned long long)seq, (int)(n < head_length ? n : head_length), text);
        return;
    }
    p->answered = seq;
    delivered_frame(n);
    if (counting) sample(p->sent_at[seq % window]);
    if (sending && !rate) {
        struct peer *next = whose_turn(p);
        send_next(next);
        if (next != p) flush(next);
    }
}

static void ask_key_exchange(struct peer *p) {
    char text[400];
    int n = snprintf(text, sizeof text,
                     "{\"type\":\"relay_key_exchange_init\",\"version\":3,\"profile\":\"noise-ik\",\"requestId\":\"r%06u-%06u\","
                     "\"clientEphemeralPublicKey\":\"bG9hZA\",\"encryptedClientStatic\":\"Z2VuZXJhdG9y\"}",
                     p->pair, p->slot);
    put_text(p, text, (size_t)n);
}

static void on_text(struct peer *p, const char *text, size_t n) {
    static const char e2ee[] = "{\"type\":\"e2ee\"";
    static const char init[] = "{\"type\":\"relay_key_exchange_init\"";
    static const char response[] = "{\"type\":\"relay_key_exchange_response\"";
    if (n > sizeof e2ee && !memcmp(text, e2ee, sizeof e2ee - 1)) {
        p->role == DAEMON ? at_daemon(p, text, n) : at_client(p, text, n);
    } else if (p->role == DAEMON && n > sizeof init && !memcmp(text, init, sizeof init - 1)) {
        const char *id = memmem(text, n, "\"requestId\":\"r", 14);
        if (!id) {
            wrong(p, "init without a requestId");
            return;
        }
        char answer[500];
        int length = snprintf(answer, sizeof answer,
                              "%s,\"version\":3,\"profile\":\"noise-ik\",\"requestId\":\"r%.13s\",\"daemonPublicKey\":\"bG9hZA\","
                              "\"daemonEphemeralPublicKey\":\"bG9hZA\",\"encryptedMetadata\":\"bG9hZA\",\"sessionId\":\"s%.13s\","
                              "\"epoch\":1,\"proof\":\"bG9hZA\"}",
                              response, id + 14, id + 14);
        put_text(p, answer, (size_t)length);
    } else if (p->role == CLIENT && n > sizeof response && !memcmp(text, response, sizeof response - 1)) {
        exchanged++;
    } else {
        wrong(p, "unexpected frame: %.*s", (int)(n < 300 ? n : 300), text);
    }
}

/* -- bytes in ---------------------------------------------------------------------------------------------------- */

static void send_upgrade(struct peer *p) {
    struct token *t = &tokens[p->token];
    p->state = UPGRADING;
    uint8_t *to = room(&p->out, 8192);
    p->out.len += (size_t)snprintf((char *)to, 8192,
        "GET /ws?role=%s&workspaceId=%s&runtimeTargetId=%s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer %s\r\n\r\n",
        t->role == DAEMON ? "workspace-daemon" : "client", t->workspace, t->target, host_header, t->text);
    flush(p);
}

static void upgraded(struct peer *p);

/* The bytes of the answer's head, 0 while it is incomplete. */
static size_t read_head(struct peer *p, const uint8_t *at, size_t n) {
    const uint8_t *end = memmem(at, n, "\r\n\r\n", 4);
    if (!end) return 0;
    /* The accept value belongs to the key above (the example of RFC 6455). */
    if (memcmp(at, "HTTP/1.1 101 ", 13) || !memmem(at, (size_t)(end - at), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) {
        wrong(p, "refused: %.*s", (int)(n < 600 ? n : 600), (const char *)at);
        shut(p);
        return 0;
    }
    upgraded(p);
    return (size_t)(end + 4 - at);
}

static void on_frame(struct peer *p, int first, const uint8_t *payload, size_t n) {
    if ((first & 0xf0) != 0x80) {
        wrong(p, "fragment or reserved bits: %02x", first);
        return;
    }
    switch (first & 15) {
    case TEXT:
        if (p->state == OPEN) on_text(p, (const char *)payload, n);
        break;
    case PING:
        if (p->state == OPEN) put_frame(p, PONG, &(struct part){payload, n}, 1);
        break;
    case PONG:
        break;
    case CLOSE:
        if (p->state != CLOSING) {
            wrong(p, "closed: %d %.*s", n > 1 ? payload[0] << 8 | payload[1] : 0, (int)(n > 2 ? n - 2 : 0), (const char *)payload + 2);
            shut(p);
        }
        break;
    default:
        wrong(p, "opcode %d", first & 15);
    }
}

/* Handles complete frames; returns the bytes used, and in `needed` the length of the incomplete frame. */
static size_t handle(struct peer *p, const uint8_t *at, size_t n, size_t *needed) {
    size_t used = 0;
    *needed = 0;
    if (p->state == UPGRADING) {
        used = read_head(p, at, n);
        if (!used) return 0;
    }
    while (p->state != CLOSED && n - used >= 2) {
        const uint8_t *f = at + used;
        size_t head = 2, length = f[1] & 0x7f, left = n - used;
        if (f[1] & 0x80) {
            wrong(p, "masked frame");
            shut(p);
            break;
        }
        if (length >= 126) {
            int width = length == 126 ? 2 : 8;
            head += (size_t)width;
            if (left < head) break;
            length = 0;
            for (int i = 0; i < width; i++) length = length << 8 | f[2 + i];
        }
        if (left < head + length) {
            *needed = head + length;
            break;
        }
        on_frame(p, f[0], f + head, length);
        used += head + length;
    }
    return used;
}

static void read_peer(struct peer *p) {
    for (;;) {
        bool kept = p->in.len > 0;
        size_t space = SCRATCH, needed;
        uint8_t *into = scratch;
        if (kept) {
            room(&p->in, 1);
            into = p->in.at + p->in.len;
            space = p->in.cap - p->in.len;
        }
        ssize_t n = recv(p->fd, into, space, 0);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            if (p->state != CLOSING) wrong(p, "lost: %s", n ? strerror(errno) : "end of stream");
            shut(p);
            return;
        }
        const uint8_t *from = kept ? p->in.at : scratch;
        size_t have = kept ? p->in.len + (size_t)n : (size_t)n;
        size_t used = handle(p, from, have, &needed);
        if (p->state == CLOSED) return;
        size_t left = have - used;
        if (kept) {
            if (used && left) memmove(p->in.at, p->in.at + used, left);
        } else if (left) {
            memcpy(room(&p->in, left), scratch + used, left);
        }
        p->in.len = left;
        if (needed > p->in.cap) room(&p->in, needed + 4096 - left);
        if ((size_t)n < space) break;
    }
    flush(p);
}

/* -- opening, and one turn of the loop --------------------------------------------------------------------------------- */

static void start(struct peer *p, enum role role, uint32_t pair, uint32_t slot, uint32_t token) {
    if (token >= token_count) {
        errno = 0;
        fatal("not enough tokens");
    }
    *p = (struct peer){.role = role, .pair = pair, .slot = slot, .token = token, .state = CONNECTING, .opened_at = now()};
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (p->fd < 0) fatal("socket");
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct sockaddr_in *to = role == CLIENT ? &clients_relay : &relay;
    if (connect(p->fd, (struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) fatal("connect");
    watch(p, true, EPOLL_CTL_ADD);
    opening++;
}

static bool closes_when_open;

static void upgraded(struct peer *p) {
    p->state = OPEN;
    opening--;
    opened++;
    if (closes_when_open) {
        if (counting) sample(p->opened_at);
        put_frame(p, CLOSE, &(struct part){"\x03\xe8", 2}, 1);
        p->state = CLOSING;
    }
}

static void turn(int wait_ms) {
    static struct epoll_event events[512];
    int n = epoll_wait(epoll, events, 512, wait_ms);
    for (int i = 0; i < n; i++) {
        struct peer *p = &peers[events[i].data.u32];
        if (p->state == CLOSED) continue;
        if (p->state == CONNECTING) {
            int error = 0;
            getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
            if (error) {
                wrong(p, "connect: %s", strerror(error));
                shut(p);
            } else {
                send_upgrade(p);
            }
            continue;
        }
        if (events[i].events & EPOLLOUT) flush(p);
        if (p->state != CLOSED && events[i].events & ~(uint32_t)EPOLLOUT) read_peer(p);
    }
}

/* With `rate` clients send in turn at fixed times, without waiting for responses; a client with a full window is skipped. */
static void send_due(uint64_t t) {
    static uint64_t due;
    static uint32_t next;
    uint32_t all = daemons * clients_each;
    if (!due || t > due + 1000000000u) due = t;
    for (; due <= t; due += 2000000000u / rate) { /* a round trip is two frames */
        for (uint32_t tried = 0; tried < all; tried++) {
            struct peer *p = &peers[daemons + next++ % all];
            if (p->sent - p->answered >= window) continue;
            send_next(p);
            flush(p);
            break;
        }
    }
}

static void run_for(double s) {
    uint64_t end = now() + (uint64_t)(s * 1e9);
    for (uint64_t t = now(); t < end; t = now()) {
        uint64_t left = (end - t) / 1000000;
        if (rate && sending) send_due(t);
        turn(rate ? 1 : left > 10 ? 10 : (int)left);
    }
}

static void too_late(uint64_t since, double limit, const char *what) {
    if ((double)(now() - since) / 1e9 < limit) return;
    fprintf(stderr, "loadgen: %s took more than %.0f s (%u open, %llu errors)\n", what, limit, opened, (unsigned long long)errors);
    exit(2);
}

/* -- output --------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) {
    if (!sample_count) return 0;
    size_t i = (size_t)(share * (double)sample_count);
    return (double)samples[i < sample_count ? i : sample_count - 1];
}

static void print_times(void) {
    qsort(samples, sample_count, sizeof *samples, by_size);
    printf("\"p50_us\":%.1f,\"p95_us\":%.1f,\"p99_us\":%.1f,", percentile(.5), percentile(.95), percentile(.99));
}

/* -- the modes ------------------------------------------------------------------------------------------------------------ */

static void throughput(void) {
    uint32_t all = daemons * clients_each;
    peer_count = daemons + all;
    peers = calloc(peer_count, sizeof *peers);
    uint64_t began = now();
    for (uint32_t i = 0; i < peer_count || opening;) {
        /* All daemons first: a client without a daemon would get a status frame. */
        bool gate = i == daemons && opening;
        while (!gate && i < peer_count && opening < OPENING_AT_ONCE && !(i == daemons && opening)) {
            uint32_t pair = i < daemons ? i : (i - daemons) / clients_each;
            if (i < daemons) start(&peers[i], DAEMON, pair, 0, 2 * pair);
            else start(&peers[i], CLIENT, pair, (i - daemons) % clients_each, 2 * pair + 1);
            i++;
        }
        turn(100);
        too_late(began, GIVE_UP, "opening");
        if (errors) exit(1);
    }
    for (uint32_t i = daemons; i < peer_count; i++) {
        struct peer *p = &peers[i];
        p->sent_at = calloc(window, sizeof *p->sent_at);
        ask_key_exchange(p);
        flush(p);
    }
    for (began = now(); exchanged < all; turn(100)) too_late(began, 30, "key exchange");
    sending = true;
    if (rate) {
        /* `run_for` sends */
    } else if (spread) {
        for (uint32_t i = 0; i < spread; i++) {
            struct peer *p = whose_turn(&peers[daemons]);
            send_next(p);
            flush(p);
        }
    } else {
        for (uint32_t i = daemons; i < peer_count; i++) {
            for (uint32_t k = 0; k < window; k++) send_next(&peers[i]);
            flush(&peers[i]);
        }
    }
    run_for(warm_up);
    struct usage before = relay_usage();
    double own = own_cpu();
    uint64_t since = now();
    counting = true;
    run_for(seconds);
    counting = false;
    double passed = (double)(now() - since) / 1e9;
    struct usage after = relay_usage();
    own = own_cpu() - own;
    sending = false;
    uint64_t last = UINT64_MAX;
    for (since = now(); now() - since < 3000000000u; turn(50)) { /* frames in flight must still arrive */
        uint64_t waiting = 0;
        for (uint32_t i = daemons; i < peer_count; i++) waiting += peers[i].sent - peers[i].answered;
        if (!waiting) break;
        if (waiting < last) last = waiting, since = now();
    }
    for (uint32_t i = daemons; i < peer_count; i++)
        if (peers[i].answered < peers[i].sent) wrong(&peers[i], "%llu answers are missing", (unsigned long long)(peers[i].sent - peers[i].answered));
    double cpu = after.cpu - before.cpu;
    printf("{\"daemons\":%u,\"clients\":%u,\"size\":%zu,\"window\":%u,\"spread\":%u,\"seconds\":%.3f,\"frames\":%llu,"
           "\"frames_per_s\":%.1f,\"mb_per_s\":%.2f,",
           daemons, all, size, window, spread, passed, (unsigned long long)delivered, (double)delivered / passed,
           (double)delivered_bytes / passed / 1e6);
    print_times();
    printf("\"cpu_s\":%.2f,\"cpu_s_per_100k\":%.4f,\"system_s_per_100k\":%.4f,\"cpu_share\":%.3f,\"loadgen_cpu_share\":%.3f,\"rss_kb\":%ld,\"errors\":%llu}\n",
           cpu, delivered ? cpu * 1e5 / (double)delivered : 0,
           delivered ? (after.system - before.system) * 1e5 / (double)delivered : 0, cpu / passed, own / passed, after.rss_kb, (unsigned long long)errors);
}

/* `n` upgrades with the tokens of the span in turn, `k` at a time; returns when all are closed again. */
static void upgrades(uint32_t n, uint32_t k) {
    uint32_t started = 0, closed_before = closed;
    uint64_t began = now();
    while (closed - closed_before < n) {
        while (started < n && opening < k) {
            start(&peers[started], CLIENT, started, 0, first_token + started % token_span);
            started++;
        }
        turn(100);
        too_late(began, GIVE_UP, "upgrades");
    }
}

static void connect_mode(void) {
    if (!token_span) token_span = count;
    uint32_t most = count > token_span ? count : token_span;
    peers = calloc(most, sizeof *peers);
    closes_when_open = true;
    if (prime) upgrades(token_span, 8);
    struct usage before = relay_usage();
    double own = own_cpu();
    uint64_t since = now();
    counting = true;
    upgrades(count, at_once);
    double passed = (double)(now() - since) / 1e9;
    usleep(20000); /* the relay's clean-up after the last one */
    struct usage after = relay_usage();
    printf("{\"count\":%u,\"at_once\":%u,\"tokens\":%u,\"seconds\":%.3f,\"ok\":%zu,\"upgrades_per_s\":%.1f,", count, at_once, token_span,
           passed, sample_count, (double)sample_count / passed);
    print_times();
    printf("\"cpu_s\":%.2f,\"cpu_ms_per_upgrade\":%.4f,\"loadgen_cpu_share\":%.3f,\"errors\":%llu}\n", after.cpu - before.cpu,
           sample_count ? (after.cpu - before.cpu) * 1e3 / (double)sample_count : 0, (own_cpu() - own) / passed, (unsigned long long)errors);
}

static void idle(void) {
    char *list = strdup(steps), *more;
    uint32_t most = 0;
    for (char *s = strtok_r(list, ",", &more); s; s = strtok_r(NULL, ",", &more)) most = (uint32_t)atoi(s) > most ? (uint32_t)atoi(s) : most;
    peers = calloc(most + 1, sizeof *peers);
    token_span = 50;
    closes_when_open = true;
    upgrades(50, 8); /* warm-up: one-time loading and allocation do not count */
    closes_when_open = false;
    opened = closed = 0;
    run_for(settle);
    long base = relay_usage().rss_kb;
    printf("{\"rss_kb_before\":%ld,\"steps\":[", base);
    uint64_t began = now();
    strcpy(list, steps);
    for (char *s = strtok_r(list, ",", &more); s; s = strtok_r(NULL, ",", &more)) {
        uint32_t target = (uint32_t)atoi(s);
        while (peer_count < target || opening) {
            while (peer_count < target && opening < OPENING_AT_ONCE) {
                start(&peers[peer_count], tokens[peer_count].role, peer_count / 2, 0, peer_count);
                peer_count++;
            }
            turn(100);
            too_late(began, GIVE_UP, "opening");
        }
        run_for(settle);
        struct usage before = relay_usage();
        run_for(seconds);
        struct usage after = relay_usage();
        long most_rss = after.rss_kb > before.rss_kb ? after.rss_kb : before.rss_kb;
        printf("%s{\"connections\":%u,\"rss_kb\":%ld,\"kb_per_connection\":%.3f,\"cpu_share\":%.4f}", s == list ? "" : ",", target,
               most_rss, (double)(most_rss - base) / target, (after.cpu - before.cpu) / seconds);
    }
    printf("],\"errors\":%llu}\n", (unsigned long long)errors);
}

/* -- the command line ------------------------------------------------------------------------------------------------------- */

/* A line has role, workspace, target and token, separated by tabs. */
static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) fatal(path);
    char *line = NULL;
    size_t cap = 0;
    uint32_t most = 0;
    while (getline(&line, &cap, file) > 0) {
        char *more, *role = strtok_r(line, "\t", &more), *workspace = strtok_r(NULL, "\t", &more), *target = strtok_r(NULL, "\t", &more),
             *text = strtok_r(NULL, "\t\n", &more);
        if (!text) continue;
        if (token_count == most) tokens = realloc(tokens, (most = most ? 2 * most : 256) * sizeof *tokens);
        tokens[token_count++] = (struct token){strcmp(role, "client") ? DAEMON : CLIENT, strdup(workspace), strdup(target), strdup(text)};
    }
    fclose(file);
    free(line);
}

static const char usage[] =
    "usage: loadgen throughput|connect|idle --port N --pid N --tokens FILE [--host IPV4] [--client-port N] [-v]\n"
    "  throughput  --daemons D --clients C (of each daemon) --size BYTES (of ciphertext) --window N (in flight of a client)\n"
    "              --spread N (in flight of all clients together) --active N (clients that send) --seconds S --warm-up S\n"
    "              --rate N (frames a second of all clients together, sent at fixed times)\n"
    "  connect     --count N --at-once K --first-token N --span N (tokens used in turn) --prime (use each once before)\n"
    "  idle        --steps N,N... --settle S --seconds S\n";

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"client-port", 1, 0, 'q'}, {"pid", 1, 0, 'P'}, {"tokens", 1, 0, 'T'}, {"daemons", 1, 0, 'D'},
        {"clients", 1, 0, 'C'}, {"size", 1, 0, 's'}, {"window", 1, 0, 'w'}, {"spread", 1, 0, 'F'}, {"active", 1, 0, 'A'}, {"seconds", 1, 0, 't'},
        {"warm-up", 1, 0, 'W'}, {"count", 1, 0, 'n'}, {"at-once", 1, 0, 'c'}, {"first-token", 1, 0, 'f'}, {"span", 1, 0, 'S'},
        {"prime", 0, 0, 'r'}, {"steps", 1, 0, 'N'}, {"rate", 1, 0, 'R'}, {"settle", 1, 0, 'l'}, {"verbose", 0, 0, 'v'}, {0, 0, 0, 0}};
    const char *host = "127.0.0.1";
    int port = 0, client_port = 0, option;
    while ((option = getopt_long(argc, argv, "v", options, NULL)) != -1) switch (option) {
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'q': client_port = atoi(optarg); break;
        case 'P': if (relay_pids < sizeof relay_pid / sizeof *relay_pid) relay_pid[relay_pids++] = atol(optarg); break;
        case 'T': read_tokens(optarg); break;
        case 'D': daemons = (uint32_t)atoi(optarg); break;
        case 'C': clients_each = (uint32_t)atoi(optarg); break;
        case 's': size = strtoul(optarg, NULL, 10); break;
        case 'w': window = (uint32_t)atoi(optarg); break;
        case 'F': spread = (uint32_t)atoi(optarg); break;
        case 'A': active = (uint32_t)atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'W': warm_up = atof(optarg); break;
        case 'n': count = (uint32_t)atoi(optarg); break;
        case 'c': at_once = (uint32_t)atoi(optarg); break;
        case 'f': first_token = (uint32_t)atoi(optarg); break;
        case 'S': token_span = (uint32_t)atoi(optarg); break;
        case 'r': prime = true; break;
        case 'N': steps = optarg; break;
        case 'R': rate = (uint32_t)atoi(optarg); break;
        case 'l': settle = atof(optarg); break;
        case 'v': talkative = true; break;
        default: fputs(usage, stderr); return 2;
    }
    const char *mode = optind < argc ? argv[optind] : "";
    if (!port || !token_count || !window || !daemons || !clients_each || !size || (spread && spread > (active ? active : daemons * clients_each) * window) || active > daemons * clients_each || (active && !spread)) {
        fputs(usage, stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    relay = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &relay.sin_addr) != 1) fatal("--host is no IPv4 address");
    clients_relay = relay;
    if (client_port) clients_relay.sin_port = htons((uint16_t)client_port);
    snprintf(host_header, sizeof host_header, "%s:%d", host, port);
    random_state ^= now();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    make_texts();
    if (!strcmp(mode, "throughput")) throughput();
    else if (!strcmp(mode, "connect")) connect_mode();
    else if (!strcmp(mode, "idle")) idle();
    else {
        fputs(usage, stderr);
        return 2;
    }
    return errors ? 1 : 0;
}
