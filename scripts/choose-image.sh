#!/bin/sh
# Prints the Memcached image to make containers of: MEMCACHED_IMAGE if set, else
# the official one, pulled if need be, else one built from the local memcached
# (where there is one). Fails, and says why, if Docker does not run or there is
# no image.
set -eu

official=memcached:1.6-alpine
here=memcacheddriver-test:local
scripts=$(dirname "$0")

say() { echo "choose-image: $*" >&2; }

present() { docker image inspect "$1" >/dev/null 2>&1; }

have() { sh "$scripts/have-image.sh" "$1"; }

if ! command -v docker >/dev/null; then
	say "there is no docker command"
	exit 1
fi
if ! error=$(docker info 2>&1 >/dev/null); then
	say "docker info fails: $error"
	exit 1
fi

if [ -n "${MEMCACHED_IMAGE:-}" ]; then
	have "$MEMCACHED_IMAGE" || {
		say "MEMCACHED_IMAGE=$MEMCACHED_IMAGE is not here and cannot be pulled"
		exit 1
	}
	echo "$MEMCACHED_IMAGE"
elif present "$official"; then
	echo "$official"
elif present "$here"; then
	echo "$here"
elif have "$official"; then
	echo "$official"
elif PATH=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin command -v memcached >/dev/null; then
	say "$official cannot be pulled: building $here from the local memcached"
	sh "$scripts/memcached-image.sh" "$here"
else
	say "$official cannot be pulled, and there is no local memcached to build an image from"
	exit 1
fi
