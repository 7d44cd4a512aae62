"""The recipes' options are ones that verl knows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs the extra: pip install 'gtpo[verl]' (make test-cluster)")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import validate_config

from gtpo.credit_assignment import CreditSettings
from gtpo.integrations.verl.settings import AlgorithmOptions, loop_config

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "verl"


@pytest.mark.parametrize(("recipe", "gpus"), [("node.sh", 8), ("nodes.sh", 32)])
def test_verl_takes_every_option(recipe, gpus, tmp_path):
    for name in ("train.parquet", "test.parquet"):
        (tmp_path / name).touch()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python3").write_text('#!/bin/sh\nfor option in "$@"; do printf "%s\\n" "$option"; done\n')
    (bin_ / "python3").chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "DATA": str(tmp_path)}
    said = subprocess.run(["bash", RECIPES / recipe], env=env, capture_output=True, text=True, check=True).stdout
    flag, module, *options = said.splitlines()
    assert (flag, module) == ("-m", "verl.trainer.main_ppo")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=options)
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == gpus
    validate_config(config, use_reference_policy=False, use_critic=False)
    assert AlgorithmOptions.of(config.algorithm).credit == CreditSettings(zero_uniform_groups=True)
    (agent,) = OmegaConf.load(config.actor_rollout_ref.rollout.agent.agent_loop_config_path)
    assert agent.name == config.actor_rollout_ref.rollout.agent.default_agent_loop == "gtpo"
    options = loop_config(agent.options, config.actor_rollout_ref.rollout)
    assert options.limits().max_context == 2048 + 16384
    assert [spec.name for spec in options.specs()] == ["python"]
