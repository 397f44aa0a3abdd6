#!/usr/bin/env bash
# A small assistant: Qwen3-1.7B in 4 bit, trained on CIDAR and by DPO on a card of 4 GB; hardware.vram_gb lets every stage check that.
#
# GPU      sft 3.4 GB, dpo 3.3 GB (computed: python -m tools.plan --length 1024). To answer: weights 1.26 GB and 0.11 GB for 1,024
#          tokens of prompt and answer; with CUDA's own memory about 2.1 GB (computed: python -m tools.plan --stage inference)
# time     not measured
# data     CIDAR, 10,000 reviewed rows; pairs from Aya, chosen by people
# licence  Qwen3-1.7B and Aya: apache-2.0. CIDAR: its card has said cc-by-nc-4.0 and apache-2.0. ArabicMMLU: non-commercial
set -euo pipefail
cd "$(dirname "$0")/.."

dvc exp run -n low-memory \
    -S hardware.vram_gb=4 \
    -S model=qwen3-1_7b \
    -S models.qwen3-1_7b.weights.quantization=nf4 \
    -S '~data.instructions.skills' \
    -S '+data.instructions.cidar=all' \
    -S '~data.preferences.skills' \
    -S '+data.preferences.aya-command-r-dpo=all' \
    -S '~data.benchmarks.skills' \
    -S '+data.benchmarks.arabicmmlu=all' \
    -S evaluate.max_new_tokens=256
