"""XSum, SQuAD and ART, from the hub."""

from __future__ import annotations

from src.config.constants import DEV, TARGET, TEST, TEXT
from src.config.errors import UserError
from src.data.corpora.request import CORPUS_SEED, Request, read_raw
from src.data.schema import Columns, Datasets
from src.data.splits import draw_shares


def xsum(request: Request) -> Datasets:
    """XSum: a BBC article to its one-sentence summary (Narayan et al., 2018)."""
    raw = read_raw(request, "EdinburghNLP/xsum", ("document", "summary"))
    return {split: {TEXT: rows["document"], TARGET: rows["summary"]} for split, rows in raw.items()}


def squad(request: Request) -> Datasets:
    """SQuAD turned round: `{context}; answer: {first answer}` to the question (Rajpurkar et al., 2016).

    1,570 rows of the validation split are `dev`, the rest is `test`; a smaller file is shared in proportion.
    """
    raw = read_raw(request, "rajpurkar/squad", ("context", "question", "answers"), splits=("train", "validation"))
    source = request.path or "squad"
    datasets = {split: _question_rows(rows, f"{source}: split '{split}'") for split, rows in raw.items()}
    if DEV not in datasets:
        return datasets
    return datasets | draw_shares(datasets[DEV], {DEV: 1_570, TEST: 9_000}, seed=CORPUS_SEED, source=source)


def _question_rows(rows: Columns, place: str) -> Columns:
    texts = []
    for i, (context, answers) in enumerate(zip(rows["context"], rows["answers"], strict=True)):
        found = answers.get(TEXT) if isinstance(answers, dict) else None
        if not isinstance(found, list) or not found or not isinstance(found[0], str):
            raise UserError(f"{place}, row {i}: 'answers' must be {{\"text\": [at least one answer]}}, not {answers}")
        texts.append(f"{context}; answer: {found[0]}")
    return {TEXT: texts, TARGET: rows["question"]}


def art(request: Request) -> Datasets:
    """ART: `{observation_1}; outcome: {observation_2}` to what happened in between (Bhagavatula et al., 2020)."""
    raw = read_raw(request, "GEM/ART", ("observation_1", "observation_2", "target"))
    return {
        split: {
            TEXT: [
                f"{before}; outcome: {after}"
                for before, after in zip(rows["observation_1"], rows["observation_2"], strict=True)
            ],
            TARGET: rows["target"],
        }
        for split, rows in raw.items()
    }
