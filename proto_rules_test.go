package main

// The rules and faults that a text file cannot play: TLS on data connections, urgent
// data and other things only real sockets have, limits with many sessions, and bugs of
// our own. Each test is named after the rule (field.md 3b), the fault (section 9) or
// the row (section 4) it is for.

import (
	"bytes"
	"compress/zlib"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// inBox runs a test in a bubble with a server.
func inBox(t *testing.T, config, user string, test func(t *testing.T, b *ftpBox)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newFTPBox(t, config, user)) })
}

func (b *ftpBox) content(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.home, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (b *ftpBox) missing(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(b.home, name)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%q is there: %v", name, err)
	}
}

// --- lines ---

func TestRule01LongLines(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		fits := "NOOP " + strings.Repeat("x", maxLine-5)
		c.cmd(fits, "200 *")
		c.cmd(fits+"x", "500 Line too long*")
		c.quiet()
		// What is behind the limit is no command, wherever it is cut.
		c.cmd(fits[:maxLine-9]+"MKD owned", "200 *")
		c.cmd(fits+"MKD owned", "500 Line too long*")
		c.cmd(strings.Repeat("MKD owned ", 6554), "500 Line too long*") // 64 KiB
		c.quiet()
		c.cmd("NOOP", "200 *")
		b.missing(t, "owned")
		c.cmd(fits+"x", "500 *")
		c.cmd(fits+"x", "500 *", "421 *")
		c.closed()
	})
}

func TestRule01EndlessLine(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		go c.conn.Write(make([]byte, maxLine+maxSkip+100))
		c.want("500 Line too long*", "421 *")
		c.closed()
	})
}

func TestRule01LongLineDuringTransfer(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("STOR a", "150 *")
		c.send(strings.Repeat("y", 2*maxLine) + "\r\nNOOP\r\n")
		time.Sleep(time.Second)
		c.quiet()
		d.Close()
		c.want("226 *", "500 *", "200 *")
		c.quiet()
	})
}

// sendUrgent is send(2) with MSG_OOB: the last byte of text becomes the urgent one.
func sendUrgent(t *testing.T, c net.Conn, text string) {
	t.Helper()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	if err := rc.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), []byte(text), unix.MSG_OOB, nil)
		return serr != unix.EAGAIN
	}); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
}

// TestRule02TelnetABOR sends ABOR in the ways clients do, urgent data and all, over
// real TCP: the kernel may take the urgent byte out of the stream.
func TestRule02TelnetABOR(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0]
	b.put(t, "big", strings.Repeat("x", 32<<20))
	for _, client := range []struct {
		name  string
		abort func(c *ftpClient)
	}{
		{"lftp", func(c *ftpClient) {
			c.send("\xff\xf4\xff")
			sendUrgent(t, c.bare, "\xf2")
			c.send("ABOR\r\n")
		}},
		{"tnftp", func(c *ftpClient) {
			sendUrgent(t, c.bare, "\xff\xf4\xff")
			c.send("\xf2ABOR\r\n")
		}},
		{"ftplib", func(c *ftpClient) { sendUrgent(t, c.bare, "ABOR\r\n") }},
		{"in band", func(c *ftpClient) { c.send("\xff\xf4\xff\xf2ABOR\r\n") }},
		{"data mark lost", func(c *ftpClient) { c.send("\xff\xf4\xffABOR\r\n") }},
		{"iac lost", func(c *ftpClient) { c.send("\xff\xf4\xf2abor\r\n") }},
	} {
		t.Run(client.name, func(t *testing.T) {
			c := b.dialReal(t, addr)
			c.t = t
			c.login()
			c.cmd("EPSV", "229 *")
			d := c.open()
			c.cmd("RETR big", "150 *")
			client.abort(c)
			c.want("426 *", "226 *")
			d.Close()
			c.cmd("NOOP", "200 *")
			// And when nothing runs.
			client.abort(c)
			c.want("226 *")
			c.cmd("PWD", "257 *")
		})
	}
}

func TestRule02TelnetOptions(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.send("\xff\xfb\x01\xff\xfd\x03NO\xff\xfe\x01OP\r\n")
		c.want("200 *")
		c.send("\xff\xfa\x18\x01NOOP\r\xff\xf0NOOP\r\n")
		c.want("200 *")
		c.send("MKD a\xff\xffb\r\n") // a byte 255 as RFC 854 writes it
		c.want("257 \"/a\xff\xffb\"*")
		if _, err := os.Stat(filepath.Join(b.home, "a\xffb")); err != nil {
			t.Fatal(err)
		}
		c.send("MKD c\xffd\r\n") // and as most clients do
		c.want("257 *")
		if _, err := os.Stat(filepath.Join(b.home, "c\xffd")); err != nil {
			t.Fatal(err)
		}
	})
}

// --- data connections ---

func TestRule10PassiveRealTCP(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			b := newFTPBox(t, strings.Replace(realListen, "127.0.0.1:0", listen, 1)+"passive.ports = \"40000-49999\"\n", "")
			addr := b.serveReal(t)[0].(*net.TCPAddr)
			if addr.IP.IsUnspecified() {
				addr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: addr.Port}
			}
			b.put(t, "a", "hello")
			c := b.dialReal(t, addr).login()
			want := "227 Entering Passive Mode (127,0,0,1,*)"
			if addr.IP.To4() == nil {
				want = "425 *"
			}
			ports := map[uint16]bool{}
			for range 4 {
				c.cmd("PASV", want)
				c.cmd("EPSV", "229 Entering Extended Passive Mode (|||*|)")
				ports[c.port] = true
				if c.port < 40000 || c.port > 49999 {
					t.Fatalf("port %d is out of the range", c.port)
				}
			}
			if len(ports) == 1 {
				t.Error("the passive port is always the same")
			}
			if got := c.fetch("RETR a"); got != "hello" {
				t.Fatalf("RETR: %q", got)
			}
			if got := c.store("STOR b", "up"); !strings.HasPrefix(got, "226") || b.content(t, "b") != "up" {
				t.Fatal(got)
			}
			// Active, as the server's family has it.
			ln, err := net.Listen("tcp", net.JoinHostPort(addr.IP.String(), "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			family := 1
			if addr.IP.To4() == nil {
				family = 2
			}
			c.cmd(fmt.Sprintf("EPRT |%d|%s|%d|", family, addr.IP, ln.Addr().(*net.TCPAddr).Port), "200 *")
			c.send("RETR a\r\n")
			d, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(d); err != nil || string(got) != "hello" {
				t.Fatalf("active RETR: %q, %v", got, err)
			}
			d.Close()
			c.want("150 *", "226 *")
			// A client that resets its upload did not finish it.
			c.cmd("EPSV", "229 *")
			d = c.open()
			c.cmd("STOR a", "150 *")
			io.WriteString(d, "half")
			d.(*net.TCPConn).SetLinger(0)
			d.Close()
			c.want("426 *")
			if got := b.content(t, "a"); got != "hello" {
				t.Fatalf("a became %q", got)
			}
		})
	}
}

// TestFault04RealForeignPeer: on loopback all of 127/8 is there to be a stranger.
func TestFault04RealForeignPeer(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	b.put(t, "a", "mine")
	c := b.dialReal(t, b.serveReal(t)[0]).login()
	c.cmd("PASV", "227 *")
	stranger, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.port))
	if err != nil {
		t.Skip("no second loopback address:", err)
	}
	defer stranger.Close()
	c.send("RETR a\r\n")
	stranger.SetDeadline(time.Now().Add(replyTime))
	if n, err := stranger.Read(make([]byte, 9)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the stranger got %d bytes, %v", n, err)
	}
	d := c.open()
	if got, err := io.ReadAll(d); err != nil || string(got) != "mine" {
		t.Fatalf("%q, %v", got, err)
	}
	c.want("150 *", "226 *")
}

func TestRow14PassivePortsRunOut(t *testing.T) {
	inBox(t, "passive.ports = \"50000-50001\"\n", "", func(t *testing.T, b *ftpBox) {
		one, two, three := b.dial(t).login(), b.dial(t).login(), b.dial(t).login()
		for range 100 { // one port a session, however often it asks
			one.cmd("PASV", "227 *")
		}
		one.send("LIST\r\n") // a transfer keeps its port
		two.cmd("EPSV", "229 *")
		two.send("LIST\r\n")
		three.cmd("EPSV", "425 *")
		three.cmd("LIST", "425 *")
		one.cmd("ABOR", "426 *", "226 *")
		one.cmd("QUIT", "221 *")
		<-one.over
		three.cmd("EPSV", "229 *")
	})
}

// --- order ---

func TestRule13Pipelining(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		var all strings.Builder
		for i := range 100 {
			fmt.Fprintf(&all, "MKD d%d\r\n", i)
		}
		c.send(all.String() + "QUIT\r\nMKD after\r\n")
		for i := range 100 {
			c.want(fmt.Sprintf("257 \"/d%d\"*", i))
		}
		c.want("221 *")
		c.closed()
		b.missing(t, "after")
	})
}

// TestRule13FloodDuringTransfer: what does not fit into the queue waits in the socket.
func TestRule13FloodDuringTransfer(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("STOR a", "150 *")
		const lines = 3 * maxPending / 8
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.WriteString(c.conn, strings.Repeat("NOOP 12\r\n", lines))
		}()
		time.Sleep(10 * time.Second)
		c.quiet()
		io.WriteString(d, "whole")
		d.Close()
		c.want("226 *")
		for range lines {
			c.want("200 OK.")
		}
		<-sent
		if got := b.content(t, "a"); got != "whole" {
			t.Fatalf("%q", got)
		}
	})
}

func TestClientThatReadsNoReplies(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		go io.WriteString(c.conn, strings.Repeat("HELP\r\n", 10_000))
		select {
		case <-c.over:
		case <-time.After(3 * writeTimeout):
			t.Fatal("the session waits for ever")
		}
	})
}

// --- limits ---

func TestRule22TooManyConnections(t *testing.T) {
	far := netip.MustParseAddr("192.0.2.7")
	inBox(t, "limits.sessions = 3\nlimits.sessions_per_address = 2\n", "sessions = 1\ntls = \"optional\"\n", func(t *testing.T, b *ftpBox) {
		one, two := b.dial(t), b.dial(t)
		one.want("220 *")
		two.want("220 *")
		three := b.dial(t)
		three.want("421 Too many connections*")
		three.closed()
		b.dialFrom(t, far, testLocal, "control").want("220 *")
		four := b.dialFrom(t, netip.MustParseAddr("192.0.2.8"), testLocal, "control")
		four.want("421 Too many connections*")
		four.closed()
		one.cmd("USER ann", "331 *")
		one.cmd("PASS secret", "230 *")
		two.cmd("USER ann", "331 *")
		two.cmd("PASS secret", "421 Too many connections*")
		two.closed()
		<-two.over
		// A place that is free is free.
		two = b.dial(t)
		two.want("220 *")
		one.cmd("QUIT", "221 *")
		<-one.over
		two.cmd("USER ann", "331 *")
		two.cmd("PASS secret", "230 *")
	})
}

func TestRule22Ban(t *testing.T) {
	far := netip.MustParseAddr("192.0.2.7")
	inBox(t, "limits.login_failures = 3\nlimits.ban = \"10m\"\n", "tls = \"optional\"\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrom(t, far, testLocal, "control")
		c.want("220 *")
		for range 3 {
			c.cmd("USER ann", "331 *")
			c.cmd("PASS wrong", "530 *")
		}
		c.cmd("USER ann", "421 *")
		c.closed()
		c = b.dialFrom(t, far, testLocal, "control")
		c.want("421 *")
		c.closed()
		b.dialFrom(t, netip.MustParseAddr("192.0.2.8"), testLocal, "control").login()
		time.Sleep(10 * time.Minute)
		b.dialFrom(t, far, testLocal, "control").login()
	})
}

// TestRow17SameDelay: neither texts nor times tell whether a user exists.
func TestRow17SameDelay(t *testing.T) {
	inBox(t, "tls.require = \"none\"\n", "", func(t *testing.T, b *ftpBox) {
		b.user(t, "off", "disabled = true\n")
		var times []time.Duration
		for i, name := range []string{"ann", "nobody", "off"} {
			c := b.dialFrom(t, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), testLocal, "control")
			c.want("220 *")
			start := time.Now()
			c.cmd("USER "+name, "331 Password required.")
			c.cmd("PASS wrong", "530 Login incorrect.")
			times = append(times, time.Since(start))
		}
		if times[0] != times[1] || times[0] != times[2] || times[0] < firstDelay {
			t.Errorf("wrong password, no user and a disabled one take %v", times)
		}
	})
}

// TestRule22LoginTimeoutByteByByte: bytes that make no login gain no time.
func TestRule22LoginTimeoutByteByByte(t *testing.T) {
	inBox(t, "limits.login_timeout = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t)
		c.want("220 *")
		start := time.Now()
		typed := make(chan struct{})
		go func() {
			defer close(typed)
			for range 100 {
				if _, err := io.WriteString(c.conn, "N"); err != nil {
					return
				}
				time.Sleep(5 * time.Second)
			}
		}()
		var line string
		var err error
		if line, err = c.line(2 * time.Minute); err != nil || !strings.HasPrefix(line, "421") {
			t.Fatalf("%q, %v", line, err)
		}
		if d := time.Since(start); d > 61*time.Second {
			t.Errorf("it took %v", d)
		}
		c.bare.Close()
		<-typed
	})
}

func TestRow13HandshakeThatStalls(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		for _, kind := range []string{"tls", "control"} {
			c := b.dialFrom(t, testPeer, testLocal, kind)
			if kind == "control" {
				c.want("220 *")
				c.cmd("AUTH TLS", "234 *")
			}
			start := time.Now()
			select {
			case <-c.over:
			case <-time.After(10 * handshakeTime):
				t.Fatal("the handshake waits for ever")
			}
			if d := time.Since(start); d > handshakeTime+closeTimeout {
				t.Errorf("it took %v", d)
			}
		}
	})
}

// who tells since when a session does nothing: since its last command was done, or
// since it came, if it never gave one.
func TestWhoIdle(t *testing.T) {
	inBox(t, "limits.idle = \"1h\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		idle := func(want int64) {
			t.Helper()
			if all := b.srv.who(); len(all) != 1 || all[0].Idle != want || all[0].Doing != "idle" {
				t.Errorf("%+v; want idle for %d", all, want)
			}
		}
		idle(0)
		time.Sleep(90 * time.Second)
		idle(90)
		c.cmd("NOOP", "200 *")
		time.Sleep(5 * time.Second)
		idle(5)
		c.cmd("QUIT", "221 *")

		// The operator needs no login, so that login_timeout is not for him: who --watch
		// asks on one connection for hours.
		op := &session{srv: b.srv, started: time.Now().Add(-2 * time.Hour), isOperator: true}
		if left := time.Until(op.idleDeadline()); left != time.Hour {
			t.Errorf("the operator has %v", left)
		}
	})
}

// --- our own bugs, and the system's limits ---

func TestRow23PanicEndsOneSession(t *testing.T) {
	for name, run := range map[string]func(*session, string) error{
		"in a handler": func(*session, string) error { panic("secret inside") },
		"in a transfer": func(s *session, _ string) error {
			return s.download("/x", 0, "Opening.", func(*transfer) error { panic("secret inside") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			commandIndex["XBUG"] = &command{verb: "XBUG", login: true, help: "panic", run: run}
			defer delete(commandIndex, "XBUG")
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				other := b.dial(t).login()
				c := b.dial(t).login()
				c.cmd("EPSV", "229 *")
				d := c.data()
				c.send("XBUG\r\n")
				code, text := c.reply()
				if name == "in a transfer" && code == codeDataOpening {
					code, text = c.reply()
				}
				if code != codeClosing || strings.Contains(text, "secret") {
					t.Fatalf("reply %q", text)
				}
				c.closed()
				d.SetDeadline(time.Now().Add(replyTime))
				if _, err := d.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the data connection: %v", err)
				}
				<-c.over
				if n := b.metric(t, "berth_panics_total"); n != 1 {
					t.Errorf("%v panics are counted", n)
				}
				if n := b.metric(t, "berth_transfers_active"); n != 0 {
					t.Errorf("%v transfers are still counted as active", n)
				}
				if !strings.Contains(b.log.String(), "secret inside") {
					t.Error("the log does not tell of it")
				}
				other.cmd("PWD", "257 *")
				b.dial(t).login()
			})
		})
	}
}

// emfileListener fails as accept(2) does without descriptors, then hands out conns.
type emfileListener struct {
	mu    sync.Mutex
	fails int
	conns chan net.Conn
	done  chan struct{}
	tries []time.Time
}

func (l *emfileListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.tries = append(l.tries, time.Now())
	fail := l.fails > 0
	l.fails--
	l.mu.Unlock()
	if fail {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *emfileListener) Close() error   { close(l.done); return nil }
func (l *emfileListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptBacksOffAndRecovers(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		ln := &emfileListener{fails: 20, conns: make(chan net.Conn), done: make(chan struct{})}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			b.srv.accept(socket{kind: "control", stream: ln})
		}()
		client, conn := memPipe(netip.AddrPortFrom(testPeer, 40000), netip.AddrPortFrom(testLocal, 21))
		start := time.Now()
		ln.conns <- conn
		if d := time.Since(start); d < 5*time.Second || d > 20*acceptPauseMax {
			t.Errorf("20 failures took %v", d)
		}
		client.SetDeadline(time.Now().Add(replyTime))
		var greeting [4]byte
		if _, err := io.ReadFull(client, greeting[:]); err != nil || string(greeting[:]) != "220 " {
			t.Fatalf("%q, %v", greeting, err)
		}
		client.Close()
		if n := b.metric(t, "berth_accept_errors_total"); n != 20 {
			t.Errorf("%v failures are counted", n)
		}
		ln.Close()
		<-ended
		for i := 2; i < 20; i++ {
			if gap := ln.tries[i].Sub(ln.tries[i-1]); gap > acceptPauseMax || gap < 5*time.Millisecond {
				t.Errorf("pause %d is %v", i, gap)
			}
		}
	})
}

// --- TLS ---

// tlsLogin is a control connection under explicit TLS, with private data connections.
func tlsLogin(c *ftpClient, cfg *tls.Config) *ftpClient {
	c.t.Helper()
	c.want("220 *")
	c.cmd("AUTH TLS", "234 *")
	c.startTLS(cfg)
	c.cmd("USER ann", "331 *")
	c.cmd("PASS secret", "230 *")
	c.cmd("PBSZ 0", "200 *")
	c.cmd("PROT P", "200 *")
	c.private = cfg
	return c
}

func tlsVersions(t *testing.T, run func(t *testing.T, cfg *tls.Config)) {
	for name, version := range map[string]uint16{"TLS1.2": tls.VersionTLS12, "TLS1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			cfg := clientTLS()
			cfg.MaxVersion = version
			run(t, cfg)
		})
	}
}

// TestRule19DataTLS: 150 comes before the handshake, the server is TLS's server in active
// mode too, and close_notify ends what it sends. Also fault 13.
func TestRule19DataTLS(t *testing.T) {
	tlsVersions(t, func(t *testing.T, cfg *tls.Config) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			b.put(t, "a", strings.Repeat("hello", 10_000))
			c := tlsLogin(b.dial(t), cfg)
			if got := c.fetch("RETR a"); got != strings.Repeat("hello", 10_000) {
				t.Fatalf("%d bytes", len(got))
			}
			if got := c.fetch("NLST"); got != "a\r\n" {
				t.Fatalf("NLST: %q", got)
			}
			if got := c.store("STOR b", "up"); !strings.HasPrefix(got, "226") || b.content(t, "b") != "up" {
				t.Fatal(got)
			}
			for _, verb := range []string{"RETR a", "LIST", "STOR c"} {
				ln, err := b.net.listen(netip.AddrPortFrom(testPeer, 40000))
				if err != nil {
					t.Fatal(err)
				}
				c.cmd("PORT 127,0,0,1,156,64", "200 *")
				c.cmd(verb, "150 *") // before any TLS
				raw, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				ln.Close()
				below := &eofConn{Conn: raw}
				d := tls.Client(below, cfg)
				d.SetDeadline(time.Now().Add(replyTime))
				if verb == "STOR c" {
					io.WriteString(d, "active")
				} else if got, err := io.ReadAll(d); err != nil || len(got) == 0 {
					t.Fatalf("%s: %d bytes, %v", verb, len(got), err)
				} else if below.sawEOF() {
					t.Errorf("%s ended without close_notify", verb)
				}
				d.Close()
				c.want("226 *")
			}
			if got := b.content(t, "c"); got != "active" {
				t.Fatalf("%q", got)
			}
			// PROT C is back to clear text.
			c.cmd("PROT C", "200 *")
			c.private = nil
			if got := c.fetch("NLST"); got != "a\r\nb\r\nc\r\n" {
				t.Fatalf("NLST: %q", got)
			}
		})
	})
}

func TestImplicitTLS(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "hello")
		c := b.dialFrom(t, testPeer, testLocal, "tls")
		cfg := clientTLS()
		c.startTLS(cfg)
		c.login()
		c.private = cfg // PROT P is what implicit means
		if got := c.fetch("RETR a"); got != "hello" {
			t.Fatalf("%q", got)
		}
		c.cmd("AUTH TLS", "503 *")
	})
}

// TestClientCertificateLogsIn is RFC 4217 section 9 with 232: no PASS.
func TestClientCertificateLogsIn(t *testing.T) {
	certPEM, keyPEM, err := selfSigned("camera")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	inBox(t, "", fmt.Sprintf("certificates = [%q]\n", fingerprintOf(pair.Certificate[0])), func(t *testing.T, b *ftpBox) {
		cfg := clientTLS()
		cfg.Certificates = []tls.Certificate{pair}
		c := b.dial(t)
		c.want("220 *")
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(cfg)
		c.cmd("USER nobody", "331 *")
		c.cmd("USER ann", "232 *")
		c.cmd("PASS whatever", "202 *")
		c.cmd("PWD", "257 *")
	})
}

// recordConn reads one TLS record at a time, as OpenSSL does: what it was not asked for
// stays unread in the kernel. crypto/tls by itself reads ahead.
type recordConn struct {
	net.Conn
	left []byte // of the record that was begun
}

func (c *recordConn) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		var header [5]byte // RFC 8446 section 5.1
		if _, err := io.ReadFull(c.Conn, header[:]); err != nil {
			return 0, err
		}
		body := make([]byte, int(header[3])<<8|int(header[4]))
		if _, err := io.ReadFull(c.Conn, body); err != nil {
			return 0, err
		}
		c.left = append(header[:], body...)
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

// TestFault01WriteOnlyClients: clients that never read from an upload's connection and
// close at once lose nothing, over real TCP, where an unread ticket makes an RST. The
// rate keeps bytes waiting in the client's socket, which are what an RST destroys.
func TestFault01WriteOnlyClients(t *testing.T) {
	tlsVersions(t, func(t *testing.T, cfg *tls.Config) {
		b := newFTPBox(t, realListen, "upload_rate = \"12MiB\"\n")
		c := tlsLogin(b.dialReal(t, b.serveReal(t)[0]), cfg)
		for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 6 << 20} {
			for try := range 2 {
				content := make([]byte, size)
				rand.NewChaCha8([32]byte{byte(size), byte(try)}).Read(content)
				c.cmd("EPSV", "229 *")
				raw := c.open()
				c.cmd("STOR up", "150 *")
				d := tls.Client(&recordConn{Conn: raw}, cfg)
				d.SetDeadline(time.Now().Add(replyTime))
				if err := d.Handshake(); err != nil {
					t.Fatal(err)
				}
				if _, err := d.Write(content); err != nil {
					t.Fatal(err)
				}
				d.Close()
				c.want("226 *")
				if got := b.content(t, "up"); got != string(content) {
					t.Fatalf("%d bytes of %d arrived, and the reply was 226", len(got), size)
				}
			}
		}
	})
}

// TestFault02MissingCloseNotify: told from close_notify, counted, and refused if
// tls.strict_eof is set.
func TestFault02MissingCloseNotify(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprint("strict=", strict), func(t *testing.T) {
			tlsVersions(t, func(t *testing.T, cfg *tls.Config) {
				inBox(t, fmt.Sprintf("tls.strict_eof = %v\n", strict), "", func(t *testing.T, b *ftpBox) {
					b.put(t, "a", "old")
					c := tlsLogin(b.dial(t), cfg)
					upload := func(notify bool) string {
						c.cmd("EPSV", "229 *")
						raw := c.open()
						c.cmd("STOR a", "150 *")
						d := tls.Client(raw, cfg)
						d.SetDeadline(time.Now().Add(replyTime))
						io.WriteString(d, "new")
						if notify {
							d.Close()
						}
						raw.Close()
						return c.want("*")
					}
					got := upload(false)
					want, content := "226", "new"
					if strict {
						want, content = "426", "old"
					}
					if !strings.HasPrefix(got, want) || b.content(t, "a") != content {
						t.Fatalf("%q, and the file holds %q", got, b.content(t, "a"))
					}
					if n := b.metric(t, "berth_tls_missing_close_notify_total"); n != 1 {
						t.Errorf("counted %v times", n)
					}
					if got := upload(true); !strings.HasPrefix(got, "226") {
						t.Fatal(got)
					}
					if n := b.metric(t, "berth_tls_missing_close_notify_total"); n != 1 {
						t.Errorf("counted %v times after an upload that ended well", n)
					}
				})
			})
		})
	}
}

func TestFault09AborOverTLS(t *testing.T) {
	tlsVersions(t, func(t *testing.T, cfg *tls.Config) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			b.put(t, "big", strings.Repeat("x", 1<<20))
			c := tlsLogin(b.dial(t), cfg)
			for _, abort := range []string{"ABOR\r\n", "\xff\xf4\xff\xf2ABOR\r\n"} {
				c.cmd("EPSV", "229 *")
				raw := c.open()
				c.cmd("RETR big", "150 *")
				d := tls.Client(raw, cfg)
				d.SetDeadline(time.Now().Add(replyTime))
				if _, err := d.Read(make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				c.send(abort)
				c.want("426 *", "226 *")
				c.quiet()
				d.Close()
				c.cmd("NOOP", "200 *")
			}
			// STAT during a transfer is written by another goroutine than the 226.
			c.cmd("EPSV", "229 *")
			raw := c.open()
			c.cmd("STOR a", "150 *")
			d := tls.Client(raw, cfg)
			d.SetDeadline(time.Now().Add(time.Hour))
			io.WriteString(d, "x")
			for range 20 {
				time.Sleep(time.Second)
				c.cmd("STAT", "211 *")
			}
			d.Close()
			c.want("226 *")
		})
	})
}

// TestRule20SessionReuse: with "on" a data connection must resume the session of its
// control connection, and with "warn" those that do not are counted.
func TestRule20SessionReuse(t *testing.T) {
	for _, mode := range []string{"warn", "on"} {
		t.Run(mode, func(t *testing.T) {
			tlsVersions(t, func(t *testing.T, cfg *tls.Config) {
				inBox(t, fmt.Sprintf("tls.session_reuse = %q\n", mode), "", func(t *testing.T, b *ftpBox) {
					b.put(t, "a", "hello")
					c := tlsLogin(b.dial(t), cfg)
					if got := c.fetch("RETR a"); got != "hello" {
						t.Fatalf("%q", got)
					}
					if got := c.store("STOR b", "up"); !strings.HasPrefix(got, "226") {
						t.Fatal(got)
					}
					fresh := clientTLS() // with another session cache
					fresh.MaxVersion = cfg.MaxVersion
					c.cmd("EPSV", "229 *")
					raw := c.open()
					c.cmd("RETR a", "150 *")
					d := tls.Client(raw, fresh)
					d.SetDeadline(time.Now().Add(replyTime))
					got, _ := io.ReadAll(d)
					d.Close()
					if mode == "on" {
						c.want("522 *")
						if len(got) > 0 {
							t.Fatalf("a connection that resumes nothing got %q", got)
						}
						return
					}
					c.want("226 *")
				})
			})
		})
	}
}

// --- web requests ---

func TestFault12EveryMethod(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		for _, request := range []string{
			"GET / HTTP/1.1", "POST /x HTTP/1.0", "PUT /a b HTTP/1.1", "HEAD / HTTP/1.1", "DELETE / HTTP/1.1", "OPTIONS * HTTP/1.1",
			"CONNECT box:21 HTTP/1.1", "TRACE / HTTP/1.1", "PATCH / HTTP/1.1", "PROPFIND / HTTP/1.1", "GET http://box/", "Host: box", "User-Agent: x",
		} {
			c := b.dial(t)
			c.want("220 *")
			c.send(request + "\r\nUSER ann\r\nPASS secret\r\nMKD owned\r\n")
			c.want("421 *")
			c.closed()
		}
		b.missing(t, "owned")
		// What people type is no web request.
		c := b.dial(t).login()
		c.cmd("GET a", "500 *RETR*")
		c.cmd("put a", "500 *STOR*")
	})
}

// --- names and patterns ---

// TestRow12GlobStaysBounded: the step limit holds for patterns that multiply.
func TestRow12GlobStaysBounded(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	for i := range 30 {
		b.put(t, fmt.Sprintf("d%d/f", i), "")
	}
	c := b.dialReal(t, b.serveReal(t)[0]).login()
	for _, pattern := range []string{
		strings.Repeat("*/../", 30) + "*", strings.Repeat("*/", 200) + "*", strings.Repeat("[", 2000), strings.Repeat("?*", 1000), "{a,b}{c,d}", "**/**/**",
	} {
		c.cmd("EPSV", "229 *")
		d := c.open()
		c.send("NLST " + pattern + "\r\n")
		switch code, text := c.reply(); code {
		case codeDataOpening:
			io.Copy(io.Discard, d)
			c.want("226 *")
		case codeDenied, codeBadName:
		default:
			t.Errorf("NLST %.20s: %s", pattern, text)
		}
		d.Close()
	}
	c.cmd("NOOP", "200 *")
}

// --- parked sessions ---

// TestParkedSessions: a plain session that is quiet for parkAfter waits on another
// goroutine and without a line reader; nothing a client sees may change by that. The
// time it takes is the thing itself, so this test waits for it.
func TestParkedSessions(t *testing.T) {
	b := newFTPBox(t, realListen+"limits.idle = \"2s\"\n", "")
	addr := b.serveReal(t)[0]
	whole, half, idle, gone := b.dialReal(t, addr).login(), b.dialReal(t, addr).login(), b.dialReal(t, addr).login(), b.dialReal(t, addr).login()
	half.send("NO")
	whole.conn.SetReadDeadline(time.Now().Add(parkAfter + 300*time.Millisecond))
	if _, err := whole.r.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("something came: %v", err)
	}
	whole.cmd("NOOP", "200 *")
	half.send("OP\r\n")
	half.want("200 *")
	gone.conn.Close()
	idle.want("421 Idle*")
	idle.closed()
	whole.cmd("QUIT", "221 *")
	whole.closed()
}

// --- transfers ---

// TestUploadNeedsTheControlConnection: a client that is gone did not finish its upload,
// however well its data connection ended, and however early it went.
func TestUploadNeedsTheControlConnection(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0]
	b.put(t, "a", "old")
	for try := range 20 {
		c := b.dialReal(t, addr).login()
		c.cmd("EPSV", "229 *")
		d := c.open()
		c.cmd("STOR a", "150 *")
		io.WriteString(d, "new")
		c.bare.Close()
		if try%2 == 1 { // the session may have seen it already, or not
			d.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			d.Read(make([]byte, 1))
		}
		d.Close()
	}
	b.srv.shutdown(nil)
	if got := b.content(t, "a"); got != "old" {
		t.Fatalf("the file became %q", got)
	}
	if n := b.metric(t, "berth_transfers_total", "client_gone"); n != 20 {
		t.Errorf("%v of 20 uploads count as client_gone", n)
	}
}

// TestDownloadOfOneVersion: a file replaced during RETR is still read to its end.
func TestDownloadOfOneVersion(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		old := strings.Repeat("old ", 1<<18)
		b.put(t, "a", old)
		c, other := b.dial(t).login(), b.dial(t).login()
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("RETR a", "150 *")
		if got := other.store("STOR a", "new"); !strings.HasPrefix(got, "226") {
			t.Fatal(got)
		}
		other.cmd("DELE a", "250 *")
		got, err := io.ReadAll(d)
		if err != nil || string(got) != old {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		c.want("226 *")
	})
}

func TestModeZ(t *testing.T) {
	inBox(t, "transfer.mode_z = true\n", "", func(t *testing.T, b *ftpBox) {
		content := strings.Repeat("compress me ", 10_000)
		b.put(t, "a", content)
		c := b.dial(t).login()
		c.cmd("MODE Z", "200 *")
		for command, want := range map[string]string{"RETR a": content, "NLST": "a\r\n"} {
			z, err := zlib.NewReader(strings.NewReader(c.fetch(command)))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(z); err != nil || string(got) != want {
				t.Fatalf("%s: %d bytes, %v", command, len(got), err)
			}
		}
		var packed bytes.Buffer
		z := zlib.NewWriter(&packed)
		io.WriteString(z, content)
		z.Close()
		if got := c.store("STOR b", packed.String()); !strings.HasPrefix(got, "226") || b.content(t, "b") != content {
			t.Fatal(got)
		}
		// A stream that is cut, or none at all, is no upload.
		for _, bad := range []string{packed.String()[:packed.Len()-5], "no zlib at all", ""} {
			if got := c.store("STOR b", bad); !strings.HasPrefix(got, "4") || b.content(t, "b") != content {
				t.Fatalf("%.20q: %s", bad, got)
			}
		}
		c.cmd("REST 5", "350 *")
		c.cmd("EPSV", "229 *")
		c.cmd("STOR b", "554 *")
	})
}
