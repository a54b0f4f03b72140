"""The page's style sheet. Light and dark follow the reader's system; everything fits from 360 px up."""

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --quiet: #5b6570; --rule: #d9dee4;
  --panel: #f5f7f9; --main: #1f5fc4; --other: #9fb3cc; --second: #0f7f6b; --mark: #b3470b; --warn: #fff1dd;
  --warn-ink: #6b3a00; --bad: #fde4e2; --bad-ink: #8a1710; --run0: #1f5fc4; --run1: #b3470b; --run2: #0f7f6b;
  --run3: #7a3fb0; --run4: #b0245f; --run5: #6b6a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --quiet: #9aa5b1;
  --rule: #333b45; --panel: #1d232a; --main: #78aaff; --other: #50637c; --second: #4fc3ab; --mark: #ffa264;
  --warn: #3a2a10; --warn-ink: #ffd9a0; --bad: #42191a; --bad-ink: #ffb9b3; --run0: #78aaff; --run1: #ffa264;
  --run2: #4fc3ab; --run3: #c69bf5; --run4: #ff8fb8; --run5: #d3cf5a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p { margin: 8px 0; max-width: 75ch; }
.quiet, figcaption, .note { color: var(--quiet); }
figcaption, .note { font-size: .875rem; font-weight: 400; }
.banner { border-radius: 6px; padding: 10px 14px; margin: 14px 0; max-width: none; background: var(--warn);
  color: var(--warn-ink); }
.banner.bad { background: var(--bad); color: var(--bad-ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px;
  margin: 18px 0; }
.tiles div { background: var(--panel); border-radius: 6px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--quiet); font-size: .875rem; }
.charts, .beside { display: grid; gap: 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
section section { min-width: 0; }
h3 { font-size: 1rem; margin: 0 0 4px; }
section section h3 { margin-top: 20px; }
h4 { font-size: .9375rem; margin: 16px 0 2px; color: var(--quiet); }
.beside h3, .beside h4, figure h3 { margin-top: 0; }
.small { display: grid; gap: 16px; align-items: end; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); }
.notes { margin: 8px 0; padding-left: 20px; max-width: 75ch; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0; padding: 0;
  font-size: .875rem; }
.key li { display: flex; align-items: center; gap: 6px; min-width: 0; overflow-wrap: anywhere; }
svg.piece { width: 26px; height: 10px; flex: none; }
figure { margin: 0; min-width: 0; }
svg.chart { display: block; width: 100%; max-width: 560px; height: auto; }
svg text { font-size: 13px; fill: var(--ink); }
svg text.quiet { fill: var(--quiet); }
svg .halo, svg .marked { paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
svg .marked { fill: var(--mark); }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--quiet); }
svg .reference { stroke: var(--ink); stroke-dasharray: 5 4; }
svg .mark { stroke: var(--mark); stroke-width: 1.5; }
svg .curve, svg .band { color: var(--main); }
svg .curve path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .curve circle { fill: currentColor; }
svg .band path { fill: currentColor; fill-opacity: .16; }
svg .label { color: var(--other); }
svg .label path { stroke-width: 1.2; }
svg .second { color: var(--second); }
svg .second path { stroke-dasharray: 7 3; }
svg .run0 { color: var(--run0); } svg .run1 { color: var(--run1); } svg .run2 { color: var(--run2); }
svg .run3 { color: var(--run3); } svg .run4 { color: var(--run4); } svg .run5 { color: var(--run5); }
svg .dashed path { stroke-dasharray: 3 3; }
svg.bar { width: 130px; height: 10px; display: block; }
svg.bar rect { fill: var(--rule); }
svg.bar .fill { fill: var(--main); }
svg.bar line { stroke: var(--ink); }
svg .bars path { fill: var(--main); }
.thumbs { display: flex; flex-wrap: wrap; gap: 10px; }
.thumbs figure { display: flex; gap: 2px; flex-wrap: wrap; max-width: 262px; }
.thumbs figcaption { flex-basis: 100%; }
.thumbs img { width: 128px; height: 128px; background: #000; }
.thumbs .one { max-width: 128px; }
.wide { overflow-x: auto; }
.wide + .wide, section + .wide { margin-top: 14px; }
table { border-collapse: collapse; font-size: .9375rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-bottom: 1px solid var(--rule); }
table:has(th:nth-child(10)) :is(th, td) { padding-right: 9px; font-size: .8125rem; }
td.long { overflow-wrap: anywhere; min-width: 7em; }
th { font-weight: 600; }
thead th { vertical-align: bottom; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.source { min-width: 17em; }
td.source, td.why { color: var(--quiet); font-size: .875rem; }
td.bars { min-width: 140px; vertical-align: middle; }
tr.total th, tr.total td { font-weight: 600; }
details { margin-top: 10px; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--panel); border-radius: 6px; padding: 10px 14px; white-space: pre-wrap;
  font-size: .875rem; }
@media print { details::details-content { content-visibility: visible; height: auto; } }
@media (max-width: 560px) { td.bars, th.bars { display: none; } th, td { padding-right: 10px; } }
"""
