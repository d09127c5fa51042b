"""What a Parquet or Arrow file takes in memory, by what it says of itself, before anything is unpacked.

A few bytes can stand for gigabytes: compressed, as one value repeated, as a prefix shared by many texts, as nulls that
take no room. Sizes are in bytes; a value takes at least a pointer's in a list of Python.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

POINTER = 8
MAGIC = 8  # bytes before the messages of an Arrow file
DICTIONARY, RECORDS = 2, 3  # kinds of messages that hold data
SHARED_PREFIXES = "DELTA_BYTE_ARRAY"
NO_DICTIONARY = (SHARED_PREFIXES, "DELTA_LENGTH_BYTE_ARRAY")  # encodings that pyarrow reads into no dictionary


# ------------------------------------------------------------------------------------------------------------- Parquet


def of_parquet(metadata: "pyarrow.parquet.FileMetaData") -> int:
    """The bytes of a file's values; of texts that share prefixes, more come to light when they are read."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widths = [max(POINTER, leaf.length) for leaf in _leaves(metadata)]
    values = sum(width * group.column(j).num_values for group in groups for j, width in enumerate(widths))
    return max(values, sum(group.total_byte_size for group in groups))


def texts_to_share(metadata: "pyarrow.parquet.FileMetaData") -> list[str]:
    """The columns of texts, however deep, that can be read as a dictionary: equal texts are one."""
    texts = [(j, leaf) for j, leaf in enumerate(_leaves(metadata)) if leaf.physical_type == "BYTE_ARRAY"]
    return [leaf.path for j, leaf in texts if not _encodings(metadata, j).intersection(NO_DICTIONARY)]


def parts(file: "pyarrow.parquet.ParquetFile", most: int) -> Iterator["pyarrow.Table"]:
    """The rows of a file, by its groups (there is no dictionary over several), or by about `most` bytes where it does
    not say what they take."""
    import pyarrow

    n_rows = _rows_at_once(file.metadata, most)
    for group in range(file.num_row_groups):
        if n_rows is None:
            yield file.read_row_group(group)
        else:
            for batch in file.iter_batches(batch_size=n_rows, row_groups=[group]):
                yield pyarrow.Table.from_batches([batch])


def _rows_at_once(metadata: "pyarrow.parquet.FileMetaData", most: int) -> int | None:
    columns = [j for j in range(metadata.num_columns) if SHARED_PREFIXES in _encodings(metadata, j)]
    if not columns:
        return None
    chunks = (metadata.row_group(i).column(j) for i in range(metadata.num_row_groups) for j in columns)
    return max(1, most // max(1, *(chunk.total_uncompressed_size for chunk in chunks)))  # a text is at most that long


def _leaves(metadata: "pyarrow.parquet.FileMetaData") -> list[Any]:
    return [metadata.schema.column(j) for j in range(metadata.num_columns)]


def _encodings(metadata: "pyarrow.parquet.FileMetaData", column: int) -> set[str]:
    return {name for i in range(metadata.num_row_groups) for name in metadata.row_group(i).column(column).encodings}


# --------------------------------------------------------------------------------------------------------------- Arrow


def of_arrow(stream: "pyarrow.Buffer") -> int:
    """The bytes of a stream's values and buffers. Raises ArrowException or struct.error if it is none."""
    from pyarrow import ipc

    total = 0
    for message in _messages(ipc.MessageReader.open_stream(stream)):
        metadata = message.metadata.to_pybytes()
        root = _indirect(metadata, 0)
        kind, header = metadata[_field(metadata, root, 1)], _field(metadata, root, 2)
        if kind in (DICTIONARY, RECORDS) and header:
            batch = _indirect(metadata, header)
            if kind == DICTIONARY:
                batch = _indirect(metadata, _field(metadata, batch, 1))
            total += _of_batch(metadata, batch, memoryview(message.body))
    return total


def _messages(reader: Any) -> Iterator[Any]:
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _of_batch(metadata: bytes, batch: int, body: memoryview) -> int:
    """Of a RecordBatch: https://github.com/apache/arrow/blob/main/format/Message.fbs."""
    values = POINTER * sum(length for length, _ in _pairs(metadata, batch, 1))
    buffers = _pairs(metadata, batch, 2)
    if not _field(metadata, batch, 3):
        return max(values, sum(length for _, length in buffers))
    # A compressed buffer begins with its length; −1 says that it is none.
    lengths = ((struct.unpack_from("<q", body, start)[0], length) for start, length in buffers if length > 0)
    return max(values, sum(max(unpacked, length) for unpacked, length in lengths))


def _pairs(data: bytes, table: int, field: int) -> list[tuple[int, int]]:
    """A vector of pairs of 64-bit integers."""
    place = _field(data, table, field)
    if not place:
        return []
    start = _indirect(data, place)
    (count,) = struct.unpack_from("<I", data, start)
    return list(struct.iter_unpack("<qq", data[start + 4 : start + 4 + 16 * count]))


def _field(data: bytes, table: int, number: int) -> int:
    """The place of a table's field, 0 if it is absent (https://flatbuffers.dev/internals)."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, fields)
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", data, fields + at)[0] if at < size else 0
    return table + offset if offset else 0


def _indirect(data: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", data, place)[0]


def unreadable_type(kind: "pyarrow.DataType", *, is_column: bool = True) -> "pyarrow.DataType | None":
    """The first type in a column's whose values may share what they hold, so that sizes say nothing; None for most.

    A column of views of texts is one of the exceptions: `of_views` knows what it holds.
    """
    from pyarrow import types

    shares = (types.is_list_view, types.is_large_list_view, types.is_run_end_encoded, types.is_union)
    if any(is_such(kind) for is_such in shares) or (_is_view(kind) and not is_column):
        return kind
    inner = [kind.value_type] if types.is_dictionary(kind) else [kind.field(i).type for i in range(kind.num_fields)]
    return next(filter(None, (unreadable_type(each, is_column=False) for each in inner)), None)


def of_views(column: "pyarrow.ChunkedArray") -> int:
    """The bytes of a column's texts if it is one of views, which may all show the same text; 0 for another."""
    if not _is_view(column.type):
        return 0
    total = 0
    for chunk in column.chunks:
        lengths = np.frombuffer(chunk.buffers()[1], dtype=np.int32)[::4]
        total += int(lengths[chunk.offset : chunk.offset + len(chunk)].sum(dtype=np.int64))
    return total


def _is_view(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_string_view(kind) or types.is_binary_view(kind)


# ------------------------------------------------------------------------------------------------------ lists of Python


def as_list(column: "pyarrow.ChunkedArray") -> list:
    """The values. Equal texts of a dictionary are one string, however deep: one that is there 48 times counts once."""
    return [value for chunk in column.chunks for value in _as_list(chunk)]


def _as_list(array: "pyarrow.Array") -> list:
    from pyarrow import types

    kind = array.type
    if not _holds_dictionary(kind):
        return array.to_pylist()
    if types.is_dictionary(kind):
        array.validate(full=True)  # a damaged file may have indices beyond the dictionary
        words = _as_list(array.dictionary)
        return [None if index is None else words[index] for index in array.indices.to_pylist()]
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        fields = (_as_list(array.field(i)) for i in range(kind.num_fields))
        rows: list = [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]
    elif types.is_fixed_size_list(kind):
        values, size = _as_list(array.values), kind.list_size
        rows = [values[size * i : size * (i + 1)] for i in range(array.offset, array.offset + len(array))]
    else:
        pairs = zip(_as_list(array.keys), _as_list(array.items), strict=True) if types.is_map(kind) else None
        values = _as_list(array.values) if pairs is None else list(pairs)
        rows = [values[start:end] for start, end in pairwise(array.offsets.to_pylist())]
    return [row if is_there else None for row, is_there in zip(rows, array.is_valid().to_pylist(), strict=True)]


def _holds_dictionary(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_dictionary(kind) or any(_holds_dictionary(kind.field(i).type) for i in range(kind.num_fields))
