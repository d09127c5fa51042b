"""A loaded model that generates K targets for each input of a batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.constants import TEXT
from src.config.errors import NotFiniteError, UserError
from src.config.flags.generate import WritingArguments
from src.data.schema import Datasets, some_texts
from src.decoding.checks import check_decoding
from src.decoding.generate import write_tokens
from src.decoding.settings import Decoding
from src.devices.accelerator import Accelerator, make_accelerator
from src.models.checks_before_loading import check_lengths, check_model_files
from src.models.folders import warn_if_prompt_differs
from src.models.generation_config import apply_settings, fit_to_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.models.multilingual import set_languages
from src.tokens.batch import Batch
from src.tokens.chat_preprocessing import preprocessor_of
from src.tokens.preprocessing import Preprocessor
from src.tokens.unknown_characters import check_characters_known


@dataclass(frozen=True)
class TargetGenerator:
    """A model in eval mode on its device, its tokenizer and the decoding settings."""

    accelerator: Accelerator
    preprocessor: Preprocessor
    model: PreTrainedModel
    decoding: Decoding

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.preprocessor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def generate(self, batch: Batch, k: int) -> Tensor:
        """(B * K, L) tokens as `write_tokens` returns them; the batch must be on the device.

        Raises UserError if the model computes NaN or infinity.
        """
        try:
            with self.accelerator.autocast():
                return write_tokens(self.model, batch, replace(self.decoding, targets_per_input=k))
        except NotFiniteError as error:
            raise UserError(f"{self.model.config._name_or_path}: {error}; try --mixed_precision no") from None


def load_generator(config: WritingArguments, decoding: Decoding, datasets: Datasets) -> TargetGenerator:
    """Check --model_name against the flags and the inputs in `datasets`, then load it.

    Raises UserError for what is wrong with the model's files, flags or data; before weights are read where possible.
    """
    check_model_files(config.model_name, state_dict_path=config.checkpoint_path)
    check_lengths(config.model_name, config)
    warn_if_prompt_differs(config, config.model_name, "model_name")
    accelerator = make_accelerator(config)
    tokenizer = load_tokenizer(config.model_name, some_texts(datasets))
    set_languages(tokenizer, config.model_name, config.source_language, config.target_language)
    kind = is_encoder_decoder(load_config(config.model_name))
    preprocessor = preprocessor_of(config, tokenizer, datasets, is_encoder_decoder=kind)
    inputs = {split: {TEXT: columns[TEXT]} for split, columns in datasets.items()}
    check_characters_known(preprocessor, inputs, config.dataset_path)
    model = load_model(config.model_name, state_dict_path=config.checkpoint_path)
    fit_to_tokenizer(model, tokenizer, preprocessor.end)
    apply_settings(model, config.model_name, config)
    check_decoding(model, config.model_name, config, decoding)
    return TargetGenerator(accelerator, preprocessor, model.to(accelerator.device), decoding)
