"""Train with `transformers` Trainer on token files for a given time; benchmarks.reviews runs it in its own process.

    python -m benchmarks.trainer FOLDER SECONDS key=value ...

FOLDER contains train.bin and val.bin (uint16). Prints the seconds and the total nats of the trained model on val.bin.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

DEFAULTS = {"layers": 4, "heads": 3, "width": 192, "length": 128, "batch": 8, "lr": 2e-3, "vocabulary": 4096}
PROBE_STEPS = 60


class Windows(torch.utils.data.Dataset):
    """Consecutive windows of `length` ids. transformers shifts the labels itself."""

    def __init__(self, path: Path, length: int) -> None:
        self.ids = np.memmap(path, np.uint16, "r")
        self.length = length

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.ids[index * self.length : (index + 1) * self.length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def main(folder: Path, seconds: float, settings: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Train a Qwen3 of these sizes with Trainer for about `seconds`, including the imports of this process."""
    started = time.perf_counter()
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

    given = dict(setting.split("=") for setting in settings or [])
    sizes = {name: type(value)(given.get(name, value)) for name, value in DEFAULTS.items()}
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["width"] * 8 // 3 // 64 * 64,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["heads"],
        head_dim=sizes["width"] // sizes["heads"],
        max_position_embeddings=sizes["length"],
        tie_word_embeddings=True,
    )

    def train(steps: int) -> tuple[Qwen3ForCausalLM, float]:
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=sizes["batch"],
            learning_rate=sizes["lr"],
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 10),
            weight_decay=0.1,
            adam_beta2=0.99,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            Qwen3ForCausalLM(config),
            arguments,
            train_dataset=Windows(folder / "train.bin", config.max_position_embeddings),
        )
        start = time.perf_counter()
        trainer.train()
        return trainer.model, time.perf_counter() - start

    train(2)  # the first steps are slower
    step = train(PROBE_STEPS)[1] / PROBE_STEPS
    model, _ = train(max(int((seconds - (time.perf_counter() - started)) / step), PROBE_STEPS))
    spent = time.perf_counter() - started
    print(spent, nats(model.eval(), folder / "val.bin", sizes["length"]))


@torch.no_grad()
def nats(model: torch.nn.Module, path: Path, length: int) -> float:
    """Total nats of all ids except the first, in consecutive windows."""
    ids, total = torch.from_numpy(np.fromfile(path, np.uint16).astype(np.int64)).to(model.device), 0.0
    whole = (len(ids) - 1) // length * length
    inputs, labels = ids[:whole].view(-1, length), ids[1 : whole + 1].view(-1, length)
    rows = [*zip(inputs.split(16), labels.split(16), strict=True), (ids[None, whole:-1], ids[None, whole + 1 :])]
    for x, y in rows:
        if x.numel():
            logits = model(input_ids=x).logits.float()
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
    return total


if __name__ == "__main__":
    typer.run(main)
