#!/usr/bin/env bash
# The cold starts that the cells of the tiny study share, and the problems as files. From the repository's root:
# recipes/tiny-study/prepare.sh [NAME ...]. What is there already is skipped.
set -euo pipefail
[ $# -gt 0 ] || set -- hops-rare steps hops-rare-long programs hops-some hops

prepare() { # name, options of gtpo demo
  local out=runs/studies/start/$1
  shift
  [ -e "$out/cold-start/model" ] || "${GTPO:-.venv/bin/gtpo}" demo --run_dir "$out" --prepare_only true \
    --eval_problems 512 --seed 1 "$@"
}

for name in "$@"; do
  case $name in
    steps | programs | hops) prepare "$name" --family "$name" ;;
    # Pass rates of about 0.02 and 0.1 at the start, four turns; and 0.02 with eight.
    hops-rare) prepare "$name" --family hops --problem_steps 3 --malformed 0.4 --wrong 0.5 --guess 0.4 \
      --max_trace_tokens 160 ;;
    hops-some) prepare "$name" --family hops --problem_steps 3 --malformed 0.4 --wrong 0.32 --guess 0.3 \
      --max_trace_tokens 160 ;;
    hops-rare-long) prepare "$name" --family hops --problem_steps 7 --malformed 0.4 --wrong 0.25 --guess 0.22 \
      --max_trace_tokens 288 ;;
    *) echo "no cold start is known as $name" >&2; exit 2 ;;
  esac
done
