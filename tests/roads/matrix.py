"""Table of the roads from peers to a relay: the set-up of each, and the acceptance cases that it leaves out, with
reasons.

A road is a way to run the same black-box suite. Three kinds exist: settings of the relay alone, a proxy in front of
the relay (configured by the text of docs/how-to/behind-a-proxy.md), and the Noise link under the frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import Factory, frozen


@frozen
class Road:
    """One road. `without` maps a part of a case's name to the reason why the case does not apply to the road.

    `tls` runs the suite over TLS. `settings` are variables of the relay. `proxy` is a key of `proxies.PROXIES`; with
    `unix` the proxy connects to the relay by a Unix socket. `link` puts the Noise link under every connection. `ci`
    is a pytest expression (-k) for the part that CI runs; an empty one is the whole suite.
    """

    name: str
    tls: bool = False
    settings: Mapping[str, str] = Factory(dict)
    proxy: str = ""
    unix: bool = False
    link: bool = False
    without: Mapping[str, str] = Factory(dict)
    ci: str = ""


#: The part of CI for roads that it does not run whole: claims, the daemon's seat, addresses, ends of connections.
_CI_PART: Final = "test_claims or test_daemon or test_tls_gone or forwarded"

#: CI's additional part for a link: all of routing, because a link changes frames.
_CI_LINK: Final = "test_claims or test_daemon or test_routing or test_pairing"

_NOT_FOUND: Final = "the proxy answers 404 by itself, without JSON"

_TRUSTED: Final = {
    "test_forwarded_for_is_ignored_from_strangers": "the proxy is no stranger: its page has the relay trust it",
    "test_unknown_routes_are_404_json[GET-": _NOT_FOUND,
}

_PROXY_HEADER: Final = {
    f"test_other_trusted_proxies_do_not_match[{other}]": "the relay takes a PROXY header from trusted proxies only"
    for other in ("10.0.0.0/8", "127.0.0.2")
}

#: Default behaviour of Caddy and Traefik.
_OF_ITS_OWN: Final = {
    "test_forwarded_for_counts_from_trusted_proxies": "the proxy drops X-Forwarded-For of peers by itself",
    "test_forwarded_address_shows_in_logs": "the proxy drops X-Forwarded-For of peers by itself",
    "test_gone_while_its_queue_is_full": "the case names the host `x`, for which the proxy has no site",
    "test_frames_sent_before_the_upgrade_answer": "the proxy passes nothing on before the answer to the upgrade",
    "test_unknown_routes_are_404_json": _NOT_FOUND,
}

_OVER_A_LINK: Final = {
    "test_target_required_status_then_close": "no frame travels before the handshake: the Close frame says it alone",
}


def roads() -> tuple[Road, ...]:
    """All roads, in the order of their runs."""
    return (
        Road("plain"),
        Road("no-fast-path", settings={"RELAY_FAST_PATH": "0"}, ci=_CI_PART),
        Road("tls", tls=True),
        Road("workers", settings={"RELAY_WORKERS": "2"}),
        Road("tls-workers", tls=True, settings={"RELAY_WORKERS": "2"}, ci=_CI_PART),
        Road("link", link=True, without=_OVER_A_LINK, ci=_CI_LINK),
        Road("tls-link", tls=True, link=True, without=_OVER_A_LINK, ci=_CI_PART),
        Road("nginx", tls=True, proxy="nginx", without=_TRUSTED, ci=_CI_PART),
        Road("caddy", tls=True, proxy="caddy", without=_OF_ITS_OWN, ci=_CI_PART),
        Road("caddy-new", tls=True, proxy="caddy-new", without=_OF_ITS_OWN, ci="test_daemon"),
        Road("traefik", tls=True, proxy="traefik", without=_OF_ITS_OWN, ci="test_daemon"),
        Road("haproxy", tls=True, proxy="haproxy", without=_TRUSTED, ci=_CI_PART),
        Road("haproxy-proxy-v2", tls=True, proxy="haproxy-tcp", without=_PROXY_HEADER, ci=_CI_PART),
        Road("unix-socket", tls=True, proxy="nginx", unix=True, without=_TRUSTED, ci=_CI_PART),
    )
