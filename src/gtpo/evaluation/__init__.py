"""Pass rates over problem files, with the same loop as training."""

from gtpo.evaluation.runner import EvalProtocol, EvalResult, evaluate

__all__ = ["EvalProtocol", "EvalResult", "evaluate"]
