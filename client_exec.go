// client_exec.go is exec at the client: it makes the words behind a box's name a
// command there, joins its streams to those here byte for byte, forwards signals and
// the window's size, and ends as the command did. It is apart from the other verbs
// because it is the only one where both ends talk at once and neither may wait for
// the other. It knows no files; the terminal is client_tty.go's.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// execChunk of standard input is read and sent at once: half of what a pipe holds.
	execChunk = 32 << 10
	// execAhead is how many pieces of output wait for whoever reads ours. One that is
	// written while the next arrives is enough.
	execAhead = 4
	// signalAgain is within what a signal that comes twice means: end it now.
	signalAgain = 2 * time.Second
	// signalTaken is how long a signal may be on its way. It waits behind standard
	// input that the command does not read, for ever if need be; the end of the
	// connection does not.
	signalTaken = 5 * time.Second
	// cancelGrace is how long the end of a command that was cancelled is waited for.
	// The box ends it in any case, after exec.kill_after with SIGKILL.
	cancelGrace = 2 * time.Second
	// stopSettles is within what a process that has sent itself SIGTSTP is stopped.
	stopSettles = 100 * time.Millisecond
	// signalExit is what shells add to the number of the signal that ended a command.
	signalExit = 128
	// maxExit is the largest exit status that there is: wait(2).
	maxExit = 255
	// loginShell is what runs where no command is named. SHELL is the user's.
	loginShell = `exec "$SHELL" -l`
)

// forwardedSignals go to the command. The default of all of them would end us.
var forwardedSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

func runExec(inv *invocation) error {
	p, err := inv.hostPlace(inv.firstArg())
	if err != nil {
		return err
	}
	c, err := p.box.main()
	if err != nil {
		return err
	}
	x := &execution{inv: inv, c: c, patience: signalTaken}
	q, err := x.request()
	if err != nil {
		return err
	}
	if p.path != "" {
		if _, err := c.do(remoteRequest{Do: "cd", Path: p.path}); err != nil {
			return errorf("%s: %w", shownText(p.path), err)
		}
	}
	return x.run(q)
}

// firstArg is the first argument, or "", which is the box of BERTH_URL or of the shell.
//
//go:noinline
func (inv *invocation) firstArg() string {
	if len(inv.args) == 0 {
		return ""
	}
	return inv.args[0]
}

// An execution is one command of a box, as it runs.
type execution struct {
	inv *invocation
	c   *remote

	in  *os.File     // standard input, if it is a terminal
	out *os.File     // standard output, if it is a terminal
	tty *rawTerminal // standard input, in raw mode; nil: it is not

	output  chan execOutput  // to the one who writes
	written chan struct{}    // closed when all of it was
	local   chan localEnd    // why the command is to end, from this side
	control chan execControl // to the one who sends signals
	taken   chan struct{}    // a signal has arrived at the box
	over    chan struct{}    // closed when nothing is to be sent any more

	patience time.Duration // signalTaken

	mu    mutex // held while stdin is sent
	ended bool  // nothing is to be sent any more
}

// execOutput is a piece of output, in a buffer of copyBuffers.
type execOutput struct {
	buf    *[]byte
	n      int
	stderr bool
}

// execControl is a frame that is no data.
type execControl struct {
	kind    frameType
	payload []byte
}

// A localEnd is why this side has the command end, and what the verb returns.
type localEnd struct{ err error }

// request is what to ask the box for.
func (x *execution) request() (q remoteRequest, err error) {
	inv, may, words := x.inv, &x.c.welcome, x.inv.tail
	x.in, x.out = terminalFile(inv.stdin), terminalFile(inv.stdout)
	q = remoteRequest{Do: "exec", TTY: inv.on("tty"), Stdin: !inv.on("no-stdin")}
	for _, w := range words {
		if !utf8.ValidString(w) {
			return q, usageErr("%s is not UTF-8, and commands go to the box as text", shownText(w))
		}
	}
	who := shownText(may.User)
	switch {
	case len(words) == 0 && may.Shell:
		q.Shell = loginShell
		q.TTY = q.TTY || x.in != nil && q.Stdin
	case len(words) == 0:
		return q, usageErr("which command? %s may run %s on %s", who, commandNames(may), x.c.host)
	case !inv.on("shell") && inList(may.Commands, words[0]):
		q.Command, q.Args = words[0], words[1:]
	case may.Shell:
		// As ssh does it: the words become one line, and the shell there takes it apart.
		q.Shell = strings.Join(words, " ")
		if strings.TrimSpace(q.Shell) == "" {
			return q, usageErr("the command is empty; without one there is a shell")
		}
	case inv.on("shell"):
		return q, &verbError{exitFailed, fmt.Sprintf("%s may not run command lines on %s, but %s", who, x.c.host, commandNames(may))}
	default:
		return q, &verbError{exitFailed, fmt.Sprintf("%s has no command %s for %s, who may run %s", x.c.host, configQuote(shownText(words[0])), who, commandNames(may))}
	}
	if q.TTY {
		size := terminalSizeOf(x.out, x.in)
		q.Rows, q.Cols, q.Term = int(size.Rows), int(size.Cols), os.Getenv("TERM") // zeros are the box's choice, 24 and 80
	}
	return q, nil
}

// commandNames is what a user may run, for messages.
func commandNames(may *remoteAnswer) string {
	names := make([]string, 0, len(may.Commands)+1)
	for _, name := range may.Commands {
		names = append(names, shownText(name))
	}
	if may.Shell {
		names = append(names, "any command line")
	}
	if len(names) == 0 {
		return "no command"
	}
	return strings.Join(names, ", ")
}

// run asks for the command and takes part in it to its end. Whatever way it ends, the
// terminal is as it was.
func (x *execution) run(q remoteRequest) error {
	signals := make(chan os.Signal, 16)
	defer signal.Stop(signals) // behind the terminal: a signal could end us before it
	if q.TTY && q.Stdin && x.in != nil {
		var err error
		if x.tty, err = takeTerminal(x.in); err != nil {
			return errorf("take over the terminal: %w", err)
		}
		defer x.tty.end()
	}
	catchSignals(signals, q.TTY)
	return x.talk(q, signals)
}

// catchSignals has signals delivered, but for those that whoever started us wants
// ignored, as nohup does. SIGPIPE is caught so that writing to nobody is an error and
// not the end of us.
func catchSignals(signals chan<- os.Signal, tty bool) {
	signal.Notify(signals, syscall.SIGPIPE)
	for _, s := range forwardedSignals {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	if tty {
		signal.Notify(signals, syscall.SIGWINCH, syscall.SIGCONT)
	}
}

// talk is run with signals from wherever.
func (x *execution) talk(q remoteRequest, signals <-chan os.Signal) error {
	x.output, x.written = make(chan execOutput, execAhead), make(chan struct{})
	x.local, x.taken = make(chan localEnd, 1), make(chan struct{}, 1)
	x.control, x.over = make(chan execControl, 16), make(chan struct{})
	token := []byte("signal " + strconv.FormatInt(time.Now().UnixNano(), 36))
	var message func(p []byte)
	if x.inv.within != nil {
		message = x.inv.within.message
	}
	x.c.hear(message, func(p []byte) {
		if string(p) == string(token) {
			wake(x.taken)
		}
	}, false)
	defer x.c.hear(message, nil, false)

	k, err := x.c.begin(q, remoteHandlers{block: x.stdout, stderr: x.stderr,
		final: func(*remoteCall, *remoteAnswer, error) { close(x.output) }})
	if err != nil {
		return err
	}
	go x.write()
	var sending sync.WaitGroup
	sending.Go(func() { x.sendControl(token) })
	stopInput := func() {}
	if q.Stdin {
		stopInput = x.startInput(&sending)
	}
	x.c.flush() // if that fails, so does the call
	err = x.attend(k, signals)
	x.tty.end()
	close(x.over)
	stopInput()
	sending.Wait()
	return err
}

// attend waits for the end, and sees to signals until then.
func (x *execution) attend(k *remoteCall, signals <-chan os.Signal) error {
	var (
		why      error       // of this side; nil: there is none
		ending   bool        // the command was cancelled
		last     os.Signal   // that came
		lastTime time.Time   // when it did
		timer    *time.Timer // the next thing that is done without being asked
		due      <-chan time.Time
		then     func()
		sent     bool // that is for a signal that has not arrived
	)
	after := func(d time.Duration, do func()) {
		if timer != nil {
			timer.Stop()
		}
		timer = time.NewTimer(d)
		due, then, sent = timer.C, do, false
	}
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	cut := false
	hangUp := func() { // what the box cannot be told, the end of the connection tells it
		x.c.fail(&connError{text: x.c.host + ": the connection was given up"})
		cut = true
	}
	cancel := func(err error) {
		why, ending = err, true
		x.tell(frameCancel, nil)
		after(cancelGrace, hangUp)
	}
	for !cut {
		select {
		case <-x.written:
			a, err := k.wait()
			if why != nil {
				return why
			}
			return x.result(a, err)
		case end := <-x.local:
			if !ending {
				cancel(end.err)
			}
		case <-due:
			due = nil
			then()
		case <-x.taken:
			if sent {
				due, sent = nil, false
			}
		case s := <-signals:
			sig := s.(syscall.Signal)
			switch {
			case sig == syscall.SIGPIPE: // told by the write
			case sig == syscall.SIGWINCH:
				x.resize()
			case sig == syscall.SIGCONT:
				if x.tty != nil {
					x.tty.take()
				}
				x.resize()
			case sig == syscall.SIGUSR1 || sig == syscall.SIGUSR2:
				x.signal(sig)
			case ending:
				why = exitWith(signalExit + int(sig))
				hangUp()
			case s == last && time.Since(lastTime) < signalAgain:
				cancel(exitWith(signalExit + int(sig)))
			default:
				last, lastTime = s, time.Now()
				x.signal(sig)
				code := signalExit + int(sig)
				if sig == syscall.SIGHUP { // nobody is left who could ask again
					after(signalAgain, func() { cancel(exitWith(code)) })
					break
				}
				after(x.patience, func() {
					why = &verbError{code, "the signal did not get through to the command, which does not read its input; the connection was given up, and the box ends the command"}
					hangUp()
				})
				sent = true
			}
		}
	}
	return why
}

// result is how the command ended, as an error with its exit code.
func (x *execution) result(a *remoteAnswer, err error) error {
	var no *remoteRefusal
	switch {
	case errors.As(err, &no) && no.Exit == nil && no.Signal == "":
		return err
	case errors.As(err, &no):
		return &verbError{max(exitFailed, commandExit(&no.remoteAnswer)), no.Error()}
	case isConnError(err):
		return &connError{err.Error() + "; the command ends with it", err}
	case err != nil:
		return err
	}
	code := commandExit(a)
	switch programEnd(a.Reason) {
	case programTimeout:
		return &verbError{max(exitFailed, code), "the command took longer than it may and was ended; exec.timeout on the box says how long, or the command's own timeout"}
	case programOutputLimit:
		return &verbError{max(exitFailed, code), "the command wrote more than it may and was ended; exec.output on the box says how much"}
	case programSignalled:
		if x.inv.on("verbose") {
			fmt.Fprintf(x.inv.stderr, "berth %s: the command was ended by signal %s\n", x.inv.verb.name, shownText(a.Signal))
		}
	}
	return exitWith(code)
}

// commandExit is a command's end as an exit code, as shells have it. Whatever a box
// tells, it is one that a process can have.
func commandExit(a *remoteAnswer) int {
	if a.Exit != nil {
		if *a.Exit < 0 || *a.Exit > maxExit {
			return maxExit
		}
		return *a.Exit
	}
	n := int(unix.SignalNum("SIG" + a.Signal))
	if n == 0 {
		n, _ = strconv.Atoi(a.Signal) // one without a name
	}
	if n <= 0 || n > maxExit-signalExit {
		return maxExit
	}
	return signalExit + n
}

// --- output ---

// stdout and stderr hand on what arrives; while the one who writes is held up, so is
// the connection, and so is the command.
func (x *execution) stdout(buf *[]byte, n int) (kept bool, err error) {
	defer x.tty.endOnPanic()
	return x.hand(execOutput{buf: buf, n: n})
}

func (x *execution) stderr(p []byte) error {
	defer x.tty.endOnPanic()
	for len(p) > 0 {
		buf := copyBuffers.Get().(*[]byte)
		n := copy(*buf, p)
		p = p[n:]
		if kept, err := x.hand(execOutput{buf, n, true}); !kept {
			copyBuffers.Put(buf)
			return err
		}
	}
	return nil
}

//go:noinline
func (x *execution) hand(o execOutput) (kept bool, err error) {
	select {
	case x.output <- o:
		return true, nil
	case <-x.c.ended: // and whoever reads ours may never do so again
		return false, x.c.broken()
	}
}

// write writes output until its end. It is a goroutine of its own because a pager
// may hold it up for as long as somebody reads, and signals must not wait for that.
func (x *execution) write() {
	defer x.tty.endOnPanic()
	defer close(x.written)
	failed := false
	for o := range x.output {
		w := x.inv.stdout
		if o.stderr {
			w = x.inv.stderr
		}
		if !failed {
			if _, err := w.Write((*o.buf)[:o.n]); err != nil {
				failed = true
				x.give(writeEnd(err, o.stderr))
			}
		}
		copyBuffers.Put(o.buf)
	}
}

// writeEnd is what comes of output that nobody takes: of a pipe whose reader has
// gone, nothing is said, as with every program in a pipe.
func writeEnd(err error, stderr bool) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return exitWith(signalExit + int(syscall.SIGPIPE))
	}
	where := "output"
	if stderr {
		where = "error"
	}
	return &verbError{exitFailed, fmt.Sprintf("write standard %s: %v; the command was ended", where, err)}
}

// give has the command end; the first reason counts.
func (x *execution) give(err error) {
	select {
	case x.local <- localEnd{err}:
	default:
	}
}

// --- what is sent ---

// tell sends a frame that is no data; if so many wait already that there is no room,
// nothing gets through anyway.
//
//go:noinline
func (x *execution) tell(kind frameType, payload []byte) {
	select {
	case x.control <- execControl{kind, payload}:
	default:
	}
}

//go:noinline
func (x *execution) signal(s syscall.Signal) {
	x.tell(frameSignal, []byte(`{"signal":"`+signalName(s)+`"}`))
}

func (x *execution) resize() {
	size := terminalSizeOf(x.out, x.in)
	if size.Rows > 0 {
		x.tell(frameWindow, []byte(`{"rows":`+itoa(int(size.Rows))+`,"cols":`+itoa(int(size.Cols))+`}`))
	}
}

// sendControl sends what tell was given. The ping behind each signal comes back when
// the box has seen that signal.
func (x *execution) sendControl(token []byte) {
	defer x.tty.endOnPanic()
	for {
		select {
		case <-x.over:
			return
		case f := <-x.control:
			err := x.c.send(f.kind, f.payload)
			if err == nil && f.kind == frameSignal {
				err = x.c.send(framePing, token)
			}
			if err != nil || x.c.flush() != nil {
				return
			}
		}
	}
}

// startInput begins to send standard input. What it returns ends that: nothing of it
// is sent afterwards.
func (x *execution) startInput(sending *sync.WaitGroup) (stop func()) {
	end := func() {
		x.mu.Lock()
		x.ended = true
		x.mu.Unlock()
	}
	f, ok := x.inv.stdin.(*os.File)
	if !ok {
		go x.sendInput(x.inv.stdin) // its Read may take for ever
		return end
	}
	in, err := newInputReader(f)
	if err != nil {
		x.give(&verbError{exitFailed, fmt.Sprintf("read standard input: %v", err)})
		return end
	}
	sending.Go(func() { x.sendInput(in) })
	return func() {
		in.stop()
		end()
		sending.Wait()
		in.close()
	}
}

// sendInput sends standard input and its end. The connection takes no more than the
// box holds for a command that does not read, and this waits then.
func (x *execution) sendInput(in io.Reader) {
	defer x.tty.endOnPanic()
	var escapes *escapeFilter
	if x.tty != nil {
		escapes = &escapeFilter{}
	}
	buf := make([]byte, execChunk)
	for {
		n, err := in.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			data, action := rest, escapeNone
			rest = nil
			if escapes != nil {
				data, action, rest = escapes.feed(data)
			}
			if len(data) > 0 && !x.sendData(frameData, data) {
				return
			}
			if action != escapeNone && !x.escape(action) {
				return
			}
		}
		switch {
		case err == io.EOF:
			x.sendData(frameEnd, nil)
			return
		case errors.Is(err, errCalledOff):
			return
		case err != nil:
			// An end that is none must not look like one to the command.
			x.give(&verbError{exitFailed, fmt.Sprintf("read standard input: %v; the command was ended", err)})
			return
		}
	}
}

// sendData sends a piece of standard input, unless the command is over: what comes
// behind it would belong to the next request.
func (x *execution) sendData(kind frameType, p []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !x.ended && x.c.send(kind, p) == nil && x.c.flush() == nil
}

// escape does what was asked for; false: nothing is read any more.
func (x *execution) escape(action escapeAction) bool {
	switch action {
	case escapeHelp:
		io.WriteString(x.inv.stderr, escapeText)
	case escapeSuspend:
		x.tty.give()
		unix.Kill(0, unix.SIGTSTP) // all of the job, as the terminal does it
		// Stopped, this sleeps until SIGCONT. Where nobody could send that, in a session
		// without job control, the kernel does not stop anybody.
		time.Sleep(stopSettles)
		x.tty.take()
		x.resize()
	case escapeEnd:
		x.give(&verbError{signalExit + int(syscall.SIGINT), "ended by ~.; so is the command"})
		return false
	}
	return true
}
