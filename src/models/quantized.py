"""Quantized models: GGUF files, and folders whose config.json names a method (bitsandbytes, AWQ, GPTQ, …).

A GGUF file is read into plain float weights. The weights of a folder stay quantized, as its package computes with them.
"""

import copy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.models.library_errors import in_one_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GGUF = "gguf"
PACKAGES = {  # that transformers needs, by method; of other methods it says itself what is missing
    GGUF: ("gguf",),
    "bitsandbytes": ("bitsandbytes",),
    "awq": ("gptqmodel",),
    "gptq": ("optimum", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors",),
}


def method_of(config: "PreTrainedConfig", base: str) -> str | None:
    """How a model is quantized; None if it is not."""
    if is_gguf(base):
        return GGUF
    settings: Any = getattr(config, "quantization_config", None)
    return None if settings is None else str(dict(settings).get("quant_method", "bitsandbytes"))


def check_packages(method: str | None, base: str) -> None:
    """Raise UserError if a package that a quantization method needs is missing."""
    missing = [package for package in PACKAGES.get(method or "", ()) if find_spec(package) is None]
    if missing:
        raise UserError(
            f"{base}: is quantized ({method}) and needs the package {missing[0]}; run pip install {' '.join(missing)}"
        )


def refuse_quantized(config: "PreTrainedConfig", base: str, *, training: bool) -> None:
    """Raise UserError for quantized weights, which are neither trained nor saved; a GGUF file can be scored."""
    method = method_of(config, base)
    if method is not None and (training or method != GGUF):
        raise UserError(
            f"{base}: is quantized ({method}), so it can teach and generate but not be trained; "
            "create_student_main.py --from_model makes a folder of it that can"
        )


def is_gguf(base: str) -> bool:
    return Path(base).suffix == f".{GGUF}" and Path(base).is_file()


def read_by(auto_class: Any, source: str) -> Any:
    """The config or tokenizer that a class of transformers reads from a folder, a hub name or a GGUF file."""
    if is_gguf(source):
        return copy.deepcopy(_read_gguf(auto_class, source, Path(source).stat().st_mtime_ns))
    return auto_class.from_pretrained(source, trust_remote_code=False)


@lru_cache(maxsize=8)
def _read_gguf(auto_class: Any, file: str, _changed: int) -> Any:
    """Read a file only once: it takes seconds, with a tokenizer's list of tokens."""
    path = Path(file)
    return auto_class.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)


def weights_of(source: str | None) -> tuple[str | None, dict[str, Any]]:
    """The arguments of `from_pretrained` for a folder, a hub name or a GGUF file, whose weights become floats."""
    if source is None or not is_gguf(source):
        return source, {}
    import transformers

    kind = getattr(transformers, "GgufConfig", None)  # None in older versions, which always give floats
    how = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    return str(Path(source).parent), {"gguf_file": Path(source).name, **how}


def forget_quantization(model: "PreTrainedModel") -> None:
    """Make a model whose weights are floats now one that trains and is saved like any other."""
    model.hf_quantizer, model.is_quantized = None, False  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def dequantized(model: "PreTrainedModel", name: str) -> "PreTrainedModel":
    """The model with float weights. Raises UserError for a method that cannot give them."""
    if getattr(model, "hf_quantizer", None) is None:
        return model
    with quiet(), in_one_line(name, "cannot be dequantized"):
        return model.dequantize().cpu().float()
