"""Connects to a Unix socket for ssh(1) and passes the connection on: ``ssh_connect.py SOCKET``

A ProxyCommand with ProxyUseFdpass (ssh_config(5)): standard output is a socket on which ssh waits for a descriptor, so
ssh then talks to the guest directly. Run as a file, with ``python -I -S``, because it imports almost nothing.
"""

from __future__ import annotations

import socket
import sys

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as connection, socket.socket(fileno=sys.stdout.fileno()) as ssh:
        try:
            connection.connect(sys.argv[1])
            socket.send_fds(ssh, [b"\0"], [connection.fileno()])
        except OSError as error:
            sys.exit(
                f"hugepfn: cannot connect to {sys.argv[1]}: {error.strerror}; `hugepfn sessions` lists the live ones"
            )
