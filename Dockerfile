# docker build --target cpu --tag ace-dist:cpu .
# docker build --target cuda --tag ace-dist:cuda .       # the driver and the NVIDIA container toolkit are the host's
# docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" ace-dist:cpu demo
# docker run --rm --network host --volume "$PWD:/work" ace-dist:cpu explore run=runs/demo      # a page of this machine alone
# docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/work" ace-dist:cuda train experiment=own ...
#
# These images have not been built yet: there was no Docker where this was written.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Triton and DeepSpeed compile small parts when they first run
RUN pip install --no-cache-dir uv
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ace_dist ace_dist
COPY kernels kernels
COPY configs configs
# Whatever user runs it may write its caches
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["ace"]
CMD ["--help"]

FROM base AS cpu
RUN uv pip install --constraint constraints.txt --torch-backend cpu '.[train,cluster,llm,explore]'
WORKDIR /work

FROM base AS cuda
# `video`: the host's NVDEC, which the toolkit leaves out unless it is asked for
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
RUN uv pip install --constraint constraints.txt '.[all]'
WORKDIR /work
