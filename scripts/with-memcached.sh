#!/bin/sh
# Runs a command with a memcached whose address is in MEMCACHED_ADDR, and leaves
# nothing behind:
#
#	scripts/with-memcached.sh go run ./examples/quickstart
#
# The memcached is, in this order: the one at MEMCACHED_ADDR if that is set; the
# local binary; a container, if Docker runs; a binary that the package manager
# installs (which stays). It gets a free port, so that one on 11211 is left in
# peace. The exit code is the command's.
set -eu

if [ $# -eq 0 ]; then
	echo "usage: $0 COMMAND [ARGUMENT…]" >&2
	exit 2
fi
if [ -n "${MEMCACHED_ADDR:-}" ]; then
	exec "$@"
fi

scripts=$(dirname "$0")
search=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin

say() { echo "with-memcached: $*" >&2; }

dir='' server='' container=''
cleanup() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" || true
	fi
	if [ -n "$container" ]; then
		docker rm -f "$container" >/dev/null || true
	fi
	if [ -n "$dir" ]; then
		rm -rf "$dir"
	fi
	server='' container='' dir=''
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# start_binary lets the memcached take a free port itself; it writes the port
# into a file once it listens.
start_binary() {
	user=''
	if [ "$(id -u)" -eq 0 ]; then
		user='-u root' # or it could not write the file
	fi
	dir=$(mktemp -d)
	# shellcheck disable=SC2086 # two words or none
	MEMCACHED_PORT_FILENAME=$dir/port "$1" -l 127.0.0.1 -p -1 -U 0 $user >"$dir/log" 2>&1 &
	server=$!
	tries=100
	until [ -s "$dir/port" ]; do
		if [ "$tries" -eq 0 ] || ! kill -0 "$server" 2>/dev/null; then
			cat "$dir/log" >&2
			say "$1 does not start"
			return 1
		fi
		tries=$((tries - 1))
		sleep 0.1
	done
	MEMCACHED_ADDR=127.0.0.1:$(sed -n 's/^TCP INET: //p' "$dir/port")
	say "$1 on $MEMCACHED_ADDR"
}

start_container() {
	image=$(sh "$scripts/choose-image.sh") || return 1
	container=$(docker run -d --rm -p 127.0.0.1::11211 "$image") || return 1
	MEMCACHED_ADDR=$(docker port "$container" 11211/tcp | sed -n '/^127\.0\.0\.1:/p')
	tries=50
	until answers "$MEMCACHED_ADDR"; do
		if [ "$tries" -eq 0 ]; then
			say "a container of $image does not answer on $MEMCACHED_ADDR"
			cleanup
			return 1
		fi
		tries=$((tries - 1))
		sleep 0.1
	done
	say "a container of $image on $MEMCACHED_ADDR"
}

# answers needs bash, which alone of the shells opens connections.
answers() {
	if ! command -v bash >/dev/null; then
		sleep 1
		return
	fi
	# shellcheck disable=SC2016 # expanded by bash
	bash -c '
		exec 3<>"/dev/tcp/${1%:*}/${1##*:}" && printf "version\r\n" >&3 &&
		IFS= read -r -t 2 line <&3 && [ "${line#VERSION}" != "$line" ]
	' bash "$1" 2>/dev/null
}

if binary=$(PATH=$search command -v memcached); then
	start_binary "$binary"
elif ! start_container; then
	binary=$(sh "$scripts/install-memcached.sh")
	start_binary "$binary"
fi

export MEMCACHED_ADDR
"$@"
