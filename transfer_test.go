// These tests move bytes over real dataPeer sockets between real files, as
// sendfile and splice do not exist anywhere else; pipes in a synctest bubble
// stand in only where time itself is looked at. A transfer is judged by what
// is on the disk, or in the client's hands, afterwards.

package main

import (
	"bytes"
	"compress/zlib"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

var (
	dataPeer    = netip.MustParseAddr("127.0.0.1")
	dataThief   = netip.MustParseAddr("127.0.0.2")
	anyDataPort = portRange{}
)

// fromDataPeer is mayBringData of a session of dataPeer.
func fromDataPeer(c net.Conn) bool { return (&session{peer: dataPeer}).mayBringData(c) }

// testTimeout is for transfers that are expected to move; a broken one hangs
// no longer than this.
const testTimeout = time.Minute

// moveSizes are around every buffer's edge.
var moveSizes = []int{0, 1, 1460, 65535, 65536, 65537, copyBuffer - 1, copyBuffer, copyBuffer + 1, 1 << 20, 10 << 20}

// testBytes is n bytes that repeat nowhere within reach.
func testBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

// noLeaks fails if goroutines or descriptors of the test are left when it ends.
func noLeaks(t *testing.T) {
	t.Helper()
	before, files := runtime.NumGoroutine(), openDescriptors()
	t.Cleanup(func() {
		for end := time.Now().Add(testTimeout); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(end) {
				buf := make([]byte, 64<<10)
				t.Errorf("%d goroutines at the end, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
		}
		now := openDescriptors()
		for fd, what := range files {
			if now[fd] == what {
				delete(now, fd)
			}
		}
		for fd, what := range now {
			if !strings.HasPrefix(what, "pipe:") && !strings.HasPrefix(what, "anon_inode:") { // of splice and of the poller, which are kept
				t.Errorf("descriptor %s is left open: %s", fd, what)
			}
		}
	})
}

// openDescriptors is what the process has open: number to target.
func openDescriptors() map[string]string {
	open := map[string]string{}
	names, _ := os.ReadDir("/proc/self/fd")
	for _, n := range names {
		if what, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			open[n.Name()] = what
		}
	}
	return open
}

// openTransfer opens a data connection in passive mode and returns the
// client's end too.
func openTransfer(t *testing.T, x *transfer) *net.TCPConn {
	t.Helper()
	p := newDataPorts(new(quickPoll))
	ln, port, err := p.passive(dataPeer, anyDataPort)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(dataPeer, port)))
	if err != nil {
		ln.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	arm := dataArm{ln: ln}
	if err := x.open(p, &arm, dataPeer, fromDataPeer); err != nil {
		t.Fatal(err)
	}
	if arm.armed() {
		t.Error("the listener is still armed after the connection")
	}
	t.Cleanup(func() { x.close(nil) })
	return c
}

// settleTransfer makes the server's end a connection of package net, as it is
// when the server connected.
func settleTransfer(t *testing.T, x *transfer) *net.TCPConn {
	t.Helper()
	tcp, err := x.bareTCP()
	if err != nil || tcp == nil {
		t.Fatalf("bareTCP = %v, %v", tcp, err)
	}
	return tcp
}

// pipeTransfer is a data connection within a synctest bubble.
func pipeTransfer(x *transfer) net.Conn {
	server, client := net.Pipe()
	x.conn = server
	x.watch(func(t time.Time) error {
		server.SetDeadline(t) // which a pipe, unlike a socket, refuses when the far end is closed
		return nil
	})
	return client
}

// testTLS is what both ends of a private data connection use.
func testTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	cert, key, err := selfSigned("box")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}, &tls.Config{InsecureSkipVerify: true}
}

// waitUntil waits for something that other goroutines bring about.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// fire makes whatever the transfer waits for time out now, as the clock would.
func (x *transfer) fire() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unblock(time.Unix(1, 0))
}

// --- opening ---

func TestPassivePorts(t *testing.T) {
	var asked []uint16
	p := &dataPorts{listen: func(a netip.AddrPort) (net.Listener, error) {
		asked = append(asked, a.Port())
		return nil, &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}}
	first := map[uint16]bool{}
	for range 50 {
		asked = nil
		if _, _, err := p.passive(dataPeer, portRange{50000, 50999}); err != errNoPort {
			t.Fatalf("passive with no port free: %v; want errNoPort", err)
		}
		first[asked[0]] = true
		if len(asked) != passiveTries {
			t.Errorf("%d ports tried; want %d", len(asked), passiveTries)
		}
		slices.Sort(asked)
		if asked[0] < 50000 || asked[len(asked)-1] > 50999 || len(slices.Compact(asked)) != passiveTries {
			t.Errorf("ports %v: outside of the range, or one tried twice", asked)
		}
	}
	if len(first) < 25 {
		t.Errorf("50 searches began at %d different ports; want them random", len(first))
	}
	asked = nil
	p.passive(dataPeer, portRange{65530, 65535})
	if slices.Sort(asked); !slices.Equal(asked, []uint16{65530, 65531, 65532, 65533, 65534, 65535}) {
		t.Errorf("a range at the end tried %v", asked)
	}
	asked = nil
	p.passive(dataPeer, anyDataPort)
	if !slices.Equal(asked, []uint16{0}) {
		t.Errorf("any port tried %v; want the kernel to choose", asked)
	}
	tries := 0
	p.listen = func(netip.AddrPort) (net.Listener, error) { tries++; return nil, syscall.EACCES }
	if _, _, err := p.passive(dataPeer, portRange{50000, 50999}); !errors.Is(err, syscall.EACCES) || tries != 1 {
		t.Errorf("a refusal: %v after %d tries; want EACCES after one", err, tries)
	}
}

func TestPassiveOneFreePort(t *testing.T) {
	p := newDataPorts(new(quickPoll))
	ln, port, err := p.passive(dataPeer, anyDataPort)
	if err != nil || port == 0 {
		t.Fatalf("port %d, %v", port, err)
	}
	if _, _, err := p.passive(dataPeer, portRange{port, port}); err != errNoPort {
		t.Errorf("a taken port: %v; want errNoPort", err)
	}
	ln.Close()
	again, got, err := p.passive(dataPeer, portRange{port, port})
	if err != nil || got != port {
		t.Fatalf("a port just given back: %d, %v", got, err)
	}
	again.Close()
}

// TestTransferPeerCheck: whoever is first at a passive port, only the control
// connection's peer is served.
func TestTransferPeerCheck(t *testing.T) {
	noLeaks(t)
	p := newDataPorts(new(quickPoll))
	ln, port, err := p.passive(dataPeer, anyDataPort)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(from netip.Addr) net.Conn {
		c, err := net.DialTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(dataPeer, port)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	thief, thief2, friend := dial(dataThief), dial(dataThief), dial(dataPeer)
	x := newTransfer(testTimeout, nil)
	if err := x.open(p, &dataArm{ln: ln}, dataPeer, fromDataPeer); err != nil {
		t.Fatal(err)
	}
	defer x.close(nil)
	if x.conn.RemoteAddr().String() != friend.LocalAddr().String() {
		t.Errorf("served %v; want %v", x.conn.RemoteAddr(), friend.LocalAddr())
	}
	for _, c := range []net.Conn{thief, thief2} {
		c.SetDeadline(time.Now().Add(testTimeout))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the dataThief's connection is still open: %d, %v", n, err)
		}
	}
	if _, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Error("the port still listens after the connection was made")
	}
}

// TestTransferStrangersOnly: strangers do not make the wait longer.
func TestTransferStrangersOnly(t *testing.T) {
	noLeaks(t)
	p := newDataPorts(new(quickPoll))
	ln, port, err := p.passive(dataPeer, anyDataPort)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(dataThief, 0)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(dataPeer, port)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x := newTransfer(20*time.Millisecond, nil)
	if err := x.open(p, &dataArm{ln: ln}, dataPeer, fromDataPeer); !errors.Is(err, errNoData) {
		t.Errorf("open = %v; want errNoData", err)
	}
}

func TestTransferActive(t *testing.T) {
	noLeaks(t)
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	target := ln.Addr().(*net.TCPAddr).AddrPort()
	x := newTransfer(testTimeout, nil)
	if err := x.open(newDataPorts(new(quickPoll)), &dataArm{target: target}, dataThief, fromDataPeer); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := addrOf(c.RemoteAddr()); got != dataThief {
		t.Errorf("connected from %v; want the control connection's own %v", got, dataThief)
	}
	x.close(nil)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after close the client reads %d, %v; want EOF", n, err)
	}
	c.Close()
	ln.Close()
	y := newTransfer(testTimeout, nil)
	if err := y.open(newDataPorts(new(quickPoll)), &dataArm{target: target}, dataPeer, fromDataPeer); !errors.Is(err, errNoData) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v; want errNoData and the reason", err)
	}
	y.close(errNoData) // of no effect
}

func TestAddrOf(t *testing.T) {
	for in, want := range map[string]string{"1.2.3.4": "1.2.3.4", "::ffff:1.2.3.4": "1.2.3.4", "fe80::1%eth0": "fe80::1", "2001:db8::1": "2001:db8::1"} {
		if got := addrOf(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(in), 1))); got.String() != want {
			t.Errorf("addrOf(%s) = %v; want %s", in, got, want)
		}
	}
	if got := addrOf(&net.UnixAddr{Name: "x"}); got.IsValid() {
		t.Errorf("addrOf of a unix socket = %v", got)
	}
}

var portTests = []struct {
	in, want string // "" : refused
}{
	{"127,0,0,1,4,1", "127.0.0.1:1025"},
	{"10,0,0,255,255,255", "10.0.0.255:65535"},
	{" 1,2,3,4,5,6 ", "1.2.3.4:1286"},
	{"001,002,003,004,005,006", "1.2.3.4:1286"},
	{"0,0,0,0,0,0", "0.0.0.0:0"},
	{"", ""},
	{"1,2,3,4,5", ""},
	{"1,2,3,4,5,6,7", ""},
	{"1,2,3,4,5,", ""},
	{",,,,,", ""},
	{"1,2,3,256,5,6", ""},
	{"1,2,3,4,5,256", ""},
	{"1,2,3,4,5,0006", ""},
	{"1,2,3,-4,5,6", ""},
	{"1,2,3,+4,5,6", ""},
	{"1,2,3, 4,5,6", ""},
	{"1.2.3.4,5,6", ""},
	{"0x7f,0,0,1,4,1", ""},
	{"a,b,c,d,e,f", ""},
	{"1,2,3,4,5,6\x00", ""},
	{"1,2,3,4,5,99999999999999999999", ""},
}

func TestParsePORT(t *testing.T) {
	for _, tt := range portTests {
		got, ok := parsePORT(tt.in)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("parsePORT(%q) = %v, %t; want %q", tt.in, got, ok, tt.want)
		}
	}
}

var eprtTests = []struct {
	in, want string
	family   bool // false: neither 1 nor 2
}{
	{"|1|132.235.1.2|6275|", "132.235.1.2:6275", true},
	{"|2|1080::8:800:200C:417A|5282|", "[1080::8:800:200c:417a]:5282", true},
	{" |1|1.2.3.4|1025| ", "1.2.3.4:1025", true},
	{"!1!1.2.3.4!1025!", "1.2.3.4:1025", true},
	{"/2/::1/65535/", "[::1]:65535", true},
	{"|3|1.2.3.4|1025|", "", false},
	{"|0|1.2.3.4|1025|", "", false},
	{"|99|x|y|", "", false},
	{"||1.2.3.4|1025|", "", true},
	{"|x|1.2.3.4|1025|", "", true},
	{"|1|::1|1025|", "", true},
	{"|2|1.2.3.4|1025|", "", true},
	{"|2|fe80::1%eth0|1025|", "", true},
	{"|1|1.2.3.4|65536|", "", true},
	{"|1|1.2.3.4|-1|", "", true},
	{"|1|1.2.3.4||", "", true},
	{"|1|1.2.3.4|1025", "", true},
	{"|1|1.2.3.4|1025|x", "", true},
	{"|1|1.2.3.4|1025||", "", true},
	{"|1|01.2.3.4|1025|", "", true},
	{"|1|localhost|1025|", "", true},
	{"|1|1.2.3.4|99999999999999999999|", "", true},
	{"", "", true},
	{"|", "", true},
	{"\x01\x31\x011.2.3.4\x011025\x01", "", true},
	{"\xff1\xff1.2.3.4\xff1025\xff", "", true},
}

func TestParseEPRT(t *testing.T) {
	for _, tt := range eprtTests {
		got, ok, family := parseEPRT(tt.in)
		if ok != (tt.want != "") || family != tt.family || ok && got.String() != tt.want {
			t.Errorf("parseEPRT(%q) = %v, %t, %t; want %q, %t", tt.in, got, ok, family, tt.want, tt.family)
		}
	}
}

// FuzzPORT: what is taken is an IPv4 address, and means what RFC 959 writes.
func FuzzPORT(f *testing.F) {
	for _, tt := range portTests {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		to, ok := parsePORT(in)
		if !ok {
			return
		}
		if !to.IsValid() || !to.Addr().Is4() {
			t.Fatalf("parsePORT(%q) = %v", in, to)
		}
		a := to.Addr().As4()
		text := fmt.Sprintf("%d,%d,%d,%d,%d,%d", a[0], a[1], a[2], a[3], to.Port()>>8, to.Port()&255)
		if again, ok := parsePORT(text); !ok || again != to {
			t.Fatalf("parsePORT(%q) = %v, which reads back as %v, %t", in, to, again, ok)
		}
	})
}

// FuzzEPRT: what is taken has the family it says and no zone, and reads back.
func FuzzEPRT(f *testing.F) {
	for _, tt := range eprtTests {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		to, ok, family := parseEPRT(in)
		if !ok {
			return
		}
		if !family || !to.IsValid() || to.Addr().Zone() != "" {
			t.Fatalf("parseEPRT(%q) = %v, family %t", in, to, family)
		}
		number := 2
		if to.Addr().Is4() {
			number = 1
		}
		text := fmt.Sprintf("|%d|%s|%d|", number, to.Addr(), to.Port())
		if again, ok, _ := parseEPRT(text); !ok || again != to {
			t.Fatalf("parseEPRT(%q) = %v, which reads back as %v, %t", in, to, again, ok)
		}
	})
}

// --- moving files ---

// A moveWay is one of the paths that bytes can take through transfer.go.
type moveWay struct {
	name  string
	tls   bool
	net   bool  // package net's connection, as in active mode
	sum   bool  // an upload is hashed on its way
	full  bool  // no splice pipe is to be had
	limit int64 // bytes a second
}

var moveWays = []moveWay{{name: "plain"}, {name: "net", net: true}, {name: "hashed", sum: true}, {name: "no pipe", full: true}, {name: "limited", limit: 1 << 40}, {name: "tls", tls: true}}

func TestReceive(t *testing.T) {
	noLeaks(t)
	serverTLS, clientTLS := testTLS(t)
	for _, way := range moveWays {
		for _, size := range moveSizes {
			t.Run(fmt.Sprintf("%s/%d", way.name, size), func(t *testing.T) {
				home := t.TempDir()
				j := enterTestJail(t, haveOpenat2(), home, nil)
				content := testBytes(size)
				x := newTransfer(testTimeout, newLimiter(way.limit))
				var counted int64
				x.count = func(n int64) { counted += n }
				tcp := openTransfer(t, x)
				if way.net {
					settleTransfer(t, x)
				}
				sent := make(chan error, 1)
				go func() {
					var c net.Conn = tcp
					if way.tls {
						c = tls.Client(tcp, clientTLS)
					}
					_, err := c.Write(content)
					if way.tls && size == 0 {
						err = c.(*tls.Conn).Handshake()
					}
					c.Close()
					sent <- err
				}()
				if way.tls {
					if _, err := x.startTLS(serverTLS); err != nil {
						t.Fatal(err)
					}
				}
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					t.Fatal(err)
				}
				var sum hash.Hash
				if way.sum {
					sum = sha256.New()
				}
				var sp splices
				if way.full {
					sp.n.Store(maxSplices)
				}
				notified, err := x.receive(u, coding{}, sum, &sp)
				if err != nil || !notified {
					t.Fatalf("receive = %t, %v", notified, err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				if err := u.commit(); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(home + "/f")
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes stored, not those that were sent (%v)", len(got), err)
				}
				if x.moved.Load() != int64(size) || counted != int64(size) || u.size != int64(size) {
					t.Errorf("moved %d, counted %d, upload %d; want %d", x.moved.Load(), counted, u.size, size)
				}
				if want := sha256.Sum256(content); way.sum && !bytes.Equal(sum.Sum(nil), want[:]) {
					t.Error("the digest is not the content's")
				}
				if n := sp.n.Load(); n != 0 && !way.full {
					t.Errorf("%d splices are still taken", n)
				}
			})
		}
	}
}

func TestSend(t *testing.T) {
	noLeaks(t)
	serverTLS, clientTLS := testTLS(t)
	for _, way := range []moveWay{{name: "plain"}, {name: "net", net: true}, {name: "limited", limit: 1 << 40}, {name: "tls", tls: true}} {
		for _, size := range moveSizes {
			for _, offset := range []int{0, 1, size / 2, size} {
				if offset == 1 && size < 4 || size >= 1<<20 && offset != size/2 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d from %d", way.name, size, offset), func(t *testing.T) {
					content := testBytes(size)
					f := testFile(t, content)
					x := newTransfer(testTimeout, newLimiter(way.limit))
					tcp := openTransfer(t, x)
					if way.net {
						settleTransfer(t, x)
					}
					type result struct {
						got []byte
						err error
					}
					client := make(chan result, 1)
					go func() {
						var c net.Conn = tcp
						if way.tls {
							c = tls.Client(tcp, clientTLS)
						}
						got, err := io.ReadAll(c)
						client <- result{got, err}
					}()
					if way.tls {
						if _, err := x.startTLS(serverTLS); err != nil {
							t.Fatal(err)
						}
					}
					err := x.send(f, int64(offset), int64(size-offset), coding{})
					x.close(err)
					r := <-client
					if err != nil || r.err != nil || !bytes.Equal(r.got, content[offset:]) {
						t.Errorf("send %v; the client has %d bytes, %v; want %d", err, len(r.got), r.err, size-offset)
					}
					if n := x.moved.Load(); n != int64(size-offset) {
						t.Errorf("moved %d; want %d", n, size-offset)
					}
				})
			}
		}
	}
}

// testFile is an open file with content.
func testFile(t testing.TB, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSendShrinking: a file that became shorter is an error, one that grew is
// sent as it was.
func TestSendShrinking(t *testing.T) {
	for _, c := range []coding{{}, {ascii: true}} {
		for _, tt := range []struct {
			size, told int64
			want       error
		}{{100, 200, errChanged}, {0, 1, errChanged}, {200, 100, nil}} {
			x := newTransfer(testTimeout, nil)
			client := openTransfer(t, x)
			f := testFile(t, bytes.Repeat([]byte{'a'}, int(tt.size)))
			if err := x.send(f, 0, tt.told, c); err != tt.want {
				t.Errorf("%+v: %d bytes announced as %d: %v; want %v", c, tt.size, tt.told, err, tt.want)
			}
			x.close(tt.want)
			got, err := io.ReadAll(client)
			if tt.want == nil && (err != nil || len(got) != int(tt.told)) {
				t.Errorf("%+v: the client has %d bytes, %v; want %d", c, len(got), err, tt.told)
			}
			if tt.want != nil && err == nil {
				t.Errorf("%+v: the client takes %d bytes for the whole file", c, len(got))
			}
		}
	}
}

// TestSendReplaced: a download reads on in the file that it began with, whatever becomes
// of its name.
func TestSendReplaced(t *testing.T) {
	for what, change := range map[string]func(j *jail) error{
		"replaced": func(j *jail) error { return storeText(j, "/f", uploadStore, 0, "other") },
		"appended": func(j *jail) error { return storeText(j, "/f", uploadAppend, -1, "more") },
		"renamed":  func(j *jail) error { return j.rename("/f", "/g", true) },
		"deleted":  func(j *jail) error { return j.remove("/f") },
	} {
		t.Run(what, func(t *testing.T) {
			home := t.TempDir()
			content := testBytes(4 << 20)
			if err := os.WriteFile(home+"/f", content, 0o600); err != nil {
				t.Fatal(err)
			}
			j := enterTestJail(t, haveOpenat2(), home, nil)
			f, e, err := j.openFile("/f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			x := newTransfer(testTimeout, nil)
			client := openTransfer(t, x)
			done := make(chan error, 1)
			go func() {
				err := x.send(f, 0, e.size, coding{})
				x.close(err)
				done <- err
			}()
			got := make([]byte, 1000)
			if _, err := io.ReadFull(client, got); err != nil {
				t.Fatal(err)
			}
			if err := change(j); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(client)
			if got = append(got, rest...); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, not the old version's (%v)", len(got), err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReceiveReset: a reset is never the end of a file. What arrived before is
// a beginning of what was sent.
func TestReceiveReset(t *testing.T) {
	noLeaks(t)
	for _, way := range []moveWay{{name: "plain"}, {name: "net", net: true}, {name: "hashed", sum: true}, {name: "no pipe", full: true}} {
		for _, size := range []int{0, 1, 1000, copyBuffer, copyBuffer + 1, 300_000, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", way.name, size), func(t *testing.T) {
				home := t.TempDir()
				j := enterTestJail(t, haveOpenat2(), home, nil)
				content := testBytes(size)
				x := newTransfer(testTimeout, nil)
				client := openTransfer(t, x)
				if way.net {
					settleTransfer(t, x)
				}
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					client.Write(content)
					client.SetLinger(0)
					client.Close()
				}()
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					t.Fatal(err)
				}
				var sum hash.Hash
				if way.sum {
					sum = sha256.New()
				}
				var sp splices
				if way.full {
					sp.n.Store(maxSplices)
				}
				_, err = x.receive(u, coding{}, sum, &sp)
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("receive = %v; want a reset", err)
				}
				u.interrupt()
				<-sent
				got, err := os.ReadFile(home + "/f")
				if errors.Is(err, os.ErrNotExist) && u.size == 0 {
					err = nil
				}
				if err != nil || int64(len(got)) != u.size || !bytes.HasPrefix(content, got) {
					t.Errorf("%d bytes kept, %d accounted for, %v", len(got), u.size, err)
				}
			})
		}
	}
}

// TestReceiveTLSEnds: over TLS the end is told from a cut by close_notify.
func TestReceiveTLSEnds(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for _, tt := range []struct {
		name     string
		end      func(raw *net.TCPConn, c *tls.Conn)
		notified bool
		wantErr  bool
	}{
		{name: "close_notify", end: func(_ *net.TCPConn, c *tls.Conn) { c.Close() }, notified: true},
		{name: "fin only", end: func(raw *net.TCPConn, _ *tls.Conn) { raw.Close() }},
		{name: "cut record", end: func(raw *net.TCPConn, _ *tls.Conn) { raw.Write([]byte{23, 3, 3, 1, 0, 1, 2, 3}); raw.Close() }, wantErr: true},
		{name: "garbage", end: func(raw *net.TCPConn, _ *tls.Conn) {
			raw.Write([]byte("STOR this is not TLS at all"))
			raw.Close()
		}, wantErr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noLeaks(t)
			home := t.TempDir()
			j := enterTestJail(t, haveOpenat2(), home, nil)
			x := newTransfer(testTimeout, nil)
			raw := openTransfer(t, x)
			done := make(chan struct{})
			go func() {
				defer close(done)
				c := tls.Client(raw, clientTLS)
				c.Write([]byte("content"))
				tt.end(raw, c)
			}()
			if _, err := x.startTLS(serverTLS); err != nil {
				t.Fatal(err)
			}
			u, err := j.create("/f", uploadStore, 0, true)
			if err != nil {
				t.Fatal(err)
			}
			notified, err := x.receive(u, coding{}, nil, &splices{})
			u.interrupt()
			<-done
			if notified != tt.notified || (err != nil) != tt.wantErr {
				t.Errorf("receive = %t, %v; want %t, error %t", notified, err, tt.notified, tt.wantErr)
			}
			if got, err := os.ReadFile(home + "/f"); string(got) != "content" {
				t.Errorf("%q stored, %v", got, err)
			}
		})
	}
}

// TestReceiveDiskError: what the disk says comes out, and the splice is given
// back.
func TestReceiveDiskError(t *testing.T) {
	for _, size := range []int{10, copyBuffer + 10} {
		home := t.TempDir()
		j := enterTestJail(t, haveOpenat2(), home, nil)
		x := newTransfer(testTimeout, nil)
		client := openTransfer(t, x)
		go func() {
			client.Write(testBytes(size))
			client.CloseWrite()
		}()
		u, err := j.create("/f", uploadStore, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		u.file.Close()
		u.file = full
		var sp splices
		if _, err := x.receive(u, coding{}, nil, &sp); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("receive = %v; want ENOSPC", err)
		}
		u.discard()
		if n := sp.n.Load(); n != 0 {
			t.Errorf("%d splices are still taken", n)
		}
	}
}

func TestSplicesBound(t *testing.T) {
	var sp splices
	for range maxSplices {
		if !sp.take() {
			t.Fatal("refused before the bound")
		}
	}
	if sp.take() || sp.n.Load() != maxSplices {
		t.Error("more than the bound")
	}
	sp.give()
	if !sp.take() {
		t.Error("refused after one was given back")
	}
}

// --- stalls ---

func TestStall(t *testing.T) {
	noLeaks(t)
	serverTLS, clientTLS := testTLS(t)
	const short = 30 * time.Millisecond
	t.Run("accept", func(t *testing.T) {
		p := newDataPorts(new(quickPoll))
		ln, _, err := p.passive(dataPeer, anyDataPort)
		if err != nil {
			t.Fatal(err)
		}
		if err := newTransfer(short, nil).open(p, &dataArm{ln: ln}, dataPeer, fromDataPeer); !errors.Is(err, errNoData) {
			t.Errorf("open = %v; want errNoData", err)
		}
		if _, err := ln.Accept(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the port still listens: %v", err)
		}
	})
	t.Run("handshake", func(t *testing.T) {
		x := newTransfer(short, nil)
		openTransfer(t, x)
		if _, err := x.startTLS(serverTLS); !errors.Is(err, errNoData) {
			t.Errorf("startTLS = %v; want errNoData", err)
		}
	})
	for _, way := range []moveWay{{name: "plain"}, {name: "hashed", sum: true}} {
		for _, size := range []int{0, 10, copyBuffer, copyBuffer + 10} {
			t.Run(fmt.Sprintf("receive %s/%d", way.name, size), func(t *testing.T) {
				home := t.TempDir()
				j := enterTestJail(t, haveOpenat2(), home, nil)
				x := newTransfer(short, nil)
				client := openTransfer(t, x)
				client.Write(testBytes(size))
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					t.Fatal(err)
				}
				var sum hash.Hash
				if way.sum {
					sum = sha256.New()
				}
				if _, err := x.receive(u, coding{}, sum, &splices{}); err != errStalled {
					t.Errorf("receive = %v; want errStalled", err)
				}
				u.interrupt()
				if got, _ := os.ReadFile(home + "/f"); !bytes.Equal(got, testBytes(size)) {
					t.Errorf("%d bytes kept; want all %d that arrived", len(got), size)
				}
			})
		}
	}
	for _, private := range []bool{false, true} {
		t.Run(fmt.Sprintf("send tls=%t", private), func(t *testing.T) {
			x := newTransfer(short, nil)
			client := openTransfer(t, x)
			client.SetReadBuffer(32 << 10)
			settleTransfer(t, x).SetWriteBuffer(32 << 10)
			if private {
				done := make(chan error, 1)
				go func() { done <- tls.Client(client, clientTLS).Handshake() }()
				x.timeout = testTimeout
				if _, err := x.startTLS(serverTLS); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				x.timeout = short
			}
			f := testFile(t, nil)
			if err := f.Truncate(64 << 20); err != nil { // more than the sockets hold
				t.Fatal(err)
			}
			if err := x.send(f, 0, 64<<20, coding{}); err != errStalled {
				t.Errorf("send = %v; want errStalled", err)
			}
		})
	}
}

// TestSlowUpload: a client that sends a little in every timeout goes on for
// ever. The timeouts are fired by hand, each after something has moved.
func TestSlowUpload(t *testing.T) {
	noLeaks(t)
	home := t.TempDir()
	j := enterTestJail(t, haveOpenat2(), home, nil)
	x := newTransfer(testTimeout, nil)
	client := openTransfer(t, x)
	u, err := j.create("/f", uploadStore, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := x.receive(u, coding{}, nil, &splices{})
		done <- err
	}()
	content := testBytes(copyBuffer + 5*1000)
	client.Write(content[:copyBuffer])
	at := copyBuffer
	for range 5 {
		client.Write(content[at : at+1000])
		at += 1000
		waitUntil(t, "the disk has it", func() bool {
			info, err := os.Stat(home + "/" + u.stage)
			return err == nil && info.Size() == int64(at)
		})
		waitUntil(t, "it is counted, and the deadline with it is a new one", func() bool { return x.moved.Load() == int64(at) })
	}
	client.Close()
	if err := <-done; err != nil {
		t.Fatalf("receive = %v; want the slow client served", err)
	}
	u.commit()
	if got, _ := os.ReadFile(home + "/f"); !bytes.Equal(got, content) {
		t.Errorf("%d bytes, not those that were sent", len(got))
	}
}

// TestSlowDownload is the same for a client that reads slowly.
func TestSlowDownload(t *testing.T) {
	noLeaks(t)
	x := newTransfer(testTimeout, nil)
	client := openTransfer(t, x)
	client.SetReadBuffer(32 << 10)
	settleTransfer(t, x).SetWriteBuffer(32 << 10)
	content := testBytes(20 << 20)
	f := testFile(t, content)
	done := make(chan error, 1)
	go func() {
		err := x.send(f, 0, int64(len(content)), coding{})
		x.close(err)
		done <- err
	}()
	got := make([]byte, 0, len(content))
	for range 4 {
		// More than what the sockets can hold: part of it was sent by the
		// present sendfile call.
		part := make([]byte, 4<<20)
		if _, err := io.ReadFull(client, part); err != nil {
			t.Fatal(err)
		}
		got = append(got, part...)
		before := x.moved.Load()
		x.fire()
		waitUntil(t, "the timeout has ended the sendfile", func() bool { return x.moved.Load() > before })
	}
	rest, err := io.ReadAll(client)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, not those of the file (%v)", len(got), err)
	}
	if err := <-done; err != nil {
		t.Errorf("send = %v; want the slow client served", err)
	}
}

// TestSlowCopy has real, if fake, time pass: one byte in nine tenths of the
// timeout is slow, one in eleven tenths has stalled.
func TestSlowCopy(t *testing.T) {
	for _, tt := range []struct {
		pause time.Duration
		want  error
	}{{54 * time.Second, nil}, {66 * time.Second, errStalled}} {
		synctest.Test(t, func(t *testing.T) {
			home := t.TempDir()
			j := enterTestJail(t, haveOpenat2(), home, nil)
			x := newTransfer(time.Minute, nil)
			client := pipeTransfer(x)
			var far sync.WaitGroup
			far.Go(func() {
				for range 10 {
					time.Sleep(tt.pause) // of the bubble
					client.Write([]byte{'a'})
				}
				client.Close()
			})
			u, err := j.create("/f", uploadStore, 0, true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x.receive(u, coding{}, nil, &splices{}); err != tt.want {
				t.Errorf("a byte every %v: %v; want %v", tt.pause, err, tt.want)
			}
			x.close(tt.want)
			u.interrupt()
			far.Wait()
			if got, _ := os.ReadFile(home + "/f"); len(got) != 10 && tt.want == nil {
				t.Errorf("%q stored; want ten bytes", got)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			x := newTransfer(time.Minute, nil)
			client := pipeTransfer(x)
			var far sync.WaitGroup
			far.Go(func() {
				for range 10 {
					time.Sleep(tt.pause)
					client.Read(make([]byte, 1))
				}
				io.Copy(io.Discard, client)
			})
			if err := x.send(testFile(t, testBytes(100)), 0, 100, coding{}); err != tt.want {
				t.Errorf("a byte read every %v: %v; want %v", tt.pause, err, tt.want)
			}
			x.close(tt.want)
			far.Wait()
		})
	}
}

// --- cancelling ---

func TestCancel(t *testing.T) {
	noLeaks(t)
	serverTLS, _ := testTLS(t)
	stop := errAborted
	// run starts a phase, cancels it, and wants the reason back.
	run := func(name string, phase func(t *testing.T, x *transfer) func() error) {
		t.Run(name, func(t *testing.T) {
			x := newTransfer(testTimeout, nil)
			wait := phase(t, x)
			done := make(chan error, 1)
			go func() { done <- wait() }()
			runtime.Gosched() // either order is right
			x.cancel(stop)
			x.cancel(errControlGone) // too late
			if err := <-done; !errors.Is(err, stop) || errors.Is(err, errControlGone) {
				t.Errorf("ended with %v; want %v", err, stop)
			}
			if err := x.cancelled(); err != stop {
				t.Errorf("cancelled = %v; want %v", err, stop)
			}
			x.close(stop)
		})
	}
	run("accept", func(t *testing.T, x *transfer) func() error {
		p := newDataPorts(new(quickPoll))
		ln, _, err := p.passive(dataPeer, anyDataPort)
		if err != nil {
			t.Fatal(err)
		}
		return func() error { return x.open(p, &dataArm{ln: ln}, dataPeer, fromDataPeer) }
	})
	run("handshake", func(t *testing.T, x *transfer) func() error {
		openTransfer(t, x)
		return func() error { _, err := x.startTLS(serverTLS); return err }
	})
	receive := func(size int, sum hash.Hash, limit int64) func(t *testing.T, x *transfer) func() error {
		return func(t *testing.T, x *transfer) func() error {
			home := t.TempDir()
			j := enterTestJail(t, haveOpenat2(), home, nil)
			x.limit = newLimiter(limit)
			client := openTransfer(t, x)
			content := testBytes(size)
			client.Write(content)
			return func() error {
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					return err
				}
				_, err = x.receive(u, coding{}, sum, &splices{})
				u.interrupt()
				got, rerr := os.ReadFile(home + "/f")
				if u.size == 0 && errors.Is(rerr, os.ErrNotExist) {
					rerr = nil
				}
				if rerr != nil || int64(len(got)) != u.size || !bytes.HasPrefix(content, got) {
					t.Errorf("%d bytes kept, %d accounted for, %v", len(got), u.size, rerr)
				}
				return err
			}
		}
	}
	run("receive, first read", receive(10, nil, 0))
	run("receive, splice", receive(copyBuffer+10, nil, 0))
	run("receive, copy", receive(copyBuffer+10, sha256.New(), 0))
	run("receive, waiting for the limit", receive(10_000, nil, 1))
	run("send", func(t *testing.T, x *transfer) func() error {
		openTransfer(t, x)
		f := testFile(t, nil)
		f.Truncate(64 << 20)
		return func() error { return x.send(f, 0, 64<<20, coding{}) }
	})
	run("send, waiting for the limit", func(t *testing.T, x *transfer) func() error {
		x.limit = newLimiter(1)
		openTransfer(t, x)
		f := testFile(t, testBytes(10_000))
		return func() error { return x.send(f, 0, 10_000, coding{}) }
	})
}

// TestCancelAnywhere cancels uploads at whatever moment they are in. They end
// with the reason or were done before, and no byte is lost or made up.
func TestCancelAnywhere(t *testing.T) {
	noLeaks(t)
	home := t.TempDir()
	j := enterTestJail(t, haveOpenat2(), home, nil)
	content := testBytes(200_000)
	for i := range 100 {
		x := newTransfer(testTimeout, nil)
		client := openTransfer(t, x)
		var wg sync.WaitGroup
		wg.Go(func() {
			client.Write(content)
			client.Close()
		})
		wg.Go(func() {
			for range i * 3 {
				runtime.Gosched()
			}
			x.cancel(errAborted)
		})
		p := fmt.Sprintf("/f%d", i)
		u, err := j.create(p, uploadStore, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		_, err = x.receive(u, coding{}, nil, &splices{})
		if err != nil && err != errAborted {
			t.Errorf("receive = %v; want nil or errAborted", err)
		}
		if err == nil && u.size != int64(len(content)) {
			t.Errorf("%d bytes received without an error", u.size)
		}
		u.interrupt()
		x.close(err)
		wg.Wait()
		got, _ := os.ReadFile(home + p)
		if int64(len(got)) != u.size || !bytes.HasPrefix(content, got) {
			t.Errorf("%d bytes kept, %d accounted for", len(got), u.size)
		}
		os.Remove(home + p)
	}
}

// TestCloseAfterFailure: a client that does not read replies sees a reset, not
// the end of a file.
func TestCloseAfterFailure(t *testing.T) {
	for _, tt := range []struct{ why, want error }{{nil, io.EOF}, {errAborted, io.EOF}, {errStalled, syscall.ECONNRESET}, {errChanged, syscall.ECONNRESET}} {
		x := newTransfer(testTimeout, nil)
		client := openTransfer(t, x)
		x.close(tt.why)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, tt.want) {
			t.Errorf("close(%v): the client reads %v; want %v", tt.why, err, tt.want)
		}
	}
}

// --- rates ---

func TestRateLimit(t *testing.T) {
	const perSecond, size = 10_000, 100_000
	check := func(t *testing.T, what string, took time.Duration) {
		// The first burst is free.
		if want := 10 * time.Second; took < want-time.Second || took > want+time.Second {
			t.Errorf("%s of %d bytes at %d a second took %v; want about %v", what, size, perSecond, took, want)
		}
	}
	t.Run("receive", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			home := t.TempDir()
			j := enterTestJail(t, haveOpenat2(), home, nil)
			x := newTransfer(time.Minute, newLimiter(perSecond))
			client := pipeTransfer(x)
			go func() {
				client.Write(testBytes(size))
				client.Close()
			}()
			u, err := j.create("/f", uploadStore, 0, true)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if _, err := x.receive(u, coding{}, nil, &splices{}); err != nil {
				t.Error(err)
			}
			check(t, "receive", time.Since(began))
			u.commit()
			if got, _ := os.ReadFile(home + "/f"); !bytes.Equal(got, testBytes(size)) {
				t.Errorf("%d bytes, not those that were sent", len(got))
			}
			x.close(nil)
		})
	})
	t.Run("send", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := newTransfer(time.Minute, newLimiter(perSecond))
			client := pipeTransfer(x)
			got := make(chan []byte, 1)
			go func() {
				b, _ := io.ReadAll(client)
				got <- b
			}()
			began := time.Now()
			if err := x.send(testFile(t, testBytes(size)), 0, size, coding{}); err != nil {
				t.Error(err)
			}
			check(t, "send", time.Since(began))
			x.close(nil)
			if b := <-got; !bytes.Equal(b, testBytes(size)) {
				t.Errorf("%d bytes, not those of the file", len(b))
			}
			client.Close()
		})
	})
	t.Run("two sessions of a user", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			limit := newLimiter(perSecond)
			began := time.Now()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					x := newTransfer(time.Minute, limit)
					client := pipeTransfer(x)
					go io.Copy(io.Discard, client)
					if err := x.send(testFile(t, testBytes(size/2)), 0, size/2, coding{}); err != nil {
						t.Error(err)
					}
					x.close(nil)
				})
			}
			wg.Wait()
			check(t, "two sends", time.Since(began))
		})
	})
	t.Run("charged is what moved", func(t *testing.T) {
		const size = 10 << 20
		for _, net := range []bool{false, true} {
			// So slow that what was taken from the burst stays taken.
			x := newTransfer(testTimeout, rate.NewLimiter(1e-9, 2*size))
			client := openTransfer(t, x)
			if net {
				settleTransfer(t, x)
			}
			go io.Copy(io.Discard, client)
			if err := x.send(testFile(t, testBytes(size)), 0, size, coding{}); err != nil {
				t.Fatal(err)
			}
			if left := x.limit.Tokens(); int64(left) != size {
				t.Errorf("net=%t: %d bytes sent were charged as %.0f", net, size, 2*size-left)
			}
		}
	})
	if newLimiter(0) != nil || newLimiter(-1) != nil {
		t.Error("no rate is a limit")
	}
	if b := newLimiter(1).Burst(); b < 512 {
		t.Errorf("a burst of %d bytes: too little for a copy", b)
	}
}

// --- coding ---

// crlfText and lfText are what the conversions come to, in the plainest way.
func crlfText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] == '\n' && (i == 0 || s[i-1] != '\r') {
			b.WriteByte('\r')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func lfText(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }

func TestASCII(t *testing.T) {
	tests := []struct{ in, crlf, lf string }{
		{"", "", ""},
		{"a", "a", "a"},
		{"a\nb\n", "a\r\nb\r\n", "a\nb\n"},
		{"a\r\nb", "a\r\nb", "a\nb"},
		{"\n\n", "\r\n\r\n", "\n\n"},
		{"\r\r\n", "\r\r\n", "\r\n"},
		{"\r", "\r", "\r"},
		{"a\rb", "a\rb", "a\rb"},
		{"\r\n\r", "\r\n\r", "\n\r"},
		{"\n\r", "\r\n\r", "\n\r"},
		{"\x00\xff\n", "\x00\xff\r\n", "\x00\xff\n"},
	}
	for _, tt := range tests {
		for chunk := 1; chunk <= len(tt.in)+1; chunk++ {
			if got := writeInChunks(tt.in, chunk); got != tt.crlf {
				t.Errorf("crlfWriter(%q) by %d = %q; want %q", tt.in, chunk, got, tt.crlf)
			}
		}
		for size := 2; size <= len(tt.in)+4; size++ {
			if got := readInChunks(t, tt.in, size); got != tt.lf {
				t.Errorf("lfReader(%q) by %d = %q; want %q", tt.in, size, got, tt.lf)
			}
		}
	}
	if _, err := (&lfReader{r: strings.NewReader("ab")}).Read(make([]byte, 1)); err != io.ErrShortBuffer {
		t.Errorf("a read of one byte: %v; want ErrShortBuffer", err)
	}
}

func writeInChunks(s string, chunk int) string {
	var out bytes.Buffer
	w := &crlfWriter{w: &out}
	for part := range slices.Chunk([]byte(s), chunk) {
		if n, err := w.Write(part); n != len(part) || err != nil {
			panic(fmt.Sprint(n, err))
		}
	}
	return out.String()
}

func readInChunks(t *testing.T, s string, size int) string {
	t.Helper()
	r := &lfReader{r: strings.NewReader(s)}
	var out []byte
	buf := make([]byte, size)
	for {
		n, err := r.Read(buf)
		out = append(out, buf[:n]...)
		if err == io.EOF {
			return string(out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzASCII: the conversions do not depend on where chunks end, and a text
// that went out and came back is the same.
func FuzzASCII(f *testing.F) {
	f.Add("a\r\nb\nc\rd\r\r\n", uint8(3), uint8(4))
	f.Add("\r", uint8(1), uint8(2))
	f.Add("\n\n\r\n", uint8(2), uint8(3))
	f.Fuzz(func(t *testing.T, s string, chunk, size uint8) {
		out := writeInChunks(s, int(chunk)+1)
		if want := crlfText(s); out != want {
			t.Fatalf("crlfWriter(%q) by %d = %q; want %q", s, int(chunk)+1, out, want)
		}
		if got, want := readInChunks(t, s, int(size)+2), lfText(s); got != want {
			t.Fatalf("lfReader(%q) by %d = %q; want %q", s, int(size)+2, got, want)
		}
		if got := readInChunks(t, out, int(size)+2); got != lfText(s) {
			t.Fatalf("%q went out and came back as %q", s, got)
		}
	})
}

// TestCodings sends and receives with every combination of TYPE A and MODE Z.
func TestCodings(t *testing.T) {
	noLeaks(t)
	texts := map[string]string{"empty": "", "line": "one\n", "lines": strings.Repeat("a line of text\n", 20_000), "binary": string(testBytes(300_000)), "zeros": strings.Repeat("\x00", 1<<20)}
	for _, c := range []coding{{ascii: true}, {z: true}, {ascii: true, z: true}} {
		for name, text := range texts {
			if c.ascii && name == "binary" {
				continue // TYPE A is not for those
			}
			t.Run(fmt.Sprintf("ascii=%t z=%t %s", c.ascii, c.z, name), func(t *testing.T) {
				wire := text
				if c.ascii {
					wire = crlfText(text)
				}
				x := newTransfer(testTimeout, nil)
				client := openTransfer(t, x)
				got := make(chan string, 1)
				go func() {
					var r io.Reader = client
					if c.z {
						z, err := zlib.NewReader(r)
						if err != nil {
							got <- err.Error()
							return
						}
						r = z
					}
					b, err := io.ReadAll(r)
					if err != nil {
						b = append(b, err.Error()...)
					}
					got <- string(b)
				}()
				err := x.send(testFile(t, []byte(text)), 0, int64(len(text)), c)
				x.close(err)
				if s := <-got; err != nil || s != wire {
					t.Errorf("sent %d bytes, %v; want %d", len(s), err, len(wire))
				}

				home := t.TempDir()
				j := enterTestJail(t, haveOpenat2(), home, nil)
				x = newTransfer(testTimeout, nil)
				client = openTransfer(t, x)
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer client.Close()
					if !c.z {
						io.WriteString(client, wire)
						return
					}
					z := zlib.NewWriter(client)
					io.WriteString(z, wire)
					z.Close()
				}()
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := x.receive(u, c, nil, &splices{}); err != nil {
					t.Errorf("receive = %v", err)
				}
				u.commit()
				<-done
				if b, _ := os.ReadFile(home + "/f"); string(b) != text {
					t.Errorf("%d bytes stored; want %d", len(b), len(text))
				}
			})
		}
	}
}

// TestModeZCut: a compressed stream that ends early, or is none, is an error.
func TestModeZCut(t *testing.T) {
	var whole bytes.Buffer
	z := zlib.NewWriter(&whole)
	z.Write(testBytes(10_000))
	z.Close()
	damaged := bytes.Clone(whole.Bytes())
	damaged[len(damaged)-1] ^= 1 // the checksum
	for name, wire := range map[string][]byte{"nothing": nil, "header": whole.Bytes()[:2], "half": whole.Bytes()[:5000],
		"checksum missing": whole.Bytes()[:whole.Len()-4], "checksum wrong": damaged, "not compressed": []byte("hello, this is plain text")} {
		home := t.TempDir()
		j := enterTestJail(t, haveOpenat2(), home, nil)
		x := newTransfer(testTimeout, nil)
		client := openTransfer(t, x)
		client.Write(wire)
		client.Close()
		u, err := j.create("/f", uploadStore, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.receive(u, coding{z: true}, nil, &splices{}); err == nil {
			t.Errorf("%s: taken for a whole file of %d bytes", name, u.size)
		}
		u.discard()
	}
}

func TestBombGuard(t *testing.T) {
	in := &countReader{r: iotest.DataErrReader(strings.NewReader("")), n: 1000}
	g := &bombGuard{r: zeroReader{}, in: in}
	var total int64
	buf := make([]byte, copyBuffer)
	for {
		n, err := g.Read(buf)
		total += int64(n)
		if err == errBomb {
			break
		}
		if err != nil || total > bombSlack+bombRatio*1000+copyBuffer {
			t.Fatalf("%d bytes from 1000, %v", total, err)
		}
	}
	if total < bombSlack+bombRatio*1000 {
		t.Errorf("stopped at %d bytes already", total)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }

// --- digests ---

func TestDigest(t *testing.T) {
	content := testBytes(2*copyBuffer + 17)
	f := testFile(t, content)
	goOn := func() error { return nil }
	size := int64(len(content))
	for _, r := range [][2]int64{{0, size}, {0, 0}, {size, size}, {1, 2}, {copyBuffer - 1, copyBuffer + 1}, {17, size - 17}} {
		h := sha256.New()
		if err := digest(h, f, r[0], r[1], goOn); err != nil {
			t.Errorf("digest(%v): %v", r, err)
		}
		if want := sha256.Sum256(content[r[0]:r[1]]); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("digest(%v) is not that of these bytes", r)
		}
	}
	if err := digest(sha256.New(), f, 0, size+1, goOn); err != errChanged {
		t.Errorf("beyond the end: %v; want errChanged", err)
	}
	looks := 0
	err := digest(sha256.New(), f, 0, size, func() error {
		if looks++; looks == 2 {
			return errControlGone
		}
		return nil
	})
	if err != errControlGone || looks != 2 {
		t.Errorf("cancelled: %v after %d looks", err, looks)
	}
	known := map[string]string{ // of "123456789"
		"CRC32": "cbf43926", "MD5": "25f9e794323b453885f5181f1b624d0b", "SHA-1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
		"SHA-256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
		"SHA-512": "d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274ad27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85"}
	short := testFile(t, []byte("123456789"))
	for _, d := range digests {
		h := d.make()
		if err := digest(h, short, 0, 9, goOn); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != known[d.name] {
			t.Errorf("%s = %s; want %s", d.name, got, known[d.name])
		}
	}
}

// --- listings ---

// listNow is when the listings below are made.
var listNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func listTime(y int, m time.Month, d, hh, mm, ss int) int64 {
	return time.Date(y, m, d, hh, mm, ss, 0, time.UTC).Unix()
}

func TestAppendLIST(t *testing.T) {
	today := listTime(2026, 3, 4, 1, 2, 3)
	const reg, dir = unix.S_IFREG, unix.S_IFDIR
	tests := []struct {
		e    entry
		want string
	}{
		// The kinds, the special bits.
		{entry{name: "f", mode: reg | 0o644, nlink: 1, size: 5, sec: today}, "-rw-r--r--   1 ann      100                 5 Mar  4 01:02 f"},
		{entry{name: "d", mode: dir | 0o755, nlink: 12, size: 4096, sec: today}, "drwxr-xr-x  12 ann      100              4096 Mar  4 01:02 d"},
		{entry{name: "l", link: "../x", mode: unix.S_IFLNK | 0o777, nlink: 1, sec: today}, "lrwxrwxrwx   1 ann      100                 0 Mar  4 01:02 l -> ../x"},
		{entry{name: "p", mode: unix.S_IFIFO | 0o600, nlink: 1, sec: today}, "prw-------   1 ann      100                 0 Mar  4 01:02 p"},
		{entry{name: "s", mode: unix.S_IFSOCK | 0o600, nlink: 1, sec: today}, "srw-------   1 ann      100                 0 Mar  4 01:02 s"},
		{entry{name: "c", mode: unix.S_IFCHR | 0o666, nlink: 1, sec: today}, "crw-rw-rw-   1 ann      100                 0 Mar  4 01:02 c"},
		{entry{name: "b", mode: unix.S_IFBLK | 0o660, nlink: 1, sec: today}, "brw-rw----   1 ann      100                 0 Mar  4 01:02 b"},
		{entry{name: "u", mode: reg | 0o6755, nlink: 1, sec: today}, "-rwsr-sr-x   1 ann      100                 0 Mar  4 01:02 u"},
		{entry{name: "U", mode: reg | 0o6644, nlink: 1, sec: today}, "-rwSr-Sr--   1 ann      100                 0 Mar  4 01:02 U"},
		{entry{name: "t", mode: dir | 0o1777, nlink: 2, sec: today}, "drwxrwxrwt   2 ann      100                 0 Mar  4 01:02 t"},
		{entry{name: "T", mode: dir | 0o1770, nlink: 2, sec: today}, "drwxrwx--T   2 ann      100                 0 Mar  4 01:02 T"},
		{entry{name: "n", mode: reg, nlink: 1, sec: today}, "----------   1 ann      100                 0 Mar  4 01:02 n"},

		// Wide columns move the rest along and never lose a digit.
		{entry{name: "f", mode: reg | 0o644, nlink: 65000, size: 1<<63 - 1, sec: today}, "-rw-r--r-- 65000 ann      100      9223372036854775807 Mar  4 01:02 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, size: 999_999_999_999, uid: 4294967294, gid: 4294967294, sec: today}, "-rw-r--r--   1 4294967294 4294967294 999999999999 Mar  4 01:02 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, size: 2_147_483_648, uid: 0, sec: today}, "-rw-r--r--   1 0        100        2147483648 Mar  4 01:02 f"},

		// Six months are 182 days back; a clock that is a little ahead is no other year.
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2025, 9, 3, 5, 7, 0)}, "-rw-r--r--   1 ann      100                 0 Sep  3 05:07 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2025, 9, 3, 5, 6, 7)}, "-rw-r--r--   1 ann      100                 0 Sep  3  2025 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2026, 3, 4, 23, 59, 59)}, "-rw-r--r--   1 ann      100                 0 Mar  4 23:59 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2026, 3, 5, 5, 5, 59)}, "-rw-r--r--   1 ann      100                 0 Mar  5 05:05 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2026, 3, 5, 5, 6, 7)}, "-rw-r--r--   1 ann      100                 0 Mar  5  2026 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(2100, 12, 31, 23, 59, 59)}, "-rw-r--r--   1 ann      100                 0 Dec 31  2100 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: 0}, "-rw-r--r--   1 ann      100                 0 Jan  1  1970 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: -1}, "-rw-r--r--   1 ann      100                 0 Dec 31  1969 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(1901, 2, 28, 0, 0, 0)}, "-rw-r--r--   1 ann      100                 0 Feb 28  1901 f"},
		{entry{name: "f", mode: reg | 0o644, nlink: 1, sec: listTime(12345, 1, 1, 0, 0, 0)}, "-rw-r--r--   1 ann      100                 0 Jan  1  9999 f"},

		// No name forges a line or drives a terminal.
		{entry{name: " a  b ", mode: reg | 0o644, nlink: 1, sec: today}, "-rw-r--r--   1 ann      100                 0 Mar  4 01:02  a  b "},
		{entry{name: "a\r\n-rw b\x1b[2J\x7f\t", mode: reg | 0o644, nlink: 1, sec: today}, "-rw-r--r--   1 ann      100                 0 Mar  4 01:02 a??-rw b?[2J??"},
		{entry{name: "l", link: "x\r\ny", mode: unix.S_IFLNK | 0o777, nlink: 1, sec: today}, "lrwxrwxrwx   1 ann      100                 0 Mar  4 01:02 l -> x??y"},
		{entry{name: "\u00fc\u4f60\xff\xfe", mode: reg | 0o644, nlink: 1, sec: today}, "-rw-r--r--   1 ann      100                 0 Mar  4 01:02 \u00fc\u4f60\xff\xfe"},
	}
	// One lister for all, as in one listing: what it remembers of the last line
	// must not show in the next. Then each on its own.
	all := &lister{now: listNow, owner: jailOwner{name: "ann", uid: 1000}}
	for _, tt := range tests {
		e := tt.e
		if e.uid == 0 && e.size != 2_147_483_648 {
			e.uid = 1000
		}
		if e.gid == 0 {
			e.gid = 100
		}
		for _, l := range []*lister{all, {now: listNow, owner: all.owner}} {
			if got := string(l.appendLIST(nil, &e)); got != tt.want+"\r\n" {
				t.Errorf("appendLIST = %q; want %q", got, tt.want+"\r\n")
			}
		}
	}
}

func TestAppendNLST(t *testing.T) {
	for in, want := range map[string]string{"a": "a\r\n", " a ": " a \r\n", "\xff": "\xff\r\n", "a\r\nb": "a??b\r\n", "\x1b": "\x1b\r\n", "-l": "-l\r\n"} {
		if got := string(appendNLST(nil, &entry{name: in})); got != want {
			t.Errorf("appendNLST(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestAppendMLSx(t *testing.T) {
	const reg, dir, link = unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK
	sec := listTime(2026, 1, 2, 3, 4, 5)
	tests := []struct {
		facts mlstFacts
		kind  string
		e     entry
		want  string
	}{
		{factsAll, "", entry{name: "f", mode: reg | 0o4640, size: 1 << 40, sec: sec, uid: 7, gid: 8, dev: 0x1f, ino: 0xabc},
			"type=file;size=1099511627776;modify=20260102030405;perm=adfrw;unique=1fgabc;UNIX.mode=0640;UNIX.owner=7;UNIX.group=8; f"},
		{factsAll, "", entry{name: "d", mode: dir | 0o755, size: 4096, sec: sec, dev: 1, ino: 2},
			"type=dir;modify=20260102030405;perm=cdeflmp;unique=1g2;UNIX.mode=0755;UNIX.owner=0;UNIX.group=0; d"},
		{factType | factSize, "", entry{name: "f", mode: reg}, "type=file;size=0; f"},
		{factType, "cdir", entry{name: ".", mode: dir}, "type=cdir; ."},
		{factType, "pdir", entry{name: "..", mode: dir}, "type=pdir; .."},
		{factType | factSize, "", entry{name: "l", mode: link, link: "a b;c\r\n", size: 4}, "type=OS.unix=slink:a?b?c??; l"},
		{factType, "", entry{name: "p", mode: unix.S_IFIFO}, "type=OS.unix=special; p"},
		{factModify, "", entry{name: "f", mode: reg, sec: -1}, "modify=19691231235959; f"},
		{factModify, "", entry{name: "f", mode: reg, sec: listTime(2100, 1, 1, 0, 0, 0)}, "modify=21000101000000; f"},
		{0, "", entry{name: " a ;=b ", mode: reg}, "  a ;=b "},
		{0, "", entry{name: "a\r\nType=dir; b", mode: reg}, " a??Type=dir; b"},
		{factMode, "", entry{name: "\xff\x1b", mode: reg | 0o007}, "UNIX.mode=0007; \xff\x1b"},
	}
	for _, tt := range tests {
		l := &lister{now: listNow, can: permAll, facts: tt.facts}
		if got := string(l.appendMLSx(nil, &tt.e, tt.kind)); got != tt.want {
			t.Errorf("appendMLSx = %q; want %q", got, tt.want)
		}
	}
}

// TestAppendPerm: the perm fact tells a user's own rights, and what the mode
// bits take away from them.
func TestAppendPerm(t *testing.T) {
	const reg, dir = unix.S_IFREG, unix.S_IFDIR
	tests := []struct {
		can  permission
		mode uint32
		want string
	}{
		{permAll, reg | 0o600, "adfrw"},
		{permRead, reg | 0o600, "r"},
		{permWrite, reg | 0o600, "aw"},
		{permDelete, reg | 0o600, "d"},
		{permRename, reg | 0o600, "f"},
		{permList, reg | 0o600, ""},
		{permMkdir, reg | 0o600, ""},
		{0, reg | 0o600, ""},
		{permAll, reg | 0o400, "dfr"},
		{permAll, reg | 0o200, "adfw"},
		{permAll, dir | 0o700, "cdeflmp"},
		{permRead, dir | 0o700, "e"},
		{permWrite, dir | 0o700, "ce"},
		{permDelete, dir | 0o700, "dep"},
		{permList, dir | 0o700, "el"},
		{permRename, dir | 0o700, "ef"},
		{permMkdir, dir | 0o700, "em"},
		{0, dir | 0o700, "e"},
		{permAll, dir | 0o500, "defl"},
	}
	for _, tt := range tests {
		l := &lister{can: tt.can}
		if got := string(l.appendPerm(nil, &entry{mode: tt.mode})); got != tt.want {
			t.Errorf("perm of %v on %o = %q; want %q", tt.can.names(), tt.mode, got, tt.want)
		}
	}
}

func TestFTPTime(t *testing.T) {
	for in, ok := range map[string]bool{
		"20260102030405": true, "20260102030405.5": true, "20260102030405.123": true, "20260102030405.123456789": true, "19691231235959": true, "20240229000000": true, "99991231235959": true,
		"": false, "2026010203040": false, "202601020304050": false, "20260102030405.": false, "20260102030405.x": false, "20260102030405,5": false,
		"20261302030405": false, "20260132030405": false, "20260229000000": false, "20260102240405": false, "20260102036005": false, "20260102030461": false,
		"2026010203040a": false, "-0260102030405": false, " 20260102030405": false, "20260102030405 ": false, "20260102030405.1234567890": false,
	} {
		tm, got := parseFTPTime(in)
		if got != ok {
			t.Errorf("parseFTPTime(%q) = %v, %t; want %t", in, tm, got, ok)
		}
		if got && tm.Location() != time.UTC {
			t.Errorf("parseFTPTime(%q) is not UTC", in)
		}
		if got && len(in) == 14 {
			if back := string(appendFTPTime(nil, tm.Unix(), 0)); back != in {
				t.Errorf("%q reads back as %q", in, back)
			}
		}
	}
	if got := string(appendFTPTime(nil, listTime(2026, 1, 2, 3, 4, 5), 7)); got != "20260102030405.007" {
		t.Errorf("milliseconds: %q", got)
	}
}

// TestWriteListing: long listings leave in several writes, the first before
// the last name is looked at.
func TestWriteListing(t *testing.T) {
	home := manyFilesDir(t)
	names := fillDir(t, home, 6000)
	j := enterTestJail(t, haveOpenat2(), home, nil)
	d, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	formatted, atFirst, writes := 0, 0, 0
	var out bytes.Buffer
	w := listWriter(func(p []byte) (int, error) {
		if writes++; writes == 1 {
			atFirst = formatted
		}
		if len(p) > listBuffer {
			t.Errorf("a write of %d bytes; the buffer has %d", len(p), listBuffer)
		}
		return out.Write(p)
	})
	before := []entry{{name: "."}, {name: ".."}}
	err = writeListing(w, d, false, before, func(b []byte, e *entry) []byte { formatted++; return appendNLST(b, e) })
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\r\n"), "\r\n")
	if lines[0] != "." || lines[1] != ".." {
		t.Errorf("begins with %q", lines[:2])
	}
	got := slices.Sorted(slices.Values(lines[2:]))
	if !slices.Equal(got, names) {
		t.Errorf("%d names listed; want %d, each once", len(got), len(names))
	}
	if writes < 2 || atFirst >= formatted {
		t.Errorf("%d writes, the first after %d of %d names", writes, atFirst, formatted)
	}
	d2, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d2.close()
	if err := writeListing(listWriter(func([]byte) (int, error) { return 0, io.ErrClosedPipe }), d2, false, nil, appendNLST); err != io.ErrClosedPipe {
		t.Errorf("a client that is gone: %v", err)
	}
}

type listWriter func([]byte) (int, error)

func (f listWriter) Write(p []byte) (int, error) { return f(p) }

func BenchmarkAppendLIST(b *testing.B) {
	l := &lister{now: listNow, owner: jailOwner{name: "ann", uid: 1000}, can: permAll, facts: factsAll}
	e := entry{name: "IMG_20260304_050607.jpg", mode: unix.S_IFREG | 0o644, nlink: 1, uid: 1000, gid: 1000, size: 3_141_592, sec: listNow.Unix(), dev: 64769, ino: 1234567}
	buf := make([]byte, 0, 512)
	for name, format := range map[string]listFormat{"LIST": l.appendLIST, "MLSD": func(b []byte, e *entry) []byte { return l.appendMLSx(b, e, "") }, "NLST": appendNLST} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e.sec++ // another minute now and then
				buf = format(buf[:0], &e)
			}
		})
	}
}

// The rate of a transfer is that of the last second or two, whoever asks and however
// often: not the average since it began, nor what once was.
func TestTransferRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTransfer(time.Minute, nil)
		want := func(low, high int64) {
			t.Helper()
			if _, r := x.speed(time.Now()); r < low || r > high {
				t.Errorf("after %v: %d bytes a second; want %d to %d", time.Since(x.started), r, low, high)
			}
		}
		move := func(perSecond int64, d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second / 10) {
				x.progress(perSecond / 10)
			}
		}
		want(0, 0)
		x.progress(1000) // a burst at once is no speed of gigabytes
		want(1000, 1000)
		move(1000, 10*time.Second)
		want(890, 1100)
		move(100000, 3*time.Second)
		want(89000, 101000) // not 24,000, the average
		move(1000, 3*time.Second)
		want(890, 1100)
		time.Sleep(rateStale + time.Second)
		want(0, 0)
		move(1000, 3*time.Second)
		want(890, 1100)
	})
}

// A step of a slow download takes about as long as who looks back, and a fast one is
// asked for in few.
func TestPaced(t *testing.T) {
	most, steps := int64(sendFirst), 0
	for ; most < sendChunk; steps++ {
		most = paced(most, time.Millisecond, sendChunk)
	}
	if steps != 5 || paced(most, time.Millisecond, sendChunk) != sendChunk || paced(most, time.Second/2, sendChunk) != sendChunk {
		t.Errorf("%d steps to %d", steps, most)
	}
	for range 10 {
		most = paced(most, 2*time.Second, sendChunk)
	}
	if most != sendLeast {
		t.Errorf("a slow one takes %d", most)
	}
}
