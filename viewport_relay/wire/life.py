"""The life of a connection: one Automat machine, which owns the one timer and every way to end.

    open -> (waiting ->) closing -> draining -> lost

* open: messages flow.
* waiting: the relay has decided to close, and sends its Close frame later.
* closing: the relay's Close frame is sent behind what was queued; the peer's answer is awaited, input is thrown away.
* draining: the closing handshake is over, or will not come about: what is queued still leaves, then the TCP connection ends.
* lost: the TCP connection is gone.

The owner is told exactly once that the connection has ended and why, on leaving `open`. Nothing here is a socket: the
transport and the outbox are interfaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Final, Protocol

from automat import TypeMachineBuilder
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from viewport_relay.wire.ending import Ending
from viewport_relay.wire.interfaces import StreamTransport
from viewport_relay.wire.turn import Turn

#: Seconds that a closing connection has to send what is queued and to answer the Close frame, and again to end.
CLOSE_TIMEOUT: Final = 10.0


class Owner(Protocol):
    """The owner of a life: the connection, to which the machine reports."""

    def ended(self, ending: Ending) -> None:
        """The connection has ended; its socket may still have to send. Called once."""

    def close_sent(self) -> None:
        """The relay's Close frame is on its way."""

    def lost(self) -> None:
        """The TCP connection is gone. Called once, after `ended`."""


class Sending(Protocol):
    """The outbox, as far as the end of a connection needs it."""

    on_idle: Callable[[], None]

    @property
    def idle(self) -> bool: ...
    @property
    def drained(self) -> bool: ...
    def send_close(self, payload: bytes, *, ends: bool) -> None: ...
    def stopProducing(self) -> None: ...


class Core:
    """State and actions of the transitions: outbox, transport, owner, and the one timer."""

    __slots__ = ("_clock", "_owner", "_transport", "_turn", "ending", "machine", "outbox", "timer")

    def __init__(
        self, clock: IReactorTime, turn: Turn, transport: StreamTransport, outbox: Sending, owner: Owner
    ) -> None:
        self._clock = clock
        self._turn = turn
        self._transport = transport
        self.outbox = outbox
        self._owner: Owner | None = owner  # until lost
        self.ending: Ending | None = None
        self.timer: IDelayedCall | None = None
        self.machine: LifeInputs | None = None  # until lost

    def end(self, ending: Ending) -> None:
        """Tell the owner; the first reason stands."""
        if self.ending is None:
            self.ending = ending
            assert self._owner is not None
            self._owner.ended(ending)

    def arm(self, seconds: float) -> None:
        """Start the timer anew."""
        self.disarm()
        assert self.machine is not None
        self.timer = self._clock.callLater(seconds, self._time_out)

    def _time_out(self) -> None:
        self.timer = None
        if self.machine is not None:
            self.machine.time_out()

    def disarm(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def say_close(self) -> None:
        """Send the relay's Close frame, and wait for the peer's."""
        assert self.ending is not None
        self.outbox.send_close(self.ending.payload, ends=False)
        self.arm(CLOSE_TIMEOUT)
        assert self._owner is not None
        self._owner.close_sent()

    def drain(self) -> None:
        """End the TCP connection once everything queued has gone, within the time limit."""
        self.disarm()
        self._turn.when_sent(self._finish)

    def _finish(self) -> None:
        if self.machine is not None:
            self.outbox.on_idle = self.let_go
            self.let_go()
        if self.machine is not None:  # usually all is gone
            self.arm(CLOSE_TIMEOUT)

    def let_go(self) -> None:
        """End the TCP connection if the outbox is idle. What the transport still holds, it sends first."""
        if not self.outbox.idle or self.machine is None:
            return
        self._transport.unregisterProducer()  # TLS waits for it before it sends close_notify
        if self.outbox.drained:
            self._turn.lose(self._transport)
        else:
            self._transport.loseConnection()

    def abort(self) -> None:
        """End the TCP connection now, whatever is queued."""
        self.disarm()
        self._transport.abortConnection()

    def forget(self) -> None:
        """Drop every reference, so that the connection is freed at once."""
        self.disarm()
        self.machine = None
        self.outbox.stopProducing()
        owner, self._owner = self._owner, None
        assert owner is not None
        owner.lost()


class LifeInputs(Protocol):
    """The inputs of the machine: all that can happen to a connection."""

    def close(self, ending: Ending) -> None:
        """The relay closes the connection."""

    def close_later(self, ending: Ending, seconds: float) -> None:
        """The relay closes the connection, and sends the Close frame after `seconds`."""

    def cut(self, ending: Ending) -> None:
        """The relay drops the connection without a Close frame."""

    def peer_closed(self, ending: Ending, answer: bytes) -> None:
        """The peer's Close frame came first."""

    def close_answered(self) -> None:
        """The peer's Close frame came after the relay's."""

    def peer_gone(self, ending: Ending) -> None:
        """Nothing can be sent or received any more, while TCP still stands (TLS is over)."""

    def time_out(self) -> None:
        """The timer has run out."""

    def connection_lost(self, ending: Ending) -> None:
        """The TCP connection is gone."""


builder = TypeMachineBuilder(LifeInputs, Core)
opened = builder.state("open")
waiting = builder.state("waiting")
closing = builder.state("closing")
draining = builder.state("draining")
lost = builder.state("lost")


@opened.upon(LifeInputs.close).to(closing)
def close_now(inputs: LifeInputs, core: Core, ending: Ending) -> None:
    core.end(ending)
    core.say_close()


@opened.upon(LifeInputs.close_later).to(waiting)
def wait_to_close(inputs: LifeInputs, core: Core, ending: Ending, seconds: float) -> None:
    core.end(ending)
    core.arm(seconds)


@waiting.upon(LifeInputs.time_out).to(closing)
def close_at_last(inputs: LifeInputs, core: Core) -> None:
    core.say_close()


@opened.upon(LifeInputs.cut).to(draining)
@waiting.upon(LifeInputs.cut).to(draining)
@closing.upon(LifeInputs.cut).to(draining)
@draining.upon(LifeInputs.cut).loop()
def end_and_abort(inputs: LifeInputs, core: Core, ending: Ending) -> None:
    core.end(ending)
    core.abort()


@draining.upon(LifeInputs.time_out).loop()
def abort_in_the_end(inputs: LifeInputs, core: Core) -> None:
    core.abort()


@opened.upon(LifeInputs.peer_closed).to(draining)
@waiting.upon(LifeInputs.peer_closed).to(draining)
def end_and_answer(inputs: LifeInputs, core: Core, ending: Ending, answer: bytes) -> None:
    core.end(ending)
    core.outbox.send_close(answer, ends=True)
    core.drain()


@closing.upon(LifeInputs.close_answered).to(draining)
def finish(inputs: LifeInputs, core: Core) -> None:
    core.drain()


@closing.upon(LifeInputs.time_out).to(draining)
def finish_without_an_answer(inputs: LifeInputs, core: Core) -> None:
    # When everything has left and only the answer is missing: an orderly FIN, since a reset could still take what the
    # peer has not read from its own buffer.
    if core.outbox.idle:
        core.drain()
    else:
        core.abort()


@opened.upon(LifeInputs.peer_gone).to(draining)
@waiting.upon(LifeInputs.peer_gone).to(draining)
@closing.upon(LifeInputs.peer_gone).to(draining)
@draining.upon(LifeInputs.peer_gone).loop()
def end_and_wait(inputs: LifeInputs, core: Core, ending: Ending) -> None:
    core.end(ending)
    core.outbox.stopProducing()
    core.arm(CLOSE_TIMEOUT)


@opened.upon(LifeInputs.connection_lost).to(lost)
@waiting.upon(LifeInputs.connection_lost).to(lost)
@closing.upon(LifeInputs.connection_lost).to(lost)
@draining.upon(LifeInputs.connection_lost).to(lost)
def end_and_forget(inputs: LifeInputs, core: Core, ending: Ending) -> None:
    core.end(ending)
    core.forget()


# The first decision stands.
for _state in (waiting, closing, draining, lost):
    _state.upon(LifeInputs.close).loop().returns(None)
    _state.upon(LifeInputs.close_later).loop().returns(None)
for _state in (closing, draining, lost):
    _state.upon(LifeInputs.peer_closed).loop().returns(None)
for _state in (opened, waiting, draining, lost):
    _state.upon(LifeInputs.close_answered).loop().returns(None)
for _input in (LifeInputs.cut, LifeInputs.peer_gone, LifeInputs.connection_lost):
    lost.upon(_input).loop().returns(None)

LIFE: Final = builder.build()


class _Remembering:
    """The automaton of a machine, which finds each transition once. Automat's own compares every input with all 38 in turn."""

    def __init__(self, automaton: Any) -> None:
        self.initialState = automaton.initialState
        self.outputForInput = cache(automaton.outputForInput)


_remembering: Final[Any] = _Remembering(LIFE.__automat_automaton__)
#: Makes the machines of connections; `LIFE` is for the diagram.
_begin: Final = replace(LIFE, __automat_automaton__=_remembering)


def begin(core: Core) -> LifeInputs:
    """The machine of a connection that was just opened."""
    machine: LifeInputs = _begin(core)
    core.machine = machine
    return machine
