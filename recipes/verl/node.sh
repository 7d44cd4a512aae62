#!/usr/bin/env bash
# One node of 8 GPUs with 80 GB: Qwen2.5-7B-Instruct after a cold start, 32 problems x 16 rollouts per step, up to 16
# turns and 16k response tokens. From the repository's root: MODEL=path/to/cold-start recipes/verl/node.sh
# We have not run this on such a node: the options are checked against verl 0.9.1; memory and time come from `gtpo plan`.
set -euo pipefail
source "$(dirname "$0")/common.sh"
python3 -m verl.trainer.main_ppo "${COMMON[@]}" \
  actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-7B-Instruct}" \
  actor_rollout_ref.actor.ulysses_sequence_parallel_size=2 \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432 \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=36864 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  data.train_batch_size=32 \
  actor_rollout_ref.actor.ppo_mini_batch_size=32 \
  trainer.nnodes=1 \
  trainer.experiment_name=qwen2.5-7b-gtpo "$@"
