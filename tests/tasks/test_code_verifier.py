"""Programs against their tests, literals against values; real solutions pass, mutated ones are told apart."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gtpo.errors import VerifierError
from gtpo.sandbox import ExecResult, Limits, LocalSandbox, SandboxFusionSandbox, Status
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import get_verifier
from gtpo.tasks.verifiers.code import CodeVerifier, candidate

ADD = Problem("add", "Write add.", "assert add(1, 2) == 3\nassert add(-1, 1) == 0", "code", {"prelude": "import math"})
LITERAL = Problem("lit", "f(2)?", "[1, 'a']", "code", {"answer_kind": "literal"})


@pytest.fixture(scope="module")
def verifier():
    with_sandbox = CodeVerifier(LocalSandbox(max_workers=4), Limits(cpu_s=1.0, wall_s=5.0))
    yield with_sandbox
    with_sandbox._sandbox.close()


def fenced(code):
    return f"Here it is:\n```python\n{code}\n```\n"


@pytest.mark.parametrize(
    ("program", "passed", "reason"),
    [
        ("def add(a, b): return a + b", True, "all tests passed"),
        ("def add(a, b): return math.fsum([a, b])", True, "all tests passed"),
        ("from __future__ import annotations\ndef add(a: int, b: int) -> int: return a + b", True, "all tests passed"),
        ("def add(a, b): return a - b", False, "the tests ended with AssertionError"),
        ("def sub(a, b): return a - b", False, "the tests ended with NameError"),
        ("def add(a, b:", False, "the program ended with SyntaxError"),
        ("while True: pass", False, "the program ended with timed out"),
        ("def add(a, b):\n    while True: pass", False, "the tests ended with timed out"),
        ("import os\nos._exit(0)", False, "the tests ended with NameError"),
        ("import os\ndef add(a, b): os._exit(0)", False, "the tests were not run to their end"),
        ("import sys\ndef add(a, b): sys.exit(0)", False, "the tests were not run to their end"),
        ("def add(a, b): raise SystemExit", False, "the tests were not run to their end"),
        ("print('0' * 32)\ndef add(a, b): raise SystemExit", False, "the tests were not run to their end"),
    ],
)
def test_programs_are_judged_by_their_tests(verifier, program, passed, reason):
    (verdict,) = verifier.verify_many([fenced(program)], [ADD])
    assert (verdict.passed, verdict.score) == (passed, float(passed))
    assert verdict.reason.startswith(reason)
    assert verdict.extracted.strip() == program


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("\\boxed{[1, 'a']}", True),
        ('<answer>[1,"a"]</answer>', True),
        ("\\boxed{(1, 'a')}", False),
        ("\\boxed{[True, 'a']}", True),
        ("\\boxed{[1, 'b']}", False),
        ("\\boxed{f(2)}", False),
        ("no value", False),
        (None, False),
    ],
)
def test_literals_are_compared_by_value(verifier, given, passed):
    (verdict,) = verifier.verify_many([given], [LITERAL])
    assert verdict.passed is passed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na\n```\nor\n```\nb\n```", "a\n"),
        ("```\na\n```\nor\n```\nb\n```", "b\n"),
        ("```Python3\na\n```\nthen\n```text\n6\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("1. So:\n   ```py\n   def f():\n       pass\n   ```", "def f():\n    pass\n"),
        ("```python\r\na\r\nb\r\n```\r\n", "a\nb\n"),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        ("```cpp\nint a;\n```", None),
        ("```python\nprint(1)", "print(1)"),
        ("```python\nprint(1", None),
        ("<answer>\nprint(1)\n", "print(1)"),
        ("<answer>\nprint('<answer>x</answer>')\n</answer>", "print('<answer>x</answer>')"),
        ("Between <answer> tags: <answer>a = 1</answer>", "a = 1"),
        ("```python\na\n```\nThis is my <answer>", "a\n"),
        ("<answer>\n    a = 1\n    b = 2\n</answer>", "a = 1\nb = 2"),
        ("```python\na\n```\n<answer>\nb = 1\n</answer>", "b = 1"),
        ("<answer>\n```python\nc\n```\n</answer>", "c\n"),
        ("```python\nopen", None),
        ("<answer> </answer>", None),
        ("x", None),
    ],
)
def test_the_last_answer_is_the_candidate(text, found):
    assert candidate(text, "tests") == found
    assert CodeVerifier.has_answer(None, text, ADD) is (found is not None)


@pytest.mark.parametrize(
    "piece", ["``` ", " ", "- ", "<answer>", "</answer>", "<answer></answer>", "```\n", "```python\n", "\\boxed{"]
)
def test_reading_is_linear_in_the_length_of_the_text(piece):
    start = time.process_time()
    for kind in ("tests", "literal"):
        candidate(piece * 20_000, kind)
        candidate("```" + piece * 20_000 + "x", kind)
        candidate(piece * 20_000 + "</answer>" * 20_000, kind)
    assert time.process_time() - start < 2.0


def test_a_candidate_that_was_kept_waiting_is_tried_again_with_more_time():
    class Busy:
        def __init__(self, cpu_s):
            self.cpu_s, self.walls = cpu_s, []

        async def run(self, code, *, limits, **_):
            self.walls.append(limits.wall_s)
            return ExecResult(Status.TIMEOUT, note="timed out: more than 2 s of running time", cpu_s=self.cpu_s)

    for used, walls in ((0.4, [2.0, 8.0]), (1.0, [2.0])):
        sandbox = Busy(used)
        (verdict,) = CodeVerifier(sandbox, Limits(cpu_s=1.0, wall_s=2.0)).verify_many([fenced("x = 1")], [ADD])
        assert verdict.reason.startswith("the program ended with timed out")
        assert sandbox.walls == walls


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (
            "class Node:\n    def __init__(s, v): s.v, s.left = v, None\n"
            "def total(n): return n.v + (total(n.left) if n.left else 0)",
            "root = Node(1)\nroot.left = Node(2)\nassert total(root) == 3\nassert root.left.v == 2",
        ),
        ("def sort(l): l.sort()", "l = [3, 1]\nassert sort(l) is None\nassert l == [1, 3]"),
        (
            "def g(x): return x + 1\ndef f(x): return 2 * x",
            "assert f(g(1)) == 4\nassert all(f(i) == 2 * i for i in range(50))",
        ),
        (
            "class Bad(ValueError): pass\ndef f(x): raise Bad('no')",
            "try:\n    f(1)\nexcept Bad as e:\n    assert str(e) == 'no'\nelse:\n    assert False",
        ),
        (
            "from fractions import Fraction\ndef f(x): return [Fraction(x, 2), {1, 2}, (x,), b'x', 1j]",
            "from fractions import Fraction\nassert f(3) == [Fraction(3, 2), {2, 1}, (3,), b'x', 1j]",
        ),
        ("def f(n): return (i for i in range(n))", "assert list(f(3)) == [0, 1, 2]"),
        (
            "def f(n): return {n: 1, 2: n}",
            "assert f(3).keys() == {2, 3} and list(f(3).items()) == [(3, 1), (2, 3)] and f(3).keys() != [3, 2]",
        ),
        ("def f(d): return d.keys()", "assert f({1: 2}) == {1}\nassert f({1: 2}) != [1]"),
        ("LIMIT = 7\ndef f(x): return min(x, LIMIT)", "assert f(9) == LIMIT == 7"),
        ("def f(n): return 10 ** n", "assert f(5000) == 10 ** 5000"),
        ("state = []\ndef f(x):\n    state.append(x)\n    return len(state)", "assert f(0) == 1\nassert f(0) == 2"),
    ],
)
def test_what_tests_do_with_a_program_crosses(verifier, program, tests):
    problem = Problem("p", "?", tests, "code")
    good, bad = verifier.verify_many([fenced(program), fenced("x = 1")], [problem, problem])
    assert good.reason == "all tests passed"
    assert not bad.passed


def test_many_are_checked_at_once_and_keep_their_order(verifier):
    programs = [fenced(f"def add(a, b): return a + b + {i % 2}") for i in range(20)]
    verdicts = verifier.verify_many(programs, [ADD] * 20)
    assert [verdict.passed for verdict in verdicts] == [i % 2 == 0 for i in range(20)]


def test_a_failing_sandbox_is_no_verdict():
    class Broken:
        def session(self, **_):
            return self

        async def run(self, code, **_):
            return ExecResult(Status.TOOL_FAILURE, note="gone")

        async def aclose(self):
            pass

    with pytest.raises(VerifierError, match="problem add: the sandbox failed: gone"):
        CodeVerifier(Broken()).verify_many([fenced("x")], [ADD])


def test_program_and_tests_are_never_in_one_process_also_without_sessions(verifier):
    class Stateless:
        session = SandboxFusionSandbox.session

        def __init__(self):
            self.codes = []

        async def run(self, code, **more):
            self.codes.append(code)
            return await verifier._sandbox.run(code, **more)

    sandbox = Stateless()
    more = replace(ADD, answer="three = add(1, 2)\n" + ADD.answer)
    verdicts = CodeVerifier(sandbox).verify_many([fenced("def add(a, b): return a + b")] * 2, [ADD, more])
    assert [verdict.passed for verdict in verdicts] == [True, True]
    assert any("def add" in code for code in sandbox.codes)
    assert any("assert add(-1" in code for code in sandbox.codes)
    assert not any("def add" in code and "assert add(-1" in code for code in sandbox.codes)


def test_problems_that_can_not_be_checked_are_named(verifier):
    broken = [
        replace(ADD, id="syntax", answer="assert ("),
        replace(LITERAL, id="call", answer="f(2)"),
        replace(ADD, id="kind", extras={"answer_kind": "video"}),
    ]
    unusable = verifier.unusable([ADD, LITERAL, *broken])
    assert sorted(unusable) == ["call", "kind", "syntax"]
    with pytest.raises(VerifierError, match="problem kind: answer_kind is 'video'"):
        verifier.verify_many([fenced("x")], [broken[2]])


def test_it_is_had_by_name():
    named = get_verifier("code")
    assert isinstance(named, CodeVerifier)
    named.close()
    named.close()


class _Mutate(ast.NodeTransformer):
    """Changes one number or one comparison of a program."""

    def __init__(self, rng):
        self.rng, self.done = rng, False

    def visit_Constant(self, node):
        if not self.done and isinstance(node.value, int) and not isinstance(node.value, bool):
            self.done = self.rng.random() < 0.5
            return ast.Constant(node.value + 1) if self.done else node
        return node

    def visit_Return(self, node):
        self.generic_visit(node)
        if not self.done and node.value is not None:
            self.done = True
            return ast.Return(ast.Tuple([node.value, ast.Constant(None)], ast.Load()))
        return node


def test_all_real_solutions_pass_and_mutated_ones_are_told_apart_as_the_tests_say(verifier, shared_data):
    problems = load_problems(shared_data / "mbpp_train.jsonl")
    assert verifier.unusable(problems) == {}
    solutions = [str(problem.extras["reference"]) for problem in problems]
    verdicts = verifier.verify_many([fenced(code) for code in solutions], problems)
    assert [(p.id, v.reason) for p, v in zip(problems, verdicts, strict=True) if not v.passed] == []
    rng = random.Random(0)
    mutated = [ast.unparse(ast.fix_missing_locations(_Mutate(rng).visit(ast.parse(code)))) for code in solutions[:200]]
    verdicts = verifier.verify_many([fenced(code) for code in mutated], problems[:200])
    with ThreadPoolExecutor(4) as threads:
        expected = list(threads.map(_passes_in_a_plain_process, mutated, problems[:200]))
    assert [verdict.passed for verdict in verdicts] == expected
    assert 0 < sum(expected) < 60, "most mutations do harm, some do none"


def _passes_in_a_plain_process(code, problem):
    program = "\n".join([str(problem.extras.get("prelude") or ""), code, problem.answer])
    try:
        return not subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=6).returncode
    except subprocess.TimeoutExpired:
        return False


STDIN = Problem(
    "stdin",
    "Add the two numbers of each line.",
    json.dumps([{"input": "1 2\n3 4\n", "output": "3\n7"}, {"input": "0.5 0.5\n", "output": "1.0\n"}]),
    "code",
    {"answer_kind": "io", "prelude": "import sys"},
)
CALLS = Problem(
    "calls",
    "Write pairs.",
    json.dumps({"function": "pairs", "tests": [{"input": [2, "a"], "output": [["a", 0], ["a", 1]]}]}),
    "code",
    {"answer_kind": "io"},
)
ADDS = "for line in sys.stdin:\n    print(sum(map(float, line.split())))"


@pytest.mark.parametrize(
    ("problem", "program", "reason"),
    [
        (STDIN, ADDS, None),
        (STDIN, "if __name__ == '__main__':\n    " + ADDS.replace("\n", "\n    "), None),
        (
            STDIN,
            "data = sys.stdin.buffer.read().decode().split()\n" + "n = [float(x) for x in data]\n"
            "print('\\n'.join(str(a + b) for a, b in zip(n[::2], n[1::2])))",
            None,
        ),
        (
            STDIN,
            "try:\n    while True:\n        a, b = map(float, input().split())\n        print(a + b)\n"
            "except EOFError:\n    sys.exit(0)",
            None,
        ),
        (STDIN, "print(3)\nprint(7)", "test 2 of 2 printed something else"),
        (STDIN, "print(3, 7)", "test 1 of 2 printed something else"),
        (STDIN, "print(1/0)", "test 1 of 2 ended with ZeroDivisionError"),
        (STDIN, "import time\nwhile True: pass", "test 1 of 2 ended with"),
        (CALLS, "def pairs(n, x):\n    return [(x, i) for i in range(n)]", None),
        (CALLS, "class Solution:\n    def pairs(self, n, x):\n        return [[x, i] for i in range(n)]", None),
        (CALLS, "def pairs(n, x):\n    print('noise', end='')\n    return [[x, i] for i in range(n)]", None),
        (CALLS, "def pairs(n, x):\n    return [[x, 0]]", "test 1 of 1 returned something else"),
        (CALLS, "def pairs(n, x):\n    return object()", "the tests ended with TypeError"),
        (CALLS, "def pears(n, x):\n    return 1", "the tests ended with KeyError"),
        (CALLS, "import sys\ndef pairs(n, x):\n    sys.exit(0)", "the tests were not run to their end"),
    ],
)
def test_programs_are_judged_by_input_and_output(verifier, problem, program, reason):
    (verdict,) = verifier.verify_many([f"<answer>\n{program}\n</answer>"], [problem])
    assert verdict.passed == (reason is None)
    assert verdict.reason.startswith(reason or "all tests passed")


@pytest.mark.parametrize("answer", ["[]", "{}", "[1]", '[{"input": 1, "output": ""}]', '{"function": "f"}', "no"])
def test_tests_of_input_and_output_must_have_their_form(verifier, answer):
    problem = replace(STDIN, answer=answer)
    assert set(verifier.unusable([problem])) == {"stdin"}
    with pytest.raises(VerifierError, match="problem stdin"):
        verifier.verify_many(["<answer>x</answer>"], [problem])


IDIOMS = {
    "os.read": "import os\nprint(sum(map(int, os.read(0, 100).split())))",
    "io.BytesIO of descriptor 0": "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
    "print(sum(map(int, input().split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "with open": "with open('/dev/stdin') as f:\n    print(sum(map(int, f.read().split())))",
    "atexit": "import atexit, sys\natexit.register(lambda: print(sum(map(int, sys.stdin.read().split()))))",
    "os.write": "import os\nos.write(1, str(sum(map(int, input().split()))).encode())",
    "future": "from __future__ import annotations\ndef f(x: list[Nope]): return sum(x)\n"
    "print(f(map(int, input().split())))",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\n"
    "p = P(*map(int, input().split()))\nprint(p.x + p.y)",
    "two threads": "import threading\nout = []\ndef a(): out.append(sum(map(int, input().split())))\n"
    "def b(t): t.join(); print(out[0])\nt = threading.Thread(target=a)\nt.start()\n"
    "threading.Thread(target=b, args=(t,)).start()",
    "exit in main": "def main():\n    print(sum(map(int, input().split())))\n    exit()\n"
    "if __name__ == '__main__':\n    main()",
    "stdout of bytes": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, input().split())))",
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_programs_on_standard_input_run_as_on_the_command_line(verifier, idiom):
    tests = json.dumps([{"input": "1 2\n", "output": "3\n"}, {"input": "30 12\n", "output": "42"}])
    problem = Problem("sum", "Add.", tests, "code", {"answer_kind": "io", "prelude": "import sys\n"})
    assert verifier.verify_many([fenced(IDIOMS[idiom])], [problem])[0].reason == "all tests passed"
