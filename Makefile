# make demo    an ordinary C driver drives an emulated PCI device
# make test    C unit tests under sanitizers, then pytest
# make property STEPS=100000 [SEED=n]    random calls against a naive model, many of them
# make integrity [OPS=10000000] [SEED=n]    an NVMe driver reads and writes, is reset and killed, and loses nothing
# make soak RUNS=1000    as many runs of a program in a row: nothing is left of them
# make bench   figures beside floors and peers (docs/benchmarks.md): a minute
# make lint    ruff; the C side is compiled with -Werror anyway
# make test-clients [LIBVFN=DIR] [SPDK=DIR]    QEMU, DPDK, Linux guests, pciutils, libvfn and SPDK under
#              `iommufs run`; fetches what is Debian's of it (170 MB); LIBVFN names the sources of libvfn, SPDK
#              a directory in which SPDK is built, which Debian does not have
# make conformance KERNEL_SRC=DIR    the kernel's own iommufd selftests, from a kernel tree
# make conformance-vfio KERNEL_SRC=DIR    likewise its vfio selftests
# Each makes the clone ready first (scripts/set-up); nothing else needs to be installed by hand.

PYTHON := .venv/bin/python
CC ?= cc
WARNINGS := -std=gnu11 -Wall -Wextra -Werror

.PHONY: build demo integrity test test-native property soak bench test-clients conformance conformance-vfio \
  lint clean set-up

build: set-up

set-up:
	@scripts/set-up

demo: set-up build/edu_driver
	.venv/bin/iommufs run -- build/edu_driver

integrity: set-up build/nvme_driver
	.venv/bin/iommufs run -- build/nvme_driver -n $(or $(OPS),10000000) $(if $(SEED),-s $(SEED))

build/%: examples/%.c $(wildcard uapi/*.h examples/*.h) | set-up
	@mkdir -p build
	$(CC) $(WARNINGS) -O2 -g -Iuapi -o $@ $<

test: set-up test-native
	$(PYTHON) -m pytest $(ARGS)

property: set-up
	STEPS=$(or $(STEPS),100000) SEED=$(SEED) $(PYTHON) -m pytest tests/property -s $(ARGS)

soak: set-up
	RUNS=$(or $(RUNS),1000) $(PYTHON) -m pytest tests/e2e/test_launcher.py -k many_runs -s -q

bench: set-up
	$(PYTHON) -m pip install --quiet --no-build-isolation --editable '.[bench]'
	$(PYTHON) bench/run.py
	$(PYTHON) bench/plot.py

lint: set-up
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test-clients: set-up
	$(if $(LIBVFN),$(PYTHON) -m pip install --quiet meson)
	$(PYTHON) -m pytest tests/clients $(if $(LIBVFN),--libvfn=$(LIBVFN)) $(if $(SPDK),--spdk=$(SPDK)) $(ARGS)

conformance: set-up
	scripts/conformance "$(KERNEL_SRC)" $(ARGS)

conformance-vfio: set-up
	scripts/conformance-vfio "$(KERNEL_SRC)"

clean:
	rm -rf build iommufs/_native*.so iommufs.egg-info .pytest_cache .hypothesis .ruff_cache

# ---- C unit tests: each native/x_test.c is a program that links what it needs of the rest -------

SAN := build/sanitized
SAN_FLAGS := $(WARNINGS) -O1 -g -pthread -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=all
TESTS := $(patsubst native/%.c,$(SAN)/%,$(wildcard native/*_test.c))
OBJECTS := $(patsubst native/%.c,$(SAN)/%.o,$(filter-out %_test.c,$(wildcard native/*.c)))
FUSE_CFLAGS = $(shell pkg-config --cflags fuse3)
FUSE_LIBS = $(shell pkg-config --libs fuse3)

test-native: set-up
	@$(MAKE) --silent --no-print-directory --jobs=$$(nproc) $(TESTS)
	@for test in $(TESTS); do echo "$${test##*/}"; $$test || exit 1; done

$(SAN)/%.o: native/%.c
	@mkdir -p $(SAN)
	@$(CC) $(SAN_FLAGS) $(FUSE_CFLAGS) -Iuapi -Inative -MMD -c -o $@ $<

$(SAN)/libiommufs.a: $(OBJECTS)
	@rm -f $@
	@ar rcs $@ $^

$(TESTS): $(SAN)/%: $(SAN)/%.o $(SAN)/libiommufs.a
	@$(CC) $(SAN_FLAGS) -o $@ $< $(SAN)/libiommufs.a $(FUSE_LIBS) -ldl

-include $(wildcard $(SAN)/*.d)
