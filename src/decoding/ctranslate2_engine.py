"""Generate with CTranslate2: convert a model, cache the conversion, and check it before use.

Shapes: B inputs, S source tokens, K targets per input, L new tokens.
"""

import copy
import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.console import say
from src.config.errors import UserError
from src.decoding.sampling_support import unknown_fields
from src.decoding.settings import Decoding
from src.devices import processes
from src.models.folders import write_model_folder
from src.storage.atomic import atomic_folder
from src.storage.json_files import read_json
from src.tokens.batch import Batch, pad_sequences

if TYPE_CHECKING:
    import ctranslate2

PACKAGE = "ctranslate2"
COMPUTE_TYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by --mixed_precision
PROBE_TOKENS = 8
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}  # of a token's log-probability, in nats


def is_installed() -> bool:
    return find_spec(PACKAGE) is not None


class CTranslate2Engine:
    """A converted model that generates what `write_tokens` does.

    The constructor raises UserError for a model that cannot be converted, or whose conversion computes other
    probabilities. Sampling is reproducible: torch's seed chooses a generator for every batch.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mixed_precision: str) -> None:
        import ctranslate2

        self._package = ctranslate2
        self._model, self._tokenizer = model, tokenizer
        self._is_encoder_decoder = model.config.is_encoder_decoder
        self._compute_type = COMPUTE_TYPES[mixed_precision]
        check_settings(model)
        processes.from_main(lambda: converted(model, tokenizer))  # of several processes one converts
        self._folder = converted(model, tokenizer)
        self._source_names, self._target_names = _vocabularies(self._folder)
        self._id_of = {name: i for i, name in enumerate(self._target_names)}
        self._translator = self._loaded()
        self._check_agreement()

    def _loaded(self) -> "ctranslate2.Translator | ctranslate2.Generator":
        kind = self._package.Translator if self._is_encoder_decoder else self._package.Generator
        device = self._model.device
        place = {"device_index": device.index or 0} if device.type == "cuda" else {}
        name = "cuda" if device.type == "cuda" else "cpu"
        threads = torch.get_num_threads()
        return kind(str(self._folder), device=name, compute_type=self._compute_type, intra_threads=threads, **place)

    def write(self, batch: Batch, decoding: Decoding) -> Tensor:
        """Generate (B * K, L) new tokens, the K targets of one input adjacent; the pad token after EOS."""
        read = zip(batch.input_ids.cpu(), batch.attention_mask.cpu().bool(), strict=True)
        sources = [_named(self._source_names, row[mask].tolist()) for row, mask in read]
        arguments = self._arguments(decoding)
        if decoding.nucleus is not None:  # a seed applies only to threads started after it
            self._package.set_random_seed(int(torch.randint(2**31, ())))
            self._translator = self._loaded()
        if self._is_encoder_decoder:
            results = self._translator.translate_batch(sources, **arguments)
            rows = [[self._id_of[name] for name in names] for result in results for names in result.hypotheses]
        else:
            results = self._translator.generate_batch(sources, include_prompt_in_result=False, **arguments)
            rows = [ids for result in results for ids in result.sequences_ids]
        forced = [np.asarray(self._forced(row, decoding.max_new_tokens), dtype=np.int64) for row in rows]
        padded, _ = pad_sequences(forced, self._model.generation_config.pad_token_id or 0, on_the_left=False)
        return padded.to(self._model.device)

    def _arguments(self, decoding: Decoding) -> dict[str, Any]:
        ids = self._model.generation_config
        arguments: dict[str, Any] = {
            "beam_size": decoding.num_beams,
            "num_hypotheses": decoding.targets_per_input,
            "suppress_sequences": [_named(self._target_names, [token]) for token in ids.suppress_tokens or ()],
            "return_end_token": True,
            "max_batch_size": 0,
        }
        eos = ids.eos_token_id
        if eos is not None:
            arguments["end_token"] = _named(self._target_names, [eos] if isinstance(eos, int) else eos)
        if decoding.nucleus is None:
            own = getattr(ids, "length_penalty", None)
            penalty = next(value for value in (decoding.length_penalty, own, 1.0) if value is not None)
            arguments["length_penalty"] = penalty if decoding.num_beams > 1 else 1.0
        else:
            nucleus = decoding.nucleus
            arguments |= {
                "sampling_topk": nucleus.top_k,
                "sampling_topp": nucleus.top_p,
                "sampling_temperature": nucleus.temperature,
            }
        shortest, longest = (
            ("min_decoding_length", "max_decoding_length") if self._is_encoder_decoder else ("min_length", "max_length")
        )
        return arguments | {shortest: 0, longest: decoding.max_new_tokens}

    def _forced(self, row: list[int], length: int) -> list[int]:
        """A row that was cut off ends with the forced EOS, as in `generate`."""
        forced = self._model.generation_config.forced_eos_token_id
        return [*row[: length - 1], forced] if forced is not None and len(row) == length else row

    def _check_agreement(self) -> None:
        """Raise UserError if the log-probabilities of a made-up target are not the model's own."""
        known = torch.tensor(sorted(set(self._tokenizer.get_vocab().values()) - set(self._tokenizer.all_special_ids)))
        drawn = known[torch.linspace(0, len(known) - 1, 2 * PROBE_TOKENS).long()]
        source, target = drawn[:PROBE_TOKENS], drawn[PROBE_TOKENS:]
        ours, theirs = self._log_probabilities(source, target), self._converted_log_probabilities(source, target)
        distance = float((ours - theirs).abs().max()) if len(ours) == len(theirs) else float("inf")
        if not distance <= TOLERANCE[self._compute_type]:
            raise UserError(
                f"--generation_engine ctranslate2: the converted model is not the model ({self._compute_type}: a "
                f"token's log-probability differs by {distance:.3g}); use hf"
            )

    @torch.no_grad()
    def _log_probabilities(self, source: Tensor, target: Tensor) -> Tensor:
        """(L,) of the target's tokens; for a decoder-only model, of source and target without the first token."""
        model, device = self._model, self._model.device
        if self._is_encoder_decoder:
            start = torch.tensor([model.config.decoder_start_token_id])
            read = torch.cat([start, target[:-1]])[None].to(device)
            logits = model(input_ids=source[None].to(device), decoder_input_ids=read).logits[0]
        else:
            target = torch.cat([source, target])
            logits = model(input_ids=target[None].to(device)).logits[0, :-1]
            target = target[1:]
        return logits.float().log_softmax(-1).cpu().gather(1, target[:, None])[:, 0]

    def _converted_log_probabilities(self, source: Tensor, target: Tensor) -> Tensor:
        source_names = _named(self._source_names, source.tolist())
        target_names = _named(self._target_names, target.tolist())
        if self._is_encoder_decoder:
            (result,) = self._translator.score_batch([source_names], [target_names])
            return torch.tensor(result.log_probs[: len(target)])  # EOS is scored too
        (result,) = self._translator.score_batch([source_names + target_names])
        return torch.tensor(result.log_probs)


def check_settings(model: PreTrainedModel) -> None:
    """Raise UserError for quantized weights, or if the generation config sets a field that CTranslate2 lacks."""
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError("--generation_engine ctranslate2: does not convert quantized weights; use hf")
    ids = model.generation_config
    fields = unknown_fields(ids) + [
        name for name in ("forced_bos_token_id", "bad_words_ids") if getattr(ids, name) not in (None, [])
    ]
    if fields:
        raise UserError(f"--generation_engine ctranslate2: the model's generation config sets {' '.join(fields)}")


def is_converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the converted model is in the user's cache."""
    return (_folder(model, tokenizer) / "model.bin").is_file()


def converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of the converted model in the user's cache; converts the model if it is not there yet.

    Raises UserError for a model that CTranslate2 does not support.
    """
    import ctranslate2

    folder = _folder(model, tokenizer)
    if (folder / "model.bin").is_file():
        return folder
    say(f"converting the model for CTranslate2: {folder}")
    model, tokenizer = copy.copy(model), copy.deepcopy(tokenizer)
    model.config = copy.deepcopy(model.config)
    model.config.normalize_before = getattr(model.config, "normalize_before", False)  # of BART; not in its config
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token  # the converter requires one and does not use it
    with tempfile.TemporaryDirectory() as temporary, atomic_folder(folder) as building:
        source = write_model_folder(Path(temporary) / "model", model, tokenizer, "")
        try:
            ctranslate2.converters.TransformersConverter(str(source)).convert(str(building), force=True)
        except (ValueError, AttributeError, NotImplementedError, KeyError) as error:
            raise UserError(
                f"--generation_engine ctranslate2: cannot convert a {model.config.model_type}: {error}"
            ) from None
    return folder


def _vocabularies(folder: Path) -> tuple[list[str], list[str]]:
    """The token names of a converted model, source and target, including those that only pad the vocabulary."""
    shared = [name for name in ("shared_vocabulary.json", "vocabulary.json") if (folder / name).is_file()]
    names = shared * 2 or ["source_vocabulary.json", "target_vocabulary.json"]
    source, target = (read_json(folder / name) for name in names[:2])
    return source, target


def _named(vocabulary: list[str], tokens: list[int]) -> list[str]:
    return [vocabulary[token] for token in tokens]


def _folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder in the user's cache, named by a hash of all that a conversion depends on: version, config, vocabulary
    and weights."""
    digest = hashlib.sha256(f"{version(PACKAGE)} {model.config.to_json_string()}".encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kd4gen" / PACKAGE / digest.hexdigest()[:32]
