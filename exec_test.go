package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The helper that a test starts is this binary.
func init() {
	if len(os.Args) == 2 && os.Args[1] == helperVerb {
		os.Exit(runHelper(os.Stderr))
	}
}

// testLauncher leaves the children of the test's own alone.
func testLauncher() *launcher { return newLauncher(slog.New(slog.DiscardHandler), false) }

// A shProgram is a real program whose ends are far away unless a test says otherwise.
type shProgram struct {
	program
	io  programIO
	dir string
}

// newShProgram gives both streams of a script to out.
func newShProgram(t *testing.T, script string, out io.Writer) *shProgram {
	dir := t.TempDir()
	return &shProgram{dir: dir,
		program: program{Argv: rawTexts([]string{"/bin/sh", "-c", script}), Env: rawTexts([]string{"PATH=" + programPath}),
			Root: rawText(dir), Dir: ".", Timeout: time.Minute, Grace: time.Minute},
		io: programIO{output: func(_ byte, p []byte) error {
			_, err := out.Write(p)
			return err
		}}}
}

func (p *shProgram) run(ctx context.Context) programResult {
	return testLauncher().run(ctx, p.program, p.io)
}

// processGone tells whether nothing runs under pid; a zombie does not run.
func processGone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return rest[0] == 'Z' || rest[0] == 'X'
}

// wantGone reads the process numbers in out and checks that there are n, and that
// none of them runs.
func wantGone(t *testing.T, out string, n int) {
	t.Helper()
	words := strings.Fields(strings.ReplaceAll(out, "ready", ""))
	if len(words) != n {
		t.Fatalf("%d processes in %q; want %d", len(words), out, n)
	}
	for _, w := range words {
		pid, err := strconv.Atoi(w)
		if err != nil {
			t.Fatal(err)
		}
		if !processGone(pid) {
			t.Errorf("process %d is still there", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// A readyWriter keeps what it gets and calls ready when the word was in it.
type readyWriter struct {
	bytes.Buffer
	ready func()
}

func (w *readyWriter) Write(p []byte) (int, error) {
	w.Buffer.Write(p)
	if bytes.Contains(w.Bytes(), []byte("ready")) {
		w.ready()
	}
	return len(p), nil
}

// noChildGoroutine checks that all goroutines of the runner have ended.
func noChildGoroutine(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		// They may not have returned yet after their last act, closing a channel.
		if strings.Contains(g, "(*child).drain(") && strings.Contains(g, "(*File).Read(") ||
			strings.Contains(g, "(*child).watch(") && strings.Contains(g, "Waitid(") {
			t.Errorf("a goroutine is left:\n%s", g)
		}
	}
}

func TestProgramEnds(t *testing.T) {
	for _, c := range []struct {
		name, script string
		change       func(*shProgram)
		reason       programEnd
		exit         int
		signal       unix.Signal
	}{
		{"success", "exit 0", nil, programExited, 0, 0},
		{"failure", "exit 1", nil, programExited, 1, 0},
		{"no such command", "/nowhere/at/all", nil, programExited, 127, 0},
		{"highest status", "exit 255", nil, programExited, 255, 0},
		{"signal", "kill -SEGV $$", nil, programSignalled, -1, unix.SIGSEGV},
		{"timeout", "exec sleep 300", func(p *shProgram) { p.Timeout = 50 * time.Millisecond }, programTimeout, -1, unix.SIGTERM},
		{"timeout, stopped", "kill -STOP $$", func(p *shProgram) { p.Timeout = 200 * time.Millisecond }, programTimeout, -1, unix.SIGTERM},
		{"cancelled, and an orderly end", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", nil, programCancelled, 3, 0},
		{"cancelled, TERM ignored", "trap '' TERM; echo ready; while :; do sleep 0.01; done",
			func(p *shProgram) { p.Grace = 50 * time.Millisecond }, programCancelled, -1, unix.SIGKILL},
		{"output limit", "while echo y; do :; done", func(p *shProgram) { p.Output = 100_000 }, programOutputLimit, -1, unix.SIGTERM},
		{"file size", "exec head -c 10000 /dev/zero >big", func(p *shProgram) { p.FileSize = 5000 }, programSignalled, -1, unix.SIGXFSZ},
		{"no such program", "", func(p *shProgram) { p.Argv = rawTexts([]string{"/nowhere/at/all"}) }, programStartFailed, 127, 0},
		{"not executable", "", func(p *shProgram) { p.Argv = rawTexts([]string{"/etc/passwd"}) }, programStartFailed, 126, 0},
		{"a directory", "", func(p *shProgram) { p.Argv = rawTexts([]string{"/"}) }, programStartFailed, 126, 0},
		{"not a program", "", func(p *shProgram) {
			p.Argv = rawTexts([]string{filepath.Join(p.dir, "text")})
			os.WriteFile(string(p.Argv[0]), []byte("text"), 0o700)
		}, programStartFailed, 126, 0},
		{"too long", "", func(p *shProgram) { p.Env = []rawText{rawText(strings.Repeat("x", 1<<20))} }, programStartFailed, 126, 0},
		{"no such directory", "", func(p *shProgram) { p.Dir = "nowhere/at/all" }, programStartFailed, -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := newShProgram(t, c.script, &readyWriter{ready: cancel})
			if c.change != nil {
				c.change(p)
			}
			r := p.run(ctx)
			if c.reason == programOutputLimit && r.signal == unix.SIGPIPE {
				r.signal = unix.SIGTERM // it wrote once more before the signal came
			}
			if r.reason == programOutputLimit && r.exit > 0 {
				r.exit, r.signal = -1, unix.SIGTERM // or its echo failed
			}
			if r.reason != c.reason || r.exit != c.exit || r.signal != c.signal || r.left {
				t.Errorf("run: %+v; want %s, exit %d, signal %d", r, c.reason, c.exit, c.signal)
			}
			if (r.err != nil) != (c.reason == programStartFailed) {
				t.Errorf("run: error %v", r.err)
			}
			noChildGoroutine(t)
		})
	}
}

func TestProgramInheritsNothing(t *testing.T) {
	// Such as a script's lock file that was open when it started berth.
	leak, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	t.Setenv("LD_PRELOAD_OF_SOMEBODY", "1")
	var out bytes.Buffer
	p := newShProgram(t, `pwd; readlink /proc/$$/fd/0; ls -x /proc/$$/fd; cat; tr '\0' '\n' </proc/$$/environ; cut -d' ' -f1,5,6 /proc/$$/stat`, &out)
	// ls has no pipe behind it: the shell might still have its end open.
	// With fewer than these the dynamic loader and the shell add nothing of their own.
	p.Env = rawTexts([]string{"PATH=" + programPath, "ODD=a\nb\x01\xff"})
	r := p.run(t.Context())
	if !r.ok() {
		t.Fatalf("run: %+v\n%s", r, &out)
	}
	lines := strings.SplitN(out.String(), "\n", 4)
	dir, err := filepath.EvalSymlinks(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	if lines[0] != dir || lines[1] != "/dev/null" || strings.Join(strings.Fields(lines[2]), " ") != "0 1 2" {
		t.Errorf("directory, stdin, descriptors: %q; want %q, /dev/null, 0 1 2", lines[:3], dir)
	}
	env, ids, _ := strings.Cut(lines[3], "\xff\n")
	if want := strings.Join(plainTexts(p.Env), "\n"); env+"\xff" != want {
		t.Errorf("environment %q; want %q", env, want)
	}
	if id := strings.Fields(ids); len(id) != 3 || id[0] != id[1] || id[0] != id[2] {
		t.Errorf("pid, group, session: %q; want all the same", ids)
	}
}

// A tree that forks, forks twice and ignores SIGTERM, and a part of it stopped:
// all of it is gone when run returns.
func TestProgramTakesItsGroupAlong(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &readyWriter{ready: cancel}
	p := newShProgram(t, `trap '' TERM
sleep 300 & echo $!
(sleep 300 & echo $!) &
wait $!
(sh -c 'echo $$ | tee stops; kill -STOP $$' & exec sleep 300) & echo $!
echo $$
while [ "$(cut -d' ' -f3 /proc/$(cat stops)/stat)" != T ]; do :; done 2>/dev/null
echo ready
wait`, out)
	p.Grace = 100 * time.Millisecond
	r := p.run(ctx)
	if r.reason != programCancelled || r.signal != unix.SIGKILL || r.left {
		t.Errorf("run: %+v; want cancelled by SIGKILL and nothing left", r)
	}
	wantGone(t, out.String(), 5)
	noChildGoroutine(t)
}

// The leader dies of SIGTERM at once; its child may still use the grace.
func TestProgramGroupGetsTheGrace(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &readyWriter{ready: cancel}
	p := newShProgram(t, `sh -c 'trap "sleep 0.2; echo tidy >done; exit" TERM; echo ready; while :; do sleep 0.01; done' & wait`, out)
	r := p.run(ctx)
	if r.reason != programCancelled || r.signal != unix.SIGTERM || r.left || r.took > p.Grace {
		t.Errorf("run: %+v; want cancelled by SIGTERM before the grace is over", r)
	}
	if got, err := os.ReadFile(filepath.Join(p.dir, "done")); string(got) != "tidy\n" {
		t.Errorf("what the child did at SIGTERM: %q, %v", got, err)
	}
}

// What a program leaves in the background ends with it, also if it has let go of
// the output or ignores SIGTERM.
func TestProgramLeavesNothingBehind(t *testing.T) {
	var out bytes.Buffer
	p := newShProgram(t, `sleep 300 & echo $!
sleep 300 >/dev/null 2>&1 & echo $!
sh -c 'trap "" TERM; echo $$; exec sleep 300' & while [ ! -e ignoring ]; do grep -q '^SigIgn:.*4...$' /proc/$!/status && : >ignoring; done`, &out)
	p.Grace = 100 * time.Millisecond
	if r := p.run(t.Context()); !r.ok() || r.left {
		t.Errorf("run: %+v; want ok", r)
	}
	wantGone(t, out.String(), 3)
}

// As the first process of a container berth has to reap what its programs orphan.
func TestProgramOrphansAreReapedByInit(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip("prctl:", err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	var out bytes.Buffer
	p := newShProgram(t, `sleep 300 & echo $!
(sleep 300 & echo $!; exec sleep 300) & echo $!
wait $!& read line <&2 || :`, &out)
	if r := p.run(t.Context()); !r.ok() || r.left {
		t.Errorf("run: %+v; want ok", r)
	}
	for _, pid := range strings.Fields(out.String()) {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			t.Errorf("process %s is still there, if only as a zombie", pid)
		}
	}
}

// A berth that is killed takes the program with it: the next one runs the event
// again, and the two should not be at it at once.
func TestProgramDiesWithBerth(t *testing.T) {
	const asVictim = "BERTH_TEST_PROGRAM_VICTIM"
	if os.Getenv(asVictim) != "" {
		newShProgram(t, "echo $$; exec sleep 300", os.Stdout).run(t.Context())
		return
	}
	victim := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	victim.Env = append(os.Environ(), asVictim+"=1")
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	var pid int
	if _, err := fmt.Fscanln(stdout, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("pidfd_open:", err)
	}
	defer unix.Close(fd)
	victim.Process.Kill()
	n := 0
	for n, err = 0, unix.EINTR; err == unix.EINTR; {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
	}
	if n != 1 || err != nil {
		unix.Kill(pid, unix.SIGKILL)
		t.Errorf("the program lives on: poll %d, %v", n, err)
	}
}

// What calls setsid(2) has left the group, and ends all the same.
func TestProgramTakesDaemonsAlong(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("no setsid(1)")
	}
	if newKinship(false).base == 0 {
		t.Skip("no numbers below the limit that this test runs under")
	}
	var out bytes.Buffer
	p := newShProgram(t, `setsid sleep 300 & echo $!; while [ "$(cut -d' ' -f6 /proc/$!/stat)" != $! ]; do :; done
(setsid env -i sh -c 'trap "" TERM HUP; (sleep 300 & echo $!); echo $$; exec >/dev/null 2>&1; touch here; exec sleep 300' &)
while [ ! -e here ]; do :; done`, &out)
	p.Grace = 100 * time.Millisecond
	if r := p.run(t.Context()); !r.ok() || r.left {
		t.Errorf("run: %+v; want ok", r)
	}
	wantGone(t, out.String(), 3)
	noChildGoroutine(t)
}

func TestProgramOutputIsWholeOrItsTail(t *testing.T) {
	var whole bytes.Buffer
	p := newShProgram(t, "seq 200000; echo last", &whole)
	if r := p.run(t.Context()); !r.ok() {
		t.Fatalf("run: %+v", r)
	}
	if n := bytes.Count(whole.Bytes(), []byte{'\n'}); n != 200001 || !bytes.HasSuffix(whole.Bytes(), []byte("\n200000\nlast\n")) {
		t.Errorf("%d lines, the end %q", n, whole.Bytes()[whole.Len()-20:])
	}
	tail := &tailBuffer{max: 100}
	p.io.output = func(_ byte, b []byte) error { tail.Write(b); return nil }
	p.run(t.Context())
	if want := strings.TrimRight(string(whole.Bytes()[whole.Len()-100:]), "\n"); tail.String() != want {
		t.Errorf("tail %q; want %q", tail, want)
	}
	if cap(tail.buf) > 3*programChunk {
		t.Errorf("the tail takes %d bytes", cap(tail.buf))
	}
	var cut bytes.Buffer
	p.io.output, p.Output = func(_ byte, b []byte) error { cut.Write(b); return nil }, 1000
	if r := p.run(t.Context()); r.reason != programOutputLimit || !bytes.Equal(cut.Bytes(), whole.Bytes()[:1000]) {
		t.Errorf("run under a limit: %+v, %d bytes", r, cut.Len())
	}
}

func TestTailBuffer(t *testing.T) {
	for _, step := range []int{1, 3, 7, 10, 11, 20, 64} {
		text := strings.Repeat("0123456789abcdef", 4)
		tail := &tailBuffer{max: 10}
		for b := []byte(text); len(b) > 0; b = b[min(step, len(b)):] {
			tail.Write(b[:min(step, len(b))])
		}
		if tail.String() != "6789abcdef" {
			t.Errorf("in steps of %d: %q", step, tail)
		}
	}
	tail := &tailBuffer{max: 10}
	tail.Write([]byte("a\xff\x00b\n\n"))
	if tail.String() != "a\uFFFD\x00b" {
		t.Errorf("not UTF-8: %q", tail)
	}
}

func TestProgramIsNotStartedUnderAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := newShProgram(t, ": >ran", io.Discard)
	if r := p.run(ctx); r.reason != programCancelled {
		t.Errorf("run: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "ran")); err == nil {
		t.Error("it ran")
	}
}

// Streams are told apart, nothing is lost or out of order, and started comes first.
func TestProgramStreams(t *testing.T) {
	var told []string
	var both [2]bytes.Buffer
	p := newShProgram(t, "seq 50000 & seq 50001 90000 >&2; wait; printf '\\0\\377'", nil)
	p.io.started = func() { told = append(told, "started") }
	p.io.output = func(stream byte, b []byte) error {
		told = append(told, "output")
		both[map[byte]int{programStdout: 0, programStderr: 1}[stream]].Write(b)
		return nil
	}
	r := p.run(t.Context())
	var want [2]bytes.Buffer
	for i := range 90000 {
		fmt.Fprintln(&want[i/50000], i+1)
	}
	want[0].WriteString("\x00\xff")
	if !r.ok() || both[0].String() != want[0].String() || both[1].String() != want[1].String() || r.out != int64(want[0].Len()+want[1].Len()) {
		t.Errorf("run: %+v; %d and %d bytes, want %d and %d", r, both[0].Len(), both[1].Len(), want[0].Len(), want[1].Len())
	}
	if told[0] != "started" || strings.Count(strings.Join(told, " "), "started") != 1 {
		t.Errorf("told %q", told[0])
	}
	for _, silent := range []string{"exit 3", "sleep 0.01; exit 3"} {
		q := newShProgram(t, silent, nil)
		if r := q.run(t.Context()); r.reason != programExited || r.exit != 3 || r.out != 0 {
			t.Errorf("%s: %+v", silent, r)
		}
	}
}

// 100 MB to a reader that is slow at first: the program waits, memory does not grow.
func TestProgramOutputWaitsForItsReader(t *testing.T) {
	const size = 100 << 20
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var n int64
	p := newShProgram(t, "echo $$ >pid; exec head -c 104857600 /dev/zero", nil)
	p.io.output = func(_ byte, b []byte) error {
		if n == 0 { // the program sleeps in write(2) before this goes on
			pid, _ := os.ReadFile(filepath.Join(p.dir, "pid"))
			for state := byte(0); state != 'S'; {
				stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
				if err != nil {
					return err
				}
				_, rest, _ := bytes.Cut(stat, []byte(") "))
				state = rest[0]
			}
		}
		n += int64(len(b))
		return nil
	}
	r := p.run(t.Context())
	runtime.ReadMemStats(&during)
	if !r.ok() || n != size {
		t.Errorf("run: %+v, %d bytes", r, n)
	}
	if grown := during.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("%d bytes were allocated for it", grown)
	}
}

func TestProgramInput(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var out bytes.Buffer
	p := newShProgram(t, "cat", &out)
	p.Stdin, p.io.stdin = true, io.NopCloser(bytes.NewReader(data))
	if r := p.run(t.Context()); !r.ok() || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("cat: %+v, %d bytes; want %d", r, out.Len(), len(data))
	}
	// A program that does not read it; one that ends while more is to come; none to come.
	for _, script := range []string{"exec <&-; sleep 0.01; echo x", "head -c 1 >/dev/null; echo x"} {
		out.Reset()
		p = newShProgram(t, script, &out)
		r, w := io.Pipe()
		p.Stdin, p.io.stdin = true, r
		sent := make(chan error)
		go func() {
			for {
				if _, err := w.Write(data); err != nil {
					sent <- err
					return
				}
			}
		}()
		if r := p.run(t.Context()); !r.ok() || out.String() != "x\n" {
			t.Errorf("%s: %+v, %q", script, r, &out)
		}
		if err := <-sent; err != io.ErrClosedPipe {
			t.Errorf("%s: who sends is told %v", script, err)
		}
	}
	out.Reset()
	p = newShProgram(t, "cat; echo end", &out)
	p.Stdin = true
	if r := p.run(t.Context()); !r.ok() || out.String() != "end\n" {
		t.Errorf("no input: %+v, %q", r, &out)
	}
	noChildGoroutine(t)
}

// A terminal: its size, a new one, ^C, the end of input, and output whole to the end.
func TestProgramOnATerminal(t *testing.T) {
	for _, c := range []struct {
		name, script, input, want string
		then                      string // is sent when the output has "ready"
		size                      *terminalSize
		reason                    programEnd
		signal                    unix.Signal
	}{
		{name: "size", script: "tty >/dev/null && stty size && test -t 1 && test -t 2", want: "33 101\r\n", reason: programExited},
		{name: "end of input", script: "stty -echo; echo ready; cat; echo end", then: "a\nb\n", want: "ready\r\na\r\nb\r\nend\r\n", reason: programExited},
		{name: "end within a line", script: "stty -echo; echo ready; cat; echo end", then: "a\nb", want: "ready\r\na\r\nbend\r\n", reason: programExited},
		{name: "control-C", script: "stty -echo; echo ready; exec sleep 300", then: "\x03", want: "ready\r\n", reason: programSignalled, signal: unix.SIGINT},
		{name: "new size", script: "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done", size: &terminalSize{Rows: 7, Cols: 9}, want: "ready\r\n7 9\r\n", reason: programExited},
		{name: "much", script: "seq 20000", want: strings.ReplaceAll(lines(20000), "\n", "\r\n"), reason: programExited},
	} {
		t.Run(c.name, func(t *testing.T) {
			input, send := io.Pipe()
			control := make(chan programControl, 1)
			out := &readyWriter{}
			out.ready = func() {
				out.ready = func() {}
				if c.size != nil {
					control <- programControl{size: c.size}
				} else {
					go func() {
						io.WriteString(send, c.then)
						send.Close()
					}()
				}
			}
			p := newShProgram(t, c.script, out)
			p.TTY, p.Stdin = &terminalSize{Rows: 33, Cols: 101}, true
			p.io.stdin, p.io.control = input, control
			if landlockABI() > 0 {
				boxed(p)
			}
			r := p.run(t.Context())
			if r.reason != c.reason || r.signal != c.signal || r.left || out.String() != c.want {
				t.Errorf("run: %+v,\n%.200q; want %s, signal %d,\n%.200q", r, out.String(), c.reason, c.signal, c.want)
			}
			noChildGoroutine(t)
		})
	}
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

func TestProgramSignals(t *testing.T) {
	control := make(chan programControl, 1)
	out := &readyWriter{}
	out.ready = func() {
		out.ready = func() {}
		control <- programControl{signal: unix.SIGUSR1}
	}
	p := newShProgram(t, "trap 'echo got; exit 4' USR1; echo ready; while :; do :; done", out)
	p.io.control = control
	if r := p.run(t.Context()); r.reason != programExited || r.exit != 4 || out.String() != "ready\ngot\n" {
		t.Errorf("run: %+v, %q", r, out)
	}
}

func TestProgramFigures(t *testing.T) {
	// Far above what the helper and this test take.
	p := newShProgram(t, `perl -e '$x = "x" x (300 << 20); $i++ while (times)[0] < 0.2; print length $x'`, io.Discard)
	r := p.run(t.Context())
	if !r.ok() || r.cpu < 200*time.Millisecond || r.cpu > time.Minute || r.maxRSS < 300<<20 || r.maxRSS > 900<<20 {
		t.Errorf("run: %+v; want at least 200ms and 300 MiB", r)
	}
	// And far below: berth's own size must not be taken for the program's. What is known of that one is what was
	// seen of it, so it goes on until somebody has looked.
	p = newShProgram(t, "read x", io.Discard)
	p.Stdin = true
	r2, w := io.Pipe()
	p.io.stdin = r2
	c, err := testLauncher().start(p.program, p.io)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for c.seen.Load() < rssLeast && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		w.Close()
	}()
	if r := c.await(t.Context()); r.reason != programExited || r.maxRSS <= 0 || r.maxRSS > 6<<20 || r.cpu <= 0 {
		t.Errorf("read: %+v", r)
	}
}

// Fifty at once, with all their streams: nothing is mixed up and nothing is left open.
func TestManyPrograms(t *testing.T) {
	newShProgram(t, "", io.Discard).run(t.Context()) // what a first run opens for good
	before := filesIn(t, "/proc/self/fd")
	l := testLauncher()
	var all sync.WaitGroup
	for i := range 50 {
		var out bytes.Buffer
		p := newShProgram(t, fmt.Sprintf("cat; echo %d; exit %d", i, i), &out)
		p.Stdin, p.io.stdin = true, io.NopCloser(strings.NewReader("in\n"))
		if i%10 == 0 {
			p.TTY, p.Stdin = &terminalSize{Rows: 24, Cols: 80}, i%20 == 0
			p.Argv[2] = rawText(fmt.Sprintf("echo in; echo %d; exit %d", i, i))
		}
		all.Go(func() {
			r := l.run(t.Context(), p.program, p.io)
			if got := strings.ReplaceAll(out.String(), "\r", ""); r.reason != programExited || r.exit != i || !strings.Contains(got, fmt.Sprintf("in\n%d\n", i)) {
				t.Errorf("%d: %+v, %q", i, r, got)
			}
		})
	}
	all.Wait()
	// Those of the tests before may close meanwhile, and so have made it fewer.
	waitUntil(t, "no descriptor to be left", func() bool { return len(filesIn(t, "/proc/self/fd")) <= len(before) })
	if len(l.kin.leaders) != 0 || len(l.kin.numbers) != 0 {
		t.Errorf("%d programs are still known", len(l.kin.leaders))
	}
	noChildGoroutine(t)
}

// An interactive shell ignores SIGTERM, and its jobs have groups of their own.
func TestProgramIsHungUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &readyWriter{ready: cancel}
	p := newShProgram(t, "", out)
	p.Argv = rawTexts([]string{"/bin/sh", "-i"})
	p.TTY, p.Stdin = &terminalSize{Rows: 24, Cols: 80}, true
	input, send := io.Pipe()
	p.io.stdin = input
	go io.WriteString(send, "sleep 300 & echo re''ady\n")
	if r := p.run(ctx); r.reason != programCancelled || r.signal == unix.SIGKILL || r.left || r.took > p.Grace/2 {
		t.Errorf("run: %+v\n%s", r, out)
	}
	noChildGoroutine(t)
}

// A reader that fails ends the program by a closed pipe; a terminal hangs up.
func TestProgramOutputThatFails(t *testing.T) {
	for _, tty := range []*terminalSize{nil, {Rows: 24, Cols: 80}} {
		p := newShProgram(t, "exec yes", nil)
		p.TTY, p.io.output = tty, func(byte, []byte) error { return io.ErrClosedPipe }
		want := unix.SIGPIPE
		if tty != nil {
			want = unix.SIGHUP
		}
		if r := p.run(t.Context()); r.signal != want && r.exit != 1 || r.left || r.out != 0 {
			t.Errorf("run: %+v; want signal %d", r, want)
		}
	}
}

func TestProgramAsJSON(t *testing.T) {
	p := program{Argv: []rawText{"/bin/\xff", ""}, Env: []rawText{"A=\n\x01"}, Root: "/\xfe", Dir: ".", Sandbox: &sandbox{Write: []rawText{"/\xfd"}},
		TTY: &terminalSize{1, 2}, Stdin: true, Timeout: 3, Grace: 4, Output: 5, FileSize: 6}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q program
	if err := json.Unmarshal(data, &q); err != nil || !reflect.DeepEqual(p, q) {
		t.Errorf("%s became %+v, %v", data, q, err)
	}
}
