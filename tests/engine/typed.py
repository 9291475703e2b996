"""Texts that a shell, make, YAML or a command line could change on their way to a setting, and a program that shows
what has arrived.

    python tests/engine/typed.py pretrain --data x.txt    prints the configuration as JSON, and trains nothing
"""

import json
import random
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    *(
        "012",
        "1.10",
        "007.50",
        "1e3",
        "0x10",
        "1_000",
        "12:30:45",
        "2026-11-29",
        "yes",
        "No",
        "on",
        "true",
        "~",
        ".inf",
    ),
    *("Label #1", "#1", "Review: text", "- item", "--- a/file.py", "a=b", "[x", "{a: 1}", "!x", "&a", "*", "%d", "@x"),
    *("cost is $5 each", "$(shell echo bad)", "$$", "${HOME}", "$(", "`echo bad`", "a\\nb", "\\", "a b  c", "*.txt"),
    *("it's", 'say "hi"', "'quoted'", '"quoted"', "one\ntwo", "tab\there", "\U0001f600 caf\u00e9 \u65e5\u672c", "a,b"),
]
_ALPHABET = "01a.-#$'\"\\ \n\t:=,[]{}()`*~!&|<>%@\u00e9\U0001f600"


def random_texts(count: int, seed: int) -> list[str]:
    """Random texts of the characters that mean something somewhere, without those that are blank."""
    draw = random.Random(seed)
    texts = ("".join(draw.choices(_ALPHABET, k=draw.randint(1, 12))) for _ in range(2 * count))
    return [text for text in texts if text.strip()][:count]


def show(stage: str, arguments: list[str]) -> None:
    """Run the command line of `stage` with its work replaced by printing what it got."""

    def stand_in(name: str, **functions: Any) -> None:
        sys.modules[f"{stage}.{name}"] = types.ModuleType(name)
        vars(sys.modules[f"{stage}.{name}"]).update(functions)

    def show_config(config: Any, *_: Any, **extra: Any) -> None:
        print(json.dumps({"stage": stage, **config.model_dump(mode="json"), **extra}))

    class Printer:
        def __init__(self, config: Any, **_: Any) -> None:
            self.answer = lambda text: show_config(config, prompt=text)
            self.answer_all = lambda texts, numbered: show_config(config, prompts=texts)

    main = import_module(f"{stage}.__main__")
    if stage == "generate":
        stand_in("load", load_generator=lambda path, config, *_: config, find_generator=None)
        stand_in("output", Printer=Printer)
        stand_in("resuming", answer_file=None)
        main.main(arguments)
    stand_in("plan_command", check_fits=lambda config: None)
    stand_in("run", pretrain=show_config, finetune=show_config)
    stand_in("train", train_tokenizer=show_config)
    if stage == "tokenizer":
        main.show = lambda *_: None
    main.run_app(main.app, stage, arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    show(sys.argv[1], sys.argv[2:])
