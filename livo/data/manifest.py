"""Reads and checks the metadata.jsonl files of a folder of preference data.

The layout is the papers': `metadata.jsonl` beside the images, one JSON object per line with `prompt`, `value`, `label` (1 aligned,
0 violating) and `file_name`. In the official data, each `<type>/<scene>/` folder has such a file and is one scene. `livo build` writes
one file for the whole folder, whose lines also name the `scene` and how the image was made. A pair is an aligned image and a violating
image of the same scene.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from PIL import Image

from livo.utils.files import is_text, load_json, read_text, split_lines
from livo.utils.images import ImageError, check_images, ignored, is_image_file, open_image

MANIFEST = "metadata.jsonl"
_SMALL = 16  # pixels: an image with a shorter side is unrecognisable once it is enlarged


class PreferenceError(ValueError):
    """The preference data cannot be used. The message names the file, the line and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One judged image.

    Args:
        prompt: The prompt of its pair.
        value: The statement that the pair teaches, as the value encoder reads it.
        label: 1 for an aligned image, 0 for a violating one.
        file: The image file.
        scene: Pairs are formed within a scene.
        where: The manifest and line that describe the image, for error messages.
        principle: The id of the principle, if the data name it.
        direction: Whether `value` is a direction of the principle.
        class_name: The class of a debias principle that the image shows, if the data name it.
        source_prompt: The prompt that the image was generated from, if the data name it.
    """

    prompt: str
    value: str
    label: int
    file: Path
    scene: str
    where: str
    principle: str | None = None
    direction: bool = False
    class_name: str = ""
    source_prompt: str = ""


@dataclass
class Report:
    """The result of `check`.

    Args:
        samples: The images that can be used.
        problems: What prevents training, one message each.
        notes: What is worth knowing but prevents nothing.
    """

    samples: list[Sample]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A text table with the numbers of scenes, aligned images and violating images of each principle (or statement)."""
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.samples:
            groups[sample.principle or sample.value].append(sample)
        lines = [f"{'principle':34} {'scenes':>7} {'aligned':>8} {'violating':>10}"]
        for name, samples in sorted(groups.items()):
            labels = Counter(sample.label for sample in samples)
            lines.append(f"{name[:34]:34} {len({s.scene for s in samples}):7} {labels[1]:8} {labels[0]:10}")
        return "\n".join(lines)


def check(folder: str | Path) -> Report:
    """Read the manifests and every image of a folder, and report all problems.

    Args:
        folder: A folder of preference data.

    Raises:
        PreferenceError: There is no such folder, or no manifest in it.
    """
    folder = Path(folder)
    report = _scan(folder)
    digests: dict[str, Sample] = {}
    usable = []
    for sample, (size, fault) in zip(report.samples, check_images([s.file for s in report.samples]), strict=True):
        if fault:
            report.problems.append(f"{sample.where}: {fault}")
            continue
        usable.append(sample)
        if min(size) < _SMALL:
            report.notes.append(f"{sample.where}: {sample.file.name} has only {size[0]} x {size[1]} pixels; it will be enlarged")
        twin = digests.setdefault(digest(sample.file.read_bytes()), sample)
        if twin is not sample and twin.label != sample.label and twin.scene == sample.scene:
            report.problems.append(
                f"{sample.where}: {sample.file.name} is the same image as {twin.where}, but with the other label"
            )
        elif twin is not sample:
            report.notes.append(f"{sample.where}: {sample.file.name} is the same image as {twin.where}")
    report.notes += _strays(folder, {sample.file for sample in report.samples})
    report.samples = usable
    report.problems += _without_partners(usable)
    return report


def _strays(folder: Path, listed: set[Path]) -> list[str]:
    """Notes on the files that no manifest lists."""
    others = [f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST and f.resolve() not in listed]
    if (folder / "data_card.json").is_file():  # made by `livo build`: its contact sheets and dropped pairs are no stray files
        others = [f for f in others if f.parent != folder and f.relative_to(folder).parts[0] not in ("rounds", "census")]
    strays = [f for f in others if is_image_file(f)]
    notes = [f"{len(strays)} images are listed in no {MANIFEST}, for example {strays[0]}; they are not used"] if strays else []
    return notes + [note for note in [ignored(f for f in others if not is_image_file(f))] if note]


def read_samples(folder: str | Path) -> list[Sample]:
    """The samples of a folder. The image files must exist, but they are not opened.

    Args:
        folder: A folder of preference data.

    Raises:
        PreferenceError: There is a problem that `check` would report and that shows without opening the images.
    """
    report = _scan(Path(folder))
    gone = [sample for sample in report.samples if not sample.file.is_file()]
    problems = report.problems + [f"{s.where}: no such file {s.file}; restore it or delete the line" for s in gone]
    problems += _without_partners(report.samples)
    if problems:
        more = f" (and {len(problems) - 1} more problems: livo build --check {folder})" if len(problems) > 1 else ""
        raise PreferenceError(problems[0] + more)
    return report.samples


def form_pairs(samples: Sequence[Sample]) -> list[tuple[int, tuple[int, ...]]]:
    """For each aligned sample: its index, and the indices of the violating samples of its scene, one of which is drawn at each step.

    Args:
        samples: The samples of a folder, aligned and violating ones in any order.
    """
    violating: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if not sample.label:
            violating[sample.scene].append(i)
    return [(i, tuple(violating[s.scene])) for i, s in enumerate(samples) if s.label and violating[s.scene]]


def check_readable(samples: Sequence[Sample]) -> None:
    """Decode every image once, so that a damaged one is found before a long computation starts.

    Args:
        samples: The samples whose image files are decoded.

    Raises:
        PreferenceError: Images cannot be decoded. The message names the first one and counts the others.
    """
    faults = [
        f"{s.where}: {found.fault}"
        for s, found in zip(samples, check_images([s.file for s in samples]), strict=True)
        if found.fault
    ]
    if faults:
        more = f" (and {len(faults) - 1} more; livo build --check lists them)" if len(faults) > 1 else ""
        raise PreferenceError(faults[0] + more)


def open_sample(sample: Sample) -> Image.Image:
    """The image of a sample, in RGB.

    Args:
        sample: The sample whose file is opened.

    Raises:
        PreferenceError: The image cannot be decoded. The message names the manifest and the line.
    """
    try:
        return open_image(sample.file)
    except ImageError as error:
        raise PreferenceError(f"{sample.where}: {error}") from None


# --- manifests ----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Check that the folder exists and contains a manifest.

    Args:
        folder: A folder of preference data.

    Raises:
        PreferenceError: It does not.
    """
    if not folder.is_dir():
        raise PreferenceError(f"{folder}: no such folder of preference data; make one with `livo build`")
    if not _manifests(folder):
        raise PreferenceError(f"{folder}: no {MANIFEST} in it or in its <type>/<scene> folders; is it the right folder?")


def _manifests(folder: Path) -> list[Path]:
    return sorted([*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")])


def _scan(folder: Path) -> Report:
    check_folder(folder)
    report = Report([])
    seen: dict[Path, str] = {}
    for manifest in _manifests(folder):
        try:
            lines = split_lines(read_text(manifest))
        except (OSError, ValueError) as error:
            report.problems.append(str(error))
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{manifest}:{number}"
            try:
                sample = _sample(line, where, manifest, folder)
            except PreferenceError as error:
                report.problems.append(str(error))
                continue
            if sample.file in seen:
                report.problems.append(f"{where}: {sample.file.name} is already listed in {seen[sample.file]}; keep one line")
                continue
            seen[sample.file] = where
            report.samples.append(sample)
    if not report.samples and not report.problems:
        report.problems.append(f"{folder}: its {MANIFEST} files are empty")
    return report


def _sample(line: str, where: str, manifest: Path, folder: Path) -> Sample:
    try:
        row = load_json(line, where)
    except ValueError as error:
        raise PreferenceError(f"{error}; correct or delete the line") from None
    if not isinstance(row, dict):
        raise PreferenceError(f"{where}: {row!r} is not a JSON object with prompt, value, label and file_name")
    for name in ("prompt", "value", "file_name"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise PreferenceError(f"{where}: {name} is {row.get(name)!r}: give a text")
    for name in ("scene", "principle", "class", "image_prompt"):
        if not isinstance(row.get(name), (str, type(None))):
            raise PreferenceError(f"{where}: {name} is {row[name]!r}: give a text, or leave it out")
    texts = [row[name] for name in ("prompt", "value", "file_name", "scene", "principle", "image_prompt") if row.get(name)]
    if any("\0" in text or not is_text(text) for text in texts):
        raise PreferenceError(f"{where}: a text contains a NUL character or half a surrogate pair; write it again")
    if row.get("label") not in (0, 1):
        raise PreferenceError(f"{where}: label is {row.get('label')!r}: 1 is aligned, 0 is violating")
    try:
        listed = PureWindowsPath(row["file_name"])  # accepts / and \\ as separators
        file = (manifest.parent / (row["file_name"] if listed.drive else listed.as_posix())).resolve()
        file.is_file()
    except OSError as error:
        raise PreferenceError(
            f"{where}: file_name {row['file_name'][:40]!r}... is not a valid file name ({error.strerror})"
        ) from None
    if listed.drive or not file.is_relative_to(manifest.parent.resolve()):
        raise PreferenceError(
            f"{where}: file_name {row['file_name']!r} is outside its folder; move the image next to its {MANIFEST}"
        )
    scene = row.get("scene") or str(manifest.parent.relative_to(folder))
    return Sample(
        row["prompt"],
        row["value"],
        int(row["label"]),
        file,
        f"{row['value']}/{scene}",
        where,
        row.get("principle"),
        bool(row.get("direction")),
        row.get("class") or "",
        row.get("image_prompt") or "",
    )


def _without_partners(samples: Iterable[Sample]) -> list[str]:
    labels: dict[str, set[int]] = defaultdict(set)
    first: dict[str, Sample] = {}
    for sample in samples:
        labels[sample.scene].add(sample.label)
        first.setdefault(sample.scene, sample)
    missing = {0: "violating", 1: "aligned"}
    return [
        f"{first[scene].where}: scene {scene!r} has no {missing[1 - label]} image, so it forms no pair; add one or delete the scene"
        for scene, (label, *rest) in ((scene, tuple(found)) for scene, found in labels.items())
        if not rest
    ]


def digest(content: bytes) -> str:
    """A short hash of the contents of a file.

    Args:
        content: The bytes that are hashed.
    """
    return hashlib.sha256(content).hexdigest()[:32]
