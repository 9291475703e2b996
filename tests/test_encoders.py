"""Encoding in processes beside the reader: the same ids in the same order, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from corpus import encoders
from corpus.config import CorpusConfig
from corpus.encoders import Encoders, encode_flat, encoders_for
from corpus.store import build_store
from tests.test_memo import random_texts
from tests.test_token_store import files
from tests.test_tokenizer import make_documents
from tokenizer.config import TokenizerConfig
from tokenizer.sample import draw_sample
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train_model


class Refuses:
    """A tokenizer that fails on one text."""

    def encode_batch(self, texts):
        if "bad" in texts:
            raise ValueError("a bad text")
        return [np.arange(len(text), dtype=np.int32) for text in texts]


def workers(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "corpus.encoders" in child.cmdline()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    model = train_model(TokenizerConfig(vocab_size=600), draw_sample(make_documents(), 10**6, 0))
    tokenizer = Tokenizer(model, ".")
    assert tokenizer.uses_one_core
    return tokenizer


def test_processes_give_the_ids_of_this_one_in_order(tokenizer):
    batches = [[*random_texts(seed, 40), *make_documents(5), "\ud800 alone"] for seed in range(12)]
    with Encoders(tokenizer, 2) as two:
        answers = [pending.result() for pending in [two.submit(batch) for batch in [*batches, []]]]
    for batch, (ids, counts) in zip([*batches, []], answers, strict=True):
        expected, lengths = encode_flat(tokenizer, batch)
        assert ids.dtype == np.int32 and np.array_equal(ids, expected) and np.array_equal(counts, lengths)


def test_the_batch_of_a_process_that_was_killed_is_encoded_all_the_same(tokenizer):
    texts = make_documents(5)
    with Encoders(tokenizer, 2) as two:
        for process in workers(psutil.Process()):
            process.kill()
        answers = [two.submit(texts).result() for _ in range(4)]
    assert all(np.array_equal(ids, encode_flat(tokenizer, texts)[0]) for ids, _ in answers)


def test_an_error_over_there_is_raised_here():
    with Encoders(Refuses(), 1) as one:
        fine, bad, after = one.submit(["fine"]), one.submit(["bad"]), one.submit(["fine"])
        assert fine.result()[0].tolist() == [0, 1, 2, 3] == after.result()[0].tolist()
        with pytest.raises(ValueError, match="a bad text"):
            bad.result()


def test_processes_end_with_the_one_they_work_for():
    program = """
import os, time
from corpus.encoders import Encoders
from tests.test_encoders import Refuses
two = Encoders(Refuses(), 2)
two.submit(["fine"]).result()
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        left = workers(psutil.Process(process.pid))
        assert len(left) == 2
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive


def test_a_store_is_the_same_with_them(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.shards.SHARD_TOKENS", 3000)
    monkeypatch.setattr("corpus.shards.BATCH_BYTES", 1000)
    for i, text in enumerate([*make_documents(), *random_texts(3, 200)]):
        (tmp_path / f"{i:04}.txt").write_text(text.replace("\0", ""), encoding="utf-8")
    corpus = CorpusConfig(sources=str(tmp_path / "*.txt"), validation_fraction=0.2)
    started = []

    def counted(*arguments):
        started.append(encoders_for(*arguments))
        return started[-1]

    monkeypatch.setattr("corpus.store.encoders_for", counted)
    monkeypatch.setattr(encoders, "usable_cores", lambda: 2)
    for least in (1 << 40, 0):
        monkeypatch.setattr(encoders, "FEWEST_BYTES", least)
        build_store(corpus, tokenizer, tmp_path / str(least))
    assert [one.count for one in started] == [0, 2]
    alone, together = files(tmp_path / str(1 << 40)), files(tmp_path / "0")
    assert sum(name.endswith(".bin") for name in alone) > 4
    assert {n: b for n, b in alone.items() if ".bin" in n} == {n: b for n, b in together.items() if ".bin" in n}


def test_processes_are_started_only_where_they_pay(tokenizer, monkeypatch):
    assert encoders_for(tokenizer, 1000).count == 0
    assert encoders_for(Refuses(), None).count == 0
    monkeypatch.setattr(encoders, "usable_cores", lambda: 1)
    assert encoders_for(tokenizer, None).count == 0
