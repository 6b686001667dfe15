# Slim, not Alpine: the bundled server's wheel needs glibc, and there is no wheel for musl.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY relay ./relay
RUN python -m venv /opt/relay && /opt/relay/bin/pip install --no-cache-dir . uvloop

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/relay --create-home relay
COPY --from=build /opt/relay /opt/relay
COPY relay.yaml /etc/relay/relay.yaml
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1
USER relay
WORKDIR /var/lib/relay
STOPSIGNAL SIGTERM
ENTRYPOINT ["relay"]
CMD ["run", "-c", "/etc/relay/relay.yaml"]
