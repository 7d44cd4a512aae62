"""Writes a run's directory: config.yaml, metrics.jsonl and rollouts/step_NNNNNN.jsonl.

Every process of a run makes a `RunRecorder`, which tries the directory; the main process alone writes with it.
`docs/run-directory.md` documents the files; `SCHEMA_VERSION` changes whenever a field changes its meaning. Files are
written whole and then renamed, so a reader never sees half a step; a disk that fills up raises a RecordError that says
how to go on, and what was written before stays readable.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gtpo._files import write_text
from gtpo.errors import ConfigError, RecordError
from gtpo.run_directory import CONFIG, METRICS, ROLLOUTS, SCHEMA_VERSION
from gtpo.versions import installed_versions

MIN_FREE_MB = 200


class RunRecorder:
    """The files of one run.

    Args:
        run_dir: made if missing.

    Raises:
        RecordError: the directory can't be written, or has less than `MIN_FREE_MB` of room.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)
        self.metrics_path = self.run_dir / METRICS
        try:
            (self.run_dir / ROLLOUTS).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.run_dir).close()
            free_mb = shutil.disk_usage(self.run_dir).free / 2**20
        except OSError as error:
            raise self._error(self.run_dir, error) from error
        if free_mb < MIN_FREE_MB:
            raise RecordError(
                f"{self.run_dir}: only {free_mb:.0f} MB are free and a run needs {MIN_FREE_MB} at the least; free some "
                "space or choose another --run_dir"
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml: everything needed to run it again, with versions."""
        document = {"schema": SCHEMA_VERSION, "versions": installed_versions(), **config}
        self._replace(self.run_dir / CONFIG, yaml.safe_dump(json.loads(json.dumps(document, default=str))))

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rollouts of one step, a line each."""
        lines = "".join(json.dumps({"schema": SCHEMA_VERSION, "step": step, **row}) + "\n" for row in rows)
        self._replace(self.run_dir / ROLLOUTS / f"step_{step:06d}.jsonl", lines)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise self._error(self.metrics_path, error) from error

    def start_afresh(self, *, overwrite: bool) -> None:
        """Make room for a new run.

        Raises:
            ConfigError: the directory holds a run already, and it is not to be overwritten.
        """
        checkpoints = self.run_dir / "checkpoints"
        if not overwrite and (self.metrics_path.exists() or checkpoints.exists()):
            raise ConfigError(
                f"{self.run_dir} holds a run already: go on with it (--resume), choose another --run_dir, or delete "
                "its records and checkpoints (--overwrite)"
            )
        self.rewind(0)
        shutil.rmtree(checkpoints, ignore_errors=True)

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, since training resumes from there."""
        if self.metrics_path.exists():
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= step]
            self._replace(self.metrics_path, "".join(line + "\n" for line in kept))
        for path in (self.run_dir / ROLLOUTS).glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()

    def _replace(self, path: Path, text: str) -> None:
        try:
            write_text(path, text)
        except OSError as error:
            raise self._error(path, error) from error

    @staticmethod
    def _error(path: Path, error: OSError) -> RecordError:
        return RecordError(
            f"{path}: can't be written: {error.strerror or error}. Free some space or mend the permissions, then go "
            "on from the last checkpoint with --resume; what was recorded before is intact."
        )


def _step_of(line: str) -> int | None:
    """Step of a metrics line; None for a line that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
