"""BERTScore (Zhang et al., 2020): greedy cosine matching of contextual tokens, no idf, no baseline rescaling.

Not by the package `bert-score`: its version 0.3.13 fails with transformers 5 on empty texts and on tokenizers without a
maximum length. Shapes: B rows, P tokens of a prediction, R tokens of a reference, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from src.evaluation.metrics.metric import Metric

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
MODEL_NAME = "microsoft/deberta-base-mnli"
LAYERS = 9  # the package's choice for this model, by correlation with human judgments on WMT16
BATCH_SIZE = 32
MAX_TOKENS = 512
_NEEDED_FILES = (("config.json",), ("model.safetensors", "pytorch_model.bin"), ("tokenizer.json", "vocab.json"))


class Embedded(NamedTuple):
    """Texts as unit vectors (B, L, D) of tokens, which of them are not padding (B, L), and which are words (B, L)."""

    vectors: torch.Tensor
    is_real: torch.Tensor
    is_word: torch.Tensor


def missing() -> str | None:
    """The model, if the hub's local cache lacks it; never downloads it."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(MODEL_NAME, file), str)

    if all(any(map(cached, alternatives)) for alternatives in _NEEDED_FILES):
        return None
    return f"the model {MODEL_NAME} is not in the hub's cache (hf download {MODEL_NAME})"


def bertscore(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1, means over rows, 0 to 100; 0 for a row without words on one side.

    Of several references of a row, the largest precision, recall and F1 count, as in the package `bert-score`.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_NAME, local_files_only=True)
    model = AutoModel.from_pretrained(MODEL_NAME, num_hidden_layers=LAYERS, local_files_only=True)
    return bertscore_with(model, tokenizer, predictions, references)


def bertscore_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> dict[str, float]:
    """BERTScore from the last layer of `model`, on a GPU if there is one."""
    import torch

    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    pairs = [(row, text) for row, alternatives in enumerate(references) for text in alternatives]
    pairs.sort(key=lambda pair: len(predictions[pair[0]]) + len(pair[1]))
    best = torch.full((len(references), len(SCORES)), -torch.inf, dtype=torch.float64)
    for start in range(0, len(pairs), BATCH_SIZE):
        rows, texts = map(list, zip(*pairs[start : start + BATCH_SIZE], strict=True))
        predicted = embed(model, tokenizer, [predictions[row] for row in rows])
        scores = greedy_match(predicted, embed(model, tokenizer, texts)).double().cpu()
        for row, score in zip(rows, scores, strict=True):
            best[row] = torch.maximum(best[row], score)
    return dict(zip(SCORES, (100 * best.mean(dim=0)).tolist(), strict=True))


def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Embedded:
    """The last layer's states of the first MAX_TOKENS tokens of each text."""
    import torch

    batch = tokenizer(
        [text.strip() for text in texts],
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        return_special_tokens_mask=True,
        return_tensors="pt",
    ).to(model.device)
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    vectors = torch.nn.functional.normalize(hidden.float(), dim=-1)
    return Embedded(vectors, real, real & ~batch["special_tokens_mask"].bool())


def greedy_match(predicted: Embedded, wanted: Embedded) -> torch.Tensor:
    """(B, 3) precision, recall and F1 of each row, from predictions (B, P) and references (B, R).

    Every word is matched with its nearest token (cosine) of the other side. Special tokens are matched with, but have
    no match of their own.
    """
    import torch

    cosine = predicted.vectors @ wanted.vectors.transpose(1, 2)  # (B, P, R)
    cosine = cosine.masked_fill(~(predicted.is_real.unsqueeze(2) & wanted.is_real.unsqueeze(1)), -1.0)
    precision = _mean_where(cosine.amax(dim=2), predicted.is_word)
    recall = _mean_where(cosine.amax(dim=1), wanted.is_word)
    both = predicted.is_word.any(dim=1) & wanted.is_word.any(dim=1)
    precision, recall = precision * both, recall * both
    total = precision + recall
    f1 = torch.where(total == 0, 0.0, 2 * precision * recall / torch.where(total == 0, 1.0, total))
    return torch.stack((precision, recall, f1), dim=1)


def _mean_where(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Row means (B,) of `values` (B, L) where `mask` holds; 0 for a row without any."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


BERTSCORE = Metric(
    "bertscore",
    SCORES,
    bertscore,
    f"{MODEL_NAME}, layer {LAYERS}, no idf, no rescaling, mean over rows",
    missing=missing,
    final_only=True,
)
