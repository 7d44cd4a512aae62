"""A verifier for runs of untrained models, which hardly ever say anything right."""

from __future__ import annotations

from collections.abc import Callable

from gtpo.tasks.verifiers import Verdict


class Passes:
    """Passes the answers that are to pass.

    Args:
        passes: of an answer, None where a rollout ended without one.
    """

    def __init__(self, passes: Callable[[str | None], bool]):
        self.passes = passes

    def verify_many(self, texts, problems):
        return [Verdict(self.passes(text), float(self.passes(text)), "judged") for text in texts]

    def has_answer(self, text, problem):
        return True


def ended(text: str | None) -> bool:
    """Whatever ends with an answer; so an untrained model's rollouts differ."""
    return text is not None
