import math
import os
import re

import pytest

from modeling_detr.evaluation.metrics import Metric
from modeling_detr.training.display import Display, EpochSummary


PACE = {"images_per_second": 3.0, "loader_wait": 0.1, "memory_gib": 1.5}
SLOW_LOADER = {**PACE, "loader_wait": 0.45}
HEADLINE = [Metric("ap", "AP", 0.5), Metric("ap50", "AP50", 0.75)]


def use_terminal(monkeypatch, columns=80, lines=24) -> None:
    """Make both streams a terminal without colours."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((columns, lines)))


def make_display(**options) -> Display:
    return Display(**{"total_steps": 4, "steps_per_epoch": 2, "epochs": 2, **options})


def summary(epoch=1, step=2, loss=1.25, metrics=(), pace=PACE) -> EpochSummary:
    return EpochSummary(epoch, step, loss, metrics, pace)


# Without a terminal


def test_without_a_terminal_each_epoch_prints_one_line(capsys):
    display = make_display()
    display.epoch(summary(metrics=HEADLINE))
    display.epoch(summary(2, 4, 1.0))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 · step 2/4 · loss 1.250 · AP 0.500 · AP50 0.750 · 3.0 images/s · 1.5 GiB · 1 min left",
        "epoch 2/2 · step 4/4 · loss 1.000 · 3.0 images/s · 1.5 GiB",
    ]


def test_a_slow_loader_is_reported_with_a_remedy(capsys):
    make_display().epoch(summary(pace=SLOW_LOADER))
    assert " · loader wait 45%: raise num_workers · " in capsys.readouterr().out
    make_display(cores_are_free=False).epoch(summary(pace=SLOW_LOADER))
    assert " · loader wait 45% · " in capsys.readouterr().out


def test_an_evaluation_without_ground_truth_shows_no_metrics(capsys):
    make_display().epoch(summary(metrics=[Metric("ap", "AP", math.nan)]))
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · loss 1.250 · 3.0 images/s")


def test_lines_are_written_to_a_file_also_while_bars_are_shown(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    display = make_display()
    display.epoch(summary())
    display.close()
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · ")


def test_a_terminal_without_a_size_gets_lines_instead_of_bars(capsys, monkeypatch):
    use_terminal(monkeypatch, 0, 0)
    make_display().epoch(summary())
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · ")


# On a terminal


def test_a_terminal_keeps_a_line_per_epoch_with_the_best_so_far(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display(total_steps=8, epochs=4, best=0.4)
    display.epoch(summary(1, 2, 2.5))  # not evaluated
    display.epoch(summary(2, 4, metrics=HEADLINE))
    display.epoch(summary(3, 6, metrics=[Metric("ap", "AP", 0.3), Metric("ap50", "AP50", 0.6)]))
    display.epoch(summary(4, 8, 1.0))
    display.close()
    assert capsys.readouterr().out.splitlines() == [
        "    epoch      loss  images/s     memory     left",
        "      1/4     2.500       3.0    1.5 GiB    1 min",
        "    epoch      loss        AP      AP50      best  images/s     memory     left",
        "      2/4     1.250     0.500     0.750     0.500       3.0    1.5 GiB    1 min",
        "      3/4     1.250     0.300     0.600     0.500       3.0    1.5 GiB    1 min",
        "      4/4     1.000         -         -     0.500       3.0    1.5 GiB        -",
    ]


def test_nothing_is_longer_or_cut_off_at_80_columns(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display(total_steps=999_999, steps_per_epoch=10_000, epochs=1000)
    names = ("mask AP", "mask AP50", "AP", "AP50")
    pace = {"images_per_second": 1234.5, "loader_wait": 0.0, "memory_gib": 139.1}
    display.show_pace(pace)
    display.advance(1000, 9999, 1234.567)
    display.epoch(summary(1000, 999_000, 1234.567, [Metric(name, name, 0.123) for name in names], pace))
    display.close()
    shown = capsys.readouterr()
    bars = [bar for bar in re.split(r"[\r\n]|\x1b\[A", shown.err) if bar.strip()]
    assert max(map(len, [*shown.out.splitlines(), *bars])) <= 80
    assert any("9999/10000" in bar and bar.rstrip().endswith("loss 1234.567, 1234.5 images/s") for bar in bars)


def test_one_bar_shows_the_epoch_and_one_the_run(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display()
    for epoch, step in ((1, 1), (1, 2), (2, 1)):
        display.advance(epoch, step, 1.0 + step)
    display.message("flush the bars")
    display.close()
    shown = capsys.readouterr().err
    assert re.search(r"epoch 2/2 +50%\|.*\| 1/2, 00:\d\d left, loss 2\.000", shown)
    assert re.search(r"run +75%\|.*\| 3/4, 00:\d\d left", shown)


def test_the_bar_of_a_last_epoch_that_max_steps_cuts_short_ends_with_the_run(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display(total_steps=25, steps_per_epoch=20, first_step=20)
    display.advance(2, 1, 1.0)
    display.message("flush the bars")
    display.close()
    assert re.search(r"epoch 2/2 +20%\|.*\| 1/5, ", capsys.readouterr().err)


def test_the_bar_of_the_epoch_continues_where_a_resumed_run_does(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display(total_steps=40, steps_per_epoch=20, first_step=13)
    display.advance(1, 14, 1.0)
    display.message("flush the bars")
    display.close()
    shown = capsys.readouterr().err
    assert re.search(r"epoch 1/2 +70%\|.*\| 14/20", shown)
    assert re.search(r"run +35%\|.*\| 14/40", shown)


def test_a_slow_loader_replaces_the_speed_beside_the_bar(capsys, monkeypatch):
    use_terminal(monkeypatch)
    display = make_display()
    display.show_pace(SLOW_LOADER)
    display.advance(1, 1, 1.0)
    display.epoch(summary(pace=SLOW_LOADER))
    display.close()
    shown = capsys.readouterr()
    assert "loss 1.000, loader wait 45%" in shown.err
    assert shown.out.splitlines()[-1] == "the loader took 45% of the time; raise num_workers"


def test_the_time_left_counts_evaluations_and_only_the_steps_of_this_start(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    display = make_display(total_steps=1000, steps_per_epoch=100, epochs=10, first_step=900)
    for step, seconds in enumerate((1, 1, 1, 57), start=1):  # the last one follows an evaluation
        clock[0] += seconds
        display.advance(10, step, 1.0)
    display.epoch(summary(10, 904))
    display.close()
    shown = capsys.readouterr()
    assert "| 904/1000, 24:00 left" in shown.err  # 96 steps of 15 s
    assert shown.out.endswith(" · 24 min left\n")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_mark_the_best_epoch_and_warnings(capsys, monkeypatch, variable, value):
    use_terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    display = make_display()
    display.epoch(summary(metrics=HEADLINE))
    display.warning("only 'no object' is predicted")
    shown = capsys.readouterr().out
    assert "\x1b[32m      1/2 " in shown
    assert "\x1b[33mwarning: only 'no object' is predicted\x1b[0m\n" in shown
    monkeypatch.setenv(variable, value)
    display.warning("again")
    display.close()
    assert capsys.readouterr().out == "warning: again\n"
