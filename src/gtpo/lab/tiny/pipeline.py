"""The whole pipeline on a tiny model: cold start, evaluation, GTPO, evaluation, summary and picture."""

from __future__ import annotations

import json
import resource
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from gtpo._files import write_text
from gtpo.errors import ConfigError
from gtpo.evaluation import EvalResult, evaluate, protocol_of
from gtpo.evaluation.progress import progress_bar
from gtpo.lab.tiny.families import get_family
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import RolloutEngine, build_engine
from gtpo.rollout.backends import TransformersBackend
from gtpo.run_directory import CONFIG
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import get_verifier
from gtpo.traces.mixed import Behaviour, Family, mixed_traces
from gtpo.training.cold_start import ColdStartConfig, cold_start
from gtpo.training.config import GTPOConfig
from gtpo.training.curves import learning_curve
from gtpo.training.run import train
from gtpo.training.start import ResumeArguments, check_startable

MAX_LENGTH = 128
"""Maximum length of a cold-start trace in tokens; longer ones are left out."""
_COLD_START = "cold-start"
_COLD_START_SEED, _TRAIN_SEED, _EVAL_SEED, _SELECTION_SEED = 1, 2, 3, 4
"""Seed of the problems. The run's own seed decides the model's weights, the order of the data and the sampling."""


@dataclass
class TinyArguments(ResumeArguments):
    """The demo."""

    family: str = field(
        default="steps",
        metadata={
            "help": "Kind of problems: steps (computations), programs (functions from examples), hops (look-ups), "
            "flaky (look-ups that sometimes fail) or desks (look-ups that say how to fix a wrong call)."
        },
    )
    problem_steps: int | None = field(
        default=None,
        metadata={
            "help": "Number of tool calls that each problem needs, at least 1 (not for programs); by default a mixture."
        },
    )
    max_trace_tokens: int = field(
        default=MAX_LENGTH,
        metadata={"help": "Maximum length of a cold-start trace, in tokens; longer traces are left out."},
    )
    prepare_only: bool = field(
        default=False,
        metadata={"help": "Stop after the cold start; its model and the problems are then files in run_dir."},
    )
    cold_start_traces: int = field(default=8192, metadata={"help": "Number of traces for the cold start."})
    cold_start_steps: int = field(
        default=900, metadata={"help": "Optimiser steps of the cold start, of 32 traces each."}
    )
    train_problems: int = field(default=2048, metadata={"help": "Number of training problems."})
    eval_problems: int = field(
        default=256, metadata={"help": "Number of held-out problems, evaluated before and after training."}
    )
    malformed: float = field(
        default=0.2, metadata={"help": "Probability that a step of a trace starts with a malformed call, in [0, 1]."}
    )
    wrong: float = field(
        default=0.12, metadata={"help": "Probability that a step of a trace uses a wrong operator, in [0, 1]."}
    )
    guess: float = field(
        default=0.12, metadata={"help": "Probability that a trace gives up at a step and guesses, in [0, 1]."}
    )


def run_tiny(tiny: TinyArguments, args: GTPOConfig) -> dict[str, Any]:
    """Run all stages and write `summary.json` and `learning_curve.png` into the run's directory.

    With `tiny.resume`, finished stages are read from the run's directory, and the others are resumed.

    Returns:
        The summary; empty with `tiny.prepare_only`.

    Raises:
        ConfigError: the family is unknown, there are several processes, or another process trains in the directory.
        StoppedError: a signal ended a stage between two steps; `tiny.resume` resumes it.
    """
    if args.world_size > 1:
        raise ConfigError(
            "gtpo demo runs in one process; start it without a launcher (gtpo train supports several processes)"
        )
    start = time.perf_counter()
    run_dir = Path(args.run_dir)
    family = get_family(tiny.family, tiny.problem_steps)
    if args.tools not in (None, "python", family.tools):
        raise ConfigError(f"gtpo demo: the family {family.name!r} has its own tools; omit --tools {args.tools}")
    args.tools = family.tools
    sandbox = args.make_sandbox()
    tokenizer = make_tokenizer(family.phrases)
    engine = build_engine(args, tokenizer, sandbox=sandbox)
    held_out = family.make_problems(tiny.eval_problems, seed=_EVAL_SEED)
    problems = family.make_problems(tiny.train_problems, seed=_TRAIN_SEED, avoid=held_out)
    if tiny.choice is True and not (run_dir / _COLD_START / CONFIG).exists():
        raise ConfigError(f"--resume: no demo was started in {run_dir}; omit --resume (or give --resume auto)")
    _cold_start(tiny, args, family, tokenizer, engine, sandbox)
    files = {"train": problems, "held_out": held_out}
    if tiny.prepare_only:  # problems to choose options by, so that the held-out ones stay unseen
        avoid = [*held_out, *problems]
        files["selection"] = family.make_problems(tiny.eval_problems, seed=_SELECTION_SEED, avoid=avoid)
    _write_problems(run_dir / "problems", files)
    if tiny.prepare_only:
        return {}
    model = AutoModelForCausalLM.from_pretrained(run_dir / _COLD_START / "model")
    before_path = run_dir / "eval" / "before.json"
    if tiny.choice and before_path.exists():
        before = _figures(json.loads(before_path.read_text()))
    else:
        before = _figures(_evaluate("before", model, held_out, args, engine).summary())
    result = train(
        model,
        tokenizer,
        problems,
        args,
        label=args.algorithm,
        engine=engine,
        **_resuming(tiny),
    )
    after = _figures(_evaluate("after", model, held_out, args, engine).summary())
    summary = {
        "before": before,
        "after": after,
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "seed": args.seed,
        "algorithm": args.algorithm,
        "family": family.name,
        "steps": result.steps,
    }
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    learning_curve({args.algorithm: run_dir}, run_dir / "learning_curve.png", title=f"tiny model, {family.about}")
    return summary


def _write_problems(folder: Path, files: dict[str, list[Problem]]) -> None:
    """Write the problems as files that `gtpo train` and `gtpo eval` take."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, problems in files.items():
        rows = ({**problem.fields, **problem.extras} for problem in problems)
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _cold_start(
    tiny: TinyArguments, args: GTPOConfig, family: Family, tokenizer: Any, engine: RolloutEngine, sandbox: Sandbox
) -> None:
    """Train the mixed behaviour from scratch, or resume that training."""
    config = _cold_start_config(tiny, args)
    done = tiny.choice and (Path(config.run_dir) / "model").is_dir()
    if tiny.choice:
        options = {"overwrite": False, "with_changes": tiny.resume_with_changes}
        check_startable(config, config.run_dir, resume="auto", about=_resuming(tiny)["provenance"], **options)
    if done:
        return
    behaviour = Behaviour(tiny.malformed, tiny.wrong, tiny.guess)
    problems = family.make_problems(tiny.cold_start_traces, seed=_COLD_START_SEED)
    traces = mixed_traces(family, problems, sandbox, engine.encoder.format, behaviour, seed=_COLD_START_SEED)
    cold_start(
        make_model(tokenizer, seed=args.seed),
        tokenizer,
        traces,
        config,
        **_resuming(tiny),
    )


def _resuming(tiny: TinyArguments) -> dict[str, Any]:
    """The options with which both trainings resume, and the provenance that they record."""
    return {
        "resume": "auto" if tiny.choice else False,
        "resume_with_changes": tiny.resume_with_changes,
        "provenance": {"demo": asdict(tiny)},
    }


def _cold_start_config(tiny: TinyArguments, args: GTPOConfig) -> ColdStartConfig:
    return ColdStartConfig(
        run_dir=str(Path(args.run_dir) / _COLD_START),
        tool_format=args.tool_format,
        tools=args.tools,
        system_prompt=args.system_prompt,
        overwrite=args.overwrite,
        max_steps=tiny.cold_start_steps,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        max_length=tiny.max_trace_tokens,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )


def _evaluate(name: str, model: Any, problems: list[Problem], args: GTPOConfig, engine: RolloutEngine) -> EvalResult:
    backend = TransformersBackend(model, batch_size=args.max_concurrency or 64)
    verifier = get_verifier(args.verifier)
    enabled = not args.disable_tqdm
    with closing(verifier), progress_bar(len(problems), f"evaluation {name}", enabled=enabled) as progress:
        result = evaluate(
            problems,
            engine,
            backend,
            verifier,
            protocol_of(args, engine, problems),
            about={"model": {"name": "tiny"}, "problems_asked": {"sources": ["generated"]}},
            progress=progress,
        )
    result.save(Path(args.run_dir) / "eval" / f"{name}.json")
    return result


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("pass_rate", "invalid_calls_per_rollout", "turns_per_rollout", "calls_per_rollout", "problems")
    return {name: summary[name] for name in names}


def rows(summary: dict[str, Any]) -> list[list[str]]:
    """The summary as a table."""
    found = [["", "before", "after"]]
    for name, label in (
        ("pass_rate", "pass rate, sampled"),
        ("invalid_calls_per_rollout", "invalid calls per rollout"),
        ("calls_per_rollout", "calls per rollout"),
        ("turns_per_rollout", "turns per rollout"),
    ):
        found.append([label, f"{summary['before'][name]:.3f}", f"{summary['after'][name]:.3f}"])
    return found
