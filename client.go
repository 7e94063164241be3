// client.go is the client's end of one connection: it dials, starts TLS, logs in,
// sends requests and hands their answers out, and turns what goes wrong into errors
// that say what happened and what to do. It shares the frame codec with the server
// and nothing else. Where to connect and as whom is client_host.go's; what is asked
// for is the verbs'.

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
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
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
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
		return "refused with " + strconv.Itoa(e.Code)
	}
	r, n := utf8.DecodeRuneInString(text)
	if next, _ := utf8.DecodeRuneInString(text[n:]); unicode.IsLower(next) || next == ' ' {
		text = string(unicode.ToLower(r)) + text[n:]
	}
	return text
}

// refusedFor tells whether err is the server's no for that reason.
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

	turn sync.Mutex // held from a request to the end of the data behind it; before wmu
	wmu  sync.Mutex // guards out; before mu
	out  *bufio.Writer
	asks bool // guarded by wmu: what is written asks for a sign of life, and is none

	mu      sync.Mutex
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

// --- connecting ---

// dialRemote connects to spec and logs in; password is asked for each try. The
// connection ends with ctx.
func dialRemote(ctx context.Context, spec *hostSpec, silence time.Duration, login func(c *remote) error) (*remote, error) {
	c, err := dialLines(ctx, spec, silence)
	if err != nil {
		return nil, err
	}
	if err := login(c); err != nil {
		c.fail(err)
		c.reader.Wait()
		return nil, err
	}
	return c, nil
}

// dialLines brings a connection to where frames begin.
func dialLines(ctx context.Context, spec *hostSpec, silence time.Duration) (*remote, error) {
	dialer := net.Dialer{Timeout: min(dialTimeout, silence), KeepAlive: silence / 3}
	conn, err := dialer.DialContext(ctx, spec.network, spec.address)
	if err != nil {
		return nil, dialError(ctx, spec, err)
	}
	// "localhost" is what the resolver makes of it; in clear text nothing leaves this machine
	// that nobody has allowed.
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); spec.mayFallBack && (!ok || !a.IP.IsLoopback()) {
		conn.Close()
		return nil, &connError{text: fmt.Sprintf("%s is %v here, which is not this machine; connect by address, or with --tls", spec.name, conn.RemoteAddr())}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	c := &remote{host: spec.name, silence: silence, ended: make(chan struct{})}
	in, err := c.open(conn, spec)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, errInterrupted
		}
		return nil, err
	}
	setUserTimeout(conn, silence)
	c.alive.Store(time.Now().UnixNano())
	c.out = bufio.NewWriterSize(livelyWriter{c}, clientBuffer)
	c.reader.Add(2)
	go c.read(in)
	go c.watch(ctx)
	return c, nil
}

// open reads the greeting, starts TLS and asks for frames.
func (c *remote) open(conn net.Conn, spec *hostSpec) (*bufio.Reader, error) {
	c.conn = conn
	in := bufio.NewReaderSize(livelyReader{c, conn}, clientBuffer)
	wait := min(dialTimeout, c.silence)
	ask := func(line, want, otherwise string) error {
		conn.SetDeadline(time.Now().Add(wait))
		if line != "" {
			if _, err := io.WriteString(c.conn, line+"\r\n"); err != nil {
				return lostError(spec.name, err)
			}
		}
		got, err := readReply(in)
		switch {
		case errors.Is(err, errGarbage):
			return &connError{text: fmt.Sprintf("%s answers with something that is no berth (%s); check the port, berth's is %s", spec.name, shownText(got), defaultPort)}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return &connError{fmt.Sprintf("%s says nothing for %v; check that berth is what listens at %s", spec.name, wait, spec.address), err}
		case err != nil:
			return lostError(spec.name, err)
		case strings.HasPrefix(got, "421"):
			return &connError{text: fmt.Sprintf("%s takes no connection: %s", spec.name, shownText(strings.TrimSpace(got[3:])))}
		case !strings.HasPrefix(got, want):
			return &connError{text: fmt.Sprintf("%s answers %q; %s", spec.name, shownText(got), otherwise)}
		}
		return nil
	}
	notBerth := fmt.Sprintf("it speaks FTP but not berth's frames: use an FTP client for it, as lftp ftp://%s", spec.address)
	if err := ask("", "220", "it is no berth"); err != nil {
		return nil, err
	}
	if spec.tls {
		if err := ask("AUTH TLS", "234", "so there is no TLS; "+"--plain sends everything, the password too, in clear text"); err != nil {
			return nil, err
		}
		cfg, err := spec.tlsConfig()
		if err != nil {
			return nil, err
		}
		batch := &batchConn{Conn: conn, in: bufio.NewReaderSize(livelyReader{c, conn}, clientBuffer)}
		tc := tls.Client(batch, cfg)
		conn.SetDeadline(time.Now().Add(wait))
		if err := tc.Handshake(); err != nil {
			what := err.Error()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				what = fmt.Sprintf("it says nothing for %v", wait)
			case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
				what = "it closed the connection in the middle of the handshake"
			}
			return nil, &connError{fmt.Sprintf("no TLS with %s: %s", spec.name, shownText(what)), err}
		}
		conn.SetDeadline(time.Time{}) // a person may be asked
		if err := spec.checkCertificate(tc.ConnectionState()); err != nil {
			return nil, err
		}
		c.conn, in = tc, bufio.NewReaderSize(tc, maxGreeting)
	}
	if err := ask("FRAM 1", "200", notBerth); err != nil {
		return nil, err
	}
	return in, conn.SetDeadline(time.Time{})
}

var errGarbage = errors.New("not a reply of FTP")

// readReply reads one reply, the last line of it if it has several.
func readReply(in *bufio.Reader) (string, error) {
	first := ""
	for size := 0; ; {
		line, err := in.ReadSlice('\n')
		size += len(line)
		text := strings.TrimRight(string(line), "\r\n")
		if first == "" {
			if err == nil || len(text) > 3 {
				if !isReply(text) {
					return text[:min(len(text), 60)], errGarbage
				}
			}
			first = text
		}
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				err = errGarbage
			}
			return text, err
		}
		if size > maxGreeting {
			return first, errGarbage
		}
		if len(text) == 3 || strings.HasPrefix(text, first[:3]+" ") {
			return text, nil
		}
	}
}

func isReply(s string) bool {
	return len(s) >= 3 && s[0] >= '1' && s[0] <= '5' && s[1] >= '0' && s[1] <= '9' && s[2] >= '0' && s[2] <= '9' && (len(s) == 3 || s[3] == ' ' || s[3] == '-')
}

// dialError says why a box could not be reached, and what to look at.
func dialError(ctx context.Context, spec *hostSpec, err error) error {
	var dns *net.DNSError
	var late net.Error
	what := err.Error()
	switch {
	case ctx.Err() != nil:
		return errInterrupted
	case errors.As(err, &dns) && !dns.IsNotFound:
		what = fmt.Sprintf("the name server tells nothing of %s (%s); is this machine on the network?", shownText(dns.Name), shownText(dns.Err))
	case dns != nil:
		what = fmt.Sprintf("there is no host %s; check the name, or give it an address in %s", shownText(dns.Name), configFileHint)
	case errors.Is(err, syscall.ECONNREFUSED):
		what = fmt.Sprintf("nothing listens at %s; is berth running there, and is it that port?", spec.address)
	case errors.As(err, &late) && late.Timeout(), errors.Is(err, syscall.ETIMEDOUT):
		what = fmt.Sprintf("no answer from %s; is the machine on, and the port open in its firewall?", spec.address)
	case errors.Is(err, syscall.ENOENT):
		what = fmt.Sprintf("there is no socket %s; is berth running?", spec.address)
	case errors.Is(err, syscall.EACCES) && spec.network == "unix":
		what = fmt.Sprintf("no permission for the socket %s; its owner or root may connect", spec.address)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		what = fmt.Sprintf("no way to %s; is this machine on that network?", spec.address)
	}
	return &connError{"cannot connect to " + spec.name + ": " + what, err}
}

// lostError is a connection that broke.
func lostError(host string, err error) error {
	what := "the connection broke"
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		what = "the box closed the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		what = "the connection was reset"
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		what = "the connection timed out"
	case err != nil:
		what = "the connection broke (" + shownText(err.Error()) + ")"
	}
	return &connError{host + ": " + what, err}
}

// setUserTimeout has the kernel give a connection up whose data the other side does
// not acknowledge, tcp(7); without it that takes a quarter of an hour.
func setUserTimeout(conn net.Conn, limit time.Duration) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit/time.Millisecond))
			})
		}
	}
}

// A batchConn is what TLS reads from and writes to: crypto/tls makes a system call
// of each record of 16 KiB, and these cost more than the encryption.
type batchConn struct {
	net.Conn
	in *bufio.Reader

	mu   sync.Mutex // TLS writes for its reader, too: alerts and new keys
	held bool       // what is written waits
	out  []byte
}

func (b *batchConn) Read(p []byte) (int, error) { return b.in.Read(p) }

func (b *batchConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return b.Conn.Write(p)
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// batch has what write writes leave at once.
func (b *batchConn) batch(write func() (int, error)) (int, error) {
	b.mu.Lock()
	b.held, b.out = true, b.out[:0]
	b.mu.Unlock()
	n, err := write()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	if len(b.out) > 0 {
		if _, werr := b.Conn.Write(b.out); err == nil {
			err = werr
		}
	}
	return n, err
}

// livelyReader reads from the connection, and takes each byte for a sign of life: on a
// slow line one frame takes minutes.
type livelyReader struct {
	c    *remote
	conn net.Conn
}

func (r livelyReader) Read(p []byte) (n int, err error) {
	if n, err = r.conn.Read(p); n > 0 {
		r.c.alive.Store(time.Now().UnixNano())
	}
	return n, err
}

// livelyWriter writes to the connection, and takes each write that succeeds for a
// sign of life: a slow line has much to do before it can answer.
type livelyWriter struct{ c *remote }

func (w livelyWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), clientBuffer)]
		var m int
		if tc, ok := w.c.conn.(*tls.Conn); ok {
			m, err = tc.NetConn().(*batchConn).batch(func() (int, error) { return tc.Write(part) })
		} else {
			m, err = w.c.conn.Write(part)
		}
		n += m
		p = p[m:]
		if !w.c.asks {
			w.c.alive.Store(time.Now().UnixNano())
		}
	}
	return n, err
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
		return nil, fmt.Errorf("what %s is asked for is longer than %d bytes", c.host, maxFrame)
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
func (c *remote) do(q remoteRequest) (*remoteAnswer, error) { return c.ask(q, remoteHandlers{}) }

// list asks for a listing and calls each with every line of it, without its LF; the
// line is valid during the call.
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
				return fmt.Errorf("%s sends a line of more than %d bytes", c.host, maxListLine)
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
		err = fmt.Errorf("%s sends half a line", c.host)
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
