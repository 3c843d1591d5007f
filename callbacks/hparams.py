"""One filled row per run in TensorBoard's HParams tab."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

Value = bool | float | str


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested options to dotted keys and the value types of the HParams tab; what is no number or bool becomes text.

    >>> flatten({"student": {"theta": 100, "axes": [16, 56]}, "ema": None})
    {'student.theta': 100, 'student.axes': '[16, 56]', 'ema': 'None'}
    """
    flat: dict[str, Value] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def experiment_summary(hparams: Mapping[str, Value], metrics: Sequence[str], first: Sequence[str] = ()) -> Summary:
    """The summary that declares the tab's columns: hyper-parameters with their types, and metrics by scalar tag.

    The tab shows five of each at once: metrics in their order, hyper-parameters by name, but those in `first` before.
    """
    # `differs` is what TensorBoard sorts by before the name
    columns = [HParamInfo(name=key, type=_type(value), differs=key in first) for key, value in hparams.items()]
    infos = [MetricInfo(name=MetricName(tag=tag)) for tag in metrics]
    data = HParamsPluginData(experiment=Experiment(hparam_infos=columns, metric_infos=infos))
    return _summary(metadata.EXPERIMENT_TAG, data)


def session_summary(hparams: Mapping[str, Value]) -> Summary:
    """The summary that holds this run's hyper-parameters, one row of the tab."""
    session = SessionStartInfo()
    for key, value in hparams.items():
        if isinstance(value, bool):
            session.hparams[key].bool_value = value
        elif isinstance(value, str):
            session.hparams[key].string_value = value
        else:
            session.hparams[key].number_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session))


def _type(value: Value) -> int:
    if isinstance(value, bool):
        return DataType.DATA_TYPE_BOOL
    return DataType.DATA_TYPE_STRING if isinstance(value, str) else DataType.DATA_TYPE_FLOAT64


def _summary(tag: str, data: HParamsPluginData) -> Summary:
    data.version = metadata.PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    # TensorBoard lists a series only if it has a value; the content itself travels in the metadata.
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def has_row(log_dir: Path) -> bool:
    """Whether an event file in `log_dir` holds a row of the HParams tab (False where the folder does not exist)."""
    return any(
        value.tag == metadata.SESSION_START_INFO_TAG
        for path in sorted(log_dir.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


class LogHyperparameters(Callback):
    """Logs hyper-parameters once per run folder, with the tags whose latest values fill the row.

    hparams: options, nested or flat. metrics: the very tags that the module logs in validation, such as "val/psnr_y":
    TensorBoard fills a metric's cell from the last scalar of that tag in the run's folder (metric keys that no scalar
    carries leave the tab empty, Lightning issue 8175). labels: names of the run, such as its arm and seed. Where there
    are any, they and the options in `columns` are the row, and the metrics stand behind `final`, the tags of what is
    logged after the training: the tab has room for little more. TensorBoard takes the columns of all runs from one of
    them, so runs that are looked at together want the same ones. All options stand in the text tab.

    A resumed run in the same folder adds no second row. Warns once, after the first validation, if a metric was not
    logged. Raises ValueError without metrics, and for a column that is no option.
    """

    def __init__(
        self,
        hparams: dict[str, Any],
        metrics: Sequence[str],
        labels: Mapping[str, Value] | None = None,
        columns: Sequence[str] = (),
        final: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not metrics or isinstance(metrics, str):
            raise ValueError(f"metrics is {metrics!r}, expected a list of validation tags such as ['val/psnr_y']")
        self.hparams = flatten(hparams)
        self.metrics = tuple(metrics)
        self.labels = dict(labels or {})
        self.columns = tuple(columns)
        self.final = tuple(final)
        self._checked = False
        if unknown := [key for key in columns if key not in self.hparams]:
            raise ValueError(f"table.columns: {unknown[0]} is no option")

    @property
    def row(self) -> dict[str, Value]:
        """The labels and the options that the row shows."""
        if not self.labels:
            return self.hparams
        return {**{key: self.hparams[key] for key in self.columns}, **self.labels}

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not has_row(Path(logger.log_dir)):
                file_writer = logger.experiment._get_file_writer()
                file_writer.add_summary(experiment_summary(self.row, (*self.final, *self.metrics), tuple(self.labels)))
                file_writer.add_summary(session_summary(self.row))
                logger.experiment.add_text(
                    "options", "\n".join(f"    {key}={self.hparams[key]}" for key in self.hparams)
                )
                logger.experiment.flush()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._checked:
            return
        self._checked = True
        missing = [tag for tag in self.metrics if tag not in trainer.callback_metrics]
        if missing:
            rank_zero_warn(f"no value for the HParams metrics {missing}; logged are {sorted(trainer.callback_metrics)}")
