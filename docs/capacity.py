#!/usr/bin/env python3
"""capacity.py measures what berth takes on this machine: the tables of docs/operations.md, "What a box takes".

    docs/capacity.py                                   all of them, some five minutes
    docs/capacity.py idle transfers                    some: idle transfers users listing logins
    docs/capacity.py --memory 64M --idle 1000 --transfers 64 --kind up-tls
                                                       whether that fits into so much memory (as root)

It starts a berth of its own (BERTH, or the one in PATH) on port 32121 of loopback with all its files in a new
directory (DIR, default /var/tmp; 2 GiB), asks /proc what it takes, and removes everything. --cpu N keeps berth to
that core, and curl, which does the transfers, to the others. Besides curl it needs nothing but Python.
"""

import argparse, concurrent.futures, ftplib, os, resource, shutil, signal, socket, ssl, subprocess, sys, tempfile, time

PORT, PASSWORD, GIB = 32121, "capacity", 1 << 30
LISTED = 100000
KINDS = {"down": "download, plain", "up": "upload, plain", "down-tls": "download, TLS", "up-tls": "upload, TLS"}


class Berth:
    """A daemon with so many users, u0 to u..., who share a password and have a home each."""

    def __init__(self, options, users=1):
        self.dir = tempfile.mkdtemp(prefix="berth-capacity-", dir=os.environ.get("DIR", "/var/tmp"))
        self.proc = self.cgroup = None
        self.limit = options.memory
        berth, config = os.environ.get("BERTH", "berth"), self.dir + "/berth.toml"
        with open(config, "w") as f:
            f.write(f'[server]\nstate_dir = "{self.dir}/state"\nusers_dir = "{self.dir}/users"\n'
                    f'[listen]\ncontrol = ["127.0.0.1:{PORT}"]\ndatagram = []\nhttp = ["127.0.0.1:{PORT + 1}"]\nlocal = []\n'
                    '[passive]\nports = "33000-33999"\n[transfer]\ndurable = false\n[log]\nlevel = "error"\n'
                    '[limits]\nsessions = 16000\nsessions_per_address = 16000\nlogin_failures = 100000\nidle = "1h"\n')
        subprocess.run([berth, "user", "add", "u0", "--config", config, "--password-stdin", "--tls", "optional", "--sessions", "16000"],
                       input=PASSWORD, text=True, check=True, stdout=subprocess.DEVNULL)
        with open(self.dir + "/users/u0.toml") as f:
            text = f.read()
        for n in range(1, users):
            with open(f"{self.dir}/users/u{n}.toml", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
                f.write(text)

        if options.memory:
            self.limited(options.memory)

        def prepare():
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            if options.cpu is not None:
                os.sched_setaffinity(0, {options.cpu})
            if options.memory:
                with open(self.cgroup + "/cgroup.procs", "w") as f:
                    f.write(str(os.getpid()))

        self.proc = subprocess.Popen([berth, "serve", "--config", config], preexec_fn=prepare)
        time.sleep(1)
        for _ in range(200):
            if self.proc.poll() is not None:
                break  # it has said why
            try:
                socket.create_connection(("127.0.0.1", PORT), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        raise SystemExit("berth does not answer")

    def limited(self, most):
        base, file = "/sys/fs/cgroup", "memory.max"
        if not os.path.exists(base + "/cgroup.controllers"):
            base, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        self.cgroup = f"{base}/berth-capacity"
        os.makedirs(self.cgroup, exist_ok=True)
        with open(f"{self.cgroup}/{file}", "w") as f:
            f.write(most)

    def rss(self, what="VmRSS"):
        with open(f"/proc/{self.proc.pid}/status") as f:
            return next((int(line.split()[1]) for line in f if line.startswith(what)), 0) / 1024  # 0: it has been killed

    def settle(self):
        """A login, whose hash takes 19 MiB that are given back within a second or two; the next ones need none."""
        self.sessions(1)[0].quit()
        time.sleep(3)

    def cpu(self):
        with open(f"/proc/{self.proc.pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sessions(self, n, tls=False, user=lambda n: "u0"):
        context = ssl._create_unverified_context()
        made = []
        for i in range(n):
            f = ftplib.FTP_TLS(context=context, timeout=60) if tls else ftplib.FTP(timeout=60)
            f.connect("127.0.0.1", PORT)
            f.login(user(i), PASSWORD)
            made.append(f)
        return made

    def transfers(self, n, kind, size):
        """n at once, until all have ended: the most memory seen meanwhile, seconds of berth's processor, and of the clock."""
        home = self.dir + "/state/homes/u0"
        os.makedirs(home, exist_ok=True)
        for path in (home + "/big", self.dir + "/big"):
            if not os.path.exists(path) or os.path.getsize(path) != size:
                with open(path, "wb") as f:
                    for _ in range(size >> 20):
                        f.write(os.urandom(1 << 20))
        self.settle()
        most, cpu, begun = 0, self.cpu(), time.monotonic()
        curls = []
        for i in range(n):
            words = ["curl", "-sS", "-u", f"u0:{PASSWORD}"] + (["-k", "--ssl-reqd"] if kind.endswith("tls") else [])
            url = f"ftp://127.0.0.1:{PORT}/"
            words += [url + "big", "-o", "/dev/null"] if kind.startswith("down") else ["-T", self.dir + "/big", f"{url}up{i}"]
            curls.append(subprocess.Popen(words, stderr=self.limit and subprocess.DEVNULL))
        while any(c.poll() is None for c in curls) and self.proc.poll() is None:
            most = max(most, self.rss())
            time.sleep(0.01)
        failed = sum(c.wait() != 0 for c in curls)
        try:
            self.proc.wait(1 if failed and self.limit else 0)
            return None
        except subprocess.TimeoutExpired:
            pass
        took = time.monotonic() - begun
        for i in range(n):
            if kind.startswith("up"):
                os.unlink(f"{home}/up{i}")
        if failed:
            print(f"{failed} of {n} transfers failed", file=sys.stderr)
        return most, self.cpu() - cpu, took

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            self.proc.send_signal(signal.SIGTERM)  # sessions need not end first
        if self.proc:
            self.proc.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
        if self.cgroup:
            os.rmdir(self.cgroup)


def row(text, *figures):
    print("| " + " | ".join([text, *figures]) + " |", flush=True)


def idle(options):
    for tls, steps in ((False, (100, 1000, 10000)), (True, (100, 1000))):
        with Berth(options) as b:
            row("just started", f"{b.rss():.0f}")
            made = []
            for n in steps:
                made += b.sessions(n - len(made), tls)
                time.sleep(2)
                row(f"{n:,} idle sessions, {'TLS' if tls else 'plain'}", f"{b.rss():.0f}")


def transfers(options):
    for kind, name in KINDS.items():
        if options.kind not in (None, kind):
            continue
        for n in (1, 16, 64):
            with Berth(options) as b:
                most, cpu, took = b.transfers(n, kind, GIB // n)
                row(f"{n} × {name}", f"{most:.0f}", f"{cpu:.1f} s for a GiB", f"{1024 / took:.0f} MiB/s in all")


def users(options):
    with Berth(options, 1000) as b:
        row("1,000 users", f"{b.rss():.0f}")
        for i in range(1000):
            b.sessions(1, user=lambda _: f"u{i}")[0].quit()
        time.sleep(3)
        row("each has been there once", f"{b.rss():.0f}")
        subprocess.run(["curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{PORT + 1}/metrics"], check=True)
        row("and a scrape", f"{b.rss():.0f}")


def listing(options):
    with Berth(options) as b:
        home = b.dir + "/state/homes/u0"
        os.makedirs(home, exist_ok=True)
        for i in range(LISTED):
            open(f"{home}/picture-{i:06}.jpg", "w").close()
        for verb in ("LIST", "MLSD"):
            b.settle()
            f, seen, most, was = b.sessions(1)[0], 0, 0, b.rss()
            begun = time.monotonic()
            data = f.transfercmd(verb)
            while block := data.recv(1 << 20):
                seen, most = seen + block.count(b"\n"), max(most, b.rss())
            data.close()
            f.voidresp()
            if seen < LISTED:
                raise SystemExit(f"{verb} told {seen} names")
            row(f"{verb} of {LISTED:,} names", f"{most - was:.0f} more", f"{time.monotonic() - begun:.1f} s")


def logins(options):
    with Berth(options, 100) as b:
        cpu = b.cpu()
        with concurrent.futures.ThreadPoolExecutor(99) as pool:
            list(pool.map(lambda n: b.sessions(1, user=lambda _: f"u{n}")[0].quit(), range(1, 100)))
        row("99 logins at once, each with a new hash", f"{b.rss('VmHWM'):.0f} at most", f"{(b.cpu() - cpu) / 99 * 1000:.0f} ms each")


def limited(options):
    with Berth(options) as b:
        try:
            made = b.sessions(options.idle)  # kept, or they would end
            fits = len(made) == options.idle
            if options.transfers:
                fits = b.transfers(options.transfers, options.kind, 2 * GIB // options.transfers >> 20 << 20)
        except (OSError, EOFError, ftplib.Error):
            try:
                b.proc.wait(5)
            except subprocess.TimeoutExpired:
                raise SystemExit("a session was refused, and berth was not killed") from None
            fits = None
        print(f"{options.memory}: {options.idle} idle sessions, {options.transfers} × {options.kind}:", "fits" if fits else "killed")


def main():
    tables = {f.__name__: f for f in (idle, transfers, users, listing, logins)}
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(tables))
    p.add_argument("--cpu", type=int, metavar="N", help="the core that berth has")
    p.add_argument("--memory", metavar="SIZE", help="what berth may take, as 64M")
    p.add_argument("--idle", type=int, default=0, metavar="N")
    p.add_argument("--transfers", type=int, default=0, metavar="N")
    p.add_argument("--kind", choices=KINDS, help="of transfers: these alone")
    options = p.parse_args()
    if unknown := set(options.tables) - set(tables):
        p.error(f"there is no table {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and not without ending berth
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.cpu is not None and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {options.cpu})
    if options.memory:
        options.kind = options.kind or "down"
        return limited(options)
    for name in options.tables or tables:
        tables[name](options)


if __name__ == "__main__":
    main()
