"""What linear models count in a text: words, or characters in scripts that put no spaces between words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Thai, Lao, Burmese, Khmer, kana, Han. A whole sentence would be one word there, which hardly any other text has.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff" + (
    r"\U00020000-\U0003ffff"
)
# Elsewhere as scikit-learn's default: at least two letters or digits.
WORDS = rf"[{UNSPACED}]|[^\W{UNSPACED}]{{2,}}"
# With one-letter words and punctuation marks: '?' and '!' tell questions and opinions apart.
TOKENS = rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"


def fit_tfidf_features(texts: Sequence[str]) -> tuple[Any, Any]:
    """A TF-IDF vectorizer of words and word pairs, fitted on `texts`, and their features.

    It counts characters where no text has a word. Raises ValueError if all texts are blank.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS, dtype=np.float32)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:
        vectorizer = TfidfVectorizer(analyzer="char", sublinear_tf=True, dtype=np.float32)
        return vectorizer, vectorizer.fit_transform(texts)
