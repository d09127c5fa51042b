"""What to measure: the models, with the layers that they keep, and the cells of the grid of lengths and beams."""

from dataclasses import dataclass
from itertools import product

from src.config.errors import UserError
from src.config.flags.profile import ProfileArguments
from src.models.names import KeptLayers, parse_model_name

LARGEST = None  # stands for the largest batch that fits, among batch sizes


@dataclass(frozen=True)
class Form:
    """A model and the layers kept of it (None: all). name: `base` with its `_prune` suffix."""

    name: str
    base: str
    encoder_layers: KeptLayers | None
    decoder_layers: KeptLayers | None

    @property
    def is_pruned(self) -> bool:
        return self.encoder_layers is not None or self.decoder_layers is not None


@dataclass(frozen=True)
class Cell:
    """One combination of the lists of lengths and beams; each batch size is measured in it."""

    input_length: int
    target_length: int
    num_beams: int


def forms_of(config: ProfileArguments) -> list[Form]:
    """The models of --model_name, each once. Raises UserError if a name and a flag both say which layers to keep."""
    forms = []
    for name in dict.fromkeys(config.model_name):
        base, *named = parse_model_name(name)
        asked = (config.enc_layers_to_keep, config.dec_layers_to_keep)
        for flag, ours, theirs in zip(("enc", "dec"), asked, named, strict=True):
            if ours is not None and theirs is not None:
                raise UserError(f"--model_name {name}: says which layers to keep; leave out --{flag}_layers_to_keep")
        encoder, decoder = (theirs if ours is None else ours for ours, theirs in zip(asked, named, strict=True))
        forms.append(Form(name if asked == (None, None) else _name(base, encoder, decoder), base, encoder, decoder))
    return forms


def _name(base: str, encoder: KeptLayers | None, decoder: KeptLayers | None) -> str:
    sides = ["_".join(map(str, layers or ())) for layers in (encoder, decoder)]
    return f"{base}_prune" + (sides[1] if encoder is None else ":".join(sides))


def cells_of(config: ProfileArguments) -> list[Cell]:
    """The cells of the grid, each once."""
    lists = config.input_length, config.target_length
    lengths = zip(*lists, strict=True) if config.paired_lengths else product(*lists)
    return list(dict.fromkeys(Cell(*pair, beams) for pair, beams in product(lengths, config.num_beams)))
