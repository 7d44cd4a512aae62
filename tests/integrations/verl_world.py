"""verl's real parts on the CPU: configuration, Ray, TransferQueue, agent loop workers; only the model is scripted."""

from __future__ import annotations

import os
from pathlib import Path

import ray
import transfer_queue as tq
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls
from verl.utils import tensordict_utils
from verl.workers.rollout.replica import TokenOutput

STEP = 3

SCRIPTS = (
    ("```python\nprint(2*3)\n```", "so \\boxed{6}"),
    ("```python\nprint(2*4)\n```", "```python\nprint(8-2", "so \\boxed{8}"),
    ("```python\nprint(2", "so \\boxed{6}"),
    ("\\boxed{1}",),
)
"""Turns of the four rollouts of each group: right; wrong with an invalid call; right after an invalid call; no call."""


class ScriptedServers:
    """In the place of verl's `LLMServerClient`: rollout i of a worker says what script i modulo 4 says."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.seen = {}
        self.asked = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        script, turn = self.seen.setdefault(request_id, (SCRIPTS[len(self.seen) % len(SCRIPTS)], 0))
        self.seen[request_id] = (script, turn + 1)
        assert self.tokenizer.eos_token_id in sampling_params["stop_token_ids"]
        assert 1 <= sampling_params["max_tokens"] <= 64
        ids = [*self.tokenizer(script[turn], add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        versions = {"min_global_steps": STEP + turn, "max_global_steps": STEP + turn}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), num_preempted=1, extra_fields=versions)


def configuration(model: Path, agent: Path, *more: str):
    """verl's own configuration for a run with gtpo."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                "trainer.v1.trainer_mode=gtpo_sync",
                "algorithm.adv_estimator=gtpo",
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.name=vllm",
                f"actor_rollout_ref.rollout.n={len(SCRIPTS)}",
                "actor_rollout_ref.rollout.prompt_length=32",
                "actor_rollout_ref.rollout.response_length=128",
                "actor_rollout_ref.rollout.agent.default_agent_loop=gtpo",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={agent}",
                "transfer_queue.enable=true",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                "trainer.nnodes=1",
                "trainer.n_gpus_per_node=1",
                *more,
            ],
        )


def start(config) -> None:
    """Ray and TransferQueue, in this process and for the actors that it starts."""
    os.environ["TRANSFER_QUEUE_ENABLE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init(config.transfer_queue)


def roll_out(config, tokenizer, uids):
    """One group a uid by verl's agent loop worker, into TransferQueue; what the trainer's replay buffer makes of it."""
    row = {
        "raw_prompt": [{"role": "user", "content": "2;*3"}],
        "reward_model": {"style": "rule", "ground_truth": "6"},
        "extra_info": {"index": 0, "domain": "math"},
        "data_source": "made up",
        "index": 0,
    }
    columns = {name: [value] * len(uids) for name, value in row.items()}
    batch = tensordict_utils.get_tensordict({**columns, "uid": list(uids)})
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", STEP)
    tags = [{"is_prompt": True, "status": "pending", "global_steps": STEP}] * len(uids)
    tq.kv_batch_put(keys=list(uids), partition_id="train", tags=tags)
    worker = AgentLoopWorkerTQ.remote(config, ScriptedServers(tokenizer), None, None)
    ray.get(worker.generate_sequences.remote(batch))
    trainer = make_trainer(config)
    found, _ = trainer.replay_buffer.sample(global_steps=STEP, partition_id="train", batch_size=len(uids))
    ray.kill(worker)
    return trainer, found


def make_trainer(config):
    """The trainer that the configuration names, not set up: it has no workers."""
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer.global_steps = STEP
    return trainer
