"""Convert a GGUF file to a standard model folder: `python prepare.py FOLDER FILE.gguf OUTPUT`. Needs gtpo[gguf]."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(folder: str, gguf_file: str, output: str) -> None:
    """Dequantize the weights to bfloat16 and save them with the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file).save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
