"""Colours and style sheet of the page. Each colour has a light and a dark form; figures follow the page."""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "muted": "#59636e",
    "faint": "#d1d9e0",
    "wash": "#f6f8fa",
    "accent": "#0969da",
    "alert": "#cf222e",
    "good": "#1a7f37",
    "series-1": "#1f6feb",
    "series-2": "#bc4c00",
    "series-3": "#116329",
    "series-4": "#8250df",
    "series-5": "#bf3989",
    "series-6": "#0e7c86",
    "series-7": "#7d4e00",
    "series-8": "#a40e26",
    "scale-1": "#6ece58",
    "scale-2": "#37b878",
    "scale-3": "#1f9e89",
    "scale-4": "#25838e",
    "scale-5": "#31688e",
    "scale-6": "#3e4a89",
    "scale-7": "#482878",
    "scale-8": "#440154",
}
"""Token -> colour. Figures are drawn in these; no two may be equal."""

DARK = {
    "paper": "#0d1117",
    "ink": "#e6edf3",
    "muted": "#9198a1",
    "faint": "#3d444d",
    "wash": "#151b23",
    "accent": "#4493f8",
    "alert": "#f85149",
    "good": "#3fb950",
    "series-1": "#58a6ff",
    "series-2": "#ffa657",
    "series-3": "#56d364",
    "series-4": "#d2a8ff",
    "series-5": "#ff9bce",
    "series-6": "#39c5cf",
    "series-7": "#e3b341",
    "series-8": "#ff7b72",
    "scale-1": "#3b528b",
    "scale-2": "#2e6e8e",
    "scale-3": "#24878e",
    "scale-4": "#1fa187",
    "scale-5": "#3aba76",
    "scale-6": "#73d056",
    "scale-7": "#b8de29",
    "scale-8": "#fde725",
}

SERIES = [name for name in LIGHT if name.startswith("series-")]
SCALE = [name for name in LIGHT if name.startswith("scale-")]
"""Viridis in steps that look equally large: the further along, the more a colour stands out from the page."""


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS custom properties."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def style_sheet() -> str:
    """The whole style sheet."""
    return (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}\n"
        f"@media print{{:root{{color-scheme:light;{variables(LIGHT)}}}}}\n{_RULES}"
    )


_RULES = """\
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.3rem;line-height:1.25;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--faint)}
h1,h2,.tile dt{overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
p{margin:.5rem 0 .75rem;max-width:48rem}
a{color:var(--accent)}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--wash);border:1px solid var(--faint);border-radius:.5rem;padding:.7rem .9rem;margin:.75rem 0;
 max-width:60rem;white-space:pre-wrap;overflow-wrap:anywhere}
.note,figcaption,caption,.sub{color:var(--muted);font-size:.86rem}
.lead{font-size:1.15rem;line-height:1.45;max-width:54rem;margin:1rem 0 .5rem}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;list-style:none;margin:1rem 0 0;padding:.6rem 0;font-size:.92rem}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.25rem 0;padding:0}
.tile{background:var(--wash);border:1px solid var(--faint);border-radius:.5rem;padding:.7rem .9rem}
.tile dt{color:var(--muted);font-size:.82rem}
.tile dd{margin:0;font-size:1.45rem;font-weight:600;line-height:1.3;overflow-wrap:anywhere}
.tile dd.sub{font-size:.82rem;font-weight:400}
.verdict{border-left:4px solid var(--good);background:var(--wash);border-radius:0 .4rem .4rem 0;padding:.6rem .9rem;
 margin:1rem 0;max-width:60rem}
.verdict.warn{border-color:var(--alert)}
.verdict p{margin:.2rem 0;max-width:none}
.scroll{overflow-x:auto;margin:.75rem 0 1rem;outline-offset:2px}
.tall{max-height:30rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:max-content}
caption{text-align:left;padding:0 0 .5rem;max-width:min(48rem,calc(100vw - 2.5rem));
 white-space:normal;position:sticky;left:0}
th,td{padding:.38rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--faint);white-space:nowrap}
thead th{border-bottom:2px solid var(--faint);vertical-align:bottom;font-weight:600;background:var(--paper);
 white-space:normal;max-width:7rem;overflow-wrap:break-word}
th .unit,.range{display:block;white-space:normal;font-weight:400;color:var(--muted);font-size:.8rem}
.tall thead th{position:sticky;top:0;z-index:2}
tbody th{text-align:left;font-weight:600;position:sticky;left:0;background:var(--paper);z-index:1;
 min-width:8rem;max-width:15rem;white-space:normal;overflow-wrap:anywhere}
bdi[title]{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden}
thead th:first-child{text-align:left;position:sticky;left:0;z-index:3}
td.text,th.text{text-align:left;white-space:normal;min-width:9rem;max-width:34rem;overflow-wrap:anywhere}
td.narrow{max-width:26rem}
tbody.baselines th,tbody.baselines td{color:var(--muted);font-weight:400}
tbody tr.group th{position:static;max-width:none;font-size:.8rem;font-weight:400;color:var(--muted);padding-top:.9rem}
tr.served th{box-shadow:inset 3px 0 var(--accent)}
tr.dominated td,tr.dominated th{color:var(--muted)}
td.change{background:color-mix(in srgb,var(--tint) calc(var(--share)*1%),transparent)}
.badge{display:inline-block;font-size:.74rem;font-weight:500;line-height:1.35;border:1px solid currentColor;
 border-radius:1rem;padding:0 .5rem;color:var(--muted);white-space:nowrap}
.badge.on{color:var(--accent)}
.bar{display:inline-block;width:7rem;height:.65rem;background:var(--wash);border:1px solid var(--faint);
 border-radius:.2rem;overflow:hidden;margin-left:.5rem}
.bar i{display:block;height:100%;background:var(--accent)}
figure{margin:1rem 0 1.5rem;min-width:0}
figcaption{max-width:48rem;margin-top:.35rem}
figure .canvas{overflow-x:auto}
figure svg{display:block;max-width:100%;height:auto}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:0 1.5rem;align-items:start}
.certificate{border:1px solid var(--faint);border-radius:.5rem;padding:.5rem 1.25rem 1rem;background:var(--wash)}
.certificate dt{font-weight:600;margin-top:.8rem}
.certificate dd{margin:.15rem 0 0;overflow-wrap:anywhere;max-width:56rem}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.92rem}
footer{padding:2rem 1.25rem 3rem;color:var(--muted);font-size:.86rem}
@media (max-width:40rem){
 h1{font-size:1.4rem}.lead{font-size:1.05rem}
 tbody th{min-width:6.5rem;max-width:9rem}
}
@media print{.scroll,.tall,figure .canvas{overflow:visible;max-height:none}nav{display:none}h2{break-after:avoid}
 figure,tr{break-inside:avoid}}
"""
