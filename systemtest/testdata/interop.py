"""Writes or reads the keys on standard input, with values that name them:

    interop.py set|get SERVER...

A server is host:port, host:port:weight or the path of a Unix socket.
"""

import sys

import pylibmc

command, *servers = sys.argv[1:]
# Which implies MD5 for the keys.
client = pylibmc.Client(servers, behaviors={"ketama_weighted": True})
values = {key: b"value of " + key.encode() for key in sys.stdin.read().split()}
if command == "set":
    failed = client.set_multi(values)
else:
    found = client.get_multi(list(values))
    failed = [key for key in values if found.get(key) != values[key]]
if failed:
    sys.exit(f"{command} failed for {len(failed)} of {len(values)} keys")
