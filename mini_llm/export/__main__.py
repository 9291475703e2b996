"""The command line: `python -m mini_llm export gguf MODEL_DIR` and `python -m mini_llm export check MODEL_DIR FILE`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, command_app, run_app

HELP = f"""Write a trained model as one GGUF file for llama.cpp, and prove that it is the same model.

MODEL_DIR is a Hugging Face model directory or a run directory, of the families llama, qwen3, gpt2 and t5.

[bold]Examples[/bold]

  python -m mini_llm export gguf runs/gpt\n
  python -m mini_llm export gguf runs/gpt --type q8_0 --out gpt.gguf\n
  python -m mini_llm export check runs/gpt gpt.gguf\n
  llama-cli -m gpt.gguf -p "def read_lines(path):"

{EXIT_CODES}"""
CHECK_HELP = """Prove that FILE holds the model of MODEL_DIR: print a table, and exit with 4 where something differs.

Every tensor: equal for F32, else within the rounding of its type. The tokenizer: llama.cpp's algorithm over the \
vocabulary in FILE gives our ids for hostile and random strings. With llama-cpp-python installed (pip install \
llama-cpp-python): llama.cpp's own ids, and its greedy text for five prompts, which for an F32 file must be ours."""

app = command_app(HELP)
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Model or run directory.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class TensorType(str, Enum):
    """The types that a file may be written in; `gguf` names them in capitals."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


@app.callback(help=HELP)
def main() -> None:
    pass


@app.command(help="Write MODEL_DIR as a GGUF file.")
def gguf(
    model_dir: ModelDir,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; MODEL_DIR/NAME-TYPE.gguf by default.")
    ] = None,
    tensor_type: Annotated[
        TensorType,
        typer.Option("--type", help="Type of the matrices. q8_0: half of f16, each block of 32 rounded to 8 bits."),
    ] = TensorType.f16,
    debug: Debug = False,
) -> None:
    from mini_llm.export.write import export_gguf

    print(export_gguf(model_dir, out, tensor_type.value))


@app.command(help=CHECK_HELP)
def check(
    model_dir: ModelDir,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The GGUF file.")],
    debug: Debug = False,
) -> None:
    from mini_llm.export.check import check_gguf

    check_gguf(model_dir, file)


if __name__ == "__main__":
    run_app(app, "export")
