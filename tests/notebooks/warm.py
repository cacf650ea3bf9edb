"""Kernels that begin with the heavy libraries imported: thirty chapters need not import torch thirty times.

A server imports the libraries once and, for each kernel, makes a copy of itself (fork): a fresh process with its own
memory, its own copy of prodsim still to be imported, and eight seconds less to wait. Jupyter starts `warm.py start` as
it would start any kernel; that small process asks the server for the copy, passes signals on, and lives as long as it.
`make test-full` runs the chapters at their readers' defaults in ordinary kernels.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

LIBRARIES = (
    "datasets", "IPython.core.pylabtools", "ipykernel.kernelapp", "lightgbm", "matplotlib.pyplot", "pandas",
    "rapidfuzz.fuzz", "scipy.stats", "sentence_transformers", "sklearn.feature_extraction.text", "sklearn.linear_model",
    "torch", "transformers.trainer",
)  # fmt: skip
LONGEST = 1 << 20  # bytes of a request; an environment may be long


class WarmKernels:
    "The server as a child of this process, and the kernel specification that leads to it; both end with this process."

    def __init__(self, folder: Path):  # an own, empty one: the socket's name must be short
        self.address = folder / "socket"
        spec = {"argv": [sys.executable, "-S", "-E", __file__, "start", str(self.address), "{connection_file}"]}
        spec |= {"display_name": "warm", "language": "python", "interrupt_mode": "signal"}
        (folder / "kernels/warm").mkdir(parents=True)
        (folder / "kernels/warm/kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("JUPYTER_PATH"))))
        # matplotlib reads at its import where to draw: in the page, as in every kernel
        environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        command = [sys.executable, __file__, "serve", str(self.address)]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        if self.server.stdout.readline() != b"ready\n":
            raise RuntimeError("the server of warm kernels did not start, see its message above")


def serve(address: str) -> None:
    "Import, then answer every request with a copy of this process, until the process that started it ends."
    for name in LIBRARIES:
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they end the kernels
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    os.write(1, b"ready\n")
    while True:
        readable, _, _ = select.select([listener, 0], [], [])
        if 0 in readable:  # closed: the tests are over
            os._exit(0)
        connection, _ = listener.accept()
        message, pipes, _, _ = socket.recv_fds(connection, LONGEST, 3)
        while not message.endswith(b"\n"):
            message += connection.recv(LONGEST)
        if os.fork() == 0:
            listener.close()
            become_kernel(connection, json.loads(message), pipes)
        connection.close()
        for pipe in pipes:
            os.close(pipe)


def become_kernel(connection: socket.socket, request: dict, pipes: list[int]) -> None:
    "What a kernel's process does, with the folder, environment and outputs of the one that asked for it."
    for number, pipe in enumerate(pipes):
        os.dup2(pipe, number)
        os.close(pipe)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["ipykernel_launcher", *request["arguments"]]
    sys.path[0] = ""  # where a kernel looks first: the folder it runs in
    connection.sendall(f"{os.getpid()}\n".encode())

    def end_with_the_one_that_asked():
        connection.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_the_one_that_asked, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    try:
        IPKernelApp.launch_instance()
    finally:
        sys.stdout.flush()
        os._exit(0)


def start(address: str, *arguments: str) -> None:
    "Ask for a kernel, pass signals on to it, and end when it does or when nobody is left who wants it."
    environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}  # the kernel's parent is the server
    request = {"folder": os.getcwd(), "environment": environment, "arguments": ["-f", *arguments]}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
    kernel = int(connection.makefile().readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel, number))
    parent = os.getppid()
    while os.getppid() == parent and not select.select([connection], [], [], 1)[0]:
        pass  # until the kernel has ended, or the tests were killed: then it ends with this connection


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
