"""The tables of `test_bad_inputs.py`: what a user may give, and what must happen.

A row is a named tuple, or a name and what belongs to it. What must happen is what is read (texts, rows), or a `Refused`
with a pattern that the one line of the error holds.
"""

import decimal
import gzip
import json
import math
import os
import pickle
import zipfile
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import Bomb


class Refused(str):
    """A pattern that the sentence of an `InputError` holds."""


# Texts that are odd and still texts: name -> the text, or (the text, another that must get the same probabilities).
ODD_TEXTS = {
    "empty": "",
    "one blank": " ",
    "only white space": "\t\n\r \u00a0\u3000\u2028",
    "one character": "a",
    "a million characters": ("word " * 200_000, "word " * 1_000),
    "one word of a million characters": ("x" * 1_000_000, "x" * 100_000),
    "a NUL": "a\0b",
    "only NULs": "\0" * 50,
    "control characters": "".join(map(chr, range(1, 32))),
    "C1 control characters": "".join(map(chr, range(0x7F, 0xA0))),
    "an escape sequence of a terminal": "\x1b[31mred\x1b[0m",
    "half a surrogate pair, high": ("\ud800", "?"),
    "half a surrogate pair, low": ("oil \udc80 price", "oil ? price"),
    "two halves in the wrong order": ("\udc00\ud800", "??"),
    "emoji": "🏀⚽",
    "an emoji of seven code points": "👩\u200d👩\u200d👧\u200d👦",
    "an emoji with skin tone and selector": "👍🏽 ☎\ufe0f",
    "flags": "🇩🇪🇫🇷",
    "right to left": "العربية עברית",
    "overridden direction": "\u202egnp.exe\u202c \u2066a\u2069",
    "Chinese without blanks": "石油价格上涨",
    "a script of four bytes a character": "𐍈𒀀𓀀𠜎",
    "a private character and a noncharacter": "\ue000\uffff\U0010ffff",
    "only punctuation": "!!!???...",
    "only digits": "0123456789" * 10,
    "HTML": "<script>alert('x')</script><b>&amp;</b>",
    "special tokens of the model": "<s></s><pad><mask><unk>",
    "combining marks": "Z\u0351\u036b\u0343" * 100,
    "composed and decomposed": "caf\u00e9 cafe\u0301",
    "zero width": "\u200b\u200c\u200d\u2060",
    "a byte order mark": "\ufeffoil",
    "a replacement character": "\ufffd\ufffd",
    "mixed line ends": "a\nb\r\nc\rd\x85e\u2028f",
    "a formula": "=1+1",
    "a format string": "%s %n {0} ${HOME}",
    "a path": "../../etc/passwd",
    "a string of numpy": np.str_("oil"),
}

# What stands in a list of texts and is no text.
NO_TEXTS = {
    "None": None, "NaN": math.nan, "infinity": math.inf, "int": 7, "float": 0.5, "complex": 1j, "True": True,
    "bytes": b"bytes", "bytearray": bytearray(b"b"), "a list": ["nested"], "lists in lists": [[["deep"]]],
    "a tuple": ("a", "b"), "a dict": {"text": "a"}, "a set": {"a"}, "a range": range(3), "an object": object(),
    "a type": str, "a function": len, "an exception": ValueError("x"), "a path": Path("in.csv"),
    "a date": datetime(2004, 1, 1), "a decimal": decimal.Decimal("1.5"), "pd.NA": pd.NA, "pd.NaT": pd.NaT,
    "np.int64": np.int64(3), "np.float32": np.float32(1), "np.bool": np.True_, "np.bytes": np.bytes_(b"a"),
    "an array of strings": np.array(["a"]), "an array of many lines": np.zeros((9, 9)), "a series": pd.Series(["a"]),
    "a table": pd.DataFrame({"text": ["a"]}), "an ellipsis": ..., "an int of 400 digits": 10**399,
}  # fmt: skip

# In place of a list of texts: the number of rows, or refused.
IN_PLACE_OF_A_LIST = {
    "one string": ("one text", 1),
    "an empty list": ([], 0),
    "a tuple": (("a", "b"), 2),
    "a generator": ((text for text in ("a", "b")), 2),
    "a deque": (deque(["a"]), 1),
    "an array of strings": (np.array(["a", "b", "c"]), 3),
    "a column of a table": (pd.Series(["a", "b"], index=[7, 7]), 2),
    "an empty array": (np.array([]), 0),
    "None": (None, Refused("found NoneType, wanted a list")),
    "a number": (7, Refused("found int")),
    "NaN": (math.nan, Refused("found float")),
    "bytes": (b"bytes", Refused("found bytes")),
    "a dict": ({"text": "a"}, Refused("found dict")),
    "a set, which has no order": ({"a"}, Refused("found set")),
    "a table, which would give its column names": (pd.DataFrame({"text": ["a"]}), Refused("found DataFrame.*column")),
    "an array without a dimension": (np.array("a"), Refused("found ndarray")),
    "pd.NA": (pd.NA, Refused("found NAType")),
    "a column with a gap": (pd.Series(["a", None]), Refused("text 1 is ")),
    "an array of two dimensions": (np.array([["a", "b"]]), Refused(r"text 0 is array\(.*ndarray")),
}


class File(NamedTuple):
    """A file to read: its content (bytes), or what makes it (called with the path; None makes nothing)."""

    name: str
    content: Any
    wanted: Any  # the rows that are read, or Refused


def parquet(columns: dict, **options):
    return lambda path: pq.write_table(pa.table(columns), path, **options)


def twice(path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2 + [pa.array([1])], ["text", "text", "label"]), path)


def broken(change):
    """A parquet file of 1,000 texts and labels, with its bytes changed."""

    def make(path):
        parquet({"text": [f"text {i}" for i in range(1000)], "label": [i % 4 for i in range(1000)]})(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def not_utf8_inside(path):
    """A column that calls itself a string and holds the byte FF."""
    offsets, data = pa.py_buffer(np.array([0, 1], dtype="int32").tobytes()), pa.py_buffer(b"\xff")
    parquet({"text": pa.StringArray.from_buffers(1, offsets, data), "label": [1]})(path)


def packed(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/sheet1.xml", os.urandom(64))


def cannot_be_read(path):
    """A regular file that fails on reading, for root too, whom no permission stops."""
    if os.geteuid() == 0:
        path.symlink_to("/proc/self/mem")  # its first page is never mapped
    else:
        path.write_text("text\na\n")
        path.chmod(0)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
COMPRESSED = gzip.compress(b"text\na\n", mtime=0)
PICKLE = pickle.dumps(["text", "a"])
CHECK_QUOTES = Refused(r"row 2: .*check the quotation marks")

# What no reader of a CSV file takes, canonical or not.
NO_CSV = {
    "missing": File("in.csv", None, Refused("no such file; give a file")),
    "a folder": File("in.csv", Path.mkdir, Refused("a folder, not a file")),
    **({"a pipe": File("in.csv", os.mkfifo, Refused("pipe or a device, not a file"))} if hasattr(os, "mkfifo") else {}),
    "a device": File("in.csv", lambda path: path.symlink_to("/dev/null"), Refused("a pipe or a device")),
    "a link to itself": File("in.csv", lambda path: path.symlink_to(path), Refused("a link that leads to no file")),
    "a link to nothing": File("in.csv", lambda path: path.symlink_to("gone"), Refused("a link that leads to no file")),
    "a name too long": File("x" * 300 + ".csv", None, Refused("no such file")),
    "a name with a NUL": File("a\0b.csv", None, Refused("no such file")),
    "not readable": File("in.csv", cannot_be_read, Refused(r"cannot be read \((Input/output error|Permission denied)")),
    "empty": File("in.csv", b"", Refused("no rows|no documents")),
    "a byte order mark alone": File("in.csv", b"\xef\xbb\xbf", Refused("no rows|no documents")),
    "UTF-16": File("in.csv", "1,a,b\n".encode("utf-16"), Refused("line 1: not UTF-8 .*convert it")),
    "UTF-16 without a mark": File("in.csv", "1,a,b\n".encode("utf-16-le"), Refused(r"row 1: .*'?1\\x00")),
    "UTF-32": File("in.csv", "1,a,b\n".encode("utf-32"), Refused("line 1: not UTF-8")),
    "gzip": File("in.csv", COMPRESSED, Refused("line 1: not UTF-8 .*unpack it")),
    "an archive or a sheet": File("in.csv", packed, Refused("not UTF-8 .*unpack it|row 1")),
    "a pickle": File("in.csv", PICKLE, Refused("line 1: not UTF-8")),
    "a pickle of the old protocol": File("in.csv", pickle.dumps(["a"], protocol=0), Refused("row 1")),
    "Latin-1, far from the beginning": File(
        "in.csv", b"1,a,b\n" * 5000 + b"1,caf\xe9,b\n", Refused("line 5001: not UTF-8 .*0xe9")
    ),
    "half a surrogate pair as bytes": File("in.csv", b"1,a,b\n1,\xed\xa0\x80,b\n", Refused("line 2: not UTF-8")),
    "broken off in a character": File("in.csv", "1,a,é".encode()[:-1], Refused("line 1: not UTF-8")),
    "broken off in a quotation": File("in.csv", b'1,a,b\n2,"c,d\n3,e,f\n', CHECK_QUOTES),
    "text after a quotation": File("in.csv", b'1,a,b\n2,"c"d,e\n', CHECK_QUOTES),
    "too few columns": File("in.csv", b"1,a,b\n2,c\n", Refused("row 2: 2 columns, wanted 3")),
    "too many columns": File("in.csv", b"1,a,b\n2,c,d,e\n", Refused("row 2: 4 columns, wanted 3")),
    "a blank line": File("in.csv", b"1,a,b\n\n2,c,d\n", Refused("row 2: 0 columns, wanted 3")),
    "semicolons": File(
        "in.csv",
        b"1;a, b;c\n",
        Refused("row 1: separated by semicolons, wanted commas in .csv, tabs in .tsv; save it or name it so$"),
    ),
    "tabs": File("in.csv", b"1\ta\tb\n", Refused("row 1: separated by tabs, wanted commas")),
    "bars": File("in.csv", b"class|title|description\n1|a|b\n", Refused("row 1: separated by bars")),
    "semicolons with a header": File(
        "in.csv", b"class;title;description\n1;a;b, c\n", Refused("separated by semicolons")
    ),
    "semicolons and quotation marks": File("in.csv", b'"1";"a";"b"\n', Refused("row 1: separated by semicolons")),
    "tabs and quotation marks": File("in.csv", b'"1"\t"a"\t"b"\n', Refused("row 1: separated by tabs, wanted commas")),
    "semicolons, as Excel says": File("in.csv", b"sep=;\n1;a;b\n", Refused("row 1: separated by semicolons")),
    "commas in .tsv": File(
        "in.tsv", b"class,title,description\n1,a,b\n", Refused("separated by commas, wanted .*, tabs in .tsv")
    ),
    "quoted commas in .tsv": File("in.tsv", b'"1","a","b"\n', Refused("separated by commas, wanted .*, tabs in .tsv")),
    "a space before a quotation mark": File(
        "in.csv", b'1,"a","b"\n2, "c", "d"\n', Refused("row 2: a space before a quotation mark; remove it")
    ),
    "a space before a quotation of two columns": File("in.csv", b'1, "a, b", c\n', Refused("row 1: a space before")),
    "backslashes before quotation marks": File(
        "in.csv", b'1,"a","b"\n2,"say \\"c\\"","d"\n', Refused(r"row 2: quotation marks escaped by backslashes; double")
    ),
    "a backslash before the last quotation mark": File(
        "in.csv", b'1,"say \\"a\\"","b"\n', Refused("row 1: quotation marks escaped by backslashes")
    ),
    "an empty line and one more": File(
        "in.csv", b"1,a,b\n\n\n2,c,d\n\n", Refused("row 2: 0 columns, .*remove the empty")
    ),
    "an empty line before all": File("in.csv", b"\n1,a,b\n", Refused("row 1: 0 columns, wanted 3; remove the empty")),
    "only empty lines": File("in.csv", b"\n\n", Refused("no rows|no documents")),
    "a header after rows without one": File(
        "in.csv", b"1,a,b\nclass,title,description\n2,c,d\n", Refused("row 2: class 'class', wanted 1, 2, 3 or 4")
    ),
    "a header again": File(
        "in.csv",
        b"class,title,description\n1,a,b\nClass,Title,Description\n2,c,d\n",
        Refused("row 3: the header again"),
    ),
    "a header again, with byte order mark and quotation marks": File(
        "in.csv", b'\xef\xbb\xbf"class","title","description"\n"1","a","b"\n' * 2, Refused("row 3: the header again")
    ),
    "a Git LFS pointer": File(
        "in.csv", LFS_POINTER, Refused("a Git LFS pointer in the place of the file; .*git lfs pull")
    ),
    "a list of JSON": File("in.csv", b'[{"text": "a"}]', Refused("row 1: ")),
    "a page of HTML": File("in.csv", b"<!doctype html>\n<html>\n", Refused("row 1: ")),
}

# Files of texts for `read_texts` and `Classifier.predict_file`.
TEXT_FILES = {
    **NO_CSV,
    "a text column": File("in.csv", b"text\na\nb\n", ["a", "b"]),
    "a text column among others": File("in.csv", b"id,Text,label\n1,a,x\n2,b,y\n", ["a", "b"]),
    "a header alone": File("in.csv", b"text\n", Refused("no documents")),
    "no line end at the end": File("in.csv", b"text\na", ["a"]),
    "a byte order mark": File("in.csv", b"\xef\xbb\xbftext\na\n", ["a"]),
    "CRLF": File("in.csv", b"text\r\na\r\nb\r\n", ["a", "b"]),
    "CR": File("in.csv", b"text\ra\rb\r", ["a", "b"]),
    "a line end in quotes": File("in.csv", b'text\n"a\nb"\n"c\r\nd"\n', ["a\nb", "c\r\nd"]),
    "doubled quotes": File("in.csv", b'text\n"say ""a"""\n', ['say "a"']),
    "a quote inside": File("in.csv", b'text\na "b" c\n', ['a "b" c']),
    "an empty text": File("in.csv", b'text,n\n,1\n"",2\n', ["", ""]),
    "a missing value is the word": File("in.csv", b"text\nNaN\nNone\nNULL\n", ["NaN", "None", "NULL"]),
    "a NUL": File("in.csv", b"text\na\0b\n", ["a\0b"]),
    "a field beyond csv's limit of 128 KiB": File("in.csv", b"text\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
    "a quotation left open": File("in.csv", b'text\n"open\nb\n', CHECK_QUOTES),
    "a wrong column": File("in.csv", b"id,words\n1,a\n", Refused("columns 'id, words'; wanted one `text`, or one `title`")),
    "two text columns": File("in.csv", b"text,text\n1,a\n", Refused("wanted one `text`")),
    "a title without a description": File("in.csv", b"title,body\na,b\n", Refused("wanted one `text`")),
    "mixed widths": File("in.csv", b"text,b\na\n", Refused("row 2: 1 columns, wanted 2")),
    "empty lines at the end": File("in.csv", b"text,n\na,1\n\n \n\r\n", ["a"]),
    "empty lines at the end of one column": File("in.csv", b"text\na\n \n\n\n", ["a", ""]),
    "an empty line between texts": File("in.csv", b"text\na\n\nb\n", Refused("row 3: 0 columns, wanted 1; remove the empty")),
    "a header of one column again": File("in.csv", b"text\na\n\xef\xbb\xbfText\nb\n", Refused("row 3: the header again")),
    "a text that begins with a space and a quotation mark": File(
        "in.csv", b'text,n\n" ""a"" b",1\n" "" "" ",2\n', ['"a" b', '" "']
    ),
    "a text that begins with a space and ends with a mark": File("in.csv", b'text,n\n a "b",1\n', ['a "b"']),
    "a text with semicolons and tabs": File("in.csv", b"text,n\na;b;c,1\nd\te,2\n", ["a;b;c", "d\te"]),
    "a text with a backslash": File("in.csv", b'text\n"a\\ ""b\\"""\n', ['a\\ "b\\"']),
    "Kaggle's header": File("in.csv", b"Class Index,Title,Description\n3,a,b\n", ["a b"]),
    "a title and a text": File("in.csv", b"title,text\na,b\n", ["b"]),
    "tab-separated": File("in.tsv", b'text\tn\na, b\t1\n"c\td"\t2\n', ["a, b", "c\td"]),
    "another mark in a header": File("in.csv", b"id;x,text\n1,a; b\n", ["a; b"]),
    "a comma in a header": File("in.tsv", b"last, first\ttext\nDoe\ta, b\n", ["a, b"]),
    "tab-separated without a header": File("IN.TSV", b"1\ta\tb\n4\tc, d\t\n", ["a b", "c, d"]),
    "title and description": File("in.csv", b"Title,Description\na,b\n", ["a b"]),
    "canonical": File("in.csv", b'"3","a","b"\n"4","c","d"\n', ["a b", "c d"]),
    "canonical, the first title is a column's name": File("in.csv", b"1,text,a\n2,b,c\n", ["text a", "b c"]),
    "a suffix in capitals": File("IN.CSV", b"text\na\n", ["a"]),
    "JSON lines": File("in.jsonl", b'{"text": "a"}\n{"text": "b", "n": 1}', ["a", "b"]),
    "JSON lines, blank lines and CRLF": File("in.jsonl", b'\r\n{"text": "a"}\r\n\r\n', ["a"]),
    "JSON lines, a byte order mark": File("in.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
    "JSON lines, escapes": File("in.jsonl", b'{"text": "\\u0000\\n\\ud83c\\udfc0"}\n', ["\0\n🏀"]),
    "JSON lines, half a surrogate pair": File("in.jsonl", b'{"text": "\\ud800"}\n', ["\ud800"]),
    "JSON lines, title and description": File("in.jsonl", b'{"Title": "a", "n": 1, "description": "b"}\n', ["a b"]),
    "JSON lines, columns in another order": File(
        "in.jsonl", b'{"n": "x", "text": "a"}\n{"text": "b", "n": "y"}\n{"title": "c", "description": "d"}\n', ["a", "b", "c d"]
    ),
    "JSON lines, white space around": File("in.jsonl", b'{"text": " a\\n"}\n', ["a"]),
    "JSON lines, an object for a text": File("in.jsonl", b'{"text": {"a": "b"}}\n', Refused("line 1: the text is ")),
    "JSON lines, a Git LFS pointer": File("in.jsonl", LFS_POINTER, Refused("a Git LFS pointer")),
    "JSON lines, joined with a byte order mark": File(
        "in.jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', Refused("line 2: Unexpected UTF-8 BOM")
    ),
    "JSON lines, empty": File("in.jsonl", b"\n\n", Refused("no documents")),
    "JSON lines, a broken line": File("in.jsonl", b'{"text": "a"}\n{"text": \n', Refused("line 2: Expecting value")),
    "JSON lines, cut": File("in.jsonl", b'{"text": "a"}\n{"te', Refused("line 2: Unterminated string")),
    "JSON lines, an array": File("in.jsonl", b'["text"]\n', Refused("line 1: .*wanted an object")),
    "JSON lines, an array over lines": File("in.jsonl", b'[\n{"text": "a"}\n]\n', Refused("line 1: ")),
    "JSON lines, a string": File("in.jsonl", b'"text"\n', Refused("line 1: .*wanted an object")),
    "JSON lines, a number": File("in.jsonl", b"3\n", Refused("line 1: '3'; wanted an object")),
    "JSON lines, null": File("in.jsonl", b"null\n", Refused("line 1: 'null'; wanted an object")),
    "JSON lines, two texts": File("in.jsonl", b'{"text": "a", "text": "b"}\n', Refused("line 1: columns 'text, text'; wanted one")),
    "JSON lines, another name": File("in.jsonl", b'{"words": "a"}\n', Refused("line 1: columns 'words'; wanted one `text`")),
    "JSON lines, the text is null": File("in.jsonl", b'{"text": null}\n', Refused("line 1: the text is NoneType, wanted a string")),
    "JSON lines, the text is NaN": File("in.jsonl", b'{"text": NaN}\n', Refused("line 1: the text is float, wanted a string")),
    "JSON lines, the text is a number": File("in.jsonl", b'{"text": 3}\n', Refused("line 1: the text is int, wanted a string")),
    "JSON lines, the text is a list": File("in.jsonl", b'{"text": ["a"]}\n', Refused("line 1: the text is list, wanted a string")),
    "JSON lines, too deep": File("in.jsonl", b"[" * 100_000, Refused("line 1: .*recursion")),
    "JSON lines, too many digits": File("in.jsonl", b'{"text": ' + b"1" * 5000 + b"}", Refused("line 1: .*digits")),
    "JSON lines, Latin-1": File("in.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', Refused("line 2: not UTF-8 .*0xe9")),
    "JSON lines, UTF-16": File("in.jsonl", '{"text": "a"}'.encode("utf-16"), Refused("line 1: not UTF-8")),
    "JSON lines, a Python dict": File("in.jsonl", b"{'text': 'a'}\n", Refused("line 1: Expecting property name")),
    "parquet": File("in.parquet", parquet({"n": [1, 2], "text": ["a", "b"]}), ["a", "b"]),
    "parquet, a dictionary column": File(
        "in.parquet", parquet({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), ["a", "b", "a"]
    ),
    "parquet, long strings": File("in.parquet", parquet({"text": pa.array(["a"], pa.large_string())}), ["a"]),
    "parquet, groups of one row": File("in.parquet", parquet({"text": ["a", "b"]}, row_group_size=1), ["a", "b"]),
    "parquet, no rows": File("in.parquet", parquet({"text": pa.array([], pa.string())}), Refused("no documents")),
    "parquet, another column": File("in.parquet", parquet({"words": ["a"]}), Refused("columns 'words'; wanted one `text`")),
    "parquet, two text columns": File("in.parquet", twice, Refused("columns 'text, text, label'; wanted one `text`")),
    "parquet, a null": File("in.parquet", parquet({"text": ["a", None]}), Refused("row 2: the text is NoneType")),
    "parquet, only nulls": File("in.parquet", parquet({"text": [None]}), Refused("row 1: the text is NoneType")),
    "parquet, numbers": File("in.parquet", parquet({"text": [1.5]}), Refused("row 1: the text is float")),
    "parquet, bytes": File("in.parquet", parquet({"text": [b"a"]}), Refused("row 1: the text is bytes")),
    "parquet, lists": File("in.parquet", parquet({"text": [["a"]]}), Refused("row 1: the text is list|columns")),
    "parquet, not UTF-8": File("in.parquet", not_utf8_inside, Refused("not a whole parquet file")),
    "parquet, title and description": File("in.parquet", parquet({"TITLE": ["a"], "description": ["b"]}), ["a b"]),
    "parquet, a Git LFS pointer": File("in.parquet", LFS_POINTER, Refused("a Git LFS pointer in the place of the file")),
    "parquet, empty": File("in.parquet", b"", Refused("not a whole parquet file")),
    "parquet, only the first bytes": File("in.parquet", b"PAR1", Refused("not a whole parquet file")),
    "parquet, cut": File("in.parquet", broken(lambda data: data[: len(data) // 2]), Refused("not a whole parquet")),
    "parquet, no head": File("in.parquet", broken(lambda data: data[len(data) // 2 :]), Refused("not a whole parquet")),
    "parquet, damaged": File(
        "in.parquet", broken(lambda data: data[:40] + b"\xff" * 400 + data[440:]), Refused("not a whole parquet")
    ),
    "parquet, really CSV": File("in.parquet", b"text\na\n", Refused("not a whole parquet file")),
    "lines": File("in.txt", b"a\n\nb", ["a", "", "b"]),
    "lines, CRLF and a byte order mark": File("in.txt", b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
    "lines, other separators": File("in.txt", "a\u2028b\x0bc\x0cd\x85e\n".encode(), ["a\u2028b\x0bc\x0cd\x85e"]),
    "lines, a NUL": File("in.txt", b"a\0b\n", ["a\0b"]),
    "lines, CR": File("in.txt", b"a\rb\rc", Refused("line 1: a carriage return inside")),
    "lines, one CR": File("in.txt", b"a\nb\rc\n", Refused("line 2: a carriage return inside")),
    "lines, Latin-1": File("in.txt", b"a\ncaf\xe9\n", Refused("line 2: not UTF-8 .*0xe9")),
    "lines, joined with a byte order mark": File("in.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "b"]),
    "lines, white space around": File("in.txt", b" a \n\t\n", ["a", ""]),
    "lines, gzip": File("in.txt", COMPRESSED, Refused("not UTF-8 .*unpack it")),
    "lines, empty": File("in.txt", b"", Refused("no documents")),
    "a pickle by its name": File("in.pkl", PICKLE, Refused("a pickle is a program")),
    "a pickle by its long name": File("in.pickle", PICKLE, Refused("a pickle is a program")),
    "a pickle of torch": File("in.pt", PICKLE, Refused("a pickle is a program")),
    "a pickle that would act": File(
        "in.pkl", lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("planted")))), Refused("save the texts")
    ),
    "gzip by its name": File("in.csv.gz", COMPRESSED, Refused("in.csv.gz: compressed; unpack it first")),
    **{
        f"by its name, {suffix}": File(f"in{suffix}", COMPRESSED, Refused(f"in{suffix}: {way_out}"))
        for suffixes, way_out in {
            (".jsonl.bz2", ".zip", ".csv.ZST", ".tar", ".tgz", ".7z", ".xz"): "compressed; unpack it first",
            (".xlsx", ".xls", ".XLSM", ".ods"): "a spreadsheet; save it as CSV, UTF-8, separated by commas",
            (".ndjson",): ".*call the file .jsonl",
        }.items()
        for suffix in suffixes
    },
    "another format": File("in.docx", b"", Refused("unknown format '.docx', wanted one of .csv, .tsv, .jsonl")),
    "no format": File("texts", b"a\n", Refused("unknown format ''")),
    "one JSON document": File("in.json", b'[{"text": "a"}]', Refused("in.json: one JSON document; .*call the file .jsonl")),
}  # fmt: skip

WANTED_CLASS = "wanted 1, 2, 3 or 4"
WANTED_LABEL = "wanted 0, 1, 2 or 3, or World, Sports"

# Labelled rows, as `load_split` finds them in a folder: (text, label).
LABELLED_FILES = {
    **{name: file._replace(name=file.name.replace("in.", "train.")) for name, file in NO_CSV.items()},
    "canonical": File("train.csv", b'"1","a","b"\n"4","c",""\n', [("a b", 0), ("c", 3)]),
    "no quotation marks": File("train.csv", b"1,a,b\n", [("a b", 0)]),
    "a byte order mark and CRLF": File("train.csv", b'\xef\xbb\xbf"1","a","b"\r\n"2","c","d"\r\n', [("a b", 0), ("c d", 1)]),
    "CR": File("train.csv", b"1,a,b\r2,c,d\r", [("a b", 0), ("c d", 1)]),
    "a line end in quotes": File("train.csv", b'1,"a\nb",c\n', [("a\nb c", 0)]),
    "a NUL": File("train.csv", b"1,a\0b,c\n", [("a\0b c", 0)]),
    "an empty text": File("train.csv", b'1,"",""\n', [("", 0)]),
    "a field beyond csv's limit of 128 KiB": File("train.csv", b"1," + b"x" * 200_000 + b",b", [("x" * 200_000 + " b", 0)]),
    "a header": File("train.csv", b"class,title,description\n1,a,b\n", [("a b", 0)]),
    **{
        f"the class {label!r}": File("train.csv", f"1,a,b\n{label},a,b\n".encode(), Refused(f"row 2: class .*{WANTED_CLASS}"))
        for label in ("0", "5", "-1", "x", "1.0", "", " 1", "01", "1e0", "١", "World")
    },
    "Kaggle's header": File(
        "train.csv", b"Class Index,Title,Description\n3,a,b\n4,c,\n", [("a b", 2), ("c", 3)]
    ),
    "a label column": File("train.csv", b"text,label\na,0\nb,3\n", [("a", 0), ("b", 3)]),
    "a quotation after a space": File("train.csv", b'1,"x","y"\n2," ""a"" b",c\n', [("x y", 0), ('"a" b c', 1)]),
    "names of classes": File("train.csv", b"label,text\nSci_Tech,a\nworld,b\n", [("a", 3), ("b", 0)]),
    "another name": File("train.csv", b"label,text\nWorld,a\nPolitics,b\n", Refused("row 3: class 'Politics', wanted 0, 1, 2")),
    "no label column": File("train.csv", b"text\na\n", Refused("row 1: columns 'text'; wanted one `label`, or one `class`")),
    "empty lines at the end": File("train.csv", b"1,a,b\n\n\r\n", [("a b", 0)]),
    "parquet, class, title and description": File(
        "train.parquet", parquet({"Class Index": [1, 4], "Title": ["a", "b"], "Description": ["", "c"]}), [("a", 0), ("b c", 3)]
    ),
    "parquet, names of classes": File(
        "train.parquet", parquet({"text": ["a"], "label": pa.array(["Sports"]).dictionary_encode()}), [("a", 1)]
    ),
    "parquet, a Git LFS pointer": File("train.parquet", LFS_POINTER, Refused("a Git LFS pointer in the place of the file")),
    "parquet": File("train.parquet", parquet({"label": [0, 3], "text": ["a", "b"]}), [("a", 0), ("b", 3)]),
    "parquet, no label": File("train.parquet", parquet({"text": ["a"]}), Refused("columns 'text'; wanted one `label`")),
    "parquet, no text": File("train.parquet", parquet({"label": [0]}), Refused("columns 'label'; wanted one `text`")),
    "parquet, two texts": File("train.parquet", twice, Refused("columns 'text, text, label'; wanted one `text`")),
    "parquet, no rows": File(
        "train.parquet", parquet({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), Refused("no rows")
    ),
    **{
        f"parquet, the label {label!r}": File(
            "train.parquet", parquet({"text": ["a", "b"], "label": [good, label]}), Refused(f"row [12]: .*{WANTED_LABEL}")
        )
        for good, label in ((0, 4), (0, -1), (0, None), (0.0, 1.5), (1.0, 2.0), (True, False), ("0", "7"), (0, 2**40))
    },
    "parquet, a null text": File(
        "train.parquet", parquet({"text": ["a", None], "label": [0, 1]}), Refused("row 2: the text is NoneType")
    ),
    "parquet, not UTF-8": File("train.parquet", not_utf8_inside, Refused("not a whole parquet file")),
    "parquet, cut": File("train.parquet", broken(lambda data: data[: len(data) // 2]), Refused("not a whole parquet")),
    "parquet, damaged": File(
        "train.parquet", broken(lambda data: data[:40] + b"\xff" * 400 + data[440:]), Refused("not a whole parquet")
    ),
    "parquet, really a pickle": File("train.parquet", PICKLE, Refused("not a whole parquet file")),
}  # fmt: skip

COUNTS = ("validation_size", "batch_size", "eval_batch_size", "max_steps", "eval_steps", "save_steps")
SHARES = ("validation_share", "base_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor")
POSITIVE = ("lora_alpha", "learning_rate", "adam_epsilon", "max_grad_norm")
NUMBERS = (*COUNTS, *SHARES, *POSITIVE, "lora_rank", "max_length", "warmup_steps", "weight_decay", "seed", "split_seed")
WHOLE_NUMBERS = (*COUNTS, "lora_rank", "max_length", "warmup_steps", "seed", "split_seed")
FLAGS = ("random_base", "stratified", "shuffled_labels", "mixed_precision", "committed_rows")
NAMES = ("profile", "base_model", "dataset", "report_to")
REVISIONS = ("base_revision", "dataset_revision")
CHOICES = ("batch_order", "lr_scheduler_type")

# (fields, values that none of them takes, what the message wants)
FIELD_VALUES = (
    (COUNTS, (0, -1, 2**31), "wanted at least 1"),
    (("lora_rank",), (0, 4097), "wanted 1 to 4096"),
    (("max_length",), (2, -5, 2**31), "wanted at least 3"),
    (("seed", "split_seed"), (-1, 2**32), "wanted 0 or more, below"),
    (("warmup_steps",), (-1, 10**400), "wanted a finite number, 0 or more"),
    (("weight_decay",), (-0.1, math.inf, math.nan), "wanted a finite number, 0 or more"),
    (SHARES, (1.0, -0.1, math.nan), "wanted 0 or more, below 1"),
    (POSITIVE, (0, -1.0, math.inf, math.nan, 10**400), "wanted a finite number above 0"),
    (WHOLE_NUMBERS, (1.5, True, None, "3", np.int64(3), [3]), "wanted int"),
    ((*SHARES, *POSITIVE, "weight_decay"), (True, None, "fast", b"1", 1j, np.zeros((9, 9))), "wanted float"),
    (FLAGS, (1, 0, None, "true", "yes"), "wanted bool"),
    ((*NAMES, *CHOICES), (None, 7, "", b"x", ["x"]), "wanted a name"),
    (REVISIONS, (7, "", b"x"), "wanted a name or nothing"),
    (REVISIONS, ("main", "v1.0", "e2da8e2", "E2" * 20, "g" * 40, "0" * 41), "wanted the 40 hex digits of a commit"),
    (("batch_order",), ("sorted", "Random"), "wanted one of random, length-grouped"),
    (("lr_scheduler_type",), ("steep", "LINEAR"), "wanted one of linear, cosine"),
    (("lora_targets",), ((), [], "query", None, ("query", ""), ("query", 7), {"query"}), "wanted one or more names"),
)
FIELDS = [(field, value, wanted) for fields, values, wanted in FIELD_VALUES for field in fields for value in values]

# Fields that fit alone and not together, or names of nothing.
TOGETHER = {
    "a checkpoint between two evaluations": ({"save_steps": 30}, "save_steps is 30, wanted a multiple of eval_steps"),
    "a base model of the Hub without a commit": ({"base_model": "someone/some-model"}, "needs base_revision"),
    "data of the Hub without a commit": ({"dataset": "someone/some-data"}, "needs dataset_revision"),
    "a base model taken away": ({"base_model": "someone/x", "base_revision": None}, "needs base_revision"),
    "an unknown field": ({"lora_rnk": 4}, "unknown field 'lora_rnk' .did you mean 'lora_rank'"),
    "a field like nothing": ({"xyzzy": 4}, "unknown field 'xyzzy'"),
    "a name that no folder can have": ({"base_model": "a\0b"}, "is no folder here"),
    "four faults at once": (
        {"learning_rate": "fast", "lora_rank": 0, "seed": -1, "batch_order": "sorted"},
        "learning_rate is 'fast'.*lora_rank is 0.*seed is -1.*batch_order is 'sorted'",
    ),
}

# The same on the command line: flags of `train mini`, and what the line on stderr says.
COMMAND_LINES = [
    *((f"--{name}", text, f"{name} is '{text}', wanted int") for name in WHOLE_NUMBERS for text in ("x", "1.5")),
    *((f"--{name}", text, f"{name} is ") for name in NUMBERS for text in ("nan", "", "-1")),
    *((f"--{name}", "x", f"{name} is 'x', wanted float") for name in (*POSITIVE, *SHARES, "weight_decay")),
    *((f"--{name}", "1e999", f"{name} is inf, wanted") for name in (*POSITIVE, *SHARES)),
    *((f"--{name}", text, f"{name} is '{text}', wanted bool") for name in FLAGS for text in ("yes", "1", "")),
    *((f"--{name}", "", f"{name} is '', wanted a name") for name in (*NAMES[1:], *REVISIONS, *CHOICES)),
    *((f"--{name}", "other", f"{name} is 'other', wanted one of") for name in CHOICES),
    ("--lora_targets", "", "lora_targets is .* wanted one or more names"),
    ("--lora_targets", "query,,value", "lora_targets is .* wanted one or more names"),
    ("--save_steps", "30", "wanted a multiple of eval_steps"),
    ("--base_model", "someone/some-model", "needs base_revision"),
    ("--base_revision", "main", "base_revision is 'main', wanted the 40 hex digits of a commit"),
    ("--base_model", "./nowhere", "'./nowhere' is missing"),
    ("--base_model", "~nobody-of-this-name/x", "is missing"),
    ("--base_model", "./" + "x" * 5000, "is missing"),
    ("--dataset", "./nowhere", "'./nowhere' is missing"),
    ("--max_length", "100000", "max_length is 100000, but"),
    ("--profile", "mini", "unknown option '--profile'"),
    ("--learning_rat", "1", "did you mean '--learning-rate'"),
    ("--seed", None, "expected one argument"),
]  # fmt: skip


class Target(NamedTuple):
    """A place for predictions: what is made there first (called with the folder), and its name."""

    make: Any
    name: str
    message: str


def nowhere_to_write(folder: Path):
    """A folder in which nobody makes a file, not even root, whom no permission stops."""
    if os.geteuid() == 0:
        (folder / "locked").symlink_to("/proc/self")
    else:
        (folder / "locked").mkdir(mode=0o555)


TARGETS = {
    "exists": Target(lambda folder: (folder / "out.csv").write_text("precious"), "out.csv", "exists already"),
    "exists and is empty": Target(lambda folder: (folder / "out.csv").touch(), "out.csv", "exists already"),
    "the input itself": Target(None, "in.csv", "exists already"),
    "the input by another way": Target(lambda folder: (folder / "sub").mkdir(), "sub/../in.csv", "exists already"),
    "a link to the input": Target(
        lambda folder: (folder / "out.csv").symlink_to("in.csv"), "out.csv", "exists already"
    ),
    "the input by a second name": Target(
        lambda folder: os.link(folder / "in.csv", folder / "out.csv"), "out.csv", "exists already"
    ),
    "a link to nothing": Target(lambda folder: (folder / "out.csv").symlink_to("gone"), "out.csv", "exists already"),
    "a link to itself": Target(lambda folder: (folder / "out.csv").symlink_to("out.csv"), "out.csv", "exists already"),
    "a folder": Target(lambda folder: (folder / "out.csv").mkdir(), "out.csv", "exists already"),
    "a pipe": Target(lambda folder: os.mkfifo(folder / "out.csv"), "out.csv", "exists already"),
    "no folder for it": Target(None, "no/out.csv", "no: no such folder; make it first"),
    "a file in the way": Target(None, "in.csv/out.csv", r"cannot be written \(Not a directory"),
    "not writable": Target(nowhere_to_write, "locked/out.csv", "cannot be written"),
    "a name too long": Target(None, "x" * 300 + ".csv", r"cannot be written \(File name too long"),
    "a name with a NUL": Target(None, "a\0b.csv", "cannot be written .*name another file"),
    "a name with half a surrogate pair": Target(None, "\ud800.csv", "cannot be written .*name another file"),
    "another format": Target(None, "out.txt", "wanted a name that ends in .csv"),
    "no format": Target(None, "out", "wanted a name that ends in .csv"),
    "the folder itself": Target(None, "", "wanted a name that ends in .csv"),
}

# What a row of JSON lines may be, to be written by json.dumps; the labels must come out in the same order.
SAMPLE = [f"{word} " * n for n, word in enumerate(["oil", "goal", "chip", "vote", "bank", "coach", "virus"], 1)]
SAMPLE_JSONL = "".join(json.dumps({"text": text}) + "\n" for text in SAMPLE)
