"""What trackers get of a run: every figure by name, and the table of rollouts with the credit of their turns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from judge import Passes, ended
from transformers import TrainerCallback
from trl.trainer import grpo_trainer

from gtpo.rollout import build_prompts
from gtpo.run_directory import RunFiles, read_metrics
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.run import MetricsCallback
from gtpo.training.trainer import GTPOTrainer
from gtpo.turn_rewards import execution_feedback

FIGURES = (
    "pass_rate",
    "turns",
    "calls",
    "reward/outcome",
    "reward/format",
    "reward/shaped",
    "reward/total",
    "rewards/brief/mean",
    "turn_reward/execution_feedback",
    "groups/frac_all_failed",
    "advantage/frac_negative_on_success",
    "stop/answer",
    "time/rollout_s",
)


def brief(completions, **columns):
    return [0.5 * (len(turns) < 3) for turns in completions]


@pytest.fixture
def trained(small_model, tiny_tokenizer, problems, sandbox, config, random_turns):
    def make(callback=None, **changes):
        args = config(**changes)
        recorder = RunRecorder(args.run_dir)
        trainer = GTPOTrainer(
            small_model,
            ["auto", brief],
            args,
            problem_dataset(problems, build_prompts(args)),
            processing_class=tiny_tokenizer,
            sandbox=sandbox,
            verifier=Passes(ended),
            turn_reward_funcs=[execution_feedback],
            recorder=recorder,
            callbacks=[MetricsCallback(recorder), *([callback] if callback else [])],
        )
        trainer.train()
        return args

    return make


def test_tensorboard_has_every_figure(trained, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    args = trained(report_to="tensorboard", max_steps=2)
    board = events.EventAccumulator(str(tmp_path / "board")).Reload()
    rows = read_metrics(args.run_dir)
    assert len(rows) == 2
    for name in FIGURES:
        shown = [event.value for event in board.Scalars(f"train/{name}")]
        assert shown == pytest.approx([row[name] for row in rows]), name


class Tracker:
    """Stands for the modules wandb and trackio."""

    run = "there is one"

    def __init__(self):
        self.tables = []
        self.Table = SimpleNamespace

    def log(self, logged):
        self.tables.append(logged["completions"].dataframe)


def test_wandb_and_trackio_get_the_table_of_rollouts_as_trl_logs_it(trained, monkeypatch):
    trackers = {name: Tracker() for name in ("wandb", "trackio")}
    for name, tracker in trackers.items():
        monkeypatch.setattr(grpo_trainer, name, tracker, raising=False)

    class ReportTo(TrainerCallback):
        """Neither needs to be installed for this: the figures go through transformers, the table through TRL."""

        def on_train_begin(self, args, state, control, **kwargs):
            args.report_to = list(trackers)

    args = trained(ReportTo(), max_steps=1, log_completions=True, num_completions_to_print=1)
    (kept,) = (Path(args.run_dir) / "checkpoints" / "completions").glob("*.parquet")
    rows = RunFiles(args.run_dir).rollouts(1)
    assert any(len(row["turns"]) > 1 for row in rows), "the test would show nothing"
    for tracker in trackers.values():
        table, *_ = tracker.tables  # TRL logs it again with its closing summary
        pd.testing.assert_frame_equal(table[["turn_rewards"]], pd.read_parquet(kept)[["turn_rewards"]])
        for row, (_, shown) in zip(rows, table.iterrows(), strict=True):
            turns = row["turns"]
            for column, field in (
                ("turn_rewards", "reward"),
                ("turn_returns", "return"),
                ("turn_advantages", "advantage"),
            ):
                assert shown[column] == ", ".join(f"{turn[field]:.2f}" for turn in turns)
            own = [turn["turn_rewards"]["execution_feedback"] for turn in turns]
            assert shown["turn_reward/execution_feedback"] == ", ".join(f"{value:.2f}" for value in own)
            assert shown["reward/verified"] == float(row["passed"])
            assert shown["reward/brief"] in (0.0, 0.5)
