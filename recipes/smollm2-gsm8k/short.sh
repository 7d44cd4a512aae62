#!/usr/bin/env bash
# A cold start of SmolLM2-135M-Instruct on short traces, and its evaluation. Run from the repository's root:
# recipes/smollm2-gsm8k/short.sh MODEL_FOLDER_OR_HUB_ID DATA_FOLDER
# Steps whose result exists are skipped; training resumes from its last checkpoint.
set -euo pipefail
model=$1 data=$2
here=$(dirname "$0")
out=runs/smollm2-gsm8k
gtpo=${GTPO:-.venv/bin/gtpo}
prompt='Solve the problem. Run Python in ```python blocks. Put the final answer in \boxed{}.'
mkdir -p "$out/eval"

if [ ! -e "$out/traces-short.jsonl" ]; then
  # at most two operations, one call; of these traces the shorter ones (about 190 tokens at most)
  grep -Ev '(<<[^>]*>>.*){3}' "$data/gsm8k_train.jsonl" > "$out/short.jsonl"
  "$gtpo" make-traces --solutions "$out/short.jsonl" --turns_share 0 --tool_format fenced --output "$out/one-call.jsonl"
  awk 'length($0) <= 700' "$out/one-call.jsonl" > "$out/traces-short.jsonl"
fi
[ -e "$out/cold-start-short/model" ] ||
  "$gtpo" sft --config "$here/cold_start_short.yaml" --model "$model" --resume auto
for problems in svamp gsm8k_test; do
  "$gtpo" eval --model "$out/cold-start-short/model" --dtype bfloat16 --problems "$data/$problems.jsonl" \
    --max_problems 200 --output "$out/eval/cold-start-short-$problems.json" --tool_format fenced \
    --system_prompt "$prompt" --max_turns 5 --max_turn_tokens 112 --max_completion_length 320
done
