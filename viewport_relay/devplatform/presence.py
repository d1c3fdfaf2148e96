"""Which relay holds a target's daemon, as the relays of server mode report it.

The newest report wins; an entry that is not renewed for 45 s is gone. In memory and bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime

ENTRY_TTL_MS = 45_000
MAX_ENTRIES = 4096


class PresenceTable:
    """Entries by (workspace, target); over MAX_ENTRIES the entry that was renewed longest ago goes.

    An entry has the member names of the wire protocol (section 12). `updatedAtMs` is Unix milliseconds.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: dict[tuple[str, str], Mapping[str, Any]] = {}

    def announce(
        self,
        workspace_id: str,
        runtime_target_id: str,
        relay_id: str,
        relay_ws_base_url: str,
        machine_id: str | None = None,
    ) -> None:
        """A relay says that it holds the daemon; replaces what another relay said before."""
        key = (workspace_id, runtime_target_id)
        # Taken out first so that the table stays ordered by renewal.
        self._entries.pop(key, None)
        self._entries[key] = {
            "relayId": relay_id,
            "relayWsBaseUrl": relay_ws_base_url,
            "daemonConnected": True,
            "runtimeTargetId": runtime_target_id,
            "updatedAtMs": int(self._clock.seconds() * 1000),
            **({} if machine_id is None else {"machineId": machine_id}),
        }
        while len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def withdraw(self, workspace_id: str, runtime_target_id: str, relay_id: str) -> None:
        """A relay lost the daemon. An entry that is another relay's by now stays."""
        entry = self._entries.get((workspace_id, runtime_target_id))
        if entry is not None and entry["relayId"] == relay_id:
            del self._entries[workspace_id, runtime_target_id]

    def resolve(self, workspace_id: str, runtime_target_id: str) -> Mapping[str, Any] | None:
        """The live entry of a target, or None."""
        entry = self._entries.get((workspace_id, runtime_target_id))
        if entry is not None and self._clock.seconds() * 1000 - entry["updatedAtMs"] > ENTRY_TTL_MS:
            del self._entries[workspace_id, runtime_target_id]
            return None
        return entry

    def __len__(self) -> int:
        return len(self._entries)
