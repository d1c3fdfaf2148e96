"""The reference peers' pairing: single-use codes, limited attempts, expiry."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.peer.wiring import Wire
from viewport_relay.peer import base64url
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.pairing import MAX_OFFERS, Channel, PairingDesk
from viewport_relay.peer.symmetric import KeyPair


class Desk:
    """The daemon's pairing desk with a fake clock, and the client's side of a pairing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.codes: list[str] = []
        self.secrets: dict[str, bytes] = {}
        self.desk = PairingDesk(lambda: self.now, self.codes.append, self.secrets)
        self.own = KeyPair.generate()

    def offer(self, **over: Any) -> dict[str, Any]:
        request = {
            "type": "relay_pairing_offer_request",
            "requestId": "r",
            "clientChannelPublicKey": base64url.encode(self.own.public),
        }
        return self.desk.answer(request | over)

    def channel(self, offer: dict[str, Any]) -> tuple[Channel, str]:
        channel = Channel(self.own, base64url.decode(offer["daemonChannelPublicKey"], "key"))
        return channel, str(channel.open("offer", offer)["offerId"])

    def redeem(self, channel: Channel, offer_id: str, code: object) -> dict[str, Any]:
        head = {"type": "relay_pairing_redeem_request", "requestId": "r2", "offerId": offer_id}
        return self.desk.answer(head | channel.seal("redeem", {"code": code}))


def _wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


def test_a_pairing_ends_with_the_same_secret_on_both_sides() -> None:
    desk = Desk()
    offer = desk.offer(ttlSeconds=60)
    assert (offer["type"], offer["requestId"], offer["ok"]) == ("relay_pairing_offer_response", "r", True)
    channel, offer_id = desk.channel(offer)
    response = desk.redeem(channel, offer_id, desk.codes[0])
    assert (response["type"], response["ok"]) == ("relay_pairing_redeem_response", True)
    got = channel.open("secret", response)
    assert desk.secrets == {str(got["pairingPeerId"]): base64url.decode(got["pairingSecret"], "secret", 32)}


def test_a_code_is_single_use() -> None:
    desk = Desk()
    channel, offer_id = desk.channel(desk.offer())
    assert desk.redeem(channel, offer_id, desk.codes[0])["ok"]
    again = desk.redeem(channel, offer_id, desk.codes[0])
    assert (again["ok"], again["errorCode"]) == (False, "PAIRING_UNKNOWN")
    assert len(desk.secrets) == 1


def test_three_wrong_codes_end_an_offer() -> None:
    desk = Desk()
    channel, offer_id = desk.channel(desk.offer())
    for _ in range(3):
        assert desk.redeem(channel, offer_id, _wrong(desk.codes[0]))["errorCode"] == "PAIRING_FAILED"
    assert desk.redeem(channel, offer_id, desk.codes[0])["errorCode"] == "PAIRING_UNKNOWN"
    assert not desk.secrets


@pytest.mark.parametrize(("after", "ok"), [(59.9, True), (60.0, False)])
def test_an_offer_expires(after: float, ok: bool) -> None:
    desk = Desk()
    channel, offer_id = desk.channel(desk.offer(ttlSeconds=60))
    desk.now = after
    assert desk.redeem(channel, offer_id, desk.codes[0])["ok"] is ok


def test_the_oldest_offers_are_dropped_over_the_limit() -> None:
    desk = Desk()
    channel, offer_id = desk.channel(desk.offer())
    for _ in range(MAX_OFFERS):
        desk.offer()
    assert desk.redeem(channel, offer_id, desk.codes[0])["errorCode"] == "PAIRING_UNKNOWN"


def test_another_channel_cannot_redeem() -> None:
    desk = Desk()
    _, offer_id = desk.channel(desk.offer())
    stranger = Channel(KeyPair.generate(), desk.own.public)
    assert desk.redeem(stranger, offer_id, desk.codes[0])["errorCode"] == "DECRYPT_FAILED"


@pytest.mark.parametrize(
    "over", [{"clientChannelPublicKey": "AAAA"}, {"ttlSeconds": "60"}, {"ttlSeconds": 0}], ids=str
)
def test_invalid_offers(over: dict[str, Any]) -> None:
    assert Desk().offer(**over)["errorCode"] == "MALFORMED"


@pytest.mark.parametrize("code", [None, 5, "", "000000 "], ids=repr)
def test_invalid_codes(code: object) -> None:
    desk = Desk()
    channel, offer_id = desk.channel(desk.offer())
    assert desk.redeem(channel, offer_id, code)["ok"] is False
    assert not desk.secrets


def test_without_a_request_id_there_is_no_answer() -> None:
    with pytest.raises(PeerError):
        Desk().offer(requestId=" ")


def test_the_daemon_answers_pairing_when_it_has_a_desk() -> None:
    request = json.dumps(
        {
            "type": "relay_pairing_offer_request",
            "requestId": "r",
            "clientChannelPublicKey": base64url.encode(KeyPair.generate().public),
        }
    )
    wire = Wire(pairing_desk=Desk().desk)
    wire.daemon.frame_received(request)
    assert json.loads(wire.to_client[0])["ok"] is True
    without = Wire()
    without.daemon.frame_received(request)
    assert not without.to_client
