"""Reads the rows of Parquet and Arrow files; only this module uses pyarrow."""

import datetime
import decimal
import importlib
import pathlib
from collections.abc import Iterator
from typing import Any

from rlhf_jax.data import files
from rlhf_jax.runtime.errors import InputError


class Binary(str):
    """Placeholder for binary data in a row: a note such as '<100 bytes>', which is no text to train on."""


def read(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields ('file:number', row as a dict), with rows counted from 1.

    Raises:
        InputError: the file is missing, broken or without rows; it expands to far more text than its size explains; or
            pyarrow is not installed.
    """
    files.check_content(path)
    if not path.is_file():
        raise files.missing(path)
    pyarrow = _pyarrow(path)
    left = max(files.ALWAYS_ALLOWED_BYTES, files.MAX_RATIO * path.stat().st_size)
    number = 0
    try:
        for batch in _batches(path, pyarrow):
            for row in batch.to_struct_array():
                number += 1
                row, size = _plain(row.as_py())
                if (left := left - size) < 0:
                    raise files.expands_too_far(path, "write it as JSON lines")
                yield f"{path}:{number}", row
    except InputError:
        raise
    # A column with invalid UTF-8 raises ValueError; the others are pyarrow's errors for a broken file.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable {path.suffix} file, after row {number} ({detail}); copy it again"
        ) from None
    if not number:
        raise InputError(f"{path}: the file has no rows")


def _batches(path: pathlib.Path, pyarrow) -> Iterator[Any]:
    """Yields the record batches of a Parquet or Arrow file."""
    if path.suffix == ".parquet":
        parquet = importlib.import_module("pyarrow.parquet")
        with parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
        texts = {leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"}
        # Dictionary columns keep a repeated text in memory only once. pyarrow has none inside nested columns, so files
        # with nested texts are read in small batches.
        once = [name for name in texts if "." not in name]
        with parquet.ParquetFile(path, read_dictionary=once) as file:
            yield from file.iter_batches(batch_size=1024 if len(once) == len(texts) else 64)
        return
    ipc = importlib.import_module("pyarrow.ipc")
    with pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = ipc.open_file(file)
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
        else:  # the streaming format, which `datasets` writes
            file.seek(0)
            yield from ipc.open_stream(file)


def _plain(value: Any) -> tuple[Any, int]:
    """Returns a value with JSON's types only, and its approximate size in memory, in bytes."""
    if isinstance(value, dict):
        pairs = {name: _plain(entry) for name, entry in value.items()}
        return {name: pair[0] for name, pair in pairs.items()}, sum(pair[1] for pair in pairs.values())
    if isinstance(value, (list, tuple)):  # pyarrow gives a map as a list of pairs
        entries = [_plain(entry) for entry in value]
        return [entry[0] for entry in entries], sum(entry[1] for entry in entries)
    if isinstance(value, str):
        return value, len(value)
    if isinstance(value, decimal.Decimal):
        return float(value), 8
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat(), 8
    if isinstance(value, bytes):
        return Binary(f"<{len(value)} bytes>"), len(value)
    return (value if isinstance(value, (bool, int, float, type(None))) else str(value)), 8


def _pyarrow(path: pathlib.Path):
    """Imports and returns pyarrow; raises InputError if it is not installed."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise InputError(
            f"{path}: {path.suffix} files are read with pyarrow, which is not installed: "
            "pip install 'rlhf_jax[parquet]'"
        ) from None
