"""Property tests: hypothesis acts as the peer, or modifies messages in transit.

Invariants: no link is wrongly established, no exception is raised, exactly one reason is given.
"""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.unit.noise.peers import CONFIRM, Initiator, Recorder, connection, establish, grant, is_up
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import Pattern
from viewport_relay.protocol.grant import Profile
from viewport_relay.reasons import Reason

HANDSHAKE = {Reason.NOISE_INVALID_PSK, Reason.NOISE_HANDSHAKE_MALFORMED}
PATTERNS = st.sampled_from(Pattern)
# Drawing is slow on a busy machine; that is no failure of the code.
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def never_established(peer: Recorder, noise: NoiseLink) -> None:
    """Assert one documented failure, or a pending handshake that ends by time-out."""
    if peer.reason is None:
        noise.inputs.timeout()
        assert peer.reason is Reason.NOISE_TIMEOUT
    assert peer.reason in {*HANDSHAKE, Reason.NOISE_TIMEOUT, Reason.NOISE_PSK_UNAVAILABLE}
    assert not is_up(noise) and peer.admitted == []
    assert peer.failed[0][1]  # the detail is not empty


@st.composite
def mutated(draw: st.DrawFn, message: bytes) -> bytes:
    """A mutation of `message`: bits flipped, truncated, extended, a part repeated, moved or replaced.

    Draws do not depend on the message's content, because keys differ in each run of an example.
    """
    data = bytearray(message)
    kind = draw(st.sampled_from(["flip", "cut", "grow", "double", "swap", "replace"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[at:]
    elif kind == "grow":
        data[at:at] = draw(st.binary(min_size=1, max_size=200))
    elif kind == "double":
        data += data[at:]
    elif kind == "swap":
        data = data[at:] + data[:at]
    else:
        end = draw(st.integers(at + 1, len(data)))
        noise = draw(st.binary(min_size=end - at, max_size=end - at))
        data[at:end] = bytes(was ^ bits for was, bits in zip(data[at:end], noise, strict=True))
    assume(bytes(data) != message)
    return bytes(data)


@QUICK
@given(data=st.data(), pattern=PATTERNS)
def test_mutated_message_1(data: st.DataObject, pattern: Pattern) -> None:
    peer, noise = connection()
    noise.receive(data.draw(mutated(Initiator(pattern).message_1())))
    assert peer.sent == [] and peer.reason in HANDSHAKE
    never_established(peer, noise)


@QUICK
@given(data=st.data(), pattern=PATTERNS)
def test_mutated_confirm(data: st.DataObject, pattern: Pattern) -> None:
    peer, noise = connection()
    initiator = Initiator(pattern)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[0])
    noise.receive(data.draw(mutated(initiator.seal(CONFIRM))))
    assert peer.reason is (
        Reason.NOISE_INVALID_PSK if pattern is Pattern.IKPSK2 else Reason.NOISE_HANDSHAKE_MALFORMED
    )
    never_established(peer, noise)


@QUICK
@given(messages=st.lists(st.binary(max_size=300), max_size=6), pattern=PATTERNS, required=st.booleans())
def test_random_messages(messages: list[bytes], pattern: Pattern, required: bool) -> None:
    peer, noise = connection(grant(required=Profile.IKPSK2 if required else None))
    for message in messages:
        assert noise.receive(message) is None
    never_established(peer, noise)


@QUICK
@given(body=st.binary(min_size=96, max_size=96), pattern=PATTERNS)
def test_random_bodies_of_message_1(body: bytes, pattern: Pattern) -> None:
    peer, noise = connection()
    noise.receive(bytes([1, pattern.value]) + body)
    assert peer.reason is Reason.NOISE_HANDSHAKE_MALFORMED
    never_established(peer, noise)


@QUICK
@given(
    first=PATTERNS,
    second=PATTERNS,
    order=st.permutations(
        ["message 1", "confirm", "frame", "message 1 of another link", "confirm of another link"]
    ),
    length=st.integers(0, 5),
)
def test_messages_reordered_and_replayed_from_another_link(
    first: Pattern, second: Pattern, order: list[str], length: int
) -> None:
    """Only a link's own messages in their order establish it."""
    recorded_peer, recorded = connection()
    messages = {}
    for suffix, pattern in (("", first), (" of another link", second)):
        recorded_peer, recorded = connection()
        initiator = Initiator(pattern)
        messages["message 1" + suffix] = initiator.message_1()
        recorded.receive(messages["message 1" + suffix])
        initiator.read_message_2(recorded_peer.sent[0])
        messages["confirm" + suffix] = initiator.seal(CONFIRM)
        messages.setdefault("frame", initiator.seal(b'{"type":"e2ee"}'))
    # All messages were recorded on other links, with other ephemeral keys of the relay.
    peer, noise = connection()
    for name in order[:length]:
        assert noise.receive(messages[name]) is None
    never_established(peer, noise)


@QUICK
@given(
    pattern=PATTERNS,
    events=st.lists(
        st.sampled_from(["message 1", "confirm", "text", "timeout", "gone", "closes", "garbage", "frame"]),
        max_size=10,
    ),
)
def test_any_order_of_events(pattern: Pattern, events: list[str]) -> None:
    """A valid peer, with the link's events in any order."""
    peer, noise = connection()
    initiator = Initiator(pattern)
    message_1 = initiator.message_1()
    for event in events:
        if peer.sent and not initiator.noise.handshake_finished:
            initiator.read_message_2(peer.sent[0])
        ready = initiator.noise.handshake_finished
        if event == "message 1":
            noise.receive(message_1)
        elif event in ("confirm", "frame"):
            frame = CONFIRM if event == "confirm" else b"{}"
            got = noise.receive(initiator.seal(frame) if ready else frame)
            assert got in (None, frame)
        elif event == "garbage":
            assert noise.receive(b"garbage" * 9) is None
        else:
            tell = {
                "text": noise.inputs.text_message,
                "timeout": noise.inputs.timeout,
                "gone": noise.inputs.peer_gone,
            }
            tell.get(event, noise.inputs.relay_closes)()
    assert len(peer.admitted) <= 1 and len(peer.failed) <= 1 and len(peer.noted) <= 1
    assert not (peer.failed and peer.noted)
    assert not (is_up(noise) and peer.failed)
    if peer.admitted:
        assert events.index("confirm") > events.index("message 1")


@QUICK
@given(data=st.data(), pattern=PATTERNS, frames=st.lists(st.binary(max_size=100), min_size=1, max_size=4))
def test_mutated_records(data: st.DataObject, pattern: Pattern, frames: list[bytes]) -> None:
    """Frames before the modified record are delivered; the record and all later ones are not."""
    peer, noise = connection()
    initiator = establish(noise, peer, pattern)
    messages = [initiator.seal(frame) for frame in frames]
    victim = data.draw(st.integers(0, len(messages) - 1))
    messages[victim] = data.draw(mutated(messages[victim]))
    got = [noise.receive(message) for message in messages]
    assert got == [*frames[:victim], *([None] * (len(frames) - victim))]
    assert peer.reason in (Reason.NOISE_DECRYPT_FAILED, Reason.FRAME_TOO_LARGE) and not is_up(noise)


@QUICK
@given(pattern=PATTERNS, order=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_records_reordered_dropped_and_replayed(pattern: Pattern, order: list[int]) -> None:
    peer, noise = connection()
    initiator = establish(noise, peer, pattern)
    messages = [initiator.seal(b"%d" % number) for number in range(5)]
    right = True
    for place, number in enumerate(order):
        right = right and number == place
        assert noise.receive(messages[number]) == (b"%d" % number if right else None)
    assert is_up(noise) is right
    assert peer.reason is (None if right else Reason.NOISE_DECRYPT_FAILED)
