# The server alone: no compiler, no pip, no root. Every package is pinned by its hash in requirements.txt.
#
#   docker build -t pads-cdc .
#   docker build -t pads-cdc --build-arg BASE=python:3.11-slim-bookworm@sha256:... .   # bit for bit, and patched on purpose
#
# It listens on all interfaces, so it refuses to start until it is told how gRPC is protected: TLS, or ALLOW_INSECURE=true
# on a network that you trust.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
# pip stays in an environment of its own; the one that is shipped gets only what it is given.
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
# The base image brings pip for whoever wants to install; here it would only be something to attack.
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
# The state file has to outlive the container: without it a restart forgets which endpoints were deleted.
VOLUME /var/lib/pads-cdc
WORKDIR /var/lib/pads-cdc
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 10002 9090
STOPSIGNAL SIGTERM
# Ready is "holds a map that gateways may use": it stays good while the database is away.
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['METRICS_PORT'] + '/readyz', timeout=3)"]
ENTRYPOINT ["pads-cdc"]
CMD ["serve"]
