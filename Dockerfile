# Only the server: no compiler, no pip, no root. requirements.txt pins every package by its hash.
#
#   docker build -t pads-cdc .
#   docker build -t pads-cdc --build-arg BASE=python:3.11-slim-bookworm@sha256:... .   # reproducible; updates are then up to you
#
# It listens on all interfaces, so it does not start without protection of gRPC: TLS, or ALLOW_INSECURE=true in a network
# that you trust.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
# pip has an environment of its own; the image gets only the other environment.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/pads-cdc
COPY requirements.txt requirements-build.txt ./
RUN /opt/build/bin/pip install --no-cache-dir --only-binary=:all: --require-hashes -r requirements-build.txt \
 && /opt/build/bin/pip --python /opt/pads-cdc/bin/python install --no-cache-dir --only-binary=:all: \
    --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY deploy/envoy deploy/envoy
COPY authz authz
COPY cdc cdc
COPY client client
COPY server server
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheel ./client . \
 && /opt/build/bin/pip --python /opt/pads-cdc/bin/python install --no-cache-dir --no-index --no-deps /opt/wheel/*.whl

FROM ${BASE}
# The base image contains pip. Nothing here needs it, so it would only add attack surface.
RUN rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pads-cdc \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/pads-cdc
COPY --from=build /opt/pads-cdc /opt/pads-cdc
ENV PATH=/opt/pads-cdc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    METRICS_HOST=0.0.0.0 \
    METRICS_PORT=9090 \
    STATE_FILE=/var/lib/pads-cdc/state \
    LOG_FORMAT=json
# The state file must outlive the container: without it, a restart forgets which endpoints were deleted.
VOLUME /var/lib/pads-cdc
WORKDIR /var/lib/pads-cdc
# A number, so that Kubernetes can verify that it is not root.
USER 10001:10001
EXPOSE 10002 9090
STOPSIGNAL SIGTERM
# Ready means that the server holds a complete map; it stays ready while the database is unreachable.
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['METRICS_PORT'] + '/readyz', timeout=3)"]
ENTRYPOINT ["pads-cdc"]
CMD ["serve"]
