"""Writes the generated pages (`reference.py`) and the generated parts of pages that are written by hand.

    python tools/make_docs.py            writes them
    python tools/make_docs.py --check    exits 1 and names the pages that are out of date

`tests/unit/test_docs.py` does the second. All other pages of docs/ are written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import capacity, drills
from tools import arrows, machines, reference
from viewport_relay.config import VARIABLES
from viewport_relay.noise.machine import LINK_MACHINE
from viewport_relay.reasons import Reason
from viewport_relay.wire.life import LIFE

ROOT = Path(__file__).resolve().parents[1]

#: The marks around a generated part of a page that is written by hand.
MARK = "<!-- {name}: made by `make docs` from the table in the code -->", "<!-- /{name} -->"

#: Symptom, and its most frequent reason.
SYMPTOMS: tuple[tuple[str, Reason], ...] = (
    ("every peer is refused with 503, soon after a start", Reason.JWKS_UNREACHABLE),
    ("connected peers go on, new ones are refused with 503", Reason.PLATFORM_UNREACHABLE),
    ("every new peer is refused with 502", Reason.INTERNAL_KEY_MISMATCH),
    ("every token is refused with 401", Reason.JWT_SIGNATURE_MISMATCH),
    ("single peers are refused with 401, or closed 4401", Reason.JWT_EXPIRED),
    ("many peers are refused with 429, all with the proxy's address", Reason.RATE_LIMIT_EXCEEDED),
    ("every peer gets 426 through a proxy", Reason.UPGRADE_REQUIRED),
    ("clients connect and see no machine", Reason.DAEMON_UNAVAILABLE),
    ("a daemon is closed 4008 again and again", Reason.DAEMON_ALREADY_CONNECTED),
    ("peers of one workspace fail in the Noise handshake", Reason.NOISE_INVALID_PSK),
)


def readme_table() -> str:
    """Table of the most used settings: those with an option, and the secrets of a plain deployment."""
    wanted = {"RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN", "SERVER_URL", "RELAY_TRUSTED_PROXIES"}
    wanted |= {"RELAY_TLS_CERT_PATH", "RELAY_TLS_KEY_PATH", "RELAY_NOISE_LINK", "RELAY_BACKPLANE_MODE"}
    rows = [
        (f"`{variable.name}`", reference.default_of(variable), variable.help)
        for variable in VARIABLES
        if variable.option or variable.name in wanted
    ]
    return reference.table(("variable", "default", "meaning"), rows)


def symptom_table() -> str:
    """Table of symptom, code and fix."""
    rows = [
        (seen, f"[`{reason.code}`](docs/how-to/troubleshooting.md#{reason.code.lower()})", reason.entry.fix)
        for seen, reason in SYMPTOMS
    ]
    return reference.table(("what you see", "code in the log", "what to do"), rows)


def between_marks(page: str, name: str, made: str, text: str = "") -> str:
    """The text of a page with the part between its marks generated anew."""
    begin, end = (mark.format(name=name) for mark in MARK)
    before, found, rest = (text or (ROOT / page).read_text("utf-8")).partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{page} has lost the marks of {name}")
    return f"{before}{begin}\n{made}{end}{after}"


def readme() -> str:
    """README.md with the tables between its marks generated anew."""
    text = between_marks("README.md", "settings", readme_table())
    return between_marks("README.md", "symptoms", symptom_table(), text)


def capacity_page() -> str:
    """docs/topics/capacity.md with its tables generated anew from the newest results."""
    page = "docs/topics/capacity.md"
    text = (ROOT / page).read_text("utf-8")
    for name, made in capacity.PARTS.items():
        text = between_marks(page, name, made(), text)
    return text


# -- all pages ---------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Path -> text of all generated pages."""
    docs = ROOT / "docs"
    return {
        docs / "reference/environment.md": reference.environment_page(),
        docs / "reference/reasons.md": reference.reasons_page(),
        docs / "reference/metrics.md": reference.metrics_page(),
        docs / "reference/events.md": reference.events_page(),
        docs / "reference/cli.md": reference.cli_page(),
        docs / "how-to/troubleshooting.md": reference.troubleshooting_page(),
        docs / "topics/noise-machine.dot": machines.drawing(LINK_MACHINE),
        docs / "topics/connection-life.dot": machines.drawing(LIFE),
        ROOT / "README.md": readme(),
        docs / "topics/architecture.md": between_marks(
            "docs/topics/architecture.md", "arrows", arrows.diagram()
        ),
        docs / "topics/capacity.md": capacity_page(),
        docs / "topics/resilience.md": between_marks("docs/topics/resilience.md", "drills", drills.table()),
    }


def run(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 if the pages were written, or are up to date (--check)."""
    old = []
    for path, text in pages().items():
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        old.append(path)
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
    for path in old:
        print(f"{'not up to date' if '--check' in arguments else 'written'}: {path.relative_to(ROOT)}")
    return 1 if old and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
