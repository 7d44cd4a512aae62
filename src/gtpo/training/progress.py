"""The progress of a run: the step, its current phase, and the last pass rate."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gtpo._terminal import Progress


class StepProgress(TrainerCallback):
    """Progress over training steps that names the phase of the step.

    Args:
        enabled: False shows nothing.
        label: text before the bar.
    """

    def __init__(self, *, enabled: bool = True, label: str = "gtpo"):
        self.enabled = enabled
        self.label = label
        self._shown: Progress | None = None
        self._step = 0
        self._phase = ""
        self._pass_rate: float | None = None

    def phase(self, name: str) -> None:
        """Set the name of the current phase."""
        self._phase = name
        self._show()

    def within_phase(self, what: str, done: int, of: int) -> None:
        """Show the progress within a phase; a `gtpo.rollout.loop.Progress`."""
        self._phase = f"{what} {done}/{of}"
        self._show()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        (self._shown or Progress(self.label, 0, "steps", enabled=False)).write(text)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start at the current step of the run."""
        if self.enabled and state.is_world_process_zero:
            self._step = state.global_step
            self._shown = Progress(self.label, state.max_steps, "steps", done=self._step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        self._step = state.global_step
        self._show()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last pass rate."""
        self._pass_rate = (logs or {}).get("pass_rate", self._pass_rate)
        self._show()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the display."""
        self._phase = ""
        self._show()
        self.close()

    def close(self) -> None:
        """Close the display as it is, if training ends early."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None

    def _show(self) -> None:
        if self._shown is not None:
            passed = "" if self._pass_rate is None else f"pass rate {self._pass_rate:.2f}"
            self._shown.update(self._step, ", ".join(part for part in (passed, self._phase) if part))
