"""Stop strings in streamed text: nothing that may still become a stop string is let through."""


class StopFilter:
    """Cuts a stream of text before the first stop string that is completed in it.

    The result does not depend on how the text is cut into pieces: the stop string that ends first wins, and of those
    that end together the longest.
    """

    def __init__(self, stop_strings: list[str]) -> None:
        self.stop_strings = stop_strings
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece; return the text that is certain to come before any stop string."""
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
        """The text still held, when no more is to come."""
        certain, self.held = self.held, ""
        return certain

    def _held_back(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(s) for s in self.stop_strings), default=1) - 1
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(s.startswith(self.held[-length:]) for s in self.stop_strings):
                return length
        return 0
