"""One GTPO run from problems to a trained model: what `gtpo train` does, callable from Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainingArguments

from gtpo.errors import ConfigError
from gtpo.rollout import RolloutEngine, build_engine, fitting
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.model_card import write_model_card
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder, check_vacant
from gtpo.training.trainer import GTPOTrainer
from gtpo.training.trl_compat import longest_context, save_policy


class MetricsCallback(TrainerCallback):
    """Appends what the trainer logs to metrics.jsonl."""

    def __init__(self, recorder: RunRecorder):
        self.recorder = recorder

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line; the trainer's closing summary of the whole run is left out."""
        if logs and state.is_world_process_zero and "train_runtime" not in logs:
            self.recorder.append_metrics({"step": state.global_step, **logs})


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        run_dir: the run's directory.
        model_dir: the trained model and its tokenizer.
        steps: optimizer steps done in all.
    """

    run_dir: Path
    model_dir: Path
    steps: int


def train(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    args: GTPOConfig,
    *,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    label: str = "gtpo",
    engine: RolloutEngine | None = None,
    sandbox: Sandbox | None = None,
    callbacks: Sequence[Any] | None = None,
    **trainer_options: Any,
) -> TrainResult:
    """Train, record and save.

    Args:
        model: a model, or a folder or Hub id.
        tokenizer: with a chat template.
        problems: training problems.
        args: settings; `args.run_dir` is where everything goes.
        resume: go on from the last checkpoint of the run's directory.
        provenance: further entries of config.yaml, such as the model's name and the problem files.
        label: stands before the progress bar.
        engine: rolls out; by default the one that `args` ask for.
        sandbox: runs the model's code, in the default engine.
        callbacks: of the trainer, besides those that record the run.
        trainer_options: passed on to `GTPOTrainer`.

    Raises:
        ConfigError: `resume` without a checkpoint, or a directory that holds a run already.
        DataError: no problem's prompt fits into the context.
        RecordError: the run's directory can't be written.
        TooManyFailuresError: too many rollouts failed; says where the checkpoint is.
    """
    recorder = RunRecorder(args.run_dir)
    engine = engine or build_engine(args, tokenizer, sandbox=sandbox)
    progress = StepProgress(enabled=not args.disable_tqdm, label=label)
    problems, left_out = fitting(problems, engine, longest_context(model, args))
    if args.process_index == 0:
        for problem_id, why in left_out.items():
            progress.say(f"left out: problem {problem_id}: {why}")
    checkpoint = begin(recorder, args, resume=resume, overwrite=args.overwrite)
    trainer = GTPOTrainer(
        model,
        args=args,
        train_dataset=problem_dataset(problems, engine.prompts),
        processing_class=tokenizer,
        engine=engine,
        recorder=recorder,
        progress=progress,
        callbacks=[MetricsCallback(recorder), *(callbacks or ())],
        **trainer_options,
    )
    if trainer.accelerator.is_main_process:
        recorder.write_config({**(provenance or {}), "tool_format": engine.encoder.choice, "config": args.to_dict()})
    if checkpoint and _step_of(checkpoint) >= args.max_steps > 0:
        trainer._load_from_checkpoint(checkpoint)  # TRL would do one step more before it looks at max_steps
        trainer.state.global_step = _step_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    model_dir = save_policy(trainer, args.run_dir)
    if trainer.accelerator.is_main_process:
        write_model_card(model_dir, args, trainer.accelerator.unwrap_model(trainer.model), trainer.state.log_history)
    return TrainResult(Path(args.run_dir), model_dir, trainer.state.global_step)


def begin_record(trainer: GTPOTrainer, resume: bool | str | None) -> str | None:
    """Make the run's directory ready for a trainer that was made in Python, and record it as `train` does.

    Args:
        trainer: about to train; it gets a recorder of `args.run_dir`.
        resume: TRL's `resume_from_checkpoint`: True for the last checkpoint of the run, or the path of one.

    Returns:
        The checkpoint to resume from, if that is asked for.

    Raises:
        ConfigError: `resume` without a checkpoint, or a directory that holds a run already.
        RecordError: the directory can't be written.
    """
    args = trainer.args
    recorder = RunRecorder(args.run_dir)
    try:
        checkpoint = begin(recorder, args, resume=bool(resume), overwrite=args.overwrite)
    except ConfigError as error:
        raise ConfigError(
            f"{error} In Python: train(resume_from_checkpoint=True), another output_dir, or GTPOConfig(overwrite=True)"
        ) from error
    if isinstance(resume, str | Path):
        checkpoint = str(resume)
        if trainer.accelerator.is_main_process:
            recorder.rewind(_step_of(checkpoint))
    trainer.recorder = recorder
    trainer.add_callback(MetricsCallback(recorder))
    if trainer.accelerator.is_main_process:
        recorder.write_config({"tool_format": trainer.engine.encoder.choice, "config": args.to_dict()})
    return checkpoint


def begin(recorder: RunRecorder, args: TrainingArguments, *, resume: bool, overwrite: bool) -> str | None:
    """Make the run's directory ready; returns the checkpoint to resume from, if that is asked for.

    Every process of the run calls this: the main one does it, and all of them learn what came out or what is wrong.
    """
    found: list[Any] = [None]
    if args.process_index == 0:
        try:
            found = [_make_ready(recorder, args, resume=resume, overwrite=overwrite)]
        except Exception as error:
            found = [error]
    (checkpoint,) = broadcast_object_list(found)
    if isinstance(checkpoint, Exception):
        raise checkpoint
    return cast("str | None", checkpoint)


def check_startable(args: TrainingArguments, run_dir: str | Path, *, resume: bool, overwrite: bool) -> None:
    """What `begin` would refuse, found without touching anything: before weights are loaded.

    Raises:
        ConfigError: `resume` without a checkpoint, or a directory that holds a run already.
    """
    if resume:
        _last_whole(args)
    elif not overwrite:
        check_vacant(run_dir)


def _make_ready(recorder: RunRecorder, args: TrainingArguments, *, resume: bool, overwrite: bool) -> str | None:
    check_startable(args, recorder.run_dir, resume=resume, overwrite=overwrite)
    if not resume:
        recorder.start_afresh()
        return None
    checkpoint = last_checkpoint(args)
    recorder.rewind(_step_of(checkpoint))
    return checkpoint


def last_checkpoint(args: TrainingArguments) -> str:
    """The newest whole checkpoint of the run. Newer ones that a kill left unfinished are deleted.

    Raises:
        ConfigError: there is none.
    """
    newest = _last_whole(args)
    for path in Path(args.output_dir or "").glob("checkpoint-*"):
        if _step_of(path) > _step_of(newest):
            shutil.rmtree(path, ignore_errors=True)
    return str(newest)


def _last_whole(args: TrainingArguments) -> Path:
    found = whole_checkpoints(args.output_dir or "")
    if not found:
        raise ConfigError(f"--resume: no checkpoint in {args.output_dir}; leave it out to start the run afresh")
    return found[-1]


def whole_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints that were written to their end, the newest last. `trainer_state.json` is written last of all."""
    found = []
    for state in Path(folder).glob("checkpoint-*/trainer_state.json"):
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append(state.parent)
    return sorted(found, key=_step_of)


def _step_of(checkpoint: str | Path) -> int:
    return int(str(checkpoint).rsplit("-", 1)[1])
