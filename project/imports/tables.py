"""Reading a table from a CSV file that somebody sent, which may be anything."""

import csv
import io
from itertools import islice
from typing import NamedTuple

COLUMNS = ("name", "country", "latitude", "longitude")
"""What the first line of a file has to name, in any order; it may name more."""
MAX_COLUMNS = 50
MAX_ROWS = 10_000


class TableError(Exception):
    """The file is no table that can be imported; the message gives the reason to its owner."""


class Row(NamedTuple):
    line: int
    cells: dict[str, str]


def read_table(data: bytes) -> list[Row]:
    """
    Return the rows of a CSV file in UTF-8, with or without a byte order mark.

    Another encoding is not guessed: a wrong guess would fill the database with wrong names.

    Raises:
        TableError: If it is not such a file, or has too many rows or columns.

    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(f"Line {line:,} is not text in UTF-8. From a spreadsheet, save it as “CSV UTF-8”.") from error
    if "\0" in text:
        raise TableError("This is not a text file.")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if missing := [column for column in COLUMNS if column not in columns]:
            raise TableError(f"The first line has to name the columns, but lacks {', '.join(missing)}.")
        if len(columns) > MAX_COLUMNS:
            raise TableError(f"{len(columns):,} columns are too many: at most {MAX_COLUMNS}.")
        rows = [
            Row(reader.reader.line_num, {column: row[column] or "" for column in COLUMNS})
            for row in islice(reader, MAX_ROWS + 1)
        ]
    except csv.Error as error:
        raise TableError(f"Line {reader.reader.line_num:,} is not CSV: {error}.") from error
    if len(rows) > MAX_ROWS:
        raise TableError(f"These are more than {MAX_ROWS:,} rows.")
    if not rows:
        raise TableError("There are no rows in it.")
    return rows
