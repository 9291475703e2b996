"""Faults 12 to 14, 34, 35, 40, 41, 53: files on disk are damaged, mixed up or replaced."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from chaos.lab import STEPS, Lab, check_nothing_lost, saved_step
from chaos.registry import Seen, check, expect, fault
from mini_llm.engine.checkpoint.format import latest_checkpoint

RUN = "gpt"
NEWEST, BEFORE = f"step-{STEPS:08d}", "step-00000009"
Mutation = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1 << len(data) % 8
    path.write_bytes(data)


def truncate(path: Path) -> None:
    # Two bytes, because the last byte of a JSON file is a newline that readers do not need.
    os.truncate(path, path.stat().st_size - 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    """Swap the file with the next one of the same checkpoint."""
    top = next(parent for parent in path.parents if parent.name.startswith(("step-", "best-")))
    files = sorted(file for file in top.rglob("*") if file.is_file())
    other = files[(files.index(path) + 1) % len(files)]
    aside = path.with_name("aside")
    os.rename(path, aside)
    os.rename(other, path)
    os.rename(aside, other)


def mix(path: Path) -> None:
    """Use the file of the previous checkpoint. Files that are the same there (the tokenizer's) get one byte more."""
    other = Path(str(path).replace(NEWEST, BEFORE))
    same = not other.is_file() or other.read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes() + b" " if same else other.read_bytes())


def link(path: Path) -> None:
    aside = path.parents[3] / path.name
    shutil.move(path, aside)
    path.symlink_to(aside)


def unfinished(lab: Lab, name: str, run: str = RUN) -> Path:
    """A folder with a run that was killed just before it wrote its model."""
    folder = lab.folder(name, run=run)
    (folder / "runs" / run / "finished.json").unlink()
    shutil.rmtree(folder / "runs" / run / "model")
    return folder


def flip_every_file(lab: Lab, mutate: Mutation, prepare: Callable[[], None] | None = None) -> Seen:
    """Damage each file of the newest checkpoint and its best weights in turn, check detection, finish the run."""
    reference = lab.reference(RUN) / "runs" / RUN / "checkpoints"
    best = sorted(reference.glob("best-*"))[-1].name
    names = [f.relative_to(reference) for top in (NEWEST, best) for f in sorted((reference / top).rglob("*"))]
    names = [str(name) for name in names if (reference / name).is_file()]
    names = names[:: 3 if lab.quick else 1]

    def one(name: str) -> None:
        folder = unfinished(lab, f"{mutate.__name__}-{Path(name).name}")
        checkpoints = folder / "runs" / RUN / "checkpoints"
        mutate(checkpoints / name)
        if prepare is None:
            said: list[str] = []
            found = latest_checkpoint(folder / "runs" / RUN, said.append)
            check(found is not None and found.name == BEFORE, f"{name}: {found} was used")
            check(mutate is swap or Path(name).name in said[0], f"{name} is not named: {said}")
        outcome = lab.launch(folder, RUN, prepare=prepare)
        check(outcome.code == 0, f"{name}: exit code {outcome.code}: {outcome.text[-300:]}")
        check(f"{NEWEST}: " in outcome.text, f"{name}: the damage was not reported")
        lab.compare(folder, RUN)
        shutil.rmtree(folder)

    lab.share(names, one)
    return Seen(f"{len(names)} files, all detected, previous checkpoint used, 0 bytes differ", 3)


EXPECTED = "detected before use, file named, previous checkpoint used"


@fault(12, "every file of a checkpoint and of the best weights truncated, zeroed", EXPECTED)
def truncated(lab: Lab) -> Seen:
    flip_every_file(lab, truncate)
    return flip_every_file(lab, zero)


@fault(13, "one bit flipped in every file", EXPECTED)
def flipped(lab: Lab) -> Seen:
    return flip_every_file(lab, flip)


@fault(14, "files removed, swapped, linked, added, mixed; no checkpoint intact", f"{EXPECTED}; none intact: exit 4")
def mixed(lab: Lab) -> Seen:
    for mutate in (remove, swap, mix, link):
        seen = flip_every_file(lab, mutate)
    folder = unfinished(lab, "extra")
    checkpoints = folder / "runs" / RUN / "checkpoints"
    (checkpoints / NEWEST / "model" / "model-00002.safetensors").write_bytes(b"more")
    outcome = lab.finish(folder, RUN)
    check("model-00002.safetensors is not listed in the manifest" in outcome.text, outcome.text[-500:])
    lab.compare(folder, RUN)
    folder = unfinished(lab, "renamed")
    checkpoints = folder / "runs" / RUN / "checkpoints"
    shutil.rmtree(checkpoints / NEWEST)
    shutil.copytree(checkpoints / BEFORE, checkpoints / NEWEST)
    outcome = lab.finish(folder, RUN)
    check("belongs to step 9" in outcome.text, outcome.text[-500:])
    lab.compare(folder, RUN)
    folder = unfinished(lab, "none")
    for path in (folder / "runs" / RUN / "checkpoints").glob("step-*"):
        flip(path / "optimizer.safetensors")
    outcome = lab.launch(folder, RUN)
    expect(outcome, 4, "no checkpoint is intact", "optimizer.safetensors")
    return Seen(f"{seen.what}; added file and renamed checkpoint detected; none intact: exit 4", 3)


def train_other_tokenizer(lab: Lab) -> Path:
    """Train a tokenizer of the same size on another text."""
    folder = lab.folder("other")
    text = (folder / "text.txt").read_text()
    (folder / "text.txt").write_text(" ".join(word[::-1] for word in text.split()))
    lab.finish(folder, RUN)
    return folder / "runs" / "tokenizer-text"


@fault(34, "a tokenizer other than the checkpoint's, same size", "exit 4, names both hashes and the fix")
def other_tokenizer(lab: Lab) -> Seen:
    tokenizer = train_other_tokenizer(lab)
    folder = lab.folder("tokenizer", ready=RUN)
    mine = folder / "runs" / "mine"
    shutil.copytree(folder / "runs" / "tokenizer-text", mine)
    lab.launch(folder, RUN, "tokenizer=runs/mine", environment={"LLM_FAULT": "step::8=kill"})
    shutil.rmtree(mine)
    shutil.copytree(tokenizer, mine)
    outcome = lab.launch(folder, RUN, "tokenizer=runs/mine")
    expect(outcome, 4, "tokenizer_sha256", "RUN=new-name")
    return Seen("exit 4, both hashes named")


@fault(35, "tokenizer.model truncated, zeroed, random bytes", "exit 4, file named, no crash")
def bad_tokenizer(lab: Lab) -> Seen:
    cases = ["truncate", "zero", *(f"random-{lab.random.randrange(1 << 30)}" for _ in range(2 if lab.quick else 20))]

    def one(case: str) -> None:
        import random

        folder = lab.folder("model", ready=RUN)
        path = folder / "runs" / "tokenizer-text" / "tokenizer.model"
        if case.startswith("random"):
            rng = random.Random(case)
            path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000, 1_000_000])))
        else:
            {"truncate": truncate, "zero": zero}[case](path)
        expect(lab.launch(folder, RUN), 4, "tokenizer.model")
        shutil.rmtree(folder)

    lab.share(cases, one)
    return Seen(f"{len(cases)} files: exit 4 each, file named")


@fault(40, "text or table changed between launches, same size and mtime", "exit 2 or 4, both fingerprints named")
def changed_data(lab: Lab) -> Seen:
    for run, file in ((RUN, "text.txt"), ("classifier", "labels.csv")):
        folder = lab.folder("data", ready=run)
        lab.launch(folder, run, environment={"LLM_FAULT": "step::8=kill"})
        path = folder / file
        times = path.stat()
        path.write_bytes(path.read_bytes()[:-9] + path.read_bytes()[-9:].swapcase())
        if run == "classifier":
            path.write_text(path.read_text().replace("apple and", "elppa and"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        check(path.stat().st_size == times.st_size, "the size changed")
        outcome = lab.launch(folder, run)
        check(outcome.code in (2, 4) and "fingerprint" in outcome.text, f"{run}: {outcome.code} {outcome.text[-500:]}")
        # With a given tokenizer, only the fingerprint of the data can reveal the change (below).
        shutil.rmtree(folder)
    folder = lab.folder("data", ready=RUN)
    shutil.copytree(folder / "runs/tokenizer-text", folder / "runs/mine")
    given = "tokenizer=runs/mine"
    lab.launch(folder, RUN, given, environment={"LLM_FAULT": "step::8=kill"})
    (folder / "text.txt").write_text((folder / "text.txt").read_text()[::-1])
    expect(lab.launch(folder, RUN, given), 4, "data_fingerprint", "RUN=new-name")
    return Seen("text, table, text with a given tokenizer: refused, both fingerprints named")


@fault(41, "token store damaged", "detected before training, reported, rebuilt, same final bytes")
def damaged_store(lab: Lab) -> Seen:
    shards = 0
    for mutate in (flip, truncate, zero, remove):
        for pattern in ("tokens-*.bin", "documents-*.bin", "manifest.json"):
            folder = lab.folder("store", ready=RUN)
            path = sorted((folder / "runs/tokens").glob(f"*/train/{pattern}"))[0]
            if pattern == "manifest.json" and mutate is flip:
                path.write_text(path.read_text().replace('"tokens_sha256": "', '"tokens_sha256": "0', 1))
            else:
                mutate(path)
            outcome = lab.finish(folder, RUN)
            # A changed hash in the manifest shows up as damage of the file it belongs to.
            named = "tokens-00000.bin" if mutate is flip and pattern == "manifest.json" else path.name
            said = named in outcome.text and "rebuilding the store" in outcome.text
            check(said, f"{mutate.__name__} {path.name}: {outcome.text[:500]}")
            lab.compare(folder, RUN)
            shards += 1
    return Seen(f"{shards} damaged files, each named and rebuilt, 0 bytes differ")


@fault(53, "file times reversed, years 1970 and 2100, clock jumps back", "checkpoints ordered by step, same bytes")
def clocks(lab: Lab) -> Seen:
    folder = lab.folder("clock", ready=RUN)
    lab.launch(folder, RUN, environment={"LLM_FAULT": "step::11=kill"})
    for i, path in enumerate(sorted((folder / "runs").rglob("*"), reverse=True)):
        os.utime(path, (i % 2 * 4.1e9, i % 2 * 4.1e9))

    def jump() -> None:
        import time

        real, calls = time.time, iter(range(1 << 60))
        time.time = lambda: real() - 1e6 * (next(calls) % 3)

    lost, saved = check_nothing_lost(folder / "runs" / RUN), saved_step(folder / "runs" / RUN)
    outcome = lab.launch(folder, RUN, prepare=jump)
    check(outcome.code == 0 and f"resuming from step {saved}\n" in outcome.text, outcome.text[-500:])
    lab.compare(folder, RUN)
    return Seen("resumed from the newest step, 0 bytes differ", lost)
