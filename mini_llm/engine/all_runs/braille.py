"""Curves in the terminal, in braille characters: each holds two columns and four rows of dots."""

from collections.abc import Sequence

_BLANK = 0x2800
# Bits of the dots of a character, by row and column (Unicode block U+2800).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw(x: Sequence[float], y: Sequence[float], width: int, height: int, span: tuple[float, float]) -> list[str]:
    """`height` lines of `width` characters with the curve y(x); x must ascend. span: values of the left and right end.

    Points that share a column of dots are averaged; neighbouring columns are joined.
    """
    columns, rows = 2 * width, 4 * height
    left, right = span
    sums: dict[int, tuple[float, int]] = {}
    for place, value in zip(x, y, strict=True):
        column = round((place - left) / (right - left or 1) * (columns - 1))
        total, count = sums.get(column, (0.0, 0))
        sums[column] = total + value, count + 1
    means = {column: total / count for column, (total, count) in sorted(sums.items())}
    low, high = min(means.values()), max(means.values())
    dots = [[0] * width for _ in range(height)]

    def mark(column: int, row: int) -> None:
        dots[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    before: tuple[int, int] | None = None
    for column, value in means.items():
        row = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
        for step in range(before[0] + 1 if before else column, column + 1):
            # Steep curves get every dot between two columns.
            start = before[1] if before else row
            share = (step - before[0]) / (column - before[0]) if before else 1.0
            end = round(start + share * (row - start))
            last = round(start + max(0.0, share - 1 / max(1, column - before[0])) * (row - start)) if before else end
            for between in range(min(last, end), max(last, end) + 1):
                mark(step, between)
        before = column, row
    return ["".join(chr(_BLANK + bits) for bits in line) for line in dots]
