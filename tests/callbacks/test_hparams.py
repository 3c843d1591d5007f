import math
import types

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context, get_experiment, list_session_groups, metadata
from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest, ListSessionGroupsRequest, Status
from torch.utils.tensorboard import SummaryWriter

from callbacks.hparams import LogHyperparameters, flatten, has_row

OPTIONS = {"student": {"theta": 100, "axes": [16, 56], "rfr": True}, "seed": 7, "preset": "omgsr", "ema": None}


def hparams_tab(folder):
    """What the HParams plugin of a TensorBoard pointed at `folder` answers: its columns and its rows."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    flags = types.SimpleNamespace(generic_data="true", samples_per_plugin={})
    context = backend_context.Context(TBContext(data_provider=provider, flags=flags))
    ask = GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(RequestContext(), context, "", ask).run()
    statuses = [Status.STATUS_UNKNOWN, Status.STATUS_RUNNING, Status.STATUS_SUCCESS, Status.STATUS_FAILURE]
    ask_rows = ListSessionGroupsRequest(allowed_statuses=statuses, slice_size=10, include_metrics=True)
    return experiment, list_session_groups.Handler(RequestContext(), context, "", ask_rows).run().session_groups


def count_rows(folder):
    files = folder.glob("events.out.tfevents.*")
    events = (event for path in files for event in EventFileLoader(str(path)).Load())
    return sum(value.tag == metadata.SESSION_START_INFO_TAG for event in events for value in event.summary.value)


def test_the_tab_has_one_filled_row(student, data, trainer_with, tmp_path):
    trainer = trainer_with(LogHyperparameters(OPTIONS, ["val/psnr"]))
    trainer.fit(student, data)
    experiment, rows = hparams_tab(tmp_path)
    assert {info.name for info in experiment.hparam_infos} == set(flatten(OPTIONS))
    assert [info.name.tag for info in experiment.metric_infos] == ["val/psnr"]
    assert len(rows) == 1
    values = rows[0].hparams
    assert values["student.theta"].number_value == 100
    assert values["student.rfr"].bool_value is True
    assert values["student.axes"].string_value == "[16, 56]"
    assert values["preset"].string_value == "omgsr"
    metric = rows[0].metric_values[0]
    assert metric.name.tag == "val/psnr"
    assert math.isclose(metric.value, trainer.callback_metrics["val/psnr"].item(), rel_tol=1e-6)


def test_two_runs_are_two_rows_and_a_resumed_one_stays_one(new_student, data, trainer_with, tmp_path):
    callback = LogHyperparameters(OPTIONS, ["val/psnr"])
    trainer = trainer_with(callback)
    trainer.fit(new_student(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = trainer_with(LogHyperparameters(OPTIONS, ["val/psnr"]), max_steps=12)
    resumed.fit(new_student(), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert count_rows(tmp_path / "run") == 1
    _, rows = hparams_tab(tmp_path)
    assert [len(row.sessions) for row in rows] == [1]
    assert math.isclose(rows[0].metric_values[0].value, resumed.callback_metrics["val/psnr"].item(), rel_tol=1e-6)

    other = TensorBoardLogger(tmp_path, name="", version="other", default_hp_metric=False)
    trainer_with(callback, logger=other).fit(new_student(), data)
    _, rows = hparams_tab(tmp_path)
    assert {row.sessions[0].name for row in rows} == {"run", "other"}
    assert all(len(row.metric_values) == 1 for row in rows)


def test_scalars_are_not_touched(student, data, trainer_with, tmp_path):
    trainer_with(LogHyperparameters(OPTIONS, ["val/psnr"])).fit(student, data)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [5]
    assert "hp_metric" not in events.Tags()["scalars"]


def test_a_metric_that_nothing_logs_is_named(student, data, trainer_with):
    with pytest.warns(UserWarning, match=r"\['val/lpips'\].*val/psnr"):
        trainer_with(LogHyperparameters(OPTIONS, ["val/psnr", "val/lpips"])).fit(student, data)


def test_labels_and_columns_are_the_row_and_a_final_tag_is_filled_later(student, data, trainer_with, tmp_path, recwarn):
    labels, final = {"arm": "rfr", "run": 3}, ["final/b", "final/a"]
    trainer = trainer_with(LogHyperparameters(OPTIONS, ["val/psnr"], labels, ["student.theta", "preset"], final))
    trainer.fit(student, data)
    assert not [warning for warning in recwarn if "HParams metrics" in str(warning.message)]
    with SummaryWriter(trainer.logger.log_dir, filename_suffix=".final") as later:
        later.add_scalar("final/a", 0.25, 10)
    experiment, (row,) = hparams_tab(tmp_path)
    assert [info.name for info in experiment.hparam_infos] == ["arm", "run", "preset", "student.theta"], "labels first"
    assert row.hparams["arm"].string_value == "rfr"
    assert row.hparams["run"].number_value == 3
    assert row.hparams["student.theta"].number_value == 100
    assert [info.name.tag for info in experiment.metric_infos] == ["final/b", "final/a", "val/psnr"]
    values = {value.name.tag: value.value for value in row.metric_values}
    assert values.keys() == {"final/a", "val/psnr"}
    assert values["final/a"] == 0.25
    text = EventAccumulator(str(tmp_path / "run")).Reload().Tensors("options/text_summary")[0]
    assert b"student.axes=[16, 56]" in text.tensor_proto.string_val[0]


def test_a_column_that_is_no_option_is_an_error():
    with pytest.raises(ValueError, match=r"table.columns: student.thta is no option"):
        LogHyperparameters(OPTIONS, ["val/psnr"], {"arm": "a"}, ["student.thta"])


@pytest.mark.parametrize("metrics", [[], "val/psnr"])
def test_no_metrics_is_an_error(metrics):
    with pytest.raises(ValueError, match="list of validation tags"):
        LogHyperparameters(OPTIONS, metrics)


def test_a_missing_folder_has_no_row(tmp_path):
    assert not has_row(tmp_path / "nowhere")
