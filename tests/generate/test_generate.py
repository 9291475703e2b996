"""Generation: the cached window, streaming, stop strings, seeds, and edge cases of context, prompt and end of text."""

import io
import json
import random

import pytest
import torch
from torch import nn

from generate.config import GenerateConfig
from generate.context import Window
from generate.decode import TextGenerator
from generate.interactive import interact
from generate.output import Printer
from generate.stop import StopFilter
from mini_llm.engine.errors import CheckpointError, ConfigError
from tests.byte_tokenizer import FIRST_BYTE, VOCABULARY, ByteTokenizer
from tests.models import CONTEXT, tiny_config, tiny_model


class ScriptedModel(nn.Module):
    """Gives probability 1 to the next token of a script, whatever it sees."""

    def __init__(self, script, context=1000):
        super().__init__()
        self.config = tiny_config(max_position_embeddings=context, vocab_size=VOCABULARY)
        self.lm_head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
        self.lm_head.weight.data = 1e4 * torch.eye(VOCABULARY)
        self.script = iter(script)

    def trunk(self, input_ids, attention_mask, cache):
        cache.length += input_ids.size(1)
        return nn.functional.one_hot(torch.tensor([[next(self.script)]]), VOCABULARY).float()

    def predict(self, hidden):
        return self.lm_head(hidden)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def generate(model, prompt="ab", index=0, end_ids=(), **settings):
    """Return the sample and the list of streamed texts."""
    generator = TextGenerator(model, ByteTokenizer(), GenerateConfig(**settings), end_ids)
    sample = generator.sample(prompt, index)
    return sample, list(generator.stream(sample))


def scripted(text, **settings):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text) if isinstance(text, str) else text
    return generate(ScriptedModel(ids), **settings)


def test_cached_equals_uncached(model):
    ids = torch.randint(320, (CONTEXT,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
        window = Window(model, ids[:5], CONTEXT)
        logits = [window.prompt_logits] + [window.append(token) for token in ids[5:]]
    torch.testing.assert_close(torch.stack(logits), expected[4:], rtol=1e-5, atol=1e-5)
    assert window.slides == 0


@pytest.mark.parametrize("context", [1, 2, 3, CONTEXT])
def test_a_full_window_continues_from_the_last_half_of_the_context(context):
    """The result equals a plain loop without a cache over the tokens in the window."""
    model, ids = tiny_model(max_position_embeddings=context), list(range(10, 60))
    seen, slides = ids[:1], 0
    with torch.inference_mode():
        window = Window(model, ids[:1], 1000)
        for token in ids[1:]:
            seen.append(token)
            if len(seen) > context:
                seen, slides = seen[-max(1, context // 2) :], slides + 1
            expected = model(torch.tensor([seen]))[0, -1]
            torch.testing.assert_close(window.append(token), expected, rtol=1e-5, atol=1e-5)
            assert window.ids == seen and window.cache.length == len(seen) <= context
    assert window.slides == slides > 0


def test_the_cache_is_no_longer_than_needed(model):
    assert Window(model, [1, 2], 3).cache.max_length == 5
    assert Window(model, [1, 2], 10**9).cache.max_length == CONTEXT


def test_the_seed_determines_the_text(model):
    first, again, other = (generate(model, seed=s, top_p=1)[0].ids for s in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("max_new_tokens", [5, 40])
def test_a_sample_does_not_depend_on_earlier_samples(model, max_new_tokens):
    """With 40 tokens the window slides, so the next sample cannot reuse the prompt's keys and values."""
    settings = {"temperature": 1.0, "max_new_tokens": max_new_tokens}
    generator = TextGenerator(model, ByteTokenizer(), GenerateConfig(**settings))
    together = []
    for index in range(4):
        sample = generator.sample("abc", index)
        list(generator.stream(sample))
        together.append((sample.ids, sample.window_slides))
    alone = [generate(model, "abc", index, **settings)[0] for index in range(4)]
    assert together == [(s.ids, s.window_slides) for s in alone]
    assert len({tuple(ids) for ids, _ in together}) == 4


def test_text_longer_than_the_context_is_reported():
    """3 prompt tokens and 13 new ones fill 16 positions; the next token keeps 8, and so does every ninth after it."""
    generator = TextGenerator(ScriptedModel([50] * 50, CONTEXT), ByteTokenizer(), GenerateConfig(max_new_tokens=50))
    sample = generator.sample("ab")
    assert len("".join(generator.stream(sample))) == 50
    assert (sample.finish_reason, sample.window_slides) == ("length", 4)
    assert generate(ScriptedModel([50] * 50, CONTEXT), max_new_tokens=14)[0].window_slides == 0


@pytest.mark.parametrize(("max_new_tokens", "kept"), [(1, 15), (4, 12), (100, 8)])
def test_a_long_prompt_keeps_its_end(model, max_new_tokens, kept):
    sample, _ = generate(model, "x" * 30 + "0123456789", max_new_tokens=max_new_tokens)
    assert sample.prompt_ids == ByteTokenizer().encode("x" * 30 + "0123456789")[-kept:]
    assert sample.prompt_tokens_dropped == 41 - kept
    assert len(sample.ids) <= max_new_tokens


def test_a_prompt_that_fills_the_context_is_kept_completely(model):
    sample, _ = generate(model, "x" * (CONTEXT - 1), max_new_tokens=3, end_ids=())
    assert len(sample.prompt_ids) == CONTEXT and sample.prompt_tokens_dropped == 0


def test_an_empty_prompt_starts_from_the_beginning_token(model, monkeypatch):
    assert generate(model, "")[0].prompt_ids == [ByteTokenizer.bos_id]
    monkeypatch.setattr(ByteTokenizer, "adds_bos", False)
    generator = TextGenerator(model, ByteTokenizer(), GenerateConfig())
    assert generator.sample("").prompt_ids == [ByteTokenizer.bos_id]
    assert generator.sample("a").prompt_ids == ByteTokenizer().encode("a")


def test_an_empty_prompt_without_a_beginning_token_is_an_error(model, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "bos_id", None)
    with pytest.raises(ConfigError, match="empty"):
        generate(model, "")


def test_special_and_padding_ids_are_never_generated(model):
    """The temperature makes the distribution uniform, so every allowed token appears."""
    sample, _ = generate(model, temperature=1e6, top_p=1.0, max_new_tokens=3000)
    assert set(sample.ids) <= {ByteTokenizer.eos_id, *range(FIRST_BYTE, VOCABULARY)}


def test_an_end_token_is_never_suppressed(model, monkeypatch):
    """Many tokenizers use the end token for padding and for the beginning too."""
    for name in ("bos_id", "pad_id"):
        monkeypatch.setattr(ByteTokenizer, name, ByteTokenizer.eos_id)
    generator = TextGenerator(model, ByteTokenizer(), GenerateConfig(), [300])
    assert not {ByteTokenizer.eos_id, 300} & set(generator.suppressed_ids)
    assert 301 in generator.suppressed_ids


def test_a_tokenizer_that_is_too_large_is_refused():
    with pytest.raises(CheckpointError, match="263 tokens, the model only 200"):
        generate(tiny_model(vocab_size=200))


def test_the_finish_reason():
    text = ByteTokenizer().encode("hello")
    sample, texts = scripted([*text, ByteTokenizer.eos_id])
    assert (sample.finish_reason, sample.text, sample.ids) == ("end", "hello", [*text, 2])
    assert "".join(texts) == "hello"
    sample, _ = scripted([*text, 9], end_ids=[9])
    assert (sample.finish_reason, sample.text, sample.ids) == ("end", "hello", [*text, 9])
    assert scripted("hello", max_new_tokens=3)[0].finish_reason == "length"
    sample, _ = scripted("hello", stop=["lo"])
    assert (sample.finish_reason, sample.text, sample.ids) == ("stop", "hel", text)
    assert scripted("hello", stop=["lo"], max_new_tokens=5)[0].finish_reason == "stop"


def test_an_unfinished_sample_counts_as_interrupted():
    generator = TextGenerator(ScriptedModel(ByteTokenizer().encode("hello")), ByteTokenizer(), GenerateConfig())
    sample = generator.sample("")
    stream = generator.stream(sample)
    assert next(stream) + next(stream) == sample.text == "he"
    assert sample.finish_reason == "interrupted"


def test_ctrl_c_prints_the_partial_answer_and_keeps_it_as_context(monkeypatch, capsys):
    def script():
        yield from ByteTokenizer().encode("hel")
        raise KeyboardInterrupt

    generator = TextGenerator(ScriptedModel(script()), ByteTokenizer(), GenerateConfig())
    monkeypatch.setattr("sys.stdin", io.StringIO("say \n"))
    printer = Printer(generator, as_json=True)
    interact(printer)
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["finish_reason"]) == ("hel", "interrupted")
    assert printer.text == "say hel"


def test_a_stream_never_holds_half_a_character():
    text = "na\u00efve \u2192 \u65e5\u672c \U0001f600!"
    count = len(text.encode())
    sample, texts = scripted(text, max_new_tokens=count)
    assert "".join(texts) == sample.text == text
    assert "\ufffd" not in "".join(texts)
    sample, texts = scripted(text, max_new_tokens=count - 2)
    assert "".join(texts) == sample.text == text[:-2] + "\ufffd"


def test_streamed_text_equals_decoded_text():
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(FIRST_BYTE, VOCABULARY) for _ in range(20)]
        sample, texts = scripted(ids, max_new_tokens=20)
        assert "".join(texts) == sample.text == ByteTokenizer().decode(sample.ids)


def test_no_part_of_a_stop_string_is_streamed():
    sample, texts = scripted("one two STO STOP three", stop=["STOP", "\n\n"])
    assert "".join(texts) == sample.text == "one two STO "
    assert texts[:3] == ["o", "n", "e"]
    sample, texts = scripted("one STO", stop=["STOP"], max_new_tokens=7)
    assert "".join(texts) == sample.text == "one STO"
    assert sample.finish_reason == "length"


def test_stop_filter_equals_a_search_character_by_character():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randrange(12)))
        stops = ["".join(rng.choices("ab", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
        expected = text
        for end in range(len(text) + 1):
            found = [len(s) for s in stops if text[:end].endswith(s)]
            if found:
                expected = text[: end - max(found)]
                break
        stop, result, position = StopFilter(stops), "", 0
        while position < len(text):
            size = rng.randrange(1, 4)
            result += stop.push(text[position : position + size])
            position += size
            assert expected.startswith(result)
        result += stop.flush()
        assert result == expected and stop.stopped == (expected != text or any(text.endswith(s) for s in stops))
