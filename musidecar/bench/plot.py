"""Pictures of measurements. matplotlib is imported when a picture is asked for, and only then: without it the
benchmarks say so and print their tables all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _pyplot() -> Any:
    """matplotlib's pyplot on the file backend, or None when it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as pyplot
    except ImportError:
        return None
    return pyplot


def histograms(path: Path, title: str, unit: str, series: Mapping[str, Sequence[float]],
               bars: Mapping[str, float]) -> str:
    """One panel a series, on a logarithmic axis, with p50, p99 and the wanted p50 (`bars`) as lines. Returns a line
    for the user: where the picture is, or why there is none."""
    pyplot = _pyplot()
    if pyplot is None:
        return "no picture: matplotlib is not installed"
    from musidecar.bench.table import percentile

    figure, axes = pyplot.subplots(len(series), 1, figsize=(8, 2.6 * len(series)), squeeze=False)
    for axis, (name, values) in zip(axes[:, 0], series.items(), strict=True):
        low, high = max(min(values), 1e-3) * 0.8, max(max(values), 2e-3) * 1.25
        edges = [low * (high / low) ** (i / 40) for i in range(41)]
        axis.hist(values, bins=edges, color="#4c78a8")
        axis.set_xscale("log")
        for share, colour in ((0.5, "#222222"), (0.99, "#888888")):
            at = percentile(values, share)
            axis.axvline(at, color=colour, linewidth=1.2, label=f"p{share * 100:.0f} {at:.3g} {unit}")
        if name in bars:
            axis.axvline(bars[name], color="#e45756", linestyle="--", label=f"wanted p50 {bars[name]:g} {unit}")
        axis.set_title(f"{name}  (n = {len(values)})", loc="left", fontsize=10)
        axis.set_xlabel(unit)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    return _finish(pyplot, figure, path)


def grouped_bars(path: Path, title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float]],
                 spread: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One group of bars a shape of load, one bar a contestant, whiskers from the lowest to the highest round."""
    pyplot = _pyplot()
    if pyplot is None:
        return "no picture: matplotlib is not installed"
    figure, axis = pyplot.subplots(figsize=(10, 4.5))
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        at = [g + i * width for g in range(len(groups))]
        below = [max(v - low, 0) for v, (low, _) in zip(values, spread[name], strict=True)]
        above = [max(high - v, 0) for v, (_, high) in zip(values, spread[name], strict=True)]
        axis.bar(at, values, width, label=name, yerr=[below, above], capsize=2)
    axis.set_yscale("log")
    axis.set_xticks([g + 0.4 - width / 2 for g in range(len(groups))], groups)
    axis.set_ylabel(unit)
    axis.set_title(title, loc="left")
    axis.legend(fontsize=8, ncols=3)
    return _finish(pyplot, figure, path)


def _finish(pyplot: Any, figure: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"picture: {path}"
