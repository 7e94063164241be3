// These tests are about ports that many sessions share: who gets which connection, who
// waits and for how long, and what is open when nobody waits. What depends on time or
// order runs in a bubble on the network in memory; what depends on the kernel, and all
// that counts many clients, on real sockets of several loopback addresses.

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// --- the network in memory, for shared ports ---

func (l *memListener) share() error { return nil }

func (l *memListener) poll(ready func()) error {
	for {
		ready()
		l.mu.Lock()
		for !l.closed && !l.deadline.passed() && len(l.queue) == 0 {
			l.cond.Wait()
		}
		closed, late := l.closed, l.deadline.passed()
		l.mu.Unlock()
		switch {
		case closed:
			return net.ErrClosed
		case late:
			return os.ErrDeadlineExceeded
		}
	}
}

func (l *memListener) next() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.queue) == 0 {
		return nil, nil
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

// ports is which ports listen.
func (n *memNet) ports() (open []uint16) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for port := range n.listeners {
		open = append(open, port)
	}
	return open
}

const (
	onePort   = "passive.ports = \"50000-50000\"\n"
	fourPorts = "passive.ports = \"50000-50003\"\n"
)

// neighbour is a client of another address.
var neighbour = netip.MustParseAddr("127.0.0.2")

func (b *ftpBox) report() portReport { return b.srv.ports.report(b.srv.config().Passive.Ports) }

// drained reads a data connection to its end and says what it got.
func drained(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(replyTime))
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("data connection: %v after %q", err, got)
	}
	c.Close()
	return string(got)
}

func TestPortRangeSplit(t *testing.T) {
	none := portRange{}
	for _, tt := range []struct {
		in, private, shared portRange
		n                   int
	}{
		{none, none, none, 0},
		{portRange{50000, 50000}, none, portRange{50000, 50000}, 1},
		{portRange{50000, 50003}, none, portRange{50000, 50003}, 4},
		{portRange{1024, 1024 + sharedRange - 1}, none, portRange{1024, 1024 + sharedRange - 1}, sharedRange},
		{portRange{1024, 1024 + sharedRange}, portRange{1024, 1024 + sharedRange - sharedSpare}, portRange{1024 + sharedRange - sharedSpare + 1, 1024 + sharedRange}, sharedRange + 1},
		{portRange{50000, 50999}, portRange{50000, 50983}, portRange{50984, 50999}, 1000},
		{portRange{1024, 65535}, portRange{1024, 65519}, portRange{65520, 65535}, 64512},
	} {
		private, shared := tt.in.split()
		if private != tt.private || shared != tt.shared || tt.in.count() != tt.n {
			t.Errorf("%v: %v private, %v shared, %d in all; want %v, %v, %d", tt.in, private, shared, tt.in.count(), tt.private, tt.shared, tt.n)
		}
	}
}

// --- who gets what ---

// TestPassiveTwoAddressesOnePort: each client gets its own file, whoever comes first.
func TestPassiveTwoAddressesOnePort(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "ann's")
		b.put(t, "b", "bob's")
		one, two := b.dial(t).login(), b.dialFrom(t, neighbour, testLocal, "control").login()
		for _, turned := range []bool{false, true} {
			one.cmd("EPSV", "229 *")
			two.cmd("PASV", "227 *")
			if one.port != 50000 || two.port != 50000 {
				t.Fatalf("ports %d and %d", one.port, two.port)
			}
			if got, want := b.report(), (portReport{Size: 1, InUse: 1, Fullest: 1}); got != want {
				t.Errorf("%+v; want %+v", got, want)
			}
			var c1, c2 *memConn
			if turned {
				c2, c1 = two.data(), one.data()
			} else {
				c1, c2 = one.data(), two.data()
			}
			one.cmd("RETR a", "150 *")
			two.cmd("RETR b", "150 *")
			if got := drained(t, c1); got != "ann's" {
				t.Errorf("the first client got %q", got)
			}
			if got := drained(t, c2); got != "bob's" {
				t.Errorf("the second client got %q", got)
			}
			one.want("226 *")
			two.want("226 *")
		}
	})
}

// TestPassiveSharedTheft: a stranger at a shared port gets an end and nothing else,
// before the client comes, and while the transfer waits; the client is served.
func TestPassiveSharedTheft(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "mine")
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		steal := func() {
			t.Helper()
			s, err := b.net.connect(neighbour, 50000)
			if err != nil {
				t.Fatal(err)
			}
			if got := drained(t, s); got != "" {
				t.Fatalf("the stranger got %q", got)
			}
		}
		steal()
		c.send("RETR a\r\n")
		c.quiet()
		steal()
		d := c.data()
		if got := drained(t, d); got != "mine" {
			t.Fatalf("%q", got)
		}
		c.want("150 *", "226 *")
		if got := b.report().Foreign; got != 2 {
			t.Errorf("%d strangers counted; want 2", got)
		}
		steal() // the port is open for a moment yet, and for nobody
	})
}

// TestPassiveSharedTwice: a second connection of the client is ended, and neither
// waits for the next session of its address nor spoils the transfer.
func TestPassiveSharedTwice(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "one")
		b.put(t, "b", "two")
		one, two := b.dial(t).login(), b.dial(t).login()
		one.cmd("EPSV", "229 *")
		first := one.data()
		second := one.data()
		synctest.Wait()
		two.cmd("EPSV", "229 *") // there is no wait: the first has its connection
		if got := drained(t, second); got != "" {
			t.Errorf("the second connection got %q", got)
		}
		other := two.data()
		two.cmd("RETR b", "150 *")
		one.cmd("RETR a", "150 *")
		if got := drained(t, first); got != "one" {
			t.Errorf("the first session's client got %q", got)
		}
		if got := drained(t, other); got != "two" {
			t.Errorf("the second session's client got %q", got)
		}
		one.want("226 *")
		two.want("226 *")
	})
}

// TestPassiveSharedLate: a client that comes when its session has given up is not
// given to the next session of the same address.
func TestPassiveSharedLate(t *testing.T) {
	for name, end := range map[string]func(c *ftpClient){
		"timeout":     func(c *ftpClient) { c.cmd("RETR a", "425 *") },
		"ABOR":        func(c *ftpClient) { c.cmd("ABOR", "226 *") },
		"refused":     func(c *ftpClient) { c.cmd("RETR nosuch", "550 *") },
		"PORT":        func(c *ftpClient) { c.cmd("PORT 127,0,0,1,200,200", "200 *") },
		"QUIT":        func(c *ftpClient) { c.cmd("QUIT", "221 *"); <-c.over },
		"closed":      func(c *ftpClient) { c.conn.Close(); <-c.over },
		"ABOR inside": func(c *ftpClient) { c.send("RETR a\r\n"); time.Sleep(time.Second); c.cmd("ABOR", "426 *", "226 *") },
	} {
		t.Run(name, func(t *testing.T) {
			inBox(t, onePort+"limits.data_timeout = \"10s\"\n", "", func(t *testing.T, b *ftpBox) {
				b.put(t, "a", "one")
				b.put(t, "b", "two")
				one, two := b.dial(t).login(), b.dial(t).login()
				one.cmd("EPSV", "229 *")
				end(one)
				ended := time.Now()
				two.send("EPSV\r\n")
				synctest.Wait()
				if late, err := b.net.connect(testPeer, 50000); err == nil { // or it is refused, as well
					if got := drained(t, late); got != "" {
						t.Errorf("the late client got %q", got)
					}
				}
				two.want("229 *")
				if rest := time.Since(ended); rest < portRest || rest > portRest+time.Second {
					t.Errorf("the port rested for %v; want %v", rest, portRest)
				}
				d := two.data()
				two.cmd("RETR b", "150 *")
				if got := drained(t, d); got != "two" {
					t.Errorf("the next session's client got %q", got)
				}
				two.want("226 *")
			})
		})
	}
}

// A deafListener is a shared port whose poller never tells of anything: what is
// accepted is accepted because somebody looked.
type deafListener struct{ *memListener }

func (l deafListener) poll(func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed {
		l.cond.Wait()
	}
	return net.ErrClosed
}

// TestPassiveSharedBacklog: what waits at the port when it is reserved is gone, and
// not given to who reserves it.
func TestPassiveSharedBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		p := &dataPorts{shared: newSharedPorts(), listen: func(a netip.AddrPort) (net.Listener, error) {
			l, err := n.listen(a)
			if err != nil {
				return nil, err
			}
			return deafListener{l.(*memListener)}, nil
		}}
		q := portRequest{ctx: t.Context(), local: testLocal, from: testPeer, owner: 1, accept: fromDataPeer, hold: time.Minute, ports: portRange{50000, 50000}}
		connect := func() *memConn {
			t.Helper()
			c, err := n.connect(testPeer, 50000)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		first, _, err := p.arm(q)
		if err != nil {
			t.Fatal(err)
		}
		mine, twice := connect(), connect()
		// The first of them makes the port free for the address, the second must go.
		q.owner = 2
		second, _, err := p.arm(q)
		if err != nil {
			t.Fatalf("a port whose connection has come: %v", err)
		}
		if got := drained(t, twice); got != "" {
			t.Errorf("the second connection got %q", got)
		}
		c, err := first.ln.Accept()
		if err != nil || c.RemoteAddr().String() != mine.LocalAddr().String() {
			t.Fatalf("Accept = %v, %v", c, err)
		}
		second.ln.(*reservation).SetDeadline(time.Now().Add(time.Second))
		if _, err := second.ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the second reservation: %v; want nobody to come", err)
		}
		second.disarm()
		late := connect()
		if _, _, err := p.arm(q); err != nil { // the same session has no rest to keep
			t.Fatal(err)
		}
		if got := drained(t, late); got != "" {
			t.Errorf("the late connection got %q", got)
		}
		p.shared.close()
	})
}

// TestPassiveNoBarging: a port that becomes free goes to who waits, and not to who
// asks in that moment.
func TestPassiveNoBarging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		p := &dataPorts{shared: newSharedPorts(), listen: func(a netip.AddrPort) (net.Listener, error) {
			l, err := n.listen(a)
			return deafListener{l.(*memListener)}, err
		}}
		q := portRequest{ctx: t.Context(), local: testLocal, from: testPeer, owner: 1, accept: fromDataPeer, hold: time.Minute, ports: portRange{50000, 50000}}
		first, _, err := p.arm(q)
		if err != nil {
			t.Fatal(err)
		}
		waited := make(chan error)
		go func() {
			_, _, err := p.await(q, nil)
			waited <- err
		}()
		synctest.Wait()
		n.connect(testPeer, 50000)
		first.ln.(*reservation).hangUp() // accepts, which makes the port free
		if _, _, err := p.arm(q); err != errPortsHeld {
			t.Errorf("who asked last: %v; want errPortsHeld", err)
		}
		if err := <-waited; err != nil {
			t.Errorf("who waited: %v", err)
		}
		p.shared.close()
	})
}

// TestPassiveSharedRefusedTransfer: who has connected to a shared port before his
// transfer was refused gets a plain end, after the reply.
func TestPassiveSharedRefusedTransfer(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		for _, cmd := range []string{"RETR nosuch", "STOR nosuch/a", "ABOR", "PASV", "PORT 127,0,0,1,200,200"} {
			c.cmd("EPSV", "229 *")
			d := c.data()
			c.cmd(cmd, "*")
			if strings.HasPrefix(cmd, "PORT") {
				continue // which has nobody read first
			}
			if got := drained(t, d); got != "" {
				t.Errorf("%s: %q on the data connection", cmd, got)
			}
		}
		b.put(t, "a", "x")
		if got := c.fetch("RETR a"); got != "x" {
			t.Errorf("afterwards: %q", got)
		}
	})
}

// --- who waits ---

func TestPassiveWaits(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		one, two, three := b.dial(t).login(), b.dial(t).login(), b.dial(t).login()
		one.cmd("EPSV", "229 *")
		two.send("PASV\r\n")
		two.quiet()
		three.send("EPSV\r\n")
		three.quiet()
		if got, want := b.report(), (portReport{Size: 1, InUse: 1, Fullest: 1, Waiting: 2}); got != want {
			t.Errorf("%+v; want %+v", got, want)
		}
		// Another address waits for nobody.
		if got := b.dialFrom(t, neighbour, testLocal, "control").login().fetch("RETR a"); got != "x" {
			t.Errorf("another address: %q", got)
		}
		began := time.Now()
		for i, c := range []*ftpClient{one, two, three} { // in the order of their asking
			d := c.data()
			if i < 2 {
				[]*ftpClient{two, three}[i].want("22* *")
			}
			c.cmd("RETR a", "150 *")
			drained(t, d)
			c.want("226 *")
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("three in a row waited for %v; want for each other only", took)
		}
		if got := b.report().Refused; got != 0 {
			t.Errorf("%d refused", got)
		}
	})
}

func TestPassiveWaitEnds(t *testing.T) {
	inBox(t, fourPorts, "", func(t *testing.T, b *ftpBox) {
		var held []*ftpClient
		ports := map[uint16]bool{}
		for range 4 {
			c := b.dial(t).login()
			c.cmd("EPSV", "229 *")
			ports[c.port] = true
			held = append(held, c)
		}
		if len(ports) != 4 {
			t.Fatalf("four reservations of one address have the ports %v", ports)
		}
		for _, c := range held {
			c.send("LIST\r\n") // a transfer keeps its port
		}
		c := b.dial(t).login()
		began := time.Now()
		c.cmd("EPSV", "425 No passive port is free*")
		if took := time.Since(began); took != portWait {
			t.Errorf("425 after %v; want %v", took, portWait)
		}
		c.cmd("LIST", "425 *") // not armed
		c.send("EPSV\r\n")
		time.Sleep(time.Second)
		c.cmd("ABOR", "426 *", "226 *")
		c.cmd("LIST", "425 *")
		c.send("PASV\r\n")
		time.Sleep(time.Second)
		c.send("NOOP\r\nQUIT\r\n") // in their turn
		c.want("425 *", "200 *", "221 *")
		if got := b.report(); got.Refused != 2 || got.Waiting != 0 || got.InUse != 4 || got.Fullest != 4 {
			t.Errorf("%+v", got)
		}
		gone := b.dial(t).login()
		gone.send("EPSV\r\n")
		time.Sleep(time.Second)
		began = time.Now()
		gone.conn.Close()
		<-gone.over
		if took := time.Since(began); took > time.Second {
			t.Errorf("a client that went was waited for: %v", took)
		}
		killed := b.dial(t).login()
		killed.send("EPSV\r\n")
		time.Sleep(time.Second)
		began = time.Now()
		b.srv.mu.Lock()
		for _, s := range b.srv.sessions {
			s.kill(errKicked)
		}
		b.srv.mu.Unlock()
		<-killed.over
		if took := time.Since(began); took > time.Second {
			t.Errorf("a kill was waited for: %v", took)
		}
		for _, c := range held {
			<-c.over
		}
	})
}

// TestPassiveHold: who lets a port lie loses it to one who waits, after portHold
// and the rest; a transfer that waits for its client does not.
func TestPassiveHold(t *testing.T) {
	inBox(t, onePort+"limits.data_timeout = \"20s\"\n", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		one, two := b.dial(t).login(), b.dial(t).login()
		one.cmd("EPSV", "229 *")
		began := time.Now()
		two.cmd("EPSV", "229 *") // it waits for that moment
		if took := time.Since(began); took != portHold+portRest {
			t.Errorf("the port was taken after %v", took)
		}
		if got := two.fetch("RETR a"); got != "x" {
			t.Errorf("%q", got)
		}
		one.cmd("RETR a", "425 *")
		one.cmd("EPSV", "229 *")
		time.Sleep(portHold / 2)
		one.send("RETR a\r\n")
		time.Sleep(5 * time.Second)
		two.cmd("EPSV", "425 *")
		d := one.data()
		if got := drained(t, d); got != "x" {
			t.Errorf("%q", got)
		}
		one.want("150 *", "226 *")
	})
}

// TestPassiveOwnPortAgain: a session that asks again waits for nothing, as the port
// that rests is its own.
func TestPassiveOwnPortAgain(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		c := b.dial(t).login()
		began := time.Now()
		for range 100 {
			c.cmd("EPSV", "229 *")
			c.cmd("PASV", "227 *")
		}
		if got := c.fetch("RETR a"); got != "x" {
			t.Errorf("%q", got)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited for %v", took)
		}
	})
}

// TestPassiveTakenByOthers: a port that another program has is none, and is not waited for.
func TestPassiveTakenByOthers(t *testing.T) {
	inBox(t, fourPorts, "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		for port := uint16(50000); port < 50003; port++ {
			b.net.listen(netip.AddrPortFrom(testLocal, port))
		}
		c.cmd("EPSV", "229 Entering Extended Passive Mode (|||50003|)")
		b.net.listen(netip.AddrPortFrom(testLocal, 50003)) // of no effect, it is ours
		c.cmd("ABOR", "226 *")
		time.Sleep(2 * sharedLinger)
		b.net.listen(netip.AddrPortFrom(testLocal, 50003))
		began := time.Now()
		c.cmd("EPSV", "425 *")
		if took := time.Since(began); took != 0 {
			t.Errorf("425 after %v", took)
		}
	})
}

// --- what is open ---

func TestPassiveSharedCloses(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		c := b.dial(t).login()
		if open := b.net.ports(); len(open) != 0 {
			t.Errorf("%v listens before a PASV", open)
		}
		c.fetch("RETR a")
		if open := b.net.ports(); len(open) != 1 {
			t.Errorf("%v listens right after a transfer; want the port", open)
		}
		time.Sleep(sharedLinger + time.Millisecond)
		if open := b.net.ports(); len(open) != 0 {
			t.Errorf("%v listens on an idle box", open)
		}
		c.cmd("EPSV", "229 *")
		time.Sleep(20 * sharedLinger)
		if open := b.net.ports(); len(open) != 1 {
			t.Errorf("%v listens while a client is awaited", open)
		}
		d := c.data()
		c.cmd("RETR a", "150 *")
		drained(t, d)
		c.want("226 *")
	})
}

// TestPassiveReload: a new range is used at once, and the ports of the old one close.
func TestPassiveReload(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		change := func(ports portRange) {
			cfg := *b.srv.config()
			cfg.Passive.Ports = ports
			b.srv.current.Store(&cfg)
		}
		one, two := b.dial(t).login(), b.dial(t).login()
		one.cmd("EPSV", "229 *(|||50000|)")
		change(portRange{51000, 51000})
		two.cmd("EPSV", "229 *(|||51000|)")
		for _, c := range []*ftpClient{one, two} { // what was told before holds
			d := c.data()
			c.cmd("RETR a", "150 *")
			if got := drained(t, d); got != "x" {
				t.Errorf("%q", got)
			}
			c.want("226 *")
		}
		change(portRange{50000, 50999}) // private from now on, beside what is shared yet
		for range 100 {
			one.fetch("RETR a")
		}
		time.Sleep(sharedLinger + time.Millisecond)
		if open := b.net.ports(); len(open) != 0 {
			t.Errorf("%v listens", open)
		}
		one.cmd("EPSV", "229 *")
		if got, want := b.report(), (portReport{Size: 1000, InUse: 1, Fullest: 1}); got != want {
			t.Errorf("%+v; want %+v", got, want)
		}
		change(portRange{one.port, one.port}) // which is private yet
		two.cmd("EPSV", "425 *")
		one.cmd("ABOR", "226 *")
		two.cmd("EPSV", "229 *")
	})
}

// TestPassiveSpare: when a wide range has no port left, its last ones are shared.
func TestPassiveSpare(t *testing.T) {
	inBox(t, "passive.ports = \"50000-50099\"\n", "sessions = 1000\n", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "x")
		for port := uint16(50000); port < 50099-sharedSpare; port++ {
			b.net.listen(netip.AddrPortFrom(testLocal, port))
		}
		c := b.dial(t).login()
		c.cmd("EPSV", fmt.Sprintf("229 *(|||%d|)", 50099-sharedSpare)) // the last private one
		var others []*ftpClient
		for range sharedSpare {
			o := b.dial(t).login()
			o.cmd("EPSV", "229 *")
			others = append(others, o)
		}
		last := b.dial(t).login()
		last.send("EPSV\r\n")
		last.quiet()
		if got, want := b.report(), (portReport{Size: 100, InUse: 1 + sharedSpare, Fullest: 1 + sharedSpare, Waiting: 1}); got != want {
			t.Errorf("%+v; want %+v", got, want)
		}
		d := others[3].data()
		last.want("229 *")
		others[3].cmd("RETR a", "150 *")
		if got := drained(t, d); got != "x" {
			t.Errorf("%q", got)
		}
		others[3].want("226 *")
		d = c.data()
		c.cmd("RETR a", "150 *")
		drained(t, d)
		c.want("226 *")
	})
}

// TestPassivePoolClose: close ends who waits, and no port opens after it.
func TestPassivePoolClose(t *testing.T) {
	inBox(t, onePort, "", func(t *testing.T, b *ftpBox) {
		one, two := b.dial(t).login(), b.dial(t).login()
		one.cmd("EPSV", "229 *")
		one.send("LIST\r\n")
		two.send("EPSV\r\n")
		two.quiet()
		b.srv.ports.shared.close()
		if open := b.net.ports(); len(open) != 0 {
			t.Errorf("%v listens", open)
		}
		one.want("425 *")
		two.want("4* *")
		one.cmd("EPSV", "4* *")
	})
}

// TestPassiveAcceptFails: for want of descriptors nobody is accepted; the client is
// served when there are some again.
func TestPassiveAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		lean := &leanListener{}
		p := &dataPorts{shared: newSharedPorts(), listen: func(a netip.AddrPort) (net.Listener, error) {
			l, err := n.listen(a)
			lean.memListener = l.(*memListener)
			return lean, err
		}}
		lean.failing.Lock()
		arm, _, err := p.arm(portRequest{ctx: t.Context(), local: testLocal, from: testPeer, owner: 1, accept: fromDataPeer, hold: time.Minute, ports: portRange{50000, 50000}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.connect(testPeer, 50000); err != nil {
			t.Fatal(err)
		}
		arm.ln.(*reservation).SetDeadline(time.Now().Add(time.Second))
		if _, err := arm.ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Accept = %v", err)
		}
		lean.failing.Unlock()
		arm.ln.(*reservation).SetDeadline(time.Now().Add(time.Second))
		if _, err := arm.ln.Accept(); err != nil {
			t.Errorf("Accept = %v", err)
		}
		arm.disarm()
	})
}

// A leanListener has no descriptors for as long as somebody holds failing.
type leanListener struct {
	*memListener
	failing sync.Mutex
}

func (l *leanListener) next() (net.Conn, error) {
	if !l.failing.TryLock() {
		return nil, syscall.EMFILE
	}
	defer l.failing.Unlock()
	return l.memListener.next()
}

// --- real sockets ---

// portsTried are those that freePorts has been through. Nobody is given the same ones twice, as tests run beside each
// other; and the process of another lane begins elsewhere.
var portsTried atomic.Int32

func init() { portsTried.Store(int32(os.Getpid() * 37 % portsBelow)) }

// portsBelow is how many ports freePorts chooses from: below what outgoing connections use, which come and go.
const portsBelow = 12000

// freePorts is a range of n ports that were free a moment ago, on all of loopback.
func freePorts(t testing.TB, n int) portRange {
	t.Helper()
	for range portsBelow {
		low := 20000 + (int(portsTried.Add(int32(n)))-n)%(portsBelow-n)
		free := true
		for port := low; port < low+n && free; port++ {
			ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if free = err == nil; free {
				ln.Close()
			}
		}
		if free {
			return portRange{uint16(low), uint16(low + n - 1)}
		}
	}
	t.Fatal("no ports are free")
	return portRange{}
}

// closesPorts checks at the end of the test that no shared port is open any more, by
// itself and before the server ends.
func (b *ftpBox) closesPorts(t *testing.T) {
	t.Cleanup(func() {
		p := b.srv.ports.shared
		waitUntil(t, "no shared port is open", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.open) == 0
		})
		p.running.Wait()
		for r, port := b.srv.config().Passive.Ports, 0; port < r.count(); port++ {
			ln, err := net.Listen("tcp", fmt.Sprintf(":%d", int(r.Low)+port))
			if err != nil {
				t.Error("a port is left open:", err)
				continue
			}
			ln.Close()
		}
	})
}

// dialRealFrom is dialReal from another address of loopback.
func (b *ftpBox) dialRealFrom(t testing.TB, from string, addr net.Addr) *ftpClient {
	t.Helper()
	f := b.dialReal(t, addr)
	if from == "" {
		return f
	}
	f.bare.Close()
	f.peer = netip.MustParseAddr(from)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.peer, 0))}
	c, err := d.Dial("tcp", addr.String())
	if err != nil {
		t.Skip("no second loopback address:", err)
	}
	t.Cleanup(func() { c.Close() })
	f.bare, f.conn = c, c
	f.r.Reset(c)
	return f
}

// connect opens the data connection from the client's own address.
func (f *ftpClient) connect() (net.Conn, error) {
	var d net.Dialer
	if f.peer.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.peer, 0))
	}
	return d.Dial("tcp", net.JoinHostPort(f.host, fmt.Sprint(f.port)))
}

// get downloads without ending the test, so that many can run at once.
func (f *ftpClient) get(name string) (string, error) {
	step := func(cmd, code string) error {
		if cmd != "" {
			if _, err := io.WriteString(f.conn, cmd+"\r\n"); err != nil {
				return err
			}
		}
		line, err := f.line(replyTime)
		if m := passiveReply.FindStringSubmatch(line); m != nil && m[3] != "" {
			fmt.Sscan(m[3], &f.port)
		}
		if err != nil || !strings.HasPrefix(line, code) {
			return fmt.Errorf("%s: %q, %v; want %s", cmd, line, err, code)
		}
		return nil
	}
	if err := step("EPSV", "229"); err != nil {
		return "", err
	}
	d, err := f.connect()
	if err != nil {
		return "", err
	}
	defer d.Close()
	if err := step("RETR "+name, "150"); err != nil {
		return "", err
	}
	d.SetDeadline(time.Now().Add(replyTime))
	got, err := io.ReadAll(d)
	if err != nil {
		return "", err
	}
	return string(got), step("", "226")
}

// manyAtOnce has n sessions fetch a file of their own each, again and again, from the
// addresses in turn.
func manyAtOnce(t *testing.T, ports, n, rounds int, from ...string) {
	config := realListen + fmt.Sprintf("passive.ports = %q\n", freePorts(t, ports))
	b := newFTPBox(t, config, "sessions = 1000\n")
	addr := b.serveReal(t)[0]
	b.closesPorts(t)
	var all []*ftpClient
	for i := range n {
		b.put(t, fmt.Sprintf("f%d", i), fmt.Sprintf("content of %d", i))
		all = append(all, b.dialRealFrom(t, from[i%len(from)], addr).login())
	}
	failed := make(chan error, n)
	for i, c := range all {
		go func() {
			for range rounds {
				got, err := c.get(fmt.Sprintf("f%d", i))
				if want := fmt.Sprintf("content of %d", i); err == nil && got != want {
					err = fmt.Errorf("%q; want %q", got, want)
				}
				if err != nil {
					failed <- fmt.Errorf("session %d: %w", i, err)
					return
				}
			}
			failed <- nil
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if r := b.report(); r.Refused != 0 || r.Waiting != 0 || r.Foreign != 0 || r.InUse != 0 {
		t.Errorf("%+v", r)
	}
}

func TestPassiveEightClientsFourPorts(t *testing.T) { manyAtOnce(t, 4, 8, 25, "") }
func TestPassiveManyClientsFourPorts(t *testing.T)  { manyAtOnce(t, 4, 64, 5, "") }
func TestPassiveManyClientsOnePort(t *testing.T) {
	manyAtOnce(t, 1, 32, 5, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
}

// TestPassiveRealTheft: over real sockets, the thief first.
func TestPassiveRealTheft(t *testing.T) {
	b := newFTPBox(t, realListen+fmt.Sprintf("passive.ports = %q\n", freePorts(t, 1)), "")
	b.put(t, "a", "mine")
	addr := b.serveReal(t)[0]
	b.closesPorts(t)
	c := b.dialReal(t, addr).login()
	thief := *c
	thief.peer = dataThief
	c.cmd("EPSV", "229 *")
	for _, sends := range []string{"", "hello"} { // what he sent makes no reset
		thief.port = c.port
		s, err := thief.connect()
		if err != nil {
			t.Skip("no second loopback address:", err)
		}
		io.WriteString(s, sends)
		if got := drained(t, s); got != "" {
			t.Errorf("the thief got %q", got)
		}
	}
	d := c.open()
	c.cmd("RETR a", "150 *")
	if got := drained(t, d); got != "mine" {
		t.Errorf("%q", got)
	}
	c.want("226 *")
	if got := b.report().Foreign; got != 2 {
		t.Errorf("%d foreign connections counted; want 2", got)
	}
}

// TestPassiveTwoLocalAddresses: one port is open for each address that clients reached,
// of both families, and over TLS too.
func TestPassiveTwoLocalAddresses(t *testing.T) {
	listen := strings.Replace(realListen, `"127.0.0.1:0"`, `"127.0.0.1:0", "127.0.0.9:0", "[::1]:0"`, 1)
	b := newFTPBox(t, listen+fmt.Sprintf("passive.ports = %q\n", freePorts(t, 1)), "")
	b.put(t, "a", "x")
	if c, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6:", err)
	} else {
		c.Close()
	}
	var all []*ftpClient
	addrs := b.serveReal(t)
	b.closesPorts(t)
	for _, addr := range addrs {
		c := b.dialReal(t, addr).login()
		c.cmd("EPSV", "229 *")
		all = append(all, c)
	}
	if got := b.report(); got.InUse != 1 || got.Fullest != 1 {
		t.Errorf("%+v; want the one port in use at each of three addresses", got)
	}
	for i := len(all) - 1; i >= 0; i-- {
		c := all[i]
		d := c.open()
		c.cmd("RETR a", "150 *")
		if got := drained(t, d); got != "x" {
			t.Errorf("%q", got)
		}
		c.want("226 *")
	}
	c := all[0]
	c.cmd("AUTH TLS", "234 *")
	c.startTLS(clientTLS())
	c.cmd("USER ann", "331 *")
	c.cmd("PASS secret", "230 *")
	c.cmd("PBSZ 0", "200 *")
	c.cmd("PROT P", "200 *")
	c.private = clientTLS()
	if got := c.fetch("RETR a"); got != "x" {
		t.Errorf("over TLS: %q", got)
	}
	if got := c.store("STOR b", "y"); !strings.HasPrefix(got, "226 ") || b.content(t, "b") != "y" {
		t.Errorf("over TLS: %q", got)
	}
}
