"""`gtpo eval`: figures of a model over problems, with its tools, with the same loop as training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gtpo._lock import locked
from gtpo._text import say, show
from gtpo.commands.arguments import GenerationModelConfig, parse
from gtpo.commands.backends import BackendArguments
from gtpo.commands.rolling import SamplesArguments, prepare
from gtpo.errors import ConfigError
from gtpo.evaluation import EvalResult, Figures
from gtpo.evaluation.statistics import Mean


@dataclass
class EvalArguments(SamplesArguments):
    """What becomes of the figures."""

    output: str | None = field(
        default=None,
        metadata={"help": "Write everything to this JSON file. Only with it can an evaluation go on after a kill."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the file, if it is there."})


def arguments(argv: Sequence[str]) -> tuple[EvalArguments, BackendArguments, GenerationModelConfig]:
    """The options.

    Raises:
        ConfigError: one is unknown or can't be used.
    """
    args, backend, model = parse(
        (EvalArguments, BackendArguments, GenerationModelConfig),
        argv,
        prog="gtpo eval",
        about="Evaluate a model on problems, with its tools: avg@n, pass@k, maj@k with 95 % intervals.",
    )
    return args, backend, model


def main(argv: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    args, backend, model = arguments(argv)
    output = Path(args.output) if args.output else None
    if output is None:
        return _evaluate(args, backend, model, None)
    with locked(output.with_name(f".{output.name}.lock"), what=f"the output {output}", mend="give another --output"):
        return _evaluate(args, backend, model, output)


def _evaluate(args: EvalArguments, backend: BackendArguments, model: GenerationModelConfig, output: Path | None) -> int:
    if output and output.exists() and not args.overwrite:
        raise ConfigError(f"{output} is there already: give another --output, or --overwrite true")
    journal = output.with_name(f"{output.name}.samples.jsonl") if output else None
    result = prepare(args, backend, model).run(journal, "eval")
    if output and journal:
        result.save(output)
        journal.unlink(missing_ok=True)  # its folder may have been deleted in the meantime
        say(f"written to {output}")
    say(table(result))
    show(json.dumps(result.summary(), indent=1))
    return 0


def table(result: EvalResult) -> str:
    """The figures for people: a line a domain, and one in all."""
    parts: dict[str, Figures] = {}
    for groups in (result.sources, result.domains):
        parts |= groups if len(groups) > 1 else {}
    parts["all"] = result.figures
    names = list(dict.fromkeys(name for figures in parts.values() for name in figures.scores))
    rows = [["", "problems", *names, "turns", "calls", "invalid", "tokens"]]
    for name, figures in parts.items():
        scores = [figures.scores.get(score) for score in names]
        shown = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "" for e in scores]
        means = (figures.turns_per_rollout, figures.calls_per_rollout, figures.invalid_calls_per_rollout)
        tokens = f"{figures.sampled_tokens_per_rollout:.0f}"
        rows.append([name, str(figures.problems), *shown, *(f"{mean:.2f}" for mean in means), tokens])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{name}: {_mean(mean)}" for name, mean in result.figures.rewards.items()]
    reasons = ", ".join(f"{name} {share:.3f}" for name, share in result.figures.stop_reasons.items())
    return "\n".join([*lines, f"ended by: {reasons}"])


def _mean(mean: Mean) -> str:
    interval = "" if mean.low is None or mean.high is None else f" [{mean.low:.4g}, {mean.high:.4g}]"
    return f"{mean.value:.4g}{interval}"
