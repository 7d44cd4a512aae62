"""Environments of the user's own in the trainer: rewards, turn rewards, data, records, failures."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from gtpo.audit import AuditBatch, AuditRow, audit
from gtpo.errors import ConfigError, RewardError, TooManyFailuresError
from gtpo.rollout import build_prompts
from gtpo.run_directory import RunFiles
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.trainer import GTPOTrainer

PROMPTS = Dataset.from_list([{"prompt": [{"role": "user", "content": "Go:"}], "goal": n} for n in range(8)])


class Counting:
    """Rewards talking; the model is answered three times."""

    def reset(self, goal=0, **columns):
        self.goal, self.turns, self.columns = goal, 0, columns
        return f" to {goal}"

    def look(self) -> str:
        """Look around."""
        return "nothing"

    def respond(self, message):
        self.turns += 1
        return None if self.turns == 3 else f"{self.turns}?"

    def get_turn_reward(self):
        return 0.25 * self.turns

    def get_reward(self):
        return float(self.goal % 2)


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, sandbox, config, random_turns):
    def make(environment, reward_funcs=None, *, dataset=PROMPTS, options=(), **changes):
        trainer = GTPOTrainer(
            small_model,
            reward_funcs,
            config(**changes),
            dataset,
            processing_class=tiny_tokenizer,
            environment_factory=environment,
            **dict(options),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # TRL sets it in its training loop
        return trainer

    return make


def score(trainer):
    torch.manual_seed(5)
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def test_an_environment_gives_the_outcome_and_turn_rewards(trainer_for, tmp_path):
    recorder = RunRecorder(tmp_path / "run")
    recorder.start_afresh()
    trainer = trainer_for(Counting, options={"recorder": recorder})
    score(trainer)
    batch = trainer._batch
    wanted = [float(row["goal"] % 2) for row in trainer._inputs]
    assert batch.credit.accuracy_B.tolist() == wanted
    assert [item.passed for item in batch.inputs] == [value == 1.0 for value in wanted]
    for i, (trajectory, item) in enumerate(zip(batch.trajectories, batch.inputs, strict=True)):
        given = tuple(turn.reward for turn in trajectory.turns)
        assert item.turn_rewards == {"Counting": given}
        assert batch.credit.own_B_K[i, : len(given)].tolist() == list(given)
    assert any(len(t.turns) == 3 for t in batch.trajectories)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/Counting/mean"] == [pytest.approx(sum(wanted) / len(wanted))]
    assert "turn_reward/Counting" in metrics
    row = RunFiles(tmp_path / "run").rollouts(1)[0]
    assert row["turns"][0]["turn_rewards"] == {"Counting": batch.trajectories[0].turns[0].reward}
    assert trainer._rolled.environments[0].columns.keys() == {"prompt"}


def test_it_is_added_to_reward_functions_with_weight_1_and_they_see_the_environments(trainer_for):
    seen = []

    def half(environments, goal, prompts, **columns):
        seen.append(environments)
        assert [prompt[-1]["content"] for prompt in prompts] == [f"Go: to {n}" for n in goal]
        return [0.5 for _ in goal]

    trainer = trainer_for(Counting, half, reward_weights=[2.0])
    score(trainer)
    wanted = [1.0 + row["goal"] % 2 for row in trainer._inputs]
    assert trainer._batch.credit.accuracy_B.tolist() == wanted
    assert [env.goal for env in seen[0]] == [row["goal"] for row in trainer._inputs]
    assert len({id(env) for env in seen[0]}) == len(wanted)
    assert trainer.environments is None, "TRL would reset those of the last batch before the next one"


def test_without_get_reward_the_verifier_or_the_functions_score(trainer_for, problems, config):
    class Silent:
        def reset(self, **columns):
            return None

        def look(self) -> str:
            """Look around."""
            return "nothing"

    with pytest.raises(Exception, match="answer"):
        trainer_for(Silent)
    trainer = trainer_for(Silent, dataset=problem_dataset(problems, build_prompts(config())))
    score(trainer)
    assert trainer.scorer.scorer.verifier is not None
    assert trainer._batch.inputs[0].turn_rewards == {}


def test_the_tokens_of_a_dialogue_are_exact_and_the_replies_are_not_trained_on(trainer_for):
    trainer = trainer_for(Counting)
    output = score(trainer)
    encoder = trainer.engine.encoder
    rows = []
    for i, trajectory in enumerate(trainer._batch.trajectories):
        length = len(trajectory.completion_ids)
        ids = output["completion_ids"][i, :length].tolist()
        mask = (output["completion_mask"] * output["tool_mask"])[i, :length].tolist()
        assert ids == trajectory.completion_ids
        rows.append(AuditRow(trajectory.prompt_ids, tuple(ids), tuple(mask), turn_ids=tuple(trajectory.turn_ids)))
        told = encoder.decode([i for i, kept in zip(ids, mask, strict=True) if not kept])
        replies = [
            turn.observation.text for turn in trajectory.turns if turn.observation and turn.observation.role == "user"
        ]
        assert all(text in told for text in replies), (told, replies, trajectory)
    sampled = [[list(turn.token_ids) for turn in t.turns] for t in trainer._batch.trajectories]
    report = audit(AuditBatch(tuple(rows)), tokenizer=encoder.tokenizer, sampled_ids=sampled)
    assert report.ok, report.render()
    assert any(turn.observation.role == "user" for t in trainer._batch.trajectories for turn in t.turns[:-1])


def test_without_a_data_set_reset_makes_the_prompts(trainer_for):
    class Makes(Counting):
        def reset(self, **columns):
            super().reset(**columns)
            return "Count to three."

    trainer = trainer_for(Makes, dataset=None, max_steps=1)
    score(trainer)
    prompt = trainer.engine.encoder.decode(trainer._batch.trajectories[0].prompt_ids)
    assert "Count to three." in prompt
    with pytest.raises(ConfigError, match=r"the environment Makes makes the prompts, .*: give max_steps above 0"):
        trainer_for(Makes, dataset=None, max_steps=-1, num_train_epochs=1)


def test_rows_whose_environment_fails_are_masked_and_too_many_end_the_run(trainer_for):
    class Fragile(Counting):
        def reset(self, goal, **columns):
            if goal in bad:
                raise KeyError("board")
            return super().reset(goal)

    bad = set()
    trainer = trainer_for(Fragile)
    torch.manual_seed(5)
    inputs = next(iter(trainer.get_train_dataloader()))
    bad |= {inputs[0]["goal"]}
    score(trainer)
    masked = [item.masked for item in trainer._batch.inputs]
    assert masked == [row["goal"] in bad for row in trainer._inputs]
    share = sum(masked) / len(masked)
    assert 0 < share <= 0.5
    assert trainer._metrics["train"]["failures/environment"] == [share]
    bad |= set(range(8))
    with pytest.raises(TooManyFailuresError, match=r"environment 8 .*Fragile: reset raised KeyError: 'board'"):
        score(trainer)


def test_what_is_wrong_with_a_class_is_said_before_training(trainer_for):
    class Narrow(Counting):
        def reset(self, goal):
            return None

    with pytest.raises(
        ConfigError, match=r"Narrow: reset\(goal\) can't take the columns prompt, goal: .*add \*\*columns"
    ):
        trainer_for(Narrow)
    with pytest.raises(ConfigError, match="a mapping of several environments is not supported"):
        trainer_for({"a": Counting})


def test_a_reward_that_is_no_number_ends_the_run_with_the_class_named(trainer_for):
    class Odd(Counting):
        def get_reward(self):
            return float("nan")

    with pytest.raises(RewardError, match="environment Odd: get_reward got nan, which is not a finite number"):
        score(trainer_for(Odd))


def test_the_baseline_does_without_turn_rewards_and_says_so(trainer_for, capsys):
    trainer = trainer_for(Counting, algorithm="grpo")
    score(trainer)
    assert trainer._batch.inputs[0].turn_rewards == {}
    assert trainer._batch.credit.own_B_K.abs().sum() == 0


def test_tools_beside_an_environment_are_those_that_are_given(trainer_for):
    def double(text: str) -> str:
        """Say a text twice.

        Args:
            text: the text.
        """
        return text * 2

    trainer = trainer_for(Counting)
    assert [spec.name for spec in trainer.engine.encoder.format.specs] == ["look"]
    with pytest.raises(ConfigError, match="two tools are named 'look'"):
        trainer_for(Counting, options={"tools": [Counting().look]})
    trainer = trainer_for(Counting, options={"tools": [double]})
    assert [spec.name for spec in trainer.engine.encoder.format.specs] == ["double", "look"]


def test_one_step_of_training(trainer_for):
    trainer = trainer_for(Counting, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "rewards/Counting/mean" in trainer.state.log_history[0]
