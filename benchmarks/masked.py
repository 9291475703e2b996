"""Masked-LM loss in a third of the time: ours against transformers' Trainer, set up as in run_mlm.py.

    python -m benchmarks.masked main unsup.jsonl.gz --seconds 300
    python -m benchmarks.masked main unsup.jsonl.gz --seconds 300 --peer-lr 1e-3 --set sizes.hidden_size=192

Ours trains for a third of --seconds with its default settings. Then Trainer trains a ModernBERT of the same shape with
the same tokenizer, on the same windows of tokens, for --seconds: bf16, fused AdamW, 15 % masked by
DataCollatorForLanguageModeling, linear decay to zero over the steps that fit. Both are evaluated on the same masked
positions of the same held-out windows. Times cover training only, not imports, the tokenizer or evaluation.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import ROOT, Comparison, interleave, output_of, publish

PROBE_STEPS = 12

app = typer.Typer(add_completion=False)


@app.command()
def main(
    text: Annotated[Path, typer.Argument(help="Training data: text, JSONL, ...")],
    seconds: Annotated[float, typer.Option(help="Training time of Trainer; ours gets a third.")] = 300.0,
    batch: Annotated[int, typer.Option(help="Windows per step of Trainer.")] = 16,
    peer_lr: float = 5e-4,
    rounds: int = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value setting of our run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for masked.json.")] = None,
) -> None:
    """Print the held-out masked-LM losses and their ratio."""
    import os

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as folder:

        def ours(seed: int) -> float:
            run = [f"run=masked-{seed}", f"seed={seed}", *(settings or [])]
            given = ["--model", "mlm", "--data", str(text.resolve()), "--budget", f"{seconds / 3:.0f}s", *run]
            command = [sys.executable, "-m", "pretrain", *given]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
            return json.loads(Path(folder, f"runs/masked-{seed}/summary.json").read_text())["val/loss"]

        def peer(seed: int) -> float:
            given = [f"{folder}/runs/masked-{seed}/model", f"{folder}/runs/tokens", str(seconds), str(batch)]
            command = [sys.executable, "-m", "benchmarks.masked", "peer", *given, str(peer_lr), str(seed)]
            return float(output_of(command, cwd=ROOT, env=environment).split()[-1])

        figures: dict[str, list[float]] = {}
        for seed in range(rounds):
            # Trainer uses the tokenizer and the shape of our run with this seed, so ours comes first.
            turn = interleave(
                {"ours, a third of the time": lambda s=seed: ours(s), "Trainer": lambda s=seed: peer(s)}, 1
            )
            figures = {name: values and figures.get(name, []) + values for name, values in turn.items()}
    title = f"masked-LM after {seconds / 3:.0f} s and {seconds:.0f} s"
    publish([Comparison(title, "nats", figures, lower_is_better=True, goals={"Trainer": 1.0})], "masked", out)


@app.command()
def peer(model: Path, tokens: Path, seconds: float, batch: int, lr: float, seed: int) -> None:
    """Internal: run Trainer on the token stores in `tokens`, with shape and tokenizer of `model`; prints the loss."""
    import torch
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        ModernBertForMaskedLM,
        Trainer,
        TrainingArguments,
    )

    from mini_llm.corpus.build import TokenStore
    from mini_llm.tokenization.load import load_tokenizer
    from pretrain.objectives.masked import MaskedObjective

    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    own, store = load_tokenizer(model), next(path.parent for path in tokens.glob("*/train"))
    length = config.max_position_embeddings
    stores = {part: TokenStore.open(store / part) for part in ("train", "validation")}
    objective = MaskedObjective(stores["train"], length, seed, own, 0.15)
    inner = length - objective.edges
    windows = stores["train"].read(0, len(stores["train"]) // inner * inner).reshape(-1, inner)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            return {"input_ids": [own.cls_id, *windows[index].tolist(), own.sep_id]}

    def train(steps: int) -> tuple[ModernBertForMaskedLM, float]:
        torch.manual_seed(seed)
        arguments = TrainingArguments(
            output_dir=str(tokens.parent / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            bf16=True,
            use_cpu=True,
            seed=seed,
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        made = ModernBertForMaskedLM(config)
        trainer = Trainer(made, arguments, data_collator=collator, train_dataset=Rows())
        start = time.perf_counter()
        trainer.train()
        return made, time.perf_counter() - start

    train(2)
    speed = train(PROBE_STEPS)[1] / PROBE_STEPS
    trained, took = train(max(1, math.floor(seconds / speed)))
    trained.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for held_out in objective.evaluation(stores["validation"], batch):
            logits = trained(input_ids=held_out["input_ids"]).logits
            chosen = logits.gather(1, held_out["positions"][..., None].expand(-1, -1, logits.size(-1)))
            labels = held_out["labels"]
            total += torch.nn.functional.cross_entropy(chosen.flatten(0, 1), labels.flatten(), reduction="sum").item()
            count += int((labels != -100).sum())
    print(f"{took:.0f} s", file=sys.stderr)
    print(total / count)


if __name__ == "__main__":
    app()
