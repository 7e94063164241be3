package main

// docs/client.py is what people copy when they write a client of their own: here it is
// run as they run it, against a berth of its own. The one thing that is not real is a
// relay, because neither berth nor the loopback damages a byte by itself.

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// clientPy runs docs/client.py, or Python code that imports it.
type clientPy struct {
	python, dir string
	docs        string // where client.py is
}

func newClientPy(t *testing.T) *clientPy {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" {
			t.Fatal("docs/client.py needs python3, which is not installed")
		}
		t.Skip("docs/client.py needs python3, which is not installed")
	}
	docs, err := filepath.Abs("docs")
	if err != nil {
		t.Fatal(err)
	}
	return &clientPy{python, t.TempDir(), docs}
}

func (c *clientPy) run(t *testing.T, password string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.python, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "BERTH_PASSWORD="+password, "PYTHONPATH="+c.docs, "PYTHONDONTWRITEBYTECODE=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// call is the program with these arguments; it must end well and print this.
func (c *clientPy) call(t *testing.T, want string, args ...string) {
	t.Helper()
	code, out, errs := c.run(t, "secret", append([]string{filepath.Join(c.docs, "client.py")}, args...)...)
	if code != 0 || errs != "" || !wildcard(want, strings.TrimSuffix(out, "\n")) {
		t.Errorf("client.py %q: exit status %d, %q, %q; want %q", args, code, out, errs, want)
	}
}

// refused must end with status 1 and say this.
func (c *clientPy) refused(t *testing.T, password, want string, args ...string) {
	t.Helper()
	code, out, errs := c.run(t, password, append([]string{filepath.Join(c.docs, "client.py")}, args...)...)
	if code != 1 || out != "" || !wildcard(want, strings.TrimSuffix(errs, "\n")) {
		t.Errorf("client.py %q: exit status %d, %q, %q; want %q", args, code, out, errs, want)
	}
}

// damage relays connections to addr, and on their way, in both directions, makes
// "genuine" what it is not. It returns its own address.
func damage(t *testing.T, addr string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	relay := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, maxFrame)
		for {
			n, err := from.Read(buf)
			to.Write(bytes.ReplaceAll(buf[:n], []byte("genuine"), []byte("forgery")))
			if err != nil {
				return
			}
		}
	}
	running.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				near.Close()
				continue
			}
			running.Go(func() { relay(near, far) })
			running.Go(func() { relay(far, near) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

func TestClientPy(t *testing.T) {
	c := newClientPy(t)
	file, b := writeConfig(t, daemonListen+"exec.sandbox = \"best-effort\"\n"+
		"commands.join.run = [\"/bin/echo\", \"{first}\", \"{second}\"]\n"+
		"commands.join.args = { first = \"[a-z]+\", second = \"[a-z ]+\" }\n")
	b.user(t, "ann", "commands = [\"join\"]\nshell = true\n")
	b.user(t, "bob", "permissions = [\"list\"]\n")
	d := serveBerth(t, file, nil)
	addr := d.addrs["control"]
	cert := filepath.Join(b.dir, "state", "tls", "cert.pem")
	content := bytes.Repeat([]byte("all bytes: \x00\xff\r\n"), 1<<16) // several frames
	if err := os.WriteFile(filepath.Join(c.dir, "large"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	fetched := func(name string) []byte {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(c.dir, name))
		if err != nil {
			t.Error(err)
		}
		return got
	}

	for _, way := range []struct {
		name string
		args []string
	}{{"plain", nil}, {"TLS", []string{"--tls", cert}}} {
		t.Run(way.name, func(t *testing.T) {
			on := func(args ...string) []string { return slices.Concat(way.args, []string{addr, "ann"}, args) }
			name := "up " + way.name
			c.call(t, "", on("put", "large", name)...)
			if got, err := os.ReadFile(filepath.Join(b.home, name)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the server has %d bytes, %v", len(got), err)
			}
			c.call(t, "", on("get", name, "back")...)
			if !bytes.Equal(fetched("back"), content) {
				t.Error("what came back is something else")
			}
			c.call(t, fmt.Sprintf("06*%d 20*Z %s", len(content), name), on("ls", name)...)
			c.call(t, "a b c", on("run", "join", "a", "b c")...)
			c.call(t, `{*"code": 257*}`, on("mkdir", "path=dir of "+way.name)...)
			c.call(t, `{*"code": 200*"text": "HI"*}`, on("upper", "text=hi")...)
		})
	}

	t.Run("commands", func(t *testing.T) {
		code, out, errs := c.run(t, "secret", filepath.Join(c.docs, "client.py"), addr, "ann", "shell", "echo out; echo err >&2; exit 7")
		if code != 7 || out != "out\n" || errs != "err\n" {
			t.Errorf("exit status %d, %q, %q", code, out, errs)
		}
		c.refused(t, "secret", "Ended with signal KILL.", addr, "ann", "shell", "kill -9 $$")
		c.refused(t, "secret", "client.py: join takes another number of arguments*", addr, "ann", "run", "join", "a")
		c.refused(t, "secret", "client.py: This account has no command*", addr, "bob", "run", "join", "a", "b")
	})

	t.Run("refusals", func(t *testing.T) {
		c.refused(t, "wrong", "client.py: Login incorrect.", addr, "ann", "ls")
		c.refused(t, "secret", "client.py: No such file or directory.", addr, "ann", "get", "nowhere", "new")
		c.refused(t, "secret", "client.py: Permission denied*", addr, "bob", "put", "large", "x")
		c.refused(t, "secret", "client.py: *No such file*", addr, "ann", "put", "no such file", "x")
		c.refused(t, "secret", "client.py: *certificate verify failed*", "--tls", otherCertificate(t), addr, "ann", "ls")
		if _, err := os.Stat(filepath.Join(c.dir, "new")); err == nil {
			t.Error("a file that could not be had is there")
		}
	})

	t.Run("damage", func(t *testing.T) {
		through := damage(t, addr)
		b.put(t, "real", "genuine")
		c.refused(t, "secret", "client.py: real arrived damaged*", through, "ann", "get", "real", "mine")
		if _, err := os.Stat(filepath.Join(c.dir, "mine")); err == nil {
			t.Error("a damaged file has its name")
		}
		if err := os.WriteFile(filepath.Join(c.dir, "mine"), []byte("genuine"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.refused(t, "secret", "client.py: The SHA-256 of what arrived is not*", through, "ann", "put", "mine", "real")
		if got, err := os.ReadFile(filepath.Join(b.home, "real")); err != nil || string(got) != "genuine" {
			t.Errorf("the server has %q, %v", got, err)
		}
	})

	t.Run("module", func(t *testing.T) {
		code, out, errs := c.run(t, "", "-c", fmt.Sprintf(`
import io
from client import Berth, Refused
b = Berth(%q)
print(b.request({"do": "login", "user": "ann", "password": "secret"})["permissions"][0])
print(b.put(io.BytesIO(b"some text"), "text")["sha256"])
target = io.BytesIO()
print(b.get("text", target)["size"], target.getvalue().decode())
print([e["size"] for e in b.list() if e["name"] == "text"])
try:
    b.request({"do": "remove", "path": "text/x"})
except Refused as no:
    print(no.args[0]["reason"])
`, addr))
		want := fmt.Sprintf("read\n%x\n9 some text\n[9]\nnot_directory\n", sha256.Sum256([]byte("some text")))
		if code != 0 || errs != "" || out != want {
			t.Errorf("exit status %d, %q, %q; want %q", code, out, errs, want)
		}
	})

	t.Run("gone", func(t *testing.T) {
		// A server that ends in the middle of an answer.
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, "220 ready.\r\n200 Frames.\r\n")
			conn.Write(appendHeader(nil, frameAnswer, 100))
		}()
		c.refused(t, "secret", "client.py: *", ln.Addr().String(), "ann", "ls")
		<-served
	})
	d.signal(syscall.SIGTERM)
	d.ended(exitOK)
}

// otherCertificate is the file of one that nobody has.
func otherCertificate(t *testing.T) string {
	t.Helper()
	cert, _, err := selfSigned("box")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(file, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
