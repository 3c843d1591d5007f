"""The scalars that another process writes to TensorBoard's event files, as they come."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


class ScalarTail:
    """What has been logged in a run's folder under some tags; it reads on from where it was at each `read`."""

    def __init__(self, folder: Path, tags: Iterable[str]) -> None:
        self.folder = folder
        self.values: dict[str, dict[int, float]] = {tag: {} for tag in tags}
        self._loaders: dict[Path, EventFileLoader] = {}

    def read(self) -> dict[str, dict[int, float]]:
        """The values so far by tag and step, of a step logged twice the later one."""
        for path in sorted(self.folder.glob("events.out.tfevents.*")) if self.values else []:
            loader = self._loaders.setdefault(path, EventFileLoader(str(path)))
            for event in loader.Load():
                for value in event.summary.value:
                    if value.tag in self.values:
                        self.values[value.tag][event.step] = float(tensor_util.make_ndarray(value.tensor))
        return self.values

    def weighted(self, weights: Mapping[str, float]) -> dict[int, float]:
        """By step, the sum of weight times value, of the steps at which every tag was logged."""
        values = self.read()
        steps = sorted(set.intersection(*(set(values[tag]) for tag in weights))) if weights else []
        return {step: sum(weight * values[tag][step] for tag, weight in weights.items()) for step in steps}
