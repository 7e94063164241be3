// session.go is the life of one control connection: which goroutine has it,
// how it waits for lines, how it is parked when idle, watched during a
// transfer, drained and ended. It stands between proto.go, which says what the
// lines mean, and the sockets, and knows no verb but ABOR and STAT, which must
// not wait their turn.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxPending  = 64 << 10 // bytes of lines that wait for a transfer's end
	pendingCost = 32       // what each of them takes besides its bytes
	abuseLimit  = 20       // unknown verbs, before the session ends
	abuseLong   = 4        // what a line that is too long counts against abuseLimit
	failedLimit = 5        // failed logins on one connection

	// parkAfter is how long a session waits on the goroutine that ran its last
	// command. After it a fresh one waits, with the smallest stack there is: a
	// stack that grew does not shrink, and idle sessions are most of them.
	parkAfter = time.Second

	// drainGrace is how long after its last command the next one of a session may come
	// while the server drains, and drainCourtesy for how long in all it takes commands.
	// Who has connected or logged in a moment before a restart can so
	// fetch his file and leave, and needs not know of it: that 200 connections a
	// second live through restarts on a busy machine is what .ci/systemd shows, and
	// with one second not all of them did. A restart takes that much longer only if
	// somebody is in the middle of something.
	drainGrace    = 5 * time.Second
	drainCourtesy = 10 * time.Second
	// watchAfter is how long a transfer runs before anybody reads the control
	// connection. Most transfers are over by then and need no second goroutine;
	// much shorter, and the timers alone would wake the poller for each of them.
	watchAfter    = 100 * time.Millisecond
	outBuffer     = 2 << 10
	outFlush      = 32 << 10
	writeTimeout  = time.Minute // a client that does not read its replies
	handshakeTime = 20 * time.Second
	alertTimeout  = 100 * time.Millisecond // for the rest of a TLS record that has begun to arrive
)

// A session is one control connection. One goroutine at a time runs it; while
// a transfer is under way a second one (watch) reads the connection, and the
// fields under mu are what both may touch.
type session struct {
	srv     *server
	id      uint64
	conn    net.Conn // bare, or *tls.Conn after AUTH
	bare    net.Conn
	tls     *tlsSession // nil in plain text
	proto   string      // "ftp", "ftps", "frames" or "local", for logs and metrics
	peer    netip.Addr  // invalid on the unix socket
	local   netip.Addr
	reached netip.Addr // where the client connected to; local, if there is no proxy
	via     netip.Addr // the proxy; invalid if there is none
	started time.Time

	// login
	user     *user // as he is here, see under
	base     *user // as the registry has him
	account  *account
	jail     *jail
	asked    string // what USER said
	failures int
	abuse    int
	method   string // how the user proved who he is
	localUID uint32 // the unix socket's peer
	hasUID   bool
	counting bool   // sessionStarted was told
	reloads  uint64 // the server's, when user was last looked at

	isOperator bool        // has the operator's requests, see peer.operates
	late       atomic.Bool // an operator who watches the drain, see server.stay; server.late counts it, not running

	// parameters of transfers (RFC 959 section 5.1, RFC 4217, RFC 2389)
	cwd        string
	ascii      bool
	modeZ      bool
	private    bool // PROT P
	pbsz       bool
	rest       int64 // REST; 0: none
	rangeFrom  int64 // RANG; rangeTo < rangeFrom: none
	rangeTo    int64
	allo       int64 // ALLO; -1: none
	renameFrom string
	epsvAll    bool
	facts      mlstFacts
	digest     int // index into digests
	arm        dataArm
	tape       *tape  // what berth learn has of the session; nil: nothing
	heard      uint64 // the last chat message that SITE SAY has shown

	fr *framing // nil as long as the session speaks lines; set under wmu

	// input, owned by whoever reads the connection
	in        *lineReader
	pending   []string // lines that came during a transfer
	eof       error    // the control connection ended while a transfer ran
	violation error    // what came during a request and cannot be
	idleAt    time.Time

	patient bool  // replies may take as long as the client likes; guarded by wmu
	wmu     mutex // guards out, outErr and away; held while replies are sent
	out     []byte
	outErr  error
	away    time.Duration // of the running command: what elsewhere has taken

	mu       mutex // guards what follows; never held while anything blocks
	verb     string
	restedAt time.Time // when the last verb was done; zero: there was none
	xfer     *transfer
	about    string // what the transfer is about, for STAT and WHO
	aborts   int
	stopping bool // the watcher is to end
	draining bool
	killed   error // why it was, see kill
	idle     bool
	idleFrom time.Time
	shaking  bool          // in a TLS handshake
	framed   bool          // fr is there
	listener *listener     // made by hears
	watching chan struct{} // closed when the watcher has ended; nil: there is none
	unwatch  chan struct{} // closed to end one that waits for something else than input
}

var errQuit = errors.New("session over")

// serveControl begins a session and returns; the session then runs on
// goroutines of its own, one at a time, until finish.
func (s *session) serveControl() {
	cfg := s.srv.config()
	s.idleAt = s.started.Add(cfg.Limits.LoginTimeout.std())
	s.cwd = "/"
	s.facts = factsAll
	s.digest = 1
	s.rangeTo = -1
	ready := " ready."
	if s.hasUID && !s.late.Load() { // nobody would wait for the transfers of who comes so late
		// On the unix socket the kernel has said who it is.
		if u := s.srv.users.byUID(s.localUID); u != nil && s.srv.auth.allowed(u, s.peer) {
			ready = " ready, and you are logged in as " + u.Name + "."
			if no := s.become(u, "local"); no != nil {
				if !s.isOperator {
					go s.run(s.denied(no))
					return
				}
				ready = " ready." // he may be here to see to what keeps that user out
			}
		}
	}
	s.reply(codeReady, cfg.Server.Name+ready)
	go s.run(nil) // and not a call: what is below on the stack stays as long as the session runs
}

// run is the session's loop: lines in, replies out, until nothing has come
// for parkAfter, or the session is over.
func (s *session) run(err error) {
	defer func() {
		if v := recover(); v != nil {
			s.panicked(v)
		}
	}()
	for {
		if err == nil && s.fr != nil {
			err = s.serveFrame()
			if err == nil {
				continue
			}
		}
		var line string
		if err == nil {
			line, err = s.nextLine()
		}
		switch {
		case err == nil:
		case err == errParked:
			s.park()
			return
		default:
			s.finish(s.farewell(err))
			return
		}
		err = s.handle(line)
	}
}

// panicked ends the session after a panic of its goroutine, which is no reason
// to end anybody else's.
func (s *session) panicked(v any) {
	s.srv.log.Error("session panic", "session", s.id, "user", s.userName(), "verb", s.verb, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	s.srv.metrics.panics.Inc()
	s.replyNow(codeClosing, "An error in the server ended this session; it has been logged.")
	s.finish("panic")
}

// guard is deferred in goroutines beside a session's own: a panic there is logged
// and ends what end says, and not everybody's sessions.
func (s *session) guard(end func()) {
	if v := recover(); v != nil {
		s.srv.log.Error("session panic", "session", s.id, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		s.srv.metrics.panics.Inc()
		end()
	}
}

// errParked: nothing to do, and the goroutine may go.
var errParked = errors.New("parked")

var (
	errAbuse   = errors.New("abuse")
	errDrain   = errors.New("the server is going down")
	errKicked  = errors.New("the operator has ended the session")
	errAccount = errors.New("the account has changed")
)

// tooLongLine stands for a line over the limit among the pending ones; no
// line that a client sends ends so.
const tooLongLine = "\n"

// goingDown is what the draining server tells.
const goingDown = "The server is going down; try again later."

// farewell says goodbye as the reason allows, and names it for log and metrics.
func (s *session) farewell(err error) string {
	s.mu.Lock()
	killed := s.killed
	s.mu.Unlock()
	switch {
	case killed == errKicked:
		s.replyNow(codeClosing, "The operator has ended this session.")
		return "kicked"
	case err == errQuit:
		s.flush()
		return "ok"
	case errors.Is(err, os.ErrDeadlineExceeded):
		if s.user == nil {
			s.replyNow(codeClosing, "No login in time, closing.")
			return "login_timeout"
		}
		s.replyNow(codeClosing, "Idle for too long, closing.")
		return "idle"
	case err == errAbuse:
		return "abuse"
	case err == errAccount:
		return "account"
	case err == errDrain:
		s.replyNow(codeClosing, goingDown)
		return "drained"
	case err == io.EOF:
		s.flush()
		return "closed"
	}
	return "error"
}

// park leaves the session to a goroutine of the smallest size, which does
// nothing but wait for the client; all that takes more stack is done before.
func (s *session) park() {
	rc, err := s.bare.(syscall.Conn).SyscallConn()
	if err != nil {
		go s.run(err)
		return
	}
	s.bare.SetReadDeadline(s.idleAt)
	if !s.setIdle(true) {
		go s.run(errDrain)
		return
	}
	go s.wait(rc)
}

// wait must not call anything else: at two kilobytes of stack ten thousand
// idle sessions are 20 MiB, and the next size is twice that.
func (s *session) wait(rc syscall.RawConn) {
	err := rc.Read(readable)
	go s.resume(err)
}

func (s *session) resume(err error) {
	if !s.setIdle(false) || err != nil && s.drained() {
		err = errDrain
	}
	s.run(err)
}

// readable peeks: the poller's edge may have been used up by an earlier read.
func readable(fd uintptr) bool {
	var b byte
	_, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return e != unix.EAGAIN
}

// setIdle marks that the session waits for a command; false if it must end.
func (s *session) setIdle(idle bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle != idle {
		s.idle = idle
		if idle {
			s.idleFrom = time.Now()
			s.srv.quick.busy.Add(-1)
		} else {
			s.srv.quick.busy.Add(1)
		}
	}
	if !s.draining {
		return true
	}
	left := s.courtesy()
	if idle {
		left = s.waitNoLonger()
	}
	return left > 0
}

// waitNoLonger has an idle session of a draining server wait for drainGrace, which may be over,
// and tells for how long it waits. s.mu is held.
func (s *session) waitNoLonger() time.Duration {
	left := min(s.courtesy(), time.Until(s.idleFrom.Add(drainGrace)))
	s.bare.SetReadDeadline(time.Now().Add(left))
	return left
}

// drain asks the session to end: after what it does, and when no command has come for drainGrace.
func (s *session) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	switch {
	case s.idle:
		s.waitNoLonger()
	case s.shaking: // a stranger who says nothing must not hold a restart
		s.bare.SetDeadline(time.Now().Add(min(s.courtesy(), drainGrace)))
	case s.xfer == nil && !s.late.Load(): // nor one who does not read his replies
		s.bare.SetWriteDeadline(time.Now().Add(s.courtesy()))
	}
}

// allowReply gives a reply its time, which is shorter while the server drains.
func (s *session) allowReply() {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := writeTimeout
	if s.draining && s.xfer == nil {
		most = max(s.courtesy(), closeTimeout)
	}
	s.conn.SetWriteDeadline(time.Now().Add(most))
}

// kill ends the session whatever it does. why is errKicked, or errDrain. Who waits for
// a command is told; everything else is cut off, as it may hang.
func (s *session) kill(why error) {
	s.mu.Lock()
	s.draining, s.killed = true, why
	x := s.xfer
	if s.idle {
		s.bare.SetDeadline(time.Unix(1, 0))
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	if x != nil {
		x.cancel(why)
	}
	s.bare.Close()
}

// nextLine returns the next command line: one that came during the last
// transfer, one that is buffered, or one that is waited for. Replies are
// flushed only when there is nothing left to answer, so that a client that
// pipelines gets them in few packets.
func (s *session) nextLine() (string, error) {
	for {
		if s.isDraining() {
			return "", errDrain
		}
		if len(s.pending) > 0 {
			line := s.pending[0]
			if s.pending = s.pending[1:]; len(s.pending) == 0 {
				s.pending = nil
			}
			if line == tooLongLine {
				if err := s.tooLong(lineTooLong); err != nil {
					return "", err
				}
				continue
			}
			return line, nil
		}
		if s.in != nil {
			line, st := s.in.next()
			switch st {
			case lineRead:
				if len(line) == 0 {
					continue
				}
				return string(line), nil
			case lineTooLong, lineEndless:
				if err := s.tooLong(st); err != nil {
					return "", err
				}
				continue
			}
		}
		if err := s.flush(); err != nil {
			return "", err
		}
		if s.eof != nil {
			return "", s.eof
		}
		if err := s.read(); err != nil {
			return "", err
		}
	}
}

// isDraining tells that no further command is to be begun.
func (s *session) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining && s.courtesy() <= 0
}

// drained tells that the session has been asked to end.
func (s *session) drained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// inputBuffer is where a session reads to: lines or frames are made of it.
type inputBuffer interface {
	space() []byte // for the next read
	got(n int)     // so many bytes were read into it
	buffered() bool
}

func (s *session) takeInput() inputBuffer {
	if s.fr == nil {
		s.takeLineReader()
		return s.in
	}
	if s.fr.in == nil {
		s.fr.in = newFrameReader(nil)
	}
	return s.fr.in
}

// dropInput gives back what an idle session does not need.
func (s *session) dropInput() {
	if s.fr == nil {
		s.dropLineReader()
	} else if s.fr.in != nil {
		s.fr.in.shrink()
		s.fr.in = nil
	}
}

// read waits for input. A plain connection that stays quiet is parked; one under
// TLS keeps its goroutine, but not a large buffer.
func (s *session) read() error {
	in := s.takeInput()
	_, canPark := s.conn.(syscall.Conn)
	deadline := s.idleAt
	soon := false
	if at := time.Now().Add(parkAfter); at.Before(deadline) && (canPark || s.fr != nil) {
		deadline, soon = at, true
	} else {
		canPark = false
	}
	s.conn.SetReadDeadline(deadline)
	if s.tls != nil {
		// Reading TLS may write: the answer to a KeyUpdate (RFC 8446 section
		// 4.6.3). A client that sends those and reads nothing must not hold the
		// session beyond its time.
		s.conn.SetWriteDeadline(deadline)
	}
	if !s.setIdle(true) {
		return errDrain
	}
	if sc, ok := s.conn.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { s.srv.quick.soon(int(fd), unix.POLLIN) })
		}
	}
	n, err := s.conn.Read(in.space())
	if n == 0 && soon && errors.Is(err, os.ErrDeadlineExceeded) {
		if !in.buffered() {
			s.mu.Lock() // who looks at an idle session may see that it has none
			s.dropInput()
			s.mu.Unlock()
		}
		if canPark {
			return errParked
		}
		s.conn.SetReadDeadline(s.idleAt)
		s.conn.SetWriteDeadline(s.idleAt)
		if !s.setIdle(true) {
			return errDrain
		}
		in = s.takeInput()
		n, err = s.conn.Read(in.space())
	}
	if !s.setIdle(false) || n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && s.drained() {
		return errDrain
	}
	if n > 0 {
		in.got(n)
		return nil
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return err
}

// tooLong answers a line over the limit, once, and ends a session that sends
// many of them, or one without end.
func (s *session) tooLong(st lineStatus) error {
	if st == lineTooLong {
		s.reply(codeUnknown, fmt.Sprintf("Line too long: at most %d bytes. It was ignored.", maxLine))
		return s.misbehaved(abuseLong)
	}
	return s.misbehaved(abuseLimit)
}

// misbehaved counts against the session's budget and ends it at the limit.
func (s *session) misbehaved(weight int) error {
	if s.abuse += weight; s.abuse < abuseLimit {
		return nil
	}
	s.replyReason(codeClosing, "abuse", "Too many that mean nothing here, closing.")
	s.flush()
	return errAbuse
}

// finish ends the session for good. It runs once, on the session's goroutine.
func (s *session) finish(result string) {
	s.setIdle(true)
	s.arm.disarm()
	s.tapeEnds(result)
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	if l != nil {
		s.srv.chat.listen(l, false)
	}
	if s.user == nil {
		s.strangerLeft(result)
	}
	s.logout(result)
	s.dropInput()
	if s.tls != nil {
		s.srv.keys.end(s.tls)
	}
	s.conn.SetDeadline(time.Now().Add(closeTimeout)) // for close_notify
	if t, ok := s.conn.(*net.TCPConn); ok && result == "abuse" {
		// Closing with input unread resets the connection, and the client might
		// never see the 421 that explains it.
		t.CloseWrite()
		io.CopyN(io.Discard, struct{ io.Reader }{t}, maxSkip)
	}
	s.conn.Close()
	s.srv.ended(s, result)
}

// elsewhere begins a time that is the client's, or is measured as a transfer's or a
// program's: until back it is not the command's. Such times may lie in each other.
func (s *session) elsewhere() (back func()) {
	began, over := time.Now(), false
	s.wmu.Lock()
	defer s.wmu.Unlock()
	was := s.away
	return func() {
		s.wmu.Lock()
		defer s.wmu.Unlock()
		if !over {
			s.away, over = was+time.Since(began), true
		}
	}
}

// timing begins the time of a command, and timed tells the metrics how long it was.
func (s *session) timing() (began time.Time) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.away = 0
	return time.Now()
}

func (s *session) timed(class commandClass, began time.Time) {
	took := time.Since(began)
	s.wmu.Lock()
	took -= s.away
	s.wmu.Unlock()
	s.srv.metrics.commandTook(class, took)
}

// strangerLeft logs the end of a session in which nobody is logged in. Most are scanners
// and health checks, and no news; why berth ended one may be.
func (s *session) strangerLeft(result string) {
	level := slog.LevelDebug
	if result == "abuse" || result == "login_timeout" {
		level = slog.LevelInfo
	}
	s.srv.log.Log(context.Background(), level, "session ended", "session", s.id, "addr", s.addrText(), "proto", s.proto,
		"dur", time.Since(s.started).Round(time.Millisecond), "result", result)
}

func (s *session) userName() string {
	if s.user == nil {
		return ""
	}
	return s.user.Name
}

// --- reading the control connection during a transfer ---

// watched runs work, which moves x, while the control connection is read: ABOR
// ends the transfer, STAT tells how far it is, everything else waits its turn.
// It returns how many ABORs came, and work's error.
func (s *session) watched(x *transfer, about string, work func() error) (aborts int, err error) {
	return s.watchedFrom(watchAfter, x, about, work)
}

// watchedFrom is watched for work that needs its watcher sooner or later than most.
func (s *session) watchedFrom(after time.Duration, x *transfer, about string, work func() error) (aborts int, err error) {
	s.mu.Lock()
	s.xfer, s.about, s.aborts, s.stopping = x, about, 0, false
	s.watching = nil
	s.mu.Unlock()
	t := time.AfterFunc(after, func() { s.startWatch(x) })
	defer func() {
		s.mu.Lock()
		s.stopping = true
		watching := s.watching
		if watching != nil {
			close(s.unwatch)
			s.conn.SetReadDeadline(time.Unix(1, 0))
		}
		s.mu.Unlock()
		t.Stop()
		if watching != nil {
			<-watching
		}
		s.mu.Lock()
		s.xfer, aborts = nil, s.aborts
		s.aborts = 0
		s.mu.Unlock()
	}()
	return 0, work()
}

// startWatch reads the control connection for as long as x is what runs. Its
// timer may fire so late that x is over and the next transfer has begun, which
// has a watcher of its own.
func (s *session) startWatch(x *transfer) {
	s.mu.Lock()
	if s.stopping || s.xfer != x {
		s.mu.Unlock()
		return
	}
	done := make(chan struct{})
	s.watching, s.unwatch = done, make(chan struct{})
	s.conn.SetReadDeadline(time.Time{})
	s.mu.Unlock()
	defer close(done)
	defer s.guard(func() { x.cancel(errControlGone) })
	if s.fr != nil {
		s.watchFrames(x)
	} else {
		s.watch(x)
	}
}

func (s *session) watch(x *transfer) {
	s.takeLineReader()
	held := 0
	for _, p := range s.pending {
		if isFRAM(p) {
			return
		}
		held += pendingCost + len(p)
	}
	for {
		line, st := s.in.next()
		switch st {
		case lineRead:
			if len(line) == 0 {
				continue
			}
			text := string(line)
			switch strings.TrimRight(upperASCII(text), " ") {
			case "ABOR":
				s.mu.Lock()
				s.aborts++
				s.mu.Unlock()
				x.cancel(errAborted)
				continue
			case "STAT":
				if len(s.pending) == 0 {
					s.replyProgress(x)
					continue
				}
			}
			s.pending = append(s.pending, text)
			if isFRAM(text) {
				return // what comes behind it need not be lines
			}
			if held += pendingCost + len(text); held > maxPending {
				return // the rest waits in the socket
			}
			continue
		case lineTooLong, lineEndless:
			s.pending = append(s.pending, tooLongLine) // answered in its turn
			if st == lineEndless {
				s.eof = errAbuse
				x.cancel(errControlGone)
				return
			}
			if held += pendingCost; held > maxPending {
				return
			}
			continue
		}
		n, err := s.conn.Read(s.in.space())
		s.in.w += n
		if n > 0 {
			continue
		}
		s.mu.Lock()
		stopping := s.stopping
		s.mu.Unlock()
		if stopping && errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			s.eof = err
			if x.silence != nil && err == io.EOF {
				s.untilReset(x)
				return
			}
			if x.attended || err != io.EOF {
				x.cancel(errControlGone)
			}
			return
		}
	}
}

// isFRAM tells whether a line may turn all behind it into frames.
func isFRAM(line string) bool { return len(line) >= 4 && upperASCII(line[:4]) == "FRAM" }

// untilReset ends x when the client, who will send no more, is not there either.
func (s *session) untilReset(x *transfer) {
	x.silence()
	t := time.NewTicker(goneLook)
	defer t.Stop()
	for {
		select {
		case <-s.unwatch:
			return
		case <-t.C:
		}
		if polled(s.bare, unix.POLLHUP|unix.POLLERR) {
			x.cancel(errControlGone)
			return
		}
	}
}

// controlAlive tells whether the client still holds the control connection: a
// client that died did not finish its upload, whatever its data connection says.
func (s *session) controlAlive() bool {
	if s.eof != nil {
		return false
	}
	if len(s.pending) > 0 || s.in != nil && s.in.buffered() {
		return true
	}
	alive, waiting := true, false
	s.control(func(fd int) {
		var b [1]byte
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		waiting = n > 0
		if err == nil && n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR {
			alive = false
		}
	})
	if !waiting || s.tls == nil {
		return alive
	}
	// Under TLS what waits may be a command, or the alert that ends it all.
	s.takeLineReader()
	s.conn.SetReadDeadline(time.Now().Add(alertTimeout))
	n, err := s.conn.Read(s.in.space())
	s.in.w += n
	if n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.eof = err
		return false
	}
	return true
}

// control runs call with the connection's descriptor, if it has one.
func (s *session) control(call func(fd int)) {
	if sc, ok := s.bare.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { call(int(fd)) })
		}
	}
}

// replyProgress answers STAT during a transfer (RFC 959 section 4.1.3).
func (s *session) replyProgress(x *transfer) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(codeStatus, ' ', fmt.Sprintf("%s: %d bytes in %s.", s.about, x.moved.Load(), time.Since(x.started).Round(time.Second)))
	s.flushLocked()
}

// nearby tells whether what is said in clear text stays on this machine. Behind a
// proxy on another one it does not, wherever the proxy says that its client is.
func (s *session) nearby() bool {
	return s.peer.IsLoopback() && (!s.via.IsValid() || s.via.IsLoopback())
}

// addrText is the peer for logs.
//
//go:noinline
func (s *session) addrText() string {
	if !s.peer.IsValid() {
		return "local"
	}
	return s.peer.String()
}
