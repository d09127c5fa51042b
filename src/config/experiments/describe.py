"""--list_experiments: experiments in words."""

from pathlib import Path

from src.config.console import say
from src.config.divergences import DIVERGENCES
from src.config.experiments.load import load_experiments
from src.config.experiments.schema import Experiment, LossEntry


def print_experiments(path: Path) -> None:
    """Every experiment of the YAML file, with a line on it."""
    described = {key: describe(experiment) for key, experiment in load_experiments(path).items()}
    width = max(map(len, described), default=0)
    for key, line in described.items():
        say(f"{key:<{width}}  {line}")


def describe(experiment: Experiment) -> str:
    """A line on what an experiment learns, and when the next loss takes over."""
    schedule, losses = experiment.schedule, [_describe_loss(loss) for loss in experiment.losses]
    if len(losses) == 1:
        return losses[0]
    order = "drawn at random" if schedule.random_sample else "then stays" if schedule.keep_last else "then again"
    triggers = {
        f"every {schedule.change_every_n_epochs} epochs": schedule.change_every_n_epochs,
        f"every {schedule.change_every_n_evaluation_steps} evaluations": schedule.change_every_n_evaluation_steps,
        f"after {schedule.change_no_improvements_for} evaluations without a better score": (
            schedule.change_no_improvements_for
        ),
    }
    (trigger,) = (text for text, number in triggers.items() if number is not None)
    return f"{' -> '.join(losses)}; changes {trigger}, {order}"


def _describe_loss(loss: LossEntry) -> str:
    support = ""
    if loss.temperature < 0:
        support = f" to the top-{-loss.temperature:g} nucleus"
    elif loss.temperature != 1:
        support = f" at T {loss.temperature:g}"
    names = {name: f"{each.words}{support}" for name, each in DIVERGENCES.items()}
    names |= {"forward": "NLL", "hidden": "hidden relations", "attention_relation": "attention relations"}
    for term in ("hidden", "attention_relation"):
        names[term] += f" ({'KL' if loss.kl_loss else 'RMSE'})"
    said = " + ".join(
        names[term] if weight == 1 else f"{weight:g} {names[term]}" for term, weight in loss.weights.items()
    )
    said += ", scaled" if loss.loss_scale else ""
    said += ", noisy teacher" if loss.dropout else ""
    said += f", missing mass: {loss.missing_mass}" if loss.missing_mass != "drop" else ""
    share = loss.generate_labels_weight
    return said + (f", labels by the student on {share:.0%} of the steps{_describe_sampling(loss)}" if share else "")


def _describe_sampling(loss: LossEntry) -> str:
    """How the student samples, where it is not as usual: " (top-k 50)"."""
    settings = {
        "T": (loss.generate_temperature, LossEntry.generate_temperature),
        "top-p": (loss.generate_top_p, LossEntry.generate_top_p),
        "top-k": (loss.generate_top_k, LossEntry.generate_top_k),
    }
    changed = [f"{name} {value:g}" for name, (value, usual) in settings.items() if value != usual]
    return f" ({', '.join(changed)})" if changed else ""
