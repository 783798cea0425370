#!/bin/sh
# Makes sure that there are a memcached and a redis-server binary, with the
# package manager if need be. bench starts its own servers with them.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin

have() { command -v "$1" >/dev/null 2>&1; }

say() { echo "bench/setup: $*" >&2; }

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif have sudo; then
		sudo "$@"
	else
		say "'$*' needs root, and there is no sudo"
		return 1
	fi
}

# Debian's package starts a server on port 6379 at once; nobody asked for that.
install() {
	if have apt-get; then
		as_root apt-get update -q || true # a broken source of something else
		as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -qy --no-install-recommends redis-server || return 1
		if [ -d /run/systemd/system ]; then
			as_root systemctl disable --now redis-server || true
		elif [ -x /etc/init.d/redis-server ]; then
			as_root /etc/init.d/redis-server stop || true
		fi
	elif have dnf; then
		as_root dnf install -qy redis || as_root dnf install -qy valkey-compat-redis
	elif have apk; then
		as_root apk add -q redis
	elif have brew; then
		brew install -q redis
	else
		say "no apt-get, dnf, apk or brew here"
		return 1
	fi
}

sh "$(dirname "$0")/../scripts/install-memcached.sh" >/dev/null
have redis-server && exit

say "installing redis-server with the package manager"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! install >"$log" 2>&1 || ! have redis-server; then
	cat "$log" >&2
	say "no redis-server could be installed; install one by hand"
	exit 1
fi
