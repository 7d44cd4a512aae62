"""The errors of gtpo, one tree: `except GtpoError` catches whatever the library raises on purpose.

Each message says where (file, line, field), what, and how to mend it. Expected endings of a rollout are not
errors; they are values of `gtpo.types.StopReason`.
"""

from __future__ import annotations

from pathlib import Path


class GtpoError(Exception):
    """Base of every error that gtpo raises on purpose."""


class ConfigError(GtpoError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(GtpoError, ValueError):
    """A file of problems or traces can't be used as it is.

    Args:
        message: what is wrong, and how to mend it.
        path: the file.
        line: 1-based line number, if it is about one line.
        field: name of the field, if it is about one field.
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
        """The same fault, with the place where it was found."""
        return DataError(self.message, path=path, line=line, field=self.field)


class TemplateError(GtpoError, ValueError):
    """A tokenizer's chat template is missing, or can't express a multi-turn conversation with a tool."""


class SandboxError(GtpoError, RuntimeError):
    """The sandbox itself failed, or does not hold what was asked of it; never the fault of the code it ran."""


class EnvironmentFailedError(GtpoError, RuntimeError):
    """An environment of the user's own raised or did not return; masks its rollout (`gtpo.failures`)."""


class BackendError(GtpoError, RuntimeError):
    """The model that generates is unavailable: its server does not answer, refuses a request, or gives nonsense."""


class ServerGoneError(BackendError):
    """A server that generates did not answer any request within `server_timeout_s`."""


class BadAnswerError(BackendError):
    """A server that generates gives answers that can't be used: impossible values, wrong JSON, too late, too large."""


class ModelError(GtpoError, ArithmeticError):
    """The model's own numbers are not finite."""


class TooManyFailuresError(GtpoError, RuntimeError):
    """Too many rollouts were lost to failures (`gtpo.failures`)."""


class StoppedError(GtpoError):
    """A signal ended a run between two steps; it can go on. `gtpo` then exits with status 75."""


class VerifierError(GtpoError, RuntimeError):
    """A verifier broke (not: an answer was wrong)."""


class RewardError(GtpoError, ValueError):
    """A reward function of the user's own raised, or gave something that is no reward; names the function."""


class RecordError(GtpoError, OSError):
    """A run's directory can't be written."""
