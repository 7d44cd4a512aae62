"""Self-supervised reward shaping: partial credit for failures whose code resembles that of successes."""

from __future__ import annotations

from torch import Tensor

from gtpo.functional._checks import as_flags, check_finite, check_floating, check_shape, widen


def shaped_accuracy(similarity_G_G: Tensor, passed_G: Tensor, has_code_G: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Accuracy reward of the failed rollouts of one group.

        shaped[i] = (alpha / |P|) * sum over p in P of sim(c_i, c_p) if i failed and has code, else 0

    with P the group's passing rollouts, and sim(c_i, c_p) = clip(similarity[i,p], 0, 1), 0 if p has no code.
    Without a passing rollout, all values are 0. Every value lies in [0, alpha].

    Source: self-supervised reward shaping [P], formula and alpha = 0.5 [T]; clipping, and the rules for rollouts
    without code and groups without a passing rollout, are ours [O].

    Args:
        similarity_G_G: float, cosine similarity of the rollouts' code; row i is rollout i. Entries that the
            formula doesn't use (columns of rollouts that did not pass, rollouts without code) are ignored.
        passed_G: bool, True iff the rollout's final answer is verified.
        has_code_G: bool, True iff the rollout has code in any of its turns.
        alpha: 0..1, the reward of a failed rollout whose code equals that of every passing one.

    Returns:
        shaped_G: in the dtype of `similarity_G_G`. 0 on passing rollouts.

    Raises:
        ValueError: shapes or dtypes don't fit, a flag is neither 0 nor 1, a similarity in use is not finite,
            or alpha lies outside 0..1.
    """
    check_shape("similarity_G_G", similarity_G_G, (None, similarity_G_G.shape[0] if similarity_G_G.dim() else 0))
    check_floating("similarity_G_G", similarity_G_G)
    passed = as_flags("passed_G", passed_G, (similarity_G_G.shape[0],))
    has_code = as_flags("has_code_G", has_code_G, (similarity_G_G.shape[0],))
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, got {alpha}")
    used = (~passed & has_code)[:, None] & (passed & has_code)
    similarity = widen(similarity_G_G).masked_fill(~used, 0)
    check_finite("similarity_G_G", similarity)
    shaped = similarity.clamp(0, 1).sum(dim=1) * alpha / passed.sum().clamp(min=1)
    return shaped.to(similarity_G_G.dtype)
