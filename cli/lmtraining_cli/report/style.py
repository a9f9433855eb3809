"""How a report looks: system fonts, two colour schemes, one column on a phone."""

ACCOUNT_COLOURS = {
    "productive": "#2e9e5b", "startup": "#3d7fd9", "compile": "#6b6bd6", "data_wait": "#d9a03d",
    "checkpoint": "#b05bd6", "replayed_steps": "#d9483d", "recovery": "#e8743b",
    "evaluation": "#35a9b8", "stopped": "#8a8f98", "other": "#b9bec7",
}  # fmt: skip

_BASE = """
:root{--ink:#1d2330;--soft:#5b6472;--paper:#fff;--card:#f6f7f9;--line:#dfe3e8;--a:#2563c9;
--b:#d9630b;--band:#2563c92e;--bad:#c62f2f;--good:#1f8a4c;--warn:#a86b00}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa4b2;--paper:#14171c;
--card:#1c2128;--line:#303743;--a:#6ea8ff;--b:#ffa04d;--band:#6ea8ff33;--bad:#ff7b72;--good:#57c785;--warn:#e3b341}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:0 0 8px}
footer{color:var(--soft);text-align:center;padding:16px;font-size:.85rem}
section{margin:24px 0}
.state{font-size:1rem;padding:2px 10px;border-radius:10px;background:var(--card);color:var(--a)}
.state.Completed,.state.Training{color:var(--good)}.state.Failed,.state.Diverged{color:var(--bad)}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
.tiles div{background:var(--card);padding:8px 14px;border-radius:8px}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;font-weight:600}
.missing{border-left:4px solid var(--warn);padding:8px 14px;background:var(--card)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
figure{margin:0;background:var(--card);border-radius:8px;padding:10px}
figure:first-child{grid-column:1/-1}
figcaption{font-weight:600;margin-bottom:4px}
svg{width:100%;height:auto;display:block}
.grid{stroke:var(--line)}.tick,.unit{fill:var(--soft);font-size:11px}
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
polyline.line-0{stroke:var(--a)}polyline.line-1{stroke:var(--b)}
circle.line-0{fill:var(--a)}circle.line-1{fill:var(--b)}
.band{fill:var(--band);stroke:none}
.baseline{stroke:var(--soft);stroke-dasharray:4 4}
.mark{stroke:var(--soft);stroke-dasharray:2 3}
.mark.Skip,.mark.Rewind,.mark.Rerun{stroke:var(--bad)}.mark.Round{stroke:var(--warn)}
.key{font-weight:400;font-size:.8rem;color:var(--soft);margin-right:8px;white-space:nowrap}
.key::before{content:"";display:inline-block;width:12px;height:8px;margin-right:4px;
background:currentColor}
.key.line-0::before{background:var(--a)}.key.line-1::before{background:var(--b)}
.key.Skip::before,.key.Rewind::before,.key.Rerun::before{background:var(--bad)}
.key.Round::before{background:var(--warn)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500}
pre{background:var(--card);padding:12px;border-radius:8px;overflow-x:auto;font-size:.85rem}
@media (max-width:600px){.tick,.unit{font-size:18px}}
@media print{body{font-size:11px}main{max-width:none;padding:0}figure,section{break-inside:avoid}
.charts{grid-template-columns:1fr 1fr}pre{white-space:pre-wrap}}
"""

_ACCOUNTS = "".join(
    f"rect.{name}{{fill:{colour}}}.key.{name}::before{{background:{colour}}}"
    for name, colour in ACCOUNT_COLOURS.items()
)

STYLE = _BASE.replace("\n", "") + _ACCOUNTS
