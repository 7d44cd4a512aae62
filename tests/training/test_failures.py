"""One policy for failures: what is masked, what is counted, what ends a run, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from judge import Passes, ended

from gtpo.errors import BackendError, ConfigError, DataError, ModelError, TooManyFailuresError, VerifierError
from gtpo.failures import KINDS, Failure, FailurePolicy
from gtpo.lab.tiny.model import make_model
from gtpo.rollout import build_prompts
from gtpo.rollout.backends import Generation
from gtpo.run_directory import RunFiles, read_metrics
from gtpo.sandbox import ExecResult, Status
from gtpo.similarity import SimilarityError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.training.data import problem_dataset
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer

LOST = Failure("tool", "no more processes")


def test_shares_are_counted_by_kind():
    shares = FailurePolicy().note([None, LOST, Failure("verifier"), None], step=1)
    assert shares == {f"failures/{kind}": 0.25 * (kind in ("tool", "verifier")) for kind in KINDS}


@pytest.mark.parametrize(
    ("fraction", "failed", "ends"), [(0.5, 2, False), (0.5, 3, True), (0.0, 1, True), (1.0, 4, True)]
)
def test_a_batch_is_lost_above_the_fraction_and_when_nothing_is_left(fraction, failed, ends):
    policy, batch = FailurePolicy(max_failed_fraction=fraction), [LOST] * failed + [None] * (4 - failed)
    if ends:
        with pytest.raises(TooManyFailuresError, match=rf"step 7: {failed} of 4 rollouts failed.*no more processes"):
            policy.note(batch, step=7)
    else:
        policy.note(batch, step=7)


def test_the_run_ends_with_the_nth_lost_batch_in_a_row():
    policy = FailurePolicy(max_failed_batches=3)
    for batch in ([LOST], [LOST], [None], [LOST], [LOST]):
        policy.note(batch, step=1)
    with pytest.raises(TooManyFailuresError, match="in each of the last 3 batches"):
        policy.note([LOST], step=1)


@pytest.mark.parametrize(
    "options", [{"max_failed_fraction": 1.5}, {"max_failed_fraction": -0.1}, {"max_failed_batches": 0}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        FailurePolicy(**options)


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, problems, sandbox, config):
    def make(problems=problems, sandbox=sandbox, verifier=None, similarity=None, **changes):
        args = config(**changes)
        dataset = problem_dataset(problems, build_prompts(args))
        options = {"verifier": verifier, "similarity": similarity, "sandbox": sandbox}
        trainer = GTPOTrainer(small_model, args=args, train_dataset=dataset, processing_class=tiny_tokenizer, **options)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # TRL sets it in its training loop
        return trainer

    return make


def score(trainer):
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def logged(trainer, name):
    return trainer._metrics["train"][name][-1]


def assert_masked(trainer, output, failed):
    """Exactly these rollouts take no part in the loss, and the loss is that of the others."""
    failed = torch.tensor(failed)
    in_loss = (output["completion_mask"] * output["tool_mask"]).any(dim=1)
    assert torch.equal(in_loss, ~failed)
    assert not output["advantages"][failed].any()
    assert all(reward is None for reward, gone in zip(trainer._batch.rewards, failed, strict=True) if gone)
    assert torch.isfinite(trainer.compute_loss(trainer.model, output))


def test_rollouts_whose_model_server_fails_are_masked_and_counted(trainer_for, random_turns, monkeypatch):
    honest = type(random_turns).generate

    async def generate(self, request):
        if request.rollout == 5:
            raise BackendError("the server is gone")
        return await honest(self, request)

    monkeypatch.setattr(type(random_turns), "generate", generate)
    trainer = trainer_for()
    output = score(trainer)
    assert_masked(trainer, output, [i == 5 for i in range(8)])
    assert logged(trainer, "failures/model_server") == 1 / 8
    assert logged(trainer, "rollouts/frac_masked") == 1 / 8


def test_a_model_server_that_is_lost_ends_the_run_and_leaves_the_finished_rollouts(
    trainer_for, random_turns, monkeypatch
):
    async def generate(self, request):
        if request.rollout > 2:
            raise BackendError("the server is gone")
        return Generation((*self.tokenizer.encode("\\boxed{2}"), self.tokenizer.eos_token_id))

    monkeypatch.setattr(type(random_turns), "generate", generate)
    trainer = trainer_for()
    with pytest.raises(
        TooManyFailuresError, match=r"5 of 8 rollouts failed.*model_server 5 \(such as: the server is g"
    ):
        score(trainer)
    lines = (Path(trainer.args.run_dir) / "rollouts" / "unfinished_000001_0.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [row["rollout"] for row in kept] == [0, 1, 2]
    assert all(row["turns"][0]["text"] == "\\boxed{2}" and row["stop_reason"] == "answer" for row in kept)


class DeadSandbox:
    """Every call fails, as where no process can be started."""

    async def run(self, code, *, limits=None, seed=None, key=None):
        return ExecResult(Status.TOOL_FAILURE, note="fork: resource temporarily unavailable")

    def level(self):
        raise AssertionError

    def close(self):
        pass


def test_a_run_whose_sandbox_fails_throughout_ends_with_the_reason_and_saves_no_model(
    small_model, tiny_tokenizer, problems, config, random_turns
):
    random_turns.turns = ("```python\n1+1\n```",)
    with pytest.raises(TooManyFailuresError, match=r"tool 8 \(such as: fork: resource.*no step was completed"):
        train(small_model, tiny_tokenizer, problems, config(), sandbox=DeadSandbox())
    assert not (Path(config().run_dir) / "model").exists()


class DyingSandbox:
    """Works for so many calls."""

    def __init__(self, calls):
        self.left = calls

    async def run(self, code, *, limits=None, seed=None, key=None):
        self.left -= 1
        return ExecResult(Status.OK, stdout="2") if self.left >= 0 else await DeadSandbox().run(code)


def test_a_run_that_loses_too_much_leaves_a_checkpoint_and_goes_on_as_if_unbroken(
    tmp_path, tiny_tokenizer, problems, config, random_turns
):
    random_turns.turns = ("```python\n1+1\n```", "\\boxed{2}", "\\boxed{3}")

    def run(name, sandbox, **more):
        model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
        args = config(
            run_dir=str(tmp_path / name),
            max_steps=4,
            save_strategy="no",
            lr_scheduler_type="constant",
            max_failed_fraction=0.0,
        )
        return train(model, tiny_tokenizer, problems, args, sandbox=sandbox, verifier=Passes(ended), **more)

    whole = run("whole", DyingSandbox(10**6))
    random_turns.batches = 0
    with pytest.raises(TooManyFailuresError, match=r"checkpoint-\d holds the run as of step") as error:
        run("broken", DyingSandbox(6))
    (checkpoint,) = (tmp_path / "broken" / "checkpoints").glob("checkpoint-*")
    step = int(checkpoint.name.rsplit("-", 1)[1])
    assert 0 < step < 4
    assert str(checkpoint) in str(error.value)
    random_turns.batches = step  # the stub's generator goes by its batches
    resumed = run("broken", DyingSandbox(10**6), resume=True)
    kept = ("step", "loss", "pass_rate", "turns", "grad_norm")
    first, second = ([{k: line[k] for k in kept} for line in read_metrics(r.run_dir)] for r in (whole, resumed))
    assert second == [pytest.approx(line) for line in first]
    for one, other in zip(whole.model_dir.glob("*.safetensors"), resumed.model_dir.glob("*.safetensors"), strict=True):
        assert one.read_bytes() == other.read_bytes()


class FlakyVerifier(Passes):
    """Breaks on some problems, whether they come together or alone."""

    def __init__(self, breaks):
        super().__init__(ended)
        self.breaks = breaks

    def verify_many(self, texts, problems):
        if any(map(self.breaks, problems)):
            raise VerifierError("the process of the verifier died")
        return super().verify_many(texts, problems)


def test_rollouts_that_the_verifier_fails_on_are_masked_and_the_others_verified(trainer_for, random_turns):
    first = []

    def breaks(problem):
        first.append(problem.id)
        return problem.id == first[0]

    trainer = trainer_for(verifier=FlakyVerifier(breaks))
    output = score(trainer)
    failed = [problem.id == first[0] for problem in trainer._batch.problems]
    assert 0 < sum(failed) < len(failed)
    assert_masked(trainer, output, failed)
    assert logged(trainer, "failures/verifier") == sum(failed) / len(failed)


class DeadSimilarity:
    def matrix(self, texts):
        raise SimilarityError("the endpoint did not answer for 120 s")


def test_where_similarity_fails_the_rollouts_that_it_would_have_shaped_are_masked(trainer_for, random_turns):
    random_turns.turns = ("```python\n1+1\n```", "\\boxed{2}", "\\boxed{3}")
    trainer = trainer_for(similarity=DeadSimilarity(), per_device_train_batch_size=32, max_failed_fraction=0.9)
    output = score(trainer)
    batch = trainer._batch
    passes = {item.group_id for item in batch.inputs if item.passed}
    concerned = [not item.passed and bool(item.code) and item.group_id in passes for item in batch.inputs]
    assert 0 < sum(concerned) < len(concerned)
    assert_masked(trainer, output, concerned)
    assert logged(trainer, "failures/similarity") == sum(concerned) / len(concerned)


def test_problems_whose_prompt_fills_the_context_are_left_out_by_their_id(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns, capsys
):
    long = Problem(id="p/long", question="1+" * 300 + "1", answer="2")
    result = train(small_model, tiny_tokenizer, [long, *problems], config(max_steps=1), sandbox=sandbox)
    assert (
        "left out: problem p/long: its prompt of 604 tokens leaves no room in a context of 512"
        in capsys.readouterr().err
    )
    assert result.steps == 1
    with pytest.raises(DataError, match="the prompts of all 1 problems fill the context"):
        train(small_model, tiny_tokenizer, [long], config(run_dir=str(result.run_dir / "b")), sandbox=sandbox)


def test_a_prompt_that_fills_the_context_and_comes_anyway_is_masked(trainer_for, random_turns):
    long = [Problem(id=f"p/{i}", question="1+" * 300 + "1" if i % 2 else "1+1", answer="2") for i in range(12)]
    trainer = trainer_for(problems=long, per_device_train_batch_size=32, max_failed_fraction=0.95)
    output = score(trainer)
    failed = [len(problem.question) > 300 for problem in trainer._batch.problems]
    assert 0 < sum(failed) < len(failed)
    assert_masked(trainer, output, failed)
    assert logged(trainer, "failures/prompt_too_long") == sum(failed) / len(failed)


def test_logits_that_are_not_finite_end_the_run_with_what_to_do(small_model, tiny_tokenizer, problems, sandbox, config):
    with torch.no_grad():
        small_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"logits are not finite.*lower learning_rate"):
        train(small_model, tiny_tokenizer, problems, config(), sandbox=sandbox)


class HalfRight(Passes):
    """Gives half a point to every answer."""

    def verify_many(self, texts, problems):
        return [Verdict(False, 0.5 if text else 0.0, "half right") for text in texts]


def test_scores_between_pass_and_fail_are_recorded_logged_and_said_once(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns, capsys
):
    random_turns.turns = ("\\boxed{2}",)
    verifier = HalfRight(ended)
    result = train(small_model, tiny_tokenizer, problems, config(), sandbox=sandbox, verifier=verifier)
    assert [line["score"] for line in read_metrics(result.run_dir)] == [0.5, 0.5]
    assert {row["score"] for row in RunFiles(result.run_dir).rollouts(1)} == {0.5}
    assert capsys.readouterr().err.count("only a score of 1 is rewarded") == 1
