"""The settings in which GTPO's advantages are GRPO's, against the ones that TRL's own GRPOTrainer computes.

TRL runs as it is, on a tiny random model, with canned completions (`rollout_func`) and canned rewards.
"""

from __future__ import annotations

import datasets
import pytest
import tokenizers
import torch
import transformers
import trl
from formulas import gtpo_advantages

from gtpo import functional as F

NORMALIZE_OVER = ("all_turns", "first_turns", "same_turn")
GAMMAS = (0.0, 0.5, 0.9, 1.0)
GROUP_SIZE = 4
GROUPS = torch.arange(8) // GROUP_SIZE

MODEL, OBSERVATION = 1, 0
ONE_TURN = [[MODEL] * n for n in (3, 1, 4, 2, 5, 3, 2, 1)]
"""Masks of completions, for two groups of four rollouts."""
SEVERAL_TURNS = [
    [1, 1, 0, 1, 1],
    [1, 0, 0, 1, 0, 1, 1],
    [1, 1, 1],
    [1, 0, 1],
    [1, 0, 1, 0, 1, 0, 1],
    [1, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 0, 1, 0, 1],
]
OUTCOMES = {
    "mixed groups": [1, 0, 0, 1, 0, 0, 0, 1],
    "a uniform group beside a mixed one": [1, 1, 1, 1, 0, 1, 1, 1],
    "nobody passed": [0] * 8,
}
ANY_REWARDS = {
    "scattered": [0.9, -0.1, 0.35, 1.0, 0.25, 0.0, -0.1, 0.5],
    "nearly equal": [0.5, 0.501, 0.5, 0.499, 1.0, 1.0, 1.0, 0.9],
    "equal": [0.5] * 8,
}


def build_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{n}" for n in range(13))])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


class CannedTrl:
    """TRL's GRPOTrainer with canned rollouts: `advantages(masks, rewards)` is what it computes for them."""

    def __init__(self, output_dir):
        tokenizer = build_tokenizer()
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        self.rewards: list[float] = []
        self.masks: list[list[int]] = []
        self.prompts = [{"prompt": "w1 w2"}] * GROUP_SIZE + [{"prompt": "w3"}] * GROUP_SIZE
        self.trainer = trl.GRPOTrainer(
            model=transformers.LlamaForCausalLM(config),
            reward_funcs=self._reward,
            args=trl.GRPOConfig(
                output_dir=str(output_dir),
                use_cpu=True,
                bf16=False,
                report_to=[],
                per_device_train_batch_size=8,
                num_generations=GROUP_SIZE,
                max_completion_length=16,
            ),
            train_dataset=datasets.Dataset.from_list(self.prompts),
            processing_class=tokenizer,
            rollout_func=self._rollouts,
        )
        self.trainer.model.train()

    def _reward(self, completions, **columns):
        return self.rewards

    def _rollouts(self, prompts, trainer):
        completions = [[5 + n % 7 for n in range(len(mask) - 1)] + [1] for mask in self.masks]
        return {
            "prompt_ids": [[4, 5]] * len(prompts),
            "completion_ids": completions,
            "logprobs": [[-1.0] * len(completion) for completion in completions],
            "env_mask": self.masks,
        }

    def advantages(self, masks, rewards):
        """TRL's advantage of every rollout, and the turns of TRL's padded completion mask."""
        self.masks, self.rewards = masks, rewards
        output = self.trainer._generate_and_score_completions([dict(row) for row in self.prompts])
        turn_ids = F.turn_ids_from_mask(output["completion_mask"] * output["tool_mask"])
        assert [row[: len(mask)].ge(0).int().tolist() for row, mask in zip(turn_ids, masks, strict=True)] == masks
        return output["advantages"], turn_ids


@pytest.fixture(scope="module")
def trl_grpo(tmp_path_factory):
    return CannedTrl(tmp_path_factory.mktemp("trl"))


def outcome_rewards(passed, turn_ids, max_turns):
    """Rewards without penalties and shaping, and the number of turns."""
    num_turns = turn_ids.amax(dim=1) + 1
    none = torch.zeros(len(passed), max_turns, dtype=torch.bool)
    return F.turn_rewards(torch.tensor(passed).bool(), num_turns, none, torch.ones(len(passed))), num_turns


def assert_same(tokens, rollouts, turn_ids):
    torch.testing.assert_close(tokens, rollouts[:, None] * (turn_ids >= 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_undiscounted_outcomes_under_initial_are_trls_grpo(trl_grpo, outcomes):
    passed = OUTCOMES[outcomes]
    expected, turn_ids = trl_grpo.advantages(SEVERAL_TURNS, [float(p) for p in passed])
    rewards, num_turns = outcome_rewards(passed, turn_ids, max_turns=4)
    tokens = gtpo_advantages(rewards, num_turns, turn_ids, GROUPS, gamma=1.0, normalize_over="first_turns")
    assert_same(tokens, expected, turn_ids)


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("rewards", ANY_REWARDS)
def test_one_turn_rollouts_are_trls_grpo_for_every_gamma_and_scope(trl_grpo, rewards, gamma, normalize_over):
    expected, turn_ids = trl_grpo.advantages(ONE_TURN, ANY_REWARDS[rewards])
    rewards_B_K = torch.zeros(8, 3)
    rewards_B_K[:, 0] = torch.tensor(ANY_REWARDS[rewards])
    tokens = gtpo_advantages(
        rewards_B_K, torch.ones(8, dtype=torch.long), turn_ids, GROUPS, gamma=gamma, normalize_over=normalize_over
    )
    assert_same(tokens, expected, turn_ids)


@pytest.mark.parametrize("rewards", ANY_REWARDS)
def test_grpo_advantages_are_trls(trl_grpo, rewards):
    expected, _ = trl_grpo.advantages(SEVERAL_TURNS, ANY_REWARDS[rewards])
    advantages = F.grpo_advantages(torch.tensor(ANY_REWARDS[rewards]), GROUPS)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.9, "normalize_over": "first_turns"},
        {"gamma": 1.0, "normalize_over": "all_turns"},
        {"gamma": 1.0, "normalize_over": "same_turn"},
        {"gamma": 1.0, "normalize_over": "first_turns", "eps": 1e-2},
    ],
    ids=str,
)
def test_any_other_setting_differs_from_trls_grpo(trl_grpo, options):
    passed = OUTCOMES["mixed groups"]
    expected, turn_ids = trl_grpo.advantages(SEVERAL_TURNS, [float(p) for p in passed])
    rewards, num_turns = outcome_rewards(passed, turn_ids, max_turns=4)
    tokens = gtpo_advantages(rewards, num_turns, turn_ids, GROUPS, **options)
    assert not torch.allclose(tokens, expected[:, None] * (turn_ids >= 0), rtol=1e-3, atol=1e-3)


def test_a_format_penalty_differs_from_trls_grpo(trl_grpo):
    passed = OUTCOMES["mixed groups"]
    expected, turn_ids = trl_grpo.advantages(SEVERAL_TURNS, [float(p) for p in passed])
    rewards, num_turns = outcome_rewards(passed, turn_ids, max_turns=4)
    rewards[1, 0] -= 0.1
    tokens = gtpo_advantages(rewards, num_turns, turn_ids, GROUPS, gamma=1.0, normalize_over="first_turns")
    assert not torch.allclose(tokens, expected[:, None] * (turn_ids >= 0), rtol=1e-3, atol=1e-3)
