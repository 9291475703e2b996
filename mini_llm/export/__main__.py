"""The command line: `python -m mini_llm export gguf MODEL_DIR` and `python -m mini_llm export check MODEL_DIR FILE`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, Version, command_app, program, run_app

ME = program("mini_llm export")
HELP = f"""Write a trained model as one GGUF file for llama.cpp, and check that it is the same model.

MODEL_DIR is a Hugging Face model directory or a run directory; supported families: llama, qwen3, gpt2, t5.

[bold]Examples[/bold]

  {ME} gguf runs/gpt
  {ME} gguf runs/gpt --type q8_0 --out gpt.gguf
  {ME} check runs/gpt gpt.gguf
  llama-cli -m gpt.gguf -p "def read_lines(path):"

{EXIT_CODES}"""
CHECK_HELP = f"""Check that FILE holds the model of MODEL_DIR: print a table, and exit with 4 if something differs.

Tensors must be equal for F32, else within the rounding error of their type. Tokenizer: llama.cpp's algorithm with the \
vocabulary of FILE must give our ids for hostile and random strings. With llama-cpp-python (pip install \
llama-cpp-python), llama.cpp's own ids are compared too, and its greedy text for five prompts, which must equal ours \
for an F32 file.

[bold]Examples[/bold]

  {ME} check runs/gpt gpt.gguf

{EXIT_CODES}"""
GGUF_HELP = f"""Write MODEL_DIR as a GGUF file.

[bold]Examples[/bold]

  {ME} gguf runs/gpt
  {ME} gguf runs/gpt --type q8_0 --out gpt.gguf

{EXIT_CODES}"""

app = command_app(HELP)
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Model or run directory.")]


class TensorType(str, Enum):
    """Tensor types of a GGUF file; the `gguf` package writes their names in capitals."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


@app.callback(help=HELP)
def main(version: Version = False) -> None:
    pass


@app.command(help=GGUF_HELP, short_help="Write a model as a GGUF file.")
def gguf(
    model_dir: ModelDir,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="MODEL_DIR/NAME-TYPE.gguf")
    ] = None,
    tensor_type: Annotated[
        TensorType,
        typer.Option(
            "--type", help="Type of the matrices. q8_0: 8 bits with a scale per 32 weights, half the size of f16."
        ),
    ] = TensorType.f16,
    debug: Debug = False,
) -> None:
    from mini_llm.export.write import export_gguf

    print(export_gguf(model_dir, out, tensor_type.value))


@app.command(help=CHECK_HELP, short_help="Check that a GGUF file holds the model of a directory.")
def check(
    model_dir: ModelDir,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The GGUF file.")],
    debug: Debug = False,
) -> None:
    from mini_llm.export.check import check_gguf

    check_gguf(model_dir, file)


if __name__ == "__main__":
    run_app(app, "mini_llm export")
