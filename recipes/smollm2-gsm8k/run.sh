#!/usr/bin/env bash
# SmolLM2-135M-Instruct on GSM8K: cold start, GTPO, and an evaluation before and after each. Run from the repository's
# root: recipes/smollm2-gsm8k/run.sh MODEL_FOLDER_OR_HUB_ID DATA_FOLDER
# Stages whose result exists are skipped; interrupted training resumes from its last checkpoint.
set -euo pipefail
model=$1 data=$2
here=$(dirname "$0")
out=runs/smollm2-gsm8k
gtpo=${GTPO:-.venv/bin/gtpo}
prompt='Solve the problem. Run Python in ```python blocks. Put the final answer in \boxed{}.'
mkdir -p "$out/eval"

evaluate() { # name, model
  for problems in svamp gsm8k_test; do
    [ -e "$out/eval/$1-$problems.json" ] || "$gtpo" eval --model "$2" --dtype bfloat16 \
      --problems "$data/$problems.jsonl" --max_problems 200 --output "$out/eval/$1-$problems.json" \
      --tool_format fenced --system_prompt "$prompt" --max_turns 5 --max_turn_tokens 112 --max_completion_length 320
  done
}

train() { # command, run directory, further options
  local command=$1 run=$2 resume=()
  shift 2
  [ -e "$run/model" ] && return
  compgen -G "$run/checkpoints/checkpoint-*" > /dev/null && resume=(--resume true)
  "$gtpo" "$command" "$@" "${resume[@]}"
}

[ -e "$out/traces.jsonl" ] || "$gtpo" make-traces --solutions "$data/gsm8k_train.jsonl" --max_solutions 2500 \
  --tool_format fenced --output "$out/traces.jsonl"
train sft "$out/cold-start" --config "$here/cold_start.yaml" --model "$model"
evaluate cold-start "$out/cold-start/model"
train train "$out/gtpo" --config "$here/gtpo.yaml" --train_file "$data/gsm8k_train.jsonl"
evaluate gtpo "$out/gtpo/model"
evaluate base "$model"
"$(dirname "$gtpo")/python" "$here/report.py" "$out" "$out/curve.png"
