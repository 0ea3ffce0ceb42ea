"""What a step costs the host does not grow with history, with those who wait, and with what is cached."""

from __future__ import annotations

import json
import sys
from types import FrameType

import pytest

from llm.bench import host
from llm.bench.host import GROWTH, Bed, Situation, growths

STEPS = 48


def num_calls(bed: Bed) -> int:
    """Calls of Python's functions and of C's in so many steps: a count, where a time would be anyone's."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for _ in range(STEPS):
            bed.step()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("what", growths(4))
def test_ten_times_as_much_is_no_more_work(what: str) -> None:
    small, large = (Bed(situation, 2 * STEPS) for situation in growths(4)[what])
    for bed in (small, large):
        for _ in range(STEPS):
            bed.step()
    assert num_calls(large) <= 1.1 * num_calls(small)


def test_the_situations_are_what_they_say() -> None:
    for what, pair in growths(4).items():
        beds = [Bed(situation, STEPS) for situation in pair]
        sizes = [
            (bed.scheduler.num_waiting, bed.scheduler.blocks.num_blocks, len(bed.scheduler.running[0]))
            for bed in beds
        ]
        grown = [b >= 0.9 * GROWTH * max(a, 1) for a, b in zip(*sizes, strict=True)]
        assert grown.count(True) == 1 or what == "tokens of history", (what, sizes)
        for bed in beds:
            assert len(bed.scheduler.running) == 4
            if bed.situation.cached:
                bed.step()
                assert bed.scheduler.blocks.num_free == bed.scheduler.blocks.num_cached, "no block is empty"
            bed.scheduler.check_integrity()


def test_one_step_of_more_streams_is_more_work() -> None:
    """Or the count could not fail."""
    beds = [Bed(Situation(streams, history=32), STEPS) for streams in (2, 20)]
    assert num_calls(beds[1]) > 3 * num_calls(beds[0])


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NUM_STEPS", 2)
    assert host.main(["--streams", "1,2", "--rounds", "1"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["streams"] for row in report["rows"]] == [1, 2]
    assert all(row[part] > 0 for row in report["rows"] for part in ("schedule_us", "write_us", "commit_us"))
    assert len(report["growth"]) == 6 and all(ratio > 0 for ratio in report["growth"].values())
