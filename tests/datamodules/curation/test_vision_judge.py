"""The judge in a local folder: a tiny Qwen3-VL of the real classes with random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from datamodules.curation.contact_sheet import contact_sheet
from datamodules.curation.rubric import CRITERIA, PROMPT
from datamodules.curation.settings import JudgeModel
from datamodules.curation.vision_judge import check_judge, judge, load_judge

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEEP, DROP = (
    json.dumps({"scores": dict.fromkeys(CRITERIA, score), "verdict": verdict, "reason": "as seen"})
    for score, verdict in ((4, "keep"), (2, "drop"))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3vl")
    vocabulary = {piece: number for number, piece in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=SPECIAL[1:])
    tokenizer.add_tokens([KEEP, DROP])  # whole replies as one token each
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 4096, "longest_edge": 128 * 128}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**sizes, size=size), tokenizer, Qwen3VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    processor.save_pretrained(path)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


def copied(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_give_no_judgement_and_the_error_says_so(folder, tmp_path, dtype):
    AutoModelForImageTextToText.from_pretrained(copied(folder, tmp_path), dtype=dtype).save_pretrained(tmp_path)
    model = JudgeModel(folder=str(tmp_path), attempts=2, reply_tokens=5)
    check_judge(model)
    judged = judge(PIXELS, model)
    assert load_judge(str(tmp_path))[0].dtype == dtype
    assert judged.keep is None
    assert judged.scores == {}
    assert judged.error.startswith("not judged, asked 2 times: malformed reply: ")
    assert judge(PIXELS, model) == judged  # greedy


def test_the_rubric_and_the_contact_sheet_reach_the_model(folder):
    model, processor = load_judge(str(folder))
    read, looked_at = [], []
    hooks = [
        model.register_forward_pre_hook(lambda _, __, inputs: read.append(inputs["input_ids"][0]), with_kwargs=True),
        model.model.visual.register_forward_pre_hook(lambda _, inputs: looked_at.append(inputs[0])),
    ]
    judge(PIXELS, JudgeModel(folder=str(folder), attempts=2, reply_tokens=1))
    for hook in hooks:
        hook.remove()
    sheet = processor.image_processor(contact_sheet(PIXELS), return_tensors="pt")
    assert [torch.equal(patches.cpu(), sheet["pixel_values"]) for patches in looked_at] == [True, True]
    places = int(sheet["image_grid_thw"].prod()) // 4  # 2 x 2 patches are one token
    picture = f"<|vision_start|>{'<|image_pad|>' * places}<|vision_end|>"
    asked = f"<|im_start|>user\n{picture}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    first, again = (processor.tokenizer.decode(tokens) for tokens in read)
    assert first == asked
    assert again.startswith(asked)
    assert "That reply cannot be used: the reply holds no JSON object" in again.removeprefix(asked)


def last_state(folder, pixels):
    """What the output layer is given when the reply's first token is chosen, by the test's own preparation."""
    model, processor = (kind.from_pretrained(folder) for kind in (AutoModelForImageTextToText, AutoProcessor))
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[text], images=[contact_sheet(pixels)], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].double()


def test_a_model_that_tells_two_photographs_apart_keeps_one_and_drops_the_other(folder, tmp_path):
    bright, dark = PIXELS // 4 + 190, PIXELS // 4
    states = torch.stack([last_state(folder, pixels) for pixels in (bright, dark)], 1)
    vocabulary = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    wanted = torch.zeros(len(vocabulary), 2, dtype=torch.float64)
    wanted[vocabulary[KEEP], 0] = wanted[vocabulary[DROP], 1] = 1
    tensors = load_file(copied(folder, tmp_path) / "model.safetensors")
    tensors["lm_head.weight"] = (wanted @ torch.linalg.pinv(states)).float()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = JudgeModel(folder=str(tmp_path), reply_tokens=1, attempts=1)
    kept, dropped = judge(bright, model), judge(dark, model)
    assert (kept.keep, kept.scores, kept.reason) == (True, dict.fromkeys(CRITERIA, 4), "as seen")
    assert (dropped.keep, dropped.scores, dropped.error) == (False, dict.fromkeys(CRITERIA, 2), "")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.safetensors", "no AutoModelForImageTextToText can be loaded"),
        ("tokenizer.json", "judge.folder="),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_folder_of_which_a_part_is_missing_ends_in_one_sentence(folder, tmp_path, lost, said):
    (copied(folder, tmp_path) / lost).unlink()
    with pytest.raises(ValueError, match=r"^judge\.folder=[^\n]+$") as refused:
        judge(PIXELS, JudgeModel(folder=str(tmp_path)))
    assert said in str(refused.value)


def test_missing_tensors_are_an_error_not_random_numbers(folder, tmp_path):
    path = copied(folder, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if "down_proj" in name)
    del tensors[lost]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"^judge\.folder=.*1 tensors are missing"):
        judge(PIXELS, JudgeModel(folder=str(tmp_path)))


def test_no_folder_is_noticed_before_any_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^judge\.folder=\S+none: no such folder"):
        check_judge(JudgeModel(folder=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match=r"^judge\.folder=\S+: no config.json"):
        check_judge(JudgeModel(folder=str(tmp_path)))
