"""What clients of HTTP services share."""

from __future__ import annotations


def retry_after_s(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for; 0 without one, or if it holds a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
