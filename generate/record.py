"""Save generated texts in the run that holds the model: in tables/samples.json for the report, and in W&B."""

from pathlib import Path

from mini_llm.engine.config import build_config, read_yaml
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

from .config import GenerateConfig
from .decode import Sample

COLUMNS = ["prompt", "temperature", "seed", "sample", "ended by", "text"]


def record_samples(path: Path, config: GenerateConfig, samples: list[Sample]) -> None:
    """Write `samples` to the table of samples of the run at `path`, and to a W&B run of their own, linked to the model.

    Raises ConfigError if `path` is not a run.
    """
    settings = path / "config.yaml"
    if not settings.is_file():
        raise ConfigError(
            f"--record: {path} is not a run directory (no config.yaml); name the run, not its model folder"
        )
    tracking = build_config(TrackingConfig, read_yaml(settings).get("tracking") or {}, str(settings))
    model = find_model(path)
    rows = [[s.prompt, config.temperature, config.seed, s.index, s.finish_reason, s.prompt + s.text] for s in samples]
    with Tracker(path, tracking, "generate", config.model_dump(mode="json"), apart=True) as tracker:
        if model is not None:
            tracker.uses(path.resolve().name, "model", model)
        tracker.table("samples", COLUMNS, rows)
