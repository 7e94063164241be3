#!/usr/bin/env python3
"""A client for berth's frames (protocol.md), as a module and as a program:

    client.py [--tls CERT.PEM] HOST:PORT|SOCKET USER WHAT...

WHAT is put FILE NAME, get NAME FILE, ls [PATH], run COMMAND [ARGUMENT...], shell LINE, or another request
with its fields, as mkdir path=photos. The password is taken from BERTH_PASSWORD; the local socket needs none.
"""
import hashlib, json, os, socket, ssl, struct, sys

class Refused(Exception):
    """The final answer was no success; args[0] is all of it."""

class Berth:
    def __init__(self, address, cafile=None):
        """address: HOST:PORT, or the path of the local socket. cafile: certificates to trust, for TLS."""
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host.strip("[]"), int(port))) if host else socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)  # a request that runs is heard of every 30 seconds
        if not host:
            self.sock.connect(address)
        self.file = self.sock.makefile("rb")
        self.line(b"", "220")
        if cafile:
            self.line(b"AUTH TLS\r\n", "234")
            self.sock = ssl.create_default_context(cafile=cafile).wrap_socket(self.sock, server_hostname=host.strip("[]"))
            self.file = self.sock.makefile("rb")
        self.line(b"FRAM 1\r\n", "200")

    def line(self, send, want):
        self.sock.sendall(send)
        line = self.file.readline().decode()
        if not line.startswith(want):
            raise ConnectionError(line.strip() or "the server closed the connection")

    def send(self, kind, payload):
        payload = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.sock.sendall(struct.pack(">IB", len(payload), ord(kind)) + payload)

    def read(self, n):
        data = self.file.read(n)
        if len(data) < n:
            raise ConnectionError("the server closed the connection")
        return data

    def answer(self, **take):
        """Returns the next answer. What comes before it goes to take, by type: D, E, F, M."""
        while True:
            length, kind = struct.unpack(">IB", self.read(5))
            payload = self.read(length)
            if chr(kind) == "A":
                answer = json.loads(payload)
                if answer["code"] >= 400:
                    raise Refused(answer)
                return answer
            take.get(chr(kind), len)(payload)  # len: nobody wants it

    def request(self, fields, **take):
        """Returns the final answer, with what the preliminary one told."""
        self.send("R", fields)
        answer = self.answer(**take)
        while answer["code"] < 200:
            answer = {**answer, **self.answer(**take)}
        return answer

    def put(self, source, path):
        """Sends a binary file; the server compares the digest before the file takes its name."""
        self.send("R", {"do": "put", "path": path})
        self.answer()  # 150: now is the time to hear that it may not be
        digest, size = hashlib.sha256(), 0
        while piece := source.read(1 << 18):
            self.send("D", piece)
            digest.update(piece)
            size += len(piece)
        self.send("F", {"size": size, "sha256": digest.hexdigest()})
        return self.answer()

    def get(self, path, target):
        """Fetches into a binary file; OSError if what came is not what the server read."""
        digest, end = hashlib.sha256(), {}
        answer = self.request({"do": "get", "path": path}, F=lambda b: end.update(json.loads(b)),
                              D=lambda b: (target.write(b), digest.update(b)))
        if end.get("sha256") != digest.hexdigest():
            raise OSError(f"{path} arrived damaged; get it again")
        return answer

    def list(self, path=""):
        lines = []
        self.request({"do": "list", "path": path}, D=lines.append)
        return [json.loads(line) for line in b"".join(lines).splitlines()]

def main(args):
    cafile, args = (args[1], args[2:]) if args[0] == "--tls" else (None, args)
    address, user, what, *rest = args
    password = os.environ.get("BERTH_PASSWORD")
    berth = Berth(address, cafile)
    berth.request({"do": "login", "user": user, "password": password} if password else {"do": "login", "user": user})
    if what == "put":
        with open(rest[0], "rb") as source:
            berth.put(source, rest[1])
    elif what == "get":
        with open(rest[1] + ".part", "wb") as target:
            berth.get(rest[0], target)
        os.replace(rest[1] + ".part", rest[1])
    elif what == "ls":
        for entry in berth.list(*rest):
            print(entry["mode"], f'{entry["size"]:12}', entry["mtime"], entry["name"])
    elif what in ("run", "shell"):
        fields = {"command": rest[0], "args": rest[1:]} if what == "run" else {"shell": rest[0]}
        write = lambda out: lambda b: (out.buffer.write(b), out.flush())
        answer = berth.request({"do": "exec", **fields}, D=write(sys.stdout), E=write(sys.stderr))
        return answer["exit"] if answer["reason"] == "exited" else answer["text"]
    else:
        print(json.dumps(berth.request({"do": what, **dict(field.split("=", 1) for field in rest)})))

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as no:
        sys.exit("client.py: " + no.args[0]["text"])
    except (IndexError, ValueError) as wrong:
        sys.exit(f"client.py: {wrong}\n{__doc__}")
    except OSError as wrong:
        sys.exit(f"client.py: {wrong}")
