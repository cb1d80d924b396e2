"""The package as pip installs it: what lands where, which commands answer, what an import costs."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import click
import pytest

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
SCRIPTS = PROJECT["scripts"]
SOURCES = ("mergekit_av", "training", "evaluation")
EXTRAS = ("train", "plot", "workers", "synth")
HEAVY = {"torch", "transformers", "mergekit", "trl", "datasets"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A bare environment after `pip install .`; dependencies come from the one that runs the tests.

    Built from a copy, because setuptools leaves its build folder beside the sources.
    """
    folder = tmp_path_factory.mktemp("install")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in SOURCES:
        shutil.copytree(
            REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    environment = folder / "bare"
    venv.create(environment, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet",
         "--no-deps", folder],
        check=True,
    )  # fmt: skip
    (site_packages(environment) / "dependencies.pth").write_text(
        sysconfig.get_path("purelib"), "utf-8"
    )
    return environment


@pytest.fixture(scope="module")
def without_extras(bare) -> Path:
    """The bare environment, without the libraries that only an extra brings."""
    extras = PROJECT["optional-dependencies"]
    left_out = {canonical(each) for name in EXTRAS for each in extras[name]}
    libraries = bare.parent / "libraries"
    libraries.mkdir()
    for found in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
        if canonical(found.name) not in left_out:
            tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
            for top in tops - {entry.name for entry in libraries.iterdir()} - {"__pycache__"}:
                (libraries / top).symlink_to(found.locate_file(top))
    pth = site_packages(bare) / "dependencies.pth"
    everything = pth.read_text("utf-8")
    pth.write_text(str(libraries), "utf-8")
    yield bare
    pth.write_text(everything, "utf-8")


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def run(environment: Path, *command: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        env=inherited,
        cwd=environment,
        capture_output=True,
        text=True,
    )


def imports(environment: Path, program: str, *arguments: str) -> set[str]:
    """Top-level names of what a program has imported by its end."""
    report = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    done = run(environment, "python", "-c", report + program, *arguments)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stderr.split()}


def test_nothing_but_the_package_lands_in_site_packages(bare):
    found = {path.name for path in site_packages(bare).iterdir()}

    version = PROJECT["version"]
    assert found == {"mergekit_av", f"mergekit_av-{version}.dist-info", "dependencies.pth"}


def test_every_module_and_data_file_is_installed(bare):
    package = site_packages(bare) / "mergekit_av"
    for source in SOURCES:
        target = package if source == "mergekit_av" else package / source
        for file in (REPOSITORY / source).rglob("*"):
            if file.suffix in (".py", ".yml", ".jsonl", ".md", ".txt"):
                assert (target / file.relative_to(REPOSITORY / source)).is_file(), file


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers(bare, script):
    done = run(bare, script, "--help")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {script} ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(bare, script):
    program = "import runpy; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"

    assert not imports(bare, program, str(bare / "bin" / script), "--help") & HEAVY


def commands() -> dict[str, click.Command]:
    """All of them, the subcommands of groups instead of these."""
    found = {}
    for script, target in SCRIPTS.items():
        command = importlib.metadata.EntryPoint(script, target, "console_scripts").load()
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        found |= {f"{script} {name}".strip(): each for name, each in inner.items()}
    return found


@pytest.mark.parametrize(("name", "command"), commands().items())
def test_help_shows_every_default(name, command):
    context = command.make_context(name, [], resilient_parsing=True)
    text = " ".join(command.get_help(context).split())
    for option in command.params:
        default = context.params[option.name]
        if isinstance(option, click.Option) and default not in (None, False, ()):
            shown = option.name if default is True else default  # --flag/--no-flag
            assert f"[default: {shown}" in text, option.name


def test_importing_the_package_imports_nothing_heavy(bare):
    found = imports(bare, "import mergekit_av")

    assert "mergekit_av" in found
    assert not found & HEAVY


def test_a_program_that_uses_pydantic_imports_nothing_heavy(bare):
    found = imports(bare, "import pydantic\nclass Model(pydantic.BaseModel):\n    field: int")

    assert "mergekit_av" in found, "pydantic has not loaded the plugin"
    assert not found & HEAVY


def test_mergekit_knows_the_method_after_nothing_but_installation(bare):
    program = """
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
MergeConfiguration.model_validate({
    "merge_method": "alignment_vector",
    "base_model": "./base",
    "models": [{"model": "./avs/medical", "parameters": {"lambda": -1.0}}],
})
import mergekit_av
print(merge_methods.get("alignment_vector").spec.name, mergekit_av.__file__)
"""
    done = run(bare, "python", "-c", program)

    installed = site_packages(bare) / "mergekit_av/__init__.py"
    assert done.stdout.split() == ["alignment_vector", str(installed)], done.stderr


def test_who_only_merges_needs_no_extra(without_extras, base, aligned, tmp_path):
    av, out = tmp_path / "av", tmp_path / "out"
    (tmp_path / "recipe.yml").write_text(
        f"merge_method: alignment_vector\nbase_model: {base}\ndtype: bfloat16\n"
        f"models: [{{model: {av}, parameters: {{lambda: 0.5}}}}]\n",
        "utf-8",
    )
    merge = ["python", "-m", "mergekit.scripts.run_yaml", tmp_path / "recipe.yml", out]
    for command in (
        ["av-extract", base, aligned, av],
        ["av-check", av, "--base", base],
        merge,
        ["av-eval", out, "--domain", "medical", "--answers", "0"],
        ["av-export", av, "--lora", "--out", tmp_path / "lora", "--rank", "2"],
    ):
        done = run(without_extras, *command)
        assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("av-train --domain medical", "to train a vector, trl is needed: pip install 'mergekit-av[train]'"),
        ("av-eval", "to convert the default base, gguf is needed: pip install 'mergekit-av[train]'"),
        ("av-sweep --av AV --out sweep", "to draw plots, matplotlib is needed: pip install 'mergekit-av[plot]'"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(without_extras, vectors, command, told):
    done = run(without_extras, *command.replace("AV", str(vectors["medical"])).split())

    assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")


def test_declared_dependencies_cover_every_import():
    declared = {
        canonical(requirement)
        for requirements in (
            PROJECT["dependencies"],
            *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS),
        )
        for requirement in requirements
    }
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for source in SOURCES:
        for file in sorted((REPOSITORY / source).rglob("*.py")):
            for name in absolute_imports(file) - sys.stdlib_module_names - {"mergekit_av"}:
                if not {canonical(found) for found in distributions.get(name, ())} & declared:
                    missing.setdefault(name, str(file.relative_to(REPOSITORY)))
    assert not missing, "imported and not declared in pyproject.toml"


def absolute_imports(file: Path) -> set[str]:
    """Top-level names of the packages that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def canonical(requirement: str) -> str:
    """The normalised name of a distribution, without versions and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
