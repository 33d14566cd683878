from dataclasses import replace

import pytest

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.growth import growth_curves
from modeling_detr.benchmarks.speed.inference_forms import FORMS, Form
from modeling_detr.benchmarks.speed.measurement import MEMORY, TIME, Measurement, SectionResult
from modeling_detr.benchmarks.speed.sections import (
    SECTIONS,
    Section,
    epoch,
    evaluation,
    growth,
    inference,
    loader,
    loss,
    padding,
    parse_sections,
    run_sections,
    startup,
    step,
)
from modeling_detr.errors_detr import BenchmarkError


def measured(measurements):
    """The only measurement, with as many values of each contender as there are rounds."""
    (measurement,) = measurements
    assert len({len(values) for values in measurement.samples.values()}) == 1
    assert all(value > 0 for values in measurement.samples.values() for value in values)
    return measurement


def test_the_loss_is_measured_beside_stock(settings):
    measurement = measured(loss.measure(settings, [loss.LossCase(2, 3, 10)]))
    assert measurement.work == "batch 2 x 3 boxes, 10 queries"
    assert [*measurement.samples] == ["modeling_detr", "transformers"]
    assert 0 <= measurement.differences["transformers"] < 1e-4


def test_the_loader_is_measured_without_the_original(settings):
    measurement = measured(loader.measure(settings, num_images=2))
    assert [*measurement.samples] == ["modeling_detr"]
    assert measurement.quantity.unit == "images per s"


def test_padding_is_less_than_in_random_batches(settings):
    measurement = measured(padding.measure(settings, num_images=[64], batch_sizes=[8]))
    assert measurement.ratio("transformers") > 1.5


def test_the_share_of_padding_counts_pixels():
    import numpy as np

    assert padding.padding_share([np.array([[2, 2], [2, 4]])]) == pytest.approx(4 / 16)
    assert padding.padding_share([np.array([[2, 3], [2, 3]])]) == 0


def test_a_step_is_measured_in_float32_and_bfloat16(settings, small_config, monkeypatch):
    monkeypatch.setattr(step, "emulates_bfloat16", lambda device_type: "")
    measurements = [*step.measure(settings, small_config, [step.StepCase(1, 64, 64)])]
    assert [measurement.work for measurement in measurements] == [
        "resnet18, batch 1, 64x64, float32",
        "resnet18, batch 1, 64x64, bfloat16",
    ]
    assert all([*measurement.samples] == ["modeling_detr", "transformers"] for measurement in measurements)


def test_bfloat16_is_not_measured_where_it_is_emulated(settings, small_config, monkeypatch):
    monkeypatch.setattr(step, "emulates_bfloat16", lambda device_type: "this CPU has no bfloat16")
    (measurement,) = step.measure(settings, small_config, [step.StepCase(1, 64, 64)])
    assert measurement.work == "resnet18, batch 1, 64x64, float32"


def test_an_epoch_is_measured_from_files(settings, small_config):
    edges = {"shortest_edge": 64, "longest_edge": 96}
    measurement = measured(epoch.measure(settings, small_config, [2], **edges, num_images=32))
    assert measurement.work == "resnet18, batch 2, edges 38-96, 8 images"


def test_inference_is_measured_in_each_form(settings, small_config):
    measurements = [*inference.measure(settings, small_config, [inference.InferenceCase(2, 64, 96)])]
    eager = [name for name, form in FORMS.items() if not form.missing(settings)]
    assert [measurement.work.rpartition(", ")[2] for measurement in measurements] == eager
    assert all(measurement.differences["transformers"] < 0.05 for measurement in measurements)


def test_an_exported_form_is_measured_beside_the_eager_models(settings, small_config):
    forms = {"torch beside eager": FORMS["torch beside eager"]}
    cases = [inference.InferenceCase(1, 64, 96)]
    measurement = measured(inference.measure(replace(settings, quick=False), small_config, cases, forms))
    assert measurement.work == "resnet18, batch 1, 96x64, torch beside eager"
    assert measurement.differences["transformers"] < 1e-3


def test_a_form_that_cannot_be_prepared_is_left_out_with_the_reason(settings, small_config):
    def fail(_contenders, _settings):
        raise ValueError("no compiler\nat line 3")

    reasons = []
    settings = replace(settings, quick=False, skip=reasons.append)
    form = Form(fail, 0.0, takes_minutes=True)
    cases = [inference.InferenceCase(1, 64, 96)]
    assert [*inference.measure(settings, small_config, cases, {"compiled": form})] == []
    assert reasons == ["compiled: ValueError: no compiler"]


def test_a_form_says_why_it_is_not_measured(settings):
    form = Form(lambda _contenders, _settings: {}, 0.0, packages=["torch", "no_such_package"], extra="export")
    assert form.missing(settings) == "needs no_such_package; pip install 'modeling-detr[export]'"
    assert "--quick leaves it out" in FORMS["torch.compile"].missing(settings)
    assert FORMS["float32"].missing(settings) == ""


def test_growth_is_measured_in_time_and_memory(settings):
    held = {}

    def prepare(_settings, size):
        return lambda: held.update(data=bytes(size)) or held.clear()

    series = growth.Series("bytes", "bytes in memory", (4 << 20, 16 << 20), prepare)
    measurements = [*growth.measure(settings, [series])]
    assert [measurement.work for measurement in measurements[:2]] == [
        "bytes, 4,194,304 bytes in memory",
        "bytes, 16,777,216 bytes in memory",
    ]
    time, memory = growth_curves([SectionResult("growth", measurements)])
    assert (time.quantity, memory.quantity) == (TIME, MEMORY)
    assert memory.costs == pytest.approx([4 << 20, 16 << 20], rel=0.2)
    assert memory.exponent == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("series", growth.SERIES, ids=lambda series: f"{series.work}, {series.axis}")
def test_each_series_of_growth_does_its_work(settings, series):
    assert [*series.sizes] == sorted(series.sizes)
    assert [*series.quick] == sorted(series.quick)
    series.prepare(settings, 2**10 if "token" in series.axis or "pixel" in series.axis else 4)()


def test_the_figures_of_the_evaluation_equal_those_of_pycocotools(settings):
    measurement = measured(evaluation.measure(settings, num_images=4))
    assert measurement.differences["pycocotools"] <= 1e-9


def test_processes_are_measured_in_cpu_time(settings):
    cases = {"sum": {"modeling_detr": "sum(range(10**6))", "transformers": "pass"}}
    measurement = measured(startup.measure(settings, cases))
    assert len(measurement.samples["transformers"]) == 3


def test_a_process_that_fails_is_an_error(settings):
    with pytest.raises(BenchmarkError, match=r"ended with exit code 1: ZeroDivisionError"):
        next(startup.measure(settings, {"fault": {"modeling_detr": "1 / 0"}}))


# The table


def test_sections_are_chosen_by_name_in_the_order_of_the_table():
    assert parse_sections("step, loss") == ["loss", "step"]
    assert parse_sections(None) == [*SECTIONS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("los", r"--sections: unknown section 'los'; did you mean 'loss'"),
        (",", r"--sections: names no section; choose from loss, loader"),
    ],
)
def test_unknown_sections_are_refused(text, message):
    with pytest.raises(BenchmarkError, match=message):
        parse_sections(text)


def test_a_section_with_different_results_is_refused_and_the_others_go_on(settings, monkeypatch):
    def different(_settings):
        yield Measurement("first", TIME, {"modeling_detr": [1.0]})
        check_agreement("second", {"modeling_detr": {"loss": 1.0}, "transformers": {"loss": 2.0}}, 0.1)

    def fine(_settings):
        yield Measurement("third", TIME, {"modeling_detr": [1.0]})

    monkeypatch.setitem(SECTIONS, "different", Section("different results", different))
    monkeypatch.setitem(SECTIONS, "fine", Section("equal results", fine, ["A note."]))
    refused, measured_after = run_sections(["different", "fine"], settings)
    assert "second: loss of transformers differs" in refused.refused
    assert [measurement.work for measurement in refused.measurements] == ["first"]
    assert (measured_after.refused, [*measured_after.notes]) == ("", ["A note."])


def test_a_section_that_runs_out_of_memory_does_not_stop_the_others(settings, monkeypatch):
    def too_large(_settings):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")
        yield

    monkeypatch.setitem(SECTIONS, "too_large", Section("too much", too_large))
    (result,) = run_sections(["too_large"], settings)
    assert result.refused == "RuntimeError: DefaultCPUAllocator: not enough memory"


def test_what_a_section_leaves_out_is_in_its_result(settings, monkeypatch):
    def partial(settings):
        settings.skip("compiled: no compiler")
        yield Measurement("first", TIME, {"modeling_detr": [1.0]})

    monkeypatch.setitem(SECTIONS, "partial", Section("a part", partial))
    (result,) = run_sections(["partial"], settings)
    assert (result.skipped, result.refused) == (["compiled: no compiler"], "")
