/* reframe.c: a minimal relay, as the lower limit of the cost: unmask, write a new header, forward.
 *
 * It checks nothing, admits every peer, and has one client for each daemon (paired by workspaceId). Its queues have
 * no bounds. Only for throughput with one client per daemon.
 *
 * usage: reframe PORT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEPT (2u << 20) /* bytes of an incomplete frame */
#define ROOMS 8192

struct peer { int fd, open; uint32_t room; int daemon; uint8_t *kept; size_t have; uint8_t *out; size_t out_at, out_len; };
struct room { char name[160]; struct peer *ends[2]; };

static struct room rooms[ROOMS];
static uint32_t room_count;
static int epoll;
static uint8_t scratch[256u << 10];

static void watch(struct peer *p, uint32_t events, int how) {
    struct epoll_event e = {.events = events, .data.ptr = p};
    epoll_ctl(epoll, how, p->fd, &e);
}

static void push(struct peer *to, const uint8_t *at, size_t n) {
    if (!to->out_len) {
        ssize_t sent = send(to->fd, at, n, MSG_NOSIGNAL);
        if (sent < 0) sent = 0;
        at += sent;
        n -= (size_t)sent;
        if (!n) return;
        watch(to, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    to->out = realloc(to->out, to->out_len + n);
    memcpy(to->out + to->out_len, at, n);
    to->out_len += n;
}

static void push_kept(struct peer *p) {
    ssize_t sent = send(p->fd, p->out + p->out_at, p->out_len - p->out_at, MSG_NOSIGNAL);
    if (sent > 0) p->out_at += (size_t)sent;
    if (p->out_at < p->out_len) return;
    p->out_at = p->out_len = 0;
    watch(p, EPOLLIN, EPOLL_CTL_MOD);
}

/* Consecutive frames of one read are sent in one write: the new header ends where the old one did. */
static size_t forward(struct peer *p, uint8_t *at, size_t n) {
    struct peer *to = rooms[p->room].ends[!p->daemon];
    size_t used = 0, out = 0;
    while (n - used >= 6) {
        uint8_t *f = at + used;
        size_t head = 2, length = f[1] & 127;
        if (length == 126) { length = (size_t)f[2] << 8 | f[3]; head = 4; }
        else if (length == 127) {
            if (n - used < 14) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | f[i];
            head = 10;
        }
        if (n - used < head + 4 + length) break;
        uint32_t mask;
        memcpy(&mask, f + head, 4);
        uint64_t wide = (uint64_t)mask << 32 | mask;
        uint8_t *payload = f + head + 4;
        size_t i = 0;
        for (; i + 8 <= length; i += 8) {
            uint64_t v;
            memcpy(&v, payload + i, 8);
            v ^= wide;
            memcpy(payload + i, &v, 8);
        }
        for (; i < length; i++) payload[i] ^= (uint8_t)(mask >> 8 * (i & 3));
        if ((f[0] & 15) == 1) {
            f[1] &= 127;
            memmove(at + out, f, head);
            memmove(at + out + head, payload, length);
            out += head + length;
        }
        used += head + 4 + length;
    }
    if (to && out) push(to, at, out);
    return used;
}

static void upgrade(struct peer *p, const char *request) {
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                 "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const char *name = strstr(request, "workspaceId=") + 12;
    size_t length = strcspn(name, "& ");
    uint32_t i = 0;
    while (i < room_count && (strncmp(rooms[i].name, name, length) || rooms[i].name[length])) i++;
    if (i == room_count) memcpy(rooms[room_count++].name, name, length < 159 ? length : 159);
    p->daemon = strstr(request, "role=workspace-daemon") != NULL;
    p->room = i;
    rooms[i].ends[p->daemon] = p;
    p->open = 1;
    push(p, (const uint8_t *)answer, sizeof answer - 1);
}

static void drop(struct peer *p) {
    if (p->open && rooms[p->room].ends[p->daemon] == p) rooms[p->room].ends[p->daemon] = NULL;
    close(p->fd);
    free(p->kept);
    free(p->out);
    free(p);
}

static void take(struct peer *p) {
    uint8_t *into = p->have ? p->kept + p->have : scratch;
    ssize_t n = recv(p->fd, into, p->have ? KEPT - p->have : sizeof scratch - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        drop(p);
        return;
    }
    if (!p->open) {
        scratch[n] = 0;
        upgrade(p, (char *)scratch);
        return;
    }
    uint8_t *from = p->have ? p->kept : scratch;
    size_t have = p->have + (size_t)n, used = forward(p, from, have);
    p->have = have - used;
    if (!p->have) return;
    if (!p->kept) p->kept = malloc(KEPT);
    memmove(p->kept, from + used, p->have);
}

int main(int argc, char **argv) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0)),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024)) {
        perror("reframe");
        return 2;
    }
    epoll = epoll_create1(0);
    struct epoll_event events[256], one = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &one);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (p) {
                if (events[i].events & EPOLLOUT) push_kept(p);
                if (events[i].events & ~(uint32_t)EPOLLOUT) take(p);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
                p = calloc(1, sizeof *p);
                p->fd = fd;
                watch(p, EPOLLIN, EPOLL_CTL_ADD);
            }
        }
    }
}
