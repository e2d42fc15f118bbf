"""Calls home: a port of the machine's loopback, a name, an abstract and a real socket of this machine."""

# test: assert candidate(PORT)

import socket


def f(port):
    reached = []
    for host in ("127.0.0.1", "localhost", "::1", "10.0.2.2", "172.17.0.1"):
        try:
            socket.create_connection((host, port), timeout=0.1).sendall(b"hello")
            reached.append(host)
        except OSError:
            pass
    for path in ("/var/run/docker.sock", "/run/dbus/system_bus_socket", "\0hostile"):
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
            reached.append(path)
        except OSError:
            pass
    return reached
