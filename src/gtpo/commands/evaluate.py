"""`gtpo eval`: evaluate a model on problems, with its tools, in the same rollout loop as training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gtpo._lock import locked
from gtpo._terminal import show_table
from gtpo._text import say, show
from gtpo.commands.arguments import CommandLine
from gtpo.commands.backends import BackendArguments
from gtpo.commands.model_options import GenerationModelConfig
from gtpo.commands.rolling import SamplesArguments, prepare
from gtpo.errors import ConfigError
from gtpo.evaluation import EvalResult, Figures
from gtpo.evaluation.statistics import Mean


@dataclass
class EvalArguments(SamplesArguments):
    """Output."""

    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file for the figures and samples. A stopped evaluation can be resumed only if this is given."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})


COMMAND_LINE = CommandLine(
    "gtpo eval",
    "Evaluate a model on problems, with its tools: avg@n, pass@k and maj@k with 95 % intervals.",
    (EvalArguments, BackendArguments, GenerationModelConfig),
    usage="--model MODEL --problems SOURCE [SOURCE ...] [--output FILE.json] [--OPTION VALUE ...]",
)


def arguments(argv: Sequence[str]) -> tuple[EvalArguments, BackendArguments, GenerationModelConfig]:
    """The parsed options.

    Raises:
        ConfigError: an option is unknown or its value can't be used.
    """
    args, backend, model = COMMAND_LINE.parse(argv)
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
        raise ConfigError(f"{output} exists: give another --output, or --overwrite true")
    journal = output.with_name(f"{output.name}.samples.jsonl") if output else None
    result = prepare(args, backend, model).run(journal, "eval")
    if output and journal:
        result.save(output)
        journal.unlink(missing_ok=True)  # its folder may have been deleted in the meantime
        say(f"written to {output}")
    show_table(rows(result))
    for name, mean in result.figures.rewards.items():
        say(f"{name}: {_mean(mean)}")
    reasons = ", ".join(f"{name} {share:.3f}" for name, share in result.figures.stop_reasons.items())
    say(f"ended by: {reasons}")
    show(json.dumps(result.summary(), indent=1))
    return 0


def rows(result: EvalResult) -> list[list[str]]:
    """The figures as a table: one line per source and per domain if there are several, and one over all problems."""
    parts: dict[str, Figures] = {}
    for groups in (result.sources, result.domains):
        parts |= groups if len(groups) > 1 else {}
    parts["all"] = result.figures
    names = list(dict.fromkeys(name for figures in parts.values() for name in figures.scores))
    found = [["", "problems", *names, "turns", "calls", "invalid", "tokens"]]
    for name, figures in parts.items():
        scores = [figures.scores.get(score) for score in names]
        shown = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "" for e in scores]
        means = (figures.turns_per_rollout, figures.calls_per_rollout, figures.invalid_calls_per_rollout)
        tokens = f"{figures.sampled_tokens_per_rollout:.0f}"
        found.append([name, str(figures.problems), *shown, *(f"{mean:.2f}" for mean in means), tokens])
    return found


def _mean(mean: Mean) -> str:
    interval = "" if mean.low is None or mean.high is None else f" [{mean.low:.4g}, {mean.high:.4g}]"
    return f"{mean.value:.4g}{interval}"
