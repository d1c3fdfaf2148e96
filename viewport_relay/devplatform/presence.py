"""Which relay holds a target's daemon, as the relays of server mode report it.

The newest report wins; an entry that is not renewed for 45 s is gone. In memory and bounded.
"""

from __future__ import annotations

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

ENTRY_TTL_SECONDS = 45.0
MAX_ENTRIES = 4096


@frozen
class PresenceEntry:
    """One target's daemon: where it sits and when (Unix milliseconds) that was last said."""

    workspace_id: str
    runtime_target_id: str
    machine_id: str | None
    relay_id: str
    relay_ws_base_url: str
    updated_at_ms: int

    def document(self) -> dict[str, object]:
        """The entry with the member names of the wire protocol (section 12)."""
        entry: dict[str, object] = {
            "relayId": self.relay_id,
            "relayWsBaseUrl": self.relay_ws_base_url,
            "daemonConnected": True,
            "runtimeTargetId": self.runtime_target_id,
            "updatedAtMs": self.updated_at_ms,
        }
        if self.machine_id is not None:
            entry["machineId"] = self.machine_id
        return entry


class PresenceTable:
    """Entries by (workspace, target); over `max_entries` the one that was renewed longest ago goes."""

    def __init__(
        self, clock: IReactorTime, ttl: float = ENTRY_TTL_SECONDS, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._clock = clock
        self._ttl = ttl
        self._max_entries = max_entries
        self._entries: dict[tuple[str, str], PresenceEntry] = {}

    def announce(
        self,
        workspace_id: str,
        runtime_target_id: str,
        relay_id: str,
        relay_ws_base_url: str,
        machine_id: str | None = None,
    ) -> PresenceEntry:
        """A relay says that it holds the daemon; replaces what another relay said before."""
        entry = PresenceEntry(
            workspace_id,
            runtime_target_id,
            machine_id,
            relay_id,
            relay_ws_base_url,
            int(self._clock.seconds() * 1000),
        )
        key = (workspace_id, runtime_target_id)
        # Taken out first so that the table stays ordered by renewal.
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]
        return entry

    def withdraw(self, workspace_id: str, runtime_target_id: str, relay_id: str) -> bool:
        """A relay lost the daemon. False if the entry is absent or by now another relay's: it stays."""
        key = (workspace_id, runtime_target_id)
        entry = self._entries.get(key)
        if entry is None or entry.relay_id != relay_id:
            return False
        del self._entries[key]
        return True

    def resolve(self, workspace_id: str, runtime_target_id: str) -> PresenceEntry | None:
        """The live entry of a target, or None."""
        key = (workspace_id, runtime_target_id)
        entry = self._entries.get(key)
        if entry is not None and self._clock.seconds() * 1000 - entry.updated_at_ms > self._ttl * 1000:
            del self._entries[key]
            return None
        return entry

    def __len__(self) -> int:
        return len(self._entries)
