"""Which runs are found, which are one method, and which role each has."""

import pytest
from made_runs import FINE_TUNED_TEXTS, REFERENCES, STUDENT_TEXTS, TEACHER_TEXTS, write_run, write_study

from src.config.errors import UserError
from src.reports.collect import collect
from src.reports.methods import (
    BASELINE,
    OTHER,
    STUDENT,
    TEACHER,
    assign_roles,
    differing_flags,
    group_by_method,
    set_labels,
)
from src.storage.locks import FolderLock


def methods_in(*folders):
    methods = group_by_method(collect(folders).compared)
    assign_roles(methods)
    set_labels(methods)
    return sorted(methods, key=lambda each: each.number)


def test_roles_of_a_study(tmp_path):
    teacher, baseline, *students = methods_in(write_study(tmp_path))
    assert [each.role for each in (teacher, baseline, *students)] == [TEACHER, BASELINE, STUDENT, STUDENT]
    assert [each.seed for each in students[0].runs] == [1, 2]
    assert all((each.teacher, each.baseline) == (teacher, baseline) for each in students)
    assert students[1].value("dataset_path") == str(tmp_path / "s{seed}" / "merged.json")


def test_a_study_that_was_moved(tmp_path):
    """Flags name the folders where the runs were."""
    write_study(tmp_path / "former").rename(tmp_path / "now")
    assert [each.role for each in methods_in(tmp_path / "now")] == [TEACHER, BASELINE, STUDENT, STUDENT]


@pytest.mark.parametrize(
    ("first", "second", "are_same"),
    [
        ({"seed": 1}, {"seed": 2}, True),
        ({"seed": 1}, {"seed": 2, "resume": False, "output_dir": "elsewhere"}, True),
        ({"seed": 1}, {"seed": 2, "epochs": 3}, False),
        ({"seed": 1}, {"seed": 2, "warmup_steps": None}, True),  # a flag that an older run.json lacks
        ({"seed": 1, "dataset_path": "7k/s1.json"}, {"seed": 7, "dataset_path": "7k/s7.json"}, True),
        ({"seed": 1, "dataset_path": "7k/s1.json"}, {"seed": 7, "dataset_path": "7k/s8.json"}, False),
        ({"seed": 1, "dataset_path": "a.json"}, {"seed": 2, "dataset_path": "b.json"}, False),
        ({"seed": 1, "data": {"dataset_path": "abc"}}, {"seed": 2, "data": {"dataset_path": "def"}}, False),
        ({"seed": 1, "data": {}}, {"seed": 2, "data": {"dataset_path": "def"}}, True),
    ],
)
def test_same_method(tmp_path, first, second, are_same):
    for name, flags in (("a", first), ("b", second)):
        write_run(tmp_path / name, "ft_main.py", STUDENT_TEXTS, **flags)
    assert (len(methods_in(tmp_path)) == 1) is are_same


def test_a_seed_that_is_there_twice(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "ft_main.py", STUDENT_TEXTS)
    (method,) = methods_in(tmp_path)
    assert (len(method.runs), [run.folder.name for run in method.repeated]) == (1, ["b"])


def test_a_teacher_that_was_only_scored_on_the_students_test(tmp_path):
    write_run(tmp_path / "teacher", "ft_main.py", TEACHER_TEXTS[:2], references=REFERENCES[:2], model_name="big")
    model = str(tmp_path / "teacher" / "model")
    write_run(tmp_path / "scored", "ft_main.py", TEACHER_TEXTS, model_name=model, do_train=False)
    write_run(tmp_path / "zero_shot", "ft_main.py", FINE_TUNED_TEXTS, model_name="big", do_train=False)
    write_run(tmp_path / "kd", "kd_main.py", STUDENT_TEXTS, teacher_name=model, experiment_config_key="k")
    runs = [run for run in collect([tmp_path]).compared if len(run.references) == 6]
    methods = group_by_method(runs)
    assign_roles(methods)
    assert {each.first.folder.name: each.role for each in methods} == {
        "scored": TEACHER, "zero_shot": OTHER, "kd": STUDENT
    }  # fmt: skip


def test_a_teacher_given_as_a_checkpoint(tmp_path):
    write_run(tmp_path / "t", "ft_main.py", TEACHER_TEXTS, model_name="big")
    state = str(tmp_path / "t" / "epoch1__step2__score3__model.pt")
    flags = {"teacher_name": "big", "teacher_state_dict_path": state, "experiment_config_key": "k"}
    write_run(tmp_path / "kd", "kd_main.py", STUDENT_TEXTS, **flags)
    assert [each.role for each in methods_in(tmp_path)] == [TEACHER, STUDENT]


def test_stored_log_probabilities_have_the_only_teacher(tmp_path):
    write_study(tmp_path, seeds=(1,))
    flags = {"student_name": "small", "experiment_config_key": "logits_kd"}
    write_run(tmp_path / "stored", "kd_dataset_with_logits_main.py", STUDENT_TEXTS, **flags)
    methods = methods_in(tmp_path)
    assert [each.teacher for each in methods if each.role == STUDENT] == [methods[0]] * 3


def test_the_fine_tuned_student_with_the_best_dev_score_is_the_baseline(tmp_path):
    write_study(tmp_path, seeds=(1,))
    write_run(tmp_path / "better", "ft_main.py", STUDENT_TEXTS, model_name="small", learning_rate=0.1)
    scores = (tmp_path / "better" / "eval_scores.csv").read_text().replace("20.0", "90.0")
    (tmp_path / "better" / "eval_scores.csv").write_text(scores)
    roles = {each.first.folder.name: each.role for each in methods_in(tmp_path)}
    assert (roles["better"], roles["ft"]) == (BASELINE, OTHER)


def test_labels_say_what_differs(tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.2)):
        write_run(tmp_path / name, "kd_main.py", STUDENT_TEXTS, experiment_config_key="k", learning_rate=rate)
    write_run(tmp_path / "c", "kd_main.py", STUDENT_TEXTS, experiment_config_key="other")
    methods = methods_in(tmp_path)
    assert [each.label for each in methods] == ["k, learning_rate 0.1", "k, learning_rate 0.2", "other"]
    assert differing_flags(methods) == {
        "learning_rate": [0.1, 0.2, 1e-5], "experiment_config_key": ["k", "k", "other"]
    }  # fmt: skip


@pytest.mark.parametrize(("off", "differs"), [(False, False), ("", False), (0, True), (True, True)])
def test_a_flag_that_is_off_in_both_does_not_differ(tmp_path, off, differs):
    """Not given to one script is None, to another False or an empty text."""
    write_run(tmp_path / "a", "ft_main.py", STUDENT_TEXTS, chat_template=None, epochs=1)
    write_run(tmp_path / "b", "ft_main.py", STUDENT_TEXTS, chat_template=off, epochs=2)
    assert ("chat_template" in differing_flags(methods_in(tmp_path))) is differs


def test_unfinished_runs_are_kept_apart(tmp_path):
    write_study(tmp_path, seeds=(1,))
    write_run(tmp_path / "failed", "kd_main.py", None, status="unfinished", stopped="no space left", scores={})
    write_run(tmp_path / "at_work", "kd_main.py", None, status="unfinished", scores={})
    write_run(tmp_path / "gen", "gen_main.py", None, scores={})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    lock = FolderLock(tmp_path / "at_work")
    lock.acquire()
    found = collect([tmp_path, tmp_path / "gen"])
    assert {run.folder.name: run.status for run in found.unfinished} == {
        "failed": "unfinished: no space left", "at_work": "running"
    }  # fmt: skip
    lock.release()
    assert len(found.compared) == 4
    assert [run.folder.name for run in found.others] == ["gen"]
    assert "run.json: not JSON" in found.unreadable[tmp_path / "broken"]


@pytest.mark.parametrize(("name", "message"), [("nowhere", "nowhere: is no folder"), (".", "holds a run")])
def test_folders_without_runs(tmp_path, name, message):
    with pytest.raises(UserError, match=f"^OUTPUT_DIRS: .*{message}"):
        collect([tmp_path / name])


def test_a_dataset_of_its_own_is_all_that_is_said(tmp_path):
    """Pseudo-targets of two kinds, trained on for different numbers of epochs: the dataset file names the kind."""
    for name, epochs in (("beam", 8), ("beam_labeled", 24)):
        path = str(tmp_path / f"{name}.json")
        write_run(
            tmp_path / name, "kd_main.py", STUDENT_TEXTS, experiment_config_key="k", epochs=epochs, dataset_path=path
        )
    assert [each.label for each in methods_in(tmp_path)] == ["k, beam", "k, beam_labeled"]
