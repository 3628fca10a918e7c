# syntax=docker/dockerfile:1
# The package on an NVIDIA GPU, with ONNX Runtime's CUDA provider and TensorRT: `docker build -f containers/gpu.Dockerfile -t
# vggdeploy-gpu .` in the repository's root, then `docker run --rm --gpus all -v $PWD/artifacts:/artifacts vggdeploy-gpu doctor`.
# It has not been built or run where this file was written: no image registry and no GPU with TensorRT can be reached from there.
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY vggdeploy vggdeploy
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

# cuDNN and the CUDA libraries that onnxruntime-gpu links; the driver is the host's.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home vggdeploy \
    && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
# NVIDIA's `tensorrt` packages fetch the library from NVIDIA's own index while they are installed: no hash covers that.
COPY locks/gpu.txt locks/serve.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/gpu.txt \
    && pip install --no-cache-dir --require-hashes -r locks/serve.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
ENV VGGDEPLOY_CACHE=/tmp/vggdeploy PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
ENTRYPOINT ["vggdeploy"]
CMD ["doctor"]
