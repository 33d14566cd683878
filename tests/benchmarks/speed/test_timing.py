import torch

from modeling_detr.benchmarks.speed.timing import Stopwatch, time_in_turn


def calls_of(rounds, seconds=60.0, warm_up=True):
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = time_in_turn(works, lambda work: float(work() is None), rounds, seconds, warm_up)
    return "".join(calls), samples


def test_contenders_take_turns_and_another_one_is_first_each_time():
    calls, samples = calls_of(rounds=3)
    assert calls == "ab" + "ab" + "ba" + "ab"
    assert samples == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_there_are_three_rounds_even_if_they_take_too_long():
    calls, _ = calls_of(rounds=9, seconds=0.0, warm_up=False)
    assert len(calls) == 2 * 3


def test_one_thread_is_measured_in_cpu_time():
    assert "CPU time" in Stopwatch(torch.device("cpu"), 1).name
    assert "clock" in Stopwatch(torch.device("cpu"), 2).name
    assert Stopwatch(torch.device("cpu"), 1)(lambda: sum(range(10_000))) > 0
