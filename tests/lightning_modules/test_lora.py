"""LoRA on tiny instances of the real models; the plain diffusers classes are the reference."""

import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lightning_modules.networks.flux import build_flux, image_ids
from lightning_modules.networks.lora import (
    ENCODER_FILE,
    TRANSFORMER_PATTERNS,
    add_encoder_lora,
    add_transformer_lora,
    encoder_targets,
    has_lora,
    load_encoder_lora,
    lora_targets,
    merge_lora,
    save_encoder_lora,
    save_lora,
    without_adapters,
)
from lightning_modules.networks.rope import use_rope
from lightning_modules.networks.small_codec import SmallF16Codec

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
DOUBLE = [f"attn.{name}" for name in ATTENTION]
DOUBLE += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


def flux(double=1, single=1):
    torch.manual_seed(0)
    transformer = build_flux(latent_channels=4, double_blocks=double, single_blocks=single, heads=1, prompt_width=16)
    nn.init.normal_(transformer.proj_out.weight, std=0.1)
    return transformer.eval()


def kl_encoder():
    codec = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
    )
    return codec.encoder


def tiny_encoder():
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).encoder


def small_encoder():
    return SmallF16Codec(4, (8, 8, 8), 1).encoder


ENCODERS = pytest.mark.parametrize("make", [small_encoder, kl_encoder, tiny_encoder])


def built(make, seed=0):
    torch.manual_seed(seed)
    encoder = make()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def randomise(module, seed=5):
    """An adapter as after training: B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def run(transformer, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    tokens, prompt, pooled = (torch.randn(*s, generator=generator) for s in ((1, 12, 16), (1, 3, 16), (1, 16)))
    return transformer(
        hidden_states=tokens.to(dtype).requires_grad_(requires_grad),
        encoder_hidden_states=prompt.to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=torch.tensor([0.505], dtype=dtype),
        img_ids=image_ids(3, 4),
        txt_ids=torch.zeros(3, 3),
        return_dict=False,
    )[0]


def picture(seed=3):
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def adapted(module):
    return {name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def test_the_published_list_names_these_layers():
    expected = {"x_embedder"}
    expected |= {f"transformer_blocks.{block}.{layer}" for block in range(2) for layer in DOUBLE}
    expected |= {f"single_transformer_blocks.{b}.attn.{layer}" for b in range(3) for layer in ("to_q", "to_k", "to_v")}
    transformer = flux(2, 3)
    names = lora_targets(transformer, TRANSFORMER_PATTERNS)
    assert len(names) == len(set(names)) == 1 + 2 * 12 + 3 * 3
    assert set(names) == expected
    add_transformer_lora(transformer, 2, 2)
    assert adapted(transformer) == expected


def test_a_pattern_is_a_whole_part_of_a_name():
    module = nn.ModuleDict({"to_q": nn.Linear(1, 1), "not_to_q": nn.Linear(1, 1), "b": nn.ModuleDict()})
    module["b"]["to_q"] = nn.Linear(1, 1)
    module["b"]["norm"] = nn.LayerNorm(1)
    assert lora_targets(module, ["to_q"]) == ["to_q", "b.to_q"]
    with pytest.raises(ValueError, match=r"LoRA targets q, norm name no linear .* layer of this ModuleDict"):
        lora_targets(module, ["q", "norm", "b.to_q"])


def test_a_transformer_without_double_blocks_is_refused():
    with pytest.raises(ValueError, match=r"attn\.to_out\.0, attn\.add_q_proj.*transformer\.path"):
        add_transformer_lora(flux(double=0), 2, 2)


@ENCODERS
def test_every_convolution_and_projection_of_an_encoder_is_adapted(make):
    encoder = built(make)
    layers = {name for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)}
    layers |= {name for name, _ in encoder.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))}
    assert set(encoder_targets(encoder)) == layers
    add_encoder_lora(encoder, 2, 2)
    assert adapted(encoder) == layers


def test_an_encoder_without_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"no convolution in the encoder Identity \(codec\.path\)"):
        add_encoder_lora(nn.Identity(), 2, 2)


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_alone_is_trained():
    transformer, base = flux(), flux()
    add_transformer_lora(transformer, 4, 8)
    assert torch.equal(run(transformer), run(base))
    trained = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in transformer.named_parameters() if "lora_A" in name or "lora_B" in name}
    assert len(trained) == 2 * len(adapted(transformer))


@ENCODERS
@torch.no_grad()
def test_a_new_encoder_adapter_changes_nothing_and_alone_is_trained(make):
    encoder, base = built(make), built(make)
    add_encoder_lora(encoder, 4, 8)
    assert torch.equal(encoder(picture()), base(picture()))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in encoder.named_parameters() if "lora_A" in name or "lora_B" in name}
    assert len(trained) == 2 * len(adapted(encoder))


@ENCODERS
def test_without_adapters_it_is_the_base_for_a_while(make):
    encoder, base = built(make), built(make)
    add_encoder_lora(encoder, 2, 2)
    randomise(encoder)
    output = encoder(picture())
    with without_adapters(nn.Sequential(encoder)):
        with without_adapters(encoder):
            assert torch.equal(encoder(picture()), base(picture()))
        assert torch.equal(encoder(picture()), base(picture()))
    with pytest.raises(RuntimeError), without_adapters(encoder):
        encoder(torch.zeros(1))
    assert torch.equal(encoder(picture()), output)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters() if p.requires_grad)


def test_the_layer_is_alpha_over_rank_times_b_a():
    transformer = flux()
    add_transformer_lora(transformer, rank=4, alpha=6)
    randomise(transformer)
    layer, x = transformer.x_embedder, torch.randn(5, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((4, 16), (128, 4))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 6 / 4 * x @ a.T @ b.T)


def test_a_starts_gaussian_with_deviation_one_over_rank():
    transformer = flux()
    add_transformer_lora(transformer, rank=16, alpha=16)
    a = transformer.transformer_blocks[0].ff.net[2].lora_A["default"].weight
    assert a.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_a_bf16_base_is_trained_in_fp32_without_copying_activations():
    """Under autocast, as such a base always runs; the same adapters on the fp32 base are the reference."""
    transformer, precise = flux().to(torch.bfloat16), flux()
    for module in (transformer, precise):
        add_transformer_lora(module, 2, 2)
        randomise(module)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in transformer.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    pairs = record_inputs(transformer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(transformer)
    output.float().square().mean().backward()
    assert torch.bfloat16 in {given for given, _ in pairs}
    assert all(given == seen for given, seen in pairs)
    expected = run(precise)
    assert (output - expected).abs().max() < 0.05 * expected.abs().max()
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in trained)


def record_inputs(module):
    """A list that fills with each adapted layer's input type and the type that its A is given."""
    pairs, given = [], []
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].dtype))
            a = layer.lora_A["default"]
            a.register_forward_pre_hook(lambda _, inputs: pairs.append((given[-1], inputs[0].dtype)))
    return pairs


def by_adapter(transformer, folder):
    transformer.load_lora_adapter(folder, use_safetensors=True)


def by_pipeline(transformer, folder):
    FluxPipeline(None, None, None, None, None, None, transformer).load_lora_weights(folder)


@torch.no_grad()
@pytest.mark.parametrize(
    ("load", "alpha", "theta"), [(by_adapter, 3, 100), (by_adapter, 1.5, 10000), (by_pipeline, 3, 10000)]
)
def test_plain_diffusers_loads_the_file_and_gives_the_same_output(tmp_path, load, alpha, theta):
    flux().save_pretrained(tmp_path / "base")
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "base").eval()
    use_rope(transformer, "plain", theta, 0)
    before = run(transformer)
    add_transformer_lora(transformer, rank=2, alpha=alpha)
    randomise(transformer)
    path = save_lora(transformer, tmp_path / "lora")
    plain = FluxTransformer2DModel.from_pretrained(tmp_path / "base").eval()
    load(plain, tmp_path / "lora")
    assert ((run(plain) - run(transformer)).abs().max() > 1e-3) == (theta == 100)
    plain.pos_embed.theta = theta  # in no file: who loads the adapter sets it
    torch.testing.assert_close(run(plain), run(transformer), rtol=0, atol=1e-5)
    assert (run(plain) - before).abs().max() > 0.01
    assert adapted(plain) == adapted(transformer)
    assert [file.name for file in (tmp_path / "lora").iterdir()] == [path.name]


def test_nothing_to_save_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel has no LoRA to save.*lora\.rank"):
        save_lora(flux(), tmp_path)


@ENCODERS
@torch.no_grad()
def test_an_encoder_adapter_comes_back_from_its_file(make, tmp_path):
    encoder = built(make)
    before = encoder(picture())
    add_encoder_lora(encoder, rank=2, alpha=5)
    randomise(encoder)
    save_encoder_lora(encoder, tmp_path)
    loaded = built(make)
    load_encoder_lora(loaded, tmp_path)
    assert torch.equal(loaded(picture()), encoder(picture()))
    assert (loaded(picture()) - before).abs().max() > 0.01
    kinds = {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == kinds


def test_both_adapters_lie_in_one_folder(tmp_path):
    transformer, encoder = flux(), built(small_encoder)
    add_transformer_lora(transformer, 2, 4)
    add_encoder_lora(encoder, 2, 4)
    save_lora(transformer, tmp_path / "new")
    save_encoder_lora(encoder, tmp_path / "new")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"pytorch_lora_weights.safetensors", ENCODER_FILE}
    with safe_open(tmp_path / "new" / ENCODER_FILE, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["r"], metadata["lora_alpha"]) == (2, 4)


def test_wrong_encoder_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=ENCODER_FILE):
        load_encoder_lora(built(small_encoder), tmp_path)
    (tmp_path / ENCODER_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_encoder_lora(built(small_encoder), tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / ENCODER_FILE)
    with pytest.raises(ValueError, match="no rank and alpha in its header"):
        load_encoder_lora(built(small_encoder), tmp_path)
    other = SmallF16Codec(4, (8, 8, 12), 1).encoder
    for encoder in (other, built(kl_encoder)):
        add_encoder_lora(encoder, 2, 2)
        save_encoder_lora(encoder, tmp_path)
        with pytest.raises(ValueError, match=r"of another encoder: \d+ tensors.*codec\.path"):
            load_encoder_lora(built(small_encoder), tmp_path)


@torch.no_grad()
def test_merging_a_transformer_gives_plain_layers_and_the_same_output():
    transformer, base = flux(), flux()
    add_transformer_lora(transformer, 4, 6)
    randomise(transformer)
    state, expected = copy.deepcopy(transformer.state_dict()), run(transformer)
    merged = merge_lora(transformer)
    torch.testing.assert_close(run(merged), expected, rtol=0, atol=1e-5)
    assert not has_lora(merged)
    assert set(merged.state_dict()) == set(base.state_dict())
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert has_lora(transformer)
    assert all(torch.equal(value, state[name]) for name, value in transformer.state_dict().items())
    assert torch.equal(run(transformer), expected)


def test_a_merged_transformer_is_saved_loaded_and_adapted_anew(tmp_path):
    transformer = flux()
    add_transformer_lora(transformer, 2, 2)
    randomise(transformer)
    merged = merge_lora(transformer)
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(run(FluxTransformer2DModel.from_pretrained(tmp_path).eval()), run(merged))
    add_transformer_lora(merged, 4, 4)
    assert has_lora(merged)


@ENCODERS
@torch.no_grad()
def test_merging_an_encoder_gives_plain_layers_and_the_same_output(make):
    encoder = built(make)
    add_encoder_lora(encoder, 4, 6)
    randomise(encoder)
    expected = encoder(picture())
    merged = merge_lora(encoder)
    assert (merged(picture()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(merged.state_dict()) == set(built(make).state_dict())
    assert torch.equal(encoder(picture()), expected)


def test_merging_reaches_an_adapter_inside_a_codec_and_copies_what_has_none():
    codec = SmallF16Codec(4, (8, 8, 8), 1)
    names = set(codec.state_dict())
    assert set(merge_lora(codec).state_dict()) == names
    add_encoder_lora(codec.encoder, 2, 2)
    merged = merge_lora(codec)
    assert set(merged.state_dict()) == names
    assert has_lora(codec)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(requires_grad):
    """Also where no input asks for gradients: the frozen base alone must not cut the adapters off."""
    transformer = flux(2, 2).train()
    add_transformer_lora(transformer, 2, 2)
    randomise(transformer)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.zero_grad(set_to_none=True)
        run(transformer, requires_grad=requires_grad).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in transformer.named_parameters() if p.grad is not None})
    trained = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert set(gradients[0]) == set(gradients[1]) == trained
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize(
    ("rank", "alpha", "said"),
    [(0, 4, r"lora\.rank=0: expected at least 1"), (4, 0, r"lora\.alpha=0"), (4, float("nan"), r"lora\.alpha=nan")],
)
def test_impossible_values_name_their_option(rank, alpha, said):
    with pytest.raises(ValueError, match=r"transformer\." + said):
        add_transformer_lora(flux(), rank, alpha)
    with pytest.raises(ValueError, match=r"codec\." + said):
        add_encoder_lora(built(small_encoder), rank, alpha)
