// exec.go is the only place where berth starts a program, and answers for how it
// ended: in a session and process group of its own, with nothing inherited, and
// with nothing of what it started left afterwards.
//
// A program is an argument list that somebody else put together: no shell is put
// before it. This file knows no session, no verb and no reply code, and not what
// the programs are for. What a program may touch is in sandbox.go, and who belongs
// to it in tree.go.

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

const (
	// programGrace is how long a program has to end by itself after SIGTERM: a
	// recorder needs a moment to close its file, and a restart should not wait longer.
	programGrace = 5 * time.Second

	// programGone is how long a program may take to be gone after SIGKILL. Only what
	// sits in the kernel on a dead disk, or runs under a user id that berth may not
	// signal, takes longer than a scheduler's tick.
	programGone = 2 * time.Second

	// programDrain is how long output is still waited for when nothing of the program
	// is left: all that was written is in the pipe then, unless somebody who was given
	// its other end holds it.
	programDrain = time.Second

	// Between two looks at a program that is ending; the wait doubles from the first
	// to the second.
	programLookMin = time.Millisecond
	programLookMax = 50 * time.Millisecond

	// Between two looks at the memory of a program; as above.
	programMemoryMin = 2 * time.Millisecond
	programMemoryMax = time.Second

	// rssLeast is less than any program has that has got as far as main: the loader and
	// libc alone are more.
	rssLeast = 512 << 10

	programChunk = 32 << 10 // of output or input moved at once; a pipe holds 64 KiB

	// programPath is where programs look for others: Debian's default for root,
	// since hooks mount, mail and restart things.
	programPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// Exit statuses of a program that was not run, as shells have them (POSIX XCU 2.8.2).
	programNotExecutable = 126
	programNotFound      = 127
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

// A rawText may hold any byte, and does so in JSON too: there it is base64.
type rawText string

// MarshalText never fails.
func (t rawText) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, []byte(t)), nil
}

func (t *rawText) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.AppendDecode(nil, b)
	*t = rawText(raw)
	return err
}

// rawTexts is s, for the fields of a program.
//
//go:noinline
func rawTexts(s []string) []rawText {
	raw := make([]rawText, len(s))
	for i := range s {
		raw[i] = rawText(s[i])
	}
	return raw
}

// plainTexts undoes rawTexts.
//
//go:noinline
func plainTexts(raw []rawText) []string {
	s := make([]string, len(raw))
	for i := range raw {
		s[i] = string(raw[i])
	}
	return s
}

// A program is what to run, within which limits, and what it may touch. It can be
// sent to another process as JSON.
type program struct {
	Argv    []rawText     `json:"argv"`              // Argv[0] is an absolute path
	Env     []rawText     `json:"env"`               // the whole environment, KEY=VALUE; any byte but NUL
	Root    rawText       `json:"root"`              // absolute: the home or the share that Dir is in
	Dir     rawText       `json:"dir"`               // working directory, relative to Root; no symlink leads it out of there
	Sandbox *sandbox      `json:"sandbox,omitempty"` // nil: none
	TTY     *terminalSize `json:"tty,omitempty"`     // nil: pipes
	Stdin   bool          `json:"stdin,omitempty"`   // false: /dev/null
	Timeout time.Duration `json:"timeout,omitempty"` // 0: none
	Grace   time.Duration `json:"grace,omitempty"`   // from SIGTERM to SIGKILL

	Output   int64 `json:"output,omitempty"`    // bytes of stdout and stderr together; 0: no limit
	FileSize int64 `json:"file_size,omitempty"` // that one file may grow to; 0: no limit
}

// terminalSize is in characters.
type terminalSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// The streams that programIO.output tells apart.
const (
	programStdout = 'D' // and all output on a terminal
	programStderr = 'E'
)

// programIO is the near end of a running program. All of it may be left out.
type programIO struct {
	// stdin is read by a goroutine of run until its end, which ends the program's
	// input too; what the program does not want is read and dropped. run closes it
	// when the program is over, which must make Read return.
	stdin io.ReadCloser

	// started is called once, when the program really runs and before any output.
	started func()

	// output gets what the program writes, each stream whole and in order, one call
	// at a time. p is good until it returns. While it waits, so does the program, and
	// so does run: it must return when the context ends. After an error of it the
	// program writes into a closed pipe.
	output func(stream byte, p []byte) error

	// control is signals for the program and new sizes of its terminal.
	control <-chan programControl
}

// A programControl is one of the two. A signal goes to the process group of the
// program, on a terminal to the one in the foreground.
type programControl struct {
	signal syscall.Signal // 0: none
	size   *terminalSize
}

// A programResult tells how a program ended.
type programResult struct {
	reason programEnd
	exit   int            // exit status; of what did not start 127, 126 or -1; -1 also if a signal ended it
	signal syscall.Signal // that ended it, whoever sent it; 0: none
	err    error          // why it could not be started
	took   time.Duration

	cpu    time.Duration // of the program and of those of its children that it waited for
	maxRSS int64         // bytes; of the largest of these. Below what the helper needs, it is at least what was seen, or at most that
	out    int64         // bytes of output that were passed on

	// left tells that part of it could not be ended within programGone of SIGKILL.
	left bool
}

// ended tells whether the program ended by itself.
func (r programResult) ended() bool {
	return r.reason == programExited || r.reason == programSignalled
}

// ok tells whether the program did what it was asked to.
func (r programResult) ok() bool { return r.reason == programExited && r.exit == 0 }

// A launcher starts programs and answers for them. Its methods may be called from
// any goroutine.
type launcher struct {
	log  *slog.Logger
	abi  func() int // landlockABI
	kin  *kinship
	unit *unitGroup // nil: programs get no cgroup of their own
	gate *mountGate
	fork func(*os.ProcAttr) (*os.Process, error) // startHelper
}

// newLauncher is called once in a process. With ownsChildren it answers for every
// child that the process has or is given: it becomes the reaper of its orphaned
// descendants, and nothing else in the process may start any.
func newLauncher(log *slog.Logger, ownsChildren bool) *launcher {
	if ownsChildren {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // before Linux 3.4
			log.Warn("orphans of commands go to init", "error", err)
		}
	}
	return &launcher{log: log, abi: landlockABI, kin: newKinship(ownsChildren), unit: ownUnitGroup(), gate: newMountGate(log), fork: startHelper}
}

func startHelper(attr *os.ProcAttr) (*os.Process, error) {
	return os.StartProcess(helperBinary, []string{"berth", helperVerb}, attr)
}

// run runs p to its end, which is also that of ctx, and returns when nothing of it
// is left and all its output has been passed on. Whatever a program that ended by
// itself leaves in the background gets SIGTERM and, after the grace, SIGKILL, as
// the program itself does when its time is over; leaving its process group or
// session is of no use.
func (l *launcher) run(ctx context.Context, p program, io programIO) programResult {
	began := time.Now()
	r := l.runTimed(ctx, p, io)
	r.took = time.Since(began)
	return r
}

func (l *launcher) runTimed(ctx context.Context, p program, io programIO) programResult {
	if io.stdin != nil {
		defer io.stdin.Close()
	}
	if ctx.Err() != nil {
		return programResult{reason: programCancelled, exit: -1}
	}
	if p.Sandbox != nil && !p.Sandbox.BestEffort {
		if err := sandboxProblemAt("landlock", l.abi()); err != nil {
			return programResult{reason: programStartFailed, exit: -1, err: err}
		}
	}
	c, err := l.start(p, io)
	if err != nil {
		return programResult{reason: programStartFailed, exit: -1, err: errorf("start a program: %w", err)}
	}
	return c.await(ctx)
}

// A child is a program that was started. The goroutine that started it (watch)
// stays on its thread until the child is reaped.
type child struct {
	program
	io  programIO
	l   *launcher
	pid int // of the leader, its process group and its session

	number  uint64        // in the kinship
	group   *childGroup   // nil: none
	exited  chan struct{} // closed when the leader is a zombie; its pid is still its own
	release chan struct{} // closed by await: the leader may be reaped
	reaped  chan struct{} // closed when state is set
	state   *os.ProcessState

	terminal *os.File   // the near end; nil: pipes
	outputs  []*os.File // near ends; the terminal
	input    *os.File   // near end of stdin, or the terminal; nil: none
	ready    *os.File   // near end of what the helper says
	run      chan helperWord

	over    chan struct{} // closed when the output passes the limit
	overOne sync.Once
	passing mutex       // held while output is called
	left    int64       // of the limit; under passing
	out     int64       // passed on; under passing
	broken  bool        // output failed; under passing
	resting atomic.Bool // nothing of the program is left: do not wait for output
	moving  sync.WaitGroup
	fed     chan struct{} // closed when nothing reads stdin any more; nil: nobody did

	floor int64        // maxRSS that the program had before it began
	seen  atomic.Int64 // memory in use, when last looked at
}

// helperWord is what became of a start.
type helperWord struct {
	floor int64
	lack  string // the layers of its sandbox that it does not have, and why
	fail  *helperFailure
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// start starts the helper of p, which becomes the program.
func (l *launcher) start(p program, io programIO) (c *child, err error) {
	c = &child{
		program: p, io: io, l: l,
		exited: make(chan struct{}), release: make(chan struct{}), reaped: make(chan struct{}),
		run: make(chan helperWord, 1), over: make(chan struct{}), left: p.Output,
	}
	if p.Output <= 0 {
		c.left = math.MaxInt64
	}
	var far, near []*os.File // by descriptor of the child; ours
	defer func() {
		closeAll(far)
		if err != nil {
			closeAll(near)
		}
	}()
	spec := helperSpec{program: p, Parent: os.Getpid()}
	pipe := func(read bool) (*os.File, error) { // the near end; whether that is to be read
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if !read {
			r, w = w, r
		}
		near, far = append(near, r), append(far, w)
		return r, nil
	}
	if p.TTY != nil {
		master, slave, err := newTerminal(*p.TTY)
		if err != nil {
			return nil, err
		}
		near, far = append(near, master), append(far, slave, slave, slave)
		spec.Terminal = rawText(slave.Name())
		c.terminal, c.outputs = master, []*os.File{master}
		if p.Stdin {
			c.input = master
		}
	} else {
		if p.Stdin {
			if c.input, err = pipe(false); err != nil {
				return nil, err
			}
		} else {
			null, err := os.Open(os.DevNull)
			if err != nil {
				return nil, err
			}
			far = append(far, null)
		}
		for range 2 {
			out, err := pipe(true)
			if err != nil {
				return nil, err
			}
			c.outputs = append(c.outputs, out)
		}
	}
	words, err := pipe(false)
	if err != nil {
		return nil, err
	}
	if c.ready, err = pipe(true); err != nil {
		return nil, err
	}
	if c.group, err = l.unit.add(); err != nil {
		l.log.Warn("command without a cgroup of its own", "error", err)
	}
	started := make(chan error)
	go c.watch(&spec, far, started)
	if err := <-started; err != nil {
		c.group.remove()
		return nil, err
	}
	go c.handshake(words, &spec)
	return c, nil
}

// newTerminal opens a terminal of this size: our end, which can be waited on, and
// the program's.
func newTerminal(size terminalSize) (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, errorf("open a terminal: %w", err)
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		if err = unix.SetNonblock(fd, true); err == nil {
			master = os.NewFile(uintptr(fd), "terminal")
			err = pty.Setsize(master, &pty.Winsize{Rows: size.Rows, Cols: size.Cols})
		} else {
			unix.Close(fd)
		}
	}
	if err != nil {
		if master != nil {
			master.Close()
		}
		slave.Close()
		return nil, nil, errorf("open a terminal: %w", err)
	}
	return master, slave, nil
}

// watch starts the leader and waits for its end.
func (c *child) watch(spec *helperSpec, files []*os.File, started chan<- error) {
	// prctl(2): the parent-death signal comes when the thread that forked ends. It
	// is for a berth that was killed: the next one runs the event again, and the
	// first command should not be at work still.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: c.terminal != nil, Pdeathsig: syscall.SIGKILL}
	c.group.join(sys)
	proc, err := c.l.kin.start(c, spec, func() (*os.Process, error) {
		return c.l.gate.start(spec, sys, func(sys *syscall.SysProcAttr) (*os.Process, error) {
			proc, err := c.l.fork(&os.ProcAttr{Dir: "/", Env: helperEnv, Files: files, Sys: sys})
			if errors.Is(err, syscall.ENOSYS) && sys.UseCgroupFD {
				// Only clone3(2) puts a new process into a cgroup, and systemd refuses that as a
				// whole where a unit has RestrictNamespaces=. The kinship still finds what was started.
				c.l.log.Warn("command without a cgroup of its own", "error", err)
				without := *sys
				without.UseCgroupFD = false
				proc, err = c.l.fork(&os.ProcAttr{Dir: "/", Env: helperEnv, Files: files, Sys: &without})
			}
			return proc, err
		})
	})
	if err != nil {
		started <- err
		return
	}
	started <- nil
	// The zombie stays until await is done with its pid, so that no signal for
	// the group can reach a stranger who was given the number since.
	for unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	close(c.exited)
	<-c.release
	c.state, _ = proc.Wait()
	c.l.kin.forget(c)
	close(c.reaped)
}

// handshake tells the helper what to run, and await what became of it.
func (c *child) handshake(words *os.File, spec *helperSpec) {
	defer c.ready.Close()
	sent := make(chan struct{})
	go func() {
		json.NewEncoder(words).Encode(spec) // what goes wrong the helper sees, or has ended
		words.Close()
		close(sent)
	}()
	c.run <- readHelperWord(c.ready)
	words.SetWriteDeadline(time.Unix(1, 0))
	<-sent
}

// begin connects the program that now runs with its near end.
func (c *child) begin() {
	c.look()
	if c.io.started != nil {
		c.io.started()
	}
	for i, f := range c.outputs {
		stream := byte(programStdout)
		if i == 1 {
			stream = programStderr
		}
		c.moving.Go(func() { c.drain(f, stream) })
	}
	if c.input == nil {
		return
	}
	if c.io.stdin == nil {
		c.endInput('\n')
		return
	}
	c.fed = make(chan struct{})
	go func() {
		defer close(c.fed)
		c.feed()
	}()
}

// drain passes one stream on until its end, an error, or a limit.
func (c *child) drain(f *os.File, stream byte) {
	defer c.guard()
	buf := make([]byte, programChunk)
	for {
		n, err := f.Read(buf)
		if err != nil && c.resting.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
			n = readWaiting(f, buf) // the near end may have been slow
			if n > 0 {
				err = nil
			}
		}
		if n > 0 && !c.pass(stream, buf[:n]) || err != nil {
			break // EIO among others, which is how a terminal ends
		}
	}
	if f != c.terminal {
		f.Close()
	} else if c.input == nil || c.failed() {
		c.hangUp()
	}
}

// readWaiting reads what lies in a pipe or terminal already.
func readWaiting(f *os.File, buf []byte) (n int) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	// RawConn.Read would look at the deadline that has passed.
	raw.Control(func(fd uintptr) {
		for {
			if n, err = unix.Read(int(fd), buf); err != unix.EINTR {
				return
			}
		}
	})
	return max(n, 0)
}

// pass is false if there is to be no more.
func (c *child) pass(stream byte, p []byte) bool {
	c.passing.Lock()
	defer c.passing.Unlock()
	if c.broken {
		return false
	}
	within := p[:min(int64(len(p)), c.left)]
	c.left -= int64(len(within))
	if c.io.output != nil && len(within) > 0 {
		if err := c.io.output(stream, within); err != nil {
			c.broken = true
			return false
		}
	}
	c.out += int64(len(within))
	if len(within) < len(p) {
		c.broken = true
		c.overOne.Do(func() { close(c.over) })
		return false
	}
	return true
}

// guard is deferred where what a program reads and writes is moved: a panic there
// ends this program, and not everything that berth does.
func (c *child) guard() {
	if v := recover(); v != nil {
		c.l.log.Error("command panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		unix.Kill(-c.pid, unix.SIGKILL)
	}
}

func (c *child) failed() bool {
	c.passing.Lock()
	defer c.passing.Unlock()
	return c.broken
}

// feed passes stdin on to its end. What the program does not take is dropped, so
// that whoever sends it is not held up.
func (c *child) feed() {
	defer c.guard()
	buf := make([]byte, programChunk)
	last := byte('\n')
	gone := false
	for {
		n, err := c.io.stdin.Read(buf)
		if n > 0 && !gone {
			_, werr := c.input.Write(buf[:n])
			gone = werr != nil
			last = buf[n-1]
		}
		if err != nil {
			break
		}
	}
	if !gone {
		c.endInput(last)
	}
}

// endInput tells the program that there is no more input after last.
func (c *child) endInput(last byte) {
	if c.terminal == nil {
		c.input.Close()
		return
	}
	// termios(3): in canonical mode the end-of-file character ends a line that has
	// been begun, and only on a line of its own the input. In raw mode there is no end.
	raw, err := c.terminal.SyscallConn()
	if err != nil {
		return
	}
	var mode *unix.Termios
	cerr := raw.Control(func(fd uintptr) { mode, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	if cerr != nil || err != nil || mode.Lflag&unix.ICANON == 0 {
		return // closed meanwhile, or there is nothing that an end means
	}
	end := []byte{mode.Cc[unix.VEOF]}
	if last != '\n' && last != '\r' {
		end = append(end, end...)
	}
	c.terminal.Write(end)
}

// hangUp closes our end of a terminal: the session of the program gets SIGHUP.
func (c *child) hangUp() { c.terminal.Close() }

// await waits until the program ends or may not go on, and sees it and all that
// belongs to it out.
func (c *child) await(ctx context.Context) programResult {
	var timeout <-chan time.Time
	if c.Timeout > 0 {
		t := time.NewTimer(c.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	look := programMemoryMin
	looks := time.NewTimer(look)
	defer looks.Stop()
	r := programResult{exit: -1}
	words, control := c.run, c.io.control
	for r.reason == "" {
		select {
		case w := <-words:
			words = nil
			c.word(&r, w)
		case <-c.exited:
			if r.reason = programExited; words != nil {
				c.word(&r, <-words) // its end is at hand: the helper has no other
				words = nil
			}
		case <-timeout:
			r.reason = programTimeout
		case <-c.over:
			r.reason = programOutputLimit
		case <-ctx.Done():
			r.reason = programCancelled
		case m, ok := <-control:
			if !ok {
				control = nil
			} else if words == nil {
				c.control(m)
			}
		case <-looks.C:
			if words == nil { // before, it is the helper's
				c.look()
			}
			look = min(2*look, programMemoryMax)
			looks.Reset(look)
		}
	}
	c.end(&r)
	c.resting.Store(true)
	if words != nil {
		<-words // not begun, and it never will
	}
	c.settle()
	r.out = c.out
	select {
	case <-c.over: // by its last words
		if r.ended() {
			r.reason = programOutputLimit
		}
	default:
		// Who cancels takes no more output, and a program may die of that before it is ended.
		if r.ended() && ctx.Err() != nil && c.failed() {
			r.reason = programCancelled
		}
	}
	return r
}

// word takes what the helper says.
func (c *child) word(r *programResult, w helperWord) {
	if w.lack != "" {
		c.l.gate.fail(w.lack)
	} else if f := w.fail; f != nil && f.Stage == helperStageMount {
		c.l.gate.fail(lackMounts + f.Text)
	}
	if w.fail == nil {
		c.floor = w.floor
		c.begin()
		return
	}
	r.reason, r.err = programStartFailed, w.fail
	r.exit = w.fail.exit()
}

// settle ends the traffic with a program that is over.
func (c *child) settle() {
	if c.io.stdin != nil {
		c.io.stdin.Close()
	}
	if c.input != nil {
		c.input.SetWriteDeadline(time.Unix(1, 0))
	}
	if c.fed != nil {
		<-c.fed
	}
	for _, f := range c.outputs {
		f.SetReadDeadline(time.Now().Add(programDrain))
	}
	c.moving.Wait()
	for _, f := range c.outputs {
		f.Close()
	}
	if c.input != nil {
		c.input.Close()
	}
}

// control does what it is told to a program that runs.
func (c *child) control(m programControl) {
	if m.size != nil && c.terminal != nil {
		c.onTerminal(func(fd int) {
			unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: m.size.Rows, Col: m.size.Cols})
		})
	}
	if m.signal == 0 {
		return
	}
	group := c.pid
	if c.terminal != nil {
		c.onTerminal(func(fd int) {
			front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
			if err != nil {
				return
			}
			// The number is the program's own while its group's leader is in its session.
			if sid, err := unix.Getsid(front); err == nil && sid == c.pid {
				group = front
			}
		})
	}
	unix.Kill(-group, m.signal)
}

func (c *child) onTerminal(f func(fd int)) {
	if raw, err := c.terminal.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// setStatus takes over what wait(2) said.
func (r *programResult) setStatus(c *child) {
	if c.state == nil {
		return // somebody else reaped it: ours to wait for, so this cannot be
	}
	r.cpu = c.state.UserTime() + c.state.SystemTime()
	// execve(2) keeps the largest size that the process had before: that of the
	// helper, and of berth itself, whose memory a child shares at first. What does
	// not exceed these is known from looks only.
	r.maxRSS = c.seen.Load()
	if u, ok := c.state.SysUsage().(*syscall.Rusage); ok && int64(u.Maxrss)<<10 > c.floor {
		r.maxRSS = max(r.maxRSS, int64(u.Maxrss)<<10)
	}
	if r.maxRSS < rssLeast {
		r.maxRSS = c.floor // the look came before it had begun: it needed no more than this
	}
	ws := c.state.Sys().(syscall.WaitStatus)
	if r.reason == programStartFailed { // this was the helper's end
		if ws.Signaled() && ws.Signal() == unix.SIGSYS {
			c.l.gate.fail(lackMounts + "a filter of system calls that berth runs under ends who asks for one") // as systemd's does
		}
		return
	}
	if ws.Signaled() {
		r.signal = ws.Signal()
		if r.reason == programExited {
			r.reason = programSignalled
		}
		return
	}
	r.exit = c.state.ExitCode()
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
