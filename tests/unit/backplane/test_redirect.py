"""Redirect rule: URLs of other relays that a client may be sent to."""

from __future__ import annotations

import pytest

from viewport_relay.backplane.redirect import RedirectRule
from viewport_relay.config import load

PROD = {
    "RELAY_MODE": "prod",
    "RELAY_INTERNAL_KEY": "an-internal-key-0123456789",
    "SERVER_URL": "https://platform.example",
    "RELAY_PUBLIC_WS_BASE_URL": "wss://relay-a.example",
}
DEV = {**PROD, "RELAY_MODE": "dev"}


@pytest.mark.parametrize(
    "url", ["ws://h", "wss://h:8443", "ws://[::1]:7781", "wss://relay.example/path", "WSS://H"]
)
def test_in_dev_any_host_is_allowed(url: str) -> None:
    assert RedirectRule.from_config(load(DEV)).allows(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "//h", "http://h", "https://h", "ftp://h", "ws://", "ws:///x", "ws://user@h", "ws://user:pw@h",
        "ws://@h", "ws://h?a", "ws://h/?", "ws://h#f", "ws://h/#", "ws://h:0", "ws://h:99999", "ws://h:x", "ws://[::1",
        "ws://h h", "ws://h\n", "\tws://h", "ws://hä", "ws://h\\@evil", "ws://" + "h" * 600,
    ],
)  # fmt: skip
def test_invalid_urls(url: str) -> None:
    assert not RedirectRule.from_config(load(DEV)).allows(url)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("wss://relay-a.example", True),
        ("wss://RELAY-A.example:8443/x", True),
        ("ws://relay-a.example", False),
        ("wss://relay-b.example", False),
        ("wss://relay-a.example.evil.example", False),
    ],
)
def test_in_prod_only_the_relays_own_host_over_wss(url: str, allowed: bool) -> None:
    assert RedirectRule.from_config(load(PROD)).allows(url) is allowed


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("wss://relay-b.example", True),
        ("wss://Relay-B.Example:8443", True),
        ("ws://10.0.0.7:7781", True),
        ("ws://10.0.0.7:7782", False),
        ("wss://relay-a.example", False),
        ("wss://sub.relay-b.example", False),
    ],
)
@pytest.mark.parametrize("settings", [DEV, PROD])
def test_the_setting_lists_allowed_hosts(settings: dict[str, str], url: str, allowed: bool) -> None:
    rule = RedirectRule.from_config(
        load({**settings, "RELAY_REDIRECT_ALLOWED_HOSTS": " RELAY-b.example, 10.0.0.7:7781 "})
    )
    assert rule.allows(url) is allowed
