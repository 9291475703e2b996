"""The tasks by name, which one the data of a run are for, and which one a model was trained for."""

from pathlib import Path
from typing import Any

from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_file_rows
from mini_llm.engine.errors import CheckpointError, ConfigError, UserError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS

from ..config import FinetuneConfig
from ..data_config import BUILT_IN, DataConfig
from .multi_label import MultiLabel
from .ordinal import Ordinal
from .pairs import Pairs
from .questions import Questions
from .reading import is_squad
from .regression import Regression
from .task import Task
from .tokens import Tokens

SINGLE_LABEL = "single_label"
SINGLE_LABEL_METRICS = ("accuracy", "macro_f1", "mcc", "loss")
TASKS: dict[str, type[Task]] = {task.name: task for task in (MultiLabel, Regression, Ordinal, Pairs, Tokens, Questions)}
FILE = "task.json"
CONLL = (".conll", ".conll2003", ".bio", ".iob", ".iob2")
# Settings that only single-label classification reads, and their defaults.
SINGLE_LABEL_ONLY = {"data.shots": None, "data.unlabelled": []}
DATA_SETTINGS = ("text", "text_pair", "label", "label_separator")


def task_name(config: FinetuneConfig) -> str:
    """Return config.task, or for "auto" what the training data look like. Raises ConfigError for a contradiction."""
    name = detect(config.data) if config.task == "auto" else config.task
    if name == SINGLE_LABEL:
        if config.data.text_pair is not None:
            raise ConfigError("data.text_pair needs task=pairs (one label), multi_label, regression or ordinal")
        if config.metric not in SINGLE_LABEL_METRICS:
            raise ConfigError(
                f"metric={config.metric} does not apply to single labels; choose {', '.join(SINGLE_LABEL_METRICS)}"
            )
        return name
    for key, default in SINGLE_LABEL_ONLY.items():
        if getattr(config.data, key.removeprefix("data.")) != default:
            raise ConfigError(f"{key} works with task=single_label only, not with task={name}")
    if config.class_weights != "none" and TASKS[name].objective is not None:
        raise ConfigError(f"class_weights={config.class_weights} does not apply to task={name}; leave it at none")
    if config.metric not in ("accuracy", "loss", *TASKS[name].metrics):
        raise ConfigError(
            f"metric={config.metric} does not apply to task={name}, which selects the best weights by "
            f"{TASKS[name].metrics[0]}. Leave metric out, or set metric=loss"
        )
    if config.data.path == BUILT_IN:
        raise ConfigError(f"the built-in task is task=single_label; give data for task={name}: --data FILE")
    return name


def detect(config: DataConfig) -> str:
    """Return the task that the first training row is for. Only unmistakable forms are told apart.

    Words and tags, or a CoNLL file: tokens. Context, question and answers, or SQuAD's JSON: questions. A list of
    labels: multi_label. data.text_pair: pairs. Else single_label.
    """
    if config.text_pair is not None:
        return Pairs.name
    if config.path == BUILT_IN or is_hub_name(config.path) or saved_dataset(config.path):
        return SINGLE_LABEL
    try:
        files = find_files(config.path)
        path = next((file for file in files if table_format(file) or file.suffix.lower() in CONLL), files[0])
        if table_format(path) is None:
            return Tokens.name if path.suffix.lower() in CONLL else SINGLE_LABEL
        if is_squad(path):
            return Questions.name
        row = next(iter_file_rows(path, [], "replace", ReadReport(), nested=True, encoding=config.encoding), {})
    except UserError:
        return SINGLE_LABEL  # whose reader explains what is wrong
    if row.keys() >= {"tokens", "tags"}:
        return Tokens.name
    if row.keys() >= {"context", "question", "answers"}:
        return Questions.name
    return MultiLabel.name if isinstance(row.get(config.label), list) else SINGLE_LABEL


def check_family(source: Path, task: Task) -> None:
    """Raise CheckpointError for a model whose family has no class for the task."""
    family = read_config(source)["model_type"]
    able = [name for name, layout in LAYOUTS.items() if task.head in layout.architectures.values()]
    if family not in able:
        raise CheckpointError(
            f"{source}: a {family} model, for which there is no model of task={task.name}. Use one of {', '.join(able)}"
        )


def model_task(path: Path) -> str:
    """Return the task of the model at `path`, a run or model directory; "single_label" also for other models.

    Models without task.json are told by their class and problem type in config.json.
    """
    directory = find_model(path)
    if directory is None:
        return SINGLE_LABEL
    recorded = read_json(directory / FILE)
    if isinstance(recorded, dict) and recorded.get("task") in TASKS:
        return str(recorded["task"])
    config = read_config(directory)
    layout = LAYOUTS[config["model_type"]]
    saved = layout.head_of(config["architectures"])
    if saved in ("tokens", "questions"):
        return saved
    kinds = {MultiLabel.problem_type: MultiLabel.name, Regression.problem_type: Regression.name}
    return kinds.get(str(config.get("problem_type")), SINGLE_LABEL)


def task_file(task: Task) -> dict[str, Any]:
    """Return the content of task.json."""
    columns = {key: getattr(task.config, key) for key in DATA_SETTINGS}
    return {"task": task.name, **columns, **task.settings()}


def saved_task(directory: Path, changes: dict[str, Any]) -> Task:
    """Return the task of a model directory. `changes` that are not None replace its settings of DataConfig."""
    recorded = read_json(directory / FILE)
    recorded = recorded if isinstance(recorded, dict) else {}
    given = {key: recorded[key] for key in DATA_SETTINGS if recorded.get(key) is not None}
    given |= {key: value for key, value in changes.items() if value is not None}
    labels = read_config(directory).get("id2label") or {}
    names = [str(labels[index]) for index in sorted(labels, key=int)]
    task = TASKS[model_task(directory)](DataConfig(path="the data", **given), names)
    task.restore(recorded)
    return task
