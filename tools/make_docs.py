"""Writes the pages that are generated from tables: settings, reasons, troubleshooting, the command's help.

    python tools/make_docs.py            writes them
    python tools/make_docs.py --check    exits 1 and names the pages that are out of date

`tests/unit/test_docs.py` does the second. All other pages of docs/ are written by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import click
from click.testing import CliRunner

from benchmarks import capacity
from tools import arrows, machines
from viewport_relay.cli.explain import seen_as
from viewport_relay.cli.logsample import event_of, sample_line
from viewport_relay.cli.main import main as command
from viewport_relay.config import VARIABLES, Variable
from viewport_relay.noise.machine import LINK_MACHINE
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.metrics import Gauges, RelayCollector
from viewport_relay.reasons import Reason
from viewport_relay.wire.life import LIFE

ROOT = Path(__file__).resolve().parents[1]

MADE = "<!-- Made by `make docs`; change the table in the code instead. -->\n\n"

#: First reason of each group; a group ends at the first reason of the next.
GROUPS: tuple[tuple[Reason, str], ...] = (
    (Reason.RATE_LIMIT_EXCEEDED, "Upgrades refused before the platform is asked"),
    (Reason.JWKS_UNREACHABLE, "The token check"),
    (Reason.PLATFORM_UNREACHABLE, "The platform's validation"),
    (Reason.MISSING_WORKSPACE_CLAIM, "Claims against the query"),
    (Reason.STALE_DAEMON_GENERATION, "The daemon's seat"),
    (Reason.PAIRING_SCOPE_ONLY, "Frames"),
    (Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED, "Rates, queues and silence"),
    (Reason.NOISE_INVALID_PSK, "The Noise link"),
    (Reason.BACKPLANE_UNREACHABLE, "Several relays"),
    (Reason.RELAY_SHUTTING_DOWN, "The relay itself"),
    (Reason.ADMIN_UNAUTHORIZED, "The admin API"),
)

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


def grouped_reasons() -> Iterator[tuple[str, list[Reason]]]:
    """(heading, reasons) in the order of the catalogue."""
    begins = dict(GROUPS)
    heading, members = "", list[Reason]()
    for reason in Reason:
        if reason in begins:
            if members:
                yield heading, members
            heading, members = begins[reason], []
        members.append(reason)
    yield heading, members


def grouped_variables() -> Iterator[tuple[str, list[Variable]]]:
    """(heading, listed variables) in the order of the table."""
    listed = [variable for variable in VARIABLES if variable.listed]
    for heading, members in groupby(listed, key=lambda variable: variable.group):
        yield heading, list(members)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# -- settings ----------------------------------------------------------------------------------------------


def default_of(variable: Variable) -> str:
    """The default value; as code if it can be typed."""
    words = variable.shown_default
    typed = not variable.default_text and variable.default not in (None, ())
    return f"`{words}`" if typed else words or "none"


def environment_page() -> str:
    parts = [
        "# Environment variables\n\n",
        MADE,
        "Every setting of the relay. `viewport-relay config` shows those in force and where each came from; "
        "`viewport-relay doctor` tries them.\n\n"
        "* An empty value counts as unset. Older names work; if both are set, the documented one wins.\n"
        "* A value that does not parse, or settings that contradict each other, stop the start with exit "
        "status 78; every problem is named, not only the first.\n"
        "* A name that begins with `RELAY_` and is none of these is a warning at start.\n"
        "* Booleans take 0 1 false true no yes off on. Times and sizes take a unit where the table says so.\n"
        "* Quotation marks around a value are dropped, as `docker run --env-file` keeps them; around a secret they are "
        "kept, with a warning.\n"
        "* A secret may come from a file instead: `NAME_FILE=/path` (Docker secrets, systemd credentials). A byte order "
        "mark and line ends are dropped.\n"
        "* A private key that every user can read stops the start; one that its group can read, or another secret that "
        "others can read, is a warning. A file below a folder that others may not enter counts as closed.\n"
        "* `RELAY_SETTINGS_FILE` names a file with further settings. On SIGHUP (`systemctl reload`) it, secret files and the TLS "
        "files are read again; what can change while the relay runs is marked, and the log names what needs a restart.\n"
        "* Settings that are no longer listed here are still read, with one warning.\n",
    ]
    for heading, variables in grouped_variables():
        parts.append(f"\n## {heading}\n\n")
        rows = []
        for variable in variables:
            name = f"`{variable.name}`"
            if variable.secret:
                name += f"<br>or `{variable.name}_FILE`"
            if variable.older:
                name += "<br>older: " + ", ".join(f"`{older}`" for older in variable.older)
            if variable.option:
                name += f"<br>option `--{variable.option}`"
            meaning = variable.help + (" (taken up on a reload)" if variable.reload else "")
            rows.append((name, default_of(variable), variable.takes, meaning))
        parts.append(table(("variable", "default", "takes", "meaning"), rows))
    return "".join(parts)


def readme_table() -> str:
    """Table of the most used settings: those with an option, and the secrets of a plain deployment."""
    wanted = {"RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN", "SERVER_URL", "RELAY_TRUSTED_PROXIES"}
    wanted |= {"RELAY_TLS_CERT_PATH", "RELAY_TLS_KEY_PATH", "RELAY_NOISE_LINK", "RELAY_BACKPLANE_MODE"}
    rows = [
        (f"`{variable.name}`", default_of(variable), variable.help)
        for variable in VARIABLES
        if variable.option or variable.name in wanted
    ]
    return table(("variable", "default", "meaning"), rows)


def symptom_table() -> str:
    """Table of symptom, code and fix."""
    rows = [
        (seen, f"[`{reason.code}`](docs/how-to/troubleshooting.md#{reason.code.lower()})", reason.entry.fix)
        for seen, reason in SYMPTOMS
    ]
    return table(("what you see", "code in the log", "what to do"), rows)


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


# -- reasons -----------------------------------------------------------------------------------------------


def reasons_page() -> str:
    parts = [
        "# Reason codes\n\n",
        MADE,
        "Every refusal, close and dropped frame has one of these codes: in the log (`reason`), in the header "
        "`X-Relay-Reason` and JSON body of a refused upgrade, and in the metrics. Codes and texts are stable. "
        "`viewport-relay explain CODE` shows cause and fix; so does "
        "[troubleshooting](../how-to/troubleshooting.md).\n\n"
        "*status* is the HTTP status of a refused upgrade, *close* the WebSocket close code and its text. A "
        "reason with both refuses a browser's upgrade by closing, since browsers cannot read a status.\n",
    ]
    for heading, reasons in grouped_reasons():
        parts.append(f"\n## {heading}\n\n")
        rows = [
            (
                f"[`{reason.code}`](../how-to/troubleshooting.md#{reason.code.lower()})",
                reason.text,
                str(reason.entry.status or ""),
                f"{reason.entry.close} `{reason.entry.close_text}`" if reason.entry.close else "",
                reason.entry.level,
            )
            for reason in reasons
        ]
        parts.append(table(("code", "text", "status", "close", "level"), rows))
    return "".join(parts)


def troubleshooting_page() -> str:
    parts = [
        "# Troubleshooting\n\n",
        MADE,
        "Find the `reason` of the log line below: what it looks like, what causes it, what mends it. Details "
        "of a real line say more: which claim, which limit, what the platform answered.\n\n"
        "```sh\n"
        "docker logs viewport-relay | grep '\"reason\"'                 # or journalctl -u viewport-relay\n"
        'curl -s -H "Authorization: Bearer $RELAY_ADMIN_TOKEN" http://127.0.0.1:7781/logs\n'
        "curl -s -H \"Authorization: Bearer $RELAY_ADMIN_TOKEN\" 'http://127.0.0.1:7781/logs?summary=1'\n"
        "viewport-relay doctor                                        # tries every setting from where it runs\n"
        "viewport-relay explain CODE                                  # this page, in the terminal\n"
        "viewport-relay token inspect < token.txt                     # what this relay would say to a token\n"
        "```\n\n"
        "A refused peer reads the same code and the `connectionId` of the log line in its answer.\n",
    ]
    for heading, reasons in grouped_reasons():
        parts.append(f"\n## {heading}\n")
        for reason in reasons:
            parts.append(
                f"\n### {reason.code}\n\n"
                f"{reason.text}\n\n"
                f"```json\n{sample_line(reason)}\n```\n\n"
                f"* **The peer sees:** {seen_as(reason)}\n"
                f"* **Cause:** {reason.entry.cause}\n"
                f"* **Fix:** {reason.entry.fix}\n"
            )
    return "".join(parts)


# -- metrics and events ------------------------------------------------------------------------------------


def metrics_page() -> str:
    parts = [
        "# Metrics\n\n",
        MADE,
        "Every metric of `/metrics`, beside `process_*` and `python_*` of the process that answers. "
        "`/metrics?deprecated=0` leaves out the names that end in `_total` although they are gauges; they go with the next "
        "major version.\n\n",
    ]
    present = Gauges(jwks_age=0.0, processes={"relay": os.getpid()})
    rows = []
    for metric in RelayCollector(Counters(), lambda: present, "", "").collect():
        counter = "_total" if metric.type == "counter" else ""
        labels = sorted({name for sample in metric.samples for name in sample.labels} - {"le"})
        shown = ", ".join(f"`{name}`" for name in labels)
        rows.append((f"`{metric.name}{counter}`", metric.type, shown, metric.documentation))
    parts.append(table(("name", "type", "labels", "meaning"), rows))
    return "".join(parts)


def events_page() -> str:
    parts = [
        "# Events of the log\n\n",
        MADE,
        "Every value of `event` in a log line. An event with a `reason` is explained by "
        "[its code](reasons.md). *to do* is for trouble that has no reason code.\n\n"
        "Levels follow one rule: `error` is the fault of the relay, of its surroundings or of the platform; `warn` a peer's, or "
        "a fault that harms no peer yet; `info` is life.\n\n",
    ]
    with_reasons = {event_of(reason) for reason in Reason}
    with_reasons |= {"jwks_fetch_failed", "presence_failed", "handshake", "folded"}
    rows = [
        (f"`{name}`", "its reason's" if name in with_reasons else f"`{event.level}`", event.says, event.fix)
        for name, event in EVENTS.items()
    ]
    parts.append(table(("event", "level", "meaning", "to do"), rows))
    return "".join(parts)


# -- the command -------------------------------------------------------------------------------------------


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Words of each command, groups before their commands."""
    yield path
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        inside = group.get_command(context, name)
        if isinstance(inside, click.Group):
            yield from commands(inside, (*path, name))
        else:
            yield (*path, name)


def cli_page() -> str:
    parts = [
        "# The command `viewport-relay`\n\n",
        MADE,
        "`viewport-relay serve` starts the relay, as `twistd -n viewport-relay` does; its settings are "
        "[environment variables](environment.md). "
        'Completion: `eval "$(_VIEWPORT_RELAY_COMPLETE=bash_source viewport-relay)"` (`zsh_source`, `fish_source`).\n',
    ]
    for path in commands(command):
        done = CliRunner().invoke(command, [*path, "--help"], prog_name="viewport-relay", terminal_width=100)
        if done.exit_code != 0:
            raise SystemExit(f"viewport-relay {' '.join(path)} --help failed: {done.output}")
        title = " ".join(("viewport-relay", *path))
        parts.append(f"\n## {title}\n\n```\n{done.output.strip()}\n```\n")
    return "".join(parts)


# -- all pages ---------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Path -> text of all generated pages."""
    docs = ROOT / "docs"
    return {
        docs / "reference/environment.md": environment_page(),
        docs / "reference/reasons.md": reasons_page(),
        docs / "reference/metrics.md": metrics_page(),
        docs / "reference/events.md": events_page(),
        docs / "reference/cli.md": cli_page(),
        docs / "how-to/troubleshooting.md": troubleshooting_page(),
        docs / "topics/noise-machine.dot": machines.drawing(LINK_MACHINE),
        docs / "topics/connection-life.dot": machines.drawing(LIFE),
        ROOT / "README.md": readme(),
        docs / "topics/architecture.md": between_marks(
            "docs/topics/architecture.md", "arrows", arrows.diagram()
        ),
        docs / "topics/capacity.md": capacity_page(),
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
