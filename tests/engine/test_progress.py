"""Progress: a bar that fits its terminal, plain lines without one, silence on other ranks."""

import io

import pytest

from mini_llm.engine.run.progress import Progress, human_number, human_time

FIELDS = {"loss": 3.2141, "lr": 1e-3, "tokens_per_second": 12_345.6, "mfu": 0.314, "eta": 80}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch, columns: int) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_without_a_terminal_prints_one_line_per_interval_and_the_last_step():
    stream = io.StringIO()
    with Progress(100, interval=3600, stream=stream) as progress:
        for step in range(1, 101):
            progress.update(step, **FIELDS)
    assert stream.getvalue().splitlines() == [
        "step 1/100 (1%)  1:20 left  loss 3.214  12.3k tok/s  MFU 31%  lr 1.0e-03",
        "step 100/100 (100%)  1:20 left  loss 3.214  12.3k tok/s  MFU 31%  lr 1.0e-03",
    ]


def test_a_run_that_stops_early_shows_its_last_step_and_one_that_fails_does_not():
    stream = io.StringIO()
    with Progress(100, interval=3600, stream=stream) as progress:
        progress.update(1, loss=2.0)
        progress.update(7, loss=1.0)
    assert stream.getvalue().splitlines()[-1].startswith("step 7/100 (7%)")
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(100, interval=3600, stream=stream) as progress:
        progress.update(1, loss=2.0)
        progress.update(7, loss=1.0)
        raise RuntimeError
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("columns", [35, 50, 80, 120])
def test_the_bar_fits_the_terminal(monkeypatch, columns):
    stream = terminal(monkeypatch, columns)
    with Progress(1000, stream=stream) as progress:
        progress.update(500, **FIELDS)
        progress.log("validation loss 3.2 [bold]kept as it is[/bold]")
    text = stream.getvalue()
    assert "validation loss 3.2 [bold]kept as it is[/bold]" in text.replace("\n", "")
    assert "500/1000" in text
    assert "1:20 left" in text
    assert ("loss 3.214" in text) == (columns >= 50)
    assert ("lr 1.0e-03" in text) == (columns >= 80)


def test_an_unknown_total_is_not_shown(monkeypatch):
    stream = io.StringIO()
    with Progress(None, interval=0, stream=stream) as progress:
        progress.update(1, loss=2.0, eta=80)
        progress.set_total(50)
        progress.update(2, eta=None)
    first, second = stream.getvalue().splitlines()
    assert first == "step 1  1:20 left  loss 2.000"
    assert second.startswith("step 2/50 (4%)  0:00 left  loss 2.000")
    shown = terminal(monkeypatch, 80)
    with Progress(None, stream=shown) as progress:
        progress.update(7, loss=2.0, eta=80)
    assert "loss 2.000" in shown.getvalue() and "7/?" in shown.getvalue()


def test_other_ranks_are_silent(monkeypatch):
    stream = terminal(monkeypatch, 80)
    with Progress(2, main_process=False, stream=stream) as progress:
        progress.update(1, loss=1.0)
        progress.set_total(3)
        progress.log("nothing")
        progress.update(3, loss=1.0)
    assert stream.getvalue() == ""


def test_time_left_follows_from_the_steps_of_this_launch_and_the_total_can_change(monkeypatch):
    monkeypatch.setattr("mini_llm.engine.run.progress.time.monotonic", lambda: 100.0)
    with Progress(1000, start=900, stream=io.StringIO()) as progress:
        monkeypatch.setattr("mini_llm.engine.run.progress.time.monotonic", lambda: 120.0)
        progress.update(910)
        # 10 steps took 20 s, so 90 take 180 s.
        assert progress.describe() == "3:00 left"
        progress.set_total(910)
        assert progress.describe() == "0:00 left"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.9, "1.00k"), (12_345, "12.3k"), (999_600, "1.00M"), (4.56e9, "4.56G")],
)
def test_numbers_are_short(value, text):
    assert human_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (80, "1:20"), (7384, "2:03:04"), (86400 * 3 + 5, "3d 0:00:05"), (float("inf"), "?")],
)
def test_durations_are_readable(seconds, text):
    assert human_time(seconds) == text
