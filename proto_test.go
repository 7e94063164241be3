package main

// The control protocol seen from outside: the player of testdata/ftp, the in-memory
// network it runs on, the permission matrix and the invariants of the command table,
// fuzz targets and benchmarks. Nothing here reaches into a session: a test sends bytes
// to server.begin as a client would, and looks at the replies, the disk and the
// counters. What cannot be played from a text file is in proto_rules_test.go.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// --- a network in memory ---

// memSegment is one direction of a connection: what was written and not yet read.
type memSegment struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	fin    bool // the writer closed
	reset  bool // the writer reset
	gone   bool // the reader closed
	rd, wr memDeadline
}

type memDeadline struct {
	at    time.Time
	timer *time.Timer
}

func newMemSegment() *memSegment {
	s := &memSegment{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *memSegment) set(d *memDeadline, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if left := time.Until(at); !at.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cond.Broadcast()
		})
	}
	s.cond.Broadcast()
}

func (d *memDeadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// memBuffer is how much a direction holds, as a socket does: a writer whose peer does
// not read stalls.
const memBuffer = 64 << 10

// memConn is one end of a connection that behaves as a TCP connection does: it buffers,
// tells FIN from reset, and has addresses. It is no syscall.Conn, so nothing in it
// blocks outside a synctest bubble's sight.
type memConn struct {
	in, out       *memSegment
	local, remote net.Addr
}

func memPipe(client, server netip.AddrPort) (c, s *memConn) {
	up, down := newMemSegment(), newMemSegment()
	ca, sa := net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(server)
	return &memConn{in: down, out: up, local: ca, remote: sa}, &memConn{in: up, out: down, local: sa, remote: ca}
}

func (c *memConn) Read(p []byte) (int, error) {
	s := c.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.gone:
			return 0, net.ErrClosed
		case s.rd.passed():
			return 0, os.ErrDeadlineExceeded
		case len(s.buf) > 0:
			n := copy(p, s.buf)
			s.buf = s.buf[n:]
			s.cond.Broadcast()
			return n, nil
		case s.reset:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
		case s.fin:
			return 0, io.EOF
		}
		s.cond.Wait()
	}
}

func (c *memConn) Write(p []byte) (n int, err error) {
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.fin || s.reset:
			return n, net.ErrClosed
		case s.gone:
			return n, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
		case s.wr.passed():
			return n, os.ErrDeadlineExceeded
		case n == len(p):
			return n, nil
		}
		if room := memBuffer - len(s.buf); room > 0 {
			m := min(room, len(p)-n)
			s.buf = append(s.buf, p[n:n+m]...)
			n += m
			s.cond.Broadcast()
			continue
		}
		s.cond.Wait()
	}
}

func (c *memConn) shut(reset bool) error {
	c.out.mu.Lock()
	if reset && !c.out.fin {
		c.out.reset, c.out.buf = true, nil
	}
	c.out.fin = true
	c.out.cond.Broadcast()
	c.out.mu.Unlock()
	c.in.mu.Lock()
	c.in.gone = true
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	return nil
}

func (c *memConn) Close() error { return c.shut(false) }

// CloseWrite sends FIN and goes on reading.
func (c *memConn) CloseWrite() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.fin = true
	c.out.cond.Broadcast()
	return nil
}

func (c *memConn) LocalAddr() net.Addr                { return c.local }
func (c *memConn) RemoteAddr() net.Addr               { return c.remote }
func (c *memConn) SetReadDeadline(t time.Time) error  { c.in.set(&c.in.rd, t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { c.out.set(&c.out.wr, t); return nil }
func (c *memConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// memNet is where data connections of both kinds meet: listeners by port.
type memNet struct {
	mu        sync.Mutex
	last      uint16
	listeners map[uint16]*memListener
	auto      func(*memConn) // if set, gets the client's end of a connection to each new listener
}

type memListener struct {
	net      *memNet
	addr     netip.AddrPort
	mu       sync.Mutex
	cond     *sync.Cond
	queue    []*memConn
	closed   bool
	deadline memDeadline
}

func newMemNet() *memNet { return &memNet{last: 50000, listeners: map[uint16]*memListener{}} }

func (n *memNet) listen(a netip.AddrPort) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	port := a.Port()
	if port == 0 {
		n.last++
		port = n.last
	}
	if n.listeners[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &memListener{net: n, addr: netip.AddrPortFrom(a.Addr(), port)}
	l.cond = sync.NewCond(&l.mu)
	n.listeners[port] = l
	if n.auto != nil {
		c, s := memPipe(netip.AddrPortFrom(testPeer, 40001), l.addr)
		n.auto(c)
		l.queue = append(l.queue, s)
	}
	return l, nil
}

// connect is connect(2): the connection waits in the listener's backlog.
func (n *memNet) connect(from netip.Addr, port uint16) (*memConn, error) {
	n.mu.Lock()
	l := n.listeners[port]
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	c, s := memPipe(netip.AddrPortFrom(from, 40001), l.addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, s)
	l.cond.Broadcast()
	return c, nil
}

func (n *memNet) dial(_ context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	c, err := n.connect(local, to.Port())
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (l *memListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, net.ErrClosed
		case l.deadline.passed():
			return nil, os.ErrDeadlineExceeded
		case len(l.queue) > 0:
			c := l.queue[0]
			l.queue = l.queue[1:]
			return c, nil
		}
		l.cond.Wait()
	}
}

func (l *memListener) Close() error {
	l.net.mu.Lock()
	delete(l.net.listeners, l.addr.Port())
	l.net.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, c := range l.queue {
		c.shut(true) // as the kernel does
	}
	l.cond.Broadcast()
	return nil
}

func (l *memListener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.queue {
		c.Close()
	}
	l.queue = nil
}

func (l *memListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

func (l *memListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deadline.timer != nil {
		l.deadline.timer.Stop()
	}
	l.deadline = memDeadline{at: t}
	if left := time.Until(t); !t.IsZero() && left > 0 {
		l.deadline.timer = time.AfterFunc(left, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.cond.Broadcast()
		})
	}
	l.cond.Broadcast()
	return nil
}

// --- a server for tests ---

// testHash is "secret" under bcrypt's lowest cost, so that logins take no time.
const testHash = "$2a$04$xH.QNtJyfw.jLURJlCBdcurUu8nfC3qLdTwWepoWt/fqOvo7WE7L2"

// ftpBox is a server with the user ann (password "secret", home below the test's
// directory) and a network in memory.
type ftpBox struct {
	srv  *server
	net  *memNet
	dir  string
	home string
	log  *syncBuffer
	real dataPorts // what net stands in for
}

// syncBuffer is a log that tests can read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newFTPBox makes one. config and user are lines of TOML; user keys are ann's.
func newFTPBox(t testing.TB, config, user string) *ftpBox {
	t.Helper()
	return newFTPBoxWith(t, config, user, func(*server) {})
}

// newFTPBoxWith is newFTPBox with what is to be done to the server before it begins.
func newFTPBoxWith(t testing.TB, config, user string, prepare func(*server)) *ftpBox {
	t.Helper()
	dir := t.TempDir()
	b := &ftpBox{dir: dir, home: filepath.Join(dir, "home"), net: newMemNet(), log: &syncBuffer{}}
	if err := os.Mkdir(b.home, 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	b.writeTLS(t, state)
	b.user(t, "ann", user)
	if !strings.Contains(config, "passive.ports") {
		config += "passive.ports = \"\"\n" // ports in order, so that transcripts can name them
	}
	text := config + fmt.Sprintf("\nserver.name = \"box\"\nserver.state_dir = %q\nserver.users_dir = %q\n", state, filepath.Join(dir, "users.d"))
	file := filepath.Join(dir, "berth.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	level := new(slog.LevelVar)
	b.srv, err = newServer(cfg, newLogger("berth", logConfig{Format: "text", Level: "debug", Rate: cfg.Log.Rate}, level, b.log), level, false)
	if err != nil {
		t.Fatal(err)
	}
	b.srv.configPath = file
	b.real = *b.srv.ports
	b.srv.ports.listen, b.srv.ports.dial = b.net.listen, b.net.dial
	prepare(b.srv)
	b.srv.house.start()
	t.Cleanup(func() {
		b.srv.end()
		b.srv.running.Wait()
		<-b.srv.house.done
		if n := len(b.srv.sessions); n != 0 || len(b.srv.byAddr) != 0 || len(b.srv.accounts) != 0 {
			t.Errorf("%d sessions, %d addresses, %d accounts are left on the books", n, len(b.srv.byAddr), len(b.srv.accounts))
		}
	})
	return b
}

var testCertificate = sync.OnceValues(func() (pair [2][]byte, err error) {
	pair[0], pair[1], err = selfSigned("box")
	return pair, err
})

// writeTLS puts one certificate for all tests where the server would make its own: in a
// bubble that would be one of the year 2000.
func (b *ftpBox) writeTLS(t testing.TB, state string) {
	pair, err := testCertificate()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(state, "tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"cert.pem", "key.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), pair[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// user writes a users.d file; more is TOML.
func (b *ftpBox) user(t testing.TB, name, more string) {
	t.Helper()
	text := fmt.Sprintf("password = %q\n", testHash)
	if !strings.Contains(more, "home =") {
		text += fmt.Sprintf("home = %q\n", b.home)
	}
	dir := filepath.Join(b.dir, "users.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text+more), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *ftpBox) put(t testing.TB, name, content string) {
	t.Helper()
	p := filepath.Join(b.home, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// snapshot is everything in a directory: names, kinds, modes, times and contents. The
// server's own ledger, which changes while it runs, is left out.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var s strings.Builder
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if base := filepath.Base(p); filepath.Base(filepath.Dir(p)) == "state" && (strings.HasPrefix(base, ledgerName) || strings.HasPrefix(base, newFilePrefix)) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&s, "%q %v", rel, info.Mode())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&s, " %v %q", info.ModTime(), data)
		}
		s.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.String()
}

var (
	testPeer  = netip.MustParseAddr("127.0.0.1")
	testLocal = netip.MustParseAddr("127.0.0.1")
)

// ftpClient is the client's end of a control connection. It runs no goroutine.
type ftpClient struct {
	t     testing.TB
	box   *ftpBox
	host  string // of the server, over real sockets
	bare  net.Conn
	conn  net.Conn // bare, or TLS over it
	r     *bufio.Reader
	peer  netip.Addr
	port  uint16 // of the last 227 or 229
	where string // in a transcript, for failures
	over  chan struct{}

	private *tls.Config // for data connections, after PROT P
}

// dial connects to the server in memory.
func (b *ftpBox) dial(t testing.TB) *ftpClient { return b.dialFrom(t, testPeer, testLocal, "control") }

func (b *ftpBox) dialFrom(t testing.TB, peer, local netip.Addr, kind string) *ftpClient {
	t.Helper()
	c, s := memPipe(netip.AddrPortFrom(peer, 40000), netip.AddrPortFrom(local, 21))
	f := &ftpClient{t: t, box: b, bare: c, conn: c, r: bufio.NewReader(c), peer: peer, over: make(chan struct{})}
	go func() {
		defer close(f.over)
		b.srv.begin(s, kind)
		// It runs on by itself. It is over when it has closed and is off the books.
		s.in.mu.Lock()
		for !s.in.gone {
			s.in.cond.Wait()
		}
		s.in.mu.Unlock()
		for b.lists(s) {
			runtime.Gosched() // no sleep: a bubble's clock stops before its last goroutine
		}
	}()
	t.Cleanup(func() { c.Close() })
	return f
}

// lists tells whether the session on a connection is on the server's books.
func (b *ftpBox) lists(c net.Conn) bool {
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	for _, s := range b.srv.sessions {
		if s.bare == c {
			return true
		}
	}
	return false
}

// serveReal opens real listeners on loopback, control first, and returns their
// addresses. config has a [listen] part only if it wants others than one for control.
func (b *ftpBox) serveReal(t testing.TB) []net.Addr {
	t.Helper()
	*b.srv.ports = b.real
	if err := b.srv.open(false); err != nil {
		t.Fatal(err)
	}
	b.srv.serve()
	t.Cleanup(func() { b.srv.shutdown(nil) })
	var addrs []net.Addr
	for _, k := range b.srv.sockets {
		addrs = append(addrs, k.addr())
	}
	return addrs
}

// realListen is the configuration for serveReal.
const realListen = "limits.data_timeout = \"15s\"\nserver.drain = \"5s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [] }\n"

// dialReal connects to one of them.
func (b *ftpBox) dialReal(t testing.TB, addr net.Addr) *ftpClient {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	host, _, _ := net.SplitHostPort(addr.String())
	return &ftpClient{t: t, box: b, host: host, bare: c, conn: c, r: bufio.NewReader(c)}
}

// replyTime is how long a reply may take; failed logins are held back for seconds.
const replyTime = time.Minute

func (f *ftpClient) fatalf(format string, args ...any) {
	f.t.Helper()
	f.t.Fatalf(f.where+format, args...)
}

func (f *ftpClient) send(text string) {
	f.t.Helper()
	f.conn.SetWriteDeadline(time.Now().Add(replyTime))
	if _, err := io.WriteString(f.conn, text); err != nil {
		f.fatalf("send %.80q: %v", text, err)
	}
}

func (f *ftpClient) line(within time.Duration) (string, error) {
	f.conn.SetReadDeadline(time.Now().Add(within))
	line, err := f.r.ReadString('\n')
	if err == nil && !strings.HasSuffix(line, "\r\n") {
		err = errors.New("a line without CR LF")
	}
	return strings.TrimSuffix(line, "\r\n"), err
}

var passiveReply = regexp.MustCompile(`^22[79] .*?(?:\d+,){4}(\d+),(\d+)\)$|^229 .*\(\|\|\|(\d+)\|\)$`)

// want reads one line for each pattern and compares; * stands for anything.
func (f *ftpClient) want(patterns ...string) string {
	f.t.Helper()
	var line string
	for _, p := range patterns {
		var err error
		if line, err = f.line(replyTime); err != nil {
			f.fatalf("want %q: %v (read %q)", p, err, line)
		}
		if !wildcard(p, line) {
			f.fatalf("got  %q\nwant %q", line, p)
		}
		if m := passiveReply.FindStringSubmatch(line); m != nil {
			if m[3] != "" {
				n, _ := strconv.Atoi(m[3])
				f.port = uint16(n)
			} else {
				hi, _ := strconv.Atoi(m[1])
				lo, _ := strconv.Atoi(m[2])
				f.port = uint16(hi<<8 | lo)
			}
		}
	}
	return line
}

// cmd sends one line and compares what comes back.
func (f *ftpClient) cmd(line string, patterns ...string) string {
	f.t.Helper()
	f.send(line + "\r\n")
	return f.want(patterns...)
}

// reply reads one whole reply of any number of lines.
func (f *ftpClient) reply() (code int, text string) {
	f.t.Helper()
	var all []string
	for {
		line, err := f.line(replyTime)
		if err != nil {
			f.fatalf("reply: %v after %q", err, all)
		}
		all = append(all, line)
		if len(all) == 1 && len(line) >= 4 && line[3] == ' ' || len(all) > 1 && strings.HasPrefix(line, all[0][:3]+" ") {
			code, err = strconv.Atoi(line[:3])
			if err != nil {
				f.fatalf("reply %q has no code", line)
			}
			return code, strings.Join(all, "\n")
		}
		if len(line) < 4 {
			f.fatalf("reply line %q is too short", line)
		}
	}
}

// quiet fails if anything is there to be read. In a bubble the wait lasts exactly until
// the server has nothing left to do.
func (f *ftpClient) quiet() {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := f.r.Peek(1); err == nil {
		line, _ := f.line(time.Millisecond)
		f.fatalf("unexpected reply %q", line)
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		f.fatalf("unexpected end: %v", err)
	}
}

// closed reads the end of the connection.
func (f *ftpClient) closed() {
	f.t.Helper()
	if line, err := f.line(replyTime); err != io.EOF {
		f.fatalf("want the end of the connection, got %q, %v", line, err)
	}
}

func (f *ftpClient) login() *ftpClient {
	f.t.Helper()
	f.want("220 *")
	f.cmd("USER ann", "331 *")
	f.cmd("PASS secret", "230 *")
	return f
}

// clientTLS is a configuration that takes any certificate, like most FTP clients.
func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "box", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
}

func (f *ftpClient) startTLS(cfg *tls.Config) {
	f.t.Helper()
	c := tls.Client(f.bare, cfg)
	c.SetDeadline(time.Now().Add(replyTime))
	if err := c.Handshake(); err != nil {
		f.fatalf("TLS: %v", err)
	}
	c.SetDeadline(time.Time{})
	f.conn, f.r = c, bufio.NewReader(c)
}

// data opens the data connection that the last 227 or 229 told of.
func (f *ftpClient) data() *memConn {
	f.t.Helper()
	c, err := f.box.net.connect(f.peer, f.port)
	if err != nil {
		f.fatalf("data connection: %v", err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// open is data for both networks, with TLS if the client has said PROT P.
func (f *ftpClient) open() net.Conn {
	f.t.Helper()
	if f.host == "" {
		return f.data()
	}
	c, err := net.Dial("tcp", net.JoinHostPort(f.host, strconv.Itoa(int(f.port))))
	if err != nil {
		f.fatalf("data connection: %v", err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// store uploads content by EPSV and STOR, or another verb, and returns the last reply.
func (f *ftpClient) store(command, content string) string {
	f.t.Helper()
	f.cmd("EPSV", "229 *")
	d := f.open()
	f.cmd(command, "150 *")
	if f.private != nil {
		d = tls.Client(d, f.private)
	}
	d.SetDeadline(time.Now().Add(replyTime))
	if _, err := io.WriteString(d, content); err != nil {
		f.fatalf("data: %v", err)
	}
	if err := d.Close(); err != nil {
		f.fatalf("data: %v", err)
	}
	return f.want("*")
}

// fetch downloads by EPSV and the command, which must succeed.
func (f *ftpClient) fetch(command string) string {
	f.t.Helper()
	f.cmd("EPSV", "229 *")
	d := f.open()
	f.cmd(command, "150 *")
	if f.private != nil {
		d = tls.Client(d, f.private)
	}
	d.SetDeadline(time.Now().Add(replyTime))
	got, err := io.ReadAll(d)
	if err != nil {
		f.fatalf("%s: %v", command, err)
	}
	d.Close()
	f.want("226 *")
	return string(got)
}

// wildcard matches a whole string against a pattern in which * is anything.
func wildcard(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}

// --- transcripts ---

// A transcript of testdata/ftp is what an RFC prints, plus data, time and the disk:
//
//	# comment
//	config: limits.idle = "10m"     a line of berth.toml
//	user: permissions = ["read"]    a line of users.d/ann.toml
//	peer: 192.0.2.7                 where the client is; 127.0.0.1 by default
//	local: 192.0.2.1                where the server is
//	file NAME = CONTENT             before the first S>: makes it; after: compares
//	dir NAME                        the same for a directory
//	nofile NAME
//	file NAME size N
//	login                           greeting, USER ann, PASS secret
//	S> 220 box*                     the next line from the server; * is anything
//	C> NOOP                         a line to the server, with CR LF
//	C- NOOP\r\n                     bytes as they are
//	C1 NOOP                         a line, byte by byte
//	C+ NOOP                         a line that goes out in one segment with the next C
//	tls                             the client's TLS handshake, on the control connection
//	D connect [ADDRESS]             to the port of the last 227 or 229; S> 150 and data do it by themselves
//	D listen PORT                   for PORT and EPRT; the next D accepts
//	D> CONTENT                      writes, and closes
//	D>+ CONTENT                     writes
//	D< CONTENT                      reads to the end, compares, and closes
//	D<* PATTERN                     the same with wildcards; a line end is \r\n
//	D close, D reset, D eof, D refused
//	wait 15m                        time passes
//	quiet                           nothing has come (also checked before each C and at the end)
//	closed                          the server has hung up
//	close                           the client hangs up
//	log PATTERN, nolog PATTERN      a line of the log matches, or none does
//
// CONTENT is text with Go's escapes, or @random:SIZE, or @fill:SIZE (x's).
type transcript struct {
	name         string
	config, user string
	peer, local  netip.Addr
	steps        []transcriptStep
}

type transcriptStep struct {
	n          int // line number
	verb, text string
}

func readTranscript(t testing.TB, name string) *transcript {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	tr := &transcript{name: filepath.Base(name), peer: testPeer, local: testLocal}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "", "#":
		case "config:":
			tr.config += rest + "\n"
		case "user:":
			tr.user += rest + "\n"
		case "peer:":
			tr.peer = netip.MustParseAddr(rest)
		case "local:":
			tr.local = netip.MustParseAddr(rest)
		default:
			tr.steps = append(tr.steps, transcriptStep{i + 1, verb, rest})
		}
	}
	return tr
}

// unescape reads Go's escapes, so that a transcript can hold any byte.
func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	return strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
}

func transcriptContent(s string) (string, error) {
	kind, size, ok := strings.Cut(s, ":")
	if !ok || !strings.HasPrefix(s, "@") {
		return unescape(s)
	}
	var n byteSize
	if err := n.UnmarshalText([]byte(size)); err != nil {
		return "", err
	}
	switch kind {
	case "@fill":
		return strings.Repeat("x", int(n)), nil
	case "@random":
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{1}).Read(b)
		return string(b), nil
	}
	return "", fmt.Errorf("unknown content %q", s)
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/ftp/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		tr := readTranscript(t, file)
		t.Run(strings.TrimSuffix(tr.name, ".txt"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tr.play(t) })
		})
	}
}

func (tr *transcript) play(t *testing.T) {
	b := newFTPBox(t, tr.config, tr.user)
	var c *ftpClient
	var d *memConn
	var ln net.Listener
	segment := ""
	ended := false
	for _, st := range tr.steps {
		where := fmt.Sprintf("%s:%d: ", tr.name, st.n)
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s%v", where, err)
			}
		}
		begun := c != nil
		if !begun && !slices.Contains([]string{"file", "dir", "nofile"}, st.verb) {
			c = b.dialFrom(t, tr.peer, tr.local, "control")
		}
		if c != nil {
			c.where = where
		}
		data := func() *memConn {
			t.Helper()
			if d != nil {
				d.SetDeadline(time.Now().Add(replyTime))
				return d
			}
			if ln != nil {
				a, err := ln.Accept()
				check(err)
				ln.Close()
				d, ln = a.(*memConn), nil
			} else {
				d = c.data()
			}
			d.SetDeadline(time.Now().Add(replyTime))
			return d
		}
		if strings.HasPrefix(st.verb, "C") && segment == "" && !ended {
			c.quiet()
		}
		if begun && (strings.HasSuffix(st.verb, "file") || strings.HasSuffix(st.verb, "log") || st.verb == "dir") {
			synctest.Wait() // for a session that ends without a reply
		}
		switch st.verb {
		case "login":
			c.login()
		case "S>":
			text, err := unescape(st.text)
			check(err)
			if strings.HasPrefix(text, "150") && d == nil && ln == nil {
				data() // as clients do it, who wait for 150 on both connections
			}
			c.want(text)
		case "C>", "C+", "C-", "C1":
			text, err := unescape(st.text)
			check(err)
			if st.verb != "C-" {
				text += "\r\n"
			}
			segment += text
			switch st.verb {
			case "C+":
				continue
			case "C1":
				for i := range len(segment) {
					c.send(segment[i : i+1])
					synctest.Wait()
				}
			default:
				c.send(segment)
			}
			segment = ""
		case "tls":
			c.startTLS(clientTLS())
		case "quiet":
			c.quiet()
		case "closed":
			c.closed()
			ended = true
		case "close":
			c.bare.Close()
			ended = true
		case "wait":
			pause, err := time.ParseDuration(st.text)
			check(err)
			time.Sleep(pause) // of the bubble's time
		case "D":
			what, arg, _ := strings.Cut(st.text, " ")
			switch what {
			case "connect":
				from := tr.peer
				if arg != "" {
					from = netip.MustParseAddr(arg)
				}
				var err error
				d, err = b.net.connect(from, c.port)
				check(err)
			case "refused":
				_, err := b.net.connect(tr.peer, c.port)
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatalf("%sthe passive port is open: %v", where, err)
				}
			case "listen":
				port, err := strconv.ParseUint(arg, 10, 16)
				check(err)
				ln, err = b.net.listen(netip.AddrPortFrom(tr.peer, uint16(port)))
				check(err)
			case "close":
				data().Close()
				d = nil
			case "reset":
				data().shut(true)
				d = nil
			case "eof":
				if n, err := data().Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Fatalf("%sthe data connection has %d bytes, %v; want its end", where, n, err)
				}
				d = nil
			default:
				t.Fatalf("%sunknown D %q", where, what)
			}
		case "D>", "D>+":
			text, err := transcriptContent(st.text)
			check(err)
			_, err = io.WriteString(data(), text)
			check(err)
			if st.verb == "D>" {
				d.Close()
				d = nil
			}
		case "D<", "D<*":
			want, err := transcriptContent(st.text)
			check(err)
			got, err := io.ReadAll(data())
			check(err)
			d.Close()
			d = nil
			if st.verb == "D<*" && !wildcard(want, string(got)) || st.verb == "D<" && want != string(got) {
				t.Fatalf("%sdata\ngot  %.300q\nwant %.300q", where, got, want)
			}
		case "file":
			name, rest, isContent := strings.Cut(st.text, " = ")
			if !isContent {
				var size string
				name, size, _ = strings.Cut(st.text, " size ")
				info, err := os.Lstat(filepath.Join(b.home, name))
				check(err)
				if strconv.FormatInt(info.Size(), 10) != size {
					t.Fatalf("%s%q has %d bytes; want %s", where, name, info.Size(), size)
				}
				continue
			}
			name, err := unescape(name)
			check(err)
			content, err := transcriptContent(rest)
			check(err)
			if !begun {
				b.put(t, name, content)
				continue
			}
			got, err := os.ReadFile(filepath.Join(b.home, name))
			check(err)
			if string(got) != content {
				t.Fatalf("%s%q holds %.300q; want %.300q", where, name, got, content)
			}
		case "dir":
			name, err := unescape(st.text)
			check(err)
			if !begun {
				check(os.MkdirAll(filepath.Join(b.home, name), 0o755))
				continue
			}
			if info, err := os.Lstat(filepath.Join(b.home, name)); err != nil || !info.IsDir() {
				t.Fatalf("%s%q is no directory: %v", where, name, err)
			}
		case "nofile":
			if _, err := os.Lstat(filepath.Join(b.home, st.text)); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("%s%q is there: %v", where, st.text, err)
			}
		case "log", "nolog":
			pattern, err := unescape(st.text)
			check(err)
			found := slices.ContainsFunc(strings.Split(b.log.String(), "\n"), func(l string) bool { return wildcard(pattern, l) })
			if found != (st.verb == "log") {
				t.Fatalf("%sthe log has a line %q: %v\n%s", where, st.text, found, b.log)
			}
		default:
			t.Fatalf("%sunknown step %q", where, st.verb)
		}
	}
	if !ended {
		c.where = tr.name + ": at the end: "
		c.quiet()
		c.bare.Close()
	}
	<-c.over
}

// --- the command table ---

func TestCommandTable(t *testing.T) {
	seen := map[string]bool{}
	for i := range commands {
		c := &commands[i]
		if seen[c.verb] {
			t.Errorf("%s is in the table twice", c.verb)
		}
		seen[c.verb] = true
		if commandIndex[c.verb] != c {
			t.Errorf("%s is not found by its name", c.verb)
		}
		if c.verb != upperASCII(c.verb) || len(c.verb) < 3 || len(c.verb) > 4 && c.verb[0] != 'X' {
			t.Errorf("%q is no FTP verb: three or four capitals, or X and a digest", c.verb)
		}
		checkCommandRow(t, c.verb, c)
	}
	for i := range siteCommands {
		c := &siteCommands[i]
		if siteIndex[c.verb] != c {
			t.Errorf("SITE %s is not found by its name", c.verb)
		}
		if c.run == nil || c.feat != nil || c.data {
			t.Errorf("SITE %s: a SITE command runs, is not in FEAT and has no data connection", c.verb)
		}
		checkCommandRow(t, "SITE "+c.verb, c)
	}
	for old, verb := range map[string]string{"XPWD": "PWD", "XCWD": "CWD", "XMKD": "MKD", "XRMD": "RMD", "XCUP": "CDUP"} {
		if c := commandIndex[old]; c == nil || c.verb != verb { // RFC 1123 section 4.1.3.1
			t.Errorf("%s is not %s", old, verb)
		}
	}
	for verb, c := range commandIndex {
		if !seen[c.verb] {
			t.Errorf("%s leads to %s, which is not in the table", verb, c.verb)
		}
	}
}

func checkCommandRow(t *testing.T, name string, c *command) {
	t.Helper()
	if c.run == nil {
		if c.feat != nil || c.login || c.perm != 0 {
			t.Errorf("%s does nothing and yet has rules", name)
		}
		return
	}
	if c.help == "" || strings.HasSuffix(c.help, ".") || c.help[0] >= 'A' && c.help[0] <= 'Z' {
		t.Errorf("%s: help %q is no lower-case phrase without a period", name, c.help)
	}
	if c.arg == argRequired && c.syntax == "" {
		t.Errorf("%s wants an argument and does not say which", name)
	}
	if c.arg == argNone && c.syntax != "" {
		t.Errorf("%s takes no argument and has a syntax", name)
	}
	if (c.perm != 0 || c.data) && !c.login {
		t.Errorf("%s needs a permission or data, and no login", name)
	}
}

func TestHelpAndFeatComeFromTheTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "", "")
		c := b.dial(t).login()
		c.send("HELP\r\n")
		_, text := c.reply()
		lines := strings.Split(text, "\n")
		var got, want []string
		for _, l := range lines[1 : len(lines)-1] {
			got = append(got, strings.Fields(l)...)
		}
		for i := range commands {
			if commands[i].run != nil {
				want = append(want, commands[i].verb)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("HELP lists\n%q\nthe table has\n%q", got, want)
		}
		for i := range commands {
			row := &commands[i]
			if row.run == nil {
				c.cmd(row.verb, "502 "+row.verb+" *")
				continue
			}
			if row.verb != "SITE" {
				c.cmd("HELP "+strings.ToLower(row.verb), strings.TrimRight("214 "+row.verb+" "+row.syntax, " ")+": "+row.help+".")
			}
		}
		c.send("FEAT\r\n")
		_, text = c.reply()
		lines = strings.Split(text, "\n")
		for _, l := range lines[1 : len(lines)-1] {
			// RFC 2389 section 3.2: exactly one space, then the feature.
			if len(l) < 2 || l[0] != ' ' || l[1] == ' ' {
				t.Errorf("FEAT line %q", l)
			}
		}
		c.cmd("QUIT", "221 *")
		c.closed()
	})
}

// matrixRow is how to make a verb succeed for a user with exactly its permissions.
type matrixRow struct {
	arg  string // "" for none
	want string // the first reply of the command
}

// matrixRows: the names a, b and d are a file, a file and an empty directory. A verb of
// the table that is missing here fails the matrix.
var matrixRows = map[string]matrixRow{
	"USER": {"ann", "331 *"}, "PASS": {"x", "202 *"}, "ACCT": {"", "202 *"}, "REIN": {"", "220 *"}, "QUIT": {"", "221 *"},
	"AUTH": {"TLS", "234 *"}, "PBSZ": {"0", "503 *"}, "PROT": {"P", "503 *"}, "CCC": {"", "534 *"},
	"FEAT": {"", "211-*"}, "OPTS": {"UTF8 ON", "200 *"}, "CLNT": {"x", "200 *"}, "HOST": {"box", "503 *"}, "LANG": {"", "504 *"},
	"SYST": {"", "215 *"}, "FRAM": {"1", "200 *"}, "HELP": {"NOOP", "214 *"}, "NOOP": {"", "200 *"},
	"TYPE": {"I", "200 *"}, "STRU": {"F", "200 *"}, "MODE": {"S", "200 *"}, "PASV": {"", "227 *"}, "EPSV": {"", "229 *"},
	"PORT": {"127,0,0,1,156,64", "200 *"}, "EPRT": {"|1|127.0.0.1|40000|", "200 *"},
	"REST": {"1", "350 *"}, "RANG": {"0 1", "350 *"}, "ALLO": {"1", "200 *"},
	"RETR": {"a", "150 *"}, "STOR": {"new", "150 *"}, "APPE": {"a", "150 *"}, "STOU": {"", "150 *"}, "ABOR": {"", "226 *"},
	"LIST": {"", "150 *"}, "NLST": {"", "150 *"}, "MLSD": {"", "150 *"}, "MLST": {"a", "250-*"}, "STAT": {"", "211-*"},
	"PWD": {"", "257 *"}, "CWD": {"d", "250 *"}, "CDUP": {"", "250 *"}, "MKD": {"new", "257 *"}, "RMD": {"d", "250 *"}, "DELE": {"a", "250 *"},
	"RNFR": {"a", "350 *"}, "RNTO": {"c", "250 *"}, "SIZE": {"a", "213 *"}, "MDTM": {"a", "213 *"},
	"MFMT": {"20010203040506 a", "213 *"}, "MFF": {"UNIX.mode=0600; a", "213 *"}, "AVBL": {"", "213 *"},
	"HASH": {"a", "213 *"}, "XSHA512": {"a", "250 *"}, "XSHA256": {"a", "250 *"}, "XSHA1": {"a", "250 *"}, "XMD5": {"a", "250 *"}, "XCRC": {"a", "250 *"},
	"SITE":      {"HELP", "214-*"},
	"SITE HELP": {"", "214-*"}, "SITE CHMOD": {"600 a", "200 *"}, "SITE UTIME": {"20010203040506 a", "200 *"},
	"SITE QUOTA": {"", "211-*"}, "SITE WHO": {"", "211-*"}, "SITE EXEC": {"uptime", "550 This account has no command *"}, // TestCommands has those who have
	"SITE SAY": {"hi", "200 *"}, "SITE SCAN": {"ann", "550 Only root *"}, // TestUserScan has the operator
	"SITE UMASK": {"022", "504 *"}, // TestEachQuirkActsOnlyWhereItIsSet has who may
}

// TestPermissionMatrix runs every row of the real tables as nobody, as a user without
// the row's permissions, with exactly these, and with all. What is refused must leave
// the disk as it was.
func TestPermissionMatrix(t *testing.T) {
	type row struct {
		name string
		c    *command
		matrixRow
	}
	var rows []row
	add := func(prefix string, table []command) {
		for i := range table {
			c := &table[i]
			if c.run == nil {
				continue
			}
			m, ok := matrixRows[prefix+c.verb]
			if !ok {
				t.Errorf("%s%s is new: give matrixRows an argument with which it succeeds", prefix, c.verb)
			}
			rows = append(rows, row{prefix + c.verb, c, m})
		}
	}
	add("", commands)
	add("SITE ", siteCommands)
	// Where the right depends on the argument and the handler has the rule.
	rows = append(rows,
		row{"STAT", &command{login: true, perm: permList}, matrixRow{"/", "212-*"}},
		row{"MDTM", &command{login: true, perm: permWrite}, matrixRow{"20010203040506 a", "213 *"}})

	for _, r := range rows {
		t.Run(r.name+"_"+r.arg, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { r.c.playMatrix(t, r.name, r.matrixRow) })
		})
	}
}

func (c *command) playMatrix(t *testing.T, name string, m matrixRow) {
	b := newFTPBox(t, "", "")
	words := func(p permission) string {
		var quoted []string
		for _, n := range p.names() {
			quoted = append(quoted, strconv.Quote(n))
		}
		return "permissions = [" + strings.Join(quoted, ", ") + "]\n"
	}
	who := map[string]permission{"without": permAll &^ c.perm, "exact": c.perm, "all": permAll}
	line := name
	if m.arg != "" {
		line += " " + m.arg
	}
	for _, as := range []string{"nobody", "without", "exact", "all"} {
		home := filepath.Join(b.dir, "home", as)
		for _, d := range []string{home, filepath.Join(home, "d")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range []string{"a", "b"} {
			if err := os.WriteFile(filepath.Join(home, f), []byte("content of "+f), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		f := b.dial(t)
		f.where = as + ": " + line + ": "
		f.want("220 *")
		before := ""
		refused := as == "nobody" && c.login || as == "without" && c.perm != 0
		if as != "nobody" {
			b.user(t, as, fmt.Sprintf("home = %q\n", home)+words(who[as]))
			f.cmd("USER "+as, "331 *")
			f.cmd("PASS secret", "230 *")
		}
		before = snapshot(t, b.dir)
		switch {
		case as == "nobody" && c.login:
			f.cmd(line, "530 *")
		case refused:
			if name == "RNTO" {
				f.cmd("RNFR a", "550 *")
			}
			f.cmd(line, "550 Permission denied: this account may not "+c.perm.String()+".")
		case as == "nobody":
			f.send(line + "\r\n")
			if code, text := f.reply(); code == codeNotLoggedIn || code == codeUnknown || code == codeNotDone {
				f.fatalf("%s", text)
			}
		default:
			f.succeed(c, name, line, m.want)
		}
		if after := snapshot(t, b.dir); refused && before != after {
			f.fatalf("refused, and changed the disk from\n%s\nto\n%s", before, after)
		}
		f.bare.Close()
		<-f.over
	}
}

// succeed runs a command that must work, with what comes before and after it.
func (f *ftpClient) succeed(c *command, name, line, want string) {
	f.t.Helper()
	if name == "RNTO" {
		f.cmd("RNFR a", "350 *")
	}
	if !c.data {
		f.cmd(line, want)
		return
	}
	f.cmd(line, "425 *")
	f.cmd("EPSV", "229 *")
	d := f.data()
	f.cmd(line, want)
	if c.perm == permWrite {
		io.WriteString(d, "data")
		d.Close()
	} else if _, err := io.ReadAll(d); err != nil {
		f.fatalf("data: %v", err)
	}
	f.want("226 *")
}

// --- fuzzing ---

type fuzzLine struct {
	text   string
	status lineStatus
}

// readLines feeds data in pieces of at most chunk bytes.
func readLines(data []byte, chunk int) (lines []fuzzLine) {
	var l lineReader
	for len(data) > 0 {
		n := copy(l.space(), data[:min(chunk, len(data))])
		l.w += n
		data = data[n:]
		for {
			line, st := l.next()
			if st == lineNone {
				break
			}
			lines = append(lines, fuzzLine{string(line), st})
			if st == lineEndless {
				return lines
			}
		}
	}
	return lines
}

func FuzzLineReader(f *testing.F) {
	for _, s := range transcriptInputs(f) {
		f.Add([]byte(s), uint8(1))
	}
	for _, s := range []string{"\xff\xf4\xff\xf2ABOR\r\n", "\xff\xf4\xf2ABOR\r\n", "\xff\xf4\xffABOR\r\n", "\xff\xfa\x18\x01\xff\xf0NOOP\n",
		"\xff\xfb\x01USER\xff\xff x\n", "a\r\r\n", "a\r\x00b\rc\n", "\xff", "\xff\xfa\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Add(bytes.Repeat([]byte("x"), maxLine), uint8(7))
	f.Add(append(bytes.Repeat([]byte("x"), maxLine+1), "\r\nNOOP\r\n"...), uint8(200))
	f.Add(append(bytes.Repeat([]byte("\xff\xff"), maxLine), "\r\nNOOP\r\n"...), uint8(5))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		whole := readLines(data, len(data))
		for _, l := range whole {
			if len(l.text) > maxLine {
				t.Fatalf("a line of %d bytes", len(l.text))
			}
			if strings.Contains(l.text, "\n") {
				t.Fatalf("LF in line %q", l.text)
			}
			if l.text != "" && l.text[0] == telnetDM {
				t.Fatalf("data mark in front of %q", l.text)
			}
		}
		if parts := readLines(data, int(chunk)+1); !slices.Equal(parts, whole) {
			t.Fatalf("in pieces of %d\n%q\nas a whole\n%q", int(chunk)+1, parts, whole)
		}
	})
}

// transcriptInputs is what the clients of testdata/ftp send: the seeds.
func transcriptInputs(t testing.TB) (inputs []string) {
	files, err := filepath.Glob("testdata/ftp/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		s := ""
		for _, st := range readTranscript(t, file).steps {
			if strings.HasPrefix(st.verb, "C") && len(st.verb) == 2 {
				text, err := unescape(st.text)
				if err != nil {
					t.Fatal(err)
				}
				if s += text; st.verb != "C-" {
					s += "\r\n"
				}
			}
		}
		inputs = append(inputs, s)
	}
	return inputs
}

// FuzzSession sends anything to a session that is logged in, with data connections that
// open at once and carry a few bytes. It must end when the client does, without a
// panic, and touch nothing outside the home.
func FuzzSession(f *testing.F) {
	for _, s := range transcriptInputs(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			b := newFTPBox(t, "transfer.mode_z = true\ntransfer.ascii = true\nlimits.data_timeout = \"2s\"\n", "")
			b.put(t, "a", "0123456789")
			b.put(t, "d/inner", "x")
			b.net.auto = func(c *memConn) {
				io.WriteString(c, "some data\r\n")
				c.CloseWrite()
				go io.Copy(io.Discard, c)
			}
			outside := func() string {
				return snapshot(t, filepath.Join(b.dir, "state")) + snapshot(t, filepath.Join(b.dir, "users.d"))
			}
			before := outside()
			c := b.dial(t).login()
			go func() {
				c.conn.SetWriteDeadline(time.Now().Add(time.Hour))
				c.conn.Write(data) // fails if the session ends before its input does
				c.bare.(*memConn).CloseWrite()
			}()
			c.conn.SetReadDeadline(time.Now().Add(24 * time.Hour))
			all, err := io.ReadAll(c.r)
			if err != nil {
				t.Fatalf("the session does not end: %v", err)
			}
			c.bare.Close()
			<-c.over
			if n := b.metric(t, "berth_panics_total"); n != 0 {
				t.Fatalf("panic:\n%s", b.log)
			}
			if after := outside(); after != before {
				t.Fatalf("outside the home\n%s\nbecame\n%s", before, after)
			}
			for _, line := range strings.SplitAfter(string(all), "\r\n") {
				if line != "" && (!strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\n\x00")) {
					t.Fatalf("reply line %q", line)
				}
			}
			entries, err := os.ReadDir(b.dir)
			if err != nil || len(entries) != 4 { // berth.toml, home, state, users.d
				t.Fatalf("beside the home: %v, %v", entries, err)
			}
		})
	})
}

// --- benchmarks ---

func newBenchSession(b *testing.B) *session {
	box := newFTPBox(b, "", "")
	box.srv.level.Set(slog.LevelInfo)
	_, conn := memPipe(netip.AddrPortFrom(testPeer, 40000), netip.AddrPortFrom(testLocal, 21))
	return &session{srv: box.srv, conn: conn, bare: conn, proto: "ftp", started: time.Now(), peer: testPeer, local: testLocal, cwd: "/"}
}

// BenchmarkLine is one command from its bytes to its queued reply.
func BenchmarkLine(b *testing.B) {
	s := newBenchSession(b)
	l := new(lineReader)
	b.ReportAllocs()
	for b.Loop() {
		l.w += copy(l.space(), "NOOP\r\n")
		line, st := l.next()
		if st != lineRead {
			b.Fatal(st)
		}
		if err := s.handle(string(line)); err != nil {
			b.Fatal(err)
		}
		s.out = s.out[:0]
	}
}

// BenchmarkReply is the queueing of one reply line.
func BenchmarkReply(b *testing.B) {
	s := newBenchSession(b)
	b.ReportAllocs()
	for b.Loop() {
		s.reply(codePath, `"/some/directory" is the current directory.`)
		s.out = s.out[:0]
	}
}

// metric adds up the samples of a metric whose labels hold all the given values.
func (b *ftpBox) metric(t testing.TB, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := b.srv.metrics.gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
