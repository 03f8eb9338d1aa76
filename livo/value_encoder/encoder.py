"""ValueEncoder: a trainable copy of the backbone's text encoder, and where its weights come from."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel
from transformers.utils import cached_file

from livo.utils.hashing import keep_hash, weights_hash
from livo.utils.hub import hub_options
from livo.utils.weights import check_header, check_module, check_tensors, read_tensors, refuse_pickle

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PreTrainedModel", "ValueEncoder"]


class ValueEncoder(CLIPTextModel):
    """E_v of LiVO: reads "statement, prompt", its output at EOS is the value token (`livo.value_encoder.token.encode_value`).

    Where the backbone's cross-attention is as wide as the encoder, and one token is wanted, it is a CLIPTextModel in every respect and
    loads as one with transformers alone. Otherwise, as for SDXL, a linear projection stands behind it, whose shape is in the
    configuration: `value_tokens` tokens of `value_width`. `config.value_statements` is the training record: the statements it was
    trained with, or nothing where that is not known; `config.value_training` is what `livo train` wrote, `config.value_calibration`
    what `livo calibrate` measured, `config.value_tokenizer` a hash of the vocabulary that it reads.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__(config)
        if projects(config):
            self.value_projection = nn.Linear(config.hidden_size, _tokens(config) * _width(config), bias=False)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no None here
        cls, pretrained_model_name_or_path: str | Path, *args, **kwargs
    ) -> ValueEncoder:
        """Load an encoder from safetensors files with the keys of any version of transformers, with a projection or without.

        With `output_loading_info` the pair (encoder, report), as in transformers.
        """
        encoder, report = cls._with_report(pretrained_model_name_or_path, *args, **kwargs)
        if kwargs.get("output_loading_info"):
            return encoder, report  # type: ignore[return-value]  # the base's type leaves the pair out too
        return encoder

    @classmethod
    def _with_report(cls, pretrained_model_name_or_path: str | Path, *args, **kwargs) -> tuple[ValueEncoder, dict[str, Any]]:
        config = kwargs.get("config") or CLIPTextConfig.from_pretrained(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in _HUB & kwargs.keys()}
        )
        name = f"value encoder {pretrained_model_name_or_path}"
        files = _weight_files(pretrained_model_name_or_path, **kwargs)
        for file in files:
            check_header(file, name)
        if projects(config):
            return cls._projecting(files, config, name, **kwargs)
        dtypes = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        # CLIPTextModel knows the legacy keys and a subclass does not; without a projection the two have the same modules.
        options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
        found: Any = CLIPTextModel.from_pretrained(pretrained_model_name_or_path, *args, **options)
        plain, report = found
        encoder = cls._with_modules(plain)
        dtype = next((dtype for dtype in dtypes if isinstance(dtype, torch.dtype)), None)
        check_module(encoder, name, dtype)
        if dtype is not None:
            encoder.to(dtype)  # from the dtype of the file, so that the identifier is the file's
        return encoder, report

    @classmethod
    def _with_modules(cls, plain: CLIPTextModel) -> ValueEncoder:
        """An encoder with the modules of `plain` themselves, not copies of them."""
        with torch.device("meta"):
            encoder = cls(plain.config)
        for name, module in plain.named_children():
            setattr(encoder, name, module)
        return encoder.train(plain.training)

    @classmethod
    def _projecting(cls, files: list[Path], config: CLIPTextConfig, name: str, **kwargs) -> tuple[ValueEncoder, dict[str, Any]]:
        tensors = {key: tensor for file in files for key, tensor in read_tensors(file, name).items()}
        encoder = cls(config)
        encoder.load_state_dict(_state(tensors, encoder.state_dict(), name), strict=False)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        encoder = (encoder.to(dtype) if isinstance(dtype, torch.dtype) else encoder).eval()
        return encoder, {"missing_keys": []}

    if TYPE_CHECKING:  # transformers wraps it so that its parameters are lost

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    def _apply(self, fn, recurse: bool = True):
        """See the base class. An encoder that becomes narrower keeps its identifier (`livo.utils.hashing`)."""
        narrower = fn(torch.zeros(1, dtype=self.dtype)).element_size() < self.dtype.itemsize
        identifier = weights_hash(self) if narrower else None
        super()._apply(fn, recurse)
        if identifier is not None:
            keep_hash(self, identifier)
        return self

    @property
    def statements(self) -> tuple[str, ...] | None:
        """The statements it was trained with; None where the weights came without a record."""
        known = getattr(self.config, "value_statements", None)
        return tuple(known) if known is not None else None

    @property
    def calibrations(self) -> dict[str, dict]:
        """By principle id, what `livo calibrate` measured of its directions; empty where nothing was."""
        return dict(getattr(self.config, "value_calibration", None) or {})

    @classmethod
    def from_text_encoder(cls, text_encoder: CLIPTextModel, width: int | None = None, tokens: int = 1) -> ValueEncoder:
        """A copy with its own weights: where training starts.

        `width` is that of the backbone's cross-attention, by default the text encoder's; `tokens` how many tokens a value gets. Where
        they ask for a projection, it is drawn at random (`torch.manual_seed`).
        """
        if adapters := getattr(text_encoder, "peft_config", None):
            raise ValueError(
                f"the text encoder holds the LoRA {', '.join(sorted(adapters))}, which a value encoder cannot copy: call "
                "unload_lora_weights first"
            )
        config = copy.deepcopy(text_encoder.config)
        if (width or config.hidden_size, tokens) != (config.hidden_size, 1):
            config.value_width, config.value_tokens = width or config.hidden_size, tokens
        encoder = cls(config)
        encoder.load_state_dict(text_encoder.state_dict(), strict=not projects(config))
        return encoder.to(text_encoder.device, text_encoder.dtype)

    @classmethod
    def load(
        cls,
        source: str | Path,
        like: CLIPTextModel | None,
        width: int | None = None,
        tokenizer: CLIPTokenizer | None = None,
        subfolder: str = "value_encoder",
    ) -> ValueEncoder:
        """Weights from a hub id, a folder, or one .safetensors file, ready to stand beside the text encoder `like`.

        A folder or repository may hold the encoder itself or, as the published one does, a `value_encoder` subfolder; of several, that
        of `subfolder` is taken. A single
        file has no configuration, so it must have the architecture of `like`; the shape of a projection is read from it, for tokens
        of `width` (that of the backbone's cross-attention). Both key layouts of CLIPTextModel are read, with and without the
        `text_model.` prefix. Only safetensors are. With a `tokenizer`, it must be the one that the encoder was trained with. Without
        `like`, as in a pipeline that is given ready embeddings, a folder is read, and the encoder stays as it was saved.

        Raises:
            FileNotFoundError: nothing is there. ValueError: it does not fit; the message says in what.
        """
        path = Path(source)
        places = ("", "value_encoder") if subfolder == "value_encoder" else (subfolder, "", "value_encoder")
        refuse_pickle(path)
        if path.suffix == ".safetensors" and not path.is_dir():
            if like is None:
                raise ValueError(f"{path} has no configuration, and the pipeline no text encoder to take it from: give a folder")
            encoder = cls._from_file(path, like, width)
        elif path.is_dir():
            folders = [path / name for name in places]
            folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
            if folder is None:
                others = sorted(file.parent.name for file in path.glob("value_encoder_*/config.json"))
                remedy = f"; there is {', '.join(others)}: name that folder" if others else ", so no value encoder"
                raise FileNotFoundError(f"{path}: no config.json here or in its value_encoder folder{remedy}")
            encoder = cls._from_folder(folder)
        elif path.exists():
            raise FileNotFoundError(f"{path}: a value encoder is a folder or a .safetensors file, and this is neither")
        else:
            options = hub_options(source, "value encoder")
            for name in (subfolder, "value_encoder") if subfolder != "value_encoder" else (subfolder,):
                try:
                    encoder = cls._from_folder(str(source), subfolder=name, **options)
                    break
                except OSError:
                    continue
            else:
                encoder = cls._from_folder(str(source), **options)
        check_fit(encoder, like, f"value encoder {source}", width)
        if tokenizer is not None:
            check_tokenizer(encoder, tokenizer, f"value encoder {source}")
        if like is None:
            return encoder.eval()
        check_tensors(dict(encoder.named_parameters()), f"value encoder {source}", like.dtype)
        device = "cpu" if like.device.type == "meta" else like.device  # meta: the text encoder is offloaded
        return encoder.to(device, like.dtype).eval()

    @classmethod
    def _from_folder(cls, folder: str | Path, **where) -> ValueEncoder:
        if (variant := _only_variant(folder)) is not None:
            where["variant"] = variant
        encoder, report = cls._with_report(folder, **where)
        where.pop("variant", None)
        if report["missing_keys"]:
            raise ValueError(f"value encoder {folder}: {_some(report['missing_keys'])} missing; is it the whole encoder?")
        record = cached_file(str(folder), "training.json", _raise_exceptions_for_missing_entries=False, **where)
        if record is not None:  # `livo train` writes it beside the weights; from here on it goes with them
            encoder.config.value_training = json.loads(Path(record).read_text(encoding="utf-8"))
        return encoder

    @classmethod
    def _from_file(cls, file: Path, like: CLIPTextModel, width: int | None) -> ValueEncoder:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; give a value encoder's .safetensors file or folder")
        tensors = read_tensors(file)
        config = copy.deepcopy(like.config)
        config.value_statements = config.value_calibration = config.value_tokenizer = None
        words = next((value for key, value in tensors.items() if key.endswith("token_embedding.weight")), None)
        if words is not None:  # the text encoder's table may have grown by textual inversion
            config.vocab_size = len(words)
        projection = tensors.get("value_projection.weight")
        if projection is not None:
            config.value_width = width or config.hidden_size
            config.value_tokens = len(projection) // config.value_width
        encoder = cls(config)
        encoder.load_state_dict(_state(tensors, encoder.state_dict(), str(file)), strict=False)
        return encoder


_HUB = {"subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies"}  # where a file is found


def _weight_files(source: str | Path, variant: str | None = None, **kwargs) -> list[Path]:
    """The safetensors files of an encoder in a folder or on the hub: one, or its shards. Raises OSError where there are none."""
    refuse_pickle(Path(source) / (kwargs.get("subfolder") or ""))
    where = {key: kwargs[key] for key in _HUB & kwargs.keys()}
    stem = "model" if not variant else f"model.{variant}"
    index = "model.safetensors.index.json" if not variant else f"model.safetensors.index.{variant}.json"
    missing = {"_raise_exceptions_for_missing_entries": False}
    if (file := cached_file(str(source), f"{stem}.safetensors", **missing, **where)) is not None:
        return [Path(file)]
    if (file := cached_file(str(source), index, **missing, **where)) is None:
        return [_cached(source, f"{stem}.safetensors", where)]  # which raises what is missing
    shards = sorted(set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values()))
    return [_cached(source, shard, where) for shard in shards]


def _cached(source: str | Path, name: str, where: dict[str, Any]) -> Path:
    file = cached_file(str(source), name, **where)
    assert file is not None  # it raises where it finds none
    return Path(file)


def _only_variant(folder: str | Path) -> str | None:
    """The variant, such as fp16, of a local folder whose weights are all model.fp16.safetensors; None where there are others, or none."""
    names = {file.name for file in Path(folder).glob("model.*")}
    if names & {"model.safetensors", "model.safetensors.index.json"}:
        return None
    found = {name.removeprefix("model.").removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    return found.pop() if len(found) == 1 else None


def projects(config: CLIPTextConfig) -> bool:
    """Whether an encoder of this configuration has a projection behind it."""
    return (_width(config), _tokens(config)) != (config.hidden_size, 1)


def _width(config: CLIPTextConfig) -> int:
    return getattr(config, "value_width", None) or config.hidden_size


def _tokens(config: CLIPTextConfig) -> int:
    return getattr(config, "value_tokens", None) or 1


def _state(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """`tensors` under the keys of `expected`, float32. Raises ValueError where they are not the same ones."""
    prefix = "text_model."
    flat = {key.removeprefix(prefix): value for key, value in tensors.items() if not key.endswith("position_ids")}
    wanted = [key for key in expected if not key.endswith("position_ids")]
    missing = [key for key in wanted if key.removeprefix(prefix) not in flat]
    state = {key: flat.pop(key.removeprefix(prefix)) for key in wanted if key not in missing}
    if missing or flat:
        what = f"{_some(missing)} missing" if missing else f"{_some(list(flat))} unknown"
        raise ValueError(f"{name}: {what}; it does not hold a value encoder of this backbone's architecture")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"{name}: {key} has shape {tuple(value.shape)}, this backbone's text encoder has "
                f"{tuple(expected[key].shape)}; load the encoder that was trained for this backbone"
            )
    return {key: value.to(torch.float32) for key, value in state.items()}


def check_fit(encoder: CLIPTextModel, like: CLIPTextModel | None, name: str, width: int | None = None) -> None:
    """Raise ValueError unless `encoder` reads the tokens of `like` and writes tokens of `width`, by default the width of `like`."""
    written, vocabulary = _width(encoder.config), encoder.config.vocab_size
    if like is None:
        if written != width:
            raise ValueError(
                f"{name}: its tokens are {written} wide, the backbone's cross-attention {width}; load the encoder that fits"
            )
        return
    wanted = width or like.config.hidden_size
    if written != wanted or vocabulary > like.config.vocab_size:
        what = "hidden_size" if written == encoder.config.hidden_size else "value_width"
        other = "text encoder has" if wanted == like.config.hidden_size else "cross-attention and text encoder have"
        raise ValueError(
            f"{name}: {what} is {written} and vocab_size {vocabulary}, the backbone's {other} "
            f"{wanted} and {like.config.vocab_size}; load the encoder that was trained for this backbone"
        )


def check_tokenizer(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, name: str) -> None:
    """Raise ValueError unless `encoder` was trained with the vocabulary of `tokenizer`, as far as its configuration tells."""
    known = getattr(encoder.config, "value_tokenizer", None)
    end = encoder.config.eos_token_id
    if known is not None and known != vocabulary_hash(tokenizer):
        what = f"its vocabulary is {known}, the backbone's {vocabulary_hash(tokenizer)}"
    elif encoder.config.vocab_size < tokenizer.vocab_size:
        what = f"its vocabulary holds {encoder.config.vocab_size} words, the backbone's {tokenizer.vocab_size}"
    elif end not in (2, None, tokenizer.eos_token_id):  # 2 is the legacy value, which says nothing
        what = f"its texts end in token {end}, the backbone's in {tokenizer.eos_token_id}"
    else:
        return
    raise ValueError(f"{name} reads another tokenizer's words: {what}; load the encoder that was trained for this backbone")


def vocabulary_hash(tokenizer: CLIPTokenizer) -> str:
    """A short hash of the words that the tokenizer was made with; words added to it later do not count."""
    words = sorted((index, word) for word, index in tokenizer.get_vocab().items() if index < tokenizer.vocab_size)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def _some(keys: list[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
