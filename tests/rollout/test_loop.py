"""The loop with a scripted model and the real sandbox: ids, endings and their order, observations."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from gtpo.errors import BackendError, ConfigError, DataError, SandboxError
from gtpo.rollout import ChatEncoder, PythonTool, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.sandbox import ExecResult, Limits, LocalSandbox, SandboxFusionSandbox, Status
from gtpo.testing import ScriptedBackend
from gtpo.types import StopReason

CUT = ScriptedBackend.CUT


def python(code: str) -> str:
    return f"```python\n{code}\n```"


class FakeSandbox:
    """Answers after a delay, without running anything."""

    def __init__(self, status: Status = Status.OK, delay_s: float = 0.0):
        self.status, self.delay_s, self.codes = status, delay_s, []
        self.open = self.opened = 0

    def session(self, *, fresh=False, seed=None):
        self.open += 1
        self.opened += 1
        return FakeSession(self)

    async def run(self, code, *, limits=None, seed=None, key=None):
        self.codes.append(code)
        await asyncio.sleep(self.delay_s)
        return ExecResult(self.status, stdout=f"<{code}>")


class FakeSession:
    def __init__(self, sandbox: FakeSandbox):
        self.sandbox, self.closed = sandbox, False

    async def run(self, code, *, limits=None):
        return await self.sandbox.run(code)

    def close(self):
        self.sandbox.open -= not self.closed
        self.closed = True

    async def aclose(self):
        self.close()


@pytest.fixture(scope="module")
def sandbox():
    bounded_workers = LocalSandbox(max_workers=2)
    yield bounded_workers
    bounded_workers.close()


def roll(tokenizer, scripts, *, sandbox=None, max_context=2**20, max_concurrency=None, **limits):
    encoder = ChatEncoder(tokenizer, get_format("fenced"))
    prompts = [[{"role": "user", "content": question}] for question in scripts]
    backend = ScriptedBackend(
        tokenizer,
        {tuple(encoder.prompt_ids(p)): turns for p, turns in zip(prompts, scripts.values(), strict=True)},
        max_context=max_context,
    )
    engine = RolloutEngine(encoder, sandbox or FakeSandbox(), RolloutLimits(**limits))
    return engine.run(prompts, backend, max_concurrency=max_concurrency).trajectories, backend, encoder


def test_a_rollout_calls_reads_and_answers(tiny_tokenizer, sandbox):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("x = 6*7\nx"), "\\boxed{42}"]}, sandbox=sandbox)
    assert rollout.stop_reason is StopReason.ANSWER
    assert rollout.turns[0].observation.text == "42"
    assert rollout.turns[0].observation.statuses == ("ok",)
    assert rollout.code == "x = 6*7\nx"
    assert rollout.answer_text == "\\boxed{42}"


def test_the_next_context_is_what_was_sampled_and_observed_id_for_id(tiny_tokenizer):
    turns = [python("1"), python("2"), "\\boxed{2}"]
    (rollout,), backend, _ = roll(tiny_tokenizer, {"q": turns})
    ids = [*rollout.prompt_ids, *rollout.completion_ids]
    for context in backend.contexts:
        assert context == ids[: len(context)]
    assert len(backend.contexts) == 3
    assert rollout.logprobs == [
        -float(i) if keep else 0.0 for i, keep in zip(rollout.completion_ids, rollout.mask, strict=True)
    ]


def test_a_trace_of_the_same_text_has_the_same_ids_and_mask(tiny_tokenizer):
    turns = [python("6*7"), "```python\nopen", "\\boxed{42}"]
    (rollout,), _, encoder = roll(tiny_tokenizer, {"q": turns})
    trace = encoder.trace(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": turns[0]},
            {"role": "tool", "content": "<6*7>"},
            {"role": "assistant", "content": turns[1]},
            {"role": "tool", "content": rollout.turns[1].observation.text},
            {"role": "assistant", "content": turns[2]},
        ]
    )
    assert trace.prompt_ids == rollout.prompt_ids
    assert trace.completion_ids == rollout.completion_ids
    assert trace.mask == rollout.mask
    assert trace.turn_ids == rollout.turn_ids


@pytest.mark.parametrize(("state", "second"), [("stateless", "error"), ("session", "ok"), ("fresh", "error")])
def test_what_a_call_leaves_for_the_next_is_the_tools_state(tiny_tokenizer, sandbox, state, second):
    scripts = {q: [python(f"x = {q}\nmath = 3"), python("x"), python("import math; math.pi > 3"), "A"] for q in "123"}
    rollouts, _, _ = roll(tiny_tokenizer, scripts, sandbox=PythonTool(sandbox, state))
    for question, rollout in zip(scripts, rollouts, strict=True):
        assert [turn.observation.statuses for turn in rollout.turns[:3]] == [("ok",), (second,), ("ok",)]
        last_line = rollout.turns[1].observation.text.splitlines()[-1]
        assert last_line == (question if second == "ok" else "NameError: name 'x' is not defined")


@pytest.mark.parametrize("broken", [False, True])
def test_the_sessions_of_rollouts_are_ended_with_them(tiny_tokenizer, broken, monkeypatch):
    sandbox = FakeSandbox()
    if broken:
        monkeypatch.setattr(ScriptedBackend, "generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if broken else contextlib.nullcontext():
        roll(tiny_tokenizer, {"a": [python("1"), "A"], "b": ["B"]}, sandbox=PythonTool(sandbox, "session"))
    assert sandbox.opened == 3  # one by the tool, to see whether there are any
    assert sandbox.open == 0


def test_a_sandbox_without_sessions_is_refused_before_the_first_rollout():
    sandbox = SandboxFusionSandbox("http://localhost:1")
    PythonTool(sandbox)
    with pytest.raises(ConfigError, match="has no sessions: use tool_state 'stateless'"):
        PythonTool(sandbox, "session")
    with pytest.raises(ConfigError, match="tool_state must be one of stateless, session, fresh"):
        PythonTool(sandbox, "notebook")


def test_an_invalid_call_is_told_what_was_wrong_and_the_rollout_goes_on(tiny_tokenizer):
    sandbox = FakeSandbox()
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": ["```python\n1", python("1"), "\\boxed{1}"]}, sandbox=sandbox)
    assert rollout.stop_reason is StopReason.ANSWER
    assert rollout.turns[0].observation.text.startswith("Invalid call: the ```python block was not closed")
    assert rollout.turns[0].observation.statuses == ("invalid",)
    assert sandbox.codes == ["1"]
    assert (rollout.num_calls, rollout.num_invalid_calls) == (2, 1)


def test_several_calls_of_a_turn_are_observed_in_order(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("1") + "\n```python\n\n```\n" + python("2"), "ok"]})
    assert rollout.turns[0].observation.text == "<1>\nInvalid call: the code is empty.\n<2>"
    assert rollout.turns[0].observation.statuses == ("ok", "invalid", "ok")


def test_tool_calls_of_a_batch_run_at_the_same_time(tiny_tokenizer):
    scripts = {f"q{i}": [python("1"), "\\boxed{1}"] for i in range(20)}
    start = time.perf_counter()
    roll(tiny_tokenizer, scripts, sandbox=FakeSandbox(delay_s=0.2))
    assert time.perf_counter() - start < 3.5  # one after another: 4 s


def test_no_more_rollouts_are_under_way_than_may_be(tiny_tokenizer):
    class Sandbox(FakeSandbox):
        running = most = 0

        async def run(self, code, **options):
            self.running += 1
            self.most = max(self.most, self.running)
            result = await super().run(code, **options)
            self.running -= 1
            return result

    scripts = {f"q{i}": [python("1"), python("2"), f"A{i}"] for i in range(12)}
    bounded, free = Sandbox(delay_s=0.01), Sandbox(delay_s=0.01)
    rollouts, _, _ = roll(tiny_tokenizer, scripts, sandbox=bounded, max_concurrency=3)
    assert [rollout.answer_text for rollout in rollouts] == [f"A{i}" for i in range(12)]
    assert bounded.most == 3
    roll(tiny_tokenizer, scripts, sandbox=free)
    assert free.most == 12


def test_a_thousand_calls_at_once_all_get_their_own_result(tiny_tokenizer, sandbox):
    scripts = {f"q{i}": [python(f"{i}*7"), "A"] for i in range(1000)}
    rollouts, _, _ = roll(tiny_tokenizer, scripts, sandbox=sandbox)
    assert [r.turns[0].observation.text for r in rollouts] == [str(i * 7) for i in range(1000)]


def test_a_slow_call_delays_no_other_rollout(tiny_tokenizer):
    class Sandbox(FakeSandbox):
        async def run(self, code, **options):
            await asyncio.sleep(1.0 if code == "slow" else 0.0)
            return ExecResult(Status.OK, stdout=code)

    ended = []
    scripts = {"slow": [python("slow"), "A"]} | {f"q{i}": [python("1"), python("2"), "A"] for i in range(20)}
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    prompts = [[{"role": "user", "content": question}] for question in scripts]
    backend = ScriptedBackend(
        tiny_tokenizer,
        {tuple(encoder.prompt_ids(p)): turns for p, turns in zip(prompts, scripts.values(), strict=True)},
    )
    start = time.perf_counter()
    RolloutEngine(encoder, Sandbox()).run(
        prompts, backend, progress=lambda what, done, of: ended.append(time.perf_counter() - start)
    )
    assert len(ended) == 21
    assert ended[19] < 0.9
    assert ended[20] >= 1.0


@pytest.mark.parametrize("error", [SandboxError("the sandbox is closed"), ZeroDivisionError("a bug")])
def test_a_tool_that_breaks_ends_the_rollouts_that_call_it_and_no_others(tiny_tokenizer, error):
    class Broken(FakeSandbox):
        async def run(self, code, **options):
            raise error

    rollouts, _, _ = roll(tiny_tokenizer, {"q": [python("1"), "A"], "r": ["A"]}, sandbox=Broken())
    assert [r.stop_reason for r in rollouts] == [StopReason.TOOL_FAILURE, StopReason.ANSWER]
    assert str(error) in rollouts[0].note


class FailingBackend(ScriptedBackend):
    """Its server is gone for the rollouts whose number is odd."""

    async def generate(self, request):
        if request.rollout % 2:
            raise BackendError("the server is gone")
        return await super().generate(request)


def test_a_model_server_that_fails_ends_the_batch_or_by_request_the_rollouts_that_it_concerns(tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    prompts = [[{"role": "user", "content": "q"}]] * 4
    backend = FailingBackend(tiny_tokenizer, {tuple(encoder.prompt_ids(prompts[0])): ["A"]})
    engine = RolloutEngine(encoder, FakeSandbox())
    with pytest.raises(BackendError, match="2 of 4 rollouts had finished"):
        engine.run(prompts, backend)
    rollouts = engine.run(prompts, backend, mask_failures=True).trajectories
    assert [r.stop_reason for r in rollouts] == [StopReason.ANSWER, StopReason.MODEL_FAILURE] * 2
    assert rollouts[1].note == "the server is gone"
    assert (rollouts[1].mask, rollouts[1].answer_text) == ([1], None), "one turn, so that a trainer has a row for it"


def test_a_prompt_that_fills_the_context_ends_the_batch_or_by_request_its_rollout(tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    prompts = [[{"role": "user", "content": text}] for text in ("q", "long " * 20)]
    backend = ScriptedBackend(tiny_tokenizer, {tuple(encoder.prompt_ids(prompts[0])): ["A"]}, max_context=64)
    engine = RolloutEngine(encoder, FakeSandbox())
    with pytest.raises(DataError, match="leaves no room in a context of 64"):
        engine.run(prompts, backend)
    rollouts = engine.run(prompts, backend, mask_failures=True).trajectories
    assert [r.stop_reason for r in rollouts] == [StopReason.ANSWER, StopReason.PROMPT_TOO_LONG]
    assert "in a context of 64" in rollouts[1].note
    assert len(rollouts[1].prompt_ids) < 64, "a trainer must be able to compute with it"


def test_rollouts_end_each_at_their_own_turn_and_keep_the_order_of_their_prompts(tiny_tokenizer):
    scripts = {"a": [python("1"), python("2"), "A"], "b": ["B"], "c": [python("3"), "C"]}
    rollouts, _, _ = roll(tiny_tokenizer, scripts)
    assert [r.answer_text for r in rollouts] == ["A", "B", "C"]
    assert [len(r.turns) for r in rollouts] == [3, 1, 2]


def test_turn_limit_leaves_the_last_call_unexecuted(tiny_tokenizer):
    sandbox = FakeSandbox()
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("1"), python("2")]}, sandbox=sandbox, max_turns=2)
    assert rollout.stop_reason is StopReason.TURNS
    assert sandbox.codes == ["1"]
    assert rollout.turns[-1].observation is None
    assert rollout.answer_text is None


def test_an_answer_in_the_last_allowed_turn_is_an_answer(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("1"), "A"]}, max_turns=2)
    assert rollout.stop_reason is StopReason.ANSWER


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_turn_tokens": 4}, StopReason.TURN_TOKENS),
        ({"max_completion_length": 4}, StopReason.TOTAL_TOKENS),
        ({"max_context": 12}, StopReason.CONTEXT),
        ({"max_turn_tokens": 4, "max_completion_length": 4}, StopReason.TOTAL_TOKENS),
        ({"max_turn_tokens": 4, "max_completion_length": 4, "max_context": 8}, StopReason.CONTEXT),
    ],
)
def test_a_turn_that_does_not_end_names_the_tightest_limit(tiny_tokenizer, limits, reason):
    (rollout,), _, encoder = roll(tiny_tokenizer, {"q": ["abcdefghijklmnop"]}, **limits)
    assert len(encoder.prompt_ids([{"role": "user", "content": "q"}])) == 4
    assert rollout.stop_reason is reason
    assert rollout.answer_text is None


def test_a_call_cut_by_a_limit_is_invalid_and_ends_the_rollout(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": ["```python\n1+1" + CUT]})
    assert rollout.stop_reason is StopReason.TURN_TOKENS
    assert rollout.num_invalid_calls == 1


def test_an_observation_that_leaves_no_room_is_dropped(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("1"), "A"]}, max_completion_length=10)
    assert rollout.stop_reason is StopReason.TOTAL_TOKENS
    assert rollout.turns[-1].observation is None
    assert rollout.mask == [1] * len(rollout.completion_ids)


def test_a_failing_sandbox_ends_the_rollout_and_is_never_shown(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": [python("1"), "A"]}, sandbox=FakeSandbox(Status.TOOL_FAILURE))
    assert rollout.stop_reason is StopReason.TOOL_FAILURE
    assert rollout.turns[-1].observation is None


@pytest.mark.parametrize(("limit", "reason"), [(0, StopReason.ANSWER), (20, StopReason.REPETITION)])
def test_a_turn_that_repeats_itself_is_ended_where_it_became_degenerate(tiny_tokenizer, limit, reason):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": ["x" + "abc" * 30]}, max_repeated_tokens=limit)
    assert rollout.stop_reason is reason
    assert rollout.turns[0].text == ("x" + "abc" * 30 if not limit else "x" + "abc" + ("abc" * 30)[:20])
    assert len(rollout.turns[0].logprobs) == len(rollout.turns[0].token_ids)
    assert (rollout.answer_text is None) == bool(limit)


def test_long_results_are_cut_in_the_middle_with_a_note(tiny_tokenizer, sandbox):
    (rollout,), _, _ = roll(
        tiny_tokenizer, {"q": [python("print('a'*5000)"), "A"]}, sandbox=sandbox, max_observation_tokens=100
    )
    text = rollout.turns[0].observation.text
    assert len(tiny_tokenizer.encode(text)) <= 100
    assert "characters cut" in text


def test_the_models_own_context_length_is_the_bound(tiny_tokenizer):
    (rollout,), _, _ = roll(tiny_tokenizer, {"q": ["abcdefghijkl"]}, max_context=10)
    assert rollout.stop_reason is StopReason.CONTEXT
    assert len(rollout.completion_ids) == 6


def test_a_prompt_that_fills_the_context_is_refused(tiny_tokenizer):
    with pytest.raises(DataError, match="leaves no room"):
        roll(tiny_tokenizer, {"q": ["A"]}, max_context=4)


def test_the_loop_runs_inside_a_running_event_loop(tiny_tokenizer):
    async def notebook_cell():
        return roll(tiny_tokenizer, {"q": [python("1"), "A"]})[0]

    (rollout,) = asyncio.run(notebook_cell())
    assert rollout.stop_reason is StopReason.ANSWER


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RolloutLimits(max_turns=0), "max_turns"),
        (lambda: Sampling(temperature=-1), "temperature"),
        (lambda: Sampling(top_p=0), "top_p"),
        (lambda: Sampling(top_k=-1), "top_k"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(ConfigError, match=field):
        make()


class SlowTurns(ScriptedBackend):
    """From a turn on, each takes that long."""

    seconds, since = 30.0, 0

    async def generate(self, request):
        if request.turn >= self.since:
            await asyncio.sleep(self.seconds)
        return await super().generate(request)


def slow(tokenizer, turns, *, since, sandbox=None, mask_failures=True, **limits):
    encoder = ChatEncoder(tokenizer, get_format("fenced"))
    prompt = [{"role": "user", "content": "q"}]
    backend = SlowTurns(tokenizer, {tuple(encoder.prompt_ids(prompt)): turns})
    backend.since = since
    engine = RolloutEngine(encoder, sandbox or FakeSandbox(), RolloutLimits(max_rollout_s=0.3, **limits))
    start = time.monotonic()
    (rollout,) = engine.run([prompt], backend, mask_failures=mask_failures).trajectories
    assert time.monotonic() - start < 10
    return rollout


def test_a_rollout_whose_time_is_over_while_it_generates_keeps_its_whole_turns(tiny_tokenizer):
    rollout = slow(tiny_tokenizer, [python("1"), "\\boxed{1}"], since=1)
    assert (rollout.stop_reason, len(rollout.turns)) == (StopReason.TIME, 1)
    assert rollout.turns[0].observation.text == "<1>"
    assert rollout.answer_text is None


def test_a_rollout_whose_time_is_over_while_a_tool_runs_keeps_the_turn_without_its_result(tiny_tokenizer):
    sandbox = FakeSandbox(delay_s=30)
    rollout = slow(tiny_tokenizer, [python("1"), "\\boxed{1}"], since=9, sandbox=sandbox)
    assert (rollout.stop_reason, len(rollout.turns)) == (StopReason.TIME, 1)
    assert rollout.turns[0].observation is None
    assert rollout.completion_ids == list(rollout.turns[0].token_ids)


def test_a_session_of_the_sandbox_is_closed_when_the_time_of_its_rollout_is_over(tiny_tokenizer):
    sandbox = LocalSandbox(max_workers=1, limits=Limits(wall_s=30, cpu_s=30))
    with contextlib.closing(sandbox):
        tool = PythonTool(sandbox, "session")
        rollout = slow(tiny_tokenizer, [python("import time; time.sleep(20)")], since=9, sandbox=tool)
        assert rollout.stop_reason is StopReason.TIME
        start = time.monotonic()
        assert asyncio.run(sandbox.run("print(1)")).stdout == "1\n"
        assert time.monotonic() - start < 5, "the worker is free again"


def test_a_rollout_without_a_whole_turn_in_its_time_is_masked(tiny_tokenizer):
    rollout = slow(tiny_tokenizer, ["\\boxed{1}"], since=0)
    assert rollout.stop_reason is StopReason.MODEL_FAILURE
    assert rollout.note == "no complete turn within max_rollout_s (0.3 s)"


def test_the_time_of_a_rollout_begins_with_its_place(tiny_tokenizer):
    scripts = {f"q{i}": [python("1"), "\\boxed{1}"] for i in range(4)}
    rollouts, *_ = roll(tiny_tokenizer, scripts, sandbox=FakeSandbox(delay_s=0.2), max_concurrency=1, max_rollout_s=0.6)
    assert {rollout.stop_reason for rollout in rollouts} == {StopReason.ANSWER}


def test_a_time_of_zero_is_refused():
    with pytest.raises(ConfigError, match="max_rollout_s must be above 0, got 0"):
        RolloutLimits(max_rollout_s=0)
