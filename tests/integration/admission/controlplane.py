"""A threaded control plane for tests: signs tokens, serves the JWKS and `validate`, with faults that a test sets.

It shares no code with the development platform nor with the relay: a second implementation of the wire protocol.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from attrs import Factory, define, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

JWKS_PATH = "/keys"
VALIDATE_PATH = "/validate"
INTERNAL_KEY = "the-key-that-relays-and-the-platform-share"

_MAKERS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@frozen
class SigningKey:
    """A private key and its kid."""

    kid: str
    algorithm: str
    private: Any = field(repr=False)

    @classmethod
    def new(cls, kid: str, algorithm: str = "ES256") -> SigningKey:
        return cls(kid, algorithm, _MAKERS[algorithm]())

    def public(self) -> dict[str, Any]:
        """The public key as a member of a JWK set."""
        algorithm: Any = jwt.get_algorithm_by_name(self.algorithm)
        jwk: dict[str, Any] = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "use": "sig", "alg": self.algorithm}


@frozen
class Reply:
    """One HTTP response. `delay` (before the head) and `drip` (time over which the body is sent) are in seconds.

    `wire`, if set, replaces the response by these raw bytes, and the server then closes the connection.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = Factory(dict)
    delay: float = 0.0
    drip: float = 0.0
    wire: bytes | None = None

    @classmethod
    def json(cls, body: object, status: int = 200, **rest: Any) -> Reply:
        return cls(status, json.dumps(body).encode(), {"content-type": "application/json"}, **rest)


@frozen
class Question:
    """A request to `validate`."""

    headers: dict[str, str] = field(repr=False)
    body: dict[str, Any] = field(repr=False)


@define(eq=False)
class ControlPlane:
    """Control plane on a free loopback port; listens at once. `stop` and `start` keep the port."""

    tls: ssl.SSLContext | None = None
    internal_key: str = INTERNAL_KEY
    clock_offset: float = 0.0  # error of its clock, seconds
    published: list[SigningKey] = Factory(list)
    jwks: Reply | None = None  # replaces the published keys
    replies: dict[str, Reply] = Factory(dict)  # by token, for requests with the internal key
    held: threading.Event = Factory(threading.Event)  # while it is cleared, `validate` does not respond
    questions: list[Question] = Factory(list)
    jwks_asked: int = 0
    connections: int = 0
    waiting: int = 0  # requests that `held` delays
    port: int = 0
    _server: Any = None
    _open: set[socket.socket] = Factory(set)

    def __attrs_post_init__(self) -> None:
        self.held.set()
        self.published.append(SigningKey.new("first"))
        self.start()

    # -- tokens ------------------------------------------------------------------------------------------------

    def claims(self, role: str, workspace: str, target: str | None = "t", **more: Any) -> dict[str, Any]:
        """Claims of a token; `None` removes a claim."""
        now = int(time.time() + self.clock_offset)
        said = {
            "iss": "viewport-server", "aud": "viewport-relay", "iat": now, "exp": now + 300,
            "role": role, "workspaceId": workspace, "runtimeTargetId": target,
            "jti": f"{time.monotonic_ns()}", **({"scope": "runtime"} if role == "client" else {}), **more,
        }  # fmt: skip
        return {name: value for name, value in said.items() if value is not None}

    def token(
        self,
        role: str,
        workspace: str,
        target: str | None = "t",
        *,
        key: SigningKey | None = None,
        **more: Any,
    ) -> str:
        signer = key or self.published[0]
        headers = {"kid": signer.kid}
        return jwt.encode(
            self.claims(role, workspace, target, **more), signer.private, signer.algorithm, headers
        )

    # -- counts --------------------------------------------------------------------------------------------------

    def asked_about(self, token: str) -> int:
        """Number of requests to `validate` with this token."""
        return sum(question.body.get("relayToken") == token for question in self.questions)

    # -- responses -----------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Reply:
        if (method, path) == ("GET", JWKS_PATH):
            self.jwks_asked += 1
            return self.jwks or Reply.json({"keys": [key.public() for key in self.published]})
        if (method, path) != ("POST", VALIDATE_PATH):
            return Reply.json({"ok": False, "error": "no such path"}, 405)
        body = json.loads(raw)
        self.questions.append(Question(headers, body))
        if not self.held.is_set():
            self.waiting += 1
            self.held.wait(20)
            self.waiting -= 1
        if headers.get("x-relay-internal-key") != self.internal_key:
            return Reply.json({"ok": False, "error": "invalid relay internal key"}, 401)
        token = body["relayToken"]
        if token in self.replies:
            return self.replies[token]
        return Reply.json({"ok": True, "claims": jwt.decode(token, options={"verify_signature": False})})

    # -- listening ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                platform.connections += 1
                platform._open.add(self.connection)

            def finish(self) -> None:
                platform._open.discard(self.connection)
                super().finish()

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(timestamp or time.time() + platform.clock_offset, usegmt=True)

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the relay closed the connection: allowed
                    self.close_connection = True

            def do_GET(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self._send(platform.answer(self.command, self.path, headers, raw))

            do_POST = do_GET

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.delay)
                if reply.wire is not None:
                    self.connection.sendall(reply.wire)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in _pieces(reply):
                    self.wfile.write(piece)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                """Ignore failed handshakes: a test provokes them."""

            def finish_request(self, request: Any, client_address: Any) -> None:
                if platform.tls is not None:
                    request = platform.tls.wrap_socket(request, server_side=True)
                self.RequestHandlerClass(request, client_address, self)

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the listener, and abort open connections."""
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    @contextmanager
    def down(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While the context is open, `validate` does not respond."""
        self.held.clear()
        try:
            yield
        finally:
            self.held.set()

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.tls is None else "localhost"
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"

    def settings(self) -> dict[str, str]:
        """Settings of a relay that uses this platform."""
        return {
            "RELAY_JWKS_URL": self.url + JWKS_PATH,
            "RELAY_VALIDATE_URL": self.url + VALIDATE_PATH,
            "RELAY_INTERNAL_KEY": INTERNAL_KEY,
        }


def _pieces(reply: Reply) -> Iterator[bytes]:
    if not reply.drip:
        yield reply.body
        return
    for number in range(len(reply.body)):
        yield reply.body[number : number + 1]
        time.sleep(reply.drip / len(reply.body))
