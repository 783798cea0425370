#!/bin/sh
# Makes sure that there is a Python with pylibmc (libmemcached for Python), with
# the package manager if need be, and prints its path. The tests read what it
# writes, and the other way round. Homebrew has no such package.
set -eu

find_python() {
	# A Python of the user's own does not see the system's packages.
	for python in python3 /usr/bin/python3; do
		if "$python" -c 'import pylibmc' 2>/dev/null; then
			command -v "$python"
			return
		fi
	done
	return 1
}

find_python && exit

# shellcheck source=scripts/packages.sh
. "$(dirname "$0")/packages.sh"

say "installing pylibmc with the package manager"
if ! install_packages python3-pylibmc python3-pylibmc py3-pylibmc pylibmc || ! find_python; then
	say "no pylibmc could be installed; install one by hand: pip install pylibmc"
	exit 1
fi
