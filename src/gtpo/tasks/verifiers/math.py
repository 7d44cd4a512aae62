r"""Answers to problems in mathematics: the last `\boxed{}` of the text against the gold answer.

Most comparisons need no algebra and are decided at once (see `answers`); the rest go to processes with limits of time
and memory, which read both answers by their structure (`_math_reading`) and compare them by what they are
(`_math_equal`).

What passes beside the same value: an unevaluated `2 \cdot 9` for 18; `x = 5` and `x \equiv 5 \pmod{7}` for 5; decimals
within the tolerance of `answers` for an exact number; 50% for 50 and for 0.5; an angle in degrees for the number and
for radians; a unit or none, but not another one that is known; values for letters in the letters' order for a pair; an
inequality for the interval; words behind `yes,` or `no,`.

What does not, by decision:

- Only a box is read, and the last one that opens: `Final Answer: **73**`, `\fbox{1}` and `\boxed{5} ... \boxed{6` fail.
- Letters are equal in name and case only. The name of a parameter is not known to be one: 3n + 1 is not 3k + 1.
- A set is no pair and no list in an order; X is not x; x' is not x.
- What holds an undefined value or infinity within an expression, dots that leave members out, or numbers side by side
  is equal only to the same spelling; so is what says more than its form holds, such as 5 feet 6 inches.

The table KNOWN of the adversarial test has the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from gtpo.errors import ConfigError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers._math_pool import Reply, WorkerPool
from gtpo.tasks.verifiers.answers import canonical, last_boxed, plain_number, quick_match, readable
from gtpo.tasks.verifiers.base import Verdict, check_lengths, refuse_unusable

MEMORY_BYTES = 2 * 2**30
MAX_CHARACTERS = 2000
"""Answers that are longer fail: they are no final answers, and a request must fit into a pipe."""


class MathVerifier:
    r"""Checks the answer in the last `\boxed{}`.

    Processes start with the first comparison that needs one, and end with `close`, with the verifier, or with
    the program. The same answers get the same verdicts, except that what a time limit cuts off depends on the
    machine.

    Args:
        timeout_s: seconds for one comparison, at the end of which its process is killed and the answer fails.
        workers: processes at most; by default half of the CPUs at hand, but no more than 4.

    Raises:
        ConfigError: an argument is not above 0.
    """

    def __init__(self, timeout_s: float = 5.0, workers: int | None = None):
        if workers is None:
            workers = max(1, min(4, len(os.sched_getaffinity(0)) // 2))
        if timeout_s <= 0 or workers < 1:
            raise ConfigError(f"timeout_s={timeout_s}, workers={workers}: both must be above 0")
        self._pool = WorkerPool(workers, timeout_s, MEMORY_BYTES)
        self._accepted: set[str] = set()

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """The verdict on each text as an answer to the problem at the same place.

        Raises:
            VerifierError: a gold answer that `unusable` was not asked about can't be read, or no process starts. One
                that was accepted there, and takes too long now, fails the answer.
            ValueError: the arguments differ in length.
        """
        check_lengths(answer_texts, problems)
        if any(len(problem.golds) > 1 for problem in problems):
            return self._by_alias(answer_texts, problems)
        verdicts: list[Verdict | None] = []
        for text, problem in zip(answer_texts, problems, strict=True):
            verdicts.append(_quick_verdict(text, problem))
        open_places = [i for i, verdict in enumerate(verdicts) if verdict is None]
        answers = {i: last_boxed(answer_texts[i] or "") or "" for i in open_places}
        pairs = list(dict.fromkeys((answers[i], problems[i].answer) for i in open_places))
        replies = dict(zip(pairs, self._ask(pairs), strict=True))
        asked = [(problems[i], replies[answers[i], problems[i].answer]) for i in open_places]
        bad = {
            p.id: f"{p.answer[:80]!r} ({reply.gold_unusable})"
            for p, reply in asked
            if reply.gold_unusable and p.answer not in self._accepted
        }
        refuse_unusable(bad, "MathVerifier")
        for i in open_places:
            reply = replies[answers[i], problems[i].answer]
            verdicts[i] = Verdict(reply.equal, float(reply.equal), reply.reason, answers[i])
        return [verdict for verdict in verdicts if verdict is not None]

    def has_answer(self, text: str, problem: Problem) -> bool:
        r"""Whether the text holds a closed `\boxed{}` with something in it."""
        return bool((last_boxed(text) or "").strip())

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Compares each answer with the first one of every class so far.

        An answer that math-verify can't read, or can't compare in time, is equal only to the same LaTeX (as
        `canonical` spells it).

        Raises:
            VerifierError: no process starts.
        """
        spellings = [canonical(answer) for answer in answers]
        texts = dict(zip(spellings, answers, strict=True))
        apart = self._unreadable(texts) if len(texts) > 1 else set()
        numbers: dict[str, int] = {}
        firsts: dict[int, str] = {}
        for spelling, answer in texts.items():
            new = len(set(numbers.values()))
            numbers[spelling] = new if spelling in apart else self._class_of(answer, firsts, new)
        return [numbers[spelling] for spelling in spellings]

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """The ids of those problems whose gold answers math-verify can't read, and why.

        Meant to be asked before a long run, so that it does not stop at such a problem.
        """
        each = [replace(p, answer=gold) for p in problems for gold in p.golds]
        open_problems = [p for p in each if plain_number(canonical(p.answer)) is None]
        golds = list(dict.fromkeys(p.answer for p in open_problems))
        replies = dict(zip(golds, self._ask([(None, gold) for gold in golds]), strict=True))
        self._accepted |= {gold for gold, reply in replies.items() if not reply.gold_unusable}
        return {p.id: why for p in open_problems if (why := replies[p.answer].gold_unusable)}

    def _by_alias(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """An answer passes if it is equal to any of its problem's aliases; else the verdict is that of the first."""
        golds = [problem.golds for problem in problems]
        each = [replace(p, answer=gold, extras={}) for p, own in zip(problems, golds, strict=True) for gold in own]
        texts = [text for text, own in zip(answer_texts, golds, strict=True) for _ in own]
        found = iter(self.verify_many(texts, each))
        verdicts = [[next(found) for _ in own] for own in golds]
        return [next((verdict for verdict in own if verdict.passed), own[0]) for own in verdicts]

    def close(self) -> None:
        """Ends the processes. Another `verify_many` starts them again."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if pool := getattr(self, "_pool", None):
            pool.close()

    def _unreadable(self, texts: Mapping[str, str]) -> set[str]:
        """The spellings of the answers that no other can be compared with."""
        long = {spelling for spelling, answer in texts.items() if len(answer) > MAX_CHARACTERS}
        asked = [s for s in texts if s not in long and plain_number(s) is None]
        replies = zip(asked, self._ask([(None, texts[spelling]) for spelling in asked]), strict=True)
        return long | {spelling for spelling, reply in replies if reply.gold_unusable}

    def _class_of(self, answer: str, firsts: dict[int, str], new: int) -> int:
        """The class whose first answer this one is equal to, or `new`.

        `firsts` holds the first answers that can be compared; this one is added to them, or the one that proves too
        slow is removed.
        """
        for number, first in list(firsts.items()):
            equal = self._equal(answer, first)
            if equal:
                return number
            if equal is None:
                slow = [text for text in (answer, first) if self._equal(text, "0") is None]
                if first in slow:
                    del firsts[number]
                if slow != [first]:
                    return new
        firsts[new] = answer
        return new

    def _equal(self, answer: str, other: str) -> bool | None:
        """Whether two answers are equal; None if that takes too long."""
        quick = {quick_match(answer, other), quick_match(other, answer)}
        if quick != {None}:
            return True in quick
        reply = self._pool.ask(readable(answer), readable(other))
        return None if reply.timed_out or reply.gold_unusable else reply.equal

    def _ask(self, pairs: Sequence[tuple[str | None, str]]) -> list[Reply]:
        def ask(pair: tuple[str | None, str]) -> Reply:
            candidate, gold = pair
            if len(gold) > MAX_CHARACTERS:
                return Reply(False, "", f"longer than {MAX_CHARACTERS} characters")
            return self._pool.ask(None if candidate is None else readable(candidate), readable(gold))

        if len(pairs) <= 1:
            return [ask(pair) for pair in pairs]
        with ThreadPoolExecutor(min(self._pool.size, len(pairs))) as threads:
            return list(threads.map(ask, pairs))


def _quick_verdict(text: str | None, problem: Problem) -> Verdict | None:
    """The verdict if math-verify is not needed for it."""
    if text is None:
        return Verdict(False, 0.0, "no final answer")
    answer = last_boxed(text)
    if answer is None:
        what = "unclosed \\boxed{" if "\\boxed{" in text else "no \\boxed{}"
        return Verdict(False, 0.0, f"{what} in the final turn")
    if not answer:
        return Verdict(False, 0.0, "empty \\boxed{} in the final turn", answer)
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, 0.0, f"longer than {MAX_CHARACTERS} characters", answer)
    equal = quick_match(answer, problem.answer)
    if equal is None:
        return None
    return Verdict(equal, float(equal), f"{'' if equal else 'not '}equal to the gold answer", answer)
