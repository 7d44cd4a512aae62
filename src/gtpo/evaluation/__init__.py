"""Evaluation of models on problems, with the same loop as training."""

from gtpo.evaluation.compare import Comparison, compare
from gtpo.evaluation.result import EvalProtocol, EvalResult, Figures, load_result, protocol_of
from gtpo.evaluation.runner import evaluate

__all__ = ["Comparison", "EvalProtocol", "EvalResult", "Figures", "compare", "evaluate", "load_result", "protocol_of"]
