// transfer.go moves bytes: it opens data connections (passive and active, to
// the control connection's own peer only), carries files over them in both
// directions, writes listings and computes digests.
//
// It knows files and sockets but no verbs and no reply codes. The rule that
// shapes it: a plain file goes from disk to socket by sendfile(2) and from
// socket to disk by splice(2), which Go does only when it sees the bare
// *net.TCPConn and *os.File. So limits, deadlines, counting and cancelling
// all happen between chunks and never as a wrapper around either.

package main

import (
	"compress/zlib"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// sendChunk is how much one sendfile call is asked for at most: often
	// enough for limits and progress, too seldom to cost anything.
	sendChunk = 8 << 20
	// copyBuffer is for TLS and hashing copies; larger measured no faster. Plain
	// uploads go over to splice after the first one: most files are smaller, and
	// a splice costs a pipe.
	copyBuffer = 256 << 10
	// maxSplices bounds the pipes that splices hold: past pipe-user-pages-soft
	// (16,384 pages a user, pipe(7)) new pipes shrink to two pages.
	maxSplices = 48
	// passiveTries is how many ports of the range are tried for one PASV.
	passiveTries = 256
	// A MODE Z stream may grow by bombRatio, and by bombSlack beyond that.
	bombRatio = 200
	bombSlack = 64 << 20
	// lowestDataPort: nothing privileged is ever connected to (RFC 2577 section 3).
	lowestDataPort = 1024
)

var (
	errAborted     = errors.New("transfer aborted by the client")
	errControlGone = errors.New("the control connection went away")
	errStalled     = errors.New("nothing moved on the data connection")
	errNoData      = errors.New("no data connection")
	errCutShort    = errors.New("the data connection ended without close_notify")
	errChanged     = errors.New("the file became shorter while it was sent")
	errBomb        = errors.New("compressed data grows beyond all measure")
	errNoPort      = errors.New("no passive port is free")
)

// --- opening data connections ---

// dataPorts opens the server's side of data connections. listen and dial are
// the network; tests put pipes there.
type dataPorts struct {
	listen func(addr netip.AddrPort) (net.Listener, error)
	dial   func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)
}

// newDataPorts uses the real network.
func newDataPorts(quick *quickPoll) *dataPorts {
	return &dataPorts{
		listen: func(a netip.AddrPort) (net.Listener, error) { return listenQuick(a, quick) },
		dial: func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			d := net.Dialer{KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))}
			return d.DialContext(ctx, "tcp", to.String())
		},
	}
}

// passive listens on local and a random port of the range. The search starts
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
// such a wait holds a processor, so it is for one at a time, and only while no
// more sessions are at work than there are processors.
type quickPoll struct {
	waiting atomic.Bool
	busy    atomic.Int32 // sessions that are not waiting for a command
}

const quickWait = 2 // milliseconds

// soon waits a moment for events on fd; false: it will take longer.
func (q *quickPoll) soon(fd int, events int16) bool {
	n := int32(runtime.GOMAXPROCS(0))
	if n == 1 || q.busy.Load() > n || !q.waiting.CompareAndSwap(false, true) {
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

	mu       sync.Mutex // guards what follows
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
	var drop [1024]byte
	for range quickBacklog + 1 {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		unix.Shutdown(fd, unix.SHUT_WR)
		for range quickBacklog {
			if n, err := unix.Read(fd, drop[:]); n <= 0 || err != nil {
				break
			}
		}
		unix.Close(fd)
	}
}

// A quickConn is the data connection that came in on a quickListener.
type quickConn struct {
	quickSocket
	local, remote netip.AddrPort
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
	ln     net.Listener
	target netip.AddrPort
}

func (a *dataArm) armed() bool { return a.ln != nil || a.target.IsValid() }

func (a *dataArm) disarm() {
	if a.ln != nil {
		a.ln.Close()
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
	upload  bool
	moved   atomic.Int64 // bytes of the file or listing so far
	started time.Time
	limit   *rate.Limiter // nil: none
	count   func(int64)   // told of every step while it happens; nil: nobody

	mu      sync.Mutex
	why     error // set by cancel
	closing bool
	unblock func(time.Time) error // SetDeadline of whatever is waited for

	stop chan struct{}
	conn net.Conn // the bare connection
	tls  *tls.Conn
	eof  *eofConn
}

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

// progress notes that n more bytes have moved.
func (x *transfer) progress(n int64) {
	x.moved.Add(n)
	if x.count != nil {
		x.count(n)
	}
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
func (x *transfer) extend() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing {
		return nil // close has set its own
	}
	if x.why != nil {
		return x.why
	}
	return x.unblock(time.Now().Add(x.timeout))
}

// open makes the data connection: waits for the client on a listener, or
// connects to it. Only peer, the control connection's own address, is served:
// others are closed and the wait goes on (no PASV theft, RFC 2577 section 3).
func (x *transfer) open(p *dataPorts, arm *dataArm, local, peer netip.Addr) error {
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
			return fmt.Errorf("%w: connect to %s: %w", errNoData, arm.target, err)
		}
		x.conn = c
		return x.watch(c.SetDeadline)
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
			return fmt.Errorf("%w: %w", errNoData, err)
		}
		if a := addrOf(c.RemoteAddr()); a.IsValid() && a != peer {
			c.Close()
			continue
		}
		x.conn = c
		return x.watch(c.SetDeadline)
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
	x.conn = tcp
	return tcp, x.watch(tcp.SetDeadline)
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
		return tls.ConnectionState{}, fmt.Errorf("%w: TLS: %w", errNoData, err)
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
	if err := c.x.extend(); err != nil {
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

// allow waits until the rate limit lets n more bytes pass.
func (x *transfer) allow(n int64) error {
	if x.limit == nil || n == 0 {
		return nil
	}
	now := time.Now()
	r := x.limit.ReserveN(now, int(min(n, int64(x.limit.Burst()))))
	d := r.DelayFrom(now)
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-x.stop:
		return x.cancelled()
	}
}

// chunk is how much may be moved between two looks at the limit.
func (x *transfer) chunk(most int64) int64 {
	if x.limit != nil {
		return min(most, int64(x.limit.Burst()))
	}
	return most
}

// newLimiter is a limit of perSecond bytes; its burst, and so the step in
// which transfers under it move, is a quarter of a second's worth.
func newLimiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(min(max(perSecond/4, 512), sendChunk)))
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// coding is what happens to bytes on their way: nothing, in the zero value.
type coding struct {
	ascii bool // line ends (RFC 959 section 3.1.1.1)
	z     bool // MODE Z: a zlib stream
}

// --- downloads ---

// send sends size bytes of f from offset on. It reads nothing beyond what f
// had when size was taken, so a file that grows or is replaced meanwhile is
// sent as it was; one that shrinks is errChanged.
func (x *transfer) send(f *os.File, offset, size int64, c coding) error {
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return err
		}
	}
	if x.tls == nil && c == (coding{}) {
		switch c := x.conn.(type) {
		case *quickConn:
			return x.explain(x.sendfile(func(n int64) (int64, error) { return c.sendfile(f, n) }, size))
		case *net.TCPConn:
			return x.explain(x.sendfile(func(n int64) (int64, error) { return c.ReadFrom(&io.LimitedReader{R: f, N: n}) }, size))
		}
	}
	return x.explain(x.sendCopy(f, size, c))
}

// sendfile moves left bytes by step, which is sendfile(2) on one kind of socket
// or another.
func (x *transfer) sendfile(step func(n int64) (int64, error), left int64) error {
	for left > 0 {
		if err := x.extend(); err != nil {
			return err
		}
		n, err := step(x.chunk(min(left, sendChunk)))
		x.progress(n)
		left -= n
		if err != nil {
			if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) && x.cancelled() == nil {
				continue // slow, not stalled
			}
			return err
		}
		if n == 0 {
			return errChanged
		}
		// Charged is what went: one step on a socket may be far less than asked.
		if err := x.allow(n); err != nil {
			return err
		}
	}
	return nil
}

func (x *transfer) sendCopy(f *os.File, left int64, c coding) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	w, finish := x.encoder(c)
	for left > 0 {
		n, err := f.Read((*bp)[:x.chunk(min(left, copyBuffer))])
		if n > 0 {
			if err := x.allow(int64(n)); err != nil {
				return err
			}
			if _, err := w.Write((*bp)[:n]); err != nil {
				return err
			}
			x.progress(int64(n))
			left -= int64(n)
		}
		if err == io.EOF && left > 0 {
			return errChanged
		}
		if err != nil {
			return err
		}
	}
	return finish()
}

// encoder is the writer that a copying download writes to, and what ends it.
func (x *transfer) encoder(c coding) (w io.Writer, finish func() error) {
	w = x.stream()
	finish = func() error { return nil }
	if c.z {
		z, _ := zlib.NewWriterLevel(w, zlib.BestSpeed)
		w, finish = z, z.Close
	}
	if c.ascii {
		w = &crlfWriter{w: w}
	}
	return w, finish
}

// crlfWriter turns every LF that has no CR before it into CR LF.
type crlfWriter struct {
	w   io.Writer
	cr  bool
	buf []byte
}

func (c *crlfWriter) Write(p []byte) (int, error) {
	c.buf = c.buf[:0]
	for _, b := range p {
		if b == '\n' && !c.cr {
			c.buf = append(c.buf, '\r')
		}
		c.cr = b == '\r'
		c.buf = append(c.buf, b)
	}
	if _, err := c.w.Write(c.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// lfReader turns CR LF into LF and leaves a lone CR alone.
type lfReader struct {
	r  io.Reader
	cr bool // a CR is held back
}

func (l *lfReader) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	n, err := l.r.Read(p[:len(p)/2])
	in := p[len(p)/2:][:n]
	copy(in, p[:n])
	out := p[:0]
	for _, b := range in {
		if l.cr && b != '\n' {
			out = append(out, '\r')
		}
		if l.cr = b == '\r'; !l.cr {
			out = append(out, b)
		}
	}
	if err == io.EOF && l.cr {
		out, l.cr = append(out, '\r'), false
	}
	return len(out), err
}

// sent is the writer for listings: it counts, and flushes nothing by itself.
type sent struct {
	x *transfer
	w io.Writer
}

func (s sent) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.x.progress(int64(n))
	return n, s.x.explain(err)
}

// --- uploads ---

// splices counts the uploads that hold a splice pipe now.
type splices struct{ n atomic.Int32 }

func (s *splices) take() bool {
	if s.n.Add(1) > maxSplices {
		s.n.Add(-1)
		return false
	}
	return true
}

func (s *splices) give() { s.n.Add(-1) }

// receive takes what the client sends into u until the data connection ends
// well. It returns nil only for a FIN (never a reset); under TLS notified
// tells whether close_notify came before it. sum, if not nil, sees every byte
// of the file that arrives.
func (x *transfer) receive(u *upload, c coding, sum hash.Hash, sp *splices) (notified bool, err error) {
	if x.tls == nil && c == (coding{}) && sum == nil {
		return true, x.explain(x.splice(u, sp))
	}
	err = x.explain(x.receiveCopy(u, c, sum))
	return err == nil && (x.eof == nil || !x.eof.sawEOF()), err
}

func (x *transfer) splice(u *upload, sp *splices) error {
	bp := copyBuffers.Get().(*[]byte)
	end, err := x.fill(u, *bp)
	copyBuffers.Put(bp)
	if err != nil || end {
		return err
	}
	tcp, err := x.bareTCP()
	if err != nil {
		return err
	}
	if tcp == nil || !sp.take() {
		return x.receiveCopy(u, coding{}, nil)
	}
	defer sp.give()
	lr := io.LimitedReader{R: tcp}
	for {
		most := x.chunk(sendChunk)
		lr.N = most
		if err := x.extend(); err != nil {
			return err
		}
		n, err := u.file.ReadFrom(&lr) // splice(2)
		u.wrote(n)
		x.progress(n)
		if err != nil {
			if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) && x.cancelled() == nil {
				continue
			}
			return err
		}
		if n < most {
			return nil
		}
		if err := x.allow(n); err != nil {
			return err
		}
	}
}

// fill takes the first buffer's worth of an upload, and tells whether that
// was all of it.
func (x *transfer) fill(u *upload, buf []byte) (end bool, err error) {
	if x.limit != nil {
		buf = buf[:x.chunk(int64(len(buf)))]
	}
	n := 0
	if err := x.extend(); err != nil {
		return false, err
	}
	for n < len(buf) && err == nil {
		var m int
		m, err = x.conn.Read(buf[n:])
		n += m
		if err != nil && m == 0 && n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			break // what is there gets written first; the next read tells whether it stalled
		}
	}
	end = err == io.EOF
	if end || errors.Is(err, os.ErrDeadlineExceeded) && n > 0 && x.cancelled() == nil {
		err = nil
	}
	if n > 0 {
		w, werr := u.file.Write(buf[:n])
		u.wrote(int64(w))
		x.progress(int64(w))
		if werr != nil {
			return end, werr
		}
		if lerr := x.allow(int64(n)); lerr != nil {
			return end, lerr
		}
	}
	return end, err
}

func (x *transfer) receiveCopy(u *upload, c coding, sum hash.Hash) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	buf := *bp
	var r io.Reader = x.stream()
	if c.z {
		in := &countReader{r: r}
		z, err := zlib.NewReader(in)
		if err != nil {
			return fmt.Errorf("MODE Z: %w", err)
		}
		r = &bombGuard{r: z, in: in}
	}
	if c.ascii {
		r = &lfReader{r: r}
	}
	for {
		most := int(x.chunk(copyBuffer))
		n := 0
		var err error
		for n <= most-2 && err == nil { // lfReader wants room for two
			var m int
			m, err = r.Read(buf[n:most])
			n += m
		}
		if n > 0 {
			if sum != nil {
				sum.Write(buf[:n])
			}
			w, werr := u.file.Write(buf[:n])
			u.wrote(int64(w))
			x.progress(int64(w))
			if werr != nil {
				return werr
			}
			if err := x.allow(int64(n)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// bombGuard stops a MODE Z stream that unpacks to far more than it was.
type bombGuard struct {
	r   io.Reader
	in  *countReader
	out int64
}

func (b *bombGuard) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.out += int64(n); b.out > bombSlack+bombRatio*b.in.n {
		return n, errBomb
	}
	return n, err
}

// --- digests ---

// digests are the algorithms of HASH and the X-commands, strongest first, as
// FEAT lists them (draft-bryan-ftpext-hash section 4).
var digests = []struct {
	name string
	verb string // of the X family
	make func() hash.Hash
}{
	{"SHA-512", "XSHA512", sha512.New},
	{"SHA-256", "XSHA256", sha256.New},
	{"SHA-1", "XSHA1", sha1.New},
	{"MD5", "XMD5", md5.New},
	{"CRC32", "XCRC", func() hash.Hash { return crc32.NewIEEE() }},
}

// digest computes h over f[start:end). It stops with cancelled's error as
// soon as that returns one, so that a lost client costs no more reading.
func digest(h hash.Hash, f *os.File, start, end int64, cancelled func() error) error {
	unix.Fadvise(int(f.Fd()), start, end-start, unix.FADV_SEQUENTIAL)
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	for left := end - start; left > 0; {
		if err := cancelled(); err != nil {
			return err
		}
		n, err := f.Read((*bp)[:min(left, copyBuffer)])
		h.Write((*bp)[:n])
		left -= int64(n)
		if err == io.EOF && left > 0 {
			return errChanged
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// --- listings ---

const (
	listBuffer = 64 << 10
	listFirst  = 4 << 10
	listFlush  = listBuffer - 8<<10 // room for the longest line: a name and a link target
)

var listBuffers = sync.Pool{New: func() any { b := make([]byte, 0, listBuffer); return &b }}

// listFormat writes one line for an entry.
type listFormat func(b []byte, e *entry) []byte

// writeListing streams a directory through one buffer: the first lines leave
// while the rest is still being read, and memory does not grow with the
// directory. before, if not nil, comes first.
func writeListing(w io.Writer, d *dirStream, stat bool, before []entry, format listFormat) error {
	bp := listBuffers.Get().(*[]byte)
	defer listBuffers.Put(bp)
	b := (*bp)[:0]
	flush := listFirst // the first lines leave at once, to be seen; later ones in bulk
	add := func(e *entry) error {
		b = format(b, e)
		if len(b) < flush {
			return nil
		}
		flush = min(4*flush, listFlush)
		_, err := w.Write(b)
		b = b[:0]
		return err
	}
	for i := range before {
		if err := add(&before[i]); err != nil {
			return err
		}
	}
	if err := d.each(stat, add); err != nil {
		return err
	}
	if len(b) > 0 {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

const months = "JanFebMarAprMayJunJulAugSepOctNovDec"

// halfYear is how old a file may be for ls(1) to show its time of day.
const halfYear = 182 * 24 * time.Hour

// lister formats entries for one listing. Formatted times are kept for the
// next line, as most files of a directory are of the same day.
type lister struct {
	now   time.Time
	owner jailOwner
	can   permission
	facts mlstFacts

	sec     int64 // what date holds the text of
	date    [12]byte
	started bool
}

// appendLIST is a line of ls -l in the C locale and in UTC.
func (l *lister) appendLIST(b []byte, e *entry) []byte {
	b = appendMode(b, e.mode)
	b = append(b, ' ')
	b = appendPadded(b, int64(e.nlink), 3)
	b = append(b, ' ')
	if e.uid == l.owner.uid {
		b = appendLeft(b, l.owner.name, 8)
	} else {
		b = appendLeft(b, utoa(uint64(e.uid)), 8)
	}
	b = append(b, ' ')
	b = appendLeft(b, utoa(uint64(e.gid)), 8)
	b = append(b, ' ')
	b = appendPadded(b, e.size, 12)
	b = append(b, ' ')
	if !l.started || e.sec/60 != l.sec/60 || e.sec < 0 { // division rounds towards 1970
		l.setDate(e.sec)
	}
	b = append(b, l.date[:]...)
	b = append(b, ' ')
	b = appendShown(b, e.name)
	if e.link != "" {
		b = append(b, " -> "...)
		b = appendShown(b, e.link)
	}
	return append(b, '\r', '\n')
}

func (l *lister) setDate(sec int64) {
	l.sec, l.started = sec, true
	t := time.Unix(sec, 0).UTC()
	y, m, d := t.Date()
	b := append(l.date[:0], months[3*(m-1):3*m]...)
	b = appendPadded(b, int64(d), 3)
	if age := l.now.Sub(t); age < halfYear && age > -24*time.Hour {
		hh, mm, _ := t.Clock()
		b = append(b, ' ', byte('0'+hh/10), byte('0'+hh%10), ':', byte('0'+mm/10), byte('0'+mm%10))
	} else {
		b = appendPadded(b, int64(max(0, min(y, 9999))), 6)
	}
	_ = b
}

// appendNLST is the bare name.
func appendNLST(b []byte, e *entry) []byte {
	b = appendName(b, e.name)
	return append(b, '\r', '\n')
}

// appendMode is the first column of ls -l.
func appendMode(b []byte, mode uint32) []byte {
	kind := byte('?')
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = '-'
	case unix.S_IFDIR:
		kind = 'd'
	case unix.S_IFLNK:
		kind = 'l'
	case unix.S_IFIFO:
		kind = 'p'
	case unix.S_IFSOCK:
		kind = 's'
	case unix.S_IFCHR:
		kind = 'c'
	case unix.S_IFBLK:
		kind = 'b'
	}
	const rwx = "rwxrwxrwx"
	var t [10]byte
	t[0] = kind
	for i := range 9 {
		t[i+1] = '-'
		if mode&(1<<(8-i)) != 0 {
			t[i+1] = rwx[i]
		}
	}
	special := func(bit uint32, at int, set, unset byte) {
		if mode&bit != 0 {
			if t[at] == 'x' {
				t[at] = set
			} else {
				t[at] = unset
			}
		}
	}
	special(unix.S_ISUID, 3, 's', 'S')
	special(unix.S_ISGID, 6, 's', 'S')
	special(unix.S_ISVTX, 9, 't', 'T')
	return append(b, t[:]...)
}

// appendPadded writes n right-aligned in width columns, wider if it must.
func appendPadded(b []byte, n int64, width int) []byte {
	var t [20]byte
	i := len(t)
	neg := n < 0
	u := uint64(n)
	if neg {
		u = -u
	}
	for {
		i--
		t[i] = byte('0' + u%10)
		if u /= 10; u == 0 {
			break
		}
	}
	if neg && i > 0 {
		i--
		t[i] = '-'
	}
	for pad := width - (len(t) - i); pad > 0; pad-- {
		b = append(b, ' ')
	}
	return append(b, t[i:]...)
}

func utoa(n uint64) string {
	if n == 0 {
		return "0"
	}
	var t [20]byte
	i := len(t)
	for ; n > 0; n /= 10 {
		i--
		t[i] = byte('0' + n%10)
	}
	return string(t[i:])
}

func appendLeft(b []byte, s string, width int) []byte {
	b = append(b, s...)
	for pad := width - len(s); pad > 0; pad-- {
		b = append(b, ' ')
	}
	return b
}

// appendShown writes a name for people's eyes: control characters become "?",
// as ls(1) does it, so that no name can forge a line or drive a terminal.
func appendShown(b []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c < ' ' || c == 0x7f {
			c = '?'
		}
		b = append(b, c)
	}
	return b
}

// appendName writes a name for programs: every byte as it is, but CR and LF,
// which would end the line and which no client can send back anyway.
func appendName(b []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '\r' || c == '\n' {
			c = '?'
		}
		b = append(b, c)
	}
	return b
}

// mlstFacts is the set of facts a session wants (RFC 3659 section 7.8).
type mlstFacts uint16

const (
	factType mlstFacts = 1 << iota
	factSize
	factModify
	factPerm
	factUnique
	factMode
	factOwner
	factGroup
	factsAll = factGroup<<1 - 1
)

// mlstFactNames are the names in the order of the bits. They compare without
// case (RFC 3659 section 7.5), but PHP hands them to scripts as they come, and
// every other server writes these in small letters.
var mlstFactNames = [...]string{"type", "size", "modify", "perm", "unique", "UNIX.mode", "UNIX.owner", "UNIX.group"}

// appendMLSx is a line of RFC 3659 section 7.2, without its line end. kind is
// "cdir", "pdir" or "" for an entry of the directory.
func (l *lister) appendMLSx(b []byte, e *entry, kind string) []byte {
	f := l.facts
	if f&factType != 0 {
		b = append(b, "type="...)
		switch {
		case kind != "":
			b = append(b, kind...)
		case e.isDir():
			b = append(b, "dir"...)
		case e.isFile():
			b = append(b, "file"...)
		case e.mode&unix.S_IFMT == unix.S_IFLNK:
			b = append(b, "OS.unix=slink:"...)
			for i := 0; i < len(e.link); i++ { // a fact ends at ";" and the facts at a space
				if c := e.link[i]; c <= ' ' || c == ';' || c == 0x7f {
					b = append(b, '?')
				} else {
					b = append(b, c)
				}
			}
		default:
			b = append(b, "OS.unix=special"...)
		}
		b = append(b, ';')
	}
	if f&factSize != 0 && e.isFile() {
		b = append(b, "size="...)
		b = appendPadded(b, e.size, 0)
		b = append(b, ';')
	}
	if f&factModify != 0 {
		b = append(b, "modify="...)
		b = appendFTPTime(b, e.sec, 0)
		b = append(b, ';')
	}
	if f&factPerm != 0 {
		b = append(b, "perm="...)
		b = l.appendPerm(b, e)
		b = append(b, ';')
	}
	if f&factUnique != 0 {
		b = append(b, "unique="...)
		b = e.appendUnique(b)
		b = append(b, ';')
	}
	if f&factMode != 0 {
		b = append(b, "UNIX.mode=0"...)
		b = append(b, byte('0'+e.mode>>6&7), byte('0'+e.mode>>3&7), byte('0'+e.mode&7), ';')
	}
	if f&factOwner != 0 {
		b = append(b, "UNIX.owner="...)
		b = appendPadded(b, int64(e.uid), 0)
		b = append(b, ';')
	}
	if f&factGroup != 0 {
		b = append(b, "UNIX.group="...)
		b = appendPadded(b, int64(e.gid), 0)
		b = append(b, ';')
	}
	b = append(b, ' ')
	return appendName(b, e.name)
}

// appendPerm is the "perm" fact (RFC 3659 section 7.5.5): what this user may
// do, as far as his permissions and the mode bits tell.
func (l *lister) appendPerm(b []byte, e *entry) []byte {
	can := func(p permission) bool { return l.can&p != 0 }
	r, w := e.mode&0o444 != 0, e.mode&0o222 != 0
	if e.isDir() {
		if can(permWrite) && w {
			b = append(b, 'c')
		}
		if can(permDelete) {
			b = append(b, 'd')
		}
		b = append(b, 'e')
		if can(permRename) {
			b = append(b, 'f')
		}
		if can(permList) && r {
			b = append(b, 'l')
		}
		if can(permMkdir) && w {
			b = append(b, 'm')
		}
		if can(permDelete) && w {
			b = append(b, 'p')
		}
		return b
	}
	if can(permWrite) && w {
		b = append(b, 'a')
	}
	if can(permDelete) {
		b = append(b, 'd')
	}
	if can(permRename) {
		b = append(b, 'f')
	}
	if can(permRead) && r {
		b = append(b, 'r')
	}
	if can(permWrite) && w {
		b = append(b, 'w')
	}
	return b
}

// appendFTPTime is RFC 3659 section 2.3: YYYYMMDDHHMMSS in UTC, with
// milliseconds if there are any.
func appendFTPTime(b []byte, sec int64, ms int) []byte {
	b = time.Unix(sec, 0).UTC().AppendFormat(b, "20060102150405")
	if ms > 0 {
		b = fmt.Appendf(b, ".%03d", ms)
	}
	return b
}

// parseFTPTime reads what appendFTPTime writes. ok is false for anything else
// and for a date that no calendar has.
func parseFTPTime(s string) (t time.Time, ok bool) {
	if len(s) < 14 {
		return t, false
	}
	for i := range 14 {
		if s[i] < '0' || s[i] > '9' {
			return t, false
		}
	}
	if len(s) > 14 && (s[14] != '.' || len(s) == 15 || len(s) > 24) {
		return t, false
	}
	layout := "20060102150405"
	t, err := time.Parse(layout, s)
	return t, err == nil
}
