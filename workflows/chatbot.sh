#!/usr/bin/env bash
# A chatbot: Qwen2.5-3B learns to answer from CIDAR and InstAr-500k, then to prefer people's answers by DPO.
#
# GPU      sft 7.8 GB, dpo 8.6 GB (computed: python -m tools.plan --length 1024)
# time     not measured
# data     CIDAR, 10,000 reviewed rows; InstAr-500k is capped: nearly half of its 481,281 rows is classification, so at
#          most 2,000 rows of a task, and 50,000 in all so that CIDAR keeps its weight; pairs from Aya, chosen by people
# licence  Qwen2.5-3B: research, non-commercial. CIDAR: its card has said cc-by-nc-4.0 and apache-2.0. ArabicMMLU: non-commercial
set -euo pipefail
cd "$(dirname "$0")/.."

dvc exp run -n chatbot \
    -S model=qwen2_5-3b \
    -S '~data.instructions.skills' \
    -S '+data.instructions.cidar=all' \
    -S '+data.instructions.instar-500k={rows:50000,rows_per_task:2000}' \
    -S '~data.preferences.skills' \
    -S '+data.preferences.aya-command-r-dpo=all' \
    -S '~data.benchmarks.skills' \
    -S '+data.benchmarks.arabicmmlu=all' \
    -S evaluate.max_new_tokens=256
