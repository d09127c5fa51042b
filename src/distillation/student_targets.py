"""Targets that the student generates itself during training (on-policy distillation).

Stage E of KD4Gen (Calderon et al., ACL 2023), where the teacher scores the student's own outputs.
"""

import numpy as np
from transformers import PreTrainedModel

from src.config.experiments.schema import LossEntry
from src.decoding.generate import behind_eos, write_tokens
from src.decoding.settings import decoding_of
from src.tokens.batch import Batch, Targets


def student_writes(share: float, *, seed: int, epoch: int, step: int) -> bool:
    """Whether the student generates the targets of this step, as it does on a `share` (0 to 1) of the steps.

    Depends on seed, epoch and step alone, so that all processes and a resumed run decide alike.
    """
    return bool(np.random.default_rng([seed, epoch, step]).random() < share)


def student_targets(student: PreTrainedModel, batch: Batch, entry: LossEntry, max_labels_length: int) -> Targets:
    """A target for each row of a batch, sampled by the student with the entry's settings, dropout off.

    It ends with EOS, or without one after `max_labels_length` tokens.
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
    lengths = (~behind_eos(tokens, student.generation_config)).sum(dim=1).tolist()
    rows = zip(batch.rows, tokens.cpu().numpy(), lengths, strict=True)
    return {row: target[:length] for row, target, length in rows}
