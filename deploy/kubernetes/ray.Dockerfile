# Causerie and Ray in one image, for deploy/kubernetes/ray_service.yaml. No test builds it: it needs Ray's own.
#
#   docker build -f deploy/kubernetes/ray.Dockerfile -t causerie-ray .
#
# CUDA: --build-arg BASE=rayproject/ray:2.60.0-py311-cu128 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG BASE=rayproject/ray:2.60.0-py311-cpu
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} "torch==2.13.0"
WORKDIR /app
COPY --chown=ray:users . .
RUN pip install --no-cache-dir --editable ".[ray]"
ENV PYTHONPATH=/app RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy.middlewares
