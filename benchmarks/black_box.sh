#!/usr/bin/env bash
# Distill a simulated API: the teacher of the demo with 5 log-probabilities per token.
# Usage, after `make demo`: benchmarks/black_box.sh [DEMO]. Finished steps are skipped and interrupted ones continue.
set -euo pipefail
out=${1:-outputs/demo} python=${PYTHON:-.venv/bin/python}
lengths="--max_input_length 48 --max_labels_length 48 --task_prompt modern: --num_beams 1 --seed 1"

$python simulate_api_main.py $lengths --model_name "$out/teacher/model" --dataset_path "$out/data/demo.json" --n_completions 4 \
  --top_logprobs 5 --batch_size 128 --output_dir "$out/api"
[ -f "$out/data/api.json" ] || $python prepare_datasets_main.py --logits_dataset_path "$out/api/api_completions.json" \
  --student_name "$out/new_student" --file_name api.json --output_dir "$out/data"
for run in logits_kd finetuning; do
  $python kd_dataset_with_logits_main.py $lengths --experiment_config_key $run --student_name "$out/new_student" \
    --dataset_path "$out/data/api.json" --epochs 9 --stop_training_after_n_epochs 7 --metric_for_best_model sacrebleu \
    --batch_size 16 --max_gpu_batch_size 16 --learning_rate 0.008 --save_checkpoint_every_n_steps 1 \
    --output_dir "$out/black_box_$run"
done
