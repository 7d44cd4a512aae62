"""Where tokens come from: token ids in; token ids, log-probabilities and a finish reason out."""

from gtpo.rollout.backends.base import Backend, Generation
from gtpo.rollout.backends.transformers import TransformersBackend

__all__ = ["Backend", "Generation", "TransformersBackend"]
