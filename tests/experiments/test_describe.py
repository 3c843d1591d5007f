import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.describe import all_options, main, reference
from experiments.schema import SYSTEMS


def keys_of(node: DictConfig, prefix: str = "") -> set[str]:
    """Dotted keys of OmegaConf's own view of a schema."""
    keys: set[str] = set()
    for name in node:
        child = None if OmegaConf.is_missing(node, name) else node[name]
        section = isinstance(child, DictConfig) and OmegaConf.get_type(child) is not dict
        keys |= keys_of(child, f"{prefix}{name}.") if section else {f"{prefix}{name}"}
    return keys


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_option_of_a_system_is_described_once(system: str) -> None:
    described = [option.key for option in all_options() if system in option.systems]
    assert len(described) == len(set(described))
    assert set(described) == keys_of(OmegaConf.structured(SYSTEMS[system]))


def test_every_option_has_a_sentence() -> None:
    without = [option.key for option in all_options() if not option.sentence.endswith(".")]
    assert not without, f"the schema has no sentence under {without}"


def test_defaults_read_as_set_takes_them() -> None:
    schema = OmegaConf.structured(SYSTEMS["one_step_flux"])
    given = [o for o in all_options() if o.default != "(none)" and "one_step_flux" in o.systems]
    merged = OmegaConf.merge(schema, OmegaConf.from_dotlist([f"{o.key}={o.default}" for o in given]))
    assert merged == schema


def test_reference_groups_options_and_names_the_system_of_special_ones() -> None:
    text = reference(all_options())
    rope = text[text.index("\ntransformer.rope") :]
    assert rope.startswith(
        "\ntransformer.rope  (system one_step_flux, latent_flow only)\n  transformer.rope.theta=10000.0  (float)\n"
    )
    assert "\ndata\n" in text
    sections = [option.section for option in all_options()]
    assert len(set(sections)) == sum(line != "" and not line.startswith(" ") for line in text.splitlines())


def test_the_program_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert reference(all_options()) in capsys.readouterr().out
