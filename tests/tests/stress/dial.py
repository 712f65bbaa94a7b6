"""Dials from inside a pod for a test outside of it.

In: "ADDRESS PORT COUNT" as one message on standard input, a Unix socket. Out: as many connected sockets over the same
one, with SCM_RIGHTS. They belong to the pod's namespace and cgroup, wherever they are used.
"""

import socket

with socket.socket(fileno=0) as control:
    while command := control.recv(200).decode().split():
        address, port, count = command[0], int(command[1]), int(command[2])
        for _ in range(count):
            with socket.create_connection((address, port), timeout=20) as dialled:
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                socket.send_fds(control, [b"."], [dialled.fileno()])
