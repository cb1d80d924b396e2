import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_av import AVError
from mergekit_av.evaluation.measure.store import Store

KEY = {"base": "abc", "vectors": [["def", 0.1]], "domain": "medical"}


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def file(tmp_path):
    """A file with one evaluation."""
    with Store(tmp_path / "runs" / "evaluations.jsonl") as store:
        store.put(KEY, [1.5, -0.25], 2.5)
    return tmp_path / "runs" / "evaluations.jsonl"


def test_what_was_put_is_there_when_the_file_is_opened_again(file):
    with Store(file) as store:
        assert store.get(KEY) == [1.5, -0.25] and len(store) == 1
        assert store.get({**KEY, "domain": "legal"}) is None
        store.put({**KEY, "domain": "legal"}, {"ü": "λ\n\u2028\r"})
        assert store.get({**KEY, "domain": "legal"}) == {"ü": "λ\n\u2028\r"}
    with Store(file) as store:
        assert store.get({**KEY, "domain": "legal"}) == {"ü": "λ\n\u2028\r"} and len(store) == 2


def test_the_order_of_a_keys_entries_does_not_matter(file):
    with Store(file) as store:
        assert store.get(dict(reversed(KEY.items()))) == [1.5, -0.25]


def test_each_line_says_of_what_it_is(file):
    entry = json.loads(file.read_text("utf-8"))
    assert entry == {"key": {**KEY, "version": 1}, "value": [1.5, -0.25], "seconds": 2.5}


def test_how_long_each_took_is_known_where_the_file_says_it(file):
    with Store(file) as store:
        assert KEY in store and store.seconds(KEY) == 2.5
        assert {"base": "other"} not in store and store.seconds({"base": "other"}) == 0
    entry = json.loads(file.read_text("utf-8"))
    del entry["seconds"]
    file.write_text(json.dumps(entry) + "\n", "utf-8")
    with Store(file) as store:
        assert KEY in store and store.get(KEY) == [1.5, -0.25] and store.seconds(KEY) == 0


def test_an_evaluation_of_another_version_is_not_ours(file):
    file.write_text(file.read_text("utf-8").replace('"version": 1', '"version": 0'), "utf-8")
    with Store(file) as store:
        assert store.get(KEY) is None and len(store) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "numbers.jsonl"
    file.unlink(missing_ok=True)
    with Store(file) as store:
        store.put(KEY, values)
        assert store.get(KEY) == values
    with Store(file) as store:
        assert store.get(KEY) == values


def test_no_number_is_refused_and_leaves_nothing(file):
    with Store(file) as store, pytest.raises(ValueError):
        store.put({"base": "other"}, float("nan"))
    with Store(file) as store:
        assert len(store) == 1


def test_whatever_a_killed_process_left_of_a_line_is_cut_off(file):
    whole = file.read_bytes()
    line = whole.replace(b"medical", "für".encode())
    middle = line.index("ü".encode()) + 1
    for length in (*range(0, len(line), 20), middle, len(line) - 2, len(line) - 1):
        file.write_bytes(whole + line[:length])
        with Store(file) as store:
            assert store.get(KEY) == [1.5, -0.25] and len(store) == 1
        assert file.read_bytes() == whole


def test_after_a_kill_the_next_line_stands_alone(file):
    file.write_bytes(file.read_bytes() + b'{"key": {"ba')
    with Store(file) as store:
        store.put({"base": "other"}, 2)
    with Store(file) as store:
        assert store.get(KEY) == [1.5, -0.25] and store.get({"base": "other"}) == 2


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "null", '{"key": {}}', '{"value": 1}', '{"key": 1, "val": 2}', "\udc00"]
)
def test_a_damaged_line_is_named(file, line):
    text = line.encode("utf-8", "surrogateescape") if line != "\udc00" else b"\xff"
    file.write_bytes(file.read_bytes() + text + b"\n")
    for _ in range(2):  # refused, it is closed again
        with pytest.raises(
            AVError, match=r"evaluations.jsonl, line 2 is no (evaluation|JSON object): remove"
        ):
            Store(file)


def test_a_second_process_is_refused_until_the_first_is_done(file):
    code = """
        import sys
        from mergekit_av import AVError
        from mergekit_av.evaluation.measure.store import Store
        try:
            Store(sys.argv[1]).put({}, 1)
        except AVError as error:
            sys.exit(str(error))
    """
    with Store(file):
        done = run_python(code, file)
        assert done.returncode == 1 and f"{file} is in use by another process" in done.stderr
    assert run_python(code, file).returncode == 0
    with Store(file) as store:
        assert store.get({}) == 1 and store.get(KEY) == [1.5, -0.25]


def test_a_killed_process_does_not_keep_the_file(file):
    code = """
        import os, signal, sys
        from mergekit_av.evaluation.measure.store import Store
        store = Store(sys.argv[1])
        store.put({}, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(code, file).returncode == -9
    with Store(file) as store:
        assert store.get({}) == 1 and len(store) == 2


def test_a_full_disk_leaves_what_was_there_and_later_lines_whole(file):
    before = file.read_bytes()
    code = """
        import resource, sys
        from mergekit_av import AVError
        from mergekit_av.evaluation.measure.store import Store
        store = Store(sys.argv[1])
        size = store.file.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
        try:
            store.put({}, "x" * 100)
        except AVError as error:
            print(error)
        assert store.get({}) is None and store.file.stat().st_size == size
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.close()
        assert store.file.stat().st_size == size  # nothing is written late
        with Store(sys.argv[1]) as store:
            store.put({}, 1)
    """
    done = run_python(code, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"could not write {file}: File too large"
    assert file.read_bytes().startswith(before)
    with Store(file) as store:
        assert store.get({}) == 1 and store.get(KEY) == [1.5, -0.25]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AVError, match=r"cannot write .*: (Not a directory|File exists)"):
        Store(tmp_path / "file" / "evaluations.jsonl")
    with pytest.raises(AVError, match=r"cannot write .*: Is a directory"):
        Store(tmp_path)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(AVError, match=r"cannot write .*: Permission denied"):
            Store(tmp_path / "evaluations.jsonl")
