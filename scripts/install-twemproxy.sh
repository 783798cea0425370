#!/bin/sh
# Makes sure that there is a twemproxy (nutcracker), with the package manager if
# need be, and prints its path. The tests put one in front of their servers.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/usr/local/bin:/opt/homebrew/sbin:/opt/homebrew/bin
command -v nutcracker && exit

# shellcheck source=scripts/packages.sh
. "$(dirname "$0")/packages.sh"

say "installing twemproxy with the package manager"
if ! install_packages nutcracker twemproxy twemproxy twemproxy || ! command -v nutcracker; then
	say "no twemproxy could be installed; install one by hand: the program nutcracker"
	exit 1
fi
