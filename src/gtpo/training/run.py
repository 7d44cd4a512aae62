"""One GTPO run from problems to a trained model: what `gtpo train` does, callable from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gtpo._signals import stop_signals
from gtpo.errors import ConfigError
from gtpo.rollout import RolloutEngine, build_engine, fitting
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.training.checkpoints import newest_whole
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.durable import DurabilityCallback
from gtpo.training.identity import adapter_id, model_id, problems_id, settings_of
from gtpo.training.model_card import write_model_card
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.start import Resume, Start, begin
from gtpo.training.trainer import GTPOTrainer
from gtpo.training.trl_compat import longest_context, save_policy


class MetricsCallback(TrainerCallback):
    """Appends the trainer's logs to metrics.jsonl."""

    def __init__(self, recorder: RunRecorder):
        self.recorder = recorder

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line; the trainer's closing summary of the whole run is left out."""
        if logs and state.is_world_process_zero and "train_runtime" not in logs:
            self.recorder.append_metrics({"step": state.global_step, **logs})


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        run_dir: the run's directory.
        model_dir: the folder of the trained model and its tokenizer.
        steps: total number of optimizer steps done.
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
    resume: Resume = False,
    resume_with_changes: bool = False,
    provenance: Mapping[str, Any] | None = None,
    label: str = "gtpo",
    engine: RolloutEngine | None = None,
    sandbox: Sandbox | None = None,
    callbacks: Sequence[Any] | None = None,
    **trainer_options: Any,
) -> TrainResult:
    """Train, record and save.

    In the main thread, SIGTERM, SIGUSR1 and SIGHUP end the run after the current step, with a checkpoint; a second
    signal ends the process at once.

    Args:
        model: a model, or a folder or Hub id.
        tokenizer: a tokenizer with a chat template.
        problems: training problems.
        args: settings; everything is written to `args.run_dir`.
        resume: resume from the newest whole checkpoint of the run's directory; "auto": if there is one, else start.
        resume_with_changes: resume although settings, problems or model differ from those that the run started with.
        provenance: further entries of config.yaml, such as the model's name and the problem files.
        label: text before the progress bar.
        engine: generates rollouts; by default the one that `args` describe.
        sandbox: runs the model's code, in the default engine.
        callbacks: callbacks of the trainer, besides those that record the run.
        trainer_options: passed on to `GTPOTrainer`.

    Raises:
        ConfigError: `resume` without a checkpoint or with another run's, the directory already holds a run, or another
            process trains in it.
        DataError: no problem's prompt fits into the context.
        ModelError: logits, loss, gradient or weights are not finite; names the checkpoint to resume from.
        RecordError: the run's directory can't be written.
        StoppedError: a signal ended the run before its last step; it can be resumed.
        TooManyFailuresError: too many rollouts failed; says where the checkpoint is.
    """
    engine = engine or build_engine(args, tokenizer, sandbox=sandbox)
    progress = StepProgress(enabled=not args.disable_tqdm, label=label)
    say = progress.say if args.process_index == 0 else lambda text: None
    problems = fitting(problems, engine, longest_context(model, args), say)
    identity = {"problems": problems_id(problems), **identity_of(model, args, trainer_options)}
    about = {**(provenance or {}), "identity": identity}
    with recorded_run(args, about, progress, resume=resume, with_changes=resume_with_changes) as run:
        trainer = GTPOTrainer(
            model,
            args=args,
            train_dataset=problem_dataset(problems, engine.prompts),
            processing_class=tokenizer,
            engine=engine,
            recorder=run.recorder,
            progress=progress,
            callbacks=[*run.callbacks, *(callbacks or ())],
            **trainer_options,
        )
        run.complete(trainer, {"tool_format": engine.encoder.choice})
        model_dir = save_policy(trainer, args.run_dir)
        if trainer.accelerator.is_main_process:
            write_model_card(
                model_dir, args, trainer.accelerator.unwrap_model(trainer.model), trainer.state.log_history
            )
        return TrainResult(Path(args.run_dir), model_dir, trainer.state.global_step)


def train_recorded(trainer: GTPOTrainer, resume: bool | str | Path | None, *, with_changes: bool) -> Any:
    """Train in the run's directory, with recording, lock and signal handling as in `train`.

    For a trainer that was created in Python; see `GTPOTrainer.train`.

    Raises:
        ConfigError: see `begin`; or `resume` is the path of a checkpoint that is not the newest whole one.
        RecordError: the directory can't be written.
        StoppedError: a signal ended the run before its last step; it can be resumed from a checkpoint.
    """
    args = trainer.args
    newest = newest_whole(args.output_dir or "")
    if isinstance(resume, str | Path) and (newest is None or newest.resolve() != Path(resume).resolve()):
        raise ConfigError(
            f"resume_from_checkpoint {str(resume)!r} is not the newest whole checkpoint of the run ({newest}): give "
            "True, which takes that one, or delete the newer ones"
        )
    about = {"identity": {"processes": args.world_size}}
    with ExitStack() as stack:
        try:
            run = stack.enter_context(
                recorded_run(args, about, trainer.progress, resume=bool(resume), with_changes=with_changes)
            )
        except ConfigError as error:
            raise ConfigError(
                f"{error}. In Python: train(resume_from_checkpoint=True, resume_with_changes=True), another "
                "output_dir, or GTPOConfig(overwrite=True)"
            ) from error
        trainer.recorder = run.recorder
        for callback in run.callbacks:
            trainer.add_callback(callback)
        choice = getattr(trainer.engine.encoder, "choice", None)  # an engine of the user's own may have no encoder
        return run.complete(trainer, {"tool_format": choice})


@dataclass(frozen=True)
class RecordedRun:
    """A run in its directory, which no other trainer writes into.

    Attributes:
        args: settings.
        settings: the settings as they were given; TRL changes some.
        about: further entries of config.yaml.
        recorder: writes the directory.
        start: where the run begins.
        durability: ends the run after the current step if a signal has come.
    """

    args: Any
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    recorder: RunRecorder
    start: Start
    durability: DurabilityCallback

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks with which the trainer is recorded and stopped."""
        return [MetricsCallback(self.recorder), self.durability]

    def complete(self, trainer: Any, found: Mapping[str, Any]) -> Any:
        """Write config.yaml, then train to the end; returns what the trainer's `train` returns.

        Args:
            trainer: a `DurableTrainer`, with `callbacks`.
            found: further entries of config.yaml that are known only now.

        Raises:
            StoppedError: a signal ended the run before its last step.
        """
        self.durability.trainer = trainer
        trainer.check_place = self.recorder.check_place
        if trainer.accelerator.is_main_process:
            changes = {"changes": list(self.start.changes)} if self.start.changes else {}
            self.recorder.write_config({**self.about, **found, **changes, "config": self.settings})
        self.durability.check_requested(self.args)
        output = trainer.go_on(self.start.checkpoint)
        self.durability.check_stopped(self.args, trainer.state)
        self.recorder.check_place()
        return output


@contextmanager
def recorded_run(
    args: Any, about: Mapping[str, Any], progress: StepProgress, *, resume: Resume, with_changes: bool
) -> Iterator[RecordedRun]:
    """Lock and prepare a run's directory. Inside, signals do not interrupt; see `gtpo._signals`.

    Args:
        args: settings.
        about: see `gtpo.training.start.begin`.
        progress: reports skipped checkpoints.
        resume: see `begin`.
        with_changes: see `begin`.

    Raises:
        ConfigError: see `begin`.
        RecordError: the directory can't be written.
    """
    settings = settings_of(args)
    with stop_signals(progress.say) as stop, stop.deferred():
        recorder = RunRecorder(args.run_dir)
        try:
            start = begin(
                recorder,
                args,
                resume=resume,
                overwrite=args.overwrite,
                with_changes=with_changes,
                about=about,
                say=progress.say,
            )
            yield RecordedRun(args, settings, about, recorder, start, DurabilityCallback(stop))
        finally:
            recorder.release()
            progress.close()


def identity_of(model: Any, args: Any, trainer_options: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of what a run starts from, except its data; see `gtpo.training.identity`."""
    adapter = adapter_id(trainer_options.get("peft_config"))
    return {"weights": model_id(model), "adapter": adapter, "processes": args.world_size}
