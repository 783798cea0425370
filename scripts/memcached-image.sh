#!/bin/sh
# Builds a Docker image from the memcached of this machine and the libraries
# that it needs, for where no registry can be reached:
#
#	scripts/memcached-image.sh [NAME]    (default memcacheddriver-test:local)
#
# Prints the name. Does nothing else if the image is there already. Like the
# official image it listens on port 11211, not as root, and takes arguments.
set -eu

name=${1:-memcacheddriver-test:local}
if docker image inspect "$name" >/dev/null 2>&1; then
	echo "$name"
	exit
fi

if [ "$(uname -s)" != Linux ]; then
	echo "memcached-image: only a Linux memcached can run in a container; this is $(uname -s)" >&2
	exit 1
fi
memcached=$(sh "$(dirname "$0")/install-memcached.sh")

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/usr/bin" "$root/etc"
cp -L "$memcached" "$root/usr/bin/memcached"
# "libevent.so => /lib/libevent.so (0x…)" or "/lib64/ld-linux.so (0x…)"
ldd "$memcached" | sed -n 's/^[^/]*\(\/[^ ]*\).*/\1/p' | while read -r library; do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
echo 'nobody:x:65534:65534:nobody:/:/none' >"$root/etc/passwd"
chmod -R a+rX "$root"

tar -C "$root" -cf - . | docker import \
	--change 'ENTRYPOINT ["/usr/bin/memcached"]' \
	--change 'USER 65534' \
	--change 'EXPOSE 11211' \
	- "$name" >/dev/null
echo "$name"
