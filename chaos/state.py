"""Fault 61: files of a finished or unfinished run hold garbage or other types; every command that reads a run."""

import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chaos import child
from chaos.lab import COMMANDS, Lab, fork, read, wait
from chaos.mutations import mutate
from chaos.registry import Differs, Seen, check, fault

MUTATIONS = 300
SECONDS = 300
MEMORY = 12 << 30  # bytes of address space; reading a device without end takes more
# (module, arguments) of the commands that read a run of this name.
OF_ANY = [("mini_llm", ["summary", "runs/{}", "runs/other"])]
READERS: dict[str, list[tuple[str, list[str]]]] = {
    "gpt": [
        *OF_ANY,
        ("pretrain", COMMANDS["gpt"][1]),
        ("mini_llm", ["replay", "runs/gpt", "7"]),
        ("generate", ["runs/gpt", "dado", "--max-new-tokens", "5"]),
        ("mini_llm.export", ["gguf", "runs/gpt", "--out", "out.gguf"]),
        ("finetune", ["train", *COMMANDS["classifier"][1], "run=new", "max_steps=2"]),
    ],
    "classifier": [
        *OF_ANY,
        ("finetune", ["train", *COMMANDS["classifier"][1]]),
        ("finetune", ["predict", "runs/classifier", "labels.csv"]),
        ("finetune", ["score", "runs/classifier", "labels.csv"]),
        ("finetune", ["compare", "runs/classifier", "runs/classifier"]),
        ("mini_llm", ["replay", "runs/classifier", "7"]),
    ],
    "tokenizer-text": [
        *OF_ANY,
        ("tokenizer", ["--data", "text.txt", "vocab_size=640"]),
        ("pretrain", [*COMMANDS["gpt"][1], "run=new", "tokenizer=runs/tokenizer-text", "max_steps=2"]),
    ],
}


def launch(folder: Path, module: str, arguments: list[str]) -> tuple[int | None, str]:
    """Run a command in a forked child; returns its exit code, None if it had to be killed, and its output."""
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    pid = fork()
    if pid == 0:
        try:
            child.become(folder, output, {})
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            child.run(module, arguments)
        finally:
            os._exit(70)
    code = wait(pid, time.monotonic() + SECONDS)
    if code is None:
        os.kill(pid, 9)
        wait(pid, time.monotonic() + 60)
    return code, read(output)


def try_mutation(case: str, make_folder: Callable[[str], Path]) -> str:
    """Damage one file of a copy of a run, and let the report and one other command read the run.

    Returns what was damaged. Raises Differs if a command crashes, hangs or fails to say what is wrong, or if the other
    run has no report.
    """
    rng = random.Random(case)
    name = rng.choice(["gpt", "gpt", "classifier", "classifier", "tokenizer-text"])
    folder = make_folder(name)
    run = folder / "runs" / name
    if rng.random() < 0.5:
        (run / "finished.json").unlink(missing_ok=True)
        if rng.random() < 0.5:
            shutil.rmtree(run / "model", ignore_errors=True)
    what = f"{name}/{mutate(run, rng)}"
    report = ("mini_llm", ["report", f"runs/{name}", "runs/other"])
    for module, arguments in (report, rng.choice(READERS[name])):
        filled = [argument.format(name) for argument in arguments]
        code, text = launch(folder, module, filled)
        said = f"{case}: {what}: {module} {' '.join(filled)}: exit code {code}: {text[-1500:]}"
        check(code in (0, 2, 3, 4, 5), said)
        check("internal error" not in text and "Traceback" not in text, said)
    check((folder / "runs" / "other" / "report.html").is_file(), f"{case}: {what}: the other run has no report")
    shutil.rmtree(folder)
    return what


@fault(61, "files of a run hold other types, garbage, or are no files", "no internal error, other runs reported")
def damaged_state(lab: Lab) -> Seen:
    reference = lab.reference("classifier") / "runs"

    def make_folder(name: str) -> Path:
        folder = lab.folder(f"state-{name}")
        needed = {"gpt": ["gpt", "tokenizer-text", "tokens"], "classifier": ["classifier", "gpt", "tokenizer-text"]}
        for run in needed.get(name, ["tokenizer-text"]):
            shutil.copytree(reference / run, folder / "runs" / run)
        other = shutil.copytree(reference / "tokenizer-text", folder / "runs" / "other")
        (other / "report.html").unlink(missing_ok=True)
        return folder

    def one(case: str) -> list[str]:
        try:
            return [try_mutation(case, make_folder)]
        except Differs as error:
            return ["", str(error)]

    cases = [f"{lab.seed}-{number}" for number in range(MUTATIONS // (10 if lab.quick else 1))]
    found = lab.share(cases, one)
    failed = [result[1] for result in found if not result[0]]
    with suppress(OSError):
        (lab.root / "state-failures.txt").write_text("\n\n".join(failed))
    check(not failed, f"{len(failed)} of {len(cases)}: {failed[0] if failed else ''}")
    return Seen(f"{len(cases)} mutations: every command ended with a message or its result, every other report written")
