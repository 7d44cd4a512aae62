"""Studies: several variants of a training run, each with several seeds, evaluated in the same way and compared."""

from gtpo.lab.study.plan import Cell, Study, read_study
from gtpo.lab.study.report import write_report
from gtpo.lab.study.runner import run_cells

__all__ = ["Cell", "Study", "read_study", "run_cells", "write_report"]
