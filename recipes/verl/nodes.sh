#!/usr/bin/env bash
# Four nodes of 8 GPUs with 80 GB on Ray: Qwen2.5-32B-Instruct, 64 problems x 16 rollouts per step. Start Ray first
# (`ray start --head` on one node, `ray start --address=HEAD:6379` on the others), then on the head node:
# MODEL=path/to/cold-start recipes/verl/nodes.sh
# The repository, the data and the model must have the same path on every node, and gtpo[verl] must be installed there.
# We have not run this on such nodes: the options are checked against verl 0.9.1; memory and time come from `gtpo plan`.
set -euo pipefail
source "$(dirname "$0")/common.sh"
python3 -m verl.trainer.main_ppo "${COMMON[@]}" \
  actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-32B-Instruct}" \
  actor_rollout_ref.actor.ulysses_sequence_parallel_size=4 \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=9216 \
  actor_rollout_ref.actor.fsdp_config.param_offload=true \
  actor_rollout_ref.actor.fsdp_config.optimizer_offload=true \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=18432 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=4 \
  actor_rollout_ref.rollout.agent.num_workers=16 \
  data.train_batch_size=64 \
  actor_rollout_ref.actor.ppo_mini_batch_size=32 \
  trainer.nnodes=4 \
  trainer.experiment_name=qwen2.5-32b-gtpo "$@"
