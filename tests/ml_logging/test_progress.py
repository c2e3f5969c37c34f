import io
import logging
import sys

import pytest

from tml.ml_logging import Progress
from tml.ml_logging.progress import duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    return Clock()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="tml")
    return lambda: [record.getMessage() for record in caplog.records]


def test_rate_and_time_left(clock):
    progress = Progress(1000, "training", "edges", clock=clock)
    assert progress.rate == 0
    assert progress.seconds_left is None
    clock.now += 2
    progress.update(100)
    assert progress.rate == 50
    assert progress.seconds_left == 18
    assert progress.elapsed == 2
    progress.update(0, loss=0.34567, file="a")
    assert progress.status() == "100 of 1,000 edges (10%), 50 edges/s, 18 s left, loss=0.3457, file=a"


def test_rate_follows_a_change_of_pace_within_the_window(clock):
    progress = Progress(None, "x", window=10, clock=clock)
    for pace in [100] * 20 + [10] * 20:
        clock.now += 1
        progress.update(pace)
    assert progress.rate == 10
    assert progress.num_done == 2200
    assert progress.seconds_left is None


def test_going_over_the_total_leaves_no_negative_time(clock):
    progress = Progress(10, "x", clock=clock)
    clock.now += 1
    progress.update(20)
    assert progress.seconds_left == 0


def test_lines_come_at_most_every_few_seconds_and_once_at_the_end(clock, lines, caplog):
    with Progress(100, "reading", "rows", log_every=5, clock=clock) as progress:
        for _ in range(10):
            clock.now += 1
            progress.update(10, loss=0.5)
    assert lines() == [
        "reading: 50 of 100 rows (50%), 10 rows/s, 5 s left, loss=0.5",
        "reading: 100 of 100 rows (100%), 10 rows/s, 0 s left, loss=0.5",
        "reading: 100 rows done in 10 s, 10 rows/s",
    ]
    assert caplog.records[0].progress == {"done": 50, "total": 100, "rate": 10.0, "loss": 0.5}


def test_an_error_inside_is_not_called_done(clock, lines):
    def fail():
        with Progress(5, "reading", clock=clock) as progress:
            clock.now += 4
            progress.update(2)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert lines() == ["reading: 2 steps stopped after 4 s, 0.5 steps/s"]


def test_other_ranks_show_nothing(clock, lines, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress(5, "reading", log_every=0, clock=clock) as progress:
        clock.now += 1
        progress.update(5)
    assert lines() == []
    assert progress.num_done == 5


def test_a_bar_replaces_the_lines_on_a_terminal(clock, lines, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(4, "reading", "rows", log_every=0, clock=clock) as progress:
        clock.now += 1
        progress.update(4)
    assert "reading" in terminal.getvalue()
    assert "4 of 4 rows (100%)" in terminal.getvalue()
    assert lines() == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (8040, "2 h 14 min")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
