"""Batched greedy decoding, to score an encoder-decoder."""

import torch
from torch import Tensor

from mini_llm.model import KVCache, Seq2SeqLM


@torch.inference_mode()
def greedy_decode(model: Seq2SeqLM, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> list[list[int]]:
    """Token ids for each source row of input_ids (B, S), without the end-of-sequence token.

    attention_mask (B, S) is 1 where a token is real. Rows stop at `max_new_tokens` tokens.
    """
    config, rows = model.config, len(input_ids)
    memory = model.trunk.encoder(input_ids, attention_mask)  # B S C
    cache = KVCache(config, rows, max_new_tokens, device=memory.device, dtype=memory.dtype)
    tokens = torch.full((rows, 1), config.start_token, device=memory.device)  # B 1
    ended = torch.zeros(rows, dtype=torch.bool, device=memory.device)
    generated = []
    for _ in range(max_new_tokens):
        hidden = model.trunk.decoder(tokens, None, cache, memory=memory, memory_mask=attention_mask)  # B 1 C
        tokens = model.predict(hidden).argmax(-1)  # B 1
        generated.append(tokens)
        ended |= tokens[:, 0] == config.eos_token_id
        if ended.all():
            break
    return [_until(config.eos_token_id, row) for row in torch.cat(generated, dim=1).tolist()]


def _until(end: int | None, ids: list[int]) -> list[int]:
    """`ids` before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids
