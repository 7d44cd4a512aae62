"""What verl loads while it is imported, in each of its processes: makes the names `gtpo` known.

verl says nothing but a line at level DEBUG if this module fails; `gtpo doctor` shows whether it was loaded.
"""

from __future__ import annotations

from gtpo.integrations.verl import agent_loop, estimator, trainer

__all__ = ["agent_loop", "estimator", "trainer"]
