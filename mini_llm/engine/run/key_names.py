"""Other names for our configuration keys: what other projects call them, and what earlier releases called them."""

from collections.abc import Mapping
from typing import Any

# Names in nanoGPT, transformers, PyTorch and papers -> our keys. A configuration class has some of these keys only, and
# the first one that it has is suggested. "key=value" suggests a value too.
COMMON_NAMES: dict[str, tuple[str, ...]] = {}


def _aliases(names: str, *keys: str) -> None:
    COMMON_NAMES.update(dict.fromkeys(names.split(), keys))


_aliases("lr learning_rate max_lr peak_lr", "optim.lr")
_aliases("embedding_learning_rate", "optim.embedding_lr")
_aliases("matrix_lr", "optim.muon_lr")
_aliases("optimizer optim_name", "optim.name")
_aliases("beta beta1 beta2 adam_betas adam_beta1 adam_beta2", "optim.betas")
_aliases("epsilon adam_eps adam_epsilon", "optim.eps")
_aliases("wd l2", "optim.weight_decay")
_aliases("grad_clip clip clip_grad clip_grad_norm gradient_clipping max_norm", "optim.max_grad_norm")
_aliases("lr_schedule lr_scheduler lr_scheduler_type scheduler decay", "schedule.kind")
_aliases("warmup warmup_iters warmup_ratio num_warmup_steps lr_warmup_steps", "schedule.warmup_steps")
_aliases("warmdown_ratio cooldown cooldown_ratio decay_steps lr_decay_iters", "schedule.decay_ratio")
_aliases("min_lr final_lr_frac min_learning_rate", "schedule.min_lr_ratio")
_aliases("batch_size train_batch_size total_batch_size global_batch", "global_batch_size", "batch_size")
_aliases("global_batch_size", "batch_size")
_aliases(
    "per_device_train_batch_size per_device_batch_size device_batch_size micro_batch gradient_accumulation_steps "
    "grad_accum_steps gradient_accumulation accumulation",
    "micro_batch_size",
)
_aliases("per_device_eval_batch_size eval_batch_size", "evaluation_batch_size")
_aliases("epochs num_epochs num_train_epochs n_epochs max_epochs", "max_epochs", "epochs")
_aliases("steps num_steps max_iters num_iterations train_steps total_steps", "max_steps")
_aliases("time max_time time_limit max_seconds", "budget")
_aliases(
    "context context_length context_window block_size max_seq_len max_seq_length seq_len seq_length sequence_length "
    "n_ctx n_positions max_length",
    "sizes.max_position_embeddings",
    "data.max_length",
    "max_new_tokens",
)
_aliases("n_layer n_layers num_layers layers depth", "sizes.num_hidden_layers")
_aliases("n_head n_heads num_heads heads", "sizes.num_attention_heads")
_aliases("n_kv_head n_kv_heads num_kv_heads kv_heads", "sizes.num_key_value_heads")
_aliases("n_embd d_model dim width embed_dim emb_dim embedding_dim model_dim", "sizes.hidden_size", "hidden_size")
_aliases("d_ff ffn_dim ffn_hidden_size n_inner mlp_dim", "sizes.intermediate_size")
_aliases("d_head d_k head_size", "sizes.head_dim")
_aliases("tie_weights tied_embeddings", "sizes.tie_word_embeddings")
_aliases("dropout dropout_rate dropout_prob hidden_dropout_prob", "sizes.dropout", "dropout")
_aliases("mask_prob mask_ratio masking_ratio", "mlm_probability")
_aliases("fp32", "runtime.precision=fp32")
_aliases("fp16", "runtime.precision=fp16")
_aliases("bf16", "runtime.precision=bf16")
_aliases("dtype mixed_precision amp", "runtime.precision")
_aliases("torch_compile", "runtime.compile")
_aliases("activation_checkpointing grad_checkpointing", "runtime.gradient_checkpointing")
_aliases("cpu use_cpu no_cuda", "runtime.device=cpu")
_aliases("zero", "runtime.zero_stage")
_aliases("eval_every eval_steps eval_interval evaluation_steps val_check_interval", "evaluate_every")
_aliases("save_steps save_interval checkpoint_every checkpoint_interval", "save_every")
_aliases("logging_steps log_interval log_steps", "log_every")
_aliases("save_total_limit max_checkpoints keep_checkpoints", "keep_last")
_aliases("early_stopping early_stopping_patience", "patience")
_aliases("load_best_model_at_end save_best", "load_best")
# The same run continues by itself where it stopped.
_aliases("resume resume_from_checkpoint output_dir out_dir save_dir run_name name experiment", "run")
_aliases(
    "data dataset dataset_name data_dir data_path train_file train_data corpus_path", "corpus.sources", "data.path"
)
_aliases("validation_file val_file eval_file val_data", "corpus.validation", "data.validation")
_aliases("val_split val_fraction validation_split", "corpus.validation_fraction", "data.validation_fraction")
_aliases("text_column text_key", "data.text", "corpus.sources.N.text")
_aliases("label_column label_key", "data.label")
_aliases("model_name model_name_or_path pretrained from_pretrained", "init", "model")
_aliases("init", "model")
_aliases("model_type arch architecture", "model")
_aliases("wandb report_to use_wandb", "tracking.wandb")
_aliases("wandb_project project_name", "tracking.project")
_aliases("random_seed", "seed")
_aliases("vocabulary_size n_vocab", "vocab_size")
_aliases("temp", "temperature")
_aliases("max_tokens num_tokens length", "max_new_tokens")
_aliases("n num_return_sequences", "num_samples")
_aliases("stop_strings stop_sequences", "stop")

# Keys and values of earlier releases.
RENAMED_KEYS = {
    "schedule.decay_fraction": "schedule.decay_ratio",
    "schedule.min_ratio": "schedule.min_lr_ratio",
    "keep": "load_best",
    "causal_start": "clm_warmup",
    "embeddings": "init_embeddings",
}
RENAMED_VALUES: dict[tuple[str, Any], Any] = {
    ("checkpoint", "gathered"): "full",
    ("keep", "best"): True,
    ("keep", "last"): False,
}


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run of an earlier release, under today's keys and values."""
    # Only configurations of earlier releases, which list every key, hold this one; their `linear` is today's `wsd`.
    schedule = config.get("schedule")
    old_schedule = isinstance(schedule, Mapping) and "decay_fraction" in schedule
    tree = _translate(config, "")
    if old_schedule and tree["schedule"].get("kind") == "linear":
        tree["schedule"]["kind"] = "wsd"
    return tree


def _translate(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    renamed = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        new = RENAMED_KEYS.get(key, key).rpartition(".")[2]
        if isinstance(value, Mapping):
            renamed[new] = _translate(value, f"{key}.")
        else:
            renamed[new] = RENAMED_VALUES.get((key, value), value) if isinstance(value, str) else value
    return renamed
