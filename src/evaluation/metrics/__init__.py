"""The registry of metrics, the choice of those that a run uses, and their scores of predictions against references."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from src.config.errors import UserError
from src.config.parsing import nearest
from src.data.references import Target, references_of
from src.evaluation.metrics.bertscore import BERTSCORE
from src.evaluation.metrics.meteor import METEOR
from src.evaluation.metrics.metric import Metric
from src.evaluation.metrics.sacrebleu_metrics import CHRF, SACREBLEU
from src.evaluation.metrics.word_metrics import GLEU, ROUGE, WER

LIKELIHOOD_SCORES = ("nll", "ppl")  # of every evaluation; from the model itself instead of its texts
ALL = "all"
Options = Mapping[str, Mapping[str, Any]]  # by metric, keyword arguments of its functions
NO_OPTIONS: Options = MappingProxyType({})
METRICS = {metric.name: metric for metric in (WER, GLEU, ROUGE, SACREBLEU, BERTSCORE, METEOR, CHRF)}  # columns' order

logger = logging.getLogger(__name__)


def resolve_metrics(names: Sequence[str] | None, metric_for_best_model: str) -> tuple[str, ...]:
    """The metrics of a run, in the registry's order: `names` with `all` expanded, and that of `metric_for_best_model`.

    A metric of `all` that is unavailable here is left out with a warning. Raises UserError for an unknown name, for a
    named metric that is unavailable, and for a `metric_for_best_model` that is not a score of every evaluation.
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
        absent = metric.why_unavailable()
        if absent is None:
            usable.append(name)
        elif name in named:
            raise UserError(f"{'--metrics' if name in asked else '--metric_for_best_model'} needs {name}, but {absent}")
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
    """The scores of `score_columns`, in that order, of prediction i against reference i; empty texts count too.

    A reference may be a list: its best one counts, or for BLEU and chrF all of them, as each metric is defined.
    Raises UserError if there is no row to score, ValueError if the lengths differ.
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
    """What exactly each score of a run is, by column. Raises UserError for an option that does not work here.

    n_references: per row, a number or `var`.
    """
    several = n_references != "1"
    nll = "nats per target token, EOS included, mean over all tokens"
    definitions = {"nll": f"{nll}; of the first reference" if several else nll, "ppl": "exp(nll)"}
    for metric in _computed(metric_names, final=True):
        definition = metric.definition
        if not isinstance(definition, str):
            definition = definition(**options.get(metric.name, {}))
        if "nrefs:1|" in definition:
            definition = definition.replace("nrefs:1|", f"nrefs:{n_references}|")
        elif several:
            definition += f"; nrefs:{n_references}, of a row the best"
        definitions |= dict.fromkeys(metric.score_names, definition)
    return definitions


def score_columns(metric_names: Sequence[str], *, final: bool) -> tuple[str, ...]:
    """The columns that `score_texts` returns; final: in the final test of the best checkpoint."""
    return tuple(column for metric in _computed(metric_names, final=final) for column in metric.score_names)


def _computed(metric_names: Sequence[str], *, final: bool) -> list[Metric]:
    """The metrics of an evaluation, in the registry's order."""
    return [metric for name, metric in METRICS.items() if name in metric_names and (final or not metric.final_only)]


def _metrics_yielding(score: str) -> set[str]:
    """The metric that has `score` at every evaluation, as a set of one; empty for a likelihood."""
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
