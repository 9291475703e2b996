"""Ways to damage a model directory."""

import json
from pathlib import Path
from typing import Any

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LEFT_OUT = object()
# The header of a safetensors file with one tensor.
TWO = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def change(directory: Path, **changes: Any) -> None:
    """Replace entries of config.json, or remove those that are LEFT_OUT."""
    path = directory / "config.json"
    config = {k: v for k, v in {**json.loads(path.read_text()), **changes}.items() if v is not LEFT_OUT}
    path.write_text(json.dumps(config))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
