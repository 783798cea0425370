#!/bin/sh
# Makes sure that there is a memcached binary, with the package manager if need
# be, and prints its path. The tests start their own servers with it.
# Says nothing else, but for an installation (on standard error).
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin
command -v memcached && exit

# shellcheck source=scripts/packages.sh
. "$(dirname "$0")/packages.sh"

say "installing memcached with the package manager"
if ! install_packages memcached memcached memcached memcached || ! command -v memcached; then
	say "no memcached could be installed; install one by hand, or set MEMCACHED_ADDR for what needs only a server"
	exit 1
fi

# Debian's package starts a server on port 11211 at once; nobody asked for that.
if [ -d /run/systemd/system ]; then
	as_root systemctl disable --now memcached
elif [ -x /etc/init.d/memcached ]; then
	as_root /etc/init.d/memcached stop
fi >/dev/null 2>&1 || true
