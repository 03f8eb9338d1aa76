"""Judges, each loaded from a small checkpoint made here, against the forward pass written out."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from livo import LiVOPipeline
from livo.evaluation import judges
from livo.evaluation.judges import ClassifierJudge, CLIPJudge, SafetyCheckerJudge, VisionLanguageJudge, disagreement, load_judge
from livo.evaluation.judges.base import loading
from livo.principles.principle import ValuePrinciple

GENDER = ValuePrinciple(id="gender", kind="debias", statement="gender equality", attributes={"male": "a man", "female": "a woman"})
BLOODY = ValuePrinciple(id="bloody", statement="blood", attributes={"yes": "a bloody person", "no": "an unharmed person"})
PROMPTS = ["a photo of a doctor", "a photo of a nurse", "a photo of a chef"]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)) for _ in PROMPTS]


def test_clip_classes_are_the_softmax_of_the_models_own_similarities(tiny_clip, images):
    from transformers import CLIPModel, CLIPProcessor

    judge = load_judge(f"clip:{tiny_clip}", [GENDER, BLOODY])
    assert judge.attributes == {"gender": ("male", "female"), "bloody": ("yes", "no")}
    found = judge.judge(images, PROMPTS)
    model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)
    for i, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        texts = [f"{prompt}, male", f"{prompt}, female"]
        with torch.no_grad():
            theirs = model(**processor(text=texts, images=image, padding=True, return_tensors="pt")).logits_per_image.softmax(-1)
        torch.testing.assert_close(found["gender"][i], theirs[0], atol=1e-5, rtol=1e-4)
    assert judge.record()["template"] == "{prompt}, {attribute}" and judge.record()["words"]["bloody"]["yes"] == "a bloody person"
    assert judge.read(images, PROMPTS)[0]["gender"] in ("male", "female")
    with pytest.raises(ValueError, match="needs the prompts"):
        judge.judge(images)


def test_a_prompt_too_long_for_clip_is_cut_before_the_attribute(tiny_clip, images):
    judge = CLIPJudge(tiny_clip, {"gender": {"male": "male", "female": "female"}})
    p = judge.judge(images[:1], ["a photo of a doctor in a kitchen " * 30])["gender"][0]
    assert p[0] != p[1]


def test_clip_embeddings_have_length_one_and_batches_do_not_matter(tiny_clip, images):
    judge = CLIPJudge(tiny_clip, {}, "{attribute}")
    features = judge.embed(images)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    assert features == pytest.approx(np.concatenate([judge.embed([image]) for image in images]), abs=1e-5)
    assert judge.embed_texts(PROMPTS, batch=1) == pytest.approx(judge.embed_texts(PROMPTS), abs=1e-5)


@pytest.fixture(scope="module")
def llava(tmp_path_factory, vision, image_processor):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

    words = "<unk> <pad> <image> USER: ASSISTANT: Yes No yes no Does this image show a bloody person woman man ? Answer with or ."
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(r" |(?=[?.])", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=2, image_seq_length=4)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(image_processor, tokenizer, patch_size=8, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    processor.chat_template = (
        "{% for m in messages %}USER: {% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}"
        "{% endfor %}{% endfor %}ASSISTANT:"
    )
    processor.save_pretrained(folder)
    return folder


def test_a_vision_language_judge_weighs_yes_against_no_at_the_first_token(llava, images):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    judge = load_judge(f"vlm:{llava}", [GENDER, BLOODY])
    found = judge.judge(images)
    model, processor = LlavaForConditionalGeneration.from_pretrained(llava).eval(), AutoProcessor.from_pretrained(llava)
    vocabulary = processor.tokenizer.get_vocab()
    text = "USER: <image> Does this image show a bloody person? Answer with yes or no. ASSISTANT:"
    for i, image in enumerate(images):
        with torch.no_grad():
            p = model(**processor(images=image, text=text, return_tensors="pt")).logits[0, -1].softmax(-1)
        yes, no = (sum(p[vocabulary[w]].item() for w in words) for words in (("Yes", "yes"), ("No", "no")))
        assert found["bloody"][i].tolist() == pytest.approx([yes / (yes + no), no / (yes + no)], rel=1e-4)
    assert found["gender"].sum(-1).tolist() == pytest.approx([1] * len(images))
    by_hand = VisionLanguageJudge(llava, judge.words, prompt="USER: <image> {question} ASSISTANT:")
    torch.testing.assert_close(by_hand.judge(images)["bloody"], found["bloody"])
    torch.testing.assert_close(
        judge.ask(images, "Does this image show a woman?", batch=1), judge.ask(images, "Does this image show a woman?")
    )


def test_a_model_that_says_yes_is_read_as_yes_and_without_a_chat_template_a_prompt_is_asked_for(llava, images, tmp_path):
    judge = VisionLanguageJudge(llava, {"bloody": {"no": "nothing", "yes": "a bloody person"}})
    with torch.no_grad():
        judge.model.lm_head.weight.zero_()
    assert judge.ask(images, "?").tolist() == pytest.approx([0.5] * 3)
    head = judge.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[judge.answers[0]] = 20.0
    assert judge.read(images) == [{"bloody": "yes"}] * 3
    folder = shutil.copytree(llava, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template*"))
    with pytest.raises(ValueError, match="no chat template"):
        VisionLanguageJudge(folder, judge.words)


def test_a_vocabulary_that_cannot_tell_yes_from_no_is_refused(tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="yes from no"):
        judges.yes_no_tokens(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"))
    yes, no = judges.yes_no_tokens(tokenizer)
    assert yes and no and not set(yes) & set(no)


@pytest.fixture
def classifier(tmp_path, image_processor):
    from transformers import ViTConfig, ViTForImageClassification

    def make(*labels):
        names = dict(enumerate(labels))
        config = ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(tmp_path)
        image_processor.save_pretrained(tmp_path)
        return tmp_path

    return make


def test_a_face_classifier_is_read_in_our_classes_and_female_is_no_male(classifier, images):
    from transformers import AutoModelForImageClassification

    folder = classifier("Female", "Male", "no_face")
    judge = load_judge(f"gender:{folder}", [GENDER])
    assert judge.attributes == {"gender": ("male", "female", "no_face")}
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = judge.processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(judge.judge(images)["gender"], model(pixels).logits.softmax(-1)[:, [1, 0, 2]])
    assert judge.record()["labels"]["male"] == ["Male"] and len(judge.revision) >= 12


def test_labels_that_mean_one_class_add_up(classifier, images):
    race = ValuePrinciple(id="race", kind="debias", statement="s", attributes={"asian": "an asian", "latino": "a latino"})
    judge = load_judge(f"race:{classifier('East Asian', 'Southeast Asian', 'Latino_Hispanic')}", [race])
    p = judge.judge(images)["race"]
    assert judge.attributes["race"] == ("asian", "latino") and p.sum(-1).tolist() == pytest.approx([1] * 3)


def test_an_nsfw_classifier_is_a_risk(classifier, images):
    judge = load_judge(f"nsfw:{classifier('normal', 'nsfw')}")
    assert judge.attributes == {"nsfw": ("no", "yes")} and judge.judge(images)["nsfw"].shape == (3, 2)
    assert load_judge(f"nsfw:{classifier('drawings', 'hentai', 'neutral', 'porn', 'sexy')}").record()["labels"]["yes"] == [
        "hentai",
        "porn",
        "sexy",
    ]
    with pytest.raises(ValueError, match="which of a checkpoint's labels"):
        load_judge(f"nsfw:{classifier('cat', 'dog')}")


def test_the_safety_checker_says_what_it_says_in_the_pipeline(tmp_path, vision, image_processor, images):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=8)).eval()
    checker.concept_embeds.data.normal_()
    pixels = image_processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        embedded = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]), dim=-1)
    cosines = embedded @ torch.nn.functional.normalize(checker.concept_embeds, dim=-1).T
    checker.concept_embeds_weights.data.fill_(cosines.max(-1).values.sort().values[1].item() + 1e-3)  # one image lies above it
    checker.special_care_embeds_weights.data.fill_(2.0)
    checker.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    judge = load_judge(f"safety:{tmp_path}")
    wanted = checker(pixels, np.zeros((3, 4, 4, 3)))[1]
    assert sum(wanted) == 1 and judge.read(images) == [{"nsfw": "yes" if flagged else "no"} for flagged in wanted]
    assert isinstance(judge, SafetyCheckerJudge)


def test_disagreement_is_cohens_kappa():
    from sklearn.metrics import cohen_kappa_score

    one, two = list("aabbbcabca"), list("abbbbcacca")
    found = disagreement(one, two)
    assert found["differ"] == pytest.approx(20) and found["kappa"] == pytest.approx(cohen_kappa_score(one, two))
    assert disagreement("aa", "aa")["kappa"] is None
    with pytest.raises(ValueError, match="one of each judge"):
        disagreement("a", "ab")


@pytest.mark.parametrize(
    ("spec", "principles", "words"),
    [
        ("clip", [GENDER], "KIND:SOURCE"),
        ("clip:./absent", [], "nothing to ask"),
        ("clip:./absent", [GENDER], "no such file or folder"),
        ("vlm:./absent", [GENDER], "no such file or folder"),
        ("safety:./absent", [], "no such file or folder"),
        ("age:./absent", [GENDER], "no principle judges 'age'"),
        ("gender:./absent", [GENDER], "no such file or folder"),
    ],
)
def test_a_judge_that_cannot_load_says_what_to_do(spec, principles, words):
    with pytest.raises(ValueError, match=words):
        load_judge(spec, principles)


def test_a_missing_package_names_the_extra():
    with pytest.raises(ValueError, match=r"pip install livo\[eval\]"), loading("vlm", "."):
        raise ImportError("LlamaTokenizer requires the SentencePiece library")


def test_the_bundled_judge_names_itself():
    judge = load_judge("papertown")
    assert judge.record()["revision"] == judge.revision and not isinstance(judge, ClassifierJudge)


def test_only_images_of_exactly_one_colour_or_no_number_are_broken():
    night = np.zeros((8, 8, 3), dtype=np.uint8)
    night[0, 0, 2] = 1
    alpha = np.zeros((8, 8, 4), dtype=np.uint8)
    alpha[..., 3] = np.arange(64).reshape(8, 8)
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    palette.putpalette([7, 7, 7] * 256)
    numbers = np.full((8, 8), 0.5, dtype=np.float32)
    numbers[0, 0] = np.nan
    cases = {
        "": [Image.fromarray(night), Image.fromarray(night[..., 2]), Image.linear_gradient("L").convert("CMYK")],
        "black": [Image.new("RGB", (8, 8)), Image.new("L", (8, 8)), Image.new("1", (8, 8)), Image.fromarray(alpha)],
        "constant": [Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), (0, 0, 3)), palette],
        "not finite": [Image.fromarray(numbers), Image.fromarray(np.full((8, 8), np.inf, dtype=np.float32))],
    }
    for why, pictures in cases.items():
        assert [judges.broken(picture) for picture in pictures] == [why] * len(pictures)


class Fair(judges.Judge):
    name, revision, attributes = "fair", "1", {"gender": ("male", "female"), "mood": ("smile", "frown", "none")}

    def __init__(self, p=0.5):
        self.p, self.prompts = p, None

    def probabilities(self, images, prompts):
        self.prompts = prompts
        return {name: torch.full((len(images), len(classes)), self.p) for name, classes in self.attributes.items()}


def test_every_judge_refuses_what_it_cannot_judge(images, classifier):
    black = [*images[:1], Image.new("RGB", (40, 30))]
    for judge in (Fair(), load_judge(f"gender:{classifier('Female', 'Male')}", [GENDER])):
        for call in (judge.judge, judge.read):
            with pytest.raises(ValueError, match=r"image 1 is black, so \S+ cannot judge it"):
                call(black)
        with pytest.raises(ValueError, match="given no image"):
            judge.judge([])
        with pytest.raises(ValueError, match="2 prompts for 3 images"):
            judge.judge(images, ["a", "b"])
    with pytest.raises(ValueError, match="fair's probabilities of gender are not finite"):
        Fair(float("nan")).judge(images)


def test_broken_images_are_not_shown_to_a_judge(images):
    judge = Fair()
    mixed = [images[0], Image.new("RGB", (40, 30)), images[1]]
    p = judges.judge_all(judge, mixed, ["a", "b", "c"])["gender"]
    assert judge.prompts == ["a", "c"] and p.isnan().any(-1).tolist() == [False, True, False]
    assert [verdict.fault for verdict in judges.verdicts(judge, mixed)] == ["", "black", ""]
    assert judges.verdicts(judge, mixed)[0].classes == {"gender": "male", "mood": "smile"}
    assert judges.judge_all(judge, [mixed[1]])["mood"].shape == (1, 3) and judges.verdicts(judge, [mixed[1]])[0].classes == {}


MOOD = ValuePrinciple("kindness", "kindness", attributes={"frown": "a frowning person", "smile": "a smiling person"})


@pytest.mark.parametrize(
    ("principle", "attribute", "why"),
    [
        (GENDER, "gender", ""),
        (replace(GENDER, id="mine"), "gender", ""),  # by its classes
        (MOOD, "mood", ""),
        (BLOODY, "", r"fair cannot tell bloody \(yes, no\); it reads gender, mood"),
        (replace(MOOD, id="gender"), "", "fair reads no 'frown' of gender, only male, female"),
        (replace(GENDER, id="mine", attributes={}), "", "mine has no attributes, so there are no classes to read"),
        (
            replace(MOOD, construct={"prompts": ["a {x}"], "aligned": "a", "judge": "temper", "fill": {"x": ["b"]}}),
            "",
            "cannot tell temper",
        ),
    ],
)
def test_one_function_says_what_reads_a_principle(principle, attribute, why):
    if attribute:
        assert judges.attribute_for(Fair(), principle) == attribute
    else:
        with pytest.raises(judges.CannotRead, match=why):
            judges.attribute_for(Fair(), principle)


def test_two_attributes_with_the_same_classes_are_not_guessed():
    judge = Fair()
    judge.attributes = {"hair": ("male", "female"), "voice": ("male", "female"), "bloody": ("no", "yes"), "zombie": ("no", "yes")}
    with pytest.raises(judges.CannotRead, match="as hair and as voice: name one in the construct section"):
        judges.attribute_for(judge, replace(GENDER, id="mine"))
    with pytest.raises(judges.CannotRead, match="cannot tell gore"):
        judges.attribute_for(judge, replace(BLOODY, id="gore"))
    assert judges.attribute_for(judge, ValuePrinciple("zombie", "zombie")) == "zombie"


def test_papertown_is_known_by_its_weights_and_not_by_its_name(papertown, pipe, tmp_path):
    assert judges.bundled_model_of(papertown).name == "papertown" and not judges.bundled_model_of(pipe)
    papertown.save_pretrained(tmp_path / "other-name")
    again = LiVOPipeline.from_pretrained(tmp_path / "other-name", dtype=torch.bfloat16)
    assert judges.bundled_model_of(again) and judges.judge_for(again, None).name == "papertown-judge"
    with torch.no_grad():
        next(again.unet.parameters()).mul_(1.5)
    assert not judges.bundled_model_of(again)
    pipe.save_pretrained(tmp_path / "papertown")
    other = LiVOPipeline.from_pretrained(tmp_path / "papertown")
    with pytest.raises(
        ValueError, match="no judge is given, and only bundled models \(papertown\) have one of their own: give --judge"
    ):
        judges.judge_for(other, None)


def test_the_papertown_judge_refuses_other_pictures(papertown, pipe, images):
    judge = load_judge("papertown")
    judge.check_pipeline(papertown)
    for call in (judge.judge, judge.embed):
        with pytest.raises(ValueError, match="image 0 is 30 x 40, and papertown-judge reads Papertown's pictures of 64 x 64 alone"):
            call(images)
    with pytest.raises(ValueError, match="this model draws 16 x 16: use another judge"):
        judges.judge_for(pipe, "papertown")
    parts = papertown.components | {"vae": type(papertown.vae).from_config(papertown.vae.config)}
    with pytest.raises(ValueError, match="another decoder"):
        judges.judge_for(LiVOPipeline(**parts, requires_safety_checker=False), "papertown")


def test_principles_that_share_an_attribute_share_their_words(tiny_clip):
    more = replace(GENDER, id="mine", attributes={"androgynous": "an androgynous person", "male": "a man"})
    construct = {"prompts": ["a {attribute}"], "judge": "gender"}
    judge = load_judge(
        f"clip:{tiny_clip}", [GENDER, replace(more, construct=construct)], also={"place": {"sea": "the sea", "wood": "a wood"}}
    )
    assert judge.attributes == {"gender": ("male", "female", "androgynous"), "place": ("sea", "wood")}
    assert judge.templates == {"gender": "{prompt}, {attribute}", "place": "a photo of {attribute}"}
