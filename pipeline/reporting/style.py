"""How the page looks: system letters, light and dark, wide and narrow, on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #22252a; --soft: #636973; --line: #dcd9d1; --box: #f3f1ec;
  --done: #2f7d5b; --wait: #b98a1f; --idle: #9aa0a8; --never: #8a6d9c; --bad: #b8433a; --pairs: #6b87a8;
  --shade: #0003; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #e4e2dd; --soft: #a0a5ad; --line: #363a40; --box: #1f2226;
  --done: #58b288; --wait: #d9ae4b; --idle: #6f757d; --never: #b394c6; --bad: #e27a70; --pairs: #7f9dc0;
  --shade: #000a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Helvetica Neue", sans-serif; overflow-wrap: anywhere; }
main { max-width: 70rem; margin: 0 auto; padding: 2.2rem 1.1rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 0.3rem; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3rem 0 0.5rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 650; margin: 1.6rem 0 0.3rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 44rem; }
.soft, footer { color: var(--soft); font-size: 0.9rem; }
.lead { font-size: 1.1rem; margin-top: 1.1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.7rem; margin: 1.4rem 0 0;
  padding: 0; }
.figures div { background: var(--box); border-radius: 0.5rem; padding: 0.7rem 0.9rem; }
.figures dt { color: var(--soft); font-size: 0.85rem; }
.figures dd { margin: 0; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures dd small { display: block; font-size: 0.85rem; color: var(--soft); }
.scroll { overflow: auto; margin: 0.6rem 0 1rem; border: 1px solid var(--line); border-radius: 0.5rem;
  background: linear-gradient(to left, var(--paper) 30%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 0.8rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--pairs); }
.tall { max-height: 30rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.7rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--box); border-top: 0; color: var(--soft); font-weight: 500;
  white-space: nowrap; overflow-wrap: normal; vertical-align: bottom; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.s { white-space: nowrap; }
td.m { min-width: 6rem; }
td.t { min-width: 13rem; white-space: pre-line; }
tfoot td { font-weight: 650; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0.4rem 1.4rem; }
.cards > div { min-width: 0; }
.cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.cards tbody tr:first-child td { border-top: 0; }
.cards td.n { width: 1%; }
.cards .scroll { margin-top: 0.3rem; }
.quoted { font-weight: 550; white-space: pre-line; margin: 0.5rem 0 0; }
bdi { unicode-bidi: isolate; }
ul.files { padding-left: 1.1rem; margin: 0.4rem 0 0.8rem; }
svg { display: block; overflow: visible; }
.bar { border-radius: 3px; overflow: hidden; margin: 0.25rem 0 0.7rem; }
.name { display: flex; justify-content: space-between; gap: 1rem; margin-top: 0.7rem; }
.name span:last-child { color: var(--soft); white-space: nowrap; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0; margin: 0.4rem 0 1rem; list-style: none;
  font-size: 0.9rem; color: var(--soft); }
.legend svg { display: inline-block; vertical-align: -1px; margin-right: 0.35rem; }
.done { fill: var(--done); } .wait { fill: var(--wait); } .idle { fill: var(--idle); } .never { fill: var(--never); }
.bad { fill: var(--bad); } .pairs { fill: var(--pairs); }
.unended { fill-opacity: 0.55; }
.axis, .grid { stroke: var(--line); } .mark { stroke: var(--bad); stroke-width: 2; stroke-opacity: 0.75; }
.tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.timeline { display: flex; gap: 0.5rem; margin: 0.8rem 0 1rem; }
.timeline .lanes { flex: none; } .timeline .plot { flex: 1 1 0; min-width: 0; }
footer { margin-top: 3rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
@media (max-width: 30rem) { main { padding-top: 1.4rem; } h1 { font-size: 1.4rem; } table { font-size: 0.84rem; }
  th, td { padding: 0.3rem 0.45rem; } thead th.n, thead th { white-space: normal; } td.t { min-width: 9rem; }
  .figures div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .figures { grid-template-columns: 1fr 1fr; } .figures dd { font-size: 1.2rem; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --box: #fff; } main { max-width: none; padding: 0; }
  body { font-size: 10pt; } .scroll { overflow: visible; max-height: none; } h2, h3 { break-after: avoid; }
  tr, .bar, .plot, .figures div { break-inside: avoid; } * { print-color-adjust: exact; } }
"""
