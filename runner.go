// runner.go is "berth runner", which runs commands in a unit of its own, and the
// daemon's end of it: the same frames as clients speak, on a unix socket, with one
// request of their own. It is a file apart because it is a process apart: so that
// the daemon can be locked in by its unit while commands have what they need.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// runnerListener is the name of the runner's socket (FileDescriptorName=).
	runnerListener = "runner"
	// runnerDial is how long the daemon waits for the runner to take a command;
	// systemd may have to start it first.
	runnerDial = 10 * time.Second
	// runnerLast is how much longer than a command may take to end the daemon waits
	// for the runner's word about it.
	runnerLast = 10 * time.Second
)

// runnerRequest is the R that begins a connection to the runner, and the only one.
type runnerRequest struct {
	Do      string  `json:"do"` // "run"
	Program program `json:"program"`
}

// runnerAnswer is A from the runner: 150 when the program runs, then 226 with how
// it ended. An error to start is a 226 too.
type runnerAnswer struct {
	Code   int           `json:"code"`
	Text   string        `json:"text"`
	Result *runnerResult `json:"result,omitempty"`
}

// runnerResult is a programResult on its way.
type runnerResult struct {
	Reason programEnd    `json:"reason"`
	Exit   int           `json:"exit"`
	Signal int           `json:"signal"`
	Error  string        `json:"error,omitempty"`
	Took   time.Duration `json:"took"`
	CPU    time.Duration `json:"cpu"`
	MaxRSS int64         `json:"max_rss"`
	Out    int64         `json:"out"`
	Left   bool          `json:"left"`
}

// --- the daemon's end ---

// runnerLaunch is launcher.run by way of the runner at a socket.
func runnerLaunch(ctx context.Context, path string, p program, pio programIO) programResult {
	failed := func(err error) programResult {
		return programResult{reason: programStartFailed, exit: 126, err: errorf("runner: %w; see that berth-runner.socket is active", err)}
	}
	if ctx.Err() != nil {
		return programResult{reason: programCancelled, exit: -1}
	}
	d := net.Dialer{Timeout: runnerDial}
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	r := &runnerCall{conn: conn}
	request := encodeJSON(runnerRequest{"run", p})
	if len(request) > maxFrame {
		return failed(errors.New("the command line is too long"))
	}
	if err := r.send(frameRequest, request); err != nil {
		return failed(err)
	}
	over := make(chan struct{})
	var feeding sync.WaitGroup
	if pio.stdin != nil {
		feeding.Go(func() { r.feed(pio.stdin) })
	}
	feeding.Go(func() { r.control(ctx, pio.control, over, p.Grace) })
	result, started, err := r.follow(pio)
	close(over)
	if pio.stdin != nil {
		pio.stdin.Close()
	}
	feeding.Wait()
	switch {
	case err == nil:
		return result
	case ctx.Err() != nil:
		return programResult{reason: programCancelled, exit: -1}
	case started:
		// What dies with the runner, dies by SIGKILL.
		return programResult{reason: programSignalled, exit: -1, signal: syscall.SIGKILL, err: errorf("runner: %w", err)}
	}
	return failed(err)
}

// runnerCall is one command that the runner runs.
type runnerCall struct {
	conn net.Conn
	mu   mutex // guards writes
}

func (r *runnerCall) send(t frameType, payload []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.conn.Write(appendFrame(nil, t, payload))
	return err
}

func (r *runnerCall) feed(stdin io.Reader) {
	buf := make([]byte, stdinPiece)
	for {
		n, err := stdin.Read(buf)
		if n > 0 && r.send(frameData, buf[:n]) != nil {
			return
		}
		if err == io.EOF {
			r.send(frameEnd, nil)
		}
		if err != nil {
			return
		}
	}
}

func (r *runnerCall) control(ctx context.Context, control <-chan programControl, over <-chan struct{}, grace time.Duration) {
	done := ctx.Done()
	for {
		select {
		case <-over:
			return
		case <-done:
			done = nil
			// A stdin that nobody reads may be in the way of the X. Gone is as good.
			r.conn.SetWriteDeadline(time.Now().Add(time.Second))
			if r.send(frameCancel, nil) != nil {
				if u, ok := r.conn.(*net.UnixConn); ok {
					u.CloseWrite()
				}
			}
			r.conn.SetReadDeadline(time.Now().Add(grace + runnerLast))
		case c := <-control:
			if c.size != nil {
				r.send(frameWindow, fmt.Appendf(nil, `{"rows":%d,"cols":%d}`, c.size.Rows, c.size.Cols))
			} else {
				r.send(frameSignal, fmt.Appendf(nil, `{"signal":%q}`, signalName(c.signal)))
			}
		}
	}
}

// follow takes what the runner tells until the program has ended.
func (r *runnerCall) follow(pio programIO) (result programResult, started bool, err error) {
	in := newReader(r.conn, frameBuffer)
	var payload []byte
	deaf := false
	for {
		var t frameType
		if t, payload, err = readFrame(in, payload); err != nil {
			return result, started, err
		}
		switch t {
		case frameData, frameStderr:
			if !deaf && pio.output(byte(t), payload) != nil {
				// Nobody takes it any more, so the program need not go on; how it ended is
				// still wanted.
				deaf = true
				r.send(frameCancel, nil)
			}
		case frameAnswer:
			var a runnerAnswer
			if err := json.Unmarshal(payload, &a); err != nil {
				return result, started, err
			}
			switch {
			case a.Result != nil:
				return a.Result.result(), started, nil
			case a.Code/100 == 1:
				started = true
				if pio.started != nil {
					pio.started()
				}
			default:
				return result, started, errors.New(a.Text)
			}
		}
	}
}

// readFrame reads one frame into buf, or a larger one.
func readFrame(r io.Reader, buf []byte) (frameType, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf, err
	}
	t, n, err := parseHeader(head[:])
	if err != nil {
		return t, buf, err
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return t, buf, err
	}
	return t, buf, nil
}

func (r *runnerResult) result() programResult {
	p := programResult{reason: r.Reason, exit: r.Exit, signal: syscall.Signal(r.Signal), took: r.Took, cpu: r.CPU, maxRSS: r.MaxRSS, out: r.Out, left: r.Left}
	if r.Error != "" {
		p.err = errors.New(r.Error)
	}
	return p
}

// --- the runner ---

// A runner runs commands for the daemon.
type runner struct {
	log      *slog.Logger
	launcher *launcher
	allowed  func(uid uint32) bool
	sandbox  string // [exec] sandbox of the runner's own configuration
	ctx      context.Context
	end      context.CancelFunc
	serving  sync.WaitGroup
}

// runnerAllows is who may have commands run: root, and the daemon's user, which is
// the one whose the state directory is.
func runnerAllows(stateDir string) func(uid uint32) bool {
	return func(uid uint32) bool {
		if uid == 0 {
			return true
		}
		st, err := os.Stat(stateDir)
		if err != nil {
			return false
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		return ok && sys.Uid == uid
	}
}

// runnerSocket is the socket that systemd passed, or else one at path.
func runnerSocket(path string) (net.Listener, error) {
	given, err := inheritedSockets([]socketKind{{runnerListener, "unix", nil}})
	if err == nil && len(given) > 1 {
		err = errorf("systemd passed %d sockets; the runner takes one", len(given))
	}
	if err != nil {
		return nil, err
	}
	if len(given) == 1 {
		return given[0].stream, nil
	}
	if path == "" {
		return nil, errors.New(`no socket from systemd and none configured; write runner = "unix:/run/berth/runner.sock" into [exec]`)
	}
	if err := clearStale("unix", path); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return ln, os.Chmod(path, 0o666) // the kernel tells who knocks
}

func newRunner(cfg *config, log *slog.Logger, ownsChildren bool) *runner {
	r := &runner{log: log, launcher: newLauncher(log, ownsChildren), allowed: runnerAllows(cfg.Server.StateDir), sandbox: cfg.Exec.Sandbox}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// serve takes commands until the listener closes, and returns when all have ended.
func (r *runner) serve(ln net.Listener) error {
	new(notifier).tell(daemon.SdNotifyReady)
	defer r.serving.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			r.log.Warn("cannot accept connections", "listener", runnerListener, "error", err, "retry", acceptPauseMax)
			select {
			case <-time.After(acceptPauseMax):
			case <-r.ctx.Done():
				return nil
			}
			continue
		}
		r.serving.Go(func() { r.take(c) })
	}
}

// take runs the one command of a connection.
func (r *runner) take(c net.Conn) {
	defer c.Close()
	who, ok := peerCredentials(c)
	call := &runnerCall{conn: c}
	// Its own commands have its uid too, and must not choose what runs.
	if !ok || !r.allowed(who.uid) || who.uid == uint32(os.Geteuid()) && r.launcher.ours(who.pid) {
		r.log.Warn("refused", "uid", who.uid, "result", "not the daemon's user")
		call.send(frameAnswer, encodeJSON(runnerAnswer{Code: codeDenied, Text: "this user may not have commands run"}))
		return
	}
	c.SetReadDeadline(time.Now().Add(runnerDial))
	in := newReader(c, frameBuffer)
	t, payload, err := readFrame(in, nil)
	var q runnerRequest
	if err == nil && t == frameRequest {
		err = json.Unmarshal(payload, &q)
	}
	if err != nil || t != frameRequest || q.Do != "run" || len(q.Program.Argv) == 0 {
		call.send(frameAnswer, encodeJSON(runnerAnswer{Code: codeBadArgument, Text: "the runner takes one request, run, with a program"}))
		return
	}
	c.SetReadDeadline(time.Time{})
	if q.Program.Sandbox == nil && r.sandbox != "off" {
		// Whoever has taken over the daemon gets no further than this.
		call.send(frameAnswer, encodeJSON(runnerAnswer{Code: codeDenied, Text: `the runner runs nothing without a sandbox; its own exec.sandbox would have to be "off"`}))
		return
	}
	if q.Program.Sandbox != nil && r.sandbox == "landlock" {
		q.Program.Sandbox.BestEffort = false
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	run := &commandRun{control: make(chan programControl, 1), over: make(chan struct{}), look: func() {
		if hungUp(c) {
			cancel()
		}
	}}
	pio := programIO{
		control: run.control,
		started: func() { call.send(frameAnswer, encodeJSON(runnerAnswer{Code: codeDataOpening, Text: "running"})) },
		output:  func(stream byte, p []byte) error { return call.send(frameType(stream), p) },
	}
	if q.Program.Stdin {
		run.stdin = newStdinQueue()
		pio.stdin = run.stdin
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		r.read(in, run)
	})
	res := r.launcher.run(ctx, q.Program, pio)
	close(run.over)
	if run.stdin != nil {
		run.stdin.Close()
	}
	result := &runnerResult{Reason: res.reason, Exit: res.exit, Signal: int(res.signal), Took: res.took, CPU: res.cpu, MaxRSS: res.maxRSS, Out: res.out, Left: res.left}
	if res.err != nil {
		result.Error = res.err.Error()
	}
	call.send(frameAnswer, encodeJSON(runnerAnswer{Code: codeDataClosed, Text: "ended", Result: result}))
	c.SetReadDeadline(time.Unix(1, 0))
	reading.Wait()
	args := make([]string, len(q.Program.Argv))
	for i, a := range q.Program.Argv {
		args[i] = string(a)
	}
	r.log.Info("command", "args", strings.Join(args, " "), "dur", res.took.Round(time.Microsecond), "result", res.reason, "exit", res.exit, "bytes", res.out)
}

// read hands on what comes for a running command until X, or the daemon's end.
func (r *runner) read(in io.Reader, run *commandRun) {
	var payload []byte
	for {
		t, p, err := readFrame(in, payload)
		if err != nil {
			return
		}
		payload = p
		switch t {
		case frameData:
			run.data(p)
		case frameEnd:
			run.end()
		case frameCancel:
			return
		case frameSignal:
			var s struct{ Signal string }
			if json.Unmarshal(p, &s) == nil {
				run.signal(s.Signal)
			}
		case frameWindow:
			var size struct{ Rows, Cols uint16 }
			if json.Unmarshal(p, &size) == nil {
				run.resize(size.Rows, size.Cols)
			}
		}
	}
}

// hungUp tells whether the other end has closed the connection, also behind data
// that nobody has read.
func hungUp(c net.Conn) bool { return polled(c, unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) }

// polled asks what the kernel knows of a connection, of some events.
func polled(c net.Conn, events int16) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true // closed by this end
	}
	got := false
	rc.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: events & unix.POLLRDHUP}}
		if n, err := unix.Poll(p[:], 0); err == nil && n > 0 {
			got = p[0].Revents&events != 0
		}
	})
	return got
}
