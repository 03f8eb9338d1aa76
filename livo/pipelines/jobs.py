"""Thousands of images from a table: a file for each image, a manifest with a line for each, and a run that resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from livo.pipelines.decision_record import read_record
from livo.pipelines.job_table import SETTINGS, Job, check_folder
from livo.pipelines.ledger import ValueLedger
from livo.pipelines.settings import lora_record, model_record, plain, scheduler_settings
from livo.utils.files import differing, replacing, sweep, write_json
from livo.utils.hashing import weights_hash
from livo.utils.pictures import RECORD_FORMATS, save_picture

MANIFEST = "manifest.jsonl"


def run_jobs(
    pipe: DiffusionPipeline,
    jobs: Sequence[Job],
    folder: Path,
    *,
    format: str = "png",
    batch: int = 8,
    resume: bool = False,
    ledger: ValueLedger | None = None,
    settings: Mapping[str, object] | None = None,
    computing: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[int]:
    """Draw the jobs into `folder`; yield how many images are there, first those of the run that is resumed.

    An image is written whole, with its record, before its line is appended to `manifest.jsonl`. What a killed run has finished is not drawn
    again. The images of a row are drawn in one call; rows of the same settings share calls of up to `batch` images.

    Args:
        format: "png", "jpg" or "webp".
        settings: What else the images depend on, for job.json.
        computing: The context to compute in, such as an autocast.

    Raises:
        ValueError: the folder holds another run, a value cannot be honoured, or `resume` is False and there are images.
    """
    if format not in RECORD_FORMATS:
        raise ValueError(f"format is {format!r}: choose one of {', '.join(RECORD_FORMATS)}, which hold a record")
    _check_values(pipe, jobs)
    done = _claim(pipe, jobs, folder, format, resume, dict(settings or {}))
    count = sum(job.images for job in jobs if job.name in done)
    yield count
    for group in _groups([job for job in jobs if job.name not in done], batch):
        with computing():
            out = pipe(
                [job.prompt for job in group],
                negative_prompt=None if group[0].negative_prompt is None else [job.negative_prompt for job in group],
                value=[job.value for job in group],
                value_scale=[job.value_scale for job in group],
                width=group[0].width,
                height=group[0].height,
                num_inference_steps=group[0].steps,
                guidance_scale=group[0].guidance,
                num_images_per_prompt=group[0].images,
                generator=[torch.Generator().manual_seed(job.seed + i) for job in group for i in range(job.images)],
                ledger=ledger,
            )
        files = [file for job in group for file in job.files(folder, format)]
        records = [decision.to_dict() for decision in out.decisions]
        for file, image, record in zip(files, out.images, records, strict=True):
            save_picture(image, file, [record])
        _append(folder, [line for i, job in enumerate(group) for line in _lines(job, files, records, i)])
        count += len(files)
        yield count


def _check_values(pipe: DiffusionPipeline, jobs: Sequence[Job]) -> None:
    """Raises ValueError where a row asks for a value by name that cannot be honoured."""
    checked = set()
    for job in jobs:
        if job.value not in ("auto", None) and job.value not in checked:
            checked.add(job.value)
            try:
                pipe.decide(job.prompt, job.value)
            except ValueError as error:
                raise ValueError(f"{job.where}: {error}") from None


def _groups(jobs: Sequence[Job], batch: int) -> Iterator[list[Job]]:
    """Rows that are drawn in one call, in the order in which their first one stands in the table."""
    alike: dict[tuple, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.together(), []).append(job)
    for rows in alike.values():
        each = max(1, batch // rows[0].images)
        yield from (rows[i : i + each] for i in range(0, len(rows), each))


# --- the folder -----------------------------------------------------------------------------------------------------------


def _claim(pipe, jobs: Sequence[Job], folder: Path, format: str, resume: bool, settings: dict) -> set[str]:
    """The names of the jobs that are done. Raises ValueError where the folder holds anything else."""
    about = {
        "model": model_record(pipe),
        "encoder": {name: weights_hash(encoder) for name, encoder in pipe.value_encoders.items()},
        "encoder_scales": pipe.value_encoder_scales,
        "principles": hashlib.sha256(json.dumps([asdict(p) for p in pipe.principles], default=str).encode()).hexdigest()[:16],
        "lora": lora_record(pipe),
        "scheduler": scheduler_settings(pipe.scheduler),
        **{name: pipe.config[name] for name in ("value_scale", "prompt_padding")},
        "format": format,
        **plain(settings),
    }
    there = check_folder(folder, resume)
    if there and (changed := differing(folder / SETTINGS, about)):
        raise ValueError(f"{folder} was started with another {', '.join(changed)}: restore it, or give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    write_json(folder / SETTINGS, about)
    return _done(jobs, folder, format) if there else set()


def _done(jobs: Sequence[Job], folder: Path, format: str) -> set[str]:
    """The names of the jobs of which all images are there, after the manifest has been made to agree with the files.

    Raises:
        ValueError: the manifest is broken, or a row that was drawn says something else now.
    """
    known = {job.name: job for job in jobs}
    lines: dict[str, list[dict]] = {}
    text = (folder / MANIFEST).read_bytes().decode("utf-8", "replace") if (folder / MANIFEST).is_file() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):  # a kill may leave half a line at the end
        try:
            entry = json.loads(line)
            lines.setdefault(entry["job"], []).append(entry)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{folder / MANIFEST}:{number}: not a line of a manifest; delete it") from None
    for name, entries in lines.items():
        if name in known and any(entry["digest"] != known[name].digest for entry in entries):
            raise ValueError(f"{known[name].where}: it was drawn with other settings before; restore it, or give another folder")
    done = set()
    for job in jobs:
        files = job.files(folder, format)
        if not all(file.is_file() for file in files):
            lines.pop(job.name, None)
            continue
        done.add(job.name)
        if len(lines.get(job.name, ())) != job.images:  # killed between the images and their lines
            lines[job.name] = _lines(job, files, [read_record(file)[0] for file in files], 0)
    kept = [entry for entries in lines.values() for entry in entries]
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_bytes(_joined(kept))
    return done


def _lines(job: Job, files: Sequence[Path], records: Sequence[Mapping], place: int) -> list[dict]:
    """The manifest's lines of a job, the `place`-th of those that `files` and `records` belong to."""
    lines = []
    for i in range(job.images):
        file, record = files[place * job.images + i], records[place * job.images + i]
        names = ("id", "statement", "direction", "scale", "applied", "encoder", "reason")
        lines.append(
            {
                "file": file.name,
                "job": job.name,
                "image": i,
                "digest": job.digest,
                "prompt": job.prompt,
                "seed": record["seed"],
                "negative_prompt": job.negative_prompt,
                "size": record["settings"]["size"],
                "steps": job.steps,
                "guidance": job.guidance,
                "values": [{name: value.get(name) for name in names} for value in record["values"]],
                "reason": record["reason"],
                "columns": plain(job.columns),
            }
        )
    return lines


def _append(folder: Path, lines: Sequence[dict]) -> None:
    """Append whole lines in one write, and have them on the disk."""
    with (folder / MANIFEST).open("ab", buffering=0) as file:
        file.write(_joined(lines))
        os.fsync(file.fileno())


def _joined(lines: Sequence[dict]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
