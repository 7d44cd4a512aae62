"""The page computes what `gtpo.functional` computes."""

from __future__ import annotations

import random

import pytest
import torch

from gtpo import functional as F

COMPUTE = """([groups, settings]) => groups.map((group, i) => {
  const found = window.gtpoReport.credit(group, settings[i]);
  return found.rows.map((row) => ({ ...row }));
})"""


def random_group(rng):
    size = rng.randint(1, 8)
    rate = rng.choice([0.0, 0.5, 1.0])
    own = rng.random() < 0.5
    group = []
    for _ in range(size):
        turns = rng.randint(1, 6)
        has_call = rng.random() < 0.8
        passed = rng.random() < rate
        group.append(
            {
                "passed": passed,
                "outcome": rng.choice([float(passed), float(passed), 1.5 if passed else rng.uniform(-1, 1)]),
                "own": [rng.choice([0.0, rng.uniform(-1, 1)]) if own else 0.0 for _ in range(turns)],
                "masked": rng.random() < 0.1,
                "hasCall": has_call,
                "invalid": [has_call and rng.random() < 0.3 for _ in range(turns)],
                "similarity": 0.0,
            }
        )
    return group


def expected_credit(group, settings, rng):
    kept = [facts for facts in group if not facts["masked"]]
    if not kept:
        return None
    passed = torch.tensor([facts["passed"] for facts in kept])
    has_code = torch.tensor([facts["hasCall"] for facts in kept])
    similarity = torch.tensor([[rng.uniform(-0.2, 1) for _ in kept] for _ in kept], dtype=torch.float64)
    for row, facts in enumerate(kept):
        used = [float(similarity[row, p].clamp(0, 1)) * bool(has_code[p]) for p in range(len(kept)) if passed[p]]
        if has_code[row] and not facts["passed"] and used:
            facts["similarity"] = sum(used) / len(used)
    longest = max(len(facts["invalid"]) for facts in kept)
    num_turns = torch.tensor([len(facts["invalid"]) for facts in kept])
    invalid = torch.zeros(len(kept), longest, dtype=torch.bool)
    own = torch.zeros(len(kept), longest, dtype=torch.float64)
    for row, facts in enumerate(kept):
        invalid[row, : len(facts["invalid"])] = torch.tensor(facts["invalid"])
        own[row, : len(facts["own"])] = torch.tensor(facts["own"], dtype=torch.float64)
    outcome = torch.tensor([facts["outcome"] for facts in kept], dtype=torch.float64)
    shaped = F.shaped_accuracy(similarity, passed, has_code, alpha=settings["alpha"])
    rewards = F.turn_rewards(
        passed,
        num_turns,
        invalid,
        has_code,
        format_penalty=settings["format_penalty"],
        shaped_B=shaped,
        outcome_B=outcome,
        own_B_K=own,
    )
    returns = F.discounted_returns(rewards, num_turns, gamma=settings["gamma"])
    advantages = F.group_advantages(
        returns,
        num_turns,
        torch.zeros(len(kept), dtype=torch.long),
        passed_B=passed,
        own_returns_B_K=F.discounted_returns(own, num_turns, gamma=settings["gamma"]),
        normalize_over=settings["normalize_over"],
        zero_uniform_groups=settings["zero_uniform_groups"],
        advantage_clip=settings["advantage_clip"],
    )
    surplus = torch.where(shaped > 0, (shaped - outcome).clamp(min=0), 0)
    return surplus, rewards, returns, advantages


@pytest.fixture(scope="module")
def cases():
    rng = random.Random(7)
    groups, settings, expected = [], [], []
    for _ in range(600):
        group = random_group(rng)
        chosen = {
            "gamma": rng.choice([0.0, 0.5, 0.9, 1.0]),
            "alpha": rng.choice([0.0, 0.25, 0.5, 1.0]),
            "format_penalty": rng.choice([0.0, -0.1, -0.7]),
            "normalize_over": rng.choice(["all_turns", "first_turns", "same_turn"]),
            "zero_uniform_groups": rng.random() < 0.5,
            "advantage_clip": rng.choice([0.0, 1.0, 10.0]),
        }
        expected.append(expected_credit(group, chosen, rng))
        groups.append(group)
        settings.append(chosen)
    return groups, settings, expected


def test_rewards_returns_and_advantages_agree_over_random_groups(opened, report, cases):
    groups, settings, expected = cases
    with opened(report, bypass_csp=True) as page:
        found = page.evaluate(COMPUTE, [groups, settings])
    compared = 0
    for group, rows, wanted in zip(groups, found, expected, strict=True):
        kept = [row for row, facts in zip(rows, group, strict=True) if not facts["masked"]]
        for row, facts in zip(rows, group, strict=True):
            if facts["masked"]:
                assert row["advantages"] == [0] * len(facts["invalid"])
        if wanted is None:
            continue
        shaped, rewards, returns, advantages = wanted
        for i, row in enumerate(kept):
            turns = len(row["rewards"])
            assert row["shaped"] == pytest.approx(float(shaped[i]), abs=1e-9)
            for name, tensor in (("rewards", rewards), ("returns", returns), ("advantages", advantages)):
                assert row[name] == pytest.approx(tensor[i, :turns].tolist(), abs=1e-6)
            compared += turns
    assert compared > 3000


def test_the_runs_own_settings_give_the_recorded_advantages(opened, report, run):
    from gtpo.report import load

    with opened(report, bypass_csp=True) as page:
        found = page.evaluate(
            """async () => {
              const { Store, credit, factsOf } = window.gtpoReport;
              const run = Store.runs[0];
              const all = [];
              for (const step of run.steps) {
                const rows = await Store.rollouts(0, step);
                for (const group of new Set(rows.map((row) => row.group))) {
                  const members = rows.filter((row) => row.group === group);
                  const again = credit(members.map((row) => factsOf(row, run.settings.alpha)), run.settings);
                  members.forEach((row, i) =>
                    again.rows[i].advantages.forEach((value, j) => all.push([step, row.rollout, j, value])));
                }
              }
              return all;
            }"""
        )
    turns = load(run).turns.set_index(["step", "rollout", "turn"])["advantage"]
    assert len(found) == len(turns)
    for step, rollout, turn, value in found:
        assert value == pytest.approx(turns[step, rollout, turn], abs=2e-4)  # recorded in float32, similarities rounded
