"""Numbers and tables in plain text."""

import numpy as np

__all__ = ["number", "table"]


def number(value: float) -> str:
    """A count of units: short, and no longer than it is known.

    Examples
    --------
    >>> number(0.6251), number(12.3), number(45678.9), number(float("inf"))
    ('0.63', '12', '4.6e+04', 'inf')
    """
    if not np.isfinite(value):
        return "inf" if value > 0 else str(value)
    if value == 0:
        return "0"
    if value < 0.01 or value >= 1e4:
        return f"{value:.1e}"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns: the first to the left, the rest to the right."""
    wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
