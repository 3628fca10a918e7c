# syntax=docker/dockerfile:1
# The package on a CPU: `docker build -f containers/cpu.Dockerfile -t vggdeploy .` in the repository's root, then
# `docker run --rm -v $PWD/artifacts:/artifacts:ro -p 8000:8000 vggdeploy serve /artifacts/BUNDLE --host 0.0.0.0`.
# An image of one bundle is made by `vggdeploy package BUNDLE --target oci`.
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY vggdeploy vggdeploy
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home vggdeploy
WORKDIR /app
# Every package in the version, and with the hash, that locks/ names.
COPY locks/cpu.txt locks/serve.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/cpu.txt \
    && pip install --no-cache-dir --require-hashes -r locks/serve.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
ENV VGGDEPLOY_CACHE=/tmp/vggdeploy PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
ENTRYPOINT ["vggdeploy"]
CMD ["doctor"]
