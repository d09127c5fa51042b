"""Tokens of columns, memory-mapped from a cache on disk that processes and later runs share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.arrow_columns import take
from src.data.references import Target
from src.data.text_hashes import text_hashes
from src.storage.atomic import atomic_folder, recover
from src.storage.json_files import read_json, write_json
from src.storage.locks import waiting_lock
from src.tokens.preprocessing import Preprocessor
from src.tokens.ragged import Encoded, Ragged

FOLDER = ".tokens"  # beside the dataset file
LEAST = 20_000  # texts of a column; tokenizing fewer takes seconds
VERSION = 1  # of the files
FLAT, LENGTHS, WHOLE, ABOUT = "tokens.int32", "lengths.npy", "whole.npy", "about.json"


@dataclass(frozen=True)
class TokenCache:
    """Tokenizes columns; a long one only if its tokens are not in `folder` yet. None: there is no cache."""

    folder: Path | None = None

    @classmethod
    def beside(cls, dataset_path: str) -> TokenCache:
        """The cache of a dataset file or folder; none for a hub dataset, or where the user cannot write."""
        path = Path(dataset_path)
        return cls(path.parent / FOLDER if path.exists() and os.access(path.parent, os.W_OK) else None)

    def encode(
        self,
        preprocessor: Preprocessor,
        texts: Sequence[Target],
        *,
        labels: bool,
        hashes: np.ndarray | None = None,
    ) -> Encoded:
        """The tokens of texts, as inputs or as labels. hashes: theirs, if they are known.

        Other processes that want the same tokens wait for the one that makes them.
        """
        settings = None if self.folder is None or len(texts) < LEAST else preprocessor.settings()
        if self.folder is None or settings is None:
            return Encoded.concatenate(list(preprocessor.encode_in_chunks(texts, labels=labels)))
        content = (text_hashes(texts) if hashes is None else hashes).tobytes()
        digest = hashlib.sha256(f"{VERSION} {labels} {settings} ".encode() + content)
        path = self.folder / digest.hexdigest()[:32]
        if not path.is_dir():
            with waiting_lock(self.folder / f".{path.name}.lock"):
                if not path.is_dir():
                    recover(path)
                    with atomic_folder(path) as building:
                        _write(building, preprocessor.encode_in_chunks(texts, labels=labels))
        return _mapped(path)


NO_CACHE = TokenCache()


def _write(folder: Path, parts: Iterator[Encoded]) -> None:
    lengths, whole, n_empty, special_token = [], [], 0, None
    with (folder / FLAT).open("wb") as flat:
        for part in parts:
            flat.write(part.tokens.flat.tobytes())
            lengths.append(part.tokens.lengths)
            whole.append(part.whole)
            n_empty += part.n_empty
            special_token = special_token or part.special_token
    np.save(folder / LENGTHS, np.concatenate(lengths))
    np.save(folder / WHOLE, np.concatenate(whole))
    write_json(folder / ABOUT, {"n_empty": n_empty, "special_token": special_token})


def _mapped(folder: Path) -> Encoded:
    about = read_json(folder / ABOUT)
    flat = np.memmap(folder / FLAT, dtype=np.int32, mode="r")
    tokens = Ragged.packed(flat, np.load(folder / LENGTHS))
    return Encoded(tokens, np.load(folder / WHOLE), about["n_empty"], about["special_token"])


@dataclass(frozen=True)
class DistinctTexts:
    """The different texts of a column as tokens, found by their hashes."""

    encoded: Encoded
    sorted_hashes: np.ndarray
    number_of: np.ndarray  # of each sorted hash, the text's number in `encoded`

    @classmethod
    def of(cls, encoded: Encoded, hashes: np.ndarray) -> DistinctTexts:
        order = np.argsort(hashes)
        return cls(encoded, hashes[order], order.astype(np.int32))

    def numbers(self, hashes: np.ndarray) -> np.ndarray | None:
        """The numbers (N,) of the texts with these hashes; None if one of them is not there."""
        places = np.minimum(np.searchsorted(self.sorted_hashes, hashes), len(self.sorted_hashes) - 1)
        return self.number_of[places] if (self.sorted_hashes[places] == hashes).all() else None


def some(texts: Sequence[Target], rows: np.ndarray) -> Sequence[Target]:
    """The texts of some rows; all of them are not copied."""
    return texts if len(rows) == len(texts) else take(texts, rows)
