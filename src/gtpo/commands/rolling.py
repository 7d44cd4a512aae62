"""What `gtpo eval` and `gtpo collect-traces` share: the options for rolling out problems, and the job they set up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gtpo._files import fingerprint
from gtpo._text import say
from gtpo.commands.arguments import ColumnArguments
from gtpo.commands.backends import BackendArguments, make_backend
from gtpo.commands.model_options import GenerationModelConfig, load_tokenizer, unlike_training
from gtpo.errors import ConfigError, DataError
from gtpo.evaluation import EvalProtocol, EvalResult, evaluate, protocol_of
from gtpo.evaluation.progress import progress_bar
from gtpo.rollout import RolloutConfig, RolloutEngine, build_engine, fitting
from gtpo.rollout.backends.base import Backend
from gtpo.scoring import RewardConfig, Scorer, make_scorer
from gtpo.tasks.benchmarks import BENCHMARKS
from gtpo.tasks.problems import Problem, sample
from gtpo.tasks.sources import problems_from, verifiable


@dataclass
class SamplesArguments(ColumnArguments, RewardConfig, RolloutConfig):
    """Data."""

    problems: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sources of problems: files (.jsonl, .parquet), benchmarks by name (docs/benchmarks.md), "
            "hub:OWNER/NAME?split=test, reasoning-gym:NAME?size=100, or mixtures (.yaml)."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with benchmarks as NAME.jsonl files, read instead of downloading from the Hub."},
    )
    max_problems: int | None = field(
        default=None,
        metadata={"help": "Number of problems to take from each source, as a fixed random sample; by default all."},
    )
    sample_seed: int = field(default=0, metadata={"help": "Seed of the random sample drawn by max_problems."})
    samples: int | None = field(
        default=None,
        metadata={"help": "Number of rollouts per problem; by default the benchmark's usual number, else 1."},
    )
    seed: int = field(default=0, metadata={"help": "Seed for token sampling."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rewards()


@dataclass(frozen=True)
class Job:
    """A set of rollouts that is ready to run."""

    problems: list[Problem]
    engine: RolloutEngine
    backend: Backend
    scorer: Scorer
    protocol: EvalProtocol
    about: dict[str, Any]
    max_concurrency: int | None = None

    def run(self, journal: Path | None, label: str) -> EvalResult:
        """Generate and verify the rollouts, with a progress display. Samples in the journal are not generated again."""
        try:
            with progress_bar(len(self.problems) * self.protocol.samples, label) as progress:
                return evaluate(
                    self.problems,
                    self.engine,
                    self.backend,
                    self.scorer,
                    self.protocol,
                    about=self.about,
                    max_concurrency=self.max_concurrency,
                    journal=journal,
                    progress=progress,
                )
        finally:
            self.scorer.close()


def load_problems_of(args: SamplesArguments, *, answers: bool = True) -> list[Problem]:
    """The problems of all sources; each problem has its source in its extras, as `from`.

    Args:
        args: the options that name the sources.
        answers: whether each row must have an answer.

    Raises:
        ConfigError: no source is given, or a source does not exist.
        DataError: a source can't be used, or two sources have problems with the same id.
    """
    environments = args.make_environments()
    brought = environments.problems() if environments and not args.problems else []
    if not args.problems and not brought:
        raise ConfigError("no problems: give --problems, a file or a benchmark such as gsm8k")
    found: list[Problem] = []
    columns = args.row_columns()
    for source in args.problems or [str(args.environment)]:
        problems = brought or problems_from(source, data_dir=args.data_dir, columns=columns, answers=answers)
        if args.max_problems is not None and args.max_problems < len(problems):
            problems = sample(problems, args.max_problems, args.sample_seed)
        found += [replace(problem, extras={**problem.extras, "from": source}) for problem in problems]
    ids = {problem.id for problem in found}
    if len(ids) < len(found):
        raise DataError("two of the sources have problems with the same id; evaluate these sources separately")
    return found


def samples_of(args: SamplesArguments) -> int:
    """Rollouts per problem: the option's value, or the usual number of all given benchmarks; 1 for other sources."""
    if args.samples is not None:
        if args.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {args.samples}")
        return args.samples
    reported = {BENCHMARKS[name].samples if name in BENCHMARKS else 1 for name in args.problems} or {1}
    if len(reported) > 1:
        raise ConfigError(
            f"{', '.join(args.problems)}: the usual number of samples per problem differs between these; give --samples"
        )
    return reported.pop()


def prepare(args: SamplesArguments, backend_args: BackendArguments, model_args: GenerationModelConfig) -> Job:
    """Check everything, then load the model."""
    samples = samples_of(args)
    scorer = make_scorer(args)
    scorer.check_functions()
    problems = load_problems_of(args, answers=scorer.verifier is not None)
    problems = verifiable(problems, scorer.verifier, say)
    tokenizer = load_tokenizer(model_args, trust_remote_code=model_args.trust_remote_code)
    engine = build_engine(args, tokenizer)
    say(f"tool format: {engine.encoder.choice}")
    if unlike := unlike_training(model_args.model_name_or_path, args):
        say(unlike)
    about = {
        "model": {"name": model_args.model_name_or_path, "revision": model_args.model_revision}
        | {"dtype": str(model_args.dtype or "auto"), "weights": fingerprint(model_args.model_name_or_path or "")},
        "tool_format": engine.encoder.choice,
        "backend": {name: value for name, value in asdict(backend_args).items() if name != "api_key_variable"},
        "problems_asked": {
            "sources": args.problems,
            "max_problems": args.max_problems,
            "sample_seed": args.sample_seed,
            "sha256": _hash_of([[p.id, p.question, p.answer] for p in problems]),
        },
    }
    backend = make_backend(backend_args, args, model_args, tokenizer)
    problems = fitting(problems, engine, engine.max_context(backend), say)
    say(f"{len(problems)} problems, {samples} {'sample' if samples == 1 else 'samples'} each")
    rewards = args.recorded_rewards()
    protocol = protocol_of(args, engine, problems, samples=samples, seed=args.seed, rewards=rewards)
    concurrency = args.max_concurrency or backend_args.max_concurrency
    return Job(problems, engine, backend, scorer, protocol, about, concurrency)


def _hash_of(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
