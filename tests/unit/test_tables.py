"""What is read of a table that somebody sent, and what is said of a file that is none."""

import codecs

import pytest

from project.imports.tables import COLUMNS, MAX_COLUMNS, MAX_ROWS, Row, TableError, read_table
from tests.cases import cases

HEAD = b"name,country,latitude,longitude\n"
LINE = b"Oslo,Norway,59.9,10.7\n"
OSLO = {"name": "Oslo", "country": "Norway", "latitude": "59.9", "longitude": "10.7"}

TABLES = [
    (HEAD + LINE, [Row(2, OSLO)]),
    (codecs.BOM_UTF8 + HEAD + LINE, [Row(2, OSLO)]),
    (HEAD.replace(b"\n", b"\r\n") + LINE.replace(b"\n", b"\r\n"), [Row(2, OSLO)]),
    (HEAD + b"\n" + LINE, [Row(3, OSLO)]),  # an empty line is no row
    (HEAD + LINE.rstrip(), [Row(2, OSLO)]),
    (b"longitude,x,name,country,latitude\n10.7,,Oslo,Norway,59.9\n", [Row(2, OSLO)]),
    (HEAD + b"Oslo,Norway\n", [Row(2, OSLO | {"latitude": "", "longitude": ""})]),
    (HEAD + LINE.rstrip() + b",more,cells\n", [Row(2, OSLO)]),
    (HEAD + b'"Os\nlo",Norway,59.9,10.7\n', [Row(3, OSLO | {"name": "Os\nlo"})]),  # the line in which it ends
    (HEAD + "Ålesund,Norway,59.9,10.7\n".encode(), [Row(2, OSLO | {"name": "Ålesund"})]),
]
WRONG = [
    (b"", "lacks name, country, latitude, longitude"),
    (b"\n\n", "lacks name, country, latitude, longitude"),
    (HEAD, "no rows"),
    (HEAD.replace(b",", b";") + LINE, "lacks name, country"),
    (HEAD.replace(b",latitude", b"") + LINE, "lacks latitude"),
    (HEAD + b"\xc5lesund,Norway,59.9,10.7\n", "Line 2 is not text in UTF-8"),
    ("name\n".encode("utf-16"), "Line 1 is not text in UTF-8"),
    (b"\x89PNG\r\n\x1a\n", "Line 1 is not text in UTF-8"),
    (HEAD + b"Os\x00lo,Norway,59.9,10.7\n", "not a text file"),
    (HEAD + b'"Oslo,Norway\n', "is not CSV: unexpected end of data"),
    (HEAD + b'"Oslo"x,Norway,59.9,10.7\n', "Line 2 is not CSV"),
    (HEAD + b"x" * 200_000, "field larger than field limit"),
    (HEAD.rstrip() + b",x" * (MAX_COLUMNS - len(COLUMNS) + 1), "51 columns are too many: at most 50."),
    (HEAD + LINE * (MAX_ROWS + 1), "more than 10,000 rows"),
]


@cases(("data", "rows"), TABLES)
def test_a_table_is_read_as_it_is(data, rows):
    """Whatever wrote the file, its rows have the cells of the columns that are wanted, and the lines they end in."""
    assert read_table(data) == rows


@cases(("data", "reason"), WRONG)
def test_what_is_no_table_is_told_why(data, reason):
    """A file of another sort, or one that is too large, is refused with words for whoever sent it."""
    with pytest.raises(TableError, match=reason):
        read_table(data)


def test_the_largest_table_is_read():
    """The limits are what is still allowed."""
    head = HEAD.rstrip() + b",x" * (MAX_COLUMNS - len(COLUMNS)) + b"\n"

    assert len(read_table(head + LINE * MAX_ROWS)) == MAX_ROWS
