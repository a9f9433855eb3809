"""The run report: one self-contained HTML file."""

from lmtraining_cli.report.content import Content
from lmtraining_cli.report.page import page

__all__ = ["Content", "page"]
