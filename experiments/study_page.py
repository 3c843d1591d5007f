"""The page of a study: its tables and figures, and the outputs of all arms side by side, with their spectra."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from experiments.page import Page
from experiments.result_pictures import SIDE, plain_name
from experiments.study_options import StudyOptions, Trial
from experiments.study_report import HOW_TO_READ, Report, TestReport, lacking_by_reason
from experiments.study_tables import difference_table, seeds_caption, value_table
from experiments.study_views import (
    HR,
    PART,
    PART_CONTRAST,
    PART_ENLARGED,
    SMALLEST,
    ImageViews,
    View,
    autocorrelation_map,
    enlarged,
    flat_part,
    is_even,
    shown_trials,
    spectrum,
    views_of,
    with_contrast,
)

FOLDER = "report"
MOST_ARMS = 12
MOST_IMAGES = 12
"""Most arms and images of a test set that are shown; a search may have many more."""
HOW_TO_LOOK = (
    "Drag the divide, or move it with the arrow keys; the two outputs are chosen above a picture, for all images at "
    f"once. Pictures are lossless, the middle of the image, at most {SIDE} px per side; comb ratios are of all of it.",
    f"The flat part is {PART} x {PART} px, chosen in hr, {PART_ENLARGED} times enlarged; where hr is even there, once "
    f"more with its contrast {PART_CONTRAST} times raised.",
    "Spectra are logarithmic, from -100 to -20 dB, the zero frequency in the middle: a grid of 32 px shows as dots "
    "1/32 of the side apart. Autocorrelation maps reach lags of 96 px, red for positive, full colour at 0.25: a grid "
    "of 32 px shows as red dots 1/6 of the side apart. The ranges are the same everywhere.",
)


def write_page(
    name: str,
    options: StudyOptions,
    trials: Sequence[Trial],
    report: Report,
    figures: Sequence[Path],
    folder: Path,
) -> Path:
    """Write folder/report/index.html and folder/report/pictures/, and give index.html's path.

    trials: all of the study. figures: PNG files of save_figures. An output without a picture gets a placeholder. Equal
    content gives equal bytes.
    """
    page = _StudyPage(Page(folder / FOLDER, f"Study {name}"), options, trials)
    page.overview(report)
    for test in report.tests:
        names = {plain_name(f"{test.name}-{metric}") for metric in test.metrics}
        page.test(test, [path for path in figures if path.stem in names])
    return page.page.write()


class _StudyPage:
    """The page's sections."""

    def __init__(self, page: Page, options: StudyOptions, trials: Sequence[Trial]) -> None:
        self.page = page
        self.options = options
        self.trials = trials

    def overview(self, report: Report) -> None:
        """What the study asks, its arms, and how its results are to be read."""
        arms, seeds = {trial.arm for trial in self.trials}, {trial.seed for trial in self.trials}
        measured = [t for t in self.trials if all(t not in test.lacking for test in report.tests)]
        runs = f"{len(measured)} of {len(self.trials)}"
        self.page.facts({"arms": str(len(arms)), "seeds": str(len(seeds)), "runs measured": runs})
        self.page.links({f"Test set {test.name}": _anchor(test) for test in report.tests})
        if self.options.look_at:
            self.page.heading("What to look at")
            self.page.items(self.options.look_at)
        self._arms()
        self.page.heading("How to read it")
        for paragraph in (HOW_TO_READ, *HOW_TO_LOOK):
            self.page.paragraph(paragraph)

    def _arms(self) -> None:
        """The arms with their overrides; those of a search are its trials."""
        overrides = {t.arm: self.options.arms.get(t.arm, t.overrides) for t in self.trials}
        start = self.options.base + (f" with {' '.join(self.options.overrides)}" if self.options.overrides else "")
        against = f", with the arm {next(iter(self.options.arms))}" if self.options.arms else ""
        self.page.heading("Arms")
        self.page.paragraph(f"All start from {start}; compared by the row {self.options.method}{against}.")
        self.page.table(["arm", "overrides"], [(arm, " ".join(own) or "none") for arm, own in overrides.items()])

    def test(self, test: TestReport, figures: Sequence[Path]) -> None:
        """Tables, figures and images of a test set."""
        self.page.heading(f"Test set {test.name}", _anchor(test))
        shown = shown_trials(self.trials, test.name, test.test)
        images = views_of(shown[:MOST_ARMS], test.name, test.test, self.options.method)
        chosen = images[:: -(-len(images) // MOST_IMAGES)] if images else []
        self.page.links({views.image: _image_anchor(test, views) for views in chosen})
        self._tables(test)
        if figures:
            self.page.figures([self.page.file(path, f"figure of {path.stem}") for path in figures])
        if not images:
            self.page.paragraph("No run is measured on it yet.")
            return
        self.page.heading(f"Outputs on {test.name}", level=3)
        self.page.paragraph(self._which(shown, len(chosen), len(images)))
        for views in chosen:
            self._image(test, views)

    def _tables(self, test: TestReport) -> None:
        if test.refusal:
            self.page.paragraph(f"Not compared: {test.refusal}.")
        for group in test.groups:
            self.page.table(*value_table(group, test.metrics), numbers=True)
            differences = difference_table(group, test.metrics, test.base) if test.base else None
            if differences:
                self.page.paragraph(f"Paired with {test.base}, {seeds_caption(group)}:")
                self.page.table(*differences, numbers=True)
        missing = [f"{who}: {why}." for why, who in lacking_by_reason(test.lacking).items()]
        for sentence in filter(None, [*test.notes, *missing, test.facts]):
            self.page.paragraph(sentence)

    def _which(self, shown: Sequence[Trial], images: int, of_images: int) -> str:
        seeds = dict.fromkeys(trial.seed for trial in shown)
        if len(seeds) == 1:
            said = f"Outputs of seed {shown[0].seed}."
        else:
            said = f"Outputs of {'; '.join(trial.title for trial in shown)}: no seed is finished in every arm."
        said += f" The first {MOST_ARMS} of {len(shown)} arms." if len(shown) > MOST_ARMS else ""
        said += f" {images} of {of_images} images, spread over the test set." if images < of_images else ""
        return said

    def _image(self, test: TestReport, views: ImageViews) -> None:
        """The slider over an image's outputs, the flattest part of each, and their maps."""
        self.page.heading(f"{views.image} ({views.group})", _image_anchor(test, views), level=3)
        shown = {view.name: self.page.file(view.path, f"{views.image} by {view.name}") for view in views.all}
        left = views.arms[0].name if views.arms else ""
        right = views.arms[-1].name if len(views.arms) > 1 else HR
        self.page.slider(shown, left, right)
        found = {view: view.read() for view in views.all}
        pixels = {view: image for view, image in found.items() if image is not None and min(image.size) >= SMALLEST}
        if not pixels:
            return
        of_hr = next((image for view, image in pixels.items() if view.name == HR), next(iter(pixels.values())))
        place = flat_part(of_hr)
        self._strip(views, "flat part", pixels, lambda image: enlarged(image.crop(place)))
        if is_even(of_hr.crop(place)):
            self._strip(views, "contrast raised", pixels, lambda image: enlarged(with_contrast(image.crop(place))))
        self._strip(views, "spectrum", pixels, spectrum)
        self._strip(views, "autocorrelation", pixels, autocorrelation_map)

    def _strip(
        self,
        views: ImageViews,
        what: str,
        pixels: dict[View, Image.Image],
        draw: Callable[[Image.Image], Image.Image],
    ) -> None:
        """The same drawing of every output."""
        pictures = [
            self.page.lossless(draw(image), f"{what} of {views.image} by {view.name}", view.label)
            for view, image in pixels.items()
        ]
        self.page.heading(what.capitalize(), level=4)
        self.page.strip(pictures)


def _anchor(test: TestReport) -> str:
    return plain_name(f"test-{test.name}")


def _image_anchor(test: TestReport, views: ImageViews) -> str:
    return plain_name(f"{_anchor(test)}-{views.group}-{views.image}")
