import json

from modeling_detr.benchmarks.speed.measurement import TIME, Measurement, SectionResult
from modeling_detr.benchmarks.speed.plot import plot_speed, ratios_of
from modeling_detr.benchmarks.speed.report import results_json, results_markdown, summary_table


RESULTS = [
    SectionResult(
        "loss",
        [
            Measurement(
                "batch 2",
                TIME,
                {"modeling_detr": [0.005, 0.007], "original": [0.02, 0.021], "transformers": [0.0212, 0.022]},
                {"original": 2e-7, "transformers": 0.0},
            )
        ],
        ["Stock computes the same."],
    ),
    SectionResult("startup", [Measurement("detr --help", TIME, {"modeling_detr": [4.8, 4.7]})]),
    SectionResult("step", [], refused="step: loss of transformers differs by 0.1"),
]


def test_the_summary_has_medians_and_ratios_and_the_original_is_last():
    lines = summary_table(RESULTS).splitlines()
    assert lines[0] == "| section | work | modeling_detr | transformers | original |"
    assert lines[2] == "| loss | batch 2 | 6.00 ms | 21.6 ms (3.69 x) | 20.5 ms (3.50 x) |"
    assert lines[3] == "| startup | detr --help | 4,750 ms | - | - |"


def test_the_page_has_machine_details_notes_and_what_was_refused(settings):
    text = results_markdown(RESULTS, settings, "detr benchmark speed --quick")
    assert "- original: not measured; pass --original" in text
    assert "- machine: " in text
    assert "- clock: CPU time of the process" in text
    assert "| batch 2 | modeling_detr | 6.00 ms | 5.00 | 33 % | 2 |  |  |" in text
    assert "| batch 2 | original | 20.5 ms | 20.0 | 5 % | 2 | 3.50 x | 2e-07 |" in text
    assert "- Stock computes the same." in text
    assert "- step: step: loss of transformers differs by 0.1" in text


def test_json_has_all_rounds(settings):
    values = json.loads(json.dumps(results_json(RESULTS, settings, "detr benchmark speed")))
    assert [section["section"] for section in values["sections"]] == ["loss", "startup", "step"]
    assert values["sections"][0]["measurements"][0]["contenders"]["modeling_detr"]["rounds"] == [5.0, 7.0]
    assert values["sections"][2]["refused"]
    assert "torch" in values["facts"]["versions"]


def test_the_plot_has_a_bar_for_each_comparison(tmp_path):
    assert [work for work, _ in ratios_of(RESULTS)] == ["loss: batch 2"]
    path = plot_speed(RESULTS, tmp_path / "speed.png")
    assert path.stat().st_size > 5_000
    assert plot_speed(RESULTS[1:], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
