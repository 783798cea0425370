#!/bin/sh
# Prints the Memcached image to make containers of: MEMCACHED_IMAGE if set, else
# the official one, pulled if need be, else one built from the local memcached
# (where there is one). Fails, and says why, if Docker does not run or there is
# no image.
set -eu

official=memcached:1.6-alpine
here=memcacheddriver-test:local
pull_seconds=30

say() { echo "choose-image: $*" >&2; }

present() { docker image inspect "$1" >/dev/null 2>&1; }

# A registry that cannot be reached may let a pull hang for minutes.
pull() {
	docker pull -q "$1" >/dev/null 2>&1 &
	pull=$!
	left=$pull_seconds
	while kill -0 "$pull" 2>/dev/null; do
		if [ "$left" -eq 0 ]; then
			kill "$pull"
		fi
		left=$((left - 1))
		sleep 1
	done
	wait "$pull"
}

if ! docker info >/dev/null 2>&1; then
	say "Docker does not run"
	exit 1
fi

if [ -n "${MEMCACHED_IMAGE:-}" ]; then
	present "$MEMCACHED_IMAGE" || pull "$MEMCACHED_IMAGE" || {
		say "MEMCACHED_IMAGE=$MEMCACHED_IMAGE is not here and cannot be pulled"
		exit 1
	}
	echo "$MEMCACHED_IMAGE"
elif present "$official"; then
	echo "$official"
elif present "$here"; then
	echo "$here"
elif pull "$official"; then
	echo "$official"
elif PATH=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin command -v memcached >/dev/null; then
	say "$official cannot be pulled: building $here from the local memcached"
	sh "$(dirname "$0")/memcached-image.sh" "$here"
else
	say "$official cannot be pulled, and there is no local memcached to build an image from"
	exit 1
fi
