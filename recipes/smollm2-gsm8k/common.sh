# What the scripts of this recipe share; they source it from the repository's root. run.sh and short.sh set `data`.
here=$(dirname "$0")
out=runs/smollm2-gsm8k
gtpo=${GTPO:-.venv/bin/gtpo}
prompt='Solve the problem. Run Python in ```python blocks. Put the final answer in \boxed{}.'

few_operations() { # file of GSM8K: the problems whose worked solution has at most two operations
  grep -Ev '(<<[^>]*>>.*){3}' "$1"
}

evaluate() { # name, model
  mkdir -p "$out/eval"
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
