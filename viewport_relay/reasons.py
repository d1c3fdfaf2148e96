"""Every reason for which the relay refuses, closes or drops, in one table.

A reason's code is stable: operators alert on it. The text is what the log line, the HTTP body and, where
the wire protocol says so, the close frame say. `docs/reference/reasons.md` and `viewport-relay explain`
are made from this table. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from attrs import Factory, define, frozen

Level = Literal["info", "warn", "error"]


class CloseCode:
    """Close codes the relay sends (RFC 6455 section 7.4; 4000-4999 are the application's own)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_PAYLOAD = 1007
    TOO_BIG = 1009
    TRY_AGAIN_LATER = 1013
    POLICY = 4008
    INVALID_TOKEN = 4401
    WORKSPACE_NOT_FOUND = 4403


@frozen
class Entry:
    """A reason's texts, status and close code.

    `text` is the documented wording. `status` is the HTTP status when it refuses an upgrade (0: it never
    does). `close` is the close code when it ends a connection or a browser's upgrade (0: it never does), with
    `close_text` as the reason of the close frame. `cause` and `fix` are for the operator.

    `level` follows one rule: "error" is the fault of the relay, its surroundings or the platform, "warn" a peer's, and
    "info" is everything else.
    """

    text: str
    status: int = 0
    close: int = 0
    close_text: str = ""
    level: Level = "warn"
    cause: str = ""
    fix: str = ""


def _token(text: str, cause: str, fix: str) -> Entry:
    return Entry(text, 401, CloseCode.INVALID_TOKEN, "invalid_token", "warn", cause, fix)


def _platform(text: str, status: int, cause: str, fix: str) -> Entry:
    return Entry(text, status, CloseCode.TRY_AGAIN_LATER, "try again later", "error", cause, fix)


def _close(text: str, cause: str, fix: str, level: Level = "warn") -> Entry:
    return Entry(text, 0, CloseCode.POLICY, text, level, cause, fix)


def _drop(text: str, cause: str, fix: str, level: Level = "warn") -> Entry:
    return Entry(text, level=level, cause=cause, fix=fix)


def _upgrade(text: str, status: int, cause: str, fix: str, level: Level = "warn") -> Entry:
    return Entry(text, status, 0, "", level, cause, fix)


class Reason(Enum):
    """The catalogue. A member's name is the code that logs, headers and metrics carry."""

    # -- refused by the checks that ask nothing of the platform ----------------------------------------
    RATE_LIMIT_EXCEEDED = _upgrade(
        "rate limit exceeded", 429,
        "one address made more upgrade attempts within a minute than RELAY_RATE_LIMIT_PER_IP allows",
        "find the peer that reconnects in a loop (its IP is in the details); raise RELAY_RATE_LIMIT_PER_IP, "
        "or 0 turns the limit off; behind a proxy set RELAY_TRUSTED_PROXIES, or all peers share one address",
    )  # fmt: skip
    HTTP_RATE_LIMIT_EXCEEDED = _upgrade(
        "HTTP rate limit exceeded", 429,
        "one address made more plain HTTP requests within a minute than RELAY_HTTP_RATE_PER_IP (default 1200) allows",
        "find who asks so often (the IP is in the details); let scrapers send an admin token, which is not counted; "
        "behind a proxy set RELAY_TRUSTED_PROXIES, or all clients share one address",
    )  # fmt: skip
    CONNECTION_RATE_LIMIT_EXCEEDED = _drop(
        "connection rate limit exceeded",
        "one address opened more connections within a minute than RELAY_RATE_LIMIT_PER_IP and RELAY_HTTP_RATE_PER_IP "
        "allow together (default 1320), or went on after many answers 429; its new connections are closed before TLS and HTTP",
        "find the peer that comes back in a loop (its IP is in the details); the address may connect again when its minute "
        "is over; many peers behind one address need a higher RELAY_RATE_LIMIT_PER_IP; behind a proxy set "
        "RELAY_TRUSTED_PROXIES, or all peers share one address",
    )  # fmt: skip
    TOO_MANY_CONNECTIONS = _upgrade(
        "too many connections", 503,
        "the relay holds RELAY_MAX_TOTAL_CONNECTIONS connections",
        "raise RELAY_MAX_TOTAL_CONNECTIONS (and the limit on open files), or add a relay", "error",
    )  # fmt: skip
    TOO_MANY_CONNECTIONS_PER_IP = _upgrade(
        "too many connections from this address", 429,
        "one address holds RELAY_MAX_CONNECTIONS_PER_IP connections",
        "raise RELAY_MAX_CONNECTIONS_PER_IP; behind a proxy set RELAY_TRUSTED_PROXIES",
    )  # fmt: skip
    TOO_MANY_CLIENTS = _upgrade(
        "too many clients for this runtime target", 429,
        "the runtime target has RELAY_MAX_CLIENTS_PER_WORKSPACE clients",
        "close viewers that are not used, or raise RELAY_MAX_CLIENTS_PER_WORKSPACE",
    )  # fmt: skip
    NOT_FOUND = _upgrade("not found", 404, "no such path or method", "peers connect to /ws")
    UPGRADE_REQUIRED = _upgrade(
        "upgrade required", 426, "/ws was asked without a WebSocket upgrade",
        "let the proxy pass the Upgrade and Connection headers on",
    )  # fmt: skip
    UPGRADE_MALFORMED = _upgrade(
        "malformed WebSocket upgrade", 400,
        "the handshake is not one of RFC 6455 version 13",
        "the details name the header; a proxy in between may have changed it",
    )  # fmt: skip
    QUERY_INVALID = _upgrade(
        "invalid query", 400, "role, workspaceId or runtimeTargetId is missing or of a wrong form",
        "the details name the parameter; update the peer",
    )  # fmt: skip
    ORIGIN_NOT_ALLOWED = _upgrade(
        "origin not allowed", 403, "the browser's Origin is not in RELAY_ALLOWED_ORIGINS",
        "add the origin of the web app to RELAY_ALLOWED_ORIGINS",
    )  # fmt: skip
    TOKEN_MISSING = _upgrade(
        "no usable token", 401,
        "neither an Authorization header nor an auth.… sub-protocol carried a token of 10-4096 characters "
        "(a ?token= counts in RELAY_MODE=dev only)",
        "sign the peer in again; a proxy may strip the Authorization header",
    )  # fmt: skip

    # -- local token check -----------------------------------------------------------------------------
    JWKS_UNREACHABLE = _platform(
        "JWT validation failed: JWKS unreachable", 503,
        "the keys at RELAY_JWKS_URL could not be fetched, or held no usable key, and none were fetched before",
        "run `viewport-relay doctor` where the relay runs, or `curl -I URL` there with the url of the log entry (in a container: "
        "`docker exec NAME curl -I URL`); RELAY_JWKS_URL sets it, or SERVER_URL",
    )  # fmt: skip
    JWT_SIGNATURE_MISMATCH = _token(
        "JWT validation failed: signature mismatch",
        "the token was signed with a key that is not in the JWKS, or was altered",
        "let the peer fetch a new token; check that RELAY_JWKS_URL is the platform that issued it",
    )  # fmt: skip
    JWT_EXPIRED = _token(
        "JWT validation failed: token expired",
        "the token's exp has passed (beyond 30 s of tolerance)",
        "let the peer fetch a new token; compare the clocks of relay and platform (`viewport-relay doctor`)",
    )  # fmt: skip
    TOKEN_EXPIRED = _token(
        "the token of this connection has expired",
        "a connection was open when its token's exp passed (beyond 30 s of tolerance), and RELAY_TOKEN_EXPIRY is close",
        "none: the peer fetches a new token and reconnects; with RELAY_TOKEN_EXPIRY=ignore it would stay connected",
    )  # fmt: skip
    JWT_MALFORMED = _token(
        "JWT validation failed: malformed token", "the token is not a signed JWT (RFC 7519)",
        "let the peer fetch a new token; `viewport-relay token inspect` reads one",
    )  # fmt: skip
    JWT_ALGORITHM_NOT_ALLOWED = _token(
        "JWT validation failed: algorithm not allowed",
        "the token's alg is not RS256, ES256 or EdDSA, or does not fit the key",
        "let the platform sign with RS256, ES256 or EdDSA",
    )  # fmt: skip
    JWT_NOT_YET_VALID = _token(
        "JWT validation failed: token not yet valid", "nbf or iat lies in the future",
        "compare the clocks of relay and platform (`viewport-relay doctor`)",
    )  # fmt: skip
    JWT_ISSUER_MISMATCH = _token(
        "JWT validation failed: issuer mismatch", "iss is not RELAY_TOKEN_ISSUER",
        "set RELAY_TOKEN_ISSUER to what the platform writes",
    )  # fmt: skip
    JWT_AUDIENCE_MISMATCH = _token(
        "JWT validation failed: audience mismatch", "aud does not contain RELAY_TOKEN_AUDIENCE",
        "set RELAY_TOKEN_AUDIENCE to what the platform writes; the token may be meant for another service",
    )  # fmt: skip
    JWT_CLAIM_MISMATCH = _token(
        "JWT validation failed: claim mismatch",
        "the token is for another role, workspace or runtime target than the query names, or lacks exp",
        "the details name the claim; let the peer fetch a token for what it asks",
    )  # fmt: skip

    # -- platform validation ---------------------------------------------------------------------------
    PLATFORM_UNREACHABLE = _platform(
        "platform unreachable", 503,
        "RELAY_VALIDATE_URL did not answer within RELAY_ADMISSION_TIMEOUT_MS, or answered 5xx",
        "check the platform, DNS and firewall; run `viewport-relay doctor`",
    )  # fmt: skip
    WORKSPACE_NOT_FOUND = Entry(
        "Workspace not found", 403, CloseCode.WORKSPACE_NOT_FOUND, "workspace_not_found", "warn",
        "the platform knows no such workspace",
        "check the workspace id; it may have been deleted, or RELAY_VALIDATE_URL is another platform's",
    )  # fmt: skip
    INTERNAL_KEY_MISMATCH = _platform(
        "RELAY_INTERNAL_KEY mismatch", 502,
        "the platform does not accept this relay's internal key",
        "set RELAY_INTERNAL_KEY to the platform's value and restart the relay",
    )  # fmt: skip
    VALIDATION_DENIED = _token(
        "validation denied", "the platform refuses this token (its own word is in the details)",
        "act on the platform's word; let the peer fetch a new token",
    )  # fmt: skip
    ADMISSION_RESPONSE_TOO_LARGE = _platform(
        "platform answer too large", 502,
        "the answer is longer than RELAY_ADMISSION_MAX_RESPONSE_BYTES",
        "check what RELAY_VALIDATE_URL serves: an answer with claims has a few KiB",
    )  # fmt: skip
    VALIDATION_RESPONSE_INVALID = _platform(
        "platform answer invalid", 502,
        "RELAY_VALIDATE_URL answered with a redirect, something that is no JSON, or claims of a wrong form",
        "the details name what is wrong; check that RELAY_VALIDATE_URL is the validate endpoint",
    )  # fmt: skip

    # -- claims against the query, after the upgrade -----------------------------------------------------
    MISSING_WORKSPACE_CLAIM = _close(
        "missing workspace claim", "the platform's claims name no workspace", "let the platform name the workspace in its "
        "answer to RELAY_VALIDATE_URL", "error",
    )  # fmt: skip
    WORKSPACE_CLAIM_MISMATCH = _close(
        "workspace claim mismatch", "the token is for another workspace (case counts)",
        "let the peer fetch a token for the workspace it asks",
    )  # fmt: skip
    RUNTIME_TARGET_CLAIM_MISMATCH = _close(
        "runtime target claim mismatch", "the token is for another runtime target, or for none",
        "let the peer fetch a token for the runtime target it asks",
    )  # fmt: skip
    INVALID_SCOPE_CLAIM = _close(
        "invalid scope claim", "the platform's claims for a client carry no scope", "let the platform name the scope in its "
        "answer to RELAY_VALIDATE_URL", "error",
    )  # fmt: skip
    MISSING_RUNTIME_TARGET_CLAIM = _close(
        "missing runtime target claim", "neither claims nor query name a runtime target",
        "let the peer name one; pairing clients and executors need none",
    )  # fmt: skip

    # -- the daemon's seat -------------------------------------------------------------------------------
    STALE_DAEMON_GENERATION = _close(
        "stale daemon generation",
        "a daemon with a newer token generation has been here; this one uses an older daemon key",
        "stop the old daemon, or let it fetch a new daemon key",
    )  # fmt: skip
    REPLACED_BY_NEWER_DAEMON = _close(
        "replaced by newer daemon", "a daemon with a newer generation, or on another relay, took the seat",
        "none, unless two machines claim one runtime target", "info",
    )  # fmt: skip
    DAEMON_ALREADY_CONNECTED = _close(
        "daemon already connected", "a living daemon of the same generation holds the seat",
        "stop the second daemon; two machines may share one runtime target id",
    )  # fmt: skip

    # -- frames ------------------------------------------------------------------------------------------
    PAIRING_SCOPE_ONLY = _close(
        "pairing scope only", "a client with scope pairing sent another frame", "update the client"
    )
    RUNTIME_SCOPE_ONLY = _close(
        "runtime scope only", "a client with scope runtime sent a pairing frame", "update the client"
    )
    SESSION_EVENTS_SCOPE_REQUIRED = _close(
        "session-events scope required", "a session-event frame came from a client of another scope",
        "let the client fetch a token with scope session-events",
    )  # fmt: skip
    SESSION_EVENTS_SCOPE_ONLY = _drop(
        "session-events scope only", "a session-events client sent another frame", "update the client"
    )
    CLIENT_FRAME_PROFILE_MISMATCH = _close(
        "client frame profile mismatch", "a client's frame names another Noise profile than its grant",
        "update the client; pair it again if the workspace's policy changed",
    )  # fmt: skip
    DAEMON_FRAME_PROFILE_MISMATCH = _close(
        "daemon frame profile mismatch", "a daemon's frame names a weaker Noise profile than its grant",
        "update the daemon; check the workspace's policy_mode",
    )  # fmt: skip
    FRAME_TOO_LARGE = Entry(
        "frame too large", 0, CloseCode.TOO_BIG, "frame too large", "warn",
        "a message is longer than RELAY_FRAME_MAX_BYTES",
        "raise RELAY_FRAME_MAX_BYTES on every relay, or let the peer send smaller frames",
    )  # fmt: skip
    FRAME_NOT_UTF8 = Entry(
        "text is not UTF-8", 0, CloseCode.INVALID_PAYLOAD, "text is not UTF-8", "warn",
        "a text message is not UTF-8 (RFC 6455 section 8.1)", "update the peer",
    )  # fmt: skip
    PROTOCOL_ERROR = Entry(
        "WebSocket protocol error", 0, CloseCode.PROTOCOL_ERROR, "WebSocket protocol error", "warn",
        "the peer broke RFC 6455", "the details say how; update the peer or the proxy in between",
    )  # fmt: skip
    INVALID_FRAME = _drop(
        "invalid frame", "a frame is no JSON object or none of the role's", "update the peer"
    )
    REQUEST_ID_CONFLICT = _drop(
        "request id in use by another client",
        "a client sent a requestId that another live client waits for",
        "none if rare; otherwise a client makes bad ids or tries to take over a request",
    )  # fmt: skip
    SESSION_NOT_OWNED = _drop(
        "session owned by another client",
        "a client sent a frame for, or a daemon gave away, a session that another live client owns",
        "none if rare; otherwise a client tries to take over a session",
    )  # fmt: skip
    PRESENCE_USER_MISMATCH = _drop(
        "presence names another user",
        "a viewer's presence frame has a userId that is not the one of its token",
        "update the client (it must send its own userId); otherwise a viewer poses as another user",
    )  # fmt: skip
    NO_OWNER = _drop(
        "no client owns this answer",
        "a daemon's frame names a request or session that no client has (it left, or the entry aged out)",
        "none", "info",
    )  # fmt: skip
    DAEMON_UNAVAILABLE = _drop(
        "no daemon is connected", "a client sent a frame while its runtime target has no daemon",
        "start the daemon on that machine; its own refusals are in this log",
    )  # fmt: skip
    WORKER_TRANSPORT_PATH_DENIED = _drop(
        "worker path denied", "an executor asked for a path that is not its own", "update the executor"
    )
    WORKER_TRANSPORT_FORWARD_FAILED = Entry(
        "worker request failed", level="error",
        cause="the platform did not answer an executor's request in time, or with too much",
        fix="check SERVER_URL and the platform; the details say what happened",
    )  # fmt: skip

    # -- rates and queues ----------------------------------------------------------------------------------
    KEY_EXCHANGE_RATE_LIMIT_EXCEEDED = _close(
        "key exchange rate limit exceeded", "more than RELAY_KEX_INIT_RATE_PER_MINUTE (default 60) key exchanges",
        "find the client that reconnects in a loop (its address is in the details)",
    )  # fmt: skip
    PAIRING_RATE_LIMIT_EXCEEDED = _close(
        "pairing rate limit exceeded", "more than RELAY_PAIRING_RATE_PER_MINUTE (default 30) pairing frames",
        "look for a client that guesses pairing codes (its address is in the details)",
    )  # fmt: skip
    RUNTIME_RATE_LIMIT_EXCEEDED = _close(
        "runtime rate limit exceeded",
        "more than RELAY_RUNTIME_RATE_PER_MINUTE frames of a client (invalid ones too), 4 MiB of its frames that were "
        "dropped or answered by the relay, or RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE frames of a workspace",
        "raise the limit that the details name, if the traffic is real",
    )  # fmt: skip
    PRESENCE_RATE_LIMIT_EXCEEDED = _close(
        "presence rate limit exceeded", "viewer presence frames went over the client's runtime rate",
        "update the client, or raise RELAY_RUNTIME_RATE_PER_MINUTE",
    )  # fmt: skip
    DAEMON_RATE_LIMIT_EXCEEDED = _close(
        "daemon rate limit exceeded", "more than RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE frames of a daemon",
        "raise RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE if the traffic is real",
    )  # fmt: skip
    WORKER_RATE_LIMIT_EXCEEDED = _close(
        "worker rate limit exceeded", "more than RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE requests of an executor",
        "raise RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE if the traffic is real",
    )  # fmt: skip
    BUFFER_OVERFLOW = _close(
        "buffer overflow",
        "a client reads slower than its daemon writes: RELAY_MAX_PENDING_BYTES are queued for it, or eight times as many "
        "for all clients of its target, and most of them for this one",
        "none for a client on a bad network (it reconnects); otherwise let the daemon send less at a time",
    )  # fmt: skip
    PONG_TIMEOUT = Entry(
        "no answer to pings", level="info",
        cause="the peer did not answer a ping within RELAY_PONG_TIMEOUT_MS (10 s)",
        fix="none: its machine sleeps or lost its network; a proxy may cut idle connections",
    )  # fmt: skip
    IDLE_TIMEOUT = Entry(
        "idle", level="info", cause="nothing was received for RELAY_IDLE_TIMEOUT_MS (5 min)",
        fix="none; the peer must send something or answer pings",
    )  # fmt: skip

    PEER_FLAPPING = Entry(
        "peer joins and leaves again and again", level="warn",
        cause="one peer joined and left within 5 s more than five times in a minute: its process crashes, something "
        "closes its connection, or two machines use one identity",
        fix="read the log of that peer (role, workspace and address are in the details); if it reconnects after a close "
        "by the relay, the entry `close` before it names the reason",
    )  # fmt: skip

    # -- Noise link ----------------------------------------------------------------------------------------
    NOISE_INVALID_PSK = _close(
        "Noise handshake failed: invalid psk",
        "the workspace has policy_mode crypto_pairing, which needs Noise IKpsk2 with the pairing secret, and "
        "the peer used plain IK or another secret (the details say which)",
        "pair the peer again; update it if it cannot do IKpsk2",
    )  # fmt: skip
    NOISE_HANDSHAKE_MALFORMED = _close(
        "Noise handshake failed: malformed message",
        "the handshake does not decrypt: another relay's public key, another workspace, or damage",
        "let the peer read /.well-known/viewport-relay.json again; check a pinned noisePublicKey",
    )  # fmt: skip
    NOISE_STATIC_KEY_MISMATCH = _close(
        "Noise handshake failed: static key mismatch",
        "the daemon's static key is not the one in its grant (claims.daemonPublicKey)",
        "enrol the daemon again; its key changed, or another machine uses its token",
    )  # fmt: skip
    NOISE_TIMEOUT = _close(
        "Noise handshake failed: timeout", "the handshake was not confirmed within RELAY_NOISE_TIMEOUT_MS",
        "check the peer's network and load: the handshake takes one round trip",
    )  # fmt: skip
    NOISE_DECRYPT_FAILED = _close(
        "Noise transport failed: decrypt",
        "a record on an established link does not decrypt, has a bad length, or came as text",
        "none if rare (the peer reconnects); otherwise something changes the traffic in between",
    )  # fmt: skip
    NOISE_LINK_REQUIRED = _close(
        "Noise link required", "RELAY_NOISE_LINK=required and the peer offers no viewport.noise-link.v1",
        "update the peer, or set RELAY_NOISE_LINK=optional",
    )  # fmt: skip
    NOISE_PSK_UNAVAILABLE = _close(
        "Noise handshake failed: psk unavailable",
        "IKpsk2 was used, but the grant carries no pairing secret of 32 bytes",
        "pair the peer; check that the platform returns claims.pairingSecret",
    )  # fmt: skip
    NOISE_NONCE_EXHAUSTED = _close(
        "Noise transport failed: nonces exhausted", "a link carried 2^64-1 records",
        "none: the peer reconnects", "info",
    )  # fmt: skip

    # -- several relays --------------------------------------------------------------------------------------
    BACKPLANE_UNREACHABLE = Entry(
        "backplane unreachable", level="error",
        cause="Redis or the platform's presence and bus endpoints do not answer",
        fix="check RELAY_REDIS_URL or SERVER_URL; peers on this relay go on, others get DAEMON_UNAVAILABLE",
    )  # fmt: skip
    BACKPLANE_REFUSED = Entry(
        "backplane refuses a command", level="error",
        cause="Redis answers, but refuses a command that the relay needs (ACL, renamed command, version before 6.2, "
        "replica, no memory), or the platform refuses a question about presence or bus (429, ok:false)",
        fix="the detail names the command and the answer; `viewport-relay doctor` tries each of them",
    )  # fmt: skip
    BUS_SIGNATURE_INVALID = _drop(
        "bus frame signature invalid", "a bus frame is unsigned or signed with another RELAY_BUS_HMAC_KEY",
        "give every relay the same RELAY_BUS_HMAC_KEY", "error",
    )  # fmt: skip
    BUS_SIGNATURE_STALE = _drop(
        "bus frame too old or from the future", "the clocks of two relays differ, or the bus is far behind",
        "synchronise the clocks of all relays (chrony, NTP); look at the length of the Redis queues", "error",
    )  # fmt: skip
    BUS_SIGNATURE_REPLAYED = _drop(
        "bus frame replayed",
        "a bus frame was seen before",
        "find out who else can write to Redis or the platform's bus, and change RELAY_BUS_HMAC_KEY", "error",
    )  # fmt: skip
    BUS_FRAME_REFUSED = _drop(
        "bus frame refused", "a bus frame is not for this relay, names no target, or breaks a rule",
        "the details say which", "error",
    )  # fmt: skip

    # -- life of the process -----------------------------------------------------------------------------------
    RELAY_SHUTTING_DOWN = Entry(
        "relay shutting down", 503, CloseCode.GOING_AWAY, "relay shutting down", "info",
        "the relay was told to stop", "none: peers reconnect",
    )  # fmt: skip
    DISCONNECTED_BY_OPERATOR = _close(
        "disconnected by operator", "an operator used POST /disconnect", "none", "info"
    )

    # -- the admin paths ---------------------------------------------------------------------------------------
    ADMIN_UNAUTHORIZED = _upgrade(
        "admin token missing or wrong", 401,
        "an admin path was asked without the right RELAY_ADMIN_TOKEN",
        "send the token in the header Authorization, as a bearer token; if no operator of yours did, close the admin paths to the outside",
    )  # fmt: skip
    ADMIN_RATE_LIMIT_EXCEEDED = _upgrade(
        "too many wrong admin tokens", 429, "one address sent more than 20 wrong admin tokens within a minute",
        "find the client with the old token (its IP is in the details); if it is none of yours, keep the admin paths away "
        "from the public (RELAY_ADMIN_LISTEN)",
    )  # fmt: skip
    ADMIN_ENDPOINTS_DISABLED = _upgrade(
        "admin endpoints disabled", 404,
        "RELAY_ADMIN_TOKEN is not set, or RELAY_ENABLE_ADMIN_HTTP is off",
        "set RELAY_ADMIN_TOKEN to at least 16 random characters", "info",
    )  # fmt: skip
    ADMIN_REQUEST_INVALID = _upgrade(
        "admin request invalid", 400, "a filter or a body has a wrong form",
        "the message names it and what it takes",
    )  # fmt: skip
    ADMIN_CSRF_MISMATCH = _upgrade(
        "cross-site request refused", 403,
        "a signed-in browser sent a POST or DELETE without the dashboard's X-Relay-CSRF header",
        "none: another site tried to act through the browser; reload the dashboard if it was yours",
    )  # fmt: skip
    ADMIN_TOO_MANY_FOLLOWERS = _upgrade(
        "too many log followers", 503, "as many readers follow the log as the relay serves at once",
        "close dashboards and `follow=1` readers that are not needed",
    )  # fmt: skip

    @property
    def entry(self) -> Entry:
        value: Entry = self.value
        return value

    @property
    def code(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        return self.entry.text


@define(eq=False)
class Refusal(Exception):
    """The one way to refuse. Raised or returned; it carries what log line and answer need.

    `detail` says what exactly was wrong, for the operator; it never holds a token, a payload or a secret.
    `retry_after` is in seconds, for the Retry-After header. `details` go into the log entry only. `level` is that
    of the log entry where it differs from the reason's.
    """

    reason: Reason
    detail: str = ""
    retry_after: int | None = None
    details: Mapping[str, Any] = Factory(dict)
    level: Level | None = None

    @property
    def detail_for_peer(self) -> str:
        """The message of the JSON body: the documented text, and what exactly was wrong with the peer's own request.

        What is wrong inside a token, or with the platform, is for the operator alone.
        """
        own = (Reason.QUERY_INVALID, Reason.UPGRADE_MALFORMED, Reason.UPGRADE_REQUIRED, Reason.TOKEN_MISSING)
        return (
            f"{self.reason.text}: {self.detail}" if self.detail and self.reason in own else self.reason.text
        )

    def __str__(self) -> str:
        return f"{self.reason.code}: {self.detail or self.reason.text}"
