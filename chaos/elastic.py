"""Faults that are none: a run goes on with other processes, at another ZeRO stage, in another precision or batch."""

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
    """Differences of the loss by change, the larger of both optimizers'; measure raises when a step had other rows."""
    optimizers = ["muon"] if lab.quick else ["muon", "adamw"]
    parts = [elastic.measure(lab.folder(f"elastic-{name}") / "parts", name) for name in optimizers]
    return {change: max(part[change] for part in parts) for change in parts[0]}


def within(lab: "Lab", changes: list[str]) -> Seen:
    found = gaps(lab)
    wrong = [f"{name}: {found[name]:.1e}" for name in changes if found[name] > elastic.bound(name)]
    check(not wrong, f"losses differ by more than the bound: {wrong}")
    worst = max(changes, key=lambda name: found[name])
    return Seen(f"{len(changes)} changes, the same rows in every step, loss within {found[worst]:.1e} ({worst})", 0)


@fault(20, "processes 1 -> 2 -> 1", "the same rows in every step, losses within 1e-5")
def processes(lab: "Lab") -> Seen:
    return within(lab, [name for name in elastic.CHAINS if name.startswith("1 -> 2")])


@fault(21, "a batch that two processes cannot share", "an error that names the legal sizes, before any work")
def uneven(lab: "Lab") -> Seen:
    folder = lab.folder("uneven")
    write_text(folder)
    code = start(folder, "uneven", "global_batch_size=6", "micro_batch_size=2").wait(timeout=LONG)
    said = (folder / "uneven.out").read_text()
    check(code != 0, "it went on")
    wanted = "use a multiple of 4"
    check(wanted in said, f"said: {said[-1500:]}")
    return Seen(f"exit {code}, global_batch_size (6) ... {wanted}")


@fault(22, "ZeRO stage i -> j, all 16", "the same rows in every step, losses within 1e-5")
def stages(lab: "Lab") -> Seen:
    return within(lab, [f"{source} -> {target}" for source in LAYOUTS for target in LAYOUTS])


@fault("23r", "precision fp32 -> bf16 -> fp32", "the same rows in every step, losses within 2e-3 of fp32")
def precision(lab: "Lab") -> Seen:
    return within(lab, ["fp32 -> bf16 -> fp32"])


@fault("24r", "micro-batch and accumulation at an equal batch", "the same rows in every step, losses within 1e-5")
def micro_batches(lab: "Lab") -> Seen:
    return within(lab, ["micro-batch 2 -> 4 -> 1"])
