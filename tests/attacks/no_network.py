"""A network namespace that ends at its own loopback, and a watch that sees every packet that would have left it.

``unshare -rn python no_network.py SEEN.json COMMAND…``. Every address is made this namespace's own, so whatever is sent goes
round the loopback: name look-ups, native code and child processes too, none of which Python's audit hooks would see. Nobody
listens, so nothing is answered. Exits as the command does; ``SEEN.json`` lists what was sent to any but the loopback's address.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

_ALL, _IPV4, _IPV6 = 0x0003, 0x0800, 0x86DD
_TCP, _UDP, _DNS = 6, 17, 53
_NAMES = {_TCP: "TCP", _UDP: "UDP"}
_SYN, _ACK = 0x02, 0x10


def close_network() -> None:
    """Only the loopback is there, and every address is its own."""
    for words in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
        subprocess.run(["ip", *words.split()], check=True)


def described(packet: bytes, kind: int) -> str | None:
    """Where a datagram or a new connection goes, with the name that it asks for; None where that is the loopback."""
    if kind == _IPV4:
        where: IPv4Address | IPv6Address = IPv4Address(packet[16:20])
        protocol, body = packet[9], packet[(packet[0] & 15) * 4 :]
    elif kind == _IPV6:
        where, protocol, body = IPv6Address(packet[24:40]), packet[6], packet[40:]
    else:
        return None
    if protocol not in _NAMES or where.is_multicast:  # the kernel's own, of every link
        return None
    port = int.from_bytes(body[2:4], "big")
    opening = protocol == _UDP or body[13] & (_SYN | _ACK) == _SYN
    if not opening or (where.is_loopback and port != _DNS):
        return None
    asked = "".join(chr(c) if 32 < c < 127 else "." for c in body[20:].rstrip(b"\0")) if port == _DNS else ""
    return f"{_NAMES[protocol]} {where} port {port} {asked}".rstrip()


class Watch(threading.Thread):
    """Reads every packet of the loopback until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**26)  # as much as the system allows
        self.socket.settimeout(0.2)
        self.seen: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                packet, (_, kind, way, *_) = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            if way == socket.PACKET_OUTGOING and (line := described(packet, kind)):
                self.seen.append(line)

    def lost(self) -> int:
        return struct.unpack("II", self.socket.getsockopt(263, 6, 8))[1]  # SOL_PACKET, PACKET_STATISTICS


if __name__ == "__main__":
    close_network()
    watch = Watch()
    watch.start()
    code = subprocess.run(sys.argv[2:], check=False).returncode
    threading.Event().wait(1.5)  # a report may be sent by a child that outlives the command
    watch.over.set()
    watch.join()
    Path(sys.argv[1]).write_text(json.dumps({"seen": watch.seen, "lost": watch.lost()}))
    sys.exit(code)
