"""The dashboard in a real headless Chromium, served by an admin site on a real port."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.integration.webdriver import Browser
from tests.logentries import entries_of
from tests.unit.admin.conftest import TOKEN, OpenAdmin, peer, target
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import Selection

pytestmark = pytest.mark.chromium

ENTER = "\ue007"
TAB = "\ue004"
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


@pytest.fixture
def admin() -> Iterator[OpenAdmin]:
    opened = OpenAdmin({"RELAY_ADMIN_TOKEN": TOKEN, "RELAY_ID": "relay-under-test"})
    yield opened
    pytest_twisted.blockon(opened.close())


@pytest.fixture
def browser(admin: OpenAdmin) -> Iterator[Browser]:
    opened = pytest_twisted.blockon(deferToThread(Browser))
    yield opened
    pytest_twisted.blockon(deferToThread(opened.close))


async def act(function: Any, *arguments: Any) -> Any:
    """Run blocking browser work in a thread, while the reactor serves the page."""
    return await deferToThread(function, *arguments)


def signed_in(browser: Browser, admin: OpenAdmin) -> None:
    browser.open(admin.base + "/admin/")
    browser.wait(lambda: browser.text("#gate h2") == "Sign in")
    browser.type("#token", TOKEN + ENTER)
    browser.wait(lambda: browser.text("#headline") not in ("", "…"))


def test_a_browser_leaves_no_files_behind(monkeypatch):
    # A short path: that of Chromium's Unix socket is limited to 107 bytes.
    with TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)  # asks the environment again
        with closing(Browser()) as opened:
            opened.open("about:blank")
            assert os.listdir(folder) == [opened.folder.name]
        assert os.listdir(folder) == []


@pytest_twisted.ensureDeferred
async def test_a_wrong_token_is_refused(browser, admin):
    def go():
        browser.open(admin.base + "/admin/")
        browser.wait(lambda: browser.text("#gate h2") == "Sign in")
        browser.type("#token", "not-the-token-of-this-relay" + ENTER)
        browser.wait(lambda: "not this relay's admin token" in browser.text("#token-error"))
        assert browser.cookies() == []
        assert browser.run("return document.querySelector('#board').hidden")
        assert browser.run("return document.activeElement.id") == "token"
        assert "token" not in browser.url
        answer = browser.run(
            "const r = new XMLHttpRequest(); r.open('GET', '/admin/api/overview', false); r.send(); return r.status"
        )
        assert answer == 401

    await act(go)
    assert entries_of(admin.log)[0]["reason"] == "ADMIN_UNAUTHORIZED"


@pytest_twisted.ensureDeferred
async def test_sign_in_reload_and_sign_out(browser, admin):
    def go():
        browser.open("about:blank")
        browser.requested()  # skip the browser's start page
        signed_in(browser, admin)
        assert browser.text("#headline") == "Daemons can connect."
        assert "relay-under-test" in browser.text("#who")
        (cookie,) = browser.cookies()
        assert cookie["httpOnly"] is True and cookie["sameSite"] == "Strict"
        assert browser.run("return document.cookie") == ""
        assert TOKEN not in browser.run(
            "return JSON.stringify([localStorage, sessionStorage, location.href])"
        )
        assert browser.run("return document.querySelector('#token').value") == ""
        browser.reload()
        browser.wait(lambda: browser.text("#headline") == "Daemons can connect.")
        browser.click("#sign-out")
        browser.wait(lambda: browser.text("#gate h2") == "Sign in")
        assert browser.cookies() == []
        requested = browser.requested()
        assert requested and all(url.startswith(admin.base + "/") for url in requested), requested
        assert not any(TOKEN in url for url in requested)
        problems = [
            line for line in browser.console() if "Content Security Policy" in line or "Error:" in line
        ]
        assert problems == []

    await act(go)


@pytest_twisted.ensureDeferred
async def test_a_daemon_joins_and_leaves(browser, admin):
    await act(signed_in, browser, admin)
    assert await act(browser.text, "#n-daemons") == "0"
    admin.state.views = [
        target(
            "w-live",
            "laptop",
            daemon=peer("workspace-daemon", "d", version="viewportd/9.9", noise="IKpsk2", since=time.time()),
            clients=(peer(), peer(name="c-2")),
            sessions=2,
            last_activity_at=time.time(),
        )
    ]
    admin.log.event(
        "join", role="workspace-daemon", workspaceId="w-live", runtimeTargetId="laptop", ip="192.0.2.4"
    )

    def comes():
        browser.wait(lambda: browser.text("#n-daemons") == "1" and browser.text("#n-clients") == "2")
        row = browser.wait(lambda: browser.text("#spaces tbody tr"))
        assert "w-live" in row and "viewportd/9.9" in row and "IKpsk2" in row
        browser.wait(lambda: "join" in browser.text("#log li"))
        label = browser.run(
            "return document.querySelector('#chart-connections .chart svg').getAttribute('aria-label')"
        )
        assert "Daemons 1" in label and "Clients 2" in label

    await act(comes)
    admin.state.views = []
    admin.log.event(
        "leave", role="workspace-daemon", workspaceId="w-live", runtimeTargetId="laptop", ip="192.0.2.4"
    )

    def goes():
        browser.wait(lambda: browser.text("#n-daemons") == "0")
        browser.wait(lambda: browser.text("#spaces tbody") == "")
        browser.wait(lambda: "leave" in browser.text("#log li"))

    await act(goes)


@pytest_twisted.ensureDeferred
async def test_other_relays_of_the_fleet(browser, admin):
    await act(signed_in, browser, admin)
    assert not await act(browser.run, "return document.querySelector('#fleet').checkVisibility()")
    admin.state.back["relays"] = [
        {
            "relayId": "relay-ams-1",
            "bus": "batches",
            "seconds": 2,
            "version": "0.2.0",
            "url": "wss://ams.example",
        },
        {
            "relayId": HOSTILE[:64],
            "bus": "frames",
            "seconds": 80,
            "version": HOSTILE,
            "url": "wss://u:secret@h.example/?k=1",
        },
        {"relayId": "node", "bus": "unknown", "seconds": 9},
    ]

    def go():
        rows = browser.wait(lambda: browser.text("#relays tbody"))
        assert "relay-ams-1" in rows and "wss://ams.example" in rows and "0.2.0" in rows and "batches" in rows
        assert "not known" in rows and "single frames" in rows
        assert "secret" not in rows and "k=1" not in rows
        assert browser.run("return document.querySelectorAll('#relays img, #relays script').length") == 0

    await act(go)


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_seen_at_once_with_its_cause_and_fix(browser, admin):
    await act(signed_in, browser, admin)
    reason = Reason.INTERNAL_KEY_MISMATCH
    admin.counters.refusals[reason] += 1
    began = time.monotonic()
    admin.log.event(
        "refuse", reason=reason, connection_id="c-9", workspaceId="w-9", role="workspace-daemon", ip="::1"
    )

    def go():
        browser.wait(lambda: "INTERNAL_KEY_MISMATCH" in browser.text("#log li"))
        assert time.monotonic() - began < 2.0
        row = browser.wait(lambda: browser.text('[data-reason="INTERNAL_KEY_MISMATCH"]'))
        assert reason.entry.cause in row and f"Fix: {reason.entry.fix}" in row and "1" in row
        browser.wait(
            lambda: browser.text("#headline").startswith(
                "Daemons cannot connect: the platform does not accept"
            )
        )
        assert "set RELAY_INTERNAL_KEY to the platform's value" in browser.text("#checks")
        # open the entry with the keyboard only
        browser.run("document.querySelector('#log summary').focus()")
        browser.keys(ENTER)
        browser.wait(lambda: "Fix: set RELAY_INTERNAL_KEY" in browser.text("#log .more"))
        assert "c-9" in browser.text("#log .more")

    await act(go)


@pytest_twisted.ensureDeferred
async def test_hostile_names_and_messages_are_shown_inert(browser, admin):
    admin.state.views = [
        target(HOSTILE, "\x1b]0;x\x07\u202e" + HOSTILE, daemon=peer("workspace-daemon", version=HOSTILE))
    ]
    admin.log.event("drop", reason=Reason.INVALID_FRAME, message=HOSTILE, connection_id=HOSTILE, workspaceId=HOSTILE,
                   clientId="\u202egnp", note={"x": HOSTILE})  # fmt: skip

    def go():
        signed_in(browser, admin)
        browser.wait(lambda: "<img" in browser.text("#spaces tbody"))
        browser.wait(lambda: "<img" in browser.text("#log"))
        browser.run("document.querySelectorAll('#log details').forEach((d) => { d.open = true; })")
        assert "\\u202e" in browser.text("#spaces tbody") and "\\u001b" in browser.text("#spaces tbody")
        assert "\\u202egnp" in browser.text("#log")
        assert browser.run("return document.querySelectorAll('#board script, #board img').length") == 0
        browser.click("#spaces tbody button")
        browser.wait(lambda: "<img" in browser.text("#confirm-text"))
        assert browser.run("return window.pwned ?? null") is None
        browser.keys("\ue00c")  # Escape: cancels
        browser.wait(lambda: not browser.run("return document.querySelector('#confirm').open"))

    await act(go)
    assert admin.state.calls == []


@pytest_twisted.ensureDeferred
async def test_disconnect_and_flush_need_the_csrf_token(browser, admin):
    admin.state.views = [target("w-1", "t-1", daemon=peer("workspace-daemon"))]
    admin.state.closed = 2

    def go():
        signed_in(browser, admin)
        browser.wait(lambda: browser.text("#spaces tbody tr"))
        browser.click("#spaces tbody button")
        browser.click("#confirm .danger")
        browser.wait(lambda: browser.text("#toast") == "2 connections closed.")
        browser.run("document.querySelector('#flush').scrollIntoView({block: 'center'})")
        browser.click("#flush")
        browser.wait(lambda: browser.text("#confirm-text").startswith("Forget the platform's answers"))
        browser.click("#confirm .danger")
        browser.wait(lambda: browser.text("#toast").startswith("Forgotten"))
        # the same request without the token, as a page of another origin would send it
        status = browser.run(
            "const r = new XMLHttpRequest(); r.open('POST', '/cache/flush', false);"
            "r.setRequestHeader('Content-Type', 'application/json'); r.send('{}'); return r.status"
        )
        assert status == 403

    await act(go)
    assert admin.state.calls == [
        Selection(workspace_id="w-1", runtime_target_id="t-1"),
        "flush",
    ]


@pytest_twisted.ensureDeferred
async def test_the_log_is_filtered_and_paused(browser, admin):
    await act(signed_in, browser, admin)
    admin.log.event("join", workspaceId="w-a", mark="first")
    admin.log.event("refuse", reason=Reason.JWT_EXPIRED, workspaceId="w-b")

    def filtered():
        browser.wait(lambda: "JWT_EXPIRED" in browser.text("#log"))
        browser.run(
            "const f = document.querySelector('#f-level'); f.value = 'warn,error';"
            "f.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        browser.wait(lambda: "JWT_EXPIRED" in browser.text("#log") and "w-a" not in browser.text("#log"))
        browser.type("#f-workspace", "w-zzz")
        browser.wait(lambda: browser.text("#log") == "" and browser.text("#log-state") == "live")
        browser.run("document.querySelector('#log-filter').reset(); document.querySelector('#log-filter')"
                    ".dispatchEvent(new Event('input'))")  # fmt: skip
        browser.wait(lambda: "w-a" in browser.text("#log"))
        browser.click("#log-pause")

    await act(filtered)
    admin.log.event("join", workspaceId="w-while-paused")

    def paused():
        browser.wait(lambda: browser.text("#log-state") == "paused, 1 waiting")
        assert "w-while-paused" not in browser.text("#log")
        browser.click("#log-pause")
        browser.wait(lambda: "w-while-paused" in browser.text("#log"))

    await act(paused)


@pytest_twisted.ensureDeferred
async def test_the_page_under_a_flood_of_refusals(browser, admin):
    await act(signed_in, browser, admin)
    admin.log.event("refuse", reason=Reason.JWT_EXPIRED, workspaceId="w-real", ip="198.51.100.7")
    for n in range(30_000):
        reason = Reason.TOKEN_MISSING if n % 2 else Reason.RATE_LIMIT_EXCEEDED
        admin.counters.refusals[reason] += 1
        admin.log.event("refuse", reason=reason, workspaceId=f"made-up-{n}", ip=f"203.0.113.{n % 3}")

    def go():
        browser.wait(lambda: "TOKEN_MISSING" in browser.text("#reasons"))
        assert "15,000" in browser.text('[data-reason="TOKEN_MISSING"]')
        assert browser.run("return document.querySelector('#log').childElementCount") <= 400
        began = time.monotonic()
        browser.run("return document.querySelector('#log').innerText.length")
        assert time.monotonic() - began < 2.0
        browser.run(
            "const f = document.querySelector('#f-reason'); f.value = 'JWT_EXPIRED';"
            "f.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        browser.wait(lambda: "w-real" in browser.text("#log"))

    await act(go)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1400])
@pytest_twisted.ensureDeferred
async def test_no_overflow_and_enough_contrast(browser, admin, width, scheme):
    admin.state.views = [target("w" * 128, "t" * 128, daemon=peer("workspace-daemon", version="v" * 64))]
    for reason in (Reason.NOISE_INVALID_PSK, Reason.INTERNAL_KEY_MISMATCH, Reason.JWT_EXPIRED):
        admin.counters.closes[reason] += 123_456
        admin.log.event("close", reason=reason, workspaceId="w" * 128, clientId="c" * 128, ip="2001:db8::1")

    def go():
        browser.resize(width, 900)
        browser.color_scheme(scheme)
        signed_in(browser, admin)
        browser.wait(lambda: browser.text("#spaces tbody tr") and browser.text("#log li"))
        browser.run("document.querySelectorAll('#log details').forEach((d) => { d.open = true; })")
        beyond = browser.run(
            "return [...document.querySelectorAll('body *')].filter((n) => n.getBoundingClientRect().right > innerWidth)"
            ".map((n) => `${n.tagName}.${n.className}#${n.id} ${n.textContent.slice(0, 20)}`)"
        )
        assert browser.run("return document.documentElement.scrollWidth") <= width, beyond
        worst = browser.run(CONTRAST)
        assert worst["ratio"] >= 4.5, worst

    await act(go)


#: The lowest contrast (WCAG 2) between text and background, over all elements that show text.
CONTRAST = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (node) => {
  for (let n = node; n; n = n.parentElement) {
    const c = parse(getComputedStyle(n).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c;
  }
  return [255, 255, 255];
};
let worst = { ratio: 99 };
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility() || ["SCRIPT", "NOSCRIPT", "OPTION"].includes(node.tagName)) continue;
  const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst.ratio) worst = { ratio, text: node.textContent.slice(0, 40), tag: node.tagName, class: node.className };
}
return worst;
"""


@pytest_twisted.ensureDeferred
async def test_the_whole_page_is_reached_with_the_keyboard(browser, admin):
    admin.state.views = [target("w-1", "t-1")]

    def go():
        signed_in(browser, admin)
        browser.wait(lambda: browser.text("#spaces tbody tr"))
        browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
        seen = []
        for _ in range(25):
            browser.keys(TAB)
            seen.append(
                browser.run(
                    "const a = document.activeElement; return a.id || a.textContent.trim().slice(0, 12)"
                )
            )
        for wanted in ("sign-out", "flush", "15 min", "spaces-search", "Disconnect", "log-pause", "f-level", "f-reason",
                       "f-event", "f-workspace", "log"):  # fmt: skip
            assert wanted in seen, (wanted, seen)
        names = browser.run(
            "return [...document.querySelectorAll('button, input, select')].filter((n) => n.checkVisibility())"
            ".filter((n) => !(n.labels?.length || n.textContent.trim() || n.getAttribute('aria-label'))).map((n) => n.id)"
        )
        assert names == []

    await act(go)


# -- an unreachable relay, and detailed views --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_relay_that_is_gone_makes_the_page_red_and_dim(browser, admin):
    await act(signed_in, browser, admin)

    def go():
        browser.run("window.kept = window.fetch; window.fetch = () => Promise.reject(new Error('no answer'))")
        browser.wait(
            lambda: browser.run("return document.querySelector('#board').classList.contains('lost')"), 25
        )
        assert browser.text("#headline").startswith("The relay does not answer. The figures are as of ")
        assert browser.run("return document.querySelector('#verdict').dataset.state") == "bad"
        assert float(browser.run("return getComputedStyle(document.querySelector('.tiles')).opacity")) < 1
        browser.run("window.fetch = window.kept")
        browser.wait(lambda: browser.text("#headline") == "Daemons can connect.", 25)
        assert not browser.run("return document.querySelector('#board').classList.contains('lost')")

    await act(go)


@pytest_twisted.ensureDeferred
async def test_connections_are_listed_and_one_is_closed(browser, admin):
    admin.state.closed = 1
    admin.state.views = [
        target("w-1", "t-1", daemon=peer("workspace-daemon", "machine"), clients=(peer("client", "viewer"),)),
        target("w-2", "t-2", clients=(peer("client", "waiting"),)),
    ]

    def go():
        signed_in(browser, admin)
        browser.wait(lambda: "w-2" in browser.text("#spaces tbody tr:first-child"))
        assert "none: clients wait" in browser.text("#spaces tbody tr:first-child")
        browser.run("document.querySelector('#peers-card').open = true")
        browser.wait(lambda: "waits for its daemon" in browser.text("#peers tbody tr:first-child"))
        browser.type("#peers-search", "viewer")
        browser.wait(lambda: browser.text("#peers-count") == "1")
        browser.run("document.querySelector('#peers tbody button').focus()")
        browser.run(
            "return new Promise((done) => setTimeout(done, 5000))"
        )  # the table is redrawn and keeps the focus
        assert browser.run("return document.activeElement.dataset.key") == "conn-viewer"
        browser.click("#peers tbody button")
        browser.wait(lambda: "client viewer from 192.0.2.7" in browser.text("#confirm-text"))
        browser.click("#confirm .danger")
        browser.wait(lambda: browser.text("#toast") == "Closed.")
        browser.run("document.querySelector('#peers-search').value = 'unheard-of'")
        browser.type("#peers-search", "x")
        browser.wait(lambda: browser.text("#peers-empty") == "No matches.")

    await act(go)
    assert admin.state.calls[-1] == Selection(connection_id="conn-viewer")


@pytest_twisted.ensureDeferred
async def test_a_refusal_leads_to_its_log_lines_and_a_filter_works_while_paused(browser, admin):
    for reason in (Reason.JWT_EXPIRED, Reason.ORIGIN_NOT_ALLOWED):
        admin.counters.refusals[reason] += 1
        admin.log.event(
            "refuse", reason=reason, connection_id="c-1", workspaceId="acme", ip="192.0.2.1", detail="why"
        )

    def go():
        signed_in(browser, admin)
        browser.wait(lambda: "e.g. workspace=acme ip=192.0.2.1" in browser.text("#reasons"))
        browser.run("document.querySelector('[data-reason=ORIGIN_NOT_ALLOWED] button').click()")
        browser.wait(lambda: browser.run("return document.querySelectorAll('#log > li').length") == 1)
        assert "ORIGIN_NOT_ALLOWED" in browser.text("#log")
        browser.run("document.querySelector('#log-pause').click()")
        assert browser.text("#log-pause") == "Resume"
        browser.run(
            "const f = document.querySelector('#f-reason'); f.value = 'JWT_EXPIRED';"
            "f.dispatchEvent(new Event('input', { bubbles: true }))"
        )
        browser.wait(lambda: "JWT_EXPIRED" in browser.text("#log") and "paused" in browser.text("#log-state"))
        browser.run(
            "const f = document.querySelector('#f-reason'); f.value = 'NO_OWNER';"
            "f.dispatchEvent(new Event('input', { bubbles: true }))"
        )
        browser.wait(lambda: browser.text("#log-empty") == "No matches.")

    await act(go)


@pytest_twisted.ensureDeferred
async def test_headroom_and_settings(browser, admin):
    def go():
        signed_in(browser, admin)
        browser.wait(lambda: "of 2,000" in browser.text("#headroom"))
        assert "MiB" in browser.text("#headroom")
        browser.run("document.querySelector('#settings-card').open = true")
        browser.wait(lambda: "RELAY_ADMIN_TOKEN" in browser.text("#settings"))
        assert TOKEN not in browser.run("return document.documentElement.outerHTML")
        assert "(set)" in browser.text("#settings")

    await act(go)


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest_twisted.ensureDeferred
async def test_no_element_is_wider_than_the_screen(browser, admin, width):
    admin.state.views = [
        target("w-" + "x" * 40, "t-" + "y" * 40, daemon=peer("workspace-daemon", "m" * 60), clients=(peer(),))
    ]
    admin.log.event(
        "refuse", reason=Reason.JWT_EXPIRED, workspaceId="w" * 100, ip="192.0.2.1", detail="d" * 300
    )

    def go():
        browser.resize(width, 900)
        signed_in(browser, admin)
        browser.run("for (const d of document.querySelectorAll('details.card')) d.open = true")
        browser.wait(lambda: browser.text("#peers tbody tr") and browser.text("#settings tbody tr"))
        wide, screen = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= screen
        lines = browser.run(
            "return [...document.querySelectorAll('td button')].map((b) => b.getClientRects().length + b.offsetHeight)"
        )
        assert all(height < 60 for height in lines), "buttons of one line"

    await act(go)
