#!/usr/bin/env bash
# Distill a pretrained instruct model in its own chat format: 400 labeled and 400 unlabeled rows, 200 updates per student.
# Usage: benchmarks/instruct.sh MODEL DATA.json [OUT]
#   MODEL: hub name or folder of a decoder-only model with a chat template, e.g. HuggingFaceTB/SmolLM2-135M-Instruct
# Finished steps are skipped and interrupted ones continue, so you can run the script again at any time.
set -euo pipefail
model=$1 data=$2 out=${3:-outputs/instruct} python=${PYTHON:-.venv/bin/python} layers=${LAYERS:-10}
format=(--chat_template True --task_prompt "Describe the restaurant in one sentence." --max_input_length 160 --max_labels_length 64)
common=("${format[@]}" --seed 42 --num_beams 1 --metrics sacrebleu chrf --metric_for_best_model nll --batch_size 8
        --save_checkpoint_every_n_steps 1)
small=$out/data/small.json merged=$out/data/sampling_2.json

[ -f "$small" ] || $python prepare_datasets_main.py --dataset_name "" --dataset_path "$data" --train_size 400 --val_size 40 \
  --test_size 100 --unlabeled_size 400 --unlabeled_split True --file_name small.json --output_dir "$out/data"
$python ft_main.py --model_name "$model" --dataset_path "$small" --output_dir "$out/zero_shot" "${common[@]}" --do_train False
$python ft_main.py --model_name "$model" --dataset_path "$small" --output_dir "$out/teacher" "${common[@]}" \
  --learning_rate 0.0001 --epochs 2
teacher=$out/teacher/model student=$out/student
[ -d "$student" ] || $python create_student_main.py --from_model "$teacher" --n_decoder_layers "$layers" --output_dir "$student"
$python ft_main.py --model_name "$student" --dataset_path "$small" --output_dir "$out/ft_student" "${common[@]}" \
  --learning_rate 0.0003 --epochs 4
kd=(kd_main.py --student_name "$student" --teacher_name "$teacher" "${common[@]}" --learning_rate 0.0003 --experiment_config_key logits_kd)
$python "${kd[@]}" --dataset_path "$small" --output_dir "$out/kd_logits" --epochs 4
$python gen_main.py --model_name "$teacher" --dataset_path "$small" --output_dir "$out/sampling" "${format[@]}" --batch_size 16 \
  --split_for_generation unlabeled --generation_type sampling --num_return_sequences 2 --add_original_data True --seed 42
[ -f "$merged" ] || $python prepare_datasets_main.py --original_dataset_path "$small" --n_augmentations_per_example 2 \
  --generation_dataset_path "$out/sampling/generated_datasets.json" --file_name sampling_2.json --output_dir "$out/data"
$python "${kd[@]}" --dataset_path "$merged" --output_dir "$out/kd_pseudo_targets" --epochs 2
