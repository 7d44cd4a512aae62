"""Trainers `gtpo_sync`, `gtpo_colocate_async` and `gtpo_separate_async`: verl's own with turn rewards and shaping.

One method is extended, `_compute_advantage`, because a whole batch of groups is in one place there. Before verl's own
method runs, the score on the last token is replaced by the turn rewards, each on the last token of its turn; the
estimator `gtpo` computes returns and advantages from them. The mask of a rollout whose sandbox failed is cleared: the
rollout is neither scored, nor counted in its group, nor trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.import_utils import resolve_config_path

from gtpo.credit_assignment import Credit, compute_credit, credit_metrics
from gtpo.errors import ConfigError
from gtpo.integrations.verl.estimator import turns_known
from gtpo.integrations.verl.facts import facts_of, on_last_tokens, turn_ids_of
from gtpo.integrations.verl.settings import AlgorithmOptions, gamma_by_turns
from gtpo.similarity import get_similarity

PREFIX = "gtpo_"


class TurnCredit(PPOTrainer):
    """Adds turn rewards and shaping, which need whole groups, to verl's batch. A mixin for verl's trainers.

    Args:
        config: verl's configuration; its `trainer.v1.trainer_mode` is `gtpo_` and the name of the trainer that is
            extended. If `algorithm.gtpo.gamma` is not given, it follows from the agent loop's `max_turns`, as in
            `gtpo train`.

    Raises:
        ConfigError: the estimator is not `gtpo`, or an option is unknown.
    """

    def __init__(self, config: Any) -> None:
        mode = str(config.trainer.v1.trainer_mode).removeprefix(PREFIX)
        config = OmegaConf.merge(config, {"trainer": {"v1": {"trainer_mode": mode}}})  # verl compares it with "sync"
        if config.algorithm.adv_estimator != "gtpo":
            raise ConfigError(
                f"algorithm.adv_estimator is {config.algorithm.adv_estimator!r}; with {PREFIX}{mode} it must be gtpo"
            )
        self.gtpo = AlgorithmOptions.of(config.algorithm)
        if OmegaConf.select(config, "algorithm.gtpo.gamma") is None:
            agent_loops = config.actor_rollout_ref.rollout.agent.agent_loop_config_path
            gamma = gamma_by_turns(agent_loops and resolve_config_path(agent_loops))
            OmegaConf.update(config, "algorithm.gtpo.gamma", gamma, force_add=True)  # where the estimator reads it
            self.gtpo = AlgorithmOptions.of(config.algorithm)
        self.similarity = get_similarity(self.gtpo.similarity)
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Replace the score by turn rewards, then call verl's own method."""
        found = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "extra_fields", "response_mask"]
        )
        padding = [bool(tag.get("is_padding")) for tag in batch.tags]
        masks = list(found["response_mask"].unbind())
        said = [
            _said(value, row_is_padding) for value, row_is_padding in zip(found["extra_fields"], padding, strict=True)
        ]
        facts = facts_of([str(getattr(uid, "data", uid)) for uid in found["uid"]], said)
        turn_ids = [
            turn_ids_of(mask, None if fact.masked else row) for mask, fact, row in zip(masks, facts, said, strict=True)
        ]
        credit = compute_credit(facts, self.similarity, self.gtpo.credit)
        _put(batch, turn_ids, credit)
        real = [i for i, pad in enumerate(padding) if not pad]
        figures = credit_metrics(facts, credit)
        figures["reward/all"] = figures.pop("reward/total")  # verl adds up what is called total, over its sub-steps
        figures.pop("rollouts/frac_masked", None)  # it would count padding
        metrics.update({f"gtpo/{name}": value for name, value in figures.items()})
        metrics["gtpo/frac_masked"] = sum(facts[i].masked for i in real) / max(len(real), 1)
        turn_ids_B_T = torch.nn.utils.rnn.pad_sequence(turn_ids, batch_first=True, padding_value=-1)
        with turns_known(turn_ids_B_T, torch.tensor([fact.passed for fact in facts]), credit.own_B_K):
            return super()._compute_advantage(batch, metrics)


def _said(value: Any, is_padding: bool) -> Mapping[str, Any] | None:
    """What the agent loop left about a rollout; None for padding."""
    if is_padding:
        return None
    fields = getattr(value, "data", value)
    if not isinstance(fields, Mapping) or "gtpo" not in fields:
        raise ConfigError(
            "rollouts of another agent loop have no turns: set actor_rollout_ref.rollout.agent.default_agent_loop="
            "gtpo, and let no row of the dataset name another agent"
        )
    return fields["gtpo"]


def _put(batch: Any, turn_ids: Sequence[Tensor], credit: Credit) -> None:
    """Put turn rewards and masks into verl's queue."""
    rewards = [on_last_tokens(row_K, ids) for ids, row_K in zip(turn_ids, credit.rewards_B_K, strict=True)]
    masks = [(ids >= 0).long() for ids in turn_ids]
    fields = {"rm_scores": rewards, "response_mask": masks, "loss_mask": masks}
    nested = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in fields.items()}
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(nested, batch_size=len(batch.keys))
    )


@register_trainer(f"{PREFIX}sync")
class GTPOTrainerSync(TurnCredit, PPOTrainerSync):
    """verl's `sync`: rollouts and training take turns on the same GPUs."""


@register_trainer(f"{PREFIX}colocate_async")
class GTPOTrainerColocateAsync(TurnCredit, PPOTrainerColocateAsync):
    """verl's `colocate_async`: the same GPUs, rollouts may span updates."""


@register_trainer(f"{PREFIX}separate_async")
class GTPOTrainerSeparateAsync(TurnCredit, PPOTrainerSeparateAsync):
    """verl's `separate_async`: rollouts and training on separate GPUs."""
