# CPU:   docker build -t anyformer .
#        docker run --rm -it -v "$PWD:/data" anyformer train language --data my.txt --out runs/mine
# CUDA:  docker build -t anyformer:cuda --build-arg TORCH_INDEX= .
#        docker run --rm -it --gpus all -v "$PWD:/data" anyformer:cuda doctor
# Serve: docker run --rm -v "$PWD:/data" -p 127.0.0.1:8000:8000 -e ANYFORMER_API_KEY=... anyformer serve runs/mine --host 0.0.0.0
#
# torch of the default index brings the libraries of CUDA with it, so that both have the same base; the driver is the host's.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim
# torch.compile builds its kernels with a compiler
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# Where torch is looked for first; empty: the default index, whose torch is the one with CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
ARG EXTRAS=all
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]"

# Any user may run it: docker run --user "$(id -u):$(id -g)" writes as whom you are
RUN mkdir -m 1777 /cache
USER 1000
ENV ANYFORMER_CACHE=/cache HOME=/cache
WORKDIR /data
ENTRYPOINT ["anyformer"]
CMD ["--help"]
