# `make help` lists the targets. Those that need root say so; each does its own
# set-up. What is downloaded or built for the test host is kept in
# ~/.cache/bottle-lab (BOTTLE_LAB_CACHE).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# sudo's PATH may leave the Go toolchain out.
export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED := 0

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PACKAGES ?= ./...
# -p 1: tests share the lab's host namespace, which has one of each thing.
TESTFLAGS ?= -count=1 -p 1 -timeout 20m

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The version comes from git, which refuses a checkout that is another user's
# than root's.
build: export GIT_CONFIG_COUNT := 1
build: export GIT_CONFIG_KEY_0 := safe.directory
build: export GIT_CONFIG_VALUE_0 := $(CURDIR)
.PHONY: build
build: ## build bin/bottle, a static binary
	go build -buildvcs=false -trimpath -ldflags '-s -w' -o cmd/bottle/carried/guest-$$(go env GOARCH) ./cmd/bottle/guest/program
	go build -buildvcs=auto -trimpath -ldflags '-s -w' -o bin/bottle ./cmd/bottle

.PHONY: test
test: build ## run all tests, on a test host of their own and of it (root)
	GOARCH=arm64 go build -trimpath -o /dev/null ./cmd/bottle
	scripts/lab up --with-claude --with-base
	trap 'scripts/lab down' EXIT; scripts/lab exec -- go test $(TESTFLAGS) $(PACKAGES)$(if $(filter ./...,$(PACKAGES)), && scripts/agent-image)
	scripts/lab.d/selftest.sh

.PHONY: test-lab
test-lab: ## test the test host itself: isolation, restart, what is left behind (root)
	scripts/lab.d/selftest.sh

.PHONY: demo
demo: build ## show a bottle at work on a test host of its own (root)
	scripts/lab up
	trap 'scripts/lab down' EXIT; scripts/lab exec -- scripts/demo

.PHONY: agent-image
agent-image: build ## build the default agent image and test it, on a test host (root; minutes)
	scripts/lab up --with-base
	trap 'scripts/lab down' EXIT; scripts/agent-image

.PHONY: bench
bench: build ## print speeds as ratios to plainer ways, on a test host (root)
	scripts/lab up --with-buildkitd
	trap 'scripts/lab down' EXIT; scripts/lab exec -- scripts/bench/run

.PHONY: lab-up
lab-up: build ## start the test host; then: eval "$$(scripts/lab env)" (root)
	scripts/lab up

.PHONY: lab-down
lab-down: ## end the test host (root)
	scripts/lab down

.PHONY: lint
lint: ## check the sources
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go run $(GOLANGCI_LINT) run ./...
	for script in scripts/lab scripts/lab.d/*.sh; do bash -n $$script; done

.PHONY: clean
clean: ## remove what `build` made
	rm -rf bin
