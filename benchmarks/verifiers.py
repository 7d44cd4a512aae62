"""The verifiers on real problems: right answers in natural spellings must pass, and what a policy would try must not.

    python benchmarks/verifiers.py rates FOLDER [--limit 200] [--output docs/results/verifiers.md]
    python benchmarks/verifiers.py speed FOLDER
    python benchmarks/verifiers.py fuzz [--texts 1000000] [--results 100000] [--seed 0]

FOLDER holds files of problems. `rates` has math-verify alone beside the verifier of mathematics, on the same pairs,
with its defaults. `speed` prints verdicts per second; to compare commits, run it on each. `fuzz` feeds random texts to
the verifiers, and random results to what reads them; anything raised is an error.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from gtpo.tasks.adversarial import wrong_answers
from gtpo.tasks.answer_types import answer_type
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import get_verifier
from gtpo.tasks.verifiers.answers import canonical, plain_number
from gtpo.tasks.verifiers.base import Verifier

Pair = tuple[str, str, Problem]
"""A kind of answer, the final turn, and the problem."""

FILES = (
    *("gsm8k_train", "gsm8k_test", "svamp", "math_lv35_train_2k", "aime_1983_2023_train", "dapo_math_train_2k"),
    *("traces_mathcoder", "traces_tora_examples", "commonsenseqa_train_1k", "strategyqa_train", "bbh_commonsense"),
    *("multihop_qa_train_1k", "mbpp_train", "cruxeval_output"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("rates", "speed"):
        one = commands.add_parser(name)
        one.add_argument("folder", type=Path)
        one.add_argument("--limit", type=int, default=200, help="problems of each file")
    commands.choices["rates"].add_argument("--output", type=Path)
    fuzz = commands.add_parser("fuzz")
    fuzz.add_argument("--texts", type=int, default=1_000_000)
    fuzz.add_argument("--results", type=int, default=100_000)
    fuzz.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "rates":
        rates(args.folder, args.limit, args.output)
    elif args.command == "speed":
        speed(args.folder, args.limit)
    else:
        fuzz_texts(args.texts, args.seed)
        fuzz_results(args.results, args.seed)


# Right answers


def said(answer: str, kind: str) -> str:
    return f"<answer>\n{answer}\n</answer>" if kind in ("tests", "literal") else f"The answer is \\boxed{{{answer}}}."


def natural(problem: Problem, kind: str) -> Iterator[tuple[str, str]]:
    """Kinds and final turns of right answers, as people and models write them."""
    gold = problem.answer
    if kind == "tests":
        program = str(problem.extras.get("reference") or "")
        for label in ("python", "Python", "py", ""):
            yield "program", f"So:\n```{label}\n{program}\n```\n"
        yield "program", f"~~~python\n{program}\n~~~"
        yield "program", f"<answer>\n```python\n{program}\n```\n</answer>"
        yield "program", f"```python\r\n{program}\r\n```\r\n".replace("\r\n", "\n").replace("\n", "\r\n")
        yield "program", f"```python\n{program}\n```\nFor example:\n```\n1 2 3\n```"
        return
    spellings = {"math": mathematics, "choice": choices, "qa": words, "literal": literals}[kind]
    yield from (("spelling", said(text, kind)) for text in spellings(problem))
    if kind != "literal":
        yield "second box", f"\\boxed{{0}} no, wait. {said(gold, kind)}"


def mathematics(problem: Problem) -> Iterator[str]:
    gold = problem.answer
    yield from (gold, f" {gold} ", f"${gold}$", f"{gold}.", rf"\displaystyle {gold}", f"{{{gold}}}")
    yield gold.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)")
    number = plain_number(canonical(gold))
    if number is not None and gold.lstrip("-").isdigit():
        grouped = f"{int(gold):,}"
        yield from (f"**{gold}**", f"{gold}.0", grouped, grouped.replace(",", "{,}"), grouped.replace(",", r"\,"))
        yield from (rf"{gold} \text{{ units}}", f"{gold} apples", rf"\text{{{gold}}}", f"x = {gold}", f"x = {grouped}")
    elif not any(mark in gold for mark in ("=", ",", "<", ">", r"\in", r"\text", "\\le", "\\ge", ":", "_")):
        yield from (f"x = {gold}", rf"{gold} \text{{ units}}")


def choices(problem: Problem) -> Iterator[str]:
    gold = problem.answer.strip("() \n")
    if gold.lower() in ("yes", "no", "true", "false"):
        yield from (
            gold,
            gold.title(),
            gold.upper(),
            f"{gold}.",
            f"**{gold}**",
            f"{gold}!",
            f"Answer: {gold}",
            f'"{gold}"',
        )
        return
    yield from (
        gold,
        gold.lower(),
        f"({gold})",
        f"[{gold}]",
        f"{gold}.",
        f"**{gold}**",
        f"({gold}).",
        f"Answer: {gold}",
    )
    yield rf"\text{{({gold})}}"
    if text := problem.extras.get("answer_text"):
        yield from (f"{gold}) {text}", f"({gold}) {text}", f"{gold}, {text}", f"{gold}: {text}.")


def words(problem: Problem) -> Iterator[str]:
    for gold in (problem.answer, *problem.extras.get("aliases", ())[:3]):
        yield from (gold, gold.upper(), f"{gold}.", f"**{gold}**", f'"{gold}"', f"Answer: {gold}", f"The {gold}")


def literals(problem: Problem) -> Iterator[str]:
    yield from (problem.answer, f"  {problem.answer}  ", repr(ast.literal_eval(problem.answer)))
    yield f"```python\n{problem.answer}\n```"


# Rates


def rates(folder: Path, limit: int, output: Path | None) -> None:
    verifier = get_verifier("auto")
    tables: dict[str, list[str]] = {"file": [], "kind": []}
    kinds: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    start = time.monotonic()
    for name in FILES:
        problems = load_problems(folder / f"{name}.jsonl", limit=limit)
        unusable = verifier.unusable(problems)
        problems = [problem for problem in problems if problem.id not in unusable]
        right, wrong = pairs_of(problems)
        failed, passed = outcomes(verifier, right, False), outcomes(verifier, wrong, True)
        alone = [math_verify_alone(pairs) if answer_type(problems[0]) == "math" else None for pairs in (right, wrong)]
        for pairs, errors, other, want in ((right, failed, alone[0], "right"), (wrong, passed, alone[1], "wrong")):
            for i, (kind, _, problem) in enumerate(pairs):
                counts = kinds[want, f"{answer_type(problem)}: {kind}"]
                counts[0] += 1
                counts[1] += i in errors
                counts[2] += other is not None
                counts[3] += other is not None and (other[i] != (want == "right"))
        others = [
            "-" if a is None else share(sum(x != w for x in a), len(a)) for a, w in zip(alone, (1, 0), strict=True)
        ]
        row = [name, len(problems), len(unusable), len(right), share(len(failed), len(right)), others[0]]
        row += [len(wrong), share(len(passed), len(wrong)), others[1]]
        tables["file"].append("| " + " | ".join(map(str, row)) + " |")
        print(tables["file"][-1], flush=True)
        for pairs, errors in ((right, failed), (wrong, passed)):
            for i in sorted(errors)[:10]:
                print("   ", pairs[i][0], repr(pairs[i][1][-120:]), repr(pairs[i][2].answer[:80]), file=sys.stderr)
    verifier.close()
    for (want, kind), (count, errors, both, others) in sorted(kinds.items()):
        alone_text = share(others, both) if both else "-"
        tables["kind"].append(f"| {want} | {kind} | {count:,} | {share(errors, count)} | {alone_text} |")
    text = document(tables, limit, time.monotonic() - start)
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        print(text)


def pairs_of(problems: Sequence[Problem]) -> tuple[list[Pair], list[Pair]]:
    right, wrong = [], []
    for i, problem in enumerate(problems):
        kind = answer_type(problem)
        right += [(what, text, problem) for what, text in natural(problem, kind)]
        others = [problems[(i + k) % len(problems)] for k in (1, 2)]
        wrong += [(what, said(answer, kind), problem) for what, answer in wrong_answers(problem, kind, others)]
    return right, wrong


def outcomes(verifier: Verifier, pairs: Sequence[Pair], wanted: bool) -> set[int]:
    """The places of the pairs whose verdict is `wanted`."""
    verdicts = verifier.verify_many([text for _, text, _ in pairs], [problem for *_, problem in pairs])
    return {i for i, verdict in enumerate(verdicts) if verdict.passed == wanted}


def math_verify_alone(pairs: Sequence[Pair]) -> list[bool]:
    with multiprocessing.Pool(2) as pool:
        return pool.map(_alone, [(text, problem.answer) for _, text, problem in pairs], chunksize=50)


def _alone(pair: tuple[str, str]) -> bool:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    text, gold = pair
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(text)))


def share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.2%})" if whole else "0"


def document(tables: dict[str, list[str]], limit: int, seconds: float) -> str:
    return f"""# The verifiers, checked

`python benchmarks/verifiers.py rates FOLDER --limit {limit} --output docs/results/verifiers.md` checks the first
{limit} problems of each file. Each gold answer, in the spellings that people and models use, must pass. What a policy
would try must not pass: equations that fit everything, near misses of powers and digits, lost letters, two answers at
once, programs that lie about their tests (`gtpo.tasks.adversarial`). For comparison, math-verify alone, with its
defaults, judges the same pairs in mathematics. The run took {seconds:.0f} s on two cores, beside other work.

## By file

"Alone" is math-verify alone. "Fail" counts right answers that were rejected, "pass" wrong answers that were accepted.

| file | problems | can't be used | right answers | fail | fail alone | wrong answers | pass | pass alone |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(tables["file"])}

## By kind

| answers | kind | pairs | judged wrongly | judged wrongly alone |
|---|---|---:|---:|---:|
{chr(10).join(tables["kind"])}

`gtpo doctor --verify FILE` names the gold answers that can't be used, with the reason. They are also named before a
run.

## Elsewhere

- `tests/tasks/test_math_adversarial.py`: some 560 pairs; pairs known to be judged leniently or strictly are listed
  there in a separate table.
- `tests/tasks/test_hostile_programs.py`: programs that lie about their tests, each with the old way of judging as the
  control, and forged outcomes.
- `tests/tasks/test_code_verifier.py`: reference solutions and mutated ones, compared with a plain interpreter.
- `tests/tasks/test_verifier_cases.py`: cases that were once judged wrongly, and cases that are deliberately judged
  otherwise than the case file wants.
- `python benchmarks/verifiers.py fuzz`: a million random texts and a hundred thousand forged results. No exception
  was raised in a full run before the last changes, nor in 60,000 texts and 20,000 results near the end.
- `python benchmarks/verifiers.py speed FOLDER`: verdicts per second; run it on two commits to compare them.
"""


# Speed


def speed(folder: Path, limit: int) -> None:
    for name in ("math_lv35_train_2k", "mbpp_train"):
        problems = load_problems(folder / f"{name}.jsonl", limit=limit)
        verifier = get_verifier("math" if name.startswith("math") else "code")
        bad = verifier.unusable(problems)
        problems = [problem for problem in problems if problem.id not in bad]
        texts, asked = [], []
        for i, problem in enumerate(problems):
            if name.startswith("math"):
                other = problems[(i + 1) % len(problems)].answer
                given = [said(text, "math") for text in (f"{problem.answer} ", f"{problem.answer}+1", other)]
            else:
                given = [f"```python\n{problem.extras['reference']}\n```"]
            texts += given
            asked += [problem] * len(given)
        verifier.verify_many(texts[:20], asked[:20])
        start = time.monotonic()
        verifier.verify_many(texts, asked)
        print(f"{name}: {len(texts)} verdicts, {len(texts) / (time.monotonic() - start):.0f} a second", flush=True)
        verifier.close()


# Fuzzing

PIECES = (
    *(
        "\\boxed{",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "```",
        "```python\n",
        "\n",
        "~~~",
        "$",
        "\\frac",
        "\\sqrt",
        "\\left(",
    ),
    *(
        "1",
        "2",
        "x",
        "y",
        "=",
        "<",
        ">",
        ",",
        ";",
        ":",
        "(",
        ")",
        "[",
        "]",
        "\\{",
        "\\}",
        "\\pm",
        "\\cup",
        "\\in",
        "^",
        "_",
    ),
    *(
        "\\text{",
        " or ",
        " and ",
        "\\infty",
        "\\ldots",
        "...",
        "'",
        "%",
        "\\%",
        "\\circ",
        "!",
        "|",
        "\\begin{pmatrix}",
        "&",
    ),
    *(
        "\\\\",
        "\\end{pmatrix}",
        "A",
        "(B)",
        "yes",
        "No!",
        "**",
        '"',
        "\u202e",
        "\x00",
        "\ud83d",
        "é",
        "0.5",
        "1e9",
        "e",
        "i",
    ),
)


def random_text(rng: random.Random) -> str:
    body = "".join(rng.choices(PIECES, k=rng.randint(0, 14)))
    return body if rng.random() < 0.2 else f"\\boxed{{{body}}}" if rng.random() < 0.7 else f"<answer>{body}</answer>"


def fuzz_texts(count: int, seed: int) -> None:
    """Texts to all verifiers whose candidates are not run; a batch at a time, so that what raises is found."""
    rng = random.Random(seed)
    from gtpo.tasks.verifiers.code import candidate

    golds = (r"\frac{1}{2}", "x=5", "(1,2)", r"\{1,2\}", "x^2+1", "1<x<2", "7", r"\text{yes}")
    math = [Problem(f"m{i}", "?", gold) for i, gold in enumerate(golds)]
    choice = Problem("c", "?\n(A) maine\n(B) bank", "A", "commonsense")
    qa = Problem("q", "?", "Paris", "commonsense", {"aliases": ["Paris"]})
    literal = Problem("l", "?", "[1, 'a']", "code", {"answer_kind": "literal"})
    verifier = get_verifier("auto")
    start, passed = time.monotonic(), 0
    for first in range(0, count, 2000):
        texts = [random_text(rng) for _ in range(min(2000, count - first))]
        problems = [rng.choice((rng.choice(math), choice, qa, literal)) for _ in texts]
        passed += sum(verdict.passed for verdict in verifier.verify_many(texts, problems))
        for text in texts:
            candidate(text, "tests")
    verifier.close()
    print(f"{count:,} texts, {passed} passed, nothing raised, {time.monotonic() - start:.0f} s", flush=True)


def fuzz_results(count: int, seed: int) -> None:
    """Results as a hostile process could write them, to what reads them outside the sandbox."""
    from gtpo.tasks.verifiers._io_tests import IOTests
    from gtpo.tasks.verifiers._literal_tests import literal_tests
    from gtpo.tasks.verifiers._programs import Loaded, compared, json_data

    rng = random.Random(seed)
    tests = IOTests.parse(
        json.dumps({"function": "f", "tests": [{"input": [1], "output": [1]}, {"input": [2], "output": 2}]})
    )
    simple = literal_tests("assert f(1) == [1]\nassert f(2)", "f")
    assert simple is not None
    start, passed = time.monotonic(), 0
    for _ in range(count):
        text = json.dumps(random_data(rng, 4)) if rng.random() < 0.8 else "".join(rng.choices('[]{}",:1e-ntrual', k=20))
        outcomes = json_data(text, list)
        if outcomes is None:
            continue
        passed += tests.wrong_result(outcomes) is None
        passed += compared(simple, Loaded("", {"f": ["callable"]}, outcomes, len(text)), "f") == ""
    print(f"{count:,} results, {passed} passed, nothing raised, {time.monotonic() - start:.0f} s", flush=True)


def random_data(rng: random.Random, depth: int) -> object:
    marks = ("l", "t", "d", "s", "i", "f", "o", "F", "D", "r", "N", "q", "value", "error", "exit", "x")
    choice = rng.random()
    if depth == 0 or choice < 0.3:
        return rng.choice(
            (None, True, 0, 1, -1.5, 1e308, "a", "value", "error", "exit", "0x1", "nan", "SystemExit", "")
        )
    if choice < 0.7:
        return [random_data(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(marks): random_data(rng, depth - 1) for _ in range(rng.randint(0, 2))}


if __name__ == "__main__":
    main()
