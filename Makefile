# Every task a person runs.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-api test-faults test-observability bench-telemetry features lint dashboards programs up down logs smoke migrate
ARGS ?=
# Of the command line: shells have a variable of this name for themselves.
ENV := $(if $(filter command,$(origin ENV)),$(ENV))
MINUTES ?= 3
PROFILES ?=
KUBECONFORM ?=

help: ## Say which tasks there are; they take options in ARGS="..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup ## Run the whole pipeline in one process, on embedded parts
	@cargo run --bin throughline -- dev $(ARGS)

test: setup ## Run all tests; where a Docker engine answers, on real PostgreSQL and Kafka too
	cargo build --workspace --all-targets
	cargo test --workspace
	@$(call with,helm go,THROUGHLINE="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/throughline" go -C deploy/helm/test test -count=1)

test-api: setup ## Have Schemathesis judge ingest by its own /openapi.json; SEED=42 repeats a run
	cargo build --bin throughline
	@$(call with,python3,.ci/conformance)

test-faults: setup ## Break real parts under load, and see that nothing is lost; MINUTES=30, ARGS="--seed 42"
	cargo test --workspace --test faults -- --minutes $(MINUTES) $(ARGS)

test-observability: setup ## Read back from Tempo, Prometheus and Loki what the services export; needs `make up PROFILES=observability`
	cargo test --workspace --test observability -- $(ARGS)

bench-telemetry: setup ## Measure what telemetry costs, on real parts; ARGS="--rounds 5 --requests 50000"
	cargo test --release --workspace --test overhead -- $(ARGS)

features: setup ## Run the acceptance tests alone; ENV=embedded, containers or compose; ARGS="--name killed"
	cargo test --workspace --test acceptance -- $(if $(ENV),--environment $(ENV)) $(ARGS)

lint: setup ## Check format, lints, documentation, scripts, and who depends on what
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo clippy --workspace --test faults --test observability --test overhead -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --quiet
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
	else echo 'SKIPPED, $(advisories) does not answer: cargo deny check advisories'; fi

dashboards: ## Make the Grafana dashboards anew, of what is in deploy/grafana/generate
	cd deploy/grafana/generate && go run .

up: ## Start the real environment: PostgreSQL, Kafka, the services, a third party; PROFILES=observability adds Grafana
	@$(hosted)
	$(strip $(environment) docker compose up --detach --build --wait --wait-timeout 300 $(ARGS))

down: ## Stop it; the data stays, unless ARGS=--volumes
	docker compose --profile '*' down $(ARGS)

logs: ## Follow what the services say
	docker compose logs --follow $(or $(ARGS),ingest dispatch)

smoke: ## Send a request through it, follow it to the third party, and print its story
	@deploy/smoke

programs: setup ## Build the programs as they are released, or in a hurry (PROFILE=debug); for images too (BINARIES=host)
ifeq ($(PROFILE),debug)
	cargo build --workspace --bins
else
	cargo auditable --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-auditable@0.7.7
	cargo auditable build --release --package throughline --package throughline-ingest --package throughline-dispatch
endif

migrate: setup ## Bring the database's schema up to date; ARGS="--config FILE"
	@cargo run --bin throughline -- migrate $(ARGS)

comma := ,
space := $(subst ,, )

# What `docker compose` is told of the profiles, and the services of who takes their telemetry.
environment = $(if $(PROFILES),COMPOSE_PROFILES=$(subst $(space),$(comma),$(strip $(PROFILES)))) \
	$(if $(findstring observability,$(PROFILES)),OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4318)

# Where known flaws of crates are told.
advisories = https://github.com/rustsec/advisory-db

# Docker sees no other folder: what is built elsewhere would not be in the images, but what is left here of an earlier day.
hosted = if [ "$$BINARIES" = host ] && [ -n "$$CARGO_TARGET_DIR" ] && ! [ "$$CARGO_TARGET_DIR" -ef target ]; then \
	echo "BINARIES=host takes the programs from target/, and CARGO_TARGET_DIR is $$CARGO_TARGET_DIR: unset it"; exit 1; fi

# Run a command if its programs are there; say so loudly if one is not.
with = for program in $(1); do \
	command -v $$program >/dev/null || { $(call missing,$$program,$(2)); }; \
	done; echo '$(2)'; $(2)

# With REQUIRE_TOOLS=1, which is for CI, what is missing has failed, but for those that EXCUSED_TOOLS names.
missing = case "$$REQUIRE_TOOLS: $$EXCUSED_TOOLS " in \
	1:*" $(1) "*) ;; \
	1:*) echo "FAILED, $(1) is not installed: "'$(2)'; exit 1 ;; \
	esac; echo "SKIPPED, $(1) is not installed: "'$(2)'; exit

# The alerts, as promtool sees them; where it is not installed, that of the image in which Prometheus runs.
alerts = echo 'promtool check rules, promtool test rules'; \
	$(1) check rules --lint=all deploy/prometheus/rules/*.yml && $(1) test rules deploy/prometheus/tests/*.yml
prometheus = docker compose --profile observability config --images prometheus 2>/dev/null
promtool = docker run --rm --network none --entrypoint promtool --workdir / \
	--volume '$(CURDIR)/deploy/prometheus:/deploy/prometheus:ro'

# The whole environment, and with a configuration whose path is a bare name.
composition = echo 'docker compose config'; docker compose --profile '*' config --quiet && \
	THROUGHLINE_YAML=mine.yaml docker compose --profile '*' config --quiet

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
