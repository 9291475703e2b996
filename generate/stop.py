"""Find stop strings in streamed text, holding back text that may still become one."""


class StopFilter:
    """Truncates a stream of text before the first stop string.

    The result does not depend on how the text is split into chunks: the stop string that ends first wins, and the
    longest one if several end at the same place.
    """

    def __init__(self, stop_strings: list[str]) -> None:
        self.stop_strings = stop_strings
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add a chunk. Return the text that cannot be part of a stop string any more."""
        if self.stopped:
            return ""
        self.held += text
        found = [(self.held.index(s) + len(s), self.held.index(s)) for s in self.stop_strings if s in self.held]
        if found:
            self.stopped = True
            certain, self.held = self.held[: min(found)[1]], ""
            return certain
        cut = len(self.held) - self._held_back()
        certain, self.held = self.held[:cut], self.held[cut:]
        return certain

    def flush(self) -> str:
        """Return the text still held back, at the end of the stream."""
        certain, self.held = self.held, ""
        return certain

    def _held_back(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = max((len(s) for s in self.stop_strings), default=1) - 1
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(s.startswith(self.held[-length:]) for s in self.stop_strings):
                return length
        return 0
