"""BERTScore (Zhang et al., 2020): greedy cosine matching of contextual tokens, no idf, no baseline rescaling.

Written out here because the `bert-score` package (0.3.13) fails with transformers 5 on empty texts and on tokenizers
without a maximal length. Shapes: B rows, P tokens of a prediction, R tokens of a reference, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from src.evaluation.metrics.packages import missing_packages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
DEFINITION = "microsoft/deberta-base-mnli, layer 9, no idf, no rescaling, mean over rows"
MODEL_NAME = "microsoft/deberta-base-mnli"
LAYERS = 9  # the layer bert-score chose for this model by its correlation with people (WMT16)
BATCH_SIZE = 32
MAX_TOKENS = 512
_NEEDED_FILES = (("config.json",), ("model.safetensors", "pytorch_model.bin"), ("tokenizer.json", "vocab.json"))


def missing() -> str | None:
    """Looks into the hub's local cache only: no network, so neither a wait nor a download in the middle of a run."""
    absent = missing_packages(torch="torch", transformers="transformers", huggingface_hub="huggingface_hub")
    if absent:
        return absent
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(MODEL_NAME, file), str)

    if all(any(map(cached, alternatives)) for alternatives in _NEEDED_FILES):
        return None
    return f"the model {MODEL_NAME} is not in the hub's cache (hf download {MODEL_NAME})"


def bertscore(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1, means over rows, 0 to 100; a row without words on one side has 0.

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
    """BERTScore by the last layer of `model`, on a GPU if there is one."""
    import torch

    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    pairs = [(row, text) for row, alternatives in enumerate(references) for text in alternatives]
    pairs.sort(key=lambda pair: len(predictions[pair[0]]) + len(pair[1]))
    best = torch.full((len(references), len(SCORES)), -torch.inf, dtype=torch.float64)
    for start in range(0, len(pairs), BATCH_SIZE):
        rows, texts = map(list, zip(*pairs[start : start + BATCH_SIZE], strict=True))
        prediction_side = embed(model, tokenizer, [predictions[row] for row in rows])
        reference_side = embed(model, tokenizer, texts)
        scores = greedy_match(*prediction_side, *reference_side).double().cpu()
        for row, score in zip(rows, scores, strict=True):
            best[row] = torch.maximum(best[row], score)
    return dict(zip(SCORES, (100 * best.mean(dim=0)).tolist(), strict=True))


def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors (B, L, D) of the tokens, which of them are real (B, L), and which of those are words (B, L)."""
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
    return torch.nn.functional.normalize(hidden.float(), dim=-1), real, real & ~batch["special_tokens_mask"].bool()


def greedy_match(
    predicted: torch.Tensor,
    predicted_real: torch.Tensor,
    predicted_words: torch.Tensor,
    wanted: torch.Tensor,
    wanted_real: torch.Tensor,
    wanted_words: torch.Tensor,
) -> torch.Tensor:
    """Precision, recall and F1 of each row (B, 3), from unit vectors (B, P, D), (B, R, D) and their masks.

    Every word takes its best cosine among the other side's real tokens; special tokens may be taken but do not take.
    """
    import torch

    cosine = predicted @ wanted.transpose(1, 2)  # (B, P, R)
    cosine = cosine.masked_fill(~(predicted_real.unsqueeze(2) & wanted_real.unsqueeze(1)), -1.0)
    precision = _mean_where(cosine.amax(dim=2), predicted_words)
    recall = _mean_where(cosine.amax(dim=1), wanted_words)
    both = predicted_words.any(dim=1) & wanted_words.any(dim=1)
    precision, recall = precision * both, recall * both
    total = precision + recall
    f1 = torch.where(total == 0, 0.0, 2 * precision * recall / torch.where(total == 0, 1.0, total))
    return torch.stack((precision, recall, f1), dim=1)


def _mean_where(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Row means (B,) of `values` (B, L) where `mask` holds; 0 for a row without any."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
