"""Every supported family: logits, captured states, every objective, pruned students, and all scripts."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ALL_LETTERS, VOCAB_SIZE, slow
from tiny_runs import ft_flags, gen_flags, kd_flags, read, rows
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, MBartTokenizer

import ft_main
import gen_main
import kd_main
from src.config.constants import IGNORE_INDEX
from src.config.errors import UserError
from src.config.experiments.schema import LossEntry
from src.decoding.generate import write_tokens
from src.decoding.settings import decoding_of
from src.distillation.capture import HeadStates, States, capture_states
from src.distillation.objectives import Window, distillation_loss, term_names
from src.distillation.relations import regrouped
from src.distillation.student_targets import student_writes
from src.distillation.token_losses import token_divergence
from src.models import loading
from src.models.families import FAMILIES, attention_projections, family_of, layer_counts
from src.models.folders import write_model_folder
from src.models.forward import read_positions, target_labels, target_logits, teacher_forcing_inputs
from src.models.generation_config import fit_to_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_model
from src.models.new_tokenizers import train_tokenizer
from src.tokens.batch import Batch
from src.tokens.preprocessing import Preprocessor
from tests.models.test_forward import EOS, batch_for

VARIANTS = {  # what checkpoints of a family have and the default config has not; some instead of the default
    "t5 1.1 and flan": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mbart": ("mbart", {"scale_embedding": True}),
    "pegasus": ("pegasus", {"scale_embedding": True}),
    "marian": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "m2m_100": ("m2m_100", {"decoder_start_token_id": EOS}),  # as released; a pad token has no position of its own
    "opt, post-norm, projected": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.5}),
    "helium": ("helium", {"head_dim": 8}),  # width / heads: the library's projections allow nothing else
}
WIDTHS = {"teacher": (32, 4, 2, 3), "student": (16, 2, 1, 2)}  # width, heads, heads of keys and values, layers
BIG_HEAD = 16  # dimensions of a head where the config names them: more than width / heads
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
POST_NORM = ("bart", "marian", "plbart")  # no norm before an attention


def cases() -> dict[str, tuple[str, dict]]:
    """{id: (model type, what its config has besides the sizes)}: every model type, then the variants."""
    plain = {model_type: (model_type, {}) for family in FAMILIES for model_type in family.model_types}
    return plain | VARIANTS


CASES = cases()
BEYOND = (  # the families that people use most: what takes longer runs for these only with -m slow
    "umt5", "m2m_100", "blenderbot", "plbart", "gptj", "gpt_neox", "ministral", "smollm3", "olmo", "olmo2", "granite",
    "starcoder2", "stablelm", "cohere", "cohere2", "glm", "helium",
)  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)
every_case_in_time = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in BEYOND else []) for case in CASES]
)
with_encoder = pytest.mark.parametrize(
    "case", [case for case, (model_type, _) in CASES.items() if AutoConfig.for_model(model_type).is_encoder_decoder]
)


def tiny_config(case: str, role: str, *, vocab_size: int = 40, **tokens):
    """A config without dropout, of the sizes of WIDTHS under whichever names the model type gives them."""
    width, n_heads, n_key_value_heads, n_layers = WIDTHS[role]
    sizes = {
        "vocab_size": vocab_size, "d_model": width, "n_embd": width, "hidden_size": width, "word_embed_proj_dim": width,
        "d_ff": 2 * width, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width, "ffn_dim": 2 * width,
        "n_inner": 2 * width, "intermediate_size": 2 * width,
        "num_layers": n_layers, "num_decoder_layers": n_layers, "encoder_layers": n_layers, "decoder_layers": n_layers,
        "n_layer": n_layers, "num_hidden_layers": n_layers,
        "num_heads": n_heads, "n_head": n_heads, "encoder_attention_heads": n_heads, "decoder_attention_heads": n_heads,
        "num_attention_heads": n_heads, "num_key_value_heads": n_key_value_heads,
        "d_kv": BIG_HEAD, "head_dim": BIG_HEAD, "rotary_dim": 4, "query_pre_attn_scalar": BIG_HEAD,
        "n_positions": 64, "max_position_embeddings": 64, "original_max_position_embeddings": 64, "sliding_window": 64,
        "pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None, "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
    }  # fmt: skip
    model_type, more = CASES[case]
    stock = AutoConfig.for_model(model_type)
    known = stock.to_dict().keys() - set(stock.attribute_map)
    known |= {"decoder_start_token_id"} if stock.is_encoder_decoder else set()
    chosen = {key: value for key, value in sizes.items() if key in known}
    dropouts = {key: 0.0 for key in known if "drop" in key and isinstance(getattr(stock, key), float)}
    return AutoConfig.for_model(model_type, **{**chosen, **dropouts, **more, **tokens})


def tiny_model(case: str, role: str = "teacher", *, seed: int = 0, **tokens):
    """A random model in which every tensor counts, `final_logits_bias` included; it can say its attention (eager)."""
    config = tiny_config(case, role, **tokens)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto_class.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


@pytest.fixture(scope="module")
def tiny():
    """(case, role) → model, made once; whoever makes gradients clears them."""
    made = {}

    def model_of(case: str, role: str = "teacher"):
        if (case, role) not in made:
            made[case, role] = tiny_model(case, role, seed=2 * list(CASES).index(case) + (role == "student"))
        return made[case, role]

    return model_of


def entry_of(**weights) -> LossEntry:
    return LossEntry(name="e", **weights)


BOTH_RELATIONS = entry_of(hidden_weight=1.0, attention_relation_weight=1.0)
PLACES = ("enc_hidden", "dec_hidden", "enc_sa", "dec_sa", "dec_ca")


def layers(number: int) -> dict[str, int]:
    return dict.fromkeys(PLACES, number)


def dense_logits(model, batch: Batch) -> torch.Tensor:
    """(N, V) of a plain forward pass over every position of the padded batch."""
    inputs, places = teacher_forcing_inputs(model, batch)
    return model(**inputs, use_cache=False).logits.flatten(0, 1)[places]


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return made


# --------------------------------------------------------------------------------------------------------------- logits


@every_case
def test_logits_and_gradients_are_those_of_a_dense_forward(case, tiny):
    model, batch = tiny(case), batch_for(tiny(case))
    ours, plain = target_logits(model, batch), dense_logits(model, batch)
    assert ours.shape == (9, 40) and plain.std() > 0.01
    torch.testing.assert_close(ours, plain, **CLOSE)
    labels = target_labels(batch)
    first, second = (gradients(model, F.cross_entropy(logits, labels)) for logits in (ours, plain))
    torch.testing.assert_close(first, second, **CLOSE)
    assert any(gradient.any() for gradient in first.values())


@every_case
def test_teacher_forcing_reads_what_generation_reads(case, tiny):
    """Greedy text is its own most probable target: start token, positions and masks are those of `generate`."""
    model, batch = tiny(case), batch_for(tiny(case))
    source = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    settings = {"output_logits": True, "return_dict_in_generate": True, "suppress_tokens": [model.config.pad_token_id]}
    written = model.generate(**source, max_new_tokens=5, do_sample=False, **settings)
    tokens = written.sequences[:, -len(written.logits) :]
    ended = ((tokens == EOS).cumsum(1) - (tokens == EOS).long()) > 0
    labels = tokens.masked_fill(ended, IGNORE_INDEX)
    with torch.no_grad():
        logits = target_logits(model, Batch(**source, labels=labels, rows=batch.rows))
    torch.testing.assert_close(logits, torch.stack(written.logits, dim=1)[~ended], **CLOSE)


# ----------------------------------------------------------------------------------------------------- what is captured


def without_rotation(model):
    """The model with rotary angles of 0, and no relative positions: queries and keys meet as they are projected."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.zero_()
        if name.endswith("embed_positions"):  # GPT-J: sines, then cosines
            sines, cosines = buffer.chunk(2, dim=-1)
            sines.zero_(), cosines.fill_(1.0)
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            parameter.data.zero_()
    return model


def attention_of(model, kind: str, layer: int) -> torch.nn.Module:
    family = family_of(model.config)
    path = family.encoder_layers if kind.startswith("enc") else family.decoder_layers
    return model.get_submodule(path)[layer].get_submodule(family.attention[kind])


def heads_of(captured: HeadStates) -> torch.Tensor:
    return regrouped(captured.states, captured.n_heads)


def expected_attention(model, states: States, kind: str, layer: int, mask: torch.Tensor) -> torch.Tensor:
    """(B, H, L, S) softmaxed products of captured queries and keys, with the norms and the scale of the attention."""
    attention, config = attention_of(model, kind, layer), model.config
    queries, keys = (normed(attention, part, states.heads[f"{kind}_{part}"]) for part in "qk")
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    is_scaled = family_of(config).name in ("t5", "bart", "opt")  # T5 never, the others' queries before the product
    scores = queries @ keys.transpose(-1, -2)
    scores = scores if is_scaled else scores * getattr(attention, "scaling", queries.shape[-1] ** -0.5)
    cap = getattr(config, "attn_logit_softcapping", None)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)


def normed(attention: torch.nn.Module, part: str, captured: HeadStates) -> torch.Tensor:
    """(B, H, L, d) with the norm that the attention has for queries or keys, of each head or of all together."""
    norm = getattr(attention, f"{part}_norm", None)
    if norm is None:
        return heads_of(captured)
    if norm.weight.numel() == captured.states.shape[-1] // captured.n_heads:
        return norm(heads_of(captured))
    return heads_of(HeadStates(norm(captured.states), captured.n_heads))


@every_case
@torch.no_grad()
def test_queries_and_keys_give_the_models_own_attention(case):
    model, layer = without_rotation(tiny_model(case)), 1
    batch = batch_for(model)
    inputs, _ = teacher_forcing_inputs(model, batch)
    own = model(**inputs, use_cache=False, output_attentions=True)
    states, read = capture_states(model, batch, BOTH_RELATIONS, layers(layer)), read_positions(model, batch)
    causal = read["dec"][:, None, :].expand(-1, read["dec"].shape[1], -1).tril()
    if model.config.is_encoder_decoder:
        over_inputs = read["enc"][:, None, :]
        expected = {
            "enc_sa": (own.encoder_attentions, over_inputs, read["enc"]),
            "dec_sa": (own.decoder_attentions, causal, read["dec"]),
            "dec_ca": (own.cross_attentions, over_inputs, read["dec"]),
        }
    else:
        expected = {"dec_sa": (own.attentions, causal, read["dec"])}
    assert states.heads.keys() == {f"{kind}_{part}" for kind in expected for part in "qkv"}
    for kind, (attentions, mask, rows_read) in expected.items():
        n_heads, n_key_value_heads = WIDTHS["teacher"][1:3]
        assert states.heads[f"{kind}_q"].n_heads == n_heads
        assert states.heads[f"{kind}_k"].n_heads in (n_heads, n_key_value_heads)
        ours = expected_attention(model, states, kind, layer, mask).transpose(1, 2)[rows_read]
        torch.testing.assert_close(ours, attentions[layer].transpose(1, 2)[rows_read], **CLOSE)
        assert ours.std() > 0.01


@every_case
@torch.no_grad()
def test_keys_and_values_are_those_of_the_cache(case, tiny):
    """Values of every decoder; keys where nothing is done to them after the projection."""
    model, layer = tiny(case), 1
    batch = batch_for(model)
    inputs, _ = teacher_forcing_inputs(model, batch)
    cache = model(**inputs, use_cache=True).past_key_values
    states = capture_states(model, batch, BOTH_RELATIONS, layers(layer))
    caches = {"dec_sa": cache}
    if model.config.is_encoder_decoder:
        caches = {"dec_sa": cache.self_attention_cache, "dec_ca": cache.cross_attention_cache}
    for kind, cached in caches.items():
        values, keys = states.heads[f"{kind}_v"], states.heads[f"{kind}_k"]
        torch.testing.assert_close(heads_of(values), cached.layers[layer].values, **CLOSE)
        if model.config.is_encoder_decoder or model.config.model_type in ("gpt2", "opt"):
            torch.testing.assert_close(heads_of(keys), cached.layers[layer].keys, **CLOSE)


@pytest.mark.parametrize(
    "case", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"]
)
def test_grouped_queries_have_fewer_keys_and_values(case, tiny):
    heads = capture_states(tiny(case), batch_for(tiny(case)), BOTH_RELATIONS, layers(0)).heads
    head_size = 8 if case in ("qwen2", "phi3", "smollm3") else BIG_HEAD
    shapes = {name: (state.n_heads, state.states.shape[-1]) for name, state in heads.items()}
    assert shapes == {"dec_sa_q": (4, 4 * head_size), **dict.fromkeys(("dec_sa_k", "dec_sa_v"), (2, 2 * head_size))}


@with_encoder
@torch.no_grad()
def test_states_of_the_encoder_are_projections_of_what_the_layer_reads(case, tiny):
    model, layer = tiny(case), 1
    batch = batch_for(model)
    encoder = model.get_encoder()(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    states = capture_states(model, batch, BOTH_RELATIONS, layers(layer))
    torch.testing.assert_close(states.hidden["enc"], encoder.hidden_states[layer], **CLOSE)
    read, block = states.hidden["enc"], model.get_submodule(family_of(model.config).encoder_layers)[layer]
    attention, is_t5 = attention_of(model, "enc_sa", layer), family_of(model.config).name == "t5"
    if is_t5:
        read = block.layer[0].layer_norm(read)
    elif model.config.model_type not in POST_NORM:
        read = block.self_attn_layer_norm(read)
    for part in "qkv":
        module = getattr(attention, part if is_t5 else f"{part}_proj")
        expected = F.linear(read, module.weight, module.bias)
        if part == "q" and not is_t5:
            expected = expected * 8**-0.5
        torch.testing.assert_close(states.heads[f"enc_sa_{part}"].states, expected, **CLOSE)


@every_case
@torch.no_grad()
def test_hidden_states_are_numbered_from_the_embeddings_to_the_final_norm(case, tiny):
    model = tiny(case)
    batch, counts = batch_for(model), layer_counts(model.config)
    inputs, _ = teacher_forcing_inputs(model, batch)
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        read = {"encoder_hidden_states": encoded, "encoder_attention_mask": inputs["attention_mask"]}
        decoded = model.get_decoder()(inputs["decoder_input_ids"], **read, use_cache=False).last_hidden_state
        last = {"enc": (counts["encoder"], encoded), "dec": (counts["decoder"], decoded)}
    else:
        last = {"dec": (counts["decoder"], model.base_model(**inputs, use_cache=False).last_hidden_state)}
    entry = entry_of(hidden_weight=1.0)
    for stack, (n_layers, expected) in last.items():
        for number in (-1, n_layers):
            torch.testing.assert_close(
                capture_states(model, batch, entry, layers(number)).hidden[stack], expected, **CLOSE
            )
        first, second = (
            capture_states(model, batch, entry, layers(number)).hidden[stack] for number in (0, -n_layers - 1)
        )
        assert torch.equal(first, second) and not torch.equal(first, expected)


def projections_of(model) -> list[torch.nn.Module]:
    """The projections of queries, keys and values in the last layers."""
    kinds = family_of(model.config).attention
    return [each.module for kind in kinds for each in attention_projections(model, kind, -1).values()]


def n_hooks(model) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


@every_case
def test_hooks_are_gone_afterwards_also_after_an_error(case, tiny):
    model = tiny(case)
    batch = batch_for(model)
    capture_states(model, batch, BOTH_RELATIONS, layers(-1))
    for module in (model.get_output_embeddings(), *projections_of(model)):
        assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 0
    before = n_hooks(model)  # the library's own, if it has any
    broken = Batch(batch.input_ids, batch.attention_mask, batch.labels.clamp_min(10_000), batch.rows)
    with pytest.raises(IndexError):
        capture_states(model, broken, BOTH_RELATIONS, layers(-1))
    assert n_hooks(model) == before


# ----------------------------------------------------------------------------------------------------------- objectives

ENTRIES = {
    "forward": entry_of(forward_weight=1.0),
    "logits": entry_of(logits_weight=1.0, temperature=2.0),
    "hidden, KL": entry_of(hidden_weight=1.0, kl_loss=True),
    "hidden, RMSE": entry_of(hidden_weight=1.0),
    "attention, KL": entry_of(attention_relation_weight=1.0, kl_loss=True),
    "attention, RMSE": entry_of(attention_relation_weight=1.0),
}
COMPARING = {"logits_weight": 1.0, "hidden_weight": 1.0, "attention_relation_weight": 1.0}
TOGETHER = (entry_of(**COMPARING, kl_loss=True), entry_of(**COMPARING))


def loss_of(student, teacher, batch: Batch, entry: LossEntry, layer: int = -1) -> tuple[torch.Tensor, dict]:
    """The loss of a whole batch as one window, and its terms."""
    with torch.no_grad():
        taught = capture_states(teacher, batch, entry, layers(layer))
    window = Window(len(batch.rows), len(target_labels(batch)))
    return distillation_loss(capture_states(student, batch, entry, layers(layer)), taught, batch, entry, window)


@every_case_in_time
def test_every_objective_is_finite_and_teaches(case, tiny):
    """A student of other width and heads than its teacher's."""
    student, teacher = tiny(case, "student"), tiny(case)
    batch = batch_for(student)
    for name, entry in ENTRIES.items():
        loss, terms = loss_of(student, teacher, batch, entry)
        made = gradients(student, loss)
        assert set(terms) == set(term_names(entry, is_encoder_decoder=student.config.is_encoder_decoder))
        assert all(torch.isfinite(term) and term > 0 for term in terms.values()), name
        assert all(gradient.isfinite().all() for gradient in made.values()), name
        assert any(gradient.any() for gradient in made.values()), name
        if name.startswith("attention"):
            projections = [projection.weight for projection in projections_of(student)]
            reached = {key for key, each in student.named_parameters() if any(each is weight for weight in projections)}
            assert reached and all(made[key].any() for key in reached), name


@every_case_in_time
def test_a_student_that_is_its_teacher_has_nothing_to_learn(case, tiny):
    teacher = tiny(case)
    for entry in TOGETHER:
        loss, _ = loss_of(teacher, teacher, batch_for(teacher), entry)
        assert abs(loss) < 1e-6
        assert all(gradient.abs().max() < 1e-5 for gradient in gradients(teacher, loss).values())


def wider(batch: Batch, *, on_the_left: bool, n_columns: int = 2) -> Batch:
    """The batch with more padding, in inputs (some token stands there) and labels."""
    pad = (n_columns, 0) if on_the_left else (0, n_columns)
    return Batch(
        F.pad(batch.input_ids, pad, value=13),
        F.pad(batch.attention_mask, pad),
        F.pad(batch.labels, (0, n_columns), value=IGNORE_INDEX),
        batch.rows,
    )


@every_case_in_time
def test_padding_has_no_influence_on_any_objective(case, tiny):
    student, teacher = tiny(case, "student"), tiny(case)
    batch = batch_for(student)
    other = wider(batch, on_the_left=not student.config.is_encoder_decoder)
    for entry in TOGETHER:
        (plain, terms), (padded, terms_beside) = (loss_of(student, teacher, each, entry) for each in (batch, other))
        torch.testing.assert_close(terms_beside, terms, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients(student, padded), gradients(student, plain), atol=1e-5, rtol=1e-3)


# --------------------------------------------------------------------------------------------------------------- pruned


@every_case_in_time
def test_pruned_students_hold_their_layers_and_learn_from_the_whole(case, tiny, tmp_path):
    """NAME_prune and NAME_prune0:0 have the layers named and every other weight, biases of the logits included."""
    teacher = tiny(case)
    batch, family = batch_for(teacher), family_of(teacher.config)
    teacher.save_pretrained(tmp_path)
    names = {"_prune": {family.decoder_layers: (0, 2)}}
    if family.is_encoder_decoder:
        names["_prune0:0"] = {family.decoder_layers: (0,), family.encoder_layers: (0,)}
    whole = teacher.state_dict()
    for suffix, kept in names.items():
        student = load_model(f"{tmp_path}{suffix}")
        for name, tensor in student.state_dict().items():
            for path, numbers in kept.items():
                number, _, rest = name.removeprefix(f"{path}.").partition(".")
                if name.startswith(f"{path}."):
                    name = f"{path}.{numbers[int(number)]}.{rest}"
            assert torch.equal(tensor, whole[name]), name
        entry = entry_of(attention_relation_weight=0.5, logits_weight=0.5, kl_loss=True)
        loss, _ = loss_of(student, teacher, batch, entry)
        made = gradients(student, loss)
        assert loss.isfinite() and loss > 0
        assert all(gradient.isfinite().all() for gradient in made.values()) and any(g.any() for g in made.values())


# -------------------------------------------------------------------------------------------------------- whole scripts

ROAD = (
    "t5", "t5 1.1 and flan", "mt5", "bart", "mbart", "pegasus", "marian", "gpt2", "opt", "opt, post-norm, projected",
    "llama", "llama, tied", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
)  # fmt: skip
QUICK = ("marian", "qwen3")
SHORT = {"epochs": 1, "max_labels_length": 6, "batch_size": 4, "max_gpu_batch_size": 2, "seed": 3}  # two steps


@pytest.fixture(scope="module")
def tiny_rows(tiny_dataset, tmp_path_factory) -> Path:
    """Four rows to train on, two of every other split."""
    counts = {"train": 4, "dev": 2, "test": 2, "unlabeled": 2}
    data = {split: {k: v[: counts[split]] for k, v in columns.items()} for split, columns in tiny_dataset.items()}
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def save(model, tokenizer, folder: Path) -> str:
    return str(write_model_folder(folder, model, tokenizer, "A test's.\n"))


def tokenizer_for(case: str, tiny_tokenizers):
    is_encoder_decoder = AutoConfig.for_model(CASES[case][0]).is_encoder_decoder
    return tiny_tokenizers["t5" if is_encoder_decoder else "gpt2"]


@pytest.mark.parametrize("case", [*QUICK, *slow(*(case for case in ROAD if case not in QUICK))])
def test_fine_tune_generate_distil(case, tiny_tokenizers, tiny_rows, tmp_path):
    """The scripts: fine-tune a teacher, sample from it, and teach a smaller model and a pruned one."""
    tokenizer = tokenizer_for(case, tiny_tokenizers)
    models = {
        role: save(tiny_model(case, role, vocab_size=len(tokenizer)), tokenizer, tmp_path / role) for role in WIDTHS
    }
    ft_main.main(ft_flags(models["teacher"], tiny_rows, tmp_path / "ft", **SHORT))
    teacher = tmp_path / "ft" / "model"
    sampling = {"generation_type": "sampling", "num_return_sequences": 2, "add_original_data": True}
    (weights,) = (path for path in (tmp_path / "ft").glob("epoch*__model.pt") if "__last" not in path.name)
    sampling["checkpoint_path"] = weights
    gen_main.main(gen_flags(models["teacher"], tiny_rows, tmp_path / "gen", max_labels_length=6, **sampling))
    generated = read(tmp_path / "gen" / "generated_datasets.json")
    assert {split: len(columns["generated"]) for split, columns in generated.items()} == {
        "train": 8, "dev": 4, "test": 4, "unlabeled": 4
    }  # fmt: skip
    merged = tmp_path / "merged.json"
    inputs = generated["train"]["text"], generated["train"]["generated"]
    rotation = {f"train_{i}": {"text": inputs[0][i::2], "target": inputs[1][i::2]} for i in range(2)}
    merged.write_text(json.dumps({**rotation, "dev": read(tiny_rows)["dev"], "test": read(tiny_rows)["test"]}))
    assert [student_writes(0.5, seed=SHORT["seed"], epoch=0, step=step) for step in (0, 1)] == [True, False]
    suffix = "_prune0:0" if is_encoder_decoder(load_config(models["teacher"])) else "_prune"
    students = {"attention_kd_student_gens": models["student"], "attention_kd": models["teacher"] + suffix}
    for key, student in students.items():
        pair, out = {"student": student, "teacher": str(teacher)}, tmp_path / key
        scores = kd_main.main(kd_flags(pair, merged, out, experiment_config_key=key, **SHORT))
        assert 0 < scores["nll"] < 20
        (losses,) = rows(out, "train_losses.csv")
        n_terms = 10 if tokenizer is tiny_tokenizers["t5"] else 4
        terms = [value for name, value in losses.items() if name == "logits" or name[-2:] in ("_q", "_k", "_v")]
        assert len(terms) == n_terms and all(float(value) > 0 for value in terms)
        assert load_model(str(out / "model")).config.model_type == CASES[case][0]


# ----------------------------------------------------------------------------------------------------- unknown families

UNKNOWN = {
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, "n_positions": 64},
}


@pytest.fixture(params=UNKNOWN)
def unknown(request, tiny_tokenizers, tmp_path) -> dict[str, str]:
    """Teacher and student of a family that is not in the table."""
    assert request.param not in {name for name, _ in CASES.values()}
    sizes = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS, **UNKNOWN[request.param]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **sizes)
    return {
        role: save(AutoModelForCausalLM.from_config(config), tiny_tokenizers["gpt2"], tmp_path / role)
        for role in ("teacher", "student")
    }


@pytest.fixture
def no_weights(monkeypatch):
    """Any attempt to read weights is a defect."""

    def refuse(*_arguments, **_flags):
        raise AssertionError("weights were read")

    for name in ("_from_pretrained", "read_state_dict"):
        monkeypatch.setattr(loading, name, refuse)


def test_an_unknown_family_learns_from_labels_and_logits_at_once(unknown, tiny_rows, tmp_path):
    assert ft_main.main(ft_flags(unknown["teacher"], tiny_rows, tmp_path / "ft", **SHORT))["nll"] > 0
    gen_main.main(gen_flags(unknown["teacher"], tiny_rows, tmp_path / "gen", max_labels_length=6))
    pair = {**unknown, "teacher": str(tmp_path / "ft" / "model")}
    flags = {"experiment_config_key": "logits_kd_student_gens", **SHORT}
    assert kd_main.main(kd_flags(pair, tiny_rows, tmp_path / "kd", **flags))["nll"] > 0


@pytest.mark.parametrize("key", ["attention_kd", "hidden_kd"])
def test_an_unknown_familys_layers_are_refused_by_name(unknown, key, tiny_rows, tmp_path, no_weights):
    model_type = load_config(unknown["student"]).model_type
    said = f"experiment '{key}' compares layers: --student_name: model type '{model_type}'"
    with pytest.raises(UserError, match=said) as caught:
        kd_main.main(kd_flags(unknown, tiny_rows, tmp_path / "out", experiment_config_key=key))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------- vocabulary sizes


def test_padded_vocabularies_are_compared_over_the_shared_tokens():
    """By hand: teacher (1/2, 1/4, 1/4) and mass elsewhere, student uniform and mass elsewhere."""
    shared = torch.tensor([[0.5, 0.25, 0.25]]).log()
    uniform = torch.zeros(1, 3)
    more = torch.tensor([[5.0, -1.0]])
    expected = torch.tensor([3.0]).log() - 1.5 * torch.tensor([2.0]).log()  # log 3 − entropy
    torch.testing.assert_close(token_divergence(uniform, shared), expected)
    torch.testing.assert_close(token_divergence(torch.cat([uniform, more], dim=1), shared), expected)
    torch.testing.assert_close(token_divergence(uniform, torch.cat([shared, more], dim=1)), expected)
    student = torch.cat([uniform, more], dim=1).requires_grad_()
    token_divergence(student, shared).sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[1 / 3 - 1 / 2, 1 / 3 - 1 / 4, 1 / 3 - 1 / 4, 0, 0]]))


@pytest.mark.parametrize("case", ["qwen3", *slow("bart")])
@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_a_pair_with_one_padded_vocabulary_learns(case, padded, tiny_tokenizers, tiny_rows, tmp_path):
    """Relations, logits and targets that the student writes: never a token that only the padding has."""
    tokenizer = tokenizer_for(case, tiny_tokenizers)
    sizes = {role: len(tokenizer) + 64 * (role == padded) for role in WIDTHS}
    models = {
        role: save(tiny_model(case, role, vocab_size=size), tokenizer, tmp_path / role) for role, size in sizes.items()
    }
    flags = {"experiment_config_key": "attention_kd_student_gens", **SHORT}
    assert kd_main.main(kd_flags(models, tiny_rows, tmp_path / "kd", **flags))["nll"] > 0
    assert load_config(str(tmp_path / "kd" / "model")).vocab_size == sizes["student"]


@pytest.mark.parametrize("case", ["t5", "gemma2"])
def test_only_tokens_of_the_tokenizer_are_written(case, tiny_tokenizers):
    tokenizer = tokenizer_for(case, tiny_tokenizers)
    n_tokens = len(tokenizer)
    model = tiny_model(case, vocab_size=n_tokens + 400)
    batch, decoding = batch_for(model), decoding_of("sampling", num_beams=1, targets_per_input=4, max_new_tokens=8)
    torch.manual_seed(0)
    assert write_tokens(model, batch, decoding).max() >= n_tokens
    model.generation_config.suppress_tokens = [7]
    fit_to_tokenizer(model, tokenizer)
    assert model.generation_config.suppress_tokens == [7, *range(n_tokens, n_tokens + 400)]
    for kind in ("sampling", "beam_search", "diverse_beam_search", "sampling_beam_search"):
        decoding = decoding_of(kind, num_beams=4, targets_per_input=4, max_new_tokens=8)
        assert write_tokens(model, batch, decoding).max() < n_tokens
    whole = tiny_model(case, vocab_size=n_tokens)
    fit_to_tokenizer(whole, tokenizer)
    assert whole.generation_config.suppress_tokens is None


def test_generated_targets_have_no_tokens_of_the_padding(tiny_tokenizers, tiny_rows, tmp_path):
    """A model that would write nothing else; such tokens decode to nothing."""
    tokenizer = tiny_tokenizers["t5"]
    model = tiny_model("bart", vocab_size=len(tokenizer) + 32)
    model.final_logits_bias[:, len(tokenizer) :] = 100.0
    folder = save(model, tokenizer, tmp_path / "padded")
    gen_main.main(gen_flags(folder, tiny_rows, tmp_path / "gen", max_labels_length=6, split_for_generation="train"))
    assert all(read(tmp_path / "gen" / "generated_datasets.json")["train"]["generated"])


@pytest.mark.parametrize("case", ["bart", "qwen3"])
def test_another_tokenizer_is_refused_by_its_first_token(case, tiny_tokenizers, tiny_rows, tmp_path, no_weights):
    """Of the same size: nothing but the tokens themselves tells them apart."""
    tokenizer = tokenizer_for(case, tiny_tokenizers)
    family = "t5" if tokenizer is tiny_tokenizers["t5"] else "gpt2"
    other = train_tokenizer([ALL_LETTERS, "zebras zebras zebras"] * 3, VOCAB_SIZE, family=family)
    tokenizers = {"teacher": tokenizer, "student": other}
    models = {
        role: save(tiny_model(case, role, vocab_size=96), each, tmp_path / role) for role, each in tokenizers.items()
    }
    by_index = [{index: token for token, index in each.get_vocab().items()} for each in tokenizers.values()]
    first = min(index for index in by_index[0] if by_index[0][index] != by_index[1].get(index))
    with pytest.raises(UserError, match=f"teacher and student must share a tokenizer; token {first} '"):
        kd_main.main(kd_flags(models, tiny_rows, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ languages


def test_labels_of_mbart_end_with_eos_and_not_with_a_language():
    """Its tokenizer writes target, EOS, language: the language is what the decoder starts with, and is not learned."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -2.0)]
    tokenizer = MBartTokenizer(vocab=[*pieces, ("en_XX", 0.0), ("de_DE", 0.0)], src_lang="en_XX", tgt_lang="de_DE")
    assert tokenizer(text_target="a b")["input_ids"] == [4, 5, 2, tokenizer.convert_tokens_to_ids("de_DE")]
    made = Preprocessor(tokenizer, True, max_input_length=5, max_labels_length=3)
    encoded = made.encode_labels(["a b", "a", "a b a b", ""])
    assert [encoded.tokens[row].tolist() for row in range(4)] == [[4, 5, 2], [4, 2], [4, 5, 2], [2]]
    assert (encoded.whole.tolist(), encoded.n_empty) == ([3, 2, 5, 1], 1)
    # An input is cut before its EOS and language.
    english = tokenizer.convert_tokens_to_ids("en_XX")
    encoded = made.encode_inputs(["a b a", "a b a b"])
    assert [encoded.tokens[row].tolist() for row in range(2)] == [[4, 5, 4, 2, english]] * 2
    assert encoded.whole.tolist() == [5, 6]
