"""Options of training for short runs in tests: float32, every step logged, nothing saved or shown."""

from __future__ import annotations

QUIET = {
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
