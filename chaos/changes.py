"""Faults 19, 23 to 25: the configuration changes between two launches of a run."""

import json

from chaos.lab import Lab
from chaos.registry import Seen, check, expect, fault

RUN = "gpt"


def halted(lab: Lab) -> object:
    folder = lab.folder("changed", ready=RUN)
    lab.launch(folder, RUN, environment={"LLM_FAULT": "step::8=kill"})
    return folder


def losses(folder: object) -> list[float]:
    rows = [json.loads(line) for line in (folder / "runs" / RUN / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def largest_difference(lab: Lab, folder: object) -> float:
    pairs = zip(losses(lab.reference(RUN)), losses(folder), strict=True)
    return max(abs(one - other) / one for one, other in pairs)


@fault(19, "configuration changed: harmless and harmful keys", "note and resume; exit 2 with the difference")
def edited(lab: Lab) -> Seen:
    folder = halted(lab)
    harmful = {
        "sizes.num_hidden_layers=3": "2 -> 3",
        "seed=1": "0 -> 1",
        "global_batch_size=16": "8 -> 16",
        "sizes.max_position_embeddings=16": "32 -> 16",
        "optim.lr=0.1": "0.1",
    }
    for setting, shown in harmful.items():
        outcome = lab.launch(folder, RUN, setting)
        expect(outcome, 2, setting.split("=")[0], shown, "RUN=another-name", "delete")
    outcome = lab.finish(folder, RUN, "save_every=5", "keep_last=3")
    check("save_every changed: 3 -> 5" in outcome.text, outcome.text[-500:])
    check(largest_difference(lab, folder) == 0, "the losses differ")
    return Seen(f"{len(harmful)} harmful keys refused, 2 harmless ones noted, same losses")


@fault(23, "precision changed from fp32 to bf16", "note and resume, losses within 2e-2")
def precision(lab: Lab) -> Seen:
    folder = halted(lab)
    outcome = lab.finish(folder, RUN, "runtime.precision=bf16")
    check("precision" in outcome.text, "the change was not reported")
    difference = largest_difference(lab, folder)
    check(0 < difference < 2e-2, f"losses differ by {difference}")
    return Seen(f"noted; losses within {difference:.0e}")


@fault(24, "accumulation changed, same batch size", "same samples, losses within 1e-4")
def accumulation(lab: Lab) -> Seen:
    folder = halted(lab)
    outcome = lab.finish(folder, RUN, "micro_batch_size=2")
    check("micro_batch_size changed" in outcome.text, "the change was not reported")
    difference = largest_difference(lab, folder)
    check(difference < 1e-4, f"losses differ by {difference}")
    return Seen(f"noted; losses within {difference:.0e}")


@fault(25, "gradient checkpointing enabled", "note and resume, same final bytes")
def checkpointing(lab: Lab) -> Seen:
    folder = halted(lab)
    outcome = lab.finish(folder, RUN, "runtime.gradient_checkpointing=1")
    check("gradient_checkpointing changed" in outcome.text, "the change was not reported")
    lab.compare(folder, RUN)
    return Seen("noted; 0 bytes differ")
