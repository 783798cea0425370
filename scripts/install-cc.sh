#!/bin/sh
# Makes sure that there is a C compiler where go test -race needs one: Go's race
# detector is linked with cgo, except on macOS.
set -eu

# shellcheck disable=SC2046 # the first word is the compiler, the rest options
set -- $(go env CC)
if [ "$(uname -s)" = Darwin ] || command -v "$1" >/dev/null; then
	exit
fi

# shellcheck source=scripts/packages.sh
. "$(dirname "$0")/packages.sh"

say "installing a C compiler, for the race detector, with the package manager"
install_packages "gcc libc6-dev" gcc "gcc musl-dev" gcc || {
	say "no C compiler could be installed; install gcc by hand"
	exit 1
}
