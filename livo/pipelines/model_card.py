"""Publishing: the model cards of a pipeline and of trained weights, and the upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from livo.principles.principle import ValuePrinciple

_CARD = """---
{{ card_data }}
---

# {{ base or "A text-to-image model" }} with values

A frozen text-to-image model and {{ what }} ({{ weights }}). Load it with

```python
{{ loads_with }}
```

Any other class draws without the values.

## Values

{% for p in principles -%}
- `{{ p.id }}` ({{ p.kind }}): {{ p.statement }}
{% else -%}
- none
{% endfor %}
## Intended use

Steering a text-to-image model towards the values above: a retriever chooses for each prompt which of them apply, or none, and
each image comes with a record of what was decided and why. The encoder knows the statements it was trained with, and no others:
{{ known }}.

## Limits

{{ limits }}

It is not a security boundary: whoever holds the weights can leave the value token out, and a risk that the retriever does not see is not
steered. Judge it on prompts of your own before you rely on it.

## Training

{{ training }}

## Licence

{{ licence }}; the licence of {{ base or "the base model" }} applies to its weights.
"""


def pipeline_card(
    base_model: str,
    loads_with: str,
    principles: Sequence[ValuePrinciple],
    encoders: Mapping[str, tuple[Sequence[str] | None, str]],
    records: Mapping[str, Mapping | None],
    license: str = "other",
) -> str:
    """README.md of a repository: what it is for, how its encoder came about, and what is known of its limits.

    `loads_with` is the call that loads it, `encoders` the statements (None where they are not recorded) and the hash of each encoder by
    name, `records` their training records (None where one came without).
    """
    known = _each({name: "not recorded" if words is None else "; ".join(words) for name, (words, _) in encoders.items()})
    what = "a LiVO value encoder" if len(encoders) < 2 else f"{len(encoders)} LiVO value encoders ({', '.join(encoders)})"
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=license,
        tags=["livo", "text-to-image"],
        base_model=base_model or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_CARD,
        base=base_model,
        what=what,
        weights=", ".join(f"weights {digest}" for _, digest in encoders.values()) or "weights not there",
        loads_with=loads_with,
        principles=principles,
        known=known,
        limits=_each({name: limits(record) for name, record in records.items()}) or limits(None),
        training=_each({name: _training(record) for name, record in records.items()}) or _training(None),
        licence=license if license != "other" else "See the repository's owner",
    )
    return str(card)


def _each(texts: Mapping[str, str]) -> str:
    """One text for each encoder, under its name where there are several."""
    if len(texts) < 2:
        return "".join(texts.values())
    return "\n\n".join(f"{name}: {text}" for name, text in texts.items())


def limits(record: Mapping | None) -> str:
    metrics = (record or {}).get("metrics") or {}
    if not metrics:
        return "Nothing has been measured, as far as the training record tells."
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, (int, float)))
    return f"Means over the last training records; they are not an evaluation on held-out prompts.\n\n| figure | value |\n|---|---|\n{rows}"


def _training(record: Mapping | None) -> str:
    if not record:
        return "The encoder came without a training record."
    config, versions = record.get("config") or {}, record.get("versions") or {}
    told = [f"- pairs: {record['pairs']}" if "pairs" in record else "", f"- data: {record['data']}" if "data" in record else ""]
    told += [f"- backbone: {record['backbone']}"] if "backbone" in record else []
    told += [
        f"- {name}: {config[name]}" for name in ("objective", "beta", "alpha", "steps", "batch", "lr", "seed") if name in config
    ]
    told += [f"- {name} {version}" for name, version in versions.items()]
    return "\n".join(line for line in told if line)


def base_model(record: Mapping | None, loaded_from: str | Path | None) -> str:
    """The hub id of the backbone; empty where it has none, because a local path means nothing to others."""
    for name in (((record or {}).get("config") or {}).get("model"), loaded_from):
        if name and str(name).count("/") == 1 and not str(name).startswith((".", "/")) and not Path(name).exists():
            return str(name)
    return ""


def upload(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Create the repository where it is not there and upload what is in `folder`; the address of the commit."""
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    message = commit_message or "Upload an aligned pipeline"
    return upload_folder(repo_id=repo_id, folder_path=str(folder), token=token, commit_message=message, create_pr=create_pr)
