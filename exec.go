// exec.go is the only place where berth starts a program, and answers for how it
// ended: in a session and process group of its own, with nothing inherited, and
// with nothing of the group left afterwards.
//
// A program is an argument list that the operator wrote: no shell is put before
// it. This file knows no session, no verb and no reply code, and not what the
// programs are for.

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// programGrace is how long a program has to end by itself after SIGTERM: a
	// recorder needs a moment to close its file, and a restart should not wait longer.
	programGrace = 5 * time.Second

	// programGone is how long a group may take to be gone after SIGKILL. Only what
	// sits in the kernel on a dead disk, or runs under a user id that berth may not
	// signal, takes longer than a scheduler's tick.
	programGone = 2 * time.Second

	// programDrain is how long output is still read when nothing of the group is
	// left: all that was written is in the pipe then, unless somebody who left the
	// group holds its other end.
	programDrain = time.Second

	// Between two looks at a group that is ending; the wait doubles from the first
	// to the second.
	programLookMin = time.Millisecond
	programLookMax = 50 * time.Millisecond

	programChunk = 16 << 10 // of output read at once; a pipe holds 64 KiB

	// programPath is where programs look for others: Debian's default for root,
	// since hooks mount, mail and restart things.
	programPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// programEnd says why a program ended, in the words that logs and answers have for it.
type programEnd string

const (
	programExited      programEnd = "exited"
	programSignalled   programEnd = "signalled"    // by a signal that was not ours
	programTimeout     programEnd = "timeout"      // it took longer than it may
	programOutputLimit programEnd = "output_limit" // it wrote more than it may
	programCancelled   programEnd = "cancelled"    // the context ended
	programStartFailed programEnd = "start_failed"
)

// A program is what to run and how long it may.
type program struct {
	argv []string // argv[0] is an absolute path
	env  []string // the whole environment, KEY=VALUE; any byte but NUL
	dir  string   // working directory

	timeout time.Duration // 0: none
	grace   time.Duration // from SIGTERM to SIGKILL

	// output gets stdout and stderr in the order they were written, from one
	// goroutine, which is done when run returns. While Write waits, so does the
	// program; after an error of it the program writes into a closed pipe.
	output io.Writer
	limit  int64 // bytes of output; 0: no limit
}

// A programResult tells how a program ended.
type programResult struct {
	reason programEnd
	exit   int            // exit status, -1 if a signal ended it or it never ran
	signal syscall.Signal // that ended it, whoever sent it; 0: none
	err    error          // why it could not be started
	took   time.Duration

	// left tells that part of its process group could not be ended within
	// programGone of SIGKILL.
	left bool
}

// ok tells whether the program did what it was asked to.
func (r programResult) ok() bool { return r.reason == programExited && r.exit == 0 }

// run runs p to its end, which is also that of ctx, and returns when nothing of
// its process group is left: whatever a program that ended by itself leaves in
// the background gets SIGTERM and, after the grace, SIGKILL, as the program
// itself does when its time is over. stdin is /dev/null.
//
// Not covered, because a process group cannot: a descendant that calls
// setsid(2) or setpgid(2) leaves the group and lives on. It does not hold up run.
func (p program) run(ctx context.Context) programResult {
	began := time.Now()
	if ctx.Err() != nil {
		return programResult{reason: programCancelled, exit: -1}
	}
	c, err := p.start()
	if err != nil {
		return programResult{reason: programStartFailed, exit: -1, err: err, took: time.Since(began)}
	}
	r := c.await(ctx, p)
	r.took = time.Since(began)
	return r
}

// A child is a program that was started. The goroutine that started it (watch)
// stays on its thread until the child is reaped.
type child struct {
	pid     int           // of the leader, its process group and its session
	exited  chan struct{} // closed when the leader is a zombie; its pid is still its own
	release chan struct{} // closed by await: the leader may be reaped
	reaped  chan struct{} // closed when state is set
	state   *os.ProcessState

	stdout  *os.File
	over    chan struct{} // closed when the output passes the limit
	drained chan struct{} // closed when nothing reads stdout any more
}

func (p program) start() (*child, error) {
	sealDescriptors()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer w.Close()
	c := &child{
		exited: make(chan struct{}), release: make(chan struct{}), reaped: make(chan struct{}),
		stdout: r, over: make(chan struct{}), drained: make(chan struct{}),
	}
	started := make(chan error)
	go c.watch(p, []*os.File{null, w, w}, started)
	if err := <-started; err != nil {
		r.Close()
		return nil, err
	}
	go c.drain(p.output, p.limit)
	return c, nil
}

// watch starts the leader and waits for its end.
func (c *child) watch(p program, files []*os.File, started chan<- error) {
	// prctl(2): the parent-death signal comes when the thread that forked ends. It
	// is for a berth that was killed: the next one runs the event again, and the
	// first command should not be at work still.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	proc, err := os.StartProcess(p.argv[0], p.argv, &os.ProcAttr{Dir: p.dir, Env: p.env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}})
	if err != nil {
		started <- err
		return
	}
	c.pid = proc.Pid
	started <- nil
	// The zombie stays until await is done with its pid, so that no signal for
	// the group can reach a stranger who was given the number since.
	for unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	close(c.exited)
	<-c.release
	c.state, _ = proc.Wait()
	close(c.reaped)
}

// drain copies the output until its end, its limit, or await's deadline.
func (c *child) drain(to io.Writer, limit int64) {
	defer close(c.drained)
	defer c.stdout.Close()
	if limit <= 0 {
		limit = math.MaxInt64
	}
	buf := make([]byte, programChunk)
	for {
		n, err := c.stdout.Read(buf)
		within := min(int64(n), limit)
		if _, werr := to.Write(buf[:within]); werr != nil {
			return
		}
		if limit -= within; within < int64(n) {
			close(c.over)
			return
		}
		if err != nil {
			return
		}
	}
}

// await waits until the program ends or may not go on, and sees it and its
// group out.
func (c *child) await(ctx context.Context, p program) programResult {
	var timeout <-chan time.Time
	if p.timeout > 0 {
		t := time.NewTimer(p.timeout)
		defer t.Stop()
		timeout = t.C
	}
	r := programResult{exit: -1}
	select {
	case <-c.exited:
		r.reason = programExited
	case <-timeout:
		r.reason = programTimeout
	case <-c.over:
		r.reason = programOutputLimit
	case <-ctx.Done():
		r.reason = programCancelled
	}
	grace := time.NewTimer(p.grace)
	defer grace.Stop()
	running := false
	if r.reason != programExited {
		c.terminate()
		running = !c.endLeader(grace.C)
	}
	close(c.release)
	if running {
		r.left = true // watch reaps it whenever it ends
	} else {
		<-c.reaped
		r.setStatus(c.state)
		r.left = !c.endGroup(grace.C, r.reason == programExited || r.reason == programSignalled)
	}
	c.stdout.SetReadDeadline(time.Now().Add(programDrain))
	<-c.drained
	return r
}

// setStatus takes over what wait(2) said.
func (r *programResult) setStatus(state *os.ProcessState) {
	if state == nil {
		return // somebody else reaped it: ours to wait for, so this cannot be
	}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		r.signal = ws.Signal()
		if r.reason == programExited {
			r.reason = programSignalled
		}
		return
	}
	r.exit = state.ExitCode()
}

// terminate asks the group to end; what is stopped must go on to hear it.
func (c *child) terminate() {
	unix.Kill(-c.pid, unix.SIGTERM)
	unix.Kill(-c.pid, unix.SIGCONT)
}

// endLeader waits for the leader's end, from grace on with SIGKILL to the whole
// group. It is false when even that does not help.
func (c *child) endLeader(grace <-chan time.Time) bool {
	select {
	case <-c.exited:
		return true
	case <-grace:
	}
	unix.Kill(-c.pid, unix.SIGKILL)
	t := time.NewTimer(programGone)
	defer t.Stop()
	select {
	case <-c.exited:
		return true
	case <-t.C:
		return false
	}
}

// endGroup ends what is left of the group when its leader has been reaped: what
// has had SIGTERM or gets it now may use the rest of the grace. It is false when
// something survives. The members that are left keep the group's number from
// being given to anybody else; that the last one goes, is reaped, and all other
// numbers are used up between one look and the next is not to be feared.
func (c *child) endGroup(grace <-chan time.Time, ask bool) bool {
	if c.empty() {
		return true
	}
	if ask {
		c.terminate()
	}
	if c.emptyBefore(grace) {
		return true
	}
	unix.Kill(-c.pid, unix.SIGKILL)
	t := time.NewTimer(programGone)
	defer t.Stop()
	return c.emptyBefore(t.C)
}

// emptyBefore waits for the end of the group until the timer fires, or has.
func (c *child) emptyBefore(end <-chan time.Time) bool {
	look := programLookMin
	for {
		t := time.NewTimer(look)
		select {
		case <-t.C:
		case <-end:
			t.Stop()
			return c.empty()
		}
		if c.empty() {
			return true
		}
		look = min(2*look, programLookMax)
	}
}

// empty tells whether nothing runs in the group any more.
func (c *child) empty() bool {
	c.reap()
	if unix.Kill(-c.pid, 0) == unix.ESRCH {
		return true
	}
	// An init that takes its time to reap orphans must not look like a group that
	// does not end. Should a member have been born behind the back of the look,
	// SIGKILL finds it: that reaches a whole group at once.
	if !groupDead(c.pid) {
		return false
	}
	unix.Kill(-c.pid, unix.SIGKILL)
	c.reap()
	return true
}

// reap takes away the zombies of the group that are children of this process, once
// its leader is. Orphans go to init, which in a container is often berth.
func (c *child) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PGID, c.pid, &info, unix.WEXITED|unix.WNOHANG, nil)
		if err != unix.EINTR && (err != nil || info.Signo == 0) {
			return
		}
	}
}

// groupDead tells whether a process group is there and consists of zombies only.
func groupDead(pgid int) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	found := false
	for _, e := range entries {
		if e.Name()[0] < '1' || e.Name()[0] > '9' {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// proc_pid_stat(5): pid (name) state ppid pgrp …; the name may hold anything.
		f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(f) < 3 || string(f[2]) != strconv.Itoa(pgid) {
			continue
		}
		if found = true; f[0][0] != 'Z' && f[0][0] != 'X' {
			return false
		}
	}
	return found
}

// sealDescriptors marks every descriptor of this process close-on-exec. All that
// berth opens is; what it was started with itself need not be, such as the lock
// file of a script that runs "berth demo 9>lock".
func sealDescriptors() {
	const first = 3 // behind stdin, stdout and stderr, which a child gets anew
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11, close_range(2).
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// A tailBuffer keeps the last max bytes written to it, in at most three times
// the memory.
type tailBuffer struct {
	max int
	buf []byte
}

// Write never fails.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p[max(0, len(p)-t.max):]...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	return len(p), nil
}

// String is what was kept, fit for a log: valid UTF-8, without the last line end.
func (t *tailBuffer) String() string {
	kept := t.buf[max(0, len(t.buf)-t.max):]
	return strings.TrimRight(strings.ToValidUTF8(string(kept), "\uFFFD"), "\n")
}
