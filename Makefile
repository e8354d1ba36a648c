# No target needs another one to have run first, each can be run twice, and none leaves anything
# behind but .venv/, what `clean` takes away, and the cache folder that it names.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo docs picture test system hour book kernels kube check bench fuzz interop deb image wheels lock clean

BIN := .venv/bin
# A minute and more each: `make system` runs them, and `make book` the second.
BY_SYSTEM := book.py containers.py docker_newest.py docker_order.py drop_ins.py first_run.py image.py \
	install.py instances.py migration.py monitoring.py operations.py reproducible.py sandbox.py \
	shells.py upgrade.py web_page.py wheels.py
# Of the integration tests, those of half a minute and more.
LONG := alerts.py bad_input.py bundle.py do_no_harm_everywhere.py doctor_faults.py \
	doctor_kubernetes.py etcd_failover.py etcd_names.py every_backend.py follow_machines.py \
	lab_trouble.py ping_and_trace.py probes.py quiet_day.py readme.py vxlan_auto.py
# An hour, so neither's.
HOUR := real_hour.py
ARGS ?=
CACHE := $(or $(PYFLANNEL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pyflannel)

help:
	@echo "make demo      a flannel cluster on this machine, shown step by step"
	@echo "make docs      the documents as a site that can be searched, into build/site"
	@echo "make picture   the demo once more, as a picture for README"
	@echo "make test      the whole test suite (ARGS=... goes to pytest)"
	@echo "make system    the part of it on booted Debian nodes, with etcd three minutes late, and"
	@echo "               what of the suite takes a minute and more (etcd 3.4 to 3.6)"
	@echo "make hour      an hour of twenty daemons with churn: quiet, and none grows"
	@echo "               (PYFLANNEL_HOUR_S seconds)"
	@echo "make book      the textbook's installation on two of those, shown step by step"
	@echo "make kernels   tests on Debian's kernels in virtual machines: hours on a small machine"
	@echo "               (ARGS='6.1 tests/...' for some of it, see docs/kernels.md)"
	@echo "make kube      tests over real parts of Kubernetes, built from its Go module: an hour at first,"
	@echo "               then half of one; pods need PYFLANNEL_UPSTREAM_CNI=/path/to/flannel's plugin"
	@echo "               of CPU the first time"
	@echo "make check     formatter, linter, types, import contracts, dead code, sizes"
	@echo "make bench     the benchmarks (ARGS=... goes to them)"
	@echo "make fuzz      random input: 10^8 each for the eBPF programs and the native engine, 10^6 for all"
	@echo "               three data paths, and the C under sanitizers: three quarters of an hour"
	@echo "               (PYFLANNEL_FUZZ_S=600 seconds for each of five)"
	@echo "make interop   every data path with every other on every underlay, all traffic: ten minutes,"
	@echo "               and with upstream's daemon (PYFLANNEL_UPSTREAM=/path/to/flanneld)"
	@echo "make deb       the Debian package, into dist/"
	@echo "make image     the container image, from Debian's packages and our wheel, into dist/ (ARGS=arm64)"
	@echo "make wheels    wheels for x86-64 and aarch64 and one without the native core, into dist/"
	@echo "make lock      requirements.lock anew: every dependency in its newest version, with hashes"
	@echo "make install   what the others do first: system packages, .venv/"
	@echo "make clean     takes away .venv/ and all caches"

install:
	@tools/bootstrap.sh

# Not all of `install`: what a first look needs, in a minute.
demo:
	@tools/bootstrap.sh demo
	@$(BIN)/pyflannel lab demo $(ARGS)

# Not part of `install`: the generator, 20 MB, in the cache folder.
docs: install
	@$(BIN)/python tools/docsite.py

picture: install
	@$(BIN)/pyflannel lab demo --svg docs/pictures/demo.svg

test: install
	@$(BIN)/python tools/runtests.py $(addprefix --ignore=tests/system/test_,$(BY_SYSTEM)) \
		$(addprefix --ignore=tests/integration/test_,$(LONG) $(HOUR)) \
		--ignore=tests/integration/etcd_cluster --ignore=tests/kube $(ARGS)

system: install
	@tools/bootstrap.sh system
	@PYFLANNEL_LATE_S=180 PYFLANNEL_ALL_ETCDS=1 $(BIN)/python -m pytest \
		tests/system tests/integration/etcd_cluster \
		$(addprefix tests/integration/test_,$(LONG)) $(ARGS)
	@PYFLANNEL_EBPF_ATTACH=clsact $(BIN)/python -m pytest -q tests/integration/test_ebpf_datapath.py \
		tests/contract/test_datapath_contract.py -k "test_ebpf_datapath or ebpf"

hour: install
	@$(BIN)/python -m pytest -q -s --timeout=0 tests/integration/test_real_hour.py $(ARGS)

book: install
	@$(BIN)/python -m pytest -q -s tests/system/test_book.py $(ARGS)

# Not part of `install`: the emulator and what makes its disks.
kernels: install
	@tools/bootstrap.sh kernels
	@$(BIN)/python -m tests.kernels $(ARGS)

# Built first, so that what the build says is seen.
kube: install
	@$(BIN)/python -m tests.kube.build
	@PYFLANNEL_KUBE=1 $(BIN)/python -m pytest tests/contract/test_kubernetes_api_contract.py \
		tests/contract/test_lease_store_contract.py tests/kube -k "real or api-server or test_cluster or test_pods" \
		$(ARGS)

deb: install
	@tools/build-deb.sh

# Debian's packages are kept in the cache folder.
image: install
	@$(BIN)/python -m tools.image $(ARGS)

# Not part of `install`: the compiler for both machines, 400 MB, in the cache folder.
wheels: install
	@$(BIN)/python tools/wheels.py $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pyflannel tests/typing
	$(BIN)/mypy -p tests.kernels -p bench
	$(BIN)/mypy -p tools
	$(BIN)/lint-imports
	$(BIN)/python tools/deadcode.py
	$(BIN)/python tools/sizes.py

bench: install
	@$(BIN)/python -m bench $(ARGS)

fuzz: install
	@PYFLANNEL_FUZZ_S=$${PYFLANNEL_FUZZ_S:-600} $(BIN)/python -m pytest -q -s --timeout=0 \
		tests/fuzz $(ARGS)

interop: install
	@$(BIN)/python -m tests.interop.matrix $(ARGS)
	@$(BIN)/python -m pytest -q -rs tests/interop/test_data_paths.py

# Names, versions and hashes, no addresses: where packages come from is each machine's own business.
# What holds for every system that pyflannel runs on is left out of the conditions.
lock: install
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade \
		--python-version 3.11 --group dev --extra decode --extra kubernetes --output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade \
		--python-version 3.11 --group pyproject.toml:wheels --output-file tools/wheels.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade \
		--python-version 3.11 --group pyproject.toml:docs --output-file tools/docs.lock
	@$(BIN)/python tools/lockfile.py requirements.lock
	@$(BIN)/python tools/lockfile.py tools/wheels.lock
	@$(BIN)/python tools/lockfile.py tools/docs.lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find pyflannel tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	find pyflannel -name '*.so' -delete
	@echo "What was built outside the tree (Debian trees, kernels, an API server) is in one folder and stays; to have"
	@echo "it gone as well: rm -rf $(CACHE)"
