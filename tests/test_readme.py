"""README.md and the documentation: programs run, names and files exist."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def programs(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of each `livo` command in a text, without comments and redirections."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    lines = [*shell.splitlines(), *re.findall(r"`(livo [^`]+)`", text)]
    return [line.partition("   #")[0].split() for line in lines if re.match(r"(accelerate launch -m )?livo ", line)]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1300


def test_the_first_program_of_the_readme_runs_as_it_is_and_warns_of_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", programs(README)[0]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split("; ") == [
        f"{name}_equality: it says the same as exemplar 'a doctor' (1.00)" for name in ("gender", "racial")
    ]
    assert second.count("'female'") == second.count("'male'") == 4
    assert (tmp_path / "doctor.png").is_file()
    bars = re.compile(r"\d+%\|.*\| \d+/\d+ \[.*\]")  # of loading and sampling
    assert not [line for line in re.split(r"[\r\n\x1b]", done.stderr) if line.strip() not in ("", "[A") and not bars.search(line)]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_program_names_what_there_is(page):
    for program in programs(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("livo", "diffusers"):
                assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names), program
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "livo":
                assert hasattr(importlib.import_module("livo"), node.attr), program
            elif isinstance(node, ast.Call):
                check_call(node)


def check_call(node: ast.Call) -> None:
    """The keywords of a call of the pipeline are its parameters."""
    from inspect import signature

    from diffusers import StableDiffusionPipeline

    from livo import LiVOPipeline

    ours, base = signature(LiVOPipeline.__call__).parameters, signature(StableDiffusionPipeline.__call__).parameters
    if isinstance(node.func, ast.Name) and node.func.id == "pipe":
        assert {keyword.arg for keyword in node.keywords} <= {*ours, *base}, ast.unparse(node)
    elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "pipe":
        assert hasattr(LiVOPipeline, node.func.attr), ast.unparse(node)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_options_that_exist(page):
    from livo.cli.main import COMMANDS

    for words in commands(page.read_text(encoding="utf-8")):
        words = words[words.index("livo") + 1 :]
        if words[0] not in COMMANDS:
            assert words[0] in ("--help", "COMMAND"), words
            continue
        known = options_of(words[0])
        for word in words:
            option = word.partition("=")[0].rstrip(",")
            assert not option.startswith("-") or option in known, f"livo {words[0]} has no {option}"


def options_of(command: str) -> set[str]:
    import argparse

    from livo.cli.main import COMMANDS

    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    return set(parser._option_string_actions) | {"--debug"}


def test_links_of_the_readme_lead_to_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_what_pypi_shows_has_no_link_into_the_checkout():
    source = (ROOT / "setup.py").read_text().partition("\nreadme = ")[0]
    names: dict = {}
    exec(source, names)
    shown = names["without_relative_links"](README)
    assert "![" not in shown and all(link.startswith("http") for link in re.findall(r"\]\(([^)]+)\)", shown))
    assert "# LiVO" in shown and "before_after" not in shown and "Principle files" in shown


def test_the_five_files_that_hold_the_method_are_short():
    named = re.findall(r"^\d\. `(livo/[^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == 5 and sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in named) <= 700
