"""Group Turn Policy Optimization as pure functions on tensors: `from gtpo import functional as F`.

Source: arXiv 2511.14846. Marks: [P] the paper's own text, [T] third parties' readings of it, [O] our decision
where nothing is known.

Glossary. The suffix of a tensor's name carries its shape:

| suffix | axis |
|---|---|
| `_B` | rollouts in the batch |
| `_G` | rollouts of one group, the rollouts that answer the same prompt |
| `_K` | turns, padded to the batch's longest rollout |
| `_T` | tokens, padded |

- `num_turns_B`: integer, each rollout's number of turns, 1..K. Entries of a `_B_K` tensor past a rollout's last
  turn are padding: in inputs they are ignored, whatever their value, and in outputs they are 0.
- `turn_ids_B_T`: integer, the 0-based turn of each token the model sampled, -1 for every other position
  (prompt, observation, padding).
- `group_ids_B`: integer, equal for the rollouts of one group. Any values, in any order, groups of any size.

Equations count turns from 1 as the paper does, tensors from 0. Floats: results have the dtype of the input;
float16 and bfloat16 are computed in float32. Inputs are not modified.

Differences from the paper, all [O]:

- It is not known over which set the paper normalises returns; `group_advantages` offers three readings as
  `normalize_over`.
- Groups whose rollouts all passed or all failed get no advantage (`zero_uniform_groups`), and advantages are
  clipped (`advantage_clip`). `PAPER` turns both off and normalises over all turns: the unmodified formulas.
- A set without spread, or with one member, gives advantage 0, not a division by epsilon.
- Similarities are clipped to [0, 1], and passing rollouts without code count in the shaping's mean.

`gtpo.functional.estimators` has other estimators, for comparison.

Not included: parsing of tool calls, embeddings, the surrogate objective, logging. This package imports only torch
and the standard library.
"""

from gtpo.functional.advantages import NORMALIZE_OVER, PAPER, group_advantages, grpo_advantages, gtpo_advantages
from gtpo.functional.estimators import (
    dr_grpo_advantages,
    leave_one_out_advantages,
    mt_grpo_advantages,
    rloo_advantages,
)
from gtpo.functional.returns import discounted_returns, gamma_for_turns
from gtpo.functional.rewards import grpo_rewards, information_gain, turn_rewards
from gtpo.functional.segments import spread_to_tokens, sum_over_turns, turn_ids_from_mask
from gtpo.functional.shaping import shaped_accuracy

__all__ = [
    "NORMALIZE_OVER",
    "PAPER",
    "discounted_returns",
    "dr_grpo_advantages",
    "gamma_for_turns",
    "group_advantages",
    "grpo_advantages",
    "grpo_rewards",
    "gtpo_advantages",
    "information_gain",
    "leave_one_out_advantages",
    "mt_grpo_advantages",
    "rloo_advantages",
    "shaped_accuracy",
    "spread_to_tokens",
    "sum_over_turns",
    "turn_ids_from_mask",
    "turn_rewards",
]
