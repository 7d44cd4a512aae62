"""Which tokens the surrogate objective trains, read off the gradient of a tiny model."""

from __future__ import annotations

import pytest
import torch
from formulas import group_advantages, gtpo_advantages

from gtpo import functional as F

# Completions of two rollouts: turn, observation, turn, (padding | observation, turn).
TURN_IDS = torch.tensor([[0, 0, -1, -1, 1, 1, -1, -1], [0, -1, 1, 1, -1, -1, 2, 2]])
NUM_TURNS = torch.tensor([2, 3])
REWARDS = torch.tensor([[0, 1.0, 0], [-0.1, 0, 0]])
GROUP = torch.tensor([0, 0])
VOCABULARY = 11


class TinyModel(torch.nn.Module):
    """Embedding, one recurrent layer, a head: a token's logits depend on all tokens before it."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 6)
        self.mix = torch.nn.GRU(6, 6, batch_first=True)
        self.head = torch.nn.Linear(6, VOCABULARY)

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids))[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyModel()


@pytest.fixture
def ids():
    """One prompt token, then the completion."""
    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def surrogate_loss(logits, ids, advantages):
    """Clipped surrogate (0.2 low, 0.28 high), a token mean; `logits` predict the completion tokens."""
    logps = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
    ratio = (logps - logps.detach()).exp()
    clipped = ratio.clamp(0.8, 1.28)
    return -torch.minimum(ratio * advantages, clipped * advantages).sum() / (advantages != 0).sum()


def logit_gradient(model, ids, advantages):
    logits = model(ids)[:, :-1]
    logits.retain_grad()
    surrogate_loss(logits, ids, advantages).backward()
    return logits.grad.clone()


def test_observation_tokens_have_no_gradient_and_model_tokens_have_one(model, ids):
    advantages = gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP)
    touched = logit_gradient(model, ids, advantages).abs().amax(dim=2)
    assert torch.equal(touched > 0, TURN_IDS >= 0)
    assert bool((touched[TURN_IDS < 0] == 0).all())


def test_observations_counted_as_turns_would_be_trained_on(model, ids):
    unmasked = TURN_IDS.clone()
    unmasked[0, 2:4] = 0
    advantages = gtpo_advantages(REWARDS, NUM_TURNS, unmasked, GROUP)
    assert logit_gradient(model, ids, advantages)[0, 2:4].abs().amin() > 0


@pytest.mark.parametrize(("rollout", "turn"), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)])
def test_a_turns_advantage_moves_the_gradient_of_its_own_tokens_only(model, ids, rollout, turn):
    turns = group_advantages(F.discounted_returns(REWARDS, NUM_TURNS), NUM_TURNS, GROUP)
    changed = turns.clone()
    changed[rollout, turn] += 1
    gradient, moved = (logit_gradient(model, ids, F.spread_to_tokens(a, TURN_IDS)) for a in (turns, changed))
    own = torch.zeros_like(TURN_IDS, dtype=torch.bool)
    own[rollout] = TURN_IDS[rollout] == turn
    assert torch.equal((gradient != moved).any(dim=2), own)


def test_observed_tokens_still_condition_the_turns_after_them(model, ids):
    """They are masked from the objective, not from the model."""
    advantages = gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP)
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % VOCABULARY
    gradient, conditioned = (logit_gradient(model, tokens, advantages) for tokens in (ids, other))
    assert not torch.allclose(gradient[0, 4:6], conditioned[0, 4:6])


def test_a_step_raises_the_probability_of_a_rewarded_turn(model, ids):
    advantages = gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP)

    def log_probability():
        logps = model(ids)[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
        return logps[0, TURN_IDS[0] == 1].sum().item()

    before = log_probability()
    surrogate_loss(model(ids)[:, :-1], ids, advantages).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    assert log_probability() > before
