# The service in a small image: no compiler, no pip, no root user; only /tmp is written.
#
#   docker build --tag autoenhance-batch .
#   docker run --read-only --tmpfs /tmp --publish 8000:8000 --env AUTOENHANCE_API_KEY autoenhance-batch

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Packages first, since they change less often; they are locked by hash.
COPY deploy/requirements.lock deploy/requirements-build.lock ./
RUN python -m venv /opt/builder && /opt/builder/bin/pip install --require-hashes -r requirements-build.lock
RUN python -m venv --without-pip /opt/batch && /opt/builder/bin/pip --python /opt/batch/bin/python install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY service ./service
RUN /opt/builder/bin/python -m hatchling build -t wheel -d dist && /opt/builder/bin/pip --python /opt/batch/bin/python install --no-deps dist/autoenhance_batch-*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="autoenhance-batch" \
      org.opencontainers.image.description="Streams every enhanced image of an Autoenhance.ai order into one ZIP while the images arrive." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"

# They come with the base image; nothing is installed from here on.
RUN pip uninstall --yes --root-user-action=ignore pip setuptools wheel

COPY --from=build /opt/batch /opt/batch
ENV PATH=/opt/batch/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8000

# A numeric id without a name and home, so that Kubernetes can verify that it is not root.
USER 65532:65532
# Photos being uploaded, one for each of MAX_CONCURRENT_UPLOADS, are in /tmp: a volume or tmpfs if the root file system is read-only.
EXPOSE 8000
# SIGTERM drains for up to DRAIN_SECONDS (60): use "docker stop --time 70".
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["autoenhance-batch", "health"]
ENTRYPOINT ["autoenhance-batch"]
CMD ["serve"]
