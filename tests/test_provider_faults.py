"""What a provider can do to a relay, under load on 20 topics: what was missed is said, nothing comes twice or late.

The provider puts a true number into each message, so that a hole shows even where it begins its own count anew.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checker import Verdict, check, streams
from numbered import FAULTS
from relays import Process
from servers import RedisServer
from sinks import dose
from test_faults import NAMES, Provider, faulty, length, naive, stop, wait_for_more, write

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("timed")]

SECS = 1.2
NOTHING_MISSED = {"slow", "garbage", "repeat", "resend", "flood"}
"""Faults in which each message arrives, once and in order."""
CONTROLS: dict[str, Callable[[Verdict], int]] = {
    "jump": lambda verdict: verdict.untold,
    "reset": lambda verdict: verdict.twice,
    "repeat": lambda verdict: verdict.back,
    "resend": lambda verdict: verdict.back,
    "reorder": lambda verdict: verdict.back,
    "mute": lambda verdict: verdict.untold,
    "stall": lambda verdict: verdict.untold,
}
"""Faults that a plain writer passes on, and what shows it. The others end it, or are no matter of what it writes."""


def judged(server: RedisServer) -> Verdict:
    return check(streams(server.url, NAMES), true=True)


def played(numbered: Provider, fault: str) -> int:
    """Play a fault for a while, a reset twice. Gives the connects of that time."""
    before = numbered.play(fault)
    for _ in range(dose(1)):
        time.sleep(SECS)
        if fault == "reset":  # a count that begins anew below 100 is not to be told from a repeat
            numbered.play(fault)
    return numbered.play("none") - before


@pytest.mark.parametrize("fault", FAULTS)
def test_provider_fault_is_survived_and_told(fault: str, tmp_path: Path) -> None:
    server = RedisServer()
    try:
        with faulty() as numbered:
            with Process(tmp_path, "run", "-c", write(tmp_path, server.url, numbered.port)) as process:
                wait_for_more(server, process, 2000)
                before = length(server)
                connects = played(numbered, fault)
                during = length(server) - before
                wait_for_more(server, process, 2000, 60)
                stop(process)
        verdict = judged(server)
        print(f"\n{fault}: {during} entries and {connects} connects in {SECS * dose(1):g} s; {verdict}")
        assert verdict.right, str(verdict)
        assert verdict.data > 4000
        if fault in NOTHING_MISSED:
            assert verdict.gaps == 0
        elif fault == "reset":
            assert verdict.reasons.get("sequence_reset", 0) >= len(NAMES), "each topic was told"
        else:
            assert verdict.missing > 0, "the fault was felt"
        if fault in ("jump", "reorder"):
            assert verdict.reasons["sequence_jump"] > 100 and during > 1000 * dose(1)
        if fault == "storm":
            assert connects < 12 + 4 * dose(1), "it backs off"
    finally:
        server.close()


@pytest.mark.parametrize("fault", CONTROLS)
def test_control_a_plain_writer_fails_the_same_checks(fault: str) -> None:
    server = RedisServer()
    try:
        with faulty() as numbered:
            process = naive(numbered.port, server.url)
            try:
                end = time.monotonic() + 20
                while length(server) < 2000:
                    assert time.monotonic() < end and process.poll() is None
                    time.sleep(0.02)
                played(numbered, fault)
                time.sleep(0.5)
                assert process.poll() is None
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        verdict = judged(server)
        print(f"\ncontrol, {fault}: {verdict}")
        assert CONTROLS[fault](verdict) > 0, str(verdict)
    finally:
        server.close()
