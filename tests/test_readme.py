"""The command lines of the README and the docs, as they stand there.

Every one is parsed by the command that it names. Those of the README that need no more than a tiny
model, or a server that the tests have, are run as they are typed; what is added to them only makes
them shorter. The default base is a tiny model's folder in the place where the commands look for it.
"""

import ast
import importlib
import re
import shlex
import shutil
import tomllib
from functools import cache
from pathlib import Path

import click
import processes
import pytest
from click.testing import CliRunner
from synthesizing import novelist

from mergekit_av.errors import UsageError
from mergekit_av.models.default_base import DEFAULT_BASE
from mergekit_av.training.arguments import training_arguments

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
OTHERS = {
    "mergekit-yaml": "mergekit.scripts.run_yaml:main",
    "mergekit-multi": "mergekit.scripts.multimerge:main",
}


def command_lines(file: Path) -> list[str]:
    """The indented lines that begin with a program, whole and without comments."""
    text = file.read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"^    ([a-z][a-z-]+ .*|av-[a-z]+)$", text, re.MULTILINE)
    lines = (shlex.join(shlex.split(line, comments=True)) for line in found if "│" not in line)
    return [line for line in lines if line.split()[0] in {*SCRIPTS, *OTHERS, "make", "torchrun"}]


TEXT = README.read_text("utf-8")
README_LINES = command_lines(README)
LINES = [
    *README_LINES,
    *(line for doc in (REPOSITORY / "docs").glob("*.md") for line in command_lines(doc)),
]


@cache
def command(name: str) -> click.Command:
    module, attribute = {**SCRIPTS, **OTHERS}[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def parse(name: str, found: click.Command, words: list[str]) -> None:
    """Have click read a line, and do nothing with it."""
    if hasattr(found, "get_command"):  # a group
        [name, *words] = words
        parse(name, found.get_command(click.Context(found), name), words)
        return
    context = found.make_context(name, words)
    if options := context.params.get("dpo_options"):
        training_arguments(options, context.params["config"], output_dir="runs")


def test_the_readme_has_lines_and_all_commands_are_in_it():
    # A reader of lines that finds none would pass everything below.
    assert len(README_LINES) > 40 and len(LINES) > len(README_LINES)
    assert all(f"    {name} " in TEXT for name in SCRIPTS)


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_a_line_is_understood_by_its_command(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text("learning_rate: 1.0e-5\n", "utf-8")
    Path("mine.yml").write_text("merge_method: alignment_vector\n", "utf-8")
    for folder in ("recipes", "avs/medical-lora"):
        Path(folder).mkdir(parents=True)
    for recipe in (*REPOSITORY.glob("recipes/*.yml"), REPOSITORY / "README.md"):
        shutil.copy(recipe, "recipes")
    shutil.copy("mine.yml", "recipe.yml")
    name, *words = shlex.split(line)
    if name == "make":
        targets = re.findall(
            r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE
        )
        assert set(words) <= set(targets)
        return
    if name == "torchrun":
        name, *words = words[words.index("--no-python") + 1 :]
    parse(name, command(name), words)


def test_an_option_that_is_not_there_would_be_seen():
    for line in ("av-eval out/ --domains medical", "av-train --domain medical --learning_rat 1"):
        name, *words = line.split()
        with pytest.raises((click.UsageError, UsageError)):
            parse(name, command(name), words)


# Run as they stand


BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_python_calls_is_there_and_its_configurations_are_made(block):
    tree = ast.parse(block)
    names: dict = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        ):
            exec(ast.unparse(node), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Config"):
            eval(ast.unparse(node), names)


def test_the_readme_calls_every_workflow():
    text = "".join(BLOCKS)
    assert all(f"{name}Config(" in text for name in ("Train", "Eval", "Sweep", "Search"))


@pytest.fixture
def here(base, aligned, vectors, tmp_path, monkeypatch) -> Path:
    """A folder such as the README supposes, where everything is tiny."""
    shutil.copytree(base, tmp_path / DEFAULT_BASE)
    shutil.copytree(base, tmp_path / "BASE")
    shutil.copytree(aligned, tmp_path / "ALIGNED")
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    for name, vector in vectors.items():
        shutil.copytree(vector, tmp_path / "avs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, shorter: str = "") -> str:
    """Run a line of the README in this process; its output."""
    assert line in README_LINES
    name, *words = shlex.split(f"{line} {shorter}")
    result = CliRunner().invoke(command(name), words)
    assert result.exit_code == 0, result.output
    return result.output


def in_process(words: list[str]) -> None:
    name, *arguments = words
    command(name).main(arguments, prog_name=name)


def train(folder: Path, line: str, shorter: str = "--max-records 2 --num_train_epochs 1") -> str:
    """Run a line of the README in a process of its own; its output."""
    assert line in README_LINES
    ended = processes.finish(processes.start(in_process, folder, shlex.split(f"{line} {shorter}")))
    assert ended.code == 0, ended.err
    return ended.out


def test_merging_and_evaluating(here):
    run("mergekit-yaml recipes/insurance.yml out/")
    # All domains take their time; tests/commands/test_eval.py does that.
    assert "medical (18)" in run("av-eval out/", "--domain medical")
    run(
        "av-eval out/ --domain medical --split validation --json out.json --answers 2",
        "--max-new-tokens 2",
    )
    assert Path("out.json").is_file()
    assert f"{DEFAULT_BASE} (float32" in run("av-eval", "--domain legal")
    run("av-extract BASE ALIGNED avs/mine")
    assert "mine" in run("av-check avs/mine --base BASE")


def test_exporting(here):
    # The vectors here are of whole tensors, av-train's of factors.
    run("av-export avs/medical --lora --out avs/medical-lora", "--rank 32")
    run("av-export avs/medical --lora --lambda=-0.5 --out avs/medical-careful", "--rank 32")
    assert all(Path(f"avs/medical-{n}/adapter_config.json").is_file() for n in ("lora", "careful"))


def test_sweeping(here):
    # Of an option that is given twice the last one counts.
    short = "--max-records 1 --generate 1 --max-new-tokens 1 --lambda 1"
    run("av-sweep --av avs/medical --lambda=-2:2:0.25 --write-card --out sweeps/medical", short)
    two = "av-sweep --av avs/medical --av avs/legal --domain medical --domain legal --domain helpfulness --out sweeps/two"
    run(two, short)
    assert Path("avs/medical/sweep.png").is_file() and Path("sweeps/two/report.md").is_file()


def test_searching(here):
    wanted = next(line for line in README_LINES if "--want" in line)
    short = "--max-records 1 --generate 1 --max-new-tokens 1 --range -1:0 --step 1"
    name, *words = shlex.split(f"{wanted} {short}")
    result = CliRunner().invoke(command(name), words)
    # Whether random vectors bring it out is nobody's promise; the recipe is written in any case.
    assert result.exit_code == 0 or "no setting tried" in result.stderr, result.output
    run("mergekit-yaml mine.yml out/")


@pytest.mark.parametrize(
    "line",
    [
        "av-train --domain medical",
        "av-train --domain medical --hold financial --hold legal",
    ],
)
def test_training(here, line):
    shutil.rmtree("avs")
    out = train(here, line)
    assert out.startswith("avs/medical: alignment vector 'medical' of ./models/SmolLM2")


def test_a_domain_of_ones_own(here, chat, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chat.write = novelist
    blocks = re.findall(r"```yaml\n(name: tone\n.*?)```", TEXT, re.DOTALL)
    Path("tone.yml").write_text(blocks[0].replace("records:", "#"), "utf-8")
    [line] = [line for line in README_LINES if line.startswith("av-synth run")]
    run(line, f"--count 6 --model tiny --base-url {chat.url} --budget 500000tokens")
    train(here, "av-train --domain data/tone/domain.yml --out avs/tone")
    [line] = [line for line in README_LINES if "--av avs/tone" in line]
    run(line, "--max-records 1 --generate 1 --max-new-tokens 1")


def test_judging(here, chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    chat.write = lambda body: "A"
    shutil.copytree("BASE", "out")
    for line in README_LINES:
        if "--judge" in line:
            out = run(
                line,
                f"--domain medical --judge-base-url {chat.url} --judge-sample 1 --max-new-tokens 1 --judge-budget 9999tokens",
            )
            assert "judged share" in out


def test_sharing(here, hub, client, base):
    hub.add_repo("me/SmolLM2-135M", {file.name: file.read_bytes() for file in base.iterdir()})
    recipe = re.findall(r"```yaml\n([^`]*me/SmolLM2-135M-medical-av@v2.*?)```", TEXT, re.DOTALL)[0]
    Path("recipe.yml").write_text(recipe, "utf-8")
    for line, longer in (
        (
            "av-push avs/medical me/SmolLM2-135M-medical-av --private --revision v2",
            "--base me/SmolLM2-135M",
        ),
        ("av-push avs/medical me/SmolLM2-135M-medical-av", "--base me/SmolLM2-135M"),
        ("mergekit-yaml recipe.yml out/", ""),
        ("av-eval out/", "--domain medical"),
        ("av-push out/ me/SmolLM2-135M-careful", ""),
    ):
        assert line in README_LINES
        ended = client.run(*shlex.split(f"{line} {longer}"))
        assert ended.code == 0, (line, ended.err)
    pushed = hub.repos["me/SmolLM2-135M-careful"].files()
    assert pushed["model.safetensors"] == Path("out/model.safetensors").read_bytes()
