"""Pass rates over problem files, with the same loop as training."""

from gtpo.evaluation.runner import EvalProtocol, EvalResult, evaluate, save_traces

__all__ = ["EvalProtocol", "EvalResult", "evaluate", "save_traces"]
