"""Writes a run's directory: config.yaml, metrics.jsonl and rollouts/step_NNNNNN.jsonl.gz.

Every process of a run creates a `RunRecorder`, which checks the directory; only the main process writes with it.
`docs/run-directory.md` documents the files; `SCHEMA_VERSION` changes whenever a field changes its meaning. Files are
written completely and then renamed, so a reader never sees half a step. A full disk raises a RecordError that says how
to continue; what was written before stays readable.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gtpo._files import sweep_partial, write_bytes, write_text
from gtpo.errors import ConfigError, RecordError
from gtpo.run_directory import CHECKPOINTS, CONFIG, METRICS, ROLLOUTS, SCHEMA_VERSION, step_of_rollouts
from gtpo.training.checkpoints import write_failure
from gtpo.training.lock import RunLock
from gtpo.versions import installed_versions

MIN_FREE_MB = 200

_GO_ON = "resume from the last checkpoint with --resume true; what was recorded before is intact"


class RunRecorder:
    """The files of one run.

    Args:
        run_dir: the directory; created if missing.

    Raises:
        RecordError: the directory can't be written, or its disk has less than `MIN_FREE_MB` free.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)
        self.metrics_path = self.run_dir / METRICS
        self._last: tuple[int, str, int, int] = (0, "", 0, 0)
        self._lock: RunLock | None = None
        try:
            (self.run_dir / ROLLOUTS).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.run_dir).close()
            free_mb = shutil.disk_usage(self.run_dir).free / 2**20
        except OSError as error:
            raise write_failure(self.run_dir, error, _GO_ON) from error
        if free_mb < MIN_FREE_MB:
            raise RecordError(
                f"{self.run_dir}: only {free_mb:.0f} MB are free, but a run needs at least {MIN_FREE_MB}; free disk "
                "space or choose another --run_dir"
            )

    def hold(self) -> None:
        """Lock the directory against other trainers until `release`, and delete partial files left by a kill.

        Raises:
            ConfigError: another process holds the directory.
        """
        if self._lock is None:
            self._lock = RunLock(self.run_dir)
            for folder in (self.run_dir, self.run_dir / ROLLOUTS):
                sweep_partial(folder)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def check_place(self) -> None:
        """Check that the directory, if it is held, is still there.

        Raises:
            RecordError: the directory was deleted, moved or replaced.
        """
        if self._lock is not None:
            self._lock.check()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml: everything needed to repeat the run, with versions."""
        document = {"schema": SCHEMA_VERSION, "versions": installed_versions(), **config}
        self._replace(self.run_dir / CONFIG, yaml.safe_dump(json.loads(json.dumps(document, default=str))))

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rollouts of one step, one per line, compressed.

        A second batch of the same step, as when an update uses several generation batches, is added to the first; the
        numbering of rollouts and groups continues.
        """
        last_step, lines, rollouts, groups = self._last
        if last_step != step:
            lines, rollouts, groups = "", 0, 0
        for row in rows:
            similarities = {str(int(p) + rollouts): value for p, value in (row.get("similarities") or {}).items()}
            numbers = {"rollout": row["rollout"] + rollouts, "group": row["group"] + groups}
            document = {"schema": SCHEMA_VERSION, "step": step, **row, **numbers, "similarities": similarities}
            lines += json.dumps(document) + "\n"
        if rows:
            rollouts += 1 + max(row["rollout"] for row in rows)
            groups += 1 + max(row["group"] for row in rows)
        self._last = (step, lines, rollouts, groups)
        self.check_place()
        path = self.run_dir / ROLLOUTS / f"step_{step:06d}.jsonl.gz"
        try:
            write_bytes(path, gzip.compress(lines.encode(), compresslevel=6, mtime=0))
        except OSError as error:
            raise write_failure(path, error, _GO_ON) from error

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self.check_place()
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise write_failure(self.metrics_path, error, _GO_ON) from error

    def start_afresh(self) -> None:
        """Delete the records and checkpoints of an earlier run, for a new one."""
        self.rewind(0)
        shutil.rmtree(self.run_dir / CHECKPOINTS, ignore_errors=True)

    def rewind(self, step: int) -> None:
        """Delete what was recorded after `step`, since training resumes from there."""
        if self.metrics_path.exists():
            lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= step]
            self._replace(self.metrics_path, "".join(line + "\n" for line in kept))
        for path in (self.run_dir / ROLLOUTS).iterdir():
            if (step_of_rollouts(path) or 0) > step:
                path.unlink()

    def _replace(self, path: Path, text: str) -> None:
        self.check_place()
        try:
            write_text(path, text)
        except OSError as error:
            raise write_failure(path, error, _GO_ON) from error


def check_vacant(run_dir: str | Path) -> None:
    """Refuse a directory with a run in it.

    Raises:
        ConfigError: the directory holds records or checkpoints.
    """
    run_dir = Path(run_dir)
    if (run_dir / METRICS).exists() or any((run_dir / CHECKPOINTS).glob("checkpoint-*")):
        raise ConfigError(
            f"{run_dir} holds a run already: resume it (--resume auto), choose another --run_dir, or delete its "
            "records and checkpoints (--overwrite true)"
        )


def _step_of(line: str) -> int | None:
    """Step of a metrics line; None for an incomplete line, as after a kill."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
