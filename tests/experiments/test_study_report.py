"""What a study has found: values recomputed from results.json, differences, refusals and what is said of them."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from experiments import study_options
from experiments.measure import standard_metrics
from experiments.options import load_options, to_yaml
from experiments.schema import PerceptualOptions
from experiments.study_options import StudyOptions, Trial, arm_trials
from experiments.study_report import lacking_by_reason, report
from experiments.study_scores import RATIOS, own_losses, progress, trained_options, training_data
from experiments.study_tables import FEW_SEEDS, HEADINGS

BASE = "rt4ksr/s_x2_mini"
L_AP = ["losses.periodicity.weight=1", "losses.periodicity.period=16"]
IMAGES = [("a", "photo"), ("b", "photo"), ("c", "photo"), ("sky", "flat")]
METRICS = {"psnr_y": "higher", "perceptual": "lower", "comb_16": "lower", "periodicity": "lower"}
FIXED = {
    "bicubic": [27.3, 0.52, 0.5, 0.004],
    "codec(lr)": [27.4, 0.51, 0.6, 0.004],
    "codec(hr)": [46.0, 0.1, 0.7, 0.003],
    "hr": ["inf", 0.0, 0.4, 0.002],
}


def options_of(arms=("base", "new"), seeds=(0, 1, 2), **changed):
    overrides = {"base": [], "new": ["network.blocks=1"], "l_ap": L_AP, "other": ["data.train=elsewhere"]}
    values = {"base": BASE, "method": "rt4ksr", "metrics": dict(METRICS), "seeds": list(seeds)}
    values = {"tests": {"bundled": study_options.TestOptions()}, **values, **changed}
    return StudyOptions(arms={arm: overrides[arm] for arm in arms}, **values)


def values_of(arm, seed):
    """Random values by image and metric, the same at each call: an array of images x metrics."""
    draws = np.random.default_rng([len(arm), seed])
    shift = 0.0 if arm == "base" else 1.0
    return np.stack(
        [
            30 + draws.normal(0, 1, 4) + 0.3 * shift,
            0.4 + draws.normal(0, 0.01, 4),
            np.exp(draws.normal(2 - shift, 0.3, 4)),
            0.01 + draws.uniform(0, 0.01, 4),
        ],
        axis=1,
    )


def evaluation(arm, seed, **facts):
    """What an evaluation of four images writes, as far as a report reads it."""
    measured = values_of(arm, seed)
    images, rows = [], []
    for number, (image, group) in enumerate(IMAGES):
        values = dict(zip(METRICS, measured[number].tolist(), strict=True))
        images.append({"image": image, "group": group, "method": "rt4ksr", "values": values})
    for group in ("photo", "flat"):
        of_group = [
            {"group": group, "method": m, "images": 1, "values": dict(zip(METRICS, v, strict=True))}
            for m, v in FIXED.items()
        ]
        rows += of_group
    same = {
        "protocol": "Scale 2. Border 2.",
        "precision": "fp32",
        "data_fingerprint": "00aa",
        "machine": "a",
        "date": "2026-01-01",
        "versions": {"torch": "2"},
    }
    return {**same, "rows": rows, "images": images, **facts}


@functools.cache
def options_yaml(overrides):
    """As a run keeps its options; a folder of training images that is not here any more does not matter."""
    elsewhere = [override for override in overrides if override == "data.train=elsewhere"]
    text = to_yaml(load_options(BASE, ["trainer.steps=2", *[o for o in overrides if o not in elsewhere]]))
    return text.replace("train: bundled", "train: elsewhere") if elsewhere else text


def write_run(trial, name, test, results, trained_on="ffee", step=2):
    """A finished trial: a checkpoint as far as a report reads it, and results unless they are None."""
    trial.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    text = options_yaml(trial.overrides)
    (trial.folder / "options.yaml").write_text(text)
    state = {"global_step": step, "options_yaml": text, "SR4KDataModule": {"data.train": trained_on}}
    torch.save(state, trial.checkpoint)
    if results is not None:
        folder = trial.results(name, test)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def study(tmp_path):
    """study(options, change) writes all runs and reports; change(trial) -> facts, or None for a run without results."""

    def make(options, change=lambda trial: {}, failures=None, **training):
        trials = arm_trials(options, tmp_path)
        for trial in trials:
            facts = change(trial)
            for name, test in options.tests.items():
                results = None if facts is None else evaluation(trial.arm, trial.seed, **facts)
                write_run(trial, name, test, results, **{k: v(trial) for k, v in training.items()})
        return report("mine", options, trials, failures or {}, tmp_path)

    return make


def stack(arm, seeds=(0, 1, 2)):
    return np.stack([values_of(arm, seed) for seed in seeds])


def cells(markdown, label):
    """Cells of the table's rows with a label."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith(f"| {label}")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_number_of_the_tables_is_numpys(study):
    text = study(options_of()).markdown
    base, new = stack("base"), stack("new")
    for rows, place in ((slice(0, 3), 0), (slice(3, 4), 1)):
        for arm, values in (("base", base[:, rows]), ("new", new[:, rows])):
            means = [*values.mean((0, 1))[:2], stats.gmean(np.median(values[..., 2], 1)), values.mean((0, 1))[3]]
            expected = [f"{mean:.{digits}f}" for mean, digits in zip(means, (3, 4, 2, 4), strict=True)]
            shown = [row for row in cells(text, f"{arm} (3 seeds)") if "±" not in "".join(row)]
            assert shown[place][1:] == expected
        row = [row for row in cells(text, "new (3 seeds)") if "±" in "".join(row)][place]
        for column in (0, 1, 3):
            difference = new[:, rows, column].mean(1) - base[:, rows, column].mean(1)
            width = stats.t.interval(0.95, 2, 0, stats.sem(difference))[1]
            shown, shown_width = (float(part) for part in row[1 + column].split()[:3:2])
            assert shown == pytest.approx(difference.mean(), abs=width / 100 + 5e-5)
            assert shown_width == pytest.approx(width, rel=0.05)
        logs = np.log(np.median(new[:, rows, 2], 1)) - np.log(np.median(base[:, rows, 2], 1))
        ends = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
        expected = f"x {math.exp(logs.mean()):#.3g} ({math.exp(ends[0]):#.3g} to {math.exp(ends[1]):#.3g})"
        assert row[3].startswith(expected)


def test_decided_differences_are_marked_by_the_metrics_direction(study):
    gain = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.2, 4: 0.2}

    def change(trial):
        made = evaluation("base", trial.seed)
        for row in made["images"] if trial.arm == "new" else []:
            row["values"] = {metric: value + gain[trial.seed] for metric, value in row["values"].items()}
        return {"images": made["images"]}

    (test,) = study(options_of(seeds=range(5), metrics={"psnr_y": "higher", "perceptual": "lower"}), change).tests
    found = test.groups[0].arms["new"]
    assert found["psnr_y"].to_base.difference == pytest.approx(0.2)
    assert (found["psnr_y"].verdict, found["perceptual"].verdict) == ("better", "worse")
    assert test.groups[0].arms["base"]["psnr_y"].to_base is None


def test_fixed_rows_stand_first_and_hr_where_it_says_something(study):
    text = study(options_of()).markdown
    photo = text.split("| photo (3)")[1].splitlines()
    assert [line.split("|")[1].strip() for line in photo[2:7]] == [
        "bicubic",
        "codec(lr)",
        "codec(hr)",
        "hr",
        "base (3 seeds)",
    ]
    assert cells(text, "hr")[0] == ["hr", "-", "-", "0.40", "0.0020"]
    assert cells(text, "codec(hr)")[0] == ["codec(hr)", "46.000", "0.1000", "0.70", "0.0030"]


def test_fixed_rows_that_differ_between_runs_are_told(study):
    def change(trial):
        made = evaluation(trial.arm, trial.seed)
        for row in made["rows"] if trial.arm == "new" else []:
            row["values"]["psnr_y"] = 45.0 if row["method"] == "codec(hr)" else row["values"]["psnr_y"]
        return {"rows": made["rows"]}

    (test,) = study(options_of(), change).tests
    assert test.notes == ["codec(hr): not the same in all runs; shown as measured with base, seed 0."]


def test_only_seeds_that_are_finished_in_both_arms_are_paired(study):
    found = study(options_of(), lambda trial: None if trial.title in ("new, seed 2", "base, seed 0") else {})
    (test,) = found.tests
    score = test.groups[0].arms["new"]["psnr_y"]
    assert sorted(score.values) == [0, 1]
    assert score.to_base.seeds == 1
    assert "one seed: no interval" in found.markdown
    reason = "trained, but not measured: `make study STUDY=mine OUT="
    assert found.markdown.count(reason) == 1
    assert "base, seed 0; new, seed 2" in found.markdown


def test_an_arm_without_a_seed_does_not_stop_the_table(study):
    found = study(options_of(), lambda trial: None if trial.arm == "new" else {}, {"new, seed 1": "out of memory"})
    (test,) = found.tests
    assert list(test.groups[0].arms) == ["base"]
    assert "failed: out of memory: new, seed 1" in found.markdown
    assert "Not compared with base: no seed is finished in both the base arm and another one." in found.markdown


def test_without_the_base_arm_there_are_values_alone(study):
    found = study(options_of(), lambda trial: None if trial.arm == "base" else {})
    assert cells(found.markdown, "new (3 seeds)")
    assert not found.tests[0].compared


def test_nothing_is_finished(study, tmp_path):
    found = report("mine", options_of(), arm_trials(options_of(), tmp_path / "none"), {}, tmp_path)
    assert "not trained yet: base, seeds 0 1 2; new, seeds 0 1 2" in found.markdown
    assert not found.tests[0].compared
    stopped = study(options_of(), lambda trial: None, step=lambda trial: 1)
    assert "trained for 1 of 2 steps: base, seeds 0 1 2; new, seeds 0 1 2" in stopped.markdown


def test_fewer_than_five_seeds_are_indicative(study):
    assert "Paired with base, indicative (3 seeds):" in study(options_of()).markdown
    enough = study(options_of(seeds=range(FEW_SEEDS))).markdown
    assert "Paired with base, 5 seeds:" in enough
    assert "indicative" not in enough
    alone = study(options_of(seeds=[4])).markdown
    assert "Paired with base, one seed: no interval:" in alone
    assert "±" not in alone
    assert "better" not in "".join(line for line in alone.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [
        ("protocol", "Scale 2. Border 4.", 'different protocols ("Border 2" and "Border 4"): remove '),
        ("precision", "bf16 autocast", "different precisions"),
        ("data_fingerprint", "11", 'different test images ("00aa" and "11")'),
    ],
)
def test_evaluations_of_another_kind_are_refused_and_other_test_sets_are_not(study, tmp_path, key, other, message):
    options = options_of(tests={"one": study_options.TestOptions(), "two": study_options.TestOptions(crop=64)})
    study(options)
    trial = arm_trials(options, tmp_path)[-1]
    write_run(trial, "two", options.tests["two"], evaluation(trial.arm, trial.seed, **{key: other}))
    one, two = (found := report("mine", options, arm_trials(options, tmp_path), {}, tmp_path)).tests
    assert one.compared
    assert not two.compared
    assert two.refusal.startswith(f"base, seed 0 and new, seed 2 were measured with {message}")
    assert str(trial.results("two", options.tests["two"])) in two.refusal
    assert f"Not compared: {two.refusal}." in found.markdown


def test_runs_of_other_training_images_are_refused(study):
    (test,) = study(options_of(), trained_on=lambda trial: "0123" if trial.title == "base, seed 1" else "ffee").tests
    assert "base, seed 0 and base, seed 1 were trained on different images" in test.refusal


def test_an_arm_may_have_training_images_of_its_own_by_its_overrides(study):
    options = options_of(arms=("base", "other"))
    (test,) = study(options, trained_on=lambda trial: "0123" if trial.arm == "other" else "ffee").tests
    assert test.compared
    assert "other is trained on images of its own (data.train)." in test.notes
    (test,) = study(options, trained_on=lambda trial: f"{trial.seed}").tests
    assert "were trained on different images" in test.refusal


def test_other_versions_and_missing_checkpoints_are_told_and_not_refused(study, tmp_path):
    versions = {"new, seed 0": {"torch": "3"}}
    (test,) = study(options_of(), lambda t: {"versions": versions.get(t.title, {"torch": "2"})}).tests
    assert test.compared
    assert "Measured with different versions of torch" in test.notes[0]
    for trial in arm_trials(options_of(seeds=[0]), tmp_path):
        trial.checkpoint.unlink()
    (test,) = report("mine", options_of(seeds=[0]), arm_trials(options_of(seeds=[0]), tmp_path), {}, tmp_path).tests
    assert test.compared
    assert "Training images unknown, as there is no checkpoint to read: base, seed 0; new, seed 0." in test.notes


def test_an_arm_is_not_judged_by_its_own_loss(study):
    found = study(options_of(arms=("base", "new", "l_ap")))
    (test,) = found.tests
    scores = test.groups[0].arms
    assert scores["l_ap"]["periodicity"].verdict == "own loss"
    assert scores["new"]["periodicity"].verdict != "own loss"
    assert "own loss" not in {score.verdict for name, score in scores["l_ap"].items() if name != "periodicity"}
    assert 'periodicity is itself a loss of l_ap: "own loss", shown and not judged.' in test.notes
    assert "An arm that trains on L_AP is judged by comb ratio and perceptual distance." in found.markdown
    other_way = study(options_of(arms=("l_ap", "new")))
    assert other_way.tests[0].groups[0].arms["new"]["periodicity"].verdict == "own loss", "the base arm's merit is none"


def test_own_losses_are_l_ap_and_lpips(tmp_path):
    assert own_losses(load_options(BASE)) == set()
    assert own_losses(load_options(BASE, L_AP)) == {"periodicity"}
    (tmp_path / "net.pth").touch()
    lpips = ["losses.lpips.weight=0.1", f"perceptual.backbone={tmp_path / 'net.pth'}"]
    assert own_losses(load_options(BASE, lpips)) == {"perceptual"}
    assert own_losses(load_options(BASE, [*L_AP, *lpips])) == {"perceptual", "periodicity"}


def test_a_run_whose_values_are_not_finite_is_left_out(study):
    def change(trial):
        made = evaluation(trial.arm, trial.seed)
        if trial.title == "new, seed 1":
            made["images"][2]["values"]["psnr_y"] = "nan"
        return {"images": made["images"]}

    found = study(options_of(), change)
    assert found.tests[0].groups[0].arms["new"]["psnr_y"].to_base.seeds == 2
    assert "psnr_y of c is nan: new, seed 1" in found.markdown


def test_images_that_are_too_small_for_a_metric_are_left_out_of_it(study):
    def change(trial):
        made = evaluation(trial.arm, trial.seed)
        for row in made["images"]:
            if row["image"] in ("a", "sky"):
                row["values"]["comb_16"] = None
        return {"images": made["images"]}

    photo, flat = study(options_of(), change).tests[0].groups
    expected = stats.gmean(np.median(stack("new")[:, 1:3, 2], 1))
    assert photo.arms["new"]["comb_16"].mean == pytest.approx(expected)
    assert "comb_16" not in flat.arms["new"]


def test_a_method_or_metric_that_was_not_measured_is_named(study):
    assert "method: rtksr is none of the evaluation's rows rt4ksr" in study(options_of(method="rtksr")).tests[0].refusal
    (test,) = study(options_of(metrics={"psnr": "higher"})).tests
    assert "metrics: psnr is none of psnr_y, perceptual" in test.refusal


def test_damaged_results_are_told(study, tmp_path):
    study(options_of())
    trial, *_ = trials = arm_trials(options_of(), tmp_path)
    (path,) = trial.folder.glob("study/*/results.json")
    for text in ('{"images": []}', "{", "[]"):
        path.write_text(text)
        (test,) = report("mine", options_of(), trials, {}, tmp_path).tests
        assert f"{path} holds no results" in test.lacking[trial]
        assert test.groups[0].arms["new"]["psnr_y"].to_base.seeds == 2


def test_the_report_says_what_the_arms_are_and_how_they_were_measured(study):
    text = study(options_of(look_at=["Does it pay?"], overrides=["data.crop=64"])).markdown
    for part in ("- `base`: the base", "- `new`: network.blocks=1", f"{BASE} with data.crop=64, row `rt4ksr`"):
        assert part in text
    assert "a, 2026-01-01, fp32. Scale 2. Border 2. Test images 00aa, training images ffee." in text
    assert "- Does it pay?" in text


def test_headings_digits_and_medians_are_the_evaluations():
    scores = {score.name: score for score in standard_metrics(PerceptualOptions(), 2, 32)}
    assert scores.keys() == HEADINGS.keys()
    for name, (heading, digits) in HEADINGS.items():
        assert scores[name].digits == digits
        assert scores[name].median == (name in RATIOS)
        assert name == "perceptual" or scores[name].heading == heading


def test_what_a_run_says_of_its_training(tiny_cnn_run, tmp_path):
    checkpoint = tiny_cnn_run / "checkpoints" / "last.ckpt"
    assert progress(checkpoint) == (2, 2)
    assert len(training_data(checkpoint)) == 32
    for other in (tiny_cnn_run / "options.yaml", tmp_path / "none.ckpt"):
        assert (progress(other), training_data(other)) == (None, "")
    assert trained_options(Trial("base", 0, tiny_cnn_run, ())).trainer.steps == 2
    assert trained_options(Trial("base", 0, tmp_path, ())) is None
    (tmp_path / "options.yaml").write_text("system: real_time_cnn\nlosses: {l3: 1}\n")
    with pytest.raises(ValueError, match=r"options\.yaml holds no options of this version: .*l3"):
        trained_options(Trial("base", 0, tmp_path, ()))


def test_trials_that_lack_are_grouped_by_their_reason(tmp_path):
    one, two, *_ = arm_trials(options_of(), tmp_path)
    assert lacking_by_reason({one: "why", two: "why"}) == {"why": "base, seed 0; new, seed 0"}
