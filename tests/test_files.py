import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mergekit_av import AVError
from mergekit_av.files import check_vacant, whole_folder, write_whole

# Runs an action again and again, each time in a new process that is killed one step later: at its
# first, second, … audit event that matters (files opened, renamed, removed; system calls made).
KILL_AT_EVERY_STEP = """
import os, signal, sys, traceback

def killed_at(step, action, matters):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == signal.SIGKILL
    left = step
    def hook(event, arguments):
        nonlocal left
        if matters(event, arguments):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def kill_at_every_step(action, look, matters=lambda event, arguments: True):
    step = 0
    while killed_at(step, action, matters):
        look()
        step += 1
    assert step > 5, step
    look()
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder of ours (its marker is the file `ours`)."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ours").write_text("old")
    return folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "new" / "deep" / "out"
    with whole_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "x"
    assert os.listdir(out.parent) == ["out"]


def test_overwriting_replaces_the_whole_folder(old):
    (old / "stale").write_text("old")
    with whole_folder(old, overwrite=True, marker="ours") as folder:
        (folder / "ours").write_text("new")
        assert content(old) == {"ours": "old", "stale": "old"}
    assert content(old) == {"ours": "new"}
    assert os.listdir(old.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_everything_as_it_was(old, tmp_path, error):
    for out in (old, tmp_path / "other"):
        with (
            pytest.raises(error),
            whole_folder(out, overwrite=True, marker="ours") as folder,
        ):
            (folder / "ours").write_text("new")
            raise error
    assert content(old) == {"ours": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_existing_folder_needs_overwrite(old):
    with pytest.raises(AVError, match="pass --overwrite"), whole_folder(old, marker="ours"):
        raise AssertionError("the block must not run")
    assert content(old) == {"ours": "old"}


def test_overwrite_replaces_only_what_is_ours(old):
    (old / "ours").rename(old / "thesis.tex")
    for marker in ("ours", ""):
        with pytest.raises(AVError, match="replaces only what we wrote"):
            check_vacant(old, overwrite=True, marker=marker)
    (old / "thesis.tex").unlink()
    check_vacant(old, overwrite=True, marker="ours")  # an empty folder is nobody's


def test_files_and_links_are_not_replaced(old, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(AVError, match="not a folder"):
            check_vacant(tmp_path / name, overwrite=True, marker="ours")


@pytest.mark.parametrize("name", ["file/out", "file/deep/out", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    out = tmp_path / name
    with pytest.raises(AVError, match="could not write"), whole_folder(out):
        raise AssertionError("the block must not run")
    with pytest.raises(AVError, match="could not write"):
        write_whole(out, "x")
    assert os.listdir(tmp_path) == ["file"]


def test_write_whole_replaces_a_file_in_one_step(tmp_path):
    file = tmp_path / "deep" / "file.json"
    for text in ("old", "new λ"):
        write_whole(file, text)
        assert file.read_text("utf-8") == text
    assert os.listdir(file.parent) == ["file.json"]
    os.link(file, tmp_path / "same")
    write_whole(file, "newest")
    assert (tmp_path / "same").read_text("utf-8") == "new λ"  # a reader keeps what it has opened


def test_killed_at_any_step_a_folder_is_whole_or_not_there(tmp_path):
    code = KILL_AT_EVERY_STEP + textwrap.dedent("""
        from pathlib import Path
        from mergekit_av.files import whole_folder

        out = Path(sys.argv[1])
        seen = set()
        def action():
            with whole_folder(out) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text("new")
        def look():
            names = sorted(os.listdir(out)) if out.exists() else []
            assert names in ([], ["a", "b"]), names
            seen.add(len(names))
            if names:
                out.rename(out.with_name("done"))
                os.system(f"rm -r {out.with_name('done')}")
        kill_at_every_step(action, look)
        assert seen == {0, 2}
    """)
    done = run_python(code, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_killed_at_any_step_an_overwritten_folder_is_the_old_or_the_new(old):
    code = KILL_AT_EVERY_STEP + textwrap.dedent("""
        from pathlib import Path
        from mergekit_av.files import whole_folder

        out = Path(sys.argv[1])
        def action():
            with whole_folder(out, overwrite=True, marker="ours") as folder:
                for name in ("ours", "b"):
                    (folder / name).write_text("new")
        def look():
            texts = {f.name: f.read_text() for f in out.iterdir()}
            assert texts in ({"ours": "old"}, {"ours": "new", "b": "new"}), texts
        kill_at_every_step(action, look)
        assert (out / "b").exists()
    """)
    done = run_python(code, old)
    assert done.returncode == 0, done.stderr
    assert os.listdir(old.parent) == ["out"]


def test_killed_at_any_step_a_file_is_the_old_or_the_new(tmp_path):
    file = tmp_path / "file"
    file.write_text("old" * 1000)
    code = KILL_AT_EVERY_STEP + textwrap.dedent("""
        from pathlib import Path
        from mergekit_av.files import write_whole

        file = Path(sys.argv[1])
        def look():
            assert file.read_text() in ("old" * 1000, "new" * 2000)
        kill_at_every_step(lambda: write_whole(file, "new" * 2000), look)
    """)
    done = run_python(code, file)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "new" * 2000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["out", "strange[1]*.x"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, name):
    dead = run_python("import os; print(os.getpid())").stdout.strip()
    # A restarted container gives the same numbers again, so ours may be on a dead one's folder.
    for number in (dead, os.getpid()):
        leftover = tmp_path / f".{name}.{number}.av.tmp"
        leftover.mkdir()
        (leftover / "model.safetensors").touch()
    (tmp_path / f".text.{dead}.av.tmp").touch()
    (tmp_path / f".{name}.1.av.tmp").mkdir()  # process 1 is alive: it may still be writing
    with whole_folder(tmp_path / name) as folder:
        (folder / "a").touch()
    write_whole(tmp_path / "text", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([f".{name}.1.av.tmp", name, "text"])


def test_a_full_disk_is_one_line_and_keeps_the_old(old):
    code = """
        import resource, sys
        from pathlib import Path
        from mergekit_av import AVError
        from mergekit_av.files import whole_folder, write_whole

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        out = Path(sys.argv[1])
        try:
            with whole_folder(out, overwrite=True, marker="ours") as folder:
                (folder / "ours").write_text("new" * 1000)
        except AVError as error:
            print(error)
        try:
            write_whole(out / "ours", "new" * 1000)
        except AVError as error:
            print(error)
    """
    done = run_python(code, old)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "File too large. Nothing was changed there"
    ] * 2
    assert content(old) == {"ours": "old"}
    assert os.listdir(old.parent) == ["out"]
