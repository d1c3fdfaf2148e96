"""`twistd viewport-relay`: options, settings and the service."""

from __future__ import annotations

import os
import secrets
import sys
from functools import partial
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IService
from twisted.internet.error import CannotListenError
from twisted.python import usage

from viewport_relay import __version__, collector, descriptors, hugepages
from viewport_relay.admin.words import as_text
from viewport_relay.config import EX_CONFIG, VARIABLES, ConfigError, configured_secrets, load, reread
from viewport_relay.config.values import integer
from viewport_relay.notify import Notifier
from viewport_relay.observe.lines import unblocked
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.engine import MakeEngine
from viewport_relay.service.process import Process
from viewport_relay.service.relay import Relay
from viewport_relay.workers.parent import Workers


def _environment_help() -> str:
    """All settings, for --help."""
    lines = []
    group = ""
    for variable in VARIABLES:
        if not variable.listed:
            continue
        if variable.group != group:
            group = variable.group
            lines.append(f"\n  {group}:")
        file_too = f" (or {variable.name}_FILE)" if variable.secret else ""
        lines.append(f"    {variable.name}{file_too} [{variable.shown_default}]\n        {variable.help}")
    return "\n".join(lines)


def install_reactor() -> None:
    """Install the relay's reactor where there is epoll; elsewhere Twisted's default serves."""
    try:
        from viewport_relay.wire.reactor import install
    except ImportError:
        return
    install()


def _dev_port(text: str) -> int:
    try:
        return integer(0, 65535)(text)
    except ValueError as takes:
        raise ValueError(f"option --dev-port: got {text[:64]!r}, takes {takes}") from None


class Options(usage.Options):
    """Options for what is set most often; every setting is an environment variable."""

    longdesc = "Routes end-to-end encrypted frames between coding-agent daemons and their clients."
    optFlags: ClassVar = [
        ["dev", None, "start the embedded dev platform too (loopback only, never in RELAY_MODE=prod)"]
    ]
    optParameters: ClassVar = [
        ["dev-port", None, 0, "port of the dev platform (0: any free one)", _dev_port],
        *[[v.option, None, None, f"{v.help} [{v.name}]"] for v in VARIABLES if v.option],
    ]

    def getUsage(self, width: int | None = None) -> str:
        text: str = super().getUsage(width)
        return f"{text}\nEnvironment variables, with their defaults:\n{_environment_help()}\n"

    def getSynopsis(self) -> str:
        return "Usage: viewport-relay serve [options], or twistd -n viewport-relay [options]"

    def opt_version(self) -> NoReturn:
        """Display the relay's version and exit."""
        with descriptors.standard_output():
            print(f"viewport-relay, version {__version__}")
        raise SystemExit(0)

    def opt_help(self) -> NoReturn:
        """Display this help and exit."""
        with descriptors.standard_output():
            print(self)
        raise SystemExit(0)

    def postOptions(self) -> None:
        descriptors.open_standard_streams()
        # twistd's own default would be a file in the working directory, which may be read-only.
        parent = self.parent
        if parent is not None and parent.get("pidfile") == "twistd.pid":
            parent["pidfile"] = ""
        if "twisted.internet.reactor" not in sys.modules:  # else --reactor was given
            install_reactor()

    def overrides(self) -> dict[str, str]:
        """Attributes of `Config` that were given as options."""
        return {v.attribute: self[v.option] for v in VARIABLES if v.option and self[v.option] is not None}


def makeService(options: Options) -> IService:
    """Called by twistd. Prints every error and exits with status 78 when the settings cannot work."""
    try:
        return _service(options, dict(os.environ))
    except ConfigError as error:
        for sentence in error.errors:
            print(f"viewport-relay: {sentence}", file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None


def _service(options: Options, environ: dict[str, str]) -> IService:
    from twisted.internet import reactor

    overrides, dev = options.overrides(), bool(options["dev"])
    config, platform = load(environ, overrides, dev_platform=dev), None
    if dev:  # only now: nothing is started with settings that cannot work
        platform = _dev_platform(reactor, environ, options["dev-port"])
        config = load(environ, overrides, dev_platform=True)
    in_words = config.log_format == "text" or (config.log_format == "auto" and sys.stdout.isatty())
    log = EventLog(
        unblocked(sys.stdout),
        max_entries=config.max_logs,
        level=config.log_level,
        clock=reactor.seconds,
        secrets=configured_secrets(config),
        relay_id=config.relay_id_in_log,
        form=as_text if in_words else str,
    )
    notifier = Notifier(os.environ)
    open_files = descriptors.raise_limit(descriptors.wanted(config.max_total_connections))
    make: MakeEngine = Relay
    if config.workers > 1:
        make = partial(Workers, environ=environ, overrides=overrides)
    again = partial(reread, environ=environ, overrides=overrides)
    service = Process(reactor, config, log, make, notifier, open_files, again)
    if platform is not None:
        log.event("dev_platform", message=f"the dev platform answers at {platform.url}", url=platform.url)
    collector.settle(reactor)
    hugepages.collapse()
    return service


def _dev_platform(reactor: Any, environ: dict[str, str], port: int) -> Any:
    """Start the dev platform and point `environ` at it."""
    from viewport_relay.devplatform import DevPlatform

    internal_key = environ.get("RELAY_INTERNAL_KEY") or secrets.token_urlsafe(32)
    platform = DevPlatform(reactor, internal_key=internal_key, credential=environ.get("DEV_CREDENTIAL"))
    try:
        platform.listen(reactor, port)
    except CannotListenError as error:
        print(f"viewport-relay: --dev-port {port}: cannot listen: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    environ.update(platform.relay_environment())
    return platform
