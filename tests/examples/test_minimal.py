"""The one-file example trains, and its advantages are those of the trainer."""

from __future__ import annotations

import ast
import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from gtpo.credit_assignment import CreditSettings, compute_credit, credit_inputs
from gtpo.types import InvalidCall, StopReason, ToolCall, Trajectory, Turn

FILE = Path(__file__).resolve().parents[2] / "examples" / "gtpo_minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("gtpo_minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(minimal):
    """Fewer updates than the example's own; their pass rates, and the rollouts and advantages of the first one."""
    batches = []
    gtpo_advantages = minimal.gtpo_advantages

    def keep(rollouts):
        batches.append((rollouts, gtpo_advantages(rollouts)))
        return batches[-1][1]

    minimal.gtpo_advantages = keep
    pass_rates = minimal.train(seed=0, updates=20)
    minimal.gtpo_advantages = gtpo_advantages
    return pass_rates, *batches[0]


def test_it_is_short_and_needs_torch_transformers_and_the_formulas_only():
    source = FILE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    others = {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {"torch", "torch.nn.utils.rnn", "transformers", "gtpo"}
    assert [a.name for n in imports if isinstance(n, ast.ImportFrom) and n.module == "gtpo" for a in n.names] == [
        "functional"
    ]


def test_the_pass_rate_rises(trained):
    pass_rates, _, _ = trained
    start, end = sum(pass_rates[:3]) / 3, sum(pass_rates[-3:]) / 3
    assert start < 0.5
    assert end > start + 0.3


def test_without_advantages_nothing_is_learned(minimal):
    model = minimal.make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    torch.manual_seed(0)
    rollouts = minimal.sample_rollouts(model, [minimal.make_question(random.Random(0))] * minimal.GROUP_SIZE)
    none = torch.zeros(len(rollouts), max(len(rollout.invalid) for rollout in rollouts))
    minimal.clipped_update(model, torch.optim.SGD(model.parameters(), lr=1.0), rollouts, none)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_log_probabilities_of_sampling_are_those_of_the_update(minimal):
    torch.manual_seed(0)
    model = minimal.make_model()
    minimal.cold_start(model, random.Random(0), 40)
    rng = random.Random(1)
    for rollout in minimal.sample_rollouts(model, [minimal.make_question(rng) for _ in range(8)]):
        with torch.no_grad():
            logprobs = minimal.token_logprobs(model, torch.tensor([rollout.ids]))[0]
        own = torch.tensor(rollout.turn_ids) >= 0
        assert torch.allclose(torch.tensor(rollout.logprobs)[own], logprobs[own], atol=1e-4)


def test_the_tool_is_called_and_its_result_is_read(minimal):
    rollout = minimal.Rollout("47+38*12", waiting=minimal.encode("Q47+38*12\n"))
    for character in "Q47+38*12\n" + "C47+38\n" + "O85\n" + "C85?12\n" + "O??\n" + "A20\n":
        # what is offered is sampled only in the model's own turns
        assert minimal.decode([rollout.advance(minimal.VOCABULARY.index(character), -1.0)]) == character
    assert rollout.done
    assert rollout.passed
    assert rollout.calls == ["47+38"]
    assert rollout.invalid == [False, True, False]
    assert minimal.decode([i for i, turn in zip(rollout.ids, rollout.turn_ids, strict=True) if turn >= 0]) == (
        "C47+38\nC85?12\nA20\n"
    )
    assert rollout.advance(3, -1.0) == minimal.PAD


class OwnSimilarity:
    """The similarity of the example, for `compute_credit`; the code of a rollout is its calls, one per line."""

    def __init__(self, minimal):
        self.minimal = minimal

    def matrix(self, texts):
        return self.minimal.code_similarity(
            [self.minimal.Rollout("", [], calls=text.split("\n") if text else []) for text in texts]
        )


def trajectory_of(minimal, rollout) -> Trajectory:
    """The rollout in the vocabulary of the trainer."""
    turns = []
    for number, invalid in enumerate(rollout.invalid):
        ids = [i for i, turn in zip(rollout.ids, rollout.turn_ids, strict=True) if turn == number]
        text = minimal.decode(ids)
        ended_call = text.startswith("C") and text.endswith("\n")
        call = InvalidCall("no calculation") if invalid else ToolCall(text[1:-1])
        turns.append(Turn(text, tuple(ids), (call,) if ended_call else ()))
    return Trajectory((0,), tuple(turns), StopReason.ANSWER if rollout.done else StopReason.TOTAL_TOKENS)


def trainer_advantages(minimal, rollouts, similarity, settings):
    inputs = [
        credit_inputs(trajectory_of(minimal, rollout), passed=rollout.passed, group_id=i // minimal.GROUP_SIZE)
        for i, rollout in enumerate(rollouts)
    ]
    return compute_credit(inputs, similarity, settings).advantages_B_K


def test_advantages_equal_those_of_the_trainer(minimal, trained):
    _, rollouts, advantages = trained
    assert any(any(rollout.invalid) for rollout in rollouts)
    assert advantages.abs().max() > 0.5
    expected = trainer_advantages(minimal, rollouts, OwnSimilarity(minimal), CreditSettings())
    assert torch.allclose(advantages, expected, atol=1e-5)


@pytest.mark.parametrize("change", [{"gamma": 1.0}, {"alpha": 0.0}, {"format_penalty": 0.0}])
def test_they_differ_from_the_trainer_under_other_settings(minimal, trained, change):
    _, rollouts, advantages = trained
    expected = trainer_advantages(minimal, rollouts, OwnSimilarity(minimal), CreditSettings(**change))
    assert not torch.allclose(advantages, expected, atol=1e-3)
