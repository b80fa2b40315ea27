"""What the benchmarks print: percentiles, figures beside what is wanted, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of all values do not exceed; nan when there are none."""
    ranked = sorted(values)
    if not ranked:
        return math.nan
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def median(values: Iterable[float]) -> float:
    """The middle value, the mean of the middle two; nan when there are none."""
    ranked = sorted(values)
    if not ranked:
        return math.nan
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


@dataclass(frozen=True)
class Figure:
    """One measured figure and its bar. `at_most` or `at_least` is the bar; None: no bar, the figure is told only."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """The bar is met; a figure that could not be measured (nan) meets none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.at_least is None or self.value >= self.at_least

    @property
    def wanted(self) -> str:
        """The bar in words."""
        if self.at_most is not None:
            return f"<= {number(self.at_most)} {self.unit}".rstrip()
        return "" if self.at_least is None else f">= {number(self.at_least)} {self.unit}".rstrip()


def number(value: float) -> str:
    """A figure as people read it: three significant digits, thousands with a k."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k" if abs(value) >= 100_000 else f"{value / 1000:.1f}k"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def figures(title: str, rows: Sequence[Figure]) -> Table:
    """Figures beside their bars."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("wanted", justify="right")
    table.add_column("")
    for row in rows:
        verdict = "" if not row.wanted else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.name, f"{number(row.value)} {row.unit}".rstrip(), row.wanted, verdict)
    return table


def plain(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of cells; everything after the first column is set to the right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(number(cell) if isinstance(cell, int | float) else str(cell) for cell in row))
    return table


def console() -> Console:
    """The console of a benchmark: wide enough for its tables when the output is no terminal."""
    made = Console()
    return made if made.is_terminal else Console(width=110)


def save(path: Path, name: str, rows: Sequence[Figure], raw: Any) -> None:
    """Writes everything measured as JSON beside the pictures, for other runs to be compared with."""
    path.mkdir(parents=True, exist_ok=True)
    content = {"figures": [asdict(row) | {"met": row.met} for row in rows], "raw": raw}
    (path / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
