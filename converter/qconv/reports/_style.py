"""The style sheet of the page: light and dark, from the width of a phone to that of paper."""

from __future__ import annotations

from ._markup import Markup

#: A table as cards, a row each, for windows too narrow for it: a name, then its figures in as many
#: columns as there is room for.
_CARDS = """
@media (max-width: WIDTH) {
  TABLE thead { display: none; }
  TABLE tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
    gap: 0 2.5rem; border-bottom: 1px solid var(--rule); padding: .5rem 0; }
  TABLE tbody th { grid-column: 1 / -1; font-size: 1rem; border: 0; padding: .1rem 0; }
  TABLE td, TABLE .n + td:not(.n) { display: flex; justify-content: space-between; gap: 1rem;
    border: 0; padding: .1rem 0; text-align: right; white-space: normal; }
  TABLE td::before { content: attr(data-label); color: var(--quiet); text-align: left; flex: none;
    max-width: 45%; }
}
"""

#: No font, picture or script from anywhere. Colours of series keep apart for the colour-blind
#: (after Okabe and Ito, https://jfly.uni-koeln.de/color/), darker or lighter as the ground asks.
_SHEET = """
:root { color-scheme: light dark;
  --ground: #fff; --raised: #f6f7f9; --text: #1a1d21; --quiet: #5b636e; --rule: #d9dde3;
  --link: #0b5cad; --pass: #17713a; --warn: #8a5a00; --fail: #b3261e; --unmeasured: #515b6b;
  --mark: #ffe08a; --mark-text: #1a1d21;
  --s0: #0072b2; --s1: #c65200; --s2: #007a5a; --s3: #a8478a; --s4: #8c7000; --s5: #3d9bd1;
  --s6: #6a4fb3; --s7: #555;
  --h0: #e3eef8; --h1: #bcd7ee; --h2: #86b7dd; --h3: #4a90c4; --h4: #1f66a0; --h5: #0a3d6b; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --raised: #1d2126; --text: #e6e8eb; --quiet: #9aa4b0; --rule: #343b44;
  --link: #79b8ff; --pass: #5fce8a; --warn: #e5b454; --fail: #ff8a80; --unmeasured: #a9b4c4;
  --mark: #6b5300; --mark-text: #fff3cf;
  --s0: #56b4e9; --s1: #ff9a4d; --s2: #35c79a; --s3: #e594c6; --s4: #e6cf4a; --s5: #b5dcff;
  --s6: #b59cff; --s7: #bbb;
  --h0: #1b2a38; --h1: #1e4260; --h2: #22618f; --h3: #3a88bd; --h4: #77b5df; --h5: #cfe6f7; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--ground);
  color: var(--text); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 3rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; } h4 { font-size: .95rem; margin: 1rem 0 .3rem; }
p { margin: .5rem 0; max-width: 44rem; } a { color: var(--link); }
.quiet, figcaption, footer { color: var(--quiet); } .small, figcaption { font-size: .875rem; }
code, pre, .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  font-size: .9em; }
pre { background: var(--raised); padding: .75rem; border-radius: .4rem; white-space: pre-wrap;
  margin: .5rem 0; }
.verdict { border: 1px solid; border-left-width: .4rem; border-radius: .4rem; padding: .8rem 1rem;
  margin: 1.25rem 0; background: var(--raised); }
.verdict strong { font-size: 1.15rem; } .verdict p { color: var(--text); }
.verdict ul { margin: .4rem 0 0; padding-left: 1.1rem; color: var(--text); }
.status { font-weight: 600; white-space: nowrap; }
.pass { color: var(--pass); } .warn { color: var(--warn); } .fail { color: var(--fail); }
.unmeasured { color: var(--unmeasured); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: .5rem 0;
  font-size: .92rem; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; font-size: .85rem; }
thead th { vertical-align: bottom; } tbody th { color: inherit; font-size: inherit; }
.meaning { display: block; font-weight: 400; font-size: .85rem; }
.n { text-align: right; white-space: nowrap; }
.n + td:not(.n), .n + th:not(.n) { padding-left: .8rem; }
td:last-child, th:last-child { padding-right: 0; }
figure { margin: 1rem 0; min-width: 0; } figcaption { margin-top: .3rem; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem 2rem; align-items: start; }
svg text { font: 10.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  fill: var(--text); }
svg text.axis { fill: var(--quiet); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .front { fill: none; stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 3 3; }
svg .curve { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .dot { fill: var(--c); stroke: var(--ground); stroke-width: 1; }
svg .part { fill: var(--c); } svg .range { stroke: var(--text); stroke-width: 1.4; }
svg .measured { fill: var(--text); stroke: var(--ground); stroke-width: 1; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
.h0 { fill: var(--h0); --c: var(--h0); } .h1 { fill: var(--h1); --c: var(--h1); }
.h2 { fill: var(--h2); --c: var(--h2); } .h3 { fill: var(--h3); --c: var(--h3); }
.h4 { fill: var(--h4); --c: var(--h4); } .h5 { fill: var(--h5); --c: var(--h5); }
.exact { fill: none; stroke: var(--rule); --c: transparent; }
.broken { fill: var(--fail); --c: var(--fail); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0;
  margin: .4rem 0; font-size: .875rem; }
.named { display: flex; align-items: baseline; }
.chip { flex: none; display: inline-block; width: .8em; height: .8em; border-radius: .2em;
  margin-right: .4em; background: var(--c); border: 1px solid var(--rule); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem;
  margin: .5rem 0; font-size: .92rem; }
dt { color: var(--quiet); } dd { margin: 0; min-width: 0; }
.texts { display: grid; gap: .75rem; margin: .5rem 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.texts > div { background: var(--raised); border-radius: .4rem; padding: .6rem .8rem;
  min-width: 0; }
.texts p { white-space: pre-wrap; margin: .3rem 0 0; }
mark { background: var(--mark); color: var(--mark-text); border-radius: .15em; }
summary { cursor: pointer; color: var(--link); margin: .5rem 0; }
footer { margin-top: 4rem; border-top: 1px solid var(--rule); padding-top: .75rem; }
@media (max-width: 44rem) {
  h1 { font-size: 1.4rem; } svg text { font-size: 11.5px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
@media print { body { max-width: none; } h2, h3, figure, tr { break-inside: avoid; } }
"""

STYLE = Markup(
    _SHEET
    + _CARDS.replace("TABLE", ".wide").replace("WIDTH", "71rem")
    + _CARDS.replace("TABLE", ".cards").replace("WIDTH", "48rem")
)
