# shellcheck shell=sh
# For the install scripts, which source it: packages, by the package manager
# that this machine has.

have() { command -v "$1" >/dev/null 2>&1; }

say() { echo "$(basename "$0" .sh): $*" >&2; }

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

# install_packages APT DNF APK BREW installs the packages with the name that
# they have there. It is silent unless it fails.
install_packages() {
	log=$(mktemp)
	if install_loudly "$@" >"$log" 2>&1; then
		rm -f "$log"
	else
		cat "$log" >&2
		rm -f "$log"
		return 1
	fi
}

# The names are split into words.
# shellcheck disable=SC2086
install_loudly() {
	if have apt-get; then
		# A broken source of something else is no reason to stop.
		as_root apt-get update -q || true
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $1
	elif have dnf; then
		as_root dnf install -qy $2
	elif have apk; then
		as_root apk add -q $3
	elif have brew; then
		brew install -q $4
	else
		say "no apt-get, dnf, apk or brew here"
		return 1
	fi
}
