"""Where tokens come from: token ids in; sampled token ids and their log-probabilities out."""

from gtpo.rollout.backends.base import Backend, Generation, GenerationSession, Request
from gtpo.rollout.backends.openai import OpenAIBackend
from gtpo.rollout.backends.pool import BackendPool
from gtpo.rollout.backends.transformers import TransformersBackend
from gtpo.rollout.backends.vllm import VLLMBackend

__all__ = [
    "Backend",
    "BackendPool",
    "Generation",
    "GenerationSession",
    "OpenAIBackend",
    "Request",
    "TransformersBackend",
    "VLLMBackend",
]
