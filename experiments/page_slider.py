"""Two of several pictures on top of each other with a divide to drag, for a static page (ours)."""

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

ENLARGED = 2
"""How much larger than its pixels a picture is shown at most; a narrow or low window shows it smaller."""


@dataclass(frozen=True)
class Slider:
    """Pictures of equal size by name, <img> each, of which the reader chooses two; at first `left` and `right`.

    Without JavaScript all pictures are shown side by side. A choice holds for all sliders of the page that have it.
    """

    pictures: Mapping[str, Markup]
    left: str
    right: str

    def html(self) -> Markup:
        """The pictures, which `SLIDER_SCRIPT` turns into a slider."""
        figures = Markup("").join(
            Markup('<figure data-name="{}">{}<figcaption>{}</figcaption></figure>').format(name, picture, name)
            for name, picture in self.pictures.items()
        )
        return Markup(
            '<div class="slider" data-left="{}" data-right="{}" data-enlarged="{}"><div class="strip">{}</div></div>'
        ).format(self.left, self.right, ENLARGED, figures)


SLIDER_STYLE = """
.slider { margin: .6rem 0 1.2rem; }
.slider .strip[hidden] { display: none; }
.slider .choice { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; margin-bottom: .5rem; color: var(--soft); }
.slider select { font: inherit; max-width: 70vw; padding: .15rem .3rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; }
.slider .frame { position: relative; overflow: hidden; border-radius: 6px; --at: 50%; }
.slider .frame:has(input:focus-visible) { outline: 3px solid var(--link); outline-offset: 2px; }
.slider .frame img { display: block; width: 100%; height: auto; aspect-ratio: auto; border-radius: 0; }
.slider .frame img + img { position: absolute; inset: 0; height: 100%; clip-path: inset(0 0 0 var(--at)); }
.slider .divide { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.slider .divide::after { content: ""; position: absolute; top: 50%; left: -12px; width: 26px; height: 26px;
  margin-top: -13px; border: 2px solid #fff; border-radius: 50%; background: #0006; box-shadow: 0 0 3px #000; }
.slider .frame span { position: absolute; bottom: 0; max-width: 46%; padding: .1rem .5rem; color: #fff;
  background: #000a; font-size: .85rem; overflow-wrap: anywhere; pointer-events: none; }
.slider .frame span.left { left: 0; border-top-right-radius: 6px; }
.slider .frame span.right { right: 0; border-top-left-radius: 6px; }
.slider input { position: absolute; inset: 0 -1px; width: calc(100% + 2px); height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; touch-action: pan-y; appearance: none; }
.slider input::-webkit-slider-thumb { appearance: none; width: 2px; height: 100%; }
.slider input::-moz-range-thumb { width: 2px; height: 100%; border: 0; }
"""

SLIDER_SCRIPT = """
(function () {
  "use strict";
  var sliders = [];
  function add(parent, tag, name) {
    var element = parent.appendChild(document.createElement(tag));
    if (name) { element.className = name; }
    return element;
  }
  function build(slider) {
    var images = {}, sides = {}, all = slider.querySelector(".strip");
    all.querySelectorAll("figure").forEach(function (figure) {
      var image = figure.querySelector("img");
      if (image) { images[figure.dataset.name] = image; }
    });
    var names = Object.keys(images);
    if (names.length < 2) { return; }
    var choice = add(slider, "div", "choice"), frame = add(slider, "div", "frame");
    var width = images[names[0]].getAttribute("width"), height = images[names[0]].getAttribute("height");
    frame.style.maxWidth = "min(" + slider.dataset.enlarged * width + "px, " + 85 * width / height + "vh)";
    ["left", "right"].forEach(function (side) {
      var label = add(choice, "label");
      label.textContent = side + " ";
      sides[side] = { select: add(label, "select"), image: add(frame, "img") };
      names.forEach(function (name) { add(sides[side].select, "option").textContent = name; });
      sides[side].select.addEventListener("change", function () {
        sliders.forEach(function (show) { show(side, names[sides[side].select.selectedIndex]); });
      });
    });
    ["left", "right"].forEach(function (side) { sides[side].name = add(frame, "span", side); });
    add(frame, "i", "divide");
    var range = add(frame, "input");
    range.type = "range";
    range.step = "0.5";
    range.setAttribute("aria-label", "divide between the left and the right picture");
    range.addEventListener("input", function () { frame.style.setProperty("--at", range.value + "%"); });
    function show(side, name) {
      var found = names.indexOf(name);
      if (found < 0) { return; }
      sides[side].select.selectedIndex = found;
      sides[side].name.textContent = name;
      ["src", "width", "height", "alt"].forEach(function (key) {
        sides[side].image.setAttribute(key, images[name].getAttribute(key));
      });
    }
    show("left", names[0]);
    show("right", names[names.length - 1]);
    show("left", slider.dataset.left);
    show("right", slider.dataset.right);
    all.hidden = true;
    sliders.push(show);
  }
  document.querySelectorAll(".slider").forEach(build);
})();
"""
