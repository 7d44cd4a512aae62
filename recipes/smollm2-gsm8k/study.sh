#!/usr/bin/env bash
# Runs the study of study.yaml. Run from the repository's root, after run.sh:
# recipes/smollm2-gsm8k/study.sh DATA_FOLDER [options of gtpo study]
set -euo pipefail
data=${1%/}
shift
. "$(dirname "$0")/common.sh"
mkdir -p runs/studies
few_operations "$data/gsm8k_train.jsonl" > runs/studies/gsm8k_short.jsonl
sed "s#DATA/#$data/#g" "$here/study.yaml" > runs/studies/smollm2.yaml
"$gtpo" study runs/studies/smollm2.yaml "$@"
# evaluates the model that all cells start from, on the problems of their evaluation
study=runs/studies/smollm2
evaluations=("$study"/cells/*/eval.yaml)
[ -e $study/start.json ] || [ ! -e "${evaluations[0]}" ] || "$gtpo" eval --config "${evaluations[0]}" \
  --model "$out/cold-start/model" --output $study/start.json
