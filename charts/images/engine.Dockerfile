# docker build -f charts/images/engine.Dockerfile -t andes-engine .
# SGLang's own image of the release that the plugin is made for, and the plugin.
FROM lmsysorg/sglang:v0.5.23
COPY pyproject.toml README.md LICENSE /src/
COPY andes_sglang /src/andes_sglang
COPY api /src/api
COPY operator /src/operator
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 \
    && python3 -m pip install opentelemetry-sdk opentelemetry-exporter-otlp \
    && python3 -m pip install --no-deps /src && rm -rf /src \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache andes && install -d -o andes -g andes /cache \
    && andes serve --help >/dev/null
WORKDIR /cache
ENV PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 30000
# tini: as process 1 Python would ignore SIGTERM until SGLang has its handler, which is minutes.
ENTRYPOINT ["tini", "--", "andes"]
CMD ["serve", "--help"]
