"""An environment of the package `openenv`: its server in a process of its own, its client in ours.

`openenv` brings a web framework and much else, so it is in no set of pins; `pip install "openenv>=0.10"` in an
environment with gtpo, and this test runs.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from families import template_tokenizer

from gtpo.rollout import Environments, RolloutEngine
from gtpo.rollout.backends.base import Generation
from gtpo.rollout.choosing import make_encoder
from gtpo.testing import ScriptedBackend
from gtpo.types import StopReason

openenv = pytest.importorskip("openenv.core", reason='needs openenv: pip install "openenv>=0.10"')


@pytest.fixture(scope="module")
def url():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("openenv_server.py")), str(port)])
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("the server did not start within 60 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def guessing(url):
    class Guessing:
        def __init__(self):
            self.client = openenv.GenericEnvClient(base_url=url).sync()
            self.client.connect()

        def reset(self, secret, **columns):
            self.reward, self.done = 0.0, False
            return " " + self.client.reset(seed=secret).observation["text"]

        def guess(self, number: int) -> str:
            """Guess the number.

            Args:
                number: the number.
            """
            result = self.client.step({"number": number})
            self.reward, self.done = result.reward, result.done
            return result.observation["text"]

        def get_reward(self):
            return self.reward

    return Guessing


class Plays(ScriptedBackend):
    """A script for each rollout."""

    def __init__(self, tokenizer, encoder, plays):
        super().__init__(tokenizer, {})
        self.encoder, self.plays = encoder, plays

    async def generate(self, request):
        text = self.plays[request.rollout][request.turn]
        end = self.encoder.end_of(self.encoder.parse(text))
        ids = (*self.tokenizer.encode(text, add_special_tokens=False), end)
        return Generation(ids, (0.0,) * len(ids))


def call(number):
    return f'<tool_call>{{"name": "guess", "arguments": {{"number": {number}}}}}</tool_call>'


def test_rollouts_play_each_in_a_session_of_its_own(url):
    environments = Environments(guessing(url))
    tokenizer = template_tokenizer("qwen3.jinja")
    engine = RolloutEngine(make_encoder(tokenizer, "auto", environments.specs), [], environments=environments)
    prompts = [[{"role": "user", "content": f"{name}:"}] for name in "abc"]
    backend = Plays(tokenizer, engine.encoder, [[call(5), call(7)], [call(5), call(3), "I give up."], [call(9)]])
    rows = [{"secret": secret} for secret in (7, 4, 9)]
    for _ in range(2):
        rollouts = engine.run(prompts, backend, columns=rows, hold_environments=True).trajectories
        assert [[turn.observation and turn.observation.text for turn in r.turns] for r in rollouts] == [
            ["higher", "right"],
            ["lower", "higher", None],
            ["right"],
        ]
        assert [r.reward for r in rollouts] == [1.0, 0.0, 1.0]
        assert [r.stop_reason for r in rollouts] == [StopReason.DONE, StopReason.ANSWER, StopReason.DONE]
        assert "a: Guess a number." in engine.encoder.decode(rollouts[0].prompt_ids)
