#!/usr/bin/env bash
# Evaluates a model of SmolLM2's size on three domains, with the Python tool, on vLLM. Run from the repository's root:
# recipes/smollm2-eval/run.sh MODEL_FOLDER_OR_HUB_ID DATA_FOLDER NAME
# Writes runs/smollm2-eval/NAME-*.json. Skips results that exist; an interrupted evaluation is resumed.
# The environment variable GTPO is the command that starts gtpo where vLLM is installed, such as "python -m gtpo.cli".
set -euo pipefail
model=$1 data=$2 name=$3
out=runs/smollm2-eval
mkdir -p "$out"
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-3}

evaluate() { # part, system prompt, problems
  local result=$out/$name-$1.json prompt=$2
  shift 2
  [ -e "$result" ] || ${GTPO:-gtpo} eval --model "$model" --dtype bfloat16 --backend vllm --max_context 1024 \
    --vllm_options '{"enforce_eager": true, "max_num_seqs": 64, "distributed_executor_backend": "uni"}' --problems "$@" --samples 1 --max_concurrency 96 \
    --tool_format fenced --system_prompt "$prompt" --max_turns 5 --max_turn_tokens 112 --max_completion_length 320 \
    --output "$result"
}

# The first prompt is that of recipes/smollm2-gsm8k.
python='Solve the problem. Run Python in ```python blocks.'
evaluate questions "$python Put the final answer in \boxed{}." \
  "$data/svamp.jsonl" "$data/gsm8k_test.jsonl" "$data/strategyqa_train.jsonl?limit=300"
evaluate programs "$python Put the final program between <answer> and </answer>." "$data/mbpp_train.jsonl?limit=100"
