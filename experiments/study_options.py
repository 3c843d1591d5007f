"""The keys of a study's file below experiments/studies/, read and checked."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from datamodules.benchmarks import EMBEDDED
from experiments.options import FOLDER, OptionError

STUDIES = FOLDER / "studies"
DIRECTIONS = ("higher", "lower")
SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "median", "halving")


@dataclass
class TestOptions:
    """One evaluation of every run."""

    __test__ = False  # for pytest, which takes it for a test by its name

    data: str = "bundled"
    """Test set as DATA= of `make evaluate` takes it."""
    crop: int = 0
    """Side in px of the centre squares that are measured; 0: whole images."""
    overrides: list[str] = field(default_factory=list)
    """Overrides for this evaluation alone."""


@dataclass
class ParameterOptions:
    """What an option is searched over: a range, or choices."""

    low: float = 0.0
    """Least value of a range."""
    high: float = 0.0
    """Largest value of a range."""
    log: bool = False
    """Search the range by its logarithm."""
    integer: bool = False
    """Whole numbers alone."""
    choices: list[str] = field(default_factory=list)
    """Values in place of a range, as SET= takes them."""


@dataclass
class SearchOptions:
    """How `make sweep` looks for values."""

    space: dict[str, ParameterOptions] = field(default_factory=dict)
    """Ranges and choices by option, such as optimizer.learning_rate."""
    objective: dict[str, float] = field(default_factory=dict)
    """Weights of the validation's tags whose sum is optimised, such as {val/perceptual: 1}."""
    direction: str = "lower"
    """Whether the objective is better when it is higher or lower."""
    sampler: str = "tpe"
    """tpe or random."""
    pruner: str = "median"
    """What stops a weak trial early, at a validation: none, median, or halving (asynchronous successive halving)."""
    startup: int = 5
    """Trials that are drawn at random before TPE, and finished before the median prunes."""


@dataclass
class BudgetOptions:
    """What a study may cost, and what it is expected to."""

    trials: int = 20
    """Trials of a search; arms have one for each seed."""
    hours: float = 0.0
    """No trial starts later than so many hours after the command did; 0: no limit."""
    minutes_per_run: float = 0.0
    """Minutes that a run is known to take, on the machine that `minutes_on` names; 0: unknown until one is finished."""
    minutes_on: str = ""
    """That machine, in words."""


@dataclass
class StudyOptions:
    """The keys of a study's file."""

    base: str = MISSING
    """Experiment that all runs start from, as EXP= takes it."""
    overrides: list[str] = field(default_factory=list)
    """Overrides for all runs."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Overrides of each arm by its name; the first arm is the base arm that the others are compared with."""
    search: SearchOptions = field(default_factory=SearchOptions)
    """In place of arms: values to search for, by `make sweep`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds, the same in every arm, so that arms are compared seed by seed; a search takes the first."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    tests: dict[str, TestOptions] = field(default_factory=dict)
    """Evaluations of every finished run, by name; arms have at least the one on the bundled images."""
    method: str = MISSING
    """Row of the evaluation's table that the arms are compared by: student or rt4ksr."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Metrics of that row by their names in results.json, and whether higher or lower is better; psnr_y and perceptual
    where none is named."""
    look_at: list[str] = field(default_factory=list)
    """What to look at in the result, a sentence each; printed above the tables."""


@dataclass(frozen=True)
class Trial:
    """One run of a study; a search has trials in place of arms, all of one seed."""

    arm: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    """All that distinguishes it from the study's base experiment."""

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def log(self) -> Path:
        """Output of the trial's processes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def results(self, name: str, test: TestOptions) -> Path:
        """Folder of an evaluation's results.md, results.json and pictures/; other data or overrides: another folder."""
        data = test.data if test.data in EMBEDDED else str(Path(test.data).resolve())
        digest = hashlib.blake2b(repr((data, test.crop, list(test.overrides))).encode(), digest_size=4)
        return self.folder / "study" / f"{name}-{digest.hexdigest()}"


def read_study(study: str) -> tuple[str, StudyOptions]:
    """A study's name and options; OptionError says what is wrong with STUDY= or with the file."""
    path = next((p for p in (STUDIES / f"{study}.yaml", Path(study)) if p.suffix == ".yaml" and p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise OptionError(f"STUDY={study}: no such study; found {known}, or give a .yaml file")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyOptions), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, TypeError) as error:
        raise OptionError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, StudyOptions):
        raise OptionError(f"{path}: expected a mapping of a study's keys")
    # Not as defaults of their fields: OmegaConf merges mappings, and a file's own entries would stand beside them.
    if options.arms:
        options.tests = options.tests or {"bundled": TestOptions()}
        options.metrics = options.metrics or {"psnr_y": "higher", "perceptual": "lower"}
    return path.stem, options


def named_tests(data: list[str]) -> dict[str, TestOptions]:
    """Evaluations on test sets, each by its folder's name, numbered where another one has it.

    >>> list(named_tests(["bundled", "a/HR", "b/HR"]))
    ['bundled', 'HR', 'HR-2']
    """
    tests: dict[str, TestOptions] = {}
    for place in data:
        name = re.sub(r"[^A-Za-z0-9_.-]|^[_.-]+", "_", Path(place).resolve().name).lstrip("_.-") or "data"
        number = sum(re.sub(r"-\d+$", "", other) == name for other in tests)
        tests[f"{name}-{number + 1}" if number else name] = TestOptions(place)
    return tests


def default_folder(name: str, tiny: bool) -> Path:
    return Path("runs") / "studies" / f"{name}{'-tiny' if tiny else ''}"


def arm_trials(options: StudyOptions, runs: Path) -> list[Trial]:
    """All runs of a study with arms, seed by seed, so that an interrupted study has whole comparisons."""
    return [arm_trial(options, runs, arm, seed) for seed in options.seeds for arm in options.arms]


def arm_trial(options: StudyOptions, runs: Path, arm: str, seed: int) -> Trial:
    """The run of an arm and a seed in the study's folder."""
    return Trial(arm, seed, runs / arm / f"seed{seed}", (*options.overrides, *options.arms[arm]))
