"""The progress bar of a run: which step, what it is doing now, and the last pass rate.

A terminal that has hung up can't be written to; the run goes on without one.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gtpo._text import for_terminal


class StepProgress(TrainerCallback):
    """A bar over training steps that names the phase of the step.

    Args:
        enabled: False shows nothing.
        label: stands before the bar.
    """

    def __init__(self, *, enabled: bool = True, label: str = "gtpo"):
        self.enabled = enabled
        self.label = label
        self._bar: Any = None
        self._phase = ""
        self._pass_rate: float | None = None

    def phase(self, name: str) -> None:
        """Say what is being done from now on."""
        self._phase = name
        self._show()

    def within_phase(self, what: str, done: int, of: int) -> None:
        """Say how far it is; fits `gtpo.rollout.loop.Progress`."""
        self._phase = f"{what} {done}/{of}"
        self._show()

    def say(self, text: str) -> None:
        """Print a line above the bar, also where there is none."""
        with contextlib.suppress(OSError):
            tqdm.write(for_terminal(text), file=sys.stderr)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        if self.enabled and state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the last pass rate in sight."""
        self._pass_rate = (logs or {}).get("pass_rate", self._pass_rate)
        self._show()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._phase = "done"
            self._show()
            self.close()

    def close(self) -> None:
        """Leave the bar as it stands, where training does not come to its end."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with contextlib.suppress(OSError):
                bar.close()

    def _show(self) -> None:
        if self._bar is not None:
            passed = "" if self._pass_rate is None else f"pass rate {self._pass_rate:.2f}, "
            with contextlib.suppress(OSError):
                self._bar.set_postfix_str(passed + self._phase)
