"""The examples of rewards, turn rewards and tools of one's own train a tiny model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from families import template_tokenizer

from gtpo.lab.tiny.model import make_model
from gtpo.rollout import RolloutConfig, RolloutEngine
from gtpo.rollout.backends.base import Generation
from gtpo.rollout.choosing import make_encoder
from gtpo.testing import ScriptedBackend

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "max_steps=1, use_cpu=True, bf16=False, report_to='none', save_strategy='no', per_device_train_batch_size=8, "
    "max_turn_tokens=8, num_generations=4, "
)
NAMES = (
    *("graded_reward", "weighted_rewards", "turn_reward", "function_tool", "async_tool", "final_tool", "mcp_server"),
    *("environment", "dialogue_environment"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = template_tokenizer("qwen3.jinja")
    model = make_model(tokenizer, seed=0, hidden_size=32, layers=1)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(name, model, tmp_path, monkeypatch):
    if name == "mcp_server":
        pytest.importorskip("mcp", reason="needs the extra: pip install 'gtpo[mcp]'")
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", str(model)])
    small = re.sub(r"max_steps=20,\s+num_generations=8,", SMALL, code)
    assert small != code
    found = {"__name__": "__main__", "__file__": str(EXAMPLES / f"{name}.py")}
    exec(compile(small, f"examples/{name}.py", "exec"), found)
    assert found["trainer"].state.global_step == 1
    wanted = {"weighted_rewards": "rewards/short/mean", "turn_reward": "turn_reward/brief"}
    wanted |= {"environment": "turn_reward/Safe", "dialogue_environment": "rewards/Riddle/mean"}
    assert wanted.get(name, "pass_rate") in found["trainer"].state.log_history[0]


class Says(ScriptedBackend):
    """The turns of the one rollout, whatever the context."""

    def __init__(self, tokenizer, encoder, turns):
        super().__init__(tokenizer, {})
        self.encoder, self.turns = encoder, turns

    async def generate(self, request):
        text = self.turns[request.turn]
        ids = (*self.tokenizer.encode(text), self.encoder.end_of(self.encoder.parse(text)))
        return Generation(ids, (0.0,) * len(ids))


def guess(number):
    return f'<tool_call>{{"name": "guess", "arguments": {{"number": {number}}}}}</tool_call>'


@pytest.mark.parametrize(
    ("name", "row", "turns", "seen", "rewards", "outcome"),
    [
        (
            *("environment.Safe", {"code": 42}, [guess(50), guess(60), "Hm." + guess(42)]),
            *(["lower", "lower", "It opens."], [0.0, -0.1, 0.0], 1.0),
        ),
        ("environment.Safe", {"code": 42}, [guess(1), "I give up."], ["higher", None], [0.0, -0.1], 0.0),
        (
            *(
                "dialogue_environment.Riddle",
                {"animal": "owl"},
                ["What does it do?", "A cat?", "A bird.", "It is the owl."],
            ),
            *(["It flies at night.", "I have told you.", "No. Ask me something.", "Right!"], [0.1, 0.0, 0.0, 0.0], 1.0),
        ),
    ],
)
def test_a_game_of_the_examples_is_played_by_its_rules(name, row, turns, seen, rewards, outcome):
    file, _, kind = name.partition(".")
    environments = RolloutConfig(environment=f"{EXAMPLES / file}.py:{kind}").make_environments()
    tokenizer = template_tokenizer("qwen3.jinja")
    encoder = make_encoder(tokenizer, "auto", environments.specs)
    engine = RolloutEngine(encoder, [], environments=environments)
    prompt = [{"role": "user", "content": "Begin."}]
    (played,) = engine.run([prompt], Says(tokenizer, encoder, turns), columns=[row]).trajectories
    assert [turn.observation and turn.observation.text for turn in played.turns] == seen
    assert [turn.reward for turn in played.turns] == rewards
    assert played.reward == outcome
