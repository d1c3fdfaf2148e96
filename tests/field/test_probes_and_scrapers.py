"""Requests of probes, load balancers, scrapers and misdirected clients, byte for byte, to a real relay.

The first column of each row is the place where the input occurs.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.drill.certificates import Identity
from tests.drill.peer import dial
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until

SCRAPER = "scraper-token-0123456789abcdef"


class Answer(NamedTuple):
    status: int
    head: str
    body: bytes
    closed: bool

    def field(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with (
        FaultyPlatform() as platform,
        running(platform.environment() | {"RELAY_METRICS_TOKEN": SCRAPER}) as made,
    ):
        yield made


def ask(port: int, data: bytes, seconds: float = 5.0) -> Answer:
    """The complete response; `closed`: the relay closed the connection within `seconds`."""
    received, closed = b"", False
    with dial(port, timeout=seconds) as sock:
        sock.sendall(data)
        try:
            while piece := sock.recv(65_536):
                received += piece
            closed = True
        except ConnectionError:
            closed = True
        except TimeoutError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    text = head.decode("latin-1")
    return Answer(int(text.split()[1]) if text else 0, text, body, closed)


def lines(*words: str) -> bytes:
    return "\r\n".join((*words, "", "")).encode("latin-1")


POD = ("Host: 10.244.1.7:7781", "Connection: close")

#: (place, request, status)
PROBES: list[tuple[str, bytes, int]] = [
    ("kubelet, liveness: the pod's address as Host",
     lines("GET /health HTTP/1.1", *POD, "User-Agent: kube-probe/1.30", "Accept: */*"), 200),
    ("kubelet, readiness", lines("GET /ready HTTP/1.1", *POD, "User-Agent: kube-probe/1.30"), 200),
    ("kubelet on an IPv6 cluster", lines("GET /ready HTTP/1.1", "Host: [fd00:10:244::7]:7781", "Connection: close"), 200),
    ("HAProxy's httpchk: HTTP/1.0 without Host", lines("GET /ready HTTP/1.0"), 200),
    ("HAProxy's httpchk without a path: OPTIONS of the root", lines("OPTIONS / HTTP/1.0"), 404),
    ("ab and old balancers: HTTP/1.0 with keep-alive", lines("GET /health HTTP/1.0", "Connection: keep-alive"), 200),
    ("a script with netcat: HTTP/1.1 without Host", lines("GET /health HTTP/1.1", "Connection: close"), 200),
    ("an empty Host, from a template without a value", lines("GET /health HTTP/1.1", "Host:", "Connection: close"), 200),
    ("an uptime service that saves traffic", lines("HEAD /health HTTP/1.1", *POD), 200),
    ("AWS: its own user agent", lines("GET /ready HTTP/1.1", *POD, "User-Agent: ELB-HealthChecker/2.0"), 200),
    ("a probe past a cache", lines("GET /health HTTP/1.1", *POD, "Cache-Control: no-cache", "Pragma: no-cache"), 200),
    ("a prober that breaks caches by the query", lines("GET /health?_=1700000000 HTTP/1.1", *POD), 200),
    ("Envoy: every name in lower case, its own headers",
     lines("GET /ready HTTP/1.1", "host: relay", "connection: close", "x-envoy-expected-rq-timeout-ms: 1000", "x-forwarded-proto: https",
           "x-request-id: 4f1d0c6a"), 200),
    ("a probe through a forward proxy: the whole URL (RFC 9112 section 3.2.2)", lines("GET http://relay:7781/health HTTP/1.1", *POD), 200),
    ("the same for a page that is not public", lines("GET http://relay:7781/state HTTP/1.1", *POD), 401),
    ("a client that offers trailers", lines("GET /health HTTP/1.1", *POD, "TE: trailers"), 200),
    ("a library that sends Content-Length with GET", lines("GET /health HTTP/1.1", *POD, "Content-Length: 0"), 200),
    ("an API client that sends a body with GET", lines("GET /health HTTP/1.1", *POD, "Content-Length: 2") + b"{}", 200),
    ("an empty line left by the request before", b"\r\n" + lines("GET /health HTTP/1.1", *POD), 200),
    ("a slash that a router of the ingress adds", lines("GET /health/ HTTP/1.1", *POD), 404),
    ("a gRPC or HTTP/2 probe without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("a header folded over two lines, from an old gateway", lines("GET /health HTTP/1.1", *POD, "X-Old: a", " b"), 200),
    ("a name beyond ASCII in a header, from a directory", lines("GET /health HTTP/1.1", *POD, "X-User: M\xfcller"), 200),
    ("a space before the colon: smuggling, or a hand-written client", lines("GET /health HTTP/1.1", *POD, "X-Bad : a"), 400),
    ("curl that offers HTTP/2 in the clear",
     lines("GET /health HTTP/1.1", *POD[:1], "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200),
]  # fmt: skip


@pytest.mark.parametrize(("where", "request_", "status"), PROBES, ids=[row[0] for row in PROBES])
def test_probes_of_orchestrators_are_answered(relay: Relay, where: str, request_: bytes, status: int) -> None:
    answer = ask(relay.port, request_)
    assert answer.status == status and answer.closed, answer
    if request_.startswith(b"HEAD"):
        assert answer.body == b"" and int(answer.field("content-length") or 0) > 0
    elif status == 200:
        assert answer.body.startswith(b'{"ok":true')


def test_a_probe_that_only_connects_leaves_nothing_in_the_log(relay: Relay) -> None:
    """TCP checks of kubelet, AWS NLB and keepalived, every few seconds."""
    before = len(relay.entries())
    for _ in range(20):
        dial(relay.port).close()
    assert ask(relay.port, lines("GET /health HTTP/1.1", *POD)).status == 200
    assert [e for e in relay.entries()[before:] if e["event"] not in {"status"}] == []


# -- unreadable requests ------------------------------------------------------------------------------------


def said(relay: Relay, words: str) -> bool:
    """Wait for the log entry of an unreadable request."""
    return bool(
        until(
            lambda: [e for e in relay.entries() if e["event"] == "http_unreadable" and words in e["message"]],
            what=words,
        )
    )


def test_tls_to_a_port_without_tls_is_closed_and_logged(relay: Relay) -> None:
    """A daemon with wss:// instead of ws://; a load balancer with an HTTPS probe."""
    with dial(relay.port, timeout=5) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        ssl._create_unverified_context().wrap_socket(sock, server_hostname="localhost")
    assert said(relay, "speaks TLS to a port without TLS")


def test_plain_http_to_a_port_with_tls_is_closed_and_logged(platform: FaultyPlatform, tmp_path: Path) -> None:
    """A client with ws:// where the relay has a certificate."""
    own = Identity.self_signed("relay", "localhost")
    files = own.write(tmp_path, "relay")
    tls = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    with running(platform.environment() | tls, tls=own.context()) as relay:
        assert ask(relay.port, lines("GET /health HTTP/1.1", *POD)).closed
        assert said(relay, "speaks plain HTTP to a port with TLS")


def test_a_cookie_of_another_application_is_431_and_logged(relay: Relay) -> None:
    """Single sign-on on the same domain: browsers send its cookies with the upgrade."""
    answer = ask(relay.port, lines("GET /ws HTTP/1.1", *POD, "Cookie: sso=" + "x" * 20_000))
    assert answer.status == 431 and answer.closed
    assert said(relay, "a line of more than 16 KiB")


# -- scrapers ----------------------------------------------------------------------------------------------------

OPENMETRICS, TEXT = "application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4"

#: (place, headers, format of the response)
SCRAPERS: list[tuple[str, tuple[str, ...], str]] = [
    ("Prometheus 2", ("Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
     "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "Accept-Encoding: gzip", "X-Prometheus-Scrape-Timeout-Seconds: 10"), OPENMETRICS),
    ("Prometheus 3", ("Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
     "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
     "text/plain;version=0.0.4;q=0.3,*/*;q=0.2", "Accept-Encoding: gzip"), OPENMETRICS),
    ("Prometheus with native histograms: protobuf first", ("Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
     "encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3",), TEXT),
    ("vmagent of VictoriaMetrics", ("Accept: text/plain;version=0.0.4;q=1,*/*;q=0.1", "Accept-Encoding: gzip"), TEXT),
    ("Telegraf, Datadog", ("Accept: text/plain",), TEXT),
    ("curl", ("Accept: */*",), TEXT),
    ("a shell script", (), TEXT),
    ("a browser", ("Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",), TEXT),
    ("a client that asks for JSON of everything", ("Accept: application/json",), TEXT),
]  # fmt: skip


@pytest.mark.parametrize(("where", "headers", "form"), SCRAPERS, ids=[row[0] for row in SCRAPERS])
def test_each_scraper_gets_the_form_that_it_accepts(
    relay: Relay, where: str, headers: tuple[str, ...], form: str
) -> None:
    answer = ask(
        relay.port, lines("GET /metrics HTTP/1.1", *POD, f"Authorization: Bearer {SCRAPER}", *headers)
    )
    assert answer.status == 200 and (answer.field("content-type") or "").startswith(form)
    assert answer.field("content-encoding") is None
    text = answer.body.decode()
    assert text.endswith("# EOF\n") is (form == OPENMETRICS)
    families = {family.name for family in (read_openmetrics if form == OPENMETRICS else read_text)(text)}
    assert {"relay_connections", "relay_ready", "relay_refusals"} <= families


#: (place, header, status)
CREDENTIALS: list[tuple[str, str, int]] = [
    ("Prometheus' credentials_file", f"Bearer {SCRAPER}", 200),
    ("a scheme in lower case", f"bearer {SCRAPER}", 200),
    ("spaces and a tab from a template", f"Bearer   {SCRAPER}\t", 200),
    ("Prometheus' basic_auth by mistake", "Basic " + base64.b64encode(f"x:{SCRAPER}".encode()).decode(), 401),
    ("quotes of a YAML value that were kept", f'Bearer "{SCRAPER}"', 401),
    ("GitLab's word for it", f"Token {SCRAPER}", 401),
    ("the token alone", SCRAPER, 401),
]


@pytest.mark.parametrize(("where", "value", "status"), CREDENTIALS, ids=[row[0] for row in CREDENTIALS])
def test_credentials_of_scrapers(relay: Relay, where: str, value: str, status: int) -> None:
    answer = ask(relay.port, lines("GET /metrics HTTP/1.1", *POD, f"Authorization: {value}"))
    assert answer.status == status
    if status == 401:
        assert answer.field("www-authenticate") == 'Bearer realm="viewport-relay"'
        assert SCRAPER.encode() not in answer.body


def test_a_parameter_of_another_exporter_is_named(relay: Relay) -> None:
    """`params: {collect[]: …}` copied from the job of node_exporter."""
    answer = ask(
        relay.port, lines("GET /metrics?collect[]=cpu HTTP/1.1", *POD, f"Authorization: Bearer {SCRAPER}")
    )
    assert answer.status == 400 and b"the only parameter is deprecated" in answer.body
