"""HTTP proxy: NO_PROXY rules, and the proxy that the settings select."""

from __future__ import annotations

import pytest

from viewport_relay.admission.httpproxy import HttpProxy
from viewport_relay.config import ConfigError, load

SETTINGS = {"SERVER_URL": "https://platform.example", "RELAY_LISTEN_HOST": "127.0.0.1"}

#: NO_PROXY, host, port, whether the proxy is used.
HOSTS = [
    ("", "platform.example", 443, True),
    ("", "localhost", 443, False),
    ("", "127.0.0.1", 443, False),
    ("", "::1", 443, False),
    ("*", "platform.example", 443, False),
    ("platform.example", "platform.example", 443, False),
    ("platform.example", "Platform.Example.", 443, False),
    ("platform.example", "api.platform.example", 443, False),
    ("platform.example", "otherplatform.example", 443, True),
    (".example", "platform.example", 443, False),
    ("*.example", "platform.example", 443, False),
    (".platform.example", "platform.example", 443, False),
    ("a.example, platform.example ,b.example", "platform.example", 443, False),
    ("platform.example:8443", "platform.example", 443, True),
    ("platform.example:8443", "platform.example", 8443, False),
    ("10.0.0.0/8", "10.1.2.3", 443, False),
    ("10.0.0.0/8", "11.1.2.3", 443, True),
    ("10.1.2.3", "10.1.2.3", 443, False),
    ("10.1.2.3:443", "10.1.2.3", 443, False),
    ("fd00::/8", "fd00::1", 443, False),
    ("[fd00::1]:443", "fd00::1", 443, False),
    ("10.0.0.0/8", "platform.example", 443, True),
    (".", "platform.example", 443, True),
    (",,", "platform.example", 443, True),
]


@pytest.mark.parametrize("entries,host,port,served", HOSTS)
def test_no_proxy(entries: str, host: str, port: int, served: bool) -> None:
    config = load({**SETTINGS, "RELAY_HTTP_PROXY": "http://proxy.example:3128", "NO_PROXY": entries})
    proxy = HttpProxy.from_config(config)
    assert proxy is not None and proxy.serves(host, port) is served


#: Settings, host and port of the proxy (None: no proxy), Proxy-Authorization.
SET = [
    ({}, None, None),
    ({"RELAY_HTTP_PROXY": "http://proxy.example:3128"}, ("proxy.example", 3128), None),
    ({"RELAY_HTTP_PROXY": "proxy.example:3128"}, ("proxy.example", 3128), None),
    ({"HTTPS_PROXY": "http://proxy.example:3128/"}, ("proxy.example", 3128), None),
    ({"https_proxy": "http://proxy.example"}, ("proxy.example", 80), None),
    ({"HTTPS_PROXY": "http://a.example:1", "RELAY_HTTP_PROXY": "http://b.example:2"}, ("b.example", 2), None),
    ({"HTTP_PROXY": "http://proxy.example:3128"}, None, None),
    ({"HTTPS_PROXY": "socks5://proxy.example:1080"}, None, None),
    ({"RELAY_HTTP_PROXY": "http://[fd00::1]:3128"}, ("fd00::1", 3128), None),
    (
        {"RELAY_HTTP_PROXY": "http://us%40er:p%3Ass@proxy.example:3128"},
        ("proxy.example", 3128),
        b"Basic dXNAZXI6cDpzcw==",
    ),
    ({"RELAY_HTTP_PROXY": "http://user@proxy.example:3128"}, ("proxy.example", 3128), b"Basic dXNlcjo="),
]


@pytest.mark.parametrize("given,where,credentials", SET)
def test_the_proxy_of_the_settings(
    given: dict[str, str], where: tuple[str, int] | None, credentials: bytes | None
) -> None:
    proxy = HttpProxy.from_config(load({**SETTINGS, **given}))
    assert (None if proxy is None else (proxy.host, proxy.port)) == where
    assert proxy is None or proxy.credentials == credentials


@pytest.mark.parametrize(
    "text",
    [
        "socks5://proxy.example:1080",
        "https://proxy.example",
        "http://",
        "http://p:x",
        "http://p.example/path",
    ],
)
def test_an_unusable_proxy_is_a_configuration_error_without_its_password(text: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load({**SETTINGS, "RELAY_HTTP_PROXY": text.replace("://", "://user:hush@")})
    assert "RELAY_HTTP_PROXY" in str(wrong.value) and "hush" not in str(wrong.value)


def test_notes_and_warnings_at_start() -> None:
    noted = load({**SETTINGS, "HTTPS_PROXY": "http://user:hush@proxy.example:3128"})
    assert any("HTTPS_PROXY is set" in note for note in noted.notes)
    unusable = load({**SETTINGS, "HTTPS_PROXY": "socks5://user:hush@proxy.example"})
    assert any("HTTPS_PROXY cannot be used" in warning for warning in unusable.warnings)
    in_clear = load(
        {"SERVER_URL": "http://platform.example", "RELAY_HTTP_PROXY": "http://proxy.example:3128"}
    )
    assert any("it is asked without RELAY_HTTP_PROXY" in warning for warning in in_clear.warnings)
    shown = f"{noted!r} {noted.notes} {unusable.warnings} {HttpProxy.from_config(noted)!r}"
    assert "hush" not in shown and "Basic" not in shown
