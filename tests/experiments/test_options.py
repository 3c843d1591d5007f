import ast
import json
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from experiments import schema
from experiments.checks import RULES, SYSTEM_RULES, OptionError, period_of, pitch_of
from experiments.options import from_yaml, load_options, shipped_experiments, to_yaml
from experiments.schema import SYSTEMS, OneStepFlux
from experiments.train import main

ROOT = Path(__file__).resolve().parents[2]
BROUGHT = {
    "op4ksr/flux": ["transformer.path", "transformer.prompt", "dists.weights", "adversary.weights"],
    "f16_vae/decoder": ["perceptual.backbone", "adversary.weights"],
    "f16_vae/decoder_wavelet": ["perceptual.backbone"],
}
"""Experiments that stand on published weights, and their keys for these beside those of data and codec."""


@pytest.fixture
def codec(tmp_path):
    """An override that names a codec's folder; the options look for its config.json alone."""
    folder = tmp_path / "codec"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "SmallF16Codec"}')
    return f"codec.path={folder}"


@pytest.fixture
def given(codec, tmp_path):
    """Overrides by which an experiment finds what other experiments would have left for it."""

    def given_to(name):
        if name.startswith("rt4ksr"):
            return []
        if name.startswith("f16_vae/decoder"):
            (tmp_path / "vae").mkdir()
            config = {"_class_name": "AutoencoderKL", "block_out_channels": [4, 4, 4, 4]}
            (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
            return [f"codec.path={tmp_path / 'vae'}"]
        if not name.startswith(("op4ksr/mini_lora", "op4ksr/mini_gan")):
            return [codec]
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer" / "config.json").write_text("{}")
        return [codec, f"transformer.path={tmp_path / 'transformer'}"]

    return given_to


@pytest.fixture
def write(tmp_path):
    """Write a YAML file into a new folder and return its path."""

    def write_file(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_loads(name, tiny, given):
    if name in BROUGHT and not tiny:
        pytest.skip("needs files that a user brings; the next test names them")
    options = load_options(name, given(name), tiny)
    assert options.name == (f"{name}-tiny" if tiny else name)
    assert not tiny or options.trainer.steps == 2


@pytest.mark.parametrize(("name", "keys"), BROUGHT.items())
def test_every_file_that_a_user_must_bring_is_named_at_once(name, keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as raised:
        load_options(name)
    named = {line.removeprefix("option ").partition("=")[0] for line in str(raised.value).splitlines()}
    assert named - {"trainer.accelerator"} == {"data.train", "data.val", "codec.path", *keys}


def test_experiments_are_shipped():
    assert {"f16_vae/small", "op4ksr/mini"} <= set(shipped_experiments())


@pytest.mark.parametrize("name", shipped_experiments())
def test_options_survive_yaml(name, given):
    overrides = [*given(name), "optimizer.learning_rate=0.00012345678901234567", "seed=7"]
    options = load_options(name, overrides, tiny=name in BROUGHT)
    assert from_yaml(to_yaml(options)) == options
    assert from_yaml(to_yaml(options), ["seed=8"]).seed == 8


def test_a_file_is_merged_over_its_base_and_overrides_over_both(write, codec):
    write(
        "system: one_step_flux\nseed: 1\nlosses: {l1: {weight: 1.0}, l2: {weight: 2.0}}\ndata: {crop: 192}\n", "a.yaml"
    )
    write("base: a.yaml\nseed: 2\nlosses: {l2: {weight: 3.0}}\n", "b.yaml")
    options = load_options(write("base: b.yaml\ndata: {scale: 2}\n"), [codec, "losses.l2.weight=4"])
    assert isinstance(options, OneStepFlux)
    assert (options.seed, options.data.crop, options.data.scale) == (2, 192, 2)
    assert (options.losses.l1.weight, options.losses.l2.weight) == (1.0, 4.0)
    assert options.name == "mine"


def test_a_base_may_lie_below_experiments(write, codec):
    assert load_options(write("base: op4ksr/mini.yaml\nseed: 5\n"), [codec]).optimizer.learning_rate == 1e-3


def test_tiny_comes_from_the_base_unless_the_file_has_its_own(write, codec):
    write("system: one_step_flux\nlosses: {l1: {weight: 1.0}}\ntiny: [seed=3]\n", "a.yaml")
    assert load_options(write("base: a.yaml\n", "b.yaml"), [codec], tiny=True).seed == 3
    assert load_options(write("base: a.yaml\ntiny: [seed=4]\n", "c.yaml"), [codec], tiny=True).seed == 4
    assert load_options(write("base: a.yaml\n", "b.yaml"), [codec, "seed=9"], tiny=True).seed == 9
    assert load_options(write("base: a.yaml\n", "b.yaml"), [codec]).seed == 0


def test_interpolation_takes_the_value_of_another_option(codec):
    options = load_options("op4ksr/mini", [codec, "data.crop=320", "data.val_crop=${data.crop}"])
    assert options.data.val_crop == 320
    assert "${" not in to_yaml(options)


def test_bases_in_a_circle_are_refused(write):
    write("base: b.yaml\n", "a.yaml")
    with pytest.raises(OptionError, match="base files name each other in a circle"):
        load_options(write("base: a.yaml\n", "b.yaml"))


BAD_OVERRIDES = [
    ("data.crp=64", ["unknown option data.crp", "did you mean crop?", "batch_size"]),
    ("trainr.steps=64", ["unknown option trainr", "did you mean trainer?"]),
    ("student.rope.theta=100", ["unknown option student.rope", "sigma"]),
    ("data.crop.side=3", ["option data.crop", "expected int"]),
    ("data=3", ["option data=3", "expected a group of options"]),
    ("losses.l1=3", ["option losses.l1=3", "expected a group of options"]),
    ("data.crop=large", ["option data.crop='large'", "expected int"]),
    ("data.crop=192.5", ["option data.crop=192.5", "expected int"]),
    ("seed=[1,2]", ["option seed", "expected int"]),
    ("seed=null", ["option seed=None", "expected int"]),
    ("optimizer.learning_rate=fast", ["option optimizer.learning_rate='fast'", "expected float"]),
    ("optimizer.betas=[0.9,b]", ["option optimizer.betas", "expected"]),
    ("optimizer.betas=0.9", ["option optimizer.betas=0.9", "expected list[float]"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "two values from 0 to below 1"]),
    ("transformer.rope.theta=0", ["transformer.rope.theta=0", "above 0"]),
    ("transformer.rope.theta=-100", ["transformer.rope.theta=-100", "above 0"]),
    ("transformer.rope.theta=nan", ["transformer.rope.theta=nan", "above 0"]),
    ("student.sigma=1.5", ["student.sigma=1.5", "at most 1"]),
    ("data.crop=200", ["data.crop=200", "multiple of the model's size unit 32"]),
    ("data.val_crop=48", ["data.val_crop=48", "size unit 32"]),
    ("data.scale=3", ["data.crop=256", "data.scale=3"]),
    ("data.scale=0", ["data.scale=0", "above 0"]),
    ("data.train=/no/such/folder", ["data.train=/no/such/folder", "existing folder", "bundled"]),
    ("data.val=", ["data.val=", "existing folder"]),
    ("data.procedural_share=1.1", ["data.procedural_share=1.1", "from 0 to 1"]),
    ("data.degradation=realesrgan", ["data.degradation=realesrgan", "omgsr", "bicubic"]),
    ("ema.decay=1", ["ema.decay=1", "below 1"]),
    ("trainer.precision=16", ["trainer.precision=16", "bf16-mixed"]),
    ("trainer.devices=3", ["data.batch_size=8", "trainer.devices=3"]),
    ("trainer.steps=0", ["trainer.steps=0", "above 0"]),
    ("losses.l1.weight=0", ["losses.*.weight", "at least one of l1"]),
    ("losses.l1.weight=-1", ["losses.l1.weight=-1", "0 or more"]),
    ("losses.lpips.weight=1", ["losses.lpips.weight", "perceptual.backbone"]),
    ("perceptual.backbone=/no/file.pth", ["perceptual.backbone=/no/file.pth", "existing file"]),
    ("losses.periodicity={weight: 1, lags: 4}", ["data.crop=256", "losses.periodicity needs crops of at least 290"]),
    ("losses.periodicity.period=31", ["losses.periodicity.period=31", "even"]),
    ("losses.periodicity.quadrants=0", ["losses.periodicity.quadrants=0", "above 0"]),
    ("losses.periodicity.highpass=16", ["losses.periodicity.highpass=16", "odd"]),
    ("losses.texture.epsilon=0", ["losses.texture.epsilon=0", "above 0"]),
    ("codec.path=/no/codec", ["codec.path=/no/codec", "config.json", "make train EXP=f16_vae/small"]),
    ("codec.layout=f32", ["codec.layout=f32", "one of f8, f16"]),
    ("codec.lora.rank=-1", ["codec.lora.rank=-1", "0 or more"]),
    (
        "transformer.path=/no/flux",
        ["transformer.path='/no/flux'", "config.json", "make train EXP=op4ksr/pretrain_mini"],
    ),
    ("transformer.prompt=/no/prompt", ["transformer.prompt=/no/prompt", "existing file"]),
    ("transformer.dtype=bfloat16", ["transformer.dtype=bfloat16", "transformer.lora.rank above 0"]),
    ("transformer.rope.variant=xpos", ["transformer.rope.variant=xpos", "yarn"]),
    ("student.color_fix=hist", ["student.color_fix=hist", "adain"]),
    ("student.noise=-0.1", ["student.noise=-0.1", "0 or more"]),
    ("losses.lrr.weight=1", ["losses.lrr.weight=1", "codec.lora.rank above 0"]),
    ("adversary.kind=wgan", ["adversary.kind=wgan", "hinge"]),
    ("adversary.stages=[2,1]", ["adversary.stages=[2, 1]", "ascending"]),
    ("seed=-1", ["seed=-1", "0 to 2^63 - 1"]),
    ("name=''", ["name=", "a name"]),
    ("system=gan", ["system='gan'", "one_step_flux, latent_flow, autoencoder"]),
    ("data.crop", ['SET="data.crop"', "key=value"]),
    ("=3", ['SET="=3"', "key=value"]),
    ("data.crop=[1", ['SET="data.crop=[1"', "not valid YAML"]),
    ("data.crop=${data.side}", ["option data.crop", "data.side"]),
]


@pytest.mark.parametrize(("override", "named"), BAD_OVERRIDES, ids=[override for override, _ in BAD_OVERRIDES])
def test_a_wrong_option_is_named_with_value_and_expectation(override, named, codec):
    with pytest.raises(OptionError) as raised:
        load_options("op4ksr/mini", [codec, override])
    message = str(raised.value)
    assert all(words in message for words in named), message
    assert all(line.startswith(("option ", "unknown option ", "SET=")) for line in message.splitlines()), message


def test_all_impossible_values_are_named_at_once(codec):
    with pytest.raises(OptionError) as raised:
        load_options("op4ksr/mini", [codec, "transformer.rope.theta=0", "ema.decay=2"])
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("system: one_step_flux\n  seed: [1\n", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping of options"),
        ("just words\n", "expected one of one_step_flux, latent_flow, autoencoder"),
        ("3\n", "expected a mapping of options"),
        ("", "expected one of one_step_flux, latent_flow, autoencoder"),
        ("seed: 1\n", "expected one of one_step_flux, latent_flow, autoencoder"),
        ("base: nowhere.yaml\n", "base: nowhere.yaml not found"),
        ("base: [1, 2]\n", "expected the path of one YAML file"),
        ("system: one_step_flux\ntiny: 3\n", "expected a list of overrides"),
        ("system: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_path(text, words, write):
    with pytest.raises(OptionError, match=rf"mine\.yaml.*{words}|{words}.*mine\.yaml"):
        load_options(write(text), tiny=True)


def test_an_unknown_experiment_lists_those_that_exist():
    with pytest.raises(OptionError, match=r"EXP=op4ksr/nano: no such experiment; found .*op4ksr/mini"):
        load_options("op4ksr/nano")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["op4ksr/nano"], "EXP=op4ksr/nano: no such experiment"),
        (["f16_vae/small", "data.crp=64"], "unknown option data.crp"),
        (["f16_vae/small", "data.crop=wide"], "data.crop='wide'"),
        (["f16_vae/small", "data.crop=100"], "data.crop=100"),
        (["--resume", "/no/last.ckpt"], "RESUME=/no/last.ckpt: no such file"),
    ],
)
def test_main_ends_with_code_2_and_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert errors.startswith("error: ")
    assert words in errors
    assert len(errors.splitlines()) == 1, errors
    assert list(tmp_path.iterdir()) == [], "nothing is built or written"


def test_the_command_ends_with_code_2_and_one_sentence(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.train", "f16_vae/small", "data.crp=64"]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("error: unknown option data.crp")
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is built or written"


def schema_fields():
    """(class, field, its annotation, the sentence under it or None) of every dataclass in the schema."""
    for node in ast.parse(Path(schema.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    constant = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    yield node.name, field.target.id, ast.unparse(field.annotation), constant and below.value.value


def is_group(annotation):
    return annotation.endswith("Options")


def test_every_option_has_a_sentence_under_it():
    options = [field for field in schema_fields() if not is_group(field[2])]
    assert len(options) > 50
    assert [f"{group}.{name}" for group, name, _, text in options if not (text and text.endswith("."))] == []


def test_every_option_is_read_somewhere():
    """Rule 9 of the house: no dead option. A name must be an attribute of something outside schema and checks."""
    sources = [path for path in (ROOT / "experiments").glob("*.py") if path.name not in ("schema.py", "checks.py")]
    read = {
        node.attr
        for path in [*sources, ROOT / "experiments" / "checks.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [f"{group}.{name}" for group, name, _, _ in schema_fields() if name not in read] == []


@pytest.mark.parametrize("system", SYSTEMS.values())
def test_every_rule_is_about_an_option(system):
    for key in RULES | SYSTEM_RULES[system]:
        reduce(getattr, key.split("."), system())


def test_an_override_without_a_value_empties_a_text(codec):
    options = load_options("op4ksr/mini", [codec, "transformer.path=/some/folder", "transformer.path="])
    assert options.transformer.path == ""
    with pytest.raises(OptionError, match=r"data\.crop='': expected int|data\.crop='' in .*expected int"):
        load_options("op4ksr/mini", [codec, "data.crop="])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.variant=XXXXL"], "network.variant=XXXXL: expected one of XXS, XS, S"),
        (["data.scale=5"], "data.scale=5: expected one of 2, 3, 4"),
        (["data.crop=126"], "data.crop=126: expected a multiple of the model's size unit 4"),
        (["network.features=squeeze"], "network.features=squeeze with network.block=layer_norm, which is RT4KSR's"),
        (["network.shared_head=true"], "network.shared_head=true with network.block=layer_norm"),
        (["data.crop=4"], "data.crop=4: expected at least 8 px at data.scale=2"),
        (["data.val_crop=12"], "data.val_crop=12: expected at least 15 px at data.scale=2"),
        (["network.channels=12"], "network.channels=12: network.start=linear needs 24 or more"),
        (["network.start=linear", "network.block=conv"], "network.start=linear with network.block=conv"),
        (
            ["network.block=conv", "network.online_folding=false"],
            "network.online_folding=false with network.block=conv",
        ),
        (["optimizer.decay=exponential"], "optimizer.decay=exponential: expected one of linear, cosine, steps"),
        (["losses.lrr.weight=1"], "losses.lrr.weight=1.0: it trains the encoder's adapters"),
        (["codec.path=x"], "unknown option codec"),
    ],
)
def test_impossible_networks_for_real_time_are_named(overrides, message):
    with pytest.raises(OptionError) as raised:
        load_options("rt4ksr/s_x2_mini", overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize(("experiment", "pitch"), [("f16_vae/small", 32), ("rt4ksr/s_x2_mini", 4)])
def test_a_period_of_its_own_moves_the_loss_and_no_metric(experiment, pitch):
    plain, own = (load_options(experiment, overrides) for overrides in ([], ["losses.periodicity.period=64"]))
    assert (period_of(plain), pitch_of(plain)) == (pitch, pitch)
    assert (period_of(own), pitch_of(own)) == (64, pitch)
