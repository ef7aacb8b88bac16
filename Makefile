# Every target sets up what it needs on a fresh Debian or Ubuntu machine: system packages, .venv,
# compiled parts. Stamps in build/stamps keep a second `make test` from doing it again.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

# "a|b": the first of them that this release has. A name ending in "?" may be missing altogether.
SYSTEM_PACKAGES := \
	clang-19|clang llvm-19|llvm libbpf-dev libelf-dev zlib1g-dev linux-libc-dev gcc libc6-dev make \
	python3-dev python3-venv iproute2 iputils-ping procps bpftool|linux-tools-generic?
# The servers and tools of the tests; their services are not started.
TEST_PACKAGES := iperf3 ethtool nginx wrk openssl nftables tshark
# What the balancer's traffic is measured beside.
BENCH_PACKAGES := nftables haproxy
VM_PACKAGES := qemu-system-x86 qemu-system-common kmod busybox-static debian-archive-keyring e2fsprogs
# The oldest kernel supported, and the long-term ones since.
KERNELS ?= 5.10 6.1 6.12
# all: load, probe, the bpf ring, the lab's smoke; bpf, smoke: one of them; traffic: minutes of the
# smoke. none: load and probe.
VM_RINGS ?= all

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMPS := build/stamps
# What touches the kernel needs root; what is built belongs to whoever runs make.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
SOURCES := setup.py $(shell find bpf csrc -name '*.[ch]' -o -name '*.py')
CLANG ?= $(shell command -v clang-19 || command -v clang)
EXAMPLES := $(wildcard examples/*/*.bpf.c)

.PHONY: bench build cases clean demo distclean examples lint test test-failed test-vm test-wheel wheel

build: $(STAMPS)/built

demo: build
	$(AS_ROOT) $(PY) examples/zero-trust/demo.py

examples: $(patsubst %.c,build/examples/%.o,$(notdir $(EXAMPLES)))

test: build $(STAMPS)/test
	$(AS_ROOT) $(PY) -m pytest

# Those that failed in the last run, again; an error if there are none.
test-failed: build $(STAMPS)/test
	$(AS_ROOT) $(PY) -m pytest --last-failed --last-failed-no-failures none --maxfail 1

bench: build $(STAMPS)/test $(STAMPS)/bench
	$(AS_ROOT) $(PY) -m tests.bench

cases: build
	$(PY) -m tests.cases

lint: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test-vm: build $(STAMPS)/test $(STAMPS)/vm
	$(PY) -m tests.vm.run $(KERNELS) --rings $(VM_RINGS)

wheel: $(STAMPS)/wheel

test-wheel: wheel
	$(AS_ROOT) $(PY) -m tests.packaging.run dist

clean:
	rm -rf build/bpf build/examples build/lib* build/temp* build/bdist* $(STAMPS)/built $(STAMPS)/wheel \
		dist wheelhouse *.egg-info pyciliumlib/objects pyciliumlib/include \
		pyciliumlib/_*.c pyciliumlib/_*.o pyciliumlib/_*.so \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Also what was downloaded: the virtual environment and the kernels of the VM ring.
distclean: clean
	rm -rf build $(VENV)

$(STAMPS)/system: Makefile
	.ci/install-packages '$(SYSTEM_PACKAGES)'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: pyproject.toml $(STAMPS)/system
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade 'pip>=25.1'
	$(PY) -m pip install -q --group build --group test --group lint
	$(PY) -m pip install -q --no-build-isolation --editable .
	@touch $@

$(STAMPS)/built: $(SOURCES) $(STAMPS)/venv
	$(PY) setup.py -q build_bpf build_ext --inplace
	@touch $@

# As a user builds a program of their own: against the headers that the package ships.
vpath %.bpf.c $(sort $(dir $(EXAMPLES)))
build/examples/%.bpf.o: %.bpf.c $(STAMPS)/built
	@mkdir -p $(@D)
	$(CLANG) -O2 -g -target bpf -mcpu=v3 -Wall -Werror \
		-I pyciliumlib/include -I /usr/include/$$(uname -m)-linux-gnu -c $< -o $@

$(STAMPS)/test: Makefile
	.ci/install-packages '$(TEST_PACKAGES)'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/bench: Makefile
	.ci/install-packages '$(BENCH_PACKAGES)'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/vm: $(STAMPS)/venv
	.ci/install-packages '$(VM_PACKAGES)'
	$(PY) -m pip install -q --group vm
	@touch $@

# Not isolated and not editable: the tree is copied, so that no stale file gets into the wheel.
$(STAMPS)/wheel: $(SOURCES) $(shell find pyciliumlib -name '*.py') pyproject.toml MANIFEST.in $(STAMPS)/venv
	$(PY) -m pip install -q --group wheel
	rm -rf build/wheel dist && mkdir -p build/wheel dist
	$(PY) -m build -q --no-isolation --sdist --outdir build/wheel .
	$(PY) -m pip wheel -q --no-build-isolation --no-deps --wheel-dir build/wheel build/wheel/*.tar.gz
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel repair --wheel-dir dist build/wheel/*.whl
	@ls -l dist
	@touch $@
