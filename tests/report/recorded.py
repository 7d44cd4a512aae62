"""A run's recorded rollouts as a plain file that a test can change."""

from __future__ import annotations

import gzip
from pathlib import Path

from gtpo.run_directory import rollouts_path


def unpacked(run: Path, step: int) -> Path:
    """The file with the rollouts of a step, without its compression."""
    packed = rollouts_path(run, step)
    path = packed.with_suffix("")
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return path
