"""Greedy decoding of many rows at once, for scoring an encoder-decoder."""

import torch
from torch import Tensor

from mini_llm.model import KVCache, Seq2SeqLM


@torch.inference_mode()
def greedy_decode(model: Seq2SeqLM, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> list[list[int]]:
    """The most probable token each time, until end of sequence (left out), of source rows (B, S); 1 where real."""
    config, rows = model.config, len(input_ids)
    memory = model.trunk.encoder(input_ids, attention_mask)
    cache = KVCache(config, rows, max_new_tokens, device=memory.device, dtype=memory.dtype)
    tokens = torch.full((rows, 1), config.decoder_start_token_id, device=memory.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=memory.device)
    made = []
    for _ in range(max_new_tokens):
        hidden = model.trunk.decoder(tokens, None, cache, memory=memory, memory_mask=attention_mask)
        tokens = model.predict(hidden).argmax(-1)
        made.append(tokens)
        ended |= tokens[:, 0] == config.eos_token_id
        if ended.all():
            break
    return [_until(config.eos_token_id, row) for row in torch.cat(made, dim=1).tolist()]


def _until(end: int | None, ids: list[int]) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
