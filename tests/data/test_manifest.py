import json

import numpy as np
import pytest
import torch
from PIL import Image

from livo.data import manifest
from livo.data.latent_cache import LatentCache
from livo.data.manifest import PreferenceError
from livo.utils import images


def picture(file, color="red", size=(16, 16)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)


def official(root, scene="0-career/doctor", count=2):
    """The papers' layout: <type>/<scene>/metadata.jsonl beside the images."""
    folder = root / scene
    rows = []
    for i in range(2 * count):
        picture(folder / f"{i}.png", (10 * i, 20, 30))
        rows.append({"prompt": "a photo of a doctor", "value": "gender equality", "label": i % 2, "file_name": f"{i}.png"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edit(folder, line, **changes):
    file = folder / "metadata.jsonl"
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    rows[line - 1] |= changes
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_in_the_official_layout_pairs_are_formed_within_a_scene(tmp_path):
    official(tmp_path)
    official(tmp_path, "0-career/nurse", count=3)
    samples = manifest.read_samples(tmp_path)
    assert len(samples) == 10
    for winner, losers in manifest.form_pairs(samples):
        assert samples[winner].label == 1 and losers
        assert all(samples[i].label == 0 and samples[i].file.parent == samples[winner].file.parent for i in losers)


def test_one_manifest_may_list_several_scenes(tmp_path):
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.png")
    rows = [
        {"prompt": "p", "value": "v", "label": label, "file_name": f"images/{name}.png", "scene": scene, "principle": "x"}
        for name, label, scene in (("a", 1, "s"), ("b", 0, "s"), ("c", 1, "t"), ("d", 0, "t"))
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = manifest.read_samples(tmp_path)
    assert manifest.form_pairs(samples) == [(0, (1,)), (2, (3,))]
    assert "x" in manifest.check(tmp_path).table()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda f: edit(f, 2, file_name="gone.png"), ("metadata.jsonl:2", "gone.png", "restore")),
        (lambda f: edit(f, 1, file_name="../../../etc/passwd"), ("metadata.jsonl:1", "is outside its folder")),
        (lambda f: edit(f, 3, label=2), ("metadata.jsonl:3", "label is 2")),
        (lambda f: edit(f, 3, label="1"), ("metadata.jsonl:3", "label is '1'")),
        (lambda f: edit(f, 1, prompt=""), ("metadata.jsonl:1", "prompt is ''")),
        (lambda f: edit(f, 4, value=None), ("metadata.jsonl:4", "value is None")),
        (lambda f: edit(f, 2, file_name="0.png"), ("metadata.jsonl:2", "is already listed")),
        (lambda f: (f / "metadata.jsonl").write_text('{"prompt": '), ("metadata.jsonl:1", "not valid JSON")),
        (lambda f: (f / "metadata.jsonl").write_text("[1]\n"), ("metadata.jsonl:1", "not a JSON object")),
        (lambda f: (f / "metadata.jsonl").write_bytes(b'\xff\xfe{"prompt"\n'), ("metadata.jsonl:1", "not valid JSON")),
        (lambda f: (f / "metadata.jsonl").write_text("[" * 100_000), ("metadata.jsonl:1", "nested too deeply")),
        (
            lambda f: (f / "metadata.jsonl").write_text('{"prompt": "a", "prompt": "b"}'),
            ("metadata.jsonl:1", "'prompt' is there twice"),
        ),
        (lambda f: (f / "metadata.jsonl").write_text('{"prompt": "a", "value": NaN}'), ("metadata.jsonl:1", "value is nan")),
        (lambda f: edit(f, 1, label=float("nan")), ("metadata.jsonl:1", "label is nan")),
        (lambda f: edit(f, 1, file_name="..\\..\\secret.png"), ("metadata.jsonl:1", "is outside its folder")),
        (lambda f: edit(f, 1, file_name="C:\\pictures\\0.png"), ("metadata.jsonl:1", "is outside its folder")),
        (lambda f: edit(f, 1, file_name=str(f / ".." / "0.png")), ("metadata.jsonl:1", "is outside its folder")),
        (lambda f: edit(f, 1, principle=5), ("metadata.jsonl:1", "principle is 5")),
        (lambda f: edit(f, 1, file_name="a\0.png"), ("metadata.jsonl:1", "NUL")),
        (lambda f: edit(f, 1, prompt="half \ud800"), ("metadata.jsonl:1", "half a surrogate pair")),
        (lambda f: edit(f, 1, image_prompt="half \ud800"), ("metadata.jsonl:1", "half a surrogate pair")),
        (lambda f: edit(f, 1, **{"class": 3}), ("metadata.jsonl:1", "class is 3")),
        (lambda f: edit(f, 1, file_name="x" * 300 + ".png"), ("metadata.jsonl:1", "not a valid file name")),
        (lambda f: (f / "metadata.jsonl").write_text(""), ("are empty",)),
        (lambda f: [edit(f, i, label=1) for i in (1, 3)], ("no violating image",)),
        (lambda f: [edit(f, i, label=0) for i in (2, 4)], ("no aligned image",)),
    ],
)
def test_a_fault_in_the_manifest_is_reported_with_file_and_line(tmp_path, fault, words):
    fault(official(tmp_path))
    with pytest.raises(PreferenceError) as error:
        manifest.read_samples(tmp_path)
    report = manifest.check(tmp_path)
    assert all(word in str(error.value) and word in " ".join(report.problems) for word in words)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: f.write_bytes(f.read_bytes()[: len(f.read_bytes()) // 2]),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_text("this is no image"),
        lambda f: Image.fromarray(np.zeros((64, 64), np.float32)).save(f, "TIFF"),  # whose range is not known
    ],
)
def test_the_check_and_the_cache_find_an_image_that_cannot_be_read(tmp_path, spoil, pipe):
    folder = official(tmp_path)
    picture(folder / "1.png", "blue", (64, 64))
    spoil(folder / "1.png")
    assert any("1.png" in problem and "metadata.jsonl:2" in problem for problem in manifest.check(tmp_path).problems)
    with pytest.raises(PreferenceError, match=r"metadata.jsonl:2: .*1.png"):
        LatentCache(tmp_path / "cache", pipe.vae, 16).fill(manifest.read_samples(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_an_oversized_image_is_refused(tmp_path, monkeypatch):
    folder = official(tmp_path)
    picture(folder / "0.png", size=(101, 100))
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    assert any("101 x 100" in problem for problem in manifest.check(tmp_path).problems)


def test_stray_files_and_copies_are_noted_and_contradictions_refused(tmp_path):
    folder = official(tmp_path)
    picture(folder / "stray.png")
    (folder / "notes.txt").write_text("not part of the data")
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes())
    report = manifest.check(tmp_path)
    assert any("1 images are listed in no" in note and "stray.png" in note for note in report.notes)
    assert any("same image" in note for note in report.notes)
    assert not report.problems
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
    assert any("other label" in problem for problem in manifest.check(tmp_path).problems)


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_manifest_may_have_any_byte_order_mark_line_end_and_slash(tmp_path, mark, end):
    picture(tmp_path / "inner" / "a.png")
    picture(tmp_path / "inner" / "b.png", "blue")
    rows = [{"prompt": "a\u2028b\x85c", "value": "v", "label": i, "file_name": f"inner\\{n}.png"} for i, n in enumerate("ab")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_bytes((end.join(lines) + end).encode(mark))
    samples = manifest.read_samples(tmp_path)
    assert [(s.prompt, s.label, s.file.name) for s in samples] == [("a\u2028b\x85c", 0, "a.png"), ("a\u2028b\x85c", 1, "b.png")]
    assert not manifest.check(tmp_path).problems


def test_latents_encode_the_image_as_a_viewer_shows_it(tmp_path, pipe):
    folder = official(tmp_path)
    shown = Image.effect_noise((16, 16), 90).convert("RGB")
    shown.save(folder / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    shown.transpose(Image.Transpose.ROTATE_90).save(folder / "1.png", exif=exif)
    hidden = np.dstack([np.full((16, 16, 3), 90, np.uint8), np.zeros((16, 16), np.uint8)])
    Image.fromarray(hidden).save(folder / "2.png")
    Image.new("RGB", (16, 16), "white").save(folder / "3.png")
    samples = manifest.read_samples(tmp_path)
    cache = LatentCache(tmp_path / "cache", pipe.vae, 16)
    cache.fill(samples)
    latents = cache.load(samples)
    torch.testing.assert_close(latents[0], latents[1])
    torch.testing.assert_close(latents[2], latents[3])


def test_unreadable_images_are_counted_and_the_first_is_named(tmp_path):
    folder = official(tmp_path)
    manifest.check_readable(manifest.read_samples(tmp_path))
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(PreferenceError, match=r"metadata.jsonl:2: .*1.png: .* \(and 1 more; livo build --check lists them\)"):
        manifest.check_readable(manifest.read_samples(tmp_path))


def test_small_images_and_other_files_are_noted(tmp_path):
    folder = official(tmp_path)
    picture(folder / "1.png", "blue", (1, 1))
    for name in ("._0.png", "Thumbs.db", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    report = manifest.check(tmp_path)
    assert not report.problems and any("1.png has only 1 x 1 pixels" in note for note in report.notes)
    assert "ignored, no pictures: .DS_Store, ._0.png, Thumbs.db" in report.notes


def test_a_folder_without_data_is_refused(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(PreferenceError):
            manifest.read_samples(folder)


def test_cached_latents_equal_the_vaes_and_are_computed_once(tmp_path, pipe, monkeypatch):
    folder = official(tmp_path)
    Image.effect_noise((40, 16), 90).convert("RGB").save(folder / "0.png")  # wider than high: cropped to its centre
    samples = manifest.read_samples(tmp_path)
    cache = LatentCache(tmp_path / "cache", pipe.vae, 16)
    cache.fill(samples[:2])
    cache.fill(samples)
    latents = cache.load(samples)
    pixels = pipe.image_processor.preprocess(Image.open(folder / "0.png").crop((12, 0, 28, 16)))
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        mirrored = pipe.vae.encode(pixels.flip(-1)).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert latents.shape == (4, 2, 4, 8, 8)
    torch.testing.assert_close(latents[0], torch.cat([expected, mirrored]), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(cache, "_encode", lambda images: pytest.fail("encoded again"))
    cache.fill(samples)
    again = LatentCache(tmp_path / "cache", pipe.vae, 16)
    assert torch.equal(again.load(list(reversed(samples))), latents.flip(0))


def test_a_changed_image_or_another_vae_is_encoded_again(tmp_path, pipe):
    folder = official(tmp_path)
    samples = manifest.read_samples(tmp_path)
    cache = LatentCache(tmp_path / "cache", pipe.vae, 16)
    cache.fill(samples)
    before = cache.load(samples)
    picture(folder / "0.png", "yellow")
    cache.fill(samples)
    after = cache.load(samples)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.mul_(1.5)
    assert LatentCache(tmp_path / "cache", pipe.vae, 16).folder != cache.folder


def test_two_processes_share_the_encoding(tmp_path, pipe):
    official(tmp_path)
    samples = manifest.read_samples(tmp_path)
    whole = LatentCache(tmp_path / "one", pipe.vae, 16)
    whole.fill(samples)
    shared = LatentCache(tmp_path / "two", pipe.vae, 16)
    for rank in (0, 1):
        missing = LatentCache(tmp_path / "two", pipe.vae, 16)
        missing._find = lambda: None  # both looked before either wrote
        missing.fill(samples, rank=rank, world=2)
    torch.testing.assert_close(shared.load(samples), whole.load(samples), atol=1e-5, rtol=1e-4)
