#!/usr/bin/env bash
# Preferences in two passes: SFT on CIDAR, DPO on clear pairs, then one more pass from models/dpo by IPO and, beside it, by KTO.
# Each has its own metrics: `python -m tools.compare refinement --against dpo --checkpoint refine-ipo` says what the pass changed.
#
# GPU      sft 5.5 GB, dpo 5.5 GB, refine-ipo 5.5 GB, refine-kto 4.8 GB (computed: python -m tools.plan --length 1024)
# time     not measured
# data     CIDAR, 10,000 reviewed rows; pairs from Aya, chosen by people: the second pass goes over the same pairs
# licence  Qwen3-1.7B and Aya: apache-2.0. CIDAR: its card has said cc-by-nc-4.0 and apache-2.0. ArabicMMLU: non-commercial
set -euo pipefail
cd "$(dirname "$0")/.."

dvc exp run -n refinement \
    -S model=qwen3-1_7b \
    -S 'refine=[ipo,kto]' \
    -S '~data.instructions.skills' \
    -S '+data.instructions.cidar=all' \
    -S '~data.preferences.skills' \
    -S '+data.preferences.aya-command-r-dpo=all' \
    -S '~data.benchmarks.skills' \
    -S '+data.benchmarks.arabicmmlu=all'
