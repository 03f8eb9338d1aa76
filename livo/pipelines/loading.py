"""ValuePersistenceMixin: pipelines keep their values when they are loaded, saved, converted and published."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel
from transformers.utils import cached_file

from livo.pipelines.checked_loading import CheckedLoading, refuse_single_file
from livo.pipelines.model_card import base_model, pipeline_card, upload
from livo.pipelines.named_encoders import DEFAULT, PREFIX, NamedEncoders, component
from livo.principles.principle import ValuePrinciple, bundled_principles, load_principles
from livo.retrieval.retriever import ValueRetriever
from livo.utils.arguments import method_arguments, refuse_unknown, strict
from livo.utils.bundled import bundled
from livo.utils.files import replacing
from livo.utils.hashing import stored_hash
from livo.utils.hub import hub_options
from livo.utils.weights import check_readable, refuse_pickle
from livo.value_encoder.encoder import ValueEncoder, vocabulary_hash

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

PRINCIPLES_FILE = "value_principles.yaml"  # beside the components of a saved pipeline
RETRIEVER_FOLDER = "value_retriever"  # there too, where the retriever was fitted
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")  # where a file is found
_UPLOAD = frozenset({"private", "token", "commit_message", "create_pr", "repo_id"})
_SINGLE_FILE = {*HUB_OPTIONS, "config", "original_config", "dtype", "torch_dtype", "disable_mmap"}  # of diffusers' from_single_file


class ValuePersistenceMixin(NamedEncoders, CheckedLoading):
    """The half of ValueMixin that keeps values: in files, on the hub, in converted pipelines. The other half draws with them."""

    base_class: type[DiffusionPipeline]
    retriever: ValueRetriever | None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        value_encoder: str | Path | CLIPTextModel | Mapping[str, str | Path | CLIPTextModel] | None = None,
        value_principles: str | Path | Sequence[ValuePrinciple] | None = None,
        **kwargs,
    ) -> Self:
        """Load any checkpoint that the base class loads, or a saved LiVO pipeline, or a bundled model ("papertown").

        Args:
            value_encoder: Hub id, folder, or .safetensors file (see `ValueEncoder.load`); a mapping gives several by name. A saved LiVO
                pipeline has its own.
            value_principles: File, folder, bundled name ("livo", "safety"), or list. By default those saved with the pipeline, else
                the paper's five.
            **kwargs: As in `DiffusionPipeline.from_pretrained` (`dtype`, `safety_checker`, ...), and `prompt_padding`.
        """
        source = pretrained_model_name_or_path
        refuse_single_file(source, cls.__name__)
        known = method_arguments(cls, "from_pretrained") | set(signature(cls.__init__).parameters)
        refuse_unknown(kwargs, known - {"self"}, f"{cls.__name__}.from_pretrained()")
        if not isinstance(value_encoder, (str, Path, CLIPTextModel, Mapping, type(None))):
            what = "a hub id, a path, a CLIPTextModel, or a mapping of names to them"
            raise TypeError(f"value_encoder is a {type(value_encoder).__name__}: give {what}")
        if model := bundled(source):
            source = model.weights
            if "torch_dtype" not in kwargs:
                kwargs.setdefault("dtype", torch.float32)  # stored in half precision, which CPUs are slow at
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(f"use_safetensors is {kwargs['use_safetensors']}: weights are safetensors here, never pickle")
        kwargs |= hub_options(source, "model", **kwargs)
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        pipe = super().from_pretrained(source, **kwargs)
        pipe._take_values(source, value_encoder, value_principles, **hub)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        value_encoder: str | Path | CLIPTextModel | None = None,
        value_principles: str | Path | Sequence[ValuePrinciple] | None = None,
        **kwargs,
    ) -> Self:
        """Load a checkpoint of one .safetensors file, as Stable Diffusion's authors and Civitai publish them.

        Args:
            value_encoder, value_principles: As in `from_pretrained`. A saved LiVO pipeline that is given as `config` has its own.
            **kwargs: As in the base class: `config`, a folder or hub id with the components' configurations (without it diffusers
                looks for them on the hub), `dtype`, components, and also `prompt_padding` and `value_scale`.

        Raises:
            ValueError: the file is pickled (.ckpt) or damaged, or what `from_pretrained` raises.
        """
        source = pretrained_model_link_or_path
        refuse_pickle(source)
        refuse_unknown(kwargs, _SINGLE_FILE | set(signature(cls.__init__).parameters), f"{cls.__name__}.from_single_file()")
        if Path(source).is_file():
            check_readable(source, str(source))
        elif str(source).startswith(("/", ".", "~")) or str(source).count("/") < 2:  # nor is it a file of a hub repository
            raise FileNotFoundError(f"{source}: no such file; give a .safetensors file, or the address of one on the hub")
        pipe = super().from_single_file(str(source), value_encoder=None, **kwargs)
        pipe.register_to_config(_name_or_path=str(source))
        config = kwargs.get("config")
        if config and (Path(config) / "value_encoder" / "config.json").is_file():
            pipe.load_value_encoder(config)
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        pipe._take_values(config, value_encoder, value_principles, **hub)
        return pipe

    def _take_values(self, source: str | Path | None, value_encoder, value_principles, **hub) -> None:
        """The encoders, principles and retriever of a pipeline that was just loaded; those saved in `source`, unless others are given."""
        if getattr(self.unet.config, "addition_embed_type", None) == "text_time" and not hasattr(self, "text_encoder_2"):
            raise ValueError(
                f"{self.config['_name_or_path']} is a Stable Diffusion XL, which {type(self).__name__} cannot run: load it with "
                "livo.LiVOXLPipeline"
            )
        if self.value_encoder is not None:
            self._check(self.value_encoder, f"the value encoder of {source}")
        if source is not None:
            self._load_saved_encoders(source, hub)
            if value_principles is None:
                value_principles = _saved_principles(source, bool(self.value_encoders), **hub)
        value_principles = bundled_principles() if value_principles is None else value_principles
        if value_encoder is not None:
            self._load_all(value_encoder)
        self.load_value_principles(value_principles)
        fitted = Path(source or "") / RETRIEVER_FOLDER
        if source is not None and value_principles == Path(source) / PRINCIPLES_FILE and fitted.is_dir():
            self.retriever = ValueRetriever.load(fitted, self.principles)

    def _load_saved_encoders(self, source: str | Path, hub: Mapping) -> None:
        """The encoders beside the default one, and the scales of all, as `save_pretrained` wrote them."""
        config = self.load_config(source, **hub)
        for key, value in config.items():
            if key.startswith(PREFIX) and isinstance(value, (list, tuple)) and value[0] is not None:
                where = (
                    {"folder": Path(source) / key} if Path(source).is_dir() else {"folder": str(source), "subfolder": key, **hub}
                )
                like = self.text_encoder or self.unet
                encoder = ValueEncoder._from_folder(**where).to(like.device, like.dtype).eval()
                self.load_value_encoder(encoder, key.removeprefix(PREFIX))
        for name, scale in config.get("livo_scales", {}).items():
            self.set_value_scale(scale, name)

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """See the base class. What `from_pretrained` reads by itself, and the line for other classes to read, is left out."""
        ours = ("livo", "livo_scales", *(key for key in config_dict if key.startswith(PREFIX)))
        return super().extract_init_dict({key: value for key, value in config_dict.items() if key not in ours}, **kwargs)

    def to_json_string(self) -> str:
        """See the base class. The class is named by the call that loads it, with a note for those who use another one."""
        config = json.loads(super().to_json_string())
        name = config["_class_name"] = qualified(type(self))
        if scales := {name: scale for name, scale in self.value_encoder_scales.items() if scale != 1}:
            config["livo_scales"] = scales
        config["livo"] = f"any other class draws without the values: load this folder with {name}.from_pretrained"
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, license: str = "other", variant: str | None = None, **kwargs
    ) -> None:
        """Save the pipeline with its value encoders, principles, a fitted retriever and a model card; `from_pretrained` loads all of it.

        Weights are safetensors. With `push_to_hub` the folder is uploaded (see there for `repo_id` and the rest).
        """
        if kwargs.pop("safe_serialization", True) is not True:
            raise ValueError("safe_serialization is False: weights are safetensors here, never pickle")
        known = method_arguments(type(self), "save_pretrained") | _UPLOAD
        refuse_unknown(kwargs, known, f"{type(self).__name__}.save_pretrained()")
        where = {name: kwargs.pop(name) for name in _UPLOAD if name in kwargs}
        if where and not push_to_hub:
            raise ValueError(f"{', '.join(sorted(where))} is for an upload: pass push_to_hub=True too, or leave it out")
        self._refuse_lora("saved")
        self._save_values(Path(save_directory), license)
        super().save_pretrained(save_directory, variant=variant, **kwargs)
        if push_to_hub:
            upload(save_directory, **{"repo_id": Path(save_directory).name} | where)

    def push_to_hub(self, repo_id: str, encoder_only: bool = False, license: str = "other", **kwargs) -> str | None:
        """Upload the pipeline to the Hugging Face hub with its model card, which is made from the encoder's training record.

        Args:
            encoder_only: Leave the backbone out: what remains is what `load_value_encoder(repo_id)`, with the name of each, loads.
            license: Identifier of the licence of what you add, for the card.
            **kwargs: `private`, `token`, `commit_message`, `create_pr`; `variant`.
        """
        refuse_unknown(kwargs, _UPLOAD | {"variant"}, f"{type(self).__name__}.push_to_hub()")
        if encoder_only and not self.value_encoders:
            raise ValueError("encoder_only: there is no value encoder to upload; call load_value_encoder first")
        variant = {"variant": kwargs.pop("variant")} if "variant" in kwargs else {}
        with tempfile.TemporaryDirectory() as folder:
            if encoder_only:
                names = {name: "" if name == DEFAULT else f', name="{name}"' for name in self.value_encoders}
                calls = [f'pipe.load_value_encoder("{repo_id}"{name})' for name in names.values()]
                self._save_values(Path(folder), license, "\n".join(calls))
                for name, encoder in self.value_encoders.items():
                    encoder.save_pretrained(Path(folder) / component(name), **variant)
            else:
                self._refuse_lora("uploaded")
                self._save_values(Path(folder), license, f'{qualified(type(self))}.from_pretrained("{repo_id}")')
                super().save_pretrained(folder, **variant)
            return upload(folder, repo_id, **kwargs)

    def _save_values(self, folder: Path, license: str, loads_with: str | None = None) -> None:
        """Write the principles and the model card, and note in each encoder's configuration the vocabulary that it reads."""
        if self.principles:
            documents = [_plain(principle) for principle in self.principles]
            text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)
            with replacing(folder / PRINCIPLES_FILE) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.retriever is not None and self.retriever.fitted:
            self.retriever.save(folder / RETRIEVER_FOLDER)
        for encoder in self.value_encoders.values() if self.tokenizer is not None else ():
            encoder.config.value_tokenizer = vocabulary_hash(self.tokenizer)
        encoders = self.value_encoders
        records = {name: getattr(encoder.config, "value_training", None) for name, encoder in encoders.items()}
        record = next((record for record in records.values() if record), None)
        card = pipeline_card(
            base_model=base_model(record, self.config.get("_name_or_path")),
            loads_with=loads_with or f'{qualified(type(self))}.from_pretrained("{folder.name}")',
            principles=self.principles,
            encoders={name: (getattr(encoder, "statements", None), stored_hash(encoder)) for name, encoder in encoders.items()},
            records=records,
            license=license,
        )
        with replacing(folder / "README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, value_encoder=None, value_principles=None, **kwargs) -> Self:
        """As the base's, but the weights keep their dtype unless `dtype` is given (the base's makes them, and so those of
        `pipeline`, float32), and values, principles and strength come along. `value_encoder` and `value_principles` are as in
        `from_pretrained`, and go before those of `pipeline`."""
        known = {"dtype", "torch_dtype", *signature(cls.__init__).parameters} - {"self"}
        refuse_unknown(kwargs, known, f"{cls.__name__}.from_pipe()")
        dtypes = {name: m.dtype for name, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
        asked = kwargs.get("dtype") or kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = asked or (next(iter(dtypes.values())) if len(set(dtypes.values())) == 1 else torch.float32)
        pipe = super().from_pipe(pipeline, **kwargs)
        for name, dtype in dtypes.items() if asked is None else ():
            getattr(pipeline, name).to(dtype)  # through float32 and back, which loses nothing
        if isinstance(pipeline, NamedEncoders):
            pipe._forget(*(key for key in pipe.config if key.startswith(f"_{PREFIX}")))  # where the base puts what it does not know
            for name, encoder in pipeline.value_encoders.items():
                pipe.register_modules(**{component(name): encoder})
            pipe._encoder_scales = dict(pipeline._encoder_scales)
        if value_encoder is not None:
            pipe._load_all(value_encoder)
        if value_principles is None and getattr(pipeline, "retriever", None) is not None:
            pipe.retriever = pipeline.retriever
        else:
            pipe.load_value_principles(value_principles or bundled_principles())
        return pipe

    @strict
    def load_value_principles(self, source: str | Path | Sequence[ValuePrinciple], add: bool = False) -> None:
        """Replace the principles, or add to them. A warning names those that are gone, and says when a fitted retriever is.

        Args:
            source: File, folder, bundled name ("livo", "safety"), or list.
            add: Keep the present principles, in front of these.

        Raises:
            PrincipleError: see `load_principles`; an id that is in use already, with `add`. The present principles stay.
        """
        before, retriever = self.principles, self.retriever
        principles = load_principles(source, before if add else ())
        if principles == before:
            return
        self.retriever = retriever.with_principles(principles) if retriever else ValueRetriever(principles)
        now = {principle.id: principle for principle in principles}
        if gone := [principle.id for principle in before if principle.id not in now]:
            logger.warning("principles %s were replaced by %s; add=True keeps them", ", ".join(gone), ", ".join(now))
        if changed := [principle.id for principle in before if now.get(principle.id, principle) != principle]:
            logger.info("principles %s were replaced by others of the same id", ", ".join(changed))
        if retriever is not None and retriever.fitted:
            logger.warning("the retriever that was fitted for the principles before is dropped: fit it again (pipe.retriever.fit)")

    @property
    def principles(self) -> list[ValuePrinciple]:
        return self.retriever.principles if self.retriever else []


def _refuse_to_drop_values(from_pipe: Callable) -> Callable:
    """The base class's `from_pipe`, with a ValueError where values would be lost."""

    @wraps(from_pipe)
    def checked(cls, pipeline, **kwargs):
        drops = isinstance(pipeline, ValuePersistenceMixin) and not issubclass(cls, ValuePersistenceMixin)
        if drops and pipeline.value_encoders:
            name = cls.__name__
            raise ValueError(
                f"{name}.from_pipe would drop the values: use livo.aligned({name}).from_pipe(pipe), which keeps them, "
                "or livo.detach(pipe) first"
            )
        return from_pipe(cls, pipeline, **kwargs)

    return checked


# `from_pipe` belongs to the class that a pipeline is converted to, and copies the components that this class knows. The source pipeline
# is never told which class that is, so only the base class of all pipelines can refuse.
DiffusionPipeline.from_pipe = classmethod(_refuse_to_drop_values(DiffusionPipeline.from_pipe.__func__))


def qualified(cls: type) -> str:
    """How to write the class: `livo.LiVOPipeline`, or `livo.aligned(StableDiffusionImg2ImgPipeline)`."""
    public = getattr(sys.modules.get("livo"), "__all__", ())
    return f"livo.{cls.__name__}" if cls.__name__ in public else f"livo.aligned({cls.base_class.__name__})"


def _saved_principles(source: str | Path, aligned: bool, **hub) -> Path | None:
    """The principles beside a saved pipeline; of a hub repository only where an encoder is there too."""
    if Path(source).is_dir() or not aligned:
        file = Path(source) / PRINCIPLES_FILE
        return file if file.is_file() else None
    found = cached_file(str(source), PRINCIPLES_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    return None if found is None else Path(found)


def _plain(principle: ValuePrinciple) -> dict:
    """As a principle file writes it: without what is empty, except where empty means something."""
    return _without_empty(asdict(principle)) | {"forbidden_by": list(principle.forbidden_by)}


def _without_empty(values: Mapping) -> dict:
    found = {}
    for name, value in values.items():
        value = _without_empty(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        if value is not None and value != {} and value != []:
            found[name] = value
    return found
