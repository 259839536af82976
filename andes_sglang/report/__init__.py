"""Self-contained HTML pages (inline SVG, nothing fetched): what readers got under each policy, and plans.

``charts`` and ``distribution`` draw and need no more than numpy; ``page`` fills the templates and needs Jinja (extra
``bench``).
"""

from andes_sglang.report.charts import COLOURS, Bar, Series, bars, plot, standalone
from andes_sglang.report.page import Figure, colours_of, figures, made_by, render, render_page

__all__ = [
    "COLOURS", "Bar", "Figure", "Series", "bars", "colours_of", "figures", "made_by", "plot", "render", "render_page",
    "standalone",
]  # fmt: skip
