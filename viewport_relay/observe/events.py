"""The table of the log's events: name, meaning, and for trouble the fix.

`docs/reference/events.md` is made from this table; a test compares the names with the code. An event with a reason is
explained by the reason (`reasons.py`), which also gives its level; `level` and `fix` are for those that have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from viewport_relay.reasons import Level


@frozen
class Event:
    """The meaning of one event, its level and its fix.

    `level` follows the rule of the reasons' (`reasons.Entry`). `fix` is empty for events with a reason and for events of
    level info. `ends`: the problems (reasons or events) that the event ends at once. `held`: its problem lasts until another
    event ends it, however long nothing more is logged.
    """

    says: str
    fix: str = ""
    level: Level = "info"
    ends: tuple[str, ...] = ()
    held: bool = False


_RENEW: Final = "renew the certificate and put it at RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH; if it was renewed, see why it did not arrive there"

#: An event that is not in the table.
UNKNOWN: Final = Event("")


# fmt: off
EVENTS: Final[Mapping[str, Event]] = {
    # -- peers ---------------------------------------------------------------------------------------------
    "join": Event("a peer was admitted and takes part"),
    "leave": Event("a peer that took part is gone; `message` says how, `seconds` how long it was there"),
    "refuse": Event("an upgrade was refused"),
    "close": Event("the relay closed a connection"),
    "drop": Event("a peer's frame was not forwarded"),
    "handshake": Event("a Noise handshake ended without a close by the relay"),
    "flapping": Event("joins and leaves of one peer that were counted instead of written"),
    "folded": Event("entries that were counted instead of written: `of` names their event, `count` how many"),
    "http_dropped": Event("an HTTP connection was closed: there are as many as the relay takes", level="warn"),
    "http_unreadable": Event("a request could not be read", "the message says what the peer or the proxy should do",
        level="warn"),
    "http_refused": Event("an address was over its budget of plain HTTP requests; one entry for each minute"),
    "connection_refused": Event(
        "connections of an address are closed as soon as they are accepted; one entry for each minute"),
    "worker_request": Event("an executor's HTTP request was not answered by the platform"),
    # -- admission -----------------------------------------------------------------------------------------
    "jwks_fetched": Event("the platform's key set was fetched and has changed",
        ends=("JWKS_UNREACHABLE", "jwks_refetch_failed")),
    "jwks_fetch_failed": Event("the key set could not be fetched, and there is none that serves"),
    "jwks_refetch_failed": Event("the key set could not be fetched again; the one fetched before serves for up to a day",
        "check the endpoint at RELAY_JWKS_URL (`viewport-relay doctor` fetches it from this machine)", level="warn"),
    # -- several relays ------------------------------------------------------------------------------------
    "backplane_unreachable": Event("Redis or the platform's bus stopped answering", held=True),
    "backplane_refused": Event("Redis refused a command, or the platform a question about presence or bus", held=True),
    "backplane_recovered": Event("the backplane answers again", ends=("BACKPLANE_UNREACHABLE", "BACKPLANE_REFUSED")),
    "bus_drop": Event("a frame from another relay was refused"),
    "bus_queue_unread": Event(
        "another relay does not read its queue: frames for it are answered DAEMON_UNAVAILABLE until it does",
        "see whether that relay runs and reaches Redis; if it is gone, its daemons come back elsewhere by themselves",
        level="warn"),
    "bus_publish_failed": Event("frames for another relay could not be published",
        "check Redis or the platform's bus endpoints; the message says what they answered", level="error"),
    "bus_pull_failed": Event("frames from other relays could not be read",
        "check Redis or the platform's bus endpoints; the message says what they answered", level="error"),
    "presence_failed": Event("the presence of a daemon could not be announced or resolved"),
    "relay_id_shared": Event("another running relay has the same RELAY_ID",
        "give each relay a RELAY_ID of its own and restart it", level="error"),
    # -- the process ---------------------------------------------------------------------------------------
    "relay_started": Event("the relay listens; `details` hold addresses, URLs and what differs from the defaults"),
    "relay_stopping": Event("the relay was told to stop and closes its peers"),
    "relay_stopped": Event("the relay has stopped"),
    "status": Event("the state in one line: at the first refusal of a new reason, at its end, and once a minute"),
    "reload": Event("the relay was told to read its settings or files again", ends=("reload_failed",)),
    "reload_failed": Event("settings that were read again cannot work: the earlier ones stay in force, and the next start would fail",
        "correct what the message names and reload again", level="error", held=True),
    "signal_ignored": Event("the process got a signal that has no use here and would have ended it",
        "find out what sends it; SIGTERM stops the relay, SIGHUP reloads its settings", level="warn"),
    "config_warning": Event("a setting deserves a look", "the message names the variable and the fix", level="warn"),
    "config_note": Event("a value that the relay chose for itself, and why"),
    "dev_platform": Event("the embedded platform for development answers"),
    "listen_failed": Event("an address could not be listened on",
        "free the port (`ss -ltnp` names its owner) or set another one; the message names the variable", level="error"),
    "tls_reloaded": Event("certificate and key were read again",
        ends=("tls_certificate_ends", "tls_certificate_invalid", "tls_reload_failed")),
    "tls_certificate_ends": Event("the end of the relay's certificate is near: 14 days, or a fifth of its life", _RENEW,
        level="warn", ends=("tls_certificate_invalid",), held=True),
    "tls_certificate_invalid": Event("the relay's certificate has ended, or is not valid yet; peers that check it do not connect",
        _RENEW, level="error", ends=("tls_certificate_ends",), held=True),
    "tls_certificate_valid": Event("the relay's certificate is valid after the clock was set",
        ends=("tls_certificate_ends", "tls_certificate_invalid")),
    "tls_reload_failed": Event("certificate or key could not be read again; the old ones serve",
        "check the files at RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH, then send SIGHUP", level="error"),
    "internal_error": Event("a fault inside the relay, with its traceback",
        "report it with the traceback; other connections are not affected", level="error"),
    "log_lines_lost": Event("the log could not be written for a while; the entries are in /logs",
        "check the disk or the reader of standard output", level="error"),
    "follow_gap": Event("a reader that follows the log was too slow and missed entries", level="warn"),
    "twisted": Event("a message of Twisted or another library; `namespace` names the logger",
        "the message and the traceback say what failed; report it if it names a file of the relay"),
    "worker_started": Event("a worker process takes connections"),
    "worker_silent": Event("a worker process does not answer; its peers wait",
        "if it recurs: look at CPU and memory of the machine", level="error", held=True),
    "worker_answers": Event("a silent worker process answers again", ends=("worker_silent",)),
    "worker_killed": Event("a worker process was killed because it did not answer",
        "see worker_silent and the entries before it", level="error"),
    "worker_lost": Event("a worker process has ended and is started again",
        "the message says how it ended: signal 9 is mostly the memory limit, another signal or status a fault; look at the "
        "entries before it, at `dmesg` and at the memory limit of the container", level="error", ends=("worker_silent",)),
    # -- operators -----------------------------------------------------------------------------------------
    "admin_refused": Event("a request to an admin path was refused"),
    "operator_signed_in": Event("an operator signed in to the dashboard"),
    "operator_disconnect": Event("an operator closed connections"),
    "operator_cache_flush": Event("an operator emptied the caches"),
}
