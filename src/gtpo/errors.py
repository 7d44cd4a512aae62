"""The errors of gtpo, in one class tree: `except GtpoError` catches everything that the library raises on purpose.

Each message says where the problem is (file, line, field), what it is, and how to fix it. Expected endings of a rollout
are not errors; they are values of `gtpo.types.StopReason`.
"""

from __future__ import annotations

from pathlib import Path


class GtpoError(Exception):
    """Base of every error that gtpo raises on purpose."""


class ConfigError(GtpoError, ValueError):
    """A setting is unknown or out of range, or contradicts another one."""


class DataError(GtpoError, ValueError):
    """A file of problems or traces can't be used as it is.

    Args:
        message: what is wrong, and how to fix it.
        path: the file.
        line: 1-based line number, if the error is about one line.
        field: name of the field, if the error is about one field.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ):
        where = ":".join(str(part) for part in (path, line) if part is not None)
        prefix = f"{where}: " if where else ""
        prefix += f"field {field!r}: " if field else ""
        super().__init__(prefix + message)
        self.message, self.path, self.line, self.field = message, path, line, field

    def at(self, path: str | Path, line: int) -> DataError:
        """The same error, with the place where it was found."""
        return DataError(self.message, path=path, line=line, field=self.field)


class TemplateError(GtpoError, ValueError):
    """A tokenizer's chat template is missing, or can't express a multi-turn conversation with a tool."""


class SandboxError(GtpoError, RuntimeError):
    """The sandbox itself failed, or does not provide the isolation asked for; never an error of the code it ran."""


class EnvironmentFailedError(GtpoError, RuntimeError):
    """A user-defined environment raised or did not return; its rollout is masked (`gtpo.failures`)."""


class BackendError(GtpoError, RuntimeError):
    """The generation backend is unavailable: its server does not answer, refuses a request, or answers nonsense."""


class ServerGoneError(BackendError):
    """A generation server did not answer any request within `server_timeout_s`."""


class BadAnswerError(BackendError):
    """A generation server gives unusable answers: impossible values, wrong JSON, too late, or too large."""


class ModelError(GtpoError, ArithmeticError):
    """A number computed by the model, such as a logit, loss, gradient or weight, is not finite."""


class TooManyFailuresError(GtpoError, RuntimeError):
    """Too many rollouts were lost to failures (`gtpo.failures`)."""


class StoppedError(GtpoError):
    """A signal ended a run between two steps; the run can be resumed. `gtpo` then exits with status 75."""


class VerifierError(GtpoError, RuntimeError):
    """A verifier itself failed (this does not mean that an answer was wrong)."""


class RewardError(GtpoError, ValueError):
    """A user-defined reward function raised, or returned something that is not a reward; names the function."""


class RecordError(GtpoError, OSError):
    """A run's directory can't be written."""
