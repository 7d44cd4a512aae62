"""Loaded by verl when it is imported, in each of its processes: registers the names `gtpo`.

If this module fails, verl only logs a line at level DEBUG; `gtpo doctor` shows whether it was loaded.
"""

from __future__ import annotations

from gtpo.integrations.verl import agent_loop, estimator, trainer

__all__ = ["agent_loop", "estimator", "trainer"]
