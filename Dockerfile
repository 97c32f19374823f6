# syntax=docker/dockerfile:1.7

# The images of Ebb, each a target:
#
#   docker build --target scaler      -t ebb-scaler:0.1.0 .
#   docker build --target worker      -t ebb-worker:0.1.0 .
#   docker build --target worker-cuda -t ebb-worker-cuda:0.1.0 .
#
# No image holds a secret or a model's weights, and none has a HEALTHCHECK: probes are Kubernetes'.
# They run as user 65532, and all that is written goes to /var/cache/ebb and /tmp, so that the root
# may be read-only.

ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG DEBIAN_IMAGE=docker.io/library/debian:12.12-slim@sha256:d5d3f9c23164ea16f31852f95bd5959aad1c5e854332fe00f7b3a20fcc9f635c
ARG CUDA_IMAGE=docker.io/nvidia/cuda:12.8.1-base-ubuntu24.04@sha256:133c78a0575303be34164d0b90137a042172bdf60696af01a3c424ab402d86e2

# --- builds -------------------------------------------------------------------------------------

FROM ${RUST_IMAGE} AS toolchain
# gcc is in the base; musl-tools make the static scaler.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update -q \
    && apt-get install -qy --no-install-recommends ca-certificates musl-tools
WORKDIR /src
ENV CARGO_TARGET_DIR=/target

FROM toolchain AS build-scaler
RUN rustup target add "$(uname -m)-unknown-linux-musl"
RUN --mount=type=bind,target=/src \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=target-scaler,target=/target \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" -p ebb-scaler --bin ebb-scaler \
    && install -s -D "/target/$(uname -m)-unknown-linux-musl/release/ebb-scaler" /out/ebb-scaler

FROM toolchain AS build-worker
RUN --mount=type=bind,target=/src \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=target-worker,target=/target \
    cargo build --release --locked -p ebb --bin ebb \
    && install -D /target/release/ebb /out/ebb

FROM toolchain AS build-worker-cuda
# The oldest driver that the binary is for: CUDA 12.8, that is 570.
ENV CUDARC_CUDA_VERSION=12080
RUN --mount=type=bind,target=/src \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=target-worker-cuda,target=/target \
    cargo build --profile cuda --locked --features cuda -p ebb --bin ebb \
    && install -D /target/cuda/ebb /out/ebb

# --- images -------------------------------------------------------------------------------------

# One static program and the authorities of the web, for brokers with TLS.
FROM scratch AS scaler
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ebb-scaler" \
      org.opencontainers.image.description="Tells KEDA how many workers a queue wants" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=toolchain /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build-scaler /out/ebb-scaler /usr/local/bin/ebb-scaler
USER 65532:65532
EXPOSE 6000 8080
ENTRYPOINT ["/usr/local/bin/ebb-scaler"]

# `ebb worker`; the other commands (`ebb model pull`, `ebb queue init`) are for init containers.
FROM ${DEBIAN_IMAGE} AS worker
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ebb-worker" \
      org.opencontainers.image.description="Runs models on jobs from a queue, on processors" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=toolchain /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN install -d -o 65532 -g 65532 /var/cache/ebb
COPY --from=build-worker /out/ebb /usr/local/bin/ebb
ENV HOME=/var/cache/ebb \
    XDG_CACHE_HOME=/var/cache/ebb \
    HF_HOME=/var/cache/ebb/hub
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/ebb"]
CMD ["worker"]

# Kernels are compiled where they run: by NVRTC, from the headers of the runtime, its compiler (crt)
# and its C++ library (cccl). The driver's libcuda and libnvidia-ml come with the node.
FROM ${CUDA_IMAGE} AS worker-cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ebb-worker-cuda" \
      org.opencontainers.image.description="Runs models on jobs from a queue, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update -q \
    && apt-get install -qy --no-install-recommends \
        cuda-cccl-12-8 cuda-crt-12-8 cuda-cudart-dev-12-8 cuda-nvrtc-12-8 \
    && install -d -o 65532 -g 65532 /var/cache/ebb
COPY --from=toolchain /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build-worker-cuda /out/ebb /usr/local/bin/ebb
ENV HOME=/var/cache/ebb \
    XDG_CACHE_HOME=/var/cache/ebb \
    HF_HOME=/var/cache/ebb/hub \
    CUDA_PATH=/usr/local/cuda \
    EBB_DEVICE=cuda \
    EBB_KERNEL_CACHE=/var/cache/ebb/kernels
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/ebb"]
CMD ["worker"]
