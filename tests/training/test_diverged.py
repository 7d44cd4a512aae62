"""A run whose numbers are no longer finite ends with the step and the way back, before a checkpoint is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from judge import Passes, ended
from transformers import Trainer, TrainerCallback

from gtpo._options import check_numbers
from gtpo.errors import ConfigError, ModelError
from gtpo.training.checkpoints import flaw_of, sealed_checkpoints
from gtpo.training.cold_start import ColdStartConfig
from gtpo.training.config import GTPOConfig
from gtpo.training.run import train

NAN = torch.tensor(float("nan"))


class WeightsBreak(TrainerCallback):
    """In the update of the second step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                next(model.parameters()).view(-1)[3] = torch.inf


def loss_breaks(monkeypatch):
    honest = Trainer.training_step

    def training_step(self, *args, **kwargs):
        return honest(self, *args, **kwargs) + (NAN if self.state.global_step == 1 else 0)

    monkeypatch.setattr(Trainer, "training_step", training_step)


def gradient_breaks(monkeypatch):
    honest = Trainer._clip_grad_norm
    monkeypatch.setattr(
        Trainer,
        "_clip_grad_norm",
        lambda self, model: honest(self, model) + (NAN if self.state.global_step == 1 else 0),
    )


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (loss_breaks, r"step 2: the loss is not finite \(nan\)"),
        (gradient_breaks, r"step 2: the gradient is not finite \(norm nan\)"),
        (None, "step 2: weights are not finite after the update"),
    ],
)
@pytest.mark.parametrize("save_steps", [1, 5])
def test_what_is_not_finite_ends_the_run_with_the_step_and_the_way_back(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns, monkeypatch, breaks, said, save_steps
):
    if breaks:
        breaks(monkeypatch)
    args = config(max_steps=3, save_strategy="steps", save_steps=save_steps)
    remedy = (
        r"Resume from .*checkpoint-1 with a lower learning rate: "
        r"--resume true --resume_with_changes true --learning_rate 0\.0005"
        if save_steps == 1
        else r"no checkpoint yet: restart the run with --overwrite true and a lower --learning_rate"
    )
    with pytest.raises(ModelError, match=rf"{said}.*{remedy}"):
        train(
            *(small_model, tiny_tokenizer, problems, args),
            sandbox=sandbox,
            verifier=Passes(ended),
            callbacks=[] if breaks else [WeightsBreak()],
        )
    found = sealed_checkpoints(args.output_dir)
    assert [path.name for path in found] == (["checkpoint-1"] if save_steps == 1 else [])
    assert all(flaw_of(path) is None for path in found)
    assert not (Path(args.run_dir) / "model").exists()


def test_logits_that_are_not_finite_name_the_step_and_the_checkpoint_too(
    small_model, tiny_tokenizer, problems, sandbox, config
):
    with torch.no_grad():
        small_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"^step 1: the model's logits are not finite.*There is no checkpoint yet"):
        train(small_model, tiny_tokenizer, problems, config(), sandbox=sandbox)


def test_checkpoints_by_time_make_room_for_later_ones(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns
):
    args = config(max_steps=5, save_strategy="steps", save_steps=2, save_minutes=1e-9)
    train(small_model, tiny_tokenizer, problems, args, sandbox=sandbox, verifier=Passes(ended))
    assert [path.name for path in sealed_checkpoints(args.output_dir)] == [f"checkpoint-{n}" for n in (2, 4, 5)]


@pytest.mark.parametrize("name", ["learning_rate", "turn_reward_weights", "reward_weights", "success_threshold"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused_by_name(config, name, value):
    given = [value] if name.endswith("weights") else value
    with pytest.raises(ConfigError, match=f"{name} must be finite"):
        config(**{name: given})


def test_integers_that_no_machine_counts_to_are_refused_by_name(config, tmp_path):
    with pytest.raises(ConfigError, match="max_turns: an integer of more than 64 bits"):
        config(max_turns=10**4999)
    with pytest.raises(ConfigError, match="learning_rate must be finite"):
        ColdStartConfig(run_dir=str(tmp_path), learning_rate=float("inf"), bf16=False, report_to="none")
    with pytest.raises(ConfigError, match="save_minutes must be at least 0"):
        config(save_minutes=-1.0)
    check_numbers(GTPOConfig(run_dir=str(tmp_path), bf16=False, report_to="none"))
