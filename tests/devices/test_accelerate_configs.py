"""The ready configurations of accelerate: it reads them, and the docs say how each is used."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from src.config.flags.base import REPOSITORY

CONFIGS = sorted((REPOSITORY / "arg_configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_the_docs_name_it(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"one_gpu": 1, "ddp": 8, "fsdp": 8, "two_machines": 16}[path.stem]
    assert config.mixed_precision is None  # the scripts' own flag decides
    assert f"arg_configs/accelerate/{path.name}" in (REPOSITORY / "docs" / "scale.md").read_text()
