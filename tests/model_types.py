"""Tiny random models of every model type in transformers that generates text."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from src.models.library_errors import quiet

ALL_TYPES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES})
MOST_PARAMETERS = 3_000_000
SIZES: dict[str, Any] = {  # by all names that configs give them; each config takes those that it has
    **dict.fromkeys((
        "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers",
        "num_hidden_layers", "num_encoder_layers", "encoder_num_hidden_layers", "num_blocks"), 2),
    **dict.fromkeys((
        "d_model", "n_embd", "hidden_size", "word_embed_proj_dim", "embedding_size", "embedding_dim", "dim", "emb_dim",
        "backbone_hidden_size", "audio_hidden_size", "cross_attention_hidden_size", "router_hidden_size",
        "ple_embed_dim", "pronunciation_embed_dim", "shape_embed_dim", "attention_hidden_size"), 16),
    **dict.fromkeys((
        "num_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_attention_heads",
        "num_encoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads", "index_n_heads",
        "linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys((
        "d_kv", "head_dim", "kv_channels", "dim_head", "attention_head_dim", "swa_head_dim", "index_head_dim",
        "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "hc_lowrank", "adapter_rank", "laurel_rank"), 8),
    **dict.fromkeys((
        "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "intermediate_size", "ffn_dim", "dff", "dim_ff",
        "moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size",
        "expert_ffn_hidden_size", "ffn_hidden_size", "feed_forward_size", "dense_intermediate_size",
        "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token", "top_k_experts", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "o_groups", "n_groups"), 1),
    **dict.fromkeys((
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "original_max_position_embeddings",
        "max_encoder_position_embeddings", "max_decoder_position_embeddings"), 64),
    "num_key_value_heads": 1, "swa_num_key_value_heads": 1, "qk_rope_head_dim": 8, "rotary_dim": 4,
    "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_num_heads": 4, "mamba_head_dim": 8,
    "ssm_state_size": 8, "chunk_size": 8, "mamba_chunk_size": 8, "n_mamba_heads": 2,
    "hidden_size_per_layer_input": 4, "shape_vocab_size": 20,
    "pronunciation_vocab_size": 20, "encoder_hash_byte_group_vocab": 40, "num_kv_shared_layers": 0,
    "attention_head_size": 8, "num_nextn_predict_layers": 0, "image_size": 28, "patch_size": 14,
    "hidden_size_global": 16, "deepstack_visual_indexes": [0],
    "projector_input_dim": 16, "projector_output_dim": 16, "is_decoder": True,
}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
SIZES_OF: dict[str, dict[str, Any]] = {  # of types whose sizes must fit each other in a way of their own
    **dict.fromkeys(("bailing_hybrid", "granitemoehybrid", "kimi_linear", "qwen3_5_text", "qwen3_5_moe_text"), HYBRID),
    "qwen3_next": HYBRID,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 1, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 2, "per_layer_config": None},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "led": {"attention_window": 8},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "lfm3": {"num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen4_exp_text": {
        "num_hidden_layers": 4, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
        "indexer_budget": 8, "indexer_compress_ratio": 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8]
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 32,
        "attention_head_dim": 16, "num_key_value_heads": 2,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "attention_hidden_size": 32, "attention_head_dim": 16,
        "num_key_value_heads": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


class NotBuiltError(Exception):
    """No tiny model of a type, and why."""


def tiny_config(model_type: str, n_tokens: int, **changes: Any) -> PreTrainedConfig:
    ids = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "src_vocab_size", "tgt_vocab_size"), n_tokens)
    ids |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    ids |= {"decoder_start_token_id": 0, "forced_eos_token_id": None, "forced_bos_token_id": None}
    stock = AutoConfig.for_model(model_type)
    return type(stock)(**_tiny(stock, SIZES | ids) | changes)


def _tiny(stock: PreTrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a tiny config of the same class."""
    own = SIZES_OF.get(stock.model_type, {})
    names = (stock.to_dict().keys() | stock.attribute_map.keys()) - set(stock.attribute_map)
    values: dict[str, Any] = {name: value for name, value in sizes.items() if name in names} | own
    for name in stock.sub_configs:
        part = getattr(stock, name, None)
        if part is not None:
            values[name] = _tiny(part, sizes) | own.get(name, {})
    if "kv_lora_rank" in names:  # its keys and values are made of one state for all heads
        values["num_key_value_heads"] = 2
    return values


def write_tiny_model(
    model_type: str, folder: Path, tokenizer: Any, *, seed: int, changes: Any = MappingProxyType({})
) -> None:
    """A folder of a tiny random model, its config with changes. NotBuiltError if there is none."""
    with quiet():
        try:
            stock = AutoConfig.for_model(model_type)
            auto_class = AutoModelForSeq2SeqLM if stock.is_encoder_decoder else AutoModelForCausalLM
            mapping, part = auto_class._model_mapping, stock.sub_configs.get("text_config")
            is_of_part = type(stock) in mapping and mapping[type(stock)].config_class is part
            if type(stock) not in mapping or (is_of_part and part not in mapping):  # to be refused by its config
                stock.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                return
            if is_of_part:
                auto_class = AutoModelForImageTextToText  # of which the text part is to be taken
            config = tiny_config(model_type, len(tokenizer), **changes)
            with torch.device("meta"):
                n = auto_class.from_config(config).num_parameters()
            if n > MOST_PARAMETERS:
                raise NotBuiltError(f"{n:,} parameters")
            torch.manual_seed(seed)
            model = auto_class.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():  # none keeps its initial value: what is not saved shows
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(folder)
        except NotBuiltError:
            raise
        except Exception as error:
            raise NotBuiltError(f"{type(error).__name__}: {error}") from error
        tokenizer.save_pretrained(folder)
