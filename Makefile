# Thin on purpose: each target is one command that also works by hand.
.DEFAULT_GOAL := help
.PHONY: help packages configure build arm64 demo test lab bench lint clean

help:        ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages:    ## install the Debian packages that the other targets need (does nothing where they are there)
	@scripts/install-packages

configure: packages
	@cmake --preset release >build.log 2>&1 || { cat build.log; exit 1; }

build: configure ## build build/continuo, its tests and benchmarks
	@cmake --build --preset release

arm64: packages ## cross-build build-arm64/: what the arm64 hosts of the lab run
	@cmake --preset arm64 >build-arm64.log 2>&1 || { cat build-arm64.log; exit 1; }
	@cmake --build --preset arm64

demo: configure ## migrate a VM live and certify its clocks, GUEST=linux: a Linux; on an emulated host where the local /dev/kvm will not do
	@cmake --build --preset release --target continuo continuo-agent
	@$(if $(filter linux,$(GUEST)),lab/linux-demo,build/continuo demo)

test: build arm64 ## every test that this machine can run; names what it skipped
	@scripts/run-tests

lab: build arm64 ## every program on every host and kernel of the lab; writes docs/lab-matrix.md
	@lab/continuo-lab matrix --output docs/lab-matrix.md

bench: build ## the figures of the README, as ratios measured in one run
	@scripts/run-benchmarks

lint: build  ## clang-format, layers, clang-tidy
	@scripts/lint

clean:       ## remove build folders
	@rm -rf build build-* build.log
