"""CLIP's quality and aesthetic scores, on a tiny CLIPModel of the real classes with random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from datamodules.curation.clip_scores import clip_scores, image_embedding, skipped_models
from datamodules.curation.settings import ScoreModels

SIZE, WIDTH = 32, 12
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz.,"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(path)
    parts = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=parts
        | {
            "vocab_size": len(words),
            "max_position_embeddings": 20,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
        },
        vision_config=parts | {"image_size": SIZE, "patch_size": 8},
        projection_dim=WIDTH,
        logit_scale_init_value=1.0,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():  # the usual start is so small that all images look alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(path)
    return path


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole_forward(folder, squares, prompts):
    """CLIPModel's own forward on squares (N,3,SIZE,SIZE) uint8, normalised by hand."""
    model = CLIPModel.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        return model(pixel_values=(squares / 255 - mean) / std, **tokens)


def quality(logits):
    """Softmax over the pair in float64, the mean over the squares."""
    good, bad = logits.double().T
    return float((1 / (1 + torch.exp(bad - good))).mean())


def test_the_quality_is_the_pairs_softmax_of_clips_own_logits(folder):
    image = noise(SIZE, SIZE)
    logits = whole_forward(folder, image[None], ["good photo.", "bad photo."]).logits_per_image
    score = clip_scores(image, ScoreModels(clip=str(folder)))
    assert list(score) == ["clip_quality"]
    assert 0.02 < score["clip_quality"] < 0.98
    assert score["clip_quality"] == pytest.approx(quality(logits), abs=1e-5)
    exchanged = clip_scores(image, ScoreModels(clip=str(folder), good_prompt="Bad photo.", bad_prompt="Good photo."))
    assert exchanged["clip_quality"] == pytest.approx(1 - score["clip_quality"], abs=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_image_is_judged_on_the_squares_that_cover_it(folder, turned):
    image = noise(SIZE, 80)
    squares = torch.stack([image[..., start : start + SIZE] for start in (0, 24, 48)])
    if turned:
        image, squares = image.transpose(1, 2), squares.transpose(2, 3)
    logits = whole_forward(folder, squares, ["sharp", "blurry"]).logits_per_image
    models = ScoreModels(clip=str(folder), good_prompt="sharp", bad_prompt="blurry")
    assert clip_scores(image, models)["clip_quality"] == pytest.approx(quality(logits), abs=1e-5)


def test_a_large_photograph_is_scaled_down_without_aliasing(folder):
    small = noise(SIZE, 48, seed=3)
    large = small.repeat_interleave(40, 1).repeat_interleave(40, 2)
    grain = noise(SIZE * 40, 48 * 40) // 4
    models = ScoreModels(clip=str(folder))
    plain, grained = (clip_scores(image, models)["clip_quality"] for image in (large // 2 + 32, large // 2 + grain))
    assert grained == pytest.approx(plain, abs=0.01)  # grain of mean 31.5 averages out
    deep = (large.to(torch.int32) * 257).to(torch.uint16)
    assert clip_scores(deep, models) == clip_scores(large, models)


def heads():
    """Tensors and the independent product of LAION's two layouts."""
    generator = torch.Generator().manual_seed(1)
    sizes = {0: (8, WIDTH), 2: (6, 8), 4: (4, 6), 6: (3, 4), 7: (1, 3)}
    layers = {}
    for number, size in sizes.items():
        layers[f"layers.{number}.weight"] = torch.randn(size, generator=generator)
        layers[f"layers.{number}.bias"] = torch.randn(size[0], generator=generator)
    # eleven more layers of one value: 10 must follow 9, not 1
    layers |= {f"layers.{number}.weight": torch.full((1, 1), 0.5) for number in range(8, 12)}
    layers |= {f"layers.{number}.bias": torch.tensor([float(number)]) for number in range(8, 12)}
    single = {"weight": torch.randn(1, WIDTH, generator=generator), "bias": torch.tensor([5.0])}

    def through(embedding):
        for number in [*sizes, 8, 9, 10, 11]:
            embedding = embedding @ layers[f"layers.{number}.weight"].T + layers[f"layers.{number}.bias"]
        return embedding

    return {"rows": (layers, through), "single": (single, lambda e: e @ single["weight"].T + single["bias"])}


@pytest.mark.parametrize("layout", ["rows", "single"])
def test_the_aesthetic_head_runs_on_the_normalised_embedding(folder, tmp_path, layout):
    tensors, through = heads()[layout]
    save_file(tensors, tmp_path / "head.safetensors")
    image = noise(SIZE, SIZE)
    embedding = whole_forward(folder, image[None], ["a"]).image_embeds
    score = clip_scores(image, ScoreModels(clip=str(folder), aesthetic=str(tmp_path / "head.safetensors")))
    assert set(score) == {"clip_quality", "aesthetic"}
    assert score["aesthetic"] == pytest.approx(float(through(embedding)), abs=1e-4)
    torch.testing.assert_close(image_embedding(image, str(folder)).norm(dim=-1), torch.ones(1))


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"weight": torch.zeros(1, WIDTH + 1), "bias": torch.zeros(1)}, "projection_dim"),
        ({"weight": torch.zeros(2, WIDTH), "bias": torch.zeros(2)}, "gives 2 values"),
        ({"weight": torch.zeros(1, WIDTH)}, "no linear layer"),
        ({"layers.0.weight": torch.zeros(1, WIDTH), "layers.1.bias": torch.zeros(1)}, "layers.0"),
        ({"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(1), "scale": torch.ones(1)}, "scale"),
        ({}, "pairs of weight and bias"),
    ],
)
def test_a_foreign_head_is_refused_in_one_sentence(folder, tmp_path, tensors, named):
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"^models\.aesthetic=\S+head\.safetensors: [^\n]+$") as refused:
        clip_scores(noise(8, 8), ScoreModels(clip=str(folder), aesthetic=str(tmp_path / "head.safetensors")))
    assert named in str(refused.value)


def test_a_pickled_head_is_not_read(folder, tmp_path):
    torch.save({"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        clip_scores(noise(8, 8), ScoreModels(clip=str(folder), aesthetic=str(tmp_path / "head.pth")))


def copied(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_tensors_are_an_error_not_random_numbers(folder, tmp_path):
    path = copied(folder, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"^models\.clip=.*1 tensors are missing .* visual_projection\.weight"):
        clip_scores(noise(8, 8), ScoreModels(clip=str(tmp_path)))


def test_without_a_preprocessor_clips_own_normalisation_is_used(folder, tmp_path):
    image = noise(SIZE, SIZE)
    (copied(folder, tmp_path) / "preprocessor_config.json").unlink()
    ours = image_embedding(image, str(tmp_path))
    default = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(folder).get_image_features(**default(image, return_tensors="pt"))
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs.pooler_output))


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_a_folder_without_weights_or_tokenizer_is_one_sentence(folder, tmp_path, lost):
    (copied(folder, tmp_path) / lost).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"^models\.clip=[^\n]+$"):
        clip_scores(noise(8, 8), ScoreModels(clip=str(tmp_path)))


def test_a_prompt_longer_than_clip_reads_is_an_error(folder):
    with pytest.raises(ValueError, match="too long, expected at most 18 tokens"):
        clip_scores(noise(8, 8), ScoreModels(clip=str(folder), good_prompt="a b c d e f g h i j k l m n o p q r s"))


def test_every_score_without_a_file_is_skipped_with_one_line_that_names_its_key():
    assert clip_scores(noise(8, 8), ScoreModels()) == {}
    lines = skipped_models(ScoreModels())
    assert len(lines) == 4
    for key in ("models.niqe", "models.clip", "models.aesthetic", "models.pyiqa.<name>"):
        assert sum(key in line for line in lines) >= 1, key
    assert all("\n" not in line and "skipped" in line for line in lines)


def test_what_is_there_is_not_skipped(folder, tmp_path):
    niqe = tmp_path / "niqe.npz"
    niqe.touch()
    lines = skipped_models(ScoreModels(niqe=str(niqe), clip=str(folder), pyiqa={"musiq": ""}))
    assert [line.split()[0] for line in lines] == ["aesthetic", "pyiqa_musiq"]
    assert "models.pyiqa.musiq" in lines[1]
    assert "models.clip" not in lines[0]
    assert skipped_models(ScoreModels(aesthetic=str(niqe)))[2] == "aesthetic is skipped: set models.clip"


@pytest.mark.parametrize(
    ("models", "named"),
    [
        (ScoreModels(niqe="no/niqe.npz"), "models.niqe=no/niqe.npz"),
        (ScoreModels(clip="no/clip"), "models.clip=no/clip"),
        (ScoreModels(aesthetic="no/head"), "models.aesthetic=no/head"),
        (ScoreModels(pyiqa={"musiq": "no/musiq.pth"}), "models.pyiqa.musiq=no/musiq.pth"),
    ],
)
def test_a_path_to_nothing_is_an_error(models, named):
    with pytest.raises(FileNotFoundError, match=f"^{named}: no such"):
        skipped_models(models)


def test_a_folder_without_a_configuration_is_an_error(tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match=r"models\.clip=.*no config\.json"):
        skipped_models(ScoreModels(clip=str(tmp_path)))
