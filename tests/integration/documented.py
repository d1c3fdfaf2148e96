"""Runs the examples of the reference pages against a real relay.

An `http` block is a request, a blank line, and the response: status line, the headers that the block names, JSON
body. An `exchange` block is a dialogue of WebSocket peers, one step a line (`Exchange`). `…` in a response matches
any text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.drill.peer import PING, PONG, TEXT, Closed, Peer, dial
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay

ROLES = ("workspace-daemon", "client", "worker")


def fits(expected: Any, got: Any) -> bool:
    """Whether `got` matches `expected`; `…` stands for any text and, as a member's name, for further members."""
    if expected == "…":
        return True
    if isinstance(expected, str) and isinstance(got, str) and "…" in expected:
        return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), got, re.DOTALL) is not None
    if isinstance(expected, dict) and isinstance(got, dict):
        named = expected.keys() - {"…"}
        same = named <= got.keys() if "…" in expected else named == got.keys()
        return same and all(fits(expected[name], got[name]) for name in named)
    if isinstance(expected, list) and isinstance(got, list):
        if expected[-1:] == ["…"]:
            got, expected = got[: len(expected) - 1], expected[:-1]
        return len(expected) == len(got) and all(map(fits, expected, got))
    return type(expected) is type(got) and expected == got


# -- HTTP ----------------------------------------------------------------------------------------------------


def ask(port: int, request: str) -> tuple[str, str]:
    """Head and body of one response; `request` is the block's text."""
    lines = request.splitlines()
    head, _, body = "\n".join(lines).partition("\n\n")
    fields = head.splitlines()
    if body:
        fields.append(f"Content-Length: {len(body.encode())}")
    with dial(port) as sock:
        sock.sendall("\r\n".join(fields).encode() + b"\r\n\r\n" + body.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65_536) or b"\r\n\r\n"
        answer, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)^content-length: *(\d+)", answer, re.MULTILINE)
        while length and len(rest) < int(length[1]):
            rest += sock.recv(65_536)
    return answer.decode("latin-1"), rest.decode()


def check_http(text: str, port: int) -> None:
    """Send the request of an `http` block; fail unless the response matches the block's."""
    request, answer = re.split(r"\n\n(?=HTTP/1\.1 )", text, maxsplit=1)
    expected_head, _, expected_body = answer.strip().partition("\n\n")
    head, body = ask(port, request)
    status, *fields = head.split("\r\n")
    expected_status, *expected_fields = expected_head.splitlines()
    assert status == expected_status, f"{head}\n\n{body}"
    got = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    for field in expected_fields:
        name, _, value = field.partition(":")
        assert fits(value.strip(), got.get(name.lower())), f"{name}: {got.get(name.lower())!r}\n{head}"
    if expected_body.startswith(("{", "[")):
        assert fits(json.loads(expected_body), json.loads(body)), body
    elif expected_body:
        for line in expected_body.splitlines():
            assert any(fits(line, there) for there in body.splitlines()), f"{line!r} is not in\n{body}"


# -- WebSocket -------------------------------------------------------------------------------------------------


class Exchange:
    """The peers of one `exchange` block.

    NAME joins ROLE WORKSPACE TARGET CLAIMS · NAME sends TEXT · NAME receives JSON | the same | nothing ·
    NAME is closed CODE TEXT
    """

    def __init__(self, relay: Relay, platform: FaultyPlatform) -> None:
        self._relay, self._platform = relay, platform
        self._peers: dict[str, Peer] = {}
        self._inbox: dict[str, list[str]] = {}
        self._said = ""

    def run(self, text: str) -> None:
        try:
            for line in text.splitlines():
                name, what, rest = [*line.split(" ", 2), ""][:3]
                getattr(self, f"_{what}")(name, rest)
            self._settle()
            assert not any(self._inbox.values()), f"the example does not say: {self._inbox}"
        finally:
            for peer in self._peers.values():
                peer.close()

    def _joins(self, name: str, rest: str) -> None:
        role, workspace, target, claims = [*rest.split(" ", 3), "{}"][:4]
        given = json.loads(claims)
        self._peers[name] = Peer.join(
            self._relay, self._platform, role, workspace, None if target == "-" else target, **given
        )
        self._inbox[name] = []

    def _sends(self, name: str, rest: str) -> None:
        self._said = rest
        self._peers[name].send(rest)

    def _receives(self, name: str, rest: str) -> None:
        if rest == "nothing":
            self._settle()
            assert self._inbox[name] == []
            return
        got = self._inbox[name].pop(0) if self._inbox[name] else self._peers[name].text()
        if rest == "the same":
            assert got == self._said
        else:
            assert fits(json.loads(rest), json.loads(got)), got

    def _is(self, name: str, rest: str) -> None:
        _, code, text = rest.split(" ", 2)
        assert self._inbox[name] == []
        try:
            got = self._peers[name].text()
        except Closed as closed:
            assert (closed.code, closed.reason) == (int(code), text)
        else:
            raise AssertionError(f"not closed, but sent {got}")
        self._peers.pop(name).close()

    def _settle(self) -> None:
        """Wait until the relay has handled everything sent: each peer's ping is answered, twice."""
        for _ in range(2):
            for name, peer in self._peers.items():
                peer.send(b"settled", PING)
                while (frame := peer.frame()) != (PONG, b"settled"):
                    opcode, payload = frame
                    assert opcode in (TEXT, PING), frame
                    if opcode == TEXT:
                        self._inbox[name].append(payload.decode())
                    else:
                        peer.send(payload, PONG)
