"""Web pages: one look for every report, each a single file that loads nothing and works without a network.

    Page("Check of shapes", [Section("Classes", [Table(("class", "boxes"), [("disc", 12)])])]).to_html()

A page consists of the blocks in `page.py`; `page.html` is the template of all of them, `page.css` the style and
`page.js` what sorts tables, enlarges and filters pictures. `heat.js` shows maps over a picture, `chart.py` draws
lines, `bars.py` bars, and `curves.js` training curves to explore.
To add a kind of block, add a class and a branch of the template.
"""

from modeling_detr.pages.bars import Bar, Bars
from modeling_detr.pages.chart import Chart, Line
from modeling_detr.pages.curves import CurvePanel, Curves, CurveTable
from modeling_detr.pages.page import (
    Block,
    Code,
    Fact,
    Figure,
    Figures,
    Heat,
    HeatObject,
    Live,
    Page,
    Section,
    Table,
    Text,
)


__all__ = [
    "Bar",
    "Bars",
    "Block",
    "Chart",
    "Code",
    "CurvePanel",
    "CurveTable",
    "Curves",
    "Fact",
    "Figure",
    "Figures",
    "Heat",
    "HeatObject",
    "Line",
    "Live",
    "Page",
    "Section",
    "Table",
    "Text",
]
