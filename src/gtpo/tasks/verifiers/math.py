r"""Checks answers to mathematical problems: compares the last `\boxed{}` of the text with the gold answer.

Most comparisons need no algebra and are decided at once (see `answers`). The others run in processes with limits on
time and memory, which parse the structure of both answers (`_math_reading`) and compare them by kind (`_math_equal`).

Besides the same value, these pass: an unevaluated `2 \cdot 9` for 18; `x = 5` and `x \equiv 5 \pmod{7}` for 5; decimals
within the tolerance of `answers` for an exact number; 50% for 50 and for 0.5; an angle in degrees for the number and
for radians; an answer with a unit for one without and the reverse, but not one with another known unit; values for
letters, in the letters' order, for a pair; an inequality for the interval; words after `yes,` or `no,`.

These fail by design:

- Only the last box that opens is read: `Final Answer: **73**`, `\fbox{1}` and `\boxed{5} ... \boxed{6` fail.
- Letters are equal only if name and case are the same. Parameters are not recognised as such: 3n + 1 is not 3k + 1.
- A set is neither a pair nor an ordered list; X is not x; x' is not x.
- An answer with an undefined value, infinity within an expression, dots that omit members, or numbers side by side is
  equal only to the same spelling. So is an answer that no form can hold completely, such as 5 feet 6 inches.

The table KNOWN of the adversarial test lists further cases.
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
"""Longer answers fail: they are not final answers, and a request must fit into a pipe."""


class MathVerifier:
    r"""Checks the answer in the last `\boxed{}`.

    Processes start with the first comparison that needs one, and end with `close`, with the verifier, or with
    the program. The same answers get the same verdicts, except that it depends on the machine which comparisons reach
    the time limit.

    Args:
        timeout_s: time limit per comparison, in seconds. When it is reached, the process is killed and the answer
            fails.
        workers: maximum number of processes; by default half of the available CPUs, but at most 4.

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
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: a gold answer can't be read and `unusable` has not accepted it before, or no process starts.
                If it was accepted and takes too long now, the answer fails instead.
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
        r"""Whether the text contains a closed, non-empty `\boxed{}`."""
        return bool((last_boxed(text) or "").strip())

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Compares each answer with the first answer of every class so far.

        An answer that math-verify can't read, or can't compare in time, is equal only to the same LaTeX (after
        `canonical`).

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
        """Returns the problems whose gold answers math-verify can't read, as id and reason.

        Call it before a long run, so that the run does not stop at such a problem.
        """
        each = [replace(p, answer=gold) for p in problems for gold in p.golds]
        open_problems = [p for p in each if plain_number(canonical(p.answer)) is None]
        golds = list(dict.fromkeys(p.answer for p in open_problems))
        replies = dict(zip(golds, self._ask([(None, gold) for gold in golds]), strict=True))
        self._accepted |= {gold for gold, reply in replies.items() if not reply.gold_unusable}
        return {p.id: why for p in open_problems if (why := replies[p.answer].gold_unusable)}

    def _by_alias(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """An answer passes if it equals any of its problem's aliases; otherwise the first alias gives the verdict."""
        golds = [problem.golds for problem in problems]
        each = [replace(p, answer=gold, extras={}) for p, own in zip(problems, golds, strict=True) for gold in own]
        texts = [text for text, own in zip(answer_texts, golds, strict=True) for _ in own]
        found = iter(self.verify_many(texts, each))
        verdicts = [[next(found) for _ in own] for own in golds]
        return [next((verdict for verdict in own if verdict.passed), own[0]) for own in verdicts]

    def close(self) -> None:
        """Ends the processes. The next `verify_many` starts them again."""
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
        """Whether two answers are equal; None if the comparison takes too long."""
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
    """Returns the verdict if it does not need math-verify, else None."""
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
