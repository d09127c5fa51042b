"""Sizes of models, read from the headers of their files."""

from pathlib import Path

import pytest

from src.config.errors import UserError
from src.models.loading import load_model
from src.reports.sizes import count_parameters


def test_weights_are_counted_without_being_read(tiny_models, tmp_path):
    folder = tiny_models["gpt2"]["student"]
    assert count_parameters(Path(folder)) == sum(each.numel() for each in load_model(folder).parameters())
    assert count_parameters(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b'\7\0\0\0\0\0\0\0{"a":1}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/model.safetensors: not a safetensors file: "):
        count_parameters(tmp_path)
