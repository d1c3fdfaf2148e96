"""The executor's role (`worker` on the wire): its HTTP requests, carried to the platform (wire protocol, section 7).

    executor -> relay -> platform   one request; only paths of its own managed executor, only listed headers
    executor <- relay <- platform   one answer, as a response frame

Requests of one executor run concurrently, up to a bound; beyond it reading from the executor pauses.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from attrs import Factory, define
from twisted.internet.defer import CancelledError, Deferred

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, HttpFailure
from viewport_relay.protocol.decoding import decode_worker
from viewport_relay.protocol.frames import WorkerRequest
from viewport_relay.protocol.status import worker_response
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Drop
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

    Segments are decoded once and compared; a `.` or `..` between `/` or `\\` of what follows denies.
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


def request_headers(headers: dict[str, str]) -> dict[str, str]:
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
class _Queue:
    """Requests of one executor: running and waiting."""

    running: set[Deferred[None]] = Factory(set)
    waiting: deque[tuple[Peer, WorkerRequest]] = Factory(deque)


@define(eq=False)
class PlatformRequests:
    """Sends the requests of all executors of a process to the platform."""

    _client: HttpClient
    _server_url: str
    _frame_max_bytes: int
    _outcomes: Outcomes
    _queues: dict[Session, _Queue] = Factory(dict)

    def take(self, session: Session, peer: Peer, frame: WorkerRequest) -> None:
        """Start an executor's request, now or when an earlier one has ended."""
        queue = self._queues.get(session)
        if queue is None:
            queue = self._queues[session] = _Queue()
            session.connection.when_lost(lambda: self._lost(session))
        if len(queue.running) < MOST_RUNNING:
            self._start(session, peer, frame, queue)
        else:
            session.connection.reader.pause_reading(self)  # only messages that were read already follow
            queue.waiting.append((peer, frame))

    def _lost(self, session: Session) -> None:
        queue = self._queues.pop(session)
        queue.waiting.clear()
        for running in tuple(queue.running):
            running.cancel()

    def _start(self, session: Session, peer: Peer, frame: WorkerRequest, queue: _Queue) -> None:
        running = Deferred.fromCoroutine(self._serve(session, peer, frame))
        if running.called:
            return
        queue.running.add(running)

        def done(result: object) -> object:
            queue.running.discard(running)
            while queue.waiting and len(queue.running) < MOST_RUNNING:  # denied requests do not run
                self._start(session, *queue.waiting.popleft(), queue)
            if not queue.waiting:
                session.connection.reader.resume_reading(self)
            return result

        running.addBoth(done)

    async def _serve(self, session: Session, peer: Peer, frame: WorkerRequest) -> None:
        self._outcomes.counters.worker_requests += 1
        if not path_allowed(frame.path, peer.grant.workspace_id, peer.grant.claims.managed_executor_id):
            self._fail(session, peer, frame, 403, Reason.WORKER_TRANSPORT_PATH_DENIED, "")
            return
        try:
            answer = await self._client.ask(self._call(frame), _body(frame))
        except HttpFailure as failure:
            self._fail(session, peer, frame, 502, Reason.WORKER_TRANSPORT_FORWARD_FAILED, failure.why)
            return
        except CancelledError:
            return  # the executor has disconnected
        text = answer.body.decode("utf-8", "replace")
        response = worker_response(frame.request_id, answer.status, response_headers(answer), text)
        session.deliver(response.encode("utf-8", "replace"))

    def _call(self, frame: WorkerRequest) -> Call:
        # A request that may have reached the platform is not repeated: the executor decides that.
        return Call.make(
            frame.method,
            self._server_url + frame.path,
            request_headers(dict(frame.headers)),
            limit=REQUEST_TIMEOUT,
            max_bytes=self._frame_max_bytes,
            retry=frame.method == "GET",
        )

    def _fail(
        self, session: Session, peer: Peer, frame: WorkerRequest, status: int, reason: Reason, detail: str
    ) -> None:
        outcomes = self._outcomes
        outcomes.counters.worker_requests_failed += 1
        about: dict[str, Any] = peer.describe()
        if detail:
            about["detail"] = detail
        outcomes.log.event(
            "worker_request", reason=reason, connection_id=peer.connection_id, method=frame.method, **about
        )
        body = f'{{"ok":false,"reason":"{reason.code}"}}'
        session.deliver(worker_response(frame.request_id, status, _JSON_HEADERS, body).encode())


@define(eq=False)
class ExecutorRole:
    """The handler of the executor role, shared by all executors."""

    _router: Router
    _outcomes: Outcomes
    _requests: PlatformRequests

    def begin(self, session: Session, peer: Peer) -> None:
        """Start to answer the executor's requests."""
        session.connection.reader.receive = partial(self._receive, session, peer)

    def _receive(self, session: Session, peer: Peer, message: bytes) -> None:
        now = session.connection.reader.last_seen
        limited = self._router.own_rate(peer, now)
        if limited is not None:
            self._outcomes.close(peer, limited)
            return
        frame = decode_worker(message)
        if frame is None:
            self._outcomes.drop(peer, Drop(Reason.INVALID_FRAME))
        else:
            peer.target.active_at = now
            self._requests.take(session, peer, frame)


def _body(frame: WorkerRequest) -> bytes | None:
    return None if frame.method == "GET" or frame.body is None else frame.body.encode("utf-8", "replace")
