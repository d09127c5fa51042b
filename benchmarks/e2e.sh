#!/usr/bin/env bash
# The whole pipeline on E2E NLG with models trained from scratch: 2,000 labeled and 8,000 unlabeled rows.
# Usage: benchmarks/e2e.sh E2E.json [OUT]
# Finished steps are skipped and interrupted ones continue, so you can run the script again at any time.
set -euo pipefail
data=$1 out=${2:-outputs/e2e} python=${PYTHON:-.venv/bin/python}
lengths="--max_input_length 80 --max_labels_length 64 --task_prompt bart"
common="$lengths --seed 42 --num_beams 1 --metrics sacrebleu rouge chrf --metric_for_best_model sacrebleu --batch_size 16
        --max_gpu_batch_size 16 --save_checkpoint_every_n_steps 1"

[ -f "$out/data/e2e_2k.json" ] || $python prepare_datasets_main.py --dataset_name "" --dataset_path "$data" --train_size 2000 \
  --val_size 300 --test_size 1000 --unlabeled_size 8000 --unlabeled_split True --file_name e2e_2k.json --output_dir "$out/data"
[ -d "$out/teacher" ] || $python create_student_main.py --family t5 --d_model 256 --d_ff 640 --n_heads 4 --n_encoder_layers 1 \
  --n_decoder_layers 1 --vocab_size 1500 --dataset_path "$out/data/e2e_2k.json" --output_dir "$out/teacher"
[ -d "$out/student" ] || $python create_student_main.py --family t5 --d_model 48 --d_ff 128 --n_heads 4 --n_encoder_layers 1 \
  --n_decoder_layers 1 --dropout 0 --tokenizer "$out/teacher" --output_dir "$out/student"

$python ft_main.py --model_name "$out/teacher" --dataset_path "$out/data/e2e_2k.json" --output_dir "$out/ft_teacher" $common \
  --learning_rate 0.001 --epochs 24
$python ft_main.py --model_name "$out/student" --dataset_path "$out/data/e2e_2k.json" --output_dir "$out/ft_student" $common \
  --learning_rate 0.008 --epochs 24
$python gen_main.py --model_name "$out/ft_teacher/model" --dataset_path "$out/data/e2e_2k.json" --output_dir "$out/sampling" \
  $lengths --split_for_generation unlabeled train --generation_type sampling --num_return_sequences 4 --add_original_data True \
  --batch_size 64 --seed 42
[ -f "$out/data/sampling_4.json" ] || $python prepare_datasets_main.py --original_dataset_path "$out/data/e2e_2k.json" \
  --generation_dataset_path "$out/sampling/generated_datasets.json" --n_augmentations_per_example 4 \
  --file_name sampling_4.json --output_dir "$out/data"
for run in logits:e2e_2k:30:24 pseudo_targets:sampling_4:8:6; do
  IFS=: read -r name file nominal epochs <<<"$run"
  $python kd_main.py --experiment_config_key logits_kd --student_name "$out/student" --teacher_name "$out/ft_teacher/model" \
    --dataset_path "$out/data/$file.json" --output_dir "$out/kd_$name" $common --learning_rate 0.008 --epochs "$nominal" \
    --stop_training_after_n_epochs "$epochs" --ft_steps_at_end 1
done
