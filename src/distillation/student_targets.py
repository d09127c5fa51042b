"""Targets that the student generates itself during training (on-policy distillation).

Stage E of KD4Gen (Calderon et al., ACL 2023), where the teacher scores the student's own outputs.
"""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from src.config.constants import IGNORE_INDEX
from src.config.experiments.schema import LossEntry
from src.decoding.generate import behind_eos, write_tokens
from src.decoding.settings import decoding_of
from src.tokens.batch import Batch


def student_writes(share: float, *, seed: int, epoch: int, step: int) -> bool:
    """Whether the student generates the targets of this step, as it does on a `share` (0 to 1) of the steps.

    Depends on seed, epoch and step alone, so that all processes and a resumed run decide alike.
    """
    return bool(np.random.default_rng([seed, epoch, step]).random() < share)


def with_student_targets(student: PreTrainedModel, batch: Batch, entry: LossEntry, max_labels_length: int) -> Batch:
    """The batch with labels (B, T) that the student samples with the entry's settings, dropout off, without gradient.

    A target ends with EOS, or without one after `max_labels_length` tokens.
    """
    nucleus = {
        "temperature": entry.generate_temperature,
        "top_p": entry.generate_top_p,
        "top_k": entry.generate_top_k,
    }
    decoding = decoding_of(
        "sampling", num_beams=1, targets_per_input=1, max_new_tokens=max_labels_length, nucleus=nucleus
    )
    was_training = student.training
    student.eval()
    tokens = write_tokens(student, batch, decoding)
    student.train(was_training)
    behind = behind_eos(tokens, student.generation_config)
    labels = tokens.masked_fill(behind, IGNORE_INDEX)
    return replace(batch, labels=labels[:, : int((~behind).sum(dim=1).max())])
