"""The studies that the project ships: every arm can be trained, and says something of its own."""

from dataclasses import replace
from itertools import combinations

import pytest

from experiments.measure import STUDENT, standard_metrics
from experiments.options import load_options, to_yaml
from experiments.schema import PerceptualOptions
from experiments.study_checks import check_study
from experiments.study_options import STUDIES, read_study
from experiments.train import train

NAMES = sorted(path.stem for path in STUDIES.glob("*.yaml"))


@pytest.fixture(params=NAMES)
def study(request, bases):
    """A shipped study whose runs stand on tiny models."""
    return on_tiny_models(request.param, bases)


def on_tiny_models(name, bases):
    _, options = read_study(name)
    options.overrides = [*options.overrides, *bases(options.base)]
    return options


def test_the_shipped_studies_are_there():
    wanted = {"artifact", "rope", "l_ap", "l_hf", "rt4ksr_blocks", "lora_rank", "sigma", "search_lr_l_ap"}
    assert wanted <= set(NAMES)


def test_the_file_says_what_a_study_needs(study):
    check_study("file", replace(study, arms=dict(list(study.arms.items())[:2])))  # the others are loaded below


@pytest.mark.parametrize("tiny", [False, True])
def test_every_run_s_options_can_be_loaded_and_are_no_other_run_s(study, tiny):
    texts = {arm: to_yaml(load_options(study.base, [*study.overrides, *given], tiny)) for arm, given in runs_of(study)}
    assert all(texts[one] != texts[other] for one, other in combinations(texts, 2))


def runs_of(study):
    """Overrides of each arm, or of both ends of a search's ranges."""
    ends = [(f"{key}={end}", [f"{key}={end}"]) for key, p in study.search.space.items() for end in (p.low, p.high)]
    return list(study.arms.items()) or ends


def test_metrics_are_measured_and_differences_have_an_interval(study):
    grid = 32 if study.method == STUDENT else None
    measured = {metric.name for metric in standard_metrics(PerceptualOptions(), 4, grid)}
    assert study.metrics.keys() <= measured
    assert study.method == (STUDENT if study.base.startswith("op4ksr") else "rt4ksr")
    assert len(study.seeds) >= 3 or study.search.space
    assert study.look_at
    assert study.budget.minutes_per_run > 0
    assert study.budget.minutes_on


def test_where_runs_differ_in_l_ap_its_score_decides_nothing(study):
    if any("losses.periodicity" in item for _, given in runs_of(study) for item in given):
        assert next(iter(study.metrics)) != "periodicity"
        assert {"comb_32", "perceptual"} <= study.metrics.keys()
        assert "val/periodicity" not in study.search.objective


@pytest.mark.parametrize("name", NAMES)
def test_a_file_opens_with_what_it_asks(name):
    head = (STUDIES / f"{name}.yaml").read_text().split("\nbase:")[0].splitlines()
    assert all(line.startswith("# ") for line in head)
    assert any("Cost: " in line for line in head)


@pytest.mark.parametrize(
    ("name", "arm"),
    [("rope", "yarn"), ("l_ap", "one_part_period_64"), ("rt4ksr_blocks", "d"), ("rt4ksr_blocks", "f")],
)
def test_an_unusual_arm_trains(name, arm, bases, tmp_path):
    study = on_tiny_models(name, bases)
    given = ["trainer.threads=1", "trainer.accelerator=cpu", "trainer.panel_images=0", "trainer.steps=1"]
    run = train(load_options(study.base, [*study.overrides, *study.arms[arm], *given, f"runs={tmp_path}"], tiny=True))
    assert (run / "checkpoints" / "last.ckpt").is_file()
