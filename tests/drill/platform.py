"""A platform with faults on request: it hangs, drips, truncates or sends invalid responses.

    with FaultyPlatform() as platform:
        token = platform.token("client", "ws-1", "target-1")
        platform.mode = "hang"

It runs in its own threads, for tests without a reactor.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import socketserver
import threading
import time
from typing import Any, Literal, Self

from viewport_relay.devplatform.tokens import SigningKey

Mode = Literal[
    "ok", "hang", "slow", "drip", "error", "nonsense", "cut", "deny", "flap", "huge", "deep", "missing"
]

INTERNAL_KEY = "drill-internal-key-0123456789abcdefABCDEF"
JWKS_PATH = "/api/.well-known/jwks.json"
VALIDATE_PATH = "/api/runtime/internal/relay/validate"

NONSENSE = [
    b"", b"null", b"[]", b"{}", b'{"ok":"true"}', b'{"ok":true}', b'{"ok":true,"claims":[]}', b"\xff\xfe\x00", b"<html>",
    b'{"ok":true,"claims":{"scope":"everything"}}', b'{"ok":true,"claims":{"exp":"soon"}}', b'{"ok":1,"claims":{}}',
    b'{"ok":true,"claims":{"sessionIds":' + b"[" * 50 + b"]" * 50 + b"}}", b'{"ok":true,"claims":{"pairingSecret":7}}',
]  # fmt: skip


class FaultyPlatform:
    """JWKS and validation endpoints with faults by `mode`; the JWKS only if `keys_follow` is set."""

    def __init__(self) -> None:
        self.key = SigningKey.generate("ES256")
        self.mode: Mode = "ok"
        self.keys_follow = False
        self.delay = 0.0  # seconds, for "slow"
        self.validated = 0
        self.asked_for_keys = 0
        self._claims: dict[str, dict[str, Any]] = {}
        self._closing = threading.Event()
        platform = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    platform._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False
            request_queue_size = 512

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that disconnect are expected; nothing is printed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Settings for a relay that uses this platform."""
        return {
            "SERVER_URL": self.url,
            "RELAY_JWKS_URL": self.url + JWKS_PATH,
            "RELAY_VALIDATE_URL": self.url + VALIDATE_PATH,
            "RELAY_INTERNAL_KEY": INTERNAL_KEY,
        }

    def token(self, role: str, workspace: str, target: str | None = None, **claims: Any) -> str:
        """A signed token; validation returns its claims."""
        now = time.time()
        payload: dict[str, Any] = {
            "iss": "viewport-server", "aud": "viewport-relay", "iat": now - 5, "exp": now + 3600, "role": role,
            "workspaceId": workspace, "jti": f"{random.getrandbits(64):x}", **claims,
        }  # fmt: skip
        if target is not None:
            payload["runtimeTargetId"] = target
        if role == "client":
            payload.setdefault("scope", "runtime")
            payload.setdefault("clientId", f"client-{random.getrandbits(32):x}")
        token = self.key.sign(payload)
        kept = (
            "role",
            "workspaceId",
            "runtimeTargetId",
            "scope",
            "clientId",
            "daemonIssueGeneration",
            "machineId",
            "managedExecutorId",
            "sessionChannels",
            "policyMode",
            "e2eeProfile",
        )
        self._claims[token] = {name: payload[name] for name in kept if name in payload}
        return token

    # -- responses -------------------------------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(120)
        with sock, sock.makefile("rb") as lines:
            while True:
                words = lines.readline(65_536).split()
                if not words:
                    return
                length = 0
                while line := lines.readline(65_536).strip():
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = lines.read(length)
                if not self._answer(sock, words[1].decode("latin-1"), body):
                    return

    def _answer(self, sock: socket.socket, path: str, body: bytes) -> bool:
        """Send the response; False ends the connection."""
        keys = path == JWKS_PATH
        mode: Mode = self.mode if self.keys_follow or not keys else "ok"
        if mode == "flap":
            mode = random.choice(("ok", "error", "cut", "nonsense", "slow"))
        if keys:
            self.asked_for_keys += 1
            good = json.dumps({"keys": [self.key.jwk()]}).encode()
        else:
            self.validated += 1
            claims = self._claims.get(json.loads(body)["relayToken"])
            good = json.dumps(
                {"ok": True, "claims": claims} if claims else {"ok": False, "reason": "unknown"}
            ).encode()
        if mode == "cut":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{")
            return False
        if mode == "hang":
            self._closing.wait(120)
            return False
        if mode == "drip":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
            while not self._closing.wait(0.2):
                sock.sendall(b" ")
            return False
        if mode == "slow":
            time.sleep(self.delay or random.random() * 0.3)
        status, answer = "200 OK", good
        if mode == "error":
            status, answer = "503 Service Unavailable", b"upstream connect error"
        elif mode == "nonsense":
            answer = random.choice(NONSENSE)
        elif mode == "deny":
            answer = b'{"ok":false,"reason":"revoked"}'
        elif mode == "missing":
            status, answer = "404 Not Found", b'{"ok":false,"reason":"WORKSPACE_NOT_FOUND"}'
        elif mode == "huge":
            answer = b'{"ok":true,"claims":{"x":"' + b"x" * 400_000 + b'"}}'
        elif mode == "deep":
            answer = b'{"ok":true,"claims":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}"
        sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        return True
