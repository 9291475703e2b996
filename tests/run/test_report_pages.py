"""What report pages say about a run: objectives apart, pairs with BLEU, what was read; and that a phone can show it."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from mini_llm.engine.report.charts import WARM_UP_SERIES, draw, panels
from mini_llm.engine.report.page import write_index, write_report
from mini_llm.engine.report.record import Run
from mini_llm.engine.report.summary import print_summary
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenabzeichen " * 3
# Replaces the page by its width and the tables that are wider than the screen.
WIDTHS = """
const page = document.querySelector("iframe").contentDocument;
const wide = [...page.querySelectorAll("table")].filter(table => table.scrollWidth > 390);
document.body.textContent = `widths:${page.documentElement.scrollWidth}:${wide.map(table => table.className)}:`;
"""


def tracker(path: Path, job_type: str) -> Tracker:
    return Tracker(path, TrackingConfig(wandb="disabled"), job_type, {})


def masked_rows() -> list[dict]:
    """40 steps of next-token prediction, then 40 of masked tokens, whose loss is higher."""
    early = [{"step": step, "train/loss": 3.0, "train/grad_norm": 1.0, "train/clm": True} for step in range(1, 41)]
    late = [{"step": step, "train/loss": 6.0, "train/grad_norm": 1.0} for step in range(41, 81)]
    return [*early, *late, {"step": 40, "val/loss": 6.5}, {"step": 80, "val/loss": 6.0}]


def test_the_losses_of_two_objectives_are_two_curves_and_the_change_is_marked():
    loss, norm = panels(masked_rows())
    assert {name: (steps[0], steps[-1]) for name, (steps, _) in loss.curves.items()} == {
        WARM_UP_SERIES: (1, 40),
        "train": (41, 80),
        "val": (40, 80),
    }
    assert list(loss.changes.values()) == list(norm.changes.values()) == [40.5]
    assert "from here on masked tokens" in draw(loss)
    # Still in warm-up, or of one objective: nothing to mark.
    for rows in (masked_rows()[:40], masked_rows()[40:]):
        assert not panels(rows)[0].changes


def pairs_run(path: Path, part: str = "test") -> Path:
    scores = {"bleu": 31.25, "chrf": 52.9, "exact": 12.0, "copy_bleu": 3.0, "copy_chrf": 15.0, "copy_exact": 0.0}
    with tracker(path, "pretrain") as record:
        for step in range(1, 30):
            record.log(step, {"train/loss": 5 / step})
        record.table("pairs", ["source", "target", "model"], [["a cat", LONG, LONG]])
        record.table("plan", ["what", "value", "why"], [["max_steps", "85 done, 34,260 at most", "2m of time " * 9]])
        facts = {
            "objective": "text to text",
            "val/loss": 1.2,
            "steps": 85,
            "tokens": 174_080,
            "train_tokens": 3_509_048,
        }
        record.summary({**facts, **{f"{part}/{name}": value for name, value in scores.items()}})
    return path


@pytest.mark.parametrize("part", ["test", "val"])
def test_pairs_have_bleu_and_chrf_beside_copying(tmp_path, part):
    run = Run(pairs_run(tmp_path / "t5", part))
    table = run.scores()
    assert table.columns[-3:] == ["BLEU", "chrF", "exact matches (%)"]
    assert [row[0] for row in table.rows] == ["t5", "copying the source (baseline)"] and table.baseline == [False, True]
    assert [row[-3:] for row in table.rows] == [["31.2", "52.9", "12.0"], ["3.0", "15.0", "0.0"]]
    assert run.headline() == "31.2 BLEU" and run.kind == "Pretraining: encoder-decoder on pairs"


def test_the_page_tells_what_was_read_from_what_there_is(tmp_path):
    page = re.sub(r"<[^>]*>", " ", write_report(pairs_run(tmp_path / "t5")).read_text())
    words = " ".join(page.split())
    assert "174,080 tokens trained on" in words and "3,509,048 tokens of the training text" in words
    assert "85 done, 34,260 at most" in words


def classifier(path: Path, task: str, majority: float) -> Path:
    baseline = {"name": "majority class", "accuracy": majority, "baseline": True}
    with tracker(path, "finetune") as record:
        record.table("errors", ["source", "text", "label"], [[LONG, LONG, "x"]])
        record.table("confusion", ["a", LONG], [[3, 1], [2, 2]])
        own = {
            "name": path.name,
            "accuracy": 0.8,
            "accuracy_low": 0.7,
            "accuracy_high": 0.9,
            "macro_f1": 0.8,
            "mcc": 0.7,
        }
        more = {"log_loss": 0.5, "log_loss_low": 0.4, "log_loss_high": 0.6, "ece": 0.02, "examples": 734}
        record.summary({"objective": "classification", "task": task, "scores": [{**own, **more}, baseline]})
    return path


def test_the_summary_has_one_table_for_each_task_with_its_baselines_once(tmp_path, capsys):
    runs = [classifier(tmp_path / name, task, 0.5) for name, task in (("a", "stars"), ("b", "stars"), ("c", "genre"))]
    classifier(tmp_path / "b", "stars", 0.5000001)  # the same baseline after another rounding
    print_summary(runs, Console(width=150))
    shown = capsys.readouterr().out
    assert shown.count("majority class") == 2 and shown.count("Classifiers and baselines") == 2
    assert "confidence interval): stars" in shown and "confidence interval): genre" in shown


def test_the_summary_says_once_how_to_send_offline_runs(tmp_path, capsys):
    runs = [pairs_run(tmp_path / name) for name in ("a", "b", "sent", "synced")]
    for run in runs:
        (run / "wandb" / "offline-run-1").mkdir(parents=True)
        (run / "wandb" / "offline-run-1" / "run-x.wandb").touch()
    (runs[2] / "wandb" / "sent.json").touch()
    (runs[3] / "wandb" / "offline-run-1" / "run-x.wandb.synced").touch()
    print_summary(runs, Console(width=150))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "mini_llm sync" in line]
    assert line.endswith("/b") and "/a " in line and "sent" not in line and "synced" not in line


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_every_table_fits_a_phone(tmp_path):
    runs = tmp_path / "runs"
    pages = [
        write_report(pairs_run(runs / "t5")),
        write_report(classifier(runs / "judge", LONG, 0.5)),
        write_index(runs),
    ]
    for page in pages:
        frame = tmp_path / "frame.html"
        source = html.escape(page.read_text(encoding="utf-8"), quote=True)
        frame.write_text(
            f'<body><iframe width="390" height="800" style="border:0" srcdoc="{source}"></iframe>'
            f"<script>addEventListener('load', () => {{{WIDTHS}}})</script></body>",
            encoding="utf-8",
        )
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
        width, wide = re.search(r"widths:(\d+):([^:]*):", shown).groups()
        assert int(width) <= 390 and wide == "", (page, width, wide)
