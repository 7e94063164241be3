// client.go is the client's end of one connection that speaks frames: it sends requests,
// hands their answers out, and turns what goes wrong into errors that say what happened
// and what to do. It shares the frame codec with the server and nothing else. How a
// connection comes to be is client_dial.go's, where to and as whom client_host.go's; what
// is asked for is the verbs'.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// dialTimeout bounds connecting, and each answer before frames begin: the server
	// greets within a second of what it accepts.
	dialTimeout = 15 * time.Second
	// defaultSilence is how long a box may be silent while something is asked of it.
	// berth's server says something every 30 seconds; a client's own P, sent after a
	// third of this, is answered at once.
	defaultSilence = 60 * time.Second
	// pingAfter is when a box is asked whether it lives, at the latest: a third of what
	// limits.data_timeout is unless configured, so that a put whose data is slow to come
	// does not count as stalled.
	pingAfter = 20 * time.Second
	// maxShownText bounds what is shown of a box's words: berth's own texts are shorter.
	maxShownText = 1000
	// maxGreeting bounds the lines before frames, which are the server's texts.
	maxGreeting = 4096
	// clientBuffer is what is written to the network at once and read ahead.
	clientBuffer = 256 << 10
)

// errMismatch is in errors that say that what arrived is not what was sent.
var errMismatch = errors.New("digest mismatch")

// errInterrupted is why a client verb ends after SIGINT, SIGTERM or SIGHUP.
var errInterrupted = errors.New("interrupted")

// A remoteRefusal is the server's no: a final answer of 400 and above. Its text is the
// server's, made fit to be shown.
type remoteRefusal struct{ remoteAnswer }

func (e *remoteRefusal) Error() string {
	text := strings.TrimSuffix(shortShown(e.Text, maxShownText), ".")
	if text == "" {
		return "refused with " + itoa(e.Code)
	}
	r, n := utf8.DecodeRuneInString(text)
	if next, _ := utf8.DecodeRuneInString(text[n:]); unicode.IsLower(next) || next == ' ' {
		text = string(unicode.ToLower(r)) + text[n:]
	}
	return text
}

// refusedFor tells whether err is the server's no for that reason.
//
//go:noinline
func refusedFor(err error, reason string) bool {
	var no *remoteRefusal
	return errors.As(err, &no) && no.Reason == reason
}

// A connError is a connection that could not be made or did not last: exit code 3.
type connError struct {
	text string
	err  error
}

func (e *connError) Error() string { return e.text }
func (e *connError) Unwrap() error { return e.err }

// isConnError tells whether err is worth another connection.
//
//go:noinline
func isConnError(err error) bool {
	var c *connError
	return errors.As(err, &c)
}

// shownText is text from elsewhere as it may go to a terminal: control characters,
// escape sequences, invisible ones and what is not UTF-8 are written out as Go
// writes them.
func shownText(s string) string {
	plain := true
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b []byte
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, fmt.Sprintf(`\x%02x`, s[0])...)
		case unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		default:
			q := strconv.AppendQuoteRune(nil, r)
			b = append(b, q[1:len(q)-1]...)
		}
		s = s[n:]
	}
	return string(b)
}

// --- requests and answers ---

// A remoteRequest is a request of docs/protocol.md. Path and To may hold any bytes:
// what is not UTF-8 goes as path_bytes and to_bytes. HasPath says that an empty Path
// means something.
type remoteRequest struct {
	Do        string   `json:"do"`
	User      string   `json:"user,omitempty"`
	Password  *string  `json:"password,omitempty"`
	Path      string   `json:"path,omitempty"`
	PathBytes []byte   `json:"path_bytes,omitempty"`
	To        string   `json:"to,omitempty"`
	ToBytes   []byte   `json:"to_bytes,omitempty"`
	Recursive bool     `json:"recursive,omitempty"`
	Offset    int64    `json:"offset,omitempty"`
	Size      *int64   `json:"size,omitempty"`
	SHA256    string   `json:"sha256,omitempty"`
	MTime     string   `json:"mtime,omitempty"`
	Mode      string   `json:"mode,omitempty"`
	Append    bool     `json:"append,omitempty"`
	Algorithm string   `json:"algorithm,omitempty"`
	Command   string   `json:"command,omitempty"`
	Args      []string `json:"args,omitempty"`
	Shell     string   `json:"shell,omitempty"`
	TTY       bool     `json:"tty,omitempty"`
	Rows      int      `json:"rows,omitempty"`
	Cols      int      `json:"cols,omitempty"`
	Term      string   `json:"term,omitempty"`
	Stdin     bool     `json:"stdin,omitempty"`
	Text      string   `json:"text,omitempty"`
	Off       bool     `json:"off,omitempty"`
	Session   int64    `json:"session,omitempty"`
}

// encode is the request's JSON.
func (q remoteRequest) encode() []byte {
	if !utf8.ValidString(q.Path) {
		q.Path, q.PathBytes = "", []byte(q.Path)
	}
	if !utf8.ValidString(q.To) {
		q.To, q.ToBytes = "", []byte(q.To)
	}
	b, _ := json.Marshal(&q) // strings and numbers cannot fail
	return b
}

// A remoteAnswer is an answer: all fields that any of them has.
type remoteAnswer struct {
	Code   int    `json:"code"`
	Text   string `json:"text"`
	Reason string `json:"reason"`

	User        string   `json:"user"` // login
	Permissions []string `json:"permissions"`
	Commands    []string `json:"commands"`
	Shell       bool     `json:"shell"`
	Server      string   `json:"server"`
	Version     string   `json:"version"`
	Passive     string   `json:"passive"`

	Name      string          `json:"name"` // stat, get, put, hash, cd
	NameBytes []byte          `json:"name_bytes"`
	Type      string          `json:"type"`
	Size      int64           `json:"size"`
	MTime     time.Time       `json:"mtime"`
	Mode      string          `json:"mode"`
	Partial   json.RawMessage `json:"partial"`
	Offset    int64           `json:"offset"`
	Have      *int64          `json:"have"`
	SHA256    string          `json:"sha256"`
	SHA512    string          `json:"sha512"`
	SHA1      string          `json:"sha1"`
	MD5       string          `json:"md5"`
	CRC32     string          `json:"crc32"`
	Path      string          `json:"path"`
	Skipped   int64           `json:"skipped"` // list

	Bytes      *int64 `json:"bytes"` // usage, exec
	Files      *int64 `json:"files"`
	QuotaBytes int64  `json:"quota_bytes"`
	QuotaFiles int64  `json:"quota_files"`
	Free       *int64 `json:"free"`

	Exit   *int   `json:"exit"` // exec
	Signal string `json:"signal"`
	CPUMs  int64  `json:"cpu_ms"`
	MaxRSS int64  `json:"max_rss"`

	Time string `json:"time"`
}

// partial is what stat tells of an interrupted upload; nil: there is none.
func (a *remoteAnswer) partial() *partialInfo {
	var p partialInfo
	if len(a.Partial) == 0 || json.Unmarshal(a.Partial, &p) != nil || p.SHA256 == "" || p.Size < 0 {
		return nil
	}
	return &p
}

// remoteHandlers take what belongs to a request before its final answer. They run
// in the goroutine that reads the connection, so what they wait for holds it up: that
// is the back-pressure. An error from one makes the request fail with it; the rest
// of its data is dropped then. Slices are valid during the call.
type remoteHandlers struct {
	opened func(a *remoteAnswer) error                     // 1xx
	data   func(p []byte) error                            // D
	block  func(buf *[]byte, n int) (kept bool, err error) // D instead of data: a buffer of copyBuffers, n bytes of it used
	stderr func(p []byte) error                            // E
	end    func(f endFrame) error                          // F
	final  func(k *remoteCall, a *remoteAnswer, err error) // the end, before wait returns
}

// A remoteCall is a request that was sent.
type remoteCall struct {
	h      remoteHandlers
	opened bool // 1xx came
	answer *remoteAnswer
	err    error
	local  error // of a handler
	done   chan struct{}
}

// wait is the final answer: a *remoteRefusal for 400 and above, a *connError if the
// connection ended first, or what a handler returned.
func (k *remoteCall) wait() (*remoteAnswer, error) {
	<-k.done
	return k.answer, k.err
}

// A remote is one connection that is logged in. Any goroutine may ask; answers come
// in the order of asking.
type remote struct {
	host    string // as messages name it
	conn    net.Conn
	silence time.Duration
	welcome remoteAnswer

	turn mutex // held from a request to the end of the data behind it; before wmu
	wmu  mutex // guards out; before mu
	out  *bufio.Writer
	asks bool // guarded by wmu: what is written asks for a sign of life, and is none

	mu      mutex
	calls   []*remoteCall  // sent, without final answer
	err     error          // why there is no connection any more
	message func(p []byte) // M; nil: nobody wants it
	pong    func(p []byte) // P; nil: nobody wants it
	lively  bool           // kept alive while nothing is asked

	alive  atomic.Int64 // nanoseconds, of the last sign of life
	doing  atomic.Int32 // what the reader does: readsHeader and so on
	ended  chan struct{}
	reader sync.WaitGroup
}

// --- one connection ---

// hear has message called with each M and pong with each P that comes from now on, in
// the goroutine that reads the connection; nil: nobody wants them. Slices are valid
// during the call. lively keeps the connection alive, and finds out that it is not,
// while nothing is asked; without it the box's limits.idle ends it.
func (c *remote) hear(message, pong func(p []byte), lively bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.message, c.pong, c.lively = message, pong, lively
}

// send sends one frame, at the latest with flush.
func (c *remote) send(t frameType, payload []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.sendLocked(t, payload)
}

func (c *remote) sendLocked(t frameType, payload []byte) error {
	var head [frameHeader]byte
	_, err := c.out.Write(appendHeader(head[:0], t, len(payload)))
	if err == nil {
		_, err = c.out.Write(payload)
	}
	return c.wrote(err)
}

// write sends a whole frame; at once, if it is not to wait for more.
func (c *remote) write(frame []byte, now bool) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err := c.out.Write(frame)
	if err == nil && now {
		err = c.out.Flush()
	}
	return c.wrote(err)
}

// flush sends what send has kept.
func (c *remote) flush() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.wrote(c.out.Flush())
}

// wrote turns an error of writing into the connection's: often the reason has been
// read already, or is about to be.
func (c *remote) wrote(err error) error {
	if err == nil {
		return nil
	}
	c.fail(lostError(c.host, err))
	return c.broken()
}

// broken is why there is no connection any more, or nil.
func (c *remote) broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// begin sends a request, at the latest with flush; its answers go to h. If it
// returns an error, h.final is not called; otherwise it is, once.
func (c *remote) begin(q remoteRequest, h remoteHandlers) (*remoteCall, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	return c.beginTurn(q, h)
}

// beginTurn is begin for who holds turn, and keeps it until all of the request's own
// data is sent: no request may stand in the middle of that.
func (c *remote) beginTurn(q remoteRequest, h remoteHandlers) (*remoteCall, error) {
	payload := q.encode()
	if len(payload) > maxFrame {
		return nil, errorf("what %s is asked for is longer than %d bytes", c.host, maxFrame)
	}
	k := &remoteCall{h: h, done: make(chan struct{})}
	c.wmu.Lock() // so that calls are in the order of the wire
	defer c.wmu.Unlock()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	if len(c.calls) == 0 {
		c.alive.Store(time.Now().UnixNano()) // silence before was nobody's fault
	}
	c.calls = append(c.calls, k)
	c.mu.Unlock()
	c.sendLocked(frameRequest, payload) // if that fails, so does the call
	return k, nil
}

// ask sends a request with handlers and waits for its final answer.
func (c *remote) ask(q remoteRequest, h remoteHandlers) (*remoteAnswer, error) {
	k, err := c.begin(q, h)
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		return nil, err
	}
	return k.wait()
}

// do sends a request and waits for its final answer.
//
// Not inlined, as usageErr.
//
//go:noinline
func (c *remote) do(q remoteRequest) (*remoteAnswer, error) { return c.ask(q, remoteHandlers{}) }

// list asks for a listing and calls each with every line of it, without its LF; the
// line is valid during the call.
//
//go:noinline
func (c *remote) list(path string, recursive bool, each func(line []byte) error) (*remoteAnswer, error) {
	return c.lines(remoteRequest{Do: "list", Path: path, Recursive: recursive}, each)
}

// maxLine bounds a line of a listing: a name of PATH_MAX with each byte written out,
// twice, and the rest.
const maxListLine = 64 << 10

// lines asks for what comes as lines of JSON.
func (c *remote) lines(q remoteRequest, each func(line []byte) error) (*remoteAnswer, error) {
	var rest []byte
	var own error
	take := func(p []byte) error {
		for len(p) > 0 {
			line, more, whole := cutLine(p)
			if len(rest)+len(line) > maxListLine {
				return errorf("%s sends a line of more than %d bytes", c.host, maxListLine)
			}
			if !whole {
				rest = append(rest, line...)
				return nil
			}
			if len(rest) > 0 {
				rest = append(rest, line...)
				line = rest
			}
			if err := each(line); err != nil {
				return err
			}
			rest, p = rest[:0], more
		}
		return nil
	}
	a, err := c.ask(q, remoteHandlers{data: func(p []byte) error {
		if own = take(p); own != nil {
			// Nothing behind it is of use, and there may be no end of it.
			c.fail(&connError{text: c.host + ": the listing was given up"})
		}
		return own
	}})
	if own != nil {
		return nil, own
	}
	if err == nil && len(rest) > 0 {
		err = errorf("%s sends half a line", c.host)
	}
	return a, err
}

func cutLine(p []byte) (line, rest []byte, whole bool) {
	if i := bytes.IndexByte(p, '\n'); i >= 0 {
		return p[:i], p[i+1:], true
	}
	return p, nil, false
}

// close says goodbye and ends the connection; what was asked for and not answered
// fails.
func (c *remote) close() {
	if c.broken() == nil {
		c.conn.SetDeadline(time.Now().Add(time.Second)) // for the goodbye alone
		c.do(remoteRequest{Do: "quit"})
	}
	c.fail(&connError{text: c.host + ": the connection is closed"})
	c.reader.Wait()
}

// fail ends the connection: everything that waits fails with err, unless there was
// a reason already. The reader ends the calls, since their handlers are its own.
func (c *remote) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	c.mu.Unlock()
	close(c.ended)
	c.conn.SetDeadline(time.Now()) // a write that waits holds what Close of TLS needs
	c.conn.Close()
}

func (k *remoteCall) finish(a *remoteAnswer, err error) {
	if k.local != nil && !isConnError(err) {
		err = k.local
	}
	k.answer, k.err = a, err
	if k.h.final != nil {
		k.h.final(k, a, err)
	}
	close(k.done)
}

// watch gives up a box that is silent, and asks whether it lives before that.
func (c *remote) watch(ctx context.Context) {
	defer c.reader.Done()
	tick := time.NewTicker(min(c.silence/6, pingAfter/2))
	defer tick.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-ctx.Done():
			c.fail(errInterrupted)
			return
		case <-tick.C:
		}
		c.mu.Lock()
		waiting := len(c.calls) > 0 || c.lively
		c.mu.Unlock()
		quiet := time.Since(time.Unix(0, c.alive.Load()))
		switch {
		case !waiting:
		case c.doing.Load() == runsHandler: // it is us who are slow
		case quiet > c.silence:
			c.fail(&connError{fmt.Sprintf("%s: nothing was heard for %v", c.host, c.silence), os.ErrDeadlineExceeded})
			return
		case c.doing.Load() == readsPayload: // the answer to a P cannot come before its end
		case quiet > min(c.silence/3, pingAfter) && c.wmu.TryLock(): // else a write is on its way, and tells as much
			c.asks = true
			c.sendLocked(framePing, nil)
			c.wrote(c.out.Flush())
			c.asks = false
			c.wmu.Unlock()
		}
	}
}

// What the reader does.
const (
	readsHeader  = iota // waits for a frame
	readsPayload        // has begun one
	runsHandler         // has given some of one to who asked for it
)

// read hands out what arrives, until the connection ends.
func (c *remote) read(in *bufio.Reader) {
	defer c.reader.Done()
	defer func() {
		c.mu.Lock()
		calls := c.calls
		c.calls = nil
		c.mu.Unlock()
		for _, k := range calls {
			k.finish(nil, c.err)
		}
	}()
	var small []byte
	for {
		var head [frameHeader]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			c.fail(lostError(c.host, err))
			return
		}
		t, n, err := parseHeader(head[:])
		if err != nil || !strings.ContainsRune(toClient, rune(t)) {
			c.fail(&connError{text: fmt.Sprintf("%s sends what is no frame of berth's (type %v, %d bytes)", c.host, t, n)})
			return
		}
		c.doing.Store(readsPayload)
		if t == frameData || t == frameStderr {
			err = c.stream(in, t, n)
		} else {
			if cap(small) < n {
				small = make([]byte, n)
			}
			small = small[:n]
			if _, err = io.ReadFull(in, small); err != nil {
				err = lostError(c.host, err)
			} else {
				c.doing.Store(runsHandler)
				err = c.take(t, small)
				c.alive.Store(time.Now().UnixNano()) // a handler may have been slow
			}
		}
		c.doing.Store(readsHeader)
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// brokenBy is the error of k's handler, if it is about the connection.
func brokenBy(k *remoteCall) error {
	if isConnError(k.local) {
		return k.local
	}
	return nil
}

// current is the request that is being answered.
func (c *remote) current() *remoteCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.calls) == 0 {
		return nil
	}
	return c.calls[0]
}

// stream takes the payload of a D or E.
func (c *remote) stream(in *bufio.Reader, t frameType, n int) error {
	k := c.current()
	wanted := k != nil && k.opened
	if wanted && t == frameStderr {
		wanted = k.h.stderr != nil
	} else if wanted {
		wanted = k.h.block != nil || k.h.data != nil
	}
	if !wanted {
		return &connError{text: c.host + " sends data that nobody asked for"}
	}
	for n > 0 {
		bp := copyBuffers.Get().(*[]byte)
		part := (*bp)[:min(n, len(*bp))]
		var m int
		var rerr error
		if k.h.block != nil {
			m, rerr = io.ReadFull(in, part)
		} else { // what is there: a command's output does not wait for more of its frame
			m, rerr = in.Read(part)
		}
		part = part[:m] // of a frame that was cut off, its beginning: so much need not come again
		n -= m
		kept := false
		var err error
		c.doing.Store(runsHandler)
		switch {
		case k.local != nil || m == 0:
		case t == frameStderr && k.h.stderr != nil:
			err = k.h.stderr(part)
		case t == frameData && k.h.block != nil:
			kept, err = k.h.block(bp, len(part))
		case t == frameData && k.h.data != nil:
			err = k.h.data(part)
		}
		if !kept {
			copyBuffers.Put(bp)
		}
		if err != nil {
			k.local = err
		}
		switch {
		case rerr != nil:
			return lostError(c.host, rerr)
		case brokenBy(k) != nil: // what follows cannot be trusted, nor waited for
			return k.local
		}
		c.alive.Store(time.Now().UnixNano()) // a handler may have been slow
		c.doing.Store(readsPayload)
	}
	return nil
}

// take handles a whole frame of another type.
func (c *remote) take(t frameType, payload []byte) error {
	switch t {
	case framePing, frameMessage:
		c.mu.Lock()
		hear := c.message
		if t == framePing {
			hear = c.pong
		}
		c.mu.Unlock()
		if hear != nil {
			hear(payload)
		}
		return nil
	case frameEnd:
		k := c.current()
		if k == nil || !k.opened {
			return &connError{text: c.host + " ends data that nobody asked for"}
		}
		var f endFrame
		if err := json.Unmarshal(payload, &f); err != nil && len(payload) > 0 {
			return &connError{text: c.host + " sends an F that is no JSON", err: err}
		}
		if k.h.end != nil && k.local == nil {
			k.local = k.h.end(f)
		}
		return brokenBy(k)
	}
	a := new(remoteAnswer)
	if err := json.Unmarshal(payload, a); err != nil || a.Code < 100 {
		return &connError{text: c.host + " sends an answer that is not as berth writes them", err: err}
	}
	k := c.current()
	switch {
	case a.Size < 0 || a.Have != nil && *a.Have < 0:
		return &connError{text: c.host + " tells a size below zero"}
	case a.Code == codeClosing:
		no := &remoteRefusal{*a}
		return &connError{fmt.Sprintf("%s ended the connection: %v", c.host, no), no}
	case k == nil:
		no := &remoteRefusal{*a}
		return &connError{fmt.Sprintf("%s answers what nobody asked: %v", c.host, no), no}
	case a.Code < 200:
		k.opened = true
		if k.h.opened != nil && k.local == nil {
			k.local = k.h.opened(a)
		}
		return brokenBy(k)
	}
	c.mu.Lock()
	c.calls = c.calls[1:]
	c.mu.Unlock()
	var err error
	if a.Code >= 400 {
		err = &remoteRefusal{*a}
	}
	k.finish(a, err)
	return nil
}
