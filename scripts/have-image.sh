#!/bin/sh
# Makes sure that Docker has an image: pulls what is not there, and fails if that
# takes too long, as a registry that cannot be reached may let it hang for minutes.
#
#	scripts/have-image.sh IMAGE
set -eu

seconds=30

if docker image inspect "$1" >/dev/null 2>&1; then
	exit
fi
docker pull -q "$1" >/dev/null 2>&1 &
pull=$!
while kill -0 "$pull" 2>/dev/null; do
	if [ "$seconds" -eq 0 ]; then
		kill "$pull"
	fi
	seconds=$((seconds - 1))
	sleep 1
done
wait "$pull"
