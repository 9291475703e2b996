"""The token store: it holds the tokenizer's ids, and is reused, rebuilt or resumed as needed."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mini_llm.corpus.build import build_store
from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.shard_writer import token_dtype
from mini_llm.corpus.token_store import TokenStore
from mini_llm.engine.errors import DataError
from tests.byte_tokenizer import BOS, EOS, ByteEncoder


@pytest.fixture
def corpus(tmp_path):
    texts = [f"document {i} " + "\u00e9x " * (i % 7) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CorpusConfig(sources=str(tmp_path / "a.jsonl"), validation_fraction=0.2)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("mini_llm.corpus.shard_writer.SHARD_TOKENS", 500)
    monkeypatch.setattr("mini_llm.corpus.shard_writer.BATCH_BYTES", 100)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("vocab_size", [300, 65_536, 65_537])
def test_a_store_holds_each_document_between_bos_and_eos(corpus, tmp_path, small_shards, vocab_size):
    shift = vocab_size - 256  # the largest ids occur
    stores = build_store(corpus, ByteEncoder(vocab_size, shift), tmp_path / "tokens")
    for part, store in stores.items():
        texts = list(iter_documents(corpus, part))
        expected = [[BOS, *(byte + shift for byte in text.encode()), EOS] for text in texts]
        flat = [token for document in expected for token in document]
        assert store.read(0, len(store)).tolist() == flat and len(store) == len(flat)
        assert store.offsets.tolist() == np.cumsum([0] + [len(document) for document in expected]).tolist()
        assert store.document_bytes.tolist() == [len(text.encode()) for text in texts]
        assert store.num_documents == len(texts) and store.num_bytes == sum(store.document_bytes)
        assert len(store.manifest["shards"]) > (part == "train")
        assert store.manifest["tokenizer_sha256"] == f"bytes-{vocab_size}-{shift}"
    store = stores["train"]
    assert store.read(0, 1).dtype == np.int64
    assert sum(p.stat().st_size for p in store.path.glob("tokens-*")) == len(store) * (2 if vocab_size <= 65_536 else 4)


def test_reading_crosses_shards_and_stops_at_the_end(corpus, tmp_path, small_shards):
    store = build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]
    everything = store.read(0, len(store))
    for start in range(0, len(store) + 50, 37):
        for count in (0, 1, 499, 1_501, len(store) * 2):
            assert np.array_equal(store.read(start, count), everything[start : start + count])
    with pytest.raises(ValueError, match="negative"):
        store.read(-1, 5)
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read(480, 600), everything[480:1_080])


def test_token_files_are_little_endian():
    assert token_dtype(1024).newbyteorder("<") == token_dtype(1024) and token_dtype(1024).itemsize == 2
    assert np.array([1], token_dtype(100_000)).tobytes() == b"\1\0\0\0"


def test_unigram_entropy_is_computed_over_text_tokens(tmp_path):
    (tmp_path / "train.txt").write_text("aabb" * 10)
    (tmp_path / "validation.txt").write_text("abcd" * 10)
    config = CorpusConfig(sources=str(tmp_path / "train.txt"), validation=[{"path": str(tmp_path / "validation.txt")}])
    stores = build_store(config, ByteEncoder(), tmp_path / "tokens")
    assert stores["train"].unigram_entropy() == pytest.approx(math.log(2))
    assert stores["validation"].unigram_entropy() == pytest.approx(math.log(4))


def test_a_store_is_reused_until_content_settings_or_tokenizer_change(corpus, tmp_path, capsys):
    root, source = tmp_path / "tokens", Path(corpus.sources[0].path)
    first = build_store(corpus, ByteEncoder(), root)["train"]
    unused = ByteEncoder()
    again = build_store(corpus, unused, root)["train"]
    assert again.path == first.path and not unused.texts and "reusing" in capsys.readouterr().err
    os.utime(source, ns=(1, 1))
    assert build_store(corpus, unused, root)["train"].path == first.path and not unused.texts

    stat, data = source.stat(), source.read_bytes()
    source.write_bytes(data.replace(b"document 7 ", b"DOCUMENT 7 "))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.stat().st_size == stat.st_size and source.stat().st_mtime_ns == stat.st_mtime_ns
    changed = build_store(corpus, ByteEncoder(), root)["train"]
    assert changed.path != first.path and changed.fingerprint != first.fingerprint

    other_split = corpus.model_copy(update={"validation_fraction": 0.3})
    others = [build_store(corpus, ByteEncoder(shift=4), root), build_store(other_split, ByteEncoder(), root)]
    assert len({first.path, changed.path, *(stores["train"].path for stores in others)}) == 4


def test_a_moved_source_is_the_same_content(corpus, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.write_bytes(Path(corpus.sources[0].path).read_bytes())
    before = build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]
    sources = [corpus.sources[0].model_copy(update={"path": str(moved)})]
    after = build_store(corpus.model_copy(update={"sources": sources}), ByteEncoder(), tmp_path / "tokens")["train"]
    assert after.path == before.path


@pytest.mark.parametrize("kind", ["tokens", "documents"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_shard_is_named_and_the_store_rebuilt(corpus, tmp_path, small_shards, capsys, kind, damage):
    store = build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]
    good, bad = files(store.path), store.path / f"{kind}-00001.bin"
    data = bytearray(bad.read_bytes())
    data[5] ^= 1
    bad.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "remove":
        bad.unlink()
    with pytest.raises(DataError, match=bad.name):
        TokenStore.open(store.path).verify()
    rebuilt = build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]
    assert bad.name in capsys.readouterr().err and files(rebuilt.path) == good


def test_a_directory_that_is_no_store_is_an_error(corpus, tmp_path):
    with pytest.raises(DataError, match="not a token store"):
        TokenStore.open(tmp_path)
    store = build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]
    manifest = store.path / "manifest.json"
    good = json.loads(manifest.read_text())
    for change, message in (({"format": 99}, "format 99"), ({"shards": None}, "cannot be read")):
        manifest.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match=message):
            TokenStore.open(store.path)
    good["shards"][0]["tokens_file"] = "../../outside.bin"
    manifest.write_text(json.dumps(good))
    with pytest.raises(DataError, match="not a plain file name"):
        TokenStore.open(store.path)


@pytest.mark.slow
def test_a_killed_build_resumes_after_its_complete_shards(corpus, tmp_path, small_shards, capsys):
    expected = build_store(corpus, ByteEncoder(), tmp_path / "undisturbed")["train"]
    code = (
        "import sys\nimport mini_llm.corpus.shard_writer as s; s.SHARD_TOKENS, s.BATCH_BYTES = 500, 100\n"
        "from pathlib import Path\nfrom mini_llm.corpus.build import build_store\n"
        "from mini_llm.corpus.config import CorpusConfig\nfrom tests.byte_tokenizer import ByteEncoder\n"
        "config = CorpusConfig(sources=sys.argv[1], validation_fraction=0.2)\n"
        "build_store(config, ByteEncoder(limit=int(sys.argv[3])), Path(sys.argv[2]))"
    )
    root = tmp_path / "tokens"
    for limit in (120, 80):
        arguments = [sys.executable, "-c", code, corpus.sources[0].path, str(root), str(limit)]
        killed = subprocess.run(arguments, capture_output=True, cwd=Path(__file__).parents[2])
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not list(root.glob("*/train/manifest.json")) and list(root.glob("*.partial/train/shard-00001.json"))
    partial = next(root.glob("*.partial")) / "train"
    (partial / "tokens-09999.bin").write_bytes(b"left over")
    last = sorted(partial.glob("shard-*.json"))[-1]
    damaged = last.with_name(last.name.replace("shard", "tokens")).with_suffix(".bin")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    rest = ByteEncoder()
    stores = build_store(corpus, rest, root)
    assert "continuing after" in capsys.readouterr().err and 0 < len(rest.texts) < 100
    assert files(stores["train"].path.parent) == files(expected.path.parent)
    assert not list(root.glob("*.partial"))


def test_the_tail_of_a_text_file_is_its_validation_store(tmp_path):
    (tmp_path / "input.txt").write_text("0123456789" * 100)
    stores = build_store(CorpusConfig(sources=str(tmp_path / "input.txt")), ByteEncoder(), tmp_path / "tokens")
    assert (stores["train"].num_bytes, stores["validation"].num_bytes) == (900, 100)
    assert stores["train"].path.parent.name.startswith("input-") and stores["train"].manifest["split"] == "tail"


def test_errors_leave_no_store(corpus, tmp_path):
    empty = corpus.model_copy(update={"validation_fraction": 1e-9, "split": "hash"})
    with pytest.raises(DataError, match=r"no validation text found.*split=tail"):
        build_store(empty, ByteEncoder(), tmp_path / "tokens")
    with pytest.raises(DataError, match="outside its vocabulary of 100"):
        build_store(corpus, ByteEncoder(vocab_size=100), tmp_path / "tokens")
    assert not list((tmp_path / "tokens").glob("*/*/manifest.json"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written"):
        build_store(corpus, ByteEncoder(), tmp_path / "file" / "tokens")


def test_a_tokenizer_without_bos_or_eos_adds_none(corpus, tmp_path):
    tokenizer = ByteEncoder()
    tokenizer.bos_id = tokenizer.eos_id = None
    store = build_store(corpus, tokenizer, tmp_path / "tokens")["train"]
    assert len(store) == store.num_bytes
