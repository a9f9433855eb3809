"""The documents of a Parquet file.

Promise: memory is bounded by a batch of rows and one page, whatever the size of a row group; what
is broken names the file and the row group or the row.
Trap avoided: pyarrow fetches whole column chunks, which for the text of one row group can be
gigabytes, unless it is given a buffer and told not to read ahead, both.
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmtraining_trainer.data.documents import (
    DOCUMENT_BYTES_MAX,
    missing_column,
    not_utf8,
    too_large,
)
from lmtraining_trainer.data.source_errors import data_error, shown_names
from lmtraining_trainer.data.sources import SourceFile
from lmtraining_trainer.errors import TrainerError

READ_BYTES = 1024 * 1024
#: A batch has as many rows as are about so large, and no more than that many.
BATCH_BYTES = 8 * 1024 * 1024
BATCH_ROWS_MAX = 1024


def parquet_texts(file: SourceFile, stream: Any) -> Iterator[str]:
    """The strings of the column that textField names, in order. `stream` is the file in bytes.
    Raises TrainerError."""
    table = _opened(file, stream)
    _check_column(file, table.schema_arrow)
    row = 0
    for group in range(table.num_row_groups):
        for batch in _batches(file, table, group):
            for value in batch.column(0):
                row += 1
                yield _text(file, value, row)


def _opened(file: SourceFile, stream: Any) -> Any:
    try:
        stream.seek(0, os.SEEK_END)
    except ValueError as error:  # what fsspec says of a server without ranges
        raise data_error(
            "NotSeekable",
            f"{file.name} is on a server that gives no parts of a file, and format parquet begins "
            "at its end: copy it to other storage, or use format jsonl",
        ) from error
    try:
        return pq.ParquetFile(
            stream, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True
        )
    except Exception as error:
        if not _is_arrows(error):
            raise
        raise data_error(
            "NotParquet",
            f"{file.name} is not a Parquet file, or was cut short: write it anew, or correct "
            "format",
        ) from None


def _check_column(file: SourceFile, schema: Any) -> None:
    wanted, names = file.source.text_field, list(schema.names)
    if wanted not in names:
        raise missing_column(file, "", "column", names)
    if names.count(wanted) > 1:
        raise data_error(
            "AmbiguousField",
            f'{file.name} has {names.count(wanted)} columns "{wanted}": rename all but one',
        )
    if not _holds_strings(schema.field(wanted).type):
        strings = [name for name in names if _holds_strings(schema.field(name).type)]
        raise data_error(
            "NotText",
            f'{file.name}: column "{wanted}" holds {schema.field(wanted).type}, not strings, of '
            f"which {shown_names(strings, 'column')}: set "
            f"{file.field.removesuffix('uri')}textField to the column that holds the text",
        )


def _holds_strings(kind: Any) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value in (pa.string(), pa.large_string(), pa.string_view())


def _batches(file: SourceFile, table: Any, group: int) -> Iterator[Any]:
    wanted = file.source.text_field
    try:
        yield from table.iter_batches(
            batch_size=_batch_rows(table.metadata.row_group(group), wanted),
            row_groups=[group],
            columns=[wanted],
            use_threads=False,
        )
    except Exception as error:
        if not _is_arrows(error):
            raise
        raise data_error(
            "CorruptRowGroup",
            f"{file.name} row group {group} (of 0 to {table.num_row_groups - 1}) cannot be "
            f'decoded, column "{wanted}": write the file anew, or leave it out of the uri',
        ) from None


def _batch_rows(group: Any, column: str) -> int:
    leaves = (group.column(index) for index in range(group.num_columns))
    size = sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema == column)
    rows = BATCH_BYTES * int(group.num_rows) // max(1, int(size))
    return max(1, min(BATCH_ROWS_MAX, rows))


def _text(file: SourceFile, value: Any, row: int) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError:
        raise not_utf8(file, f" row {row}") from None
    if text is None:
        raise _null(file, row)
    if len(text) > DOCUMENT_BYTES_MAX:
        raise too_large(file, f" row {row}")
    return str(text)


def _null(file: SourceFile, row: int) -> TrainerError:
    return data_error(
        "NotText",
        f'{file.name} row {row}: column "{file.source.text_field}" is null: write the file without '
        "that row, or with an empty string",
    )


def _is_arrows(error: Exception) -> bool:
    """Whether it is about what was read: what the reading itself raises has a type of its own, or
    an errno."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)
