"""The checks of `viewport-relay doctor` that concern the platform: reachability, keys, clock, validate endpoint.

DNS, TCP and TLS are tried one at a time (`probes`), so that the first step that fails is named. Key set and validate
endpoint are requested through the relay's HTTP client and judged by the relay's rules, so that a finding says what the
relay would see. The validate endpoint gets a made-up token. Nothing is changed.
"""

from __future__ import annotations

import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from twisted.internet.threads import deferToThread

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, HttpFailure
from viewport_relay.admission.httpproxy import HttpProxy
from viewport_relay.admission.httpwords import redirect
from viewport_relay.admission.jwks import jwks_call
from viewport_relay.admission.keys import KeySet, KeySetError, listed, printable
from viewport_relay.admission.platform import ValidationSettings, question
from viewport_relay.admission.tls import ClientTls
from viewport_relay.admission.verdict import DENIALS, judge_answer, judge_failure
from viewport_relay.cli import probes
from viewport_relay.cli.probes import WARNING_DAYS, Finding, Origin, ProbeFailed, days_left, fail, ok, warn
from viewport_relay.config import Config, is_loopback
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Reason

#: A token that no platform has signed, long enough to be refused for its signature and not for its length.
PROBE_TOKEN = "viewport-relay-doctor.made-up.token"
PROBE_QUERY = UpgradeQuery(Role.CLIENT, "viewport-relay-doctor", "viewport-relay-doctor")


class NoKeys(Exception):
    """There is no usable key set; the text says why. `answer`: the HTTP answer, if there was one."""

    def __init__(self, why: str, answer: Answer | None = None) -> None:
        super().__init__(why)
        self.answer = answer


async def fetch_keys(client: HttpClient, config: Config) -> tuple[KeySet, Answer]:
    """Fetch RELAY_JWKS_URL within the relay's limits. Raises NoKeys."""
    try:
        answer = await client.ask(jwks_call(config.jwks_url))
    except HttpFailure as error:
        raise NoKeys(error.why) from None
    if answer.status != 200:
        raise NoKeys(f"the answer is {redirect(answer) or f'HTTP {answer.status}, not 200'}", answer)
    try:
        return KeySet.parse(answer.body), answer
    except KeySetError as error:
        raise NoKeys(error.why, answer) from None


# -- reachability -----------------------------------------------------------------------------------------


#: The fix for each step that can fail.
_FIXES = {
    "DNS": "check the host name, and the resolver of this machine",
    "TCP": "check that the platform runs, the port, and firewalls on the way",
    "TLS": "a private CA goes into RELAY_SERVER_CA_CERT_PATH; the URL's host must be one that the certificate names",
}


async def reachability(
    reactor: Any, config: Config, origin: Origin, names: str, timeout: float
) -> AsyncIterator[Finding]:
    """Try DNS, TCP and TLS to one origin, each within `timeout` seconds, up to the first failure.

    With an HTTP proxy, DNS and TCP are tried to the proxy; tunnel and TLS are tried by the first request.
    """
    proxy = HttpProxy.from_config(config)
    if origin.tls and proxy is not None and proxy.serves(origin.host, origin.port):
        names, origin = f"the proxy ({names})", Origin(False, proxy.host, proxy.port)
    step = "DNS"
    try:
        addresses = await deferToThread(probes.resolve, origin)
        yield ok(f"DNS for {names}", f"{origin.host} is {', '.join(addresses[:4])}")
        step, began = "TCP", time.monotonic()
        await deferToThread(probes.connect, origin, timeout)
        took = f"{(time.monotonic() - began) * 1e3:.0f} ms"
        yield ok(f"TCP for {names}", f"connected to {origin} in {took}")
        if origin.tls:
            step = "TLS"
            tls = ClientTls.for_platform(config)
            version, certificate = await probes.handshake(reactor, origin, tls, timeout)
            yield _certificate(config, origin, f"TLS for {names}", version, certificate)
    except ProbeFailed as error:
        yield fail(f"{step} for {names}", str(error), error.fix or _FIXES[step])


def _certificate(
    config: Config, origin: Origin, name: str, version: str, certificate: x509.Certificate
) -> Finding:
    if not config.server_tls_verify:
        fix = "remove RELAY_SERVER_TLS_VERIFY; RELAY_SERVER_CA_CERT_PATH is for a private CA"
        return warn(name, f"{version}, but any certificate is believed", fix)
    days = days_left(certificate)
    if days < WARNING_DAYS:
        return warn(name, f"the certificate of {origin} ends in {days:.0f} days", "renew it on the platform")
    return ok(name, f"{version}, chain and host name are good, {days:.0f} days left")


# -- what it serves ----------------------------------------------------------------------------------------


async def jwks(client: HttpClient, config: Config) -> list[Finding]:
    """Check the key set, and the difference of the two clocks."""
    findings = []
    try:
        keys, answer = await fetch_keys(client, config)
        findings.append(ok("JWKS", _keys_in_words(keys, answer)))
    except NoKeys as error:
        shown = config.jwks_url.partition("?")[0]  # a query may hold a secret
        fix = f"run `curl -i {shown}` here; check RELAY_JWKS_URL, or SERVER_URL, with the platform"
        findings.append(fail("JWKS", str(error), fix))
        if error.answer is None:
            return findings
        answer = error.answer
    return [*findings, clock(answer.header("date"), time.time(), config.token_clock_skew_sec)]


def _keys_in_words(keys: KeySet, answer: Answer) -> str:
    named = [f"{printable(key.kid)} ({key.algorithm})" for key in list(keys)[:8]]
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    age = answer.header("age") or ""
    notes = {
        f"ignored: {listed(keys.ignored)}": bool(keys.ignored),
        "gzip-coded although nothing was asked for, which is taken": bool(answer.header("content-encoding")),
        "begins with a byte order mark, which is dropped": answer.body.startswith(BOM_UTF8),
        f"{age} s old in a cache on the way": age.isdigit(),
    }
    usable = f"{len(keys)} usable: {', '.join(named)}{more}"
    return "; ".join([usable, *(note for note, holds in notes.items() if holds)])


def clock(date: str | None, now: float, skew: int) -> Finding:
    """The platform's Date header against this machine's clock `now` (seconds since the epoch)."""
    fix = "let both machines keep time (timedatectl, chrony)"
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return warn("clock", "the platform sends no Date to compare with", "compare by hand: date -u")
    apart = now - theirs  # the header has whole seconds: a difference of up to one second is rounding
    words = f"this machine is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the platform"
    if abs(apart) > skew + 1:
        return fail("clock", f"{words}, more than the {skew} s that tokens are given", fix)
    if abs(apart) > max(2.0, skew / 2):
        return warn("clock", words, fix)
    return ok("clock", "as the platform's" if abs(apart) <= 2 else words)


async def validation(client: HttpClient, config: Config) -> list[Finding]:
    """Validate a made-up token: the answer shows whether the platform refuses the token or the internal key."""
    name = "validate"
    limit = config.admission_timeout_ms / 1000
    most = config.admission_max_response_bytes
    call = ValidationSettings(config.validate_url, config.internal_key, limit, most).call
    try:
        answer = await client.ask(call, question(PROBE_TOKEN, PROBE_QUERY))
    except HttpFailure as failure:
        refusal = judge_failure(failure, call.shown)
        return [fail(name, f"{refusal.reason.text}: {refusal.detail}", refusal.reason.entry.fix)]
    verdict = judge_answer(answer, PROBE_QUERY, call.shown, (PROBE_TOKEN, config.internal_key or ""))
    if isinstance(verdict, Claims):
        fix = "check that RELAY_VALIDATE_URL is a real validate endpoint: this one admits any token"
        return [fail(name, "a made-up token was admitted", fix)]
    word = f" ({verdict.details['platformWord']})" if verdict.details.get("platformWord") else ""
    if verdict.reason is Reason.WORKSPACE_NOT_FOUND and "workspace" not in word.lower():
        # Any JSON 404 means a missing workspace; a 404 of another path proves nothing about the key.
        fix = "check the path of RELAY_VALIDATE_URL: this may be the 404 of something else than the validate endpoint"
        said = f"answers 404 without naming a workspace{word}, so the internal key is not proven"
        return [warn(name, said, fix)]
    if verdict.reason in DENIALS:
        caller = "with no key" if config.internal_key is None else "takes this relay's internal key"
        return [ok(name, f"{caller}, and refuses a made-up token as it must: {verdict.reason.code}{word}")]
    detail = f": {verdict.detail}" if verdict.detail else ""
    fix = verdict.reason.entry.fix
    if verdict.reason is Reason.INTERNAL_KEY_MISMATCH and config.internal_key is None:
        fix = "set RELAY_INTERNAL_KEY to the platform's value; it is not set here"
    return [fail(name, f"{verdict.reason.text}{detail}{word}", fix)]


def key_in_clear(config: Config) -> bool:
    """Whether the internal key would be sent unencrypted over a network."""
    parts = urlsplit(config.validate_url)
    in_clear = parts.scheme == "http" and not is_loopback(parts.hostname or "")
    return in_clear and config.internal_key is not None
