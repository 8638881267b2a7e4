"""A local Ray can't be reached from another machine."""

import ipaddress
import os
import socket
import sys
from pathlib import Path

import pytest
import ray  # noqa: F401 - before any of our code, as in a program that uses Ray itself

from isoloop.sweeps.execution.ray_cluster import RayCluster

LISTEN = "0A"


def descendants(pid):
    """Return the process and everything that it has started, from /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    pids, todo = set(), [pid]
    while todo:
        pids.add(todo[-1])
        todo += parents.get(todo.pop(), [])
    return pids


def listening(pids):
    """Addresses that these processes listen on."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(handle))
            except OSError:
                continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTEN and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                addresses.append(getattr(address, "ipv4_mapped", None) or address)
    return addresses


@pytest.mark.skipif(sys.platform != "linux" or sys.byteorder != "little", reason="reads Linux's /proc")
def test_a_local_ray_listens_on_the_loopback_address_alone(no_ray, monkeypatch):
    """It is started although Ray's own variable names another one."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where no Ray is
    before = set(descendants(os.getpid()))  # of other tests, which may take a moment to end
    with socket.create_server(("0.0.0.0", 0)), RayCluster() as cluster:
        cluster.ray.get(cluster.ray.remote(lambda: None).remote())  # a worker has started
        addresses = listening([os.getpid(), *(set(descendants(os.getpid())) - before)])
    ours = [address for address in addresses if address == ipaddress.ip_address("0.0.0.0")]
    assert len(ours) == 1, "what this test opened itself is seen, so the others would be"
    assert len(addresses) > 4
    assert all(address.is_loopback for address in addresses if address not in ours)
