"""TLS of the outbound HTTP client: private CA, certificates that do not match, client certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.drill.certificates import Identity
from tests.integration.http.servers import failure_of, reactor, until
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, TimedOut, Unreachable
from viewport_relay.admission.tls import ClientTls
from viewport_relay.config import ConfigError, load


@pytest.fixture(scope="module")
def ca() -> Identity:
    return Identity.self_signed("Test CA")


class TlsServer:
    """TLS server on one port: responds "ok" and records handshakes and client names."""

    def __init__(self, identity: Identity, client_ca: Identity | None = None) -> None:
        self.options = identity.options(client_ca)
        self.clients: list[str] = []
        self.connections: set[object] = set()
        outer = self

        class Root(Resource):
            isLeaf = True

            def render(self, request: Any) -> bytes:
                outer.connections.add(request.transport)
                peer = request.transport.getPeerCertificate()
                outer.clients.append(peer.to_cryptography().subject.rfc4514_string() if peer else "")
                return b"ok"

        self.site = Site(Root())
        self.site.noisy = False

    def listen(self, ports: list[IListeningPort]) -> int:
        port = reactor.listenSSL(0, self.site, self.options, interface="127.0.0.1")
        ports.append(port)
        return int(port.getHost().port)


ENVIRON = {"SERVER_URL": "https://platform.example", "RELAY_LISTEN_HOST": "127.0.0.1"}


@pytest.fixture
def files(tmp_path: Path, ca: Identity) -> dict[str, str]:
    """PEM files, by name."""
    robot, stranger = ca.issue("relay-1"), Identity.self_signed("Other CA").issue("stranger")
    contents = {
        "ca": ca.cert_pem,
        "other_ca": Identity.self_signed("Other CA").cert_pem,
        "both_cas": Identity.self_signed("Other CA").cert_pem + ca.cert_pem,
        "cert": robot.cert_pem,
        "key": robot.key_pem(),
        "locked_key": robot.key_pem(b"pass phrase"),
        "stranger_cert": stranger.cert_pem,
        "stranger_key": stranger.key_pem(),
        "nonsense": b"nothing here\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in contents}


async def ask_over_tls(url: str, environ: dict[str, str], times: int = 1) -> Answer:
    config = load({**ENVIRON, **environ})
    client = HttpClient.from_config(reactor, config)
    try:
        for _ in range(times):
            answer = await client.ask(Call.make("GET", url, {}, limit=3, max_bytes=10))
        return answer
    finally:
        client.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_a_private_ca(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], host: str
) -> None:
    server = TlsServer(ca.issue("platform", "localhost", "127.0.0.1"))
    port = server.listen(ports)
    for name in ("ca", "both_cas"):
        answer = await ask_over_tls(f"https://{host}:{port}/", {"RELAY_SERVER_CA_CERT_PATH": files[name]}, 5)
        assert answer.body == b"ok"
    assert len(server.connections) == 2 and len(server.clients) == 10  # one handshake for many requests


TLS_FAILURES = {
    "a CA that is not one of the system's": ({}, ("localhost",), "signed by a CA that is not trusted here"),
    "another CA": (
        {"RELAY_SERVER_CA_CERT_PATH": "other_ca"}, ("localhost",), "signed by a CA that is not trusted here",
    ),
    "another host name": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, ("other.example",), "for another name"),
    "an address only": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, ("127.0.0.1",), "for another name"),
    "no name at all": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, (), "names no host"),
}  # fmt: skip


@pytest.mark.parametrize("name", TLS_FAILURES)
@pytest_twisted.ensureDeferred
async def test_certificates_that_do_not_match(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], name: str
) -> None:
    environ, names, why = TLS_FAILURES[name]
    server = TlsServer(ca.issue("platform", *names))
    url = f"https://localhost:{server.listen(ports)}/"
    failure = await failure_of(ask_over_tls(url, {key: files[value] for key, value in environ.items()}))
    assert isinstance(failure, Unreachable) and failure.why.startswith("TLS: ") and why in failure.why
    assert server.clients == []  # no request was sent


@pytest_twisted.ensureDeferred
async def test_an_address_that_is_not_in_the_certificate(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str]
) -> None:
    server = TlsServer(ca.issue("platform", "localhost", "127.0.0.2"))
    url = f"https://127.0.0.1:{server.listen(ports)}/"
    failure = await failure_of(ask_over_tls(url, {"RELAY_SERVER_CA_CERT_PATH": files["ca"]}))
    assert (
        isinstance(failure, Unreachable)
        and failure.why == "TLS: the certificate is for another name than 127.0.0.1"
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_verification_turned_off(ports: list[IListeningPort], ca: Identity, host: str) -> None:
    server = TlsServer(ca.issue("platform", "other.example"))
    url = f"https://{host}:{server.listen(ports)}/"
    assert (await ask_over_tls(url, {"RELAY_SERVER_TLS_VERIFY": "0"})).body == b"ok"


@pytest.mark.parametrize("locked", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_client_certificate_of_the_settings_is_sent(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], locked: bool
) -> None:
    server = TlsServer(ca.issue("platform", "localhost"), ca)
    environ = {
        "RELAY_SERVER_CA_CERT_PATH": files["ca"], "RELAY_SERVER_MTLS": "1",
        "RELAY_SERVER_CLIENT_CERT_PATH": files["cert"],
        "RELAY_SERVER_CLIENT_KEY_PATH": files["locked_key" if locked else "key"],
    }  # fmt: skip
    if locked:
        environ["RELAY_SERVER_CLIENT_KEY_PASSPHRASE"] = "pass phrase"
    answer = await ask_over_tls(f"https://localhost:{server.listen(ports)}/", environ)
    assert answer.body == b"ok" and server.clients == ["CN=relay-1"]


@pytest.mark.parametrize("who", ["no certificate", "stranger"])
@pytest_twisted.ensureDeferred
async def test_mtls_without_or_with_another_certificate(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], who: str
) -> None:
    server = TlsServer(ca.issue("platform", "localhost"), ca)
    environ = {"RELAY_SERVER_CA_CERT_PATH": files["ca"]}
    if who == "stranger":
        environ |= {
            "RELAY_SERVER_MTLS": "1", "RELAY_SERVER_CLIENT_CERT_PATH": files["stranger_cert"],
            "RELAY_SERVER_CLIENT_KEY_PATH": files["stranger_key"],
        }  # fmt: skip
    failure = await failure_of(ask_over_tls(f"https://localhost:{server.listen(ports)}/", environ))
    assert isinstance(failure, Unreachable) and server.clients == []


MTLS = {
    "RELAY_SERVER_MTLS": "1",
    "RELAY_SERVER_CLIENT_CERT_PATH": "cert",
    "RELAY_SERVER_CLIENT_KEY_PATH": "key",
}


@pytest.mark.parametrize(
    "change,named",
    [
        ({"RELAY_SERVER_CA_CERT_PATH": "nonsense"}, "RELAY_SERVER_CA_CERT_PATH"),
        ({"RELAY_SERVER_CA_CERT_PATH": "key"}, "RELAY_SERVER_CA_CERT_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_CERT_PATH": "nonsense"}, "RELAY_SERVER_CLIENT_CERT_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "nonsense"}, "RELAY_SERVER_CLIENT_KEY_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "stranger_key"}, "RELAY_SERVER_CLIENT_KEY_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "locked_key"}, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE": "=hush"}, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE"),
        (
            {
                **MTLS,
                "RELAY_SERVER_CLIENT_KEY_PATH": "locked_key",
                "RELAY_SERVER_CLIENT_KEY_PASSPHRASE": "=hush",
            },
            "RELAY_SERVER_CLIENT_KEY_PATH",
        ),
    ],
)
def test_files_that_cannot_be_used_are_configuration_errors(
    files: dict[str, str], change: dict[str, str], named: str
) -> None:
    environ = {
        name: value[1:] if value[0] == "=" else files.get(value, value) for name, value in change.items()
    }
    config = load({**ENVIRON, **environ})
    with pytest.raises(ConfigError) as wrong:
        ClientTls.for_platform(config)
    assert named in str(wrong.value) and "hush" not in str(wrong.value)


@pytest_twisted.ensureDeferred
async def test_a_tls_server_that_drips_bytes_is_cut_off(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str]
) -> None:
    ended: list[object] = []

    class Drip(Resource):
        isLeaf = True

        def render(self, request: Any) -> int:
            request.notifyFinish().addBoth(ended.append)
            request.setHeader("content-length", "100000")

            def more() -> None:
                if not ended:
                    request.write(b" ")
                    reactor.callLater(0.05, more)

            more()
            return NOT_DONE_YET

    server = TlsServer(ca.issue("platform", "localhost"))
    server.site.resource = Drip()
    url = f"https://localhost:{server.listen(ports)}/"
    client = HttpClient.from_config(reactor, load({**ENVIRON, "RELAY_SERVER_CA_CERT_PATH": files["ca"]}))
    call = Call.make("GET", url, {}, limit=0.5, max_bytes=200_000)
    assert isinstance(await failure_of(client.ask(call)), TimedOut)
    await until(lambda: bool(ended))
