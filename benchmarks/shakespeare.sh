#!/usr/bin/env bash
# The Shakespeare commands of the README with models trained from scratch, 10,000 unlabeled lines, K = 4 and 8 epochs of
# distillation. In place of pre-training, the models first learn to copy pieces of 2 to 7 words of the training texts.
# Usage: benchmarks/shakespeare.sh SPLITS.json [OUT]
# Finished steps are skipped and interrupted ones continue, so you can run the script again at any time.
set -euo pipefail
data=$1 out=${2:-outputs/shakespeare} python=${PYTHON:-.venv/bin/python}
common="--max_input_length 48 --max_labels_length 48 --mixed_precision no --seed 42 --debug False"
train="$common --metrics sacrebleu rouge chrf --do_train True --metric_for_best_model sacrebleu --greater_is_better True"
pairs="--task_prompt modern: --num_beams 1 --dataset_path $out/data/shakespeare_7k.json"
copying="--task_prompt bart --num_beams 1 --batch_size 16 --max_gpu_batch_size 16 --save_checkpoint_every_n_steps 1.0
         --dataset_path $out/data/pieces.json"
t5="--family t5 --n_heads 4 --n_encoder_layers 1 --n_decoder_layers 1 --dropout 0"

[ -f "$out/data/shakespeare_7k.json" ] || $python prepare_datasets_main.py --dataset_name shakespeare --dataset_path "$data" \
  --train_size 7000 --val_size 750 --val_ppl_size 750 --unlabeled_size 10000 --unlabeled_split True --filter_by_length False \
  --max_input_length 48 --max_labels_length 48 --add_ft_split full --file_name shakespeare_7k.json --output_dir "$out/data"
[ -f "$out/data/pieces.json" ] || $python - "$out/data" <<'PYTHON'
import json, random, sys
from pathlib import Path

folder, rng = Path(sys.argv[1]), random.Random(42)
splits = json.loads((folder / "shakespeare_7k.json").read_text())

def pieces(texts):
    for text in texts:
        words = text.split()
        while words:
            n = rng.randint(2, 7)
            yield " ".join(words[:n])
            words = words[n:]

train, dev = list(pieces(splits["unlabeled"]["text"] + splits["train"]["target"])), list(pieces(splits["dev"]["text"]))[:400]
made = {"train": {"text": train, "target": train}, "dev": {"text": dev, "target": dev}}
(folder / "pieces.json").write_text(json.dumps(made))
PYTHON
[ -d "$out/teacher" ] || $python create_student_main.py $t5 --d_model 128 --d_ff 320 --vocab_size 1500 \
  --dataset_path "$out/data/shakespeare_7k.json" --output_dir "$out/teacher"
[ -d "$out/student" ] || $python create_student_main.py $t5 --d_model 48 --d_ff 128 --tokenizer "$out/teacher" \
  --output_dir "$out/student"
$python ft_main.py $train $copying --model_name "$out/teacher" --learning_rate 0.0015 --epochs 2 --output_dir "$out/copy_teacher"
$python ft_main.py $train $copying --model_name "$out/student" --learning_rate 0.004 --epochs 1 --output_dir "$out/copy_student"

$python ft_main.py $train $pairs --save_checkpoint_every_n_steps 1.0 --n_patience_epochs 10 --batch_size 16 --max_gpu_batch_size 16 \
  --model_name "$out/copy_teacher/model" --learning_rate 0.0015 --epochs 10 --output_dir "$out/ft_teacher"
$python ft_main.py $train $pairs --save_checkpoint_every_n_steps 1.0 --n_patience_epochs 10 --batch_size 16 --max_gpu_batch_size 16 \
  --model_name "$out/copy_student/model" --learning_rate 0.004 --epochs 10 --output_dir "$out/ft_student"
$python gen_main.py $common $pairs --split_for_generation unlabeled train --num_return_sequences 4 --generation_type sampling \
  --add_original_data True --model_name "$out/copy_teacher/model" --batch_size 96 --output_dir "$out/sampling" \
  --checkpoint_path "$(ls "$out"/ft_teacher/epoch*__score*__model.pt | grep -v __last)"
[ -f "$out/data/sampling_4.json" ] || $python prepare_datasets_main.py --original_dataset_path "$out/data/shakespeare_7k.json" \
  --generation_dataset_path "$out/sampling/generated_datasets.json" --n_augmentations_per_example 4 --file_name sampling_4.json \
  --use_unlabeled True --use_labeled True --use_original True --output_dir "$out/data"
$python kd_main.py $train --task_prompt modern: --num_beams 1 --save_checkpoint_every_n_steps 1.0 --test_every_n_epochs 8 \
  --keep_checkpoint_after_test True --n_patience_epochs 16 --ft_steps_at_end 1 --epochs 10 --stop_training_after_n_epochs 8 \
  --batch_size 48 --max_gpu_batch_size 48 --experiment_config_key logits_kd --student_name "$out/copy_student/model" \
  --teacher_name "$out/copy_teacher/model" --learning_rate 0.004 --output_dir "$out/kd_sampling_4" \
  --teacher_state_dict_path "$(ls "$out"/ft_teacher/epoch*__score*__model.pt | grep -v __last)" \
  --dataset_path "$out/data/sampling_4.json"
