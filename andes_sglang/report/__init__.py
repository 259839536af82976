"""Self-contained HTML pages (inline SVG, nothing fetched): what readers got under each policy, and plans.

``charts`` draws and needs no more than numpy; ``page`` fills the templates and needs Jinja (extra ``bench``).
"""

from andes_sglang.report.charts import COLOURS, Series, plot
from andes_sglang.report.page import Figure, render, render_page

__all__ = ["COLOURS", "Figure", "Series", "plot", "render", "render_page"]
