# Every task a person runs.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-faults test-observability bench-telemetry features lint dashboards up down logs migrate
ARGS ?=
MINUTES ?= 3
PROFILES ?=

help: ## Say which tasks there are; they take options in ARGS="..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup ## Run the whole pipeline in one process, on embedded parts
	@cargo run --bin throughline -- dev $(ARGS)

test: setup ## Run all tests; where a Docker engine answers, on real PostgreSQL and Kafka too
	cargo build --workspace --all-targets
	cargo test --workspace

test-faults: setup ## Break real parts under load, and see that nothing is lost; MINUTES=30, ARGS="--seed 42"
	cargo test --workspace --test faults -- --minutes $(MINUTES) $(ARGS)

test-observability: setup ## Read back from Tempo, Prometheus and Loki what the services export; needs `make up PROFILES=observability`
	cargo test --workspace --test observability -- $(ARGS)

bench-telemetry: setup ## Measure what telemetry costs, on real parts; ARGS="--rounds 5 --requests 50000"
	cargo test --release --workspace --test overhead -- $(ARGS)

features: setup ## Run the acceptance tests alone; ARGS="--environment embedded --name killed"
	cargo test --workspace --test acceptance -- $(ARGS)

lint: setup ## Check format, lints, documentation, scripts, and who depends on what
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo clippy --workspace --test faults --test observability --test overhead -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --quiet
	@$(call with,shellcheck,shellcheck .ci/run)
	@$(call with,go,go -C deploy/grafana/generate test)
	@$(call with,dashboard-linter,for dashboard in deploy/grafana/dashboards/*.json; do dashboard-linter lint --strict "$$dashboard" || exit; done)
	@$(call with,promtool,promtool check rules --lint=all deploy/prometheus/rules/*.yml && promtool test rules deploy/prometheus/tests/*.yml)
	@$(call with,cargo-deny,cargo deny check --allow unused-wrapper bans licenses sources)

dashboards: ## Make the Grafana dashboards anew, of what is in deploy/grafana/generate
	cd deploy/grafana/generate && go run .

up: ## Start the real environment: PostgreSQL, Kafka, the services, a third party; PROFILES=observability adds Grafana
	$(strip $(environment) docker compose up --detach $(ARGS))

down: ## Stop it; the data stays, unless ARGS=--volumes
	docker compose --profile '*' down $(ARGS)

logs: ## Follow what the services say
	docker compose logs --follow $(or $(ARGS),ingest dispatch)

migrate: setup ## Bring the database's schema up to date; ARGS="--config FILE"
	@cargo run --bin throughline -- migrate $(ARGS)

# What `docker compose` is told of the profiles, and the services of who takes their telemetry.
environment = $(if $(PROFILES),COMPOSE_PROFILES=$(PROFILES)) \
	$(if $(findstring observability,$(PROFILES)),OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4318)

# Run a command if its program is there; say so loudly if it is not.
with = if command -v $(1) >/dev/null; then echo '$(2)'; $(2); else echo 'SKIPPED, $(1) is not installed: $(2)'; fi

# What the build needs beside Rust: librdkafka is C and C++, and its OpenSSL is configured by a whole
# perl, which Debian's perl-base is not.
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
