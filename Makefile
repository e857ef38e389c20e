# The tasks of a developer and of CI.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-api test-faults test-observability bench-telemetry features lint docs dashboards programs up down logs smoke migrate
ARGS ?=
# Only from the command line: some shells set an environment variable of this name for themselves.
ENV := $(if $(filter command,$(origin ENV)),$(ENV))
MINUTES ?= 3
PROFILES ?=
KUBECONFORM ?=

help: ## List all tasks; most take options in ARGS="..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup ## Run the whole pipeline in one process with an embedded database and broker
	@cargo run --bin throughline -- dev $(ARGS)

test: setup ## Run all tests; if Docker is available, also against real PostgreSQL and Kafka
	cargo build --workspace --all-targets
	cargo test --workspace
	@$(call with,helm go,THROUGHLINE="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/throughline" go -C deploy/helm/test test -count=1)

test-api: setup ## Test ingest against its own /openapi.json with Schemathesis; SEED=42 repeats a run
	cargo build --bin throughline
	@$(call with,python3,.ci/conformance)

test-faults: setup ## Inject faults under load and verify that nothing is lost; MINUTES=30, ARGS="--seed 42"
	cargo test --workspace --test faults -- --minutes $(MINUTES) $(ARGS)

test-observability: setup ## Verify the exported telemetry; requires `make up PROFILES=observability`
	cargo test --workspace --test observability -- $(ARGS)

bench-telemetry: setup ## Measure the overhead of telemetry on real parts; ARGS="--rounds 5 --requests 50000"
	cargo test --release --workspace --test overhead -- $(ARGS)

features: setup ## Run only the acceptance tests; ENV=embedded, containers or compose; ARGS="--name killed"
	cargo test --workspace --test acceptance -- $(if $(ENV),--environment $(ENV)) $(ARGS)

lint: setup ## Check formatting, lints, documentation, scripts, deployment files and dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo clippy --workspace --test faults --test observability --test overhead -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --quiet
	@$(call with,python3,.ci/prose)
	@$(call with,shellcheck,shellcheck .ci/run .ci/conformance deploy/smoke deploy/image-sizes deploy/startup-time deploy/helm/verify)
	@$(call with,go,go -C deploy/grafana/generate test)
	@$(call with,dashboard-linter,for dashboard in deploy/grafana/dashboards/*.json; do dashboard-linter lint --strict "$$dashboard" || exit; done)
	@if command -v promtool >/dev/null; then $(call alerts,promtool); \
	elif image=$$($(prometheus)) && { docker image inspect "$$image" || docker pull --quiet "$$image"; } >/dev/null 2>&1; then \
		$(call alerts,$(promtool) "$$image"); \
	else $(call missing,promtool,promtool check rules); fi
	@if docker compose version >/dev/null 2>&1; then $(composition); else $(call missing,docker,docker compose config); fi
	@$(call with,actionlint,actionlint)
	@$(call with,cargo-machete,cargo machete)
	@$(call with,helm,for values in deploy/helm/throughline/ci/*.yaml; do helm lint --strict --quiet --values "$$values" deploy/helm/throughline || exit; done)
	@$(call with,helm kubeconform,for values in deploy/helm/throughline/ci/*.yaml; do rendered=$$(helm template throughline deploy/helm/throughline --values "$$values") && printf %s "$$rendered" | kubeconform -strict $(KUBECONFORM) || exit; done)
	@$(call with,cargo-deny,cargo deny check --allow unused-wrapper bans licenses sources)
	@if git ls-remote --quiet --exit-code $(advisories) HEAD >/dev/null 2>&1; then $(call with,cargo-deny,cargo deny check advisories); \
	else echo 'SKIPPED, $(advisories) is unreachable: cargo deny check advisories'; fi

docs: setup ## Regenerate the tables of docs/configuration.md from the settings
	UPDATE_DOCS=1 cargo test --quiet --workspace --lib the_configuration_reference_is_current

dashboards: ## Regenerate the Grafana dashboards from deploy/grafana/generate
	cd deploy/grafana/generate && go run .

up: ## Start PostgreSQL, Kafka, both services and a third party in Docker; PROFILES=observability adds Grafana
	@$(hosted)
	$(strip $(environment) docker compose up --detach --build --wait --wait-timeout 300 $(ARGS))

down: ## Stop the environment of `make up` and keep the data; ARGS=--volumes deletes it
	docker compose --profile '*' down $(ARGS)

logs: ## Follow the logs of the services
	docker compose logs --follow $(or $(ARGS),ingest dispatch)

smoke: ## Send a request, follow it to the third party, and print its explanation
	@deploy/smoke

programs: setup ## Build release programs, or debug ones (PROFILE=debug), for use here or in images (BINARIES=host)
ifeq ($(PROFILE),debug)
	cargo build --workspace --bins
else
	cargo auditable --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-auditable@0.7.7
	cargo auditable build --release --package throughline --package throughline-ingest --package throughline-dispatch
endif

migrate: setup ## Migrate the database schema; ARGS="--config FILE"
	@cargo run --bin throughline -- migrate $(ARGS)

comma := ,
space := $(subst ,, )

# The variables for `docker compose`: the profiles, and the endpoint to which the services export telemetry.
environment = $(if $(PROFILES),COMPOSE_PROFILES=$(subst $(space),$(comma),$(strip $(PROFILES)))) \
	$(if $(findstring observability,$(PROFILES)),OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4318)

# The database of known vulnerabilities in crates.
advisories = https://github.com/rustsec/advisory-db

# Docker can copy programs only from target/. With another CARGO_TARGET_DIR, the images would contain older programs
# that an earlier build left in target/.
hosted = if [ "$$BINARIES" = host ] && [ -n "$$CARGO_TARGET_DIR" ] && ! [ "$$CARGO_TARGET_DIR" -ef target ]; then \
	echo "BINARIES=host takes the programs from target/, and CARGO_TARGET_DIR is $$CARGO_TARGET_DIR: unset it"; exit 1; fi

# Runs a command if its programs are installed, and reports the first one that is missing.
with = for program in $(1); do \
	command -v $$program >/dev/null || { $(call missing,$$program,$(2)); }; \
	done; echo '$(2)'; $(2)

# With REQUIRE_TOOLS=1, which CI sets, a missing program is a failure, unless EXCUSED_TOOLS names it.
missing = case "$$REQUIRE_TOOLS: $$EXCUSED_TOOLS " in \
	1:*" $(1) "*) ;; \
	1:*) echo "FAILED, $(1) is not installed: "'$(2)'; exit 1 ;; \
	esac; echo "SKIPPED, $(1) is not installed: "'$(2)'; exit

# Checks and tests the alerts with promtool. If it is not installed, uses promtool in the image of Prometheus.
alerts = echo 'promtool check rules, promtool test rules'; \
	$(1) check rules --lint=all deploy/prometheus/rules/*.yml && $(1) test rules deploy/prometheus/tests/*.yml
prometheus = docker compose --profile observability config --images prometheus 2>/dev/null
promtool = docker run --rm --network none --entrypoint promtool --workdir / \
	--volume '$(CURDIR)/deploy/prometheus:/deploy/prometheus:ro'

# Validates docker-compose.yml with all profiles, also with a configuration file whose path is a bare name.
composition = echo 'docker compose config'; docker compose --profile '*' config --quiet && \
	THROUGHLINE_YAML=mine.yaml docker compose --profile '*' config --quiet

# Checks for the requirements of the build besides Rust, and installs them if possible. librdkafka is written in C and
# C++. Configuring its OpenSSL requires a complete perl; Debian's perl-base is not sufficient.
setup:
	@command -v cargo >/dev/null || { echo 'No Rust toolchain: see https://rustup.rs'; exit 1; }
	@target="$${CARGO_TARGET_DIR:-$(CURDIR)/target}"; \
	until [ -e "$$target" ]; do target=$$(dirname "$$target"); done; \
	[ -w "$$target" ] || { echo "No permission to write to $$target: build as its owner, or set CARGO_TARGET_DIR"; exit 1; }
	@if c++ --version && perl -MFindBin -MIPC::Cmd -e 1; then exit; fi >/dev/null 2>&1; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing g++ and perl'; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends g++ perl >/dev/null; \
	else echo 'A C++ compiler and perl are missing; on Debian: apt-get install g++ perl'; exit 1; fi
