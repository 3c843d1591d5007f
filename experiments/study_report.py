"""What a study has found: its evaluations, checked and compared, as data and as Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from experiments.options import OptionError
from experiments.schema import Experiment
from experiments.study_options import StudyOptions, TestOptions, Trial, read_study
from experiments.study_scores import (
    PERIODICITY,
    Group,
    Run,
    changing_rows,
    check_alike,
    own_losses,
    progress,
    read_run,
    scores_of,
    trained_options,
    unusable,
)
from experiments.study_tables import difference_table, heading, markdown_of, seeds_caption, value_table

HOW_TO_READ = (
    "Values are means over images and seeds; of comb ratios the median over images and the geometric mean over seeds. "
    "Differences to the base arm are paired by seed and image, and stand with Student's 95 % interval over the seeds, "
    "which speaks of another seed on these images, not of other images. Comb ratios are compared by their factor (x). "
    '"better" and "worse": the interval leaves out no difference, which one of twenty such intervals does by chance.'
)
L_AP_IS_JUDGED_BY = "An arm that trains on L_AP is judged by comb ratio and perceptual distance."


@dataclass(frozen=True)
class TestReport:
    """One test set of a study.

    base: the base arm; None in a search. metrics: by name, whether higher or lower is better. facts: machine, date,
    precision and protocol in words. refusal: why nothing was compared, else "". lacking: trials that are not in it, by
    reason. notes: sentences on what was compared.
    """

    __test__ = False  # for pytest, which takes it for a test by its name

    name: str
    test: TestOptions
    base: str | None
    metrics: Mapping[str, str]
    groups: Sequence[Group] = ()
    facts: str = ""
    refusal: str = ""
    lacking: Mapping[Trial, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def compared(self) -> bool:
        """Whether there is a value and, where there are several arms, a difference to the base arm."""
        scores = [score for group in self.groups for arm in group.arms.values() for score in arm.values()]
        alone = self.base is None or all(set(group.arms) <= {self.base} for group in self.groups)
        return any(score.to_base or alone for score in scores)


@dataclass(frozen=True)
class Report:
    """What a study has found, as Markdown and by test set."""

    markdown: str
    tests: Sequence[TestReport]


def report(
    name: str, options: StudyOptions, trials: Sequence[Trial], failures: Mapping[str, str], folder: Path
) -> Report:
    """What there is of a study's evaluations, compared; nothing is trained or measured here.

    failures: reasons of trials that have failed, by their title. folder: the study's. ValueError for runs of another
    version of this project.
    """
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    # a search has no base arm to be judged against, and may have hundreds of trials
    experiments = _experiments(trials) if options.arms else {}
    own = {arm: own_losses(experiments[arm]) if arm in experiments else set() for arm in arms}
    reason = _reasons(failures, command(name, options, folder))
    tests = [_test(test, options, trials, experiments, own, reason) for test in options.tests.items()]
    return Report(_markdown(name, options, tests), tests)


def _experiments(trials: Sequence[Trial]) -> dict[str, Experiment]:
    """By arm, what the first of its runs was trained with."""
    found: dict[str, Experiment] = {}
    for trial in trials:
        with suppress(ValueError):  # `_read` says so of each trial
            if trial.arm not in found and (experiment := trained_options(trial)) is not None:
                found[trial.arm] = experiment
    return found


def _test(
    named: tuple[str, TestOptions],
    options: StudyOptions,
    trials: Sequence[Trial],
    experiments: Mapping[str, Experiment],
    own: Mapping[str, set[str]],
    reason: Callable[[Trial], str],
) -> TestReport:
    """A test set, with a refusal in place of tables where its evaluations cannot be compared."""
    name, test = named
    base, metrics = next(iter(options.arms), None), dict(options.metrics)
    runs: list[Run] = []
    lacking: dict[Trial, str] = {}
    other_data = _with_other_data(experiments, base)
    try:
        for trial in trials:
            run = _read(trial, name, test, reason)
            why = run if isinstance(run, str) else unusable(run, options.method, metrics)
            if isinstance(run, str) or why:
                lacking[trial] = why
            else:
                runs.append(run)
        check_alike(runs, other_data)
        groups = scores_of(runs, list(own), base, options.method, metrics, own)
    except ValueError as error:
        return TestReport(name, test, base, metrics, refusal=str(error), lacking=lacking)
    used = {arm: own[arm] & metrics.keys() for arm in own}
    judged_by = any(PERIODICITY in each for each in own.values()) and PERIODICITY not in metrics
    notes = [
        *own_loss_sentences(used),
        *([L_AP_IS_JUDGED_BY] if judged_by else []),
        *_notes(runs, options.method, list(metrics), other_data),
    ]
    return TestReport(name, test, base, metrics, groups, _facts(runs), "", lacking, notes)


def _read(trial: Trial, name: str, test: TestOptions, reason: Callable[[Trial], str]) -> Run | str:
    """A trial's evaluation, or why there is none."""
    try:
        trained_options(trial)
        return read_run(trial, name, test) or reason(trial)
    except ValueError as error:
        return str(error)


def _with_other_data(experiments: Mapping[str, Experiment], base: str | None) -> list[str]:
    """Arms whose overrides name other training images than the base arm's."""
    first = experiments.get(base or "")
    return [arm for arm, e in experiments.items() if first is not None and e.data.train != first.data.train]


def _reasons(failures: Mapping[str, str], again: str) -> Callable[[Trial], str]:
    """Why a trial has no evaluation."""

    def reason(trial: Trial) -> str:
        if trial.title in failures:
            return f"failed: {failures[trial.title]}"
        if not trial.checkpoint.is_file():
            return "not trained yet"
        steps = progress(trial.checkpoint)
        if steps is None:
            return "its checkpoint cannot be read"
        if steps[0] < steps[1]:
            return f"trained for {steps[0]} of {steps[1]} steps"
        return f"trained, but not measured: {again} does so"

    return reason


def command(name: str, options: StudyOptions, folder: Path) -> str:
    """The command that runs what a study lacks."""
    try:
        given = read_study(name)[1].tests != options.tests
    except OptionError:  # a file elsewhere
        given = False
    standard = Path("runs") / "studies" / name
    tiny = folder == standard.with_name(f"{name}-tiny")
    parts = [f"make study STUDY={name}"]
    parts += ['DATA="' + " ".join(test.data for test in options.tests.values()) + '"'] if given else []
    parts += ["TINY=1"] if tiny else [f"OUT={folder}"] if folder != standard else []
    return f"`{' '.join(parts)}`"


def _facts(runs: Sequence[Run]) -> str:
    """Machine, date, precision and protocol, and the fingerprints of the images."""
    if not runs:
        return ""
    machines = " and ".join(dict.fromkeys(run.results["machine"] for run in runs))
    dates = sorted({run.results["date"] for run in runs})
    first = runs[0].results
    trained = " and ".join(dict.fromkeys(run.training_data for run in runs if run.training_data))
    images = f"Test images {first['data_fingerprint']}, training images {trained or 'unknown'}."
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{machines}, {when}, {first['precision']}. {first['protocol']} {images}"


def _notes(runs: Sequence[Run], method: str, metrics: Sequence[str], other_data: Iterable[str]) -> list[str]:
    if not runs:
        return []
    notes = []
    if differing := _differing_versions(runs):
        notes.append(
            f"Measured with different versions of {', '.join(differing)}: figures may differ in their last digits."
        )
    if changing := changing_rows(runs, method, metrics):
        notes.append(
            f"{' and '.join(changing)}: not the same in all runs; shown as measured with {runs[0].trial.title}."
        )
    if unknown := [run.trial.title for run in runs if not run.training_data]:
        notes.append(f"Training images unknown, as there is no checkpoint to read: {'; '.join(unknown)}.")
    notes += [f"{arm} is trained on images of its own (data.train)." for arm in other_data]
    return notes


def _differing_versions(runs: Sequence[Run]) -> list[str]:
    versions = [run.results["versions"] for run in runs]
    return [name for name in versions[0] if len({each.get(name) for each in versions}) > 1]


def own_loss_sentences(own: Mapping[str, set[str]]) -> list[str]:
    """Which metrics are losses of which arms, and what that means; nothing where there are none."""
    metrics = sorted({metric for metrics in own.values() for metric in metrics})
    sentences = []
    for metric in metrics:
        arms = ", ".join(arm for arm, metrics in own.items() if metric in metrics)
        sentences.append(f'{heading(metric)} is itself a loss of {arms}: "own loss", shown and not judged.')
    return [*sentences, L_AP_IS_JUDGED_BY] if PERIODICITY in metrics else sentences


def _markdown(name: str, options: StudyOptions, tests: Sequence[TestReport]) -> str:
    """The report, its blocks apart by an empty line."""
    of_arms = [f"- `{arm}`: {' '.join(overrides) or 'the base'}" for arm, overrides in options.arms.items()]
    common = " ".join(options.overrides)
    blocks = [f"# Study `{name}`", f"{options.base}{f' with {common}' if common else ''}, row `{options.method}`."]
    blocks += ["\n".join(of_arms)] if of_arms else []
    blocks += ["What to look at:\n\n" + "\n".join(f"- {each}" for each in options.look_at)] if options.look_at else []
    blocks += [HOW_TO_READ] if tests else []
    for test in tests:
        blocks += _test_blocks(test)
    return "\n\n".join(blocks) + "\n"


def _test_blocks(test: TestReport) -> list[str]:
    blocks = [f"## Test set {test.name}"]
    if test.refusal:
        blocks.append(f"Not compared: {test.refusal}.")
    blocks += [test.facts] if test.facts else []
    for group in test.groups:
        blocks.append(markdown_of(value_table(group, test.metrics)))
        differences = difference_table(group, test.metrics, test.base) if test.base else None
        if differences and test.base:
            blocks += [f"Paired with {test.base}, {seeds_caption(group)}:", markdown_of(differences)]
        elif test.base:
            blocks.append(f"Not compared with {test.base}: {seeds_caption(group)}.")
    blocks += test.notes
    missing = [f"- {why}: {who}" for why, who in lacking_by_reason(test.lacking).items()]
    return [*blocks, "Not in this comparison:\n\n" + "\n".join(missing)] if missing else blocks


def lacking_by_reason(lacking: Mapping[Trial, str]) -> dict[str, str]:
    """By the reason, arms and seeds that are missing, in words."""
    found: dict[str, dict[str, list[int]]] = {}
    for trial, why in lacking.items():
        found.setdefault(why, {}).setdefault(trial.arm, []).append(trial.seed)
    return {
        why: "; ".join(
            f"{arm}, seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}" for arm, seeds in arms.items()
        )
        for why, arms in found.items()
    }
