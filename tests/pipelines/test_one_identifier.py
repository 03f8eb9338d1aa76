"""One encoder, followed from training to an image: every record names it alike."""

import json

import pytest
import torch
from PIL import Image

from livo import LiVOPipeline
from livo.cli.main import main
from livo.evaluation.judges import Judge
from livo.evaluation.method import Method, Settings
from livo.evaluation.runner import evaluate
from livo.pipelines.decision_record import save_images
from livo.training.config import TrainingConfig
from livo.training.trainer import train
from livo.utils.hashing import lora_hash, weights_hash
from livo.utils.prompt_files import Prompt


class Brightness(Judge):
    """Whether a picture is bright."""

    name, revision = "brightness", "1"
    attributes = {"bright": ("yes", "no")}

    def probabilities(self, images, prompts=None):
        bright = torch.tensor([sum(image.convert("L").tobytes()) / (255 * image.width * image.height) for image in images])
        return {"bright": torch.stack([bright, 1 - bright], 1)}


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for i in range(8):
        Image.new("RGB", (16, 16), (40 + i, 40, 40) if i % 2 else (200 + i, 200, 200)).save(data / f"{i}.png")
        row = {"prompt": "a photo of a doctor", "value": "gender equality", "label": i % 2, "scene": f"scene {i // 2}"}
        rows.append(row | {"file_name": f"{i}.png"})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainingConfig(
        data=str(data), output=str(tmp_path / "run"), model=str(tiny_checkpoint), steps=2, batch=2, lr=1e-3, precision="fp32"
    )


def test_training_saving_evaluating_and_drawing_name_one_encoder_alike(config, tiny_checkpoint, tmp_path, capsys):
    list(train(config))
    folder = tmp_path / "run" / "value_encoder"
    name = json.loads((folder / "training.json").read_text())["weights"]
    assert name in (folder / "README.md").read_text()
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint, value_encoder=folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert weights_hash(pipe.value_encoder) == name
    pipe.save_pretrained(tmp_path / "saved")
    assert name in (tmp_path / "saved" / "README.md").read_text()
    settings = Settings(images=1, batch=1, steps=1, precision="fp32")
    list(evaluate(pipe, [Method("livo", value="auto")], [Prompt("a doctor")], [Brightness()], tmp_path / "results", settings))
    (method,) = (tmp_path / "results").rglob("method.json")
    assert json.loads(method.read_text())["value_encoder"] == name
    out = pipe("a photo of a doctor", value="gender equality", generator=torch.Generator().manual_seed(0), num_inference_steps=1)
    assert out.decisions[0].values[0].encoder == name
    (file,) = save_images(out, tmp_path / "images")
    assert main(["inspect", str(file)]) == 0 and name in capsys.readouterr().out
    assert main(["inspect", str(file.parent)]) == 0 and name in capsys.readouterr().out


def test_a_trained_lora_has_one_identifier_in_its_folder_and_in_images(config, tiny_checkpoint, tmp_path):
    pytest.importorskip("peft")
    config = TrainingConfig(**vars(config) | {"adapter": "lora", "objective": "diffusion_dpo"})
    list(train(config))
    name = json.loads((tmp_path / "run" / "lora" / "training.json").read_text())["weights"]
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path / "run" / "lora", adapter_name="ink")
    out = pipe("a cat", value=None, num_inference_steps=1)
    assert out.decisions[0].settings["lora"] == [{"name": "ink", "scale": 1.0, "weights": name}]
    assert lora_hash({"unet": pipe.unet}, "ink") == name
