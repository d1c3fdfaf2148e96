"""The executor's role (`worker` on the wire): its HTTP requests, carried to the platform (wire protocol, section 7).

    executor -> relay -> platform   one request; only paths of its own managed executor, only listed headers
    executor <- relay <- platform   one answer, as a response frame

Requests of one executor run concurrently, up to a bound; beyond it reading from the executor pauses. An executor that
exceeds its rate is closed when the requests that were within the rate are answered.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import Factory, define
from twisted.internet.defer import CancelledError, Deferred

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, HttpFailure
from viewport_relay.protocol.decoding import decode_executor
from viewport_relay.protocol.frames import ExecutorRequest
from viewport_relay.protocol.status import executor_response
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, Drop
from viewport_relay.routing.model import Peer
from viewport_relay.routing.router import Router
from viewport_relay.sessions.outcomes import Outcomes
from viewport_relay.sessions.session import Session

#: Time limit of the platform's answer, seconds.
REQUEST_TIMEOUT: Final = 60.0

#: Most concurrent requests of one executor.
MOST_RUNNING: Final = 16

_REQUEST_HEADERS: Final = frozenset(
    "authorization accept content-type x-viewport-run-lease x-viewport-assignment-claim "
    "x-viewport-worker-fingerprint x-viewport-worker-timestamp x-viewport-worker-nonce "
    "x-viewport-worker-body-sha256 x-viewport-worker-signature x-viewport-server-id".split()
)
_HIDDEN_RESPONSE_HEADERS: Final = frozenset({"authorization", "cookie", "set-cookie"})
_JSON_HEADERS: Final = {"content-type": "application/json"}

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def path_allowed(path: str, workspace_id: str, managed_executor_id: str | None) -> bool:
    """Whether an executor may request `path`: its managed executor (without a query), or a path below it.

    Segments are decoded once and compared. Below the executor's path a segment `.` or `..`, between `/` or `\\`, denies the request.
    """
    if managed_executor_id is None or not _VISIBLE.fullmatch(path) or "#" in path:
        return False
    plain, question, _ = path.partition("?")
    segments = _decoded(plain.split("/"))
    own = ["", "api", "runtime", "workspaces", workspace_id, "managed-executors", managed_executor_id]
    if segments is None or segments[: len(own)] != own:
        return False
    rest = segments[len(own) :]
    if not rest:
        return not question
    return not any(part in {".", ".."} for part in re.split(r"[/\\]", "/".join(rest)))


def _decoded(segments: Iterable[str]) -> list[str] | None:
    decoded = []
    for segment in segments:
        if _BROKEN_ESCAPE.search(segment):
            return None
        try:
            decoded.append(unquote_to_bytes(segment).decode("utf-8"))
        except UnicodeDecodeError:
            return None
    return decoded


def request_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The allowed request headers, names in lower case; a value that is no valid field value is left out (RFC 9110, 5.5)."""
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower() in _REQUEST_HEADERS and _HEADER_VALUE.fullmatch(value)
    }


def response_headers(answer: Answer) -> dict[str, str]:
    """Response headers: names in lower case, repeated fields joined, without credentials."""
    shown = {}
    for raw_name, values in answer.headers.getAllRawHeaders():
        name = raw_name.decode("latin-1").lower()
        if name not in _HIDDEN_RESPONSE_HEADERS:
            shown[name] = ", ".join(value.decode("latin-1") for value in values)
    return shown


@define(eq=False)
class ExecutorRole:
    """The handler of the executor role: each executor's requests go to the platform through `client`."""

    router: Router
    outcomes: Outcomes
    client: HttpClient
    server_url: str
    frame_max_bytes: int

    def begin(self, session: Session, peer: Peer) -> None:
        """Start to answer the executor's requests."""
        requests = _Requests(self, session, peer)
        session.connection.reader.receive = requests.receive
        session.connection.when_lost(requests.cancel)


@define(eq=False)
class _Requests:
    """The requests of one executor: running, and waiting in order."""

    _role: ExecutorRole
    _session: Session
    _peer: Peer
    _running: set[Deferred[None]] = Factory(set)
    _waiting: deque[ExecutorRequest] = Factory(deque)
    _over: Close | None = None  # set when the executor exceeds its rate: nothing more is taken from it

    def receive(self, message: bytes) -> None:
        """Handle a message: start its request, now or when an earlier one has ended."""
        if self._over is not None:
            return
        peer, reader, outcomes = self._peer, self._session.connection.reader, self._role.outcomes
        self._over = self._role.router.own_rate(peer, reader.last_seen)
        if self._over is not None:
            self._close_when_answered()
            return
        frame = decode_executor(message)
        if frame is None:
            outcomes.drop(peer, Drop(Reason.INVALID_FRAME))
            return
        peer.target.active_at = reader.last_seen
        if len(self._running) < MOST_RUNNING:
            self._start(frame)
        else:
            reader.pause_reading(self)  # only messages that were read already follow
            self._waiting.append(frame)

    def cancel(self) -> None:
        """Cancel every request: the executor's connection is lost."""
        self._waiting.clear()
        for running in tuple(self._running):
            running.cancel()

    def _start(self, frame: ExecutorRequest) -> None:
        running = Deferred.fromCoroutine(self._serve(frame))
        if not running.called:
            self._running.add(running)
            running.addBoth(self._ended, running)

    def _ended(self, result: object, running: Deferred[None]) -> object:
        self._running.discard(running)
        while self._waiting and len(self._running) < MOST_RUNNING:  # denied requests do not run
            self._start(self._waiting.popleft())
        if not self._waiting:
            self._session.connection.reader.resume_reading(self)
            self._close_when_answered()
        return result

    def _close_when_answered(self) -> None:
        if self._over is not None and not self._running and not self._waiting:
            self._role.outcomes.close(self._peer, self._over)

    async def _serve(self, frame: ExecutorRequest) -> None:
        role, grant = self._role, self._peer.grant
        role.outcomes.counters.worker_requests += 1
        if not path_allowed(frame.path, grant.workspace_id, grant.claims.managed_executor_id):
            self._fail(frame, 403, Reason.WORKER_TRANSPORT_PATH_DENIED)
            return
        # A request that may have reached the platform is not repeated: the executor decides that.
        get = frame.method == "GET"
        call = Call.make(
            frame.method,
            role.server_url + frame.path,
            request_headers(frame.headers),
            limit=REQUEST_TIMEOUT,
            max_bytes=role.frame_max_bytes,
            retry=get,
        )
        body = None if get or frame.body is None else frame.body.encode("utf-8", "replace")
        try:
            answer = await role.client.ask(call, body)
        except HttpFailure as failure:
            self._fail(frame, 502, Reason.WORKER_TRANSPORT_FORWARD_FAILED, detail=failure.why)
            return
        except CancelledError:
            return  # the executor has disconnected
        text = answer.body.decode("utf-8", "replace")
        response = executor_response(frame.request_id, answer.status, response_headers(answer), text)
        self._session.outbox.send(response.encode("utf-8", "replace"))

    def _fail(self, frame: ExecutorRequest, status: int, reason: Reason, **details: str) -> None:
        outcomes, peer = self._role.outcomes, self._peer
        outcomes.counters.worker_requests_failed += 1
        about = {**peer.describe(), **details}
        outcomes.log.event(
            "worker_request", reason=reason, connection_id=peer.connection_id, method=frame.method, **about
        )
        body = f'{{"ok":false,"reason":"{reason.code}"}}'
        self._session.outbox.send(executor_response(frame.request_id, status, _JSON_HEADERS, body).encode())
