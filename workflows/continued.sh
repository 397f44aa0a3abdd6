#!/usr/bin/env bash
# A general assistant, then a domain: SFT on CIDAR, DPO, and supervised training that goes on from models/dpo on the domain's rows.
# Your own domain: `-S '+data.continued.my-data={path:data/own/my.jsonl,columns:{prompt:question,completion:answer}}'` in place of arabicqa.
# `python -m tools.compare continued --against dpo --checkpoint refine-continued` says what it gained, and metrics/refine-continued.json
# what it cost: the preference metrics of models/dpo and refine-continued stand side by side.
#
# GPU      sft 5.5 GB, dpo 5.5 GB, refine-continued 5.5 GB (computed: python -m tools.plan --length 1024)
# time     not measured
# data     CIDAR, 10,000 reviewed rows; pairs from Aya, chosen by people; as the domain 20,000 rows of ArabicQA_2.1M, machine-made
# licence  Qwen3-1.7B, ArabicQA_2.1M and Aya: apache-2.0. CIDAR: its card has said cc-by-nc-4.0 and apache-2.0. ArabicMMLU: non-commercial
set -euo pipefail
cd "$(dirname "$0")/.."

dvc exp run -n continued \
    -S model=qwen3-1_7b \
    -S 'refine=[continued]' \
    -S '~data.instructions.skills' \
    -S '+data.instructions.cidar=all' \
    -S '~data.preferences.skills' \
    -S '+data.preferences.aya-command-r-dpo=all' \
    -S '~data.continued.skills' \
    -S '+data.continued.arabicqa-2_1m=20000' \
    -S '~data.benchmarks.skills' \
    -S '+data.benchmarks.arabicmmlu=all'
