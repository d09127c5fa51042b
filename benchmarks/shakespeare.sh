#!/usr/bin/env bash
# The README's Shakespeare sequence with from-scratch models, 10,000 unlabeled lines, K = 4 and 8 epochs.
# Usage: benchmarks/shakespeare.sh SPLITS.json [OUT]
# Finished steps are skipped and killed ones continue, so the script can be run again at any time.
set -euo pipefail
data=$1 out=${2:-outputs/shakespeare} python=${PYTHON:-.venv/bin/python}
common="--max_input_length 48 --max_labels_length 48 --task_prompt modern: --mixed_precision no --seed 42 --debug False"
train="$common --metrics sacrebleu rouge chrf --num_beams 4 --do_train True --metric_for_best_model sacrebleu
       --greater_is_better True --batch_size 96 --max_gpu_batch_size 96"

[ -f "$out/data/shakespeare_7k.json" ] || $python prepare_datasets_main.py --dataset_name shakespeare --dataset_path "$data" \
  --train_size 7000 --val_size 250 --val_ppl_size 250 --unlabeled_size 10000 --unlabeled_split True --filter_by_length False \
  --max_input_length 48 --max_labels_length 48 --add_ft_split full --file_name shakespeare_7k.json --output_dir "$out/data"
[ -d "$out/teacher" ] || $python create_student_main.py --family t5 --d_model 96 --d_ff 256 --n_heads 4 --vocab_size 3000 \
  --dataset_path "$out/data/shakespeare_7k.json" --output_dir "$out/teacher"
[ -d "$out/student" ] || $python create_student_main.py --family t5 --d_model 48 --d_ff 128 --n_heads 4 --n_encoder_layers 1 \
  --n_decoder_layers 1 --tokenizer "$out/teacher" --output_dir "$out/student"

$python ft_main.py $train --save_checkpoint_every_n_steps 1.0 --test_every_n_epochs 10 --n_patience_epochs 10 \
  --model_name "$out/teacher" --learning_rate 0.003 --epochs 10 --output_dir "$out/ft_teacher" \
  --dataset_path "$out/data/shakespeare_7k.json"
$python ft_main.py $train --save_checkpoint_every_n_steps 1.0 --n_patience_epochs 10 --model_name "$out/student" \
  --learning_rate 0.01 --epochs 10 --output_dir "$out/ft_student" --dataset_path "$out/data/shakespeare_7k.json"
$python gen_main.py $common --split_for_generation unlabeled train --num_beams 4 --num_return_sequences 4 \
  --generation_type sampling --add_original_data True --model_name "$out/teacher" --batch_size 96 --output_dir "$out/sampling" \
  --dataset_path "$out/data/shakespeare_7k.json" --checkpoint_path "$(ls "$out"/ft_teacher/epoch*__score*__model.pt | grep -v __last)"
[ -f "$out/data/sampling_4.json" ] || $python prepare_datasets_main.py --original_dataset_path "$out/data/shakespeare_7k.json" \
  --generation_dataset_path "$out/sampling/generated_datasets.json" --n_augmentations_per_example 4 --file_name sampling_4.json \
  --use_unlabeled True --use_labeled True --use_original True --output_dir "$out/data"
$python kd_main.py $train --save_checkpoint_every_n_steps 1.0 --test_every_n_epochs 8 --keep_checkpoint_after_test True \
  --n_patience_epochs 16 --ft_steps_at_end 1 --epochs 16 --stop_training_after_n_epochs 8 --experiment_config_key logits_kd \
  --student_name "$out/student" --teacher_name "$out/teacher" --learning_rate 0.01 --output_dir "$out/kd_sampling_4" \
  --teacher_state_dict_path "$(ls "$out"/ft_teacher/epoch*__score*__model.pt | grep -v __last)" \
  --dataset_path "$out/data/sampling_4.json"
