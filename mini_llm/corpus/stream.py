"""InputStream: a pipe that the readers of this package read once, in place of a file."""

import io


class InputStream:
    """A stream of bytes, such as standard input, that is read in place of a file and gives what has arrived.

    raw: the stream. name: what messages call it. kind: a table suffix such as ".csv", or None for plain text.
    """

    def __init__(self, raw: io.BufferedReader, name: str, kind: str | None = None) -> None:
        self.raw, self.name, self.kind = raw, name, kind

    def __str__(self) -> str:
        return self.name

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes as soon as they are there, or b"" at the end."""
        return self.raw.read1(size)

    def peek(self) -> bytes:
        """Return the next bytes without reading them: at least one, unless the stream has ended."""
        return self.raw.peek(1)
