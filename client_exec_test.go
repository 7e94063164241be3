package main

// exec at the client, against the real server: how commands end, that streams are the
// bytes they were, signals, and what is said when something is wrong. On a terminal it
// is the program itself under a PTY, since what it leaves of the terminal is the point.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// --- a client of a box ---

// clientBox is a server, and an environment in which the client finds its way in.
type clientBox struct {
	*execBox
	host, port string
}

func newClientBox(t *testing.T, config, user string) *clientBox {
	t.Helper()
	b := &clientBox{execBox: newExecBox(t, config, user)}
	_, b.port, _ = net.SplitHostPort(b.addrs[0].String())
	b.host = "ann@127.0.0.1"
	for name, value := range map[string]string{"HOME": t.TempDir(), "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "NETRC": "",
		"BERTH_PASSWORD": "secret", "BERTH_URL": "berth://ann@127.0.0.1:" + b.port, "TERM": "xterm"} {
		t.Setenv(name, value)
	}
	return b
}

// invocation is a verb as it is about to run, without what runClient puts around it,
// which is for a process of its own.
func clientInvocation(t *testing.T, stdin io.Reader, stdout, stderr io.Writer, words ...string) *invocation {
	t.Helper()
	inv := &invocation{verb: findVerb(words[0]), stdin: stdin, stdout: stdout, stderr: stderr, ctx: t.Context()}
	if err := inv.read(words[1:]); err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	t.Cleanup(func() {
		for _, b := range inv.boxes {
			b.close()
		}
	})
	return inv
}

// clientRun is how a verb ended, with what it has printed.
type clientRun struct {
	code      int
	out, errs string
}

// verb runs one in this process; what it ends with is told as call does it.
func (b *clientBox) verb(t *testing.T, stdin io.Reader, words ...string) clientRun {
	t.Helper()
	var out, errs syncBuffer
	inv := clientInvocation(t, stdin, &out, &errs, words...)
	err := runAsCalled(inv, &errs)
	for _, b := range inv.boxes { // a user may have ten
		b.close()
	}
	return clientRun{exitCode(err), out.String(), errs.String()}
}

func runAsCalled(inv *invocation, errs io.Writer) error {
	err := inv.verb.run(inv)
	if err != nil && err.Error() != "" {
		io.WriteString(errs, "berth "+inv.verb.name+": "+err.Error()+"\n")
	}
	return err
}

// --- how commands end ---

func TestClientExec(t *testing.T) {
	b := newClientBox(t, "", "")
	b.put(t, "sub/here", "")
	b.user(t, "bob", `commands = ["failing", "lines"]`+"\n")
	b.user(t, "cy", "")
	b.srv.reload()
	for _, c := range []struct {
		name  string
		words string // behind exec, separated by spaces; "_" in a word is a space
		stdin string
		code  int
		out   string // with * for anything
		errs  string
	}{
		{"a named command with an argument", "HOST -- say a_b", "", 0, "a b", ""},
		{"without dashes", "HOST say a_b", "", 0, "a b", ""},
		{"an option of the command's", "HOST say -t", "", 1, "", "berth exec: the argument word may not begin with a dash\n"},
		{"words make a command line", "HOST echo a b_c |_tr_a-z_A-Z", "", 0, "A B C\n", ""},
		{"no word of it is quoted", "HOST printf '%s\\n' a_b", "", 0, "a\nb\n", ""},
		{"-s in spite of a name", "-s HOST env_-i_x=1_env", "", 0, "x=1\n", ""},
		{"the default host", "-- echo hello", "", 0, "hello\n", ""},
		{"a directory", "HOST:sub ls", "", 0, "here\n", ""},
		{"the home", "HOST: ls", "", 0, "sub\n", ""},
		{"standard input", "HOST cat", "what comes in\n", 0, "what comes in\n", ""},
		{"none of it", "-n HOST cat", "what comes in\n", 0, "", ""},
		{"both outputs", "HOST echo_out;_echo_err_>&2", "", 0, "out\n", "err\n"},
		{"a shell without a terminal", "HOST", "echo $0; exit 7\n", 7, "*sh\n", ""},
		{"exit status", "HOST exit 3", "", 3, "", ""},
		{"the largest", "HOST exit 255", "", 255, "", ""},
		{"a named command that fails", "HOST failing", "", 3, "", "on stderr\n"},
		{"a signal", "HOST kill -TERM $$", "", 143, "", ""},
		{"a signal, told", "-v HOST kill -9 $$", "", 137, "", "berth exec: the command was ended by signal KILL\n"},
		{"no such program", "HOST none", "", 127, "", "berth exec: it could not be started: *\n"},
		{"no program", "HOST data", "", 126, "", "berth exec: it could not be started: *\n"},
		{"not in the shell", "HOST /nowhere", "", 127, "", "*/nowhere*\n"},
		{"timeout", "HOST brief 60", "", 143, "*", "berth exec: the command took longer than it may and was ended; exec.timeout*\n"},
		{"too much output", "HOST head -c 2000000 /dev/zero", "", -1, "*", "berth exec: the command wrote more than it may and was ended; exec.output*\n"},
		{"arguments", "HOST brief many", "", 1, "", "berth exec: *\n"},
		{"no terminal for it", "-t HOST env", "", 1, "", "berth exec: env has no terminal\n"},
		{"no such directory", "HOST:nowhere ls", "", 1, "", "berth exec: nowhere: *\n"},
		{"empty", "HOST _", "", 2, "", "berth exec: the command is empty*\n"},
		{"not UTF-8", "HOST echo \xff", "", 2, "", `berth exec: \xff is not UTF-8*` + "\n"},
		{"not allowed", "BOB uptime", "", 1, "", "berth exec: 127.0.0.1 has no command \"uptime\" for bob, who may run failing, lines\n"},
		{"escapes in it", "BOB \x1b[2J", "", 1, "", "berth exec: 127.0.0.1 has no command *x1b[2J* for bob, who may run failing, lines\n"},
		{"no command line", "-s BOB uptime", "", 1, "", "berth exec: bob may not run command lines on 127.0.0.1, but failing, lines\n"},
		{"no shell", "BOB", "", 2, "", "berth exec: which command? bob may run failing, lines on 127.0.0.1\n"},
		{"nothing at all", "CY ls", "", 1, "", "berth exec: 127.0.0.1 has no command \"ls\" for cy, who may run no command\n"},
	} {
		words := []string{"exec", "-p", b.port}
		for _, w := range strings.Split(c.words, " ") {
			w = strings.NewReplacer("HOST", b.host, "BOB", "bob@127.0.0.1", "CY", "cy@127.0.0.1", "_", " ").Replace(w)
			words = append(words, w)
		}
		if strings.HasPrefix(c.words, "--") {
			words = append(words[:1], words[3:]...)
		}
		r := b.verb(t, strings.NewReader(c.stdin), words...)
		if r.code != c.code && (c.code >= 0 || r.code == 0) || !wildcard(c.out, r.out) || !wildcard(c.errs, r.errs) {
			t.Errorf("%s: %q: exit code %d, %.300q, %.300q; want %d, %q, %q", c.name, words, r.code, r.out, r.errs, c.code, c.out, c.errs)
		}
	}
}

// Whatever the bytes are, they arrive, each stream whole and the program as fast as it
// likes; and the end of input is one.
func TestClientExecIsBinaryClean(t *testing.T) {
	newClientBox(t, "", "")
	sent := make([]byte, 500_000) // twice that is below exec.output
	rand.Read(sent)
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, sent, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, stdin := range []io.Reader{bytes.NewReader(sent), in} {
		var out, errs bytes.Buffer
		err := runAsCalled(clientInvocation(t, stdin, &out, &errs, "exec", "--", "tee /dev/stderr"), &errs)
		if err != nil || !bytes.Equal(out.Bytes(), sent) || !bytes.Equal(errs.Bytes(), sent) {
			t.Errorf("%T: %v; of %d bytes, %d came by stdout and %d by stderr", stdin, err, len(sent), out.Len(), errs.Len())
		}
	}
}

// endless is input that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A command that does not read its input ends all the same, and so do two on one
// connection.
func TestClientExecUnreadInput(t *testing.T) {
	b := newClientBox(t, "", "")
	if r := b.verb(t, endless{}, "exec", "--", "echo done"); r != (clientRun{0, "done\n", ""}) {
		t.Errorf("%+v", r)
	}
	// As in sh: nothing of the first one's input is left for the second.
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	inv := clientInvocation(t, strings.NewReader(""), io.Discard, io.Discard, "sh")
	d, _, _ := defaultTarget()
	shellBox, err := inv.box(d)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var out, errs syncBuffer
		in := clientInvocation(t, pr, &out, &errs, "exec", "--", "echo done")
		in.within = &shellPlace{box: shellBox, dir: "/"}
		if err := runAsCalled(in, &errs); err != nil || out.String() != "done\n" || errs.String() != "" {
			t.Errorf("%v, %q, %q", err, out.String(), errs.String())
		}
	}
	pw.Write([]byte("typed ahead\n"))
	got := make([]byte, 100)
	n, _ := pr.Read(got)
	if string(got[:n]) != "typed ahead\n" {
		t.Errorf("of what was typed for the next one, %q is left", got[:n])
	}
}

// failingReader fails after a line.
type failingReader struct{ rest io.Reader }

func (r failingReader) Read(p []byte) (int, error) {
	n, err := r.rest.Read(p)
	if err == io.EOF {
		err = syscall.EIO
	}
	return n, err
}

// Ends of this side: each ends the command, too, with nothing left of it.
func TestClientExecEndsHere(t *testing.T) {
	newClientBox(t, "", "")
	closed := func() io.Writer {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pr.Close()
		t.Cleanup(func() { pw.Close() })
		return pw
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, c := range []struct {
		name   string
		stdin  io.Reader
		stdout io.Writer
		line   string
		code   int
		errs   string
	}{
		{"nobody reads", strings.NewReader(""), closed(), "while echo y; do :; done; sleep MARK", 141, ""},
		{"nobody reads, and it ends", strings.NewReader(""), closed(), "echo y", 141, ""},
		{"a full disk", strings.NewReader(""), full, "echo y; sleep MARK", 1, "berth exec: write standard output: *no space left on device; the command was ended\n"},
		{"unreadable input", failingReader{strings.NewReader("a line\n")}, io.Discard, "cat; sleep MARK", 1, "berth exec: read standard input: input/output error; the command was ended\n"},
	} {
		mark := newMark()
		var errs syncBuffer
		err := runAsCalled(clientInvocation(t, c.stdin, c.stdout, &errs, "exec", "--", strings.ReplaceAll(c.line, "MARK", mark)), &errs)
		if exitCode(err) != c.code || !wildcard(c.errs, errs.String()) {
			t.Errorf("%s: %d %q; want %d %q", c.name, exitCode(err), errs.String(), c.code, c.errs)
		}
		wantUnmarked(t, mark, execGone)
	}
}

// cut breaks every connection.
func (b *clientBox) cut() {
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	for _, s := range b.srv.sessions {
		s.bare.Close()
	}
}

func TestClientExecLosesTheConnection(t *testing.T) {
	b := newClientBox(t, "", "")
	mark := newMark()
	var errs syncBuffer
	out := &readyWriter{ready: b.cut} // it runs
	err := runAsCalled(clientInvocation(t, strings.NewReader(""), out, &errs, "exec", "--", "echo ready; sleep "+mark), &errs)
	if exitCode(err) != exitNoConn || !wildcard("berth exec: 127.0.0.1: *; the command ends with it\n", errs.String()) {
		t.Errorf("%d %q", exitCode(err), errs.String())
	}
	wantUnmarked(t, mark, execGone)
}

// --- signals ---

// signalled runs a command line, and sends signals once it has said something.
func (b *clientBox) signalled(t *testing.T, stdin io.Reader, patience time.Duration, line string, send ...os.Signal) clientRun {
	t.Helper()
	signals := make(chan os.Signal, len(send))
	var out, errs syncBuffer
	ready := &readyWriter{ready: sync.OnceFunc(func() {
		for _, s := range send {
			signals <- s
		}
	})}
	inv := clientInvocation(t, stdin, io.MultiWriter(&out, ready), &errs, "exec", "--", line)
	d, _, _ := defaultTarget()
	box, err := inv.box(d)
	if err != nil {
		t.Fatal(err)
	}
	c, err := box.main()
	if err != nil {
		t.Fatal(err)
	}
	x := &execution{inv: inv, c: c, patience: patience}
	q, err := x.request()
	if err == nil {
		err = x.talk(q, signals)
	}
	if err != nil && err.Error() != "" {
		io.WriteString(&errs, err.Error()+"\n")
	}
	return clientRun{exitCode(err), out.String(), errs.String()}
}

func TestClientExecSignals(t *testing.T) {
	b := newClientBox(t, "", "")
	for _, c := range []struct {
		name string
		line string
		send []os.Signal
		want clientRun
	}{
		{"INT that ends it", "echo ready; exec sleep MARK", []os.Signal{unix.SIGINT}, clientRun{130, "ready\n", ""}},
		{"INT that does not", `trap "echo got it; exit 5" INT; echo ready; while :; do sleep 0.01; done`, []os.Signal{unix.SIGINT}, clientRun{5, "ready\ngot it\n", ""}},
		{"USR1, twice", `exec 2>/dev/null; trap : USR1; trap "exit 6" USR2; echo ready; while :; do sleep 0.01; done`, []os.Signal{unix.SIGUSR1, unix.SIGUSR1, unix.SIGUSR2}, clientRun{6, "ready\n", ""}},
		{"QUIT", "echo ready; exec sleep MARK", []os.Signal{unix.SIGQUIT}, clientRun{131, "ready\n", ""}},
		{"TERM", "echo ready; exec sleep MARK", []os.Signal{unix.SIGTERM}, clientRun{143, "ready\n", ""}},
		{"HUP", "echo ready; exec sleep MARK", []os.Signal{unix.SIGHUP}, clientRun{129, "ready\n", ""}},
		{"nobody reads us any more", "echo ready; exit 4", []os.Signal{unix.SIGPIPE, unix.SIGWINCH, unix.SIGCONT}, clientRun{4, "ready\n", ""}},
		{"INT twice", `trap "" INT; echo ready; sleep MARK`, []os.Signal{unix.SIGINT, unix.SIGINT}, clientRun{130, "ready\n", ""}},
		{"INT three times", `trap "" INT TERM; echo ready; sleep MARK`, []os.Signal{unix.SIGINT, unix.SIGINT, unix.SIGINT}, clientRun{130, "ready\n", ""}},
	} {
		mark := newMark()
		if r := b.signalled(t, strings.NewReader(""), signalTaken, strings.ReplaceAll(c.line, "MARK", mark), c.send...); r != c.want {
			t.Errorf("%s: %+v; want %+v", c.name, r, c.want)
		}
		wantUnmarked(t, mark, execGone)
	}
}

// A signal behind input that the command does not read never gets there. It ends the
// command all the same.
func TestClientExecSignalBehindInput(t *testing.T) {
	b := newClientBox(t, "", "")
	r := b.signalled(t, endless{}, 50*time.Millisecond, "echo ready; sleep 86400", unix.SIGINT)
	b.cut() // or the server looks for two seconds whether we are still there
	if r.code != 130 || r.out != "ready\n" || !wildcard("the signal did not get through *\n", r.errs) {
		t.Errorf("%+v", r)
	}
}

// A pager that has stopped reading does not keep two Ctrl-C from ending all.
func TestClientExecHeldUpOutput(t *testing.T) {
	newClientBox(t, "", "")
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	mark := newMark()
	inv := clientInvocation(t, strings.NewReader(""), pw, io.Discard, "exec", "--", "trap '' INT TERM; while echo y; do :; done; sleep "+mark)
	d, _, _ := defaultTarget()
	box, err := inv.box(d)
	if err != nil {
		t.Fatal(err)
	}
	c, err := box.main()
	if err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 3)
	x := &execution{inv: inv, c: c, patience: signalTaken}
	q, err := x.request()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		pr.Read(make([]byte, 1))
		for range 3 {
			signals <- unix.SIGINT
		}
	}()
	if err := x.talk(q, signals); exitCode(err) != 130 {
		t.Errorf("%d, %v", exitCode(err), err)
	}
	pr.Close() // the one who writes ends with that
	<-x.written
	wantUnmarked(t, mark, execGone)
}

func TestCommandExit(t *testing.T) {
	number := func(n int) *int { return &n }
	for _, c := range []struct {
		exit   *int
		signal string
		want   int
	}{
		{number(0), "", 0}, {number(1), "", 1}, {number(255), "", 255}, {number(256), "", 255}, {number(-1), "", 255}, {number(65536), "", 255},
		{nil, "HUP", 129}, {nil, "KILL", 137}, {nil, "34", 162}, {nil, "64", 192}, {nil, "127", 255}, {nil, "1000000", 255}, {nil, "NONE", 255}, {nil, "", 255},
	} {
		if got := commandExit(&remoteAnswer{Exit: c.exit, Signal: c.signal}); got != c.want {
			t.Errorf("exit %v, signal %q: %d; want %d", c.exit, c.signal, got, c.want)
		}
	}
}

// --- escapes ---

func TestEscapes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"ls -l ~\r", "ls -l ~\r"},
		{"~", ""},
		{"~.", "<.>"},
		{"ls~.", "ls~."},
		{"ls\r~.more", "ls\r<.>more"},
		{"ls\n~?\r~?", "ls\n<?>\r<?>"},
		{"~~.", "~."},
		{"~~\r~~x", "~\r~x"},
		{"~a~.", "~a~."},
		{"~?~.", "<?><.>"},
		{"\r~\x1a", "\r<\x1a>"},
		{"~\r~.", "~\r<.>"},
	} {
		for _, step := range []int{1, 2, 100} {
			var got []byte
			e := &escapeFilter{}
			for p := []byte(c.in); len(p) > 0; {
				piece := p[:min(step, len(p))]
				p = p[len(piece):]
				for len(piece) > 0 {
					out, action, rest := e.feed(piece)
					got = append(got, out...)
					if action != escapeNone {
						got = append(got, '<', byte(action), '>')
					}
					piece = rest
				}
			}
			if string(got) != c.want {
				t.Errorf("%q, %d at once: %q; want %q", c.in, step, got, c.want)
			}
		}
	}
}

// --- on a terminal ---

// clientTerminal is a berth with a terminal of its own, as somebody sits before it.
type clientTerminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	near   *os.File // what the person sees and types
	far    *os.File // the terminal itself
	before unix.Termios
	screen syncBuffer
	more   chan struct{}
	seen   int // of screen, by until
}

func newClientTerminal(t *testing.T, rows, cols uint16, words ...string) *clientTerminal {
	t.Helper()
	return newClientProgram(t, rows, cols, append([]string{os.Args[0]}, words...)...)
}

// newClientProgram is one with another program, which may start berth.
func newClientProgram(t *testing.T, rows, cols uint16, words ...string) *clientTerminal {
	t.Helper()
	near, far, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	c := &clientTerminal{t: t, near: near, far: far, more: make(chan struct{}, 1)}
	c.resize(rows, cols)
	c.before = c.modes()
	ctx, cancel := context.WithCancel(context.Background())
	c.cmd = exec.CommandContext(ctx, words[0], words[1:]...)
	c.cmd.Env = append(os.Environ(), asBerth+"=1")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = far, far, far
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for buf := make([]byte, 4096); ; {
			n, err := near.Read(buf)
			if err != nil {
				return
			}
			c.screen.Write(buf[:n])
			wake(c.more)
		}
	}()
	t.Cleanup(func() {
		cancel()
		c.cmd.Wait()
		far.Close()
		<-read // ends with the last far end
		near.Close()
	})
	return c
}

func (c *clientTerminal) resize(rows, cols uint16) {
	c.t.Helper()
	if err := pty.Setsize(c.near, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *clientTerminal) modes() unix.Termios {
	c.t.Helper()
	m, err := unix.IoctlGetTermios(int(c.far.Fd()), unix.TCGETS)
	if err != nil {
		c.t.Fatal(err)
	}
	return *m
}

func (c *clientTerminal) keys(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.near, s); err != nil {
		c.t.Fatal(err)
	}
}

// until waits for text on the screen behind what was waited for before, and returns
// what came with it.
func (c *clientTerminal) until(text string) string {
	c.t.Helper()
	timeout := time.After(replyTime)
	for {
		s := c.screen.String()[c.seen:]
		if i := strings.Index(s, text); i >= 0 {
			c.seen += i + len(text)
			return s[:i+len(text)]
		}
		select {
		case <-c.more:
		case <-timeout:
			c.t.Fatalf("no %q on the terminal: %q", text, s)
		}
	}
}

// ended waits for the end: its exit code, and that the terminal is as it was.
func (c *clientTerminal) ended(code int) {
	c.t.Helper()
	defer time.AfterFunc(replyTime, func() { c.cmd.Process.Kill() }).Stop()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || c.cmd.ProcessState.ExitCode() != code {
		c.t.Errorf("%v; want exit code %d; on the terminal %q", c.cmd.ProcessState, code, c.screen.String())
	}
	if now := c.modes(); now != c.before {
		c.t.Errorf("the terminal was left as %+v; it was %+v", now, c.before)
	}
}

func TestClientExecOnATerminal(t *testing.T) {
	b := newClientBox(t, "", "")
	start := func(t *testing.T, words ...string) *clientTerminal {
		return newClientTerminal(t, 33, 111, append([]string{"exec"}, words...)...)
	}
	t.Run("size and resize", func(t *testing.T) {
		c := start(t, "-t", "--", `stty size; echo $TERM; trap "stty size; exit 9" WINCH; echo ready; while :; do sleep 0.01; done`)
		c.until("33 111\r\nxterm\r\nready\r\n")
		c.resize(44, 55)
		c.until("44 55\r\n")
		c.ended(9)
	})
	t.Run("a shell", func(t *testing.T) {
		c := start(t)
		c.keys("echo a$((1+1))b; tty > /dev/null && echo yes\n")
		c.until("a2b\r\n")
		c.until("yes\r\n")
		c.keys("sh -c 'echo r''eady; exec sleep 86400'\n")
		c.until("ready\r\n")
		c.keys("\x03") // as a byte: it is the terminal there that makes a signal of it
		c.keys("exit 11\r")
		c.ended(11)
	})
	t.Run("escapes", func(t *testing.T) {
		mark := newMark()
		c := start(t, "-t", "--", "echo ready; stty raw -echo; sleep "+mark)
		c.until("ready\r\n")
		c.keys("~?")
		c.until("~^Z")
		c.keys("x\r~.")
		c.until("berth exec: ended by ~.; so is the command\r\n")
		c.ended(130)
		wantUnmarked(t, mark, execGone)
	})
	t.Run("TERM", func(t *testing.T) {
		c := start(t, "-t", "--", "echo ready; exec sleep 86400")
		c.until("ready\r\n")
		c.cmd.Process.Signal(syscall.SIGTERM)
		c.ended(143)
	})
	t.Run("stopped", func(t *testing.T) {
		// A session without job control is not stopped, and the terminal is raw again.
		c := start(t, "-t", "--", "echo ready; read x; echo got $x")
		c.until("ready\r\n")
		c.keys("~\x1athis\r")
		c.until("got this\r\n")
		c.ended(0)
		// In a shell with it, fg goes on.
		t.Setenv("JOB", `set -m; "$BERTH" exec -t -- 'echo ready; read x; stty size; echo got $x'; echo "stopped $?"; stty -a; read y; fg`)
		t.Setenv("BERTH", os.Args[0])
		c = newClientProgram(t, 33, 111, "/bin/sh", "-c", `eval "$JOB"`)
		c.until("ready\r\n")
		c.keys("~\x1a")
		c.until("stopped 1")
		c.until(" icanon")
		c.resize(22, 99)
		c.keys("\n")
		c.until("exec -t") // what fg says
		c.keys("this\r")
		c.until("22 99\r\n")
		c.until("got this\r\n")
		c.ended(0)
	})
	t.Run("a lost connection", func(t *testing.T) {
		c := start(t, "-t", "--", "echo ready; exec sleep 86400")
		c.until("ready\r\n")
		b.cut()
		c.until("the command ends with it\r\n")
		c.ended(3)
	})
	t.Run("Ctrl-C without a terminal there", func(t *testing.T) {
		c := start(t, "--", `trap "echo got it; exit 5" INT; echo ready; while :; do sleep 0.01; done`)
		c.until("ready\r\n")
		c.keys("\x03")
		c.until("got it\r\n")
		c.ended(5)
	})
	t.Run("lines and the end of them", func(t *testing.T) {
		c := start(t, "--", "tr a-z A-Z")
		c.keys("one line\n\x04")
		c.until("ONE LINE\r\n")
		c.ended(0)
	})
	t.Run("top", func(t *testing.T) {
		if _, err := exec.LookPath("top"); err != nil {
			t.Skip("SKIP: no top here")
		}
		c := start(t, "-t", "--", "top -d 0.1")
		c.until("COMMAND")
		c.resize(12, 60) // it paints all anew then
		c.until("PID")
		c.keys("q")
		c.ended(0)
	})
	t.Run("vi", func(t *testing.T) {
		if _, err := exec.LookPath("vi"); err != nil {
			t.Skip("SKIP: no vi here")
		}
		c := start(t, "-t", "--", "vi note.txt")
		c.until("note.txt")
		c.keys("ihello\x1b:wq\r")
		c.ended(0)
		if got := b.content(t, "note.txt"); got != "hello\n" {
			t.Errorf("vi wrote %q", got)
		}
	})
}

// Without a terminal here, -t makes one there all the same.
func TestClientExecTerminalThereAlone(t *testing.T) {
	b := newClientBox(t, "", "")
	r := b.verb(t, strings.NewReader("typed\n"), "exec", "-t", "--", "stty size; read x; echo $x >&2; exit 2")
	if r.code != 2 || !strings.Contains(r.out, "24 80\r\n") || !strings.HasSuffix(r.out, "typed\r\n") || r.errs != "" {
		t.Errorf("%+v", r)
	}
}
