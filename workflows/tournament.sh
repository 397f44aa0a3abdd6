#!/usr/bin/env bash
# A tournament of preference methods on the model and data of params.yaml: one experiment for each method, one at a time, and a table.
# Only the preference stage and its evaluation run again. As it stands it needs no GPU: the built-in model and data.
#
# GPU      what the model needs: python -m tools.plan. dno compares at least 4 pairs: on a real model add
#          -S model_defaults.preference.batch_size=4 -S model_defaults.preference.accumulation=4
# time     not measured
set -euo pipefail
cd "$(dirname "$0")/.."

dvc exp run --queue -n tournament -S 'method=dpo,ipo,kto,cpo,dno,simpo,orpo'
dvc exp run --run-all -j 1
python -m tools.compare --tournament --markdown
