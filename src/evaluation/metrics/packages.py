"""What a metric lacks on this machine, said in one phrase."""

from importlib.util import find_spec


def missing_packages(**pip_names: str) -> str | None:
    """None when every module can be imported, else what is missing and how to get it.

    `pip_names` maps a module to the package that holds it; nothing is imported.
    """
    absent = [pip_name for module, pip_name in pip_names.items() if find_spec(module) is None]
    if not absent:
        return None
    return f"package {' and '.join(absent)} is not installed (pip install {' '.join(absent)})"
