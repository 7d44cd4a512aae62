#!/usr/bin/env bash
# A cold start of SmolLM2-135M-Instruct on short traces, and its evaluation. Run from the repository's root:
# recipes/smollm2-gsm8k/short.sh MODEL_FOLDER_OR_HUB_ID DATA_FOLDER
# Stages whose result exists are skipped; interrupted training resumes from its last checkpoint.
set -euo pipefail
model=$1 data=$2
. "$(dirname "$0")/common.sh"
mkdir -p "$out"

if [ ! -e "$out/traces-short.jsonl" ]; then
  # at most two operations, one call; of these traces the shorter ones (about 190 tokens at most)
  few_operations "$data/gsm8k_train.jsonl" > "$out/short.jsonl"
  "$gtpo" make-traces --solutions "$out/short.jsonl" --turns_share 0 --tool_format fenced --output "$out/one-call.jsonl"
  awk 'length($0) <= 700' "$out/one-call.jsonl" > "$out/traces-short.jsonl"
fi
train sft "$out/cold-start-short" --config "$here/cold_start_short.yaml" --model "$model"
evaluate cold-start-short "$out/cold-start-short/model"
