"""Progress and tables: drawn on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging

import pytest

from gtpo import _quiet, _terminal
from gtpo._terminal import Progress, show_table


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: now[0])
    return now


def run_for(clock, seconds: float, *, updates_per_s: int) -> None:
    with Progress("gtpo", int(seconds * updates_per_s), "steps") as shown:
        for i in range(int(seconds * updates_per_s)):
            clock[0] += 1 / updates_per_s
            shown.update(i + 1, "pass rate 0.50")


def test_without_a_terminal_there_is_a_line_every_few_seconds_however_many_updates(clock, capsys):
    run_for(clock, 60, updates_per_s=64)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 14
    assert lines[0] == "gtpo: 320/3840 steps, 0:05 elapsed, 0:55 left, pass rate 0.50"
    assert lines[-1] == "gtpo: 3840/3840 steps, 1:00 elapsed, pass rate 0.50"
    assert not any("\r" in line for line in lines)


def test_a_run_of_hours_writes_a_line_a_minute(clock, capsys):
    run_for(clock, 4 * 3600, updates_per_s=1)
    lines = capsys.readouterr().err.splitlines()
    assert 200 < len(lines) < 500
    assert lines[-1].startswith("gtpo: 14400/14400 steps, 4:00:00 elapsed")


def test_what_was_done_before_counts_for_nothing_in_the_time_left(clock, capsys):
    shown = Progress("gtpo", 100, "steps", done=90)
    clock[0] = 10.0
    shown.update(95)
    assert capsys.readouterr().err == "gtpo: 95/100 steps, 0:10 elapsed, 0:10 left\n"


def test_disabled_it_says_only_what_it_is_told_to(clock, capsys):
    with Progress("gtpo", 10, "steps", enabled=False) as shown:
        clock[0] = 60.0
        shown.update(5)
        shown.write("a warning")
    assert capsys.readouterr().err == "a warning\n"


def test_a_terminal_gets_a_bar_and_a_ruled_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("gtpo", 2, "steps") as shown:
        shown.update(1, "pass rate [0.5]")
        shown.write("left out: problem [b]x[/b]")
    show_table([["", "p"], ["all [x]", "0.5"]])
    said = capsys.readouterr().err
    assert "1/2" in said
    assert "left out: problem [b]x[/b]" in said, "no markup in what problems are called"
    assert "all [x]" in said
    assert "─" in said


def test_a_table_without_a_terminal_is_aligned_text(capsys):
    show_table([["", "pass rate"], ["before", "0.372"], ["at the end", "0.9"]])
    assert capsys.readouterr().err == "            pass rate\nbefore      0.372\nat the end  0.9\n"


def test_missing_keys_are_said_unless_it_is_the_output_layer_that_shares_its_weights():
    said = []
    logger, handler = logging.getLogger("transformers.trainer"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    filters = list(logger.filters)
    try:
        _quiet.quieten()
        for keys in (["lm_head.weight"], ["model.norm.weight"], ["lm_head.weight", "model.norm.weight"]):
            logger.warning(f"There were missing keys in the checkpoint model loaded: {keys}.")
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = filters
    assert [text.partition("loaded: ")[2] for text in said] == [
        "['model.norm.weight'].",
        "['lm_head.weight', 'model.norm.weight'].",
    ]
