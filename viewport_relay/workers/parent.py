"""The parent of several workers: listens, checks what needs no asking, gives connections away, answers operators.

It carries no frame. Its workers are relays of their own, which get their connections from here.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred

from viewport_relay.admission.limits import Ticket
from viewport_relay.backplane.single import Single
from viewport_relay.config import BY_ATTRIBUTE, Config, Reloaded, Reread, merged
from viewport_relay.notify import Notifier
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service import RelayService
from viewport_relay.workers.crew import LOOK, Crew
from viewport_relay.workers.messages import Apply
from viewport_relay.workers.passing import PassingResource
from viewport_relay.workers.slots import slot
from viewport_relay.workers.state import CrewState, FreshDoor, bring_up_to_date

#: Seconds that workers have to end on top of RELAY_DRAIN_SECONDS.
_MARGIN: Final = 5.0

#: Seconds after which the parent accepts connections although a worker is still missing.
_FIRST_START: Final = 30.0

#: What a service manager or a socket activation said to the parent alone.
_NOT_INHERITED: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "RELAY_LISTEN_ENDPOINT", "RELAY_ADMIN_LISTEN", "RELAY_ADMIN_TOKEN", "RELAY_ADMIN_TOKEN_FILE",
    "RELAY_METRICS_TOKEN", "RELAY_METRICS_TOKEN_FILE", "RELAY_PROXY_PROTOCOL",
    "RELAY_SETTINGS_FILE",
)  # fmt: skip


def worker_environment(
    environ: Mapping[str, str], config: Config, overrides: Mapping[str, str], noise_key: str, index: int
) -> dict[str, str]:
    """The environment from which a worker loads the same settings.

    `overrides` are command line options, by attribute of `Config`. In redis and server mode every worker is a relay of
    its own to the others: its name gets a suffix.
    """
    made = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
    made |= {BY_ATTRIBUTE[attribute].name: text for attribute, text in overrides.items()}
    suffix = "" if config.backplane_mode == "single" else f"-w{index}"
    made |= {
        "RELAY_WORKERS": "1",
        "RELAY_MODE": config.mode,
        "RELAY_ID": config.relay_id[: 128 - len(suffix)] + suffix,
        "RELAY_PUBLIC_WS_BASE_URL": config.public_ws_base_url,
        "RELAY_NOISE_PRIVATE_KEY": noise_key,
    }
    made.pop("RELAY_NOISE_PRIVATE_KEY_FILE", None)
    return made


class ParentService(RelayService):
    """The relay with RELAY_WORKERS above 1."""

    upgrade: PassingResource
    _upgrade_kind = PassingResource

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: EventLog,
        notifier: Notifier | None = None,
        open_files: int = 0,
        *,
        environ: Mapping[str, str],
        overrides: Mapping[str, str],
        reread: Reread = Reloaded,
    ) -> None:
        RelayService.__init__(self, reactor, config, log, notifier, open_files, reread)
        self.backplane = Single()  # the workers have it
        self._environ = merged(environ)
        self._overrides = overrides
        timeout = config.worker_timeout_ms / 1000
        self.crew = Crew(
            reactor,
            config.workers,
            timeout,
            log,
            self.counters,
            self._worker_environment,
            self._heard,
            self._complete,
        )
        self._accepting = False
        self._crew_state = CrewState(self.crew, lambda: self.upgrade.stopping)
        self.state = self._crew_state
        self.shown = Counters()
        self.upgrade.pass_on = self._pass_on

    def _worker_environment(self, index: int) -> dict[str, str]:
        key = self.keys.current.private_text()
        return worker_environment(self._environ, self.config, self._overrides, key, index)

    def _upgrade_limits(self) -> dict[str, int]:
        # Clients are counted by the worker, where all of a target's are.
        return {**RelayService._upgrade_limits(self), "clients": 0}

    def apply(self, reloaded: Reloaded) -> None:
        RelayService.apply(self, reloaded)
        self._environ |= reloaded.texts  # for workers that are started from now on
        self.crew.send(Apply(dict(reloaded.texts)))

    def _pass_on(self, workspace_id: str, sock: socket.socket, ip: str, data: bytes, ticket: Ticket) -> bool:
        worker = self.crew.workers[slot(workspace_id, len(self.crew.workers))]
        return worker.adopt(sock, ip, data, ticket)

    def _heard(self) -> None:
        bring_up_to_date(self.shown, self.counters, self.crew, self._crew_state, self.log)

    def _door(self, *, admin: bool) -> Any:
        return FreshDoor(RelayService._door(self, admin=admin), self.crew.refresh)

    def _status(self) -> str:
        return ", ".join(f"{number} {role}s" for role, number in self.state.connections().items())

    # -- start and stop ------------------------------------------------------------------------------------

    def _open_doors(self) -> None:
        """Listen, so that a port that is taken is told at once; but accept nobody who would only wait for a worker."""
        RelayService._open_doors(self)
        self._public_port().stopReading()

    def _public_port(self) -> Any:
        return self._ports[0]

    def _start_rooms(self) -> None:
        self.crew.start()
        self._every(LOOK, self.crew.look)
        self.reactor.callLater(_FIRST_START, self._complete)

    def _announce(self) -> None:
        """The service manager is told when the workers are there."""

    def _complete(self) -> None:
        if not self._accepting and not self.upgrade.stopping:
            self._accepting = True
            self._public_port().startReading()
            RelayService._announce(self)

    def _drain(self) -> Deferred[None]:
        late = self.reactor.callLater(self.config.drain_seconds + _MARGIN, self.crew.kill)

        def gone(_: object) -> None:
            if late.active():
                late.cancel()
            self.crew.close()

        return self.crew.stop().addCallback(gone)

    def _cut_all(self) -> None:
        self.crew.end_at_once()

    def _stop_rooms(self) -> None:
        """None of the relay's own was started here."""
