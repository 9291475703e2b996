"""Prompt lookup: guess the next tokens from an earlier place of the text, so that one pass may compute several.

Saxena 2023, "Prompt Lookup Decoding". A guess is a proposal with probability 1, so the rule of Leviathan et al. 2023
("Fast Inference from Transformers via Speculative Decoding", algorithm 1) accepts it with the model's probability p of
this token, and else draws from p without it. Drawing from p and comparing does exactly this, with the random number
that the token takes without lookup: not only the distribution stays the same, but the text of a seed.
"""

from collections.abc import Iterable

# Lengths of the token sequences to look for, longest first.
NGRAMS = (3, 2)
# Guess while this share of the last guesses would have been right. To check four takes 0.1 to 0.5 of a step.
WORTH = 0.3
# The share is an exponential average over about this number of guesses.
MEMORY = 16


class Lookup:
    """The tokens of a text, and where each n-gram occurred last."""

    def __init__(self, ids: Iterable[int], count: int) -> None:
        """`ids` is the prompt; guesses have up to `count` tokens."""
        self.count, self.ids = count, list[int]()
        self._after: dict[tuple[int, ...], int] = {}
        self._place: int | None = None
        self._share = 1.0
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Append a token to the text."""
        if self._place is not None:
            # Counts guesses that were not checked too: it costs nothing to see whether they would have been right.
            self._share += ((self.ids[self._place] == token) - self._share) / MEMORY
        self.ids.append(token)
        self._place = None
        for n in NGRAMS:
            if n <= len(self.ids):
                ngram = tuple(self.ids[-n:])
                if self._place is None:
                    self._place = self._after.get(ngram)
                self._after[ngram] = len(self.ids)

    def guess(self) -> list[int]:
        """Return the tokens that followed the last n-gram where it occurred before; nothing if that does not pay."""
        if self._place is None or self._share < WORTH:
            return []
        # A guess that reaches the end of the text goes on with itself: a repetition.
        period = len(self.ids) - self._place
        return [self.ids[self._place + i % period] for i in range(self.count)]
