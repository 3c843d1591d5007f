"""A static page to look at: index.html and a folder of pictures, to be copied anywhere and opened without a network.

Whatever text comes in is escaped. Equal content gives equal bytes.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from datamodules.files import target_of, write_whole
from experiments.histogram import Histogram
from experiments.page_slider import SLIDER_SCRIPT, SLIDER_STYLE, Slider
from experiments.page_style import STYLE

PICTURES = "pictures"
INDEX = "index.html"
PICTURE_NAME = re.compile(r"[0-9a-f]{16}\.(jpg|png)")


@dataclass(frozen=True)
class Bar:
    """A count with its label; `kind` colours it (one of page_style's), `link` leads to an anchor of the page."""

    label: str
    count: int
    kind: str = "dropped"
    link: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of the page by its relative link, or without one a placeholder that shows `alt`.

    full_size: one pixel of it is one of the screen; other pictures fill the width they are given.
    """

    link: str
    width: int
    height: int
    alt: str
    label: str = ""
    full_size: bool = False

    def html(self) -> Markup:
        """A figure with its label below."""
        shown = Markup('<span class="missing">{}</span>').format(self.alt)
        if self.link:
            shown = Markup('<img src="{}" width="{}" height="{}" alt="{}" loading="lazy"{}>').format(
                self.link, self.width, self.height, self.alt, Markup(' class="full"') if self.full_size else ""
            )
        return shown if not self.label else Markup("<span>{}<small>{}</small></span>").format(shown, self.label)


@dataclass(frozen=True)
class Card:
    """Pictures that belong together, a title (a file's name) and lines of text below."""

    pictures: Sequence[Picture]
    title: str
    lines: Sequence[str] = ()


class Page:
    """A page that grows block by block, and is written at the end.

    folder: where index.html and its pictures go. Pictures are written as they come, under names made of their content,
    so that a page that is there already stays whole until `write` replaces it.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self.folder = folder
        self.title = title
        self._blocks: list[Markup] = []
        self._pictures: set[str] = set()
        self._sliders = False

    def heading(self, text: str, anchor: str = "", level: int = 2) -> None:
        """A heading, level 2 to 4; the text below it can be linked to by `#anchor`."""
        self._add('<h{1} id="{2}">{0}</h{1}>' if anchor else "<h{1}>{0}</h{1}>", text, level, anchor)

    def paragraph(self, text: str) -> None:
        """Plain text."""
        self._add("<p>{}</p>", text)

    def items(self, sentences: Sequence[str]) -> None:
        """A list of sentences."""
        self._add('<ul class="items">{}</ul>', _joined("<li>{}</li>", [(sentence,) for sentence in sentences]))

    def links(self, anchors: Mapping[str, str]) -> None:
        """Links to anchors of the page, by their text."""
        self._add("<nav>{}</nav>", _joined('<a href="#{1}">{0}</a>', anchors.items()))

    def facts(self, facts: Mapping[str, str]) -> None:
        """Key figures in large type, each by its name."""
        self._add('<dl class="facts">{}</dl>', _joined("<div><dt>{}</dt><dd>{}</dd></div>", facts.items()))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> None:
        """A table of text; with `numbers` all columns but the first are."""
        head = _joined("<th>{}</th>", [(cell,) for cell in header])
        body = _joined("<tr>{}</tr>", [(_joined("<td>{}</td>", [(cell,) for cell in row]),) for row in rows])
        kind = Markup(' class="numbers"') if numbers else Markup("")
        table = '<div class="scroll"><table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
        self._add(table, kind, head, body)

    def shares(self, bars: Sequence[Bar]) -> None:
        """One bar divided by the counts, with a legend."""
        total = max(sum(bar.count for bar in bars), 1)
        parts = _joined(
            '<span class="{}" style="flex-grow:{}"></span>', [(bar.kind, bar.count) for bar in bars if bar.count]
        )
        legend = _joined(
            '<li><i class="{}"></i>{}: <b>{:,}</b> ({:.1%})</li>',
            [(bar.kind, bar.label, bar.count, bar.count / total) for bar in bars],
        )
        self._add('<div class="shares" aria-hidden="true">{}</div><ul class="legend">{}</ul>', parts, legend)

    def bars(self, bars: Sequence[Bar], largest: int) -> None:
        """A bar per count; one of `largest` fills the width."""
        rows = []
        for bar in bars:
            label = Markup('<a href="#{}">{}</a>').format(bar.link, bar.label) if bar.link else bar.label
            rows.append((label, bar.kind, 100 * bar.count / max(largest, 1), bar.count))
        row = '<li><span>{}</span><span class="track"><i class="{}" style="width:{:.2f}%"></i></span><b>{:,}</b></li>'
        self._add('<ul class="bars">{}</ul>', _joined(row, rows))

    def histograms(self, histograms: Sequence[Histogram]) -> None:
        """Histograms side by side."""
        self._add('<div class="grid histograms">{}</div>', _joined("{}", [(each.html(),) for each in histograms]))

    def cards(self, cards: Sequence[Card]) -> None:
        """Pictures with captions in a grid; cards of several pictures are wider."""
        wide = any(len(card.pictures) > 1 for card in cards)
        figures = []
        for card in cards:
            lines = _joined("<span>{}</span>", [(line,) for line in card.lines if line])
            figures.append((_joined("{}", [(picture.html(),) for picture in card.pictures]), card.title, lines))
        figure = '<figure><div class="row">{}</div><figcaption><b>{}</b>{}</figcaption></figure>'
        self._add('<div class="grid {}">{}</div>', "wide" if wide else "", _joined(figure, figures))

    def strip(self, pictures: Sequence[Picture]) -> None:
        """Pictures of equal width in a row, which goes on below where the window ends."""
        self._add('<div class="strip">{}</div>', _joined("<figure>{}</figure>", [(each.html(),) for each in pictures]))

    def figures(self, pictures: Sequence[Picture]) -> None:
        """Drawings with text in them, as large as they are."""
        self._add('<div class="figures">{}</div>', _joined("{}", [(each.html(),) for each in pictures]))

    def slider(self, pictures: Mapping[str, Picture], left: str, right: str) -> None:
        """Two of some pictures of equal size, by name, on top of each other with a divide to drag."""
        self._add("{}", Slider({name: picture.html() for name, picture in pictures.items()}, left, right).html())
        self._sliders = True

    def picture(
        self, image: Image.Image, alt: str, quality: int = 80, label: str = "", full_size: bool = False
    ) -> Picture:
        """Write an image as JPEG; the same one twice is one file. Threads may call it at the same time."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0 if full_size else -1)
        return Picture(self._kept(buffer.getvalue(), "jpg"), image.width, image.height, alt, label, full_size)

    def lossless(self, image: Image.Image, alt: str, label: str = "") -> Picture:
        """Write an image as PNG, as `picture` does."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return Picture(self._kept(buffer.getvalue(), "png"), image.width, image.height, alt, label)

    def file(self, path: Path, alt: str, label: str = "") -> Picture:
        """Copy a PNG as it is; a placeholder where it cannot be read."""
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                return Picture(self._kept(path.read_bytes(), "png"), image.width, image.height, alt, label)
        except (OSError, SyntaxError):  # Pillow's own words for a damaged PNG
            return Picture("", 0, 0, alt, label)

    def _kept(self, data: bytes, suffix: str) -> str:
        """The link of a picture's file, which is written unless it is there."""
        name = f"{hashlib.blake2b(data, digest_size=8).hexdigest()}.{suffix}"
        if name not in self._pictures:
            (self.folder / PICTURES).mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / PICTURES / name, data)
            self._pictures.add(name)
        return f"{PICTURES}/{name}"

    def write(self) -> Path:
        """Put index.html in place, remove what an earlier page or a killed process left, and give index.html's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / INDEX
        write_whole(path, self.html().encode("utf-8", "replace"))
        for file in self.folder.glob(".*"):
            if target_of(file.name) == INDEX:
                file.unlink()
        for file in (self.folder / PICTURES).glob("*"):
            name = target_of(file.name) or file.name
            if PICTURE_NAME.fullmatch(name) and file.name not in self._pictures:
                file.unlink()
        return path

    def html(self) -> Markup:
        """The whole page."""
        style = STYLE + SLIDER_STYLE if self._sliders else STYLE
        script = Markup("\n<script>{}</script>").format(Markup(SLIDER_SCRIPT)) if self._sliders else Markup("")
        return Markup(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n{2}\n"
            "</main>{3}\n</body>\n</html>\n"
        ).format(self.title, Markup(style), Markup("\n").join(self._blocks), script)

    def _add(self, template: str, *values: object) -> None:
        self._blocks.append(Markup(template).format(*values))


def _joined(template: str, rows: Iterable[Sequence[object]]) -> Markup:
    return Markup("").join(Markup(template).format(*row) for row in rows)
