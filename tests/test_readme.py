"""README, CONTRIBUTING and docs: commands parse, generated pages are current, links and files exist."""

import re
import runpy
import shlex
from dataclasses import fields

import pytest
from conftest import ARGUMENTS
from tiny_runs import kd_flags

import kd_main
from src.config.cli import explicit_flags, parse
from src.config.divergences import DIVERGENCES
from src.config.flags.base import REPOSITORY, REQUIRED
from src.distillation.objectives import distillation_loss
from src.distillation.student_targets import student_writes
from src.training import update

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in sorted(
        [
            *REPOSITORY.glob("*.md"),
            *REPOSITORY.glob("docs/*.md"),
            *(REPOSITORY / folder / "README.md" for folder in ("datasets", "outputs")),
            *REPOSITORY.glob("benchmarks/*.md"),
        ]
    )
}
README, OBJECTIVES, CONTRIBUTING = (PAGES[name] for name in ("README.md", "docs/objectives.md", "CONTRIBUTING.md"))
COMMANDS = [
    command
    for name, page in PAGES.items()
    if name == "README.md" or name.startswith("docs/")
    for command in re.findall(r"^ *python (\w+_main\.py) (.+)$", page, flags=re.MULTILINE)
]
FLAG_LINES = re.findall(r"^\| `(?:--)?(\w+)` \| (\S.*?) \| (.+) \|$", PAGES["docs/flags.md"], flags=re.MULTILINE)


def test_there_are_commands_of_every_stage_of_the_road():
    assert {script for script, _ in COMMANDS} >= {
        "prepare_datasets_main.py", "ft_main.py", "gen_main.py", "kd_main.py"
    }  # fmt: skip


@pytest.fixture
def files_of_the_pages(tmp_path, monkeypatch):
    """The files that commands name: YAML blocks that begin with their name."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES.values():
        for name, content in re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", page, flags=re.DOTALL):
            (tmp_path / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(("script", "flags"), COMMANDS)
def test_every_command_parses(files_of_the_pages, script, flags):
    if explicit_flags(ARGUMENTS[script], shlex.split(flags)).get("list_experiments"):
        return  # needs no other flag; tests/config/test_experiments.py runs it
    parse(ARGUMENTS[script], shlex.split(flags))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_the_variant_of_the_readme(tiny_models, rotation_path, tmp_path, monkeypatch, family):
    """Half NLL, half logits at temperature 2, labels by the student on 30 % of the steps."""
    (example,) = re.findall(r"```yaml\n(my_kd:.*?)```", OBJECTIVES, flags=re.DOTALL)
    (tmp_path / "my_kd.yaml").write_text(example, encoding="utf-8")
    named = re.search(r"`kd_main.py (--experiment_config_path my_kd.yaml --experiment_config_key my_kd)", OBJECTIVES)
    assert named
    monkeypatch.chdir(tmp_path)
    steps, losses = [], []

    def noted_writes(share, *, seed, epoch, step):
        steps.append(share)
        return student_writes(share, seed=seed, epoch=epoch, step=step)

    def noted_loss(student, teacher, batch, entry, window, scales, **options):
        loss, terms = distillation_loss(student, teacher, batch, entry, window, scales, **options)
        kl = teacher and targets_kl(student, teacher, batch, window)
        losses.append((loss.item(), 0.5 * terms["forward"].item() + 0.5 * kl))
        return loss, terms

    monkeypatch.setattr(update, "student_writes", noted_writes)
    monkeypatch.setattr(update, "distillation_loss", noted_loss)
    kd_main.main([*kd_flags(tiny_models[family], rotation_path, tmp_path / "out"), *shlex.split(named[1])])
    assert set(steps) == {0.3}
    assert len(losses) == len(steps) == 10
    assert all(ours == pytest.approx(expected, rel=1e-4) for ours, expected in losses)


def targets_kl(student, teacher, batch, window) -> float:
    """KL at temperature 2 times 4, written out."""
    log_q, log_p = ((states.logits.logits / 2).log_softmax(-1) for states in (student, teacher))
    rows = 4 * (log_p.exp() * (log_p - log_q)).sum(-1)
    means = [part.mean() for part in rows.split((batch.labels != -100).sum(1).tolist())]
    return sum(means).item() / window.targets


@pytest.mark.parametrize("script", ARGUMENTS)
def test_every_flag_stands_in_a_table_with_its_default_and_sentence(script):
    documented = {}
    for name, default, sentence in FLAG_LINES:
        documented.setdefault(name, []).append((default.strip("`").strip('"'), sentence))
    for each in fields(ARGUMENTS[script]):
        default = "required" if each.default is REQUIRED else str(each.default)
        default = " ".join(map(str, each.default)) if isinstance(each.default, tuple) else default
        sentence = each.metadata["sentence"]
        lines = documented.get(each.name, [])
        assert any(default == written and text.startswith(sentence) for written, text in lines), (each.name, lines)


def test_no_table_names_a_flag_that_is_gone():
    known = {each.name for arguments_class in ARGUMENTS.values() for each in fields(arguments_class)}
    assert {name for name, _, _ in FLAG_LINES} <= known


def file_map() -> str:
    return CONTRIBUTING.split("## File map", 1)[1].split("```")[1]


def test_the_file_map_names_what_is_there():
    named = re.findall(r"(?<![*\w])\w[\w/]*\.(?:py|sh|md)\b", file_map())
    assert len(named) >= 15
    for name in named:
        places = ("", "src", "workflow", "benchmarks", "tests", "docs")
        assert any((REPOSITORY / place / name).exists() for place in places), name


@pytest.mark.parametrize("room", sorted(path.name for path in (REPOSITORY / "src").iterdir() if path.is_dir()))
def test_the_file_map_names_every_file_of_a_room(room):
    if room == "__pycache__":
        return
    entry = re.search(rf"^  {room}/ (.*?)(?=^  \S|^\S)", file_map(), re.MULTILINE | re.DOTALL)
    assert entry is not None
    words = set(re.findall(r"\w+", entry[1]))
    files = {path.stem for path in (REPOSITORY / "src" / room).iterdir()} - {"__init__", "__pycache__"}
    assert files <= words, files - words


@pytest.mark.parametrize(("script", "page"), [("make_flags", "flags.md"), ("make_pipeline", "pipeline.svg")])
def test_pages_that_are_made_are_current(script, page):
    made = runpy.run_path(str(REPOSITORY / "docs" / f"{script}.py"))
    text = (made.get("page") or made["drawing"])()
    assert (REPOSITORY / "docs" / page).read_text(encoding="utf-8") == text, f"run python docs/{script}.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", PAGES[page]):
        assert "://" in target or (folder / target).exists(), target


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_stands_in_the_docs_with_its_paper(name):
    row = next(line for line in OBJECTIVES.splitlines() if line.startswith(f"| `{name}_weight` |"))
    assert DIVERGENCES[name].paper in row


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200
