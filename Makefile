# `make help` lists the targets. Targets marked "root" need root and set up the
# test host (scripts/lab) themselves. Its downloads and builds are cached in
# ~/.cache/bottle-lab (BOTTLE_LAB_CACHE).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# sudo's PATH may lack the Go toolchain.
export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED := 0

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PACKAGES ?= ./...
# Packages whose tests need neither root nor the test host, except the tests that
# match FAST_SKIP: they create files of other users.
FAST_PACKAGES ?= ./agents ./audit ./cmd/bottle ./cmd/bottle/fastexec ./cmd/bottle/guest ./cmd/bottle/shim ./cni-conf ./egress ./egress/hostrule ./egress/inject ./internal/atomicfile ./internal/caller ./internal/claudelogin ./internal/confine \
	./internal/filelock ./internal/filetree ./internal/loginfile ./internal/logins ./internal/names ./internal/nearest ./internal/scratch ./internal/secret/... ./internal/sessionclient ./internal/sessionproto ./internal/shareddir ./internal/termmodes ./internal/trust \
	./kube ./kubernetes ./manifest ./plan ./policy ./provision \
	./scripts/bench/egress ./scripts/bench/results/... ./scripts/lab.d/enter ./setup ./sshagent
FAST_SKIP ?= ^(TestGitIdentityOfAnother|TestInitUnderSudo|TestOutputOfAnother|TestReplaceKeepsAttributes)$$
# -p 1, because tests share the test host.
TESTFLAGS ?= -count=1 -p 1 -timeout 30m

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The version comes from git, which otherwise rejects another user's checkout when
# it runs as root.
build: export GIT_CONFIG_COUNT := 1
build: export GIT_CONFIG_KEY_0 := safe.directory
build: export GIT_CONFIG_VALUE_0 := $(CURDIR)
.PHONY: build
build: ## build bin/bottle, a static binary
	go build -buildvcs=false -trimpath -ldflags '-s -w' -o cmd/bottle/embedded/guest-$$(go env GOARCH) ./cmd/bottle/guest/program
	go build -buildvcs=false -trimpath -ldflags '-s -w' -o cmd/bottle/embedded/proxy-$$(go env GOARCH) ./cmd/bottle/proxyprogram
	go build -buildvcs=false -trimpath -ldflags '-s -w' -o cmd/bottle/embedded/runsc-$$(go env GOARCH) ./cmd/bottle/runscprogram
	go build -buildvcs=auto -trimpath -ldflags '-s -w' -o bin/bottle ./cmd/bottle

.PHONY: test
test: ## run all tests on the test host, then test the test host and the packages (root)
	scripts/lab up --with-bottle --with-claude --with-tools --with-agents --with-base --with-kube
	trap 'scripts/lab down' EXIT; scripts/lab exec -- go test $(TESTFLAGS) $(PACKAGES)$(if $(filter ./...,$(PACKAGES)), && scripts/agent-image)
	$(MAKE) --no-print-directory test-kube
	scripts/lab.d/selftest.sh
	scripts/dist --check
	scripts/image --check
	$(MAKE) --no-print-directory readme

.PHONY: readme
readme: ## run README's commands on Debian servers, with the package of `make dist` (root)
	scripts/lab up --with-bottle --with-claude --with-hosts
	trap 'scripts/lab down' EXIT; scripts/lab exec -- go test $(TESTFLAGS) -tags readme ./scripts/readme

.PHONY: test-fast
test-fast: ## run the tests that need neither root nor the test host
	@echo 'covers $(FAST_PACKAGES), except $(FAST_SKIP); `sudo make test` runs all tests'
	go test -skip '$(FAST_SKIP)' $(FAST_PACKAGES)

# The race detector multiplies the memory that scripts/bench/egress bounds.
.PHONY: test-race
test-race: export CGO_ENABLED := 1
test-race: ## run the tests of test-fast with the race detector (needs gcc)
	go test -race -skip '$(FAST_SKIP)' $(filter-out ./scripts/bench/egress,$(FAST_PACKAGES))

.PHONY: test-faults
test-faults: ## let every process and system call fail in a life of a bottle (root; two hours)
	scripts/lab up --with-bottle
	trap 'scripts/lab down' EXIT; BOTTLE_TEST_FAULTS=all scripts/lab exec -- go test -count=1 -timeout 2h -v -run '^(TestFaultRun|TestKilledWhileSaving|TestWorkKinds|TestManyWorkFiles)$$' . \
		&& BOTTLE_TEST_FAULTS=all scripts/lab exec -- go test -count=1 -timeout 2h -v -run '^(TestRandomKills|TestManyBottles)$$' ./cmd/bottle/e2e

.PHONY: test-chaos
test-chaos: ## start, use and end bottles at random for ten minutes (root)
	scripts/lab up --with-bottle
	trap 'scripts/lab down' EXIT; BOTTLE_TEST_CHAOS=10m scripts/lab exec -- go test -count=1 -timeout 30m -v -run '^TestChaos$$' ./cmd/bottle/e2e

.PHONY: test-lab
test-lab: ## test the test host itself: isolation, restart, cleanup (root)
	scripts/lab.d/selftest.sh

.PHONY: test-kube
test-kube: ## run exported agents on a Kubernetes cluster of one node (root; its first build takes 20 minutes)
	scripts/kube up
	trap 'scripts/lab down' EXIT; scripts/kube exec -- go test $(TESTFLAGS) -tags kube ./kubernetes/clustertest

.PHONY: demo
demo: ## demonstrate bottle on the test host (root)
	scripts/lab up --minimal --with-bottle
	trap 'scripts/lab down' EXIT; scripts/lab exec -- scripts/demo

.PHONY: agent-image
agent-image: ## build and test the default agent image (root; takes minutes)
	scripts/lab up --with-bottle --with-base
	trap 'scripts/lab down' EXIT; scripts/agent-image

.PHONY: clients
clients: ## run package managers and other clients behind the proxy (root; takes minutes)
	scripts/lab up --with-bottle --with-clients
	trap 'scripts/lab down' EXIT; scripts/lab exec -- go test $(TESTFLAGS) -tags clients ./scripts/clients

.PHONY: dist
dist: ## build .deb, .rpm and tar archives for amd64 and arm64 in dist/
	scripts/dist

.PHONY: image
image: ## build bottle's own image for Kubernetes, for amd64 and arm64, in dist/
	scripts/image

.PHONY: bench
bench: ## compare bottle's speed with alternatives and the kept run (root; KEEP=1 keeps this run)
	scripts/lab up --with-bottle --with-buildkitd --with-claude
	trap 'scripts/lab down' EXIT; scripts/lab exec -- scripts/bench/run

.PHONY: bench-inject
bench-inject: ## print the speed of injected secrets as ratios to a bare proxy
	go test -run '^$$' -bench 'Ratio|Untouched' -benchtime 3s ./egress/inject ./egress

.PHONY: lab-up
lab-up: ## start the test host; then: eval "$$(scripts/lab env)" (root)
	scripts/lab up --with-bottle

.PHONY: lab-down
lab-down: ## stop the test host (root)
	scripts/lab down

.PHONY: lint
lint: ## check the sources
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go run $(GOLANGCI_LINT) run ./...
	for script in scripts/lab scripts/lab.d/*.sh scripts/kube scripts/kube.d/node scripts/kube.d/*.sh scripts/demo scripts/agent-image scripts/bench/run scripts/bench/workspace scripts/dist scripts/image scripts/readme/boot; do bash -n $$script; done

.PHONY: clean
clean: ## remove the results of `build`
	rm -rf bin
