import contextlib
import fcntl
import os
import pty
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from killing import KILL_AT_EVERY_STEP, OURS, run_python

from mergekit_av import AVError
from mergekit_av.io.atomic import check_file, write_whole
from mergekit_av.io.folders import Kind, check_vacant, whole_folder
from mergekit_av.io.locks import locked


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text("utf-8") for file in folder.iterdir()}


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder of ours (its marker is the file `ours`)."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ours").write_text("old", "utf-8")
    return folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "new" / "deep" / "out"
    with whole_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x", "utf-8")
        assert not out.exists()
    assert (out / "sub" / "file").read_text("utf-8") == "x"
    assert os.listdir(out.parent) == ["out"]


def test_overwriting_replaces_the_whole_folder(old):
    (old / "b").write_text("old", "utf-8")
    with whole_folder(old, overwrite=True, kind=OURS) as folder:
        (folder / "ours").write_text("new", "utf-8")
        assert content(old) == {"ours": "old", "b": "old"}
    assert content(old) == {"ours": "new"}
    assert os.listdir(old.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_everything_as_it_was(old, tmp_path, error):
    for out in (old, tmp_path / "other"):
        with (
            pytest.raises(error),
            whole_folder(out, overwrite=True, kind=OURS) as folder,
        ):
            (folder / "ours").write_text("new", "utf-8")
            raise error
    assert content(old) == {"ours": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_existing_folder_needs_overwrite(old):
    with pytest.raises(AVError, match="pass --overwrite"), whole_folder(old, kind=OURS):
        raise AssertionError("the block must not run")
    assert content(old) == {"ours": "old"}


def test_overwrite_replaces_only_what_is_ours(old):
    (old / "ours").rename(old / "thesis.tex")
    for kind in (OURS, None):
        with pytest.raises(AVError, match="replaces only what we wrote"):
            check_vacant(old, overwrite=True, kind=kind)
    (old / "ours").touch()
    with pytest.raises(AVError, match=r"holds thesis\.tex, which is not of one of ours"):
        check_vacant(old, overwrite=True, kind=OURS)
    for file in old.iterdir():
        file.unlink()
    check_vacant(old, overwrite=True, kind=OURS)  # an empty folder is nobody's


def test_files_and_links_are_not_replaced(old, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(AVError, match="not a folder"):
            check_vacant(tmp_path / name, overwrite=True, kind=OURS)


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
        from mergekit_av.io.folders import whole_folder

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
        from killing import OURS
        from mergekit_av.io.folders import whole_folder

        out = Path(sys.argv[1])
        def action():
            with whole_folder(out, overwrite=True, kind=OURS) as folder:
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
    file.write_text("old" * 1000, "utf-8")
    code = KILL_AT_EVERY_STEP + textwrap.dedent("""
        from pathlib import Path
        from mergekit_av.io.atomic import write_whole

        file = Path(sys.argv[1])
        def look():
            assert file.read_text() in ("old" * 1000, "new" * 2000)
        kill_at_every_step(lambda: write_whole(file, "new" * 2000), look)
    """)
    done = run_python(code, file)
    assert done.returncode == 0, done.stderr
    assert file.read_text("utf-8") == "new" * 2000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["out", "strange[1]*.x"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, name):
    killed = """
        import os, signal, sys
        from pathlib import Path
        from mergekit_av.io.folders import whole_folder
        from mergekit_av.io.atomic import write_whole

        def kill(event, arguments):
            if event == "os.rename":
                os.kill(os.getpid(), signal.SIGKILL)
        out = Path(sys.argv[1])
        if os.fork():
            os.wait()
            sys.addaudithook(kill)
            write_whole(out.with_name("text"), "x")
        else:
            with whole_folder(out) as folder:
                (folder / "model.safetensors").touch()
                os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(2):
        assert run_python(killed, tmp_path / name).returncode == -9
    left = os.listdir(tmp_path)
    # The second took away what the first had left.
    assert len(left) == 3 and sum(file.endswith(".av.tmp") for file in left) == 2, left
    with whole_folder(tmp_path / name) as folder:
        (folder / "a").touch()
    write_whole(tmp_path / "text", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "text"])


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    with open(tmp_path / ".text.0123abcd.av.tmp", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        write_whole(tmp_path / "text", "x")
        assert sorted(os.listdir(tmp_path)) == [".text.0123abcd.av.tmp", "text"]
    write_whole(tmp_path / "text", "y")
    assert os.listdir(tmp_path) == ["text"]


# What comes to the place meanwhile


def test_a_folder_that_came_meanwhile_stays_and_the_new_one_is_kept(tmp_path):
    out = tmp_path / "out"
    for overwrite, kept in ((False, "out.new"), (True, "out.new2")):
        with (
            pytest.raises(AVError, match=rf"whole, and is kept in .*/{kept}$"),
            whole_folder(out, overwrite, OURS) as folder,
        ):
            (folder / "ours").write_text("new", "utf-8")
            out.mkdir()
            (out / "thesis.tex").write_text("years of work", "utf-8")
        assert content(out) == {"thesis.tex": "years of work"}
        assert content(tmp_path / kept) == {"ours": "new"}
        shutil.rmtree(out)
    assert sorted(os.listdir(tmp_path)) == ["out.new", "out.new2"]


def test_an_empty_folder_or_a_file_that_came_meanwhile_stays(tmp_path):
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to(tmp_path)):
        out = tmp_path / "out"
        with pytest.raises(AVError, match="is kept in"), whole_folder(out) as folder:
            (folder / "ours").write_text("new", "utf-8")
            make(out)
            before = out.lstat()
        assert out.lstat() == before
        out.rename(tmp_path / f"seen-{make.__name__}")


@pytest.mark.parametrize("when", ["before", "at the exchange"])
def test_what_is_exchanged_is_looked_at_again(old, tmp_path, when):
    """A folder of ours gives way to another while its successor is written: that one stays."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work", "utf-8")

    def swap() -> None:
        if foreign.exists():
            old.rename(tmp_path / "moved")
            foreign.rename(old)

    # As late as it can be: when the last look at the folder has found it to be ours.
    def known(folder: Path) -> bool:
        found = OURS.known(folder)
        if when == "at the exchange" and writing == ["done"]:
            swap()
        return found

    writing = []
    kind = Kind(OURS.name, known, OURS.foreign if when == "before" else lambda folder: [])
    with (
        pytest.raises(AVError, match=r"is kept in .*/out\.new$"),
        whole_folder(old, overwrite=True, kind=kind) as folder,
    ):
        (folder / "ours").write_text("new", "utf-8")
        if when == "before":
            swap()
        writing.append("done")
    assert content(old) == {"thesis.tex": "years of work"}
    assert content(tmp_path / "out.new") == {"ours": "new"}
    assert content(tmp_path / "moved") == {"ours": "old"}


def test_a_file_that_came_meanwhile_stays_and_the_new_one_is_kept(tmp_path):
    out = tmp_path / "mine.yml"
    check_file(out, overwrite=False)
    out.write_text("old", "utf-8")
    with pytest.raises(AVError, match=r"exists by now: .* is kept in .*/mine\.new\.yml$"):
        write_whole(out, "new", overwrite=False)
    assert content(tmp_path) == {"mine.yml": "old", "mine.new.yml": "new"}
    write_whole(tmp_path / "other.yml", "new", overwrite=False)
    assert (tmp_path / "other.yml").read_text("utf-8") == "new"
    with pytest.raises(AVError, match="exists: choose another name or pass --overwrite"):
        check_file(out, overwrite=False)
    with pytest.raises(AVError, match="is a folder: name a file"):
        check_file(tmp_path)


# What is no file


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
        check_file(path, overwrite=False)
        write_whole(path, "λ")
        assert reader.communicate(timeout=60)[0].decode() == "λ"
    assert stat.S_ISFIFO(pipe.stat().st_mode) and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_device_is_written_to_and_stays(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.open("wb").close()
    except OSError:
        device = Path(os.ttyname(pty.openpty()[1]))
    link = tmp_path / "link"
    link.symlink_to(device)
    check_file(link)
    write_whole(link, "x")
    assert link.is_symlink() and stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_is_written_to_where_it_is(tmp_path, name, to):
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = """
        import os, sys
        from mergekit_av.io.atomic import check_file, write_whole

        print("before", flush=True)
        check_file(sys.argv[1])
        write_whole(sys.argv[1], "json\\n")
        print("after", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), name]
    log = tmp_path / "log"
    if to == "pipe":
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        log.write_text(done.stdout, "utf-8")
    else:
        with log.open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert log.read_text("utf-8") == "before\njson\nafter\n"
    assert sorted(os.listdir(tmp_path)) == ["link", "log"]


def test_a_link_to_a_file_stays_and_the_file_is_replaced_in_one_step(tmp_path):
    (tmp_path / "sub").mkdir()
    target, link = tmp_path / "sub" / "file", tmp_path / "link"
    link.symlink_to("sub/file")
    for text in ("first", "second"):  # first it leads nowhere
        check_file(link)
        write_whole(link, text)
        assert os.readlink(link) == "sub/file" and target.read_text("utf-8") == text
        os.link(target, tmp_path / text)
    assert (tmp_path / "first").read_text("utf-8") == "first"
    assert os.listdir(tmp_path / "sub") == ["file"]


# Locks

HOLD = """
    import sys, time
    from mergekit_av.io.locks import locked

    with locked(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(path: Path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def test_two_processes_do_not_write_to_one_place(old, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with held_elsewhere(old):
        for path in (old, tmp_path / "link" / "out", Path(os.path.relpath(old))):
            with (
                pytest.raises(AVError, match="out is in use by another process: wait for it"),
                whole_folder(path, overwrite=True, kind=OURS),
            ):
                raise AssertionError("the block must not run")
    assert content(old) == {"ours": "old"}
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]
    with whole_folder(old, overwrite=True, kind=OURS) as folder:
        (folder / "ours").write_text("new", "utf-8")
    assert content(old) == {"ours": "new"}


def test_a_lock_vanishes_with_a_killed_process_but_not_with_its_children(tmp_path):
    with held_elsewhere(tmp_path / "out") as process:
        process.kill()
        process.wait()
        assert os.listdir(tmp_path) == [".out.av.lock"]
        with locked(tmp_path / "out") as held, locked(tmp_path / "out"):
            assert held
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
            done = run_python(HOLD, tmp_path / "out")
            assert "is in use by another process" in done.stderr
        assert os.listdir(tmp_path) == []


def test_a_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    code = """
        import os, sys, time
        from mergekit_av.io.locks import locked

        with locked(sys.argv[1]):
            if child := os.fork():
                print(child, flush=True)
                os.kill(os.getpid(), 9)
            os.close(1)
            os.close(2)
            time.sleep(60)
    """
    done = run_python(code, tmp_path / "out")
    try:
        with locked(tmp_path / "out"):
            pass
    finally:
        os.kill(int(done.stdout), 9)


def test_many_that_want_a_lock_get_it_one_after_the_other(tmp_path):
    """Whose file is removed at each end, which must not let two in."""
    code = """
        import os, sys
        from pathlib import Path
        from mergekit_av.io.locks import locked

        place = Path(sys.argv[1])
        for _ in range(4):
            if not os.fork():
                for _ in range(300):
                    with locked(place, wait=True):
                        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
                        place.unlink()
                os._exit(0)
        sys.exit(any(os.wait()[1] for _ in range(4)))
    """
    done = run_python(code, tmp_path / "place")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line_and_keeps_the_old(old):
    code = """
        import resource, sys
        from pathlib import Path
        from mergekit_av import AVError
        from killing import OURS
        from mergekit_av.io.folders import whole_folder
        from mergekit_av.io.atomic import write_whole

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        out = Path(sys.argv[1])
        try:
            with whole_folder(out, overwrite=True, kind=OURS) as folder:
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
