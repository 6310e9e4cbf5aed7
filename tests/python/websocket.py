"""A WebSocket session: websocket.py ADDRESS HOST. Prints how many messages came back as they were sent."""

import json
import socket
import sys

from websockets.sync.client import connect

address, host = sys.argv[1:]
node, port = address.rsplit(":", 1)
# The name is for the Host header only: the connection goes to the address.
connection = socket.create_connection((node, int(port)), timeout=20)
with connect(f"ws://{host}:{port}/", sock=connection, proxy=None, open_timeout=20) as session:
    seen = json.loads(session.recv(timeout=20))
    assert seen["protocol"] == "websocket", seen
    assert seen["host"].startswith(host), seen
    messages = ["text", "", b"\x00\xff", "a" * 1_000_000, b"b" * 70_000] * 10
    for message in messages:
        session.send(message)
        # Pings and fragments are part of the protocol, not of the messages.
        assert session.ping().wait(20), "no pong"
        assert session.recv(timeout=20) == message
    session.send(["in ", "three ", "frames"])
    assert session.recv(timeout=20) == "in three frames"
    session.close()
    print(f"{len(messages)} messages, closed with {session.close_code}")
