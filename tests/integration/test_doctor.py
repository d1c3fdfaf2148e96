"""`viewport-relay doctor` against a real platform on loopback, right and faulty."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.drill.certificates import Identity
from tests.integration.cli_platform import INTERNAL_KEY, findings_of
from viewport_relay.cli.doctor import examine
from viewport_relay.cli.platformchecks import clock
from viewport_relay.devplatform import DevPlatform, Rule
from viewport_relay.devplatform.endpoints import JWKS_PATH, VALIDATE_PATH
from viewport_relay.devplatform.resources import tls_options
from viewport_relay.devplatform.tokens import SigningKey

BOTH = "RELAY_JWKS_URL and RELAY_VALIDATE_URL"


@pytest.fixture(scope="module")
def signing_key() -> SigningKey:
    return SigningKey.generate("RS256")


@pytest_twisted.async_yield_fixture
async def platform(signing_key: SigningKey) -> AsyncIterator[DevPlatform]:
    made = DevPlatform(reactor, internal_key=INTERNAL_KEY, signing_key=signing_key)
    made.listen(reactor)
    yield made
    await made.close()


def environ_of(platform: DevPlatform, **more: str) -> dict[str, str]:
    return {
        **platform.relay_environment(),
        "RELAY_LISTEN_PORT": "0",
        "RELAY_ADMIN_TOKEN": "a" * 8 + "bcdefgh" * 3,
        **more,
    }


@pytest_twisted.ensureDeferred
async def test_every_check_of_a_good_environment_is_ok(platform: DevPlatform) -> None:
    found = await findings_of(reactor, environ_of(platform))
    assert {name: finding.outcome for name, finding in found.items()} == {
        "settings": "ok",
        "RELAY_ALLOWED_ORIGINS": "ok",
        f"DNS for {BOTH}": "ok",
        f"TCP for {BOTH}": "ok",
        "JWKS": "ok",
        "clock": "ok",
        "validate": "ok",
        "port": "ok",
        "open files": "ok",
    }
    assert "RS256" in found["JWKS"].found
    assert "takes this relay's internal key" in found["validate"].found
    assert platform.records.validate.total == 1


@pytest_twisted.ensureDeferred
async def test_a_wrong_internal_key_is_told_from_a_missing_workspace(platform: DevPlatform) -> None:
    environ = environ_of(platform, RELAY_INTERNAL_KEY="some-other-key-of-some-length")
    found = (await findings_of(reactor, environ))["validate"]
    assert found.outcome == "fail"
    assert "RELAY_INTERNAL_KEY mismatch" in found.found
    assert "set RELAY_INTERNAL_KEY" in found.fix
    assert INTERNAL_KEY not in str(found)
    assert "some-other-key" not in str(found)
    del environ["RELAY_INTERNAL_KEY"]
    found = (await findings_of(reactor, environ))["validate"]
    assert found.outcome == "fail"
    assert "it is not set here" in found.fix


VALIDATE_ANSWERS: list[tuple[Rule, str, str]] = [
    (Rule(status=404, body={"ok": False, "reason": "WORKSPACE_NOT_FOUND"}), "ok", "WORKSPACE_NOT_FOUND"),
    (
        Rule(status=404, body={"ok": False, "error": "no such route"}),
        "warn",
        "the internal key is not proven",
    ),
    (Rule(status=401, body={"ok": False, "reason": "TOKEN_INVALID"}), "ok", "VALIDATION_DENIED"),
    (Rule(status=200, body={"ok": False, "error": "no"}), "ok", "VALIDATION_DENIED"),
    (Rule(status=200, body={"ok": True, "claims": {}}), "fail", "a made-up token was admitted"),
    (Rule(status=403, body={}), "fail", "RELAY_INTERNAL_KEY mismatch"),
    (Rule(status=500), "fail", "platform unreachable"),
    (Rule(status=404, raw=b"<html>nginx</html>"), "fail", "platform answer invalid"),
    (Rule(status=302, raw=b"moved", headers={"location": "http://127.0.0.1:1/"}), "fail", "redirect"),
    (Rule(raw=b"x" * 300_000), "fail", "platform answer too large"),
]


@pytest.mark.parametrize(("rule", "outcome", "words"), VALIDATE_ANSWERS, ids=lambda value: str(value)[:40])
@pytest_twisted.ensureDeferred
async def test_responses_of_the_validate_endpoint(
    platform: DevPlatform, rule: Rule, outcome: str, words: str
) -> None:
    platform.rules[VALIDATE_PATH] = rule
    found = (await findings_of(reactor, environ_of(platform)))["validate"]
    assert (found.outcome, words in found.found) == (outcome, True), str(found)


JWKS_ANSWERS: list[tuple[Rule, str]] = [
    (Rule(status=404), "the answer is HTTP 404, not 200"),
    (
        Rule(status=301, headers={"location": "http://elsewhere.example/"}),
        "a redirect (HTTP 301) to http://elsewhere.example/",
    ),
    (Rule(raw=b"<html>"), "not JSON"),
    (Rule(body={"keys": []}), "no key"),
    (Rule(body={"keys": [{"kty": "oct", "k": "aHVudGVyMg", "kid": "v1"}]}), "no usable key"),
    (Rule(body={"keys": {}}), "not a JWK set"),
    (Rule(raw=b" " * 300_000), "longer than"),
]


@pytest.mark.parametrize(("rule", "words"), JWKS_ANSWERS, ids=lambda value: str(value)[:40])
@pytest_twisted.ensureDeferred
async def test_responses_of_the_key_endpoint(platform: DevPlatform, rule: Rule, words: str) -> None:
    platform.rules[JWKS_PATH] = rule
    found = (await findings_of(reactor, environ_of(platform)))["JWKS"]
    assert found.outcome == "fail"
    assert words in found.found
    assert f"curl -i {platform.url}{JWKS_PATH}" in found.fix and "RELAY_JWKS_URL" in found.fix
    assert "hunter2" not in str(found)
    assert "aHVudGVyMg" not in str(found)


@pytest_twisted.ensureDeferred
async def test_a_slow_platform_is_a_time_out(platform: DevPlatform) -> None:
    platform.rules[JWKS_PATH] = platform.rules[VALIDATE_PATH] = Rule(delay=30)
    began = time.monotonic()
    found = await findings_of(reactor, environ_of(platform, RELAY_ADMISSION_TIMEOUT_MS="300"))
    assert time.monotonic() - began < 10
    assert found["JWKS"].outcome == found["validate"].outcome == "fail"
    assert "time out" in found["JWKS"].found


@pytest_twisted.ensureDeferred
async def test_connection_refused_and_unknown_host(free_port: int) -> None:
    found = await findings_of(
        reactor,
        {
            "RELAY_JWKS_URL": f"http://127.0.0.1:{free_port}/jwks",
            "RELAY_VALIDATE_URL": "http://no-such-host.invalid/validate",
            "RELAY_LISTEN_PORT": "0",
        },
    )
    assert found["TCP for RELAY_JWKS_URL"].outcome == "fail"
    assert "Connection refused" in found["TCP for RELAY_JWKS_URL"].found
    assert found["DNS for RELAY_VALIDATE_URL"].outcome == "fail"
    assert "JWKS" not in found, "one finding for each unreachable service"
    assert "validate" not in found


@pytest_twisted.ensureDeferred
async def test_all_invalid_settings_are_named() -> None:
    found = await findings_of(reactor, {"RELAY_LISTEN_PORT": "x", "SERVER_URL": "y"})
    assert found["RELAY_LISTEN_PORT"].outcome == "fail"
    assert found["SERVER_URL"].outcome == "fail"


# -- TLS ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_private_ca_is_named_where_the_chain_is_not_trusted(
    platform: DevPlatform, tmp_path: Path
) -> None:
    good = Identity.self_signed("server", "localhost", "127.0.0.1", days=365)
    platform.listen(reactor, tls=tls_options(good.cert_pem, good.key_pem()))
    private_ca = environ_of(platform, RELAY_SERVER_CA_CERT_PATH=good.write(tmp_path, "server").cert)
    found = await findings_of(reactor, private_ca)
    assert "chain and host name are good" in found[f"TLS for {BOTH}"].found
    assert found["JWKS"].outcome == found["validate"].outcome == "ok"

    found = await findings_of(reactor, environ_of(platform))
    assert found[f"TLS for {BOTH}"].outcome == "fail"
    assert "self-signed" in found[f"TLS for {BOTH}"].found
    assert "RELAY_SERVER_CA_CERT_PATH" in found[f"TLS for {BOTH}"].fix

    found = await findings_of(reactor, environ_of(platform, RELAY_SERVER_TLS_VERIFY="0"))
    assert found[f"TLS for {BOTH}"].outcome == "warn"
    assert found["JWKS"].outcome == "ok"


@pytest.mark.parametrize(
    ("names", "days", "outcome", "words"),
    [
        (["other.example"], 365, "fail", "the certificate is for another name than 127.0.0.1"),
        (["127.0.0.1"], -2, "fail", "certificate has expired"),
        (["127.0.0.1"], 5, "warn", "ends in 5 days"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_platforms_certificate_is_judged_by_name_and_time(
    platform: DevPlatform, tmp_path: Path, names: list[str], days: float, outcome: str, words: str
) -> None:
    made = Identity.self_signed("server", *names, days=days)
    platform.listen(reactor, tls=tls_options(made.cert_pem, made.key_pem()))
    trusted = made.write(tmp_path, "server").cert
    found = await findings_of(reactor, environ_of(platform, RELAY_SERVER_CA_CERT_PATH=trusted))
    assert found[f"TLS for {BOTH}"].outcome == outcome
    assert words in found[f"TLS for {BOTH}"].found


@pytest.mark.parametrize(
    ("names", "days", "outcome", "words"),
    [
        (["relay.corp.example"], 365, "ok", "fits its key"),
        (["*.corp.example"], 365, "ok", "fits its key"),
        (["*.example"], 365, "warn", "does not name relay.corp.example"),
        (["other.example"], 365, "warn", "does not name relay.corp.example"),
        (["relay.corp.example"], 3, "warn", "ends in 3 days"),
        (["relay.corp.example"], -3, "fail", "ended 3 days ago"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_relays_own_certificate_is_judged(
    platform: DevPlatform, tmp_path: Path, names: list[str], days: float, outcome: str, words: str
) -> None:
    own = Identity.self_signed("relay", *names, days=days + 0.01).write(tmp_path, "relay")
    environ = environ_of(
        platform,
        RELAY_TLS_CERT_PATH=own.cert,
        RELAY_TLS_KEY_PATH=own.key,
        RELAY_PUBLIC_WS_BASE_URL="wss://relay.corp.example",
    )
    found = (await findings_of(reactor, environ))["certificate"]
    assert (found.outcome, words in found.found) == (outcome, True), str(found)


@pytest_twisted.ensureDeferred
async def test_own_certificate_with_anothers_key(platform: DevPlatform, tmp_path: Path) -> None:
    one, other = (Identity.self_signed(name).write(tmp_path, name) for name in ("one", "other"))
    environ = environ_of(platform, RELAY_TLS_CERT_PATH=one.cert, RELAY_TLS_KEY_PATH=other.key)
    found = (await findings_of(reactor, environ))["certificate"]
    assert found.outcome == "fail" and "is not the key of the certificate in" in found.found


# -- this machine ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_port_of_another_program(platform: DevPlatform) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        environ = environ_of(platform, RELAY_LISTEN_PORT=number)
        found = (await findings_of(reactor, environ, timeout=0.5))["port"]
    assert found.outcome == "fail"
    assert "in use by another program" in found.found
    assert "RELAY_LISTEN_PORT" in found.fix


@pytest_twisted.ensureDeferred
async def test_an_address_of_another_machine(platform: DevPlatform) -> None:
    environ = environ_of(platform, RELAY_LISTEN_HOST="192.0.2.1", RELAY_MODE="dev")
    found = (await findings_of(reactor, environ))["port"]
    assert found.outcome == "fail"
    assert "RELAY_LISTEN_HOST" in found.fix


@pytest_twisted.ensureDeferred
async def test_open_files_and_state_folder(platform: DevPlatform, tmp_path: Path) -> None:
    environ = environ_of(
        platform, RELAY_MAX_TOTAL_CONNECTIONS="999999999", RELAY_STATE_DIR=str(tmp_path / "none")
    )
    found = await findings_of(reactor, environ)
    assert found["open files"].outcome == "fail"
    assert "LimitNOFILE" in found["open files"].fix
    assert found["RELAY_STATE_DIR"].outcome == "fail"
    found = await findings_of(reactor, environ_of(platform, RELAY_STATE_DIR=str(tmp_path)))
    assert found["RELAY_STATE_DIR"].outcome == "ok"


# -- Redis -------------------------------------------------------------------------------------------------


PASSWORD = "hunter2-hunter2-hunter2"


def redis_environ(platform: DevPlatform, url: str, **more: str) -> dict[str, str]:
    return environ_of(
        platform,
        RELAY_BACKPLANE_MODE="redis",
        RELAY_REDIS_URL=url,
        RELAY_PUBLIC_WS_BASE_URL="ws://relay.example",
        **more,
    )


@pytest.fixture
def redis_server(tmp_path: Path, free_port: int) -> Iterator[int]:
    """A Redis with a password; returns its port."""
    where = ["--port", str(free_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    command = ["redis-server", *where, "--save", "", "--requirepass", PASSWORD]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", free_port)) == 0:
                break
        time.sleep(0.05)
    yield free_port
    process.terminate()
    process.wait(10)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("user", "outcome", "words"),
    [
        (f":{PASSWORD}@", "ok", "answers PING"),
        (":hunter2-wrong@", "fail", "WRONGPASS"),
        ("", "fail", "Authentication required"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_redis_is_judged_by_the_rights_of_its_user(
    platform: DevPlatform, redis_server: int, user: str, outcome: str, words: str
) -> None:
    environ = redis_environ(platform, f"redis://{user}127.0.0.1:{redis_server}/0")
    found = (await findings_of(reactor, environ))["Redis"]
    assert (found.outcome, words in found.found) == (outcome, True), str(found)
    assert "hunter2" not in str(found)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_refuses_connections_fails(platform: DevPlatform, free_port: int) -> None:
    for more in ({}, {"RELAY_REDIS_SENTINELS": f"127.0.0.1:{free_port}"}):
        environ = redis_environ(platform, f"redis://:{PASSWORD}@127.0.0.1:{free_port}", **more)
        found = (await findings_of(reactor, environ))["Redis"]
        assert found.outcome == "fail"
        assert "connection refused" in found.found.lower()
        assert ("RELAY_REDIS_SENTINELS" in found.fix) is bool(more)
        assert PASSWORD not in str(found)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_redis(platform: DevPlatform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = redis_environ(platform, f"redis://127.0.0.1:{silent.getsockname()[1]}")
        found = (await findings_of(reactor, environ, timeout=0.5))["Redis"]
    assert found.outcome == "fail"
    assert "in time" in found.found


# -- the clock ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apart", "outcome", "words"),
    [
        (0, "ok", "as the platform's"),
        (1.9, "ok", "as the platform's"),
        (10, "ok", "10 s ahead of"),
        (-20, "warn", "20 s behind"),
        (60, "fail", "60 s ahead of"),
        (-3600, "fail", "more than the 30 s that tokens are given"),
    ],
)
def test_the_clocks_distance_is_judged(apart: float, outcome: str, words: str) -> None:
    found = clock("Thu, 01 Jan 2026 00:00:00 GMT", 1_767_225_600 + apart, 30)
    assert (found.outcome, words in found.found) == (outcome, True), str(found)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Jan 2026 00:00:00 GMT"])
def test_clock_without_a_date(date: str | None) -> None:
    assert clock(date, 0.0, 30).outcome == "warn"


# -- the command -------------------------------------------------------------------------------------------


def run_command(
    environ: dict[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "viewport_relay.cli.main", *arguments],
        env={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environ,
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest_twisted.ensureDeferred
async def test_exit_status_and_json(platform: DevPlatform) -> None:
    good = await deferToThread(run_command, environ_of(platform), "doctor")
    assert good.returncode == 0, good.stdout + good.stderr
    assert all(line[0] in "✓!" for line in good.stdout.splitlines())
    assert good.stderr == ""

    wrong = environ_of(platform, RELAY_INTERNAL_KEY="some-other-key-of-some-length")
    bad: Any = await deferToThread(run_command, wrong, "doctor", "--json")
    assert bad.returncode == 1
    report = json.loads(bad.stdout)
    assert report["ok"] is False
    assert [check["name"] for check in report["checks"] if check["outcome"] == "fail"] == ["validate"]
    assert INTERNAL_KEY not in bad.stdout


@pytest_twisted.ensureDeferred
async def test_token_inspect(platform: DevPlatform, tmp_path: Path) -> None:
    token = platform.issue("client", "dev-workspace", "rt-1")
    file = tmp_path / "token"
    file.write_text(token)
    from_file = await deferToThread(run_command, environ_of(platform), "token", "inspect", str(file))
    assert from_file.returncode == 0, from_file.stdout + from_file.stderr
    assert "✓ the local check passes" in from_file.stdout
    assert token not in from_file.stdout

    old = platform.issue("client", "dev-workspace", "rt-1", ttl=-100)
    expired = await deferToThread(run_command, environ_of(platform), "token", "inspect", "--json", stdin=old)
    assert expired.returncode == 1
    assert json.loads(expired.stdout)["reason"] == "JWT_EXPIRED"

    url = platform.url + JWKS_PATH
    alone = await deferToThread(
        run_command, {}, "token", "inspect", "--jwks", url, "--workspace", "other", stdin=token
    )
    assert alone.returncode == 1
    assert "JWT_CLAIM_MISMATCH" in alone.stdout

    typed = await deferToThread(run_command, environ_of(platform), "token", "inspect", token)
    assert typed.returncode == 2
    assert token not in typed.stdout + typed.stderr

    await platform.down()
    away = await deferToThread(run_command, environ_of(platform), "token", "inspect", str(file))
    assert away.returncode == 1
    assert "JWKS_UNREACHABLE" in away.stdout


def test_keygen_writes_a_private_file_once_and_prints_the_public_key(tmp_path: Path) -> None:
    file = tmp_path / "noise.key"
    made = run_command({}, "keygen", "--out", str(file))
    assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() not in made.stdout
    assert len(made.stdout.strip()) == 43
    again = run_command({}, "keygen", "--out", str(file))
    assert again.returncode == 1
    assert "never written over" in again.stderr


@pytest_twisted.ensureDeferred
async def test_a_misspelt_variable_is_named_with_the_invalid_settings() -> None:
    environ = {"RELAY_LISTEN_PORT": "many", "RELAY_LISTN_HOST": "x", "SERVER_URL": "http://127.0.0.1:1"}
    found = [finding async for finding in examine(reactor, environ, 1.0)]
    assert [finding.outcome for finding in found] == ["fail", "warn"]
    assert "RELAY_LISTN_HOST" in found[1].found
