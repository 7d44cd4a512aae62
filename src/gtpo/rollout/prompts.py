"""How a problem is put to the model: the system prompt tells of the tools and of how to write the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml

from gtpo.errors import ConfigError
from gtpo.rollout.formats import ToolFormat, get_format
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.tasks.answer_types import INSTRUCTIONS, answer_type
from gtpo.tasks.problems import Problem

_TASK = "Solve the problem step by step."


@dataclass(frozen=True)
class Prompts:
    """Makes the prompts of problems.

    Attributes:
        tool_format: the tool-call syntax, with the tools.
        setting: a system prompt for all problems; "" for none; None for the default one, by kind of answer.
        instructions: sentences by kind of answer, in place of those in `gtpo.tasks.answer_types`.
        verifier: the verifier, if one was chosen for all problems; else each problem says or implies its own.
    """

    tool_format: ToolFormat
    setting: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    verifier: str | None = None

    def system_prompt(self, kind: str = "math") -> str | None:
        """The system prompt for problems that want this kind of answer."""
        if self.setting is not None:
            return self.setting or None
        sentences = {**INSTRUCTIONS, **self.instructions}
        answer = sentences.get(kind, sentences["math"]).rstrip(".")
        ending = " and make no call in that turn." if self.tool_format.specs else "."
        return " ".join([_TASK, *map(self.tool_format.usage, self.tool_format.specs), answer + ending])

    def answer_type(self, problem: Problem) -> str:
        """The kind of answer that a problem wants."""
        return answer_type(problem, self.verifier)

    def messages(self, problem: Problem) -> list[dict[str, Any]]:
        """The prompt as chat messages."""
        return problem.prompt(self.system_prompt(self.answer_type(problem)))


@dataclass
class PromptArguments:
    """How problems are put to the model, and who checks the answers."""

    tool_format: str = field(
        default="tool_call", metadata={"help": "Syntax of tool calls: tool_call (JSON in tags) or fenced (```python)."}
    )
    system_prompt: Optional[str] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None,
        metadata={"help": "System prompt; by default one that tells of the tools and of how to answer. '' for none."},
    )
    instructions: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "YAML file: sentences on how to write the answer, by kind (math, choice, qa, tests, ...)."},
    )
    verifier: str = field(
        default="auto",
        metadata={"help": "auto (by domain), math, choice, qa, code, reasoning_gym, or MODULE:FUNCTION of your own."},
    )

    def make_format(self, specs: Sequence[ToolSpec]) -> ToolFormat:
        """The tool-call syntax for these tools.

        Raises:
            ConfigError: there is none of that name.
        """
        return get_format(self.tool_format, specs)

    def make_prompts(self, specs: Sequence[ToolSpec]) -> Prompts:
        """What makes the prompts.

        Raises:
            ConfigError: an unknown format, or a file of instructions that can't be used.
        """
        verifier = None if self.verifier == "auto" else self.verifier
        return Prompts(self.make_format(specs), self.system_prompt, self._instructions(), verifier)

    def _instructions(self) -> dict[str, str]:
        if self.instructions is None:
            return {}
        path = Path(self.instructions)
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: can't be read: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
            raise ConfigError(f"{path}: must map kinds of answers to sentences")
        return found
