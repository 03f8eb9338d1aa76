"""What users import, and what their type checker sees of it."""

import importlib
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import livo

ROOT = Path(__file__).parent.parent
PACKAGES = [".".join(stub.parent.relative_to(ROOT).parts) for stub in sorted((ROOT / "livo").rglob("__init__.pyi"))]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_can_be_imported(name):
    package = importlib.import_module(name)
    assert package.__all__ and set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public).__module__ if callable(getattr(package, public)) else True


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'LiVOPipelin'"):
        _ = importlib.import_module(name).LiVOPipelin


@pytest.mark.parametrize("what", ["import livo", "from livo.cli.main import main; main(['--help'])"])
def test_torch_is_not_imported_before_it_is_needed(what):
    code = f"import sys\ntry:\n    {what}\nexcept SystemExit:\n    pass\nassert not {{'torch', 'diffusers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_version_is_written_in_one_place():
    written = [file for file in ("setup.cfg", "pyproject.toml") if livo.__version__ in (ROOT / file).read_text()]
    assert not written and (ROOT / "livo" / "__init__.py").read_text().count(f'__version__ = "{livo.__version__}"') == 1
    assert f"## {livo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["StableDiffusion", "StableDiffusionXL"])
def test_type_checkers_know_the_arguments_that_diffusers_takes(name):
    import diffusers

    from livo.pipelines import call_arguments
    from livo.pipelines.mixin import ValueMixin

    known = {*getattr(call_arguments, f"{name}Arguments").__annotations__}
    for base in (
        getattr(call_arguments, f"{name}Arguments"),
        call_arguments.StableDiffusionArguments,
        call_arguments.ValueArguments,
    ):
        known |= set(base.__annotations__)
    there = {**signature(getattr(diffusers, f"{name}Pipeline").__call__).parameters, **signature(ValueMixin.__call__).parameters}
    assert known == set(there) - {"self", "prompt", "args", "kwargs"}


USER = """
import livo
from livo import LiVOPipeline

pipe = LiVOPipeline.from_pretrained("papertown").to("cpu")
out = pipe("a cat", value=None, num_inference_steps=3)
print(out.images[0], [decision.summary for decision in out.decisions])
pipe("a cat", valeu=None)
print(out.decisions[0].directoin)
livo.LiVOPipelin
"""


@pytest.mark.slow
def test_a_type_checker_reports_misspelt_names(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [*command, str(tmp_path / "user.py")], capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    lines = [line.partition("user.py:")[2] for line in done.stdout.splitlines() if "error" in line and "user.py" in line]
    assert [line.split(":")[0] for line in lines] == ["8", "9", "10"], done.stdout
    assert 'argument "valeu"' in lines[0] and 'attribute "directoin"' in lines[1] and '"LiVOPipelin"' in lines[2]
