# gtpo for machines with NVIDIA GPUs: docs/releasing.md, "The container image".
#
# The base image has no CUDA: torch's wheels install the CUDA libraries that they were built for, in versions that torch pins.
# The machine needs NVIDIA's driver and container toolkit. vLLM is not included, because it pins another torch version: run
# its server from its own image and pass its URL with --vllm_server_base_url.
ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/workspace/.cache/huggingface

WORKDIR /opt/gtpo

# Install torch in its own layer first: it is the largest and changes least.
COPY requirements/pins.txt requirements/pins.txt
RUN pip install --constraint requirements/pins.txt "$(grep '^torch==' requirements/pins.txt)"
RUN pip install --requirement requirements/pins.txt

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps . \
    && useradd --create-home --uid 1000 gtpo \
    && mkdir /workspace \
    && chown gtpo:gtpo /workspace

USER 1000
WORKDIR /workspace
ENTRYPOINT ["gtpo"]
CMD ["doctor"]
