"""`gtpo make-traces`: make cold-start traces from worked solutions with calculator annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gtpo._text import say
from gtpo.commands.arguments import ColumnArguments, CommandLine
from gtpo.errors import ConfigError, DataError
from gtpo.models import load_tokenizer
from gtpo.rollout import FORMATS, PromptConfig, SandboxConfig, ToolFormat, build_encoder, get_format
from gtpo.tasks.sources import problems_from
from gtpo.tasks.worked_solutions import parse_solutions
from gtpo.traces.from_solutions import traces_from_solutions


@dataclass
class ConvertArguments(ColumnArguments, SandboxConfig):
    """How solutions become traces."""

    solutions: str | None = field(
        default=None,
        metadata={
            "help": "Problems with worked solutions annotated as in GSM8K (<<48/2=24>>, #### 72), in a field named "
            "solution or in GSM8K's answer: a file (.jsonl, .parquet), hub:openai/gsm8k?config=main, or another source "
            "that gtpo train takes."
        },
    )
    output: str = field(default="traces.jsonl", metadata={"help": "JSON Lines file to write the traces to."})
    max_solutions: int | None = field(
        default=None, metadata={"help": "Number of solutions to use, starting with the first; by default all."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Local folder or Hub id of the model to be trained; only its tokenizer is loaded."},
    )
    tool_format: str = field(
        default="auto",
        metadata={"help": "Syntax of tool calls, as in gtpo train; fenced and tool_call need no --model."},
    )
    turns_share: float = field(
        default=0.5,
        metadata={"help": "Fraction of traces with one call per step, in [0, 1]; the others make a single call."},
    )
    seed: int = field(default=0, metadata={"help": "Seed for choosing the solutions that get one call per step."})


COMMAND_LINE = CommandLine(
    "gtpo make-traces",
    "Make cold-start traces from worked solutions; each call is executed to get its result.",
    (ConvertArguments,),
    usage="--solutions FILE.jsonl [--output FILE.jsonl] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, convert, save, and print what was left out."""
    (args,) = COMMAND_LINE.parse(argv)
    if args.solutions is None:
        raise ConfigError("nothing to convert: give --solutions, such as FILE.jsonl or hub:openai/gsm8k?config=main")
    parsed = parse_solutions(problems_from(args.solutions, limit=args.max_solutions, columns=args.row_columns()))
    traces = traces_from_solutions(
        parsed.solutions,
        args.make_sandbox(),
        _format(args),
        turns_share=args.turns_share,
        seed=args.seed,
    )
    reasons = {reason.value: count for reason, count in parsed.skipped_by_reason.items()} | dict(traces.dropped)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
    if not traces.traces:
        raise DataError(
            f"no solution could be turned into a trace ({left_out}): worked solutions need <<48/2=24>> at each "
            "calculation and #### 72 at their end, in `solution` or --columns solution=COLUMN",
            path=args.solutions,
        )
    traces.save(args.output)
    say(f"{len(traces.traces)} traces in {args.output}; left out: {left_out}")
    return 0


def _format(args: ConvertArguments) -> ToolFormat:
    """How the model writes turns and calls.

    Raises:
        ConfigError: the format depends on the model, and no model was given.
    """
    if args.model_name_or_path is None and args.tool_format in FORMATS:
        return get_format(args.tool_format)
    if args.model_name_or_path is None:
        raise ConfigError(
            f"--tool_format {args.tool_format} depends on the model: give --model, or one of {', '.join(FORMATS)}"
        )
    config = PromptConfig(tool_format=args.tool_format)
    encoder = build_encoder(config, load_tokenizer(args.model_name_or_path), config.specs())
    say(f"tool format: {encoder.choice}")
    return encoder.format
