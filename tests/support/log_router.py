"""A log router as a program of a test image: what fluent-bit does with FireLens's configuration, as far as tests need it.

It takes its unix socket and its port from the generated configuration, and prints each record that it gets, each
OUTPUT section once, and at the end how many records there were. MessagePack by hand: the image has Python only.
"""

PROGRAM = r"""
import json, os, re, signal, socket, struct, sys, threading
CONFIG = "/fluent-bit/etc/fluent-bit.conf"
seen, lock = [0], threading.Lock()

def say(**what):
    with lock:
        print(json.dumps(what), flush=True)

def unpack(read):
    kind = read(1)[0]
    if kind < 0x80: return kind
    if kind < 0x90: return {unpack(read): unpack(read) for _ in range(kind & 15)}
    if kind < 0xa0: return [unpack(read) for _ in range(kind & 15)]
    if kind < 0xc0: return read(kind & 31).decode()
    if kind == 0xc0: return None
    if kind in (0xc2, 0xc3): return kind == 0xc3
    if kind == 0xc7: return read(read(1)[0] + 1)
    if kind == 0xd7: return struct.unpack(">xII", read(9))
    if kind in (0xcc, 0xcd, 0xce, 0xcf):
        return int.from_bytes(read(1 << kind - 0xcc), "big")
    if kind in (0xd9, 0xda, 0xdb):
        return read(int.from_bytes(read(1 << kind - 0xd9), "big")).decode()
    if kind in (0xdc, 0xdd):
        return [unpack(read) for _ in range(int.from_bytes(read(2 << kind - 0xdc), "big"))]
    if kind in (0xde, 0xdf):
        return {unpack(read): unpack(read) for _ in range(int.from_bytes(read(2 << kind - 0xde), "big"))}
    raise ValueError(hex(kind))

def serve(connection, via):
    stream = connection.makefile("rb")
    def read(size):
        data = stream.read(size)
        if len(data) < size:
            raise EOFError
        return data
    try:
        while True:
            tag, records, option = unpack(read)
            for time, record in records:
                seen[0] += 1
                say(via=via, tag=tag, time=time, record=record)
    except (EOFError, OSError):
        pass

def listen(listener, via):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], via), daemon=True).start()

def expand(text):
    return re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m.group(1), ""), text)

text = re.sub(r"(?m)^@INCLUDE (.*)$", lambda m: open(m.group(1)).read(), open(CONFIG).read())
for kind, body in re.findall(r"\[(\w+)\]\n((?:    .*\n)*)", text):
    entries = dict(line.strip().split(" ", 1) for line in body.splitlines())
    if kind == "INPUT" and "unix_path" in entries:
        if os.path.exists(entries["unix_path"]):
            os.unlink(entries["unix_path"])
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(entries["unix_path"])
        listener.listen()
        threading.Thread(target=listen, args=(listener, "unix"), daemon=True).start()
    elif kind == "INPUT":
        listener = socket.create_server((entries["Listen"], int(entries["Port"])))
        threading.Thread(target=listen, args=(listener, "tcp"), daemon=True).start()
    elif kind == "OUTPUT":
        say(output={k: len(expand(v)) if v.startswith("${") else v for k, v in entries.items()})
    elif kind == "FILTER":
        say(filter=[line.strip() for line in body.splitlines()])

def end(*_):
    say(ended=seen[0])
    os._exit(0)

signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""

APP = r"""
import os, signal, socket, struct, sys, threading, time
def text(value):
    data = value.encode()
    return b"\xdb" + struct.pack(">I", len(data)) + data
def end(*_):
    print("last words", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("first words", flush=True)
print("a complaint", file=sys.stderr, flush=True)
print("x" * 100_000, flush=True)
while True:
    try:
        router = socket.create_connection((os.environ["FLUENT_HOST"], int(os.environ["FLUENT_PORT"])))
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
record = b"\x92" + b"\x01" + b"\x81" + text("log") + text("from a library")
router.sendall(b"\x93" + text("app-firelens-own") + b"\x91" + record + b"\x80")
while True:
    signal.pause()
"""
