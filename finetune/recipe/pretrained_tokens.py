"""How long a model was pretrained, which its run has recorded."""

from pathlib import Path

from mini_llm.engine.errors import UserError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.state import Summary, read_object

from ..requested import requested_settings

# Models that are wider, or have seen more tokens per parameter, were not pretrained in minutes.
LARGEST_WIDTH, MOST_TOKENS_PER_PARAMETER = 512, 100


def pretrained_briefly(source: Path) -> bool:
    """Whether the model directory `source` belongs to a short run of this pipeline; False if that is unknown."""
    parameters, tokens = _number(source, "parameters"), pretrained_tokens(source)
    return parameters is not None and tokens is not None and tokens <= MOST_TOKENS_PER_PARAMETER * parameters


def pretrained_tokens(source: Path) -> float | None:
    """Tokens that the model in the directory `source` has read, with those of the models that it went on from (`init`).

    None if one of them does not belong to a run of this pipeline.
    """
    tokens, seen = 0.0, set[Path]()
    while source not in seen:
        seen.add(source)
        read = _number(source, "tokens")
        if read is None:
            return None
        tokens += read
        try:
            init = requested_settings(source.parent).get("init")
        except UserError:
            return None
        if init is None:
            return tokens
        found = find_model(Path(init))
        if found is None:
            return None
        source = found
    return None


def _number(source: Path, name: str) -> float | None:
    value = read_object(source.parent / "summary.json", Summary).get(name)
    return value if isinstance(value, (int, float)) else None
