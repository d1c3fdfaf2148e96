"""Proxies configured by the text of docs/how-to/behind-a-proxy.md, with ports, names and paths of the test.

    proxy = Proxy("nginx", folder, files, relay.port)

Replacing a piece of text that is missing is an error.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from tests.drill.certificates import Files
from tests.drill.relay import until
from tests.pages import blocks
from tests.ports import free_port
from tests.programs import PROGRAMS

PAGE = "docs/how-to/behind-a-proxy.md"
TITLE = "# Put it behind a proxy"


@frozen
class Sample:
    """Place of a proxy's configuration on the page, and the program that uses it (a marker of programs.py)."""

    heading: str
    language: str
    marker: str

    @property
    def program(self) -> str:
        return PROGRAMS[self.marker][0]


PROXIES = {
    "nginx": Sample("## nginx", "nginx", "nginx"),
    "caddy": Sample("## Caddy", "caddy", "caddy"),
    "caddy-new": Sample("## Caddy", "caddy", "caddy_new"),
    "haproxy": Sample("## HAProxy, with HTTP", "haproxy", "haproxy"),
    "haproxy-tcp": Sample("## HAProxy, with the PROXY protocol", "haproxy", "haproxy"),
    "traefik": Sample("## Traefik", "yaml", "traefik"),
}


# -- the page --------------------------------------------------------------------------------------------------------


def block(heading: str, language: str) -> str:
    """First block of a section in a language; the title's section is the text before all others."""
    return next(one.text for one in blocks(PAGE, language) if one.heading == (heading or TITLE))


def settings(heading: str) -> dict[str, str]:
    """Variables that a section sets."""
    return dict(re.findall(r"^(RELAY_\w+)=(\S+)", block(heading, "sh"), re.MULTILINE))


def put_in(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not there:\n{text}"
        text = text.replace(old, new)
    return text


def knows_close_delay(name: str) -> bool:
    """Whether a Caddy is 2.7 or newer, which supports `stream_close_delay`."""
    said = subprocess.run([PROXIES[name].program, "version"], capture_output=True, text=True).stdout
    found = re.match(r"v?(\d+)\.(\d+)", said)
    assert found
    return (int(found[1]), int(found[2])) >= (2, 7)


def nginx_main(folder: Path, text: str) -> str:
    """A complete nginx configuration around the part that a page shows."""
    user = "user root;" if os.geteuid() == 0 else ""
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; pid {folder}/pid; worker_processes 1; {user}\nevents {{}}\nhttp {{\n{paths}{text}}}\n"
    )


# -- proxies ---------------------------------------------------------------------------------------------------------

_ANY_CERTIFICATE = ssl.create_default_context()
_ANY_CERTIFICATE.check_hostname = False
_ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


class Proxy:
    """A running proxy in front of a relay; `faster` lowers times in its configuration."""

    def __init__(
        self,
        name: str,
        folder: Path,
        files: Files,
        relay: int | str,
        faster: dict[str, str],
        *,
        port: int = 0,
        host: str = "localhost",
    ) -> None:
        """`relay` is the relay's port on 127.0.0.1, or another address in the proxy's syntax.

        `port` is the proxy's own (0: a free one), `host` the name or address that peers use for the proxy.
        """
        self.name, self.folder, self.files, self.host = name, folder, files, host
        self.port = port or free_port()
        relay = relay if isinstance(relay, str) else f"127.0.0.1:{relay}"
        folder.mkdir()
        sample = PROXIES[name]
        self.program = sample.program
        kind = name.partition("-")[0]
        text = put_in(block(sample.heading, sample.language), faster)
        self.configuration = folder / "configuration.yaml"
        self.configuration.write_text(getattr(self, f"_{kind}")(text, relay))
        path = str(self.configuration)
        options = {
            "nginx": ["-c", path, "-p", str(folder), "-e", "stderr"],
            "caddy": ["run", "--adapter", "caddyfile", "--config", path],
            "haproxy": ["-db", "-f", path],
            "traefik": [f"--configFile={folder}/traefik.yaml"],
        }[kind]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # open until the process ends
        self.environment = os.environ | {
            name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME")
        }
        self.process = subprocess.Popen(
            [self.program, *options],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.environment,
        )
        until(self._listens, 20, name)

    def _nginx(self, text: str, relay: str) -> str:
        text = put_in(
            text,
            {
                "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
                "server 127.0.0.1:7781": f"server {relay}",
                "server_name relay.example": f"server_name {self.host}",
                "/etc/nginx/relay.crt": self.files.cert,
                "/etc/nginx/relay.key": self.files.key,
                "/var/log/nginx/relay.log": str(self.folder / "access.log"),
            },
        )
        return nginx_main(self.folder, text)

    def _caddy(self, text: str, relay: str) -> str:
        if knows_close_delay(self.name):
            (line,) = [b.text.strip() for b in blocks(PAGE, "caddy") if "stream_close_delay" in b.text]
            backend = "        reverse_proxy 127.0.0.1:7781"
            text = put_in(text, {backend: f"{backend} {{\n{line}\n}}"})
        text = put_in(
            text,
            {
                # Caddy's automatic certificates need a public name.
                "relay.example {": f"{self.host}:{self.port} {{\n    tls {self.files.cert} {self.files.key}",
                "127.0.0.1:7781": relay,
            },
        )
        return f"{{\n    admin unix/{self.folder}/admin\n    auto_https disable_redirects\n}}\n{text}"

    def _haproxy(self, text: str, relay: str) -> str:
        pem = self.folder / "relay.pem"
        pem.write_text(Path(self.files.cert).read_text() + Path(self.files.key).read_text())
        tcp = self.name == "haproxy-tcp"
        pieces = {"bind :443": f"bind 127.0.0.1:{self.port}"}
        pieces["10.0.0.5:7781" if tcp else "127.0.0.1:7781"] = relay
        return put_in(text, pieces | ({} if tcp else {"/etc/haproxy/relay.pem": str(pem)}))

    def _traefik(self, text: str, relay: str) -> str:
        """The dynamic configuration; the static one goes to a second file."""
        (static,) = [b.text for b in blocks(PAGE, "yaml") if "providers:" in b.text]
        pieces = {'":443"': f'"127.0.0.1:{self.port}"', "/etc/traefik/relay.yaml": str(self.configuration)}
        quiet = "global:\n  checkNewVersion: false\n  sendAnonymousUsage: false\nlog:\n  level: DEBUG\n"
        (self.folder / "traefik.yaml").write_text(quiet + put_in(static, pieces))
        return put_in(
            text,
            {
                "relay.example": self.host,
                "127.0.0.1:7781": relay,
                "/etc/traefik/relay.crt": self.files.cert,
                "/etc/traefik/relay.key": self.files.key,
            },
        )

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.output()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
                # Traefik listens before it has read its certificate: it ends handshakes, or presents one of its own.
                return self.name != "traefik" or self._certificate(sock) in Path(self.files.cert).read_text()
        except OSError:
            return False

    def _certificate(self, sock: socket.socket) -> str:
        with _ANY_CERTIFICATE.wrap_socket(sock, server_hostname=self.host) as tls:
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"").strip()

    def output(self) -> str:
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode("utf-8", "replace")

    def reload(self) -> None:
        """Reload the configuration with the command of the page."""
        changed = self.folder / "changed"
        text = self.configuration.read_text()
        changed.write_text(text.replace("interval: 5s", "interval: 6s") + "# changed\n")
        changed.replace(self.configuration)
        if self.name == "nginx":
            self.process.send_signal(signal.SIGHUP)
            return
        if self.name == "traefik":
            until(
                lambda: self.output().count("Configuration received") > 1, 10, "the change in Traefik's log"
            )
            return
        subprocess.run(
            [self.program, "reload", "--adapter", "caddyfile", "--force", "--config", self.configuration,
             "--address", f"unix/{self.folder}/admin"],
            check=True, capture_output=True, timeout=20, env=self.environment,
        )  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.log.close()
