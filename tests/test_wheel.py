"""The wheel, installed outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

import livo

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SOURCES = ("livo", "value_principles", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because a build folder in the checkout may hold files that are gone."""
    folder = tmp_path_factory.mktemp("wheel")
    (source := folder / "source").mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    wanted = {str(file.relative_to(ROOT)) for file in (ROOT / "livo").rglob("*") if file.is_file() and file.suffix != ".pyc"}
    wanted |= {f"livo/value_principles/{file.name}" for file in (ROOT / "value_principles").glob("*.yaml")}
    assert {"livo/py.typed", "livo/__init__.pyi", "livo/papertown/weights/unet/diffusion_pytorch_model.safetensors"} <= wanted
    with ZipFile(wheel) as archive:
        assert not wanted - set(archive.namelist())


def test_the_metadata_describe_the_package(wheel):
    with ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"livo-{livo.__version__}.dist-info/METADATA"))
    assert metadata["Version"] == livo.__version__ and metadata["Author"] and metadata["License-Expression"] == "MIT"
    assert "Typing :: Typed" in metadata.get_all("Classifier") and metadata.get_payload().strip().startswith("# LiVO")
    assert {"offline", "train", "eval", "parquet", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))


def test_livo_generate_runs_from_the_wheel(wheel, tmp_path):
    """The empty environment sees the dependencies of this one, but not its LiVO."""
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    site = next(env.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = [sys.executable, "-m", "pip", "--python", env / "bin" / "python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)
    where = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"cwd": tmp_path, "env": where, "capture_output": True, "text": True}
    found = subprocess.run([env / "bin" / "python", "-c", "import livo; print(livo.__file__)"], **run)
    assert Path(found.stdout.strip()) == site / "livo" / "__init__.py"
    done = subprocess.run([env / "bin" / "livo", "generate", "a photo of a doctor", "-n", "2", "--steps", "2"], **run)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "livo.png").is_file() and len(json.loads((tmp_path / "livo.json").read_text())) == 2
