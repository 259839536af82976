"""Names of OpenTelemetry's conventions for HTTP and GenAI (the latter still move) and our own beside them."""

from __future__ import annotations

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"

QOE: Final = "andes.qoe"
CLASS: Final = "andes.class"
TTFT_TARGET: Final = "andes.expected.ttft"
TDS_TARGET: Final = "andes.expected.tds"
OUTCOME: Final = "andes.outcome"
STALLS: Final = "andes.stalls"
STALL_SECONDS: Final = "andes.stall.duration"
FORECAST_WAIT: Final = "andes.forecast.wait"
WAITED: Final = "andes.wait"
THOUGHT_TOKENS: Final = "andes.thought.tokens"
THINKING_SECONDS: Final = "andes.thought.duration"
ATTEMPTS: Final = "andes.attempts"
REASON: Final = "andes.reason"
LADDER: Final = "andes.ladder"
QUALITY: Final = "andes.quality"
EVENT_STALL: Final = "andes.stall"
EVENT_HELD: Final = "andes.held"
EVENT_RETRY: Final = "andes.retry"
EVENT_RESUME: Final = "andes.resume"

METRIC_TTFT: Final = "gen_ai.server.time_to_first_token"
METRIC_TPOT: Final = "gen_ai.server.time_per_output_token"
METRIC_DURATION: Final = "gen_ai.server.request.duration"
METRIC_QOE: Final = "andes.request.qoe"

TTFT_BUCKETS: Final = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
TPOT_BUCKETS: Final = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5)  # fmt: skip
DURATION_BUCKETS: Final = (.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)  # fmt: skip
QOE_BUCKETS: Final = (.1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .99, 1.0)  # fmt: skip
