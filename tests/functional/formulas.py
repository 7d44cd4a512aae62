"""The formulas as they stand, for tests of them: all turns together, no group silenced, nothing clipped."""

from __future__ import annotations

from functools import partial

from gtpo import functional as F

group_advantages = partial(F.group_advantages, **F.PAPER)
gtpo_advantages = partial(F.gtpo_advantages, **F.PAPER)
