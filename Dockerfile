# Causerie in a container: CPU by default, the default checkpoint baked in, any other by mount.
#
#   docker build -t causerie .
#   docker run --rm -p 8000:8000 causerie
#   docker run --rm -p 8000:8000 -v "$PWD/my_model:/model:ro" causerie --checkpoint /model
#
# CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t causerie:cuda .
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
# torch alone first: the layer that takes minutes changes only with the version.
RUN /venv/bin/pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch==2.13.0"
COPY pyproject.toml README.md LICENSE causerie.py ./
COPY llm llm
COPY server server
COPY clients clients
# Editable: the sources stay in /app beside checkpoints/, as in a checkout.
RUN /venv/bin/pip install --editable .

FROM ${BASE}
RUN useradd --system --uid 10001 --no-create-home causerie
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY checkpoints/causette /app/checkpoints/causette
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CAUSERIE_HOST=0.0.0.0 CAUSERIE_PORT=8000 CAUSERIE_CHECKPOINT=/app/checkpoints/causette
USER causerie
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['CAUSERIE_PORT']}/health\", timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["causerie", "serve"]
