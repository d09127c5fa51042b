"""Flags of ft_main.py, kd_main.py and kd_dataset_with_logits_main.py."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from src.config.errors import UserError
from src.config.flags.base import (
    CHAT_TEMPLATE_HELP,
    DATA,
    FILES,
    MODEL,
    PRUNE_HELP,
    REPOSITORY,
    REQUIRED,
    TRAINING,
    flag,
)
from src.config.flags.shared import PROMPT_HELP, SYSTEM_PROMPT_HELP, TrainingArguments

EXPERIMENTS = "arg_configs/kd_experiment_configs.yaml"
DISTILL_PROMPT = "summarize: "


def _experiment_file(written: str) -> Path:
    """The path of the experiments file; the default one is found from any working directory."""
    return REPOSITORY / written if written == EXPERIMENTS else Path(written)


@dataclass(frozen=True, kw_only=True)
class FineTuneArguments(TrainingArguments):
    r"""Fine-tune a model, usually the teacher, on labeled data.

    Reads   a dataset file (splits train, dev, test) and a pretrained model.
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model` that every --model_name and --teacher_name opens, and run.json.

    Example:
      python ft_main.py --model_name t5-large --task_prompt modern: --max_input_length 48 --max_labels_length 48 \
        --metrics all --metric_for_best_model sacrebleu --epochs 15 --learning_rate 5e-05 --batch_size 96 \
        --dataset_path datasets/original/shakespeare_7k.json --output_dir outputs/shakespeare_7k/t5/ft_teacher
    """

    script: ClassVar[str] = "ft_main.py"

    model_name: str = flag("t5-large", f"Hub name or folder of the model. {PRUNE_HELP}", MODEL)
    lora_rank: int | None = flag(
        None,
        "Train a LoRA adapter of this rank on the linear layers, merged into the model folder at the end (needs peft). "
        "None trains all weights.",
        TRAINING,
        minimum=1,
    )
    lora_alpha: float | None = flag(
        None, "The adapter is scaled by --lora_alpha / --lora_rank. None means --lora_rank.", TRAINING, above=0
    )

    def check(self) -> None:
        super().check()
        if self.lora_rank is None:
            if self.lora_alpha is not None:
                raise UserError(f"--lora_alpha {self.lora_alpha:g}: needs --lora_rank")
            return
        if find_spec("peft") is None:
            raise UserError("--lora_rank: needs the package peft; run pip install -r requirements-extras.txt")
        if self.compile:
            raise UserError(f"--lora_rank {self.lora_rank}: not with --compile True")


@dataclass(frozen=True, kw_only=True)
class DistillStoredArguments(TrainingArguments):
    r"""Distill a teacher, for example behind an API, whose log-probabilities are stored in the dataset file.

    Reads   a dataset file from prepare_datasets_main.py --logits_dataset_path (train_0 ... with tokens and logits), and
            the experiments file (YAML).
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model`, and run.json.

    Example:
      python kd_dataset_with_logits_main.py --experiment_config_key logits_kd --student_name t5-small \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --metric_for_best_model sacrebleu \
        --epochs 192 --stop_training_after_n_epochs 96 --ft_steps_at_end 10 --learning_rate 0.003 \
        --dataset_path datasets/with_logits/shakespeare_7k/1.json --output_dir outputs/shakespeare_7k/t5/logits
    """

    script: ClassVar[str] = "kd_dataset_with_logits_main.py"

    task_prompt: str | None = flag(  # type: ignore[assignment]  # the stages replace None at once
        None,
        f"{PROMPT_HELP} None means the prompt saved with the teacher, or else `{DISTILL_PROMPT}`, or none with "
        "--chat_template.",
        DATA,
    )
    chat_template: bool | None = flag(  # type: ignore[assignment]
        None, f"{CHAT_TEMPLATE_HELP} None means as the teacher was trained, or else False.", DATA
    )
    system_prompt: str | None = flag(  # type: ignore[assignment]
        None, f"{SYSTEM_PROMPT_HELP} None means the one saved with the teacher, or else empty.", DATA
    )
    experiment_config_key: str = flag(
        REQUIRED, "Experiment to run, such as finetuning, logits_kd or noisy_kd; see --list_experiments.", TRAINING
    )
    experiment_config_path: str = flag(EXPERIMENTS, "Experiments file (YAML); the default is this repository's.", FILES)
    list_experiments: bool = flag(False, "Print a line about each experiment and exit; needs no other flag.", FILES)
    student_name: str = flag("t5-small", f"Hub name or folder of the student. {PRUNE_HELP}", MODEL)
    student_state_dict_path: str | None = flag(
        None, "Weights to load into the student (.pt, .safetensors or checkpoint). None means its own.", MODEL
    )
    ft_steps_at_end: int | None = flag(
        None, "Epochs of fine-tuning on ft at the end, from the best checkpoint. None means 0.", TRAINING, minimum=0
    )
    stop_training_after_n_epochs: int | None = flag(
        None, "Epochs of distillation, --epochs if None; the learning rate decays over --epochs.", TRAINING, minimum=1
    )

    def check(self) -> None:
        super().check()
        if self.stop_training_after_n_epochs is not None and self.stop_training_after_n_epochs > self.epochs:
            raise UserError(
                f"--stop_training_after_n_epochs {self.stop_training_after_n_epochs}: is more than --epochs "
                f"{self.epochs}, when the learning rate reaches 0; increase --epochs"
            )

    @property
    def experiment_file(self) -> Path:
        return _experiment_file(self.experiment_config_path)

    @classmethod
    def answer_query(cls, given: dict[str, Any]) -> bool:
        if not given.get("list_experiments"):
            return False
        from src.config.experiments.load import print_experiments  # here, because PyYAML would slow --help

        print_experiments(_experiment_file(given.get("experiment_config_path", EXPERIMENTS)))
        return True


@dataclass(frozen=True, kw_only=True)
class DistillArguments(DistillStoredArguments):
    r"""Distill a teacher that is loaded together with the student.

    Reads   a dataset file (train, or train_0 ... with pseudo-targets; dev, test, ft), the teacher's weights, and the
            experiments file (YAML).
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model`, and run.json.

    Example:
      python kd_main.py --experiment_config_key logits_kd --student_name t5-small \
        --teacher_name outputs/shakespeare_7k/t5/ft_teacher/model \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --metric_for_best_model sacrebleu \
        --epochs 192 --stop_training_after_n_epochs 96 --ft_steps_at_end 10 --learning_rate 0.0005 \
        --dataset_path datasets/with_augmentations/shakespeare_7k/t5/sampling_48.json \
        --output_dir outputs/shakespeare_7k/t5/kd
    """

    script: ClassVar[str] = "kd_main.py"

    teacher_name: str = flag("t5-large", "Hub name, model or adapter folder, or GGUF file of the teacher.", MODEL)
    teacher_state_dict_path: str | None = flag(
        None, "Weights to load into the teacher (.pt, .safetensors or checkpoint). None means its own.", MODEL
    )
    teacher_dtype: str = flag(
        "fp32", "Number format of the teacher's weights; bf16 halves their memory.", MODEL, choices=("fp32", "bf16")
    )
    teacher_device: str | None = flag(
        None, "Where the teacher computes, for example cuda:1 or cpu. None means where the student does.", MODEL
    )
