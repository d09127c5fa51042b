"""Scores of predictions against references: one registry of metrics, which of them a run uses, and their columns."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from src.config.errors import UserError
from src.config.parsing import nearest
from src.data.references import Target, references_of
from src.evaluation.metrics import bertscore, bleu, chrf, gleu, meteor, rouge, wer

LIKELIHOOD_SCORES = ("nll", "ppl")  # of every evaluation, from the model itself instead of its texts
ALL = "all"
Options = Mapping[str, Mapping[str, Any]]  # by metric: keyword arguments of its functions
NO_OPTIONS: Options = MappingProxyType({})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A way to score texts.

    `compute(predictions, references)` returns one number for each of `score_names`, on a scale of 0 to 100; of a row,
    a prediction and the list of its references.
    `missing()` returns None when the metric works here, else one phrase that says what is missing and how to get it.
    `definition()` says what exactly is computed. Both functions take the metric's options, if it has some.
    """

    name: str
    score_names: tuple[str, ...]
    compute: Callable[..., dict[str, float]]
    missing: Callable[[], str | None]
    definition: Callable[..., str]
    final_only: bool = False


# Heavy libraries are imported inside the functions. The order is that of the columns.
METRICS: dict[str, Metric] = {
    "wer": Metric("wer", wer.SCORES, wer.wer, wer.missing, lambda: wer.DEFINITION),
    "gleu": Metric("gleu", gleu.SCORES, gleu.gleu, gleu.missing, lambda: gleu.DEFINITION),
    "rouge": Metric("rouge", rouge.SCORES, rouge.rouge, rouge.missing, lambda: rouge.DEFINITION),
    "sacrebleu": Metric("sacrebleu", bleu.SCORES, bleu.bleu, bleu.missing, bleu.signature),
    "bertscore": Metric(
        "bertscore",
        bertscore.SCORES,
        bertscore.bertscore,
        bertscore.missing,
        lambda: bertscore.DEFINITION,
        final_only=True,
    ),
    "meteor": Metric("meteor", meteor.SCORES, meteor.meteor, meteor.missing, lambda: meteor.DEFINITION),
    "chrf": Metric("chrf", chrf.SCORES, chrf.chrf, chrf.missing, chrf.signature),
}


def resolve_metrics(names: Sequence[str] | None, metric_for_best_model: str) -> tuple[str, ...]:
    """The metrics of a run, in the registry's order: `names` with `all` written out, and the one that picks the best.

    A metric that cannot work here is dropped with a warning if it came in by `all`.
    Raises UserError for an unknown name, for a named metric that cannot work here, and for a `metric_for_best_model`
    that is no score of every evaluation.
    """
    asked = set(names or ())
    known = (*METRICS, ALL)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        name = unknown[0]
        raise UserError(f"--metrics: unknown metric {name!r}; nearest: {nearest(name, known)!r} of {' '.join(known)}")
    named = (asked - {ALL}) | _metrics_yielding(metric_for_best_model)
    usable = []
    for name, metric in METRICS.items():
        if name not in named and ALL not in asked:
            continue
        absent = metric.missing()
        if absent is None:
            usable.append(name)
        elif name in named:
            raise UserError(f"{_origin(name, asked)} needs {name}, but {absent}")
        else:
            logger.warning("--metrics all: %s is left out, %s", name, absent)
    return tuple(usable)


def score_texts(
    predictions: Sequence[str],
    references: Sequence[Target],
    metric_names: Sequence[str],
    *,
    final: bool,
    options: Options = NO_OPTIONS,
) -> dict[str, float]:
    """The scores of `score_columns`, in that order, of prediction i against reference i; empty texts count as well.

    A reference may be a list: the best of it counts, or for BLEU and chrF the set, as is usual for each.

    Raises UserError when there is no row to score, ValueError when the two are not equally long.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but {len(references)} references")
    if not references:
        raise UserError("nothing to score: the split has no rows; at least one is needed")
    lists = [references_of(target) for target in references]
    scores: dict[str, float] = {}
    for metric in _computed(metric_names, final=final):
        computed = metric.compute(predictions, lists, **options.get(metric.name, {}))
        scores.update({column: float(computed[column]) for column in metric.score_names})
    return scores


def score_definitions(
    metric_names: Sequence[str], options: Options = NO_OPTIONS, n_references: str = "1"
) -> dict[str, str]:
    """What exactly each score of a run is. Raises UserError for an option that does not work here.

    n_references: of each row, a number or `var`.
    """
    several = n_references != "1"
    nll = "nats per target token, EOS included, mean over all tokens"
    definitions = {"nll": f"{nll}; of the first reference" if several else nll, "ppl": "exp(nll)"}
    for metric in _computed(metric_names, final=True):
        definition = metric.definition(**options.get(metric.name, {}))
        if "nrefs:1|" in definition:
            definition = definition.replace("nrefs:1|", f"nrefs:{n_references}|")
        elif several:
            definition += f"; nrefs:{n_references}, of a row the best"
        definitions |= dict.fromkeys(metric.score_names, definition)
    return definitions


def score_columns(metric_names: Sequence[str], *, final: bool) -> tuple[str, ...]:
    """The names of the scores that `score_texts` returns; `final` means the closing test of the best checkpoint."""
    return tuple(column for metric in _computed(metric_names, final=final) for column in metric.score_names)


def _computed(metric_names: Sequence[str], *, final: bool) -> list[Metric]:
    """The metrics due at an evaluation, in the registry's order whatever the order of `metric_names`."""
    return [metric for name, metric in METRICS.items() if name in metric_names and (final or not metric.final_only)]


def _metrics_yielding(score: str) -> set[str]:
    """The metric that yields `score` at every evaluation (none for a likelihood), as a set of at most one."""
    if score in LIKELIHOOD_SCORES:
        return set()
    for metric in METRICS.values():
        if score in metric.score_names and not metric.final_only:
            return {metric.name}
    possible = (*LIKELIHOOD_SCORES, *score_columns(tuple(METRICS), final=False))
    fault = "exists only in the final test" if score in score_columns(tuple(METRICS), final=True) else "is no score"
    raise UserError(
        f"--metric_for_best_model: {score!r} {fault}; nearest: {nearest(score, possible)!r} of {' '.join(possible)}"
    )


def _origin(name: str, asked: set[str]) -> str:
    return "--metrics" if name in asked else "--metric_for_best_model"
