"""Reports: one self-contained page, complete, safe to open, and available for a run in any state."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.report.charts import draw, panels
from mini_llm.engine.report.page import write_index, write_report
from mini_llm.engine.report.record import Run, find_runs
from mini_llm.engine.report.summary import print_summary
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

HOSTILE = '<script>alert("x")</script> & <img src=http://evil/x.png>'
CONFIG = {"optim": {"lr": 0.003}, "note": HOSTILE}


def make_run(path: Path, job_type: str, fill) -> Path:
    with RunDirectory(path) as run, Tracker(path, TrackingConfig(wandb="disabled"), job_type, CONFIG) as tracker:
        run.record(CONFIG)
        fill(tracker)
        run.finish({})
    return path


@pytest.fixture
def runs(tmp_path) -> Path:
    def pretrain(tracker):
        for step in range(1, 101):
            tracker.log(step, {"train/loss": 9 / step, "train/lr": 1e-3}, {"tokens_per_second": 9e3, "mfu": 0.3})
            if step % 25 == 0:
                tracker.log(step, {"val/loss": 9.5 / step, "val/bpb": 4 / step})
        tracker.table("samples", ["prompt", "text"], [[HOSTILE, "def f():\n    return 1\n" + HOSTILE]])
        numbers = {"val/loss": 3.15, "val/bpb": 1.524, "unigram_bpb": 3.342, "unigram_loss": 6.9}
        tracker.summary({"objective": "causal", "parameters": 6_800_000, **numbers, "extra": HOSTILE})

    def classify(tracker):
        tracker.log(1, {"val/accuracy": 0.5})
        tracker.log(2, {"val/accuracy": 0.7})
        tracker.table("confusion", ["json", HOSTILE], [[30, 10], [0, 0]])
        tracker.table("per_class", ["name", "precision", "support"], [["json", 0.75, 40], [HOSTILE, 0.0, 0]])
        own = {"name": "clf", "accuracy": 0.731, "accuracy_low": 0.7, "accuracy_high": 0.76, "examples": 734}
        scores = [own, {"name": "majority class", "accuracy": 0.121, "baseline": True}]
        tracker.summary({"objective": "classification", "scores": scores})

    def tokenize(tracker):
        pieces = [["\u2581the", 5, "piece"], ["<s>", 6, "piece"], ["\n", 7, "piece"], ["<0xF0>", 8, "byte"]]
        tracker.table("pieces", ["piece", "id", "kind"], pieces)
        tracker.summary({"vocab_size": 8192, "bytes_per_token": 3.9, "coverage": 0.9999})

    make_run(tmp_path / "gpt", "pretrain", pretrain)
    make_run(tmp_path / "clf", "finetune", classify)
    make_run(tmp_path / "tokenizer", "tokenizer", tokenize)
    (tmp_path / "tokens" / "abc").mkdir(parents=True)
    return tmp_path


def test_every_run_gets_a_complete_page(runs):
    assert [path.name for path in find_runs(runs)] == ["clf", "gpt", "tokenizer"]
    pages = {path.name: write_report(path).read_text(encoding="utf-8") for path in find_runs(runs)}
    for title in ("Loss (nats)", "Bits per byte", "Learning rate", "Throughput (tokens/s)", "unigram entropy"):
        assert title in pages["gpt"]
    for text in ("1.524", "3.342", "6,800,000", "return 1", "lr: 0.003", "python", "Pretraining: language model"):
        assert text in pages["gpt"]
    assert "73.1% (70.0 to 76.0)" in re.sub("<[^>]*>", "", pages["clf"])
    for text in ("majority class", "--share: 0.75", "Scores by class", "Accuracy"):
        assert text in pages["clf"]
    for text in ("\u00b7the", "&lt;s&gt;", "\u21b5", "plain bytes", "99.990%"):
        assert text in pages["tokenizer"]


def test_a_page_is_self_contained_and_runs_no_script(runs):
    for path in find_runs(runs):
        page = write_report(path).read_text(encoding="utf-8")
        assert not re.search(r"""<(?:script|img|link|iframe|object)\b|\son\w+=|@import|url\((?!#)""", page)
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!["']?#)""", re.sub(r"&lt;.*?&gt;", "", page))
        assert HOSTILE not in page
        assert "{{" not in page and "Undefined" not in page
        assert re.findall(r"<svg[^>]*>", page) == [svg for svg in re.findall(r"<svg[^>]*>", page) if "http" not in svg]


def test_chart_ids_are_unique_and_references_resolve(runs):
    page = write_report(runs / "gpt").read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_charts_use_the_colours_of_the_page(runs):
    page = write_report(runs / "gpt").read_text(encoding="utf-8")
    charts = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--series-1)" in charts and "var(--grid)" in charts
    assert not re.search(r"#[0-9a-fA-F]{6}\b", charts)
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def classify_with_curves(tracker):
    """The tables of a scored classifier, with a class name that is not safe in HTML."""
    bins = [["before", 0.6, 0.5, 20], ["before", 0.95, 0.8, 80], ["after", 0.55, 0.5, 30], ["after", 0.85, 0.82, 70]]
    tracker.table("reliability", ["stage", "probability", "accuracy", "rows"], bins)
    tracker.table("risk_coverage", ["coverage", "risk", "threshold"], [[0.1, 0, 0.99], [0.5, 0.1, 0.8], [1, 0.2, 0.5]])
    curve = [["json", 0, 1], ["json", 1, 0.6], [HOSTILE, 0, 1], [HOSTILE, 1, 0.4]]
    tracker.table("precision_recall", ["name", "recall", "precision"], curve)
    columns = ["name", "recall", "recall_low", "recall_high", "support"]
    tracker.table("per_class", columns, [["json", 0.75, 0.61, 0.86, 40], [HOSTILE, 0.0, None, None, 0]])
    tracker.table("abstention", ["wanted_precision", "threshold"], [[0.95, 0.83]])
    tracker.table("errors", ["source", "label"], [[f"row {i}", "json"] for i in range(30)])
    scores = {"accuracy": 0.731, "macro_f1": 0.7, "macro_f1_low": 0.65, "macro_f1_high": 0.74}
    tracker.summary({"objective": "classification", "scores": [{"name": "clf", **scores}], "ece_calibrated": 0.021})


def test_the_curves_of_a_classifier_are_drawn_and_their_tables_not_repeated(tmp_path):
    page = write_report(make_run(tmp_path / "clf", "finetune", classify_with_curves)).read_text(encoding="utf-8")
    charts = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", page, re.DOTALL))
    assert list(charts) == ["Reliability", "Risk and coverage", "Precision and recall by class"]
    assert "after temperature scaling" in charts["Reliability"] and "var(--series-2)" in charts["Reliability"]
    assert "error rate of all rows" in charts["Risk and coverage"]
    assert ">json<" in charts["Precision and recall by class"]
    assert not re.search(r"#[0-9a-fA-F]{6}\b", "".join(charts.values()))
    assert "<h2>Abstention</h2>" in page and not {"<h2>Reliability</h2>", "<h2>Risk coverage</h2>"} & set(
        re.findall("<h2>.*?</h2>", page)
    )
    assert HOSTILE not in page
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_intervals_share_a_cell_with_their_score_and_long_tables_are_folded(tmp_path):
    page = write_report(make_run(tmp_path / "clf", "finetune", classify_with_curves)).read_text(encoding="utf-8")
    text = re.sub("<[^>]*>", "", page)
    for shown in ("0.750 (0.610 to 0.860)", "0.700 (0.650 to 0.740)", "calibration error after calibration", "0.021"):
        assert shown in text
    assert "recall low" not in text and "recall_low" not in text
    assert page.count("<details>") == 1 and "30 rows" in page


def test_damaged_tables_leave_their_chart_out(tmp_path):
    def damaged(tracker):
        tracker.table("reliability", ["stage"], [["before"]])
        tracker.table("risk_coverage", ["coverage", "risk", "threshold"], [[None, "a", 1]])
        tracker.table("precision_recall", ["name", "recall", "precision"], [])
        tracker.table("per_class", ["name", "f1", "f1_low"], [["a", 0.5, 0.4], []])

    page = write_report(make_run(tmp_path / "clf", "finetune", damaged)).read_text(encoding="utf-8")
    assert "<figure>" not in page and "f1 low" in page


def test_the_same_run_gives_the_same_page(runs):
    first = write_report(runs / "gpt").read_bytes()
    assert write_report(runs / "gpt").read_bytes() == first


def test_the_index_links_the_reports_relatively(runs):
    assert write_index(runs) is None
    for path in find_runs(runs):
        write_report(path)
    index = write_index(runs).read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]+)"', index) == ["clf/report.html", "gpt/report.html", "tokenizer/report.html"]
    assert "1.524 bits per byte" in index and "accuracy 73.1%" in index


def test_a_run_that_just_started_or_is_damaged_has_a_page_too(tmp_path):
    with RunDirectory(tmp_path / "new") as run:
        run.record(CONFIG)
        assert "running" in write_report(tmp_path / "new").read_text(encoding="utf-8")
    (tmp_path / "new/metrics.jsonl").write_text('{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": 2.0}\n{"st')
    (tmp_path / "new/summary.json").write_text("{")
    (tmp_path / "new/tables").mkdir()
    (tmp_path / "new/tables/samples.json").write_text("[]")
    assert "stopped, step 2" in write_report(tmp_path / "new").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="not a run directory"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no runs here yet"):
        find_runs(tmp_path / "nothing")


def test_long_curves_are_thinned_and_smoothing_neither_leads_nor_lags():
    rows = [{"step": step, "train/loss": 1000.0 - step / 100} for step in range(100_000)]
    (panel,) = panels(rows)
    assert len(draw(panel)) < 150_000
    from mini_llm.engine.report.charts import _smooth

    line = [float(i) for i in range(500)]
    assert _smooth(line) == pytest.approx(line)


def test_a_single_evaluation_is_shown_beside_the_training_curve():
    rows = [{"step": step, "train/loss": 1.0} for step in range(3)] + [{"step": 2, "val/loss": 2.0, "val/bpb": 1.0}]
    (panel,) = panels(rows)
    assert panel.curves["val"] == ([2], [2.0])


def test_the_accuracy_of_a_masked_model_is_labelled_as_such(tmp_path):
    with Tracker(tmp_path, TrackingConfig(wandb="disabled"), "pretrain", {}) as tracker:
        tracker.summary({"objective": "masked", "val/loss": 2.0, "val/accuracy": 0.5, "unigram_loss": 6.0})
    assert Run(tmp_path).scores().columns == ["", "loss (nats)", "masked accuracy"]


def test_the_summary_shows_paths_scores_a_sample_and_three_commands(runs, capsys):
    (runs / "gpt" / "model").mkdir()
    console = Console(width=250, force_terminal=False)
    with console.capture() as capture:
        print_summary([runs / "tokenizer", runs / "gpt", runs / "mlm", runs / "clf"], console)
    text = capture.get()
    assert f"{runs / 'mlm'}: nothing to show yet" in text
    assert str(runs / "gpt" / "model") in text
    for part in ("bits per byte", "1.524", "(baseline)", "73.1%", "majority class", "plain bytes", "return 1"):
        assert part in text
    next_steps = text.partition("Try next")[2].strip().splitlines()
    assert len(next_steps) == 3
    assert "-m generate" in next_steps[0] and "-m finetune predict" in next_steps[1] and "DATA=" in next_steps[2]
    with pytest.raises(ConfigError, match=r"summary\.json"):
        print_summary([runs / "mlm"], console)


def test_two_classifiers_share_their_baselines(runs):
    scores = Run(runs / "clf").score_rows()
    with Tracker(runs / "clf2", TrackingConfig(wandb="disabled"), "finetune", {}) as tracker:
        tracker.summary({"scores": [{**scores[0], "name": "clf2"}, scores[1]]})
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        print_summary([runs / "clf", runs / "clf2"], console)
    table = capture.get().partition("Classifiers and baselines")[2].partition("Try next")[0]
    assert [line.split()[0] for line in table.strip().splitlines()[2:]] == ["clf", "clf2", "majority"]
