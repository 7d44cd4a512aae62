"""Prepares a run's directory for a new run or a resumed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments

from gtpo.errors import ConfigError
from gtpo.run_directory import CONFIG, read_config
from gtpo.training.checkpoints import flaw_of, last_checkpoint, newest_whole, no_checkpoint, sealed_checkpoints, step_of
from gtpo.training.identity import Difference, differences, settings_of
from gtpo.training.recorder import RunRecorder, check_vacant
from gtpo.training.trl_compat import on_main

Resume = bool | Literal["auto"]
_ADAPTIVE = ("reduce_lr_on_plateau", "greedy")


@dataclass
class ResumeArguments:
    """How a run is resumed."""

    resume: str = field(
        default="false",
        metadata={
            "nargs": "?",
            "const": "true",
            "help": "Resume a run: true (from the newest whole checkpoint of run_dir), auto (if there is a "
            "checkpoint, else start, so that one command serves both) or false (start).",
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Resume although settings, problems or model differ from those that the run started with; "
            "config.yaml records the step and the former values."
        },
    )

    def __post_init__(self) -> None:
        if str(self.resume).lower() not in ("true", "false", "auto"):
            raise ConfigError(f"resume must be true, false or auto, got {self.resume!r}")
        self.resume = str(self.resume).lower()

    @property
    def choice(self) -> Resume:
        """The option as `gtpo.training.run.train` takes it."""
        return "auto" if self.resume == "auto" else self.resume == "true"


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: the checkpoint to resume from; None for a new run.
        changes: entries of config.yaml's `changes`: from which step on the run used other settings.
    """

    checkpoint: str | None
    changes: tuple[Mapping[str, Any], ...] = ()


@contextmanager
def held(args: Any, chosen: ResumeArguments, about: Mapping[str, Any]) -> Iterator[None]:
    """Lock and check a run's directory before weights are loaded; only the main process does this.

    Args:
        args: settings.
        chosen: whether the run is resumed.
        about: see `begin`.

    Raises:
        ConfigError: see `begin`.
        RecordError: the directory can't be written.
    """
    recorder = RunRecorder(args.run_dir)
    if args.process_index:
        yield
        return
    recorder.hold()
    try:
        with_changes = chosen.resume_with_changes
        options = {"overwrite": args.overwrite, "with_changes": with_changes, "about": about}
        check_startable(args, args.run_dir, resume=chosen.choice, **options)
        yield
    finally:
        recorder.release()


def begin(
    recorder: RunRecorder,
    args: TrainingArguments,
    *,
    resume: Resume,
    overwrite: bool,
    with_changes: bool = False,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> Start:
    """Prepare the run's directory.

    Every process of the run calls this: the main one does the work, and all of them get the result or the error.

    Args:
        recorder: recorder of the directory; locks it.
        args: settings.
        resume: resume from the newest whole checkpoint; "auto": if there is one, else start.
        overwrite: delete an existing run.
        with_changes: resume although the existing run differs.
        about: further entries of config.yaml that are compared with those of the existing run.
        say: called with a sentence about each checkpoint that is skipped.

    Raises:
        ConfigError: `resume` without a checkpoint or with another run's, the directory already holds a run, or another
            process holds it.
        RecordError: the directory can't be written.
    """

    def make_ready() -> Start:
        recorder.hold()
        check_startable(
            args, recorder.run_dir, resume=resume, overwrite=overwrite, with_changes=with_changes, about=about
        )
        if not resume or (resume == "auto" and newest_whole(args.output_dir or "", say) is None):
            recorder.start_afresh()
            return Start(None)
        checkpoint = last_checkpoint(args.output_dir or "", say)
        recorder.rewind(step_of(checkpoint))
        return Start(str(checkpoint), _changes(args, recorder.run_dir, about, step_of(checkpoint)))

    return on_main(make_ready)


def check_startable(
    args: TrainingArguments,
    run_dir: str | Path,
    *,
    resume: Resume,
    overwrite: bool,
    with_changes: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Check what `begin` would refuse, without changing anything, before weights are loaded.

    Raises:
        ConfigError: `resume` without a checkpoint or with another run's, or the directory already holds a run.
    """
    if not resume:
        if not overwrite:
            check_vacant(run_dir)
        return
    whole = newest_whole(args.output_dir or "")
    if whole is None and resume is True:
        raise no_checkpoint(args.output_dir or "")
    if whole is None and (damaged := sealed_checkpoints(args.output_dir or "")):
        raise ConfigError(
            f"--resume auto: {damaged[-1]} is damaged ({flaw_of(damaged[-1])}), and no other checkpoint is whole; "
            "restart the run with --overwrite true, without --resume"
        )
    if with_changes:
        return
    if whole is not None and not isinstance(read_config(run_dir).get("config"), dict):
        raise ConfigError(
            f"{Path(run_dir) / CONFIG} is missing or has no settings, so the run of the checkpoints is unknown; to "
            "resume all the same, give --resume_with_changes true"
        )
    if found := _differences(args, run_dir, about):
        raise ConfigError(
            f"{run_dir} holds another run, which differs in {', '.join(map(str, found))}: use what that run started "
            "with, choose another --run_dir, or accept the changes with --resume_with_changes true"
        )


def _differences(args: TrainingArguments, run_dir: str | Path, about: Mapping[str, Any] | None) -> list[Difference]:
    return differences(read_config(run_dir), {**(about or {}), "config": settings_of(args)})


def _changes(
    args: TrainingArguments, run_dir: str | Path, about: Mapping[str, Any] | None, step: int
) -> tuple[Mapping[str, Any], ...]:
    """The changes recorded in config.yaml, and the new ones. Recorded ones after the checkpoint start at it."""
    try:
        document = read_config(run_dir)
    except ConfigError:  # with_changes: whatever it was
        return ({"after_step": step, "was": {}},)
    former = document.get("changes")
    entries = [entry for entry in former if isinstance(entry, dict)] if isinstance(former, list) else []
    entries = [{**entry, "after_step": min(step, int(entry.get("after_step", 0)))} for entry in entries]
    found = _differences(args, run_dir, about)
    if {"learning_rate", "lr_scheduler_type"} & {item.name for item in found}:
        kinds = {str(settings_of(args).get("lr_scheduler_type")), *(str(i.before) for i in found)}
        if refused := sorted(kinds & set(_ADAPTIVE)):
            raise ConfigError(f"learning_rate can't be changed on resume under lr_scheduler_type {refused[0]}")
    if found:
        entries.append({"after_step": step, "was": {item.name: item.before for item in found}})
    return tuple(entries)
