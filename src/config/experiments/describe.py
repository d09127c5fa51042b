"""Print one line about each experiment, for --list_experiments."""

from pathlib import Path

from src.config.console import say
from src.config.divergences import DIVERGENCES
from src.config.experiments.load import load_experiments
from src.config.experiments.schema import Experiment, LossEntry


def print_experiments(path: Path) -> None:
    """Print the key and the description of every experiment in the file."""
    described = {key: describe(experiment) for key, experiment in load_experiments(path).items()}
    width = max(map(len, described), default=0)
    for key, line in described.items():
        say(f"{key:<{width}}  {line}")


def describe(experiment: Experiment) -> str:
    """One line: the losses, and when training changes from one to the next."""
    schedule, losses = experiment.schedule, [_describe_loss(loss) for loss in experiment.losses]
    if len(losses) == 1:
        return losses[0]
    order = "drawn at random" if schedule.random_sample else "then stays" if schedule.keep_last else "then again"
    (trigger,) = schedule.triggers
    when = {
        "change_every_n_epochs": "every {} epochs",
        "change_every_n_evaluation_steps": "every {} evaluations",
        "change_no_improvements_for": "after {} evaluations without a better score",
    }[trigger].format(getattr(schedule, trigger))
    return f"{' -> '.join(losses)}; changes {when}, {order}"


def _describe_loss(loss: LossEntry) -> str:
    support = ""
    if loss.temperature < 0:
        support = f" to the top-{-loss.temperature:g} nucleus"
    elif loss.temperature != 1:
        support = f" at T {loss.temperature:g}"
    relations = f"relations ({'KL' if loss.kl_loss else 'RMSE'})"
    names = {name: f"{each.label}{support}" for name, each in DIVERGENCES.items()}
    names |= {"forward": "NLL", "hidden": f"hidden {relations}", "attention_relation": f"attention {relations}"}
    said = " + ".join(
        names[term] if weight == 1 else f"{weight:g} {names[term]}" for term, weight in loss.weights.items()
    )
    said += ", scaled" if loss.loss_scale else ""
    said += ", noisy teacher" if loss.dropout else ""
    said += f", missing mass: {loss.missing_mass}" if loss.missing_mass != "drop" else ""
    share = loss.generate_labels_weight
    return said + (f", labels by the student on {share:.0%} of the steps{_describe_sampling(loss)}" if share else "")


def _describe_sampling(loss: LossEntry) -> str:
    """The sampling settings that differ from the defaults, such as " (top-k 50)"."""
    settings = {
        "T": (loss.generate_temperature, LossEntry.generate_temperature),
        "top-p": (loss.generate_top_p, LossEntry.generate_top_p),
        "top-k": (loss.generate_top_k, LossEntry.generate_top_k),
    }
    changed = [f"{name} {value:g}" for name, (value, default) in settings.items() if value != default]
    return f" ({', '.join(changed)})" if changed else ""
