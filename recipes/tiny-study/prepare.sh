#!/usr/bin/env bash
# The cold starts that the cells of the tiny study share, one a family, and the problems as files. From the repository's
# root: recipes/tiny-study/prepare.sh [FAMILY ...]. A family that is there already is skipped.
set -euo pipefail
[ $# -gt 0 ] || set -- steps programs hops
for family in "$@"; do
  out=runs/studies/start/$family
  [ -e "$out/cold-start/model" ] || "${GTPO:-.venv/bin/gtpo}" tiny --family "$family" --run_dir "$out" \
    --prepare_only true --eval_problems 512 --seed 1
done
