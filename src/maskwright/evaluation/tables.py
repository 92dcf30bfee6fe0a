"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | None


def format_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Aligned text: the first column to the left, the others to the right, floats with 3 decimals, None as `-`.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    texts = [list(header), *([_text(cell) for cell in row] for row in rows)]
    if any(len(row) != len(header) for row in texts):
        raise ValueError(f"every row must have {len(header)} cells, like the header")
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    texts.insert(1, ["-" * width for width in widths])
    lines = []
    for first, *others in texts:
        aligned = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
