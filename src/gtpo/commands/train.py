"""`gtpo train`: train a model with GTPO or GRPO on a file of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from trl import ModelConfig

from gtpo._text import say
from gtpo.commands.arguments import ColumnArguments, CommandLine
from gtpo.commands.model_options import (
    adapter_config,
    load_model,
    load_tokenizer,
    take_model_options,
    unlike_training,
)
from gtpo.errors import ConfigError
from gtpo.rollout import PythonTool, build_engine
from gtpo.scoring import make_scorer
from gtpo.tasks.sources import problems_from, verifiable
from gtpo.training.config import GTPOConfig
from gtpo.training.run import train
from gtpo.training.start import ResumeArguments, held


@dataclass
class ProblemArguments(ColumnArguments, ResumeArguments):
    """Data."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training problems: a file (.jsonl, .parquet), hub:OWNER/NAME, reasoning-gym:NAME, or a mixture "
            "(.yaml)."
        },
    )
    max_problems: int | None = field(
        default=None, metadata={"help": "Number of problems to use, starting with the first; by default all."}
    )


COMMAND_LINE = CommandLine(
    "gtpo train",
    "Train a model to reason with tools, with GTPO (or with GRPO, for comparison).",
    (ProblemArguments, GTPOConfig, ModelConfig),
    usage="--model MODEL --train_file PROBLEMS [--run_dir FOLDER] [--config FILE.yaml] [--OPTION VALUE ...]",
)


def arguments(argv: Sequence[str]) -> tuple[ProblemArguments, GTPOConfig, ModelConfig]:
    """The parsed options.

    Raises:
        ConfigError: an option is unknown or its value can't be used.
    """
    problem_args, args, model_args = COMMAND_LINE.parse(argv)
    return problem_args, args, model_args


def main(argv: Sequence[str]) -> int:
    """Parse, check everything that can be checked without training, then train."""
    problem_args, args, model_args = arguments(argv)
    environments = args.make_environments()
    own = environments.problems()[: problem_args.max_problems] if environments else []
    if problem_args.train_file is None and not own:
        raise ConfigError(
            "no problems: give --train_file, such as a JSON Lines file (or run `gtpo demo`, which needs none)"
        )
    verifier = make_scorer(args).verifier
    if problem_args.train_file is not None:
        own = problems_from(
            problem_args.train_file,
            limit=problem_args.max_problems,
            columns=problem_args.row_columns(),
            answers=verifier is not None,
        )
    problems = verifiable(own, verifier, say)
    tokenizer = load_tokenizer(model_args, trust_remote_code=args.trust_remote_code)
    provenance = {"problems": asdict(problem_args), "model": asdict(model_args)}
    model_options = take_model_options(args)
    with held(args, problem_args, provenance):
        engine = build_engine(args, tokenizer)
        is_main = args.process_index == 0
        if is_main:
            python = engine.tools.get("python")
            level = f", sandbox: {python.sandbox.level().sentence}" if isinstance(python, PythonTool) else ""
            say(f"{len(problems)} problems{level}")
            say(f"tool format: {engine.encoder.choice}")
            if unlike := unlike_training(model_args.model_name_or_path, args):
                say(unlike)
        model = load_model(model_args, training=True, trust_remote_code=args.trust_remote_code, more=model_options)
        result = train(
            model,
            tokenizer,
            problems,
            args,
            resume=problem_args.choice,
            resume_with_changes=problem_args.resume_with_changes,
            provenance=provenance,
            label=args.algorithm,
            engine=engine,
            verifier=verifier,
            peft_config=adapter_config(model_args, model),
        )
    if is_main:
        say(f"{result.steps} steps; model in {result.model_dir}, metrics and rollouts in {result.run_dir}")
    return 0
