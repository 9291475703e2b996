"""`python -m generate inspect`: run one text through a model and write its activations as an HTML page."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mini_llm.engine.errors import CheckpointError, ConfigError, NonFiniteError
from mini_llm.engine.run.files import write_atomic
from mini_llm.model import CausalLM, MaskedLM, Model, Seq2SeqLM, SequenceClassifier, load_model
from mini_llm.model.decoding import greedy_decode
from mini_llm.model.heads import EncoderDecoder
from mini_llm.tokenization.framing import Kind, text_frame
from mini_llm.tokenization.load import load_tokenizer

from ..load import find_generator
from .page import render
from .states import BEST, Decision, Inspection, Maps, Recorder, attribute, logit_lens

MASKS = ("<mask>", "[MASK]")


def write_inspection(path: Path, text: str, out: Path, target: str | None = None, max_tokens: int = 256) -> Inspection:
    """Run `text` through the model at `path` (a model or run directory) and write the page to `out`.

    `target` is the decoder's text for an encoder-decoder (None: the model's own greedy answer). Uses at most
    `max_tokens` tokens of each. Raises CheckpointError, ConfigError, ModelDirectoryError, NonFiniteError.
    """
    directory = find_generator(path)
    model = load_model(directory).requires_grad_(False)
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    inspection = inspect_text(model, tokenizer, text, target, max_tokens)
    if tokenizer.remark:
        inspection.notes.insert(0, tokenizer.remark)
    try:
        write_atomic(out, render(inspection, tokenizer, "/".join(path.resolve().parts[-2:])))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write it ({error.strerror or error}); name another file") from None
    return inspection


def inspect_text(
    model: Model,
    tokenizer: Any,
    text: str,
    target: str | None = None,
    max_tokens: int = 256,
) -> Inspection:
    """Run `text` through `model` once and record it. Raises CheckpointError, ConfigError, NonFiniteError."""
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}: they do not match. "
            "Copy the tokenizer files of the training run into the model directory"
        )
    if target is not None and not isinstance(model, Seq2SeqLM):
        raise ConfigError(
            "--target is the decoder's text of an encoder-decoder, but this model has no decoder: omit it"
        )
    limit = min(max_tokens, config.max_position_embeddings)
    notes: list[str] = []
    source, dropped = frame(model, tokenizer, text, limit)
    if dropped:
        notes.append(f"The text is truncated to {limit:,} tokens: its last {dropped:,} tokens are not shown.")
    ids = torch.tensor([source])
    if isinstance(model, SequenceClassifier):
        inspection = _classifier(model, ids)
    elif isinstance(model, Seq2SeqLM):
        inspection = _seq2seq(model, tokenizer, ids, target, limit, notes)
    else:
        assert isinstance(model, CausalLM | MaskedLM), "no other heads exist"
        inspection = _language_model(model, tokenizer, ids)
    inspection.notes = notes + inspection.notes
    for figures in [maps.weights for maps in inspection.maps] + [
        x.probabilities for x in (inspection.lens, inspection.decision) if x is not None
    ]:
        if not figures.isfinite().all():
            raise NonFiniteError(
                "the model computes NaN for this text: its weights are damaged; use another checkpoint"
            )
    return inspection


def frame(model: Model, tokenizer: Any, text: str, limit: int) -> tuple[list[int], int]:
    """Return the ids of `text` with the special tokens of training, at most `limit`, and the number of tokens dropped.

    For a masked model, <mask> or [MASK] in the text becomes the mask token. It also replaces the space
    before it, which belongs to the masked word. Raises ConfigError for a text without tokens.
    """
    config = model.config
    classifier = isinstance(model, SequenceClassifier)
    kind: Kind = "seq2seq" if config.is_encoder_decoder else "causal" if config.causal else "masked"
    before, after = text_frame(tokenizer, kind)
    parts = [text]
    if not (config.is_encoder_decoder or config.causal or classifier) and tokenizer.mask_id is not None:
        names = {*MASKS, tokenizer.id_to_token(tokenizer.mask_id)}
        parts = re.split(" ?(?:" + "|".join(map(re.escape, sorted(names))) + ")", text)
    ids = list(tokenizer.encode(parts[0]))
    for part in parts[1:]:
        ids += [tokenizer.mask_id, *tokenizer.encode(part)]
    if not ids:
        raise ConfigError("the text is empty (it has no tokens): give some text")
    room = limit - len(before) - len(after)
    return [*before, *ids[:room], *after], max(0, len(ids) - room)


def _language_model(model: CausalLM | MaskedLM, tokenizer: Any, ids: torch.Tensor) -> Inspection:
    text = ids[0].tolist()
    notes = []
    with torch.no_grad(), Recorder(model.trunk) as recorder:
        model.trunk(ids)
    if isinstance(model, CausalLM):
        positions, expected = list(range(len(text))), [*text[1:], None]
    else:
        masks = [i for i, token in enumerate(text) if token == tokenizer.mask_id]
        positions = masks or list(range(len(text)))
        expected = [None if masks else text[i] for i in positions]
        if not masks:
            notes.append(
                f"The model reads each token that it predicts here. Write {MASKS[0]} in place of one to hide it."
            )
    with torch.no_grad():
        lens = logit_lens(model, recorder, "text", positions, expected)
    return Inspection(model, {"text": text}, [recorder.maps("Attention", "text")], lens, notes=notes)


def _seq2seq(
    model: Seq2SeqLM, tokenizer: Any, ids: torch.Tensor, target: str | None, limit: int, notes: list[str]
) -> Inspection:
    end = model.config.eos_token_id
    if model.config.decoder_start_token_id is None:
        raise CheckpointError(
            "config.json has no decoder_start_token_id, which every decoder input starts with: add it"
        )
    if target is None:
        following = greedy_decode(model, ids, torch.ones_like(ids), limit)[0]
        notes.append("The target is the model's own greedy answer (--target sets another).")
    else:
        following = tokenizer.encode(target)
        if len(following) > limit:
            notes.append(f"The target is truncated: its last {len(following) - limit:,} tokens are not shown.")
    if len(following) < limit and end is not None:
        following.append(end)
    following = following[:limit]
    # The last token is only predicted, never an input.
    inputs = [model.config.decoder_start_token_id, *following[:-1]]
    expected = [*following, None][: len(inputs)]
    encoder, decoder = Recorder(model.trunk.encoder), Recorder(model.trunk.decoder)
    with torch.no_grad(), encoder, decoder:
        model.trunk(ids, torch.tensor([inputs]))
    with torch.no_grad():
        lens = logit_lens(model, decoder, "target", list(range(len(inputs))), expected)
    return Inspection(
        model, {"source": ids[0].tolist(), "target": inputs}, _encoder_decoder_maps(encoder, decoder), lens
    )


def _classifier(model: SequenceClassifier, ids: torch.Tensor) -> Inspection:
    config, text = model.config, ids[0].tolist()
    trunk, double = model.trunk, config.is_encoder_decoder
    trunks = (trunk.encoder, trunk.decoder) if isinstance(trunk, EncoderDecoder) else (trunk,)
    recorders = [Recorder(part) for part in trunks]
    with ExitStack() as stack, torch.enable_grad():
        for recorder in recorders:
            stack.enter_context(recorder)
        logits = model(ids, torch.ones_like(ids))[0]
    probabilities = logits.detach().softmax(-1)
    labels = probabilities.topk(min(BEST, len(probabilities))).indices.tolist()
    targets, scores = attribute(logits, recorders, labels)
    if double:
        # The decoder input is the text shifted right by its start token.
        scores[0][:, :-1] += scores[1][:, 1:]
    names = [config.id2label[i] for i in range(config.num_labels)]
    decision = Decision(names, probabilities, labels, targets, scores[0])
    if not double:
        return Inspection(model, {"text": text}, [recorders[0].maps("Attention", "text")], decision=decision)
    sequences = {"source": text, "target": [config.start_token, *text[:-1]]}
    return Inspection(model, sequences, _encoder_decoder_maps(*recorders), decision=decision)


def _encoder_decoder_maps(encoder: Recorder, decoder: Recorder) -> list[Maps]:
    return [
        encoder.maps("Encoder", "source"),
        decoder.maps("Decoder", "target"),
        decoder.cross_maps("Cross-attention", "target", "source"),
    ]
