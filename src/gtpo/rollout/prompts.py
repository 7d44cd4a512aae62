"""The prompts of problems: the system prompt describes the tools and how to write the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gtpo.rollout.formats import ToolFormat
from gtpo.tasks.answer_types import INSTRUCTIONS, answer_type
from gtpo.tasks.problems import Problem

_TASK = "Solve the problem step by step."


@dataclass(frozen=True)
class Prompts:
    """Makes the prompts of problems.

    Attributes:
        tool_format: the tool-call syntax, with the tools.
        setting: a system prompt for all problems; "" for none; None for the default, which depends on the kind of
            answer.
        instructions: sentences by kind of answer, which replace those in `gtpo.tasks.answer_types`.
        verifier: the verifier, if one was chosen for all problems; otherwise each problem names or implies its own.
        asks_for_answer: whether the default system prompt says how to write the answer; False: it only describes tools.
    """

    tool_format: ToolFormat
    setting: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    verifier: str | None = None
    asks_for_answer: bool = True

    def system_prompt(self, kind: str = "math") -> str | None:
        """The system prompt for problems that require this kind of answer."""
        if self.setting is not None:
            return self.setting or None
        if not self.asks_for_answer:
            return " ".join(map(self.tool_format.usage, self.tool_format.specs)) or None
        sentences = {**INSTRUCTIONS, **self.instructions}
        answer = sentences.get(kind, sentences["math"]).rstrip(".")
        ending = " and make no call in that turn." if self.tool_format.specs else "."
        return " ".join([_TASK, *map(self.tool_format.usage, self.tool_format.specs), answer + ending])

    def answer_type(self, problem: Problem) -> str:
        """The kind of answer that a problem requires; "none" if the prompts ask for none."""
        if not self.asks_for_answer:
            return "none"
        return answer_type(problem, self.verifier)

    def messages(self, problem: Problem) -> list[dict[str, Any]]:
        """The prompt as chat messages."""
        return problem.prompt(self.system_prompt(self.answer_type(problem)))
