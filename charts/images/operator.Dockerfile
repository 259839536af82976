# tools/images.sh builds it; or: docker build -f charts/images/operator.Dockerfile -t andes-operator .
# The operator, with the simulator that it asks what-if.
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY andes_sglang andes_sglang
COPY api api
COPY operator operator
# The versions that the tests run with; without what no program runs: tests of libraries, caches, pip itself.
RUN python3 -m venv /opt/andes \
    && /opt/andes/bin/pip install --no-cache-dir --no-compile --constraint requirements/cpu.txt ".[operator]" \
    && /opt/andes/bin/pip uninstall --yes --quiet setuptools pip \
    && find /opt/andes -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} + \
    && /opt/andes/bin/andes operator --help >/dev/null && find /opt/andes -depth -name __pycache__ -exec rm -rf {} +

FROM ${BASE}
RUN command -v tini >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*; }; useradd --uid 10001 --user-group --no-create-home --home-dir /tmp andes
COPY --from=build /opt/andes /opt/andes
ENV PATH=/opt/andes/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080
# tini: as process 1 Python would ignore SIGTERM until it has a handler.
ENTRYPOINT ["tini", "--", "andes"]
CMD ["operator", "--help"]
