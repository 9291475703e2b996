"""compare.html and index.html: runs over each other on every axis, tests where the rows are the same, safe to open."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mini_llm.engine.report.compare.curves import AXES, timeline
from mini_llm.engine.report.compare.page import (
    named_runs,
    paired_tests,
    setting_differences,
    side_by_side,
    write_comparison,
)
from mini_llm.engine.report.page import write_index
from mini_llm.engine.report.record import Run
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '<script>alert("x")</script> & <img src=http://evil/x.png>'


@pytest.fixture(autouse=True)
def one_chart(monkeypatch):
    """Drawing takes most of the time, and the charts differ in their metric only."""
    monkeypatch.setattr("mini_llm.engine.report.compare.curves._METRICS", ("loss", "accuracy"))


def make_run(path: Path, rate: float = 1.0, lr: float = 0.1, note: str = "") -> Path:
    """A run of 30 steps of `rate` seconds each, with 100 tokens a step."""
    config = {"optim": {"lr": lr}, "note": note}
    with RunDirectory(path) as run, Tracker(path, TrackingConfig(wandb="disabled"), "pretrain", config) as tracker:
        run.record(config, "pretrain")
        for step in range(1, 31):
            tracker.log(step, {"train/loss": 9 / step}, {"tokens_per_second": 100 / rate, "elapsed": rate * step})
            if step % 10 == 0:
                tracker.log(step, {"val/loss": 10 / step})
        tracker.table("samples", ["prompt", "text"], [["Once", f"{path.name} writes {note}"], [note, "x"]])
        tracker.summary({"objective": "causal", "val/bpb": rate, "parameters": 50, "tokens": 3000, "steps": 30})
        run.finish({})
    return path


def classifier(path: Path, right: int, rows: int = 40, source: str = "test.csv") -> Path:
    """A classifier that is right on the first `right` of `rows` rows."""
    with Tracker(path, TrackingConfig(wandb="disabled"), "finetune", {}) as tracker:
        for step in (1, 2):
            tracker.log(step, {"val/accuracy": step / 4})
        own = {"name": path.name, "accuracy": right / rows}
        tracker.summary({"task": "stars", "scores": [own, {"name": "majority", "accuracy": 0.5, "baseline": True}]})
        (path / "tables").mkdir(exist_ok=True)
        lines = [{"split": "test", "labels": ["bad", "good"]}]
        for row in range(rows):
            sure = [0.9, 0.1] if row < right else [0.1, 0.9]
            lines.append({"source": f"{source} row {row}", "label": "bad", "probabilities": sure})
        (path / "tables" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_axis_counts_what_it_says(tmp_path):
    line = timeline(Run(make_run(tmp_path / "a", rate=2.0)))
    # 6 FLOPs per parameter and token, where the model directory does not say more.
    assert [line.at(axis, 10) for axis in AXES] == [10, 1000.0, 300_000.0, 20.0]


def test_the_page_has_every_curve_on_every_axis_with_its_values(tmp_path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", 2.0, 0.2)]
    page = write_comparison(paths, tmp_path / "compare.html").read_text()
    assert re.findall(r'type="radio" name="axis" id="by-(\w+)"', page) == list(AXES)
    for axis in AXES:
        (chart,) = re.findall(rf'Loss \(nats\)</figcaption>.*?<div class="by-{axis}">(.*?)</div>', page, re.S)
        assert "a, train" in chart and "b, val" in chart and "var(--series-2)" in chart
        (last,) = re.findall(r'<g class="at">(?!.*<g class="at">)(.*)</svg>', chart, re.S)
        where = {"step": "step 30", "tokens": "tokens read 3.00k", "flops": "FLOPs 9.00e+05", "seconds": "1:00"}[axis]
        assert where in last and "b, val: 0.333" in last
        # By seconds, a ended half-way.
        assert ("a, val: 0.333" in last) == (axis != "seconds")


def test_the_page_is_safe_and_loads_nothing(tmp_path):
    paths = [make_run(tmp_path / "a", note=HOSTILE), make_run(tmp_path / "b & <i>")]
    page = write_comparison(paths, tmp_path / "compare.html").read_text()
    assert HOSTILE not in page and "<i>" not in page.replace('<i class="key"', "")
    assert not re.search(r"""<(?:script|img|link|iframe|object)\b|\son\w+=|@import|url\((?!#)""", page)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "{{" not in page and "Undefined" not in page


def test_runs_of_the_same_name_are_told_apart_and_their_pages_linked(tmp_path):
    paths = [make_run(tmp_path / folder / "gpt") for folder in ("one", "two")]
    (paths[1] / "report.html").touch()
    page = write_comparison(paths, tmp_path / "one" / "compare.html").read_text()
    assert re.findall('href="([^"#]+)"', page) == ["../two/gpt/report.html"]
    assert f"{paths[0]}, val: 0.333" in page and f"{paths[1]}, val: 0.333" in page


def test_more_runs_than_colors_are_told_apart_by_their_markers(tmp_path):
    from mini_llm.engine.report.compare.curves import _curves

    lines = [timeline(Run(make_run(tmp_path / name))) for name in "abcdef"]
    looks = {(curve.color, curve.marker) for curve in _curves("loss", "step", lines) if not curve.dashed}
    assert len(looks) == 6


def test_samples_and_settings_stand_beside_each_other(tmp_path):
    paths = [make_run(tmp_path / "a", lr=0.1), make_run(tmp_path / "b", lr=0.2)]
    (prompt, texts), *_ = side_by_side([Run(path) for path in paths])
    assert prompt == "Once" and texts == [("a", "a writes "), ("b", "b writes ")]
    assert setting_differences(paths) == [("optim.lr", ["0.100", "0.200"])]


def test_classifiers_get_the_paired_test_where_their_rows_are_the_same(tmp_path):
    good, same, bad = (classifier(tmp_path / name, right) for name, right in (("good", 38), ("same", 37), ("bad", 20)))
    other = classifier(tmp_path / "other", 38, source="new.csv")
    tests = {(a, b): (verdict, text) for a, b, verdict, text in paired_tests(named_runs([good, same, bad, other]))}
    assert tests["good", "bad"][0] == "good is more accurate than bad"
    assert "0 wins, 18 losses in 40 rows" in tests["good", "bad"][1]
    assert tests["good", "same"][0] == "no difference shown between good and same"
    assert tests["good", "other"][0] == "" and "different rows" in tests["good", "other"][1]
    page = write_comparison([good, bad, other], tmp_path / "compare.html").read_text()
    assert "good is more accurate than bad" in page and "not adjusted" in page and page.count("majority") == 1


def test_damaged_and_empty_runs_are_compared_too(tmp_path):
    bad = make_run(tmp_path / "bad")
    for name in ("summary.json", "config.yaml", "environment.json", "tables/samples.json"):
        (bad / name).write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("[]")
    page = write_comparison([bad, tmp_path / "empty", make_run(tmp_path / "a")], tmp_path / "compare.html")
    assert "Loss (nats)" in page.read_text()


def test_the_index_groups_by_task_and_says_the_state(tmp_path):
    runs = [make_run(tmp_path / "gpt"), classifier(tmp_path / "judge", 30), classifier(tmp_path / "old", 20)]
    for run in runs:
        (run / "report.html").touch()
    with RunDirectory(tmp_path / "gpt"):
        page = write_index(tmp_path).read_text()
    groups = re.split("<h2.*?>", page)[1:]
    assert [re.match("(.*?)</h2>", group).group(1) for group in groups] == [
        "Fine-tuning: stars",
        "Pretraining: language model",
    ]
    assert re.findall(r'state (\w+)">', "".join(groups)) == ["stopped", "stopped", "alive"]
    assert "compare.html" not in page
    (tmp_path / "compare.html").touch()
    assert 'href="compare.html"' in write_index(tmp_path).read_text()


def browse(folder: Path, page: str, script: str) -> str:
    """What `script` leaves as the text of a page that shows `page` on a phone."""
    frame = folder / "frame.html"
    source = html.escape(page, quote=True)
    frame.write_text(
        f'<body><iframe width="390" height="800" style="border:0" srcdoc="{source}"></iframe><script>'
        f"addEventListener('load', () => {{const page = document.querySelector('iframe').contentDocument; {script}}})"
        "</script></body>"
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    return re.search(r"answer:(.*?):end", done).group(1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_pages_fit_a_phone_the_axes_change_and_the_index_sorts(tmp_path):
    paths = [
        make_run(tmp_path / name, rate, lr) for name, rate, lr in (("b", 1.0, 0.1), ("a", 3.0, 0.2), ("c", 2, 0.3))
    ]
    for path in paths:
        (path / "report.html").touch()
    page = write_comparison(paths, tmp_path / "compare.html").read_text()
    script = """
    const charts = [...page.querySelectorAll("figure:first-of-type > div")];
    const shown = () => charts.filter(chart => chart.offsetHeight).map(chart => chart.className);
    const before = shown();
    page.getElementById("by-flops").click();
    document.body.textContent = `answer:${page.documentElement.scrollWidth} ${before} ${shown()}:end`;
    """
    width, before, after = browse(tmp_path, page, script).split()
    assert int(width) <= 390 and (before, after) == ("by-step", "by-flops")
    script = """
    const order = () => [...page.querySelectorAll("td a")].map(a => a.textContent).join("");
    const press = name => page.querySelector(`button[data-column=${name}]`).click();
    const orders = [order()];
    for (const name of ["seconds", "result", "result", "run"]) { press(name); orders.push(order()); }
    document.body.textContent = `answer:${page.documentElement.scrollWidth} ${orders.join(" ")}:end`;
    """
    width, *orders = browse(tmp_path, write_index(tmp_path).read_text(), script).split()
    assert int(width) <= 390 and orders[0] == "abc" and orders[2:] == ["bca", "acb", "abc"]
