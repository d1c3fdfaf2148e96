"""`viewport-relay demo`: runs the demonstration (`scenes`) against its own relay (`ownrelay`) or a running one."""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable
from typing import Any, NoReturn

import click
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from viewport_relay.admission.tls import ClientTls
from viewport_relay.cli.output import say as print_line
from viewport_relay.cli.ownrelay import OwnRelay, Place, RelayDidNotStart
from viewport_relay.cli.scenes import SCENES, DemoFailed, Where, exchange, refused_link, summary
from viewport_relay.config.values import base_url
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.platform_api import JsonHttp, PlatformError, fetch_link_key
from viewport_relay.reasons import Reason

#: The port of a relay that keeps serving, if it is free.
USUAL_PORT = 7781

#: With fewer messages each way the exchange is over before the keys are renewed.
FEWEST_TURNS = 5

#: The reason code of the refusal that the last scene provokes.
REFUSAL = f'"reason":"{Reason.NOISE_INVALID_PSK.code}"'


def say(line: str) -> None:
    """Print a progress line, but not the EXCHANGE OK of one scene: the last line is that of all scenes."""
    print_line("  " + line.replace("EXCHANGE OK", "  ok:", 1))


async def offers_link(reactor: Any, ws_url: str) -> bool:
    """Whether the relay has a key for the Noise link."""
    try:
        return await fetch_link_key(JsonHttp(reactor, ClientTls()), ws_url) is not None
    except (PlatformError, PeerError):
        return False  # a relay without the link; other problems show when the peers connect


async def run_scenes(reactor: Any, where: Where) -> str:
    """Run all scenes that the relay supports; returns the last line. Raises DemoFailed."""
    link = await offers_link(reactor, where.ws_url)
    results = [await exchange(reactor, where, say, scene) for scene in SCENES if link or not scene.link]
    if link:
        await refused_link(reactor, where, say)
    else:
        say("the relay offers no Noise link: its scenes are left out")
    return summary(
        sum(result.messages for result in results),
        sum(result.size for result in results),
        statistics.median(result.median_seconds for result in results),
    )


async def _first(reactor: Any, lines: list[str]) -> None:
    """Wait, for a limited time, until the refusal's log line has arrived."""
    for _ in range(40):
        if lines:
            return
        await deferLater(reactor, 0.05)


async def sign_in_link(reactor: Any, place: Place) -> str:
    """A single-use sign-in link to the admin page of the relay."""
    url = f"{place.http_url}/admin/api/sign-in-link"
    answer = await JsonHttp(reactor).request("POST", url, bearer=place.admin_token)
    return f"{place.http_url}{answer['path']}"


def reachable_at(place: Place, link: str) -> str:
    """URLs and tokens of the running relay, as text. `link` signs in to its admin page."""
    return (
        "\nThe relay serves on until Ctrl-C:\n"
        f"  peers     {place.ws_url}/ws\n"
        f"  health    curl {place.http_url}/health\n"
        f"  page      {link} (signs in once, within ten minutes)\n"
        f"            {place.http_url}/admin/ (sign in with {place.admin_token})\n"
        f"  log       curl -H 'Authorization: Bearer {place.admin_token}' {place.http_url}/logs\n"
        f"  in words  curl -H 'Authorization: Bearer {place.admin_token}' {place.http_url}/logs/text\n"
        f"  state     curl -H 'Authorization: Bearer {place.admin_token}' {place.http_url}/state\n"
        f"  platform  {place.platform_url} (development only; credential {place.credential})\n"
        "\nIts log from here on:"
    )


def about(place: Place, line: str) -> str:
    """The curl command that explains a line of the relay's log."""
    connection = json.loads(line).get("connectionId", "")
    url = f"{place.http_url}/logs?about={connection}&format=text"
    return f"curl -H 'Authorization: Bearer {place.admin_token}' '{url}'"


async def with_own_relay(reactor: Any, port: int, turns: int, *, once: bool) -> NoReturn:
    """Start a relay and run all scenes; with `once` stop the relay afterwards. Exits the process."""
    relay = OwnRelay(reactor)
    place = await relay.start(os.environ, port)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(relay.stop()))
    # A closed terminal must not leave the relay behind.
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reactor.stop))
    print_line(f"A relay with its dev platform is up: {place.ws_url}/ws")
    if port and place.port != port:
        print_line(f"Port {port} was in use: this relay has {place.port}")
    await _exchange(reactor, relay, place, turns, explain=not once)
    if once:
        status = await relay.stop()
        raise SystemExit(0 if status == 0 else 1)
    await _serve_on(reactor, relay, place)
    raise SystemExit(0)


async def _exchange(reactor: Any, relay: OwnRelay, place: Place, turns: int, *, explain: bool) -> None:
    """Run all scenes, then show the log line of the refused one, and with `explain` the command that explains it."""
    refusals: list[str] = []
    relay.on_line = lambda line: refusals.append(line) if REFUSAL in line else None
    where = Where(place.ws_url, place.platform_url, place.credential, turns=turns)
    closing = await run_scenes(reactor, where)
    await _first(reactor, refusals)
    for line in refusals:
        print_line(f"    in the relay's log: {line}")
        if explain:
            print_line(f"    explained: {about(place, line)}")
    print_line(closing)


async def _serve_on(reactor: Any, relay: OwnRelay, place: Place) -> None:
    """Show where the relay is reachable, and its log, until it is stopped. Raises RelayDidNotStart if it ends by itself."""
    print_line(reachable_at(place, await sign_in_link(reactor, place)))

    def log(line: str) -> None:
        if not print_line(line) and not relay.stopping:  # standard output is closed
            reactor.stop()

    relay.on_line = log
    status = await relay.ended
    if not relay.stopping:
        raise RelayDidNotStart(f"the relay ended by itself with status {status}")


def _url(*schemes: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """The check of an option that takes a URL with one of these schemes."""
    kind = base_url(*schemes)

    def check(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
        try:
            return None if text is None else kind(text)
        except ValueError as takes:
            raise click.BadParameter(f"got {text!r}: {takes}") from None

    return check


@click.command(short_help="Let a daemon and a client talk through a relay, and check every byte.")
@click.option("--once", is_flag=True, help="End after the exchange; exit status 0 if all arrived.")
@click.option(
    "--relay",
    "relay_url",
    metavar="URL",
    callback=_url("ws", "wss"),
    help="A running relay (ws://host:port) instead of an own one.",
)
@click.option(
    "--platform",
    "platform_url",
    metavar="URL",
    callback=_url("http", "https"),
    help="The dev platform of that relay (http://host:port).",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help=f"Port of the own relay.  [default: {USUAL_PORT} if free]"
)
@click.option(
    "--turns",
    type=click.IntRange(FEWEST_TURNS, 230),
    default=200,
    show_default=True,
    help="Messages each way.",
)
def demo(once: bool, relay_url: str | None, platform_url: str | None, port: int | None, turns: int) -> None:
    """Let a daemon and a client stream an agent's transcript through a relay, and check every byte at both ends.

    Without --relay it starts a relay and its dev platform on loopback, and serves on after the exchange until Ctrl-C.
    With --relay and --platform it uses a running relay whose dev platform (twistd -n viewport-relay --dev) takes the
    credential in the variable DEV_CREDENTIAL, and ends after the exchange.

    \b
      viewport-relay demo
      viewport-relay demo --once
      DEV_CREDENTIAL=... viewport-relay demo --relay ws://127.0.0.1:7781 --platform http://127.0.0.1:7790
    """
    if (relay_url is None) != (platform_url is None):
        raise click.UsageError("--relay and --platform go together")
    credential = os.environ.get("DEV_CREDENTIAL", "")
    if relay_url is not None and not credential:
        raise click.UsageError("--relay needs the dev platform's credential in the variable DEV_CREDENTIAL")
    wanted = port if port is not None else (0 if once else USUAL_PORT)

    async def run(reactor: Any) -> NoReturn:
        try:
            if relay_url is None or platform_url is None:
                await with_own_relay(reactor, wanted, turns, once=once)
            where = Where(relay_url, platform_url, credential, turns=turns)
            print_line(await run_scenes(reactor, where))
        except (DemoFailed, RelayDidNotStart) as error:
            click.echo(f"EXCHANGE FAILED {error}", err=True)
            raise SystemExit(1) from None
        raise SystemExit(0)

    react(run)
