# syntax=docker/dockerfile:1
#
#   docker build -t viewport-relay --build-arg VERSION=0.2.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Pin the base by digest where builds must be repeatable to the byte:
#   docker buildx imagetools inspect python:3.13-slim-bookworm    tells it; then
#   --build-arg BASE=python:3.13-slim-bookworm@sha256:…
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/viewport-relay
# Dependencies first, so that a change of our code does not fetch them again. Wheels only: nothing is compiled here.
COPY requirements.lock requirements-build.lock ./
RUN /opt/viewport-relay/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
    && python -m venv /tmp/backend \
    && /tmp/backend/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY viewport_relay viewport_relay
COPY twisted twisted
RUN /tmp/backend/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/viewport-relay/bin/pip install --no-deps --no-index /tmp/wheel/*.whl \
    && /opt/viewport-relay/bin/pip check \
    # Twisted keeps a cache of plugins beside them; the image's files are read-only when it runs.
    && /opt/viewport-relay/bin/twistd --help | grep -q viewport-relay

FROM ${BASE}
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="viewport-relay" \
      org.opencontainers.image.description="Routes end-to-end encrypted frames between coding-agent daemons and clients" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# curl: for operators (docker exec viewport-relay curl -I URL).
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 relay \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relay
COPY --from=build /opt/viewport-relay /opt/viewport-relay
ENV PATH=/opt/viewport-relay/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RELAY_LISTEN_HOST=0.0.0.0
USER 10001:10001
EXPOSE 7781
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["viewport-relay", "healthcheck"]
CMD ["twistd", "-n", "--pidfile=", "viewport-relay"]
