"""The cases of the Autobahn test suite against the relay's connection class, with fast path on and off.

    make conformance        # all cases, with 9 (limits and speed) and 12, 13 (compression, which is not offered)

`kosoku` runs the cases natively. It accepts NON-STRICT as passed; here NON-STRICT is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.echo import PATH

pytestmark = pytest.mark.conformance

ROOT = Path(__file__).parents[2]

#: Framing, pings, reserved bits, opcodes, fragments, UTF-8, closes, and fragments of many sizes.
QUICK = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")

#: Concurrent cases. More are hardly faster, and all of them are late when the machine stalls.
AT_ONCE = 4

#: Runs of a case that was late, in all.
GOES = 4

#: Cases that only observe how a peer reacts when the other end drops the connection.
PASSED = {"OK", "INFORMATIONAL"}


@pytest.fixture(params=["1", "0"], ids=["fast path", "plain"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    environ = dict(os.environ) | {"RELAY_FAST_PATH": request.param, "RELAY_FRAME_MAX_BYTES": "67108864"}
    service = subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.conformance.echo"],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    yield int(service.stdout.readline())
    service.terminate()
    assert service.wait(20) == 0
    service.stdout.close()


def run(port: int, folder: Path, include: tuple[str, ...], at_once: int) -> dict[str, dict[str, str]]:
    """Verdicts by case."""
    kosoku = Path(sys.executable).with_name("kosoku")
    if not kosoku.exists():
        pytest.skip("needs kosoku: pip install kosoku (in the extra `test`)")
    words = [word for pattern in include for word in ("-i", pattern)]
    command = [str(kosoku), "-p", str(at_once), "-o", str(folder), *words, f"ws://127.0.0.1:{port}{PATH}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    index = folder / "index.json"
    assert index.exists(), done.stdout + done.stderr
    (cases,) = json.loads(index.read_text()).values()
    found: dict[str, dict[str, str]] = cases
    return found


def failures(port: int, folder: Path, include: tuple[str, ...], at_once: int) -> tuple[int, dict[str, str]]:
    """Number of cases that ran, and the failures. A case that was perhaps late runs again, alone."""
    cases = run(port, folder / "all", include, at_once)
    number, failed = len(cases), {}
    for go in range(GOES):
        wrong = {name: verdict for name, case in cases.items() if (verdict := judge(name, case))}
        late = tuple(name for name in wrong if go < GOES - 1 and may_be_late(name, cases[name]))
        failed |= {name: verdict for name, verdict in wrong.items() if name not in late}
        if not late:
            break
        print(f"late, once more: {', '.join(late)}")
        cases = run(port, folder / f"again {go}", late, 1)
    return number, failed


def may_be_late(name: str, case: dict[str, str]) -> bool:
    """Whether a stall of a second or two explains this verdict: kosoku drops the connection by its own time-out; case
    6.4 depends on which end is first."""
    exchanged = case["behavior"] in PASSED or (name.startswith("6.4.") and case["behavior"] == "NON-STRICT")
    return exchanged and case["behaviorClose"] in PASSED | {"FAILED BY CLIENT", "UNCLEAN"}


def judge(name: str, case: dict[str, str]) -> str:
    """What is wrong with a case; empty if it passed."""
    behavior, close = case["behavior"], case["behaviorClose"]
    if name.startswith(("12.", "13.")):  # compression, which the relay never accepts
        return "" if behavior == "UNIMPLEMENTED" else f"{behavior}: compression?"
    return "" if behavior in PASSED and close in PASSED else f"{behavior}, close {close}"


def test_the_cases_of_the_rfc(port: int, tmp_path: Path) -> None:
    assert failures(port, tmp_path, QUICK, AT_ONCE) == (247, {})


@pytest.mark.slow
def test_all_cases(port: int, tmp_path: Path) -> None:
    number, failed = failures(port, tmp_path, (), 2)
    assert number > 500 and failed == {}
