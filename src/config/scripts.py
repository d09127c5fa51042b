"""The arguments of every script of the suite, and which scripts have a flag."""

from dataclasses import fields

from src.config.flags.base import Arguments
from src.config.flags.create_student import CreateStudentArguments
from src.config.flags.generate import GenerateArguments, SimulateApiArguments
from src.config.flags.prepare import PrepareArguments
from src.config.flags.profile import ProfileArguments
from src.config.flags.report import CompareArguments, ReportArguments
from src.config.flags.study import StudyArguments
from src.config.flags.train import DistillArguments, DistillStoredArguments, FineTuneArguments

ARGUMENTS: dict[str, type[Arguments]] = {  # by the name of the script's file
    each.script: each
    for each in (
        PrepareArguments,
        CreateStudentArguments,
        FineTuneArguments,
        GenerateArguments,
        SimulateApiArguments,
        DistillArguments,
        DistillStoredArguments,
        ProfileArguments,
        StudyArguments,
        CompareArguments,
        ReportArguments,
    )
}


def flag_names(script: str) -> list[str]:
    """The names of a script's flags."""
    return [each.name for each in fields(ARGUMENTS[script])]


def scripts_with(flag: str) -> list[str]:
    """The scripts that have a flag."""
    return [script for script in ARGUMENTS if flag in flag_names(script)]
