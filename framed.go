// framed.go is a session that speaks frames: how it reads and answers them, what
// may come while a request runs, and what is out of place. It stands between
// frame.go, which knows bytes, and requests.go, which knows what is asked, as
// session.go stands between lines and verbs; apart from both because its question
// is order and time.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxStranger bounds a request before login, so that who has no account cannot
	// have the server keep much for him; a name and a password fit a hundred times.
	maxStranger = 8 << 10
	// maxAhead bounds the frames that are kept while a request runs: what a client
	// pipelines beyond it waits in the socket.
	maxAhead = 64 << 10
	// maxEcho bounds what echo and upper send back: six bytes for one, as JSON may
	// write it, still fit into a frame.
	maxEcho = 32 << 10
	// quietPing is how long a running request may be quiet before the server says
	// that it is there, as long as NAT gateways remember a connection (RFC 5382
	// demands far more, but many keep less).
	quietPing = 30 * time.Second
	// stuckPing is the same while nobody reads the connection, where an answer is
	// the only way to hear of its end: well within exec.kill_after.
	stuckPing = 2 * time.Second
	// goneLook is how often a connection that cannot be read, because what was sent
	// is not wanted yet, is asked whether its other end is still there.
	goneLook = 500 * time.Millisecond
)

// framing is what a session has besides when it speaks frames.
type framing struct {
	in   *frameReader    // nil while nothing is read
	id   json.RawMessage // of the request that runs; told in its answers
	late string          // types that may still come of the request before
	// cancelled is how many of the requests that wait were cancelled before their turn.
	cancelled int
	waiting   int // requests behind the running one, as far as was looked ahead
	input     commandInput
	sent      time.Time    // when the last frame left; guarded by wmu
	pinged    atomic.Int32 // empty pings of the server's own, whose answers have not come
}

// commandInput takes what comes for a running command: stdin, its end, signals,
// window sizes. It is called by the one goroutine that reads the connection.
type commandInput interface {
	data(p []byte)
	end()
	signal(name string) error
	resize(rows, cols uint16)
}

// cmdFRAM goes over to frames, for good. What the client has sent behind the line
// is their beginning.
func (s *session) cmdFRAM(arg string) error {
	if strings.Trim(arg, " ") != "1" {
		s.reply(codeBadParameter, "This server knows FRAM 1.")
		return nil
	}
	s.reply(codeOK, "Frames from here on.")
	cwd := s.cwd
	s.forget()
	s.cwd = cwd
	in := newFrameReader(s.in.raw[s.in.r:s.in.w])
	s.dropLineReader()
	s.setVerb("") // the answer is counted; what comes has other names
	s.wmu.Lock()
	s.fr = &framing{in: in, sent: time.Now()}
	s.wmu.Unlock()
	was := s.proto
	s.mu.Lock()
	s.framed = true
	if s.peer.IsValid() {
		s.proto = "frames"
	}
	s.mu.Unlock()
	if s.proto != was {
		s.srv.metrics.sessionSwitched(was, s.proto)
	}
	return nil
}

// --- writing ---

// frame queues one frame; a long queue is sent.
func (s *session) frame(t frameType, payload []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.frameLocked(t, payload)
}

func (s *session) frameLocked(t frameType, payload []byte) error {
	if s.out == nil {
		s.out = (*outBuffers.Get().(*[]byte))[:0]
	}
	s.out = appendFrame(s.out, t, payload)
	s.fr.sent = time.Now()
	if len(s.out) >= outFlush {
		return s.flushLocked()
	}
	return s.outErr
}

// An answer is what every A frame has; requests add fields of their own by
// embedding it.
type answer struct {
	ID     json.RawMessage `json:"id,omitempty"`
	Code   int             `json:"code"`
	Text   string          `json:"text"`
	Reason string          `json:"reason,omitempty"`
}

func (a *answer) base() *answer { return a }

// answer queues an answer: a pointer to a struct with an embedded answer.
func (s *session) answer(a interface{ base() *answer }) {
	b := a.base()
	b.ID = s.fr.id
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.frameLocked(frameAnswer, encodeJSON(a))
	s.counted(b.Code)
}

// encodeJSON is v without the escapes that only matter inside HTML.
func encodeJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // no type that is sent has anything that cannot be
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// flushMore sends what is queued as the beginning of a segment, not as one.
func (s *session) flushMore(tcp *net.TCPConn) error {
	if s.outErr != nil {
		return s.outErr
	}
	tcp.SetWriteDeadline(time.Now().Add(writeTimeout))
	rc, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	rest := s.out
	werr := rc.Write(func(fd uintptr) bool {
		for len(rest) > 0 {
			var n int
			n, err = unix.SendmsgN(int(fd), rest, nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			switch err {
			case nil:
				rest = rest[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
		return true
	})
	if err == nil {
		err = werr
	}
	if cap(s.out) == outBuffer {
		b := s.out
		outBuffers.Put(&b)
	}
	s.out = nil
	if err != nil {
		if errno, ok := err.(syscall.Errno); ok {
			err = &net.OpError{Op: "write", Net: "tcp", Addr: tcp.RemoteAddr(), Err: os.NewSyscallError("sendmsg", errno)}
		}
		s.outErr = err
	}
	return err
}

// writeFrame sends a frame that is too large to be queued, behind what is.
func (s *session) writeFrame(frame []byte, timeout time.Duration) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if err := s.flushLocked(); err != nil {
		return err
	}
	s.conn.SetWriteDeadline(time.Now().Add(timeout))
	_, s.outErr = s.conn.Write(frame)
	s.fr.sent = time.Now()
	return s.outErr
}

// --- reading ---

// A protocolError is something that no client of this protocol sends. It is
// answered, and the connection closed, because nobody knows what the bytes behind
// it mean.
type protocolError struct {
	code   int
	reason string
	text   string
}

func (e *protocolError) Error() string { return e.text }

// violated says what was wrong and ends the session.
func (s *session) violated(err error) error {
	var p *protocolError
	if !errors.As(err, &p) {
		return err
	}
	s.turnedDown(s.userName(), "frame", p.text)
	s.fr.id = nil
	s.setVerb("other")
	s.answer(&answer{Code: p.code, Reason: p.reason, Text: p.text + " The connection is closed."})
	s.flush()
	return errAbuse
}

//go:noinline
func tooLongFrame(n int) error {
	return &protocolError{codeUnknown, "frame_too_long", fmt.Sprintf("A frame of %d bytes: at most %d are allowed.", n, maxFrame)}
}

func unknownFrame(t frameType) error {
	if strings.ContainsRune(toClient, rune(t)) {
		return &protocolError{codeUnknown, "bad_frame", fmt.Sprintf("Frames of type %s go to the client only.", t)}
	}
	return &protocolError{codeUnknown, "bad_frame", fmt.Sprintf("There are no frames of type %s; the types to the server are %s.", t, strings.Join(strings.Split(toServer, ""), ", "))}
}

func misplaced(t frameType) error {
	what := map[frameType]string{
		frameData: "data without a request that takes it", frameEnd: "an end of data without data",
		frameSignal: "a signal without a command", frameWindow: "a window size without a command",
		frameRequest: "a request in the middle of a put, which ends with F or X",
	}[t]
	return &protocolError{codeBadSequence, "out_of_state", fmt.Sprintf("A frame of type %s is out of place: %s.", t, what)}
}

// serveFrame takes one frame when no request runs.
func (s *session) serveFrame() error {
	t, err := s.nextFrame()
	if err != nil {
		return s.violated(err)
	}
	in := s.fr.in
	switch t {
	case frameRequest, framePing:
		if s.user == nil && in.left > maxStranger {
			return s.violated(&protocolError{codeUnknown, "frame_too_long", fmt.Sprintf("A frame of %d bytes before login: at most %d are allowed.", in.left, maxStranger)})
		}
		payload, err := s.wholePayload()
		if err != nil {
			return err
		}
		if t == framePing {
			s.idleAt = s.idleDeadline()
			return s.echoPing(payload)
		}
		return s.violated(s.handleRequest(payload))
	case frameCancel:
		return s.skipPayload() // what it was to cancel is done
	case frameData, frameEnd, frameSignal, frameWindow:
		if !strings.ContainsRune(s.fr.late, rune(t)) {
			return s.violated(misplaced(t))
		}
		return s.skipPayload()
	}
	return s.violated(unknownFrame(t))
}

// nextFrame opens the next frame, waiting for it as nextLine waits for a line.
func (s *session) nextFrame() (frameType, error) {
	for {
		if s.isDraining() {
			return 0, errDrain
		}
		if s.fr.in != nil {
			if err := s.skipPayload(); err != nil { // of what a command did not want any more
				return 0, err
			}
			ok, err := s.fr.in.next()
			if err != nil {
				return 0, tooLongFrame(s.fr.in.left)
			}
			if ok {
				return s.fr.in.kind, nil
			}
		}
		if err := s.waitInput(); err != nil {
			return 0, err
		}
	}
}

// waitInput sends what is queued and waits for more to read.
func (s *session) waitInput() error {
	if err := s.flush(); err != nil {
		return err
	}
	if s.eof != nil {
		return s.eof
	}
	return s.read()
}

// wholePayload is the open frame's payload, waited for.
func (s *session) wholePayload() ([]byte, error) {
	for {
		if p, ok := s.fr.in.whole(); ok {
			return p, nil
		}
		if err := s.waitPayload(); err != nil {
			return nil, err
		}
	}
}

// waitPayload waits for more of a frame that has begun. Nobody may take longer over
// one than over doing nothing, and nothing runs meanwhile: a drain need not wait.
func (s *session) waitPayload() error {
	if err := s.flush(); err != nil {
		return err
	}
	if s.eof != nil {
		return s.eof
	}
	s.conn.SetReadDeadline(s.idleAt)
	if !s.setIdle(true) {
		return errDrain
	}
	n, err := s.conn.Read(s.fr.in.space())
	if !s.setIdle(false) || n == 0 && s.drained() {
		return errDrain
	}
	if n > 0 {
		s.fr.in.got(n)
		return nil
	}
	return err
}

func (s *session) skipPayload() error {
	for s.fr.in.left > 0 {
		if len(s.fr.in.take(maxFrame)) > 0 {
			continue
		}
		if err := s.waitPayload(); err != nil {
			return err
		}
	}
	return nil
}

// echoPing answers a ping, unless it is itself the answer to one of the server's.
func (s *session) echoPing(payload []byte) error {
	if len(payload) == 0 && s.fr.pinged.Load() > 0 {
		s.fr.pinged.Add(-1)
		return nil
	}
	return s.frame(framePing, payload)
}

// --- while a request runs ---

// watchFrames reads the connection while a request runs that does not read it
// itself: X ends it, P is answered, what is for a command goes there, and all else
// waits its turn.
func (s *session) watchFrames(x *transfer) {
	if s.fr.in == nil {
		s.fr.in = newFrameReader(nil)
	}
	in := s.fr.in
	if in.left > 0 {
		return // the request is in the middle of a frame of its own; it reads by itself
	}
	defer in.atTurn()
	s.fr.waiting = 0
	for {
		if in.wait == 0 && s.fr.input != nil {
			took, err := s.feedInput(in, x)
			if err != nil {
				s.broke(x, err)
				return
			}
			if took {
				continue
			}
		}
		t, payload, ok, room, err := in.ahead(maxAhead)
		switch {
		case err != nil, !room:
			s.untilGone(x) // it is answered in its turn
			return
		case !ok:
			if !s.readAhead(x) {
				return
			}
			continue
		}
		switch t {
		case frameCancel:
			in.drop(payload)
			s.fr.cancelled = s.fr.waiting
			s.mu.Lock()
			s.aborts++
			s.mu.Unlock()
			x.cancel(errAborted)
		case framePing:
			s.echoPing(payload)
			s.flush()
			in.drop(payload)
		case frameRequest:
			s.fr.waiting++
			in.keep(payload)
		default:
			in.keep(payload) // late, or out of place: that is seen in its turn
		}
	}
}

// feedInput gives the running command what is at the front for it. It is true if
// that was so.
func (s *session) feedInput(in *frameReader, x *transfer) (took bool, err error) {
	if len(in.buf[in.r:in.w]) < frameHeader {
		return false, nil
	}
	t, n, err := parseHeader(in.buf[in.r:])
	if err != nil {
		return false, nil
	}
	switch t {
	case frameData:
		in.next()
		for in.left > 0 {
			p := in.take(maxFrame)
			if len(p) == 0 {
				if !s.readAhead(x) {
					return true, errStopped
				}
				continue
			}
			s.fr.input.data(p)
		}
		return true, nil
	case frameEnd, frameSignal, frameWindow:
		if n > maxStranger {
			return false, &protocolError{codeBadArgument, "bad_frame", fmt.Sprintf("A frame of type %s with %d bytes: at most %d make sense.", t, n, maxStranger)}
		}
		_, payload, ok, _, _ := in.ahead(maxAhead)
		if !ok {
			return false, nil // more is read first
		}
		if err := s.commandFrame(t, payload); err != nil {
			return false, err
		}
		in.drop(payload)
		return true, nil
	}
	return false, nil
}

// commandFrame is F, S or W for a running command.
func (s *session) commandFrame(t frameType, payload []byte) error {
	switch t {
	case frameEnd:
		s.fr.input.end()
	case frameSignal:
		var sig struct {
			Signal string `json:"signal"`
		}
		err := json.Unmarshal(payload, &sig)
		if err == nil {
			err = s.fr.input.signal(sig.Signal)
		}
		if err != nil {
			return &protocolError{codeBadArgument, "bad_signal", `A frame of type S is {"signal": NAME} with ` + strings.Join(signalNames(), ", ") + "."}
		}
	case frameWindow:
		var size struct{ Rows, Cols uint16 }
		if err := json.Unmarshal(payload, &size); err != nil || size.Rows == 0 || size.Cols == 0 {
			return &protocolError{codeBadArgument, "bad_window", `A frame of type W is {"rows": 40, "cols": 120}.`}
		}
		s.fr.input.resize(size.Rows, size.Cols)
	}
	return nil
}

// broke ends a request because of what the client sent in its middle.
func (s *session) broke(x *transfer, err error) {
	if errors.Is(err, errStopped) {
		return
	}
	s.violation = err
	x.cancel(errControlGone)
}

var errStopped = errors.New("nobody is to read any more")

// readAhead waits for more while a request runs; false: nobody is to read any more.
func (s *session) readAhead(x *transfer) bool {
	for {
		s.mu.Lock()
		stopping := s.stopping
		if !stopping {
			s.conn.SetReadDeadline(time.Now().Add(quietPing))
		}
		s.mu.Unlock()
		if stopping {
			return false
		}
		n, err := s.conn.Read(s.fr.in.space())
		if n > 0 {
			s.fr.in.got(n)
			return true
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if !s.stopped() { // or the deadline was to wake this up
				s.pingQuiet(quietPing)
			}
			continue
		}
		s.lost(x, err)
		return false
	}
}

// stopped tells whether the request is over and its watcher to end.
func (s *session) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// lost ends what the client who went away has running, unless it only said that
// it will send no more and still takes what it asked for.
func (s *session) lost(x *transfer, err error) {
	s.eof = err
	if x.attended || err != io.EOF {
		x.cancel(errControlGone)
	}
}

// pingQuiet keeps a connection alive on which nothing was sent for so long. It is
// also how one is found out whose other end has gone behind data that nobody has
// read: what is sent there comes back as a reset.
func (s *session) pingQuiet(quiet time.Duration) {
	if !s.wmu.TryLock() {
		return // something is being sent
	}
	defer s.wmu.Unlock()
	if time.Since(s.fr.sent) < quiet {
		return
	}
	if s.frameLocked(framePing, nil) == nil {
		s.fr.pinged.Add(1)
		s.flushLocked()
	}
}

// untilGone watches a connection that is not read any more: that its other end
// has gone is told beside the data.
func (s *session) untilGone(x *transfer) {
	t := time.NewTicker(goneLook)
	defer t.Stop()
	for {
		if s.stopped() {
			return
		}
		if s.gone(x) {
			return
		}
		select {
		case <-t.C:
		case <-s.unwatch:
			return
		}
	}
}

// gone asks the kernel, and the other end, whether the client of a request is still
// there although nobody reads what he sends.
func (s *session) gone(x *transfer) bool {
	s.pingQuiet(stuckPing)
	if !hungUp(s.bare) {
		return false
	}
	s.lost(x, io.ErrUnexpectedEOF)
	return true
}

// --- requests ---

// A request is the payload of an R frame: the fields of all of them.
type request struct {
	Do string          `json:"do"`
	ID json.RawMessage `json:"id"`

	User     *string `json:"user"`
	Password *string `json:"password"`

	Path      *string `json:"path"`
	PathBytes []byte  `json:"path_bytes"`
	To        *string `json:"to"`
	ToBytes   []byte  `json:"to_bytes"`
	Recursive bool    `json:"recursive"`

	Offset    int64  `json:"offset"`
	Size      *int64 `json:"size"`
	SHA256    string `json:"sha256"`
	MTime     string `json:"mtime"`
	Mode      string `json:"mode"`
	Append    bool   `json:"append"`
	Algorithm string `json:"algorithm"`

	Command string          `json:"command"`
	Args    json.RawMessage `json:"args"`
	Shell   *string         `json:"shell"`
	TTY     bool            `json:"tty"`
	Rows    uint16          `json:"rows"`
	Cols    uint16          `json:"cols"`
	Term    string          `json:"term"`
	Stdin   bool            `json:"stdin"`

	Text    string `json:"text"`
	Off     bool   `json:"off"`
	Session uint64 `json:"session"`
}

// lateAfter is what may still come of each request that takes more than its R.
const lateAfter = "DFSW"

// parseRequest reads a request. An error of protocol is one that nobody recovers
// from; bad is what is wrong with a request that can be answered and left.
func parseRequest(payload []byte) (q request, bad string, err error) {
	if !utf8.Valid(payload) {
		return q, "", &protocolError{codeBadArgument, "bad_json", "The request is not UTF-8; names that are not go into path_bytes, in base64."}
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	err = dec.Decode(&q)
	if len(q.ID) > maxID {
		q.ID = nil
		return q, fmt.Sprintf("An id may have %d bytes.", maxID), nil
	}
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		if _, err := dec.Token(); err != io.EOF {
			return q, "", &protocolError{codeBadArgument, "bad_json", "There is something behind the request's JSON object."}
		}
	case errors.As(err, &kind) && kind.Field == "":
		return q, "", &protocolError{codeBadArgument, "bad_json", `A request is a JSON object, as {"do": "list", "path": "/"}.`}
	case errors.As(err, &kind):
		return q, fmt.Sprintf("The field %q is %s.", kind.Field, jsonKind(kind)), nil
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		field, _ := strconv.Unquote(strings.TrimPrefix(err.Error(), "json: unknown field "))
		return q, fmt.Sprintf("There is no field %s in requests.", quotedWord(field)), nil
	case strings.HasPrefix(err.Error(), "illegal base64"):
		return q, "Fields that end in _bytes are base64.", nil
	default:
		return q, "", &protocolError{codeBadArgument, "bad_json", "The request is not JSON: " + strings.TrimPrefix(err.Error(), "json: ") + "."}
	}
	return q, "", nil
}

// maxID bounds what is sent back with every answer.
const maxID = 256

func jsonKind(e *json.UnmarshalTypeError) string {
	switch e.Type.Kind().String() {
	case "bool":
		return "true or false"
	case "string":
		return "a string"
	case "slice":
		return "a string in base64"
	}
	return "a whole number that is not too large"
}

// handleRequest answers one request.
func (s *session) handleRequest(payload []byte) error {
	s.idleAt = s.idleDeadline()
	s.fr.late = ""
	q, bad, err := parseRequest(payload)
	if err == nil {
		err = s.follow()
	}
	if err != nil {
		return err
	}
	s.fr.id = q.ID
	began := s.timing()
	r := requestIndex[q.Do]
	if r == nil {
		s.setVerb("other")
	} else {
		s.setVerb(r.do)
	}
	if r == nil || r.streams {
		s.fr.late = lateAfter // whatever comes of it
	}
	if s.srv.debug() {
		s.srv.log.Debug("request", "session", s.id, "user", s.userName(), "addr", s.addrText(), "verb", s.verb, "path", q.shownPath())
	}
	switch {
	case s.fr.cancelled > 0:
		s.fr.cancelled--
		s.answer(&answer{Code: codeAborted, Reason: "cancelled", Text: "Cancelled before its turn."})
	case bad == "" && q.Do == "":
		bad = `A request says what to do, as {"do": "list", "path": "/"}.`
		fallthrough
	case bad != "":
		s.fr.late = lateAfter
		s.answer(&answer{Code: codeBadArgument, Reason: "bad_request", Text: bad})
	case r == nil:
		s.answer(&answer{Code: codeUnknown, Reason: "unknown_request", Text: "There is no request " + quotedWord(q.Do) + "; those are " + requestNames(s) + "."})
		err = s.misbehaved(1)
	default:
		code, reason, text := s.mayNot(r.login && !(r.noLogin && s.operator()), r.perm, r.onBox, r.do, q.shownPath())
		if code != 0 {
			s.answer(&answer{Code: code, Reason: reason, Text: text})
			break
		}
		err = r.run(s, &q)
		s.timed(r.class, began)
	}
	s.setVerb("")
	s.fr.id = nil
	s.idleAt = s.idleDeadline()
	if err == nil && s.violation != nil {
		err = s.violation
	}
	return err
}

// quotedWord is a client's word for an answer, cut to a length that makes sense.
//
//go:noinline
func quotedWord(w string) string {
	if len(w) > 40 {
		w = w[:40] + "…"
	}
	return fmt.Sprintf("%q", w)
}
