"""Prompt files of all formats, and files that are refused or reported."""

import warnings

import pytest
from support.errors import raises, warns

from tdmr1_core.prompts.files import read_prompt_file

pytestmark = pytest.mark.unit

TWO = ["two red circles", "three green squares, on grey"]
BOM = b"\xef\xbb\xbf"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
    import pyarrow
    from pyarrow import parquet

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
        ('{"prompt": "a cat", "prompt": "a dog"}\n', "no JSON object (the key 'prompt' occurs twice)"),
        ('{"prompt": "a cat", "n": NaN}\n', "no JSON object (NaN is not JSON)"),
        ("a cat\n", "no JSON object (Expecting value: line 1 column 1 (char 0))"),
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
        ("a.csv", "a cat\na dog\n", {"found": "a header with no column 'prompt' (its columns: 'a cat')"}),
        ("a.csv", "prompt;note\na cat;x\n", {"found": "a header with no column 'prompt' (its columns: 'prompt;note')"}),
        ("a.csv", "prompt,Prompt\na cat,b\n", {}),
        ("a.csv", "prompt,n,n\na cat,1,2\n", {"found": "a header with two columns 'n'"}),
        ("a.csv", ",prompt\n0,a cat\n", {"found": "a column without a name"}),
        ("a.csv", "prompt,note\na cat\n", {"found": "1 cell in line 2, but 2 columns"}),
        ("a.csv", "prompt,note\na cat, a dog,x\n", {"found": "3 cells in line 2, but 2 columns"}),
        ("a.tsv", "prompt,note\na cat,x\n", {}),
        ("a.json", '{"prompts": ["a cat"]}', {"found": "an object"}),
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
        ("a.txt", "two red circles".encode("utf-16-le"), "it is not UTF-8 text (at line 1)"),
        ("a.json", "a cat\n", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("a.json", '["a cat",]', None),
        ("a.json", '[{"prompt": "a", "prompt": "b"}]', "it is not JSON: the key 'prompt' occurs twice"),
        ("a.json", '["a"]\n["b"]\n', None),
        ("a.csv", 'prompt,n\n"a "cat" here",1\n', "it is not a table: ',' expected after '\"' (at line 2)"),
        ("a.csv", 'prompt\n"a cat\n', "it is not a table: unexpected end of data (at line 2)"),
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


def test_duplicates_are_reported(tmp_path):
    with warns("prompts-doubtful", prompts=1, places=["line 1", "line 3", "line 4"]):
        content = "a cat\na dog\na cat\na cat\n"
        assert texts(write(tmp_path, "a.txt", content)) == ["a cat", "a dog", "a cat", "a cat"]
