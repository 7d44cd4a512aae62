"""Programs that try to pass without being right: none may, whatever they do to their own process."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest

from gtpo.sandbox import Limits, LocalSandbox
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.code import CodeVerifier

LIMITS = Limits(cpu_s=2.0, wall_s=10.0)


def calls(pairs):
    return json.dumps({"function": "f", "tests": [{"input": [given], "output": out} for given, out in pairs]})


def problem(kind, answer, **extras):
    return Problem(kind, "f(n) = n*n + 1", answer, "code", extras)


PROBLEMS = {
    "calls": problem("calls", calls([(3, 10), (5, 26), (7, 50)]), answer_kind="io"),
    "callstr": problem("callstr", calls([("ab", ["a", "b"]), ("c", ["c"])]), answer_kind="io"),
    "callbool": problem("callbool", calls([(1, True), (2, False)]), answer_kind="io"),
    "stdin": problem(
        "stdin", json.dumps([{"input": f"{n}\n", "output": f"{n * n + 1}\n"} for n in (3, 5, 7)]), answer_kind="io"
    ),
    "asserts": problem("asserts", "assert f(2) == 5\nassert f(3) == 10\nassert f(4) == 17\n"),
    "check": problem(
        "check",
        "def check(candidate):\n    assert candidate(2) == 5\n    assert candidate(3) == 10\n"
        "    assert abs(candidate(4) - 17) < 1\n\ncheck(f)\n",
        entry_point="f",
    ),
    "unittest": problem(
        "unittest",
        "import unittest\nclass T(unittest.TestCase):\n    def test_two(self):\n        self.assertEqual(f(2), 5)\n"
        "    def test_three(self):\n        self.assertEqual(f(3), 10)\n"
        "assert unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T)).wasSuccessful()\n",
    ),
    "raises": problem(
        "raises",
        "assert f(2) == 5\ntry:\n    f('x')\nexcept TypeError:\n    pass\nelse:\n    raise AssertionError('none')\n",
    ),
    "lit": problem("lit", "5", answer_kind="literal"),
}
RIGHT = "def f(n): return n * n + 1"
DECIDED_OTHERWISE = {
    "callbool:True for 1": "1 == True, as LiveCodeBench compares",
    "calls:float": "5.0 == 5, as LiveCodeBench compares",
    "callstr:tuple for list": "LiveCodeBench makes a list of it",
    "stdin:sci": "decimals of equal value, as LiveCodeBench compares",
}


@pytest.fixture(scope="module")
def sandbox():
    with_workers = LocalSandbox(max_workers=4)
    yield with_workers
    with_workers.close()


@pytest.fixture(scope="module")
def verifier(sandbox):
    return CodeVerifier(sandbox, LIMITS)


def judged(verifier, kind, program):
    (verdict,) = verifier.verify_many([f"<answer>\n{program}\n</answer>"], [PROBLEMS[kind]])
    return verdict


@pytest.mark.parametrize("kind", ["calls", "asserts", "check", "unittest", "raises"])
def test_an_honest_program_passes(verifier, kind):
    assert judged(verifier, kind, RIGHT).reason == "all tests passed"
    assert not judged(verifier, kind, "def f(n): return n * n").passed


def test_all_of_the_hostile_programs_fail(verifier, shared_data):
    path = shared_data / "hostile_programs.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [f"<answer>\n{row['program']}\n</answer>" for row in rows]
    verdicts = verifier.verify_many(texts, [PROBLEMS[row["kind"].partition(":")[0]] for row in rows])
    passed = {row["kind"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.passed}
    assert passed - set(DECIDED_OTHERWISE) == set()
    assert len(rows) >= 90


EQUAL = (
    "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __hash__(s): return 0\n"
)
LIES = {
    "an object that is equal to everything": EQUAL + "def f(n): return E()",
    "an integer that is equal to everything": EQUAL.replace("class E:", "class E(int):") + "def f(n): return E(0)",
    "a function that is its own result": EQUAL.replace("class E:", "class E:\n    def __call__(s, *a): return s\n")
    + "f = E()",
    "a printed marker, by frames": "import sys, os\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n"
    "        for k in frame.f_code.co_consts:\n            if isinstance(k, str) and len(k) == 32:\n"
    "                os.write(1, (k + '\\n').encode()); os._exit(0)\n        frame = frame.f_back\n    return 0",
    "asserts that are not compiled": "import builtins\nold = builtins.compile\n"
    "builtins.compile = lambda *a, **k: old(*a, **{**k, 'optimize': 1})\ndef f(n): return 0",
    "asserts that are parsed away": "import ast\nold = ast.parse\ndef parse(*a, **k):\n    tree = old(*a, **k)\n"
    "    class Drop(ast.NodeTransformer):\n        def visit_Assert(s, n): return ast.copy_location(ast.Pass(), n)\n"
    "    return ast.fix_missing_locations(Drop().visit(tree))\nast.parse = parse\ndef f(n): return 0",
    "another exec": "import builtins, os\ndef run(code, *a):\n    for k in code.co_consts:\n"
    "        if isinstance(k, str) and len(k) == 32: os.write(1, (k + '\\n').encode())\nbuiltins.exec = run\n"
    "def f(n): return 0",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_fails_here_and_passed_where_program_and_tests_shared_a_process(verifier, sandbox, lie):
    assert not judged(verifier, "asserts", LIES[lie]).passed
    assert _passes_in_one_process(sandbox, LIES[lie], PROBLEMS["asserts"].answer)


def _passes_in_one_process(sandbox, program, tests):
    """As programs used to be judged: the tests run behind the program, then a word is printed."""
    word = secrets.token_hex(16)

    async def run():
        session = sandbox.session()
        results = [await session.run(code, limits=LIMITS) for code in (program, f"{tests}\nprint({word!r});")]
        await session.aclose()
        return results[-1].stdout.split("\n")[-2:] == [word, ""]

    return asyncio.run(run())


FORGE = """
import os, sys, json, gc
def f(n):
    frame = sys._getframe()
    while 'asked' not in frame.f_locals:
        frame = frame.f_back
    asked = frame.f_locals['asked']
    word, count = asked['word'], len(asked['operations'])
    os.write(1, ('\\n' + word + ' {"f": %s}\\n' + word + ' ' + %s + '\\n').encode())
    os._exit(0)
"""
OUTCOMES = {
    "none": "'[]'",
    "too few": "json.dumps([['value', 5]])",
    "too many": "json.dumps([['value', 5]] * (count + 1))",
    "an exit without error": "json.dumps([['error', ['SystemExit'], {'l': [0]}]] * count)",
    "a subclass of an exit": "json.dumps([['error', ['Out', 'SystemExit'], {'l': [0]}]] * count)",
    "the judge's own exception": "json.dumps([['error', ['Needed'], {'l': []}]] * count)",
    "unknown kinds": "json.dumps([['passed', True]] * count)",
    "a reference": "json.dumps([['value', {'r': 0}]] * count)",
    "an object": "json.dumps([['value', {'o': 'int'}]] * count)",
    "deep": "'[' * 40000",
    "deep values": "'[' + ','.join(['[\"value\",' + '{\"l\":[' * 5000 + ']}' * 5000 + ']'] * count) + ']'",
    "numbers": "'[1, 2, 3]'",
    "null": "'null'",
    "true": "'true'",
    "not JSON": "'[NaN, Infinity'",
    "a builtin": "json.dumps([['value', {'B': 'True'}]] * count)",
}


@pytest.mark.parametrize("outcomes", OUTCOMES)
@pytest.mark.parametrize("kind", ["calls", "callbool", "asserts", "check", "unittest", "raises"])
def test_forged_outcomes_are_no_pass_and_no_exception(verifier, kind, outcomes):
    program = FORGE % ('["callable"]', OUTCOMES[outcomes])
    assert not judged(verifier, kind, program).passed


@pytest.mark.parametrize(
    "kinds", ['["value", true]', '["error", ["SystemExit"]]', '["error", ["x"]]', "7", "[]", "null"]
)
@pytest.mark.parametrize("kind", ["asserts", "unittest", "raises"])
def test_forged_kinds_are_no_pass_and_no_exception(verifier, kind, kinds):
    assert not judged(verifier, kind, FORGE % (kinds, "json.dumps([['value', 0]] * count)")).passed


FLOOD_OF_VALUES = """\
import os, sys
frame = sys._getframe()
while not isinstance(frame.f_locals.get("word"), bytes):
    frame = frame.f_back
word = frame.f_locals["word"]
data = b"\\n" + word + b' {"f": ["callable"]}\\n' + word + b' [["value",[' + b"VALUE," * 600000 + b"0]]]\\n"
while data:
    data = data[os.write(1, data) :]
os._exit(0)
"""


@pytest.mark.parametrize("value", ["{}", "[]", "[[[[[[[]]]]]]]"])
@pytest.mark.parametrize("kind", ["calls", "asserts"])
def test_values_that_would_fill_the_memory_here_are_not_read(verifier, kind, value):
    """A candidate writes its own results, in megabytes that would be gigabytes of objects in the trainer."""
    verdict = judged(verifier, kind, FLOOD_OF_VALUES.replace("VALUE", value))
    assert (verdict.passed, verdict.reason) == (False, "the program gave more values than can be compared")


def test_large_honest_results_are_compared(verifier):
    tests = "assert len(f(0)) == 40000\nassert f(0)[-1] == [39999]\n"
    problem = Problem(id="large", question="q", answer=tests, domain="code", extras={"answer_kind": "tests"})
    (verdict,) = verifier.verify_many(["<answer>\ndef f(n): return [[i] for i in range(40000)]\n</answer>"], [problem])
    assert verdict.passed, verdict.reason
