"""The automatic tokenizer is found by the content of the corpus, whatever its name."""

import shutil
import threading

import pytest

from mini_llm.corpus.config import CorpusConfig
from mini_llm.engine.settings import TrackingConfig
from mini_llm.tokenization.config import TokenizerConfig
from tokenizer.train import find_or_train


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, word in (("a", "fox"), ("b", "dog")):
        (tmp_path / folder).mkdir()
        lines = "".join(f"the {word} number {i} runs over {i * i}\n" for i in range(200))
        (tmp_path / folder / "notes.txt").write_text(lines)
    return tmp_path


def train(path, **settings):
    tracking = TrackingConfig(wandb="disabled")
    config = TokenizerConfig(
        **{"corpus": CorpusConfig(sources=path), "vocab_size": 320, "tracking": tracking} | settings
    )
    return find_or_train(config, config.directory, lambda line: None)


def test_content_decides_and_names_do_not(texts):
    first = train("a/notes.txt")
    assert first.directory.name == "tokenizer-notes"
    others = [train("b/notes.txt"), train("a/notes.txt", vocab_size=330), train("a/notes.txt", seed=1)]
    assert len({first.directory, *(other.directory for other in others)}) == 4
    shutil.copy("a/notes.txt", "other.txt")
    for path in ("./a/notes.txt", "other.txt", str(texts / "a/notes.txt")):
        assert train(path).directory == first.directory
    assert train("a/notes.txt", vocab_size=None).sha256 in {first.sha256, *(other.sha256 for other in others)}
    (texts / "runs/tokenizer-notes").rename(texts / "runs/renamed")
    assert train("a/notes.txt").directory.name == "renamed"
    with open("a/notes.txt", "a") as file:
        file.write("x")
    assert train("a/notes.txt").directory.name == "tokenizer-notes"


def test_an_encoder_has_its_own_default_size_but_shares_a_tokenizer_whose_size_was_given(texts):
    given = train("a/notes.txt")
    assert train("a/notes.txt", vocab_size=None, encoder=True).directory == given.directory
    shutil.rmtree(given.directory)
    decoder = train("a/notes.txt", vocab_size=None)
    encoder = train("a/notes.txt", vocab_size=None, encoder=True)
    assert [decoder.directory.name, encoder.directory.name] == ["tokenizer-notes", "tokenizer-notes-encoder"]
    for kind, own in ((False, decoder), (True, encoder)):
        assert train("a/notes.txt", vocab_size=None, encoder=kind).directory == own.directory


def test_a_resumed_encoder_keeps_the_tokenizer_of_an_earlier_release(texts):
    shared = train("a/notes.txt", vocab_size=None)
    tracking = TrackingConfig(wandb="disabled")
    config = TokenizerConfig(corpus=CorpusConfig(sources="a/notes.txt"), encoder=True, tracking=tracking)
    assert find_or_train(config, config.directory, print, shared.sha256).directory == shared.directory


def test_a_name_that_is_taken_does_not_matter(texts):
    (texts / "runs/tokenizer-notes").mkdir(parents=True)
    (texts / "runs/tokenizer-notes/mine.txt").write_text("mine")
    assert train("a/notes.txt").directory.name.startswith("tokenizer-notes-")


def test_launches_that_want_the_same_tokenizer_wait_for_each_other(texts):
    found = []
    threads = [threading.Thread(target=lambda: found.append(train("a/notes.txt").directory)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1


@pytest.mark.parametrize("name", ["\u65e5\u672c\u8a9e", "\u0437\u0430\u043c\u0435\u0442\u043a\u0438", "caf\u00e9"])
def test_names_keep_letters_of_any_script(name):
    assert CorpusConfig(sources=f"{name}.txt").name == name
