package main

// That plain files go from disk to socket and back without passing through the
// program: seen from outside, by strace, because every wrapper around a
// connection or a file would lose it without any test of behaviour noticing.

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jlaffaye/ftp"
)

func TestPlainTransfersAreZeroCopy(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" {
			t.Fatal(err)
		}
		t.Skip("strace is not installed")
	}
	const size = 16 << 20
	dir := t.TempDir()
	users := filepath.Join(dir, "users.d")
	if err := os.Mkdir(users, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "berth.toml")
	files := map[string]string{
		config: fmt.Sprintf("[server]\nstate_dir = %q\nusers_dir = %q\n[listen]\ncontrol = [\"127.0.0.1:0\"]\ndatagram = []\nlocal = []\nhttp = []\n"+
			"[transfer]\ndurable = false\n", dir, users),

		filepath.Join(users, "ann.toml"): fmt.Sprintf("password = %q\nhome = %q\n", testHash, filepath.Join(dir, "home")),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := serveBerth(t, config, nil)
	c, err := ftp.Dial(p.addrs["control"], ftp.DialWithTimeout(replyTime))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login("ann", "secret"); err != nil {
		t.Fatal(err)
	}

	trace := filepath.Join(dir, "trace")
	tracer := exec.Command(strace, "-f", "-o", trace, "-e", "trace=sendfile,splice,read,write", "-e", "signal=none", "-p", strconv.Itoa(p.cmd.Process.Pid))
	said, err := tracer.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	defer tracer.Process.Kill()
	if line, err := bufio.NewReader(said).ReadString('\n'); !strings.Contains(line, "attached") {
		if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" {
			t.Fatalf("strace cannot attach: %q, %v", line, err)
		}
		t.Skipf("strace cannot attach here: %q, %v", line, err) // no ptrace in many containers
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := c.Stor("big", bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	r, err := c.Retr("big")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("%d bytes came back of %d, %v", len(got), len(body), err)
	}
	tracer.Process.Signal(os.Interrupt)
	tracer.Wait()

	moved := map[string]int64{}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	pending := map[string]string{} // a call that strace shows in two halves, by thread
	for line := range strings.Lines(string(text)) {
		thread, rest, _ := strings.Cut(line, " ")
		rest = strings.TrimLeft(rest, " ")
		call, _, ok := strings.Cut(rest, "(")
		if strings.HasPrefix(rest, "<... ") {
			call, ok = pending[thread], true
		}
		if strings.Contains(rest, "<unfinished") {
			pending[thread] = call
			continue
		}
		if i := strings.LastIndex(rest, "= "); ok && i >= 0 {
			if n, err := strconv.ParseInt(strings.TrimSpace(rest[i+2:]), 10, 64); err == nil && n > 0 {
				moved[call] += n
			}
		}
	}
	if moved["sendfile"] < size {
		t.Errorf("RETR: %d bytes by sendfile(2); want %d", moved["sendfile"], size)
	}
	// Each byte is spliced twice, into a pipe and out of it; the first buffer is read.
	if want := int64(2 * (size - copyBuffer)); moved["splice"] < want {
		t.Errorf("STOR: %d bytes by splice(2); want %d", moved["splice"], want)
	}
	if moved["read"]+moved["write"] > 4*copyBuffer {
		t.Errorf("%d bytes were read and %d written by hand", moved["read"], moved["write"])
	}
}
