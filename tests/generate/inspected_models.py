"""Models to inspect, one of every family and head."""

from mini_llm.model import HEADS, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.families import FAMILIES, HEADS_OF, make_config
from tests.models import randomized

TEXT = "def one(x):\n    return x + 1"
HEADS_INSPECTED = ("causal", "masked", "seq2seq", "classifier")
CASES = [(family, head) for family in FAMILIES for head in HEADS_OF[family] if head in HEADS_INSPECTED]


def make_model(family="qwen3", head="causal", size=0, **changes):
    return randomized(HEADS[head](make_config(family, head, size, vocab_size=384, **changes))).requires_grad_(False)


def save(directory, tokenizer, family="qwen3", head="causal", **changes):
    """Save a tiny random model and its tokenizer in `directory`, and return it."""
    save_model(make_model(family, head, **changes), directory)
    save_tokenizer(tokenizer, directory, "masked" if head == "masked" else "causal")
    return directory
