"""The layers of docs/architecture.md hold, and no two modules import each other."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The package as it is installed: training and evaluation lie in it."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mergekit_av", tree / "mergekit_av", ignore=ignored)
    for part in ("training", "evaluation"):
        shutil.copytree(ROOT / part, tree / "mergekit_av" / part, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def lint(tree: Path) -> subprocess.CompletedProcess:
    program = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_imports_point_down(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module, line",
    [
        ("training/dpo.py", "from mergekit_av.cli import command"),
        ("evaluation/tasks.py", "from mergekit_av.training import pairs"),
        ("evaluation/accuracy.py", "def late():\n    from mergekit_av.evaluation import tasks"),
        ("vectors/delta.py", "import mergekit"),
        ("synthesis/folder.py", "import torch"),
    ],
)
def test_an_import_that_points_up_is_seen(tree, tmp_path, module, line):
    other = shutil.copytree(tree, tmp_path / "tree")
    with open(other / "mergekit_av" / module, "a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    done = lint(other)
    assert done.returncode == 1
    assert (
        module.removesuffix(".py").rpartition("/")[2]
        in done.stdout.partition("Broken contracts")[2]
    )
