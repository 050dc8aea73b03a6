"""Documents out of files, in pieces of bounded size.

Invariants:

* A fragment is at most ``FRAGMENT_CHARS + BLOCK_BYTES`` characters, whatever the file.
* Where a long document is cut depends on its text alone: never on memory, workers or resuming.
* A document that is blank is left out.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from coordinator.data import embedded
from coordinator.data.inputs import InputFile
from coordinator.data.options import BuildOptions
from protocol.errors import UsageError

FRAGMENT_CHARS = 128 << 10
BLOCK_BYTES = 64 << 10
MAX_LINE_BYTES = 64 << 20
"""One JSONL record; a longer line is almost surely not JSONL."""
PARQUET_ROWS = 256

_BOM = "\ufeff"


class Fragment(NamedTuple):
    text: str
    ends_document: bool


def read_fragments(file: InputFile, options: BuildOptions) -> Iterator[Fragment]:
    """The documents of one input file, long ones in several fragments.

    Raises:
        UsageError: the file is not what its option says; names file and place.
    """
    item = options.inputs[file.source]
    if item.kind == "text":
        blocks = text_blocks(file.path, options.encoding)
        return _without_blanks(split_documents(blocks, options.separator))
    if item.kind == "shakespeare":
        text = embedded.plain_text(file.path.read_text(encoding="utf-8"))
        return _without_blanks(_fragments_of(text))
    if item.kind == "jsonl":
        documents = jsonl_documents(file.path, item.field, options.encoding)
    else:
        documents = parquet_documents(file.path, item.field)
    return _without_blanks(
        fragment for text in documents for fragment in _fragments_of(_repaired(text))
    )


def text_blocks(path: Path, encoding: str) -> Iterator[str]:
    """A text file, decoded block by block.

    Raises:
        UsageError: not in ``encoding``; names the byte.
    """
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    position = 0
    with _opened(path) as stream:
        while True:
            data = stream.read(BLOCK_BYTES)
            held_back = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                offset = position - held_back + error.start
                raise UsageError(_not_decodable(path, encoding, offset)) from error
            if position == 0:
                text = text.removeprefix(_BOM)
            yield text
            if not data:
                return
            position += len(data)


def split_documents(
    blocks: Iterable[str], separator: str | None, fragment_chars: int = FRAGMENT_CHARS
) -> Iterator[Fragment]:
    """Cut a stream of text at every separator, and long documents where a line ends."""
    # A separator that has only partly arrived must stay in the buffer.
    keep = len(separator) - 1 if separator else 0
    buffer = ""
    is_open = False
    for block in blocks:
        buffer += block
        if separator:
            *closed, buffer = buffer.split(separator)
            for text in closed:
                yield Fragment(text, True)
                is_open = False
        while len(buffer) >= fragment_chars + keep:
            cut = _cut_point(buffer, fragment_chars)
            yield Fragment(buffer[:cut], False)
            buffer = buffer[cut:]
            is_open = True
    if buffer or is_open:
        yield Fragment(buffer, True)


def jsonl_documents(path: Path, field: str, encoding: str) -> Iterator[str]:
    """The text field of every line.

    Raises:
        UsageError: naming file and line.
    """
    with _opened(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise UsageError(
                    f"{where}: line of more than {MAX_LINE_BYTES} bytes: is this JSONL "
                    "(one JSON object on each line)?"
                )
            if line.strip():
                yield _field_of(_parse_line(line, where, encoding), field, where)


def parquet_documents(path: Path, field: str) -> Iterator[str]:
    """A string column, a few rows at a time; null rows are left out.

    Raises:
        UsageError: not parquet, no such column, or not text.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{path} is not a parquet file: {error}") from error
    with table:
        _check_column(path, table.schema_arrow, field)
        try:
            for rows in table.iter_batches(PARQUET_ROWS, columns=[field], use_threads=False):
                for value in rows.column(0):
                    text = value.as_py()
                    if text is not None:
                        yield text
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: column '{field}' is damaged: {error}") from error


def _check_column(path: Path, schema: Any, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        raise UsageError(
            f"{path} has no column '{field}'; choose with --field one of: {', '.join(schema.names)}"
        )
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UsageError(f"{path}: column '{field}' is {kind}, not text: choose with --field")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _not_decodable(path: Path, encoding: str, offset: int) -> str:
    return (
        f"{path}: byte {offset} is not {encoding}: give the right --encoding, or convert it: "
        f"iconv -f latin1 -t utf-8 {path.name} > fixed.txt"
    )


def _parse_line(line: bytes, where: str, encoding: str) -> object:
    try:
        return json.loads(line.decode(encoding).removeprefix(_BOM))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where}: byte {error.start} of the line is not {encoding}: give the right --encoding"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not a JSON object: {error}") from error


def _field_of(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UsageError(f"{where}: not a JSON object but {type(record).__name__}")
    if field not in record:
        known = ", ".join(sorted(record)[:20]) or "(none)"
        raise UsageError(f"{where}: no field '{field}'; choose with --field one of: {known}")
    text = record[field]
    if not isinstance(text, str):
        raise UsageError(f"{where}: field '{field}' is {type(text).__name__}, not a string")
    return text


def _repaired(text: str) -> str:
    """JSON may escape half a surrogate pair, which no tokenizer takes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _fragments_of(text: str) -> Iterator[Fragment]:
    blocks = (text[i : i + BLOCK_BYTES] for i in range(0, len(text), BLOCK_BYTES))
    return split_documents(blocks, None)


def _cut_point(buffer: str, limit: int) -> int:
    """Where to cut, at most ``limit``: after a line, else before a word, else there."""
    line = buffer.rfind("\n", 0, limit)
    if line >= 0:
        return line + 1
    # Byte-level tokenizers glue a space to the word that follows it.
    space = buffer.rfind(" ", 1, limit)
    return space if space > 0 else limit


def _without_blanks(fragments: Iterable[Fragment]) -> Iterator[Fragment]:
    is_open = False
    for fragment in fragments:
        if is_open or fragment.text.strip():
            yield fragment
            is_open = not fragment.ends_document
