"""mergekit's own test suite gives the same outcomes with the plugin as without."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

VERSION = importlib.metadata.version("mergekit")
COMMON = Path(__file__).parent / "support/mergekit_common.py"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A folder with the suite, without the package's source: the installed one is tested."""
    folder = tmp_path_factory.mktemp("mergekit")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "mergekit",
         "--dest", folder, f"mergekit=={VERSION}"],
        check=True,
    )  # fmt: skip
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / f"mergekit-{VERSION}"
    (unpacked / "tests").rename(folder / "tests")
    (unpacked / "pyproject.toml").rename(folder / "pyproject.toml")
    (folder / "tests/common.py").write_text(COMMON.read_text("utf-8"), "utf-8")
    return folder


def outcomes(suite: Path, **environment: str) -> dict[str, str]:
    """Test id → passed, skipped, failure or error."""
    report = suite / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=suite,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case} & {"skipped", "failure", "error"}
        found[f"{case.get('classname')}::{case.get('name')}"] = tags.pop() if tags else "passed"
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mergekits_own_suite_passes_with_the_plugin(suite):
    plugins = importlib.metadata.entry_points(group="pydantic", name="mergekit_av")
    assert len(plugins) == 1, "the plugin is not installed"

    with_plugin = outcomes(suite)
    without = outcomes(suite, PYDANTIC_DISABLE_PLUGINS="mergekit_av")

    print(f"mergekit {VERSION}: {dict(Counter(with_plugin.values()))}")
    assert not [test for test, outcome in with_plugin.items() if outcome in ("failure", "error")]
    assert with_plugin == without
    assert Counter(with_plugin.values())["passed"] > 500
