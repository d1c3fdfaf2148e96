"""The reference pages that are made from the code's tables: settings, reasons, troubleshooting, metrics, events, the command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import click
from click.testing import CliRunner

from tools.logsample import event_of, sample_line
from viewport_relay.admin.metrics import RelayCollector
from viewport_relay.cli.explain import seen_as
from viewport_relay.cli.main import main as command
from viewport_relay.config import VARIABLES, Variable
from viewport_relay.observe.checks import Condition
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.events import EVENTS
from viewport_relay.reasons import Reason

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
            meaning = variable.help + (" (applied on a reload)" if variable.reload else "")
            rows.append((name, default_of(variable), variable.takes, meaning))
        parts.append(table(("variable", "default", "takes", "meaning"), rows))
    return "".join(parts)


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
    state: Any = SimpleNamespace(
        targets=list, connections=dict, condition=lambda: Condition(True, "", 0.0, {}),
        processes=lambda: {"relay": os.getpid()},
    )  # fmt: skip
    log: Any = SimpleNamespace(write_failures=0)
    rows = []
    for metric in RelayCollector(Counters(), state, log, float, "").collect():
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
        "a fault that harms no peer yet; `info` is everything else.\n\n",
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
