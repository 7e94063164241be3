package main

// http.go owns the wire of the small pages that an operator's tools ask: as much
// HTTP/1.x (RFC 9110, RFC 9112) as a GET without content needs, and a bound on
// everything that a stranger could hold open. It is our own because net/http's
// server brings HTTP/2, multipart forms and file serving along: with it the
// stripped program is 548,864 bytes larger (Go 1.26, amd64), on boxes with little
// flash, for four pages on loopback. It knows no page and no user; pages.go has
// those.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// httpHeadLimit bounds the request line and the header fields together.
	// Prometheus sends some 500 bytes, a browser with its cookies a few KiB.
	httpHeadLimit = 8 << 10

	// httpConnLimit bounds the connections: some scrapers, a few people and their
	// browsers, six connections each. Past it, who has waited longest must go.
	httpConnLimit = 64
	// httpWriteLeast is how long who reads slowly has his place for certain.
	httpWriteLeast = time.Second

	httpHeaderTimeout = 5 * time.Second // for a request's head, once it has begun, and for a TLS handshake
	httpIdleTimeout   = 2 * time.Minute // longer than the usual scrape interval of 1 min
	// Writing takes at most a scrape's time and the network's.
	httpWriteTimeout = scrapeTimeout + 5*time.Second

	// A client that is still sending when it is refused would lose the answer to
	// the reset that closing with unread data causes (RFC 9112 section 9.6), so
	// that much more is read, for so long.
	httpLingerTimeout = 500 * time.Millisecond
	httpLingerBytes   = 256 << 10
)

// The status codes in use, RFC 9110 section 15 and RFC 6585 section 5.
const (
	httpOK               = 200
	httpBadRequest       = 400
	httpUnauthorized     = 401
	httpForbidden        = 403
	httpNotFound         = 404
	httpMethodNotAllowed = 405
	httpContentTooLarge  = 413
	httpTooMany          = 429
	httpHeadTooLarge     = 431
	httpServerError      = 500
	httpUnavailable      = 503
	httpBadVersion       = 505
)

// httpReasons are the words beside a status code, which only people read.
const httpReasons = "200 OK\n400 Bad Request\n401 Unauthorized\n403 Forbidden\n404 Not Found\n405 Method Not Allowed\n413 Content Too Large\n" +
	"429 Too Many Requests\n431 Request Header Fields Too Large\n500 Internal Server Error\n503 Service Unavailable\n505 HTTP Version Not Supported\n"

// httpStatus is the code with its words.
func httpStatus(status int) string {
	code := itoa(status)
	_, reason, _ := cutText(httpReasons, code)
	reason, _, _ = cutText(reason, "\n")
	return code + reason
}

// httpFields are header fields in the order of the wire.
type httpFields []struct{ name, value string }

// values returns what all fields of this name say; case does not matter.
//
//go:noinline
func (f httpFields) values(name string) (all []string) {
	for _, field := range f {
		if strings.EqualFold(field.name, name) {
			all = append(all, field.value)
		}
	}
	return all
}

// mentions reports whether the comma-separated lists under name have token.
func (f httpFields) mentions(name, token string) bool {
	for _, list := range f.values(name) {
		for member := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.Trim(member, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// An httpRequest is a request that was read in full. It has no content.
type httpRequest struct {
	method string
	url    *url.URL // its Path is decoded and may be anything
	header httpFields
	keep   bool // the client would use the connection again
	old    bool // it speaks HTTP/1.0

	peer   netip.Addr // who sent it, by the kernel's word; what a header says of it is anybody's
	secure bool       // it came under TLS
	here   bool       // by a listener that this machine alone can reach; the handler's owner sets it

	// giveWay runs wait, which may take seconds. Meanwhile the connection counts as
	// one that has asked nothing: if its place is needed it is ended, and so is
	// wait's context. What is answered then, nobody reads.
	giveWay func(wait func(context.Context))
}

// host is the name or address by which the client knows this server, without the port;
// "" if it does not say. RFC 9112 section 3.2.2: a target that has one counts.
func (q *httpRequest) host() string {
	u := url.URL{Host: q.url.Host}
	if all := q.header.values("Host"); u.Host == "" && len(all) > 0 {
		u.Host = all[0]
	}
	return u.Hostname()
}

// path is what was asked for, for the log; "" if that was not understood.
func (q *httpRequest) path() string {
	if q.url == nil {
		return ""
	}
	return shortened(q.url.Path)
}

// basicAuth is the name and password that the request carries, RFC 7617.
func (q *httpRequest) basicAuth() (name, password string, ok bool) {
	all := q.header.values("Authorization")
	if len(all) != 1 {
		return "", "", false
	}
	scheme, coded, _ := strings.Cut(all[0], " ")
	plain, err := base64.StdEncoding.DecodeString(strings.TrimLeft(coded, " "))
	if err != nil || !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	return strings.Cut(string(plain), ":")
}

// An httpAnswer is what a handler makes of a request. The server adds Date,
// Content-Length and Connection, and leaves the body out for HEAD.
type httpAnswer struct {
	page   string // what is answered, in a word of a fixed set, for those who count
	status int
	header httpFields
	body   bytes.Buffer
}

// set adds a field. Neither may hold what strangers chose.
//
//go:noinline
func (a *httpAnswer) set(name, value string) {
	a.header = append(a.header, struct{ name, value string }{name, value})
}

// line makes the answer one line of text.
func (a *httpAnswer) line(status int, text string) {
	a.status = status
	a.set("Content-Type", "text/plain; charset=utf-8")
	a.body.Reset()
	a.body.WriteString(text)
	a.body.WriteByte('\n')
}

// An httpHandler fills in the answer, whose status is 200 to begin with. It runs
// on the connection's goroutine and must return within httpWriteTimeout.
type httpHandler func(*httpAnswer, *httpRequest)

// httpWithin bounds the time that an answer takes: after d the answer is 503 with
// the text late. handle goes on until it returns, so it must bound by itself how
// many of it do.
//
//go:noinline
func httpWithin(d time.Duration, handle httpHandler, late string) httpHandler {
	return func(a *httpAnswer, q *httpRequest) {
		b := &httpAnswer{status: httpOK} // its own: handle may still run when a is on its way
		var panicked any
		switch {
		case !within(d, func() {
			defer func() { panicked = recover() }()
			handle(b, q)
		}):
			a.line(httpUnavailable, late)
		case panicked != nil:
			panic(panicked)
		default:
			a.status, a.body = b.status, b.body
			a.header = append(a.header, b.header...)
		}
	}
}

// An httpServer is one server for any number of listeners.
type httpServer struct {
	handle   httpHandler
	panicked func()             // called when a handler did; never nil
	answered func(string, int)  // told the page and status of each answer; never nil
	secure   func() *tls.Config // what each connection's handshake needs; nil: none is made
	log      *slog.Logger

	mu      mutex // guards what follows and the fields of its connections
	conns   map[*httpConn]struct{}
	closing bool
	running sync.WaitGroup // one for each connection; added to while not closing
}

// An httpConn is a connection that the server may have to end.
type httpConn struct {
	net.Conn          // of TLS, once that is made; its own goroutine's
	bare     net.Conn // what others may close: closing TLS writes, and so may wait
	waiting  bool     // no whole request has arrived, so that closing loses no answer
	writing  bool     // the answer is on its way
	since    time.Time
	giveWays context.CancelFunc // ends what giveWay waits for; nil: nothing
}

// end closes the connection under its server's lock.
func (c *httpConn) end() {
	c.bare.Close()
	if c.giveWays != nil {
		c.giveWays()
	}
}

// newHTTPServer returns a server that asks handle. panicked counts its bugs.
func newHTTPServer(handle httpHandler, panicked func(), log *slog.Logger) *httpServer {
	return &httpServer{handle: handle, panicked: panicked, answered: func(string, int) {}, log: log, conns: map[*httpConn]struct{}{}}
}

// serve answers on one connection until either side has enough, and closes it.
func (s *httpServer) serve(conn net.Conn) {
	defer func() {
		if v := recover(); v != nil {
			s.caught(v)
		}
	}()
	c := &httpConn{Conn: conn, bare: conn, waiting: true, since: time.Now()}
	if !s.enter(c) {
		conn.Close()
		return
	}
	defer s.leave(c)
	defer conn.Close()
	if s.secure != nil {
		if !s.handshake(c) {
			return
		}
		defer c.Conn.Close() // says that this is the end, and not a cut
	}
	r := newReader(c, httpHeadLimit)
	for first := true; ; first = false {
		if !first && r.Buffered() == 0 {
			c.SetReadDeadline(time.Now().Add(httpIdleTimeout))
			if _, err := r.Peek(1); err != nil {
				return
			}
		}
		now := time.Now()
		c.SetReadDeadline(now.Add(httpHeaderTimeout))
		q, err := readHTTPRequest(r)
		var refused httpRefusal
		if err != nil && !errors.As(err, &refused) {
			return // the client went away, or was too slow
		}
		if !s.busy(c, true) {
			return
		}
		c.SetWriteDeadline(time.Now().Add(httpWriteTimeout))
		a := &httpAnswer{status: httpOK}
		if err != nil {
			a.set("X-Content-Type-Options", "nosniff")
			if refused.status == httpMethodNotAllowed {
				a.set("Allow", "GET, HEAD")
			}
			a.line(refused.status, refused.text)
		} else {
			q.peer, q.secure = c.peer(), s.secure != nil
			q.giveWay = func(wait func(context.Context)) { s.giveWay(c, wait) }
			s.ask(a, q)
		}
		s.answered(a.page, a.status)
		keep := q.keep && a.status != httpServerError && s.writing(c)
		gone := a.writeTo(c, q, keep)
		s.log.Debug("http request", "addr", addrText(c.peer()), "verb", q.method, "path", q.path(), "bytes", a.body.Len(), "dur", time.Since(now), "result", a.status, "reason", refused.text)
		if gone != nil {
			return
		}
		if err != nil && !keep {
			c.linger()
		}
		if !keep || !s.busy(c, false) {
			return
		}
	}
}

// handshake makes the connection one of TLS. Whoever speaks HTTP without TLS is
// told, as people who type an address without https:// cannot know.
func (s *httpServer) handshake(c *httpConn) bool {
	c.SetDeadline(time.Now().Add(httpHeaderTimeout))
	secure := tls.Server(c.bare, s.secure())
	err := secure.Handshake()
	if err == nil {
		c.Conn = secure
		return true
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil { // nothing was sent yet
		a := &httpAnswer{}
		a.line(httpBadRequest, "HTTPS is spoken here: begin the address with https://.")
		if a.writeTo(c, &httpRequest{}, false) == nil {
			c.linger()
		}
	}
	s.log.Debug("http handshake failed", "addr", addrText(c.peer()), "error", err)
	return false
}

// giveWay is httpRequest's.
func (s *httpServer) giveWay(c *httpConn, wait func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	_, in := s.conns[c]
	if in && !s.closing {
		c.waiting, c.giveWays = true, cancel // since is when it asked
	} else {
		cancel()
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		c.waiting, c.giveWays = false, nil
		s.mu.Unlock()
	}()
	wait(ctx)
	c.SetWriteDeadline(time.Now().Add(httpWriteTimeout))
}

// ask runs the handler; a panic in it costs this answer and this connection.
func (s *httpServer) ask(a *httpAnswer, q *httpRequest) {
	defer func() {
		if v := recover(); v != nil {
			s.caught(v)
			*a = httpAnswer{}
			a.line(httpServerError, "This is a bug; the log has more.")
		}
	}()
	s.handle(a, q)
}

// caught counts and logs a panic, which must not end the daemon.
func (s *httpServer) caught(v any) {
	s.panicked()
	s.log.Error("panic in the http service", "panic", v, "stack", string(debug.Stack()))
}

// enter takes a connection in. Where there are too many it ends the one that
// has waited longest, so that whoever holds connections and asks nothing keeps
// nobody out, and else the one whose answer is read most slowly; it is false when
// there is none such, or the server is closing.
func (s *httpServer) enter(c *httpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.conns) >= httpConnLimit {
		var oldest *httpConn
		for o := range s.conns {
			if !o.waiting && (!o.writing || time.Since(o.since) < httpWriteLeast) {
				continue
			}
			if oldest == nil || o.waiting && !oldest.waiting || o.waiting == oldest.waiting && o.since.Before(oldest.since) {
				oldest = o
			}
		}
		if oldest == nil {
			return false
		}
		delete(s.conns, oldest)
		oldest.end()
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	return true
}

func (s *httpServer) leave(c *httpConn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.running.Done()
}

// busy notes that an answer is being made, or that one was given and another
// request may come. It is false when the connection has no future.
func (s *httpServer) busy(c *httpConn, busy bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.waiting, c.writing, c.since = !busy, false, time.Now()
	_, in := s.conns[c]
	return in && !s.closing
}

// writing notes that an answer is made and goes out. It is false when the connection
// has no future.
func (s *httpServer) writing(c *httpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.writing, c.since = true, time.Now()
	return !s.closing
}

// shutdown ends what waits, lets answers under way finish, and returns when
// there are none. Nothing is answered after it.
func (s *httpServer) shutdown() {
	s.end(func(c *httpConn) bool { return c.waiting })
	s.running.Wait()
}

// close ends all connections at once. It may be called at any time.
func (s *httpServer) close() {
	s.end(func(*httpConn) bool { return true })
}

func (s *httpServer) end(which func(*httpConn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for c := range s.conns {
		if which(c) {
			c.end()
		}
	}
}

// peer is the address at the other end; the zero Addr where that has none.
func (c *httpConn) peer() netip.Addr {
	if t, ok := c.bare.RemoteAddr().(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// linger reads on for a moment, so that a client that is still sending gets to
// read why it was refused.
func (c *httpConn) linger() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		c.SetReadDeadline(time.Now().Add(httpLingerTimeout))
		io.CopyN(io.Discard, c, httpLingerBytes)
	}
}

// writeTo sends the answer in one write. q says whom it is for.
func (a *httpAnswer) writeTo(w io.Writer, q *httpRequest, keep bool) error {
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 " + httpStatus(a.status) + "\r\n")
	for _, f := range a.header {
		head.WriteString(f.name + ": " + f.value + "\r\n")
	}
	head.WriteString("Date: " + time.Now().UTC().Format(httpDate) + "\r\n")
	head.WriteString("Content-Length: " + strconv.Itoa(a.body.Len()) + "\r\n")
	switch {
	case !keep:
		head.WriteString("Connection: close\r\n")
	case q.old:
		head.WriteString("Connection: keep-alive\r\n")
	}
	head.WriteString("\r\n")
	answer := net.Buffers{head.Bytes()}
	if q.method != "HEAD" {
		answer = append(answer, a.body.Bytes())
	}
	_, err := answer.WriteTo(w)
	return err
}

// httpDate is IMF-fixdate, RFC 9110 section 5.6.7.
const httpDate = "Mon, 02 Jan 2006 15:04:05 GMT"

// --- requests ---

// An httpRefusal is a request that cannot be answered as it is. Its text is the
// page, and holds nothing of the request.
type httpRefusal struct {
	status int
	text   string
}

func (r httpRefusal) Error() string { return r.text }

// readHTTPRequest reads one request from r, whose buffer holds httpHeadLimit
// bytes. An error is an httpRefusal, or the connection's. The request is never
// nil and says at least whether the connection can be kept, which after a
// refusal it can only when it is certain where the next request begins.
func readHTTPRequest(r *bufio.Reader) (*httpRequest, error) {
	q := &httpRequest{}
	left := httpHeadLimit
	line, err := readHTTPLine(r, &left)
	if err == nil && line == "" { // RFC 9112 section 2.2: one empty line before a request is no harm
		line, err = readHTTPLine(r, &left)
	}
	if err != nil {
		return q, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	if !httpToken(method) || len(version) != len("HTTP/1.1") || version[:5] != "HTTP/" || version[6] != '.' ||
		!httpDigit(version[5]) || !httpDigit(version[7]) {
		return q, httpRefusal{httpBadRequest, "This is no HTTP request."}
	}
	if version[5] != '1' {
		return q, httpRefusal{httpBadVersion, "Only HTTP/1.0 and HTTP/1.1 are spoken here."}
	}
	q.method, q.old = method, version[7] == '0'

	for {
		if line, err = readHTTPLine(r, &left); err != nil {
			return q, err
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !httpToken(name) { // white space before the colon or at the start of the line, too: RFC 9112 section 5
			return q, httpRefusal{httpBadRequest, "A header field has no name."}
		}
		q.header = append(q.header, struct{ name, value string }{name, strings.Trim(value, " \t")})
	}
	if n := len(q.header.values("Host")); n > 1 || n == 0 && !q.old {
		return q, httpRefusal{httpBadRequest, "A request needs one Host field."}
	}
	empty, err := q.framing()
	if err != nil {
		return q, err
	}
	// What follows content that nobody reads would be taken for a request.
	keep := empty && !q.header.mentions("Connection", "close") && (!q.old || q.header.mentions("Connection", "keep-alive"))
	if method != "GET" && method != "HEAD" {
		q.keep = keep
		return q, httpRefusal{httpMethodNotAllowed, "Only GET and HEAD are answered here."}
	}
	if !empty {
		return q, httpRefusal{httpContentTooLarge, "Requests have no content here."}
	}
	if q.url, err = url.ParseRequestURI(target); err != nil || q.url.Path == "" && q.url.Host == "" {
		return q, httpRefusal{httpBadRequest, "The request's target is no path."}
	}
	if q.url.Path == "" { // http://box, without a slash
		q.url.Path = "/"
	}
	q.keep = keep
	return q, nil
}

// framing reports whether the request has no content, RFC 9112 section 6.3.
func (q *httpRequest) framing() (empty bool, err error) {
	coded, lengths := q.header.values("Transfer-Encoding"), q.header.values("Content-Length")
	if len(coded) > 0 && (len(lengths) > 0 || q.old) || len(lengths) > 1 {
		return false, httpRefusal{httpBadRequest, "It is not clear where the request ends."}
	}
	if len(lengths) == 0 {
		return len(coded) == 0, nil
	}
	n, err := strconv.ParseUint(lengths[0], 10, 63)
	if err != nil {
		return false, httpRefusal{httpBadRequest, "Content-Length is no number."}
	}
	return n == 0, nil
}

// readHTTPLine reads a line of a request's head, without its end, and takes its
// length from what is left for the head.
func readHTTPLine(r *bufio.Reader, left *int) (string, error) {
	line, err := r.ReadSlice('\n')
	if *left -= len(line); *left < 0 || errors.Is(err, bufio.ErrBufferFull) {
		return "", httpRefusal{httpHeadTooLarge, "The request's head is longer than " + strconv.Itoa(httpHeadLimit) + " bytes."}
	}
	if err != nil {
		return "", err
	}
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	for _, b := range line {
		if b < ' ' && b != '\t' || b == 0x7f { // RFC 9110 section 5.5; a bare CR is one of them
			return "", httpRefusal{httpBadRequest, "A line of the request has control characters."}
		}
	}
	return string(line), nil
}

// httpToken reports whether s is a token, RFC 9110 section 5.6.2.
func httpToken(s string) bool {
	for i := range len(s) {
		if b := s[i]; !httpDigit(b) && (b|0x20 < 'a' || b|0x20 > 'z') && !strings.Contains("!#$%&'*+-.^_`|~", s[i:i+1]) {
			return false
		}
	}
	return s != ""
}

func httpDigit(b byte) bool { return '0' <= b && b <= '9' }
