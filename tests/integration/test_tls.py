"""TLS in the relay: versions, keys, certificate renewal without closing connections, frames of every size."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.drill.certificates import Identity, Kind, serial_of
from tests.drill.peer import CLOSE, PING, PONG, TEXT, Closed, Peer, Refused, dial, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until
from tests.tlsrecords import Records
from tests.wireframes import masked_frame

#: Loaded by the relay's Python at start: a shorter interval of certificate checks, a shorter request time-out.
HASTE = (
    "import viewport_relay.wire.channel as channel\nchannel.REQUEST_TIMEOUT = 2\nchannel.LINGER = 1\n"
    "import viewport_relay.wire.tls as tls\ntls.WATCH_SECONDS = 0.2"
)


class Secure:
    """A relay with a certificate, its CA, and the folder of its files (`relay.crt`, `relay.key`)."""

    def __init__(self, relay: Relay, ca: Identity, folder: Path, platform: FaultyPlatform) -> None:
        self.relay, self.ca, self.folder, self.platform = relay, ca, folder, platform

    def serial(self) -> int:
        with dial(self.relay.port, self.ca.context()) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            return serial_of(sock)


@pytest.fixture(scope="module", params=["ecdsa", "rsa", "workers"])
def secure(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, platform: FaultyPlatform
) -> Iterator[Secure]:
    kind: Kind = "rsa" if request.param == "rsa" else "ecdsa"
    ca, folder = Identity.self_signed("test CA"), tmp_path_factory.mktemp("tls")
    files = ca.issue("relay", "localhost", kind=kind).write(folder, "relay")
    settings = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    settings |= {"RELAY_FRAME_MAX_BYTES": "4000000"}
    if request.param == "workers":
        settings |= {"RELAY_WORKERS": "2"}
    with running(platform.environment() | settings, before=HASTE, tls=ca.context()) as relay:
        yield Secure(relay, ca, folder, platform)
        assert relay.errors("tls_reload_failed", "PROTOCOL_ERROR") == []


def pair(secure: Secure, workspace: str, **more: Any) -> tuple[Peer, Peer]:
    daemon = Peer.daemon(secure.relay, secure.platform, workspace, "t", **more)
    client = Peer.client(secure.relay, secure.platform, workspace, "t", **more)
    client.converse(daemon)
    return daemon, client


@pytest.mark.parametrize(
    ("version", "cipher"),
    [(ssl.TLSVersion.TLSv1_2, "-AES256-GCM-SHA384"), (ssl.TLSVersion.TLSv1_3, "TLS_AES_128_GCM_SHA256")],
)
def test_supported_versions_and_ciphers(secure: Secure, version: ssl.TLSVersion, cipher: str) -> None:
    """The relay chooses the cipher: a client of OpenSSL's defaults prefers AES-256 in TLS 1.3 too."""
    context = secure.ca.context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with dial(secure.relay.port, context) as sock:
        assert isinstance(sock, ssl.SSLSocket)
        name, _, bits = sock.cipher() or ("", "", 0)
        assert bits >= 128 and name.endswith(cipher)
        assert sock.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_older_versions_are_refused(secure: Secure, version: ssl.TLSVersion) -> None:
    context = secure.ca.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)):
        dial(secure.relay.port, context)


@pytest.mark.parametrize("ciphers", ["AES128-SHA", "ECDHE+AES+SHA256:!AESGCM", "AES256-GCM-SHA384"])
def test_old_ciphers_are_refused(secure: Secure, ciphers: str) -> None:
    context = secure.ca.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers + ":@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        dial(secure.relay.port, context)


def test_plain_http_gets_nothing(secure: Secure) -> None:
    with dial(secure.relay.port) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not sock.recv(1000).startswith(b"HTTP")


def test_frames_of_every_size_both_ways(secure: Secure) -> None:
    daemon, client = pair(secure, "sizes")
    for size in (1, 100, 126, 5000, 16_384, 65_536, 200_000, 1_000_000, 3_900_000):
        text = e2ee(client.session, size, "x" * size)
        client.send(text)
        assert daemon.text() == text
        daemon.send(text)
        assert client.text() == text
    # A frame cut at each header boundary: one TLS record for each piece.
    data = masked_frame(1, e2ee(client.session, 1, "y" * 300).encode())
    for at in (1, 2, 3, 4, 7, 8, 9, 60):
        client.raw(data[:at])
        time.sleep(0.02)
        client.raw(data[at:])
        assert json.loads(daemon.text())["ciphertext"] == "y" * 300
    # Many frames in one record, a fragmented message and a ping between.
    many = [e2ee(client.session, n) for n in range(1, 31)]
    client.raw(b"".join(masked_frame(1, text.encode()) for text in many))
    assert [daemon.text() for _ in many] == many
    text = e2ee(client.session, 99).encode()
    client.raw(
        masked_frame(1, text[:40], fin=False) + masked_frame(PING, b"hello") + masked_frame(0, text[40:])
    )
    assert client.frame() == (PONG, b"hello")
    assert daemon.message() == text
    client.send(b"\x03\xe8", CLOSE)
    assert client.how_it_ends().code == 1000
    daemon.close()


def test_a_long_frame_behind_the_upgrade_holds_nothing_up(secure: Secure) -> None:
    """What follows the frame is read as soon as it comes. Where the kernel cuts the frame decides which reads there are."""
    for number in range(16):
        client = Peer.client(
            secure.relay, secure.platform, f"early-{number}", "t",
            early=masked_frame(TEXT, b"[" * 70_000), source=f"127.0.7.{number + 1}", timeout=5,
        )  # fmt: skip
        client.raw(masked_frame(PING, b"next"))
        while client.frame() != (PONG, b"next"):
            pass
        client.close()


def test_a_frame_over_the_limit(secure: Secure) -> None:
    daemon, client = pair(secure, "large")
    client.raw(masked_frame(1, b"x" * 4_000_001)[:100_000])
    closed = client.how_it_ends()
    assert (closed.code, closed.reason) == (1009, "frame too large")
    client.close()
    daemon.close()


def test_a_client_that_does_not_read_delays_no_other_and_loses_no_frame(secure: Secure) -> None:
    daemon, client = pair(secure, "slow")
    other = Peer.client(secure.relay, secure.platform, "slow", "t")
    other.converse(daemon)
    sent = [e2ee(client.session, n, "x" * 150_000) for n in range(1, 21)]  # below RELAY_MAX_PENDING_BYTES
    for text in sent:
        daemon.send(text)
    began = time.monotonic()
    for n in range(1, 20):
        daemon.send(e2ee(other.session, n))
        other.text()
    assert time.monotonic() - began < 10
    assert [client.text() for _ in sent] == sent
    for peer in (daemon, client, other):
        peer.close()


def test_queued_frames_go_out_before_a_close(secure: Secure) -> None:
    """A client that does not read has 4 MiB queued when the relay closes it, and still gets all of that first."""
    daemon, client = pair(secure, "overflow")
    number = 0
    while not any(entry.get("reason") == "BUFFER_OVERFLOW" for entry in secure.relay.entries()):
        number += 1
        daemon.send(e2ee(client.session, number, "x" * 200_000))
        assert number < 200
    received = 0
    with pytest.raises(Closed) as closed:
        while True:
            assert json.loads(client.text())["seq"] == received + 1
            received += 1
    assert (closed.value.code, closed.value.reason) == (4008, "buffer overflow")
    assert received >= 20
    client.close()
    daemon.close()


# -- renewal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["poll", "SIGHUP"])
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_new_certificate_closes_no_connection(secure: Secure, how: str, kind: Kind) -> None:
    daemon, client = pair(secure, f"renewal-{how}")
    before = secure.serial()
    renewed = secure.ca.issue("relay", "localhost", kind=kind)
    renewed.write(secure.folder, "relay")
    if how == "SIGHUP":
        secure.relay.signal(signal.SIGHUP)
    until(lambda: secure.serial() == renewed.serial, 15, "the new certificate")
    assert renewed.serial != before
    client.send(e2ee(client.session))
    assert daemon.text() == e2ee(client.session)
    client.close()
    daemon.close()


def failures(secure: Secure) -> int:
    return sum(entry["event"] == "tls_reload_failed" for entry in secure.relay.entries())


def test_unusable_files_leave_the_old_certificate(secure: Secure) -> None:
    before = secure.serial()
    certificate, key = secure.folder / "relay.crt", secure.folder / "relay.key"
    good = certificate.read_bytes(), key.read_bytes()
    other = secure.ca.issue("other", "localhost").cert_pem
    refusals = 0
    for bad in (b"", b"no PEM", good[0][: len(good[0]) // 2], other, None):
        if bad is None:
            certificate.unlink()
        else:
            certificate.write_bytes(bad)
        refusals += 1
        until(lambda wanted=refusals: failures(secure) >= wanted, 15, f"the error about {bad!r}")
        assert secure.serial() == before
    certificate.write_bytes(good[0])
    key.write_bytes(good[1])
    time.sleep(1)
    said = [entry for entry in secure.relay.entries() if entry["event"] == "tls_reload_failed"]
    assert len(said) == refusals  # one entry for each change of the files, not for each check
    assert all(entry["level"] == "error" for entry in said)
    assert secure.serial() == before


def test_a_symbolic_link_that_changes_its_target(tmp_path: Path, platform: FaultyPlatform) -> None:
    """certbot and mounted secrets do so."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    old, ca = Identity.self_signed("old CA"), Identity.self_signed("test CA")
    old.issue("relay", "localhost").write(tmp_path / "1", "relay")
    ours = ca.issue("relay", "localhost")
    ours.write(tmp_path / "2", "relay")
    link = tmp_path / "live"
    link.symlink_to("1")
    settings = {"RELAY_TLS_CERT_PATH": str(link / "relay.crt"), "RELAY_TLS_KEY_PATH": str(link / "relay.key")}
    with running(platform.environment() | settings, before=HASTE, tls=old.context()) as relay:
        fresh = tmp_path / "fresh"
        fresh.symlink_to("2")
        os.replace(fresh, link)

        def shown() -> bool:
            try:
                with dial(relay.port, ca.context()) as sock:
                    assert isinstance(sock, ssl.SSLSocket)
                    return serial_of(sock) == ours.serial
            except ssl.SSLError:
                return False

        until(shown, 15, "the other folder's certificate")


def test_a_key_with_a_passphrase_is_refused_without_a_prompt(
    tmp_path: Path, platform: FaultyPlatform
) -> None:
    files = Identity.self_signed("relay", "localhost").write(tmp_path, "relay", b"a long enough passphrase")
    settings = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    with Relay(platform.environment() | settings) as relay:
        assert relay.process.wait(20) == 78
        assert "Traceback" not in relay.output() and "passphrase" in relay.output()


# -- slow peers --------------------------------------------------------------------------------------------------


def silence(sock: socket.socket, seconds: float = 15.0) -> float:
    """Seconds until the relay closes."""
    began = time.monotonic()
    sock.settimeout(seconds)
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def test_a_handshake_that_drips_is_ended(secure: Secure) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        secure.ca.context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    with dial(secure.relay.port) as sock:
        began = time.monotonic()
        with pytest.raises(OSError):  # reset or broken pipe
            for byte in hello:
                sock.sendall(bytes([byte]))
                time.sleep(0.1)
        assert 1.5 < time.monotonic() - began < 10


def test_a_handshake_that_never_begins_is_ended(secure: Secure) -> None:
    with dial(secure.relay.port) as sock:
        assert 1.5 < silence(sock) < 10


def test_an_unanswered_close_notify_is_cut_off(secure: Secure) -> None:
    """Twisted waits for the peer's close_notify; a hostile peer sends none and would keep the descriptor."""
    before = secure.relay.descriptors()
    held = []
    for _ in range(10):
        sock = dial(secure.relay.port, secure.ca.context())
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        held.append(sock)
    until(lambda: secure.relay.descriptors() <= before + 1, 15, "the descriptors")
    for sock in held:
        sock.close()


def test_garbage_instead_of_tls(secure: Secure) -> None:
    before = secure.relay.descriptors()
    for garbage in (
        b"\x00" * 500,
        b"\x16\x03\x01\xff\xff" + b"x" * 300,
        os.urandom(4096),
        b"\x15\x03\x03\x00\x02\x02\x28",
    ):
        with dial(secure.relay.port) as sock:
            sock.sendall(garbage)
            assert silence(sock) < 10
    until(lambda: secure.relay.descriptors() <= before + 1, 15, "the descriptors")


def records_of(secure: Secure, folder: Path, workspace: str) -> tuple[Peer, Records]:
    """A client, and what encrypts further records of it."""
    context = secure.ca.context()
    context.keylog_filename = str(folder / "keys")
    peer = Peer.client(secure.relay, secure.platform, workspace, "t", tls=context)
    return peer, Records((folder / "keys").read_text().splitlines(), sent=1)


def test_a_client_with_new_keys_goes_on(secure: Secure, tmp_path: Path) -> None:
    peer, records = records_of(secure, tmp_path, "new-keys")
    ping = masked_frame(PING, b"x")
    os.write(peer.sock.fileno(), records.key_update() + records.data(ping) + records.key_update())
    assert peer.frame() == (PONG, b"x")
    os.write(peer.sock.fileno(), records.data(ping))
    assert peer.frame() == (PONG, b"x")
    peer.close()


def test_a_flood_of_new_keys_is_cut_off(secure: Secure, tmp_path: Path) -> None:
    """OpenSSL works off thousands in one call, and answers each."""
    peer, records = records_of(secure, tmp_path, "key-flood")
    flood = b"".join(records.key_update() for _ in range(3000))
    with contextlib.suppress(OSError):
        for at in range(0, len(flood), 16_384):
            os.write(peer.sock.fileno(), flood[at : at + 16_384])
    with pytest.raises((Closed, OSError)):
        peer.message()
    assert secure.relay.state() is not None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_proxy_protocol_in_front_of_tls(tmp_path: Path, platform: FaultyPlatform, workers: str) -> None:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost").write(tmp_path, "relay")
    settings = {
        "RELAY_TLS_CERT_PATH": files.cert,
        "RELAY_TLS_KEY_PATH": files.key,
        "RELAY_PROXY_PROTOCOL": "1",
        "RELAY_WORKERS": workers,
    }
    with Relay(platform.environment() | settings, tls=ca.context()) as relay:
        relay.logged("relay_started", 30)

        def join(before: bytes) -> Peer:
            return Peer.daemon(relay, platform, "w", "t", before=before)

        until(lambda: platform.asked_for_keys, 10, "the key set")
        v1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n"
        v2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(
            [198, 51, 100, 7, 192, 0, 2, 1, 0x12, 0x34, 0x01, 0xBB]
        )
        for header, address in ((v1, "203.0.113.9"), (v2, "198.51.100.7")):
            daemon = join(header)
            client = Peer.client(relay, platform, "w", "t", before=header)
            client.converse(daemon)
            client.send(e2ee(client.session, 1, "x" * 100_000))
            assert len(daemon.text()) > 100_000
            joined = [entry["details"]["ip"] for entry in relay.entries() if entry["event"] == "join"]
            assert joined[-2:] == [address, address]
            daemon.close()
            client.close()
        for wrong in (b"PROXY NONSENSE\r\n", b"GET / HTTP/1.1\r\n\r\n", b""):
            with pytest.raises((Refused, OSError)):
                join(wrong + (b"" if wrong else b"x" * 200))
        assert relay.errors() == []
