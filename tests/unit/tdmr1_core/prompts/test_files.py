"""Prompt files of all formats, and files that are refused or reported."""

import warnings

import pyarrow
import pytest
from pyarrow import parquet
from support.errors import raises, warns

from tdmr1_core.prompts.files import read_prompt_file

pytestmark = pytest.mark.unit

TWO = ["two red circles", "three green squares, on grey"]
LONG = 131073 * "x"
BOM = b"\xef\xbb\xbf"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def nested(levels):
    return f'{{"prompt": "a", "n": {levels * "["}{levels * "]"}}}'


def texts(path):
    return [prompt.text for prompt in read_prompt_file(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "two red circles\n\nthree green squares, on grey"),
        ("a.txt", BOM + b"two red circles\r\nthree green squares, on grey\r\n"),
        ("prompts", "two red circles\nthree green squares, on grey\n"),
        ("a.TXT", "two red circles\nthree green squares, on grey\n"),
        ("a.jsonl", '{"prompt": "two red circles"}\n\n{"prompt": "three green squares, on grey"}\n'),
        ("a.JSONL", BOM + b'{"prompt": "two red circles"}\r\n{"prompt": "three green squares, on grey"}\r\n'),
        ("a.json", '["two red circles", "three green squares, on grey"]'),
        ("a.json", BOM + b'[{"prompt": "two red circles"},\n {"prompt": "three green squares, on grey"}]'),
        ("a.json", '{"prompt": "two red circles"}\n{"prompt": "three green squares, on grey"}\n'),
        ("a.csv", 'prompt,category\ntwo red circles,count\n"three green squares, on grey",count\n'),
        ("a.csv", BOM + b'id,Prompt\r\n1,two red circles\r\n\r\n2,"three green squares, on grey"\r\n'),
        ("a.tsv", "Prompt\tCategory\tNote\ntwo red circles\tAbstract\t\nthree green squares, on grey\tArts\tx\n"),
    ],
)
def test_every_format_has_the_same_prompts(tmp_path, name, content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(write(tmp_path, name, content)) == TWO


def test_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"Prompt": TWO, "include": [[{"class": "circle", "count": 2}], None], "number": [1, 2]}
    parquet.write_table(pyarrow.table(columns), path)
    first, second = read_prompt_file(path)
    assert [first.text, second.text] == TWO
    assert first.metadata == {"prompt": TWO[0], "include": [{"class": "circle", "count": 2}], "number": 1}
    assert second.metadata == {"prompt": TWO[1], "number": 2}
    parquet.write_table(pyarrow.table({"prompt": [1, 2]}), path)
    with raises("prompt-invalid", places=["row 1", "row 2"], found=["a number", "a number"]):
        read_prompt_file(path)
    with raises("prompts-unreadable"):
        read_prompt_file(write(tmp_path, "b.parquet", "two red circles\n"))


def test_metadata_of_each_format(tmp_path):
    (prompt,) = read_prompt_file(write(tmp_path, "a.jsonl", '{"prompt": "a cat", "tag": "x", "n": [1, null]}\n'))
    assert prompt.metadata == {"prompt": "a cat", "tag": "x", "n": [1, None]}
    (prompt,) = read_prompt_file(write(tmp_path, "a.csv", "id,Prompt,note\n1,a cat,\n"))
    assert prompt.metadata == {"prompt": "a cat", "id": "1"}
    (prompt,) = read_prompt_file(write(tmp_path, "a.txt", "a cat\n"))
    assert prompt.metadata == {}


def test_lines_end_only_at_line_feeds(tmp_path):
    line = "a sign that\u2028says \u0085 \x0b two"
    assert texts(write(tmp_path, "a.txt", line + "\na cat\n")) == [line, "a cat"]
    content = '{"prompt": "' + line.replace("\x0b", "") + '"}\n{"prompt": "a cat"}\n'
    assert texts(write(tmp_path, "a.jsonl", content)) == [line.replace("\x0b", ""), "a cat"]
    assert texts(write(tmp_path, "a.csv", 'prompt,n\n"a cat\non a mat",1\na dog,2\n')) == ["a cat\non a mat", "a dog"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("null", "null"),
        ('[{"role": "user", "content": "two red circles"}]', "a chat, which is a list of messages"),
        ('["a", "b"]', "a list"),
        ("5", "a number"),
        ("true", "a boolean"),
        ('{"text": "a cat"}', "an object"),
        ('""', "an empty string"),
        ('" \\u200b\\t"', "a string without a visible character"),
        ('"a\\u0000cat"', "a string with a NUL character"),
        ('"a\\ufeffcat"', "a string with a byte-order mark inside"),
        ('"a \\ud83d cat"', "a string with half of a surrogate pair"),
    ],
)
def test_only_a_string_is_a_prompt(tmp_path, value, found):
    path = write(tmp_path, "a.jsonl", f'{{"prompt": "a dog"}}\n{{"prompt": {value}}}\n')
    with raises("prompt-invalid", path=str(path), places=["line 2"], found=[found]):
        read_prompt_file(path)
    with raises("prompt-invalid", places=["item 2"], found=[found]):
        read_prompt_file(write(tmp_path, "a.json", f'[{{"prompt": "a dog"}}, {{"prompt": {value}}}]'))


def test_all_wrong_entries_are_named(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"prompt": null}\n{"prompt": "a cat"}\n{"prompt": 5}\n{"prompt": ""}\n')
    with raises("prompt-invalid", places=["line 1", "line 3", "line 4"]) as caught:
        read_prompt_file(path)
    assert "line 1 has null; line 3 has a number; line 4 has an empty string" in caught.value.message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[]\n", "a list"),
        ('"a cat"\n', "a string"),
        ('{"text": "a cat"}\n', "an object without the key 'prompt' (its keys: 'text')"),
        ("{}\n", "an object without the key 'prompt' (its keys: none)"),
        ('{"prompt": "a cat", "prompt": "a dog"}\n', "the key 'prompt' twice"),
        ('{"prompt": "a cat", "n": {"k": 1, "m": 2, "m": 3}}\n', "the key 'm' twice"),
        ('{"prompt": "a cat", "n": NaN}\n', "NaN, which is not JSON"),
        ('{"prompt": "a cat", "n": [{"m": -Infinity}]}\n', "-Infinity, which is not JSON"),
        ('{"prompt": "a cat", "n": 1e999}\n', "the number 1e999, which is too large"),
        ('{"prompt": "a cat", "n": [-1e999]}\n', "the number -1e999, which is too large"),
        pytest.param('{"prompt": "a", "n": -' + 5000 * "7" + "}", "a number with 5000 digits", id="digits"),
        pytest.param(nested(150), "values that are nested more than 100 levels deep", id="150 levels"),
        pytest.param(nested(9999), "values that are nested too deeply", id="9999 levels"),
        ('{"prompt": "a cat"},\n', "a comma after the object"),
        ("[\n", "the start of a list"),
        ("a cat\n", "no JSON object (Expecting value, at character 1)"),
    ],
)
def test_lines_without_a_prompt(tmp_path, content, found):
    with raises("prompt-invalid", places=["line 1"], found=[found]):
        read_prompt_file(write(tmp_path, "a.jsonl", content))


@pytest.mark.parametrize(
    ("name", "content", "values"),
    [
        ("a.yaml", "prompts:\n  - two red circles\n", {"suffix": ".yaml"}),
        ("a.jsonl.gz", b"\x1f\x8b", {"suffix": ".gz"}),
        ("a.txt", '[\n  {"prompt": "a cat"}\n]\n', {"found": "what looks like JSON in line 1"}),
        ("a.txt", '\n{"prompt": "a cat"}\n', {"found": "what looks like JSON in line 2"}),
        ("a.txt", 'a dog\n{"prompt": "a cat"}\n', {"found": "what looks like JSON in line 2"}),
        ("prompts", '{"prompt": "a cat"\n', {"found": "what looks like JSON in line 1"}),
        ("a.txt", "prompt,category\na cat,animal\n", {"found": "the header of a table in line 1"}),
        ("a.txt", "Prompt\na cat\n", {"found": "the header of a table in line 1"}),
        ("a.txt", "a cat\tanimal\n", {"found": "a tab in line 1"}),
        ("a.txt", "a cat\ra dog\r", {"found": "a carriage return without a line feed in line 1"}),
        ("a.txt", "two red circles".encode("utf-16-le"), {"found": "a NUL character in line 1"}),
        ("a.txt", "a cat\na\0dog\n", {"found": "a NUL character in line 2"}),
        ("a.csv", "a cat\na dog\n", {"found": "a header with no column 'prompt' (its columns: 'a cat')"}),
        ("a.csv", "prompt;note\na cat;x\n", {"found": "a header with no column 'prompt' (its columns: 'prompt;note')"}),
        ("a.csv", "prompt,Prompt\na cat,b\n", {"found": "a header with two columns 'prompt'"}),
        ("a.csv", "prompt,n,n\na cat,1,2\n", {"found": "a header with two columns 'n'"}),
        ("a.csv", ",prompt\n0,a cat\n", {"found": "a column without a name"}),
        ("a.csv", "prompt,note\na cat\n", {"found": "1 cell in line 2, but 2 columns"}),
        ("a.csv", "prompt,note\na cat, a dog,x\n", {"found": "3 cells in line 2, but 2 columns"}),
        ("a.tsv", "prompt,note\na cat,x\n", {}),
        ("a.json", '{"prompts": ["a cat"]}', {"found": "an object without the key 'prompt' (its keys: 'prompts')"}),
        ("a.json", '"a cat"', {"found": "a string"}),
    ],
)
def test_content_that_contradicts_the_suffix(tmp_path, name, content, values):
    path = write(tmp_path, name, content)
    with raises("prompts-unreadable", path=str(path), **values):
        read_prompt_file(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"a cat\n\xff\xfe", "it is not UTF-8 text (at byte 6)"),
        ("a.txt", "two red circles".encode("utf-16"), "it is not UTF-8 text (at byte 0)"),
        ("a.json", "a cat\n", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("a.json", '["a cat",]', None),
        pytest.param("a.json", 9999 * "[", "it has values that are nested too deeply", id="9999 levels"),
        ("a.json", '["a"]\n["b"]\n', None),
    ],
)
def test_unreadable_files(tmp_path, name, content, reason):
    path = write(tmp_path, name, content)
    values = {} if reason is None else {"reason": reason}
    with raises("prompts-unreadable", path=str(path), **values):
        read_prompt_file(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\n \n"), ("a.jsonl", ""), ("a.json", "[]"), ("a.json", ""), ("a.csv", "prompt,n\n"), ("a.csv", "")],
)
def test_files_without_prompts(tmp_path, name, content):
    path = write(tmp_path, name, content)
    with raises("prompts-empty", path=str(path)):
        read_prompt_file(path)


def test_surrounding_blanks_are_reported(tmp_path):
    with warns("prompts-doubtful", places=["line 1", "line 3"]):
        assert texts(write(tmp_path, "a.txt", " a cat\na dog\na cow  \n")) == ["a cat", "a dog", "a cow"]
    with warns("prompts-doubtful", places=["item 1"]):
        assert texts(write(tmp_path, "a.json", '["a cat "]')) == ["a cat "]
    with warns("prompts-doubtful", places=["line 1", "line 2"]):
        assert texts(write(tmp_path, "a.txt", "\u200ba cat\na dog \u2060\n\u2764\ufe0f\n")) == [
            "a cat",
            "a dog",
            "\u2764\ufe0f",
        ]
    with warns("prompts-doubtful", places=["line 2"]):
        assert texts(write(tmp_path, "a.csv", "prompt\na cat\u200d\n")) == ["a cat\u200d"]


def test_duplicates_are_reported(tmp_path):
    with warns("prompts-doubtful", prompts=1, places=["line 1", "line 3", "line 4"]):
        content = "a cat\na dog\na cat\na cat\n"
        assert texts(write(tmp_path, "a.txt", content)) == ["a cat", "a dog", "a cat", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt", " a cat\na cat\n", "line"),
        ("a.csv", "prompt\na cat\n a cat\n", "line"),
        ("a.tsv", "prompt\na cat\na cat\u200b\n", "line"),
        ("a.json", '["a cat", "a cat "]', "item"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "a cat\\t"}\n', "line"),
    ],
)
def test_duplicates_are_found_without_surrounding_blanks(tmp_path, name, content, place):
    numbers = (2, 3) if name in ("a.csv", "a.tsv") else (1, 2)
    with warns("prompts-doubtful", prompts=1, places=[f"{place} {number}" for number in numbers]):
        read_prompt_file(write(tmp_path, name, content))


@pytest.mark.parametrize(
    "text", ["\ufe0f", "\u0301", "\u3164", "\u2800", "\u200b", "\u00ad\u034f", "\u1160", "\U000e0041"]
)
def test_a_text_that_cannot_be_seen_is_no_prompt(tmp_path, text):
    found = ["a string without a visible character"]
    with raises("prompt-invalid", places=["line 2"], found=found):
        read_prompt_file(write(tmp_path, "a.txt", f"a cat\n{text}\n"))
    with raises("prompt-invalid", places=["line 3"], found=found):
        read_prompt_file(write(tmp_path, "a.csv", f"prompt\na cat\n{text}\n"))


OTHER_FORMATS = [
    ('{"prompt": "a dog",}', "what looks like JSON"),
    ("{'prompt': 'a dog'}", "what looks like JSON"),
    ('{"prompt": "a dog"},', "what looks like JSON"),
    ('{"prompt": "a dog"', "what looks like JSON"),
    ('["a", "b"],', "what looks like JSON"),
    ('["a cat",', "what looks like JSON"),
    ("[{", "what looks like JSON"),
    ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer instead of the file"),
    ("%PDF-1.4", "a PDF document"),
    ("{\\rtf1\\ansi a cat}", "an RTF document"),
    ("<html>", "an HTML or XML document"),
    ('<!DOCTYPE html PUBLIC "x">', "an HTML or XML document"),
    ('<?xml version="1.0"?>', "an HTML or XML document"),
    ("<<<<<<< HEAD", "a marker of a merge conflict"),
    ("||||||| base", "a marker of a merge conflict"),
    ("=======", "a marker of a merge conflict"),
    (">>>>>>> theirs", "a marker of a merge conflict"),
]


@pytest.mark.parametrize(("line", "found"), OTHER_FORMATS)
def test_a_line_of_another_format_is_no_prompt(tmp_path, line, found):
    for before, number in (("", 1), ("a cat\n", 2)):
        with raises("prompts-unreadable", found=f"{found} in line {number}"):
            read_prompt_file(write(tmp_path, "a.txt", f"{before}{line}\na dog\n"))
    cell = line.replace('"', '""')
    with raises("prompt-invalid", places=["line 3"], found=[found]):
        read_prompt_file(write(tmp_path, "a.csv", f'prompt,n\na cat,1\n"{cell}",2\n'))


@pytest.mark.parametrize(
    "header",
    ["id;prompt", "id|prompt", "Prompts", "prompt,category", "caption", "text;my own column", '"id","prompt"'],
)
def test_the_header_of_a_table_is_no_prompt(tmp_path, header):
    with raises("prompts-unreadable", found="the header of a table in line 2"):
        read_prompt_file(write(tmp_path, "a.txt", f"\n{header}\na cat\n"))


@pytest.mark.parametrize("line", ["---", "prompts:"])
def test_yaml_is_no_list_of_prompts(tmp_path, line):
    with raises("prompts-unreadable", found="the start of a YAML document in line 1"):
        read_prompt_file(write(tmp_path, "a.txt", f"{line}\n- a cat\n"))


@pytest.mark.parametrize(
    "line",
    [
        "[a cat:a dog:0.5] style",
        "[a cat:a dog:0.5]",
        "{cat|dog} on a mat",
        "a cat at the prompt, prompt",
        "a cat, text that is much longer than the name of a column",
        "a text",
        "a cat ======= a dog",
        "<lora:style:1> a cat",
    ],
)
def test_what_only_resembles_another_format_is_a_prompt(tmp_path, line):
    assert texts(write(tmp_path, "a.txt", f"{line}\na horse\n")) == [line, "a horse"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("prompt\na cat\ra dog\n", "a carriage return without a line feed in line 2"),
        ("prompt\rone\rtwo\r", "a carriage return without a line feed in line 1"),
        ("prompt\na cat\na dog\r", "a carriage return without a line feed in line 3"),
        ("prompt\na cat\r\r\na dog\r\n", "a carriage return without a line feed in line 2"),
        ("prompt\n\r\r\na cat\n", "a carriage return without a line feed in line 2"),
        ('prompt\n"a cat\non a mat"\ra dog\n', "a carriage return without a line feed in line 3"),
        ('prompt,n\n"a "cat" here",1\n', "text after the end of a quoted cell in line 2"),
        ('prompt\na dog\n"a cat\non a mat" x\n', "text after the end of a quoted cell in line 4"),
        ('prompt\n\n"a cat\na dog\n', "quotes without an end in line 3"),
        pytest.param("prompt\na\n" + LONG, "a cell of more than 131072 characters in line 3", id="long"),
        ('prompt\n"a\n\nb",c\n', "2 cells in line 2, but 1 column"),
        ('prompt,n\n"a\nb",1\nc\n', "1 cell in line 4, but 2 columns"),
        ("sep=,\nprompt\na cat\n", "Excel's line 'sep=,' in line 1"),
        ("SEP=;\r\nprompt\r\na cat\r\n", "Excel's line 'SEP=;' in line 1"),
        ("pro\u200bmpt\na cat\n", "a column 'pro\\u200bmpt' whose name has the invisible character U+200B"),
        ("prompt,\ufeffn\na cat,1\n", "a column '\\ufeffn' whose name has the invisible character U+FEFF"),
    ],
)
def test_faults_of_a_table_are_named_with_their_line(tmp_path, content, found):
    with raises("prompts-unreadable", found=found):
        read_prompt_file(write(tmp_path, "a.csv", content))


def test_a_quoted_cell_may_contain_a_carriage_return(tmp_path):
    assert texts(write(tmp_path, "a.csv", b'prompt\r\n"a cat\ron a mat"\r\na dog\r\n')) == ["a cat\ron a mat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.csv", 'prompt\na\n""\nb\n', ["line 3"]),
        ("a.csv", 'prompt,x\na,1\n,\n" "," "\nb,2\n', ["line 3", "line 4"]),
        ("a.csv", "prompt,x\n,1\n", ["line 2"]),
        ("a.tsv", "prompt\tx\na\t1\n\t\n", ["line 3"]),
    ],
)
def test_a_row_without_a_prompt_is_not_skipped(tmp_path, name, content, places):
    with raises("prompt-invalid", places=places):
        read_prompt_file(write(tmp_path, name, content))


def test_only_blank_lines_of_a_table_are_skipped(tmp_path):
    assert texts(write(tmp_path, "a.csv", "\n prompt,x\n\na,1\r\n\r\n  \nb,2\n\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "code", "hint"),
    [
        ("a.csv", "promt\na cat\n", "prompts-unreadable", "'promt'"),
        ("a.csv", "id,caption\n1,a cat\n", "prompts-unreadable", "'caption'"),
        ("a.json", '{"promt": "a cat", "n": 1}', "prompts-unreadable", "'promt'"),
        ("a.jsonl", '{"promt": "a cat"}\n', "prompt-invalid", "'promt'"),
        ("a.jsonl", '["a cat"]\n', "prompt-invalid", ".json"),
        ("a.jsonl", "[\n", "prompt-invalid", ".json"),
        pytest.param("a.csv", "prompt\n" + LONG, "prompts-unreadable", "shorten", id="long"),
        ("a.csv", 'prompt\n"[""a"", ""b""]"\n', "prompt-invalid", ".jsonl"),
    ],
)
def test_hints(tmp_path, name, content, code, hint):
    with raises(code) as caught:
        read_prompt_file(write(tmp_path, name, content))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('["a dog", {"prompt": "a", "prompt": "b"}]', "the key 'prompt' twice"),
        ('["a dog", {"prompt": "a", "n": NaN}]', "NaN, which is not JSON"),
        ('["a dog", {"prompt": "a", "n": [1e999]}]', "the number 1e999, which is too large"),
        ('["a dog", Infinity]', "Infinity, which is not JSON"),
    ],
)
def test_a_fault_in_a_list_names_its_item(tmp_path, content, found):
    with raises("prompt-invalid", places=["item 2"], found=[found]):
        read_prompt_file(write(tmp_path, "a.json", content))


def test_a_byte_order_mark_in_a_later_line_is_named(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"prompt": "a cat"}\n\ufeff{"prompt": "a dog"}\n')
    with raises("prompt-invalid", places=["line 2"], found=["a byte-order mark at its start"]):
        read_prompt_file(path)


def parquet_file(folder, columns):
    parquet.write_table(columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


NOT_UTF_8 = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")]
)
CANNOT_BE_READ = "a value of type {} in the column 'n' that cannot be represented"


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pyarrow.array([1000, 2**62 + 1], pyarrow.timestamp("us")), CANNOT_BE_READ.format("timestamp[us]")),
        (pyarrow.array([None, 1], pyarrow.timestamp("us", tz="No/Zone")), "timestamp[us, tz=No/Zone]"),
        (pyarrow.array([0, 2**30], pyarrow.date32()), CANNOT_BE_READ.format("date32[day]")),
        (NOT_UTF_8, "text in the column 'n' that is not UTF-8"),
        (pyarrow.array([None, b"x"]), "a value of type bytes in the column 'n'"),
        (pyarrow.array([1.5, float("nan")]), "the number nan in the column 'n'"),
        (pyarrow.array([[1.5], [1.5, float("-inf")]]), "the number -inf in the column 'n'"),
    ],
)
def test_a_cell_of_parquet_without_an_exact_value_is_refused(tmp_path, column, found):
    with raises("prompt-invalid", places=["row 2"]) as caught:
        read_prompt_file(parquet_file(tmp_path, {"prompt": ["a cat", "a dog"], "n": column}))
    assert found in caught.value.values["found"][0]


def test_nanoseconds_are_read_exactly_or_refused(tmp_path):
    times = pyarrow.array([1_000, 1], pyarrow.timestamp("ns"))
    try:
        import pandas  # noqa: F401
    except ImportError:
        with raises("prompt-invalid", places=["row 2"], found=[CANNOT_BE_READ.format("timestamp[ns]")]):
            read_prompt_file(parquet_file(tmp_path, {"prompt": ["a cat", "a dog"], "n": times}))
    else:
        _, second = read_prompt_file(parquet_file(tmp_path, {"prompt": ["a cat", "a dog"], "n": times}))
        assert second.metadata["n"] == "1970-01-01 00:00:00.000000001"


def test_exact_values_of_parquet_become_text(tmp_path):
    columns = {
        "prompt": pyarrow.array(["a cat"]).dictionary_encode(),
        "when": pyarrow.array([1_000_001], pyarrow.timestamp("us")),
        "price": pyarrow.array(["1.50"]).cast(pyarrow.decimal128(5, 2)),
        "tags": pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }
    (prompt,) = read_prompt_file(parquet_file(tmp_path, columns))
    expected = {"prompt": "a cat", "when": "1970-01-01 00:00:01.000001", "price": "1.50", "tags": [["k", 1]]}
    assert prompt.metadata == expected


def test_a_prompt_of_parquet_that_is_not_utf_8_is_refused(tmp_path):
    with raises("prompt-invalid", places=["row 2"], found=["text in the column 'prompt' that is not UTF-8"]):
        read_prompt_file(parquet_file(tmp_path, {"prompt": NOT_UTF_8}))


def test_two_prompt_columns_of_parquet_are_named(tmp_path):
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    with raises("prompts-unreadable", found="a header with two columns 'prompt'"):
        read_prompt_file(parquet_file(tmp_path, table))


def test_a_prompt_knows_its_file_and_place(tmp_path):
    path = write(tmp_path, "a.txt", "a cat\n\na dog\n")
    assert [(prompt.file, prompt.place) for prompt in read_prompt_file(path)] == [(path, "line 1"), (path, "line 3")]
