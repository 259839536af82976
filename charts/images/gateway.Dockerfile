# docker build -f charts/images/gateway.Dockerfile -t andes-gateway .
# The gateway, what it runs tools with, and the simulated engine (andes serve --engine sim), which needs nothing more.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY andes_sglang andes_sglang
COPY api api
COPY operator operator
COPY clients/python clients/python
# The versions that the tests run with.
RUN python -m venv /opt/andes \
    && /opt/andes/bin/pip install --no-cache-dir --constraint requirements/cpu.txt ".[gateway,sim]" ./clients/python

FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp andes
COPY --from=build /opt/andes /opt/andes
ENV PATH=/opt/andes/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080
# tini: as process 1 Python would ignore SIGTERM until it has a handler.
ENTRYPOINT ["tini", "--", "andes"]
CMD ["gateway", "--help"]
