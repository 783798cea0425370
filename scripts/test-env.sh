#!/bin/sh
# Runs a command, go test for one, with all that the tests need:
#
#	scripts/test-env.sh go test -race ./...
#
# memcached and twemproxy in PATH, pylibmc, and a C compiler for the race detector,
# installed if missing; and, if the docker command works, the image to make
# containers of in MEMCACHED_IMAGE and the settings of testcontainers-go that this
# machine calls for. Without Docker, the tests run the same cases against local processes.
set -eu

scripts=$(dirname "$0")
sh "$scripts/install-cc.sh"
memcached=$(sh "$scripts/install-memcached.sh")
twemproxy=$(sh "$scripts/install-twemproxy.sh")
if [ "$(uname -s)" != Darwin ]; then # there the tests with it are skipped
	sh "$scripts/install-pylibmc.sh" >/dev/null || : # they fail, and all others run
fi
PATH=$PATH:$(dirname "$memcached"):$(dirname "$twemproxy")
export PATH

# With which testcontainers removes the containers of tests that were killed.
reaper=testcontainers/ryuk:0.14.0

if image=$(sh "$scripts/choose-image.sh"); then
	export MEMCACHED_IMAGE="$image"
	# An image is built here only where there is no registry.
	if [ -z "${TESTCONTAINERS_RYUK_DISABLED:-}" ] &&
		{ [ "$image" = memcacheddriver-test:local ] || ! sh "$scripts/have-image.sh" "$reaper"; }; then
		export TESTCONTAINERS_RYUK_DISABLED=true
	fi
	# In a container, testcontainers expects its ports on the gateway. They are
	# on the loopback address if the daemon runs in the same container.
	if [ -f /.dockerenv ] && [ "$(docker info -f '{{.Name}}')" = "$(uname -n)" ]; then
		export TESTCONTAINERS_HOST_OVERRIDE="${TESTCONTAINERS_HOST_OVERRIDE:-127.0.0.1}"
	fi
else
	# testcontainers may find a Docker all the same, but nobody knows its images.
	export TESTCONTAINERS_RYUK_DISABLED="${TESTCONTAINERS_RYUK_DISABLED:-true}"
fi

exec "$@"
