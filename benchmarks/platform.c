/* platform.c: control plane for benchmarks: one thread, HTTP/1.1 with kept-alive connections.
 *
 *   POST …/relay/validate   {"ok":true,"claims":{…}}, with the claims of the token; 401 without the
 *                           internal key in x-relay-internal-key
 *   GET  …/jwks.json        the key set
 *   GET  /counts            {"validate":N,"jwks":N}: numbers of requests
 *
 * It admits every token, without a check of the signature: that is the relay's task.
 *
 * usage: platform PORT JWKS_FILE INTERNAL_KEY
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUEST_MAX 32768

struct connection {
    int fd;
    size_t have;
    char text[REQUEST_MAX + 1];
};

static char jwks[65536];
static const char *internal_key;
static unsigned long validated, jwks_served;

static void answer(struct connection *c, const char *status, const char *body) {
    static char out[REQUEST_MAX + 65536];
    int n = snprintf(out, sizeof out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                     strlen(body), body);
    if (send(c->fd, out, (size_t)n, MSG_NOSIGNAL) != n) shutdown(c->fd, SHUT_RDWR);
}

/* base64url (RFC 4648 section 5) without padding; gives the length, or -1. */
static int decode(const char *from, size_t n, char *to) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0;
    int held = 0, length = 0;
    for (size_t i = 0; i < n; i++) {
        const char *found = from[i] ? strchr(alphabet, from[i]) : NULL;
        if (!found) return -1;
        bits = bits << 6 | (uint32_t)(found - alphabet);
        held += 6;
        if (held >= 8) {
            held -= 8;
            to[length++] = (char)(bits >> held);
        }
    }
    return length;
}

static void validate(struct connection *c, const char *head, const char *body) {
    static const char refusal[] = "{\"ok\":false,\"reason\":\"INTERNAL_KEY_MISMATCH\"}";
    static char out[REQUEST_MAX + 64];
    const char *key = strcasestr(head, "\r\nx-relay-internal-key:");
    if (key) key += 23 + strspn(key + 23, " ");
    if (!key || strncmp(key, internal_key, strlen(internal_key)) || key[strlen(internal_key)] != '\r') {
        answer(c, "401 Unauthorized", refusal);
        return;
    }
    const char *token = strstr(body, "\"relayToken\"");
    if (token) token = strchr(token + 12, '"');
    const char *payload = token ? strchr(token + 1, '.') : NULL;
    size_t length = payload ? strcspn(payload + 1, ".\"") : 0;
    int n = sprintf(out, "{\"ok\":true,\"claims\":");
    int claims = payload && payload[1 + length] == '.' ? decode(payload + 1, length, out + n) : -1;
    if (claims < 2) {
        answer(c, "400 Bad Request", "{\"ok\":false,\"reason\":\"BAD_REQUEST\"}");
        return;
    }
    strcpy(out + n + claims, "}");
    validated++;
    answer(c, "200 OK", out);
}

static void serve(struct connection *c, char *head, const char *body) {
    char counts[96];
    if (!strncmp(head, "POST ", 5)) {
        validate(c, head, body);
    } else if (!strncmp(head, "GET /counts ", 12)) {
        snprintf(counts, sizeof counts, "{\"validate\":%lu,\"jwks\":%lu}", validated, jwks_served);
        answer(c, "200 OK", counts);
    } else {
        jwks_served++;
        answer(c, "200 OK", jwks);
    }
}

/* 0: close the connection. */
static int take(struct connection *c) {
    ssize_t n = recv(c->fd, c->text + c->have, REQUEST_MAX - c->have, 0);
    if (n < 0 && errno == EAGAIN) return 1;
    if (n <= 0) return 0;
    c->have += (size_t)n;
    c->text[c->have] = 0;
    for (;;) {
        char *end = strstr(c->text, "\r\n\r\n");
        if (!end) return c->have < REQUEST_MAX;
        char *body = end + 4, *length_at = strcasestr(c->text, "\r\ncontent-length:");
        size_t length = length_at && length_at < end ? strtoul(length_at + 17, NULL, 10) : 0;
        size_t whole = (size_t)(body - c->text) + length;
        if (whole > REQUEST_MAX) return 0;
        if (c->have < whole) return 1;
        char next = c->text[whole];
        c->text[whole] = 0;
        serve(c, c->text, body);
        c->text[whole] = next;
        memmove(c->text, c->text + whole, c->have -= whole);
        c->text[c->have] = 0;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fputs("usage: platform PORT JWKS_FILE INTERNAL_KEY\n", stderr);
        return 2;
    }
    FILE *file = fopen(argv[2], "r");
    if (!file || !fread(jwks, 1, sizeof jwks - 1, file)) {
        perror(argv[2]);
        return 2;
    }
    fclose(file);
    internal_key = argv[3];
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    struct sockaddr_in here = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024)) {
        perror("platform");
        return 2;
    }
    int epoll = epoll_create1(0);
    struct epoll_event events[64], one = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &one);
    for (;;) {
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) {
                if (!take(c)) {
                    close(c->fd);
                    free(c);
                }
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
                c = malloc(sizeof *c);
                c->fd = fd;
                c->have = 0;
                one.data.ptr = c;
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &one);
            }
        }
    }
}
