package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shProgram is a real program whose ends are far away unless a test says otherwise.
func shProgram(t *testing.T, script string, out io.Writer) program {
	return program{argv: []string{"/bin/sh", "-c", script}, env: []string{"PATH=" + programPath}, dir: t.TempDir(),
		timeout: time.Minute, grace: time.Minute, output: out}
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
		change       func(*program)
		reason       programEnd
		exit         int
		signal       unix.Signal
	}{
		{"success", "exit 0", nil, programExited, 0, 0},
		{"failure", "exit 1", nil, programExited, 1, 0},
		{"no such command", "/nowhere/at/all", nil, programExited, 127, 0},
		{"highest status", "exit 255", nil, programExited, 255, 0},
		{"signal", "kill -SEGV $$", nil, programSignalled, -1, unix.SIGSEGV},
		{"timeout", "exec sleep 300", func(p *program) { p.timeout = 50 * time.Millisecond }, programTimeout, -1, unix.SIGTERM},
		{"timeout, stopped", "kill -STOP $$", func(p *program) { p.timeout = 200 * time.Millisecond }, programTimeout, -1, unix.SIGTERM},
		{"cancelled, and an orderly end", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", nil, programCancelled, 3, 0},
		{"cancelled, TERM ignored", "trap '' TERM; echo ready; while :; do sleep 0.01; done",
			func(p *program) { p.grace = 50 * time.Millisecond }, programCancelled, -1, unix.SIGKILL},
		{"output limit", "while echo y; do :; done", func(p *program) { p.limit = 100_000 }, programOutputLimit, -1, unix.SIGTERM},
		{"no such program", "", func(p *program) { p.argv = []string{"/nowhere/at/all"} }, programStartFailed, -1, 0},
		{"no such directory", "", func(p *program) { p.dir = "/nowhere/at/all" }, programStartFailed, -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := shProgram(t, c.script, &readyWriter{ready: cancel})
			if c.change != nil {
				c.change(&p)
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
	p := shProgram(t, `pwd; readlink /proc/$$/fd/0; ls /proc/$$/fd | tr '\n' ' '; echo; cat; tr '\0' '\n' </proc/$$/environ; cut -d' ' -f1,5,6 /proc/$$/stat`, &out)
	// With fewer than these the dynamic loader and the shell add nothing of their own.
	p.env = []string{"PATH=" + programPath, "ODD=a\nb\x01\xff"}
	r := p.run(t.Context())
	if !r.ok() {
		t.Fatalf("run: %+v\n%s", r, &out)
	}
	lines := strings.SplitN(out.String(), "\n", 4)
	dir, err := filepath.EvalSymlinks(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	if lines[0] != dir || lines[1] != "/dev/null" || strings.TrimSpace(lines[2]) != "0 1 2" {
		t.Errorf("directory, stdin, descriptors: %q; want %q, /dev/null, 0 1 2", lines[:3], dir)
	}
	env, ids, _ := strings.Cut(lines[3], "\xff\n")
	if want := strings.Join(p.env, "\n"); env+"\xff" != want {
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
	p := shProgram(t, `trap '' TERM
sleep 300 & echo $!
(sleep 300 & echo $!) &
wait $!
(sh -c 'echo $$; kill -STOP $$' & exec sleep 300) & echo $!
echo $$
while [ "$(cut -d' ' -f3 /proc/*/stat 2>/dev/null | grep -c T)" = 0 ]; do :; done
echo ready
wait`, out)
	p.grace = 100 * time.Millisecond
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
	p := shProgram(t, `sh -c 'trap "sleep 0.2; echo tidy >done; exit" TERM; echo ready; while :; do sleep 0.01; done' & wait`, out)
	r := p.run(ctx)
	if r.reason != programCancelled || r.signal != unix.SIGTERM || r.left || r.took > p.grace {
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
	p := shProgram(t, `sleep 300 & echo $!
sleep 300 >/dev/null 2>&1 & echo $!
sh -c 'trap "" TERM; echo $$; exec sleep 300' & while [ ! -e ignoring ]; do grep -q '^SigIgn:.*4...$' /proc/$!/status && : >ignoring; done`, &out)
	p.grace = 100 * time.Millisecond
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
	p := shProgram(t, `sleep 300 & echo $!
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
		shProgram(t, "echo $$; exec sleep 300", os.Stdout).run(t.Context())
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
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	}
	if n != 1 || err != nil {
		unix.Kill(pid, unix.SIGKILL)
		t.Errorf("the program lives on: poll %d, %v", n, err)
	}
}

// The known gap: what calls setsid(2) is not in the group any more. It must not
// hold up the end of the program either, though it holds its output open.
func TestProgramIsNotHeldUpByADaemon(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("no setsid(1)")
	}
	var out bytes.Buffer
	p := shProgram(t, `setsid sleep 300 & echo $!; while [ "$(cut -d' ' -f6 /proc/$!/stat)" != $! ]; do :; done`, &out)
	r := p.run(t.Context())
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGKILL)
	if !r.ok() || r.took > p.grace {
		t.Errorf("run: %+v; want ok, soon", r)
	}
	if processGone(pid) {
		t.Error("the daemon was ended too: say so in the comment of run")
	}
	noChildGoroutine(t)
}

func TestProgramOutputIsWholeOrItsTail(t *testing.T) {
	var whole bytes.Buffer
	p := shProgram(t, "seq 200000; echo last >&2", &whole)
	if r := p.run(t.Context()); !r.ok() {
		t.Fatalf("run: %+v", r)
	}
	if n := bytes.Count(whole.Bytes(), []byte{'\n'}); n != 200001 || !bytes.HasSuffix(whole.Bytes(), []byte("\n200000\nlast\n")) {
		t.Errorf("%d lines, the end %q", n, whole.Bytes()[whole.Len()-20:])
	}
	tail := &tailBuffer{max: 100}
	p.output = tail
	p.run(t.Context())
	if want := strings.TrimRight(string(whole.Bytes()[whole.Len()-100:]), "\n"); tail.String() != want {
		t.Errorf("tail %q; want %q", tail, want)
	}
	if cap(tail.buf) > 3*programChunk {
		t.Errorf("the tail takes %d bytes", cap(tail.buf))
	}
	var cut bytes.Buffer
	p.output, p.limit = &cut, 1000
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
	p := shProgram(t, ": >ran", io.Discard)
	if r := p.run(ctx); r.reason != programCancelled {
		t.Errorf("run: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "ran")); err == nil {
		t.Error("it ran")
	}
}
