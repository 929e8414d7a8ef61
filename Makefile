# make demo   a real Kubernetes, Barekey in it, and one value in one pod; ends when it has shown that
# make test   everything, lint first: the gate
# make lint   format, clippy for every feature set, tidy, the chart, licences
# make bench  the performance figures
# make images the two images, as files below target/images
#
# Needs Rust, Go, a C compiler, and root on Debian. Programs that are built once are kept in
# ~/.cache/barekey. JOURNEYS="name" runs the journeys of that name alone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test lint bench images programs

NODE := tests/cluster/node
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/barekey
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
CLIPPY := cargo clippy --quiet --locked
PROGRAMS = PATH="$$($(NODE) build | head -n 1):$$PATH"

demo: images programs
	cargo build --locked --release --no-default-features --features cli --bin barekey
	exec $(NODE) run tests/cluster/demo

test: lint images
	$(PROGRAMS) cargo test --locked --lib --bins --test tidy
	cargo test --locked --test journeys --no-run
	exec $(NODE) run cargo test --locked --offline --test journeys -- $(JOURNEYS)

lint: programs $(DENY)
	cargo fmt --check
	$(CLIPPY) --no-default-features --features agent --lib --bin barekey -- -D warnings
	$(CLIPPY) --no-default-features --features cli --lib --bin barekey -- -D warnings
	$(CLIPPY) --no-default-features --features server --lib --bin barekey-operator -- -D warnings
	$(CLIPPY) --all-features --all-targets -- -D warnings
	cargo test --quiet --locked --test tidy
	$(PROGRAMS) helm lint --strict charts/barekey
	cargo fetch --quiet --locked
	$(DENY) --offline check licenses bans sources

bench:
	cargo rustc --locked --profile agent --no-default-features --features agent --bin barekey -- -C target-feature=+crt-static
	BAREKEY_BENCH_AGENT=$(TARGET)/agent/barekey cargo bench --locked -- $(BENCH)

images:
	$(NODE) packages buildah
	tests/cluster/images

programs:
	$(NODE) build

# In the debug profile, which builds in half the time; a check takes seconds all the same.
$(DENY):
	cargo install --debug --locked --version $(DENY_VERSION) --root $(CACHE)/cargo-deny-$(DENY_VERSION) cargo-deny
