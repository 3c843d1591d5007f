"""Final scores: a study's evaluations as scalars of the run itself, once."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from experiments.final_scores import final_scores_of, final_tags, table_overrides, write_final_scores
from experiments.options import from_yaml, load_options, to_yaml
from experiments.study_options import ParameterOptions, SearchOptions, StudyOptions, TestOptions


@pytest.fixture
def study():
    return StudyOptions(
        base="rt4ksr/s_x2_mini",
        arms={"base": [], "on": ["losses.high_frequency.weight=1"], "off": ["network.hf_branch=false", "seed=3"]},
        tests={"own": TestOptions(data="photographs"), "large": TestOptions(data="bundled_large", crop=256)},
        method="rt4ksr",
        metrics={"psnr_y": "higher", "comb_32": "lower"},
    )


def test_tags_follow_the_study_s_order(study):
    assert final_tags(study) == [
        "final/own/photo/psnr_y",
        "final/own/photo/comb_32",
        "final/large/photo/psnr_y",
        "final/large/photo/comb_32",
        "final/large/flat/psnr_y",
        "final/large/flat/comb_32",
    ]


def row(group, method, **values):
    return {"group": group, "method": method, "images": 1, "values": values}


def test_scores_are_the_method_s_rows_without_what_is_no_number(study):
    rows = [
        row("photo", "bicubic", psnr_y=20.0, comb_32=0.5),
        row("photo", "rt4ksr", psnr_y=30.0, comb_32=None, ssim_y=0.9),
        row("flat", "rt4ksr", psnr_y="inf", comb_32=1.5),
    ]
    found = final_scores_of({"rows": rows}, "large", study)
    assert found == {"final/large/photo/psnr_y": 30.0, "final/large/flat/comb_32": 1.5}
    assert found.keys() <= set(final_tags(study))


def scalars(run):
    events = EventAccumulator(str(run)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scores_stand_beside_the_training_s_scalars_and_are_written_once(tmp_path):
    with SummaryWriter(str(tmp_path)) as training:
        training.add_scalar("val/psnr_y", 29.0, 100)
    for _ in range(2):
        write_final_scores(tmp_path, {"final/a": 0.1, "final/b": 2.0}, 100)
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    assert scalars(tmp_path) == {
        "val/psnr_y": [(100, 29.0)],
        "final/a": [(100, pytest.approx(0.1))],
        "final/b": [(100, 2.0)],
    }
    write_final_scores(tmp_path, {"final/a": 0.2, "final/b": 2.0}, 100)
    assert [value for _, value in scalars(tmp_path)["final/a"]][-1] == pytest.approx(0.2)
    assert len(scalars(tmp_path)["final/b"]) == 1


def test_no_scores_leave_no_file(tmp_path):
    write_final_scores(tmp_path, {}, 1)
    assert not list(tmp_path.iterdir())


def test_overrides_give_every_run_the_same_columns(study):
    labels = [{"arm": "off", "seed": 0}, {"arm": "1e3", "seed": 1}]
    texts = [to_yaml(load_options(study.base, table_overrides(study, named))) for named in labels]
    tables = [from_yaml(text).table for text in texts]  # as a resumed run has them
    assert [table.labels for table in tables] == labels
    assert tables[0].columns == tables[1].columns == []
    assert tables[0].metrics == tables[1].metrics == final_tags(study)


def test_a_search_shows_its_values():
    study = StudyOptions(search=SearchOptions(space={"optimizer.learning_rate": ParameterOptions(1e-4, 1e-3)}))
    table = load_options("rt4ksr/s_x2_mini", table_overrides(study, {"arm": "trial000"})).table
    assert table.labels == {"arm": "trial000"}
    assert table.columns == ["optimizer.learning_rate"]
