"""The trainer over the real host: what reaches its loss, what is recorded, what survives a restart."""

from __future__ import annotations

import pytest
import torch
import yaml
from judge import Passes, ended

from gtpo import functional as F
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout import Prompts, get_format
from gtpo.rollout.backends import Generation
from gtpo.run_directory import RunFiles, read_metrics
from gtpo.sandbox import ExecResult, Status
from gtpo.training.data import problem_dataset
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, problems, sandbox, config):
    def make(sandbox=sandbox, **changes):
        return GTPOTrainer(
            small_model,
            args=config(**changes),
            train_dataset=problem_dataset(problems, Prompts(get_format("fenced"), "")),
            processing_class=tiny_tokenizer,
            sandbox=sandbox,
        )

    return make


def score(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # TRL sets it in its training loop
    return trainer._generate_and_score_completions(batch)


def test_each_token_gets_the_advantage_of_its_turn_and_observations_get_none(trainer_for, random_turns):
    trainer = trainer_for()
    output = score(trainer)
    advantages, ours = output["advantages"], (output["completion_mask"] * output["tool_mask"]).bool()
    assert advantages.shape == output["completion_ids"].shape
    assert not advantages[~ours].any()
    assert output["tool_mask"].eq(0).any(), "no observation in the batch: the test would show nothing"
    credit = trainer._batch.credit
    for row, rollout in enumerate(trainer._batch.trajectories):
        for k, value in zip(rollout.turn_ids, advantages[row].tolist(), strict=False):
            assert value == (credit.advantages_B_K[row, k].item() if k >= 0 else 0.0)


def test_the_gradient_passes_through_the_models_own_tokens_only(trainer_for, random_turns):
    trainer = trainer_for()
    output = score(trainer)
    embedded = {}

    def keep(module, args, logits):
        logits.retain_grad()
        embedded["hidden"] = logits

    handle = trainer.model.model.register_forward_hook(lambda m, a, out: keep(m, a, out.last_hidden_state))
    trainer.compute_loss(trainer.model, output).backward()
    handle.remove()
    own = (output["completion_mask"] * output["tool_mask"]).bool() & output["advantages"].ne(0)
    width = own.shape[1]
    gradient = embedded["hidden"].grad[:, -width - 1 : -1].abs().sum(-1)  # position t predicts token t + 1
    assert gradient[own].gt(0).all()
    assert gradient[~own].eq(0).all()


def test_grpo_keeps_the_hosts_own_advantages(trainer_for, random_turns):
    trainer = trainer_for(algorithm="grpo")
    output = score(trainer)
    credit = trainer._batch.credit
    assert output["advantages"].dim() == 1
    assert credit.outcome_B.unique().numel() == 2, "all rewards equal: the test would show nothing"
    torch.testing.assert_close(output["advantages"], F.grpo_advantages(credit.outcome_B, credit.group_B))
    torch.testing.assert_close(credit.advantages_B_K[:, 0], output["advantages"])


class BrokenSandbox:
    """Fails on every other call."""

    def __init__(self):
        self.calls = 0

    async def run(self, code, *, limits=None, seed=None, key=None):
        self.calls += 1
        return ExecResult(Status.TOOL_FAILURE if self.calls % 2 else Status.OK, stdout="2")


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_a_rollout_whose_sandbox_failed_is_neither_scored_nor_trained_on(trainer_for, random_turns, algorithm):
    trainer = trainer_for(sandbox=BrokenSandbox(), algorithm=algorithm)
    output = score(trainer)
    masked = torch.tensor([t.stop_reason.value == "tool_failure" for t in trainer._batch.trajectories])
    assert 0 < masked.sum() < len(masked)
    in_loss = (output["completion_mask"] * output["tool_mask"]).any(dim=1)
    assert torch.equal(in_loss, ~masked)
    assert not output["advantages"][masked].any()
    assert torch.isfinite(trainer.compute_loss(trainer.model, output))


@pytest.mark.parametrize("fate", ["keep", "mask", "drop"])
@pytest.mark.parametrize(
    ("option", "turns", "reason"),
    [
        ("no_answer_rollouts", ("\\boxed{2}", "no idea"), "answer"),
        ("truncated_rollouts", ("\\boxed{2}", "x" * 40), "turn_tokens"),
    ],
)
def test_rollouts_that_went_nowhere_are_kept_masked_or_dropped(trainer_for, random_turns, option, turns, reason, fate):
    random_turns.turns = turns
    trainer = trainer_for(**{option: fate})
    output = score(trainer)
    trajectories, credit = trainer._batch.trajectories, trainer._batch.credit
    nowhere = torch.tensor(["boxed" not in t.turns[-1].text for t in trajectories])
    assert 0 < nowhere.sum() < len(nowhere)
    assert {t.stop_reason.value for t, gone in zip(trajectories, nowhere, strict=True) if gone} == {reason}
    assert trainer._batch.has_answer == tuple((~nowhere).tolist())
    in_loss = (output["completion_mask"] * output["tool_mask"]).any(dim=1)
    assert torch.equal(in_loss, ~nowhere if fate != "keep" else torch.ones_like(nowhere))
    for group in credit.group_B.unique():
        here = credit.group_B == group
        if nowhere[here].any() and not nowhere[here].all():  # successes stand out from failures, if these count
            assert bool((credit.advantages_B_K[here & ~nowhere] > 0.1).any()) == (fate != "drop")
    assert torch.isfinite(trainer.compute_loss(trainer.model, output))


def test_rollouts_that_were_tokenised_here_are_not_trained_on(trainer_for, random_turns, monkeypatch):
    async def generate(self, request):
        return Generation((*self.tokenizer.encode("\\boxed{2}"), self.tokenizer.eos_token_id), token_exact=False)

    monkeypatch.setattr(type(random_turns), "generate", generate)
    with pytest.raises(BackendError, match="did not return the token ids"):
        score(trainer_for())


def test_a_run_leaves_config_metrics_rollouts_and_a_model(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns
):
    args = config()
    before = [p.clone() for p in small_model.parameters()]
    result = train(small_model, tiny_tokenizer, problems, args, sandbox=sandbox, provenance={"model": "small"})
    assert result.steps == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, small_model.parameters(), strict=True))
    written = yaml.safe_load((result.run_dir / "config.yaml").read_text())
    assert (written["model"], written["config"]["gamma"], written["schema"]) == ("small", 0.9, 3)
    assert written["versions"]["trl"]
    lines = read_metrics(result.run_dir)
    assert [line["step"] for line in lines] == [1, 2]
    for name in ("pass_rate", "reward/format", "turns", "calls", "invalid_calls", "stop/answer", "entropy"):
        assert isinstance(lines[0][name], float), name
    shares = [lines[0][f"time/{phase}_share"] for phase in ("rollout", "verify", "credit", "record", "update")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    assert (result.model_dir / "model.safetensors").exists()


def test_the_recorder_writes_every_rollout_with_the_credit_of_its_turns(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns
):
    args = config(max_steps=1)
    train(small_model, tiny_tokenizer, problems, args, sandbox=sandbox)
    rows = RunFiles(args.run_dir).rollouts(1)
    assert len(rows) == 8
    assert sorted(row["group"] for row in rows) == [0] * 4 + [1] * 4
    for row in rows:
        rewards = [turn["reward"] for turn in row["turns"]]
        assert row["turns"][-1]["r_acc"] == float(row["passed"])
        for turn in row["turns"]:
            assert turn["reward"] == pytest.approx(turn["r_acc"] + turn["r_shaped"] + turn["r_format"], abs=1e-6)
        returns = [sum(0.9 ** (m - j) * rewards[m] for m in range(j, len(rewards))) for j in range(len(rewards))]
        assert [turn["return"] for turn in row["turns"]] == pytest.approx(returns, abs=1e-6)
        assert all((turn["observation"] is None) == (turn["observation_tokens"] == 0) for turn in row["turns"])


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path, tiny_tokenizer, problems, sandbox, config):
    from gtpo.lab.tiny.model import make_model

    def run(name, steps, **more):
        model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
        options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        options |= {"max_turn_tokens": 60, "per_device_train_batch_size": 16}  # about half of the rollouts end
        args = config(run_dir=str(tmp_path / name), max_steps=steps, **options)
        return train(model, tiny_tokenizer, problems, args, sandbox=sandbox, verifier=Passes(ended), **more)

    def figures_of(result):
        kept = ("step", "loss", "pass_rate", "turns", "entropy", "grad_norm")
        return [{name: line[name] for name in kept} for line in read_metrics(result.run_dir)]

    whole = figures_of(run("whole", 6))  # three steps an epoch
    assert all(line["grad_norm"] > 0 for line in whole), "something is learnt in every step"
    for stopped in (2, 3, 5):
        run(f"stopped-{stopped}", stopped)
        resumed = run(f"stopped-{stopped}", 6, resume=True)
        assert resumed.steps == 6
        assert figures_of(resumed) == [pytest.approx(line) for line in whole], stopped
        assert len(list((resumed.run_dir / "rollouts").iterdir())) == 6


def test_resuming_without_a_checkpoint_is_refused(small_model, tiny_tokenizer, problems, config):
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        train(small_model, tiny_tokenizer, problems, config(), resume=True)


def test_a_directory_that_holds_a_run_is_not_overwritten_unasked(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns
):
    train(small_model, tiny_tokenizer, problems, config(max_steps=1), sandbox=sandbox)
    with pytest.raises(ConfigError, match=r"holds a run already.*--resume.*--overwrite"):
        train(small_model, tiny_tokenizer, problems, config(), sandbox=sandbox)
    again = train(small_model, tiny_tokenizer, problems, config(max_steps=2, overwrite=True), sandbox=sandbox)
    assert [line["step"] for line in read_metrics(again.run_dir)] == [1, 2]


def test_fewer_problems_than_a_batch_holds_are_refused(trainer_for):
    with pytest.raises(ConfigError, match="12 training problems, but a generation batch holds 16"):
        trainer_for(per_device_train_batch_size=64)


def test_a_group_size_that_does_not_divide_the_batch_is_refused(config):
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        config(num_generations=3)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"gamma": 2.0}, "gamma"),
        ({"max_turns": 0}, "max_turns"),
        ({"tool_format": "xml"}, "unknown tool format"),
        ({"record_every": -1}, "record_every"),
        ({"use_vllm": True, "vllm_mode": "server"}, "needs CUDA: use --vllm_sync adapter with --use_peft"),
        (
            {"use_vllm": True, "vllm_mode": "colocate", "vllm_sync": "adapter"},
            "vllm_sync 'adapter' needs --vllm_mode server",
        ),
        ({"use_vllm": True, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 2}, "use --vllm_mode server"),
        ({"scale_rewards": "batch"}, "scale_rewards"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_name(config, change, fault, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=fault):
        config(**change)


def test_gamma_may_follow_from_the_number_of_turns(config):
    assert [config(max_turns=turns).gamma for turns in (2, 4)] == [0.9] * 2, "the paper's, where that is enough"
    assert config(max_turns=14).gamma ** 13 == pytest.approx(0.7)
    assert config(max_turns=14, preset="paper").gamma == 0.9
    assert config(max_turns=14, gamma=0.8).gamma == 0.8
    chosen = config(first_turn_share=0.7, max_turns=8)
    assert chosen.gamma**7 == pytest.approx(0.7)
    assert config(first_turn_share=0.7, max_turns=1).gamma == 1.0
    assert config(first_turn_share=0.7, max_turns=8, gamma=chosen.gamma).gamma == chosen.gamma, "as it is recorded"
    with pytest.raises(
        ConfigError, match=r"make gamma 0\.9503, but gamma is 0\.9: give either first_turn_share or gamma"
    ):
        config(first_turn_share=0.7, gamma=0.9, max_turns=8)
    with pytest.raises(ConfigError, match="first_turn_share must be in"):
        config(first_turn_share=0.0)
