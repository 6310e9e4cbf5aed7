"""A WebSocket session: websocket.py ADDRESS HOST. Prints how many messages came back as they were sent."""

import json
import sys

from websockets.sync.client import connect

address, host = sys.argv[1:]
node, port = address.rsplit(":", 1)
# The name is for the Host header only: the connection goes to the address.
with connect(f"ws://{host}:{port}/", host=node, port=int(port), proxy=None, open_timeout=20) as socket:
    seen = json.loads(socket.recv(timeout=20))
    assert seen["protocol"] == "websocket", seen
    assert seen["host"].startswith(host), seen
    messages = ["text", "", b"\x00\xff", "a" * 1_000_000, b"b" * 70_000] * 10
    for message in messages:
        socket.send(message)
        # Pings and fragments are part of the protocol, not of the messages.
        assert socket.ping().wait(20), "no pong"
        assert socket.recv(timeout=20) == message
    socket.send(["in ", "three ", "frames"])
    assert socket.recv(timeout=20) == "in three frames"
    socket.close()
    print(f"{len(messages)} messages, closed with {socket.close_code}")
