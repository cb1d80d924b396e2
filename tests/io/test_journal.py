"""Lines of JSON on disk; how they survive a kill and a full disk is tested where they are used."""

import pytest

from mergekit_av.errors import AVError
from mergekit_av.io.journal import Journal, read_journal


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder" / "journal.jsonl"


def test_several_lines_are_added_at_once_and_read_back(file):
    with Journal(file) as journal:
        journal.append({"a": 1}, {"b": "ü\u2028\n"})
        journal.append()
        journal.append({"c": None})
        assert journal.entries == [{"a": 1}, {"b": "ü\u2028\n"}, {"c": None}]
    assert read_journal(file) == [{"a": 1}, {"b": "ü\u2028\n"}, {"c": None}]
    assert file.read_bytes().count(b"\n") == 3


def test_half_a_character_does_not_stop_it(file):
    with Journal(file) as journal:
        journal.append({"text": "half \ud83d of a face"})
        assert journal.entries == [{"text": "half ? of a face"}] == read_journal(file)


def test_a_reader_passes_over_what_is_just_being_written(file):
    with Journal(file) as journal:
        journal.append({"a": 1})
        with file.open("ab") as stream:
            stream.write(b'{"b": ')
        assert read_journal(file) == [{"a": 1}]
    with Journal(file) as journal:
        assert journal.entries == [{"a": 1}]
    assert file.read_bytes() == b'{"a": 1}\n'


def test_where_there_is_no_file_there_are_no_lines(file):
    assert read_journal(file) == []
    file.mkdir(parents=True)
    with pytest.raises(AVError, match=r"cannot read .*journal.jsonl: Is a directory"):
        read_journal(file)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_named(file, line):
    with Journal(file) as journal:
        journal.append({"a": 1})
    file.write_bytes(file.read_bytes() + line + b"\n")
    for read in (Journal, read_journal):
        with pytest.raises(AVError, match=r"journal.jsonl, line 2 is no JSON object: remove"):
            read(file)
