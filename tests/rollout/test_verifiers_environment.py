"""Environments of the library `verifiers` (0.4), really loaded: tasks, tools and rewards in our loop.

`verifiers` pins `mcp==2.0.0` and an `openai` below 3, which other tools of the pins do not take. In an environment of
its own, `pip install "gtpo[verifiers]"`, this test runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from families import template_tokenizer

from gtpo.errors import ConfigError
from gtpo.rollout import RolloutConfig, build_engine
from gtpo.rollout.backends.base import Generation
from gtpo.scoring import RewardConfig, make_scorer
from gtpo.testing import ScriptedBackend
from gtpo.types import StopReason

pytest.importorskip("verifiers.v1", reason='needs verifiers 0.4: pip install "gtpo[verifiers]"')
PACKAGE = Path(__file__).with_name("verifiers_package")


@pytest.fixture
def package(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield
    sys.modules.pop("word_hunt", None)


class Plays(ScriptedBackend):
    """A script for each rollout."""

    def __init__(self, tokenizer, encoder, plays):
        super().__init__(tokenizer, {})
        self.encoder, self.plays = encoder, plays

    async def generate(self, request):
        text = self.plays[request.rollout][request.turn]
        ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.encoder.end_of(self.encoder.parse(text)))
        return Generation(ids, (0.0,) * len(ids))


def call(name, arguments="{}"):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def test_an_installed_environment_gives_problems_tools_and_rewards(package):
    config = RolloutConfig(environment="verifiers:word-hunt?first=1")
    engine = build_engine(config, template_tokenizer("qwen3.jinja"))
    problems = config.make_environments().problems()
    assert [(p.id, p.answer, p.extras) for p in problems] == [
        ("group", "group", {"task": 0}),
        ("policy", "policy", {"task": 1}),
    ]
    specs = {spec.name: spec for spec in engine.encoder.format.specs}
    assert set(specs) == {"known_words", "hunt_length", "hunt_letter"}
    assert specs["hunt_letter"].description == "Ask for a letter of the word, by its place."
    assert specs["hunt_letter"].parameters["place"]["type"] == "integer"
    prompts = [engine.prompts.messages(problem) for problem in problems]
    assert [message["content"] for message in prompts[0]] == ["Find the word.", "Which word do I mean?"]
    plays = [
        [call("hunt_length") + call("hunt_letter", '{"place": 0}'), "It is group."],
        [call("known_words"), call("hunt_letter", '{"place": 99}'), "<think>not policy</think>It is turn."],
    ]
    backend = Plays(engine.encoder.tokenizer, engine.encoder, plays)
    rows = [problem.columns for problem in problems]
    for _ in range(2):  # the second time with the same instances
        first, second = engine.run(prompts, backend, columns=rows).trajectories
        assert first.turns[0].observation.results == ("5", "g")
        assert second.turns[0].observation.text == '["turn", "group", "policy"]'
        assert second.turns[1].observation.statuses == ("error",)
        assert [first.stop_reason, second.stop_reason] == [StopReason.ANSWER] * 2
        assert [first.reward, second.reward] == [1.0 - 0.5, -0.25]
        assert first.token_exact


def test_it_scores_where_no_reward_function_is_given(package):
    class Config(RewardConfig, RolloutConfig):
        pass

    config = Config()
    config.environment = "verifiers:word-hunt"
    scorer = make_scorer(config)
    assert (scorer.names, scorer.verifier) == (["word-hunt"], None)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("HuntTask.NEEDS_CONTAINER = True", "its tasks need a container"),
        ("HuntTask.setup = lambda self, trace, runtime: None", "HuntTask.setup needs a runtime from verifiers"),
        (
            "async def looks(self, trace, runtime): return 0.0\nHuntTask.looks = vf.reward(looks)",
            "HuntTask.looks needs a runtime from verifiers",
        ),
        ("async def ends(self, trace: vf.Trace): return True\nHuntTask.ends = vf.stop(ends)", "HuntTask.ends"),
        ("WordHunt.INFINITE = True", "its task set is endless; limit it with verifiers:word_hunt?limit=N"),
        ("WordHunt.load = lambda self: iter(())", "its task set is empty"),
        (
            "class Duel(vf.Env[vf.EnvConfig]):\n    async def run(self, task, agents): pass\n__all__.append('Duel')",
            "its class Duel runs its own program; only one agent",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_the_reason(monkeypatch, tmp_path, change, fault):
    code = (PACKAGE / "word_hunt.py").read_text(encoding="utf-8")
    (tmp_path / "word_hunt.py").write_text(f"{code}\n\n{change}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=f"environment verifiers:word_hunt: .*{fault.replace('?', '.')}"):
            RolloutConfig(environment="verifiers:word_hunt").make_environments()
    finally:
        sys.modules.pop("word_hunt", None)


def test_what_is_not_there_is_said():
    with pytest.raises(ConfigError, match="environment verifiers:no_such_thing: can't be loaded: ModuleNotFoundError"):
        RolloutConfig(environment="verifiers:no_such_thing").make_environments()
