# Sourced by the recipes: the data and the options that they share. Needs pip install 'gtpo[verl]' and vLLM.
DATA=$(realpath -m "${DATA:-runs/verl/data}")
mkdir -p "$DATA"
# TRAIN and TEST: any source that `gtpo eval --problems` takes, such as a file.
DAPO='hub:open-r1/DAPO-Math-17k-Processed?config=en&split=train&question=prompt&answer=solution'
[ -e "$DATA/train.parquet" ] || gtpo export-verl --problems "${TRAIN:-$DAPO}" --output "$DATA/train.parquet" \
  --data_source dapo-math
[ -e "$DATA/test.parquet" ] || gtpo export-verl --problems "${TEST:-aime24}" --output "$DATA/test.parquet" \
  --data_source aime24

COMMON=(
  # the three options that enable GTPO, and the file with the options of its rollouts
  trainer.v1.trainer_mode=gtpo_sync
  algorithm.adv_estimator=gtpo
  actor_rollout_ref.rollout.agent.default_agent_loop=gtpo
  actor_rollout_ref.rollout.agent.agent_loop_config_path="$(realpath "$(dirname "${BASH_SOURCE[0]}")")/agent.yaml"
  # the algorithm; names as in gtpo.credit_assignment.CreditSettings; gamma follows from max_turns in agent.yaml
  +algorithm.gtpo.alpha=0.5
  +algorithm.gtpo.zero_uniform_groups=true
  # data
  data.train_files="$DATA/train.parquet"
  data.val_files="$DATA/test.parquet"
  data.max_prompt_length=2048
  data.max_response_length=16384
  data.filter_overlong_prompts=true
  # loss as in DAPO and in `gtpo train`
  actor_rollout_ref.actor.use_kl_loss=false
  actor_rollout_ref.actor.clip_ratio_low=0.2
  actor_rollout_ref.actor.clip_ratio_high=0.28
  actor_rollout_ref.actor.loss_agg_mode=token-mean
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.model.enable_gradient_checkpointing=true
  # rollouts
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7
  actor_rollout_ref.rollout.n=16
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.top_p=1.0
  actor_rollout_ref.rollout.calculate_log_probs=true
  trainer.project_name=gtpo
  trainer.n_gpus_per_node=8
  trainer.total_training_steps=200
  trainer.val_before_train=true
  trainer.test_freq=10
  trainer.save_freq=20
)
