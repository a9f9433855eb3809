"""The documents of a file, one at a time.

Promise: what a person can mend about a file is an error that names it, the line, row or column, and
the fix, never the text itself (P11). A column that is not there is found before anything is
prepared, with the columns that are.
Trap avoided: a document is held in memory whole, so its size has a limit with a name. A CSV row
with a cell too many, which most readers cut off in silence, is a comma that was not quoted.
"""

import csv
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from lmtraining_api.job import Data
from lmtraining_trainer.data.source_errors import data_error, shown_names
from lmtraining_trainer.data.sources import SourceFile, list_sources, opened
from lmtraining_trainer.errors import TrainerError

DOCUMENT_BYTES_MAX = 256 * 1024 * 1024
#: Files of a source that are looked into before all of them are read, spread over all.
FILES_LOOKED_INTO_MAX = 64

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def documents(file: SourceFile) -> Generator[str]:
    """The documents of a file in order, empty ones left out. Raises TrainerError."""
    if file.size_bytes == 0:  # what other programs leave to say that they are done
        return
    with opened(file) as stream:
        for text in _texts(file, stream):
            if text:
                yield text


#: Gives what a file holds, in order.
Reader = Callable[[SourceFile], Generator[object]]


def records(file: SourceFile) -> Generator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines in order, each with its line. Raises TrainerError."""
    if file.size_bytes == 0:
        return
    with opened(file) as stream:
        yield from _records(file, stream)


def text_of(file: SourceFile, record: dict[str, Any], line: int) -> str:
    """The text of a record. Raises TrainerError(DATA)."""
    field = file.source.text_field
    if field not in record:
        raise missing_column(file, _line(line), "field", list(record))
    text = record[field]
    if not isinstance(text, str):
        raise data_error(
            "NotText",
            f'{file.name} line {line}: field "{field}" is not a string: mend that line',
        )
    return encodable(file, text, line)


def check_sources(data: Data, credentials: Path, read: Reader = documents) -> int | None:
    """The bytes of all files, None where a file system does not say; raises what `list_sources` and
    `check_records` raise. It reads little text, and no torch is imported for it, so it can refuse a
    job before the ranks start."""
    train, validation = list_sources(data, credentials)
    check_records((*train, *validation), read)
    sizes = [file.size_bytes for file in (*train, *validation)]
    return None if None in sizes else sum(size or 0 for size in sizes)


def check_records(files: Sequence[SourceFile], read: Reader) -> None:
    """Read the first that `read` gives of the files that hold records, of at most
    FILES_LOOKED_INTO_MAX a source. Raises what reading them raises, a column that is not there
    among it."""
    for _, group in groupby(files, key=lambda file: file.field):
        of_source = [file for file in group if file.format != "text"]
        step = -(-len(of_source) // FILES_LOOKED_INTO_MAX) or 1
        for file in of_source[::step]:
            with closing(read(file)) as found:
                next(found, None)


def missing_column(
    file: SourceFile,
    where: str,
    kind: str,
    there: Sequence[str],
    *,
    of: Literal["text", "label"] = "text",
) -> TrainerError:
    """`where` in the file there is no such `kind` (field, column) as textField, or labelField,
    names."""
    wanted = file.source.text_field if of == "text" else file.source.label_field
    option = f"{file.field.removesuffix('uri')}{of}Field"
    return data_error(
        "MissingField",
        f'{file.name}{where} has no {kind} "{wanted}", but {shown_names(there, kind)}: set '
        f"{option} to the {kind} that holds the {of}, or mend the file",
    )


def too_large(file: SourceFile, where: str) -> TrainerError:
    """A document of more than DOCUMENT_BYTES_MAX."""
    return data_error(
        "DocumentTooLarge",
        f"{file.name}{where} has more than {DOCUMENT_BYTES_MAX // 2**20} MB: split that document",
    )


def not_utf8(file: SourceFile, where: str) -> TrainerError:
    """Bytes that spell no text."""
    return data_error(
        "NotUtf8",
        f"{file.name}{where} is not UTF-8: convert the file, or leave it out of the uri",
    )


def _texts(file: SourceFile, stream: Any) -> Iterator[str]:
    match file.format:
        case "jsonl":
            return _of_jsonl(file, stream)
        case "csv":
            return _of_csv(file, stream)
        case "parquet":  # pyarrow takes a while to import, which only this should wait for
            from lmtraining_trainer.data.parquet import parquet_texts  # noqa: PLC0415

            return parquet_texts(file, stream)
        case _:
            return iter([_whole(file, stream)])


def _whole(file: SourceFile, stream: Any) -> str:
    content = stream.read(DOCUMENT_BYTES_MAX + 1)
    if len(content) > DOCUMENT_BYTES_MAX:
        raise data_error(
            "DocumentTooLarge",
            f"{file.name} has more than {DOCUMENT_BYTES_MAX // 2**20} MB, and with format text a "
            "file is one document: split it, or use format jsonl",
        )
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise not_utf8(file, _line(line)) from None


def _of_jsonl(file: SourceFile, stream: Any) -> Iterator[str]:
    for number, record in _records(file, stream):
        yield text_of(file, record, number)


def _records(file: SourceFile, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(file, stream), start=1):
        if line.strip():
            yield number, _record(file, line, number)


def _lines(file: SourceFile, stream: Any) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(DOCUMENT_BYTES_MAX + 1):
        number += 1
        if len(line) > DOCUMENT_BYTES_MAX:
            raise too_large(file, _line(number))
        yield line


def _record(file: SourceFile, line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(str(line, "utf-8"))
    except UnicodeDecodeError:
        raise not_utf8(file, _line(number)) from None
    except (ValueError, RecursionError):
        raise data_error(
            "NotJson", f"{file.name} line {number} is not JSON: mend that line, or use format text"
        ) from None
    if not isinstance(record, dict):
        raise data_error(
            "NotAnObject",
            f"{file.name} line {number} is not a JSON object: write "
            f'{{"{file.source.text_field}": "…"}}',
        )
    return record


def encodable(file: SourceFile, text: str, number: int) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise not_utf8(file, _line(number)) from None
    return text


def _of_csv(file: SourceFile, stream: Any) -> Iterator[str]:
    # A limit of the module; every file has the same one.
    csv.field_size_limit(DOCUMENT_BYTES_MAX)
    rows = _rows(file, csv.reader(_csv_lines(file, stream), strict=True))
    _, header = next(rows, (1, None))
    if header is None:
        return
    column = _column(file, header)
    for number, row in rows:
        if len(row) != len(header):
            raise data_error(
                "UnevenRow",
                f"{file.name} line {number} has {len(row)} cells, the header {len(header)}: mend "
                'that row (a cell with a comma or a line end stands in "quotes")',
            )
        yield row[column]


def _column(file: SourceFile, header: list[str]) -> int:
    wanted = file.source.text_field
    if wanted not in header:
        raise missing_column(file, "", "column", header)
    if header.count(wanted) > 1:
        raise data_error(
            "AmbiguousField",
            f'{file.name} has {header.count(wanted)} columns "{wanted}": rename all but one',
        )
    return header.index(wanted)


def _rows(file: SourceFile, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line it begins in."""
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:  # its text may quote what it read
            raise data_error(
                "NotCsv",
                f"{file.name}: the row that begins in line {number} is not CSV: mend its quotes "
                '("" within quotes stands for one) and its line ends, or use format text',
            ) from None
        if row:
            yield number, row


def _csv_lines(file: SourceFile, stream: Any) -> Iterator[str]:
    for number, line in enumerate(_lines(file, stream), start=1):
        try:
            yield str(line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line, "utf-8")
        except UnicodeDecodeError:
            raise not_utf8(file, _line(number)) from None


def _line(number: int) -> str:
    return f" line {number}"
