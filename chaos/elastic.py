"""Faults 20 to 24r: a run resumes with another number of processes, ZeRO stage, precision or micro-batch."""

from functools import cache
from typing import TYPE_CHECKING

from chaos.equivalence import elastic
from chaos.equivalence.ranks import LAYOUTS
from chaos.ranks import LONG, start, write_text
from chaos.registry import Seen, check, fault

if TYPE_CHECKING:
    from chaos.lab import Lab


@cache
def gaps(lab: "Lab") -> dict[str, float]:
    """Relative difference of the loss for each change, the larger one of both optimizers.

    Raises RuntimeError if a step read other rows.
    """
    optimizers = ["muon"] if lab.quick else ["muon", "adamw"]
    parts = [elastic.measure(lab.folder(f"elastic-{name}") / "parts", name) for name in optimizers]
    return {change: max(part[change] for part in parts) for change in parts[0]}


def within(lab: "Lab", changes: list[str]) -> Seen:
    found = gaps(lab)
    wrong = [f"{name}: {found[name]:.1e}" for name in changes if found[name] > elastic.bound(name)]
    check(not wrong, f"losses differ by more than the bound: {wrong}")
    worst = max(changes, key=lambda name: found[name])
    return Seen(f"{len(changes)} changes, same rows in every step, losses within {found[worst]:.1e} ({worst})", 0)


@fault(20, "processes 1 -> 2 -> 1", "same rows in every step, losses within 1e-5")
def processes(lab: "Lab") -> Seen:
    return within(lab, [name for name in elastic.CHAINS if name.startswith("1 -> 2")])


@fault(21, "batch size that two processes cannot split", "an error names valid sizes before any work")
def uneven(lab: "Lab") -> Seen:
    folder = lab.folder("uneven")
    write_text(folder)
    code = start(folder, "uneven", "global_batch_size=6", "micro_batch_size=2").wait(timeout=LONG)
    said = (folder / "uneven.out").read_text()
    check(code != 0, "the batch size was accepted")
    wanted = "use a multiple of 4"
    check(wanted in said, f"output: {said[-1500:]}")
    return Seen(f"exit {code}, global_batch_size (6) ... {wanted}")


@fault(22, "ZeRO stage i -> j, all 16 pairs", "same rows in every step, losses within 1e-5")
def stages(lab: "Lab") -> Seen:
    return within(lab, [f"{source} -> {target}" for source in LAYOUTS for target in LAYOUTS])


@fault("23r", "precision fp32 -> bf16 -> fp32", "same rows in every step, losses within 2e-3 of fp32")
def precision(lab: "Lab") -> Seen:
    return within(lab, ["fp32 -> bf16 -> fp32"])


@fault("24r", "micro-batch and accumulation, same batch size", "same rows in every step, losses within 1e-5")
def micro_batches(lab: "Lab") -> Seen:
    return within(lab, ["micro-batch 2 -> 4 -> 1"])
