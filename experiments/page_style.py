"""The look of the pages: light or dark by the reader's setting, colours that colour-blind people can tell apart."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1c1c1a; --soft: #5c5c57; --line: #dcdcd6;
  --kept: #0072b2; --dropped: #d55e00; --dropped-dark: #943b00; --dropped-light: #ee9a5c; --link: #00588a; }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --card: #222220; --ink: #ecece6; --soft: #aaaaa2;
  --line: #3c3c38; --kept: #56b4e9; --dropped: #f0803c; --dropped-dark: #ad4f17; --dropped-light: #f7bd94;
  --link: #8ccbf2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; line-height: 1.3; margin: 2rem 0 .3rem; }
h4 { font-size: .95rem; font-weight: 500; line-height: 1.3; margin: 1rem 0 .3rem; }
p { margin: 0 0 1rem; max-width: 75ch; color: var(--soft); }
.items { margin: .4rem 0 1rem; padding-left: 1.2rem; } .items li { max-width: 75ch; margin-bottom: .3rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0 0 1.2rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.6rem; margin: 0 0 1.2rem; }
.facts dt { color: var(--soft); font-size: .9rem; }
.facts dd { margin: 0; font-size: 1.9rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; }
.kept { background: var(--kept); } .dropped { background: var(--dropped); }
.dropped-dark { background: var(--dropped-dark); } .dropped-light { background: var(--dropped-light); }
.shares { display: flex; gap: 2px; height: 2.2rem; border-radius: 6px; overflow: hidden; background: var(--line); }
.shares span { flex-basis: 0; min-width: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; list-style: none; margin: .5rem 0 0; padding: 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
.bars { list-style: none; margin: .4rem 0 0; padding: 0; }
.bars li { display: grid; grid-template-columns: 12rem 1fr 5rem; gap: .2rem 1rem; align-items: center; }
.bars b { text-align: right; font-variant-numeric: tabular-nums; }
.track { height: .95rem; background: var(--line); border-radius: 3px; overflow: hidden; }
.track i { display: block; height: 100%; min-width: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; unicode-bidi: isolate; }
th { color: var(--soft); font-weight: 500; }
table.numbers { margin: 0 0 1.2rem; }
.numbers tr > :first-child { position: sticky; left: 0; min-width: 9rem; background: var(--page); }
.numbers th:not(:first-child), .numbers td:not(:first-child) { padding: .35rem 0 .35rem 1.4rem; text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 1.2rem; }
.figures img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 590px), 1fr)); }
.grid.histograms { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure .row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; }
figure .row > * { flex: 1 1 240px; min-width: 0; }
figure img { display: block; width: 100%; height: auto; aspect-ratio: 3 / 2; object-fit: contain; border-radius: 4px; }
figure img.full, .row > span:has(img.full) { flex: 0 0 auto; width: auto; max-width: 100%; aspect-ratio: auto; }
.row small { display: block; color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
.strip { display: grid; gap: .8rem 2rem; grid-template-columns: repeat(auto-fill, min(100%, 288px));
  margin: .4rem 0 1rem; }
.strip figure { padding: 0; border: 0; background: none; }
.strip figure img { aspect-ratio: auto; }
.strip small, .strip figcaption { display: block; margin-top: .2rem; color: var(--soft); font-size: .86rem;
  line-height: 1.35; overflow-wrap: anywhere; unicode-bidi: isolate; }
.missing { display: grid; place-items: center; min-height: 120px; padding: .5rem; border: 1px dashed var(--soft);
  border-radius: 4px; color: var(--soft); font-size: .85rem; text-align: center; overflow-wrap: anywhere; }
figcaption { margin-top: .5rem; font-size: .86rem; line-height: 1.4; }
figcaption > * { display: block; overflow-wrap: anywhere; unicode-bidi: isolate; }
figcaption span { color: var(--soft); }
figure svg { display: block; width: 100%; height: auto; font: 11px system-ui, "Segoe UI", sans-serif; }
svg text { fill: var(--soft); } svg .kept { fill: var(--kept); } svg .dropped { fill: var(--dropped); }
svg .axis { stroke: var(--soft); } svg .bound { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .note { fill: var(--ink); }
@media (max-width: 620px) { main { padding: 1rem .9rem 3rem; } figure { padding: .5rem; }
  .strip { gap: .6rem; grid-template-columns: 1fr 1fr; }
  .grid { gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 150px), 1fr)); }
  figure .row > * { flex-basis: 140px; }
  .bars li { grid-template-columns: 1fr auto; margin-bottom: .35rem; }
  .bars .track { grid-column: 1 / -1; grid-row: 2; }
  .facts dd { font-size: 1.5rem; } }
"""
