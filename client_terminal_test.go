package main

// The client as somebody sees it who sits at a terminal: the real program on a
// pseudo-terminal, against a real berth serve, and the screen read back with the
// emulator of client_progress_test.go. What the lines are made of is tested there; this
// is about the program around them: signals, the size, and how the terminal is left.

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// A screenProgram is a program with a terminal of its own, which is looked at.
type screenProgram struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	read   chan struct{} // closed when the screen shows all there was

	mu      sync.Mutex
	changed *sync.Cond
	vt      *screenEmulator
	over    bool
}

// settings are what stty shows.
func (c *screenProgram) settings() unix.Termios {
	c.t.Helper()
	s, err := unix.IoctlGetTermios(int(c.master.Fd()), unix.TCGETS)
	if err != nil {
		c.t.Fatal(err)
	}
	return *s
}

// startOnTerminal runs a program with all of its streams on a new terminal, as one
// typed at a shell.
func startOnTerminal(t *testing.T, cols, rows int, dir string, env []string, words ...string) *screenProgram {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
	c := &screenProgram{t: t, master: master, read: make(chan struct{}), vt: newScreenEmulator(cols, rows)}
	c.changed = sync.NewCond(&c.mu)
	c.cmd = exec.Command(words[0], words[1:]...)
	c.cmd.Dir, c.cmd.Env = dir, env
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// What is on its way when the last end of a terminal is closed can be lost: this end
	// stays open, and a NUL tells that there is no more.
	go func() {
		c.cmd.Wait()
		slave.Write([]byte{0})
	}()
	go func() {
		defer close(c.read)
		b := make([]byte, 64<<10)
		for {
			n, err := master.Read(b)
			shown, _, last := bytes.Cut(b[:n], []byte{0})
			c.mu.Lock()
			c.vt.Write(shown)
			c.over = last || err != nil
			c.changed.Broadcast()
			c.mu.Unlock()
			if last || err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.read
		slave.Close()
		master.Close()
	})
	return c
}

// until waits until the screen is as ok wants it.
func (c *screenProgram) until(what string, ok func(lines []string) bool) {
	c.t.Helper()
	late := time.AfterFunc(replyTime, func() { c.cmd.Process.Kill() })
	defer late.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !ok(c.vt.lines()) {
		if c.over {
			c.t.Fatalf("%s: never; the screen was\n%s", what, strings.Join(c.vt.lines(), "\n"))
		}
		c.changed.Wait()
	}
}

// ended waits for the end of the program, and returns its exit code and the last screen.
func (c *screenProgram) ended() (code int, lines []string) {
	c.t.Helper()
	late := time.AfterFunc(replyTime, func() { c.cmd.Process.Kill() })
	defer late.Stop()
	<-c.read
	return c.cmd.ProcessState.ExitCode(), c.vt.lines()
}

// resize is the user with his mouse.
func (c *screenProgram) resize(cols, rows int) {
	c.t.Helper()
	c.mu.Lock()
	c.vt.resize(cols, rows)
	c.mu.Unlock()
	if err := pty.Setsize(c.master, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *screenProgram) typed(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.master, s); err != nil {
		c.t.Fatal(err)
	}
}

// TestGetOnATerminal watches a get, makes the window narrower, ends it by Ctrl-C, and
// types what it then says.
func TestGetOnATerminal(t *testing.T) {
	t.Parallel()
	const (
		name = "big picture.raw"
		size = 4 << 20 // and 2 MiB a second: time enough to see it
	)
	file, b := writeConfig(t, daemonListen)
	content := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	b.put(t, name, string(content))
	p := serveBerth(t, file, nil)
	_, port, err := net.SplitHostPort(p.addrs["control"])
	if err != nil {
		t.Fatal(err)
	}
	dir, bin := t.TempDir(), t.TempDir()
	berth := filepath.Join(bin, "berth")
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, berth)
	}
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), asBerth+"=1", "HOME="+t.TempDir(), "XDG_CONFIG_HOME=", "TERM=xterm", "BERTH_PASSWORD=secret", "PATH="+bin+":"+os.Getenv("PATH"))

	part, whole := filepath.Join(dir, getPrefix+name), filepath.Join(dir, name)

	c := startOnTerminal(t, 100, 24, dir, env, berth, "get", "--limit-rate", "2MiB", "-p", port, "ann@127.0.0.1:"+name, ".")
	before := c.settings()
	c.until("a bar", barOf(name, 60, 99))
	c.resize(50, 10)
	c.until("a narrower bar", barOf("big", 20, 49))
	c.typed("\x03")
	code, lines := c.ended()
	if code != 128+int(unix.SIGINT) {
		t.Errorf("exit code %d after Ctrl-C", code)
	}
	if len(lines) != 1 {
		t.Fatalf("it leaves on the screen\n%s", strings.Join(lines, "\n"))
	}
	again, ok := strings.CutPrefix(lines[0], "berth get: to go on with what is there: ")
	if !ok || !strings.HasPrefix(again, "berth get -c ") {
		t.Errorf("it says %q", lines[0])
	}
	c.clean(before)
	if info, err := os.Stat(part); err != nil || info.Size() == 0 || info.Size() >= size {
		t.Errorf("what came: %v, %v", info, err)
	}
	if _, err := os.Stat(whole); err == nil {
		t.Error("half a file has its name")
	}

	c = startOnTerminal(t, 100, 24, dir, env, "/bin/sh", "-c", again)
	before = c.settings()
	c.until("a bar with what was there", func(lines []string) bool {
		return barOf(name, 60, 99)(lines) && strings.Contains(lines[0], "[=")
	})
	code, lines = c.ended()
	if code != exitOK || len(lines) != 1 || !strings.HasPrefix(lines[0], name+" ") || !strings.Contains(lines[0], "100%") || !strings.Contains(lines[0], "(resumed at ") {
		t.Errorf("%s: exit code %d, and on the screen\n%s", again, code, strings.Join(lines, "\n"))
	}
	c.clean(before)
	if got, err := os.ReadFile(whole); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has %d bytes, %v; want %d", len(got), err, len(content))
	}
	if _, err := os.Stat(part); err == nil {
		t.Errorf("%s is still there", part)
	}
}

// barOf is a screen with the line of one file, which begins with name, and is of a
// width that tells for which size of the terminal it was drawn.
func barOf(name string, least, most int) func(lines []string) bool {
	return func(lines []string) bool {
		return len(lines) == 1 && strings.HasPrefix(lines[0], name) && strings.Contains(lines[0], "#") && len(lines[0]) >= least && len(lines[0]) <= most
	}
}

// clean checks that the program has left the terminal as it found it.
func (c *screenProgram) clean(before unix.Termios) {
	c.t.Helper()
	if after := c.settings(); after != before {
		c.t.Errorf("the terminal's settings were\n%+v, and are\n%+v", before, after)
	}
	if c.vt.col != 0 {
		c.t.Errorf("the cursor is left in column %d", c.vt.col)
	}
	if len(c.vt.odd) > 0 {
		c.t.Errorf("it sent %q", c.vt.odd)
	}
}
