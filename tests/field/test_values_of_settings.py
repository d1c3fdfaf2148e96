"""Values of settings as operators and their tools write them: read as meant, or refused with the right form.

The first column of each row is the place where the input occurs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from viewport_relay.config import VARIABLES, ConfigError, load
from viewport_relay.config.table import Variable
from viewport_relay.observe.events import EVENTS
from viewport_relay.reasons import Reason

BASE = {"SERVER_URL": "https://platform.example"}
FLEET = {
    "RELAY_BACKPLANE_MODE": "redis",
    "RELAY_INTERNAL_KEY": "correct-horse-battery-staple-17",
    "RELAY_PUBLIC_WS_BASE_URL": "wss://relay-a.example",
}

#: (place, variable, text, attribute, value)
TAKEN: list[tuple[str, str, str, str, Any]] = [
    ("an origin copied from the address bar", "RELAY_ALLOWED_ORIGINS", "https://app.example/", "allowed_origins",
     ("https://app.example",)),
    ("an origin in capitals, from a wiki page", "RELAY_ALLOWED_ORIGINS", "HTTPS://App.Example", "allowed_origins",
     ("https://app.example",)),
    ("the default port, from a service's own list", "RELAY_ALLOWED_ORIGINS", "https://app.example:443,http://b.example:80",
     "allowed_origins", ("https://app.example", "http://b.example")),
    ("another port than the default", "RELAY_ALLOWED_ORIGINS", "http://localhost:5173", "allowed_origins",
     ("http://localhost:5173",)),
    ("semicolons between, from a Windows service", "RELAY_ALLOWED_ORIGINS", "https://a.example; https://b.example",
     "allowed_origins", ("https://a.example", "https://b.example")),
    ("spaces and line ends between, from a YAML block", "RELAY_ALLOWED_ORIGINS", "https://a.example\n  https://b.example",
     "allowed_origins", ("https://a.example", "https://b.example")),
    ("quotes around each, from a JSON list", "RELAY_ALLOWED_ORIGINS", '["https://a.example", "https://b.example"]',
     "allowed_origins", ("https://a.example", "https://b.example")),
    ("a name beyond ASCII: browsers send punycode", "RELAY_ALLOWED_ORIGINS", "https://bücher.example", "allowed_origins",
     ("https://xn--bcher-kva.example",)),
    ("an IPv6 literal", "RELAY_ALLOWED_ORIGINS", "http://[::1]:3000/", "allowed_origins", ("http://[::1]:3000",)),
    ("a Capacitor or Electron app", "RELAY_ALLOWED_ORIGINS", "capacitor://localhost", "allowed_origins",
     ("capacitor://localhost",)),
    ("a browser extension", "RELAY_ALLOWED_ORIGINS", "chrome-extension://abcdefghijklmnop", "allowed_origins",
     ("chrome-extension://abcdefghijklmnop",)),
    ("a sandboxed frame", "RELAY_ALLOWED_ORIGINS", "null", "allowed_origins", ("null",)),
    ("the same origin twice", "RELAY_ALLOWED_ORIGINS", "https://a.example,https://A.example/", "allowed_origins",
     ("https://a.example",)),
    ("a port alone: never all interfaces", "RELAY_ADMIN_LISTEN", "9093", "admin_listen", ("127.0.0.1", 9093)),
    ("a port as Go programs take it", "RELAY_ADMIN_LISTEN", ":9093", "admin_listen", ("127.0.0.1", 9093)),
    ("an address for every interface, said", "RELAY_ADMIN_LISTEN", "0.0.0.0:9093", "admin_listen", ("0.0.0.0", 9093)),
    ("an IPv6 address", "RELAY_ADMIN_LISTEN", "[::1]:9093", "admin_listen", ("::1", 9093)),
    ("a host name", "RELAY_ADMIN_LISTEN", "localhost:9093", "admin_listen", ("localhost", 9093)),
    ("brackets around a listen address", "RELAY_LISTEN_HOST", "[::1]", "listen_host", "::1"),
    ("Sentinels without their port", "RELAY_REDIS_SENTINELS", "10.0.0.1, sentinel-b:26380,[fd00::1]:26379",
     "redis_sentinels", (("10.0.0.1", 26379), ("sentinel-b", 26380), ("fd00::1", 26379))),
    ("a time as systemd and Go write it", "RELAY_PING_INTERVAL_MS", "10s", "ping_interval_ms", 10_000),
    ("minutes", "RELAY_PING_INTERVAL_MS", "5m", "ping_interval_ms", 300_000),
    ("a Go duration of two parts", "RELAY_PING_INTERVAL_MS", "1m30s", "ping_interval_ms", 90_000),
    ("a systemd time span", "RELAY_PING_INTERVAL_MS", "5min 20s", "ping_interval_ms", 320_000),
    ("milliseconds, said", "RELAY_ADMISSION_TIMEOUT_MS", "1500ms", "admission_timeout_ms", 1500),
    ("seconds, said, for a setting in seconds", "RELAY_DRAIN_SECONDS", "30s", "drain_seconds", 30),
    ("hours for a cache", "RELAY_HTTP_KEEP_ALIVE_SEC", "1h", "http_keep_alive", 3600),
    ("slashes behind a base", "SERVER_URL", "https://p.example/viewport//", "server_url", "https://p.example/viewport"),
    ("hosts of IPv6", "RELAY_REDIRECT_ALLOWED_HOSTS", "[fd00::1]:7781,[fd00::2],B.example:8443",
     "redirect_allowed_hosts", ("[fd00::1]:7781", "fd00::2", "b.example:8443")),
    ("a size in MiB", "RELAY_FRAME_MAX_BYTES", "4MiB", "frame_max_bytes", 4 << 20),
    ("a size as nginx and Docker write it", "RELAY_FRAME_MAX_BYTES", "1M", "frame_max_bytes", 1 << 20),
    ("a size as Kubernetes writes it", "RELAY_FRAME_MAX_BYTES", "512Ki", "frame_max_bytes", 512 << 10),
    ("True, from Python or Helm", "RELAY_PROXY_PROTOCOL", "True", "proxy_protocol", True),
    ("yes, from Ansible", "RELAY_PROXY_PROTOCOL", "yes", "proxy_protocol", True),
    ("off, from an ini file", "RELAY_PROXY_PROTOCOL", "off", "proxy_protocol", False),
    ("quotes that docker run --env-file keeps", "RELAY_LISTEN_PORT", '"7800"', "listen_port", 7800),
    ("single quotes of a dotenv file", "RELAY_JWKS_URL", "'https://keys.example/jwks.json'", "jwks_url",
     "https://keys.example/jwks.json"),
    ("a line end of Windows", "RELAY_LISTEN_PORT", "7800\r", "listen_port", 7800),
    ("a slash at the end of the platform's origin", "SERVER_URL", "https://platform.example/", "validate_url",
     "https://platform.example/api/runtime/internal/relay/validate"),
    ("allowed hosts in capitals", "RELAY_REDIRECT_ALLOWED_HOSTS", "Relay-A.example relay-b.example",
     "redirect_allowed_hosts", ("relay-a.example", "relay-b.example")),
]  # fmt: skip

#: (place, variable, text, words of the refusal)
REFUSED = [
    (
        "a CORS habit",
        "RELAY_ALLOWED_ORIGINS",
        "*",
        "any origin may connect when RELAY_ALLOWED_ORIGINS is not set",
    ),
    ("a host without scheme", "RELAY_ALLOWED_ORIGINS", "app.example", "write https://app.example"),
    (
        "a wildcard, as CORS libraries take it",
        "RELAY_ALLOWED_ORIGINS",
        "https://*.example",
        "list each origin",
    ),
    (
        "the page's whole URL",
        "RELAY_ALLOWED_ORIGINS",
        "https://app.example/login",
        "write https://app.example",
    ),
    ("a page from disk", "RELAY_ALLOWED_ORIGINS", "file:///home/x/index.html", "write null"),
    (
        "an address without port",
        "RELAY_ADMIN_LISTEN",
        "127.0.0.1",
        "the port is missing, as in 127.0.0.1:7782",
    ),
    ("an IPv6 address without brackets", "RELAY_ADMIN_LISTEN", "::1:9093", "brackets"),
    ("a URL for an address", "RELAY_ADMIN_LISTEN", "http://127.0.0.1:9093", "leave out the scheme"),
    ("all interfaces as some write it", "RELAY_ADMIN_LISTEN", "*:9093", "0.0.0.0"),
    ("an invalid port", "RELAY_ADMIN_LISTEN", "127.0.0.1:99999", "'99999' is no port"),
    ("host and port in one", "RELAY_LISTEN_HOST", "0.0.0.0:7781", "the port is RELAY_LISTEN_PORT's"),
    ("all interfaces, in the host", "RELAY_LISTEN_HOST", "*", "0.0.0.0"),
    ("a Sentinel's URL", "RELAY_REDIS_SENTINELS", "redis://10.0.0.1:26379", "leave out the scheme"),
    ("separators in a number", "RELAY_MAX_TOTAL_CONNECTIONS", "10,000", "write it without separators: 10000"),
    (
        "underscores in a number",
        "RELAY_MAX_TOTAL_CONNECTIONS",
        "10_000",
        "write it without separators: 10000",
    ),
    ("a unit where a count is meant", "RELAY_MAX_TOTAL_CONNECTIONS", "2k", "a whole number from 0"),
    ("an unknown unit", "RELAY_PING_INTERVAL_MS", "10 parsecs", "500ms 10s 5m 1h"),
    ("a fraction of a second for whole seconds", "RELAY_DRAIN_SECONDS", "500ms", "10s 5m 1h"),
    ("too large a time", "RELAY_PING_INTERVAL_MS", "2d", "milliseconds from 1 to 86400000"),
    (
        "a comment behind a value, as docker --env-file keeps it",
        "RELAY_LISTEN_PORT",
        "7781 # public",
        "a whole number",
    ),
    (
        "a Service named relay-listen in Kubernetes",
        "RELAY_LISTEN_PORT",
        "tcp://10.96.0.7:7781",
        "enableServiceLinks",
    ),
    ("a URL without scheme", "RELAY_JWKS_URL", "platform.example/jwks", "starts with http:// or https://"),
    ("a redirect host as URL", "RELAY_REDIRECT_ALLOWED_HOSTS", "wss://relay-b.example", "without scheme"),
    ("a template that was not filled in", "RELAY_REDIRECT_ALLOWED_HOSTS", "${HOST}", "no host name"),
    ("a comment behind hosts", "RELAY_REDIRECT_ALLOWED_HOSTS", "a.example # ours", "'#' is no host name"),
    (
        "origins of a template with empty values: not any origin",
        "RELAY_ALLOWED_ORIGINS",
        " , ",
        "no entry in it",
    ),
    ("an empty JSON list", "RELAY_ALLOWED_ORIGINS", "[]", "no entry in it"),
    (
        "hosts of a template with empty values: not any host",
        "RELAY_REDIRECT_ALLOWED_HOSTS",
        ",",
        "no entry in it",
    ),
    ("tokens of a template with empty values", "RELAY_ADMIN_TOKEN", ",", "no entry in it"),
    ("Sentinels of a template with empty values", "RELAY_REDIS_SENTINELS", ",,", "no entry in it"),
    ("an origin with a query, from the address bar", "SERVER_URL", "https://p.example/?tab=1", "leave out"),
    ("a fragment, from the address bar", "RELAY_PUBLIC_WS_BASE_URL", "wss://r.example/#/home", "leave out"),
]


@pytest.mark.parametrize(
    ("where", "name", "text", "attribute", "value"), TAKEN, ids=[case[0] for case in TAKEN]
)
def test_accepted_values(where: str, name: str, text: str, attribute: str, value: Any) -> None:
    config = load({**BASE, **(FLEET if name.startswith("RELAY_REDIS_") else {}), name: text})
    assert getattr(config, attribute) == value
    assert config.warnings == ()


@pytest.mark.parametrize(("where", "name", "text", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused_values(where: str, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({**BASE, name: text})
    (problem,) = caught.value.errors
    assert problem.startswith(f"{name}: got ")
    assert words in problem


@pytest.mark.parametrize("quotes", ['""', "''"])
@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_quotes_without_a_value_count_as_unset(variable: Variable, quotes: str) -> None:
    """`docker run --env-file` keeps the quotes of NAME=""."""
    unset = {name: text for name, text in BASE.items() if name != variable.name}
    for name in (variable.name, *variable.older):
        environ = {
            "RELAY_JWKS_URL": "https://p.example/j",
            "RELAY_VALIDATE_URL": "https://p.example/v",
            **unset,
        }
        environ.pop(name, None)
        if variable.name in ("RELAY_JWKS_URL", "RELAY_VALIDATE_URL"):
            environ = dict(BASE)
        plain, quoted = load(environ), load({**environ, name: quotes})
        if variable.attribute != "relay_id":  # made at random
            assert getattr(quoted, variable.attribute) == getattr(plain, variable.attribute)
        assert quoted.sources[variable.attribute] == "default"


def test_quotes_around_the_name_of_a_file_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "env").write_text('RELAY_LISTEN_PORT="4711"\n')
    (tmp_path / "token").write_text(STRONG)
    os.chmod(tmp_path / "token", 0o600)
    quoted = {
        "RELAY_SETTINGS_FILE": f'"{tmp_path}/env"',
        "RELAY_ADMIN_TOKEN_FILE": f"'{tmp_path}/token'",
    }
    config = load({**BASE, **quoted})
    assert (config.listen_port, config.admin_tokens, config.warnings) == (4711, (STRONG,), ())


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"SERVER_URL": "htps://user:hunter2hunter2@platform.example"})
    assert "hunter2" not in str(caught.value) and "htps://…@platform.example" in str(caught.value)


@pytest.mark.parametrize(
    "given", ["user:{}@host:1", "a:1,user:{}@host:1", "htps://user:{}@host", "user:{}@", "x, user:{}@::1"]
)
@pytest.mark.parametrize("password", ["hunter2hunter2", "hunter2" * 40])
@pytest.mark.parametrize(
    "variable",
    [
        variable
        for variable in VARIABLES
        if variable.name.endswith(("_URL", "_PROXY", "_SENTINELS", "_LISTEN"))
    ],
    ids=lambda variable: variable.name,
)
def test_a_password_before_a_host_is_not_shown(variable: Variable, password: str, given: str) -> None:
    try:
        config = load({**BASE, variable.name: given.format(password)})
    except ConfigError as caught:
        assert "hunter2" not in str(caught)
    else:
        assert "hunter2" not in " ".join(config.warnings)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_huge_value_gets_a_short_sentence(variable: Variable) -> None:
    for name in (variable.name, f"{variable.name}_FILE" if variable.secret else variable.name):
        for text in ("x" * 100_000, "9" * 5000, "/" + "y" * 9000):
            try:
                found = load({**BASE, name: text}).warnings
            except ConfigError as error:
                found = (*error.errors, *error.warnings)
            assert all(len(sentence) < 700 for sentence in found)


# -- names -------------------------------------------------------------------------------------------------

#: (place, name, suggested name)
UNKNOWN = [
    ("a letter too few", "RELAY_TRUSTED_PROXY", "RELAY_TRUSTED_PROXIES"),
    ("the older name misspelled", "RELAY_MAX_FRAMES_BYTES", "RELAY_FRAME_MAX_BYTES"),
    ("an underscore too few", "RELAY_JWKSURL", "RELAY_JWKS_URL"),
    ("a singular", "RELAY_ALLOWED_ORIGIN", "RELAY_ALLOWED_ORIGINS"),
]


@pytest.mark.parametrize(("where", "name", "nearest"), UNKNOWN, ids=[case[0] for case in UNKNOWN])
def test_an_unknown_name_gets_the_nearest_suggestion(where: str, name: str, nearest: str) -> None:
    (warning,) = load({**BASE, name: "1"}).warnings
    assert warning == f"{name} is set, but there is no such setting, did you mean {nearest}?"


def test_variables_of_kubernetes_services_are_ignored() -> None:
    """Kubernetes sets these variables in each pod next to a Service named relay or relay-admin."""
    links = {
        "RELAY_SERVICE_HOST": "10.96.0.7",
        "RELAY_SERVICE_PORT": "7781",
        "RELAY_SERVICE_PORT_WS": "7781",
        "RELAY_PORT": "tcp://10.96.0.7:7781",
        "RELAY_PORT_7781_TCP": "tcp://10.96.0.7:7781",
        "RELAY_PORT_7781_TCP_ADDR": "10.96.0.7",
        "RELAY_PORT_7781_TCP_PORT": "7781",
        "RELAY_PORT_7781_TCP_PROTO": "tcp",
        "RELAY_ADMIN_PORT": "tcp://10.96.0.8:9093",
        "RELAY_ADMIN_SERVICE_HOST": "10.96.0.8",
    }
    assert load({**BASE, **links}).warnings == ()


def test_older_names_are_warnings_except_those_that_hosts_set() -> None:
    """Heroku, Cloud Run and others set HOST and PORT for every program."""
    config = load({**BASE, "PORT": "8080", "HOST": "127.0.0.1", "MAX_LOGS": "7"})
    assert (config.listen_port, config.max_logs) == (8080, 7)
    (warning,) = config.warnings
    assert warning == "MAX_LOGS is the older name of RELAY_MAX_LOGS: it is still read"


def test_unlisted_settings_are_read_with_one_warning_for_all() -> None:
    """Deployments of version 0.1."""
    config = load({**BASE, "RELAY_FAST_PATH": "0", "RELAY_NOISE_TIMEOUT_MS": "5s"})
    assert (config.fast_path, config.noise_timeout_ms) == (False, 5000)
    (warning,) = config.warnings
    assert "RELAY_NOISE_TIMEOUT_MS, RELAY_FAST_PATH" in warning


def test_the_reference_lists_sixty_settings_at_most() -> None:
    """Operators read the whole table before a first deployment."""
    assert len([variable for variable in VARIABLES if variable.listed]) <= 60


def test_no_fix_names_an_unlisted_setting() -> None:
    """Operators follow the log line, and the next start must not warn about that setting."""
    unlisted = {variable.name for variable in VARIABLES if not variable.listed}
    for code, fix in [*((r.code, r.entry.fix) for r in Reason), *((n, e.fix) for n, e in EVENTS.items())]:
        assert not unlisted & set(re.findall(r"RELAY_[A-Z_]+", fix)), code


# -- settings that undo each other --------------------------------------------------------------------------

#: (place, settings, words of the warning)
UNDONE = [
    ("one token for Prometheus and operators", {"RELAY_ADMIN_TOKEN": "b" * 4 + "correct-horse-17", "RELAY_METRICS_TOKEN":
     "another-strong-token-4711," + "b" * 4 + "correct-horse-17"}, "RELAY_METRICS_TOKEN is a token of RELAY_ADMIN_TOKEN too"),
    ("all proxies, as in other programs", {"RELAY_TRUSTED_PROXIES": "10.0.0.0/8,0.0.0.0/0"}, "RELAY_TRUSTED_PROXIES=0.0.0.0/0 "),
    ("Redis without the mode", {"RELAY_REDIS_URL": "redis://10.0.0.7"}, "RELAY_REDIS_URL is set without RELAY_BACKPLANE_MODE=redis"),
    ("Sentinels without the mode", {"RELAY_REDIS_SENTINELS": "10.0.0.7"},
     "RELAY_REDIS_SENTINELS is set without RELAY_BACKPLANE_MODE=redis"),
    ("all proxies of IPv6", {"RELAY_TRUSTED_PROXIES": "::/0"}, "RELAY_TRUSTED_PROXIES=::/0 "),
    ("a queue of an older deployment and longer messages", {"RELAY_MAX_PENDING_BYTES": "1M", "RELAY_FRAME_MAX_BYTES": "4M"},
     "RELAY_MAX_PENDING_BYTES=1048576 is less than RELAY_FRAME_MAX_BYTES=4194304"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "more", "words"), UNDONE, ids=[case[0] for case in UNDONE])
def test_settings_that_undo_others_are_warnings(where: str, more: dict[str, str], words: str) -> None:
    found = [warning for warning in load({**BASE, **more}).warnings if "no longer listed" not in warning]
    assert [warning.startswith(words) for warning in found] == [True]


# -- production --------------------------------------------------------------------------------------------

PROD = {**BASE, "RELAY_LISTEN_HOST": "0.0.0.0"}
STRONG = "correct-horse-battery-staple-17"

#: (place, settings, words of the warning)
RISKY = [
    ("a first deployment without the key", {}, "RELAY_INTERNAL_KEY is not set"),
    ("a platform in the cluster over http", {"SERVER_URL": "http://platform.svc", "RELAY_INTERNAL_KEY": STRONG},
     "RELAY_JWKS_URL is http://"),
    ("verification switched off while testing", {"RELAY_SERVER_TLS_VERIFY": "0", "RELAY_INTERNAL_KEY": STRONG},
     "RELAY_SERVER_TLS_VERIFY is off"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "more", "words"), RISKY, ids=[case[0] for case in RISKY])
def test_risky_settings_in_production_are_warnings(where: str, more: dict[str, str], words: str) -> None:
    assert any(warning.startswith(words) for warning in load({**PROD, **more}).warnings)
    assert not any(
        warning.startswith(words) for warning in load({**PROD, **more, "RELAY_MODE": "staging"}).warnings
    )


def test_mistyped_proxies_do_not_open_the_proxy_protocol_to_every_address() -> None:
    """Without a proxy in the list, headers of every address are taken: an operator who names some wants a bound."""
    wrong = {**BASE, "RELAY_PROXY_PROTOCOL": "1", "RELAY_TRUSTED_PROXIES": "10.0.0.0/33"}
    with pytest.raises(ConfigError) as refused:
        load(wrong)
    [error] = refused.value.errors
    assert error.startswith("RELAY_TRUSTED_PROXIES has no usable entry") and "RELAY_PROXY_PROTOCOL" in error
    assert load({**wrong, "RELAY_TRUSTED_PROXIES": "10.0.0.0/33,10.0.0.0/8"}).warnings
    assert load({**wrong, "RELAY_PROXY_PROTOCOL": "0"}).warnings


def test_a_password_in_a_list_of_proxies_is_not_shown() -> None:
    [warning] = load({**BASE, "RELAY_TRUSTED_PROXIES": "http://user:hunter2@proxy.example"}).warnings
    assert "hunter2" not in warning and "proxy.example" in warning
