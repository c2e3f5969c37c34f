# The environment of scripts/setup.sh as an image: scripts/build_images.sh builds it, for a CPU or for NVIDIA GPUs.
# One base serves both: the CUDA lock brings CUDA's libraries as wheels, and the driver comes from the host.
FROM python:3.11-slim-bookworm

ARG DEVICE=cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TML_TORCH_INDEX

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    TML_DEVICE=$DEVICE \
    TML_VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# g++: the CPU kernels are compiled for the processor that runs them (common/native/compiler.py).
# git: a model card names the commit it was trained from, also when the checkout that is mounted over /app belongs to somebody else.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /app

RUN useradd --create-home --uid 1000 tml \
    && install --directory --owner tml --group tml /app /opt/venv
USER tml
WORKDIR /app

COPY --chown=tml requirements requirements
COPY --chown=tml scripts/lib.sh scripts/setup.sh scripts/
# Compiled here, because whoever runs the image cannot write there; a few packages ship files that do not compile.
RUN scripts/setup.sh packages \
    && { python -m compileall -q -j 0 /opt/venv >/dev/null || true; }

COPY --chown=tml . .
RUN scripts/setup.sh

CMD ["bash"]
