"""SacreBLEU (Post, 2018): corpus BLEU of order 4, exponential smoothing."""

from collections.abc import Sequence

from src.config.errors import UserError
from src.evaluation.metrics.packages import missing_packages
from src.evaluation.metrics.pieces import corpus_score

SCORES = ("sacrebleu",)


def missing() -> str | None:
    return missing_packages(sacrebleu="sacrebleu")


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU, 0 to 100, against all references of a row. tokenize: the name of one of sacreBLEU's tokenizers."""
    from sacrebleu.metrics import BLEU

    # `force` only silences a hint printed when many rows end in a tokenized full stop.
    return {"sacrebleu": corpus_score(BLEU(force=True, tokenize=tokenize), predictions, references)}


def signature(tokenize: str = "13a") -> str:
    """sacreBLEU's own description of the score. Raises UserError for a tokenizer that does not work here."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenize, references=[[""]]).get_signature().format()
    except (RuntimeError, ImportError, OSError) as error:  # a package or a download is missing
        raise UserError(f"--bleu_tokenize {tokenize}: {str(error).strip().splitlines()[0]}") from None
