"""What an unknown flag was probably meant to be: a synonym, a flag of another script, or the nearest name."""

from collections.abc import Callable, Collection

from src.config.parsing import nearest
from src.config.scripts import scripts_with

# The field's other names, with our flag and, where it is needed, its value. All in lower case, with underscores.
SYNONYMS = {
    "adam_epsilon": "optimizer_eps",
    "beam_size": "num_beams",
    "bf16": "mixed_precision bf16",
    "cutoff_len": "max_input_length",
    "data_path": "dataset_path",
    "do_sample": "generation_type sampling",
    "dtype": "mixed_precision",
    "early_stopping_patience": "n_patience_epochs",
    "eval_steps": "save_checkpoint_every_n_steps",
    "fp16": "mixed_precision fp16",
    "generation_max_length": "max_labels_length",
    "gradient_accumulation_steps": "max_gpu_batch_size",  # --batch_size divided by it is the number of steps
    "input_column": "text_column",
    "learningrate": "learning_rate",
    "lr": "learning_rate",
    "max_grad_norm": "clip_grad_norm",
    "max_length": "max_input_length",
    "max_new_tokens": "max_labels_length",
    "max_seq_length": "max_input_length",
    "max_source_length": "max_input_length",
    "max_target_length": "max_labels_length",
    "micro_batch_size": "max_gpu_batch_size",
    "model": "model_name",
    "model_name_or_path": "model_name",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "num_samples": "num_return_sequences",
    "num_train_epochs": "epochs",
    "nucleus": "top_p",
    "output_column": "target_column",
    "overwrite_output_dir": "overwrite",
    "p": "top_p",
    "per_device_eval_batch_size": "max_gpu_batch_size",
    "per_device_train_batch_size": "max_gpu_batch_size",
    "prefix": "task_prompt",
    "prompt": "task_prompt",
    "prompt_column": "text_column",
    "random_seed": "seed",
    "resume_from_checkpoint": "checkpoint_path",
    "save_steps": "save_checkpoint_every_n_steps",
    "source_column": "text_column",
    "source_prefix": "task_prompt",
    "student": "student_name",
    "student_model": "student_name",
    "summary_column": "target_column",
    "teacher": "teacher_name",
    "teacher_model": "teacher_name",
    "tokenizer_name": "tokenizer",
    "torch_compile": "compile",
    "torch_dtype": "mixed_precision",
    "train_batch_size": "batch_size",
    "train_file": "dataset_path",
    "val_split": "val_size",
    "validation_file": "dataset_path",
}


def hint(name: str, known: Collection[str], written: Callable[[str, str], str]) -> str:
    """The end of a message about the unknown flag or key `name`.

    known: the names that are possible in its place. written: spells a flag and its value (or "") as the user would.
    """
    key = name.lower().replace("-", "_")
    flag, _, value = SYNONYMS.get(key, key).partition(" ")
    if flag not in known and (scripts := scripts_with(flag)):
        return f"{written(flag, value)} is for {', '.join(scripts)}"
    if key in SYNONYMS and flag in known:
        return f"did you mean {written(flag, value)}?"
    return f"nearest: {written(nearest(name, known), '')!r}"
