#!/usr/bin/env bash
# The study of study.yaml. From the repository's root, after run.sh: recipes/smollm2-gsm8k/study.sh DATA_FOLDER
set -euo pipefail
mkdir -p runs/studies
sed "s#DATA/#${1%/}/#g" "$(dirname "$0")/study.yaml" > runs/studies/smollm2.yaml
"${GTPO:-.venv/bin/gtpo}" compare runs/studies/smollm2.yaml
