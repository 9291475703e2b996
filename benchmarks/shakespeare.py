"""A GPT on tinyshakespeare against nanoGPT's recipes: bits per byte after a time, or time to nanoGPT's bits per byte.

    python -m benchmarks.shakespeare --data data/ --seconds 180
    python -m benchmarks.shakespeare --data data/ --reach 2.739 --nanogpt ~/nanoGPT [--characters]

The validation text is nanoGPT's: the last tenth of the characters. All times include everything: process start,
imports, tokenizer, encoding, training, evaluation, saving. nanoGPT's README gives 1.88 nats per character for its CPU
recipe (2.739 bits per byte on the whole validation text; an earlier run here took DOCUMENTED_SECONDS) and 1.4697 for
its GPU recipe (2.120 bits per byte; three minutes on an A100). --reach searches for the smallest budget with which most
runs reach that many bits per byte; --characters uses nanoGPT's tokens (single characters) and its context of 64.
"""

import math
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measure import CaseError, Comparison, NoFigures, publish
from benchmarks.nanogpt import CPU_RECIPE, NanoGPT
from benchmarks.runs import budget_for, pretrain, stage

PEERS = {"nanoGPT, CPU recipe": 2.739, "nanoGPT, A100 recipe": 2.120}
# Wall time of nanoGPT's CPU recipe on two EPYC cores, measured earlier; used if there is no checkout to run.
DOCUMENTED_SECONDS = 132.0
GOALS = {True: 1 / 6, False: 1 / 15}  # share of nanoGPT's wall time: with characters, with our tokens
CONTEXT = 64
SMALLEST, LARGEST = 1.0, 300.0  # budgets to search, in seconds
PRECISION = 1.15  # the search ends at this ratio of two budgets
TURNS = 3  # runs of each budget, because runs differ


def main(
    data: Annotated[Path, typer.Option(help="Folder with shakespeare/input.txt.")] = Path("data"),
    seconds: Annotated[float, typer.Option(help="Wall time of a run, everything included.")] = 180,
    reach: Annotated[float | None, typer.Option(help="Bits per byte to reach in the shortest time.")] = None,
    characters: Annotated[bool, typer.Option("--characters", help="Character tokens and context 64.")] = False,
    nanogpt: Annotated[Path | None, typer.Option(envvar="NANOGPT", help="Checkout of nanoGPT to compare with.")] = None,
    repeats: int = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings of our runs.")] = None,
) -> None:
    """Print the bits per byte after --seconds or, with --reach, the seconds to reach them."""
    text = (data / "shakespeare" / "input.txt").resolve()
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder), text, characters, settings or [])
        name = "shakespeare" + ("-characters" if characters else "")
        if reach is None:
            found = [ours.within(seconds) for _ in range(repeats)]
            bits = {"ours": [bits for bits, _ in found]} | {peer: [value] for peer, value in PEERS.items()}
            notes = {"seconds all-in": [wall for _, wall in found]}
            comparison = Comparison(
                f"bits per byte after {seconds:.0f} s", "bits", bits, True, {"nanoGPT, A100 recipe": 1.0}, notes
            )
            publish([comparison], name, out)
            print("seconds all-in:", ", ".join(f"{wall:.1f}" for _, wall in found))
            return
        budget = ours.search(reach)
        peer = Peer(nanogpt, Path(folder), text) if nanogpt else None
        peers: list[tuple[float, float]] = []
        failure: NoFigures | None = None
        while True:
            found = []
            for _ in range(repeats):
                if peer and len(peers) < repeats and failure is None:
                    try:
                        peers.append(peer.run())
                    except CaseError as error:
                        failure = NoFigures(str(error))
                found.append(ours.run(budget))
            bits, times = [bits for bits, _ in found], [wall for _, wall in found]
            if median(bits) <= reach:
                break
            # The search was lucky with this budget.
            budget *= PRECISION
            if budget > LARGEST:
                raise SystemExit(f"no run reached {reach} bits per byte within {LARGEST:.0f} s")
        label = "nanoGPT, CPU recipe" + ("" if peer else " (measured earlier)")
        times_of_peer = [wall for _, wall in peers] or [DOCUMENTED_SECONDS]
        figures = {"ours": times, label: failure if failure is not None else times_of_peer}
        notes = {"bits": bits, "peer bits": [value for value, _ in peers], "budget": budget}
        title = f"seconds to {reach} bits per byte" + (", same characters and context" if characters else "")
        publish([Comparison(title, "s", figures, True, {label: GOALS[characters]}, notes)], name + "-time", out)
        print(f"bits per byte: ours {bits}, nanoGPT's {notes['peer bits']}; budget {budget:.1f} s")


class Ours:
    """Our runs on the text, each in a new folder so that nothing is reused."""

    def __init__(self, folder: Path, text: Path, characters: bool, settings: list[str]) -> None:
        self.folder, self.text, self.characters, self.settings = folder, text, characters, settings

    def run(self, budget: float) -> tuple[float, float]:
        """(bits per byte, seconds including everything) with this training budget."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            before, settings = self._tokens(Path(name))
            run = pretrain(Path(name), "shakespeare", "--budget", f"{budget:.2f}s", *settings)
            print(f"budget {budget:.1f} s: {run.summary['val/bpb']:.4f} bits, {before + run.seconds:.1f} s", flush=True)
            return run.summary["val/bpb"], before + run.seconds

    def within(self, seconds: float) -> tuple[float, float]:
        """The same with the budget for which a run takes `seconds` including everything."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            before, settings = self._tokens(Path(name))
            budget = budget_for(seconds - before, Path(name), *settings)
        return self.run(budget)

    def search(self, reach: float) -> float:
        """The smallest budget with which most runs reach `reach`, by doubling and then geometric bisection."""

        def reaches(budget: float) -> bool:
            return median(self.run(budget)[0] for _ in range(TURNS)) <= reach

        low, high = SMALLEST, 4.0
        while not reaches(high):
            low, high = high, 2 * high
            if high > LARGEST:
                raise SystemExit(f"no run reached {reach} bits per byte within {low:.0f} s")
        while high / low > PRECISION:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return high

    def _tokens(self, folder: Path) -> tuple[float, list[str]]:
        """(seconds, settings) for the tokens; with `characters` this trains a tokenizer of single characters."""
        data = ["--data", str(self.text)]
        if not self.characters:
            return 0.0, [*data, *self.settings]
        from tokenizer.train import RESERVED_IDS

        tokens = RESERVED_IDS + len(set(self.text.read_text(encoding="utf-8")))
        options = [f"vocab_size={tokens}", "character_coverage=1.0", "run=characters"]
        spent = stage(folder, "tokenizer", *data, *options)
        sizes = [f"sizes.max_position_embeddings={CONTEXT}", "tokenizer=runs/characters"]
        return spent, [*data, *sizes, *self.settings]


class Peer:
    """nanoGPT's CPU recipe as given in its README."""

    def __init__(self, checkout: Path, folder: Path, text: Path) -> None:
        self.nanogpt = NanoGPT(checkout, folder)
        self.text = text
        content = text.read_text(encoding="utf-8")
        self.bytes = len(content[int(len(content) * 0.9) :].encode())

    def run(self) -> tuple[float, float]:
        """(bits per byte of the whole validation text, seconds of prepare.py and train.py)."""
        seconds = self.nanogpt.prepare_characters(self.text) + self.nanogpt.train(CPU_RECIPE)[0]
        nats = self.nanogpt.nats("shakespeare_char", "out-shakespeare-char")
        bits = nats / math.log(2) / self.bytes
        print(f"nanoGPT: {bits:.4f} bits, {seconds:.1f} s, {os.cpu_count()} cores", flush=True)
        return bits, seconds


if __name__ == "__main__":
    typer.run(main)
