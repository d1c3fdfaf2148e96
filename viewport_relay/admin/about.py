"""`GET /logs?about=ID`: everything that the relay knows of one id or address, in order, in words.

The id may be of a workspace, target, connection, client or machine, as a user or a refused peer names it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from attrs import frozen

from viewport_relay.admin.state import StateSource
from viewport_relay.admin.words import inert, paragraphs, wrapped
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.redaction import ID_KEYS
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import PeerView, TargetView

_WORDS: Final = {
    "join": "joined",
    "leave": "left",
    "refuse": "was refused",
    "close": "was closed by the relay",
    "drop": "sent a frame that was dropped",
    "flapping": "joined and left again and again",
    "handshake": "left within the Noise handshake",
    "folded": "(entries that were counted instead of written)",
}

#: Longest id that is looked for.
MAX_ID: Final = 256


@frozen(eq=False)
class About:
    """Answers `?about=ID` from the ring, the folded entries and the connected peers."""

    _log: EventLog
    _state: StateSource

    def entries(self, wanted: str) -> list[dict[str, Any]]:
        """The log's entries about the id, oldest first; with the folded refusal of this connection id, if there is one."""
        quoted = json.dumps(wanted)
        # Searching the lines costs less than parsing them all.
        candidates = (json.loads(record.line) for record in self._log.records() if quoted in record.line)
        found = [entry for entry in candidates if _is_about(entry, wanted)]
        folded = self._log.folded.get(wanted)
        if folded is not None:
            found = sorted([*found, folded], key=lambda entry: str(entry["ts"]))
        return found

    def present(self, wanted: str) -> list[str]:
        """One sentence for each peer that is connected now and has this id."""
        return [
            f"{_who(target, peer)} is connected, since {timestamp(peer.since)}"
            for target in self._state.targets()
            for peer in target.peers
            if wanted
            in (target.workspace_id, target.runtime_target_id, peer.connection_id, peer.client_id, peer.ip)
        ]

    def counted(self, wanted: str) -> list[str]:
        """One sentence for each source whose entries are being counted instead of written."""
        return [
            f"{fold.count} more of {fold.source.reason or fold.source.event} since {timestamp(fold.first)}"
            for fold in self._log.folds()
            if wanted in (fold.source.ip, fold.source.workspace_id)
        ]

    def text(self, wanted: str) -> str:
        """The answer as text."""
        entries = self.entries(wanted)
        lines = [f"about {inert(wanted)}"]
        for sentence in self.present(wanted) or ["no such peer is connected"]:
            lines.append(f"  now      {inert(sentence)}")
        if not entries:
            lines += wrapped(
                "log", "nothing. Entries of long ago may have left the log. If the peer says that it cannot connect, its "
                "attempts do not reach this relay: check address, DNS, firewall and the proxy in between",
            )  # fmt: skip
        for entry in entries:
            lines += _story(entry)
        lines += [f"  counted  {inert(sentence)}" for sentence in self.counted(wanted)]
        for reason in _last_reasons(entries):
            lines += ["", f"{reason.code}: {reason.text}"]
            lines += paragraphs({"cause": reason.entry.cause, "fix": reason.entry.fix})
        return "\n".join(lines) + "\n"

    def as_json(self, wanted: str) -> dict[str, Any]:
        """The answer as JSON."""
        entries = self.entries(wanted)
        last = [(reason.code, reason.entry) for reason in _last_reasons(entries)]
        return {
            "ok": True,
            "about": wanted,
            "present": self.present(wanted),
            "counted": self.counted(wanted),
            "reasons": {code: {"cause": entry.cause, "fix": entry.fix} for code, entry in last},
            "logs": entries,
        }


def _is_about(entry: dict[str, Any], wanted: str) -> bool:
    details = entry["details"]
    return entry.get("connectionId") == wanted or any(details.get(name) == wanted for name in ID_KEYS)


def _who(target: TargetView, peer: PeerView) -> str:
    name = f"workspace {target.workspace_id}, target {target.runtime_target_id or 'none'}"
    return f"the {peer.role} {peer.client_id} of {name}, from {peer.ip}, connection {peer.connection_id},"


def _story(entry: dict[str, Any]) -> list[str]:
    """One entry as a sentence."""
    details = entry["details"]
    who = [details.get("role") or "a peer"]
    forms = {"workspaceId": "of workspace {}", "runtimeTargetId": "(target {})", "ip": "from {}"}
    who += [form.format(details[name]) for name, form in forms.items() if name in details]
    what = _WORDS.get(entry["event"])
    said = f"{' '.join(who)} {what}" if what is not None else str(entry["event"])
    for part in (entry.get("message"), *map(details.get, ("detail", "platformWord", "hint"))):
        if part and str(part) not in said:
            said += f": {part}"
    if "reason" in entry:
        said += f" [{entry['reason']}]"
    if "connectionId" in entry:
        said += f", connection {entry['connectionId']}"
    return wrapped(entry["ts"][:19].replace("T", " ") + "Z ", said)


def _last_reasons(entries: list[dict[str, Any]]) -> list[Reason]:
    """The reasons in the entries, the latest first, at most three."""
    codes = dict.fromkeys(entry["reason"] for entry in reversed(entries) if "reason" in entry)
    return [Reason[code] for code in codes if code in Reason.__members__][:3]
