// proto.go is the control protocol: the reply codes, the line reader with its
// Telnet filter, the session, and the command table that dispatch, the
// permission checks, HELP and FEAT all come from. The handlers of verbs that
// touch files are in proto_files.go: they run only for a user who is logged
// in, which is the line of trust between the two.
//
// Replies leave through one place that refuses CR and LF; errors of fs.go,
// auth.go and transfer.go become codes in replyFor alone.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Reply codes, named by the situation they tell of (RFC 959 section 4.2.1;
// RFC 4217 and RFC 2428 where noted).
const (
	codeDataOpening   = 150
	codeOK            = 200
	codeSuperfluous   = 202
	codeStatus        = 211
	codeDirStatus     = 212
	codeFileStatus    = 213
	codeHelp          = 214
	codeSystem        = 215
	codeReady         = 220
	codeGoodbye       = 221
	codeDataClosed    = 226
	codePassive       = 227
	codeExtPassive    = 229 // RFC 2428
	codeLoggedIn      = 230
	codeLoggedInByTLS = 232 // RFC 2228
	codeStartTLS      = 234 // RFC 4217
	codeFileDone      = 250
	codePath          = 257
	codeNeedPassword  = 331
	codeNeedMore      = 350
	codeClosing       = 421
	codeNoData        = 425
	codeAborted       = 426
	codeBusy          = 450
	codeLocalError    = 451
	codeNoSpace       = 452
	codeUnknown       = 500
	codeBadArgument   = 501
	codeNotDone       = 502
	codeBadSequence   = 503
	codeBadParameter  = 504
	codeNeedTLSData   = 521 // RFC 4217
	codeBadFamily     = 522 // RFC 2428
	codeNotLoggedIn   = 530
	codeDeniedByRule  = 534 // RFC 2228
	codeBadProtection = 536 // RFC 2228
	codeDenied        = 550
	codeQuota         = 552
	codeBadName       = 553
	codeBadRestart    = 554 // RFC 1123 section 4.1.2.? as in use; contract section 5
)

const (
	maxLine     = 4096    // contract section 4: PATH_MAX and a verb
	maxSkip     = 1 << 20 // of a line without end, before the session ends
	maxPending  = 64 << 10
	abuseLimit  = 20 // unknown verbs, before the session ends
	abuseLong   = 4  // what a line that is too long counts against abuseLimit
	failedLimit = 5  // failed logins on one connection

	// parkAfter is how long a session waits on the goroutine that ran its last
	// command. After it a fresh one waits, with the smallest stack there is: a
	// stack that grew does not shrink, and idle sessions are most of them.
	parkAfter = time.Second
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

// --- the line reader ---

type telnetState uint8

const (
	telnetData   telnetState = iota
	telnetIAC                // after IAC
	telnetOption             // after IAC WILL, WONT, DO, DONT
	telnetSub                // inside IAC SB
	telnetSubIAC             // IAC inside it
)

// Telnet commands (RFC 854).
const (
	telnetSE   = 240
	telnetDM   = 242
	telnetSB   = 250
	telnetWILL = 251
	telnetDONT = 254
	iac        = 255
)

type lineStatus uint8

const (
	lineNone lineStatus = iota // no whole line yet
	lineRead
	lineTooLong // told once, when the limit is passed; the rest is dropped
	lineEndless // maxSkip bytes without an end
)

// A lineReader makes lines of what arrives: ended by CR LF, LF or CR NUL, at
// most maxLine bytes, without Telnet commands. It buffers nothing beyond one
// read and one line, and is pooled, so that an idle session has none.
type lineReader struct {
	raw     [1024]byte
	r, w    int
	line    []byte
	telnet  telnetState
	cr      bool // a CR may be the first half of a line end
	skip    bool // the line was too long
	skipped int
}

var lineReaders = sync.Pool{New: func() any { return new(lineReader) }}

// takeLineReader gives the session a reader, dropLineReader takes it back.
func (s *session) takeLineReader() {
	if s.in == nil {
		s.in = lineReaders.Get().(*lineReader)
		s.in.reset()
	}
}

func (s *session) dropLineReader() {
	if s.in != nil && cap(s.in.line) <= len(s.in.raw) { // not one that a long line made large
		lineReaders.Put(s.in)
	}
	s.in = nil
}

// buffered tells whether bytes are waiting that make up no line yet, or may.
func (l *lineReader) buffered() bool {
	return l.r < l.w || len(l.line) > 0 || l.cr || l.skip || l.telnet != telnetData
}

func (l *lineReader) reset() {
	l.r, l.w, l.telnet, l.cr, l.skip, l.skipped = 0, 0, telnetData, false, false, 0
	l.line = l.line[:0]
}

// space is where the next read puts its bytes, all earlier ones being used up.
func (l *lineReader) space() []byte {
	if l.r == l.w {
		l.r, l.w = 0, 0
	}
	return l.raw[l.w:]
}

// next takes one line out of what was read. The slice holds until the next call.
func (l *lineReader) next() ([]byte, lineStatus) {
	for l.r < l.w {
		c := l.raw[l.r]
		l.r++
		switch l.telnet {
		case telnetIAC:
			l.telnet = telnetData
			switch {
			case c == iac: // an escaped 255
			case c >= telnetWILL && c <= telnetDONT:
				l.telnet = telnetOption
				continue
			case c == telnetSB:
				l.telnet = telnetSub
				continue
			case c >= telnetSE:
				continue // IP, DM, ABOR's AO and the like mean nothing by themselves
			case len(l.line) > 0 || l.skip:
				// No command, and in the middle of a line: a name with a byte 255
				// from a client that does not escape it.
				if st := l.put(iac); st != lineNone {
					l.r-- // c comes again, after the caller has heard
					return nil, st
				}
			default:
				// At the start of a line: lftp and tnftp send IAC DM with DM as
				// urgent data, which the kernel may have taken out of the stream.
			}
		case telnetOption:
			l.telnet = telnetData
			continue
		case telnetSub:
			switch c {
			case iac:
				l.telnet = telnetSubIAC
				continue
			case '\n': // never closed: nobody negotiates across a line end
				l.telnet = telnetData
			default:
				continue
			}
		case telnetSubIAC:
			l.telnet = telnetSub
			if c == telnetSE {
				l.telnet = telnetData
			}
			continue
		default:
			if c == iac {
				l.telnet = telnetIAC
				continue
			}
			if c == telnetDM && len(l.line) == 0 && !l.skip {
				continue // a data mark that lost its IAC; no verb begins so
			}
		}
		if l.cr {
			l.cr = false
			if c == '\n' || c == 0 {
				if line, ok := l.end(); ok {
					return line, lineRead
				}
				continue
			}
			if st := l.put('\r'); st != lineNone {
				l.r--
				return nil, st
			}
		}
		switch c {
		case '\r':
			l.cr = true
			continue
		case '\n':
			if line, ok := l.end(); ok {
				return line, lineRead
			}
			continue
		}
		if st := l.put(c); st != lineNone {
			return nil, st
		}
	}
	return nil, lineNone
}

// put adds one byte to the line.
func (l *lineReader) put(c byte) lineStatus {
	if l.skip {
		if l.skipped++; l.skipped == maxSkip {
			return lineEndless
		}
		return lineNone
	}
	if len(l.line) == maxLine {
		l.skip, l.skipped = true, 0
		return lineTooLong
	}
	l.line = append(l.line, c)
	return lineNone
}

// end closes a line; ok is false for the tail of one that was too long.
func (l *lineReader) end() (line []byte, ok bool) {
	line = l.line
	l.line = l.line[:0]
	if l.skip {
		l.skip = false
		return nil, false
	}
	return line, true
}

// --- the session ---

// A session is one control connection. One goroutine at a time runs it; while
// a transfer is under way a second one (watch) reads the connection, and the
// fields under mu are what both may touch.
type session struct {
	srv     *server
	id      uint64
	conn    net.Conn // bare, or *tls.Conn after AUTH
	bare    net.Conn
	tls     *tlsSession // nil in plain text
	proto   string      // "ftp", "ftps" or "local", for logs and metrics
	peer    netip.Addr  // invalid on the unix socket
	local   netip.Addr
	started time.Time

	// login
	user     *user
	account  *account
	jail     *jail
	asked    string // what USER said
	failures int
	abuse    int
	method   string // how the user proved who he is
	localUID uint32 // the unix socket's peer
	hasUID   bool
	counting bool // sessionStarted was told

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
	heard      uint64 // the last chat message that SITE SAY has shown

	// input, owned by whoever reads the connection
	in      *lineReader
	pending []string // lines that came during a transfer
	eof     error    // the control connection ended while a transfer ran
	idleAt  time.Time

	wmu    sync.Mutex // guards out and outErr; held while replies are sent
	out    []byte
	outErr error

	mu       sync.Mutex // guards what follows; never held while anything blocks
	verb     string
	xfer     *transfer
	about    string // what the transfer is about, for STAT and WHO
	aborts   int
	stopping bool // the watcher is to end
	draining bool
	idle     bool
	watching chan struct{}
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
	if s.hasUID {
		// On the unix socket the kernel has said who it is.
		if u := s.srv.users.byUID(s.localUID); u != nil && s.srv.auth.allowed(u, s.peer) {
			go s.run(s.login(u, "local", codeReady))
			return
		}
	}
	s.reply(codeReady, cfg.Server.Name+" ready.")
	go s.run(nil) // and not a call: what is below on the stack stays as long as the session runs
}

// run is the session's loop: lines in, replies out, until nothing has come
// for parkAfter, or the session is over.
func (s *session) run(err error) {
	defer func() {
		if v := recover(); v != nil {
			s.srv.log.Error("session panic", "session", s.id, "user", s.userName(), "verb", s.verb, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			s.srv.metrics.panics.Inc()
			s.replyNow(codeClosing, "An error in the server ended this session; it has been logged.")
			s.finish("panic")
		}
	}()
	for {
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

// errParked: nothing to do, and the goroutine may go.
var errParked = errors.New("parked")

var (
	errAbuse = errors.New("abuse")
	errDrain = errors.New("the server is going down")
)

// tooLongLine stands for a line over the limit among the pending ones; no
// line that a client sends ends so.
const tooLongLine = "\n"

// farewell says goodbye as the reason allows, and names it for log and metrics.
func (s *session) farewell(err error) string {
	switch {
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
	case err == errDrain:
		s.replyNow(codeClosing, "The server is going down; try again later.")
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
	if !s.setIdle(false) {
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
			s.srv.quick.busy.Add(-1)
		} else {
			s.srv.quick.busy.Add(1)
		}
	}
	return !s.draining
}

// drain asks the session to end: at once if it is idle, else after what it does.
func (s *session) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	if s.idle {
		s.bare.SetReadDeadline(time.Unix(1, 0))
	}
}

// kill ends the session whatever it does.
func (s *session) kill() {
	s.mu.Lock()
	s.draining = true
	x := s.xfer
	s.mu.Unlock()
	if x != nil {
		x.cancel(errAborted)
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

func (s *session) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// read waits for input. A plain connection that stays quiet is parked.
func (s *session) read() error {
	s.takeLineReader()
	_, canPark := s.conn.(syscall.Conn)
	deadline := s.idleAt
	if canPark {
		if soon := time.Now().Add(parkAfter); soon.Before(deadline) {
			deadline = soon
		} else {
			canPark = false
		}
	}
	s.conn.SetReadDeadline(deadline)
	if !s.setIdle(true) {
		return errDrain
	}
	if sc, ok := s.conn.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { s.srv.quick.soon(int(fd), unix.POLLIN) })
		}
	}
	n, err := s.conn.Read(s.in.space())
	if !s.setIdle(false) {
		return errDrain
	}
	if n > 0 {
		s.in.w += n
		return nil
	}
	if canPark && errors.Is(err, os.ErrDeadlineExceeded) {
		if !s.in.buffered() {
			s.dropLineReader()
		}
		return errParked
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
	s.replyNow(codeClosing, "Too many lines that are no FTP commands, closing.")
	return errAbuse
}

// finish ends the session for good. It runs once, on the session's goroutine.
func (s *session) finish(result string) {
	s.setIdle(true)
	s.arm.disarm()
	s.logout()
	s.dropLineReader()
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

func (s *session) userName() string {
	if s.user == nil {
		return ""
	}
	return s.user.Name
}

// --- replies ---

var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, outBuffer); return &b }}

// reply queues one line. Texts are sentences; CR and LF in them become spaces,
// so that nothing a client sent can forge a reply, and IAC is escaped.
func (s *session) reply(code int, text string) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(code, ' ', text)
	s.counted(code)
}

// replyLines queues a multi-line reply: first and last with the code, the
// lines between with a space in front.
func (s *session) replyLines(code int, first string, lines []string, last string) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(code, '-', first)
	for _, l := range lines {
		s.putText(" " + l)
	}
	s.put(code, ' ', last)
	s.counted(code)
}

// replyNow queues a line and sends all there is; errors no longer matter.
func (s *session) replyNow(code int, text string) {
	s.reply(code, text)
	s.flush()
}

func (s *session) counted(code int) {
	if s.verb != "" {
		s.srv.metrics.command(s.verb, code)
	}
}

func (s *session) put(code int, sep byte, text string) {
	if s.out == nil {
		s.out = (*outBuffers.Get().(*[]byte))[:0]
	}
	s.out = append(s.out, byte('0'+code/100), byte('0'+code/10%10), byte('0'+code%10), sep)
	s.putText(text)
}

func (s *session) putText(text string) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\r', '\n', 0:
			s.out = append(s.out, ' ')
		case iac:
			s.out = append(s.out, iac, iac) // RFC 854
		default:
			s.out = append(s.out, c)
		}
	}
	s.out = append(s.out, '\r', '\n')
	if len(s.out) >= outFlush {
		s.flushLocked()
	}
}

// flush sends the queued replies in one write.
func (s *session) flush() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.flushLocked()
}

func (s *session) flushLocked() error {
	if len(s.out) > 0 && s.outErr == nil {
		s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, s.outErr = s.conn.Write(s.out)
	}
	if cap(s.out) == outBuffer { // one that grew for a long reply is not kept
		b := s.out
		outBuffers.Put(&b)
	}
	s.out = nil
	return s.outErr
}

// replyFor is the one place where an error becomes a reply. What is not known
// is logged and told as a local error, without Go's text.
func (s *session) replyFor(err error) (int, string) {
	var off *offsetError
	switch {
	case err == nil:
		return codeOK, "OK."
	case errors.As(err, &off):
		return codeBadRestart, fmt.Sprintf("Cannot restart at %d: %d bytes are here; use REST %d to go on, or REST 0 to start anew.", off.want, off.have, off.have)
	case errors.Is(err, errAborted):
		return codeAborted, "Transfer aborted."
	case errors.Is(err, errNoPort):
		return codeNoData, "No passive port is free; try again in a moment."
	case errors.Is(err, errNoData):
		return codeNoData, "Cannot open the data connection; check that a firewall lets it through, or try the other of PASV/EPSV and PORT/EPRT."
	case errors.Is(err, errStalled):
		return codeAborted, "Nothing moved on the data connection for too long; transfer ended."
	case errors.Is(err, errControlGone):
		return codeAborted, "The control connection ended before the transfer did."
	case errors.Is(err, errCutShort):
		return codeAborted, "The data connection ended without TLS close_notify, so the file may be cut short; what arrived is kept to be resumed."
	case errors.Is(err, errBomb):
		return codeQuota, "The compressed data grows beyond all measure; send it with MODE S."
	case errors.Is(err, errChanged):
		return codeLocalError, "The file became shorter while it was read; try again."
	case errors.Is(err, errReserved):
		return codeBadName, "Names that begin with .berth- are the server's own; choose another."
	case errors.Is(err, errBadName):
		return codeBadName, "A name cannot hold NUL, CR or LF."
	case errors.Is(err, errIsDir), errors.Is(err, syscall.EISDIR):
		return codeDenied, "That is a directory."
	case errors.Is(err, errNotRegular):
		return codeDenied, "That is neither a file nor a directory."
	case errors.Is(err, errReadOnly):
		return codeDenied, "This share is read-only."
	case errors.Is(err, errShareRoot):
		return codeDenied, "The top directory cannot be changed."
	case errors.Is(err, errExists):
		return codeDenied, "That name is taken."
	case errors.Is(err, errBusy):
		return codeBusy, "An upload is running there; try again when it is done."
	case errors.Is(err, fs.ErrNotExist):
		return codeDenied, "No such file or directory."
	case errors.Is(err, syscall.EXDEV):
		return codeDenied, "That leads out of your files, or across to another share."
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ELOOP):
		return codeDenied, "Permission denied."
	case errors.Is(err, syscall.ENOTDIR):
		return codeDenied, "That is not a directory."
	case errors.Is(err, syscall.ENOTEMPTY):
		return codeDenied, "The directory is not empty."
	case errors.Is(err, syscall.ENAMETOOLONG):
		return codeBadName, "That name is too long."
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EILSEQ):
		return codeBadName, "The disk cannot store that name."
	case errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return codeQuota, "Storage allocation exceeded; delete something first."
	case errors.Is(err, syscall.ENOSPC):
		return codeNoSpace, "The disk is full."
	case errors.Is(err, syscall.EROFS):
		return codeDenied, "The disk is read-only."
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return codeBusy, "Too many open files in the server; try again in a moment."
	case isNetError(err):
		return codeAborted, "The data connection broke."
	}
	s.srv.log.Error("local error", "session", s.id, "user", s.userName(), "verb", s.verb, "error", err)
	return codeLocalError, "A local error stopped this; the operator finds it in the log."
}

// isNetError tells the network's errors from the disk's: splice and sendfile
// bring either through the same call.
func isNetError(err error) bool {
	for _, e := range []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ETIMEDOUT, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENOTCONN} {
		if errors.Is(err, e) {
			return true
		}
	}
	var alert tls.AlertError
	var rec tls.RecordHeaderError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &alert) || errors.As(err, &rec) || strings.HasPrefix(err.Error(), "tls: ") ||
		strings.Contains(err.Error(), "zlib: ") || strings.Contains(err.Error(), "flate: ")
}

// fail replies for an error and goes on.
func (s *session) fail(err error) error {
	code, text := s.replyFor(err)
	s.reply(code, text)
	return nil
}

// --- dispatch ---

// argRule is what a verb wants behind it.
type argRule uint8

const (
	argOptional argRule = iota
	argNone
	argRequired
)

// A command is everything the server knows about one verb: dispatch, the
// checks before it, HELP and FEAT read nothing else.
type command struct {
	verb   string
	arg    argRule
	login  bool       // needs a user
	perm   permission // and all of these
	data   bool       // and a data connection armed by PASV, EPSV, PORT or EPRT
	keep   bool       // leaves REST and RANG as they are
	syntax string     // for HELP, behind the verb
	help   string
	feat   func(*session) string // its line in FEAT; "" for none
	run    func(s *session, arg string) error
}

// handle answers one line. It returns an error only if the session is over.
func (s *session) handle(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	verb = upperASCII(verb)
	c := commandIndex[verb]
	s.idleAt = s.idleDeadline()
	if c == nil {
		s.setVerb("other")
		return s.unknown(verb, line)
	}
	s.setVerb(c.verb)
	if s.srv.debug() {
		shown := arg
		if c.verb == "PASS" || c.verb == "ACCT" {
			shown = "***"
		}
		s.srv.log.Debug("command", "session", s.id, "user", s.userName(), "verb", c.verb, "arg", shown)
	}
	var err error
	switch {
	case c.run == nil:
		s.reply(codeNotDone, c.verb+" is not available here; HELP lists what is.")
	case c.login && s.user == nil:
		s.reply(codeNotLoggedIn, "Log in with USER and PASS first.")
	case c.arg == argRequired && arg == "":
		s.reply(codeBadArgument, "Usage: "+c.verb+" "+c.syntax)
	case c.arg == argNone && strings.Trim(arg, " ") != "":
		s.reply(codeBadArgument, c.verb+" takes no argument.")
	case c.perm != 0 && !s.user.can(c.perm):
		s.refused(c.verb, arg)
		s.reply(codeDenied, "Permission denied: this account may not "+c.perm.String()+".")
	case c.data && !s.arm.armed():
		s.reply(codeNoData, "Use EPSV, PASV, EPRT or PORT first.")
	default:
		err = c.run(s, arg)
	}
	if !c.keep {
		s.rest, s.rangeFrom, s.rangeTo = 0, 0, -1
	}
	if c.verb != "RNFR" {
		s.renameFrom = ""
	}
	if c.data {
		s.arm.disarm()
	}
	s.setVerb("")
	s.idleAt = s.idleDeadline()
	return err
}

func (s *session) setVerb(verb string) {
	s.mu.Lock()
	s.verb = verb
	s.mu.Unlock()
}

// idleDeadline is when a session that does nothing from now on ends. Before
// login that moment is fixed, so that nobody keeps a session alive by asking
// for HELP.
func (s *session) idleDeadline() time.Time {
	l := s.srv.config().Limits
	if s.user == nil {
		return s.started.Add(l.LoginTimeout.std())
	}
	return time.Now().Add(l.Idle.std())
}

// refused logs what a user was not allowed to do.
func (s *session) refused(verb, arg string) {
	s.srv.log.Info("refused", "session", s.id, "user", s.userName(), "addr", s.addrText(), "verb", verb, "path", arg)
}

// unknown answers a verb that is not in the table. A browser or a web attack
// that reached this port is cut off before its body can hold commands.
func (s *session) unknown(verb, line string) error {
	switch verb {
	case "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PROPFIND":
		if i := strings.LastIndex(line, " HTTP/"); i > 0 || strings.Contains(line, "://") {
			s.replyNow(codeClosing, "This is an FTP server, not a web server.")
			return errAbuse
		}
	case "HOST:", "USER-AGENT:":
		s.replyNow(codeClosing, "This is an FTP server, not a web server.")
		return errAbuse
	}
	if len(line) > 2 && line[0] == 22 && line[1] == 3 {
		s.replyNow(codeClosing, "This port begins in plain text; use AUTH TLS, or the port for implicit TLS.")
		return errAbuse
	}
	hint := "HELP lists what is."
	switch verb {
	case "GET":
		hint = "Use RETR to get a file."
	case "PUT":
		hint = "Use STOR to put a file."
	case "LS", "DIR":
		hint = "Use STAT or LIST to see a directory."
	case "CD":
		hint = "Use CWD to change the directory."
	case "RM", "DEL":
		hint = "Use DELE to delete a file."
	case "EXIT", "BYE":
		hint = "Use QUIT to leave."
	}
	s.reply(codeUnknown, "That is no command here. "+hint)
	return s.misbehaved(1)
}

// upperASCII folds a-z and nothing else (field rule: high bytes stay).
func upperASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 'a' && c <= 'z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if c := b[i]; c >= 'a' && c <= 'z' {
					b[i] = c - 32
				}
			}
			return string(b)
		}
	}
	return s
}

// --- reading the control connection during a transfer ---

// watched runs work, which moves x, while the control connection is read: ABOR
// ends the transfer, STAT tells how far it is, everything else waits its turn.
// It returns work's error and how many ABORs came.
func (s *session) watched(x *transfer, about string, work func() error) (err error, aborts int) {
	s.mu.Lock()
	s.xfer, s.about, s.aborts, s.stopping = x, about, 0, false
	s.watching = nil
	draining := s.draining
	s.mu.Unlock()
	_ = draining // a transfer that began is allowed to end
	t := time.AfterFunc(watchAfter, func() { s.startWatch() })
	defer func() {
		s.mu.Lock()
		s.stopping = true
		watching := s.watching
		if watching != nil {
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
	return work(), 0
}

func (s *session) startWatch() {
	s.mu.Lock()
	if s.stopping || s.xfer == nil {
		s.mu.Unlock()
		return
	}
	x := s.xfer
	done := make(chan struct{})
	s.watching = done
	s.conn.SetReadDeadline(time.Time{})
	s.mu.Unlock()
	defer close(done)
	defer func() {
		if v := recover(); v != nil {
			s.srv.log.Error("session panic", "session", s.id, "user", s.userName(), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			s.srv.metrics.panics.Inc()
			x.cancel(errControlGone)
		}
	}()
	s.watch(x)
}

func (s *session) watch(x *transfer) {
	s.takeLineReader()
	held := 0
	for _, p := range s.pending {
		held += len(p)
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
			if held += len(text); held > maxPending {
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
			if x.upload || err != io.EOF {
				x.cancel(errControlGone)
			}
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
	sc, ok := s.bare.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive, waiting := true, false
	rc.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
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

// replyProgress answers STAT during a transfer (RFC 959 section 4.1.3).
func (s *session) replyProgress(x *transfer) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(codeStatus, ' ', fmt.Sprintf("%s: %d bytes in %s.", s.about, x.moved.Load(), time.Since(x.started).Round(time.Second)))
	s.flushLocked()
}

// addrText is the peer for logs.
func (s *session) addrText() string {
	if !s.peer.IsValid() {
		return "local"
	}
	return s.peer.String()
}

// --- access control commands ---

func (s *session) cmdUSER(name string) error {
	s.logout()
	s.asked = name
	if left, banned := s.srv.auth.banned(s.peer); banned {
		s.replyNow(codeClosing, fmt.Sprintf("Too many failed logins from your address; try again in %s.", left.Round(time.Second)))
		return errAbuse
	}
	u := s.srv.users.get(name)
	if tc, ok := s.conn.(*tls.Conn); ok && u != nil {
		// RFC 4217 section 9: a certificate may be all the proof there has to be.
		if fp := clientFingerprint(tc.ConnectionState()); fp != "" && u.hasCertificate(fp) && s.srv.auth.allowed(u, s.peer) {
			return s.login(u, "certificate", codeLoggedInByTLS)
		}
	}
	if u != nil && s.hasUID && u.UID != nil && *u.UID == s.localUID && s.srv.auth.allowed(u, s.peer) {
		return s.login(u, "local", codeLoggedIn)
	}
	if s.clearRefused(u) {
		s.reply(codeNotLoggedIn, "Passwords are not accepted in clear text from there; use AUTH TLS first.")
		return nil
	}
	s.reply(codeNeedPassword, "Password required.")
	return nil
}

// clearRefused tells whether a password for u must not cross this connection.
// An unknown user is as strict as can be, or this would tell who exists.
func (s *session) clearRefused(u *user) bool {
	if s.tls != nil || s.proto == "local" {
		return false
	}
	if u != nil && u.TLS == "optional" {
		return false
	}
	switch s.srv.config().TLS.Require {
	case "none":
		return false
	case "always":
		return true
	}
	return !s.peer.IsLoopback()
}

func (s *session) cmdPASS(password string) error {
	if s.user != nil {
		s.reply(codeSuperfluous, "Already logged in.")
		return nil
	}
	if s.asked == "" {
		s.reply(codeBadSequence, "Send USER first.")
		return nil
	}
	if s.clearRefused(s.srv.users.get(s.asked)) {
		s.reply(codeNotLoggedIn, "Passwords are not accepted in clear text from there; use AUTH TLS first.")
		return nil
	}
	s.flush()
	name := s.asked
	s.asked = ""
	u, err := s.srv.auth.verify(s.srv.ctx, name, password, s.peer)
	switch {
	case err == nil:
		return s.login(u, "password", codeLoggedIn)
	case errors.Is(err, errBanned):
		s.replyNow(codeClosing, "Too many failed logins from your address; try again later.")
		return errAbuse
	case errors.Is(err, errAuthBusy):
		s.reply(codeBusy, "Too many logins at this moment; try again.")
		return nil
	case errors.Is(err, context.Canceled):
		return errDrain
	}
	if s.failures++; s.failures >= failedLimit {
		s.replyNow(codeClosing, "Too many failed logins, closing.")
		return errAbuse
	}
	s.reply(codeNotLoggedIn, "Login incorrect.")
	return nil
}

// login opens the user's files and counts the session as his.
func (s *session) login(u *user, method string, code int) error {
	acc, err := s.srv.enter(u)
	if err != nil {
		s.srv.log.Info("refused", "session", s.id, "user", u.Name, "addr", s.addrText(), "verb", "USER", "result", "too many sessions")
		s.replyNow(codeClosing, fmt.Sprintf("Too many connections for this user: at most %d.", u.Sessions))
		return errAbuse
	}
	j, err := s.srv.jails.enter(u.Name, u.Home, u.shareSpecs())
	if err != nil {
		s.srv.leave(acc)
		s.srv.log.Error("cannot open home", "session", s.id, "user", u.Name, "error", err)
		s.reply(codeNotLoggedIn, "Your home directory cannot be opened; the operator finds the reason in the log.")
		return nil
	}
	s.mu.Lock()
	s.user, s.account, s.jail, s.method, s.asked = u, acc, j, method, ""
	s.cwd, s.renameFrom = "/", ""
	s.mu.Unlock()
	if s.tls != nil {
		s.srv.keys.login(s.tls, u.Name)
	}
	if method != "password" { // verify has done it for passwords
		s.srv.auth.succeed(u.Name, s.peer, method)
	}
	s.srv.log.Info("login", "session", s.id, "user", u.Name, "addr", s.addrText(), "proto", s.proto, "method", method)
	switch code {
	case codeLoggedInByTLS:
		s.reply(code, "Logged in by certificate.")
	case codeReady:
		s.reply(code, s.srv.config().Server.Name+" ready, and you are logged in as "+u.Name+".")
	default:
		s.reply(code, "Logged in.")
	}
	return nil
}

func (s *session) logout() {
	if s.user == nil {
		return
	}
	s.srv.log.Info("logout", "session", s.id, "user", s.user.Name, "addr", s.addrText(), "proto", s.proto, "dur", time.Since(s.started).Round(time.Millisecond))
	s.srv.jails.leave(s.jail)
	s.srv.leave(s.account)
	if s.tls != nil {
		s.srv.keys.login(s.tls, "")
	}
	s.mu.Lock()
	s.user, s.account, s.jail = nil, nil, nil
	s.mu.Unlock()
}

func (s *session) cmdACCT(string) error {
	s.reply(codeSuperfluous, "No account information is needed.")
	return nil
}

func (s *session) cmdREIN(string) error {
	s.logout()
	s.asked, s.cwd = "", "/"
	s.ascii, s.modeZ, s.rest, s.allo, s.renameFrom = false, false, 0, -1, ""
	s.facts, s.digest, s.epsvAll = factsAll, 1, false
	s.arm.disarm()
	s.started = time.Now() // a new login time; the session counts as fresh
	s.reply(codeReady, "Ready for a new user.")
	return nil
}

func (s *session) cmdQUIT(string) error {
	s.reply(codeGoodbye, "Goodbye.")
	return errQuit
}

func (s *session) cmdNOOP(string) error {
	s.reply(codeOK, "OK.")
	return nil
}

func (s *session) cmdSYST(string) error {
	s.reply(codeSystem, "UNIX Type: L8")
	return nil
}

func (s *session) cmdHOST(arg string) error {
	if s.user != nil {
		s.reply(codeBadSequence, "HOST comes before USER.")
		return nil
	}
	s.reply(codeReady, "There is one host here.")
	return nil
}

func (s *session) cmdCLNT(string) error {
	s.reply(codeOK, "Noted.")
	return nil
}

func (s *session) cmdLANG(string) error {
	s.reply(codeBadParameter, "Replies are in English only.")
	return nil
}

func (s *session) cmdHELP(arg string) error {
	arg = upperASCII(strings.Trim(arg, " "))
	if arg == "SITE" {
		return s.siteHELP("")
	}
	if arg != "" {
		c := commandIndex[arg]
		if c == nil {
			s.reply(codeBadParameter, "There is no such command; HELP lists them.")
			return nil
		}
		text := c.verb
		if c.syntax != "" {
			text += " " + c.syntax
		}
		s.reply(codeHelp, text+": "+c.help+".")
		return nil
	}
	var lines []string
	row := ""
	for i := range commands {
		c := &commands[i]
		if c.run == nil {
			continue
		}
		row += fmt.Sprintf("%-8s", c.verb)
		if len(row) >= 72 {
			lines = append(lines, strings.TrimRight(row, " "))
			row = ""
		}
	}
	if row != "" {
		lines = append(lines, strings.TrimRight(row, " "))
	}
	s.replyLines(codeHelp, "These commands are known here:", lines, "HELP followed by one of them says more.")
	return nil
}

func (s *session) cmdFEAT(string) error {
	var lines []string
	for i := range commands {
		if f := commands[i].feat; f != nil && commands[i].run != nil {
			if line := f(s); line != "" {
				lines = append(lines, strings.Split(line, "\n")...)
			}
		}
	}
	s.replyLines(codeStatus, "Features:", lines, "End")
	return nil
}

// --- TLS ---

func (s *session) cmdAUTH(arg string) error {
	switch upperASCII(strings.Trim(arg, " ")) {
	case "TLS", "TLS-C", "SSL", "TLS-P": // RFC 4217 section 2 and what came before it
	default:
		s.reply(codeBadParameter, "Use AUTH TLS.")
		return nil
	}
	if s.tls != nil {
		s.reply(codeBadSequence, "TLS is on already.")
		return nil
	}
	if s.proto == "local" {
		s.reply(codeDeniedByRule, "The local socket needs no TLS.")
		return nil
	}
	s.logout()
	was := s.proto
	// Whatever was pipelined behind AUTH came in clear text and may be anybody's:
	// it is dropped, never run inside TLS (no STARTTLS injection).
	s.pending = nil
	if s.in != nil {
		s.in.reset()
	}
	s.replyNow(codeStartTLS, "Go on with TLS.")
	if err := s.startTLS(false); err != nil {
		return err
	}
	s.srv.metrics.sessionSwitched(was, s.proto)
	return nil
}

// startTLS does the handshake on the control connection.
func (s *session) startTLS(implicit bool) error {
	cfg, id := s.srv.keys.control(s.peer, implicit)
	c := tls.Server(s.bare, cfg)
	c.SetDeadline(time.Now().Add(handshakeTime))
	if err := c.Handshake(); err != nil {
		s.srv.keys.end(id)
		s.srv.log.Info("refused", "session", s.id, "addr", s.addrText(), "verb", "AUTH", "result", "TLS handshake", "error", err)
		return err
	}
	c.SetDeadline(time.Time{})
	s.mu.Lock()
	s.conn, s.tls, s.proto = c, id, "ftps"
	s.mu.Unlock()
	s.private = implicit
	s.pbsz = implicit
	return nil
}

func (s *session) cmdPBSZ(arg string) error {
	if s.tls == nil {
		s.reply(codeBadSequence, "PBSZ comes after AUTH TLS.")
		return nil
	}
	for _, c := range arg {
		if c < '0' || c > '9' {
			s.reply(codeBadArgument, "PBSZ takes a number, which is 0 for TLS.")
			return nil
		}
	}
	s.pbsz = true
	s.reply(codeOK, "PBSZ=0")
	return nil
}

func (s *session) cmdPROT(arg string) error {
	if s.tls == nil {
		s.reply(codeBadSequence, "PROT comes after AUTH TLS.")
		return nil
	}
	if !s.pbsz {
		s.reply(codeBadSequence, "PBSZ 0 comes before PROT.")
		return nil
	}
	switch upperASCII(strings.Trim(arg, " ")) {
	case "P":
		s.private = true
		s.reply(codeOK, "Data connections are private.")
	case "C":
		s.private = false
		s.reply(codeOK, "Data connections are in clear text.")
	case "S", "E":
		s.reply(codeBadProtection, "TLS knows PROT P and PROT C only.")
	default:
		s.reply(codeBadParameter, "Use PROT P or PROT C.")
	}
	return nil
}

func (s *session) cmdCCC(string) error {
	s.reply(codeDeniedByRule, "The control connection stays private.")
	return nil
}

// --- OPTS ---

func (s *session) cmdOPTS(arg string) error {
	what, rest, _ := strings.Cut(arg, " ")
	switch upperASCII(what) {
	case "UTF8", "UTF-8":
		s.reply(codeOK, "Names are UTF-8 always, and any other bytes are left as they are.")
	case "MLST":
		return s.optsMLST(rest)
	case "HASH":
		return s.optsHASH(rest)
	case "MODE":
		if s.srv.config().Transfer.ModeZ && strings.HasPrefix(upperASCII(rest), "Z") {
			s.reply(codeOK, "OK.")
			return nil
		}
		fallthrough
	default:
		s.reply(codeBadArgument, "OPTS knows UTF8, MLST and HASH.")
	}
	return nil
}

// optsMLST chooses facts (RFC 3659 section 7.9). Facts that nobody knows are
// left out and not refused.
func (s *session) optsMLST(arg string) error {
	s.facts = 0
	for _, name := range strings.Split(strings.Trim(arg, " "), ";") {
		for i, known := range mlstFactNames {
			if strings.EqualFold(name, known) {
				s.facts |= 1 << i
			}
		}
	}
	text := "MLST OPTS"
	if s.facts != 0 {
		text += " "
		for i, name := range mlstFactNames {
			if s.facts&(1<<i) != 0 {
				text += name + ";"
			}
		}
	}
	s.reply(codeOK, text)
	return nil
}

func (s *session) featMLST() string {
	text := "MLST "
	for i, name := range mlstFactNames {
		text += name
		if s.facts&(1<<i) != 0 {
			text += "*"
		}
		text += ";"
	}
	return text
}

// optsHASH chooses the digest (draft-bryan-ftpext-hash section 4).
func (s *session) optsHASH(arg string) error {
	arg = strings.Trim(arg, " ")
	if arg == "" {
		s.reply(codeOK, digests[s.digest].name)
		return nil
	}
	for i := range digests {
		if strings.EqualFold(arg, digests[i].name) {
			s.digest = i
			s.reply(codeOK, digests[i].name)
			return nil
		}
	}
	s.reply(codeBadArgument, "FEAT lists the digests behind HASH.")
	return nil
}

func (s *session) featHASH() string {
	text := "HASH "
	for i := range digests {
		text += digests[i].name
		if i == s.digest {
			text += "*"
		}
		text += ";"
	}
	return text
}

// limiterFor is the account's limit in one direction.
func (s *session) limiterFor(upload bool) *rate.Limiter {
	if upload {
		return s.account.up
	}
	return s.account.down
}

// sessionLog is the session's logger with what every line of it carries.
func (s *session) transferLog(result, path string, upload bool, bytes int64, dur time.Duration, err error) {
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.Uint64("session", s.id), slog.String("user", s.userName()), slog.String("addr", s.addrText()),
		slog.String("proto", s.proto), slog.String("verb", s.verb), slog.String("path", path),
		slog.Int64("bytes", bytes), slog.Duration("dur", dur.Round(time.Microsecond)), slog.String("result", result),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.srv.log.LogAttrs(context.Background(), level, "transfer", attrs...)
}
