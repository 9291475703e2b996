"""Complete models: a trunk and an output head. Every forward returns logits."""

from mini_llm.model.heads.base import Model, Pooler, PredictionHead, Read
from mini_llm.model.heads.language import CausalLM, EncoderDecoder, MaskedLM, Seq2SeqLM
from mini_llm.model.heads.questions import QuestionAnswerer
from mini_llm.model.heads.sequence import SequenceClassifier
from mini_llm.model.heads.tokens import TokenClassifier

LanguageModel = CausalLM | MaskedLM | Seq2SeqLM
HEADS: dict[str, type[LanguageModel | SequenceClassifier | TokenClassifier | QuestionAnswerer]] = {
    "causal": CausalLM,
    "masked": MaskedLM,
    "seq2seq": Seq2SeqLM,
    "classifier": SequenceClassifier,
    "tokens": TokenClassifier,
    "questions": QuestionAnswerer,
}

__all__ = [
    "HEADS",
    "CausalLM",
    "EncoderDecoder",
    "MaskedLM",
    "Model",
    "Pooler",
    "PredictionHead",
    "QuestionAnswerer",
    "Read",
    "Seq2SeqLM",
    "SequenceClassifier",
    "TokenClassifier",
]
