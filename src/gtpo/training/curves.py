"""Learning curves from a run's metrics.jsonl, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gtpo.run_directory import read_metrics

PANELS = (("pass_rate", "pass rate"), ("invalid_calls", "invalid calls per rollout"), ("turns", "turns per rollout"))


def learning_curve(runs: Mapping[str, str | Path], path: str | Path, *, title: str = "") -> None:
    """Draw pass rate, invalid calls and turns over steps.

    Args:
        runs: run directories by label; runs whose labels have the same prefix before " " share a colour.
        path: the PNG file to write.
        title: title of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    colours: dict[str, str] = {}
    for label, run_dir in runs.items():
        family = label.split(" ")[0]
        first = family not in colours
        colour = colours.setdefault(family, f"C{len(colours)}")
        metrics = read_metrics(run_dir)
        for axis, (name, _) in zip(axes, PANELS, strict=True):
            points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
            axis.plot(*zip(*points, strict=True), color=colour, lw=1.4, alpha=0.85, label=family if first else None)
    for axis, (_, name) in zip(axes, PANELS, strict=True):
        axis.set(xlabel="step", ylabel=name, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1)
    if len(colours) > 1:
        axes[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
