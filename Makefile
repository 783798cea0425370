# Needs Go and make; memcached is got where it is missing (scripts/).

# The root module and the nested ones.
MODULES := . $(patsubst %/go.mod,%,$(wildcard */go.mod */*/go.mod))

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
SCRIPTS     := "$(CURDIR)/scripts"

# Runs a command in every module: $(call each,TITLE,COMMAND)
each = set -e; for module in $(MODULES); do echo "== $(1) ($$module)"; (cd "$$module" && $(2)); done

.PHONY: help demo test integration check vulncheck bench moved soak fuzz ketama-table

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## run the quickstart example against a memcached of its own
	@sh $(SCRIPTS)/with-memcached.sh go run ./examples/quickstart

test: ## run all tests with the race detector
	@$(call each,go test,sh $(SCRIPTS)/test-env.sh go test -race -timeout 5m ./...)

integration: ## the promises to users, on containers of MEMCACHED_IMAGE
	@sh $(SCRIPTS)/test-env.sh go test -race -count=1 -v -run '^TestIntegration$$' -timeout 5m .

check: ## gofmt, go vet, staticcheck, go mod tidy: nothing to complain of
	@echo "== gofmt"; files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted:" $$files; exit 1; fi
	@$(call each,go vet,go vet ./...)
	@$(call each,staticcheck,go run $(STATICCHECK) ./...)
	@$(call each,go mod tidy,go mod tidy -diff)

vulncheck: ## known vulnerabilities in what is used (asks vuln.go.dev)
	@$(call each,govulncheck,go run $(GOVULNCHECK) ./...)

bench: ## benchmarks beside other clients: docs/benchmarks.md, 8 minutes
	@cd bench && sh setup.sh && sh $(SCRIPTS)/test-env.sh go run . -write ../docs

moved: ## draw docs/moved.svg
	@cd bench && go run . -moved ../docs

soak: ## the soak tests, for MEMCACHED_SOAK each (10m)
	@export MEMCACHED_SOAK="$${MEMCACHED_SOAK:-10m}"; $(call each,soak,sh $(SCRIPTS)/test-env.sh go test -race -count=1 -v -run Soak -timeout 60m ./...)

fuzz: ## every fuzz target, for FUZZTIME each (30s)
	@set -e; grep -r --include='*_test.go' '^func Fuzz' . | sed 's|/[^/]*:func \(Fuzz[A-Za-z0-9_]*\).*| \1|' | sort | \
	while read -r dir target; do \
		echo "== $$target ($$dir)"; \
		(cd "$$dir" && sh $(SCRIPTS)/test-env.sh go test -run '^$$' -fuzz "^$$target\$$" -fuzztime "$${FUZZTIME:-30s}" . </dev/null); \
	done

KETAMA := internal/ketama/testdata

ketama-table: ## where libmemcached puts keys, for internal/ketama; needs gcc and Debian's libmemcached-dev
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	gcc -o "$$dir/generate" $(KETAMA)/generate.c -lmemcached && \
	"$$dir/generate" >"$$dir/picks.json" && gzip -9n <"$$dir/picks.json" >$(KETAMA)/picks.json.gz
