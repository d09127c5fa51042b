"""Flags of ft_main.py."""

from dataclasses import dataclass
from typing import ClassVar

from src.config.flags.base import MODEL, PRUNE_HELP, flag
from src.config.flags.shared import TrainingArguments


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
