"""Session events over real sockets: subscribe, deny, unsubscribe, fan-out, viewer presence."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.wire.site import CHANNEL, Site, settle
from tests.wireframes import encoded

OTHER = "agent-session:beta"


def said(message: bytes) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(message)
    return members


def test_subscribe_and_unsubscribe_are_confirmed(site: Site) -> None:
    viewer = site.viewer()
    viewer.say(encoded("subscribe"), encoded("subscribe", afterSequence=41), encoded("unsubscribe"))
    first, second, third = map(said, viewer.hear_all(3))
    assert first == {
        "type": "viewport.session_events.subscribed/v1",
        "channel": CHANNEL,
        "afterSequence": 0,
        "authoritativeSource": "session_events",
        "websocketRequiredForBackfill": False,
    }
    assert second == {**first, "afterSequence": 41}
    assert third == {"type": "viewport.session_events.unsubscribed/v1", "channel": CHANNEL}


def test_a_channel_that_the_grant_lacks_is_denied(site: Site) -> None:
    daemon, viewer = site.daemon(), site.viewer(OTHER)
    viewer.say(encoded("subscribe"), encoded("presence"), encoded("unsubscribe", channel=f" {CHANNEL} "))
    first, second, third = map(said, viewer.hear_all(3))
    assert first == {
        "type": "viewport.session_events.subscribe_denied/v1",
        "channel": CHANNEL,
        "reason": "CHANNEL_NOT_AUTHORIZED",
        "workspaceId": site.workspace,
    }
    assert second == {**first, "type": "viewport.session_viewer_presence_denied/v1"}
    assert third == first
    daemon.say(encoded("session event"))
    settle(daemon, viewer)
    assert viewer.heard() == []


def test_events_go_byte_for_byte_to_every_subscriber_and_no_other_client(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    one, two, three, silent = site.viewer(), site.viewer(), site.viewer(CHANNEL, OTHER), site.viewer()
    for viewer, channel in ((one, CHANNEL), (two, f"  {CHANNEL}\t"), (three, OTHER), (three, CHANNEL)):
        viewer.say(encoded("subscribe", channel=channel))
        assert said(viewer.hear())["channel"] == channel.strip()
    event = b'{ "schema":"viewport.session_event_relay_frame/v1",  "channel" : " agent-session:alpha", "event":{"\\u0061":1e3} }'
    big = encoded("session event", event={"text": "\u00e9" * 200_000})
    other = encoded("session event", channel=OTHER)
    daemon.say(event, other, big)
    assert one.hear_all(2) == two.hear_all(2) == [event, big]
    assert three.hear_all(3) == [event, other, big]
    two.say(encoded("unsubscribe"))
    two.hear()
    one.leave()
    daemon.say(event)
    settle(daemon, two, three, silent, client)
    assert three.heard() == [event]
    assert two.heard() == silent.heard() == client.heard() == daemon.heard() == []


def test_events_do_not_cross_targets(site: Site, sites: Any) -> None:
    viewer = site.viewer()
    viewer.say(encoded("subscribe"))
    viewer.hear()
    foreign = [sites(site.relay, site.workspace, "another").daemon(), sites(site.relay).daemon()]
    for daemon in foreign:
        daemon.say(encoded("session event"))
    settle(*foreign, viewer)
    assert viewer.heard() == []


def test_presence_reaches_the_other_subscribers_and_is_never_echoed(site: Site) -> None:
    daemon = site.daemon()
    one, two, silent = site.viewer(), site.viewer(), site.viewer()
    for viewer in (one, two):
        viewer.say(encoded("subscribe"))
        viewer.hear()
    joined = encoded("presence", displayName="\u00c9lodie", sentAt="now", extra=[1])
    from_silent = encoded("presence", action="heartbeat", userId="user-2")
    one.say(joined)
    silent.say(from_silent)  # needs only the grant, no subscription
    settle(one, silent, two, daemon)
    assert sorted(two.heard()) == sorted([joined, from_silent])
    assert one.heard() == [from_silent]
    assert silent.heard() == daemon.heard() == []


def test_subscriptions_outlive_the_daemon(site: Site) -> None:
    daemon, viewer = site.daemon(), site.viewer()
    viewer.say(encoded("subscribe"))
    viewer.hear()
    daemon.leave()
    site.daemon().say(encoded("session event"))
    assert viewer.hear() == encoded("session event")


def test_frames_of_another_scope(site: Site) -> None:
    daemon = site.daemon()
    for scope in ("runtime", "pairing"):
        for frame in ("subscribe", "unsubscribe", "presence"):
            client = site.client(scope)
            client.say(encoded(frame))
            assert client.end() == (4008, "session-events scope required")
    viewer = site.viewer()
    for frame in ("e2ee", "init v3", "offer request"):
        viewer.say(encoded(frame))
        assert said(viewer.hear()) == {
            "type": "relay_status",
            "code": "SESSION_EVENTS_SCOPE_ONLY",
            "message": "session-events scoped clients can only subscribe to authorized session event channels",
            "workspaceId": site.workspace,
        }
    settle(viewer, daemon)
    assert daemon.heard() == []
