"""The credit inspector: a run turn by turn, as one HTML page, a live page for a running one, and data frames.

`load` is for notebooks; `write_page` and `serve` are behind `gtpo report`.
"""

from gtpo.report.frames import RunFrames, load
from gtpo.report.page import write_page
from gtpo.report.server import serve

__all__ = ["RunFrames", "load", "serve", "write_page"]
