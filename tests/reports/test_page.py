"""The scripts' output: tables, the page in a real browser, figures, examples, and how runs were made."""

import csv
import json
import re
import shutil
import sys
from xml.etree import ElementTree

import pytest
from made_runs import REFERENCES, STUDENT_TEXTS, TEACHER_TEXTS, write_run, write_study

import compare_main
import report_main
from src.config.errors import UserError
from src.data.writers import fingerprint
from src.reports.collect import collect
from src.reports.comparison import build_comparisons
from src.reports.examples import examples_of, marked
from src.reports.plots import MOST_LINES, gap_figure
from src.reports.provenance import command_of, duration
from src.reports.sources import count_pseudo_targets, read_sources
from src.reports.statistics import Bootstrap
from src.reports.svg import standalone, svg_figure
from src.reports.tables import Cell, Table

HOSTILE = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\"> & $\\frac{"
HEBREW = "שלום לכולם, זה טקסט מימין לשמאל"


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path / "runs")


def report(folder, *flags):
    page = folder.parent / "report.html"
    report_main.main([str(folder), "--output_file", str(page), *flags])
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on a comparison with hostile texts and names, written once."""
    folder = write_study(tmp_path_factory.mktemp("page") / "runs & <b>more</b>", seeds=(1,))
    texts = [HOSTILE, "x" * 10_000, HEBREW, *STUDENT_TEXTS[3:]]
    flags = {
        "student_name": "small",
        "teacher_name": str(folder / "teacher" / "model"),
        "experiment_config_key": "<i>$_{k",
    }
    write_run(folder / "hostile", "kd_main.py", texts, warnings=[HOSTILE], seconds=3725.0, **flags)
    return report(folder, "--picture", str(folder.parent / "gap.svg"))


# ------------------------------------------------------------------------------------------------------------- compare


def test_compare(comparison, capsys):
    write_run(comparison / "failed", "kd_main.py", None, status="unfinished", stopped="no space", scores={})
    text = compare_main.main([str(comparison)])
    assert capsys.readouterr().out == text + "\n"
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    assert ["#", "method", "seeds", "pseudo-targets", "sacrebleu", "chrf", "nll"] in lines
    assert [line[-1] for line in lines if line[:2] == ["2", "fine-tuned student"]][0] == "2.015 ± 0.007"
    assert any(line[0] == "--dataset_path" for line in lines)
    assert [str(comparison / "failed"), "kd_main.py", "unfinished: no space"] in lines
    assert "Best student on test: method 4, logits_kd, " in text


def test_tables():
    table = Table("t", ["#", "a|b"], [[Cell("1", 1), Cell("x|\\y\nz")]])
    assert table.as_markdown().splitlines()[-1] == "| 1   | x\\|\\\\y z |"
    assert table.as_text().splitlines()[0].split() == ["#", "a|b"]


# ---------------------------------------------------------------------------------------------------------------- page


def test_the_page_is_self_contained(page):
    html = page.read_text(encoding="utf-8")
    urls = set(re.findall(r"https?://[^\s\"'<>]+", html)) - {"http://www.w3.org/2000/svg"}
    assert urls == set()
    assert not re.findall(r"<(?:link|img|iframe)|<script src|@import|url\((?!#)", html)
    picture = page.with_name("gap.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in picture


def test_the_tables_beside_the_page(page):
    rows = list(csv.DictReader(page.with_suffix(".csv").open(encoding="utf-8")))
    (row,) = [row for row in rows if (row["method"], row["score"]) == ("fine-tuned student", "nll")]
    assert (float(row["mean"]), row["seeds"], row["gap_closed"]) == (2.01, "1", "")
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert re.search(r"^\| 2 +\| fine-tuned student +\| +1 \|", markdown, flags=re.MULTILINE)
    assert "### Flags that differ, by method" in markdown


def test_equal_figures_are_equal_texts(comparison):
    (found,) = build_comparisons(collect([comparison]).compared, [], score=None, bootstrap=Bootstrap(1))
    assert gap_figure(found) == gap_figure(found)


def test_speed_and_memory_of_a_profile(comparison):
    record = {"model_name": str(comparison / "s1" / "kd_pt" / "model"), "device": "cpu"}
    measured = {"latency_ms_median": 7.5, "peak_memory_mb": 100, "sentences_per_second": 10}
    records = [
        record | {"batch_size": size} | {name: value * size for name, value in measured.items()} for size in (8, 1)
    ]
    (comparison / "profile.json").write_text(json.dumps(records))
    text = compare_main.main([str(comparison)])
    (line,) = [line.split() for line in text.splitlines() if "250" in line and line.startswith("4")]
    assert line[-4:] == ["250", "7.5", "100", "80.0"]
    (comparison / "profile.json").write_text("{}")
    with pytest.raises(UserError, match="profile.json: expected a list of objects with 'model_name'"):
        compare_main.main([str(comparison)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--score", "bleu"], "--score bleu: no run has this score; nearest: 'sacrebleu' of chrf nll sacrebleu"),
        (["--output_file", "a.htm"], "--output_file a.htm: must end in .html"),
        (["--picture", "a.png"], "--picture a.png: must end in .svg"),
    ],
)
def test_wrong_flags(comparison, flags, message):
    with pytest.raises(UserError, match=message):
        report(comparison, *flags)
    assert not (comparison.parent / "report.html").exists()


def test_a_picture_without_gap(tmp_path):
    write_run(tmp_path / "a", "ft_main.py", STUDENT_TEXTS)
    with pytest.raises(UserError, match="--picture .*: no method has a gap"):
        report(tmp_path / "a", "--picture", "x.svg")


def test_without_matplotlib(comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("src.report.find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib; run pip install -r requirements-comparison.txt"):
        report(comparison)


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_in_a_browser(page, browser):
    """No errors in the console; tables sort, search filters; hostile texts are shown as text."""
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.get(page.as_uri())
    assert browser.title == "Report: data.json"
    boxes = browser.execute_script("return [...document.querySelectorAll('.example dd')].map(box => box.textContent)")
    assert {HOSTILE, "x" * 10_000, HEBREW} <= set(boxes)
    (direction,) = browser.execute_script(
        "return [...document.querySelectorAll('dd')].filter(box => box.textContent === arguments[0])"
        ".map(box => getComputedStyle(box).direction)",
        HEBREW,
    )
    assert direction == "rtl"
    assert "1 h 2 min" in browser.page_source
    column = "return [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[6].textContent)"
    for _ in range(2):
        browser.execute_script("document.querySelector('table').tHead.rows[0].cells[6].querySelector('button').click()")
    assert browser.execute_script(column)[0] == "2.010"
    search = (
        "const field = document.querySelector('input[type=search]'); field.value = arguments[0];"
        "field.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('.example')].filter(example => example.offsetParent !== null).length"
    )
    assert browser.execute_script(search, HEBREW[:8]) == 1
    assert browser.execute_script(search, "") == 6
    width = "return [document.documentElement.scrollWidth, innerWidth]"
    browser.set_window_size(500, 900)
    inner, outer = browser.execute_script(width)
    assert inner <= outer
    assert browser.get_log("browser") == []


# ------------------------------------------------------------------------------------------------------------ its parts


@pytest.mark.parametrize(
    ("text", "other", "pieces"),
    [
        ("a red cat", "a blue cat", [("a ", False), ("red", True), (" cat", False)]),
        ("same text", "same text", [("same text", False)]),
        ("", "a b", []),
        ("红猫", "蓝猫", [("红", True), ("猫", False)]),
        ("a " * 2_000, "b " * 2_000, [("a " * 2_000, False)]),  # too long for marks
    ],
)
def test_marks(text, other, pieces):
    assert marked(text, other) == pieces


def test_examples_begin_with_the_largest_difference(comparison):
    (found,) = build_comparisons(collect([comparison]).compared, [], score=None, bootstrap=Bootstrap(1))
    examples, note = examples_of(found, 2, Bootstrap(1))
    assert len(examples) == 2
    assert examples[0].difference == max(each.difference for each in examples_of(found, 6, Bootstrap(1))[0])
    assert (examples[0].source, note[:9]) == (None, "2 of 6 ro")
    assert "The inputs are not shown: data.json: is not on this machine any more" in note
    shutil.copy(comparison / "data.json", "data.json")
    examples, note = examples_of(found, 2, Bootstrap(1))
    assert examples[0].source == f"input {examples[0].row}"
    assert "inputs" not in note


def test_sources_of_other_data_are_not_shown(comparison):
    runs = collect([comparison]).compared
    (comparison.parent / "data.json").write_text(json.dumps({"test": {"text": ["a"] * 6, "target": REFERENCES[::-1]}}))
    sources, reason = read_sources(runs[:1])
    assert sources is None
    assert "data.json: its test split is not the one that was scored" in reason
    (comparison.parent / "data.json").write_text(json.dumps({"test": {"q": ["a"] * 6, "target": REFERENCES}}))
    runs[0].flags["text_column"] = "q"
    assert read_sources(runs[:1]) == (["a"] * 6, "")


def test_pseudo_targets_are_counted_in_the_data_of_the_run(tmp_path):
    path = tmp_path / "merged.json"
    path.write_text(json.dumps({"train_0": {}, "train_1": {}, "test": {"text": []}}))
    data = {"dataset_path": fingerprint(path)}
    write_run(tmp_path / "a", "kd_main.py", STUDENT_TEXTS, dataset_path=str(path), data=data)
    (run,) = collect([tmp_path]).compared
    assert count_pseudo_targets(run) == 2
    run.records.description.data["dataset_path"] = "of other data"
    assert count_pseudo_targets(run) is None


def test_commands_and_times(tmp_path):
    write_run(tmp_path / "a", "ft_main.py", TEACHER_TEXTS, metrics=["rouge", "chrf"], batch_size=32, task_prompt="a b")
    (run,) = collect([tmp_path]).compared
    assert command_of(run) == (
        f"python ft_main.py --output_dir {tmp_path / 'a'} --dataset_path data.json "
        "--metric_for_best_model sacrebleu --metrics rouge chrf --task_prompt 'a b'"
    )
    assert [duration(seconds) for seconds in (None, 5.4, 65, 3725)] == ["", "0 min 5 s", "1 min 5 s", "1 h 2 min"]


def test_texts_in_figures_stay_as_they_are():
    with svg_figure('a <b> "c" 1.23456', 2, 2) as (figure, written):
        figure.text(0.1, 0.5, "rate 0.00012345 <b> $_{ ]]>")
    (svg,) = written
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a <b> "c" 1.23456'
    assert [text for text in root.itertext() if text.strip()] == ["rate 0.00012345 <b> $_{ ]]>"]
    assert ElementTree.fromstring(standalone(svg)).tag == root.tag


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"test__epoch-1__step-1": {"predictions": ["a"]}}', "expected as many predictions as references"),
        ('{"test__epoch-1__step-1": {"predictions": ["a"], "references": []}}', "expected as many predictions"),
        ('{"test__epoch-1__step-1": 1}', "expected as many predictions"),
        ("[1]", "eval_generations.json: expected an object of named values"),
        ("{", "not JSON: line 1, column 2: unexpected end"),
    ],
)
def test_damaged_predictions_are_told(comparison, content, message):
    (comparison / "s1" / "kd" / "eval_generations.json").write_text(content)
    text = compare_main.main([str(comparison)])
    assert "Folders that cannot be read" in text
    assert message in text


@pytest.mark.parametrize(
    ("name", "message"),
    [("runs/teacher/run.json/r.html", "run.json is a file"), ("folder.html", "folder.html is a folder")],
)
def test_places_that_cannot_be_written_are_told_first(comparison, monkeypatch, name, message):
    (comparison.parent / "folder.html").mkdir()
    monkeypatch.setattr("src.report.collect", lambda folders: pytest.fail("read too early"))
    with pytest.raises(UserError, match=f"--output_file .*{message}"):
        report_main.main([str(comparison), "--output_file", str(comparison.parent / name)])


def test_of_many_methods_the_figures_show_the_best(tmp_path):
    write_study(tmp_path, seeds=(1,))
    flags = {"student_name": "small", "teacher_name": str(tmp_path / "teacher" / "model"), "experiment_config_key": "k"}
    for i in range(MOST_LINES):
        write_run(tmp_path / f"m{i}", "kd_main.py", TEACHER_TEXTS, learning_rate=i / 8, **flags)
    (comparison,) = build_comparisons(collect([tmp_path]).compared, [], score=None, bootstrap=Bootstrap(1))
    assert len(comparison.students) == MOST_LINES + 2
    figure = gap_figure(comparison)
    assert [f"k, learning_rate {i / 8:g}" in figure for i in range(MOST_LINES)] == [True] * MOST_LINES
    assert "logits_kd" not in figure
