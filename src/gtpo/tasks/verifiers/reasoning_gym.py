r"""Scores answers to reasoning-gym problems with the generator that created them.

Some scorers evaluate the answer as an expression, so they run in the sandbox, with one process per answer. An answer
passes if its score is 1; scorers give less to answers that are close or badly formatted.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Sequence

from gtpo._async import run_async
from gtpo.errors import ConfigError, VerifierError
from gtpo.sandbox import ExecResult, Limits, LocalSandbox, Sandbox, Status
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import boxed_or_tagged
from gtpo.tasks.verifiers.base import Verdict, classes_by_key

_WARM = "import sympy, reasoning_gym"
_PROGRAM = """import sympy, json, reasoning_gym
asked = json.loads({asked!r})
made = reasoning_gym.create_dataset(asked["dataset"], **{{**asked["settings"], "size": 1}})
score = made.score_answer(asked["answer"], asked["entry"])
print({word!r}, float(score))
"""


class ReasoningGymVerifier:
    r"""Scores the last `\boxed{}`, or the last `<answer>` block, with the generator's own `score_answer`.

    Args:
        sandbox: runs the scorers; by default a new `LocalSandbox` with reasoning-gym loaded, which `close` closes.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ConfigError("reasoning-gym is not installed: pip install 'gtpo[reasoning-gym]'")
        limits = Limits(cpu_s=10.0, wall_s=20.0, memory_mb=1024)
        self._own = LocalSandbox(limits=limits, warm=(_WARM,)) if sandbox is None else None
        self._sandbox: Sandbox = sandbox or self._own  # type: ignore[assignment]

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: the sandbox failed, or a problem was not created by reasoning-gym.
        """
        for problem in problems:
            if why := _unusable(problem):
                raise VerifierError(f"problem {problem.id}: {why}")
        answers = [None if text is None else boxed_or_tagged(text) for text in answer_texts]
        word = secrets.token_hex(16)
        asked = [i for i, answer in enumerate(answers) if answer]
        programs = [_program(answers[i] or "", problems[i], word) for i in asked]
        results = dict(zip(asked, run_async(self._sandbox.run_many(programs)), strict=True))
        return [
            _verdict(results[i], answer, word, problems[i])
            if i in results
            else Verdict(False, 0.0, "no answer in a box")
            for i, answer in enumerate(answers)
        ]

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether the text contains a closed, non-empty box or answer block."""
        return bool(boxed_or_tagged(text))

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Groups answers by text, ignoring spacing."""
        return classes_by_key(answers, lambda answer: " ".join(answer.split()))

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Returns the problems that reasoning-gym did not create."""
        return {problem.id: why for problem in problems if (why := _unusable(problem))}

    def close(self) -> None:
        """See `Verifier.close`."""
        if self._own:
            self._own.close()


def _unusable(problem: Problem) -> str | None:
    made = problem.extras.get("reasoning_gym")
    if isinstance(made, dict) and isinstance(problem.extras.get("entry"), dict):
        return None
    return "was not created by reasoning-gym: the fields `reasoning_gym` (dataset, settings) or `entry` are missing"


def _program(answer: str, problem: Problem, word: str) -> str:
    asked = {**problem.extras["reasoning_gym"], "entry": problem.extras["entry"], "answer": answer}
    return _PROGRAM.format(asked=json.dumps(asked), word=word)


def _verdict(result: ExecResult, answer: str | None, word: str, problem: Problem) -> Verdict:
    if result.status is Status.TOOL_FAILURE:
        raise VerifierError(f"problem {problem.id}: the sandbox failed: {result.note}")
    said, _, number = result.stdout.strip().rpartition("\n")[2].partition(" ")
    if result.status is not Status.OK or said != word:
        why = result.error_type or result.note or result.status.value
        return Verdict(False, 0.0, f"the scorer ended with {why}", answer)
    try:
        score = min(max(float(number), 0.0), 1.0)
    except ValueError:
        return Verdict(False, 0.0, "the scorer gave no number", answer)
    return Verdict(score == 1.0, score, f"the generator's score is {score:g}", answer)
