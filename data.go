// data.go opens data connections: passive ports, active connects, who may be at
// the other end, and TLS on top. It is apart from transfer.go along a line of
// trust: here it is decided with whom bytes are exchanged, there they are. The
// sockets are berth's own, and not package net's, for as long as that is
// cheaper: see quickSocket.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// passiveTries is how many ports of the range are tried for one PASV.
	passiveTries = 256
	// lowestDataPort: nothing privileged is ever connected to (RFC 2577 section 3).
	lowestDataPort = 1024
)

// dataPorts opens the server's side of data connections. listen and dial are
// the network; tests put pipes there.
type dataPorts struct {
	listen func(addr netip.AddrPort) (net.Listener, error)
	dial   func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)
	shared *sharedPorts
}

// newDataPorts uses the real network.
func newDataPorts(quick *quickPoll) *dataPorts {
	return &dataPorts{
		shared: newSharedPorts(),
		listen: func(a netip.AddrPort) (net.Listener, error) { return listenQuick(a, quick) },
		dial: func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			if crowded(1) {
				return nil, unix.EMFILE
			}
			d := net.Dialer{KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))}
			return d.DialContext(ctx, "tcp", to.String())
		},
	}
}

// passive listens on local and a random port of the range, for one session alone. The search starts
// at a random place, so that the next port cannot be told from the last one
// (RFC 2577 section 8).
func (p *dataPorts) passive(local netip.Addr, ports portRange) (net.Listener, uint16, error) {
	low, n := 0, 1
	if ports.Low != 0 {
		low, n = int(ports.Low), int(ports.High)-int(ports.Low)+1
	}
	start := rand.IntN(n)
	var last error
	for try := range min(n, passiveTries) {
		port := 0
		if low != 0 {
			port = low + (start+try)%n
		}
		ln, err := p.listen(netip.AddrPortFrom(local, uint16(port)))
		if err == nil {
			if a, ok := ln.Addr().(*net.TCPAddr); ok {
				port = a.Port
			}
			return ln, uint16(port), nil
		}
		last = err
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if errors.Is(last, syscall.EADDRINUSE) {
		return nil, 0, errNoPort
	}
	return nil, 0, last
}

// A quickPoll decides who may wait in poll(2) instead of in Go's poller. Where
// the other side answers within microseconds, as on a LAN and with small files,
// putting a processor to sleep and waking it again is most of the cost of a
// transfer (measured with 4 KiB files and one session: a third less CPU). But
// such a wait holds a processor, so it is for one at a time, and only while not
// more than quickBusy sessions are at work for each processor: with 64 on two,
// others wanted it.
type quickPoll struct {
	waiting atomic.Bool
	busy    atomic.Int32 // sessions that are not waiting for a command
}

const (
	quickWait = 2 // milliseconds
	quickBusy = 8
)

// soon waits a moment for events on fd; false: it will take longer.
func (q *quickPoll) soon(fd int, events int16) bool {
	n := int32(runtime.GOMAXPROCS(0))
	if n == 1 || q.busy.Load() > quickBusy*n || !q.waiting.CompareAndSwap(false, true) {
		return false
	}
	defer q.waiting.Store(false)
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	ready, err := unix.Poll(p[:], quickWait)
	return ready > 0 || err == unix.EINTR
}

// A quickSocket is a socket that Go's poller does not know until it has to wait
// for longer than a moment. Most data connections are opened, used and closed
// within a millisecond; for them the poller, and what package net asks the
// kernel about every socket, are most of the cost.
//
// It belongs to one goroutine; only SetDeadline may be called by others.
type quickSocket struct {
	fd    int
	quick *quickPoll

	mu       mutex // guards what follows
	deadline time.Time
	file     *os.File // known to the poller
}

func (q *quickSocket) SetDeadline(t time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deadline = t
	if q.file != nil {
		return q.file.SetDeadline(t)
	}
	return nil
}

func (q *quickSocket) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.file != nil {
		return q.file.Close()
	}
	if q.fd < 0 {
		return net.ErrClosed
	}
	err := unix.Close(q.fd)
	q.fd = -1
	return err
}

// do runs call, a non-blocking system call on the socket, until it has
// something better to say than EAGAIN.
func (q *quickSocket) do(name string, events int16, call func(fd int) error) error {
	for q.file == nil {
		if q.fd < 0 {
			return net.ErrClosed
		}
		err := call(q.fd)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
		case err != unix.EAGAIN:
			return os.NewSyscallError(name, err)
		case !q.quick.soon(q.fd, events):
			q.join()
		}
	}
	rc, err := q.file.SyscallConn()
	if err != nil {
		return err
	}
	wait := rc.Read
	if events == unix.POLLOUT {
		wait = rc.Write
	}
	var result error
	err = wait(func(fd uintptr) bool {
		for {
			if result = call(int(fd)); result != unix.EINTR {
				return result != unix.EAGAIN
			}
		}
	})
	if err == nil && result != nil {
		err = os.NewSyscallError(name, result)
	}
	return err
}

// join makes the socket known to the poller, for good.
func (q *quickSocket) join() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.file = os.NewFile(uintptr(q.fd), "data connection") // non-blocking, so it is polled
	q.fd = -1
	q.file.SetDeadline(q.deadline)
}

// A quickListener is a passive port.
type quickListener struct {
	quickSocket
	addr netip.AddrPort
}

// quickBacklog is how many may knock at a passive port at once. One is
// expected; strangers must not keep it out.
const quickBacklog = 16

// listenQuick listens on addr; port 0 takes a free one.
func listenQuick(addr netip.AddrPort, quick *quickPoll) (net.Listener, error) {
	sa, family := sockaddr(addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if isKept(fd, 1) {
		unix.Close(fd)
		return nil, unix.EMFILE
	}
	// Ports of earlier transfers in TIME_WAIT can be used again.
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil && family == unix.AF_INET6 {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, quickBacklog))
	}
	if err == nil && addr.Port() == 0 {
		var got unix.Sockaddr
		if got, err = unix.Getsockname(fd); err == nil {
			addr = addrPortOf(got)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &quickListener{quickSocket{fd: fd, quick: quick}, addr}, nil
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if ip := a.Addr(); !ip.Is4() {
		sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16()}
		if zone := ip.Zone(); zone != "" {
			if i, err := net.InterfaceByName(zone); err == nil {
				sa.ZoneId = uint32(i.Index)
			} else if n, ok := parseOffset(zone); ok {
				sa.ZoneId = uint32(n)
			}
		}
		return sa, unix.AF_INET6
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, unix.AF_INET
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (l *quickListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

func (l *quickListener) Accept() (net.Conn, error) {
	for {
		var fd int
		var sa unix.Sockaddr
		err := l.do("accept4", unix.POLLIN, func(listener int) (err error) {
			fd, sa, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return err
		})
		switch {
		case err == nil:
			return &quickConn{quickSocket: quickSocket{fd: fd, quick: l.quick}, local: l.addr, remote: addrPortOf(sa)}, nil
		case !errors.Is(err, unix.ECONNABORTED):
			return nil, err
		}
	}
}

// hangUp ends the connections that nobody has accepted. What they sent is read
// away first (under TLS that is a ClientHello): unread, it would make a reset.
func (l *quickListener) hangUp() {
	if l.file != nil {
		return // the poller has it: somebody waited here, and for nobody
	}
	for range quickBacklog + 1 {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		endSocket(fd)
	}
}

// endSocket ends a connection that nobody will use.
func endSocket(fd int) {
	var drop [1024]byte
	unix.Shutdown(fd, unix.SHUT_WR)
	for range quickBacklog {
		if n, err := unix.Read(fd, drop[:]); n <= 0 || err != nil {
			break
		}
	}
	unix.Close(fd)
}

// A quickConn is the data connection that came in on a quickListener.
type quickConn struct {
	quickSocket
	local, remote netip.AddrPort
}

// hangUp ends a connection as it was accepted: nobody has used it.
func (c *quickConn) hangUp() {
	endSocket(c.fd)
	c.fd = -1
}

func (c *quickConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *quickConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *quickConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *quickConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

func (c *quickConn) SetLinger(sec int) error {
	return c.do("setsockopt", unix.POLLOUT, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(sec)})
	})
}

func (c *quickConn) Read(p []byte) (n int, err error) {
	err = c.do("read", unix.POLLIN, func(fd int) (err error) {
		n, err = unix.Read(fd, p)
		return err
	})
	if err != nil {
		return 0, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *quickConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := 0
		err := c.do("write", unix.POLLOUT, func(fd int) (err error) {
			n, err = unix.Write(fd, p[done:])
			return err
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// sendfile sends up to n bytes of f from where it stands; it may send fewer.
func (c *quickConn) sendfile(f *os.File, n int64) (int64, error) {
	sent := 0
	err := c.do("sendfile", unix.POLLOUT, func(fd int) (err error) {
		sent, err = unix.Sendfile(fd, int(f.Fd()), nil, int(n))
		return err
	})
	if err != nil {
		return 0, err
	}
	return int64(sent), nil
}

// settle hands the socket to package net, which splice and TLS want.
func (c *quickConn) settle() (*net.TCPConn, error) {
	if c.file == nil {
		c.join()
	}
	conn, err := net.FileConn(c.file)
	c.file.Close()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return conn.(*net.TCPConn), conn.SetDeadline(c.deadline)
}

// A dataArm is what PASV, EPSV, PORT or EPRT left behind for the next
// transfer: a listener, or where to connect to. The zero value is unarmed.
type dataArm struct {
	ln      net.Listener
	target  netip.AddrPort
	counts  *sharedPorts // where the use of ports is counted; nil: nowhere
	private netip.Addr   // at which address of ours ln is a private port; invalid: it is none
}

func (a *dataArm) armed() bool { return a.ln != nil || a.target.IsValid() }

func (a *dataArm) disarm() {
	if a.ln != nil {
		a.ln.Close()
	}
	if local := a.private; local.IsValid() {
		a.counts.count(func(u *portUse) {
			if u.private[local]--; u.private[local] == 0 {
				delete(u.private, local)
			}
		})
	}
	*a = dataArm{}
}

// dismiss disarms when no transfer came of it, once the reply that says why is
// out. Closing a listener resets who has connected, and clients that read the
// reset before the reply give up the session (Node's do); they get a plain end.
func (a *dataArm) dismiss() {
	if l, ok := a.ln.(interface{ hangUp() }); ok {
		l.hangUp()
	}
	a.disarm()
}

// A transfer is one data connection from its opening to its end. cancel may
// be called by any goroutine at any time; everything else belongs to the one
// that runs the transfer.
type transfer struct {
	timeout time.Duration // nothing moved for so long: errStalled
	// silence is what to do when the client says that it will send no more, to find
	// out whether it is still there; nil: nothing.
	silence  func()
	attended bool         // the client has to stay: it sends, or a command runs for it
	moved    atomic.Int64 // bytes of the file or listing so far
	total    atomic.Int64 // how many it will be; 0: not known
	file     string       // whose bytes they are, as its user names it; set before others see the transfer, as command is
	command  string       // that runs
	started  time.Time
	limit    *rate.Limiter // nil: none
	count    func(int64)   // told of every step while it happens; nil: nobody

	fillBy time.Time // see filling; zero: nothing waits for more

	mu      mutex
	why     error // set by cancel
	closing bool
	unblock func(time.Time) error // SetDeadline of whatever is waited for
	marks   [2]mark               // the older first, at least rateStep apart
	movedAt time.Time             // when last something did

	sock net.Conn // conn, for those who ask how much it holds; nil: it is not TCP

	stop chan struct{}
	conn net.Conn // the bare connection
	tls  *tls.Conn
	eof  *eofConn
}

//go:noinline
func newTransfer(timeout time.Duration, limit *rate.Limiter) *transfer {
	return &transfer{timeout: timeout, limit: limit, started: time.Now(), stop: make(chan struct{})}
}

// cancel ends the transfer with the error why, wherever it is.
func (x *transfer) cancel(why error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why != nil || x.closing {
		return
	}
	x.why = why
	close(x.stop)
	if x.unblock != nil {
		x.unblock(time.Unix(1, 0))
	}
}

const (
	// rateStep is how far back at least the beginning of what rate tells lies: a step
	// of a slow transfer takes about so long.
	rateStep = time.Second
	// rateStale is how long nothing may move before the rate is 0.
	rateStale = 3 * time.Second
)

// A mark is how far a transfer was at one moment.
type mark struct {
	at   time.Time
	done int64
}

// progress notes that n more bytes have moved.
func (x *transfer) progress(n int64) {
	x.moved.Add(n)
	if n > 0 {
		x.mu.Lock()
		if x.movedAt = time.Now(); x.movedAt.Sub(x.marks[1].at) >= rateStep {
			x.mark(x.movedAt)
		}
		x.mu.Unlock()
	}
	if x.count != nil {
		x.count(n)
	}
}

// mark remembers how far the transfer is, if the last time is long enough ago; x.mu is held.
func (x *transfer) mark(now time.Time) (done int64) {
	done = x.doneLocked()
	if last := &x.marks[1]; now.Sub(last.at) >= rateStep {
		if done > last.done {
			x.movedAt = now
		}
		x.marks[0], *last = *last, mark{now, done}
	}
	return done
}

// doneLocked is moved, less what the kernel still holds for a client: with a slow one
// that is megabytes, and most of its time.
func (x *transfer) doneLocked() int64 {
	moved := x.moved.Load()
	if x.sock == nil || x.attended {
		return moved
	}
	return max(moved-unsent(x.sock), 0)
}

// unsent is how much of what was written to a TCP connection its peer has yet to
// acknowledge (tcp(7), SIOCOUTQ).
func unsent(c net.Conn) (n int64) {
	ask := func(fd int) error {
		v, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		n = int64(max(v, 0))
		return err
	}
	if q, ok := c.(*quickConn); ok {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.file == nil {
			if q.fd >= 0 {
				ask(q.fd)
			}
			return n
		}
		onDescriptor(q.file, ask)
		return n
	}
	onDescriptor(c, ask)
	return n
}

// speed is how many bytes are done, and how many a second now: since the latest mark
// that is rateStep old, which is one to two seconds ago while anything moves. The
// transfer itself leaves the marks as it goes, so that no goroutine is needed, and it
// does not matter who asks, nor how often.
func (x *transfer) speed(now time.Time) (done, rate int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	done = x.mark(now)
	from := mark{at: x.started}
	for _, m := range x.marks {
		if !m.at.IsZero() && now.Sub(m.at) >= rateStep {
			from = m
		}
	}
	if now.Sub(x.movedAt) > rateStale {
		return done, 0
	}
	// Below a step a burst into empty buffers would pass for a speed.
	return done, max(int64(float64(done-from.done)/max(now.Sub(from.at), rateStep).Seconds()), 0)
}

// cancelled returns what cancel was told, if it was called.
func (x *transfer) cancelled() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.why
}

// watch makes d what cancel unblocks.
func (x *transfer) watch(setDeadline func(time.Time) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unblock = setDeadline
	return x.why
}

// extend gives the next operation the whole timeout, unless cancel came first:
// both set the same deadline, and under the same lock neither is lost.
func (x *transfer) extend() error { return x.extendFor(x.timeout) }

// patience is how long the next read may take: what is in the buffer already is not
// held back for long, but written and counted, however slow its client is.
func (x *transfer) patience() time.Duration {
	if x.fillBy.IsZero() {
		return x.timeout
	}
	return min(x.timeout, time.Until(x.fillBy))
}

// filling tells that the buffer that is read into holds something, or (false) nothing.
func (x *transfer) filling(something bool) {
	if !something {
		x.fillBy = time.Time{}
	} else if x.fillBy.IsZero() {
		x.fillBy = time.Now().Add(rateStep)
	}
}

func (x *transfer) extendFor(d time.Duration) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing {
		return nil // close has set its own
	}
	if x.why != nil {
		return x.why
	}
	return x.unblock(time.Now().Add(d))
}

// open makes the data connection: waits for the client on a listener, or
// connects to it. Only whom accept lets in is served: others are closed and the wait
// goes on.
func (x *transfer) open(p *dataPorts, arm *dataArm, local netip.Addr, accept func(net.Conn) bool) error {
	defer arm.disarm()
	if arm.ln == nil {
		ctx, cancel := context.WithTimeout(context.Background(), x.timeout)
		defer cancel()
		if err := x.watch(func(time.Time) error { cancel(); return nil }); err != nil {
			return err
		}
		c, err := p.dial(ctx, local, arm.target)
		if err != nil {
			if why := x.cancelled(); why != nil {
				return why
			}
			return errorf("%w: connect to %s: %w", errNoData, arm.target, err)
		}
		return x.use(c)
	}
	if d, ok := arm.ln.(interface{ SetDeadline(time.Time) error }); ok {
		if err := x.watch(d.SetDeadline); err != nil {
			return err
		}
		if err := x.extend(); err != nil {
			return err
		}
	} else { // a test's listener of pipes
		ln := arm.ln
		if err := x.watch(func(time.Time) error { return ln.Close() }); err != nil {
			return err
		}
	}
	for {
		c, err := arm.ln.Accept()
		if err != nil {
			if why := x.cancelled(); why != nil {
				return why
			}
			return errorf("%w: %w", errNoData, err)
		}
		if !accept(c) {
			if arm.counts != nil {
				arm.counts.count(func(u *portUse) { u.foreign++ })
			}
			c.Close()
			continue
		}
		return x.use(c)
	}
}

// bareTCP is the data connection as Go's own TCP connection, which is what
// sendfile, splice and TLS want; nil where a test put something else.
func (x *transfer) bareTCP() (*net.TCPConn, error) {
	q, ok := x.conn.(*quickConn)
	if !ok {
		tcp, _ := x.conn.(*net.TCPConn)
		return tcp, nil
	}
	tcp, err := q.settle()
	if err != nil {
		return nil, err
	}
	return tcp, x.use(tcp)
}

// use makes c the data connection.
func (x *transfer) use(c net.Conn) error {
	x.conn = c
	x.mu.Lock()
	x.sock = c
	x.mu.Unlock()
	return x.watch(c.SetDeadline)
}

// addrOf is the bare address of a TCP peer: unmapped, without zone; invalid
// for anything else.
func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// startTLS does the server's handshake, also where the server connected
// (RFC 4217 section 7).
func (x *transfer) startTLS(cfg *tls.Config) (tls.ConnectionState, error) {
	if _, err := x.bareTCP(); err != nil {
		return tls.ConnectionState{}, err
	}
	if err := x.extend(); err != nil {
		return tls.ConnectionState{}, err
	}
	x.eof = &eofConn{Conn: patientConn{x}}
	x.tls = tls.Server(x.eof, cfg)
	if err := x.tls.Handshake(); err != nil {
		if why := x.cancelled(); why != nil {
			err = why
		}
		return tls.ConnectionState{}, errorf("%w: TLS: %w", errNoData, err)
	}
	return x.tls.ConnectionState(), nil
}

// close ends the data connection: with close_notify under TLS, always. In
// plain text a transfer that failed ends with a reset, so that a client that
// does not read replies cannot take a part for the whole; one that the client
// aborted itself does not.
func (x *transfer) close(err error) {
	if x.conn == nil {
		return
	}
	x.mu.Lock()
	x.closing = true // from now on nothing is cancelled, or close_notify would not leave
	x.mu.Unlock()
	if x.tls != nil {
		x.conn.SetDeadline(time.Now().Add(closeTimeout))
		closeTLS(x.tls)
	} else if t, ok := x.conn.(interface{ SetLinger(int) error }); ok && err != nil && !errors.Is(err, errAborted) {
		t.SetLinger(0)
	}
	x.conn.Close()
}

// closeTimeout is how long a client that reads nothing can hold up the
// sending of close_notify.
const closeTimeout = 2 * time.Second

// patientConn gives every read and write of a copying transfer the whole
// timeout, and goes on with a write that moved something before it timed out:
// a slow client is not a stalled one.
type patientConn struct{ x *transfer }

func (c patientConn) Read(p []byte) (int, error) {
	if err := c.x.extendFor(c.x.patience()); err != nil {
		return 0, err
	}
	return c.x.conn.Read(p)
}

func (c patientConn) Write(p []byte) (int, error) {
	done := 0
	for {
		if err := c.x.extend(); err != nil {
			return done, err
		}
		n, err := c.x.conn.Write(p[done:])
		done += n
		if err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return done, err
		}
	}
}

func (c patientConn) Close() error                       { return c.x.conn.Close() }
func (c patientConn) LocalAddr() net.Addr                { return c.x.conn.LocalAddr() }
func (c patientConn) RemoteAddr() net.Addr               { return c.x.conn.RemoteAddr() }
func (c patientConn) SetDeadline(t time.Time) error      { return nil } // extend does it
func (c patientConn) SetReadDeadline(t time.Time) error  { return nil }
func (c patientConn) SetWriteDeadline(t time.Time) error { return nil }

// stream is the connection as a reader and writer for copies.
func (x *transfer) stream() io.ReadWriter {
	if x.tls != nil {
		return x.tls
	}
	return patientConn{x}
}

// explain turns the error of an operation into its cause: what cancel said,
// or a stall.
func (x *transfer) explain(err error) error {
	if err == nil {
		return nil
	}
	if why := x.cancelled(); why != nil {
		return why
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return err
}
