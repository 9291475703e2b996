"""The shard files of a checkpoint depend on its tensors only, so that a resumed run leaves the same bytes."""

import torch

from mini_llm.engine.checkpoint.shard_files import SHARDS, LocalShard, ShardReader, write_shards


def test_equal_shards_give_equal_bytes(tmp_path):
    whole = {f"layer.{number}.weight": torch.arange(6.0) + number for number in range(12)}
    entries = []
    for name in ("one", "other"):
        (tmp_path / name / SHARDS).mkdir(parents=True)
        for rank in range(2):
            half = slice(3 * rank, 3 * rank + 3)
            shards = {key: LocalShard(3 * rank, torch.Size([2, 3]), values[half]) for key, values in whole.items()}
            entries.append(write_shards(tmp_path / name, rank, 2, shards))
    assert entries[:2] == entries[2:]
    with ShardReader(tmp_path / "one") as reader:
        assert all(reader.read_tensor(key).flatten().equal(values) for key, values in whole.items())
