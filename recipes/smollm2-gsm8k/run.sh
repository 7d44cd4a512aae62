#!/usr/bin/env bash
# SmolLM2-135M-Instruct on GSM8K: cold start, GTPO, and an evaluation before and after each. Run from the repository's
# root: recipes/smollm2-gsm8k/run.sh MODEL_FOLDER_OR_HUB_ID DATA_FOLDER
# Stages whose result exists are skipped; interrupted training resumes from its last checkpoint.
set -euo pipefail
model=$1 data=$2
. "$(dirname "$0")/common.sh"
mkdir -p "$out"

[ -e "$out/traces.jsonl" ] || "$gtpo" make-traces --solutions "$data/gsm8k_train.jsonl" --max_solutions 2500 \
  --tool_format fenced --output "$out/traces.jsonl"
train sft "$out/cold-start" --config "$here/cold_start.yaml" --model "$model"
evaluate cold-start "$out/cold-start/model"
train train "$out/gtpo" --config "$here/gtpo.yaml" --train_file "$data/gsm8k_train.jsonl"
evaluate gtpo "$out/gtpo/model"
evaluate base "$model"
"$(dirname "$gtpo")/python" "$here/report.py" "$out" "$out/curve.png"
