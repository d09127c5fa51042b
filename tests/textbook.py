"""Textbook fine-tuning and logits distillation: stock models, full logits, AdamW, a linear schedule.

This module imports nothing of the suite. Shapes: B rows, T target tokens, V vocabulary.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, get_linear_schedule_with_warmup

Pair = tuple[str, str]


class Textbook:
    """A student that learns update by update, in float64. After a decoder-only model's text comes the prompt."""

    def __init__(
        self,
        student: str,
        teacher: str | None,
        *,
        n_updates: int,
        prompt: str,
        learning_rate: float,
        eps: float,
        weight_decay: float,
    ) -> None:
        self.prompt = prompt
        self.tokenizer = AutoTokenizer.from_pretrained(student)
        kind = AutoModelForSeq2SeqLM if "t5" in Path(student).name else AutoModelForCausalLM
        self.student = kind.from_pretrained(student).double().train()
        self.teacher = None if teacher is None else kind.from_pretrained(teacher).double().eval()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=learning_rate, eps=eps, weight_decay=weight_decay
        )
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 0, n_updates)
        self.rates: list[float] = []

    def update(self, pairs: list[Pair], *, distill: bool) -> None:
        inputs, labels = self.tokens(pairs)
        logits = self.logits(self.student, inputs, labels)
        if distill:
            with torch.no_grad():
                taught = self.logits(self.teacher, inputs, labels).softmax(-1)
            mask = labels != -100
            kl = F.kl_div(logits.log_softmax(-1), taught, reduction="none").sum(-1) * mask  # (B, T)
            loss = (kl.sum(1) / mask.sum(1)).mean()
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        self.rates.append(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def tokens(self, pairs: list[Pair]):
        """Encoder-decoder: padded inputs, (B, T) labels. Decoder-only: text, prompt and target in one sequence."""
        eos = self.tokenizer.eos_token_id
        if self.student.config.is_encoder_decoder:
            inputs = self.tokenizer([f"{self.prompt} {text}" for text, _ in pairs], padding=True, return_tensors="pt")
            targets = self.tokenizer(text_target=[target for _, target in pairs])["input_ids"]
            targets = [[*(ids if ids[-1] != eos else ids[:-1]), eos] for ids in targets]
            return inputs, padded(targets, -100)
        contexts = self.tokenizer([f"{text} {self.prompt}" for text, _ in pairs])["input_ids"]
        wholes = self.tokenizer([f"{text} {self.prompt} {target}" for text, target in pairs])["input_ids"]
        labels = [[-100] * len(a) + b[len(a) :] + [eos] for a, b in zip(contexts, wholes, strict=True)]
        ids = [[*whole, eos] for whole in wholes]
        mask = padded([[1] * len(each) for each in ids], 0)
        return {"input_ids": padded(ids, 0), "attention_mask": mask}, padded(labels, -100)[:, 1:]

    def logits(self, model, inputs, labels):
        """(B, T, V) what predicts the labels."""
        if not model.config.is_encoder_decoder:
            return model(**inputs).logits[:, :-1]
        return model(**inputs, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels)).logits

    def state(self):
        parts = (self.student, self.optimizer, self.schedule)
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def load(self, state) -> None:
        for part, values in zip((self.student, self.optimizer, self.schedule), state, strict=True):
            part.load_state_dict(values)


def padded(sequences: list[list[int]], value: int) -> Tensor:
    """Sequences of unequal length as one tensor, filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences], True, value)
