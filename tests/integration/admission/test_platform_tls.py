"""TLS from a relay process to its platform: private CA, host names, client certificates, one handshake."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from tests.drill.certificates import Identity
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.relays import Relay, run

Start = Callable[..., Relay]
Make = Callable[..., ControlPlane]


def server_context(ca: Identity, folder: Path, name: str, *, asks_back: bool = False) -> ssl.SSLContext:
    """TLS context of a platform with this host name; `asks_back` requires a client certificate of the same CA."""
    files = ca.issue(name, name).write(folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    if asks_back:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=ca.cert_pem.decode())
    return context


def test_mutual_tls_with_a_private_ca(
    own_platform: Make, start: Start, tmp_path: Path, workspace: str
) -> None:
    ca = Identity.self_signed("test CA")
    platform = own_platform(tls=server_context(ca, tmp_path, "localhost", asks_back=True))
    mine = ca.issue("relay.internal", "relay.internal").write(tmp_path, "relay", b"of the key")
    (tmp_path / "passphrase").write_text("of the key\n")
    relay = start(
        {
            **platform.settings(),
            "RELAY_MODE": "staging",
            "RELAY_SERVER_CA_CERT_PATH": ca.write(tmp_path, "ca").cert,
            "RELAY_SERVER_MTLS": "1",
            "RELAY_SERVER_CLIENT_CERT_PATH": mine.cert,
            "RELAY_SERVER_CLIENT_KEY_PATH": mine.key,
            "RELAY_SERVER_CLIENT_KEY_PASSPHRASE_FILE": str(tmp_path / "passphrase"),
        }
    ).ready()
    for number in range(10):
        name = f"{workspace}-{number}"
        with relay.upgrade("client", name, platform.token("client", name)) as peer:
            assert peer.admitted
    assert len(platform.questions) == 10
    assert platform.connections == 1, "keys and all validations over one connection, one handshake"
    assert not any("of the key" in line for line in relay.written)


def test_platforms_that_cannot_be_trusted(
    own_platform: Make, start: Start, tmp_path: Path, workspace: str
) -> None:
    ca = Identity.self_signed("test CA")
    ours = {"RELAY_SERVER_CA_CERT_PATH": ca.write(tmp_path, "ca").cert}
    cases: list[tuple[ControlPlane, dict[str, str], tuple[str, ...]]] = [
        (
            own_platform(tls=server_context(ca, tmp_path, "localhost")), {},
            ("TLS: the certificate is signed by a CA that is not trusted here",),
        ),
        (
            own_platform(tls=server_context(ca, tmp_path, "elsewhere.example")), ours,
            ("TLS: the certificate is for another name",),
        ),
        (  # a client certificate is required; the error depends on the timing of TLS 1.3
            own_platform(tls=server_context(ca, tmp_path, "localhost", asks_back=True)), ours,
            ("TLS: ", "connection closed"),
        ),
    ]  # fmt: skip
    relays = [start({**platform.settings(), "RELAY_MODE": "staging", **more}) for platform, more, _ in cases]
    for relay, (platform, _, whys) in zip(relays, cases, strict=True):
        relay.listening()
        refused = relay.upgrade("client", workspace, platform.token("client", workspace))
        assert (refused.status, refused.reason) == (503, "JWKS_UNREACHABLE")
        said = relay.entry(connectionId=refused.json["connectionId"])["details"]["why"]
        assert said.startswith(whys)
        assert platform.questions == [] and platform.jwks_asked == 0


def test_verification_off_is_a_warning(
    own_platform: Make, start: Start, tmp_path: Path, workspace: str
) -> None:
    ca = Identity.self_signed("test CA")
    platform = own_platform(tls=server_context(ca, tmp_path, "elsewhere.example"))
    settings = {**platform.settings(), "RELAY_MODE": "prod", "RELAY_SERVER_TLS_VERIFY": "no"}
    relay = start(settings).ready()
    with relay.upgrade("client", workspace, platform.token("client", workspace)) as peer:
        assert peer.admitted
    assert relay.entry(event="config_warning", level="warn", message=(
        "RELAY_SERVER_TLS_VERIFY is off: an attacker on the network can admit peers"
    ))  # fmt: skip


def test_unusable_files_are_named(own_platform: Make, tmp_path: Path) -> None:
    one, other = (Identity.self_signed(name).write(tmp_path, name) for name in ("one", "other"))
    settings = {
        "SERVER_URL": "https://localhost:1", "RELAY_MODE": "staging", "RELAY_SERVER_MTLS": "1",
        "RELAY_SERVER_CLIENT_CERT_PATH": one.cert, "RELAY_SERVER_CLIENT_KEY_PATH": other.key,
    }  # fmt: skip
    ended = run(settings)
    assert ended.returncode == 78
    assert ended.stderr == (
        f"viewport-relay: RELAY_SERVER_CLIENT_KEY_PATH: {other.key!r} is not the key of the certificate in {one.cert!r}\n"
    )
