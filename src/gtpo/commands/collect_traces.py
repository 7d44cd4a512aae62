"""`gtpo collect-traces`: cold-start traces from those of a model's own rollouts that passed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtpo._files import write_text
from gtpo._text import say
from gtpo.commands.arguments import CommandLine
from gtpo.commands.backends import BackendArguments
from gtpo.commands.model_options import GenerationModelConfig
from gtpo.commands.rolling import SamplesArguments, prepare
from gtpo.errors import ConfigError
from gtpo.traces.from_rollouts import check_choice, traces_of


@dataclass
class CollectArguments(SamplesArguments):
    """Which rollouts become traces."""

    output: str = field(
        default="traces.jsonl", metadata={"help": "JSON Lines file to write the traces to, for gtpo sft."}
    )
    per_problem: int = field(default=1, metadata={"help": "Maximum number of traces per problem."})
    prefer: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Which rollouts of a problem to prefer, most important criterion first: turns (more turns), "
            "repaired (a call failed and a later one succeeded), short (fewer tokens)."
        },
    )
    max_invalid_calls: int = field(
        default=0, metadata={"help": "Maximum number of invalid calls per rollout; rollouts with more are left out."}
    )


COMMAND_LINE = CommandLine(
    "gtpo collect-traces",
    "Roll out problems and keep the rollouts that pass, as traces for gtpo sft.",
    (CollectArguments, BackendArguments, GenerationModelConfig),
    usage="--model MODEL --problems SOURCE [SOURCE ...] [--output FILE.jsonl] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, roll out, choose, write."""
    args, backend_args, model_args = COMMAND_LINE.parse(argv)
    output = Path(args.output)
    if output.exists():
        raise ConfigError(f"{output} exists: give another --output, or delete it")
    check_choice(**_choice(args))
    job = prepare(args, backend_args, model_args)
    journal = output.with_name(f"{output.name}.samples.jsonl")
    result = job.run(journal, "collect")
    found = traces_of(result.samples, job.problems, job.engine.prompts, **_choice(args))
    write_text(output, "".join(json.dumps(trace) + "\n" for trace in found.traces))
    journal.unlink(missing_ok=True)
    left_out = ", ".join(f"{count} {why}" for why, count in found.left_out.items()) or "none"
    say(f"{len(found.traces)} traces in {output}; rollouts left out: {left_out}")
    return 0


def _choice(args: CollectArguments) -> dict[str, Any]:
    return {
        "per_problem": args.per_problem,
        "prefer": tuple(args.prefer),
        "max_invalid_calls": args.max_invalid_calls,
    }
