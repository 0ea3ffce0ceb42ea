# Causerie in a container: CPU by default, the default checkpoint baked in, any other by mount.
#
#   docker build -t causerie .
#   docker run --rm -p 127.0.0.1:8000:8000 causerie
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/my_model:/model:ro" causerie --checkpoint /model
#
# CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t causerie:cuda .
# Behind a closed door, on a read-only root: deploy/docker/README.md.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
# A compiler for the kernel, and `strip`, which saves 98 MB. They stay in this stage: the image has neither.
RUN { command -v cc && command -v strip; } \
    || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
WORKDIR /app
RUN python3 -m venv /venv
# torch alone first: the layer that takes minutes changes only with the version.
RUN /venv/bin/pip install --no-compile ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch==2.13.0"
# The packages around empty sources, so that a change of the sources makes neither this layer nor /venv anew.
# Editable: the sources stay in /app beside checkpoints/, as in a checkout.
COPY pyproject.toml deploy/docker/slim.py ./
RUN mkdir llm server clients \
    && touch README.md LICENSE causerie.py llm/__init__.py server/__init__.py clients/__init__.py \
    && /venv/bin/pip install --no-compile --editable . \
    && python3 slim.py /venv && rm slim.py
COPY README.md LICENSE causerie.py ./
COPY llm llm
COPY server server
COPY clients clients
COPY checkpoints/causette checkpoints/causette
COPY deploy/docker/healthcheck.py deploy/docker/import_all.py ./
RUN chmod -R a+rX /app
# The kernel for every CPU it knows; which one the server takes, it chooses at its start. Elsewhere torch computes.
RUN test "$(uname -m)" != x86_64 || /venv/bin/causerie build-kernel --isa all
# What is left must do: here every module is imported and the server answers over HTTP. On the way Python compiles
# what it imports into /pyc, and that is all the bytecode the image holds: a start on a read-only root compiles
# nothing, and nothing idle is kept.
RUN mkdir /pyc && export PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=/pyc \
    && /venv/bin/causerie bench --spawn --streams 1 --requests 1 --rounds 1 \
    && /venv/bin/python import_all.py llm server && rm import_all.py

FROM ${BASE}
COPY --from=build /venv /venv
COPY --from=build /pyc /pyc
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=/pyc \
    CAUSERIE_HOST=0.0.0.0 CAUSERIE_PORT=8000 CAUSERIE_CHECKPOINT=/app/checkpoints/causette
# A number: Kubernetes' runAsNonRoot reads no names. It needs no home and no line in /etc/passwd.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python3", "-S", "/app/healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["causerie", "serve"]
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Causerie" \
      org.opencontainers.image.description="OpenAI's API for your own SFT checkpoint" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
