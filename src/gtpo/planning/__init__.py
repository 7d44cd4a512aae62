"""Estimates of a run's memory and time: `gtpo plan`. Formulas and assumptions are documented where they are used."""

from gtpo.planning.hardware import HARDWARE, Hardware
from gtpo.planning.plan import Plan, Workload, make_plan
from gtpo.planning.shape import ModelShape, shape_of

__all__ = ["HARDWARE", "Hardware", "ModelShape", "Plan", "Workload", "make_plan", "shape_of"]
