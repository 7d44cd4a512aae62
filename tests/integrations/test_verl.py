"""The verl plugin on the real verl: its registries, agent loop workers, TransferQueue and trainer, on Ray and the CPU.

What is asserted of verl itself is what the plugin leans on (`docs/verl.md`); a change there fails here.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs the extra: pip install 'gtpo[verl]' (make test-cluster)")

import transfer_queue as tq
import verl_world
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from gtpo import functional as F
from gtpo.commands import doctor
from gtpo.credit_assignment import CreditInputs, CreditSettings, compute_credit
from gtpo.errors import BackendError, ConfigError
from gtpo.integrations.verl.agent_loop import VerlBackend
from gtpo.integrations.verl.estimator import gtpo_advantage, turns_known
from gtpo.integrations.verl.settings import AlgorithmOptions, gamma_by_turns, loop_config
from gtpo.integrations.verl.trainer import TurnCredit
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout.backends.base import Request
from gtpo.similarity import LexicalSimilarity

CODES = ("print(2*3)", "print(2*4)", "", "")
GROUP = [
    CreditInputs(0, True, (False, False), True, CODES[0]),
    CreditInputs(0, False, (False, True, False), True, CODES[1]),
    CreditInputs(0, True, (True, False), True, CODES[2]),
    CreditInputs(0, False, (False,), False, CODES[3]),
]
"""What the scripts of `verl_world` come to."""


def test_importing_verl_makes_the_names_known():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import verl\n"
            "from verl.trainer.ppo.core_algos import get_adv_estimator_fn\n"
            "from verl.experimental.agent_loop.agent_loop import _agent_loop_registry\n"
            "from verl.trainer.ppo.v1 import get_trainer_cls\n"
            "print(get_adv_estimator_fn('gtpo').__module__, _agent_loop_registry['gtpo']['_target_'])\n"
            "modes = ('sync', 'colocate_async', 'separate_async')\n"
            "print(*(get_trainer_cls(f'gtpo_{mode}').__name__ for mode in modes))",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    assert said[-2:] == [
        "gtpo.integrations.verl.estimator gtpo.integrations.verl.agent_loop.GTPOAgentLoop",
        "GTPOTrainerSync GTPOTrainerColocateAsync GTPOTrainerSeparateAsync",
    ]


def test_the_doctor_tells_whether_the_plugin_loads(capsys, monkeypatch):
    doctor.main([])
    assert "the plugin is loaded" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "gtpo.integrations.verl.plugin", None)
    doctor.main([])
    assert "the plugin can't be loaded" in capsys.readouterr().out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=0).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "agent.yaml").write_text(
        "- name: gtpo\n"
        "  _target_: gtpo.integrations.verl.agent_loop.GTPOAgentLoop\n"
        "  options: {tool_format: fenced, system_prompt: '', max_turns: 4, max_turn_tokens: 64}\n"
    )

    def config(*more):
        return verl_world.configuration(folder / "model", folder / "agent.yaml", *more)

    verl_world.start(config())
    yield SimpleNamespace(config=config, tokenizer=tokenizer, folder=folder)
    tq.close()
    verl_world.ray.shutdown()


def with_old_log_probs(batch):
    """What verl's trainer has put into the queue by the time it computes advantages."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rollout_log_probs"])
    data["old_log_probs"] = data.pop("rollout_log_probs")
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=data)
    return batch


def rows(batch, *fields):
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=list(fields))
    return {key: [data[field][i] for field in fields] for i, key in enumerate(batch.keys)}


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ((), CreditSettings()),
        (
            ("+algorithm.gtpo.gamma=0.5", "+algorithm.gtpo.alpha=0.25", "+algorithm.gtpo.normalize_over=first_turns"),
            CreditSettings(gamma=0.5, alpha=0.25, normalize_over="first_turns"),
        ),
        (("+algorithm.gtpo.zero_uniform_groups=true",), CreditSettings(zero_uniform_groups=True)),
    ],
)
def test_a_batch_of_verl_gets_the_credit_of_gtpo(world, more, settings):
    config = world.config(*more)
    uids = [
        f"{settings.gamma}{settings.normalize_over}{settings.zero_uniform_groups}{i}".replace("_", "") for i in range(2)
    ]
    trainer, batch = verl_world.roll_out(config, world.tokenizer, uids)
    assert len(batch.keys) == 8
    before = rows(batch, "rm_scores", "response_mask", "responses", "extra_fields", "rollout_log_probs", "num_turns")
    passed = 0
    for scores, mask, responses, extra, logprobs, num_turns in before.values():
        fields = getattr(extra, "data", extra)
        assert scores.sum() == scores[-1] == fields["reward_extra_info"]["acc"], "the score is the accuracy"
        assert len(scores) == len(mask) == len(responses) == len(logprobs)
        assert logprobs.tolist() == [-0.5 if sampled else 0.0 for sampled in mask.tolist()]
        turns = len(fields["gtpo"]["turn_tokens"])
        assert int(num_turns) == 2 * turns, "prompt, turns and an observation between each two"
        assert fields["max_global_steps"] == verl_world.STEP + turns - 1
        assert fields["min_global_steps"] == verl_world.STEP
        passed += scores.sum()
    assert passed == 4

    padded = upsample_batch_to_divisible_size(with_old_log_probs(batch), 5, world.tokenizer.eos_token_id)
    assert len(padded.keys) == 10
    metrics = {}
    trainer._compute_advantage(padded, metrics)

    credit = compute_credit(GROUP, LexicalSimilarity(), settings)
    found = rows(padded, "advantages", "rm_scores", "response_mask", "returns", "extra_fields")
    for key, (advantages, rewards, mask, returns, extra) in found.items():
        if key.startswith("pad"):
            assert not advantages.any()
            assert not mask.any()
            continue
        turn_tokens = getattr(extra, "data", extra)["gtpo"]["turn_tokens"]
        i = next(i for i, script in enumerate(verl_world.SCRIPTS) if turn_tokens == lengths(world.tokenizer, script))
        ids = F.turn_ids_from_mask(mask[None])
        for values, expected in ((advantages, credit.advantages_B_K), (returns, credit.returns_B_K)):
            torch.testing.assert_close(values, F.spread_to_tokens(expected[i : i + 1], ids)[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            F.sum_over_turns(rewards[None], ids)[0], credit.rewards_B_K[i, : len(turn_tokens)], atol=1e-6, rtol=0
        )
        assert not rewards[~mask.bool()].any()
    assert metrics["gtpo/pass_rate"] == 0.5
    assert metrics["gtpo/frac_masked"] == 0
    assert not any("total" in name or "sum" in name for name in metrics if name.startswith("gtpo/")), (
        "verl adds those up"
    )
    tq.kv_clear(partition_id="train", keys=padded.keys)


OWN = """
def graded(prompts, completions, answer, data_source, **columns):
    assert data_source == ["made up"]
    said = completions[0][-1]["content"]
    return [1.0 if answer[0] in said else 0.5 if "8" in said else 0.0]

def later(trajectories, **columns):
    return [[0.1 * j for j in range(len(t.turns))] for t in trajectories]
"""


def test_rewards_of_ones_own_reach_the_trainer(world):
    """Graded outcomes and turn rewards, through verl's worker and queue, against the credit of the same rollouts."""
    (world.folder / "own.py").write_text(OWN)
    agent = world.folder / "own.yaml"
    agent.write_text(
        "- name: gtpo\n"
        "  _target_: gtpo.integrations.verl.agent_loop.GTPOAgentLoop\n"
        "  options:\n"
        "    {tool_format: fenced, system_prompt: '', max_turns: 4, max_turn_tokens: 64, success_threshold: 0.5,\n"
        f"     reward_funcs: ['{world.folder}/own.py:graded'], turn_reward_funcs: ['{world.folder}/own.py:later'],\n"
        "     turn_reward_weights: [2.0]}\n"
    )
    config = world.config(f"actor_rollout_ref.rollout.agent.agent_loop_config_path={agent}")
    trainer, batch = verl_world.roll_out(config, world.tokenizer, ["own"])
    before = rows(batch, "rm_scores", "extra_fields")
    outcomes = [1.0, 0.5, 1.0, 0.0]
    metrics = {}
    trainer._compute_advantage(with_old_log_probs(batch), metrics)
    facts = [
        replace(
            fact,
            passed=outcome >= 0.5,
            outcome=outcome,
            turn_rewards={"later": tuple(0.2 * j for j in range(len(fact.invalid_turns)))},
        )
        for fact, outcome in zip(GROUP, outcomes, strict=True)
    ]
    credit = compute_credit(facts, LexicalSimilarity(), CreditSettings())
    for key, (advantages, mask) in rows(batch, "advantages", "response_mask").items():
        scores, extra = before[key]
        fields = getattr(extra, "data", extra)
        i = next(
            i
            for i, script in enumerate(verl_world.SCRIPTS)
            if fields["gtpo"]["turn_tokens"] == lengths(world.tokenizer, script)
        )
        assert float(scores.sum()) == outcomes[i], "the score is the outcome reward"
        assert fields["reward_extra_info"] == {"acc": float(outcomes[i] >= 0.5), "graded": outcomes[i]}
        expected = F.spread_to_tokens(credit.advantages_B_K[i : i + 1], F.turn_ids_from_mask(mask[None]))[0]
        torch.testing.assert_close(advantages, expected, atol=1e-6, rtol=0)
    assert metrics["gtpo/pass_rate"] == 0.75
    assert metrics["gtpo/reward/outcome"] == 0.625
    assert metrics["gtpo/turn_reward/later"] == pytest.approx((0.2 + 0.6 + 0.2) / 4)
    tq.kv_clear(partition_id="train", keys=batch.keys)


def lengths(tokenizer, script):
    return [len(tokenizer(turn, add_special_tokens=False)["input_ids"]) + 1 for turn in script]


def test_a_rollout_whose_sandbox_failed_is_neither_scored_nor_counted(world):
    config = world.config()
    trainer, batch = verl_world.roll_out(config, world.tokenizer, ["masked"])
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["extra_fields"])
    said = [dict(getattr(value, "data", value)) for value in data["extra_fields"]]
    lost = next(i for i, fields in enumerate(said) if not fields["gtpo"]["has_call"])
    said[lost]["gtpo"] = {**said[lost]["gtpo"], "masked": True}
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id="train",
        fields=verl_world.tensordict_utils.get_tensordict({"extra_fields": said}),
    )
    metrics = {}
    trainer._compute_advantage(with_old_log_probs(batch), metrics)
    found = rows(batch, "advantages", "response_mask", "loss_mask")
    for i, key in enumerate(batch.keys):
        advantages, mask, loss_mask = found[key]
        assert torch.equal(mask, loss_mask)
        assert bool(mask.any()) == (i != lost)
        assert not advantages[~mask.bool()].any()
    credit = compute_credit(GROUP[:3], LexicalSimilarity(), CreditSettings())
    firsts = sorted(round(float(advantages[0]), 5) for i, (advantages, *_) in enumerate(found.values()) if i != lost)
    assert firsts == sorted(round(float(value), 5) for value in credit.advantages_B_K[:, 0])
    assert metrics["gtpo/frac_masked"] == 0.25
    tq.kv_clear(partition_id="train", keys=batch.keys)


def test_rollouts_of_another_agent_loop_are_refused(world):
    config = world.config()
    trainer, batch = verl_world.roll_out(config, world.tokenizer, ["other"])
    fields = verl_world.tensordict_utils.get_tensordict({"extra_fields": [{}] * len(batch.keys)})
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=fields)
    with pytest.raises(ConfigError, match="default_agent_loop=gtpo"):
        trainer._compute_advantage(with_old_log_probs(batch), {})
    tq.kv_clear(partition_id="train", keys=batch.keys)


def test_rows_with_images_are_refused(world):
    import asyncio

    from gtpo.integrations.verl.agent_loop import GTPOAgentLoop

    loop = object.__new__(GTPOAgentLoop)
    loop._shared = None
    picture = [{"role": "user", "content": [{"type": "image", "image": "x"}]}]
    with pytest.raises(ConfigError, match="text only"):
        asyncio.run(loop.run({}, raw_prompt=picture))


def test_the_mode_that_verl_sees_is_its_own(world):
    trainer = verl_world.make_trainer(world.config())
    assert trainer.trainer_mode == "sync", "verl compares it with 'sync' in six places"
    with pytest.raises(ConfigError, match="must be gtpo"):
        verl_world.make_trainer(world.config("algorithm.adv_estimator=grpo"))
    with pytest.raises(ConfigError, match=r"algorithm\.gtpo: unknown gama; known: advantage_clip, alpha"):
        verl_world.make_trainer(world.config("+algorithm.gtpo.gama=1"))
    with pytest.raises(ConfigError, match="gamma must be in"):
        verl_world.make_trainer(world.config("+algorithm.gtpo.gamma=2"))


@pytest.mark.parametrize(
    ("options", "more", "gamma"),
    [
        ("max_turns: 16", (), 0.7 ** (1 / 15)),
        ("max_turns: 16", ("+algorithm.gtpo.gamma=0.5",), 0.5),
        ("max_turns: 16", ("+algorithm.gtpo.alpha=0.25",), 0.7 ** (1 / 15)),
        ("max_turns: 3", (), 0.9),
        ("", (), 0.7 ** (1 / 7)),
    ],
)
def test_gamma_is_that_of_gtpo_train_for_as_many_turns(world, tmp_path, options, more, gamma):
    file = tmp_path / "agent.yaml"
    file.write_text(f"- {{name: other, _target_: x}}\n- {{name: gtpo, _target_: x, options: {{{options}}}}}\n")
    trainer = verl_world.make_trainer(verl_world.configuration(world.folder / "model", file, *more))
    assert trainer.gtpo.credit.gamma == pytest.approx(gamma)
    assert AlgorithmOptions.of(trainer.config.algorithm) == trainer.gtpo, "what the estimator reads"


def test_without_a_file_of_agent_loops_gamma_is_by_the_default_of_max_turns():
    assert gamma_by_turns(None) == pytest.approx(0.7 ** (1 / 7))


def test_what_the_plugin_leans_on_in_verl():
    step = inspect.getsource(PPOTrainer._step_once)
    assert step.index("_balance_batch") < step.index("_compute_advantage") < step.index("_update_actor")
    source = inspect.getsource(PPOTrainer._compute_advantage)
    assert '"rm_scores"' in source
    assert '"response_mask"' in source
    assert issubclass(TurnCredit, PPOTrainer)
    passed_on = inspect.getsource(core_algos.compute_rloo_outcome_advantage)
    assert "token_level_rewards" in passed_on
    assert "index" in passed_on


class Test_the_estimator_alone:
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    rewards = torch.tensor([[0, -0.1, 9, 1, 9], [0, 9, 0, 0, 0.2], [5, 5, 5, 5, 5.0], [0, 0, 1, 0, 0]])
    index = np.array(["a", "a", "a", "a"], dtype=object)
    config: ClassVar = {"gtpo": {"zero_uniform_groups": False, "normalize_over": "all_turns"}}

    def test_it_computes_what_functional_computes_and_leaves_rows_without_tokens_out(self):
        advantages, returns = gtpo_advantage(self.rewards * self.mask, self.mask, self.index, config=self.config)
        kept = [0, 1, 3]
        ids = F.turn_ids_from_mask(self.mask[kept])
        turn_rewards = torch.tensor([[-0.1, 1], [0, 0.2], [1, 0]])
        counts = torch.tensor([2, 2, 1])
        groups = torch.zeros(3, dtype=torch.int64)
        expected = F.gtpo_advantages(
            turn_rewards, counts, ids, groups, normalize_over="all_turns", zero_uniform_groups=False
        )
        torch.testing.assert_close(advantages[kept], expected)
        assert advantages[2].tolist() == returns[2].tolist() == [0] * 5
        assert returns[0].tolist() == pytest.approx([0.8, 0.8, 0, 1, 0])

    def test_a_turn_that_lost_tokens_in_the_middle_is_still_one_turn(self):
        known = F.turn_ids_from_mask(self.mask)
        rejected = self.mask.clone()
        rejected[3, 1] = 0
        passed = torch.tensor([True, False, False, True])
        with turns_known(known, passed):
            whole, _ = gtpo_advantage(self.rewards * self.mask, rejected, self.index, config=self.config)
        plain, _ = gtpo_advantage(self.rewards * self.mask, self.mask, self.index, config=self.config)
        torch.testing.assert_close(whole, plain * rejected)
        broken, _ = gtpo_advantage(self.rewards * self.mask, rejected, self.index, config=self.config)
        assert not torch.allclose(broken, plain * rejected), "the mask alone would have made two turns of it"

    def test_the_rule_for_uniform_groups_needs_to_know_who_passed(self):
        with pytest.raises(ConfigError, match=r"trainer_mode=gtpo_sync, or \+algorithm.gtpo.zero_uniform_groups=false"):
            gtpo_advantage(self.rewards, self.mask, self.index)
        with turns_known(F.turn_ids_from_mask(self.mask), torch.zeros(4, dtype=torch.bool)):
            advantages, _ = gtpo_advantage(self.rewards * self.mask, self.mask, self.index)
        assert not advantages.any()


async def _generate(output):
    class Servers:
        async def generate(self, **_):
            return output

    backend = VerlBackend(Servers(), {}, 10)
    return await backend.generate(Request(0, 0, [1, 2], 4))


def test_a_server_that_gives_nothing_is_an_error():
    import asyncio

    nothing = SimpleNamespace(token_ids=[], stop_reason="aborted", num_preempted=None, extra_fields={}, log_probs=None)
    with pytest.raises(BackendError, match="aborted"):
        asyncio.run(_generate(nothing))


def test_options_with_a_slip_are_refused():
    with pytest.raises(ConfigError, match="options of the agent loop: unknown max_turn;"):
        loop_config({"max_turn": 3})
    with pytest.raises(ConfigError, match="graded is an option of the agent loop: give it under `options`"):
        AlgorithmOptions.of({"gtpo": {"graded": True}})
    with pytest.raises(ConfigError, match="success_threshold must be finite"):
        loop_config({"success_threshold": float("inf")})
    assert loop_config({"graded": True, "turn_reward_funcs": ["repeated_calls"]}).graded
    with pytest.raises(ConfigError, match="must be a mapping"):
        AlgorithmOptions.of({"gtpo": "yes"})
    with pytest.raises(ConfigError, match="for ablations under gtpo train only"):
        AlgorithmOptions.of({"gtpo": {"turn_returns": False}})
    with pytest.raises(ConfigError, match=r"top_p is verl's: set actor_rollout_ref\.rollout\.top_p"):
        loop_config({"top_p": 0.9})
    rollout = SimpleNamespace(prompt_length=100, response_length=400, max_model_len=300)
    limits = loop_config({"max_turns": 3}, rollout).limits()
    assert (limits.max_turns, limits.max_context, limits.max_completion_length) == (3, 300, 400)
    assert AlgorithmOptions.of({"gamma": 1.0}).credit == CreditSettings(), "verl's own gamma is a token's"
