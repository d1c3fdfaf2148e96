"""The table of settings and its loader: values, older names, files, errors, rules between settings."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.config import (
    BY_ATTRIBUTE,
    VARIABLES,
    Config,
    ConfigError,
    is_loopback,
    load,
    parse_network,
    reread,
)

BASE = {"SERVER_URL": "https://platform.example"}
STRONG = "correct-horse-battery-staple-17"
PROD = {**BASE, "RELAY_LISTEN_HOST": "0.0.0.0", "RELAY_INTERNAL_KEY": STRONG}


def errors(environ: dict[str, str], **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ, **more)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


# -- texts that no setting can hold ------------------------------------------------------------------------


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
@pytest.mark.parametrize("text", ["a\0b", "http://a\0b.example", "a\udcffb", "http://a\udcffb.example"])
def test_nul_and_bytes_that_are_not_utf8_are_refused_by_name(variable: Any, text: str) -> None:
    found = errors({**BASE, variable.name: text})
    got = "a value that is kept secret" if variable.secret else repr(text)
    assert f"{variable.name}: got {got}, takes UTF-8 text without NUL" in found


def test_a_file_name_with_nul_is_refused_by_name(tmp_path: Path) -> None:
    wrong = "'/run/a\\x00b' is no file name: it has a NUL character"
    assert f"RELAY_SETTINGS_FILE: {wrong}" in errors({**BASE, "RELAY_SETTINGS_FILE": "/run/a\0b"})
    settings = tmp_path / "env"
    settings.write_bytes(b"RELAY_ADMIN_TOKEN_FILE=/run/a\0b\n")
    assert errors({**BASE, "RELAY_SETTINGS_FILE": str(settings)}) == [f"RELAY_ADMIN_TOKEN_FILE: {wrong}"]


# -- the table ---------------------------------------------------------------------------------------------


def test_table_and_config_have_the_same_fields() -> None:
    derived = {"dev_platform", "sources", "warnings", "notes", "worker_of"}
    assert {variable.attribute for variable in VARIABLES} == {f.name for f in attrs.fields(Config)} - derived


def test_names_and_older_names_are_unique() -> None:
    names = [name for variable in VARIABLES for name in (variable.name, *variable.older)]
    assert len(set(names)) == len(names)
    assert len(BY_ATTRIBUTE) == len(VARIABLES)
    options = [variable.option for variable in VARIABLES if variable.option]
    assert len(set(options)) == len(options)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_every_variable_is_documented(variable: Any) -> None:
    assert variable.help
    assert not variable.help.endswith(".")
    assert variable.group
    assert variable.shown_default or variable.default == ()


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("RELAY_LISTEN_HOST", "127.0.0.1"),
        ("RELAY_LISTEN_PORT", 7781),
        ("RELAY_RATE_LIMIT_PER_IP", 120),
        ("RELAY_MAX_TOTAL_CONNECTIONS", 2000),
        ("RELAY_MAX_CONNECTIONS_PER_IP", 50),
        ("RELAY_MAX_CLIENTS_PER_WORKSPACE", 100),
        ("RELAY_FRAME_MAX_BYTES", 1_048_576),
        ("RELAY_MAX_PENDING_BYTES", 4 * 1024 * 1024),
        ("RELAY_KEX_INIT_RATE_PER_MINUTE", 60),
        ("RELAY_PAIRING_RATE_PER_MINUTE", 30),
        ("RELAY_RUNTIME_RATE_PER_MINUTE", 240),
        ("RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE", 1200),
        ("RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE", 2400),
        ("RELAY_PAIRING_REQUEST_TRACK_MAX", 2048),
        ("RELAY_SESSION_OWNER_TRACK_MAX", 4096),
        ("RELAY_PING_INTERVAL_MS", 30_000),
        ("RELAY_PONG_TIMEOUT_MS", 10_000),
        ("RELAY_IDLE_TIMEOUT_MS", 300_000),
        ("RELAY_EMPTY_WORKSPACE_TTL_MS", 120_000),
        ("RELAY_CLEANUP_INTERVAL_MS", 30_000),
        ("RELAY_MAX_LOGS", 1000),
        ("RELAY_DRAIN_SECONDS", 5),
        ("RELAY_TOKEN_ISSUER", "viewport-server"),
        ("RELAY_TOKEN_AUDIENCE", "viewport-relay"),
        ("RELAY_TOKEN_CLOCK_SKEW_SEC", 30),
        ("RELAY_JWKS_CACHE_TTL", 3600),
        ("RELAY_JWKS_COOLDOWN", 30),
        ("RELAY_VALIDATE_CACHE_TTL", 10),
        ("RELAY_ADMISSION_TIMEOUT_MS", 2000),
        ("RELAY_ADMISSION_MAX_RESPONSE_BYTES", 262_144),
        ("RELAY_REJECT_MODE", "auto"),
        ("RELAY_NOISE_LINK", "optional"),
        ("RELAY_NOISE_TIMEOUT_MS", 10_000),
        ("RELAY_BACKPLANE_MODE", "single"),
        ("RELAY_BUS_SIGNATURE_MAX_SKEW_MS", 15_000),
        ("RELAY_BUS_POLL_INTERVAL_MS", 250),
        ("RELAY_BUS_PULL_LIMIT", 200),
        ("RELAY_BUS_PULL_WAIT_MS", 1000),
        ("RELAY_PRESENCE_SYNC_INTERVAL_MS", 20_000),
        ("RELAY_REDIS_KEY_PREFIX", "viewport:relay"),
        ("RELAY_REDIS_CONNECT_TIMEOUT_MS", 5000),
        ("RELAY_REDIS_PRESENCE_TTL_MS", 45_000),
        ("RELAY_REDIS_QUEUE_MAX", 10_000),
        ("RELAY_INTERNAL_API_TIMEOUT_MS", 2000),
        ("RELAY_INTERNAL_API_MAX_RESPONSE_BYTES", 262_144),
    ],
)
def test_default_of_the_contract(name: str, default: object) -> None:
    (variable,) = (variable for variable in VARIABLES if variable.name == name)
    assert variable.default == default
    assert getattr(load(BASE), variable.attribute) == default


def test_the_queue_limit_exceeds_the_longest_message() -> None:
    """A queue shorter than one message would close each receiver of that message."""
    assert load({**BASE, "RELAY_FRAME_MAX_BYTES": "16MiB"}).max_pending_bytes == 64 << 20
    assert load({**BASE, "RELAY_FRAME_MAX_BYTES": "4096"}).max_pending_bytes == 4 << 20
    given = {"RELAY_FRAME_MAX_BYTES": "16MiB", "RELAY_MAX_PENDING_BYTES": "1MiB"}
    assert load({**BASE, **given}).max_pending_bytes == 1 << 20


# -- reading -----------------------------------------------------------------------------------------------


def test_a_deployment_with_four_variables() -> None:
    config = load(
        {
            "RELAY_LISTEN_PORT": "9000",
            "RELAY_INTERNAL_KEY": STRONG,
            "RELAY_VALIDATE_URL": "https://platform.example:8443/v/validate",
            "RELAY_JWKS_URL": "https://keys.example/jwks.json",
        }
    )
    assert (config.listen_host, config.listen_port) == ("127.0.0.1", 9000)
    assert config.server_url == "https://platform.example:8443"
    assert config.jwks_url == "https://keys.example/jwks.json"
    assert config.validate_url == "https://platform.example:8443/v/validate"
    assert config.mode == "dev"
    assert config.warnings == ()


def test_urls_from_the_platform_origin() -> None:
    config = load({"SERVER_URL": "https://platform.example/"})
    assert config.jwks_url == "https://platform.example/api/.well-known/jwks.json"
    assert config.validate_url == "https://platform.example/api/runtime/internal/relay/validate"


OLDER = [(variable, older) for variable in VARIABLES for older in variable.older]


@pytest.mark.parametrize(("variable", "older"), OLDER, ids=lambda value: getattr(value, "name", value))
def test_older_name_works_and_the_documented_one_wins(variable: Any, older: str) -> None:
    text, other = ("localhost", "127.0.0.1") if variable.attribute == "listen_host" else ("1234", "4321")
    config = load({**BASE, older: text})
    assert str(getattr(config, variable.attribute)) == text
    assert config.sources[variable.attribute] == older
    config = load({**BASE, older: text, variable.name: other})
    assert str(getattr(config, variable.attribute)) == other
    assert config.sources[variable.attribute] == variable.name


def test_options_override_the_environment() -> None:
    config = load({**BASE, "RELAY_LISTEN_PORT": "1"}, {"listen_port": "2"})
    assert config.listen_port == 2
    assert config.sources["listen_port"] == "option --listen-port"


def test_an_empty_value_counts_as_unset() -> None:
    config = load({**BASE, "RELAY_LISTEN_PORT": "", "RELAY_MODE": "  "})
    assert (config.listen_port, config.mode) == (7781, "dev")
    assert config.sources["listen_port"] == "default"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("On", True),
        ("0", False),
        ("false", False),
        ("no", False),
        ("OFF", False),
    ],
)
def test_booleans(text: str, value: bool) -> None:
    assert load({**BASE, "RELAY_PROXY_PROTOCOL": text}).proxy_protocol is value


@pytest.mark.parametrize("text", ["2", "y", "tru e", "maybe", "-1"])
def test_invalid_booleans(text: str) -> None:
    (error,) = errors({**BASE, "RELAY_PROXY_PROTOCOL": text})
    assert error == f"RELAY_PROXY_PROTOCOL: got {text!r}, takes one of 0 1 false true no yes off on"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RELAY_LISTEN_PORT", "70000"),
        ("RELAY_LISTEN_PORT", "-1"),
        ("RELAY_LISTEN_PORT", "7781.0"),
        ("RELAY_LISTEN_PORT", "٣"),
        ("RELAY_LISTEN_PORT", "1_0"),
        ("RELAY_FRAME_MAX_BYTES", "1e6"),
        ("RELAY_FRAME_MAX_BYTES", "9" * 40),
        ("RELAY_MODE", "production"),
        ("RELAY_JWKS_URL", "ftp://platform.example/jwks"),
        ("RELAY_JWKS_URL", "platform.example"),
        ("RELAY_JWKS_URL", "https://"),
        ("RELAY_JWKS_URL", "https://platform.example:99999/"),
        ("RELAY_PUBLIC_WS_BASE_URL", "https://relay.example"),
        ("RELAY_ID", "a b"),
        ("RELAY_ID", "x" * 129),
        ("RELAY_REJECT_MODE", "never"),
        ("RELAY_NOISE_LINK", "yes"),
        ("RELAY_BACKPLANE_MODE", "kafka"),
        ("RELAY_TOKEN_ISSUER", "a\x01b"),
    ],
)
def test_a_value_that_does_not_parse_names_variable_value_and_what_it_takes(name: str, text: str) -> None:
    (error,) = errors({**BASE, name: text})
    assert error.startswith(f"{name}: got {text[:200]!r}, takes ")


@pytest.mark.parametrize("name", ["RELAY_LISTEN_HOST", "RELAY_ADMIN_LISTEN", "RELAY_REDIS_SENTINELS"])
@pytest.mark.parametrize("host", ["a b", "x" * 3000])
def test_a_host_that_is_none_is_named_once_and_cut(name: str, host: str) -> None:
    text = host if name == "RELAY_LISTEN_HOST" else f"{host}:9093"
    (error,) = errors({**BASE, name: text})
    assert error.startswith(f"{name}: got {text[:200]!r}: {host[:64]!r} is no host name or address, as in ")


@pytest.mark.parametrize("text", ["gar bage", "platform.example"])
def test_a_wrong_origin_is_one_error(text: str) -> None:
    (error,) = errors({"SERVER_URL": text})
    assert error.startswith(f"SERVER_URL: got {text!r}")


def test_all_errors_at_once() -> None:
    found = errors(
        {
            "RELAY_LISTEN_PORT": "x",
            "RELAY_MODE": "y",
            "RELAY_BUS_ENABLED": "1",
            "RELAY_BACKPLANE_MODE": "redis",
        }
    )
    for start in (
        "RELAY_LISTEN_PORT:",
        "RELAY_MODE:",
        "RELAY_JWKS_URL is not set",
        "RELAY_VALIDATE_URL is not set",
        "RELAY_BUS_ENABLED is on",
        "RELAY_BACKPLANE_MODE=redis needs RELAY_INTERNAL_KEY",
    ):
        assert [error for error in found if error.startswith(start)], start


def test_unknown_names_warn_with_a_hint() -> None:
    config = load({**BASE, "RELAY_FRAME_MAXBYTES": "1", "RELAY_NONSENSE_ENTIRELY_OTHER": "1", "OTHER": "1"})
    assert any(
        "RELAY_FRAME_MAXBYTES" in warning and "did you mean RELAY_FRAME_MAX_BYTES" in warning
        for warning in config.warnings
    )
    assert any("RELAY_NONSENSE_ENTIRELY_OTHER" in warning for warning in config.warnings)
    assert len(config.warnings) == 2


# -- secrets -----------------------------------------------------------------------------------------------

SECRETS = [variable for variable in VARIABLES if variable.secret]


@pytest.mark.parametrize("variable", SECRETS, ids=lambda variable: variable.name)
def test_secret_from_a_file(variable: Any, tmp_path: Path) -> None:
    urls = {"redis_url": "redis://:pw@redis.example", "http_proxy": "http://relay:pw@proxy.example:3128"}
    text = urls.get(variable.attribute, STRONG)
    file = tmp_path / "secret"
    file.write_text(f"  {text}\n")
    fleet = {
        "RELAY_BACKPLANE_MODE": "redis",
        "RELAY_INTERNAL_KEY": STRONG,
        "RELAY_PUBLIC_WS_BASE_URL": "wss://relay.example",
    }
    more = fleet if variable.attribute == "redis_url" else {}
    config = load({**BASE, **more, f"{variable.name}_FILE": str(file)})
    assert getattr(config, variable.attribute) in (text, (text,))
    assert config.sources[variable.attribute] == f"{variable.name}_FILE"
    assert config.warnings == ()


def test_secret_files_that_cannot_be_read(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    for path, words in ((tmp_path / "none", "No such file"), (empty, "is empty"), (binary, "not UTF-8")):
        (error,) = errors({**BASE, "RELAY_INTERNAL_KEY_FILE": str(path)})
        assert error.startswith("RELAY_INTERNAL_KEY_FILE: ")
        assert words in error


def test_a_secret_given_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(STRONG)
    (error,) = errors({**BASE, "RELAY_ADMIN_TOKEN": STRONG, "RELAY_ADMIN_TOKEN_FILE": str(file)})
    assert "RELAY_ADMIN_TOKEN and RELAY_ADMIN_TOKEN_FILE are both set" in error


@pytest.mark.parametrize("variable", SECRETS, ids=lambda variable: variable.name)
def test_no_secret_in_errors_warnings_or_repr(variable: Any) -> None:
    text = "hunter2\x01hunter2"  # invalid for all parsers of text and of URLs
    found = errors({**BASE, variable.name: text})
    assert "hunter2" not in "".join(found)
    urls = {"redis_url": "redis://:hunter2@h", "http_proxy": "http://relay:hunter2@h"}
    short = urls.get(variable.attribute, "hunter2")
    config = load({**BASE, variable.name: short})
    assert "hunter2" not in repr(config)
    assert "hunter2" not in "".join(config.warnings)


WEAK = [
    "change-me",
    "changeme",
    "Change-Me-Please-Now-1",
    "secret",
    "short",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "replace_this_value_now",
]


@pytest.mark.parametrize("secret", WEAK)
@pytest.mark.parametrize("name", ["RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN", "RELAY_BUS_HMAC_KEY"])
def test_weak_secret_is_refused_in_prod_and_warned_about_elsewhere(name: str, secret: str) -> None:
    (error,) = errors({**PROD, name: secret})
    assert error.startswith(f"{name} is ")
    assert secret not in error
    config = load({**PROD, "RELAY_MODE": "staging", name: secret})
    assert any(warning.startswith(f"{name} is ") for warning in config.warnings)


# -- rules between settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "mode"),
    [
        ({}, "dev"),
        ({"RELAY_LISTEN_HOST": "::1"}, "dev"),
        ({"RELAY_LISTEN_HOST": "localhost"}, "dev"),
        ({"RELAY_LISTEN_HOST": "127.0.0.9"}, "dev"),
        ({"RELAY_LISTEN_HOST": "0.0.0.0"}, "prod"),
        ({"RELAY_LISTEN_HOST": "::"}, "prod"),
        ({"RELAY_LISTEN_HOST": "relay.example"}, "prod"),
        ({"RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:index=0"}, "prod"),
        ({"RELAY_LISTEN_HOST": "0.0.0.0", "RELAY_MODE": "dev"}, "dev"),
        ({"RELAY_MODE": "PROD"}, "prod"),
    ],
)
def test_mode(more: dict[str, str], mode: str) -> None:
    config = load({**BASE, **more})
    assert config.mode == mode
    assert config.health_verbose is (mode == "dev")
    assert config.state_include_client_ids is (mode == "dev")


def test_the_dev_platform_is_refused_in_prod() -> None:
    assert any("RELAY_MODE=prod" in error for error in errors(PROD, dev_platform=True))
    config = load({}, dev_platform=True)
    assert config.dev_platform
    assert (config.jwks_url, config.validate_url) == ("", "")


@pytest.mark.parametrize("mode", ["redis", "server"])
def test_several_relays(mode: str) -> None:
    several = {**BASE, "RELAY_BACKPLANE_MODE": mode}
    assert any("RELAY_INTERNAL_KEY" in error for error in errors(several))
    config = load({**several, "RELAY_INTERNAL_KEY": STRONG})
    assert config.client_redirect_enabled
    assert not config.bus_enabled
    assert load({**several, "RELAY_INTERNAL_KEY": STRONG, "RELAY_BUS_HMAC_KEY": STRONG}).bus_enabled
    assert not load(BASE).client_redirect_enabled


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"RELAY_TLS": "1"}, ["RELAY_TLS_CERT_PATH is not set", "RELAY_TLS_KEY_PATH is not set"]),
        (
            {"RELAY_TLS_CERT_PATH": "/nonexistent.pem"},
            [
                "RELAY_TLS_KEY_PATH is not set",
                "RELAY_TLS_CERT_PATH: cannot read '/nonexistent.pem': No such file or directory",
            ],
        ),
        (
            {"RELAY_SERVER_MTLS": "1"},
            ["set RELAY_SERVER_CLIENT_CERT_PATH", "set RELAY_SERVER_CLIENT_KEY_PATH"],
        ),
        (
            {"RELAY_SERVER_CA_CERT_PATH": "/dev/null/x"},
            ["RELAY_SERVER_CA_CERT_PATH: cannot read '/dev/null/x': Not a directory"],
        ),
        (
            {"RELAY_SERVER_CLIENT_KEY_PATH": "/dev/null/x"},
            ["set RELAY_SERVER_CLIENT_CERT_PATH", "Not a directory"],
        ),
    ],
)
def test_files_that_tls_needs(more: dict[str, str], words: list[str]) -> None:
    found = errors({**BASE, **more})
    assert len(found) == len(words)
    for word in words:
        assert any(word in error for error in found), word


def test_tls_ends_once(tmp_path: Path) -> None:
    for name in ("crt", "key"):
        (tmp_path / name).touch(0o600)
    files = {"RELAY_TLS_CERT_PATH": f"{tmp_path}/crt", "RELAY_TLS_KEY_PATH": f"{tmp_path}/key"}
    twice = {
        **BASE,
        **files,
        "RELAY_LISTEN_ENDPOINT": f"ssl:0:privateKey={tmp_path}/key:certKey={tmp_path}/crt",
    }
    (found,) = errors(twice)
    assert found.startswith("RELAY_TLS_CERT_PATH is set, and RELAY_LISTEN_ENDPOINT")
    assert load({**twice, "RELAY_TLS": "0"}) and load({**twice, "RELAY_LISTEN_ENDPOINT": "tcp:0"})


def test_trusted_proxies() -> None:
    config = load(
        {
            **BASE,
            "RELAY_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.7 ,nonsense,::ffff:198.51.100.0/120,2001:db8::/32",
        }
    )
    assert config.trusted_proxies.networks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("192.0.2.7/32"),
        ipaddress.ip_network("198.51.100.0/24"),
        ipaddress.ip_network("2001:db8::/32"),
    )
    (warning,) = config.warnings
    assert "'nonsense'" in warning


def test_state_directory_of_systemd() -> None:
    assert load({**BASE, "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}).state_dir == "/var/lib/a"
    assert load({**BASE, "STATE_DIRECTORY": "/x", "RELAY_STATE_DIR": "/y"}).state_dir == "/y"
    assert load(BASE).state_dir is None


def test_public_url_from_the_listening_address() -> None:
    assert load({**BASE, "RELAY_LISTEN_HOST": "::1"}).public_ws_base_url == "ws://[::1]:7781"


def test_relay_ids_differ() -> None:
    assert load(BASE).relay_id != load(BASE).relay_id
    assert load({**BASE, "RELAY_ID": "relay-1"}).relay_id == "relay-1"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("relay.example", False),
        ("", False),
    ],
)
def test_is_loopback(text: str, wanted: bool) -> None:
    assert is_loopback(text) is wanted


@given(st.ip_addresses(v=4), st.integers(96, 128))
def test_mapped_networks_count_as_ipv4(address: ipaddress.IPv4Address, prefix: int) -> None:
    network = parse_network(f"::ffff:{address}/{prefix}")
    assert network == ipaddress.ip_network((address, prefix - 96), strict=False)


NAMES = sorted({name for variable in VARIABLES for name in (variable.name, *variable.older)})


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
        max_size=8,
    )
)
def test_any_environment_is_read_or_refused_with_errors(environ: dict[str, str]) -> None:
    """No other exception, for any values."""
    try:
        config = load(environ)
    except ConfigError as error:
        assert error.errors
        assert all(isinstance(sentence, str) and sentence for sentence in error.errors)
    else:
        assert config.jwks_url.startswith("http")


def test_unix_socket_peers_are_trusted_if_configured_else_a_warning() -> None:
    unix = {**BASE, "RELAY_LISTEN_ENDPOINT": "unix:/run/relay.sock", "RELAY_MODE": "dev"}
    named = load({**unix, "RELAY_TRUSTED_PROXIES": "unix:, 10.0.0.0/8"})
    assert named.trusted_proxies.unix and len(named.trusted_proxies.networks) == 1 and named.warnings == ()
    [warning] = load(unix).warnings
    assert "RELAY_TRUSTED_PROXIES=unix:" in warning


def test_admin_tokens_need_tls_in_prod(tmp_path: Path) -> None:
    open_listener = {**PROD, "RELAY_ADMIN_TOKEN": STRONG, "RELAY_ADMIN_LISTEN": "0.0.0.0:7782"}
    with pytest.raises(ConfigError) as refused:
        load(open_listener)
    [error] = refused.value.errors
    assert error.startswith("RELAY_ADMIN_LISTEN=0.0.0.0:7782 ") and "RELAY_TLS_TERMINATION=platform" in error
    load({**open_listener, "RELAY_TLS_TERMINATION": "platform"})
    load({**open_listener, "RELAY_ADMIN_LISTEN": "127.0.0.1:7782"})
    load({**open_listener, "RELAY_MODE": "staging"})
    for name in ("RELAY_TLS_CERT_PATH", "RELAY_TLS_KEY_PATH"):
        path = tmp_path / name
        path.touch(0o600)
        open_listener[name] = str(path)
    load(open_listener)


def test_each_of_several_tokens_must_be_strong() -> None:
    with pytest.raises(ConfigError) as refused:
        load({**PROD, "RELAY_ADMIN_TOKEN": f"{STRONG},changeme"})
    assert "RELAY_ADMIN_TOKEN is" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"RELAY_WORKERS=1\n" + b"#" * 262_144, "is longer than 262144 bytes"),
        ("RELAY_WORKERS=1\n".encode("utf-16"), "is not UTF-8 but UTF-16"),
        (b"RELAY_ID=\xff\n", "is not UTF-8"),
        (b"RELAY_WORKERS\n", "line 1 of"),
    ],
)
def test_a_settings_file_that_cannot_be_used(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "settings"
    path.write_bytes(content)
    (error,) = errors({**BASE, "RELAY_SETTINGS_FILE": str(path)})
    assert error.startswith("RELAY_SETTINGS_FILE: ")
    assert words in error


#: variable -> a text that is not the default
RELOADABLE = {
    "RELAY_TRUSTED_PROXIES": "10.0.0.0/8, no-address, unix:",
    "RELAY_ALLOWED_ORIGINS": "https://A.example:443/ https://b.example",
    "RELAY_PING_INTERVAL_MS": "20s",
    "RELAY_IDLE_TIMEOUT_MS": "4m",
    "RELAY_DRAIN_SECONDS": "0",
    "RELAY_TOKEN_EXPIRY": "close",
    "RELAY_LOG_LEVEL": "WARN",
}


@pytest.mark.parametrize("back", [False, True])
def test_reloaded_settings_as_texts_for_worker_processes(back: bool) -> None:
    """A worker that reads the texts has the same values, also those that are their defaults again."""
    names = [v.name for v in VARIABLES if v.reload and not v.secret]
    changed = {name: RELOADABLE.get(name, "0") for name in names} | BASE
    before, after = (changed, BASE) if back else (BASE, changed)
    reloaded = reread(load(before), after)
    assert sorted(reloaded.texts) == sorted(names)
    worker = load({**before, **reloaded.texts})
    for variable in VARIABLES:
        if variable.reload and variable.attribute != "trusted_proxies":
            assert getattr(worker, variable.attribute) == getattr(reloaded.config, variable.attribute)
    assert worker.trusted_proxies.networks == reloaded.config.trusted_proxies.networks
    assert worker.trusted_proxies.unix is reloaded.config.trusted_proxies.unix
