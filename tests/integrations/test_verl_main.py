"""`verl.trainer.main_ppo` with the options of the recipe, on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip("verl", reason="needs the extra: pip install 'gtpo[verl]' (make test-cluster)")

from gtpo.integrations.verl.rows import write_parquet
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.tasks.problems import Problem


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="says where a run without CUDA ends")
def test_a_whole_run_goes_as_far_as_its_first_need_of_a_gpu(tmp_path):
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_parquet(
        [Problem(str(i), f"2;*{i + 2}", str(2 * (i + 2))) for i in range(2)], tmp_path / "p.parquet", "made up"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            "trainer.v1.trainer_mode=gtpo_sync",
            "algorithm.adv_estimator=gtpo",
            "+algorithm.gtpo.gamma=0.9",
            "actor_rollout_ref.rollout.agent.default_agent_loop=gtpo",
            f"actor_rollout_ref.model.path={tmp_path / 'model'}",
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.prompt_length=32",
            "actor_rollout_ref.rollout.response_length=128",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
            "actor_rollout_ref.actor.use_kl_loss=false",
            f"data.train_files={tmp_path / 'p.parquet'}",
            f"data.val_files={tmp_path / 'p.parquet'}",
            "data.train_batch_size=2",
            "trainer.device=cpu",
            "trainer.nnodes=1",
            "trainer.n_gpus_per_node=1",
            "trainer.logger=console",
            "trainer.total_training_steps=1",
            "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
            "ray_kwargs.ray_init.num_cpus=8",
            "+ray_kwargs.ray_init.num_gpus=1",  # there is none: Ray only counts
            f"hydra.run.dir={tmp_path / 'hydra'}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Distributed package doesn't have NCCL built in" in said, said[-3000:]
    assert "in init_model" in said, "the configuration held, and the trainer gtpo_sync had started its workers"
